"""Model folders with random weights in bf16, sharded as large models are."""

import json
from pathlib import Path

import shapes
import torch
from safetensors.torch import save_file

LAYERS_A_SHARD = 6
SEED = 20250


def make(config, folder, device):
    """Makes the folder unless it is there and whole. The file that says so is written last."""
    folder = Path(folder)
    if (folder / "config.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator(device=device).manual_seed(SEED)
    layers = range(config["num_hidden_layers"])
    shards = [shapes.outer_tensors(config)]
    for first in range(0, len(layers), LAYERS_A_SHARD):
        shards.append({})
        for layer in layers[first : first + LAYERS_A_SHARD]:
            shards[-1] |= shapes.layer_tensors(config, layer)
    places, bytes_total = {}, 0
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {tensor: fill(tensor, shape, generator, device) for tensor, shape in shard.items()}
        save_file({tensor: value.cpu() for tensor, value in tensors.items()}, folder / name, {"format": "pt"})
        places |= dict.fromkeys(shard, name)
        bytes_total += sum(value.numel() * 2 for value in tensors.values())
    index = {"metadata": {"total_size": bytes_total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    return folder


def fill(name, shape, generator, device):
    if len(shape) == 1 and "bias" in name:
        return torch.zeros(shape, dtype=torch.bfloat16, device=device)
    values = torch.randn(shape, generator=generator, device=device)
    if len(shape) == 1:
        values = 1 + 0.1 * values
    elif "embed" in name:
        values *= 0.02
    else:
        values *= shape[1] ** -0.5
    return values.to(torch.bfloat16)
