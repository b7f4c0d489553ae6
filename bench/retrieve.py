#!/usr/bin/env python3
"""Compares Nexus with the original's stack: retrieval in every form of body, hits of the cache, peak memory.

    bench/retrieve.py target/release/nexus

Both servers get the same bodies in the same run, in turn, from a client on the same two cores, and both answers are
checked against cosines computed in f64. The table is Markdown; a line a bar says whether it is reached. See
bench/README.md for what is installed first.
Deliberately absent: misses of the cache and reranking (service.py), clients on another machine.
"""

import argparse
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import bodies
import client
import servers
import small
import wide_model

RATIO_BAR = 40
GB_PER_S_BAR = 1.0
P99_MS_BAR = 20
CORES = 2
# The original needs tens of seconds for 10,000 targets: after this long it is measured well enough.
ORIGINAL_S = 60
ORIGINAL_RUNS_MIN = 2
WRK_S = 5
RATE_HZ = 200
# After it, all the code that a request needs is in memory, and what a server holds is what it holds idle.
SMALLEST = {"source_embedding": [1, 0], "target_embeddings": [[1, 1]]}


@dataclass
class Measured:
    """What one server did in one case. `refused`: a status, where it does not do that at all."""

    seconds: list = field(default_factory=list)
    peak_mib: float = 0.0
    base_mib: float = 0.0
    refused: str = ""

    def text(self):
        if self.refused or not self.seconds:
            return f"not supported ({self.refused})" if self.refused else "–"
        return f"{duration(self.median)} ({duration(min(self.seconds))})"

    def memory(self):
        return f"{self.peak_mib - self.base_mib:,.0f} (of {self.peak_mib:,.0f})" if self.seconds else "–"

    @property
    def median(self):
        return statistics.median(self.seconds)


def duration(seconds):
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.1f} ms"


def note(text):
    print(text, file=sys.stderr, flush=True)


def run_once(server, body, exact, measured):
    answer = client.exchange(server.address, body)
    if answer.status not in (200, 201, 204):
        measured.refused = str(answer.status or "connection closed")
        note(f"  {server.name}: {answer.status} {answer.content[:160]!r}")
        return
    if exact and (problem := bodies.wrong(answer.json(), exact)):
        raise SystemExit(f"{server.name}: {problem}")
    measured.seconds.append(answer.seconds)
    note(f"  {server.name}: {duration(answer.seconds)}")


def measure(options, body, exact, with_original, before=None):
    """One case, in fresh processes, in turn. Returns what Nexus did and what the original did."""
    running = [servers.nexus(options.binary)]
    try:
        if with_original:
            running.append(servers.original(options.original_python))
        results = [Measured() for _ in running]
        for server, result in zip(running, results):
            client.post_json(server.address, "/api/v1/retrieve", SMALLEST)
            if before and (answer := client.exchange(server.address, before)).status not in (200, 201, 204):
                result.refused = str(answer.status)
            result.base_mib = server.resident_mib()
            server.forget_peak()
        for turn in range(options.runs):
            for server, result in zip(running, results):
                enough = turn >= ORIGINAL_RUNS_MIN and sum(result.seconds) > ORIGINAL_S
                if not result.refused and not (server.name == "original" and enough):
                    for other in running:
                        other.settle()
                    run_once(server, body, exact, result)
        for server, result in zip(running, results):
            result.peak_mib = server.peak_mib()
    finally:
        for server in running:
            server.stop()
    return results[0], results[1] if with_original else Measured()


def cases(vectors, targets):
    """(name, body, exact cosines a source, whether the original does it, what is sent before). One at a time: each
    holds its body in memory."""
    exact = [vectors.similarities()]
    yield "JSON, source first", bodies.json_source_first(vectors, targets), exact, True, None
    yield "JSON, source last", bodies.json_source_last(vectors, targets), exact, True, None
    yield "base64, a string a vector", bodies.base64_vectors(vectors), exact, False, None
    yield "base64, one string", bodies.base64_matrix(vectors), exact, False, None
    yield "safetensors, F32", bodies.safetensors_retrieve(vectors, "F32"), exact, False, None
    rounded = [vectors.as_bf16().similarities()]
    yield "safetensors, BF16", bodies.safetensors_retrieve(vectors, "BF16"), rounded, False, None
    put = bodies.resident_put(vectors)
    yield "resident: the PUT", put, None, False, None
    yield "resident, one source", bodies.resident_one(vectors), exact, False, put
    every = [vectors.similarities(source) for source in range(bodies.SOURCES)]
    yield f"resident, {bodies.SOURCES} sources", bodies.resident_many(vectors), every, False, put


def compare_size(options, count, folder, bars):
    """All forms of body with so many targets: prints rows, and adds to `bars`."""
    note(f"{count} targets: writing the JSON")
    vectors = bodies.Vectors.random(count)
    path = Path(folder) / "targets.json"
    targets = bodies.json_targets(vectors, path)
    alone = min(client.discarded(bodies.json_source_first(vectors, targets)).seconds for _ in range(3))
    print(f"| {count:,}: JSON, read and discarded | {len(targets) / 1e6:,.1f} | | {duration(alone)} | | "
          f"{len(targets) / alone / 1e9:.2f} | | |")
    yardstick = None
    for name, body, exact, in_original, before in cases(vectors, targets):
        note(f"{count} targets: {name}")
        nexus, original = measure(options, body, exact, in_original and not options.skip_original, before)
        yardstick = yardstick or (original if original.seconds else None)
        compared = original if original.seconds else yardstick
        ratio = speed = ""
        if nexus.seconds and compared and exact:
            ratio = f"{compared.median / nexus.median:,.0f}"
        if nexus.seconds and (not exact or not before):
            speed = f"{body.bytes_total / nexus.median / 1e9:.2f}"
        print(f"| {count:,}: {name} | {body.bytes_total / 1e6:,.1f} | {original.text()} | {nexus.text()} | {ratio} | "
              f"{speed} | {original.memory()} | {nexus.memory()} |", flush=True)
        if name == "JSON, source first" and nexus.seconds:
            if original.seconds:
                best = min(original.seconds) / min(nexus.seconds)
                text = f"retrieve over JSON, {count:,} targets: at least {RATIO_BAR} times the original"
                bars.append((text, original.median / nexus.median >= RATIO_BAR,
                             f"{original.median / nexus.median:.1f} times (best to best {best:.1f})"))
            rate, best = (body.bytes_total / s / 1e9 for s in (nexus.median, min(nexus.seconds)))
            bars.append((f"retrieve over JSON, {count:,} targets: at least {GB_PER_S_BAR} GB/s of body",
                         rate >= GB_PER_S_BAR, f"{rate:.2f} GB/s (best {best:.2f})"))
    return vectors, targets


def compare_hits(options, folder, models, bars):
    """Hits of the cache, by turns."""
    running = [servers.nexus(options.binary, models)]
    try:
        if not options.skip_original:
            running.append(servers.original(options.original_python))
        rates = {server.name: [] for server in running}
        cpu_us = {server.name: [] for server in running}
        for server in running:
            width = small.warm(server)
            if width != bodies.DIMENSIONS:
                raise SystemExit(f"{server.name}: {width} floats, not {bodies.DIMENSIONS}")
            server.base_mib = server.resident_mib()
            server.forget_peak()
        for _ in range(3):
            for server in running:
                before_s = server.cpu_s()
                rates[server.name].append(small.hits_per_second(server, folder, WRK_S))
                cpu_us[server.name].append((server.cpu_s() - before_s) / (rates[server.name][-1] * WRK_S) * 1e6)
                note(f"  {server.name}: {rates[server.name][-1]:,.0f} hits/s")
        print(f"\n| hits of the cache, {bodies.DIMENSIONS} floats, wrk with {small.CONNECTIONS} connections | "
              "hits/s, median (best) | server's CPU a hit | MiB over the start |\n" + "|---" * 4 + "|")
        for server in running:
            values = rates[server.name]
            print(f"| {server.name} | {statistics.median(values):,.0f} ({max(values):,.0f}) | "
                  f"{statistics.median(cpu_us[server.name]):,.0f} µs | "
                  f"{server.peak_mib() - server.base_mib:,.0f} |", flush=True)
        if len(running) == 2:
            ratio = statistics.median(rates["nexus"]) / statistics.median(rates["original"])
            bars.append((f"hits of the cache: at least {RATIO_BAR} times the original", ratio >= RATIO_BAR,
                         f"{ratio:.1f} times (best to best {max(rates['nexus']) / max(rates['original']):.1f})"))
    finally:
        for server in running:
            server.stop()


def beside_large(options, vectors, targets, models, bars):
    """Latencies of hits while the largest JSON body is sent over and over."""
    body = bodies.json_source_first(vectors, targets)
    count = len(vectors.targets)
    columns = f"hits at {RATE_HZ} a second | from when due: p50 | p99 | max | from when sent: p99"
    print(f"\n| {columns} |\n" + "|---" * 5 + "|")

    def measure_one(name, server, times):
        with small.Beside(server, RATE_HZ) as beside:
            time.sleep(0 if times else 2)
            for _ in range(times):
                if (answer := client.exchange(server.address, body)).status != 200:
                    raise SystemExit(f"{server.name}: {answer.status}")
        p50, p99 = (small.percentile(beside.due_ms, share) for share in (0.5, 0.99))
        print(f"| {name} | {p50:,.2f} ms | {p99:,.2f} ms | {beside.due_ms[-1]:,.2f} ms | "
              f"{small.percentile(beside.sent_ms, 0.99):,.2f} ms |", flush=True)
        return p99

    with servers.nexus(options.binary, models) as server:
        small.warm(server)
        measure_one("nexus, alone", server, 0)
        p99 = measure_one(f"nexus, beside {count:,} targets in JSON, {options.runs} times", server, options.runs)
        text = f"hits beside {count:,} targets in JSON: p99 under {P99_MS_BAR} ms"
        bars.append((text, p99 < P99_MS_BAR, f"{p99:.1f} ms"))
    if not options.skip_original:
        with servers.original(options.original_python) as server:
            small.warm(server)
            measure_one("original, alone", server, 0)
            measure_one(f"original, beside {count:,} targets in JSON, once", server, 1)


def machine():
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    info = dict(map(str.strip, line.split(":", 1)) for line in lines if ":" in line)
    wide = [name for name in ("avx2", "avx512f") if name in info.get("flags", "").split()]
    return (
        f"{info.get('model name', platform.machine())} ({', '.join(wide) or 'no avx2'}), {os.cpu_count()} cores "
        f"of which {CORES} are used, load {os.getloadavg()[0]:.1f} at the start"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("binary")
    parser.add_argument("--skip-original", action="store_true", help="Nexus alone, without ratios")
    parser.add_argument("--original-python", default=sys.executable, metavar="PYTHON",
                        help="interpreter of the environment that has the original's packages; this one by default")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000], help="numbers of targets")
    parser.add_argument("--runs", type=int, default=5, help="runs of each case")
    options = parser.parse_args()
    if not shutil.which("wrk"):
        sys.exit("wrk is missing: apt-get install wrk")
    # Servers and clients inherit it.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    stack = "not run" if options.skip_original else servers.original_versions(options.original_python)
    print(f"{machine()}. The original: {stack}. Median (best) of up to {options.runs} runs; of the original at least {ORIGINAL_RUNS_MIN}, "
          f"up to {ORIGINAL_S} s. Memory: peak over what the idle server held (peak), MiB.\n")
    columns = "targets and body | MB | original | nexus | ratio | GB/s | original, MiB | nexus, MiB"
    print(f"| {columns} |\n" + "|---" * 8 + "|")
    bars = []
    with tempfile.TemporaryDirectory(prefix="nexus-bench-") as folder:
        for count in options.sizes:
            vectors, targets = compare_size(options, count, folder, bars)
        models = Path(folder) / "models"
        wide_model.make(models)
        note("hits beside large bodies")
        beside_large(options, vectors, targets, models, bars)
        note("hits")
        compare_hits(options, folder, models, bars)
    print("\nRatios are to the original's JSON with as many targets. Bars, by medians:\n")
    for text, reached, value in bars:
        print(f"- {'pass' if reached else 'FAIL'}: {text}: {value}")


if __name__ == "__main__":
    main()
