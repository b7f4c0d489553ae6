# Shared by the scripts beside it; to be sourced from the repository's root. Sets `target`, the build folder.
# shellcheck shell=bash

# shellcheck disable=SC2034 # used by the scripts that source this
target="${CARGO_TARGET_DIR:-$PWD/target}"

fail() {
    printf '%s\n' "$*" >&2
    exit 1
}

# apt_install PACKAGE...: with the rights that are there, or not at all.
apt_install() {
    command -v apt-get >/dev/null || return 1
    local as_root=()
    if [ "$(id -u)" -ne 0 ]; then
        sudo -n true 2>/dev/null || return 1
        as_root=(sudo -n)
    fi
    echo "Installing $* with apt-get"
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends "$@" >/dev/null 2>&1 && return
    # The lists of a fresh image are empty or old.
    "${as_root[@]}" apt-get update >/dev/null &&
        "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends "$@" >/dev/null
}

# need_command NAME HINT [PACKAGE...]: NAME is there, or gets there by installing the packages.
need_command() {
    local name="$1" hint="$2"
    shift 2
    command -v "$name" >/dev/null && return
    if [ $# -gt 0 ] && apt_install "$@" && command -v "$name" >/dev/null; then
        return
    fi
    fail "$name is missing${hint:+: $hint}${1:+: apt-get install $*}"
}

# need_component COMPONENT COMMAND: a part of the Rust toolchain that minimal installations lack.
need_component() {
    "$2" --version >/dev/null 2>&1 && return
    if command -v rustup >/dev/null && rustup component add "$1" && "$2" --version >/dev/null 2>&1; then
        return
    fi
    case "$1" in
        clippy) need_command "$2" "rustup component add $1" rust-clippy ;;
        *) need_command "$2" "rustup component add $1" "$1" ;;
    esac
}
