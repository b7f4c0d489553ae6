"""Nexus on the CPU beside PyTorch, ONNX Runtime and llama.cpp, in one run: bench/cpu.sh NEXUS --work FOLDER

Models of random weights in the shapes of ModernBERT-base and Qwen3-Embedding-0.6B; all get the same token ids, and what they
give is compared first. Every contender is a process of its own that is measured in turn, round after round, while the others
wait. Peers that are not installed are left out.
"""

import argparse
import importlib.util
import json
import pathlib
import statistics
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "gpu")]

import numpy
import shapes
import texts
import weights

EMBEDDER = shapes.QWEN3 | {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
                           "max_window_layers": 28, "num_attention_heads": 16}  # fmt: skip
TINY = {"num_hidden_layers": 2, "max_window_layers": 2}
NEEDS = {"pytorch-f32": ["torch"], "pytorch-bf16": ["torch"], "onnxruntime": ["onnxruntime", "onnx", "onnxscript"],
         "llama.cpp-f16": ["llama_cpp", "gguf"], "llama.cpp-q8_0": ["llama_cpp", "gguf"]}  # fmt: skip
OURS = "nexus"
# What takes so many times our time is measured once.
HOPELESS = 4
# (model, load, [(bar, contenders of which the best counts)])
PYTORCH = ["pytorch-f32", "pytorch-bf16"]
BARS = {
    ("rerank", "50 pairs"): [(1.6, PYTORCH), (1.25, ["onnxruntime"])],
    ("embed", "16 controls"): [(1.25, PYTORCH)],
    ("embed", "one control"): [(1.5, PYTORCH)],
}
# A peer's loads that do the same work in another way; the better one counts.
ALSO = {("embed", "16 controls"): "16 controls, one by one"}
COSINE_MIN = {"int8": 0.995, "llama.cpp-q8_0": 0.995, "pytorch-bf16": 0.995}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nexus", type=pathlib.Path, help="built with `--features bench`")
    parser.add_argument("--work", type=pathlib.Path, required=True, help="a folder with room for 6 GB")
    parser.add_argument("--controls", type=pathlib.Path, help="a folder of catalogs, for real texts")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", help="these peers only")
    parser.add_argument("--tiny", action="store_true", help="two layers: a rehearsal")
    options = parser.parse_args()
    embedded, pairs = texts.sequences(options.controls)
    tiny = TINY if options.tiny else {}
    size = "tiny" if options.tiny else "full"
    run = Run(options)
    print(machine(), flush=True)
    everything = [list(range(len(pairs)))]
    run.table("rerank", weights.make(shapes.MODERNBERT | tiny, options.work / f"modernbert-{size}", "cpu"),
              pairs, {"50 pairs": everything},
              ["pytorch-f32", "pytorch-bf16", "onnxruntime"])  # fmt: skip
    singles = [[i] for i in range(len(embedded))]
    middle = sorted(singles, key=lambda i: len(embedded[i[0]]))[len(singles) // 2]
    run.table("embed", weights.make(EMBEDDER | tiny, options.work / f"qwen3-{size}", "cpu"), embedded,
              {"16 controls": [list(range(len(embedded)))], "16 controls, one by one": singles, "one control": [middle]},
              ["pytorch-f32", "pytorch-bf16", "llama.cpp-f16", "llama.cpp-q8_0"])  # fmt: skip
    for name, sequences in (("embedder", embedded), ("reranker", pairs)):
        run.table(f"built-in {name}", texts.ROOT / "models" / name, sequences,
                  {"all": [list(range(len(sequences)))]}, [])  # fmt: skip
    print("\n".join(["", *run.verdicts]))


def machine():
    model = next((line.split(":")[1].strip() for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")), "an unknown CPU")  # fmt: skip
    versions = [f"{name} {module.__version__}" for name in ("torch", "transformers", "onnxruntime", "llama_cpp")
                if importlib.util.find_spec(name) and (module := importlib.import_module(name))]  # fmt: skip
    return f"{model}, {len(__import__('os').sched_getaffinity(0))} cores; {', '.join(versions)}"


class Run:
    def __init__(self, options):
        self.options, self.verdicts = options, []

    def table(self, work, folder, sequences, loads, peers):
        """Measures and prints; a wrong result ends the run."""
        options = self.options
        peers = [peer for peer in peers if not options.only or peer in options.only]
        absent = [p for p in peers if not all(map(importlib.util.find_spec, NEEDS[p]))]
        tokens = options.work / f"{work}.tokens.json".replace(" ", "-")
        batches = [{"name": name, "batches": batches} for name, batches in loads.items()]
        tokens.write_text(json.dumps({"sequences": sequences, "loads": batches,
                                      "batches": [list(range(len(sequences)))]}))  # fmt: skip
        devices = {OURS: "cpu", "nexus int8": "cpu:int8", "nexus, one thread": "cpu:1"}
        rows = {name: self.our_rows(device, folder, tokens) for name, device in devices.items()}
        contenders = {name: Contender([options.nexus, "bench", "--device", device, "time", folder, "--tokens", tokens,
                                       "--on-request"]) for name, device in devices.items()}  # fmt: skip
        for peer in peers:
            if peer not in absent:
                out = options.work / "rows.npy"
                contenders[peer] = Contender([sys.executable, HERE / "peer.py", peer, folder, tokens, out])
                rows[peer] = numpy.load(out)
        for name, found in rows.items():
            self.compare(work, name, found, rows[OURS])
        times = {(name, load): [] for name in contenders for load in loads}
        for _ in range(options.rounds):
            for load in loads:
                for name, contender in contenders.items():
                    so_far = times[name, load]
                    if so_far and so_far[0] > HOPELESS * times[OURS, load][0]:
                        continue
                    time.sleep(0.2)
                    so_far.append(contender.measure(load))
        for contender in contenders.values():
            contender.end()
        self.print(work, sequences, loads, times, list(contenders), absent)

    def our_rows(self, device, folder, tokens):
        out = self.options.work / "rows.npy"
        subprocess.run([self.options.nexus, "bench", "--device", device, "run", folder, "--tokens", tokens, "--out", out],
                       check=True)  # fmt: skip
        return numpy.load(out)

    def compare(self, work, name, rows, ours):
        rows, ours = rows.reshape(len(rows), -1).astype("float64"), ours.astype("float64")
        if rows.shape[1] == 1:
            error = numpy.abs(rows - ours).max() / numpy.abs(ours).max()
            print(f"{work}, {name}: logits differ from ours by at most {error:.2g} of the largest", flush=True)
            wrong = error > 0.1
        else:
            cosines = (rows * ours).sum(1) / numpy.linalg.norm(rows, axis=1) / numpy.linalg.norm(ours, axis=1)
            print(f"{work}, {name}: cosine to ours at least {cosines.min():.6f}", flush=True)
            wrong = not cosines.min() >= next((least for part, least in COSINE_MIN.items() if part in name), 0.999)
        if wrong:
            raise SystemExit(f"{work}: {name} computes something else")

    def print(self, work, sequences, loads, times, names, absent):
        # Where one is slowed by what else the machine does, so are the others of its round: ratios are of each round.
        print(f"\n| {work}: best (median) | tokens | " + " | ".join(names) + " |")
        print("|---|---|" + "---|" * len(names))
        for load, batches in loads.items():
            tokens = sum(len(sequences[i]) for batch in batches for i in batch)
            cells = [f"{tokens / min(times[n, load]) * 1e3:.0f} ({tokens / statistics.median(times[n, load]) * 1e3:.0f}) tok/s"
                     for n in names]  # fmt: skip
            print(f"| {load} | {tokens} | " + " | ".join(cells) + " |")
        if absent:
            print(f"not installed: {', '.join(absent)}")
        for load in loads:
            def ratio(peers):
                """How many times our time the best of them takes: the median over the rounds."""
                ways = [load, ALSO[work, load]] if (work, load) in ALSO else [load]
                at = lambda p, way, r: times[p, way][min(r, len(times[p, way]) - 1)]
                best = [min(at(p, way, r) for p in peers for way in ways) for r in range(self.options.rounds)]
                return statistics.median(b / o for b, o in zip(best, times[OURS, load]))

            print(f"{load}: " + ", ".join(f"{name} takes {ratio([name]):.2f} of our time" for name in names[1:]))
            for bar, peers in BARS.get((work, load), []):
                there = [p for p in peers if p in names]
                if there:
                    met = ratio(there)
                    self.verdicts.append(f"{'met' if met >= bar else 'MISSED'}: {work}, {load}: {met:.2f} of the best of "
                                         f"{', '.join(there)}, expected {bar}")  # fmt: skip
        sys.stdout.flush()


class Contender:
    def __init__(self, command):
        self.process = subprocess.Popen(list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        while (line := self.process.stdout.readline()) != "ready\n":
            if not line:
                raise SystemExit(f"{' '.join(map(str, command))}: ended with status {self.process.wait()}")

    def measure(self, load):
        """Milliseconds."""
        self.process.stdin.write(f"{load}\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def end(self):
        self.process.stdin.close()
        self.process.wait(60)


if __name__ == "__main__":
    main()
