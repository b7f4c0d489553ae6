#!/usr/bin/env bash
# Checks and measures a device: for a machine with an NVIDIA GPU, Python and PyTorch, but no Rust and no network.
#
#     bench/gpu.sh BINARY [--device cuda:0] [--shape full] [--work FOLDER] [conformance|golden|models|timings]...
#
# BINARY is what scripts/travelling.sh built. Without a part, all of them run. Models are made in the work folder
# (17 GB) where they are missing. `--device cpu --shape tiny` rehearses all of it on any machine. The exit status is 0
# when every part passed.
#
# PYTHON names the interpreter, with torch, transformers, safetensors and numpy.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
golden="$here/../crates/models/tests/golden"
usage="usage: bench/gpu.sh BINARY [--device cuda:N|cpu] [--shape full|tiny] [--work FOLDER] [conformance|golden|models|timings]..."

binary="" device=cuda:0 shape=full work="" parts=()
while [ $# -gt 0 ]; do
    case "$1" in
    --device | --shape | --work)
        [ $# -ge 2 ] || { echo "$1: a value is missing. $usage" >&2; exit 2; }
        case "$1" in --device) device="$2" ;; --shape) shape="$2" ;; --work) work="$2" ;; esac
        shift
        ;;
    conformance | golden | models | timings) parts+=("$1") ;;
    -*) echo "$1 is no option. $usage" >&2; exit 2 ;;
    *)
        [ -z "$binary" ] || { echo "$1 is no part. $usage" >&2; exit 2; }
        binary="$(realpath "$1")"
        ;;
    esac
    shift
done
[ -n "$binary" ] || { echo "$usage" >&2; exit 2; }
[ -x "$binary" ] || { echo "$binary is no program: build it with scripts/travelling.sh (and chmod +x it here)" >&2; exit 2; }
[ "${#parts[@]}" -gt 0 ] || parts=(conformance golden models timings)
work="${work:-${TMPDIR:-/tmp}/nexus-gpu}"
mkdir -p "$work"

failed=()
for part in "${parts[@]}"; do
    echo "== $part on $device"
    start=$SECONDS
    case "$part" in
    conformance) command=("$binary" bench --device "$device" conformance) ;;
    golden) command=("$binary" bench --device "$device" golden "$golden"/qwen3-* "$golden"/modernbert-*) ;;
    models | timings)
        command=("${PYTHON:-python3}" "$here/gpu/main.py" "$part" "$binary" --device "$device" --shape "$shape" --work "$work")
        ;;
    esac
    "${command[@]}" || failed+=("$part")
    echo "== $part took $((SECONDS - start)) s"
done
[ "${#failed[@]}" -eq 0 ] || { echo "FAILED: ${failed[*]}" >&2; exit 1; }
