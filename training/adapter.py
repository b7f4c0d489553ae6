"""The tuned teacher: a linear map on the teacher's vectors, learnt from the crosswalks.

The teacher itself stays as it is, so this takes a minute: its vectors are computed once, and only the map is trained, with
the contrastive loss on crosswalks, the self pairs, and a pull towards the original vectors.
"""
import numpy as np
import torch
import torch.nn.functional as F

from common import Schedule
from data import dev_score
from losses import contrast_loss


def apply(weight, vectors):
    x = torch.as_tensor(vectors)
    return F.normalize(x + x @ weight.T, dim=-1)


def train(data, vectors, sampler, steps=1500, peak=1e-3, decay=0.1, hold=3.0, sources=48, pool=160, check=500):
    """The map's weight (added to the identity)."""
    x = torch.tensor(vectors)
    weight = torch.nn.Parameter(torch.zeros(x.shape[1], x.shape[1]))
    optimizer, schedule = torch.optim.AdamW([weight], weight_decay=decay), Schedule(steps, peak, warmup=50)
    while schedule.running():
        loss = 0.0
        for left, right, gold, share in ((*sampler.crosswalk_batch(sources, pool), 0.2), (*sampler.crosswalk_batch(sources, pool), 0.2), (*sampler.self_batch(64), 0.3)):
            a, b = x[[data.index[t] for t in left]], x[[data.index[t] for t in right]]
            loss = loss + contrast_loss(apply(weight, a), apply(weight, b), gold, a @ b.T, share=share)
        some = x[torch.randint(0, len(x), (128,))]
        loss = loss + hold * (1 - (apply(weight, some) * some).sum(-1)).mean()
        optimizer.zero_grad()
        loss.backward()
        schedule.apply(optimizer)
        optimizer.step()
        if schedule.step % check == 0:
            with torch.no_grad():
                tuned = apply(weight, x).numpy()
            _, recall, mrr = dev_score(lambda texts: tuned[[data.index[t] for t in texts]], data.dev)
            print(f"adapter {schedule.step} loss {loss.item():.3f} dev recall {recall:.4f} mrr {mrr:.4f} {schedule.seconds()}s", flush=True)
    with torch.no_grad():
        return apply(weight, x).numpy().astype(np.float32)
