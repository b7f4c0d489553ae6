"""A start for both models: word vectors whose mean, through one matrix, gives the (tuned) teacher's vector of a text.

Cheap, since no transformer runs: the tables are fitted in minutes. Word vectors are used after RMS normalisation, as the
transformer's first layer sees them.
"""
import random

import torch
import torch.nn.functional as F

from common import Schedule
from losses import distil_loss


def normed(table):
    return table * torch.rsqrt(table.square().mean(-1, keepdim=True) + 1e-6)


def encode(table, matrix, rows):
    flat = torch.tensor([i for r in rows for i in r])
    offsets = torch.tensor([0] + [len(r) for r in rows[:-1]]).cumsum(0)
    return F.normalize(F.embedding_bag(flat, normed(table), offsets, mode="mean") @ matrix.T, dim=-1)


def train(table, matrix, rows, targets, steps, peak=3e-3, size=384, seed=7, minutes=None):
    """Fit `table` (words by width) and `matrix` (target by width) to the targets of the id rows."""
    rng = random.Random(seed)
    targets = torch.as_tensor(targets)
    table, matrix = torch.nn.Parameter(table.clone()), torch.nn.Parameter(matrix.clone())
    optimizer, schedule = torch.optim.Adam([{"params": [table]}, {"params": [matrix], "scale": 0.3}], betas=(0.9, 0.98)), Schedule(steps, peak, warmup=30, minutes=minutes)
    usable = [i for i, r in enumerate(rows) if r]
    while schedule.running():
        batch = rng.sample(usable, size)
        z, t = encode(table, matrix, [rows[i] for i in batch]), targets[batch]
        loss = distil_loss(z, t)
        optimizer.zero_grad()
        loss.backward()
        schedule.apply(optimizer)
        optimizer.step()
        if schedule.step % 100 == 0:
            print(f"static {schedule.step}/{steps} loss {loss.item():.4f} cosine {(z * t).sum(-1).mean().item():.3f} {schedule.seconds()}s", flush=True)
    return table.detach(), matrix.detach()
