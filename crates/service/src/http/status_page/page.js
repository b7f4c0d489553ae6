// The status page: asks for `status`, beside the page itself, and shows the answer. Every text of an answer goes through
// textContent, and every number through `number`: an error's text may be anything that a client has sent, and any field may be
// missing. An answer that does not come leaves what is shown, and says so.
"use strict";

(() => {
  const { number, time, html } = Chart;
  const EVERY_MS = 2000;
  const PAUSE_MS_MAX = 30_000;
  const ANSWER_MS_MAX = 10_000;
  const ERRORS_AT_FIRST = 8;
  const KEPT_AS = "nexus-api-key";

  const $ = (id) => document.getElementById(id);

  // ---- what is said of a value ----

  const LOCALE = "en-GB";
  const whole = new Intl.NumberFormat(LOCALE, { maximumFractionDigits: 0 });
  const tenths = new Intl.NumberFormat(LOCALE, { minimumFractionDigits: 1, maximumFractionDigits: 1 });
  const figures = new Intl.NumberFormat(LOCALE, { maximumSignificantDigits: 3 });
  const hundredths = new Intl.NumberFormat(LOCALE, { maximumFractionDigits: 2 });
  const known = (make) => (value) => (number(value) === null ? "–" : make(value));

  const short = known((value) => {
    for (const [unit, size] of [[" T", 1e12], [" G", 1e9], [" M", 1e6], [" k", 1e4]]) {
      const scale = unit === " k" ? 1e3 : size;
      if (value >= size * 0.99995) return figures.format(value / scale) + unit;
    }
    return whole.format(value);
  });
  const rate = known((value) => (value < 10 && value % 1 ? (value < 0.1 ? hundredths : tenths).format(value) : short(value)));
  const axis = known((value) => (value >= 1000 ? short(value).replace(" ", "") : value % 1 ? hundredths.format(value) : whole.format(value)));
  const ms = known((value) => (value >= 1000 ? `${hundredths.format(value / 1000)} s` : `${(value < 10 && value % 1 ? tenths : whole).format(value)} ms`));
  const bytes = known((value) => {
    for (const [unit, shift] of [["TiB", 40], ["GiB", 30], ["MiB", 20], ["KiB", 10]]) {
      const scaled = value / 2 ** shift;
      if (scaled >= 1) return `${(scaled < 10 && scaled % 1 ? tenths : whole).format(scaled)} ${unit}`;
    }
    return `${whole.format(value)} B`;
  });
  const percent = known((share) => (share > 0 && share < 0.001 ? "< 0.1 %" : `${(share > 0 && share < 0.1 ? tenths : whole).format(share * 100)} %`));
  const duration = known((seconds) => {
    const [d, h, m] = [Math.floor(seconds / 86400), Math.floor(seconds / 3600) % 24, Math.floor(seconds / 60) % 60];
    return d ? `${d} d ${h} h` : h ? `${h} h ${m} min` : m ? `${m} min ${Math.floor(seconds % 60)} s` : `${Math.floor(seconds)} s`;
  });
  const text = (value) => (value === null || value === undefined || value === "" ? null : String(value));
  const list = (value) => (Array.isArray(value) ? value.filter((item) => item && typeof item === "object") : []);
  const part = (value) => (value && typeof value === "object" ? value : {});
  const capital = (word) => word.charAt(0).toUpperCase() + word.slice(1).replaceAll("_", " ");

  // ---- pieces ----

  const say = (id, value) => {
    const element = typeof id === "string" ? $(id) : id;
    if (element.textContent !== value) element.textContent = value; // Untouched, a selection in it stays.
  };

  /// A bar under its name; `full` says whether being full is a cause for concern.
  function measure(label, said, share, { role = "meter", full = false } = {}) {
    const box = html("div", "measure");
    const head = html("div", "measure-head");
    head.append(html("span", "", label), html("span", "", said));
    const tone = full && share >= 0.95 ? "bad" : full && share >= 0.8 ? "warn" : "";
    const bar = html("div", `bar ${tone}`);
    const filled = html("i");
    const held = Math.min(Math.max(number(share) ?? 0, 0), 1);
    filled.style.width = `${held * 100}%`;
    if (held > 0) filled.style.minWidth = "3px";
    bar.append(filled);
    const attributes = { role, "aria-label": label, "aria-valuemin": "0", "aria-valuemax": "100", "aria-valuenow": String(Math.round(held * 100)), "aria-valuetext": said };
    for (const [name, value] of Object.entries(attributes)) bar.setAttribute(name, value);
    box.append(head, bar);
    return box;
  }

  /// A bar is moved rather than made anew where the same was there, so that it glides.
  function put(parent, children) {
    const before = [...parent.querySelectorAll(".bar i")].map((bar) => bar.style.width);
    parent.replaceChildren(...children);
    const after = [...parent.querySelectorAll(".bar i")];
    if (before.length !== after.length) return;
    after.forEach((bar, at) => {
      const width = bar.style.width;
      if (width === before[at]) return;
      bar.style.width = before[at];
      bar.getBoundingClientRect();
      bar.style.width = width;
    });
  }

  function facts(pairs, className = "facts") {
    const made = html("dl", className);
    for (const [name, value, tone] of pairs) {
      if (value === null) continue;
      const pair = html("div");
      pair.append(html("dt", "", name), html("dd", tone ?? "", value));
      made.append(pair);
    }
    return made;
  }

  const TONES = { ready: "good", up: "good", closed: "good", failed: "bad", open: "bad", loading: "warn", opening: "warn", starting: "warn", draining: "warn", stopping: "warn", half_open: "warn" };
  const tone = (status) => (Object.hasOwn(TONES, status) ? TONES[status] : "idle");

  function item(name, status, detail, rest) {
    const made = html("li");
    const head = html("div", "item-head");
    head.append(html("span", "name", name), html("span", `badge ${tone(status)}`, status));
    made.append(head, ...rest.filter(Boolean));
    if (detail) made.append(html("p", `detail ${status === "failed" ? "bad" : ""}`, detail));
    return made;
  }

  // ---- the sections ----

  const rates = { format: rate, axis };
  const charts = [
    new Chart.Lines($("chart-requests"), { ...rates, title: "Requests per second", series: [
      { key: "requests_per_s", label: "answered", className: "c-accent", filled: true },
      { key: "failed_per_s", label: "failed", className: "c-bad", dashed: true, unlessZero: true }] }),
    new Chart.Lines($("chart-tokens"), { ...rates, title: "Tokens per second", series: [
      { key: "tokens_per_s", label: "computed", className: "c-accent", filled: true }] }),
    new Chart.Lines($("chart-latency"), { format: ms, axis: ms, percentiles: true, title: "Latency", series: [
      { key: "p50_ms", label: "p50", className: "c-accent" },
      { key: "p95_ms", label: "p95", className: "c-second", dashed: true }] }),
  ];

  function sentence(status, models, replicas) {
    const loading = models.filter((model) => model.status === "loading");
    const up = replicas.filter((replica) => replica.status === "up").length;
    switch (status) {
      case "ready":
        return up < replicas.length ? `All endpoints answer, with ${up} of ${replicas.length} devices.` : "All endpoints answer.";
      case "starting": return "The process listens; devices are being opened.";
      case "loading": {
        const sum = (key) => loading.reduce((total, model) => total + (number(model[key]) ?? 0), 0);
        const total = sum("total_bytes");
        return total > 0 ? `Models are loading: ${percent(sum("loaded_bytes") / total)} of ${bytes(total)}.` : "Models are loading.";
      }
      case "failed": return "Not every endpoint answers.";
      case "draining":
      case "stopping": return "It finishes what it has and takes no more.";
      default: return "";
    }
  }

  function showState(status, word, said) {
    const shown = tone(status);
    document.body.dataset.tone = shown;
    say("state-word", word);
    say("state-text", said);
    const title = `${word} · Nexus`;
    if (document.title === title) return;
    document.title = title;
    const colour = { good: "2a9d62", warn: "d08a1d", bad: "d3443a", idle: "869399" }[shown];
    $("icon").href = `data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'><circle cx='8' cy='8' r='6' fill='%23${colour}'/></svg>`;
  }

  function showTotals(totals) {
    for (const name of ["requests", "failed", "rejected", "tokens"]) {
      const value = number(totals[name]);
      say(`total-${name}`, short(value));
      $(`total-${name}`).title = value === null ? "" : whole.format(value);
    }
    $("total-failed").className = totals.failed > 0 ? "bad" : "";
    $("total-rejected").className = totals.rejected > 0 ? "warn" : "";
  }

  function showModels(models) {
    $("models-none").hidden = models.length > 0;
    put($("models"), models.map((model) => {
      const { loaded_bytes: loaded, total_bytes: total, status } = model;
      const progress = status === "loading" && number(total) > 0
        ? measure("Loaded", `${bytes(loaded)} of ${bytes(total)} · ${percent(loaded / total)}`, loaded / total, { role: "progressbar" })
        : null;
      return item(capital(text(model.kind) ?? "model"), text(status) ?? "unknown", text(model.detail), [
        html("p", "sub", text(model.name) ?? "without a name"),
        facts([["Revision", text(model.revision)], ["Dimensions", number(model.dimensions) && whole.format(model.dimensions)],
          ["Size", progress || !(number(total) > 0) ? null : bytes(total)]]),
        progress,
      ]);
    }));
  }

  function showReplicas(replicas) {
    const up = replicas.filter((replica) => replica.status === "up").length;
    $("replicas-none").hidden = replicas.length > 0;
    $("columns").classList.toggle("few", replicas.length < 2);
    say("replicas-count", replicas.length ? `${up} of ${replicas.length} up` : "");
    put($("replicas"), replicas.map((replica) => {
      const total = number(replica.memory_bytes);
      const free = number(replica.memory_free_bytes);
      const used = total !== null && free !== null && total > 0 ? total - free : null;
      const name = text(replica.name) ?? "device";
      return item(replicas.length > 1 && number(replica.replica) !== null ? `${replica.replica}: ${name}` : name, text(replica.status) ?? "unknown", text(replica.detail), [
        facts([["Batches", short(replica.batches)], ["Tokens", short(replica.tokens)]]),
        measure("Busy", percent(replica.busy_ratio), replica.busy_ratio),
        used === null ? null : measure("Memory", `${bytes(used)} of ${bytes(total)}`, used / total),
      ]);
    }));
  }

  function showLoad(load) {
    const rows = [["Requests in flight", "requests_in_flight", "requests_max", short], ["Tokens in the queue", "queue_tokens", "queue_tokens_max", short],
      ["Bodies in memory", "bodies_bytes", "bodies_bytes_max", bytes], ["Connections", "connections", "connections_max", short]];
    put($("load"), rows.map(([label, key, limit, format]) => {
      const row = html("li", "load");
      const share = number(load[key]) !== null && load[limit] > 0 ? load[key] / load[limit] : null;
      const said = number(load[limit]) === null ? format(load[key]) : `${format(load[key])} of ${format(load[limit])}`;
      row.append(measure(label, share === null ? said : `${said} · ${percent(share)}`, share, { full: true }));
      return row;
    }));
  }

  function showCache(cache) {
    $("cache").hidden = !cache;
    $("cache-none").hidden = Boolean(cache);
    say("cache-name", text(cache?.name) ?? "");
    if (!cache) return;
    const asked = (number(cache.hits) ?? 0) + (number(cache.misses) ?? 0);
    const ratio = asked > 0 ? (number(cache.hits) ?? 0) / asked : null;
    say("cache-ratio", percent(ratio));
    put($("cache-bar"), [measure("Hits", `${short(cache.hits)} of ${short(asked)}`, ratio)]);
    const breaker = text(cache.breaker);
    const words = { closed: "the store is asked", half_open: "the store is being tried again", open: "the store is left alone for a while" };
    $("cache-breaker").parentElement.hidden = breaker === null;
    say("cache-breaker", `Breaker ${(breaker ?? "").replaceAll("_", " ")}`);
    $("cache-breaker").className = `badge ${tone(breaker)}`;
    say("cache-breaker-text", Object.hasOwn(words, breaker) ? words[breaker] : "");
    const trouble = (name, value) => [name, number(value) === null ? null : short(value), value > 0 ? "warn" : ""];
    const made = facts([["Entries", number(cache.entries) === null ? null : short(cache.entries)], ["Misses", short(cache.misses)], trouble("Failures", cache.failures),
      trouble("Timeouts", cache.timeouts), trouble("Writes dropped", cache.dropped), ["Writes waiting", short(cache.writes_waiting)]]);
    $("cache-facts").replaceChildren(...made.children);
  }

  let errorsShown = null;
  let errorsAll = false;

  function moment(at_ms) {
    const made = html("time", "", "–");
    if (number(at_ms) === null || Number.isNaN(new Date(at_ms).getTime())) return made;
    const at = new Date(at_ms);
    const today = at.toDateString() === new Date().toDateString();
    made.textContent = today ? time(at_ms) : `${at.toLocaleDateString(LOCALE, { day: "numeric", month: "short" })} ${at.toLocaleTimeString(LOCALE, { hour: "2-digit", minute: "2-digit" })}`;
    made.dateTime = at.toISOString();
    made.title = at.toLocaleString(LOCALE);
    return made;
  }

  function showErrors(errors) {
    const now = JSON.stringify([errors, errorsAll, new Date().toDateString()]);
    if (now === errorsShown) return; // So that an id can be selected and copied in peace.
    errorsShown = now;
    $("errors-none").hidden = errors.length > 0;
    say("errors-count", errors.length ? whole.format(errors.length) : "");
    const most = errorsAll ? errors.length : ERRORS_AT_FIRST;
    $("errors").replaceChildren(...errors.slice(0, most).map((error) => {
      const row = html("li");
      const body = html("div", "body");
      const meta = html("p", "meta");
      const id = html("span", "", "request ");
      id.append(html("span", "mono id", text(error.request_id) ?? "without an id"));
      meta.append(id);
      if (text(error.client)) meta.append(html("span", "", `client ${error.client}`));
      body.append(html("p", "what mono", [text(error.method), text(error.path)].filter(Boolean).join(" ") || "–"), html("p", "", text(error.detail) ?? "without a detail"), meta);
      row.append(moment(error.at_ms), html("span", `code ${error.status >= 500 ? "bad" : "warn"}`, text(error.status) ?? "–"), body);
      return row;
    }));
    $("errors-more").hidden = errors.length <= ERRORS_AT_FIRST;
    say("errors-more", errorsAll ? `Show the last ${ERRORS_AT_FIRST}` : `Show all ${whole.format(errors.length)}`);
  }

  function showTable(points) {
    if (!$("table").open) return;
    $("table-rows").replaceChildren(...points.toReversed().map((point) => {
      const row = html("tr");
      const cells = [time(point.at_ms), rate(point.requests_per_s), rate(point.failed_per_s), rate(point.tokens_per_s), ms(point.p50_ms), ms(point.p95_ms)];
      row.append(...cells.map((cell) => html("td", "", cell)));
      return row;
    }));
  }

  // ---- asking ----

  let shown = null;
  let shownAt_ms = 0;
  let failures = 0;
  let next_ms = 0;
  let timer;
  let asking = null;
  let key = null;
  try {
    key = sessionStorage.getItem(KEPT_AS);
  } catch {
    // Storage is turned off: the key is then kept for as long as the page is.
  }

  function show(live) {
    const models = list(shown.models);
    const replicas = list(shown.replicas);
    const series = part(shown.series);
    const points = list(series.points).filter((point) => number(point.at_ms) !== null);
    document.body.classList.toggle("stale", !live);
    $("content").hidden = $("totals").hidden = $("about").hidden = false;
    say("version", text(shown.version) ?? "–");
    say("uptime", duration(shown.uptime_s));
    say("as-of", time(shownAt_ms));
    if (live) {
      const detail = text(shown.detail);
      const said = sentence(shown.status, models, replicas);
      showState(shown.status, capital(shown.status), [said, detail].filter(Boolean).join(" "));
    } else {
      showState("", "Out of reach", `What is below is of ${time(shownAt_ms)}.`);
      document.body.dataset.tone = "bad";
    }
    showTotals(part(shown.totals));
    for (const chart of charts) chart.set(points, number(series.every_ms) ?? EVERY_MS, live);
    showTable(points);
    showModels(models);
    showReplicas(replicas);
    showLoad(part(shown.load));
    showCache(shown.cache && typeof shown.cache === "object" ? shown.cache : null);
    showErrors(list(shown.errors));
  }

  function after(pause_ms) {
    clearTimeout(timer);
    next_ms = Date.now() + pause_ms;
    timer = setTimeout(ask, pause_ms);
  }

  function answered(answer) {
    failures = 0;
    shown = answer;
    shownAt_ms = Date.now();
    $("notice").hidden = $("key-form").hidden = true;
    $("forget").hidden = key === null;
    say("key-error", "");
    show(true);
    after(EVERY_MS);
  }

  function unanswered(why) {
    failures += 1;
    after(Math.min(EVERY_MS * 2 ** (failures - 1), PAUSE_MS_MAX));
    if (shown) show(false);
    else {
      showState("", "Out of reach", "Nothing has answered yet.");
      document.body.dataset.tone = "bad";
    }
    say("notice-title", why);
    $("notice").hidden = false;
    countDown();
  }

  function countDown() {
    if ($("notice").hidden) return;
    const left_s = Math.max(Math.ceil((next_ms - Date.now()) / 1000), 0);
    say("notice-text", asking || left_s === 0 ? "Asking again …" : `Asking again in ${left_s} s.`);
  }

  function wantKey(refused) {
    $("notice").hidden = true;
    $("forget").hidden = true;
    const first = $("key-form").hidden;
    $("key-form").hidden = false;
    document.body.classList.add("stale");
    showState("", "A key is needed", shown ? `What is below is of ${time(shownAt_ms)}.` : "This service shows its status to those who have an API key.");
    say("key-error", refused ? "This key was refused." : "");
    $("key").toggleAttribute("aria-invalid", refused);
    if (first && !shown || refused) $("key").focus();
  }

  function forget() {
    key = null;
    try {
      sessionStorage.removeItem(KEPT_AS);
    } catch {
      // As above.
    }
  }

  async function ask() {
    clearTimeout(timer);
    if (asking || document.hidden) return;
    const mine = (asking = new AbortController());
    const limit = setTimeout(() => mine.abort("slow"), ANSWER_MS_MAX);
    countDown();
    let then;
    try {
      const headers = { Accept: "application/json", ...(key === null ? {} : { Authorization: `Bearer ${key}` }) };
      const response = await fetch("status", { headers, cache: "no-store", signal: mine.signal });
      if (response.status === 401) {
        const refused = key !== null;
        forget();
        then = () => wantKey(refused);
      } else {
        const answer = await response.json().catch((error) => (mine.signal.aborted ? Promise.reject(error) : null));
        const good = answer && typeof answer.status === "string";
        then = good ? () => answered(answer) : () => unanswered(`The service answered ${response.status}, not with its status.`);
      }
    } catch {
      const why = mine.signal.reason === "slow" ? `No answer came within ${ANSWER_MS_MAX / 1000} s.` : "The service does not answer.";
      then = mine.signal.reason === "dropped" ? () => {} : () => unanswered(why);
    } finally {
      clearTimeout(limit);
      if (asking === mine) asking = null;
    }
    then();
  }

  /// What is under way counts for nothing any more.
  function drop() {
    clearTimeout(timer);
    asking?.abort("dropped");
    asking = null;
  }

  document.addEventListener("visibilitychange", () => {
    if (document.hidden) drop();
    else if ($("key-form").hidden) ask();
  });
  $("retry").addEventListener("click", () => {
    drop();
    ask();
  });
  $("forget").addEventListener("click", () => {
    drop();
    forget();
    ask();
  });
  $("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const given = $("key").value.trim();
    if (!/^[\x21-\x7e]+$/.test(given)) {
      say("key-error", "A key has letters, digits and signs only, without spaces.");
      return;
    }
    key = given;
    $("key").value = "";
    drop();
    try {
      sessionStorage.setItem(KEPT_AS, key);
    } catch {
      // As above.
    }
    ask();
  });
  $("errors-more").addEventListener("click", () => {
    errorsAll = !errorsAll;
    showErrors(list(shown.errors));
  });
  $("table").addEventListener("toggle", () => shown && showTable(list(part(shown.series).points).filter((point) => number(point.at_ms) !== null)));
  setInterval(countDown, 1000);
  ask();
})();
