// Lines over time, in SVG. What it does not do: ask for anything, or know what its numbers mean. All charts of a page share
// one cursor, a moment, so that one glance tells what throughput was when latency rose. What the cursor points at is read out
// in the legend, where nothing is covered by it; keys move it, too, and say the same to a screen reader.
"use strict";

const Chart = (() => {
  const SVG = "http://www.w3.org/2000/svg";
  const WINDOWS_MS = [60e3, 120e3, 300e3, 600e3, 1200e3, 3600e3];
  const MARGIN = { top: 8, right: 8, bottom: 20 };
  const DIGIT_PX = 7.2;

  const charts = [];
  let cursor_ms = null;

  const number = (value) => (typeof value === "number" && Number.isFinite(value) ? value : null);
  const time = (at_ms) => new Date(at_ms).toLocaleTimeString("en-GB");

  function node(name, attributes = {}, ...children) {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }

  function html(name, className, text) {
    const made = document.createElement(name);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  /// The least round number that is not below `value`.
  function roundAbove(value) {
    if (!(value > 0)) return 1;
    const power = 10 ** Math.floor(Math.log10(value));
    return [1, 2, 4, 5, 6, 8, 10].map((step) => step * power).find((top) => top >= value * 0.999);
  }

  function span(ms) {
    return ms < 120e3 ? `${Math.round(ms / 1e3)} s` : `${Math.round(ms / 60e3)} min`;
  }

  class Lines {
    /// `series`: { key, label, className, dashed, filled, unlessZero: no line where all of it is 0 }; `format` makes text of a value, with its unit.
    constructor(figure, { title, series, format, axis, percentiles }) {
      Object.assign(this, { title, series, format, percentiles, axis: axis ?? format, points: [], every_ms: 2000, live: true });
      const head = html("div", "chart-head");
      head.append(html("h3", "", title), (this.moment = html("time")));
      const legend = html("ul", "legend");
      this.values = series.map(({ label, className, dashed }) => {
        const item = html("li");
        const value = html("b", "", "–");
        item.append(html("i", `${className} ${dashed ? "dashed" : ""}`), value, html("span", "", label));
        legend.append(item);
        return value;
      });
      this.plot = html("div", "plot");
      this.svg = node("svg", { "aria-hidden": "true" });
      this.empty = html("p", "empty", "No figures yet.");
      this.plot.append(this.svg, this.empty);
      this.caption = html("figcaption");
      figure.replaceChildren(head, legend, this.plot, this.caption);

      // What has a value that arrow keys change is, to a screen reader, a slider.
      for (const [key, value] of Object.entries({ role: "slider", tabindex: "0", "aria-label": `${title}, by time`, "aria-valuemin": "0" })) {
        this.plot.setAttribute(key, value);
      }
      const follow = (event) => this.point(event.clientX - this.plot.getBoundingClientRect().left);
      this.plot.addEventListener("pointermove", follow);
      this.plot.addEventListener("pointerdown", follow);
      this.plot.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && Lines.moveTo(null));
      this.plot.addEventListener("keydown", (event) => this.key(event));
      this.plot.addEventListener("blur", () => Lines.moveTo(null));
      new ResizeObserver(() => this.draw()).observe(this.plot);
      charts.push(this);
    }

    static moveTo(at_ms) {
      if (cursor_ms === at_ms) return;
      cursor_ms = at_ms;
      for (const chart of charts) chart.showCursor();
    }

    set(points, every_ms, live) {
      this.points = points;
      this.every_ms = every_ms;
      this.live = live;
      this.draw();
    }

    x(at_ms) {
      return this.left + ((at_ms - this.from_ms) / this.window_ms) * this.wide;
    }

    y(value) {
      return MARGIN.top + this.high * (1 - value / this.top);
    }

    draw() {
      const { clientWidth: width, clientHeight: height } = this.plot;
      const points = this.points;
      this.empty.hidden = points.length > 0;
      this.plot.setAttribute("aria-valuemax", Math.max(points.length - 1, 0));
      if (width === 0) return;
      this.high = height - MARGIN.top - MARGIN.bottom;
      this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
      if (points.length === 0) {
        this.svg.replaceChildren();
        this.showCursor();
        this.caption.textContent = "";
        return;
      }
      const last_ms = points[points.length - 1].at_ms;
      const covered = last_ms - points[0].at_ms;
      // A tenth more counts as the same window: 300 points at 2 s are not exactly ten minutes.
      this.window_ms = WINDOWS_MS.find((window) => window * 1.1 >= covered) ?? covered;
      this.window_ms = Math.max(this.window_ms, covered);
      this.from_ms = last_ms - this.window_ms;
      const all = points.flatMap((point) => this.series.map(({ key }) => number(point[key]))).filter((value) => value !== null);
      this.top = roundAbove(all.length ? Math.max(...all) : 0);

      const labels = [0, 0.5, 1].map((share) => [this.top * share, this.axis(this.top * share)]);
      this.left = Math.max(...labels.map(([, label]) => label.length)) * DIGIT_PX + 8;
      this.wide = width - this.left - MARGIN.right;
      const shapes = [];
      for (const [value, label] of labels) {
        const y = Math.round(this.y(value));
        shapes.push(node("line", { class: "grid", x1: this.left, x2: width - MARGIN.right, y1: y, y2: y }));
        shapes.push(node("text", { x: this.left - 7, y: y + 4, "text-anchor": "end" }, label));
      }
      const below = height - 4;
      const now = this.live ? "now" : time(last_ms);
      shapes.push(node("text", { x: this.left, y: below }, `${span(this.window_ms)} ago`));
      shapes.push(node("text", { x: width - MARGIN.right, y: below, "text-anchor": "end" }, now));
      for (const { key, className, dashed, filled, unlessZero } of this.series) {
        if (unlessZero && !points.some((point) => point[key] > 0)) continue;
        const runs = this.runs(key);
        if (filled) shapes.push(node("path", { class: `fill ${className}`, d: runs.map((run) => this.area(run)).join("") }));
        const d = runs.map((run) => this.line(run)).join("");
        shapes.push(node("path", { class: `line ${className} ${dashed ? "dashed" : ""}`, d, "data-key": key }));
      }
      this.marks = node("g");
      this.svg.replaceChildren(...shapes, this.marks);
      this.caption.textContent = this.summary();
      this.showCursor();
    }

    /// What can be joined by a line: a value that is missing, or a time without answers, ends it.
    runs(key) {
      const runs = [];
      let previous_ms = -Infinity;
      for (const point of this.points) {
        const value = number(point[key]);
        if (value === null) {
          previous_ms = -Infinity;
          continue;
        }
        if (point.at_ms - previous_ms > this.every_ms * 2.5) runs.push([]);
        runs[runs.length - 1].push([this.x(point.at_ms), this.y(value)]);
        previous_ms = point.at_ms;
      }
      return runs;
    }

    line(run) {
      const path = run.map(([x, y], at) => `${at ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
      return run.length === 1 ? `${path}h.01` : path; // One point alone is drawn by its round ends.
    }

    area(run) {
      const floor = this.y(0).toFixed(1);
      return `${this.line(run)}L${run[run.length - 1][0].toFixed(1)} ${floor}L${run[0][0].toFixed(1)} ${floor}Z`;
    }

    summary() {
      const parts = this.series.map(({ key, label, unlessZero }) => {
        const values = this.points.map((point) => number(point[key])).filter((value) => value !== null);
        if (!values.length || (unlessZero && Math.max(...values) === 0)) return null;
        // A mean of percentiles is a number that nobody has waited for.
        if (this.percentiles) return `${label}: ${this.format(Math.min(...values))} to ${this.format(Math.max(...values))}`;
        const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
        return `${label}: mean ${this.format(mean)}, highest ${this.format(Math.max(...values))}`;
      });
      return parts.filter(Boolean).join(" · ") || "Nothing was measured in this time.";
    }

    /// The point that the cursor is nearest to, or the last.
    index() {
      if (cursor_ms === null) return this.points.length - 1;
      let nearest = 0;
      this.points.forEach((point, at) => {
        if (Math.abs(point.at_ms - cursor_ms) < Math.abs(this.points[nearest].at_ms - cursor_ms)) nearest = at;
      });
      return nearest;
    }

    showCursor() {
      const at = this.index();
      const point = this.points[at];
      const chosen = cursor_ms !== null && point;
      this.moment.textContent = !point ? "" : chosen || !this.live ? time(point.at_ms) : "now";
      const texts = this.series.map(({ key }) => (point && number(point[key]) !== null ? this.format(point[key]) : "–"));
      texts.forEach((text, series) => (this.values[series].textContent = text));
      const spoken = this.series.map(({ label }, series) => `${label} ${texts[series]}`).join(", ");
      this.plot.setAttribute("aria-valuenow", Math.max(at, 0));
      this.plot.setAttribute("aria-valuetext", point ? `${time(point.at_ms)}: ${spoken}` : "No figures yet");
      if (!this.marks) return;
      this.marks.replaceChildren();
      if (!chosen) return;
      const x = this.x(point.at_ms);
      this.marks.append(node("line", { class: "cursor", x1: x, x2: x, y1: MARGIN.top, y2: MARGIN.top + this.high }));
      for (const { key, className } of this.series) {
        const value = number(point[key]);
        if (value !== null) this.marks.append(node("circle", { class: `mark ${className}`, cx: x, cy: this.y(value), r: 4 }));
      }
    }

    point(x) {
      if (this.points.length) Lines.moveTo(this.from_ms + ((x - this.left) / this.wide) * this.window_ms);
    }

    key(event) {
      const last = this.points.length - 1;
      const at = this.index();
      const to = { ArrowLeft: at - 1, ArrowRight: at + 1, PageUp: at + 10, PageDown: at - 10, Home: 0, End: last, Escape: null }[event.key];
      if (to === undefined || last < 0) return;
      event.preventDefault();
      Lines.moveTo(to === null ? null : this.points[Math.min(Math.max(to, 0), last)].at_ms);
    }
  }

  return { Lines, number, time, html };
})();
