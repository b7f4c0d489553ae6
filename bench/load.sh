#!/usr/bin/env bash
# Overload, attacks, shutdown and crashes: bench/load.sh [PART...]
#
# Prints one table, and ends with a status other than 0 where a bar is missed. Parts: bounds overload deadlines leavers
# fairness attacks shutdown crash, in this order if none is named; and soak, twenty minutes. NEXUS_LOAD_QUICK=1 rehearses.
# It needs Linux, two cores that have nothing else to do, and taskset (Debian's package `util-linux`).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/.."
# One after the other: together, the service would be built with what only the generator needs.
cargo build -q --release -p nexus --bin nexus
cargo build -q --release -p nexus --example load
target=${CARGO_TARGET_DIR:-target}
export NEXUS_LOAD_BINARY=${NEXUS_LOAD_BINARY:-$target/release/nexus}
# A thousand idle sockets and ten times the peak's connections.
ulimit -n "$(ulimit -Hn)"
exec "$target/release/examples/load" "$@"
