#!/usr/bin/env python3
"""Makes the golden files of this folder: small random models and what `transformers` computes with them.

    pip install -r requirements.txt
    python make.py                 # writes every case, tokenizers/ and the tables in MISTAKES.md
    python make.py --only NAME     # one case, nothing else

Random weights tell right from wrong only if they are scaled so that a mistake shows. This script therefore stops with
an assertion where two random texts come out alike, where the logits lie close together, where f32 rounding comes near
the tolerance, or where one of the mistakes in mistakes.py would pass. README.md describes the files.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import ModernBertConfig, Qwen3Config

import mistakes
import reference
import tokens

HERE = Path(__file__).resolve().parent
LENGTHS = [1, 2, 3, 17, 64, 65, 129, 300, 700]
TWINS = [17, 64, 65]  # lengths that come twice more, for batches of equal length
TOLERANCE = {"qwen3": 1e-4, "modernbert": 1e-3}
TORCH_DTYPE = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# Old form: what the hub's files of 2024 look like. New form: what transformers 5 writes.
QWEN3 = {
    "qwen3-gqa-f32": {
        "old": True, "dtype": "float32", "prefix": "", "shards": 1, "seed": 11,
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 24,
        "rms_norm_eps": 1e-6, "rope_theta": 1_000_000.0, "attention_bias": False, "vocab_size": 160,
    },
    "qwen3-mha-bf16": {
        "old": False, "dtype": "bfloat16", "prefix": "", "shards": 1, "seed": 12,
        "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2,
        "num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 16,
        "rms_norm_eps": 1e-3, "rope_theta": 10_000.0, "attention_bias": False, "vocab_size": 128,
    },
    "qwen3-sharded-f16": {
        "old": True, "dtype": "float16", "prefix": "model.", "shards": 3, "seed": 13,
        "hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 4,
        "num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 8,
        "rms_norm_eps": 1e-5, "rope_theta": 1_000_000.0, "attention_bias": False, "vocab_size": 150,
    },
    "qwen3-bias-f32": {
        "old": False, "dtype": "float32", "prefix": "model.", "shards": 1, "seed": 14,
        "hidden_size": 32, "intermediate_size": 72, "num_hidden_layers": 2,
        "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 16,
        "rms_norm_eps": 1e-6, "rope_theta": 500_000.0, "attention_bias": True, "vocab_size": 100,
    },
}  # fmt: skip
MODERNBERT = {
    "modernbert-cls-w16-f32": {
        "old": True, "dtype": "float32", "seed": 21, "local_attention": 16, "classifier_pooling": "cls",
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
        "thetas": (40_000.0, 2_000.0), "every": 3, "biases": False, "vocab_size": 160,
    },
    "modernbert-cls-w128-f32": {
        "old": True, "dtype": "float32", "seed": 22, "local_attention": 128, "classifier_pooling": "cls",
        "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 3,
        "thetas": (160_000.0, 10_000.0), "every": 3, "biases": False, "vocab_size": 128,
    },
    "modernbert-mean-bf16": {
        "old": False, "dtype": "bfloat16", "seed": 23, "local_attention": 16, "classifier_pooling": "mean",
        "hidden_size": 96, "intermediate_size": 80, "num_hidden_layers": 4, "num_attention_heads": 6,
        "thetas": (80_000.0, 5_000.0), "every": 2, "biases": False, "vocab_size": 140,
    },
    "modernbert-biases-f32": {
        "old": False, "dtype": "float32", "seed": 24, "local_attention": 32, "classifier_pooling": "mean",
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
        "thetas": (160_000.0, 10_000.0), "every": 3, "biases": True, "vocab_size": 120,
    },
}  # fmt: skip


def qwen3_config(case):
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
             "head_dim", "rms_norm_eps", "attention_bias", "vocab_size")  # fmt: skip
    sizes = {name: case[name] for name in names}
    architecture = "Qwen3ForCausalLM" if case["prefix"] else "Qwen3Model"
    if case["old"]:
        return {
            "architectures": [architecture], "model_type": "qwen3", "attention_dropout": 0.0,
            "bos_token_id": 0, "eos_token_id": 2, "hidden_act": "silu", "initializer_range": 0.02,
            "max_position_embeddings": 1024, "max_window_layers": case["num_hidden_layers"], "rope_scaling": None,
            "rope_theta": case["rope_theta"], "sliding_window": None, "tie_word_embeddings": True,
            "torch_dtype": case["dtype"], "transformers_version": "4.51.2", "use_cache": True,
            "use_sliding_window": False, **sizes,
        }  # fmt: skip
    config = Qwen3Config(
        **sizes, max_position_embeddings=1024, bos_token_id=0, eos_token_id=2, architectures=[architecture],
        rope_parameters={"rope_theta": case["rope_theta"], "rope_type": "default"}, dtype=case["dtype"],
        max_window_layers=case["num_hidden_layers"],
    )  # fmt: skip
    return as_saved(config)


def modernbert_config(case):
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size",
             "local_attention", "classifier_pooling")  # fmt: skip
    sizes = {name: case[name] for name in names}
    ids = {"bos_token_id": 1, "cls_token_id": 1, "eos_token_id": 2, "sep_token_id": 2, "pad_token_id": 0}
    biases = {n: case["biases"] for n in ("norm_bias", "attention_bias", "mlp_bias", "classifier_bias")}
    labels = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    full, sliding = case["thetas"]
    if case["old"]:
        return {
            "architectures": ["ModernBertForSequenceClassification"], "model_type": "modernbert",
            "attention_dropout": 0.0, "classifier_activation": "gelu", "classifier_dropout": 0.0,
            "decoder_bias": True, "deterministic_flash_attn": False, "embedding_dropout": 0.0,
            "global_attn_every_n_layers": case["every"], "global_rope_theta": full, "gradient_checkpointing": False,
            "hidden_activation": "gelu", "initializer_cutoff_factor": 2.0, "initializer_range": 0.02,
            "layer_norm_eps": 1e-5, "local_rope_theta": sliding, "max_position_embeddings": 1024,
            "mlp_dropout": 0.0, "norm_eps": 1e-5, "position_embedding_type": "absolute",
            "sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid", "version": "4.1.0"},
            "tie_word_embeddings": True, "torch_dtype": case["dtype"], "transformers_version": "4.48.0",
            **ids, **biases, **labels, **sizes,
        }  # fmt: skip
    config = ModernBertConfig(
        **sizes, **ids, **biases, max_position_embeddings=1024, num_labels=1, dtype=case["dtype"],
        architectures=["ModernBertForSequenceClassification"],
        layer_types=["sliding_attention" if i % case["every"] else "full_attention"
                     for i in range(case["num_hidden_layers"])],
        rope_parameters={"full_attention": {"rope_theta": full, "rope_type": "default"},
                         "sliding_attention": {"rope_theta": sliding, "rope_type": "default"}},
    )  # fmt: skip
    return as_saved(config)


def as_saved(config):
    """What `save_pretrained` writes."""
    return json.loads(config.to_json_string())


# --- weights ----------------------------------------------------------------------------------------------------------


class Draw:
    """Random tensors: gains are relative to 1/sqrt(fan in), which keeps the size of what passes through."""

    def __init__(self, seed):
        self.random = np.random.default_rng(seed)

    def matrix(self, rows, columns, gain=1.0):
        return self.random.standard_normal((rows, columns)) * (gain / np.sqrt(columns))

    def vector(self, width, low, high):
        return self.random.uniform(low, high, width)

    def bias(self, width, size=0.3):
        return self.random.standard_normal(width) * size


def qwen3_weights(case):
    draw = Draw(case["seed"])
    hidden, inner, dim = case["hidden_size"], case["intermediate_size"], case["head_dim"]
    widths = {
        "q_proj": case["num_attention_heads"] * dim,
        "k_proj": case["num_key_value_heads"] * dim,
        "v_proj": case["num_key_value_heads"] * dim,
    }
    # Small embeddings, so that eps counts and that the last token, the same in all texts, does not drown the others.
    weights = {"embed_tokens.weight": draw.random.standard_normal((case["vocab_size"], hidden)) * 0.1}
    for i in range(case["num_hidden_layers"]):
        at = f"layers.{i}."
        weights[at + "input_layernorm.weight"] = draw.vector(hidden, 0.5, 1.5)
        for name, width in widths.items():
            weights[at + f"self_attn.{name}.weight"] = draw.matrix(width, hidden)
            if case["attention_bias"]:
                weights[at + f"self_attn.{name}.bias"] = draw.bias(width)
        weights[at + "self_attn.o_proj.weight"] = draw.matrix(hidden, widths["q_proj"], 2.0)
        if case["attention_bias"]:
            weights[at + "self_attn.o_proj.bias"] = draw.bias(hidden)
        # Attention that picks a few tokens: even weights over 700 tokens would make all long texts alike.
        weights[at + "self_attn.q_norm.weight"] = draw.vector(dim, 0.8, 2.4)
        weights[at + "self_attn.k_norm.weight"] = draw.vector(dim, 0.8, 2.4)
        weights[at + "post_attention_layernorm.weight"] = draw.vector(hidden, 0.5, 1.5)
        weights[at + "mlp.gate_proj.weight"] = draw.matrix(inner, hidden, 1.5)
        weights[at + "mlp.up_proj.weight"] = draw.matrix(inner, hidden)
        weights[at + "mlp.down_proj.weight"] = draw.matrix(hidden, inner)
    weights["norm.weight"] = draw.vector(hidden, 0.4, 2.0)
    return {case["prefix"] + name: value for name, value in weights.items()}


def modernbert_weights(case):
    draw = Draw(case["seed"])
    hidden, inner, biases = case["hidden_size"], case["intermediate_size"], case["biases"]
    weights = {"model.embeddings.tok_embeddings.weight": draw.random.standard_normal((case["vocab_size"], hidden)) * 0.03}

    def norm(name):
        weights[name + ".weight"] = draw.vector(hidden, 0.5, 1.5)
        if biases:
            weights[name + ".bias"] = draw.bias(hidden)

    def linear(name, rows, columns, gain=1.0, bias=biases):
        weights[name + ".weight"] = draw.matrix(rows, columns, gain)
        if bias:
            weights[name + ".bias"] = draw.bias(rows)

    norm("model.embeddings.norm")
    for i in range(case["num_hidden_layers"]):
        at = f"model.layers.{i}."
        if i > 0:
            norm(at + "attn_norm")
        linear(at + "attn.Wqkv", 3 * hidden, hidden, 1.1)
        linear(at + "attn.Wo", hidden, hidden, 0.8)
        norm(at + "mlp_norm")
        linear(at + "mlp.Wi", 2 * inner, hidden, 2.0)
        linear(at + "mlp.Wo", hidden, inner, 1.2)
    norm("model.final_norm")
    linear("head.dense", hidden, hidden, 2.0)
    norm("head.norm")
    # Large enough that the small difference between the two GELUs reaches the logit.
    linear("classifier", 1, hidden, 24.0, bias=True)
    if biases:  # The two GELUs differ most, for their size, left of -1.
        weights["head.dense.bias"] -= 2.0
        for i in range(case["num_hidden_layers"]):
            weights[f"model.layers.{i}.mlp.Wi.bias"][:inner] -= 2.0
    return weights


def write_weights(case, weights, folder):
    dtype = TORCH_DTYPE[case["dtype"]]
    tensors = {name: torch.tensor(value, dtype=torch.float32).to(dtype) for name, value in weights.items()}
    shards = case.get("shards", 1)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    index, parts, filled = {}, [{} for _ in range(shards)], 0
    for name, tensor in tensors.items():
        part = min(filled * shards // total, shards - 1)
        parts[part][name] = tensor
        index[name] = f"model-{part + 1:05}-of-{shards:05}.safetensors"
        filled += tensor.numel() * tensor.element_size()
    for part, content in enumerate(parts):
        save_file(content, folder / f"model-{part + 1:05}-of-{shards:05}.safetensors", metadata={"format": "pt"})
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": index})


# --- texts ------------------------------------------------------------------------------------------------------------


def sequences_of(kind, case):
    """Random token ids. All texts of a family end alike, as real ones do: the difference has to come through attention.

    Qwen3: any ids, then 2. ModernBERT: 1, any ids, 2 in the middle, any ids, 2.
    """
    random = np.random.default_rng(case["seed"] + 1000)
    sequences = []
    for length in sorted(LENGTHS + TWINS * 2):
        ids = random.integers(3, case["vocab_size"], length).tolist()
        ids[-1] = 2
        if kind == "modernbert" and length > 1:
            ids[0] = 1
            if length >= 5:
                ids[length // 3] = 2
        sequences.append(ids)
    return sequences


def batches_of(sequences):
    """Ragged both ways, equal-length, each alone, one sequence twice, and all at once."""
    count = len(sequences)
    same = [[i for i, s in enumerate(sequences) if len(s) == length] for length in TWINS]
    ragged = [list(range(count)), list(range(count))[::-1], [count - 1, 0, 5, 1, count - 2, 2, 8], [0, 1, 2]]
    return [[i] for i in range(count)] + same + ragged + [[4, 4, 3, 4]]


# --- a case -----------------------------------------------------------------------------------------------------------


def make(kind, name, case):
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    config = {"qwen3": qwen3_config, "modernbert": modernbert_config}[kind](case)
    weights = {"qwen3": qwen3_weights, "modernbert": modernbert_weights}[kind](case)
    write_json(folder / "config.json", config)
    write_weights(case, weights, folder)

    tolerance = TOLERANCE[kind]
    sequences = sequences_of(kind, case)
    model = reference.load(kind, folder)
    check_rope(case, model.config.rope_parameters)
    right = reference.alone(kind, model, sequences)
    double = reference.alone(kind, reference.load(kind, folder, dtype=torch.float64), sequences)
    agreement = {
        "f64": mistakes.distance(double, right),
        "sdpa": mistakes.distance(reference.alone(kind, reference.load(kind, folder, "sdpa"), sequences), right),
        "padded batch": mistakes.distance(reference.padded(kind, model, sequences), right),
    }
    for other, found in agreement.items():
        assert found < tolerance / 10, f"{name}: {other} is {found:.1e} from f32 alone: rounding eats the tolerance"

    if kind == "qwen3":
        cosines = right @ right.T - 2 * np.eye(len(right))
        spread = cosines.max()
        assert spread < 0.9, f"{name}: two texts have cosine {spread:.3f}"
    else:
        spread = right.max() - right.min()
        assert spread > 2, f"{name}: logits span only {spread:.3f}"

    table = []
    for mistake, compute in getattr(mistakes, kind)(model):
        moved = mistakes.distance(compute(sequences), right)
        table.append((mistake, moved))
        print(f"  {moved:10.2e}  {mistake}", flush=True)
        if mistake.startswith("(none)"):
            assert moved < tolerance / 10, f"{name}: {mistake}: {moved:.1e}, expected none"
        else:
            assert moved > 5 * tolerance, f"{name}: '{mistake}' moves the output by {moved:.1e} only"

    write_golden(folder / "golden.json", kind, sequences, right)
    size = sum(f.stat().st_size for f in folder.iterdir())
    print(f"{name}: {size / 1e3:.0f} kB, spread {spread:.3f}, agreement {agreement}", flush=True)
    return {"name": name, "kind": kind, "size": size, "spread": spread, "agreement": agreement, "table": table}


def check_rope(case, read):
    """That transformers read the thetas out of the old form as they were meant."""
    if "thetas" in case:
        assert (read["full_attention"]["rope_theta"], read["sliding_attention"]["rope_theta"]) == case["thetas"], read
    else:
        assert read["rope_theta"] == case["rope_theta"], read


def check_mistakes(results):
    """Each case shows each mistake (asserted in `make`); at least one case of its family shows it plainly."""
    for kind, tolerance in TOLERANCE.items():
        tables = [dict(r["table"]) for r in results if r["kind"] == kind]
        for mistake in {name for table in tables for name in table if not name.startswith("(none)")}:
            plainest = max(table.get(mistake, 0.0) for table in tables)
            assert plainest > 10 * tolerance, f"{kind}: '{mistake}' moves the output by {plainest:.1e} at most"


def shortest(value):
    """The shortest decimal that reads back as the same f32."""
    return float(str(np.float32(value)))


def write_golden(path, kind, sequences, right):
    def lines(rows):
        return "[\n    " + ",\n    ".join(json.dumps(row) for row in rows) + "\n  ]"

    if kind == "qwen3":
        expected = '"vectors": ' + lines([[shortest(x) for x in row] for row in right])
    else:
        expected = '"logits": ' + json.dumps([shortest(x) for x in right])
    path.write_text(
        "{\n"
        f'  "kind": "{kind}",\n'
        f'  "sequences": {lines(sequences)},\n'
        f"  {expected},\n"
        f'  "batches": {lines(batches_of(sequences))}\n'
        "}\n"
    )


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def write_tables(results):
    out = ["# How far each mistake moves the output", "", "Written by make.py.", ""]
    out += ["| case | size | texts alike at most, or logits span | f64 | sdpa | padded batch |", "|---|---|---|---|---|---|"]
    for r in results:
        a = r["agreement"]
        spread = f"cosine {r['spread']:.2f}" if r["kind"] == "qwen3" else f"{r['spread']:.1f}"
        out.append(
            f"| {r['name']} | {r['size'] / 1e3:.0f} kB | {spread} "
            f"| {a['f64']:.0e} | {a['sdpa']:.0e} | {a['padded batch']:.0e} |"
        )
    out += ["", "The last three: how far the same model is from the recorded f32 answer when computed that way.", ""]
    for kind, unit in (("qwen3", "component of a unit vector"), ("modernbert", "logit")):
        cases = [r for r in results if r["kind"] == kind]
        tolerance = TOLERANCE[kind]
        out += [f"## {kind}", "", f"Largest difference in any {unit}; the tolerance is {tolerance:.0e}.", ""]
        out.append("| mistake | " + " | ".join(r["name"].removeprefix(kind + "-") for r in cases) + " |")
        out.append("|---|" + "---|" * len(cases))
        names = list(dict.fromkeys(name for r in cases for name, _ in r["table"]))
        names.sort(key=lambda n: not n.startswith("(none)"))
        for name in names:
            cells = [dict(r["table"]).get(name) for r in cases]
            out.append(f"| {name} | " + " | ".join("" if c is None else f"{c:.2g}" for c in cells) + " |")
        out.append("")
    (HERE / "MISTAKES.md").write_text("\n".join(out))


def main():
    arguments = argparse.ArgumentParser(description="Makes the golden files of this folder.")
    arguments.add_argument("--only", metavar="NAME", help="make this case alone, and leave the tables as they are")
    only = arguments.parse_args().only
    cases = [("qwen3", *item) for item in QWEN3.items()] + [("modernbert", *item) for item in MODERNBERT.items()]
    if only and only not in [name for _, name, _ in cases]:
        sys.exit(f"no case {only}; there are: " + ", ".join(name for _, name, _ in cases))
    results = [make(kind, name, case) for kind, name, case in cases if only in (None, name)]
    if only is None:
        check_mistakes(results)
        tokens.make(HERE / "tokenizers")
        write_tables(results)


if __name__ == "__main__":
    main()
