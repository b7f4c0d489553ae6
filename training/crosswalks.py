"""The controls folder, the split into training, dev and held-out, and the pair lists derived from published mappings.

A crosswalk here is a dict: name, split ('train' or 'dev'), sources {id: text}, targets {id: text}, pairs [[id, id]].
Held-out crosswalks and the catalogs that only they use are never returned by `training_crosswalks`.
"""
import collections
from pathlib import Path

from common import bucket, read_json

HELD_OUT = (
    "nist-800-66r2__nist-800-53r5",
    "nist-800-66r2__nist-csf-1.1",
    "aws-security-hub__nist-800-53r5",
    "prowler-aws-checks__cisa-cyber-essentials",
)
HELD_OUT_CATALOGS = {"nist-800-66r2", "aws-security-hub", "cisa-cyber-essentials"}
# Wholly in the dev split: an unseen target catalog.
DEV_CROSSWALKS = {"prowler-aws-checks__ffiec-cat", "fedramp-ksi__nist-800-53r5"}
DEV_PERCENT = 15


def load_catalogs(controls, held_out=False):
    """{catalog: {control_id: text}}; without held_out, the held-out catalogs are not even read."""
    out = {}
    for path in sorted(Path(controls, "catalogs").glob("*.json")):
        if path.stem in HELD_OUT_CATALOGS and not held_out:
            continue
        out[path.stem] = {c["control_id"]: c["text"] for c in read_json(path)["controls"]}
    return out


def load_gold(path):
    """(source catalog, target catalog, {source id: set of target ids}) of one crosswalk file."""
    data = read_json(path)
    gold = collections.defaultdict(set)
    for a, b in data["pairs"]:
        gold[a].add(b)
    return data["source"], data["target"], dict(gold)


def is_dev_source(source_id):
    return bucket("dev:" + source_id) < DEV_PERCENT


def crosswalk(name, sources, targets, pairs, split="train"):
    pairs = sorted({(a, b) for a, b in pairs if a in sources and b in targets})
    used = {a for a, _ in pairs}
    return {
        "name": name,
        "split": split,
        "sources": {k: v for k, v in sources.items() if k in used},
        "targets": targets,
        "pairs": [list(p) for p in pairs],
    }


def split_by_source(walk):
    """Cut one crosswalk into its training and its dev part by the hash of the source id."""
    parts = []
    for split, wanted in (("train", False), ("dev", True)):
        pairs = [p for p in walk["pairs"] if is_dev_source(p[0]) == wanted]
        if pairs:
            parts.append(crosswalk(walk["name"], walk["sources"], walk["targets"], pairs, split))
    return parts


def training_crosswalks(controls):
    """The crosswalks of the controls folder that may be learnt from, with their dev parts."""
    catalogs = load_catalogs(controls)
    out = []
    for path in sorted(Path(controls, "crosswalks").glob("*.json")):
        if path.stem in HELD_OUT:
            continue
        source, target, gold = load_gold(path)
        pairs = [(a, b) for a in gold for b in gold[a]]
        walk = crosswalk(path.stem, catalogs[source], catalogs[target], pairs)
        if path.stem in DEV_CROSSWALKS:
            out.append({**walk, "split": "dev"})
        elif source == "prowler-aws-checks":
            out += split_by_source(walk)
        else:
            out.append(walk)
    return out


def co_mapped(walks, minimum_shared=4, minimum_overlap=0.3, per_source=4):
    """Pairs of controls from different catalogs that the same checks are mapped to.

    Two controls that share most of their checks speak about the same thing: this gives policy-to-policy pairs,
    which the check-to-policy crosswalks alone lack. Only training parts are composed.
    """
    checks = {}
    for walk in walks:
        by_target = collections.defaultdict(set)
        for a, b in walk["pairs"]:
            by_target[b].add(a)
        checks[walk["name"].split("__")[1]] = (walk["targets"], by_target)
    out = []
    names = sorted(checks)
    for i, left in enumerate(names):
        for right in names[i + 1 :]:
            (left_texts, left_checks), (right_texts, right_checks) = checks[left], checks[right]
            scored = []
            for a, ca in left_checks.items():
                row = []
                for b, cb in right_checks.items():
                    shared = len(ca & cb)
                    overlap = shared / len(ca | cb)
                    if shared >= minimum_shared and overlap >= minimum_overlap:
                        row.append((overlap, a, b))
                scored += sorted(row, reverse=True)[:per_source]
            pairs = [(a, b) for _, a, b in scored]
            if len(pairs) >= 10:
                out.append(crosswalk(f"co-mapped:{left}__{right}", left_texts, right_texts, pairs))
    return out
