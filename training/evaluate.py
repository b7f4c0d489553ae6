"""Print the quality table: every crosswalk of a controls folder, for BM25, all-MiniLM-L6-v2 and the built-in models.

    python training/evaluate.py --controls DIR                              # models/ through transformers
    python training/evaluate.py --controls DIR --url http://127.0.0.1:8000  # a running Nexus

recall@10 is found / min(10, gold); MRR@10 is one over the rank of the first gold target within 10. Both are means over the
sources that have gold, with all targets of the catalog in the pool. The reranker orders the embedder's 20 best alone.
"""
import argparse
import json
import sys
import urllib.request
from pathlib import Path

import numpy as np

import metrics
from bm25 import BM25
from common import pad
from crosswalks import HELD_OUT, crosswalk, load_catalogs, load_gold

DEPTH = 20


class Torch:
    """The exported folders, bf16 weights computed in f32."""

    def __init__(self, models):
        import torch
        from tokenizers import Tokenizer
        from transformers import AutoModel, AutoModelForSequenceClassification

        torch.set_num_threads(2)
        self.torch = torch
        self.embedder = AutoModel.from_pretrained(Path(models, "embedder"), dtype=torch.float32).eval()
        self.reranker = AutoModelForSequenceClassification.from_pretrained(Path(models, "reranker"), dtype=torch.float32).eval()
        self.tokenizers = {}
        for kind in ("embedder", "reranker"):
            self.tokenizers[kind] = Tokenizer.from_file(str(Path(models, kind, "tokenizer.json")))
            self.tokenizers[kind].enable_truncation(512)

    def _batches(self, rows, size=64):
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        for start in range(0, len(order), size):
            part = order[start : start + size]
            ids, lengths = pad([rows[i] for i in part])
            yield part, ids, (self.torch.arange(ids.shape[1])[None] < lengths[:, None]).long()

    def embed(self, texts):
        rows = [e.ids for e in self.tokenizers["embedder"].encode_batch(list(texts))]
        out = np.zeros((len(rows), self.embedder.config.hidden_size), np.float32)
        with self.torch.inference_mode():
            for part, ids, mask in self._batches(rows):
                hidden = self.embedder(input_ids=ids, attention_mask=mask).last_hidden_state
                last = hidden[self.torch.arange(len(part)), mask.sum(1) - 1]
                out[part] = self.torch.nn.functional.normalize(last, dim=-1).numpy()
        return out

    def rerank(self, source, candidates):
        """[(id, score)], best first, of {id: text}."""
        rows = [e.ids for e in self.tokenizers["reranker"].encode_batch([(source, t) for t in candidates.values()])]
        scores = np.zeros(len(rows))
        with self.torch.inference_mode():
            for part, ids, mask in self._batches(rows):
                scores[part] = self.reranker(input_ids=ids, attention_mask=mask).logits[:, 0].sigmoid().numpy()
        names = list(candidates)
        return [(names[i], float(scores[i])) for i in np.argsort(-scores, kind="stable")]


class Service:
    """A running Nexus."""

    def __init__(self, url):
        self.url = url.rstrip("/")

    def _post(self, path, body):
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=600) as reply:
            return json.load(reply)

    def embed(self, texts, size=64):
        out = []
        for start in range(0, len(texts), size):
            items = [{"control_id": f"c{start + i}", "text": t} for i, t in enumerate(texts[start : start + size])]
            found = {r["control_id"]: r["embedding"] for r in self._post("/api/v1/embed/batch", {"items": items})["results"]}
            out += [found[i["control_id"]] for i in items]
        return np.asarray(out, dtype=np.float32)

    def rerank(self, source, candidates):
        body = {"source_text": source, "candidates": [{"control_id": k, "text": t} for k, t in candidates.items()]}
        return [(r["control_id"], r["score"]) for r in self._post("/api/v1/rerank", body)["rankings"]]


class Cached:
    """Each text through the embedder once."""

    def __init__(self, embed):
        self.embed, self.known = embed, {}

    def __call__(self, texts):
        new = [t for t in dict.fromkeys(texts) if t not in self.known]
        if new:
            self.known.update(zip(new, self.embed(new)))
        return np.stack([self.known[t] for t in texts])


def lexical(walk):
    gold, targets = metrics.gold_of(walk), list(walk["targets"])
    index = BM25([walk["targets"][t] for t in targets])
    rankings = {s: metrics.ranked(index.scores(walk["sources"][s]), targets, DEPTH) for s in gold}
    return metrics.of_rankings(rankings, gold)


def reranked(walk, rankings, rerank):
    """(recall@10, MRR@10) after the reranker, and the scores of gold and of other pairs."""
    gold, after, spread = metrics.gold_of(walk), {}, ([], [])
    for s, found in rankings.items():
        order = rerank(walk["sources"][s], {t: walk["targets"][t] for t in found})
        after[s] = [t for t, _ in order]
        for t, score in order:
            spread[t not in gold[s]].append(score)
    return metrics.of_rankings(after, gold), spread


def load_walks(controls, only):
    catalogs = load_catalogs(controls, held_out=True)
    out = []
    for path in sorted(Path(controls, "crosswalks").glob("*.json")):
        if only and path.stem not in only:
            continue
        source, target, gold = load_gold(path)
        out.append(crosswalk(path.stem, catalogs[source], catalogs[target], [(a, b) for a in gold for b in gold[a]]))
    return sorted(out, key=lambda w: (w["name"] not in HELD_OUT, w["name"]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--controls", required=True, help="folder with catalogs/ and crosswalks/")
    parser.add_argument("--models", default=Path(__file__).resolve().parent.parent / "models", help="folder with embedder/ and reranker/")
    parser.add_argument("--url", help="measure a running Nexus instead")
    parser.add_argument("--held-out", action="store_true", help="the held-out crosswalks only")
    parser.add_argument("--only", nargs="*", help="these crosswalks only")
    parser.add_argument("--no-reranker", action="store_true", help="leave the reranker out, by far the longest part")
    parser.add_argument("--no-minilm", action="store_true", help="leave all-MiniLM-L6-v2 out (it needs its package)")
    args = parser.parse_args()

    backend = Service(args.url) if args.url else Torch(args.models)
    embed = Cached(backend.embed)
    baseline = None
    if not args.no_minilm:
        from sentence_transformers import SentenceTransformer

        from teacher import package_path

        model = SentenceTransformer(package_path(), device="cpu")
        baseline = Cached(lambda texts: model.encode(texts, batch_size=64, normalize_embeddings=True, show_progress_bar=False))

    rows, spread = {}, ([], [])
    for walk in load_walks(args.controls, set(args.only or (HELD_OUT if args.held_out else ()))):
        row = [lexical(walk), metrics.retrieval(baseline, walk)[:2] if baseline else (float("nan"),) * 2]
        recall, mrr, rankings = metrics.retrieval(embed, walk)
        after, pair = ((float("nan"),) * 2, ([], [])) if args.no_reranker else reranked(walk, rankings, backend.rerank)
        rows[walk["name"]] = np.array([*row, (recall, mrr), after]).ravel()
        for k in (0, 1):
            spread[k].extend(pair[k])
        print(f"done {walk['name']}", file=sys.stderr, flush=True)

    print("| crosswalk | BM25 R@10 | MRR@10 | MiniLM R@10 | MRR@10 | embedder R@10 | MRR@10 | reranked R@10 | MRR@10 |")
    print("|---|---|---|---|---|---|---|---|---|")

    def line(name, values):
        print(f"| {name} | " + " | ".join("-" if np.isnan(v) else f"{v:.3f}" for v in values) + " |")

    for name, values in rows.items():
        line(name + (" (held out)" if name in HELD_OUT else ""), values)
    held = [v for n, v in rows.items() if n in HELD_OUT]
    if held:
        line(f"**mean, {len(held)} held out**", np.mean(held, axis=0))
    if len(rows) > len(held):
        line(f"**mean, all {len(rows)}**", np.mean(list(rows.values()), axis=0))
    if not args.no_reranker:
        print(f"\nReranker scores among the 20 candidates: gold median {np.median(spread[0]):.2f}, others median {np.median(spread[1]):.2f}.")


if __name__ == "__main__":
    main()
