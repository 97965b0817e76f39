# How the container is made: the arguments of docker create, for sccache-docker-manage.sh, which sources this.
# shellcheck shell=sh
# Its variables, and "say" and "fail" of lib.sh, are set there.
# shellcheck disable=SC2154

# $1 as it is compared with what a container has, of which older scripts have kept slashes at the end.
slashless() { printf '%s' "$1" | sed 's|/*$||'; }

check_mode() {
    case $mode in
    ephemeral | distributed-ephemeral)
        [ -z "$folder" ] || fail "mode \"$mode\" takes no folder" "for a cache in a folder: $me start ${mode%ephemeral}persistent $(quoted "$folder")" 2
        ;;
    persistent | distributed-persistent)
        case $folder in
        '') fail "mode \"$mode\" needs a folder" "for example: $me start $mode $(quoted "$home/sccache")" 2 ;;
        *[!/]*) ;;
        *) fail "cannot take all of this machine for a cache" "for example: $me start $mode $(quoted "$home/sccache")" 2 ;;
        esac
        case $folder in
        /*) ;;
        *) fail "cannot mount \"$folder\": the path is relative" \
            "give it whole: $me start $mode $(quoted "$(whole "${folder#./}")")" 2 ;;
        esac
        folder=$(slashless "$folder")
        can_mount "$folder"
        ;;
    builder)
        case $folder in
        http://* | https://*) ;;
        *) fail "mode \"builder\" needs the URL of a scheduler" "for example: $me start builder http://build-cache:10600" 2 ;;
        esac
        [ -n "${SCCACHE_SERVER_TOKEN:-}${SCCACHE_SERVER_TOKEN_FILE:-}${SCCACHE_TLS_CLIENT_CERT:-}" ] ||
            fail "mode \"builder\" needs SCCACHE_SERVER_TOKEN, or a certificate in SCCACHE_TLS_CLIENT_CERT" \
                "take the token from the scheduler's machine: docker exec $container cat /var/sccache/state/server-token" 2
        ;;
    '') fail "start needs a mode" "the simplest: $me start ephemeral" 2 ;;
    *) fail "cannot start mode \"$mode\"" "choose ephemeral, persistent, distributed-ephemeral, distributed-persistent or builder" 2 ;;
    esac
}

# Docker splits what it is told to mount at commas, and takes quotes for its own.
can_mount() {
    case $1 in *[,\"]*) fail "cannot mount \"$1\": its name has a comma or a quote" "choose one without" 2 ;; esac
}

whole() { case $1 in /*) echo "$1" ;; *) echo "$PWD/$1" ;; esac; }

# The files of this machine that the container gets, a line each: the variable that names it, and its whole path. With a "="
# before it where the container has the file in its own folder, by whose path there the setting names it.
named_files() {
    for setting in $settings; do
        case $setting in
        SCCACHE_TLS_CERT | SCCACHE_TLS_KEY | SCCACHE_TLS_CLIENT_* | SCCACHE_TOKENS_FILE) names="$setting ${setting}_FILE" ;;
        *) names=${setting}_FILE ;;
        esac
        for variable in $names; do
            file=$(printenv "$variable") || continue
            case $variable:$mode:$file in
            *:) ;;
            "$setting":*persistent:/var/sccache/*) echo "=$variable $folder/${file#/var/sccache/}" ;;
            *) echo "$variable $(whole "$file")" ;;
            esac
        done
    done
    # The authorities of those that it connects to by TLS.
    case "${SCCACHE_UPSTREAM:-} $folder" in
    *https://* | rediss://*) [ -z "${SSL_CERT_FILE:-}" ] || echo "SSL_CERT_FILE $(whole "$SSL_CERT_FILE")" ;;
    esac
}

# Runs a command as the container's user.
as_user() { setpriv --reuid="${user%:*}" --regid="${user#*:}" --clear-groups "$@"; }

# May the container's user, who is no root there, read (-r) file $2, or enter (-x) folder $2? Nobody asks for the way to it,
# which the container has not.
may() {
    if [ "$(id -u)" -ne 0 ] || ! as_user true 2>/dev/null; then
        test "$1" "$2"
    else
        as_user --bounding-set=-all test "$1" /proc/self/fd/3 2>/dev/null 3<"$2"
    fi
}

may_enter() {
    # Of another user than the caller only root can ask.
    by=$(id -u)
    case "$by ${SCCACHE_USER:-$by:} $(stat -c %A "$1")" in
    "0 "* | "$by $by:"* | *[xt]) may -x "$1" ;;
    *) false ;;
    esac
}

# Why the container gets file $2 alone, and not its folder $1, in which it would see another file in its place; nothing where
# it can have the folder. What settings do not name is none of its business.
alone() {
    if [ -L "$1" ] || [ -L "$2" ]; then
        echo "it or its folder is a link"
    elif ! [ -r "$1" ] || ! may_enter "$1"; then
        echo "user $user of the container may not enter its folder"
    else
        cut -d ' ' -f 2- "$work/files" >"$work/named"
        other=$(find "$1" -mindepth 1 -maxdepth 1 | grep -vxF -f "$work/named" | head -n 1)
        [ -z "$other" ] || echo "its folder has \"${other##*/}\" too"
    fi
}

# Before anything takes long.
check_files() {
    named_files >"$work/files"
    while read -r variable file; do
        what="cannot read \"$file\", which ${variable#=} names"
        can_mount "$file"
        [ -e "$file" ] || fail "$what: there is no such file" "give the whole path of a file of this machine" 2
        [ -f "$file" ] || fail "$what: it is a folder, or no ordinary file" "give the whole path of a file of this machine" 2
        may -r "$file" || fail "$what, as user $user of the container" "chown ${user%:*} $(quoted "$file"), or SCCACHE_USER=uid:gid" 2
    done <"$work/files"
}

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
    # The root of a rootless daemon is the caller; Podman's own command can also give the container the caller's number,
    # with which a builder makes its namespaces.
    userns=
    if is_rootless; then
        if is_podman; then userns=keep-id; else user=0:0; fi
    fi
    user=${SCCACHE_USER:-$user}
}

is_rootless() {
    case $(security) in *name=rootless*) ;; *) false ;; esac
}

# Podman's own command, not Docker's at Podman's socket.
is_podman() { docker --version | grep -q podman; }

# The AppArmor profile of a builder's container, where the daemon has AppArmor: that which it takes by itself allows no mounts.
apparmor() {
    case $(security) in *name=apparmor*) ;; *) return 0 ;; esac
    if docker run --rm --network none --security-opt apparmor=sccache-dock "$image" --version >/dev/null 2>&1; then
        echo sccache-dock
    else
        say "AppArmor has no profile for builders here; the container runs without one. Once, as root:"
        say "    docker run --rm $image apparmor --parser \"\$(apparmor_parser --version)\" >/etc/apparmor.d/sccache-dock"
        say "    apparmor_parser --replace /etc/apparmor.d/sccache-dock"
        echo unconfined
    fi
}

# The user, other than root, who owns a folder on the way to $1 and may put a link there at any time; 0 where there is none.
holder() {
    at=$1
    holder=0
    while [ "$at" != / ] && [ "$at" != . ]; do
        at=$(dirname "$at")
        owner=$(stat -c %u "$at" 2>/dev/null) || continue
        [ "$owner" = 0 ] || holder=$owner
    done
    echo "$holder"
}

# Makes folder $1 where it is missing. Root makes it as the user who owns a folder on the way, follows no link, and gives away
# only what it has just made, where root owns the whole way.
own_folder() {
    if [ "$(id -u)" -ne 0 ]; then
        mkdir -p "$1" || fail "cannot make folder \"$1\"" "choose one below your home, or make it first"
        return
    fi
    [ ! -L "$1" ] || fail "cannot use folder \"$1\": it is a link, and root follows none" "name the folder itself, or remove the link"
    by=$(holder "$1")
    [ "$by" = 0 ] || [ "$by" = "${user%:*}" ] || fail "cannot use folder \"$1\" for user \"$user\": user $by owns a folder on the way to it" \
        "start it as that user (SCCACHE_USER=$by:GROUP), or choose a folder of root's"
    [ ! -d "$1" ] || return 0
    if [ "$by" = 0 ]; then
        mkdir -p "$1" && chown -h "$user" "$1"
    else
        as_user mkdir -p "$1"
    fi || fail "cannot make folder \"$1\" for user \"$user\"" "SCCACHE_USER is a number: uid:gid"
}

# Nobody but this machine reaches the bridge's address while the port is published on loopback alone, so that builds here
# may use sccache's own protocol, which has no tokens. Not beside TLS or tokens by name.
only_this_machine() {
    case $bind in
    127.* | '[::1]') ! env | grep -Eq '^SCCACHE_(IPC|TLS_CERT|TOKENS_FILE)(_FILE)?=' ;;
    *) false ;;
    esac
}

create() {
    builder_port=10501
    id=
    work=$(mktemp -d)
    trap sweep EXIT
    choose_user
    check_files
    [ -z "${remembered:-}" ] || say "taking \"$image\", as the last start did; SCCACHE_DOCK_IMAGE= builds an image instead"
    has_image || "$repo/images/build.sh"
    # Podman's socket finds by no shorter name what has just been made.
    has_image || image=localhost/$image
    can_mount "$sockets"
    # Nobody but the container's user has a use for it from now on, so that it may be no folder that others have.
    case $(ls -A "$sockets" 2>/dev/null) in
    '' | *control.sock*) ;;
    *) [ "$(stat -c %a "$sockets")" = 700 ] || fail "cannot take \"$sockets\" for the sockets: it has other things in it" \
        "name a folder for them alone: SCCACHE_SOCKET_DIR=/absolute/path" ;;
    esac
    (umask 077 && own_folder "$sockets")
    # Whoever may enter it may use the cache. Nobody else can have changed the way to root's own, which goes to whom the
    # container runs as now.
    if [ "$(id -u)" -ne 0 ]; then
        chmod 700 "$sockets"
    elif [ "$(holder "$sockets")" = 0 ]; then
        chown -h "$user" "$sockets"
        chmod 700 "$sockets"
    fi
    # No restart policy until it has been healthy once: a container that cannot start says so once, and stays down.
    set -- create --name "$container" --hostname "$container" --user "$user" --env "MODE=$mode" \
        --label "sccache-dock.mode=$mode" --label "sccache-dock.folder=$folder" --label "sccache-dock.sockets=$sockets" \
        --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges \
        --mount "type=bind,source=$sockets,target=/var/sccache/run"
    [ -z "$userns" ] || set -- "$@" --userns "$userns"
    # SELinux lets a container read and write no file of this machine. New labels for them would take them from who has them now.
    case $(security) in *name=selinux*) set -- "$@" --security-opt label=disable ;; esac
    case $mode in
    builder | distributed-*)
        # What the builder needs to isolate jobs without privileges: the image knows the system calls.
        if by_podman && ! is_podman; then
            # Docker's command sends the profile itself where Podman wants the name of a file. Podman's own profile has all but
            # chroot, which it allows with this capability.
            set -- "$@" --cap-add SYS_CHROOT
        else
            docker run --rm --network none "$image" seccomp >"$work/seccomp.json" ||
                fail "cannot get the seccomp profile from image \"$image\"" "it is older than this script: $me build"
            set -- "$@" --security-opt "seccomp=$work/seccomp.json"
        fi
        # The caller, as root of a rootless daemon, makes no namespaces of jobs without it. It has no power outside the daemon's.
        case ${user%:*} in 0) ! is_rootless || set -- "$@" --cap-add SETFCAP ;; esac
        armor=$(apparmor)
        [ -z "$armor" ] || set -- "$@" --security-opt "apparmor=$armor"
        # On all interfaces, unless SCCACHE_BIND is set. Without a public address the builder is known by the container's
        # own, which this machine reaches with nothing published, but for that of a rootless daemon.
        reached=${SCCACHE_PUBLIC_ADDR:-}
        [ "$mode" = builder ] || [ "${SCCACHE_RELAY:-on}" = off ] || reached=none
        # Of IP[:PORT]; an IPv6 address has colons of its own.
        case $reached in
        *]:*) builder_port=${reached##*:} ;;
        *:*:*) ;;
        *:*) builder_port=${reached##*:} ;;
        esac
        case $reached in
        '')
            if [ "$mode" != builder ] && is_rootless; then
                export SCCACHE_PUBLIC_ADDR=127.0.0.1:10501
                set -- "$@" --publish 127.0.0.1:10501:10501
            fi
            ;;
        # Nobody comes to it: it keeps connections to the scheduler's machine open, or the relay is in its container.
        none) ;;
        *) set -- "$@" --publish "${SCCACHE_BIND:+$bind:}$builder_port:10501" ;;
        esac
        ;;
    esac
    case $mode in
    builder) set -- "$@" --env "SCCACHE_SCHEDULER_URL=$folder" ;;
    distributed-*) set -- "$@" --publish "$bind:$port:4226" --publish "$bind:$scheduler_port:10600" ;;
    *) set -- "$@" --publish "$bind:$port:4226" ;;
    esac
    if [ -n "$folder" ] && [ "$mode" != builder ]; then
        own_folder "$folder"
        # Root's own, in which the container's user, whom a builder needs, could write nothing.
        case $(id -u):${user%:*}:$(stat -c %u:%A "$folder") in
        0:0:* | 0:*:0:????????w?) ;;
        0:*:0:*) fail "cannot use folder \"$folder\" for user \"$user\": root owns it" \
            "chown -R $user $(quoted "$folder"), or name a folder that is not there yet" ;;
        esac
        # The mount point of the sockets, which Docker would make for root.
        own_folder "$folder/run"
        set -- "$@" --mount "type=bind,source=$folder,target=/var/sccache"
    fi
    ! only_this_machine || set -- "$@" --env SCCACHE_IPC=bridge
    for setting in $settings; do
        # By name alone: values would stand in the list of processes.
        [ "$mode:$setting" != builder:SCCACHE_SCHEDULER_URL ] || continue
        ! printenv "$setting" >/dev/null || grep -q "^$setting " "$work/files" || set -- "$@" --env "$setting"
    done
    lonely=
    while read -r variable file; do
        case $variable in =*) continue ;; esac
        target=/run/secrets/${variable%_FILE}
        place=$(dirname "$file")
        why=$(alone "$place" "$file")
        if [ -z "$why" ]; then
            set -- "$@" --env "$variable=$target/${file##*/}" --mount "type=bind,readonly,source=$place,target=$target"
        else
            # The very file: whatever gets its name later is another.
            set -- "$@" --env "$variable=$target" --mount "type=bind,readonly,source=$file,target=$target"
            say "\"$file\" ($variable) is mounted alone: $why"
            lonely=yes
        fi
    done <"$work/files"
    if [ -n "$lonely" ]; then
        say "the container sees what is written to such a file (cp), but not what is put in its place (mv, sed -i, certbot):"
        say "a token that is removed in that way stays valid until you stop and start the container: $me stop"
        say "hint: the container follows files in a folder that holds only such files: move them to one"
    fi
    # The keys of that store, by the names that every client of it knows. Files of this machine are not there.
    case ${SCCACHE_UPSTREAM:-} in
    s3://*)
        for key in $(env | sed -n 's/^\(AWS_[A-Z0-9_]*\)=.*/\1/p' | grep -v -e _FILE -e AWS_CA_BUNDLE); do
            set -- "$@" --env "$key"
        done
        ;;
    esac
    if ! id=$(docker "$@" "$image" 2>"$work/problem"); then
        case $(cat "$work/problem") in
        *"container name"*"already in use by"*) say "another start has made container \"$container\" meanwhile" ;;
        *) fail "cannot create container \"$container\": $(cat "$work/problem")" ;;
        esac
        return
    fi
    if [ -n "${SCCACHE_CONTAINER_ID_FILE:-}" ]; then printf '%s\n' "$id" >"$SCCACHE_CONTAINER_ID_FILE"; fi
    docker start "$id" >/dev/null 2>"$work/problem" || case $(cat "$work/problem") in
    *"already allocated"* | *"ddress already in use"*) port_is_taken ;;
    *) fail "cannot start container \"$container\": $(cat "$work/problem")" ;;
    esac
    created=$id
    note_image
}

# What this run has made and could not start goes with it; nothing is removed by its name, which may be another's.
sweep() {
    if [ -n "$id" ] && [ -z "$created" ]; then docker rm --force --volumes "$id" >/dev/null 2>&1 || true; fi
    rm -rf "$work"
}

# Says which port it is that Docker could not have, who has it, and which variable chooses another.
port_is_taken() {
    taken=
    for one in "SCCACHE_DEFAULT_PORT:$port" "SCCACHE_SCHEDULER_PORT:$scheduler_port" "SCCACHE_PUBLIC_ADDR:$builder_port"; do
        case $(cat "$work/problem") in *[:/]"${one#*:}"[!0-9]*) taken=${one#*:} chosen_by=${one%%:*} && break ;; esac
    done
    [ -n "$taken" ] || fail "cannot run container \"$container\": a port is in use: $(cat "$work/problem")"
    by=$(docker ps --filter "publish=$taken" --format '{{.Names}}' 2>/dev/null | head -n 1)
    other=$chosen_by=$((taken + 100))
    [ "$chosen_by" != SCCACHE_PUBLIC_ADDR ] || other="$chosen_by=ADDRESS:$((taken + 100))"
    fail "cannot publish port $taken: it is in use${by:+ by container \"$by\"}" \
        "stop what has it (often a local sccache: sccache --stop-server), or choose another: $other $me start $mode${folder:+ $(quoted "$folder")}"
}

# A container that was made from a pulled image goes on with that: the name is kept here, where no container can write, until
# the variables name another. What another user has put here counts for nothing.
remember_image() {
    image_note=$state/$container.image
    [ -z "${SCCACHE_DOCK_IMAGE+set}${SCCACHE_IMAGE_NAME:-}" ] || return 0
    [ -s "$image_note" ] && [ "$(stat -c %u "$image_note")" = "$(id -u)" ] || return 0
    SCCACHE_DOCK_IMAGE=$(cat "$image_note")
    export SCCACHE_DOCK_IMAGE
    image=$SCCACHE_DOCK_IMAGE
    remembered=yes
}

# Keeps it for the next time, for a caller whom nobody can have put a link in the way.
note_image() {
    [ "$(id -u)" -ne 0 ] || [ "$(holder "$image_note")" = 0 ] || return 0
    if [ -n "${SCCACHE_DOCK_IMAGE:-}" ]; then
        mkdir -p "$state" && printf '%s\n' "$SCCACHE_DOCK_IMAGE" >"$image_note"
    else
        rm -f "$image_note"
    fi || say "cannot write \"$image_note\": the next start takes SCCACHE_DOCK_IMAGE from the environment again"
}

# Whether the container was made from an older image than the one of that name now.
older() {
    [ -n "${SCCACHE_DOCK_IMAGE:-}${SCCACHE_IMAGE_NAME:-}" ] ||
        image=$(docker inspect --type container --format '{{.Config.Image}}' "$container")
    has_image || return 0
    is=$(docker inspect --type container --format '{{.Image}}' "$container")
    [ "$is" = "$(docker image inspect --format '{{.Id}}' "$image")" ] || printf ', from an older image than "%s"' "$image"
}

# Nothing of Podman's runs at the start of a machine, but for a service of systemd that many have switched off; before version 5.8
# it starts only what has the policy "always".
start_after_reboot() {
    policy=unless-stopped
    ! by_podman || policy=always
    if ! docker update --restart "$policy" "$container" >/dev/null 2>&1; then
        say "after a reboot it has to be started: $me start"
    elif by_podman; then
        # Whose Podman it is counts, not who asks it.
        whose=
        ! is_rootless || whose=' --user'
        # Words, split on purpose.
        # shellcheck disable=SC2086
        systemctl $whose is-enabled podman-restart.service >/dev/null 2>&1 ||
            say "after a reboot Podman starts it only if you say so, once: systemctl$whose enable podman-restart.service"
        [ -z "$whose" ] || loginctl show-user --property Linger "$(id -un)" 2>/dev/null | grep -q yes ||
            say "and it starts only when you log in, unless you say, once: loginctl enable-linger"
    fi
}

# Starts the container once more, by docker's word $1. While it was away, a client of the lane ipc or with default settings
# may have started a daemon of its own on the port, for which Docker does not wait: it is told to end.
start_again() {
    if [ "$(state_of_container)" = paused ]; then
        docker unpause "$container" >/dev/null
        return
    fi
    tries=0
    until problem=$(docker "$1" "$container" 2>&1 >/dev/null); do
        case $problem in
        *"already allocated"* | *"already in use"*) ;;
        *) fail "cannot $1 container \"$container\": $problem" "remove it and start anew: $me remove" ;;
        esac
        at=$(docker inspect --format '{{with index .HostConfig.PortBindings "4226/tcp"}}{{(index . 0).HostPort}}{{end}}' "$container")
        tries=$((tries + 1))
        # Each time may cost a build a compile that was just about to be answered.
        [ "$tries" -le 3 ] || fail "cannot $1 container \"$container\": port $at, or another of its, is in use" \
            "a build may start an sccache there again and again: when it has ended, or what else has the port, $me restart"
        [ "$tries" -gt 1 ] || say "a client may have started an sccache of its own on port $at: it is told to end"
        # The host network of a rootless Docker is the daemon's own, in which this machine's clients are not.
        if is_rootless && ! by_podman; then
            bounded 20 env -u SCCACHE_SERVER_UDS "SCCACHE_SERVER_PORT=$at" sccache --stop-server || true
            continue
        fi
        # The image's own variables name the socket of its container.
        docker run --rm --network host --cap-drop ALL --env "SCCACHE_SERVER_PORT=$at" --entrypoint env \
            "$(docker inspect --type container --format '{{.Image}}' "$container")" \
            -u SCCACHE_SERVER_UDS timeout 20 sccache --stop-server >/dev/null 2>&1 || true
    done
}
