"""BM25 over control texts: lower-cased word tokens, a short stop list, a light plural stemmer. The lexical baseline."""
import math
import re
from collections import Counter

import numpy as np

STOP = set(
    "a an and are as at be been by can for from has have if in into is it its may must no not of on or shall should such that the "
    "their them then there these they this those to was were when where which while who will with within".split()
)
_WORD = re.compile(r"[a-z0-9]+")


def tokens(text):
    out = []
    for word in _WORD.findall(text.lower()):
        if word in STOP:
            continue
        if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
            word = word[:-3] + "y" if word.endswith("ies") else word[:-1]
        out.append(word)
    return out


class BM25:
    def __init__(self, documents, k1=1.5, b=0.75):
        counts = [Counter(tokens(d)) for d in documents]
        lengths = np.array([sum(c.values()) for c in counts], dtype=np.float64)
        self.size, norm = len(documents), 1 - b + b * lengths / max(1.0, lengths.mean())
        frequency = Counter(w for c in counts for w in c)
        self.postings = {}
        for i, c in enumerate(counts):
            for word, n in c.items():
                n_documents = frequency[word]
                weight = math.log(1 + (self.size - n_documents + 0.5) / (n_documents + 0.5))
                self.postings.setdefault(word, []).append((i, weight * n * (k1 + 1) / (n + k1 * norm[i])))

    def scores(self, query):
        out = np.zeros(self.size)
        for word in tokens(query):
            for i, weight in self.postings.get(word, ()):
                out[i] += weight
        return out
