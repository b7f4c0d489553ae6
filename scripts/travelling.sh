#!/usr/bin/env bash
# Builds the binary that bench/gpu.sh takes to a machine with a GPU: engine, HTTP and benchmarks; no built-in models, no
# AWS, no model hubs, no symbols. Prints its path and size, and fails where it would not travel.
#
#     scripts/travelling.sh
#
# It runs where the C library is at least as new as here: build on the oldest that is to be met.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/lib.sh

need_command cargo "install Rust from https://rustup.rs"

bytes_max=20000000
cargo build --locked --package nexus --profile travelling --no-default-features --features bench
binary="${CARGO_TARGET_DIR:-target}/travelling/nexus"
bytes="$(stat --format=%s "$binary")"
[ "$bytes" -lt "$bytes_max" ] || fail "$binary has $bytes bytes: expected less than $bytes_max"
echo "$binary: $bytes bytes"
