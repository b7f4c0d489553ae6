#!/usr/bin/env bash
# Everything that must hold before a change goes in: the same here, in continuous integration and on a fresh Debian
# machine with Rust, Node and Python. What else it needs it installs, or says in one line what is missing.
#
#     scripts/test.sh
#
# Artifacts go to target/ (or CARGO_TARGET_DIR). One test alone: cargo test -p nexus-vectors NAME
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/lib.sh
export CARGO_TERM_COLOR="${CARGO_TERM_COLOR:-auto}"

section="start"
at_exit() {
    local status=$?
    [ "$status" -eq 0 ] || printf '\nFAILED in: %s\n' "$section" >&2
}
trap at_exit EXIT

section() {
    section="$1"
    printf '\n==> %s (at %d s)\n' "$section" "$SECONDS"
}

# The files of the repository whose names match, new ones included; all of them in a copy without git.
files() {
    if git rev-parse --is-inside-work-tree >/dev/null 2>&1; then
        git ls-files --cached --others --exclude-standard -- "$@"
    else
        local pattern
        for pattern in "$@"; do
            find . \( -name target -o -name node_modules -o -name .git -o -name .venv \) -prune -o -name "$pattern" -print
        done
    fi
}

section "What the tests need"
need_command cargo "install Rust from https://rustup.rs"
need_command python3 "" python3
need_command cc "" gcc libc6-dev
need_command make "" make
need_component rustfmt cargo-fmt
need_component clippy cargo-clippy
rustc --version
python3 --version
python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "Python 3.11 or newer is needed"

section "Format"
cargo fmt --all --check

section "Layers, unsafe code, file lengths, words"
python3 scripts/check_house.py

section "Licences, bans, sources"
python3 scripts/check_licences.py
if cargo deny --version >/dev/null 2>&1; then
    cargo deny --locked check licenses bans sources
else
    echo "cargo-deny is not installed: its fuller check is left out (cargo install --locked cargo-deny)"
fi

section "Python, shell and JavaScript parse"
files '*.py' | PYTHONPYCACHEPREFIX="$target/pycache" xargs --no-run-if-empty --delimiter '\n' python3 -m py_compile
files '*.sh' .ci/run | while read -r script; do bash -n "$script"; done
if command -v shellcheck >/dev/null; then
    files '*.sh' .ci/run | xargs --no-run-if-empty --delimiter '\n' shellcheck --external-sources
else
    echo "shellcheck is not installed: left out"
fi
if command -v node >/dev/null; then
    files '*.js' '*.mjs' | while read -r script; do node --check "$script"; done
else
    echo "node is not installed: JavaScript is not looked at"
fi

# The image, the compose file and the ECS task definition; then the CDK app, synthesized and asserted without AWS.
section "Deployment"
python3 scripts/check_deploy.py
need_command node "install Node 20 or newer" nodejs
need_command npm "install Node 20 or newer" npm
node --eval 'process.exit(parseInt(process.versions.node) < 20 ? 1 : 0)' || fail "Node 20 or newer is needed: this is $(node --version)"
if ! cmp --silent deploy/cdk/package-lock.json "$target/cdk/package-lock.json" || [ ! -d deploy/cdk/node_modules ]; then
    npm ci --prefix deploy/cdk --ignore-scripts --no-audit --no-fund
    mkdir -p "$target/cdk" && cp deploy/cdk/package-lock.json "$target/cdk/"
fi
# The variables keep it from asking the registry for a newer version of itself, and instance metadata for an account.
(cd deploy/cdk && export CDK_DISABLE_VERSION_CHECK=1 CDK_DISABLE_CLI_TELEMETRY=1 AWS_EC2_METADATA_DISABLED=true &&
    node_modules/.bin/cdk synth --quiet --no-notices --output "$target/cdk/out" && node --test build/test/*.test.js)

section "The status page, in every state"
[ -n "${CHROMIUM:-}" ] || need_command chromium "" chromium fonts-dejavu-core
node scripts/check_status_page.mjs --mock "$target/status-page"

section "Clippy"
cargo clippy --locked --workspace --all-targets -- -D warnings

section "Without AWS, model hubs and built-in models, with benchmarks"
cargo clippy --locked --package nexus --no-default-features --features bench -- -D warnings
sdk="$(cargo tree --locked --package nexus --no-default-features --edges normal --prefix none | grep '^aws-' || true)"
[ -z "$sdk" ] || fail "a build without the feature aws has: $sdk"

section "Fuzz targets compile"
need_command c++ "" g++
cargo check --quiet --locked --manifest-path fuzz/Cargo.toml --target-dir "$target/fuzz-check"

section "GPU kernels compile"
scripts/check_kernels.sh

section "Documentation"
RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps --document-private-items --quiet

# Unit tests, golden vectors, the checked-in openapi.json and README table, black-box tests that start the real
# binary, and documentation tests. With `nexus bench`, whose tests are few: one build less than without it.
section "Tests"
cargo test --locked --workspace --features nexus/bench

section "Status page, dashboards and alerts, on the real binary"
python3 scripts/check_seen.py "$target/debug/nexus" "$target/seen"

# They mostly wait, for limits and pauses to pass: more at once than there are cores.
section "Tests on an S3 and a DynamoDB"
scripts/aws_services.sh cargo test --locked --package nexus --features bench --test aws -- --include-ignored --test-threads 4

section "All passed"
