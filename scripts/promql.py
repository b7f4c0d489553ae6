"""As much of PromQL as the dashboard and the alerts use, read to tell what an expression gives: its unit, and its labels.

Nothing is evaluated. What is not known here is an error, by name, and not passed over.
"""

import re
from dataclasses import dataclass, replace

TOKEN = re.compile(
    r"""\s+|(?P<string>"(?:[^"\\]|\\.)*")|(?P<number>\d+(?:\.\d+)?(?![\w.]))|(?P<range>\[[^\]]+\])"""
    r"""|(?P<name>[a-zA-Z_][a-zA-Z0-9_:]*)|(?P<sign>==|!=|=~|!~|>=|<=|[-+*/()<>{},=])"""
)
AGGREGATIONS = {"sum", "min", "max", "avg", "count"}
# Least binding first, as PromQL has them.
LEVELS = [{"or"}, {"and", "unless"}, {"==", "!=", ">", "<", ">=", "<="}, {"+", "-"}, {"*", "/"}]

# What Prometheus itself adds to everything that it scrapes.
SCRAPED = frozenset({"job", "instance"})


class Wrong(Exception):
    """What is wrong with an expression."""


@dataclass(frozen=True)
class Metric:
    """A metric as an exposition has it. `labels` is None where it has no sample that would show them."""

    kind: str
    labels: frozenset | None


@dataclass(frozen=True)
class Value:
    """What an expression gives. `unit` is number, s, bytes or share, or None for a constant, which goes with any;
    `per_s` says that it is that in a second; `bucket` is the unit of a histogram's bounds where its buckets are, and `counts` says that
    it is how often a histogram was told anything: what is divided by it is a mean."""

    unit: str | None
    per_s: bool = False
    labels: frozenset | None = frozenset()
    bucket: str | None = None
    ranged: bool = False
    counts: bool = False

    def same_kind(self, other):
        return None in (self.unit, other.unit) or (self.unit, self.per_s) == (other.unit, other.per_s)


def unit_of(name):
    base = re.sub(r"_(?:total|max)$", "", name)
    for end, unit in (("_seconds", "s"), ("_bytes", "bytes"), ("_ratio", "share")):
        if base.endswith(end):
            return unit
    return "number"


class Reader:
    def __init__(self, text, metrics):
        self.metrics = metrics
        self.used = set()
        self.blind = set()
        self.selectors = []
        self.tokens = []
        at = 0
        while at < len(text):
            match = TOKEN.match(text, at)
            if not match:
                raise Wrong(f"not understood: {text[at:at + 20]!r}")
            if match.lastgroup:
                self.tokens.append((match.lastgroup, match[0]))
            at = match.end()
        self.tokens.append(("end", ""))
        self.at = 0

    def read(self):
        value = self.binary(0)
        if self.tokens[self.at][0] != "end":
            raise Wrong(f"not expected: {self.tokens[self.at][1]!r}")
        if value.ranged:
            raise Wrong("a range of samples, and no function around it")
        return value

    # ---- tokens ----

    def peek(self):
        return self.tokens[self.at][1]

    def take(self, expected=None):
        kind, text = self.tokens[self.at]
        if expected is not None and text != expected:
            raise Wrong(f"expected {expected!r}, found {text!r}")
        self.at += 1
        return kind, text

    def names(self):
        self.take("(")
        found = []
        while self.peek() != ")":
            found.append(self.take()[1])
            if self.peek() == ",":
                self.take()
        self.take(")")
        return frozenset(found)

    # ---- expressions ----

    def binary(self, level):
        if level == len(LEVELS):
            return self.single()
        left = self.binary(level + 1)
        while self.peek() in LEVELS[level]:
            operator = self.take()[1]
            matching = None
            if self.peek() in ("on", "ignoring"):
                matching = self.take()[1], self.names()
                if self.peek() in ("group_left", "group_right"):
                    self.take("group_left")  # The other way round is not needed.
                    if self.peek() == "(":
                        self.names()
            left = self.joined(operator, left, self.binary(level + 1), matching)
        return left

    def joined(self, operator, left, right, matching):
        if left.ranged or right.ranged:
            raise Wrong(f"{operator} of a range of samples")
        constant = None in (left.unit, right.unit)
        known = None not in (left.labels, right.labels)
        # Two sides whose labels differ find no partner, and the result is nothing, always.
        if known and not constant and matching is None and operator != "or" and left.labels != right.labels:
            raise Wrong(f"{operator}: the labels {sorted(left.labels)} and {sorted(right.labels)} never match")
        if operator in ("and", "unless", "or"):
            return left if left.unit else replace(right, labels=left.labels)
        if operator == "/":
            return self.divided(left, right)
        if operator == "*":
            if not constant:
                raise Wrong("a product of two metrics has no unit known here")
            return left if left.unit else right
        if not left.same_kind(right):
            raise Wrong(f"{operator}: {left.unit} and {right.unit} are not of one kind")
        return left if left.unit else right

    @staticmethod
    def divided(left, right):
        if right.unit is None:
            return left
        if right.counts and not left.counts and left.per_s == right.per_s:
            return replace(left, per_s=False)
        if (left.unit, left.per_s) == (right.unit, right.per_s):
            return replace(left, unit="share", per_s=False)
        if right.unit == "number" and left.per_s == right.per_s:
            return replace(left, per_s=False)
        raise Wrong(f"{left.unit} over {right.unit} has no unit known here")

    def single(self):
        kind, text = self.take()
        if text == "(":
            value = self.binary(0)
            self.take(")")
            return value
        if kind == "number":
            return Value(None)
        if kind != "name":
            raise Wrong(f"not expected: {text!r}")
        if text in AGGREGATIONS:
            return self.aggregation(text)
        if self.peek() == "(":
            return self.function(text)
        return self.selector(text)

    def aggregation(self, name):
        by = None
        if self.peek() in ("by", "without"):
            by = self.take()[1], self.names()
        self.take("(")
        value = self.binary(0)
        self.take(")")
        if value.ranged:
            raise Wrong(f"{name} of a range of samples")
        labels = frozenset()
        if by:
            word, labels = by
            if value.labels is not None and labels - value.labels:
                raise Wrong(f"{name} by {sorted(labels - value.labels)}, which {'is' if len(labels - value.labels) == 1 else 'are'} no label there")
            if word == "without":
                labels = value.labels and value.labels - labels
        if value.bucket and "le" not in labels:
            raise Wrong(f"{name} of buckets without le")
        return replace(value, labels=labels, **({"unit": "number", "per_s": False} if name == "count" else {}))

    def function(self, name):
        self.take("(")
        arguments = [self.binary(0)]
        while self.peek() == ",":
            self.take()
            arguments.append(self.binary(0))
        self.take(")")
        value = arguments[-1]
        if name in ("rate", "increase", "resets"):
            if not value.ranged:
                raise Wrong(f"{name} needs a range of samples")
            value = replace(value, ranged=False)
            if name == "resets":
                return replace(value, unit="number")
            return replace(value, per_s=True) if name == "rate" else value
        if name == "histogram_quantile":
            if not value.bucket or (value.labels is not None and "le" not in value.labels):
                raise Wrong("histogram_quantile needs buckets, and le among their labels")
            return Value(value.bucket, labels=value.labels and value.labels - {"le"})
        if name == "vector":
            return value
        if name == "absent":
            return Value("number", labels=SCRAPED & {"job"})
        raise Wrong(f"{name} is no function known here")

    def selector(self, name):
        value = self.of(name)
        matchers = {}
        if self.peek() == "{":
            self.take()
            while self.peek() != "}":
                label, operator, text = self.take()[1], self.take()[1], self.take()[1]
                if operator not in ("=", "!=", "=~", "!~") or not text.startswith('"'):
                    raise Wrong(f"{name}: a matcher {label}{operator}{text}")
                if value.labels is not None and label not in value.labels:
                    raise Wrong(f"{name} has no label {label}")
                matchers[label] = text.strip('"')
                if self.peek() == ",":
                    self.take()
            self.take("}")
        self.selectors.append((name, matchers))
        if self.tokens[self.at][0] == "range":
            self.take()
            return replace(value, ranged=True)
        return value

    def of(self, name):
        if name == "up":
            return Value("number", labels=SCRAPED)
        base, part = name, None
        metric = self.metrics.get(name)
        if metric is None and (match := re.fullmatch(r"(.+)_(bucket|sum|count)", name)):
            base, part = match[1], match[2]
            metric = self.metrics.get(base)
            if metric and metric.kind != "histogram":
                metric = None
        elif metric and metric.kind == "histogram":
            raise Wrong(f"{name} is a histogram: its samples end in _bucket, _sum or _count")
        if metric is None:
            raise Wrong(f"{name} is not in the exposition")
        self.used.add(base)
        if metric.labels is None:
            self.blind.add(base)
        labels = None if metric.labels is None else metric.labels | SCRAPED | ({"le"} if part == "bucket" else set())
        unit = "number" if part in ("bucket", "count") else unit_of(base)
        return Value(unit, labels=labels, bucket=unit_of(base) if part == "bucket" else None, counts=part == "count")


def exposition(text, metrics=None):
    """The metrics of a text that /metrics gave, added to `metrics`."""
    metrics = {} if metrics is None else metrics
    for line in text.splitlines():
        if match := re.fullmatch(r"# TYPE (\S+) (counter|gauge|histogram|summary|untyped)", line):
            # OpenMetrics names a counter without the _total that its samples have.
            end = "_total" if match[2] == "counter" and not match[1].endswith("_total") else ""
            metrics.setdefault(match[1] + end, Metric(match[2], None))
        elif line and not line.startswith("#"):
            match = re.match(r'([a-zA-Z_:][\w:]*)(?:\{((?:[^"}]|"(?:[^"\\]|\\.)*")*)\})? \S+', line)
            if not match:
                raise Wrong(f"no line of an exposition: {line}")
            labels = frozenset(re.findall(r'(\w+)="(?:[^"\\]|\\.)*"', match[2] or "")) - {"le"}
            name = match[1]
            if name not in metrics:
                name = re.sub(r"_(?:bucket|sum|count)$", "", name)
            if name not in metrics:
                raise Wrong(f"{match[1]} has no # TYPE before it")
            metrics[name] = Metric(metrics[name].kind, (metrics[name].labels or frozenset()) | labels)
    return metrics
