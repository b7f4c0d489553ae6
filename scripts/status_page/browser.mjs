// A headless Chromium, spoken to by the DevTools protocol over two pipes: no port that others could reach, and no package.
// What it does not do: judge what it sees. It keeps everything that the page complained of and asked for.

import { spawn } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const FLAGS = [
  "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--remote-debugging-pipe",
];
const ANSWER_MS_MAX = 15_000;

export const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

/// One page, in a browser of its own. `complaints` and `requests` grow while it is open.
export class Browser {
  static async open() {
    const browser = new Browser();
    browser.folder = mkdtempSync(join(tmpdir(), "status-page-"));
    const command = process.env.CHROMIUM || "chromium";
    browser.process = spawn(command, [...FLAGS, `--user-data-dir=${browser.folder}`, "about:blank"], { stdio: ["ignore", "ignore", "ignore", "pipe", "pipe"] });
    browser.waiting = new Map();
    browser.complaints = [];
    browser.requests = [];
    browser.next = 1;
    const ended = new Promise((_, fail) => {
      browser.process.on("error", (error) => fail(new Error(`${command}: ${error.message} (apt-get install chromium, or set CHROMIUM)`)));
      browser.process.on("exit", (code) => fail(new Error(`${command} ended with status ${code}`)));
    });
    ended.catch((error) => {
      for (const { fail } of browser.waiting.values()) fail(error);
      browser.gone = error;
    });
    browser.read();
    const { targetId } = await browser.send("Target.createTarget", { url: "about:blank" });
    browser.session = (await browser.send("Target.attachToTarget", { targetId, flatten: true })).sessionId;
    for (const domain of ["Page", "Runtime", "Log", "Network"]) await browser.send(`${domain}.enable`);
    await browser.send("Page.addScriptToEvaluateOnNewDocument", {
      source: "window.violations = []; addEventListener('securitypolicyviolation', (e) => violations.push(`${e.violatedDirective}: ${e.blockedURI}`));",
    });
    return browser;
  }

  read() {
    let rest = Buffer.alloc(0);
    this.process.stdio[3].on("error", () => {});
    this.process.stdio[4].on("data", (chunk) => {
      rest = Buffer.concat([rest, chunk]);
      for (let end = rest.indexOf(0); end >= 0; end = rest.indexOf(0)) {
        const message = JSON.parse(rest.subarray(0, end).toString());
        rest = rest.subarray(end + 1);
        if (message.id) {
          const { done, fail } = this.waiting.get(message.id) ?? {};
          this.waiting.delete(message.id);
          message.error ? fail?.(new Error(message.error.message)) : done?.(message.result);
        } else this.event(message);
      }
    });
  }

  event({ method, params }) {
    if (method === "Runtime.exceptionThrown") {
      const { text, exception } = params.exceptionDetails;
      this.complaints.push({ from: "exception", text: exception?.description ?? text });
    } else if (method === "Runtime.consoleAPICalled" && ["error", "warning", "assert"].includes(params.type)) {
      this.complaints.push({ from: "console", text: params.args.map((value) => value.value ?? value.description).join(" ") });
    } else if (method === "Log.entryAdded" && ["error", "warning"].includes(params.entry.level)) {
      this.complaints.push({ from: params.entry.source, text: params.entry.text, url: params.entry.url });
    } else if (method === "Network.requestWillBeSent") {
      this.requests.push(params.request.url);
    }
  }

  send(method, params = {}) {
    if (this.gone) return Promise.reject(this.gone);
    const id = this.next++;
    return new Promise((done, fail) => {
      const limit = setTimeout(() => fail(new Error(`${method}: no answer within ${ANSWER_MS_MAX / 1000} s`)), ANSWER_MS_MAX);
      const ended = (then) => (value) => {
        clearTimeout(limit);
        then(value);
      };
      this.waiting.set(id, { done: ended(done), fail: ended(fail) });
      this.process.stdio[3].write(`${JSON.stringify({ id, method, params, ...(this.session && !method.startsWith("Target.") && { sessionId: this.session }) })}\0`);
    });
  }

  /// Runs `work`, a function that refers to nothing outside, in the page.
  async run(work, ...values) {
    const expression = `(${work})(...${JSON.stringify(values)})`;
    const { result, exceptionDetails } = await this.send("Runtime.evaluate", { expression, returnByValue: true, awaitPromise: true });
    if (exceptionDetails) throw new Error(exceptionDetails.exception?.description ?? exceptionDetails.text);
    return result.value;
  }

  async until(work, values, what, limit_ms = 5000) {
    for (const end = Date.now() + limit_ms; ; await sleep(40)) {
      if (await this.run(work, ...values)) return true;
      if (Date.now() > end) throw new Error(`${what}: not within ${limit_ms} ms`);
    }
  }

  async go(url) {
    await this.send("Page.navigate", { url });
    await this.until(() => document.readyState === "complete" && location.href !== "about:blank", [], `${url} loads`);
  }

  async look(width, scheme) {
    await this.send("Emulation.setDeviceMetricsOverride", { width, height: width < 700 ? 740 : 900, deviceScaleFactor: 1, mobile: false });
    const features = [{ name: "prefers-color-scheme", value: scheme }, { name: "prefers-reduced-motion", value: "reduce" }];
    await this.send("Emulation.setEmulatedMedia", { features });
    // Two frames, so that sizes have been observed and drawn.
    await this.run(() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(true)))));
  }

  async press(key, code = key) {
    const keyCode = { Tab: 9, ArrowLeft: 37, Home: 36, Enter: 13 }[key] ?? 0;
    const text = key === "Enter" ? { text: "\r" } : {};
    await this.send("Input.dispatchKeyEvent", { type: "keyDown", key, code, windowsVirtualKeyCode: keyCode, ...text });
    await this.send("Input.dispatchKeyEvent", { type: "keyUp", key, code, windowsVirtualKeyCode: keyCode });
  }

  async write(text) {
    await this.send("Input.insertText", { text });
  }

  async point(x, y) {
    await this.send("Input.dispatchMouseEvent", { type: "mouseMoved", x, y, pointerType: "mouse" });
  }

  async touch(x, y) {
    await this.send("Emulation.setTouchEmulationEnabled", { enabled: true });
    await this.send("Input.dispatchTouchEvent", { type: "touchStart", touchPoints: [{ x, y }] });
    await this.send("Input.dispatchTouchEvent", { type: "touchEnd", touchPoints: [] });
    await this.send("Emulation.setTouchEmulationEnabled", { enabled: false });
  }

  async picture(path) {
    const { data } = await this.send("Page.captureScreenshot", { format: "png", captureBeyondViewport: true });
    writeFileSync(path, Buffer.from(data, "base64"));
  }

  async close() {
    if (!this.gone) {
      const ended = new Promise((done) => this.process.once("exit", done));
      await Promise.race([this.send("Browser.close").then(() => ended, () => {}), sleep(3000)]);
      this.process.kill("SIGKILL");
    }
    rmSync(this.folder, { recursive: true, force: true, maxRetries: 5, retryDelay: 100 });
  }
}
