#!/usr/bin/env bash
# Runs the tests of the code that has `unsafe` in it and no GPU under AddressSanitizer: the CPU's kernels of every
# instruction set that this machine has, vectors and numbers, mapped weights and mapped target sets. A read or write beside
# what was allocated, or of what was freed, ends it with a report.
#
#     scripts/sanitize.sh [CRATE...]
#
# With the stable compiler: RUSTC_BOOTSTRAP lets it take the flag, and the sanitizer's library comes with it. The standard
# library is not instrumented, but what of it is inlined is, intrinsics included. Artifacts go to target/asan (or
# CARGO_TARGET_DIR/asan).
#
# Deliberately absent: data races and uninitialized memory, whose sanitizers need a standard library of their own; GPU
# kernels, which crates/emulator checks with guards around each allocation.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/lib.sh

[ $# -gt 0 ] || set -- nexus-compute nexus-vectors nexus-models nexus-storage
seconds_max=600

need_command cargo "install Rust from https://rustup.rs"
need_command cc "" gcc libc6-dev
host="$(rustc -vV | sed -n 's/^host: //p')"
library="$(rustc --print sysroot)/lib/rustlib/$host/lib"
compgen -G "$library/librustc-*_rt.asan.a" >/dev/null || fail "this Rust comes without AddressSanitizer for $host"

export RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer=address"
export CARGO_TARGET_DIR="$target/asan"
# Leaks are not what this is about, and looking for them needs rights that containers may lack.
export ASAN_OPTIONS="detect_leaks=0:abort_on_error=0:detect_stack_use_after_return=1"
export PROPTEST_CASES="${PROPTEST_CASES:-64}"

# sanitized CRATE ARGUMENT...: `cargo test` of it, built first, which is not what the time is for.
sanitized() {
    local crate="$1" status=0
    shift
    echo "==> $crate ${*} (at $SECONDS s)"
    # With a target named, build scripts and macros are spared the flags.
    cargo test --locked --package "$crate" --target "$host" "$@" --no-run
    timeout "$seconds_max" cargo test --quiet --locked --package "$crate" --target "$host" "$@" || status=$?
    [ "$status" -ne 124 ] || fail "$crate took more than $seconds_max s"
    [ "$status" -eq 0 ] || fail "$crate failed under AddressSanitizer: see above"
}

for crate in "$@"; do
    # The tests whose code is unsafe, or calls what is.
    case "$crate" in
        nexus-compute) sanitized "$crate" --lib --test conformance --test int8 --test linear_properties ;;
        nexus-vectors) sanitized "$crate" --lib --tests ;;
        nexus-models) sanitized "$crate" --lib --test load_errors --test arriving --test packed_weights --test golden ;;
        nexus-storage) sanitized "$crate" --lib --test target_sets ;;
        *) fail "CRATE: expected nexus-compute, nexus-vectors, nexus-models or nexus-storage" ;;
    esac
done
echo "Nothing was read or written out of place (at $SECONDS s)"
