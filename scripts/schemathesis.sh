#!/usr/bin/env bash
# Holds a running service against openapi.json: schemathesis makes requests out of it, valid and invalid, and looks at every
# answer (no 5xx, statuses and bodies as specified, what is invalid refused, what is valid taken).
#
#     scripts/schemathesis.sh [keys]
#
# With `keys`, the service asks for API keys. SEED (1) and EXAMPLES (30, for each endpoint) say what is tried;
# NEXUS_BINARY is the service, built from this tree where it is unset. What schemathesis is, by exact version, is in
# scripts/schemathesis; it is installed under target/schemathesis (or CARGO_TARGET_DIR) once, and again when that changes.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/lib.sh

mode="${1:-open}"
case "$mode" in open | keys) ;; *) fail "usage: scripts/schemathesis.sh [keys]" ;; esac
case "$target" in /*) ;; *) target="$PWD/$target" ;; esac
tools="$target/schemathesis"
requirements="$PWD/scripts/schemathesis/requirements.txt"
seconds_max=240

need_command python3 "" python3
python3 -c 'import ensurepip, venv' 2>/dev/null || apt_install python3-venv ||
    fail "Python's venv is missing: apt-get install python3-venv"
mkdir -p "$tools"
# Two runs of this script must not install at the same time.
exec {lock}>"$tools/lock"
flock "$lock"
stamp="$(python3 --version) $(sha256sum <"$requirements")"
if [ "$(cat "$tools/stamp" 2>/dev/null)" != "$stamp" ]; then
    echo "Installing schemathesis into $tools"
    rm -rf "$tools/stamp" "$tools/venv"
    python3 -m venv "$tools/venv"
    "$tools/venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$requirements"
    printf '%s\n' "$stamp" >"$tools/stamp"
fi
exec {lock}>&-

if [ -z "${NEXUS_BINARY:-}" ]; then
    need_command cargo "install Rust from https://rustup.rs"
    cargo build --locked --package nexus
    NEXUS_BINARY="$target/debug/nexus"
fi

run="$(mktemp -d)"
service=""
# shellcheck disable=SC2317 # a trap calls it
at_exit() {
    [ -z "$service" ] || kill "$service" 2>/dev/null || true
    wait 2>/dev/null || true
    rm -rf "$run"
}
trap at_exit EXIT

export ADMIN_TOKEN="of-this-run"
keys=()
headers=()
if [ "$mode" = keys ]; then
    keys=(NEXUS_API_KEYS="tests:$(printf %s key-of-this-run | sha256sum | cut -c1-64)")
    headers=(--header "Authorization: Bearer key-of-this-run")
fi
# Nothing of the caller's settings: what is tested is a service of its own.
env -i PATH="$PATH" HOME="$run" "${keys[@]}" NEXUS_ADMIN_TOKEN="$ADMIN_TOKEN" NEXUS_PORT=0 NEXUS_CACHE_DIR="$run/cache" \
    "$NEXUS_BINARY" serve >"$run/out" 2>"$run/log" &
service=$!

# The specification, with the one bound in it that only the model knows: how many components its vectors have.
"$tools/venv/bin/python" - "$run" <<'PYTHON' || fail "the service did not get ready: $(tail -n 5 "$run/log")"
import json, pathlib, sys, time, urllib.error, urllib.request

run = pathlib.Path(sys.argv[1])
end = time.monotonic() + 60
while True:
    try:
        url = (run / "out").read_text().split("listening on ")[1].split()[0]
        urllib.request.urlopen(url + "/ready", timeout=5)
        break
    except (IndexError, OSError):
        if time.monotonic() > end:
            raise
        time.sleep(0.1)
headers = {"Content-Type": "application/json", "Authorization": "Bearer key-of-this-run"}
body = b'{"control_id": "a", "text": "a"}'
answer = urllib.request.urlopen(urllib.request.Request(url + "/api/v1/embed", body, headers))
dimensions = len(json.load(answer)["embedding"])
specification = json.loads(pathlib.Path("openapi.json").read_text())
schemas = specification["components"]["schemas"]
for name in ("EmbedRequest", "EmbedBatchRequest"):
    schemas[name]["properties"]["dimensions"]["maximum"] = dimensions
(run / "openapi.json").write_text(json.dumps(specification))
(run / "url").write_text(url)
PYTHON

status=0
(
    cd "$run"
    timeout "$seconds_max" "$tools/venv/bin/schemathesis" --config-file "$OLDPWD/scripts/schemathesis/schemathesis.toml" \
        run openapi.json --url "$(cat url)" --checks all "${headers[@]}" \
        --seed "${SEED:-1}" --max-examples "${EXAMPLES:-30}" --no-shrink --continue-on-failure \
        --request-timeout 10 --warnings off
) || status=$?
kill -0 "$service" 2>/dev/null || fail "the service ended: $(tail -n 5 "$run/log")"
if grep -E '"level":"ERROR"|panicked' "$run/log" | head -n 5 | grep .; then
    fail "the service logged errors: see above"
fi
[ "$status" -ne 124 ] || fail "schemathesis took more than $seconds_max s"
[ "$status" -eq 0 ] || fail "the service and openapi.json do not agree ($mode): see above"
echo "The service and openapi.json agree ($mode, $SECONDS s)"
