"""The corpus and the crosswalks as the training steps use them."""
from pathlib import Path

import numpy as np

import metrics
from common import read_json


class Data:
    def __init__(self, work):
        corpus = read_json(Path(work, "corpus.json"))
        pairs = read_json(Path(work, "crosswalks.json"))
        self.near, self.long = corpus["near"], corpus["long"]
        self.texts = corpus["near"] + corpus["far"] + corpus["short"]
        self.index = {t: i for i, t in enumerate(self.texts)}
        self.train = [w for w in pairs["crosswalks"] if w["split"] == "train"]
        self.dev = [w for w in pairs["crosswalks"] if w["split"] == "dev"]
        self.self_pairs = [tuple(p) for p in pairs["self_pairs"] if p[1] in self.index and p[2] in self.index]

    def with_long(self, vectors):
        """(all texts, their target vectors): the long texts' targets are the means of their parts'."""
        texts = self.texts + ["\n".join(parts) for parts in self.long]
        means = np.stack([vectors[[self.index[p] for p in parts]].mean(0) for parts in self.long])
        return texts, np.concatenate([vectors, means / np.linalg.norm(means, axis=1, keepdims=True)])

    def epoch(self, rng):
        """Indices of one pass: the controls and what is like them twice, everything else once."""
        order = list(range(len(self.texts) + len(self.long))) + list(range(len(self.near)))
        rng.shuffle(order)
        return order


def walk_texts(walks):
    """Every text of these crosswalks, once."""
    return sorted({t for w in walks for side in ("sources", "targets") for t in w[side].values()})


def looked_up(embed, texts):
    """An embedding function over known texts, each embedded once."""
    vectors, place = embed(texts), {t: i for i, t in enumerate(texts)}
    return lambda wanted: vectors[[place[t] for t in wanted]]


def dev_group(name):
    if name.startswith("ssg-rules"):
        return "rules"
    return "checks" if name.startswith("prowler") and "ffiec" not in name else name


def dev_score(embed, walks, verbose=False):
    """(score, recall@10, MRR@10): means over four kinds of dev crosswalk, each counting the same."""
    groups, embed = {}, looked_up(embed, walk_texts(walks))
    for walk in walks:
        recall, mrr, _ = metrics.retrieval(embed, walk)
        groups.setdefault(dev_group(walk["name"]), []).append((recall, mrr))
        if verbose:
            print(f"   {walk['name']:50} R@10 {recall:.3f} MRR@10 {mrr:.3f}")
    recall, mrr = np.mean([np.mean(v, axis=0) for v in groups.values()], axis=0)
    return float(recall + 0.25 * mrr), float(recall), float(mrr)
