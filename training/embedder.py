"""The embedder: a Qwen3-architecture student of the teacher, then tuned on crosswalks.

Stage `distil` fits the teacher's vectors and their similarities; stage `tune` adds the contrastive loss on crosswalks
while still holding on to the teacher. Checkpoints are chosen by the dev split only.
"""
import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import Qwen3Config, Qwen3Model

from common import Average, Schedule, adamw, batches_by_length, pad, step
from data import dev_score
from losses import contrast_loss, distil_loss
from tokenizer import END, MAX_TOKENS, for_embedder

CONFIG = dict(
    hidden_size=384, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=6, num_key_value_heads=2, head_dim=64,
    rope_theta=10000.0, max_position_embeddings=MAX_TOKENS, rms_norm_eps=1e-6, attention_bias=False, use_cache=False,
)


def initial_embeddings(tokenizer, teacher, dimensions):
    """(word vectors, matrix back to the teacher's space): each token's own text through the teacher, by principal directions."""
    words = [tokenizer.decode([i], skip_special_tokens=False).strip() or "space" for i in range(tokenizer.get_vocab_size())]
    vectors = teacher.embed(words)
    vectors = vectors - vectors.mean(0)
    directions = np.linalg.svd(vectors, full_matrices=False)[2][:dimensions]
    table = vectors @ directions.T
    return torch.tensor(table / table.std(), dtype=torch.float32), torch.tensor(directions.T.copy(), dtype=torch.float32)


class Embedder:
    dimensions = CONFIG["hidden_size"]

    def __init__(self, tokenizer):
        self.tokenizer = for_embedder(tokenizer)
        self.tokenizer.enable_truncation(MAX_TOKENS)
        end = self.tokenizer.token_to_id(END)
        config = Qwen3Config(vocab_size=self.tokenizer.get_vocab_size(), bos_token_id=None, eos_token_id=end, pad_token_id=None, **CONFIG)
        self.model, self.cache = Qwen3Model._from_config(config, attn_implementation="sdpa"), {}

    def start_from(self, table, matrix):
        """Start as the mean of word vectors (static.py).

        The end token's embedding is zero, so that it attends evenly. The values and output projections of the first three
        layers each carry a third of `matrix` by its singular vectors, so that the last token ends up holding about the mean
        of the words, from which training goes on.
        """
        table = table / table.std(-1, keepdim=True)
        table[self.tokenizer.token_to_id(END)] = 0
        self.model.embed_tokens.weight.data.copy_(table)
        u, sizes, vt = torch.linalg.svd(matrix)
        u, vt = u * sizes.sqrt() * 2, vt * sizes.sqrt()[:, None]
        heads, groups, width = CONFIG["num_attention_heads"], CONFIG["num_key_value_heads"], CONFIG["head_dim"]
        for i, layer in enumerate(self.model.layers):
            attention, mlp = layer.self_attn, layer.mlp
            for weights, scale in ((attention.q_proj, 1), (attention.k_proj, 1), (attention.v_proj, 0.3), (attention.o_proj, 0.1), (mlp.gate_proj, 1), (mlp.up_proj, 1), (mlp.down_proj, 0.05)):
                torch.nn.init.normal_(weights.weight, std=scale * weights.weight.shape[1] ** -0.5)
            attention.q_norm.weight.data.fill_(0.3)
            if (i + 1) * groups * width > self.dimensions:
                continue
            for h in range(heads):
                group = h * groups // heads
                part = slice((i * groups + group) * width, (i * groups + group + 1) * width)
                attention.v_proj.weight.data[group * width : (group + 1) * width] = vt[part]
                attention.o_proj.weight.data[:, h * width : (h + 1) * width] += u[:, part] * (groups / heads)

    def ids(self, texts):
        new = [t for t in dict.fromkeys(texts) if t not in self.cache]
        for t, e in zip(new, self.tokenizer.encode_batch(new)):
            self.cache[t] = e.ids
        return [self.cache[t] for t in texts]

    def vectors(self, rows, autocast=True):
        """Unit vectors, with gradients: the last token's hidden state after the final norm."""
        ids, lengths = pad(rows)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            hidden = self.model(input_ids=ids, use_cache=False).last_hidden_state
        return F.normalize(hidden[torch.arange(len(rows)), lengths - 1].float(), dim=-1)

    def __call__(self, texts, limit=160, parts=3):
        """Vectors with gradients of texts of mixed lengths, cut to `limit` tokens: those of like length share a pass."""
        end = self.tokenizer.token_to_id(END)
        rows = [r if len(r) <= limit else [*r[: limit - 1], end] for r in self.ids(texts)]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        size = -(-len(order) // parts)
        out = torch.cat([self.vectors([rows[i] for i in order[k : k + size]]) for k in range(0, len(order), size)])
        return out[torch.tensor(order).argsort()]

    def embed(self, texts, tokens=8192, autocast=True):
        rows = self.ids(list(texts))
        out = np.zeros((len(rows), self.dimensions), np.float32)
        with torch.inference_mode():
            for batch in batches_by_length([len(r) for r in rows], tokens, random.Random(0)):
                out[batch] = self.vectors([rows[i] for i in batch], autocast).numpy()
        return out


class Keeper:
    """Evaluates on dev, keeps the best weights on disk."""

    def __init__(self, path, data):
        self.path, self.data, self.best = Path(path), data, -1.0

    def consider(self, name, student, average, seconds):
        student.model.eval()
        with average as model:
            score, recall, mrr = dev_score(student.embed, self.data.dev)
            if score > self.best:
                self.best = score
                torch.save(model.state_dict(), self.path)
        student.model.train()
        print(f"{name} dev recall {recall:.4f} mrr {mrr:.4f} best {self.best:.4f} {seconds}s", flush=True)


def distil(student, data, targets, steps, path, peak=1.5e-3, tokens=4096, check=250, seed=1, minutes=None):
    """Fit the teacher's vectors (`targets`, one for each text of data.with_long) for so many steps."""
    rng = random.Random(seed)
    texts, targets = data.with_long(targets)
    rows, targets = student.ids(texts), torch.tensor(targets)
    optimizer, schedule, average = adamw([student.model]), Schedule(steps, peak, minutes=minutes), Average(student.model)
    keeper = Keeper(path, data)
    student.model.train()
    queue = []
    while schedule.running():
        if not queue:
            order = data.epoch(rng)
            queue = [[order[i] for i in batch] for batch in batches_by_length([len(rows[i]) for i in order], tokens, rng)]
        batch = list(dict.fromkeys(queue.pop()))
        loss = step(distil_loss(student.vectors([rows[i] for i in batch]), targets[batch]), optimizer, schedule, [student.model], average)
        if schedule.step % 50 == 0:
            print(f"distil {schedule.step}/{steps} loss {loss:.4f} {schedule.seconds()}s", flush=True)
        if schedule.step % check == 0 or not schedule.running():
            keeper.consider(f"distil {schedule.step}", student, average, schedule.seconds())
    student.model.load_state_dict(torch.load(path))


def tune(student, data, targets, sampler, steps, path, peak=3e-4, weight=1.0, hold=1.0, check=100, seed=2, sources=16, pool=56, minutes=None):
    """Contrastive steps on crosswalks and self pairs, each beside a distillation batch that holds the student in place."""
    rng = random.Random(seed)
    vectors = torch.tensor(targets)
    optimizer, schedule, average = adamw([student.model]), Schedule(steps, peak, warmup=50, minutes=minutes), Average(student.model, 0.99)
    keeper = Keeper(path, data)
    keeper.consider("tune 0", student, average, 0)
    student.model.train()
    while schedule.running():
        loss = 0.0
        for left, right, gold, share in ((*sampler.crosswalk_batch(sources, pool), 0.2), (*sampler.self_batch(24), 0.4)):
            z, t = student(left + right), vectors[[data.index[x] for x in left + right]]
            soft = t[: len(left)] @ t[len(left) :].T
            loss = loss + weight * contrast_loss(z[: len(left)], z[len(left) :], gold, soft, share=share)
        if hold:
            batch = rng.sample(range(len(data.texts)), 40)
            loss = loss + hold * distil_loss(student([data.texts[i] for i in batch]), vectors[batch])
        value = step(loss, optimizer, schedule, [student.model], average)
        if schedule.step % 20 == 0:
            print(f"tune {schedule.step}/{steps} loss {value:.4f} {schedule.seconds()}s", flush=True)
        if schedule.step % check == 0 or not schedule.running():
            keeper.consider(f"tune {schedule.step}", student, average, schedule.seconds())
    student.model.load_state_dict(torch.load(path))
