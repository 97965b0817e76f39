# The cache without Docker, for sccache-docker-manage.sh, which sources this.
# shellcheck shell=sh
# Its variables, and "say" and "fail" of lib.sh, are set there.
# shellcheck disable=SC2154

# Remembers folder, mode and programs of run-local, so that status, env and doctor find them.
local_note=${XDG_STATE_HOME:-$home/.local/state}/sccache-dock/run-local

# The settings of run-local for the program, and nothing of a client's: both share the prefix.
local_environment() {
    for setting in $(env | sed -n 's/^\(SCCACHE_[A-Z0-9_]*\)=.*/\1/p'); do
        case " $settings " in
        *" $setting "* | *" ${setting%_FILE} "*) ;;
        *) unset "$setting" ;;
        esac
    done
    MODE=$(sed -n 2p "$local_note")
    SCCACHE_BINARY=$(sed -n 3p "$local_note")
    export MODE SCCACHE_BINARY SCCACHE_DIR="$1" \
        SCCACHE_LISTEN="$bind:$port" SCCACHE_SCHEDULER_LISTEN="$bind:$scheduler_port"
}

run_local() {
    at_most 2 "$@"
    # Both modes keep the folder here; "persistent" also insists that no container's end takes it away.
    folder=${2:-${XDG_DATA_HOME:-$home/.local/share}/sccache-dock}
    case $folder in
    /*) ;;
    *) fail "cannot use folder \"$folder\": the path is relative" "give it whole: $(quoted "$(whole "${folder#./}")")" 2 ;;
    esac
    programs=$("$repo/images/build.sh" programs)
    mkdir -p "$folder" "$(dirname "$local_note")"
    # Two lines: sccache and sccache-dock.
    printf '%s\n' "$folder" "${1:-ephemeral}" "$programs" >"$local_note"
    local_environment "$folder"
    say "running in the foreground, folder $folder; Ctrl-C stops it. In another terminal:"
    next_steps "$(reached_at "$bind:$port")" "$(sed -n 4p "$local_note")" >&2
    exec "$(sed -n 4p "$local_note")" run
}

# The folder of what run-local runs now.
local_folder() {
    [ ! -s "$local_note" ] || {
        noted=$(sed -n 1p "$local_note")
        [ ! -S "$noted/run/control.sock" ] || echo "$noted"
    }
}

ask_local() {
    local_environment "$(local_folder)"
    exec "$(sed -n 4p "$local_note")" "$@"
}
