#!/usr/bin/env node
// Opens the status page in a headless Chromium and looks at it: in every state that a service can be in, at three widths, light
// and dark. Screenshots are kept. Needs Node 20 and Chromium (CHROMIUM names another than `chromium`), and nothing else.
//
//     scripts/check_status_page.mjs --mock OUT_DIR        # the page in the tree, before a service that plays all states
//     scripts/check_status_page.mjs BASE_URL OUT_DIR      # the page that a running service gives; NEXUS_KEY is its API key

import { mkdirSync } from "node:fs";
import { Browser } from "./status_page/browser.mjs";
import { walkLive } from "./status_page/live.mjs";
import { walkStates } from "./status_page/states.mjs";

const [where, folder] = process.argv.slice(2);
if (!where || !folder) {
  console.error("usage: check_status_page.mjs --mock OUT_DIR | BASE_URL OUT_DIR");
  process.exit(2);
}
mkdirSync(folder, { recursive: true });

const started_ms = Date.now();
const problems = [];
const report = { checks: 0, pictures: 0 };
/// Notes what does not hold.
const check = (holds, what) => {
  report.checks += 1;
  if (!holds) problems.push(what);
};

const browser = await Browser.open();
try {
  await (where === "--mock" ? walkStates(browser, folder, check, report) : walkLive(browser, where, folder, check, report));
} catch (error) {
  problems.push(`stopped: ${error.message}`);
} finally {
  await browser.close();
}
for (const problem of problems) console.error(problem);
const took_s = ((Date.now() - started_ms) / 1000).toFixed(1);
if (problems.length) process.exit(1);
console.log(`The status page holds: ${report.checks} checks, ${report.pictures} pictures in ${folder}, ${took_s} s`);
