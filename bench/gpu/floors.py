"""What a device can do at most, measured by PyTorch, and how long a piece of work takes then at least."""

import gc
import time

import shapes
import torch

PRODUCT_SIDE = {"full": 8192, "tiny": 512}
COPY_BYTES = {"full": 4 << 30, "tiny": 32 << 20}


def synchronize(device):
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def release():
    """Gives memory that PyTorch keeps for later back to the device, which the binary needs next."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def median_s(work, device, repetitions, warm_ups=2):
    times = []
    for repetition in range(warm_ups + repetitions):
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        if repetition >= warm_ups:
            times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


def measure(shape, device):
    """FLOP/s of a square product in bf16 of random data, and bytes/s read and written by a copy."""
    side = PRODUCT_SIDE[shape]
    a, b = (torch.randn(side, side, device=device).to(torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    rate = 2 * side**3 / median_s(lambda: torch.mm(a, b, out=out), device, 20)
    source = torch.zeros(COPY_BYTES[shape] // 2, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    bandwidth = 2 * source.numel() / median_s(lambda: target.copy_(source), device, 20)
    return rate, bandwidth


def model_s(config, batches, rate, bandwidth):
    """Lower bound of a model's time for batches of given lengths: its products and attention at the matrix rate, or its
    weights read once a batch, whichever takes longer."""
    parameters = shapes.multiplied_parameters(config)
    total = 0.0
    for lengths in batches:
        flops = 2 * parameters * sum(lengths)
        flops += sum(attention_flops(config, layer, lengths) for layer in range(config["num_hidden_layers"]))
        total += max(flops / rate, 2 * parameters / bandwidth)
    return total


def attention_flops(config, layer, lengths):
    """Two products a pair of query and key that see each other."""
    if shapes.is_embedder(config):
        columns = config["num_attention_heads"] * config["head_dim"]
        pairs = sum(length * (length + 1) // 2 for length in lengths)
    else:
        columns = config["hidden_size"]
        window = config["local_attention"] + 1
        local = layer % config["global_attn_every_n_layers"] != 0
        pairs = sum(length * (min(length, window) if local else length) for length in lengths)
    return 4 * columns * pairs
