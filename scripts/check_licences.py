#!/usr/bin/env python3
"""Licences, bans and sources of the dependency tree against deny.toml, without cargo-deny and without a network.

cargo-deny says more (it reads licence texts and advisories); this is the part that can be checked on any machine that
has built the project. It looks at what this machine's platform needs.
"""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def host():
    out = subprocess.run(["rustc", "-vV"], check=True, capture_output=True, text=True).stdout
    return re.search(r"^host: (\S+)$", out, re.M).group(1)


def metadata():
    command = ["cargo", "metadata", "--format-version", "1", "--locked", "--filter-platform", host()]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout)


def permitted(expression, allowed):
    """Whether an SPDX expression can be met with the allowed licences. `/` is crates.io's old way to say OR."""
    words = re.findall(r"\(|\)|[^\s()]+", expression.replace("/", " OR "))
    at = 0

    def take(word):
        nonlocal at
        if at < len(words) and words[at] == word:
            at += 1
            return True
        return False

    def either():
        found = both()
        while take("OR"):
            found |= both()
        return found

    def both():
        found = one()
        while take("AND"):
            found &= one()
        return found

    def one():
        nonlocal at
        if take("("):
            found = either()
            if not take(")"):
                raise ValueError(expression)
            return found
        name = words[at]
        at += 1
        if take("WITH"):
            name += " WITH " + words[at]
            at += 1
        return name in allowed

    try:
        found = either()
    except IndexError:
        raise ValueError(expression) from None
    if at != len(words):
        raise ValueError(expression)
    return found


def self_test():
    allowed = {"MIT", "Apache-2.0"}
    for expression, expected in [
        ("MIT", True),
        ("MIT OR GPL-3.0", True),
        ("MIT/GPL-3.0", True),
        ("MIT AND GPL-3.0", False),
        ("(MIT OR GPL-3.0) AND Apache-2.0", True),
        ("GPL-3.0 OR MIT AND Zlib", False),
        ("Apache-2.0 WITH LLVM-exception", False),
        ("Apache-2.0 WITH LLVM-exception OR MIT", True),
    ]:
        assert permitted(expression, allowed) is expected, expression


def main():
    self_test()
    deny = tomllib.loads((ROOT / "deny.toml").read_text())
    allowed = set(deny["licenses"]["allow"])
    excepted = {e.get("crate", e.get("name")): set(e["allow"]) for e in deny["licenses"].get("exceptions", [])}
    banned = {b["name"]: b.get("reason", "") for b in deny["bans"]["deny"]}
    denied_features = {f["crate"]: set(f["deny"]) for f in deny["bans"].get("features", [])}
    registries = set(deny["sources"]["allow-registry"])

    tree = metadata()
    features = {node["id"]: set(node["features"]) for node in tree["resolve"]["nodes"]}
    packages = [p for p in tree["packages"] if p["id"] in features]
    problems = []
    for package in packages:
        name = f"{package['name']} {package['version']}"
        licence = package["license"]
        if licence is None:
            problems.append(f"{name}: states no licence")
        else:
            try:
                if not permitted(licence, allowed | excepted.get(package["name"], set())):
                    problems.append(f"{name}: licence {licence} is not on deny.toml's list")
            except ValueError:
                problems.append(f"{name}: cannot read the licence expression {licence}")
        if package["name"] in banned:
            problems.append(f"{name}: banned: {banned[package['name']]}")
        if found := features[package["id"]] & denied_features.get(package["name"], set()):
            problems.append(f"{name}: built with {', '.join(sorted(found))}, which deny.toml forbids")
        source = package["source"]
        if source is not None and source.removeprefix("registry+") not in registries:
            problems.append(f"{name}: comes from {source}")
        if source is None and not Path(package["manifest_path"]).is_relative_to(ROOT):
            problems.append(f"{name}: lies outside the repository")
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        sys.exit(1)
    print(f"{len(packages)} packages: licences, bans and sources as deny.toml has them")


if __name__ == "__main__":
    main()
