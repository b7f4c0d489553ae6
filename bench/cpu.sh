#!/usr/bin/env bash
# Nexus on the CPU beside PyTorch, ONNX Runtime and llama.cpp: bench/cpu.sh NEXUS --work FOLDER [--controls DIR] [--tiny]
#
# NEXUS is a release build with `--features bench`. Python (PYTHON names the interpreter) has torch, transformers, tokenizers,
# safetensors and numpy; with onnx, onnxscript and onnxruntime, and with llama-cpp-python and gguf, those peers run as well.
# First the parts of the engine against this CPU's peak, then whole models, then where their time goes.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
nexus=$1
echo "## Operations"
echo
(cd "$here/.." && cargo run -q --release -p nexus-compute --example gemm_bench -- "${NEXUS_CPU_ISA:-auto}")
echo
echo "## Models"
echo
"${PYTHON:-python3}" "$here/cpu/table.py" "$@"
echo
echo "## Stages"
echo
work=$(printf '%s\n' "$@" | sed -n '/^--work$/{n;p;q}')
size=full
case " $* " in *" --tiny "*) size=tiny ;; esac
for pair in "modernbert-$size rerank" "qwen3-$size embed"; do
    read -r model tokens <<<"$pair"
    "$nexus" bench stages "$work/$model" --tokens "$work/$tokens.tokens.json"
done
for name in embedder reranker; do
    "$nexus" bench stages "$here/../models/$name" --tokens "$work/built-in-$name.tokens.json"
done
