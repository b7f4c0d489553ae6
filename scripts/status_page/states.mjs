// The page before the mock service: every state, and the ways from one to another.

import { join } from "node:path";
import { sleep } from "./browser.mjs";
import { centre, contrast, lines, names, overflow, overlaps, poke, read, violations } from "./checks.mjs";
import { HOSTILE, KEY, STATES, mock } from "./mock.mjs";

const WIDTHS = [360, 768, 1280];
const SCHEMES = ["light", "dark"];

/// The page as it is, at each width and in both schemes. `all` keeps a picture of each, else two are kept.
export async function looks(browser, folder, name, check, report, all = false) {
  for (const width of WIDTHS) {
    for (const scheme of SCHEMES) {
      await browser.look(width, scheme);
      const where = `${name}, ${width} px, ${scheme}`;
      for (const test of [overflow, overlaps, contrast, names]) {
        const found = await browser.run(test);
        check(found.length === 0, `${where}: ${found.join("; ")}`);
      }
      if (all || (width === 360 && scheme === "light") || (width === 1280 && scheme === "dark")) {
        await browser.picture(join(folder, `${name}-${width}-${scheme}.png`));
        report.pictures += 1;
      }
    }
  }
}

export async function walkStates(browser, folder, check, report) {
  const service = await mock();
  try {
    await walk(browser, service, folder, check, report);
  } finally {
    service.close();
  }
  const elsewhere = browser.requests.filter((url) => !url.startsWith(service.url) && !url.startsWith("data:") && url !== "about:blank");
  check(elsewhere.length === 0, `requests to elsewhere: ${elsewhere.slice(0, 3)}`);
  check(service.violations.length === 0, `requests for what is not there: ${service.violations.slice(0, 3)}`);
}

async function walk(browser, service, folder, check, report) {
  const shows = async (...texts) => {
    const missing = () => browser.run((wanted) => wanted.filter((text) => !document.body.innerText.includes(text)), texts);
    for (const end = Date.now() + 5000; (await missing()).length; await sleep(40)) {
      if (Date.now() > end) throw new Error(`in state ${service.state}, the page does not show ${(await missing()).join(", ")}: ${(await browser.run(read)).slice(0, 300).replaceAll("\n", " | ")}`);
    }
  };
  // A failing request is told of in the console by the browser itself, and is meant here.
  const meant = (complaint) => complaint.from === "network" && complaint.url === `${service.url}status`;
  const quiet = async (name, failing = false) => {
    const found = browser.complaints.splice(0).filter((complaint) => !(failing && meant(complaint)));
    check(found.length === 0, `${name}: the console has ${JSON.stringify(found.slice(0, 2))}`);
    const broken = await browser.run(violations);
    check(broken.length === 0, `${name}: against the policy: ${broken.slice(0, 2)}`);
  };
  const enter = async (state, ...texts) => {
    service.state = state;
    await browser.run(poke);
    await shows(...texts);
  };

  // ---- ready, and charts that go on ----
  await browser.look(1280, "light");
  await browser.go(service.url);
  await shows("Ready", "All endpoints answer.", "0.1.0", "3 d 4 h", "Embedder", "s3://models/Qwen3-Embedding-8B", "3f2a90c1", "4,096", "0: NVIDIA L4", "4 of 4 up", "71 %",
    "18 GiB of 23 GiB", "37 of 1,024", "220 k of 262 k · 84 %", "9.0 MiB of 256 MiB", "81 %", "Breaker closed", "1.2 M", "77.2 M", "Tokens per second", "p95", "The queue is full", "0193a75f21c0-0");
  const before = await browser.run(lines);
  for (const key of ["requests_per_s", "failed_per_s", "tokens_per_s", "p50_ms", "p95_ms"]) {
    const line = before[key];
    check(line?.points === 150 && line.width > 100 && line.length > 100, `the line of ${key} is not drawn: ${JSON.stringify(line)}`);
    check(key === "failed_per_s" || line?.height > 2, `the line of ${key} is flat`);
  }
  const asked = service.asked.length;
  await browser.until((old) => document.querySelector("[data-key=requests_per_s]").getAttribute("d") !== old, [before.requests_per_s.d], "the chart goes on by itself", 3500);
  check(service.asked.length > asked, "the page does not ask again");
  await looks(browser, folder, "ready", check, report, true);
  await quiet("ready");

  // ---- reading out a moment: by mouse, by finger, by keys ----
  await browser.look(1280, "light");
  const value = () => document.querySelector("#chart-latency .legend b").textContent;
  const marks = () => document.querySelectorAll(".plot .mark").length;
  const moments = () => [...document.querySelectorAll(".chart-head time")].map((time) => time.textContent);
  const plot = await browser.run(centre, "#chart-requests .plot");
  await browser.point(plot.x, plot.y);
  const [first, second, third] = await browser.run(moments);
  check(/^\d\d:\d\d:\d\d$/.test(first) && first === second && second === third, `the mouse reads out ${[first, second, third]}`);
  check((await browser.run(marks)) === 5, "not each line has a mark under the cursor");
  const here = await browser.run(value);
  await browser.point(plot.x - plot.width / 4, plot.y);
  check((await browser.run(value)) !== here, "the mouse does not read out another value");
  await browser.picture(join(folder, "readout-1280-light.png"));
  await browser.point(5, 5);
  check((await browser.run(moments))[0] === "now", "the cursor stays when the mouse is gone");
  await browser.look(360, "dark");
  const small = await browser.run(centre, "#chart-latency .plot");
  await browser.touch(small.x, small.y);
  check(/^\d\d:/.test((await browser.run(moments))[2]), "a finger reads nothing out");
  await browser.picture(join(folder, "readout-360-dark.png"));
  report.pictures += 2;

  await browser.look(1280, "light");
  const reached = [];
  for (let tabs = 0; tabs < 14; tabs += 1) {
    await browser.press("Tab");
    const at = await browser.run(() => {
      const element = document.activeElement;
      const name = element.closest("figure")?.id ?? (element.id || element.getAttribute("href") || element.tagName);
      return { name, seen: getComputedStyle(element).outlineStyle !== "none" };
    });
    check(at.seen || at.name === "BODY", `the focus on ${at.name} is not seen`);
    if (at.name === "chart-tokens") {
      const spoken = () => document.activeElement.getAttribute("aria-valuetext");
      const said = await browser.run(spoken);
      await browser.press("ArrowLeft");
      const then = await browser.run(spoken);
      check(said !== then && /^\d\d:\d\d:\d\d: computed [\d.,]+( k)?$/.test(then), `keys read out ${said}, then ${then}`);
    }
    reached.push(at.name);
  }
  for (const name of ["chart-requests", "chart-tokens", "chart-latency", "SUMMARY", "status", "docs"]) check(reached.includes(name), `Tab does not reach ${name}: ${reached}`);
  await browser.run(() => document.activeElement.blur());

  // ---- the table ----
  await browser.run(() => document.querySelector("#table summary").click());
  await browser.until(() => document.querySelectorAll("#table-rows tr").length === 150, [], "the table has its rows");
  await browser.run(poke);
  await browser.run(() => document.querySelector("#table summary").click());

  // ---- one state after another ----
  await enter("laptop", "cpu (avx512, 8 threads)", "1 of 1 up", "built-in embedder", "18 %", "< 0.1 %", "2.4 ms", "1 min 23 s");
  check((await browser.run(lines)).failed_per_s === undefined, "a line of failures is drawn where there are none");
  await looks(browser, folder, "laptop", check, report, true);
  await enter("starting", "Starting", "devices are being opened", "No figures yet", "None since the start");
  await looks(browser, folder, "starting", check, report);
  await enter("loading", "Loading", "Models are loading: 44 % of", "6.1 GiB of 14 GiB · 43 %", "compiling kernels", "0 of 2 up");
  check((await browser.run(() => document.querySelector("[role=progressbar]").getAttribute("aria-valuenow"))) === "43", "the progress of loading is not 43");
  await looks(browser, folder, "loading", check, report, true);
  await enter("failed", "Failed", "Not every endpoint answers. model.safetensors", "CUDA_ERROR_ECC_UNCORRECTABLE in batch", "3 of 4 up", "Breaker open", "left alone");
  await looks(browser, folder, "failed", check, report, true);
  await enter("stopping", "Stopping", "takes no more");
  await enter("draining", "Draining", "takes no more", "Breaker half open");
  await looks(browser, folder, "draining", check, report);
  await enter("empty", "Ready", "keeps no embeddings", "None is open yet", "None yet");
  await looks(browser, folder, "empty", check, report);
  await enter("nulls", "without a name", "without an id", "No figures yet");
  check(!/NaN|undefined|null|Invalid|Infinity/.test(await browser.run(read)), "nulls: a value that is missing is written out");
  await looks(browser, folder, "nulls", check, report);
  await quiet("after the states");

  // ---- what clients and models may be called ----
  await enter("hostile", HOSTILE.slice(0, 30));
  const seen = await browser.run(() => ({ hacked: window.hacked, elements: document.querySelectorAll("img, main script, main b:not(.legend b), iframe").length, text: document.body.textContent }));
  check(seen.hacked === undefined, "hostile text was executed");
  check(seen.elements === 0, `hostile text made ${seen.elements} elements`);
  const strings = JSON.stringify(STATES.hostile()).split("window.hacked=1</script>").length - 1;
  const shown = seen.text.split(HOSTILE).length - 1;
  check(shown >= strings - 2, `${shown} of ${strings} hostile texts are shown as they are`); // Of a breaker and a status, words alone are.
  await looks(browser, folder, "hostile", check, report);
  await enter("long", "x".repeat(180));
  await looks(browser, folder, "long", check, report);
  await enter("errors", "Show all 50");
  await browser.run(() => document.querySelector("#errors-more").click());
  check((await browser.run(() => document.querySelectorAll("#errors li").length)) === 50, "not all 50 errors are shown");
  await browser.run(() => getSelection().selectAllChildren(document.querySelector("#errors .id")));
  await browser.run(poke);
  await sleep(150);
  check(/^0193/.test(await browser.run(() => getSelection().toString())), "a selected id does not stay selected");
  await looks(browser, folder, "errors", check, report);
  await browser.run(() => document.querySelector("#errors-more").click());
  await enter("points", "10 min ago", "highest");
  const long = await browser.run(lines);
  check(long.requests_per_s.points === 300 && long.p95_ms.points === 281 && long.p95_ms.runs === 2, `300 points: ${JSON.stringify({ ...long.p95_ms, d: "" })}`);
  await looks(browser, folder, "points", check, report, true);
  await quiet("after the texts");

  // ---- out of reach, and back ----
  await enter("wrong", "The service answered 500, not with its status.", "Out of reach");
  await enter("ready", "All endpoints answer.");
  const until = service.asked.length;
  service.state = "out_of_reach";
  await browser.run(poke);
  await shows("Out of reach", "The service does not answer.", "s3://models/Qwen3-Embedding-8B", "What is below is of", "0193a75f21c0-0");
  await looks(browser, folder, "out-of-reach", check, report, true);
  // The browser itself asks again at once where a connection breaks: that is one time.
  const asks = () => service.asked.slice(until).filter((at, index, all) => index === 0 || at - all[index - 1] > 500);
  for (const end = Date.now() + 8000; asks().length < 3 && Date.now() < end; await sleep(50));
  const times = asks();
  check(times[2] - times[1] > 1.5 * (times[1] - times[0]), `the pauses do not grow: asked at ${times.map((at) => at - times[0])} ms`);
  service.state = "ready";
  await browser.run(() => document.querySelector("#retry").click());
  await shows("All endpoints answer.");
  check(!(await browser.run(read)).includes("does not answer"), "the notice stays after the service is back");
  await quiet("out of reach", true);

  // ---- a tab out of view ----
  const hide = (hidden) => {
    Object.defineProperty(document, "hidden", { configurable: true, value: hidden });
    document.dispatchEvent(new Event("visibilitychange"));
  };
  await browser.run(hide, true);
  await sleep(100);
  const unseen = service.asked.length;
  await sleep(2400);
  check(service.asked.length === unseen, "the page asks while its tab is hidden");
  await browser.run(hide, false);
  for (const end = Date.now() + 500; service.asked.length === unseen && Date.now() < end; await sleep(20));
  check(service.asked.length > unseen, "the page does not ask when its tab is in view again");

  // ---- a key ----
  service.state = "locked";
  await browser.go("about:blank").catch(() => {});
  await browser.go(service.url);
  await shows("A key is needed", "API key");
  await looks(browser, folder, "key", check, report, true);
  check((await browser.run(() => document.activeElement.id)) === "key", "the field for the key has not the focus");
  await browser.write("wrong");
  await browser.press("Enter");
  await shows("This key was refused.");
  await browser.write("not ascii: é");
  await browser.press("Enter");
  await shows("A key has letters");
  await browser.run(() => (document.querySelector("#key").value = ""));
  await browser.write(KEY);
  await browser.press("Enter");
  await shows("All endpoints answer.", "Forget the key");
  await browser.go(`${service.url}?again`);
  await shows("All endpoints answer.");
  check(!(await browser.run(() => document.documentElement.outerHTML + location.href + document.cookie)).includes(KEY), "the key is in the page");
  check((await browser.run((key) => Object.values(sessionStorage).includes(key) && localStorage.length === 0, KEY)), "the key is not in sessionStorage alone");
  await browser.run(() => document.querySelector("#forget").click());
  await shows("A key is needed");
  await quiet("a key", true);
}
