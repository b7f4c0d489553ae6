#!/usr/bin/env python3
"""Times exact top-k against numpy, FAISS and usearch, and against the bandwidth that the machine reads memory with.

    pip install numpy faiss-cpu usearch && bench/topk.py

Builds the Rust half (crates/vectors/examples/topk_bench.rs) with cargo, makes random rows and sources, and lets everyone
take turns over the same vectors, all with as many threads as there are cores. Each figure is the best of many runs, what
the machine can do and not what it did while something else ran. All rankings are compared with one made in float64.

What the others are spared: their rows and sources are of unit length before the clock starts, so that they compute dot
products alone and look for neither zero vectors nor NaN. Here, "norms" has the rows' norms from before as well, "squares"
computes them in the scan and checks every row; both scale the result. usearch is given inner products for the same
reason. numpy's figure is the better of both orders of its product. numpy asks the system for huge pages for its arrays,
and a scan of memory gains by them: the Rust half gets them by a setting of glibc, or not at all with --small-pages.
Deliberately absent: approximate indexes, and rows that do not lie in memory.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# Both slow OpenBLAS down where somebody has set them. Read at import, like the numbers of threads.
for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
    os.environ.pop(name, None)
for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "RAYON_NUM_THREADS"):
    os.environ[name] = str(os.cpu_count())

import faiss  # noqa: E402
import numpy as np  # noqa: E402
import usearch  # noqa: E402
from usearch.index import MetricKind, search  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
TIES = 1e-6
# The threads of OpenBLAS and OpenMP go on spinning for a while after their work, and would disturb who comes next.
REST_SECONDS = 0.1
RUNS_A_TURN = 3


def build():
    command = ["cargo", "build", "--release", "--package", "nexus-vectors", "--example", "topk_bench"]
    subprocess.run(command, check=True, cwd=ROOT)
    return Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release/examples/topk_bench"


class Nexus:
    def __init__(self, binary, rows, sources, k, small_pages):
        self.folder = tempfile.TemporaryDirectory()
        files = [Path(self.folder.name) / name for name in ("rows", "sources")]
        rows.tofile(files[0])
        sources.tofile(files[1])
        command = [binary, *files, str(rows.shape[1]), str(k)]
        env = os.environ | ({} if small_pages else {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"})
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        self.name = self.process.stdout.readline().strip()

    def task(self, line):
        """A function that does the task and gives (seconds, rankings)."""

        def run():
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
            nanoseconds, _, ranked = self.process.stdout.readline().strip().partition(" ")
            return int(nanoseconds) / 1e9, [[int(i) for i in one.split()] for one in ranked.split(";")]

        return run


def timed(function):
    def run():
        began = time.perf_counter()
        found = function()
        return time.perf_counter() - began, found

    return run


def best_of(similarities, k):
    """numpy's top-k of [sources, rows]."""
    found = np.argpartition(-similarities, k - 1, axis=1)[:, :k]
    order = np.argsort(-np.take_along_axis(similarities, found, axis=1), axis=1)
    return np.take_along_axis(found, order, axis=1)


def peers(rows, sources, k):
    """name -> function, for sources [n, d] and rows [m, d] of unit length."""
    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(rows)
    threads = os.cpu_count()

    def usearch_exact(sources):
        # One source has to be a vector: the answer is then of one dimension less.
        found = search(rows, sources if len(sources) > 1 else sources[0], k, MetricKind.IP, exact=True, threads=threads)
        return np.atleast_2d(found.keys)

    return {
        "numpy": lambda s: best_of((rows @ s[0])[None] if len(s) == 1 else s @ rows.T, k),
        "numpy, other order": lambda s: best_of((rows @ s.T).T if len(s) > 1 else s @ rows.T, k),
        "FAISS IndexFlatIP": lambda s: index.search(s, k)[1],
        "usearch exact": usearch_exact,
    }


def cosines(rows, sources):
    """[sources, rows] in float64."""
    sources = sources.astype(np.float64)
    sources /= np.linalg.norm(sources, axis=1, keepdims=True)
    parts = []
    for part in np.array_split(rows, 16):
        part = part.astype(np.float64)
        parts.append(sources @ part.T / np.linalg.norm(part, axis=1))
    return np.concatenate(parts, axis=1)


def worst_rank(reference, ranked, k):
    """By how much the rankings are off: 0 for the reference's own, or one that differs in equal rows alone."""
    worst = 0.0
    for similarities, found in zip(reference, ranked, strict=True):
        expected = -np.sort(-similarities)[:k]
        worst = max(worst, float(np.abs(similarities[np.asarray(found)] - expected).max()))
    return worst


def measure(tasks, rounds):
    """The best seconds of each task, and its rankings; all take turns."""
    best = dict.fromkeys(tasks, float("inf"))
    ranked = {}
    for _ in range(rounds):
        for name, run in tasks.items():
            time.sleep(REST_SECONDS)
            run()
            for _ in range(RUNS_A_TURN):
                seconds, ranked[name] = run()
                best[name] = min(best[name], seconds)
    return best, ranked


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--binary", type=Path, help="the built example; without it, cargo builds one")
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--dim", type=int, default=4096)
    parser.add_argument("--sources", type=int, default=16)
    parser.add_argument("--k", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=20, help=f"turns of {RUNS_A_TURN} runs each")
    parser.add_argument("--small-pages", action="store_true", help="rows here in pages of the usual size")
    options = parser.parse_args()
    binary = options.binary or build()

    random = np.random.default_rng(1)
    rows = random.standard_normal((options.rows, options.dim), dtype=np.float32)
    sources = random.standard_normal((options.sources, options.dim), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    sources /= np.linalg.norm(sources, axis=1, keepdims=True)
    cut = (rows.view(np.uint32) & 0xFFFF0000).view(np.float32)
    references = {"F32": cosines(rows, sources), "BF16": cosines(cut, sources)}
    nexus = Nexus(binary, rows, sources, options.k, options.small_pages)
    others = peers(rows, sources, options.k)
    print(f"nexus: {nexus.name}; numpy {np.__version__}, FAISS {faiss.__version__}, usearch {usearch.__version__}")
    print(f"{options.rows} x {options.dim}, k = {options.k}, best of {options.rounds * RUNS_A_TURN}")

    gigabytes = {"F32": rows.nbytes / 1e9, "BF16": rows.nbytes / 2e9}
    wrong = False
    for count, word in ((1, "one"), (options.sources, "many")):
        tasks = {"read": nexus.task("read")}
        for dtype in gigabytes:
            for norms in ("squares", "norms"):
                tasks[f"nexus {dtype}, {norms}"] = nexus.task(f"{word} {dtype} {norms}")
        for name, function in others.items():
            tasks[name] = timed(lambda function=function: function(sources[:count]))
        best, ranked = measure(tasks, options.rounds)
        best["numpy"] = min(best["numpy"], best.pop("numpy, other order"))
        peer = min(seconds for name, seconds in best.items() if name in others)
        bandwidth = gigabytes["F32"] / best["read"]
        print(f"\n{count} source{'s' if count > 1 else ''}{'':14}{'ms':>8}{'GB/s':>8}{'of read':>9}{'of best peer':>14}{'off by':>9}")
        for name, seconds in best.items():
            dtype = "BF16" if "BF16" in name else "F32"
            rate = gigabytes[dtype] / seconds
            line = f"{name:24}{seconds * 1e3:8.2f}{rate:8.1f}{rate / bandwidth:9.0%}"
            if name != "read":
                off = worst_rank(references[dtype][:count], ranked[name], options.k)
                line += f"{seconds / peer:14.2f}{off:9.0e}"
                wrong |= off > TIES
            print(line)
    if wrong:
        sys.exit("a ranking is not the reference's")


if __name__ == "__main__":
    main()
