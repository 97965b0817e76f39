# What the scripts here and in images/ share; sourced, with "name" as the script's own in messages.
# shellcheck shell=sh

# Services and containers may have no HOME.
home=${HOME:-$(getent passwd "$(id -u)" 2>/dev/null | cut -d : -f 6)}
home=${home:-/tmp}
# A shell that a signal ends runs no EXIT trap, and would leave what that removes.
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
# $1 as a shell takes it as one word.
quoted() {
    case $1 in
    *[!A-Za-z0-9_./=:,@%+-]*) printf "'%s'" "$(printf '%s' "$1" | sed "s/'/'\\\\''/g")" ;;
    *) printf '%s' "$1" ;;
    esac
}

# Address $1 as it stands before a port: one of IPv6 in brackets.
before_port() {
    case $1 in \[*) echo "$1" ;; *:*) echo "[$1]" ;; *) echo "$1" ;; esac
}

# Address and port $1 as this machine's own clients reach them, where all addresses are meant.
reached_at() {
    at=$(before_port "${1%:*}")
    case $at in
    0.0.0.0) at=127.0.0.1 ;;
    '[::]') at='[::1]' ;;
    esac
    echo "${1:+$at:${1##*:}}"
}

# What the last long work printed.
log=${XDG_CACHE_HOME:-$home/.cache}/sccache-dock/build.log

# shellcheck source=images/common.sh
. "${repo:?}/images/common.sh"

say() { printf '%s\n' "$1" >&2; }

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
    # Printed, too, where the log cannot be written. Not ":", a special builtin, whose failed redirection ends the shell.
    if [ ! -t 2 ] || ! { mkdir -p "${log%/*}" && true >"$log"; } 2>/dev/null; then
        "$@" >&2
        return
    fi
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

# Runs a command for at most $1 seconds, without what it prints; not every machine has "timeout".
bounded() (
    patience=$1
    shift
    "$@" >/dev/null 2>&1 &
    asked=$!
    { sleep "$patience" && kill "$asked"; } >/dev/null 2>&1 &
    code=0
    wait "$asked" 2>/dev/null || code=$?
    kill $! 2>/dev/null || true
    exit "$code"
)

# Podman where there is no Docker.
if ! has docker && has podman; then
    PATH=$PATH:$repo/scripts/podman
    export PATH
fi

need_docker() {
    has docker || fail 'cannot find "docker", or "podman"' "install one, or run the cache without it: ${me:?} run-local"
    docker version >/dev/null 2>&1 || fail "cannot reach the Docker daemon: $(docker version 2>&1 >/dev/null | tail -n 1)" \
        "start it, or join its group (sudo usermod -aG docker $(id -un), then log in again), or do without: ${me:?} run-local"
}

have_image() { docker image inspect "$1" >/dev/null 2>&1; }

# Podman answers, by its own command or to Docker's at its socket.
by_podman() { docker version 2>/dev/null | grep -q 'Podman Engine'; }

# What the daemon says of its security, "name=rootless" among it; Podman's own command has other fields than its socket.
security() {
    docker info --format '{{.SecurityOptions}}' 2>/dev/null || docker info --format \
        '{{with .Host.Security}}{{if .AppArmorEnabled}}name=apparmor {{end}}{{if .SELinuxEnabled}}name=selinux {{end}}{{if .Rootless}}name=rootless{{end}}{{end}}'
}
