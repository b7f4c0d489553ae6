"""The parts of bench/gpu.sh that need PyTorch: `main.py models|timings BINARY --device D --shape S --work FOLDER`."""

import argparse
from pathlib import Path

import models
import serving
import timings
import torch
from program import Program


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=["models", "timings"])
    parser.add_argument("binary")
    parser.add_argument("--device", required=True)
    parser.add_argument("--shape", choices=["full", "tiny"], required=True)
    parser.add_argument("--work", type=Path, required=True)
    given = parser.parse_args()
    if given.device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit(f"--device {given.device}: PyTorch {torch.__version__} finds no GPU here")
    # Products of f32 are references here: in full, and not in TF32.
    torch.backends.cuda.matmul.allow_tf32 = False
    program = Program(given.binary, given.device, given.work)
    if given.part == "models":
        wrong = models.check(program, given.shape, given.device, given.work)
        serving.outlive(program, given.shape, given.device, given.work)
    else:
        timings.table(program, given.shape, given.device, given.work)
        wrong = serving.measure(program, given.shape, given.device, given.work)
    print(f"{given.part}: {'passed' if not wrong else 'FAILED'}")
    if wrong:
        raise SystemExit("\n".join(wrong))


main()
