"""Models by shape: what their configuration says, and how they are filled with random numbers.

Deliberately absent: trained weights. What is checked is arithmetic, and that needs numbers of the size that trained ones
have: norms around 1, projections that keep the size of what goes through them.
"""

QWEN3 = {
    "architectures": ["Qwen3Model"], "model_type": "qwen3", "attention_bias": False, "attention_dropout": 0.0,
    "head_dim": 128, "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 12288,
    "max_position_embeddings": 40960, "max_window_layers": 36, "num_attention_heads": 32, "num_hidden_layers": 36,
    "num_key_value_heads": 8, "rms_norm_eps": 1e-6, "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_cache": True, "use_sliding_window": False,
    "vocab_size": 151665, "bos_token_id": 151643, "eos_token_id": 151643,
}  # fmt: skip
MODERNBERT = {
    "architectures": ["ModernBertForSequenceClassification"], "model_type": "modernbert", "attention_bias": False,
    "attention_dropout": 0.0, "classifier_activation": "gelu", "classifier_bias": False, "classifier_dropout": 0.0,
    "classifier_pooling": "cls", "cls_token_id": 50281, "bos_token_id": 50281, "eos_token_id": 50282,
    "pad_token_id": 50283, "sep_token_id": 50282, "embedding_dropout": 0.0, "global_attn_every_n_layers": 3,
    "global_rope_theta": 160000.0, "local_attention": 128, "local_rope_theta": 10000.0, "hidden_activation": "gelu",
    "hidden_size": 768, "intermediate_size": 1152, "max_position_embeddings": 8192, "mlp_bias": False,
    "mlp_dropout": 0.0, "norm_bias": False, "norm_eps": 1e-5, "num_attention_heads": 12, "num_hidden_layers": 22,
    "vocab_size": 50368, "torch_dtype": "bfloat16", "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0},
}  # fmt: skip
LARGE = {"hidden_size": 1024, "intermediate_size": 2624, "num_attention_heads": 16, "num_hidden_layers": 28}
TINY_QWEN3 = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_hidden_layers": 4,
              "max_window_layers": 4, "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 2048,
              "bos_token_id": 1, "eos_token_id": 1}  # fmt: skip
TINY_MODERNBERT = {"hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 2, "num_hidden_layers": 4,
                   "vocab_size": 2048, "cls_token_id": 1, "bos_token_id": 1, "eos_token_id": 2, "sep_token_id": 2,
                   "pad_token_id": 0}  # fmt: skip

SHAPES = {
    "full": {"qwen3-8b": QWEN3, "modernbert-base": MODERNBERT, "modernbert-large": MODERNBERT | LARGE},
    "tiny": {"qwen3-tiny": QWEN3 | TINY_QWEN3, "modernbert-tiny": MODERNBERT | TINY_MODERNBERT},
}


def is_embedder(config):
    return config["model_type"] == "qwen3"


def layer_tensors(config, layer):
    """Names and shapes of one layer's tensors, in the order of the model."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    if is_embedder(config):
        query = config["num_attention_heads"] * config["head_dim"]
        key = config["num_key_value_heads"] * config["head_dim"]
        at = f"layers.{layer}."
        return {
            at + "input_layernorm.weight": (hidden,),
            at + "self_attn.q_proj.weight": (query, hidden),
            at + "self_attn.k_proj.weight": (key, hidden),
            at + "self_attn.v_proj.weight": (key, hidden),
            at + "self_attn.o_proj.weight": (hidden, query),
            at + "self_attn.q_norm.weight": (config["head_dim"],),
            at + "self_attn.k_norm.weight": (config["head_dim"],),
            at + "post_attention_layernorm.weight": (hidden,),
            at + "mlp.gate_proj.weight": (inner, hidden),
            at + "mlp.up_proj.weight": (inner, hidden),
            at + "mlp.down_proj.weight": (hidden, inner),
        }
    at = f"model.layers.{layer}."
    norm = {at + "attn_norm.weight": (hidden,)} if layer else {}
    return norm | {
        at + "attn.Wqkv.weight": (3 * hidden, hidden),
        at + "attn.Wo.weight": (hidden, hidden),
        at + "mlp_norm.weight": (hidden,),
        at + "mlp.Wi.weight": (2 * inner, hidden),
        at + "mlp.Wo.weight": (hidden, inner),
    }


def outer_tensors(config):
    """Names and shapes of what is not in a layer."""
    hidden, vocabulary = config["hidden_size"], config["vocab_size"]
    if is_embedder(config):
        return {"embed_tokens.weight": (vocabulary, hidden), "norm.weight": (hidden,)}
    return {
        "model.embeddings.tok_embeddings.weight": (vocabulary, hidden),
        "model.embeddings.norm.weight": (hidden,),
        "model.final_norm.weight": (hidden,),
        "head.dense.weight": (hidden, hidden),
        "head.norm.weight": (hidden,),
        "classifier.weight": (1, hidden),
        "classifier.bias": (1,),
    }


def multiplied_parameters(config):
    """Parameters that every token is multiplied with, twice as many FLOPs each; of layers alone."""
    return config["num_hidden_layers"] * sum(
        shape[0] * shape[1] for shape in layer_tensors(config, 1).values() if len(shape) == 2
    )
