#!/bin/sh
# Builds, starts and looks after the sccache-dock container. Everything that needs thought is in the sccache-dock program.
set -eu

name=sccache-docker-manage.sh
repo=$(cd "$(dirname "$(readlink -f "$0")")/.." && pwd)
container=${SCCACHE_CONTAINER_NAME:-sccache-server}
image=${SCCACHE_DOCK_IMAGE:-${SCCACHE_IMAGE_NAME:-sccache-arch}}
port=${SCCACHE_DEFAULT_PORT:-4226}
scheduler_port=${SCCACHE_SCHEDULER_PORT:-10600}
# The id of a container that this run has created.
created=
# Settings of the container. A client's variables share the prefix and must not leak into it, hence a list.
settings="SCCACHE_CACHE_SIZE SCCACHE_QUOTAS SCCACHE_PINNED SCCACHE_WRITE_ONCE SCCACHE_AUDIT_LOG SCCACHE_MAX_AGE SCCACHE_SCRUB SCCACHE_LOG SCCACHE_LOG_FORMAT \
SCCACHE_ERROR_LOG SCCACHE_LOG_STALL SCCACHE_IPC SCCACHE_AUTH_TOKEN SCCACHE_READ_TOKEN SCCACHE_HOSTS \
SCCACHE_SERVER_TOKEN SCCACHE_SERVER_JWT_KEY SCCACHE_PUBLIC_ADDR SCCACHE_SCHEDULER_URL SCCACHE_SCHEDULER_PLAIN SCCACHE_RELAY \
SCCACHE_RELAY_ADDRESS SCCACHE_QUEUE_TIME SCCACHE_QUEUE_SIZE SCCACHE_BUILDER_MACHINES SCCACHE_BUILDER_ISOLATION SCCACHE_BUILDER_SLOTS \
SCCACHE_TOOLCHAIN_CACHE_SIZE SCCACHE_TOOLCHAIN_SIZE SCCACHE_DIST_WRONG_TOKEN SCCACHE_JOB_MEMORY SCCACHE_JOB_PROCESSES \
SCCACHE_JOB_DISK SCCACHE_JOB_TIME SCCACHE_STOP_GRACE SCCACHE_UPSTREAM SCCACHE_UPSTREAM_TOKEN SCCACHE_TLS_CERT SCCACHE_TLS_KEY SCCACHE_TLS_MIN_VERSION SCCACHE_TLS_CLIENT_CA \
SCCACHE_TLS_CLIENT_CERT SCCACHE_TLS_CLIENT_KEY SCCACHE_TOKENS_FILE"

# shellcheck source=scripts/lib.sh
. "$repo/scripts/lib.sh"
# shellcheck source=scripts/container.sh
. "$repo/scripts/container.sh"
# shellcheck source=scripts/run-local.sh
. "$repo/scripts/run-local.sh"
me=$(quoted "$0")
export me
# It is part of paths.
case $container in
[!A-Za-z0-9]* | *[!A-Za-z0-9_.-]*) fail "\"$container\" is no name of a container" \
    "SCCACHE_CONTAINER_NAME has letters, digits, \"_\", \".\" and \"-\"" 2 ;;
esac
bind=$(before_port "${SCCACHE_BIND:-127.0.0.1}")
# Not below XDG_RUNTIME_DIR: that is gone after a reboot, when Docker starts the container again before anyone logs in.
# No cache: whoever empties theirs must not take the running container its sockets.
state=${XDG_STATE_HOME:-$home/.local/state}/sccache-dock
sockets=${SCCACHE_SOCKET_DIR:-$state/$container}
remember_image

state_of_container() {
    # docker inspect prints an empty line before it fails.
    found=$(docker inspect --type container --format '{{.State.Status}}' "$container" 2>/dev/null) || found=absent
    echo "$found"
}

runs() { has docker && [ "$(state_of_container)" = running ]; }

# Is the image there? Podman calls it so what it has loaded, and its socket finds it by no shorter name.
has_image() {
    have_image "$image" || {
        have_image "localhost/$image" && image=localhost/$image
    }
}

label() { docker inspect --type container --format "{{index .Config.Labels \"sccache-dock.$1\"}}" "$container"; }

# Somebody else's container may have the name: it is not ours to stop or remove.
need_own_container() {
    need_container
    [ -n "$(label mode)" ] || fail "container \"$container\" was not started by this script" \
        "choose a name for its own: SCCACHE_CONTAINER_NAME=sccache-cache $me start ephemeral"
}

# There are at most $1 words in "$@" after it: a path with a space in it, without quotes, would be taken for another.
at_most() {
    [ $# -le $(($1 + 1)) ] || fail "there are more words than \"$command\" takes: $(shift "$1" && shift && echo "$*")" \
        "quote a path that has spaces; another container is named by SCCACHE_CONTAINER_NAME" 2
}

need_container() {
    need_docker
    [ "$(state_of_container)" != absent ] || fail "there is no container \"$container\"" "start it: $me start ephemeral"
}

# Host and port at which this machine reaches port $1 of the container; nothing where it is not published.
published() { reached_at "$(docker port "$container" "$1/tcp" 2>/dev/null | head -n 1)"; }

# A container that was created just now is removed if it does not come up, by its id: the name may be another's by then.
wait_until_healthy() {
    since=$(date +%s)
    [ -t 2 ] || say "waiting until container \"$container\" is healthy"
    until health=$(docker exec "$container" sccache-dock healthcheck 2>/dev/null); do
        show "waiting until it is healthy, $(elapsed "$since"): ${health:-it is about to start}"
        now=$(state_of_container)
        if [ "$now" != running ] || [ $(($(date +%s) - since)) -ge 60 ]; then
            unshow
            code=$(docker inspect --format '{{.State.ExitCode}}' "${created:-$container}" 2>/dev/null) || code=1
            docker logs --tail 20 "${created:-$container}" >&2 || true
            [ -z "$created" ] || docker rm --force --volumes "$created" >/dev/null 2>&1 || true
            [ "$now" != running ] || fail "container \"$container\" is not healthy after $(elapsed "$since"): ${health:-no answer}" "its last lines are above"
            [ "$code" -eq 2 ] || [ "$code" -eq 3 ] || code=1
            fail "container \"$container\" ended" "its last lines are above" "$code"
        fi
        sleep 1
    done
    unshow
    [ -z "$(label mode)" ] || start_after_reboot
    # Whatever it still counts, it serves already.
    say "container \"$container\" is $health"
}

start() {
    at_most 2 "$@"
    mode=${1:-}
    folder=${2:-}
    check_mode
    need_docker
    [ "$(state_of_container)" != absent ] || create
    if [ -z "$created" ]; then
        need_own_container
        is=$(slashless "mode $(label mode) $(label folder)")
        [ "$is" = "$(slashless "mode $mode $folder")" ] || fail "container \"$container\" exists with ${is% }, not with mode $mode $folder" \
            "remove it first ($me remove), or give this one a name and a port: SCCACHE_CONTAINER_NAME=NAME SCCACHE_DEFAULT_PORT=4326"
        if runs; then
            say "container \"$container\" runs already$(older) (a new image or changed settings need: $me remove, then start)"
        else
            start_again start
        fi
    fi
    wait_until_healthy
    case $mode in
    builder) echo "the builder works for $folder; \"sccache-dock doctor\" on a client, or status there, says whether it is reached" ;;
    *) next_steps "$(published 4226)" docker exec "$container" sccache-dock ;;
    esac
}

# What to type for a first build, by the program that the words after the address $1 run.
next_steps() {
    at=$1
    shift
    "$@" next-steps --script "$me" --published "$at" --home "$home" --path "$PATH" \
        --sccache "$(sccache --version 2>/dev/null || true)" --dock "$(command -v sccache-dock || true)"
}

# Asks what runs, in the container or by run-local.
ask() {
    if ! runs && [ -n "$(local_folder)" ]; then
        ask_local "$@"
    fi
    need_container
    runs || fail "container \"$container\" is not running" "start it: $me restart"
    if [ -t 0 ] && [ -t 1 ]; then
        # Its width, its colours and its Ctrl-C.
        exec docker exec --interactive --tty --env TERM --env NO_COLOR "$container" sccache-dock "$@"
    fi
    exec docker exec "$container" sccache-dock "$@"
}

env_of_client() {
    case " $*" in
    *" --write"*) fail "cannot write a file on this machine from inside the container" \
        "without --write the printed text writes it, and --format toml prints it" 2 ;;
    esac
    if runs; then
        set -- --socket "$(label sockets)/sccache.sock" --published "$(published 4226)" \
            --published-scheduler "$(published 10600)" "$@"
    fi
    ask client-env "$@"
}

install_client() {
    at_most 1 "$@"
    to=$(whole "${1:-$home/.local/bin}")
    mkdir -p "$to"
    # A folder, not another name for the file: under any other name sccache takes itself for a compiler.
    fresh=$(mktemp -d "$to/.new.XXXXXX")
    source=
    trap '[ -z "$source" ] || docker rm --volumes "$source" >/dev/null 2>&1; rm -rf "$fresh"' EXIT
    [ -z "${SCCACHE_DOCK_IMAGE:-}" ] || has_image || "$repo/images/build.sh"
    if has docker && has_image; then
        source=$(docker create "$image")
        for program in sccache sccache-dock sccache-dock-gateway; do
            # The image of the client alone has but two, at its root.
            docker cp "$source:/usr/local/bin/$program" "$fresh/$program" >/dev/null 2>&1 ||
                docker cp "$source:/$program" "$fresh/$program" >/dev/null 2>"$fresh/problem" ||
                [ "$program" = sccache-dock-gateway ] || fail "cannot take $program from image \"$image\": $(cat "$fresh/problem")" \
                "choose an image of sccache-dock, or build one: SCCACHE_DOCK_IMAGE= $me install-client"
        done
    else
        programs=$("$repo/images/build.sh" programs)
        echo "$programs" | while read -r program; do cp "$program" "$fresh/${program##*/}"; done
        cp "$(echo "$programs" | tail -n 1)-gateway" "$fresh/sccache-dock-gateway"
    fi
    for program in sccache sccache-dock sccache-dock-gateway; do
        if ! [ -e "$fresh/$program" ]; then
            # One of an earlier image is of another version.
            rm -f "$to/$program"
            say "image \"$image\" has no $program, which \"sccache-dock build --prefetch\" needs"
            continue
        fi
        version=$("$fresh/$program" --version) || fail "cannot run the image's $program on this machine" \
            "its C library is older than the image's; compile one of the same version: cargo install --locked sccache@0.19.0"
        mv -f "$fresh/$program" "$to/$program"
        say "$to/$program is $version"
    done
    found=$(command -v sccache || true)
    [ "$found" = "$to/sccache" ] || say "put it first on PATH: export PATH=\"$to:\$PATH\""
}

usage() {
    # Whatever sed would take for its own.
    set -- "$(printf '%s' "$me" | sed 's/[&|\\]/\\&/g')" "$(printf '%s' "$sockets" | sed 's/[&|\\]/\\&/g')"
    sed "s|@me@|$1|g; s|@sockets@|$2|" "$repo/scripts/usage.txt"
}

command=${1:-help}
[ $# -eq 0 ] || shift
case $command in
build)
    # A name asks for an image of its own, not for the one that is remembered.
    [ -z "${remembered:-}" ] || [ $# -eq 0 ] || unset SCCACHE_DOCK_IMAGE
    exec "$repo/images/build.sh" "$@"
    ;;
start) start "$@" ;;
stop)
    at_most 0 "$@"
    need_own_container
    docker stop "$container" >/dev/null
    say "container \"$container\" is stopped, its cache kept"
    ;;
restart)
    [ $# -eq 0 ] || ask restart "$@"
    need_container
    # Where it runs, in its place: what lets go of a port may lose it to a client. A quadlet's and Compose's too.
    docker exec "$container" sccache-dock restart >/dev/null 2>&1 || {
        need_own_container
        start_again restart
    }
    wait_until_healthy
    ;;
remove)
    at_most 0 "$@"
    need_own_container
    docker stop "$container" >/dev/null
    docker rm --volumes "$container" >/dev/null
    say "container \"$container\" is removed"
    ;;
logs)
    need_container
    exec docker logs "$@" "$container"
    ;;
status | purge | doctor) ask "$command" "$@" ;;
env) env_of_client "$@" ;;
install-client) install_client "$@" ;;
run-local) run_local "$@" ;;
help | -h | --help) usage ;;
*) fail "there is no command \"$command\"" "$me help lists them" 2 ;;
esac
