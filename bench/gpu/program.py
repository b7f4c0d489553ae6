"""The binary under test, started and read."""

import json
import subprocess

import numpy


class Program:
    def __init__(self, binary, device, folder):
        self.binary, self.device, self.folder = binary, device, folder

    def bench(self, *arguments):
        """Standard output of `nexus bench`; ends the run with what it said where it fails."""
        command = [self.binary, "bench", "--device", self.device, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}: status {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def rows(self, model, sequences, batches):
        """The model's rows for each batch, a list of arrays."""
        tokens, out = self.folder / "tokens.json", self.folder / "rows.npy"
        tokens.write_text(json.dumps({"sequences": sequences, "batches": batches}))
        self.bench("run", model, "--tokens", tokens, "--out", out)
        rows = numpy.load(out)
        assert len(rows) == sum(map(len, batches)), (rows.shape, batches)
        return numpy.split(rows, numpy.cumsum([len(batch) for batch in batches])[:-1])

    def times(self, model, sequences, loads, repetitions):
        """By name of load, what `nexus bench time` prints."""
        tokens = self.folder / "loads.json"
        loads = [{"name": name, "batches": batches} for name, batches in loads.items()]
        tokens.write_text(json.dumps({"sequences": sequences, "loads": loads}))
        printed = self.bench("time", model, "--tokens", tokens, "--repetitions", repetitions)
        return {line["name"]: line for line in map(json.loads, printed.splitlines())}

    def search(self, rows, columns, dtype, sources, top, repetitions):
        """What `nexus bench search` prints."""
        sizes = {"rows": rows, "columns": columns, "dtype": dtype, "sources": sources, "top": top}
        sizes["repetitions"] = repetitions
        options = [word for name, value in sizes.items() for word in (f"--{name}", value)]
        return json.loads(self.bench("search", *options))
