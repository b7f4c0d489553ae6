"""Ranking figures over a crosswalk: recall@10, MRR@10, and reranking. No models here."""
import numpy as np


def ranked(scores, ids, depth):
    """The best `depth` ids, ties broken by their order."""
    return [ids[j] for j in np.argsort(-scores, kind="stable")[:depth]]


def recall(found, gold, k=10):
    return len(gold & set(found[:k])) / min(k, len(gold))


def reciprocal_rank(found, gold, k=10):
    return next((1 / (i + 1) for i, t in enumerate(found[:k]) if t in gold), 0.0)


def of_rankings(rankings, gold):
    """Mean recall@10 and MRR@10 of {source: ranked ids}."""
    values = [(recall(r, gold[s]), reciprocal_rank(r, gold[s])) for s, r in rankings.items()]
    return tuple(float(x) for x in np.mean(values, axis=0))


def retrieve(source_vectors, target_vectors, sources, targets, depth=20):
    """{source: its nearest target ids} by dot product."""
    scores = source_vectors @ target_vectors.T
    return {s: ranked(scores[i], targets, depth) for i, s in enumerate(sources)}


def gold_of(walk):
    gold = {}
    for a, b in walk["pairs"]:
        gold.setdefault(a, set()).add(b)
    return gold


def retrieval(embed, walk):
    """(recall@10, MRR@10, rankings) of one crosswalk with an embedding function over lists of texts."""
    gold, targets = gold_of(walk), list(walk["targets"])
    sources = list(gold)
    target_vectors = embed([walk["targets"][t] for t in targets])
    rankings = retrieve(embed([walk["sources"][s] for s in sources]), target_vectors, sources, targets)
    return (*of_rankings(rankings, gold), rankings)
