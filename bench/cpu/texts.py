"""Real texts as token ids: 16 controls to embed, and 50 pairs to rerank.

They come from a folder of controls where there is one (`catalogs/<name>.json`, as training/README.md tells), else from
examples/, whose texts are taken together until they are as long as controls of NIST are.
"""

import csv
import json
import pathlib

from tokenizers import Tokenizer

ROOT = pathlib.Path(__file__).resolve().parents[2]
SOURCES, TARGETS = "aws-security-hub", "nist-800-53r5"
EMBEDDED, PAIRS = 16, 50
# Most controls are shorter. The few that fill pages would be most of the tokens.
CHARACTERS_MAX = 700


def sequences(controls):
    """(16 texts, 50 pairs) as lists of ids of the built-in models' tokenizers."""
    catalogs = from_folder(controls) if controls else from_examples()
    sources, targets = ([text for text in catalog if len(text) <= CHARACTERS_MAX] for catalog in catalogs)
    source, candidates = sources[0], spread(targets, PAIRS)
    embedder = Tokenizer.from_file(str(ROOT / "models/embedder/tokenizer.json"))
    reranker = Tokenizer.from_file(str(ROOT / "models/reranker/tokenizer.json"))
    for tokenizer in (embedder, reranker):
        tokenizer.no_padding()
        tokenizer.enable_truncation(512)
    embedded = spread(sources, EMBEDDED // 2) + spread(targets, EMBEDDED // 2)
    return ([embedder.encode(text).ids for text in embedded],
            [reranker.encode(source, candidate).ids for candidate in candidates])  # fmt: skip


def from_folder(folder):
    def texts(name):
        controls = json.loads((pathlib.Path(folder) / "catalogs" / f"{name}.json").read_text())["controls"]
        return [control["text"] for control in controls]

    return texts(SOURCES), texts(TARGETS)


def from_examples():
    checks = json.loads((ROOT / "examples/cloud-checks.json").read_text())
    checks = [control["text"] for control in (checks if isinstance(checks, list) else checks["controls"])]
    with (ROOT / "examples/policy-controls.csv").open() as file:
        policies = [row["text"] for row in csv.DictReader(file)]
    long = [" ".join(policies[(i + n) % len(policies)] for n in range(1 + i % 4)) for i in range(PAIRS)]
    return checks, long


def spread(texts, count):
    """As many of them, evenly spread; some twice where there are fewer."""
    return [texts[i * len(texts) // count] if len(texts) >= count else texts[i % len(texts)] for i in range(count)]
