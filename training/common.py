"""Small things that every step shares: seeds, text clean-up, length-sorted batches, the clock-driven schedule.

Deliberately absent: any knowledge of a model or of a data source.
"""
import hashlib
import html
import json
import math
import os
import random
import re
import time
from pathlib import Path

import numpy as np

SEED = 20


def seed_everything(seed=SEED):
    """Fix every generator in use; two threads, as the recipe was measured."""
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))


_TAG = re.compile(r"<[^>]{1,200}>")
_SPACE = re.compile(r"[ \t\r\f\v]+")


def clean(text):
    """Markup to plain text: tags and Markdown emphasis out, entities decoded, spaces folded, lines kept."""
    text = html.unescape(_TAG.sub(" ", text or "")).replace("**", "").replace("`", "")
    lines = (_SPACE.sub(" ", line).strip() for line in text.split("\n"))
    return "\n".join(line for line in lines if line)


def one_line(text):
    return " ".join(clean(text).split())


def bucket(key, buckets=100):
    """A stable number for a key, the same on every machine: decides what is in the dev split."""
    return int(hashlib.md5(key.encode()).hexdigest()[:8], 16) % buckets


def read_json(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


def write_json(path, value):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def pad(rows, fill=0):
    """Token id lists to a padded tensor and the lengths."""
    import torch

    lengths = torch.tensor([len(r) for r in rows])
    out = torch.full((len(rows), int(lengths.max())), fill, dtype=torch.long)
    for i, row in enumerate(rows):
        out[i, : len(row)] = torch.tensor(row)
    return out, lengths


def batches_by_length(lengths, tokens, rng, limit=256):
    """Shuffled batches of indices, each at most `tokens` padded tokens and of nearly equal lengths."""
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i] + rng.random() * 4))
    out, current, longest = [], [], 0
    for i in order:
        longest_next = max(longest, lengths[i])
        if current and (longest_next * (len(current) + 1) > tokens or len(current) >= limit):
            out.append(current)
            current, longest_next = [], lengths[i]
        current.append(i)
        longest = longest_next
    if current:
        out.append(current)
    rng.shuffle(out)
    return out


class Schedule:
    """A learning-rate schedule by steps: linear warm-up, then cosine down to a floor.

    On a slow machine `minutes` shortens it: the schedule then ends by the clock, still with its whole descent.
    """

    def __init__(self, steps, peak, warmup=100, floor=0.02, minutes=None):
        self.steps, self.peak, self.warmup, self.floor = steps, peak, min(warmup, max(1, steps // 10)), floor
        self.limit, self.step, self.start = (minutes or 1e9) * 60, 0, time.time()

    def progress(self):
        return max(self.step / self.steps, (time.time() - self.start) / self.limit)

    def running(self):
        return self.progress() < 1

    def apply(self, optimizer):
        self.step += 1
        decay = 0.5 * (1 + math.cos(math.pi * min(1.0, self.progress())))
        rate = self.peak * min(1.0, self.step / self.warmup) * (decay + self.floor)
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("scale", 1.0)
        return rate

    def seconds(self):
        return int(time.time() - self.start)


class Average:
    """Exponential moving average of a model's weights; what is evaluated and kept."""

    def __init__(self, model, decay=0.998):
        self.model, self.decay, self.updates = model, decay, 0
        self.shadow = {k: v.detach().clone() for k, v in model.state_dict().items()}

    def update(self):
        import torch

        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        with torch.no_grad():
            for key, value in self.model.state_dict().items():
                if value.is_floating_point():
                    self.shadow[key].lerp_(value, 1 - decay)

    def __enter__(self):
        """Inside the block the model holds the averaged weights."""
        self.backup = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        self.model.load_state_dict(self.shadow)
        return self.model

    def __exit__(self, *_):
        self.model.load_state_dict(self.backup)


def adamw(modules, decay=0.01):
    """AdamW with weight decay on matrices only."""
    import torch

    parameters = [p for m in modules for p in m.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98), fused=True)


def step(loss, optimizer, schedule, modules, average=None):
    """One optimiser step with clipped gradients; returns the loss as a number."""
    import torch

    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for m in modules for p in m.parameters()], 1.0)
    schedule.apply(optimizer)
    optimizer.step()
    if average is not None:
        average.update()
    return loss.item()
