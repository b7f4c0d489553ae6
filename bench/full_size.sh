#!/usr/bin/env bash
# Qwen3-Embedding-8B's full size on a CPU: bench/full_size.sh NEXUS --work FOLDER [--layers N]
#
# Needs 24 GB of memory and 32 GB of disk in FOLDER, and Python with torch, transformers, safetensors and numpy (PYTHON
# names the interpreter). As root it drops the page cache before each start, so that starts are cold. `--layers 2` is a
# rehearsal of a minute.
set -euo pipefail
exec "${PYTHON:-python3}" "$(dirname "$0")/cpu/full_size.py" "$@"
