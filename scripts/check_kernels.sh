#!/usr/bin/env bash
# Compiles every kernel for every architecture that is supported, with the oldest and the newest NVRTC, as a device would:
# no spills, no local memory; then opens a device with each, on a driver that stands in for NVIDIA's. Needs no GPU; NVRTC comes from PyPI, once, into target/nvrtc.
#
#     scripts/check_kernels.sh [FILE.cu...]
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/lib.sh

architectures=(sm_80 sm_86 sm_89 sm_90 sm_100 sm_120)

# nvrtc PACKAGE VERSION: prints the folder with its library, installed if it is not there.
nvrtc() {
    local package="$1" version="$2"
    local folder="$target/nvrtc/$version"
    if [ ! -e "$folder/installed" ]; then
        rm -rf "$folder"
        python3 -m venv "$folder" >&2
        "$folder/bin/pip" install --quiet --no-deps --disable-pip-version-check "$package==$version" >&2 ||
            fail "$package $version can not be installed from PyPI"
        touch "$folder/installed"
    fi
    local library
    library="$(find "$folder" -name 'libnvrtc.so.*' -not -name '*.alt.*' -print -quit)"
    [ -n "$library" ] || fail "$folder has no libnvrtc.so: remove the folder, and this installs it again"
    dirname "$(realpath "$library")"
}

python3 -c 'import ensurepip, venv' 2>/dev/null || apt_install python3-venv ||
    fail "Python's venv is missing: apt-get install python3-venv"
cargo build --quiet --locked --package nexus-compute --example kernels
for toolkit in "nvidia-cuda-nvrtc 13.0.88" "nvidia-cuda-nvrtc-cu12 12.8.93"; do
    read -r package version <<<"$toolkit"
    folder="$(nvrtc "$package" "$version")"
    LD_LIBRARY_PATH="$folder" "$target/debug/examples/kernels" "${architectures[@]}" "$@" ||
        fail "kernels do not pass with NVRTC $version"
    NVRTC_FOLDER="$folder" cargo test --quiet --locked --package nexus-compute --test cuda_stubs -- \
        --ignored --exact a_device_is_opened_with_a_real_compiler
done
