"""A model folder of Qwen3's architecture as a GGUF file, for llama.cpp: the same weights, and tokens without a meaning."""

import json

import gguf
import numpy
from gguf import GGMLQuantizationType as Type
from safetensors import safe_open

NAMES = {
    "embed_tokens": "token_embd", "norm": "output_norm", "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip


def write(folder, quantization):
    """The file; made where it is not there."""
    path = folder / f"model-{quantization}.gguf"
    if path.exists():
        return path
    config = json.loads((folder / "config.json").read_text())
    aside = path.with_suffix(".partial")
    writer = gguf.GGUFWriter(aside, "qwen3")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_pooling_type(gguf.PoolingType.LAST)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([f"w{i}" for i in range(config["vocab_size"])])
    writer.add_token_types([gguf.TokenType.NORMAL] * config["vocab_size"])
    writer.add_token_merges(["w 1"])
    writer.add_eos_token_id(config["eos_token_id"])
    for shard in sorted(folder.glob("*.safetensors")):
        with safe_open(shard, "pt") as file:
            for name in file.keys():
                add(writer, name, file.get_tensor(name).float().numpy(), quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    aside.rename(path)
    return path


def add(writer, name, values, quantization):
    parts = name.removeprefix("model.").removesuffix(".weight").split(".")
    layer = f"blk.{parts[1]}." if parts[0] == "layers" else ""
    name = f"{layer}{NAMES['.'.join(parts[2:] if layer else parts)]}.weight"
    if values.ndim == 1:
        writer.add_tensor(name, values)
    elif quantization == "F16":
        writer.add_tensor(name, values.astype(numpy.float16))
    else:
        kind = Type[quantization]
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
