"""Full-size models against PyTorch in f32 and in bf16; see README.md for what is asked for."""

import random

import floors
import numpy
import reference
import shapes
import torch
import weights

COSINE_MIN = 0.999
# A text may by chance be twice as far as PyTorch's; the mean over all may be no farther, but for f32's own rounding.
TEXT_ALLOWANCE = 2.0
F32_ROUNDING = 1e-5
LENGTHS = {"full": [1, 2, 7, 16, 33, 64, 65, 127, 200, 300], "tiny": [1, 2, 7, 33, 64, 140, 200]}


def check(program, shape, device, work):
    """Prints a line a model. Returns what is wrong."""
    wrong = []
    for name, config in shapes.SHAPES[shape].items():
        folder = weights.make(config, work / name, device)
        floors.release()
        draw = random.Random(7)
        top = config["vocab_size"] - 1
        texts = [[draw.randint(3, top) for _ in range(length)] for length in LENGTHS[shape]]
        count = len(texts)
        alone = [[i] for i in range(count)]
        mixes = [list(range(count)), draw.sample(range(count), count), draw.sample(range(count), count // 2)]
        rows = program.rows(folder, texts, alone + mixes)
        ours = numpy.concatenate(rows[:count]).astype("float64")

        exact = run(config, folder, torch.float32, device_for_f32(config, device), texts)
        # The rival computes in bf16 even where ours computes in f32: the comparison is then an easy one, and said so.
        rival = run(config, folder, torch.bfloat16, device, texts)
        far, rival_far = distance(ours, exact), distance(rival, exact)
        mixed = max(float(distance(row, ours[mix]).max()) for row, mix in zip(rows[count:], mixes))

        scale = 1.0 if shapes.is_embedder(config) else float(numpy.sqrt((exact**2).mean()))
        what = "1 - |e|^2/2 is the cosine" if shapes.is_embedder(config) else "absolute, of logits"
        print(f"{name}: distance to f32 ours {far.mean():.2e} (worst {far.max():.2e}), PyTorch bf16 "
              f"{rival_far.mean():.2e} (worst {rival_far.max():.2e}), in batches {mixed:.2e}; {what}, "
              f"scale {scale:.2g}", flush=True)  # fmt: skip
        # A distance e between unit vectors is a cosine of 1 - e^2/2. Logits have no such bar: bf16's own error is it.
        rounding = F32_ROUNDING * scale
        rival_worst = TEXT_ALLOWANCE * float(rival_far.max()) + rounding
        limit = (2 * (1 - COSINE_MIN)) ** 0.5 if shapes.is_embedder(config) else rival_worst
        claims = {
            f"every value is finite: {ours.shape}": bool(numpy.isfinite(ours).all()),
            f"no text farther than {limit:.2e} from f32": bool((far <= limit).all()),
            f"no text {TEXT_ALLOWANCE} times as far as PyTorch's worst": bool((far <= rival_worst).all()),
            "on average no farther than PyTorch": bool(far.mean() <= rival_far.mean() + rounding),
            f"alone and in batches within {limit:.2e}": mixed <= limit,
        }
        wrong += [f"{name}: not so: {claim}" for claim, holds in claims.items() if not holds]
    return wrong


def distance(rows, exact):
    """For each row: between unit vectors, or of logits."""
    if rows.shape[1] == 1:
        return numpy.abs(rows - exact)[:, 0]
    unit = [x / numpy.linalg.norm(x, axis=1, keepdims=True) for x in (rows.astype("float64"), exact)]
    return numpy.linalg.norm(unit[0] - unit[1], axis=1)


def run(config, folder, dtype, device, texts):
    model = reference.load(config, folder, dtype, device)
    rows = reference.alone(model, texts)
    del model
    floors.release()
    return rows


def device_for_f32(config, device):
    """The device where f32 fits with some room, else the CPU."""
    if not device.startswith("cuda"):
        return device
    bytes_needed = 4 * (shapes.multiplied_parameters(config) + config["vocab_size"] * config["hidden_size"])
    return device if torch.cuda.mem_get_info(device)[0] > 1.15 * bytes_needed else "cpu"
