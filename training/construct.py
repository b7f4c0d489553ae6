"""The reranker's start: weights set by hand so that a ModernBERT compares the mean word vectors of its two texts.

A cross-encoder trained from random weights first has to find out that likeness of the two texts matters, which takes more
computing than two cores have. Instead it starts knowing it, and training only improves on it:

- Word vectors (static.py) fill the first 248 dimensions; the rest hold marks: a constant on words, [CLS], [SEP].
- Layer 0, head 0: every word looks for a [SEP] before it. A sum of sines over RoPE's frequencies is about the sign of the
  distance, so words of the candidate find one and words of the source do not: that sets FLAG.
- Last layer, attention: [CLS] gathers the mean over words without FLAG (heads 0, 1) and with it (heads 2, 3).
- Last layer, MLP: gelu(u) v + gelu(-u) (-v) = u v, so pairs of units multiply the two means; the sum goes to OUT.
- Head: gelu(u) - gelu(-u) = u carries OUT to the logit past the norm.

All other weights start small and random, and nothing is frozen.
"""
import torch

CONTENT = 248
CONST, CLS_MARK, SEP_MARK, FLAG, OUT = range(248, 253)
HALF = CONTENT // 2


def build(model, table, matrix, ids, samples):
    """Set the weights. ids: of the special tokens; samples: id rows of texts, for the scale of a mean vector."""
    config, encoder = model.config, model.model
    size, width = config.hidden_size, config.hidden_size // config.num_attention_heads
    mark = size**0.5  # what a vector with a single one becomes under LayerNorm
    with torch.no_grad():
        words = torch.zeros(len(table), size)
        words[:, :CONTENT] = table * torch.rsqrt(table.square().mean(-1, keepdim=True) + 1e-6)
        words[:, CONST] = 1
        for name, place in (("cls", CLS_MARK), ("sep", SEP_MARK), ("pad", None)):
            words[ids[name]] = 0
            if place is not None:
                words[ids[name], place] = 1
        encoder.embeddings.tok_embeddings.weight.copy_(words)

        for layer in encoder.layers:
            torch.nn.init.normal_(layer.attn.Wqkv.weight, std=size**-0.5)
            layer.attn.Wqkv.weight[size : 2 * size] = layer.attn.Wqkv.weight[:size]
            torch.nn.init.normal_(layer.attn.Wo.weight, std=0.05 * size**-0.5)
            torch.nn.init.normal_(layer.mlp.Wi.weight, std=size**-0.5)
            torch.nn.init.normal_(layer.mlp.Wo.weight, std=0.05 * config.intermediate_size**-0.5)
            layer.attn.Wo.weight[CONTENT:] = layer.mlp.Wo.weight[CONTENT:] = 0  # the marks stay clean
        _flag_the_candidate(encoder.layers[0].attn, size, width, mark)

        values, directions = torch.linalg.eigh(matrix.T @ matrix)
        project = directions[:, -HALF:].T * values[-HALF:].clamp_min(0).sqrt()[:, None]
        means = torch.stack([words[row, :CONTENT].mean(0) for row in samples if row])
        scale = 8 / (means @ project.T).square().mean().sqrt()
        last = encoder.layers[-1]
        _gather_means(last.attn, size, width, mark, project, scale)
        _multiply_means(last.mlp, config.intermediate_size)
        _read_out(model, size)


def _flag_the_candidate(attention, size, width, mark):
    qkv, out = attention.Wqkv.weight, attention.Wo.weight
    for part in range(3):
        qkv[part * size : part * size + width] = 0
    half = width // 2
    for pair in range(half - 2):  # the quickest frequencies weigh less, which evens out the sum of sines
        qkv[half + pair, CONST] = -10.0 * min(1.0, (pair + 1) / 10)
        qkv[size + pair, SEP_MARK] = 9.0 / mark
    qkv[2 * size, SEP_MARK] = 4.0 / mark
    out[:, :width] = 0
    out[FLAG, 0] = 1


def _gather_means(attention, size, width, mark, project, scale):
    qkv, out = attention.Wqkv.weight, attention.Wo.weight
    qkv[:], steady = 0.0, width // 2 - 1  # the slowest frequency: the same at all distances
    out[:] = 0.0
    for head in range(4):
        sign = 1 if head < 2 else -1
        q, k, v = (part * size + head * width for part in range(3))
        qkv[q + steady, CLS_MARK] = 8 / mark
        qkv[k + steady, CONST], qkv[k + steady, FLAG] = sign * 4, -sign * 2
        qkv[k + steady, CLS_MARK] = qkv[k + steady, SEP_MARK] = -4 / mark
        rows = project[(head % 2) * width : (head % 2 + 1) * width]
        qkv[v : v + len(rows), :CONTENT] = rows
        start = (head // 2) * HALF + (head % 2) * width
        for i in range(len(rows)):
            out[start + i, head * width + i] = scale
    qkv += torch.randn_like(qkv) * 0.02 * size**-0.5


def _multiply_means(mlp, units):
    rows = torch.arange(HALF)
    for first, sign in ((0, 1), (HALF, -1)):
        mlp.Wi.weight[first : first + HALF] = 0
        mlp.Wi.weight[units + first : units + first + HALF] = 0
        mlp.Wi.weight[first + rows, rows] = sign
        mlp.Wi.weight[units + first + rows, HALF + rows] = sign
        mlp.Wo.weight[:, first : first + HALF] = 0
        mlp.Wo.weight[OUT, first : first + HALF] = 60 / HALF


def _read_out(model, size):
    dense, classifier = model.head.dense.weight, model.classifier
    torch.nn.init.normal_(dense, std=0.02 * size**-0.5)
    dense[0, OUT], dense[1, OUT] = 0.3, -0.3
    dense[2:66, CLS_MARK] = 0.8
    torch.nn.init.normal_(classifier.weight, std=0.02 * size**-0.5)
    classifier.weight[0, 0], classifier.weight[0, 1] = 3, -3
    classifier.bias.fill_(-5)
