"""How fast: ours, PyTorch's, and the floor. Prints one Markdown table."""

import platform
import random

import floors
import reference
import shapes
import torch
import weights

REPETITIONS = {"full": 10, "tiny": 3}
# Sequences and tokens each, and how many go at once: in PyTorch by the same number.
EMBED = {
    "full": {"one text of 64 tokens": (1, 64, 1), "4,096 packed tokens": (64, 64, 64),
             "32,768 packed tokens": (512, 64, 512)},
    "tiny": {"one text of 64 tokens": (1, 64, 1), "512 packed tokens": (8, 64, 8)},
}  # fmt: skip
RERANK = {
    "full": {"rerank 50 pairs of 128": (50, 128, 50), "rerank 100 pairs of 128": (100, 128, 100)},
    "tiny": {"rerank 4 pairs of 128": (4, 128, 4)},
}
COSINE_ROWS = {"full": [10_000, 1_000_000], "tiny": [1_000]}
COSINE_COLUMNS = {"full": 4096, "tiny": 256}
TOP = 50
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


def table(program, shape, device, work):
    rate, bandwidth = floors.measure(shape, device)
    floors.release()
    named = torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.processor() or "cpu"
    print(f"\n{named}, PyTorch {torch.__version__}: {rate / 1e12:.3g} TFLOP/s in bf16 "
          f"({floors.PRODUCT_SIDE[shape]} cubed), {bandwidth / 1e9:.4g} GB/s copied (read and written)\n")  # fmt: skip
    print("| what | ours, ms | ours, tokens/s | PyTorch, ms | PyTorch / ours | floor, ms | share of the floor |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for name, config in shapes.SHAPES[shape].items():
        folder = weights.make(config, work / name, device)
        floors.release()
        loads = EMBED[shape] if shapes.is_embedder(config) else RERANK[shape]
        sequences, batches = draw(config, loads)
        ours = program.times(folder, sequences, batches, REPETITIONS[shape])
        model = reference.load(config, folder, torch.bfloat16, device)
        for load, chosen in batches.items():
            texts = [[sequences[i] for i in batch] for batch in chosen]
            theirs = floors.median_s(
                lambda: [reference.forward(model, batch).cpu() for batch in texts], device, REPETITIONS[shape]
            )
            floor = floors.model_s(config, [[len(t) for t in batch] for batch in texts], rate, bandwidth)
            ms = ours[load]["median_ms"]
            row(f"{name}, {load}", ms, ours[load]["tokens"], theirs * 1e3, floor * 1e3)
        del model
        floors.release()
    for count in COSINE_ROWS[shape]:
        for dtype in DTYPES:
            cosine(program, count, COSINE_COLUMNS[shape], dtype, device, bandwidth, REPETITIONS[shape])


def row(what, ours_ms, tokens, theirs_ms, floor_ms):
    print(f"| {what} | {ours_ms:.3g} | {tokens / ours_ms * 1e3:,.0f} | {theirs_ms:.3g} | {theirs_ms / ours_ms:.2f} | "
          f"{floor_ms:.3g} | {floor_ms / ours_ms:.0%} |", flush=True)  # fmt: skip


def draw(config, loads):
    """Sequences for all loads, and each load's batches of indices."""
    draw = random.Random(11)
    sequences, batches = [], {}
    for name, (count, tokens, at_once) in loads.items():
        first = len(sequences)
        sequences += [[draw.randint(3, config["vocab_size"] - 1) for _ in range(tokens)] for _ in range(count)]
        batches[name] = [list(range(i, min(i + at_once, first + count))) for i in range(first, first + count, at_once)]
    return sequences, batches


def cosine(program, count, columns, dtype, device, bandwidth, repetitions):
    """Two rows for a matrix: one source and eight. Ours is compared with the CPU's ranking by the binary itself."""
    floor_ms = count * columns * DTYPES[dtype].itemsize / bandwidth * 1e3
    for sources in (1, 8):
        what = f"cosine top-{TOP} over {count:,} x {columns}, {dtype}, sources: {sources}"
        ours = program.search(count, columns, dtype, sources, TOP, repetitions)
        theirs_ms = pytorch_cosine_ms(count, columns, DTYPES[dtype], sources, device, repetitions)
        floors.release()
        refused = ours.get("device_refused")
        ms = ours["cpu_median_ms"] if device == "cpu" else ours.get("device_median_ms")
        share = f"{theirs_ms / ms:.2f} | {floor_ms:.3g} | {floor_ms / ms:.0%}" if ms else f"| {floor_ms:.3g} |"
        print(f"| {what}; our CPU {ours['cpu_median_ms']:.3g} ms | {f'{ms:.3g}' if ms else refused} | | "
              f"{theirs_ms:.3g} | {share} |", flush=True)  # fmt: skip


def pytorch_cosine_ms(count, columns, dtype, sources, device, repetitions):
    rows = torch.empty(count, columns, dtype=dtype, device=device)
    for part in rows.split(50_000):
        part.copy_(torch.nn.functional.normalize(torch.randn(part.shape, device=device), dim=1))
    own = [(2 * n + 1) * count // (2 * sources) for n in range(sources)]
    asked = rows[own].T.contiguous()
    best = (rows @ asked).topk(TOP, dim=0).indices
    assert all(row in best[:, n].tolist() for n, row in enumerate(own))
    return floors.median_s(lambda: (rows @ asked).topk(TOP, dim=0).indices.cpu(), device, repetitions) * 1e3
