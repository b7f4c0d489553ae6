#!/usr/bin/env python3
"""Makes a folder of models whose embedder is as wide as Qwen3-Embedding-8B and otherwise as small as it can be.

    bench/wide_model.py FOLDER
    MODEL_BUCKET=FOLDER RETRIEVER_MODEL_PATH=wide-embedder RERANKER_MODEL_PATH=reranker target/release/nexus serve

What an answer from the cache costs depends on the width of the vector and not on the model behind it. The weights are
random; the tokenizer and the reranker are the built-in models' own.
Deliberately absent: any sense in the vectors.
"""

import json
import random
import shutil
import struct
import sys
from pathlib import Path

MODELS = Path(__file__).resolve().parent.parent / "models"
HIDDEN, INTERMEDIATE, HEADS, KEY_VALUE_HEADS, HEAD_DIM = 4096, 64, 32, 8, 64


def shapes(vocabulary):
    """Names and shapes of the tensors of one Qwen3 layer and what is around it."""
    query, key_value = HEADS * HEAD_DIM, KEY_VALUE_HEADS * HEAD_DIM
    layer = "model.layers.0."
    return {
        "model.embed_tokens.weight": [vocabulary, HIDDEN],
        layer + "input_layernorm.weight": [HIDDEN],
        layer + "self_attn.q_proj.weight": [query, HIDDEN],
        layer + "self_attn.k_proj.weight": [key_value, HIDDEN],
        layer + "self_attn.v_proj.weight": [key_value, HIDDEN],
        layer + "self_attn.o_proj.weight": [HIDDEN, query],
        layer + "self_attn.q_norm.weight": [HEAD_DIM],
        layer + "self_attn.k_norm.weight": [HEAD_DIM],
        layer + "post_attention_layernorm.weight": [HIDDEN],
        layer + "mlp.gate_proj.weight": [INTERMEDIATE, HIDDEN],
        layer + "mlp.up_proj.weight": [INTERMEDIATE, HIDDEN],
        layer + "mlp.down_proj.weight": [HIDDEN, INTERMEDIATE],
        "model.norm.weight": [HIDDEN],
    }


def bf16(value):
    return struct.pack("<f", value)[2:]


def write_safetensors(path, tensors):
    """Norms are ones. The rest is one random block over and over: no figure depends on what is in it."""
    rng = random.Random(0)
    # An odd number of values, so that rows of a power of two are not all alike.
    block = b"".join(bf16(rng.gauss(0, 0.02)) for _ in range(65_537))
    header, offset = {}, 0
    for name, shape in tensors.items():
        end = offset + 2 * shape[0] * (shape[1] if len(shape) == 2 else 1)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for entry in header.values():
            begin, end = entry["data_offsets"]
            values = bf16(1.0) * entry["shape"][0] if len(entry["shape"]) == 1 else block
            count, rest = divmod(end - begin, len(values))
            file.write(values * count + values[:rest])


def make(folder):
    """Writes `wide-embedder` and `reranker` into `folder`; about 130 MB."""
    embedder = Path(folder) / "wide-embedder"
    embedder.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODELS / "embedder" / name, embedder)
    config = json.loads((MODELS / "embedder" / "config.json").read_text())
    config |= {
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KEY_VALUE_HEADS,
        "head_dim": HEAD_DIM,
        "num_hidden_layers": 1,
        "layer_types": ["full_attention"],
    }
    (embedder / "config.json").write_text(json.dumps(config, indent=2))
    write_safetensors(embedder / "model.safetensors", shapes(config["vocab_size"]))
    shutil.copytree(MODELS / "reranker", Path(folder) / "reranker")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    make(sys.argv[1])
