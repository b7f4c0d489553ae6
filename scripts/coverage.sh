#!/usr/bin/env bash
# Which lines the tests reach: writes coverage/index.html and prints a summary.
#
#     scripts/coverage.sh                     all crates
#     scripts/coverage.sh -p nexus-storage    one crate, or any other arguments of `cargo test`
#
# Uses rustc's own instrumentation and LLVM's own tools; cargo-llvm-cov is not needed. The tools have to be as new as
# the LLVM inside rustc: they are taken from the toolchain (llvm-tools) or from llvm-NN of the distribution.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/lib.sh

need_command cargo "install Rust from https://rustup.rs"
need_command python3 "" python3

host="$(rustc -vV | sed -n 's/^host: //p')"
llvm="$(rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')"

# Prints the path of an LLVM tool of rustc's version; fails where there is none.
llvm_tool() {
    local candidate
    for candidate in "$(rustc --print sysroot)/lib/rustlib/$host/bin/$1" "$1-$llvm" "$1"; do
        if "$candidate" --version 2>/dev/null | grep -q "LLVM version $llvm\."; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    return 1
}

if ! llvm_tool llvm-cov >/dev/null || ! llvm_tool llvm-profdata >/dev/null; then
    if ! { command -v rustup >/dev/null && timeout 300 rustup component add llvm-tools; }; then
        apt_install "llvm-$llvm" || true
    fi
fi
profdata="$(llvm_tool llvm-profdata)" || fail "llvm-profdata $llvm is missing: rustup component add llvm-tools, or apt-get install llvm-$llvm"
cov="$(llvm_tool llvm-cov)" || fail "llvm-cov $llvm is missing: rustup component add llvm-tools, or apt-get install llvm-$llvm"

work="$target/coverage"
rm -rf "$work" coverage
mkdir -p "$work/profiles" "$work/discard"

# Only the crates of this workspace are instrumented: cargo calls this wrapper for them and not for dependencies,
# which are therefore shared with ordinary builds.
wrapper="$work/rustc"
cat >"$wrapper" <<'WRAPPER'
#!/bin/sh
exec "$@" -C instrument-coverage
WRAPPER
chmod +x "$wrapper"
export RUSTC_WORKSPACE_WRAPPER="$wrapper"

[ $# -gt 0 ] || set -- --workspace

# Build scripts are instrumented too; what they leave is not of interest.
LLVM_PROFILE_FILE="$work/discard/%p-%m.profraw" \
    cargo test --locked --no-run --message-format=json-render-diagnostics "$@" >"$work/build.json"
python3 - "$work/build.json" >"$work/objects" <<'PYTHON'
import json, sys
seen = set()
for line in open(sys.argv[1]):
    message = json.loads(line)
    if message.get("reason") == "compiler-artifact" and message.get("executable"):
        seen.add(message["executable"])
print("\n".join(sorted(seen)))
PYTHON
[ -s "$work/objects" ] || fail "no test programs were built"

# %p: one file per process. Black-box tests start the service, which writes its own when it ends. A failing test does
# not cost the report, but is not forgotten either.
tests=0
LLVM_PROFILE_FILE="$work/profiles/%p-%m.profraw" cargo test --locked --no-fail-fast "$@" || tests=$?

"$profdata" merge --sparse --output "$work/all.profdata" "$work"/profiles/*.profraw

mapfile -t objects <"$work/objects"
arguments=("${objects[0]}")
for object in "${objects[@]:1}"; do
    arguments+=(--object "$object")
done
arguments+=(--instr-profile "$work/all.profdata" --ignore-filename-regex '/(\.cargo|\.rustup|rustc|target)/|/tests(/|\.rs$)')

"$cov" show "${arguments[@]}" --format html --output-dir coverage \
    --project-title "Nexus: lines reached by the tests"
"$cov" report "${arguments[@]}" --show-region-summary=false --show-branch-summary=false
printf '\n%s\n' "coverage/index.html"
[ "$tests" -eq 0 ] || fail "some tests failed: see above"
