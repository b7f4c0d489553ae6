#!/usr/bin/env python3
"""The rules of ARCHITECTURE.md that a compiler does not check: who may depend on whom, where `unsafe` may stand,
how long a file may be, which words have no place in which crate.

A rule that gets in the way is changed here, with its reason, in the same commit as the code that needs it.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Each crate, and the crates of this workspace that it may depend on, tests included.
LAYERS = {
    "nexus-compute": set(),
    "nexus-vectors": set(),
    "nexus-storage": set(),
    "nexus-models": {"nexus-compute"},
    "nexus-engine": {"nexus-compute", "nexus-models", "nexus-storage"},
    "nexus-emulator": {"nexus-compute", "nexus-models"},
    # The emulator for tests alone.
    "nexus": {"nexus-compute", "nexus-emulator", "nexus-models", "nexus-engine", "nexus-vectors", "nexus-storage"},
}

# Only the service speaks HTTP and has a command line. socket2 and mio are what tokio's `net` feature brings.
HTTP = {"axum", "hyper", "reqwest", "tower-http", "utoipa", "clap"}
NETWORK = {"socket2", "mio"}
ASYNC = {"tokio", "futures"}
BARRED = {
    "nexus-compute": HTTP | NETWORK | ASYNC,
    "nexus-vectors": HTTP | NETWORK | ASYNC,
    "nexus-models": HTTP | NETWORK | ASYNC,
    "nexus-storage": HTTP | NETWORK,
    "nexus-engine": HTTP | NETWORK,
    "nexus-emulator": HTTP | NETWORK | ASYNC,
}

# Where `unsafe` may stand: SIMD kernels with what hands them memory and what measures them, foreign libraries,
# memory-mapped weights and target sets.
UNSAFE_ALLOWED = (
    "crates/compute/examples/gemm_bench.rs",
    "crates/compute/src/cpu/",
    "crates/compute/src/cuda/",
    "crates/compute/tests/allocations.rs",
    "crates/emulator/src/",
    "crates/vectors/src/cosine/x86.rs",
    "crates/vectors/src/json/number/avx2.rs",
    "crates/models/src/files.rs",
    "crates/storage/src/targets/map.rs",
)
UNSAFE = re.compile(r"\bunsafe\s*(?:\{|fn\b|impl\b|extern\b|trait\b)|#!?\[unsafe\(|#!?\[(?:allow|expect|warn)\(unsafe_code")
# What the compiler is told in the root of each library, program, test, example and build script. What is forbidden
# nothing below can allow, so `deny` is for those that have a place of UNSAFE_ALLOWED in them.
FORBIDDEN = re.compile(r"^#!\[forbid\(unsafe_code\)\]", re.M)
DENIED = re.compile(r"^#!\[deny\(unsafe_code\)\]", re.M)

LINES_MAX = 700
CODE = {".rs", ".py", ".sh", ".js", ".mjs", ".ts"}

# (where, pattern, why). Comments count too: a crate that has to mention a name mostly knows too much.
WORDS = [
    ("crates/compute/src/", re.compile(r"qwen|bert\b", re.I), "compute never names a model"),
    ("crates/models/src/", re.compile(r"\bcuda\b|\bavx|\bgpu\b", re.I), "models never names a device"),
    *[
        (f"crates/{name}/src/", re.compile(r"\benv::(?:var|vars|var_os)\b"), "only the service reads the environment")
        for name in ("compute", "models", "engine", "vectors", "storage")
    ],
    ("", re.compile(r"^(?:<{7}|>{7}) ", re.M), "a merge was not finished"),
    ("", re.compile(r"@@[A-Z_]+@@"), "a placeholder that was not filled in"),
    ("", re.compile(r"(?<![\w.~}/])/(?:work|root|Users)/"), "a path of one machine"),
    ("", re.compile(r"\.\./shared\b"), "a path outside the repository"),
    ("", re.compile(r"\bissue #?\d+\b", re.I), "say what it is about, or link it in full"),
]
TEXT = CODE | {".md", ".toml", ".json", ".csv", ".txt", ".yaml", ".yml", ""}
EXEMPT = {"scripts/check_house.py", "LICENSE"}


def output(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout


def files():
    """Tracked files and new ones that git does not ignore. A copy without git has all its files looked at."""
    try:
        names = output("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    except (OSError, subprocess.CalledProcessError):
        skip = {".git", "target", "coverage", "node_modules", "__pycache__", ".venv"}
        names = [str(p.relative_to(ROOT)) for p in ROOT.rglob("*") if not skip & set(p.relative_to(ROOT).parts)]
    return sorted(name for name in set(names) if name and (ROOT / name).is_file())


def dependencies(crate, edges):
    """Names in a crate's tree, built by itself: features that only other crates of the workspace ask for stay out."""
    tree = output("cargo", "tree", "--locked", "--package", crate, "--edges", edges, "--prefix", "none")
    return {line.split()[0] for line in tree.splitlines() if line.strip()} - {crate}


def layers():
    listed = re.findall(r'^name = "(nexus[\w-]*)"', "\n".join(p.read_text() for p in ROOT.glob("crates/*/Cargo.toml")), re.M)
    for crate in set(listed) - set(LAYERS):
        yield f"crate {crate}: not in LAYERS of scripts/check_house.py: say what it may depend on"
    for crate, allowed in LAYERS.items():
        for found in sorted(dependencies(crate, "normal,build,dev") & set(LAYERS) - allowed):
            yield f"crate {crate} depends on {found}"
        for found in sorted(dependencies(crate, "normal,build") & BARRED.get(crate, set())):
            yield f"crate {crate} depends on {found}, directly or not: see BARRED in scripts/check_house.py"


def roots():
    """The file that each target of each crate begins with, the fuzz targets' included."""
    for manifest in ("Cargo.toml", "fuzz/Cargo.toml"):
        metadata = output("cargo", "metadata", "--locked", "--no-deps", "--format-version", "1", "--manifest-path", manifest)
        for package in json.loads(metadata)["packages"]:
            for target in package["targets"]:
                yield str(Path(target["src_path"]).relative_to(ROOT)), "lib" in target["kind"]


def unsafe_code():
    for root, is_library in roots():
        text = (ROOT / root).read_text()
        # A library has the files beside its root, too.
        below = str(Path(root).parent) + "/" if is_library else root
        allowed = any(place.startswith(below) for place in UNSAFE_ALLOWED) or root.startswith(UNSAFE_ALLOWED)
        if not (DENIED if allowed else FORBIDDEN).search(text):
            yield f"{root}: #![{'deny' if allowed else 'forbid'}(unsafe_code)] is missing"


def texts(names):
    for name in names:
        suffix = Path(name).suffix
        if suffix not in TEXT or name in EXEMPT:
            continue
        try:
            text = (ROOT / name).read_text()
        except UnicodeDecodeError:
            continue
        lines = text.count("\n")
        if suffix in CODE and lines > LINES_MAX and not name.endswith(".min.js"):
            yield f"{name}: {lines} lines, more than {LINES_MAX}: it has become two things"
        if suffix == ".rs" and not name.startswith(UNSAFE_ALLOWED):
            for match in UNSAFE.finditer(re.sub(r"//.*", "", text)):
                line = re.sub(r"//.*", "", text).count("\n", 0, match.start()) + 1
                yield f"{name}:{line}: unsafe code outside the places that may have it"
        for where, pattern, why in WORDS:
            if name.startswith(where):
                for match in pattern.finditer(text):
                    line = text.count("\n", 0, match.start()) + 1
                    yield f"{name}:{line}: {match.group(0).strip()!r}: {why}"


def main():
    names = files()
    problems = [*layers(), *unsafe_code(), *texts(names)]
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        sys.exit(1)
    print(f"{len(LAYERS)} crates and {len(names)} files: layers, unsafe, lengths and words as they should be")


if __name__ == "__main__":
    main()
