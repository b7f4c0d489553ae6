"""The losses that several stages share."""
import torch
import torch.nn.functional as F


def distil_loss(z, t, temperature=0.05):
    """Direction, pairwise similarity, and the order of the neighbours within the batch."""
    zs, ts = z @ z.T, t @ t.T
    off = ~torch.eye(len(z), dtype=torch.bool)
    n = len(z)
    p = F.softmax(ts[off].view(n, n - 1) / temperature, dim=-1)
    q = F.log_softmax(zs[off].view(n, n - 1) / temperature, dim=-1)
    order = (p * (p.clamp_min(1e-9).log() - q)).sum(-1).mean()
    return (1 - (z * t).sum(-1)).mean() + 10 * F.mse_loss(zs, ts) + 0.3 * order


def contrast_loss(a, b, gold, soft=None, scale=20.0, share=0.15):
    """Sources against the pool, in both directions; the target is spread over the gold and, a little, as the teacher sees it."""
    gold = torch.as_tensor(gold, dtype=torch.float32)
    logits = scale * a @ b.T
    loss = 0.0
    for matrix, target, teacher in ((logits, gold, soft), (logits.T, gold.T, None if soft is None else soft.T)):
        rows = target.sum(-1) > 0
        wanted = target[rows] / target[rows].sum(-1, keepdim=True)
        if teacher is not None:
            wanted = (1 - share) * wanted + share * F.softmax(teacher[rows] * scale, dim=-1)
        loss = loss - (wanted * F.log_softmax(matrix[rows], dim=-1)).sum(-1).mean()
    return loss / 2
