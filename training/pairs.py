"""Batches for learning from crosswalks: a few sources, a pool of targets from the same catalog, and which are gold.

Crosswalks are drawn evenly (by a root of their size), so that no large one dominates. The pool holds gold targets of the
sources, targets that the teacher ranks high, and random ones; every gold pair inside it counts as gold.
"""
import collections
import random

import numpy as np

import metrics


def draw_weights(walks, damping):
    """How often each crosswalk is drawn: by a root of its sources, times `damping` where the mapping is broad or derived."""
    weights = []
    for walk in walks:
        name = walk["name"]
        broad = name.startswith(("co-mapped:", "prowler-checks__fedramp-ksi")) or "mitre" in name or "dora" in name
        weights.append((damping if broad else 1.0) * len(metrics.gold_of(walk)) ** 0.35)
    return weights


class PairSampler:
    def __init__(self, walks, self_pairs, vector_of, rng=None, hard=40):
        """vector_of: text -> the teacher's vector, for hard negatives."""
        self.rng = rng or random.Random(0)
        self.walks = []
        for walk in walks:
            gold = metrics.gold_of(walk)
            sources, targets = list(gold), list(walk["targets"])
            sv = np.stack([vector_of(walk["sources"][s]) for s in sources])
            tv = np.stack([vector_of(walk["targets"][t]) for t in targets])
            top = np.argsort(-(sv @ tv.T), axis=1)[:, :hard]
            near = {s: [targets[j] for j in top[i]] for i, s in enumerate(sources)}
            self.walks.append((walk, gold, sources, targets, near))
        self.weights = draw_weights(walks, 0.4)
        groups = collections.defaultdict(list)
        for group, a, b in self_pairs:
            groups[group].append((a, b))
        self.groups = dict(groups)

    def crosswalk_batch(self, sources=24, pool=72):
        """(source texts, pool texts, gold matrix) from one crosswalk."""
        rng = self.rng
        walk, gold, all_sources, targets, near = rng.choices(self.walks, self.weights)[0]
        chosen = rng.sample(all_sources, min(sources, len(all_sources)))
        members = {}
        for s in chosen:  # one gold target each first, in random order
            members[rng.choice(sorted(gold[s]))] = True
        for s in chosen:
            if len(members) >= pool * 2 // 3:
                break
            members[rng.choice(near[s])] = True
            if len(gold[s]) > 1:
                members[rng.choice(sorted(gold[s]))] = True
        rest = [t for t in targets if t not in members]
        for t in rng.sample(rest, min(len(rest), max(0, pool - len(members)))):
            members[t] = True
        members = list(members)
        matrix = np.array([[t in gold[s] or walk["targets"][t] == walk["sources"][s] for t in members] for s in chosen])
        return [walk["sources"][s] for s in chosen], [walk["targets"][t] for t in members], matrix

    def self_batch(self, size=32):
        group = self.rng.choice(list(self.groups))
        chosen = self.rng.sample(self.groups[group], size)
        left, right = [a for a, _ in chosen], [b for _, b in chosen]
        matrix = np.array([[left[i] == left[j] or right[i] == right[j] for j in range(size)] for i in range(size)])
        return left, right, matrix
