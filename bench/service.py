#!/usr/bin/env python3
"""Times the built-in models behind the real binary: cold start, embedding, reranking.

    cargo build --release && bench/service.py target/release/nexus CATALOG.json

CATALOG.json has the form of examples/cloud-checks.json; a real one has hundreds of controls. Without the embedding
cache. Each figure is the best of several runs, what the machine can do and not what it did while something else ran; that
of single embeds is a median.
Deliberately absent: other services to compare with, and load from several clients.
"""

import argparse
import json
import os
import statistics
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path


def start(binary):
    """The process, its address, and the seconds from its start until /ready says 200."""
    env = os.environ | {"NEXUS_CACHE": "off", "NEXUS_PORT": "0", "LOG_LEVEL": "WARNING"}
    began = time.perf_counter()
    process = subprocess.Popen([binary, "serve"], env=env, stdout=subprocess.PIPE, text=True)
    url = process.stdout.readline().removeprefix("listening on ").strip()
    while url and process.poll() is None:
        try:
            urllib.request.urlopen(f"{url}/ready").read()
            return process, url, time.perf_counter() - began
        except urllib.error.HTTPError:  # 503: models are loading
            time.sleep(0.002)
    raise SystemExit("the service did not start")


def stop(process):
    process.terminate()
    process.wait()


def seconds(url, body):
    data = json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    began = time.perf_counter()
    urllib.request.urlopen(request).read()
    return time.perf_counter() - began


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("binary")
    parser.add_argument("catalog", type=Path)
    options = parser.parse_args()
    controls = json.loads(options.catalog.read_text())["controls"]
    items = [{"control_id": c["control_id"], "text": c["text"]} for c in controls]

    starts = []
    for _ in range(5):
        process, _, took = start(options.binary)
        starts.append(took)
        stop(process)
    print(f"| cold start, process start to ready | {min(starts):.2f} s |")

    process, url, _ = start(options.binary)
    try:
        batch = min(seconds(f"{url}/api/v1/embed/batch", {"items": items}) for _ in range(3))
        print(f"| embed/batch of {len(items)} controls | {len(items) / batch:.0f} texts/s |")
        singles = [seconds(f"{url}/api/v1/embed", item) for item in items[:200]]
        print(f"| one embed, median of {len(singles)} | {statistics.median(singles) * 1e3:.1f} ms |")
        for n in (50, 100):
            candidates = (items * (n // len(items) + 1))[:n]
            body = {"source_text": items[0]["text"], "candidates": candidates}
            best = min(seconds(f"{url}/api/v1/rerank", body) for _ in range(5))
            print(f"| rerank of {n} candidates | {best * 1e3:.0f} ms |")
    finally:
        stop(process)


if __name__ == "__main__":
    main()
