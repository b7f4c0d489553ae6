#!/usr/bin/env bash
# Runs a command beside a DynamoDB (dynalite) and an S3 (moto) of its own, on free loopback ports:
#
#     scripts/aws_services.sh cargo test --locked -p nexus --test aws -- --include-ignored
#
# The command finds them by NEXUS_TEST_DYNAMODB_URL and NEXUS_TEST_S3_URL. What they are, by exact version, is in
# tests/aws/tools; they are installed under target/aws-tools (or CARGO_TARGET_DIR) once, and again when that changes.
#
# Both servers read from a pipe that only this script could write to, and end when it is gone, whatever ended it.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/lib.sh

[ $# -gt 0 ] || fail "usage: scripts/aws_services.sh COMMAND [ARGUMENT...]"
case "$target" in /*) ;; *) target="$PWD/$target" ;; esac
manifests="$PWD/tests/aws/tools"
tools="$target/aws-tools"

need_command node "Node 18 or newer" nodejs
need_command npm "it comes with Node" npm
need_command python3 "" python3
python3 -c 'import ensurepip, venv' 2>/dev/null || apt_install python3-venv ||
    fail "Python's venv is missing: apt-get install python3-venv"

# install: both servers, unless what is there is what the manifests say.
install_tools() {
    local stamp
    stamp="$(node --version) $(python3 --version) $(cat "$manifests"/package-lock.json "$manifests"/requirements.txt | sha256sum)"
    [ "$(cat "$tools/stamp" 2>/dev/null)" != "$stamp" ] || return 0
    echo "Installing dynalite and moto into $tools"
    rm -rf "$tools/stamp" "$tools/node_modules" "$tools/venv"
    cp "$manifests/package.json" "$manifests/package-lock.json" "$tools/"
    # No package's own scripts: nothing here needs to be built.
    npm ci --prefix "$tools" --ignore-scripts --no-audit --no-fund --loglevel=error
    python3 -m venv "$tools/venv"
    "$tools/venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$manifests/requirements.txt"
    printf '%s\n' "$stamp" >"$tools/stamp"
}

mkdir -p "$tools"
# Two runs of this script must not install at the same time.
exec {lock}>"$tools/lock"
flock "$lock"
install_tools
exec {lock}>&-

run="$(mktemp -d)"
child=""
# shellcheck disable=SC2317 # a trap calls it
at_exit() {
    # The servers end when nobody is left who could write to them.
    exec 9>&-
    rm -rf "$run"
}
mkfifo "$run/alive"
exec 9<>"$run/alive"
trap at_exit EXIT
trap '[ -z "$child" ] || kill -TERM "$child" 2>/dev/null || true' TERM HUP
# Ctrl-C reaches the command too, and its status is the one to end with.
trap : INT

# port_of NAME PID: once the server has said on which port it listens.
port_of() {
    local name="$1" pid="$2" port="" tries
    for tries in $(seq 600); do
        port="$(cat "$run/$name.port" 2>/dev/null || true)"
        [ -z "$port" ] || break
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.1
    done
    if [ -z "$port" ]; then
        cat "$run/$name.log" >&2 || true
        fail "$name does not start (waited ${tries:-0} tenths of a second)"
    fi
    printf '%s' "$port"
}

# In the background a program ignores Ctrl-C: it is the command that has to end first.
NODE_PATH="$tools/node_modules" node "$manifests/dynamodb.js" \
    <"$run/alive" >"$run/dynalite.port" 2>"$run/dynalite.log" 9>&- &
dynamodb_pid=$!
"$tools/venv/bin/python" "$manifests/s3.py" <"$run/alive" >"$run/moto.port" 2>"$run/moto.log" 9>&- &
s3_pid=$!
NEXUS_TEST_DYNAMODB_URL="http://127.0.0.1:$(port_of dynalite "$dynamodb_pid")"
NEXUS_TEST_S3_URL="http://127.0.0.1:$(port_of moto "$s3_pid")"
export NEXUS_TEST_DYNAMODB_URL NEXUS_TEST_S3_URL

# In the background, as the shell tends to no signal while it waits for a command in the foreground; such a command
# ignores Ctrl-C unless told otherwise.
(
    trap - INT QUIT
    exec "$@"
) <&0 9>&- &
child=$!
status=0
wait "$child" || status=$?
# A signal ends the first wait early.
while kill -0 "$child" 2>/dev/null; do
    status=0
    wait "$child" || status=$?
done
if [ "$status" -ne 0 ] && [ -s "$run/moto.log" ]; then
    echo "What moto said last:" >&2
    tail -n 20 "$run/moto.log" >&2
fi
exit "$status"
