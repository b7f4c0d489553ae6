#!/usr/bin/env bash
# Fuzzes everything that reads what others wrote (bodies, models' files, catalogs, keys, target sets) with libFuzzer: every
# target for some minutes, or some of them for longer.
#
#     scripts/fuzz.sh [MINUTES [TARGET...]]
#
# Targets are in fuzz/targets. What is found is kept in target/fuzz/corpus and goes on from there the next time; an input
# that fails is left in target/fuzz/findings, and TARGET with that file as its argument runs it again.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/lib.sh

minutes="${1:-10}"
# libFuzzer takes 0 for no end at all.
[ "$minutes" -gt 0 ] || fail "MINUTES: expected 1 or more"
shift || true
[ $# -gt 0 ] || set -- numbers json_body tensor_body text_body api_keys catalog config tokenizer weights target_set

need_command cargo "install Rust from https://rustup.rs"
need_command c++ "" g++

# What cargo-fuzz passes, without the sanitizers, which need another compiler.
export RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1"
host="$(rustc -vV | sed -n 's/^host: //p')"
# With a target named, build scripts and macros are spared the flags.
cargo build --locked --release --manifest-path fuzz/Cargo.toml --target "$host" --target-dir "$target/fuzz"

# Files that targets write and map lie in memory, where there is a place for that: thousands are written a second.
files="$(mktemp -d "$([ -w /dev/shm ] && echo /dev/shm || echo "$target/fuzz")/nexus-fuzz.XXXXXX")"
trap 'rm -rf "$files"' EXIT

for name in "$@"; do
    corpus="$target/fuzz/corpus/$name"
    findings="$target/fuzz/findings/$name-"
    mkdir -p "$corpus" "$target/fuzz/findings"
    seeds=()
    [ ! -d "fuzz/seeds/$name" ] || seeds=("fuzz/seeds/$name")
    echo "==> $name for $minutes minutes"
    TMPDIR="$files" "$target/fuzz/$host/release/$name" "$corpus" "${seeds[@]}" -artifact_prefix="$findings" \
        -max_total_time=$((minutes * 60)) -max_len=4096 -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 2>&1 |
        grep -vE '^#[0-9]+.*(NEW|REDUCE|pulse)' || fail "$name failed: see above and $findings*"
done
