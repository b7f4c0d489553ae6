#!/usr/bin/env python3
"""Whether the Grafana dashboard and the Prometheus alerts fit what /metrics tells: every metric and label that they name is
there, units are those of the figures, sides of an operation match, alerts say what to do.

    scripts/check_dashboards.py METRICS_FILE...    # answers of /metrics, of processes that together show every label
"""

import json
import re
import sys
from pathlib import Path

from promql import Metric, Reader, Wrong, exposition, unit_of

ROOT = Path(__file__).resolve().parent.parent
DASHBOARD = "deploy/grafana/dashboard.json"
ALERTS = "deploy/prometheus/alerts.yaml"
SCRAPES = "deploy/prometheus/prometheus.yaml"

# Not there on a CPU, or once models have loaded; with these labels where they are.
AT_TIMES = {
    "nexus_device_memory_bytes": {"device", "replica"},
    "nexus_device_memory_free_bytes": {"device", "replica"},
    "nexus_model_loading_bytes": {"model"},
    "nexus_model_loading_bytes_max": {"model"},
}

# Grafana's units for what an expression gives: (unit, in a second).
UNITS = {
    ("s", False): {"s", "dtdurations"},
    ("s", True): {"percentunit", "short"},  # A share of a second's time, or cores.
    ("bytes", False): {"bytes"},
    ("share", False): {"percentunit"},
    ("number", False): {"none", "short"},
    ("number", True): {"reqps", "ops", "short"},
}

SEVERITIES = {"critical", "warning"}


class Seen:
    """What all expressions together named."""

    def __init__(self):
        self.expressions = 0
        self.used = set()
        self.blind = set()

    def read(self, text, metrics):
        reader = Reader(text, metrics)
        value = reader.read()
        self.expressions += 1
        self.used |= reader.used
        self.blind |= reader.blind
        return value, reader.selectors


def check_panel(panel, metrics, seen):
    """What is wrong with one panel."""
    for key in ("title", "description"):
        if not panel.get(key):
            yield f"no {key}"
    unit = panel["fieldConfig"]["defaults"].get("unit")
    letters = [target["refId"] for target in panel["targets"]]
    if not letters or len(set(letters)) != len(letters):
        yield f"queries {letters}"
    for of in (panel, *panel["targets"]):
        if of.get("datasource", {}).get("uid") != "${datasource}":
            yield "a data source other than the one chosen"
    legends = []
    for target in panel["targets"]:
        try:
            value, selectors = seen.read(target["expr"], metrics)
        except Wrong as wrong:
            yield f"{wrong}: {target['expr']}"
            continue
        for name, matchers in selectors:
            if (matchers.get("job"), matchers.get("instance")) != ("$job", "$instance"):
                yield f"{name} is not of the job and the processes that were chosen"
        if unit not in UNITS[value.unit, value.per_s]:
            yield f"the unit {unit} for {value.unit}{' in a second' if value.per_s else ''}: {target['expr']}"
        legend = target["legendFormat"]
        legends.append(legend)
        for label in re.findall(r"\{\{\s*(\w+)\s*\}\}", legend):
            if value.labels is not None and label not in value.labels:
                yield f"the legend names {label}, which the result has not: {target['expr']}"
        if panel["type"] == "timeseries" and value.labels and "{{" not in legend:
            yield f"lines by {sorted(value.labels)} that are not told apart: {target['expr']}"
    named = {override["matcher"]["options"] for override in panel["fieldConfig"]["overrides"]}
    if named - set(legends):
        yield f"overrides for {sorted(named - set(legends))}, which no query gives"


def check_dashboard(metrics, seen):
    dashboard = json.loads((ROOT / DASHBOARD).read_text())
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    if variables["datasource"]["type"] != "datasource":
        yield f"{DASHBOARD}: no variable for the data source"
    for name in ("job", "instance"):
        query = variables[name]["query"]["query"]
        match = re.fullmatch(r"label_values\((\w+)(?:\{.*\})?, (\w+)\)", query)
        if not match or match[1] not in metrics or match[2] != name:
            yield f"{DASHBOARD}: variable {name}: {query}"
    panels = dashboard["panels"]
    if len({panel["id"] for panel in panels}) != len(panels):
        yield f"{DASHBOARD}: an id is there twice"
    taken = {}
    for panel in panels:
        where = f"{DASHBOARD}, {panel['title']}"
        box = panel["gridPos"]
        for cell in ((x, y) for x in range(box["x"], box["x"] + box["w"]) for y in range(box["y"], box["y"] + box["h"])):
            if cell[0] >= 24 or taken.setdefault(cell, panel["title"]) != panel["title"]:
                yield f"{where}: lies on {taken.get(cell, 'the edge')}"
                break
        if panel["type"] != "row":
            yield from (f"{where}: {problem}" for problem in check_panel(panel, metrics, seen))


def rules(text):
    """The rules of alerts.yaml, which has one shape: no other is understood."""
    shape = [
        ("alert", re.compile(r"      - alert: (\w+)")),
        ("expr", re.compile(r"        expr: (>-)")),
        ("line", re.compile(r"          (?!severity:|summary:|action:)(\S.*)")),
        ("for", re.compile(r"        for: (\S+)")),
        ("severity", re.compile(r"          severity: (\w+)")),
        ("annotation", re.compile(r"          (summary|action): \"((?:[^\"\\]|\\.)*)\"")),
        ("layout", re.compile(r"groups:|  - name: [\w-]+|    rules:|        labels:|        annotations:|#.*|")),
    ]
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        for kind, pattern in shape:
            if match := pattern.fullmatch(line):
                break
        else:
            raise Wrong(f"line {number} has another shape than the rest: {line.strip()}")
        if kind == "alert":
            found.append({"alert": match[1], "expr": ""})
        elif kind == "line":
            found[-1]["expr"] = f"{found[-1]['expr']} {match[1]}".strip()
        elif kind in ("for", "severity"):
            found[-1][kind] = match[1]
        elif kind == "annotation":
            found[-1][match[1]] = match[2]
    return found


def check_alerts(metrics, seen):
    found = rules((ROOT / ALERTS).read_text())
    names = [rule["alert"] for rule in found]
    if len(set(names)) != len(names):
        yield f"{ALERTS}: a name is there twice"
    for rule in found:
        where = f"{ALERTS}, {rule['alert']}"
        if not re.fullmatch(r"\d+[smh]", rule.get("for", "")):
            yield f"{where}: for is {rule.get('for')}"
        if rule.get("severity") not in SEVERITIES:
            yield f"{where}: severity is {rule.get('severity')}, expected one of {sorted(SEVERITIES)}"
        for key in ("summary", "action"):
            if len(rule.get(key, "")) < 20:
                yield f"{where}: no {key}"
        try:
            value, selectors = seen.read(rule["expr"], metrics)
        except Wrong as wrong:
            yield f"{where}: {wrong}: {rule['expr']}"
            continue
        if not re.search(r"[<>]|==|\babsent\(", rule["expr"]):
            yield f"{where}: no comparison: it would always be so"
        for name, matchers in selectors:
            if matchers.get("job") != "nexus":
                yield f"{where}: {name} of any job"
        text = rule.get("summary", "") + rule.get("action", "")
        for label in re.findall(r"\$labels\.(\w+)", text):
            if value.labels is not None and label not in value.labels:
                yield f"{where}: the text names {label}, which the result has not"
        expected = {"s": "humanizeDuration", "share": "humanizePercentage"}.get(value.unit)
        for used in re.findall(r"\$value(?: \| (\w+))?", text):
            if used != (expected or ""):
                yield f"{where}: the value is a {value.unit}, and written by {used or 'nothing'}"


def check_scrapes():
    text = (ROOT / SCRAPES).read_text()
    for wanted in ("job_name: nexus", "metrics_path: /metrics", "credentials_file: ", f"- {Path(ALERTS).name}"):
        if wanted not in text:
            yield f"{SCRAPES}: no `{wanted.strip()}`"


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    metrics = {}
    for name in sys.argv[1:]:
        try:
            exposition(Path(name).read_text(), metrics)
        except Wrong as wrong:
            sys.exit(f"{name}: {wrong}")
    for name, labels in AT_TIMES.items():
        if name not in metrics or metrics[name].labels is None:
            metrics[name] = Metric("gauge", frozenset(labels))
    seen = Seen()
    try:
        problems = [*check_dashboard(metrics, seen), *check_alerts(metrics, seen), *check_scrapes()]
    except Wrong as wrong:
        problems = [f"{ALERTS}: {wrong}"]
    # A limit is looked at where what it limits is.
    limits = re.compile(r"_max(?:_bytes)?$")
    for name in sorted(name for name in metrics if name.startswith("nexus_") and name not in seen.used and not limits.search(name)):
        problems.append(f"{name} ({metrics[name].kind}, {unit_of(name)}) is told by /metrics, and neither shown nor watched")
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        sys.exit(1)
    unseen = f"; without a sample, so that labels were not looked at: {', '.join(sorted(seen.blind))}" if seen.blind else ""
    print(f"{seen.expressions} expressions over {len(seen.used)} metrics fit what /metrics tells{unseen}")


if __name__ == "__main__":
    main()
