#!/usr/bin/env python3
"""Compares embeddings answered from the cache with a constant body of the same size from the same server.

    cargo build --release -p nexus --bin nexus --example constant_body
    bench/hits.py target/release/nexus target/release/examples/constant_body

Needs `wrk` (Debian's package). One text of a model of 4096 dimensions is embedded once, and then asked for again and
again; the constant body has as many bytes as that answer and is asked for with the same request. Server and client share
all cores. The two take turns, a round each; the ratios are of one round, which both spent on the same machine under the
same other load, and their median decides: a rate of at least 0.80 of the constant body's, a median latency of at most
1.25 times.
Deliberately absent: many texts (the store behind the memory), and the original service.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from contextlib import ExitStack, contextmanager
from pathlib import Path

sys.dont_write_bytecode = True
import wide_model  # noqa: E402

RATE_MIN, P50_MAX = 0.80, 1.25
BODY = {"control_id": "AC-7", "text": "Multi-factor authentication is required for all users."}
UNITS_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


@contextmanager
def running(command, log, environment=None):
    """The address that the command prints once it listens, and its process."""
    process = subprocess.Popen(
        command, env=os.environ | (environment or {}), stdout=subprocess.PIPE, stderr=log, text=True
    )
    try:
        url = process.stdout.readline().removeprefix("listening on ").strip()
        if not url:
            raise SystemExit(f"{command[0]} did not start")
        yield url, process.pid
    finally:
        process.terminate()
        process.wait()


def post(url, body):
    """The bytes of the answer."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as response:
        return response.read()


def wait_ready(url):
    while True:
        try:
            with urllib.request.urlopen(f"{url}/ready"):
                return
        except urllib.error.HTTPError as error:
            status = json.load(error)
            if status["status"] != "loading":
                raise SystemExit(f"not ready: {status}") from None


def cpu_s(pid):
    """Time that the process has had on all cores."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def load(url, pid, script, options):
    """Requests a second, the latencies p50 and p99 in ms, and the server's time on the CPU in us a request."""
    command = ["wrk", "-t1", f"-c{options.connections}", f"-d{options.seconds}s", "--latency", "-s", script, url]
    before = cpu_s(pid)
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    spent_s = cpu_s(pid) - before
    if re.search(r"Non-2xx|Socket errors", text):
        raise SystemExit(text)
    percentile = {
        name: float(value) * UNITS_MS[unit]
        for name, value, unit in re.findall(r"^\s+(50|99)%\s+([\d.]+)(us|ms|s)$", text, re.M)
    }
    rate, requests = (float(re.search(p, text)[1]) for p in (r"Requests/sec:\s+([\d.]+)", r"(\d+) requests in"))
    return rate, percentile["50"], percentile["99"], spent_s / requests * 1e6


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("nexus")
    parser.add_argument("constant_body")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=int, default=3, help="of each turn")
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--get", action="store_true", help="ask for the constant body with GET, and no body read")
    parser.add_argument("--format", choices=["float", "base64"], default="float")
    options = parser.parse_args()

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nexus-bench-")))
        # As most services run: each request's line goes to a file.
        log = stack.enter_context(open(folder / "log", "w"))
        wide_model.make(folder / "models")
        environment = {
            "MODEL_BUCKET": str(folder / "models"),
            "RETRIEVER_MODEL_PATH": "wide-embedder",
            "RERANKER_MODEL_PATH": "reranker",
            "NEXUS_CACHE_DIR": str(folder / "cache"),
            "NEXUS_PORT": "0",
        }
        hits, hits_pid = stack.enter_context(running([options.nexus, "serve"], log, environment))
        wait_ready(hits)
        hits += "/api/v1/embed"
        body = BODY | {"encoding_format": options.format}
        post(hits, body)
        answer = post(hits, body)
        vector = json.loads(answer)
        if not vector["cache_hit"]:
            raise SystemExit("the second answer was not a hit")
        constant, constant_pid = stack.enter_context(running([options.constant_body, str(len(answer))], log))
        constant += "/constant"
        print(f"{len(answer)} bytes a response, {options.connections} connections")

        scripts = {}
        for name, method in [("post", "POST"), ("get", "GET")]:
            scripts[name] = folder / f"{name}.lua"
            text = f'wrk.method = "{method}"\n'
            if method == "POST":
                text += f"wrk.headers['Content-Type'] = 'application/json'\nwrk.body = [==[{json.dumps(body)}]==]\n"
            scripts[name].write_text(text)
        turns = {
            "constant": (constant, constant_pid, scripts["get" if options.get else "post"]),
            "hits": (hits, hits_pid, scripts["post"]),
        }
        rounds = []
        for number in range(options.rounds + 1):
            # Who goes first changes; the first round warms both up.
            order = list(turns) if number % 2 else list(reversed(turns))
            measured = {name: load(*turns[name], options) for name in order}
            if number:
                rounds.append(measured)

    print("|  | requests/s, best | median | p50 ms, best | median | p99 ms, best | median | server's CPU us |")
    print("|---|---|---|---|---|---|---|---|")
    for name in turns:
        rates, p50s, p99s, cpus = zip(*(measured[name] for measured in rounds))
        cells = [f"{max(rates):.0f}", f"{statistics.median(rates):.0f}"]
        cells += [f"{f(values):.3f}" for values in (p50s, p99s) for f in (min, statistics.median)]
        cells.append(f"{min(cpus):.1f}")
        print(f"| {name} | {' | '.join(cells)} |")
    passed = True
    for label, at, holds, bound in [
        ("rate", 0, lambda ratio: ratio >= RATE_MIN, f"at least {RATE_MIN:.2f}"),
        ("p50", 1, lambda ratio: ratio <= P50_MAX, f"at most {P50_MAX:.2f}"),
    ]:
        ratios = [measured["hits"][at] / measured["constant"][at] for measured in rounds]
        median = statistics.median(ratios)
        passed &= holds(median)
        print(
            f"{label}: hits / constant: median {median:.3f} ({min(ratios):.3f} to {max(ratios):.3f}), "
            f"{bound}: {'pass' if holds(median) else 'FAIL'}"
        )
    sys.exit(not passed)


if __name__ == "__main__":
    main()
