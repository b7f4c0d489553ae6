"""The whole recipe: from public packages and a controls folder to models/embedder and models/reranker.

Stages run in order, each leaving its result in the work folder; a stage whose result is there is not repeated. With
--minutes a stage ends by the clock. `--stages` runs some of them only.
"""
import argparse
from pathlib import Path

import numpy as np
import torch

import adapter
import corpus
import embedder
import export
import reranker
import static
import teacher
import tokenizer
from common import seed_everything
from data import Data, looked_up, walk_texts
from pairs import PairSampler

STAGES = ("corpus", "adapt", "static", "distil", "tune", "embedder", "pretrain", "rank", "finish", "reranker")
VOCABULARY = 10240
STEPS = {"static": 1500, "distil": 3000, "tune": 800, "pretrain": 1000, "rank": 900, "finish": 400}


class Recipe:
    def __init__(self, controls, work, models, minutes):
        self.controls, self.work, self.models, self.minutes = controls, Path(work), Path(models), minutes
        self.parts = {}

    def path(self, name):
        return self.work / name

    def part(self, name, make):
        """A thing that several stages need, made once."""
        if name not in self.parts:
            self.parts[name] = make()
        return self.parts[name]

    @property
    def data(self):
        return self.part("data", lambda: Data(self.work))

    @property
    def teacher(self):
        return self.part("teacher", teacher.Teacher)

    @property
    def vocabulary(self):
        path = self.path("bpe.json")
        if not path.exists():
            tokenizer.train(self.data.near * 2 + self.data.texts, VOCABULARY).save(str(path))
        return tokenizer.Tokenizer.from_file(str(path))

    @property
    def original(self):
        """The teacher's vectors of the corpus."""
        return self.part("original", lambda: teacher.corpus_vectors(self.work, "original", self.data.texts, self.teacher))

    @property
    def tuned(self):
        """The tuned teacher's vectors of the corpus."""
        return self.part("tuned", lambda: np.load(self.path("tuned.npy")))

    def sampler(self, vectors):
        """Batches from the training crosswalks, hard negatives by these vectors of the corpus."""
        return PairSampler(self.data.train, self.data.self_pairs, lambda text: vectors[self.data.index[text]])

    def options(self, stage):
        return {"steps": STEPS[stage], "path": self.path(stage + ".pt"), "minutes": self.minutes.get(stage)}

    # --- the stages -------------------------------------------------------------------------------------------

    def corpus(self):
        if not self.path("crosswalks.json").exists():
            corpus.build(self.controls, self.work)

    def adapt(self):
        if self.path("tuned.npy").exists():
            return
        np.save(self.path("tuned.npy"), adapter.train(self.data, self.original, self.sampler(self.original)))

    def static(self):
        """Word vectors for both models, the reranker's narrower."""
        for kind, size in (("embedder", embedder.CONFIG["hidden_size"]), ("reranker", reranker.CONTENT)):
            path = self.path(f"static-{kind}.pt")
            if path.exists():
                continue
            table, matrix = embedder.initial_embeddings(self.vocabulary, self.teacher, size)
            rows = [e.ids for e in self.vocabulary.encode_batch(self.data.texts)]
            torch.save(static.train(table, matrix, rows, self.tuned, STEPS["static"], minutes=self.minutes.get("static")), path)

    def distil(self):
        if self.path("distil.pt").exists():
            return
        student = embedder.Embedder(self.vocabulary)
        student.start_from(*torch.load(self.path("static-embedder.pt")))
        embedder.distil(student, self.data, self.tuned, **self.options("distil"))

    def tune(self):
        if self.path("tune.pt").exists():
            return
        student = self.student("distil.pt")
        embedder.tune(student, self.data, self.tuned, self.sampler(self.tuned), **self.options("tune"))

    def embedder(self):
        export.write(self.models / "embedder", "embedder", self.student("tune.pt"))

    def pretrain(self):
        if self.path("pretrain.pt").exists():
            return
        student = reranker.Reranker(self.vocabulary)
        table, matrix = torch.load(self.path("static-reranker.pt"))
        student.start_from(table, matrix, self.data.near[::200])
        reranker.pretrain(student, self.data, matrix, self.tuned, self.tuned, **self.options("pretrain"))

    def rank(self):
        """Lists come from the distilled embedder, so that this stage and `tune` can run side by side."""
        self.fit_lists("rank", base="distil", start="pretrain", peak=4e-4)

    def finish(self):
        """Once more with the lists of the finished embedder."""
        self.fit_lists("finish", base="tune", start="rank", peak=2.5e-4)

    def fit_lists(self, stage, base, start, peak):
        if self.path(stage + ".pt").exists():
            return
        texts = walk_texts(self.data.train + self.data.dev)
        own = teacher.corpus_vectors(self.work, f"after-{base}", texts, self.student(base + ".pt"))
        known = {t: i for i, t in enumerate(texts)}
        tuned = self.tuned[[self.data.index[t] for t in texts]]
        alike = np.concatenate([own, tuned], axis=1) / np.sqrt(2)  # the mean of both likenesses

        def embed(wanted):
            return own[[known[t] for t in wanted]]

        student, aid = reranker.load(self.vocabulary, self.path(start + ".pt"), own.shape[1])
        lists, dev = reranker.Lists(self.data.train, embed), reranker.dev_lists(self.data, embed)
        print("dev MRR@10 in the embedder's order %.4f" % reranker.dev_rerank(student, dev, by="embedder")[1])
        reranker.rank(student, aid, known, tuned, alike, lists, dev, peak=peak, **self.options(stage))

    def reranker(self):
        tuned = self.student("tune.pt")
        dev = reranker.dev_lists(self.data, looked_up(tuned.embed, walk_texts(self.data.dev)))
        student, _ = reranker.load(self.vocabulary, self.path("finish.pt"), tuned.dimensions)
        print("dev recall@10, MRR@10: embedder's order", reranker.dev_rerank(student, dev, by="embedder"), "reranked", reranker.dev_rerank(student, dev))
        reranker.calibrate(student, dev, self.data.dev)
        export.write(self.models / "reranker", "reranker", student)

    def student(self, name):
        student = embedder.Embedder(self.vocabulary)
        student.model.load_state_dict(torch.load(self.path(name)))
        return student


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--controls", required=True, help="folder with catalogs/ and crosswalks/ (form: README.md)")
    parser.add_argument("--work", default=Path.home() / ".cache" / "nexus-training", help="scratch folder, outside the repository; about 2 GB")
    parser.add_argument("--models", default=Path(__file__).resolve().parent.parent / "models", help="where embedder/ and reranker/ are written")
    parser.add_argument("--minutes", nargs="*", default=[], metavar="STAGE=MINUTES", help="end a training stage by the clock")
    parser.add_argument("--stages", nargs="*", default=STAGES, choices=STAGES)
    args = parser.parse_args()
    recipe = Recipe(args.controls, args.work, args.models, {k: float(v) for k, v in (m.split("=") for m in args.minutes)})
    for stage in args.stages:
        seed_everything()
        print(f"== {stage}", flush=True)
        getattr(recipe, stage)()


if __name__ == "__main__":
    main()
