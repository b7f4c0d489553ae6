"""The mistakes that the golden vectors must catch, each made on purpose.

`qwen3(model)` and `modernbert(model)` yield `(name, compute)`: `compute(sequences)` returns what an implementation
with that mistake would answer. The model that is handed in is left as it was. A name that starts with "(none)" is the
opposite of a mistake: a second way to the right answer, which must agree with the recorded one. It shows that the code
here makes no other mistake than the one it announces.
"""

import contextlib
import copy

import numpy as np
import torch
from torch import nn
from transformers.models.modernbert import modeling_modernbert
from transformers.models.qwen3 import modeling_qwen3

import reference


def rotate(x, cos, sin, interleaved):
    if interleaved:  # GPT-J's pairing: (0,1), (2,3), ... where both families pair (0, d/2), (1, d/2 + 1), ...
        half = x.shape[-1] // 2
        cos, sin = cos[..., :half].repeat_interleave(2, -1), sin[..., :half].repeat_interleave(2, -1)
        turned = torch.stack((-x[..., 1::2], x[..., 0::2]), -1).flatten(-2)
    else:
        turned = torch.cat((-x[..., x.shape[-1] // 2 :], x[..., : x.shape[-1] // 2]), -1)
    return x * cos.unsqueeze(1) + turned * sin.unsqueeze(1)


def attend(q, k, v, mask, scale):
    scores = q @ k.transpose(2, 3) * scale
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    out = (scores.softmax(-1) @ v).transpose(1, 2)
    return out.reshape(*out.shape[:2], -1)


def replace_forward(modules, forward):
    for module in modules:
        module.forward = forward.__get__(module)


def bf16_positions(rotary):
    right = rotary.forward
    rotary.forward = lambda x, position_ids, *rest, **named: right(
        x, position_ids.to(torch.bfloat16).float(), *rest, **named
    )


def set_theta(rotary, prefix, theta, head_dim):
    inverse = 1.0 / (theta ** (torch.arange(0, head_dim, 2, dtype=torch.float) / head_dim))
    getattr(rotary, f"{prefix}inv_freq").copy_(inverse)


@contextlib.contextmanager
def patched(module, **names):
    before = {name: getattr(module, name) for name in names}
    for name, value in names.items():
        setattr(module, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)


# --- Qwen3 ------------------------------------------------------------------------------------------------------------


def qwen3_attention(interleaved=False, kv_modulo=False, norm_after_rope=False, causal=True, scale=None):
    def forward(self, hidden_states, position_embeddings, **_):
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        q, k, v = (p(hidden_states).view(shape).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        if not norm_after_rope:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = (rotate(x, *position_embeddings, interleaved) for x in (q, k))
        if norm_after_rope:
            q, k = self.q_norm(q), self.k_norm(k)
        heads, kv_heads = q.shape[1], k.shape[1]
        head = torch.arange(heads)
        pick = head % kv_heads if kv_modulo else head // (heads // kv_heads)
        tokens = q.shape[2]
        mask = torch.ones(tokens, tokens, dtype=torch.bool).tril() if causal else None
        return self.o_proj(attend(q, k[:, pick], v[:, pick], mask, scale or self.head_dim**-0.5)), None

    return forward


def qwen3(model):
    config = model.config

    def variant(change=None, pool=None):
        def compute(sequences):
            wrong = copy.deepcopy(model)
            if change:
                change(wrong)
            return reference.alone("qwen3", wrong, sequences, pool)

        return compute

    def attention(**flags):
        return variant(lambda m: replace_forward([x.self_attn for x in m.layers], qwen3_attention(**flags)))

    def each_layer(change):
        return variant(lambda m: [change(layer) for layer in m.layers])

    def set_eps(m):
        for module in m.modules():
            if isinstance(module, modeling_qwen3.Qwen3RMSNorm):
                module.variance_epsilon = 1e-6 if config.rms_norm_eps > 1e-5 else 1e-3

    def no_mask(sequences):
        with patched(modeling_qwen3, create_causal_mask=lambda **_: None):
            return reference.alone("qwen3", model, sequences)

    def leaking(sequences):
        """Sequences packed end to end, with one causal mask and one run of positions over all of them."""
        before = sequences[-1:] + sequences[:-1]
        return reference.alone("qwen3", model, [b[-40:] + s for b, s in zip(before, sequences)])

    def silu_to_gelu(layer):
        layer.mlp.act_fn = nn.GELU()

    def swap_gate(layer):
        layer.mlp.gate_proj, layer.mlp.up_proj = layer.mlp.up_proj, layer.mlp.gate_proj

    def no_qk_norm(layer):
        layer.self_attn.q_norm = layer.self_attn.k_norm = nn.Identity()

    def swap_qk_norm(layer):
        layer.self_attn.q_norm, layer.self_attn.k_norm = layer.self_attn.k_norm, layer.self_attn.q_norm

    def swap_norms(layer):
        layer.input_layernorm, layer.post_attention_layernorm = layer.post_attention_layernorm, layer.input_layernorm

    yield "(none) attention written out a second time", attention()
    yield "no causal mask", no_mask
    yield "attention leaks into the sequence before in a packed batch", leaking
    yield "no q_norm and k_norm", each_layer(no_qk_norm)
    yield "q_norm and k_norm swapped", each_layer(swap_qk_norm)
    yield "q_norm and k_norm after RoPE", attention(norm_after_rope=True)
    yield "RoPE pairs neighbours (interleaved)", attention(interleaved=True)
    theta = config.rope_parameters["rope_theta"]
    other = 10_000.0 if theta > 20_000 else 1_000_000.0
    yield "RoPE theta: another family's default", variant(
        lambda m: set_theta(m.rotary_emb, "", other, config.head_dim)
    )
    yield "RoPE positions in bf16", variant(lambda m: bf16_positions(m.rotary_emb))
    if config.num_key_value_heads not in (1, config.num_attention_heads):
        yield "query head h reads kv head h % kv_heads", attention(kv_modulo=True)
    if config.head_dim != config.hidden_size // config.num_attention_heads:
        wrong_dim = config.hidden_size / config.num_attention_heads
        yield "attention scaled by hidden / heads, not head_dim", attention(scale=wrong_dim**-0.5)
    yield "attention not scaled", attention(scale=1.0)
    yield "no final norm", variant(lambda m: setattr(m, "norm", nn.Identity()))
    yield "input_layernorm and post_attention_layernorm swapped", each_layer(swap_norms)
    for name in ("norm", "input_layernorm", "post_attention_layernorm", "q_norm", "k_norm"):

        def flatten(m, name=name):
            for path, parameter in m.named_parameters():
                if path.endswith(f".{name}.weight") or path == f"{name}.weight":
                    parameter.data.fill_(1.0)

        yield f"{name}: weight taken as ones", variant(flatten)
    yield "rms_norm_eps: a default, not the config's", variant(set_eps)
    yield "GELU in place of SiLU", each_layer(silu_to_gelu)
    yield "gate and up swapped", each_layer(swap_gate)
    if config.attention_bias:
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            yield f"no {name} bias", each_layer(lambda layer, name=name: setattr(getattr(layer.self_attn, name), "bias", None))
    yield "pooling: mean", variant(pool=lambda hidden: hidden.mean(0))
    yield "pooling: first token", variant(pool=lambda hidden: hidden[0])
    yield "pooling: last but one", variant(pool=lambda hidden: hidden[max(len(hidden) - 2, 0)])


# --- ModernBERT -------------------------------------------------------------------------------------------------------


def modernbert_attention(radius, interleaved=False, heads_first=False, causal=False, scale=None, positions_apart=None):
    """`radius(config, layer)` is the largest |i - j| that layer may look at, or None for all."""

    def forward(self, hidden_states, position_embeddings=None, **_):
        batch, tokens, _ = hidden_states.shape
        qkv = self.Wqkv(hidden_states)
        if heads_first:
            q, k, v = qkv.view(batch, tokens, -1, 3, self.head_dim).unbind(3)
        else:
            q, k, v = qkv.view(batch, tokens, 3, -1, self.head_dim).unbind(2)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        q, k = (rotate(x, *position_embeddings, interleaved) for x in (q, k))
        i = torch.arange(tokens)
        distance = (i[:, None] - i[None, :]).abs()
        reach = radius(self.config, self.layer_idx)
        mask = distance <= reach if reach is not None else torch.ones_like(distance, dtype=torch.bool)
        if causal:
            mask = mask.tril()
        return self.Wo(attend(q, k, v, mask, scale or self.head_dim**-0.5)), None

    return forward


def modernbert(model):
    config = model.config
    types = config.layer_types
    half = config.local_attention // 2

    def right(_, layer):
        return half if types[layer] == "sliding_attention" else None

    def variant(change):
        def compute(sequences):
            wrong = copy.deepcopy(model)
            change(wrong)
            return reference.alone("modernbert", wrong, sequences)

        return compute

    def attention(radius=right, **flags):
        return variant(
            lambda m: replace_forward([x.attn for x in m.model.layers], modernbert_attention(radius, **flags))
        )

    def window(reach):
        return attention(lambda _, layer: reach if types[layer] == "sliding_attention" else None)

    def retyped(new_types):
        """Another assignment of layers to full and sliding attention: mask and RoPE both follow it."""

        def change(m):
            m.config.layer_types = new_types
            for layer, name in zip(m.model.layers, new_types):
                layer.attention_type = name

        return variant(change)

    def each_layer(change):
        return variant(lambda m: [change(layer) for layer in m.model.layers])

    def leaking(sequences):
        """Sequences packed end to end without bounds: a neighbour's tokens follow."""
        after = sequences[1:] + sequences[:1]
        return reference.alone("modernbert", model, [s + a[:40] for s, a in zip(sequences, after)])

    def swap_glu(layer):
        for tensor in (layer.mlp.Wi.weight, layer.mlp.Wi.bias):
            if tensor is not None:
                tensor.data = torch.cat(tensor.data.chunk(2, 0)[::-1], 0)

    def first_layer_norm(m):
        m.model.layers[0].attn_norm = copy.deepcopy(m.model.layers[1].attn_norm)
        nn.init.ones_(m.model.layers[0].attn_norm.weight)

    def unnormed(path):
        def change(m):
            owner = m.get_submodule(path.rpartition(".")[0])
            setattr(owner, path.rpartition(".")[2], nn.Identity())

        return variant(change)

    def set_eps(m):
        for module in m.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = 1e-12 if config.norm_eps > 1e-6 else 1e-3

    def as_rms(m):
        for module in m.modules():
            if isinstance(module, nn.LayerNorm):
                module.forward = lambda x, n=module: nn.functional.rms_norm(x, n.normalized_shape, n.weight, n.eps)

    def theta(layer_type):
        return config.rope_parameters[layer_type]["rope_theta"]

    def thetas(full, sliding):
        head_dim = config.hidden_size // config.num_attention_heads

        def change(m):
            set_theta(m.model.rotary_emb, "full_attention_", full, head_dim)
            set_theta(m.model.rotary_emb, "sliding_attention_", sliding, head_dim)

        return variant(change)

    yield "(none) attention and window written out a second time", attention()
    yield "(none) window as radius local_attention / 2, inclusive", window(half)
    yield "window one narrower", window(half - 1)
    yield "window one wider", window(half + 1)
    yield "window not halved", window(config.local_attention)
    yield "no window: all layers look at everything", attention(lambda *_: None)
    yield "window on every layer", attention(lambda *_: half)
    every_3 = ["sliding_attention" if i % 3 else "full_attention" for i in range(len(types))]
    if every_3 != types:
        yield "layer_types ignored (every third layer full)", retyped(every_3)
    yield "full layers one later", retyped(types[-1:] + types[:-1])
    yield "causal", attention(causal=True)
    yield "attention leaks into the next sequence in a packed batch", leaking
    full, sliding = theta("full_attention"), theta("sliding_attention")
    yield "RoPE theta swapped between full and sliding", thetas(sliding, full)
    yield "RoPE theta of full layers everywhere", thetas(full, full)
    yield "RoPE theta of sliding layers everywhere", thetas(sliding, sliding)
    if (full, sliding) != (160_000.0, 10_000.0):
        yield "RoPE thetas from the defaults", thetas(160_000.0, 10_000.0)
    yield "RoPE pairs neighbours (interleaved)", attention(interleaved=True)
    yield "RoPE positions in bf16", variant(lambda m: bf16_positions(m.model.rotary_emb))
    yield "Wqkv viewed as (heads, 3, head_dim)", attention(heads_first=True)
    yield "attention not scaled", attention(scale=1.0)
    yield "tanh GELU in the MLP", each_layer(lambda layer: setattr(layer.mlp, "act", nn.GELU(approximate="tanh")))
    yield "tanh GELU in the head", variant(lambda m: setattr(m.head, "act", nn.GELU(approximate="tanh")))
    yield "no activation in the head", variant(lambda m: setattr(m.head, "act", nn.Identity()))
    yield "halves of Wi swapped", each_layer(swap_glu)
    yield "a norm before layer 0's attention", variant(first_layer_norm)
    for path in ("model.embeddings.norm", "model.final_norm", "head.norm"):
        yield f"no {path}", unnormed(path)
    for name in ("embeddings.norm", "attn_norm", "mlp_norm", "final_norm", "head.norm"):

        def flatten(m, name=name):
            for path, parameter in m.named_parameters():
                if path.endswith(f"{name}.weight"):
                    parameter.data.fill_(1.0)

        yield f"{name}: weight taken as ones", variant(flatten)
    yield "norm_eps: another default", variant(set_eps)
    if not config.norm_bias:
        yield "RMS norm in place of layer norm", variant(as_rms)
    for path, parameter in model.named_parameters():
        # One of each kind, in the last layer where there are several.
        last = f"layers.{len(types) - 1}." in path
        if path.endswith(".bias") and (last or "layers." not in path):
            yield f"no {path}", variant(lambda m, path=path: m.get_parameter(path).data.zero_())
    other = "mean" if config.classifier_pooling == "cls" else "cls"
    yield f"pooling: {other}", variant(lambda m: setattr(m.config, "classifier_pooling", other))


def distance(wrong, right):
    """The largest difference in any component of any sequence: what a test with one tolerance sees."""
    return float(np.abs(wrong - right).max())
