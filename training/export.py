"""Write a trained model as a Hugging Face folder: bf16 weights, config.json, tokenizer.json, tokenizer_config.json.

Checks what it wrote: the folder loads through AutoModel without missing or unexpected tensors, and the tokenizer file alone
encodes as transformers' tokenizer does.
"""
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from tokenizer import hugging_face_config

PROBES = ["Ensure S3 buckets block public access.", "AC-2(1) Account Management | Automated", "naïve — Ünïcode №5, 日本語", "a" * 900, ""]


def config_of(model, architecture):
    """The model's config as written in config.json, less what the tooling adds."""
    config = model.config.to_dict()
    for key in ("_name_or_path", "transformers_version", "torch_dtype", "problem_type"):
        config.pop(key, None)
    if architecture == "Qwen3Model":
        config["rope_theta"] = config["rope_parameters"]["rope_theta"]
    else:
        config["global_rope_theta"] = config["rope_parameters"]["full_attention"]["rope_theta"]
        config["local_rope_theta"] = config["rope_parameters"]["sliding_attention"]["rope_theta"]
    return {**config, "architectures": [architecture], "dtype": "bfloat16"}


def write(folder, kind, student):
    """kind: 'embedder' or 'reranker'."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.to(torch.bfloat16).contiguous() for k, v in student.model.state_dict().items()}
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    architecture = "Qwen3Model" if kind == "embedder" else "ModernBertForSequenceClassification"
    dump(folder / "config.json", config_of(student.model, architecture))
    dump(folder / "tokenizer_config.json", hugging_face_config(kind))
    tokenizer = Tokenizer.from_str(student.tokenizer.to_str())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=False), encoding="utf-8")
    check(folder, kind)


def dump(path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")


def check(folder, kind):
    loader = AutoModel if kind == "embedder" else AutoModelForSequenceClassification
    model, info = loader.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    wrong = {k: v for k, v in info.items() if v}
    if wrong:
        raise SystemExit(f"{folder}: {wrong}")
    alone, through = Tokenizer.from_file(str(folder / "tokenizer.json")), AutoTokenizer.from_pretrained(folder)
    for text in PROBES:
        if alone.encode(text).ids != through(text)["input_ids"]:
            raise SystemExit(f"{folder}: tokenizer.json and transformers differ on {text!r}")
        if kind == "reranker" and alone.encode(text, PROBES[0]).ids != through(text, PROBES[0])["input_ids"]:
            raise SystemExit(f"{folder}: tokenizer.json and transformers differ on the pair of {text!r}")
    size = sum(p.stat().st_size for p in folder.iterdir())
    print(f"{folder.name}: {sum(p.numel() for p in model.parameters()):,} parameters, {size / 1e6:.1f} MB", flush=True)
