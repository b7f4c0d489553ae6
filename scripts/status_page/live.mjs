// The page that a running service gives, beside what the service says of itself.

import { sleep } from "./browser.mjs";
import { lines, read, violations } from "./checks.mjs";
import { POLICY, joined } from "./mock.mjs";
import { looks } from "./states.mjs";

const READY_MS_MAX = 20_000;
const REQUESTS = 40;

export async function walkLive(browser, where, folder, check, report) {
  const base = new URL(where.endsWith("/") ? where : `${where}/`);
  const key = process.env.NEXUS_KEY;
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const status = async () => {
    const response = await fetch(new URL("status", base), { headers });
    if (!response.ok) throw new Error(`/status answers ${response.status}`);
    return response.json();
  };

  const page = await fetch(base);
  check(page.ok && page.headers.get("content-type")?.startsWith("text/html"), `${base} answers ${page.status} ${page.headers.get("content-type")}`);
  check((await page.text()) === joined(), "the page served is not the one in the tree");
  const policy = new Set(page.headers.get("content-security-policy")?.split(/;\s*/));
  for (const part of POLICY.split("; ")) check(policy.has(part), `the policy lacks ${part}: ${[...policy].join("; ")}`);

  await browser.look(1280, "light");
  await browser.go(base.href);
  if (key) {
    await browser.until(() => document.querySelector("#key-form").checkVisibility(), [], "a key is asked for");
    await browser.write(key);
    await browser.press("Enter");
  }
  await browser.until(() => document.querySelector("#content").checkVisibility(), [], "the page shows an answer");
  await browser.until(() => document.querySelector("#state-word").textContent === "Ready", [], "the service is ready", READY_MS_MAX);

  const before = await status();
  for (let at = 0; at < REQUESTS; at += 1) {
    const body = JSON.stringify({ control_id: "check", text: `Access keys are rotated every ${at} days by ${Date.now()}` });
    const response = await fetch(new URL("api/v1/embed", base), { method: "POST", headers: { ...headers, "Content-Type": "application/json" }, body });
    await response.arrayBuffer();
    check(response.ok, `/api/v1/embed answers ${response.status}`);
  }
  await browser.until((least) => Number(document.querySelector("#total-requests").title.replaceAll(",", "")) >= least, [before.totals.requests + REQUESTS], `${REQUESTS} requests more are shown`);

  // Two intervals later, what was asked is in the charts.
  await browser.until(() => {
    const line = document.querySelector("[data-key=tokens_per_s]")?.getBoundingClientRect();
    return line && line.height > 5;
  }, [], "tokens are in the chart", 8000);
  const drawn = await browser.run(lines);
  for (const [name, line] of Object.entries(drawn)) check(line.points > 0 || name.startsWith("failed"), `the line of ${name} has no points`);
  const old = drawn.requests_per_s.d;
  await browser.until((before) => document.querySelector("[data-key=requests_per_s]").getAttribute("d") !== before, [old], "the chart goes on by itself");

  const said = await status();
  const text = await browser.run(read);
  const texts = [said.version, ...said.models.flatMap(({ name, revision }) => [name, revision]), ...said.replicas.map(({ name }) => name), ...(said.cache ? [said.cache.name] : [])];
  for (const wanted of texts.filter(Boolean)) check(text.includes(wanted), `${wanted} is in /status and not on the page`);
  check(!/NaN|undefined|\bnull\b|Invalid Date|Infinity/.test(text), "a value that is missing is written out");
  await looks(browser, folder, "live", check, report, true);

  await sleep(100);
  const meant = ({ from, url }) => key && from === "network" && url === new URL("status", base).href; // The 401 before the key.
  const complaints = browser.complaints.filter((complaint) => !meant(complaint));
  check(complaints.length === 0, `the console has ${JSON.stringify(complaints.slice(0, 3))}`);
  const broken = await browser.run(violations);
  check(broken.length === 0, `against the policy: ${broken}`);
  const elsewhere = browser.requests.filter((url) => !url.startsWith(base.href) && !url.startsWith("data:") && url !== "about:blank");
  check(elsewhere.length === 0, `requests to elsewhere: ${elsewhere.slice(0, 3)}`);
}
