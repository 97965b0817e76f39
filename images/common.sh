# What the scripts here and in scripts/ share; sourced, with "name" as the script's own in messages.
# shellcheck shell=sh

apt_helper=/usr/lib/apt/apt-helper

# Ends with message $1, hint $2 and exit code $3, or 1.
fail() {
    printf '%s: error: %s\n' "${name:?}" "$1" >&2
    [ -z "${2:-}" ] || printf 'hint: %s\n' "$2" >&2
    exit "${3:-1}"
}

has() { command -v "$1" >/dev/null 2>&1; }

# Field $1 of what this machine says of its system.
os_release() {
    [ ! -r /etc/os-release ] || sed -n "s/^$1=//p" /etc/os-release | tr -d '"'
}

# The distribution of this machine or, of those that bases are made of, the one that it comes from; or nothing.
host_distro() {
    case " $(os_release ID) $(os_release ID_LIKE) " in
    *" ubuntu "*) echo ubuntu ;;
    *" debian "*) echo debian ;;
    *" arch "*) echo archlinux ;;
    esac
}

can_fetch() { has curl || has wget || [ -x "$apt_helper" ]; }

# The file at URL $1 as $2; fails where it cannot be had.
try_to_fetch() {
    if has curl; then
        curl --fail --silent --show-error --location --retry 3 --connect-timeout 20 --output "$2" "$1" >&2
    elif has wget; then
        wget --quiet --tries=3 --timeout=20 --output-document "$2" "$1" >&2
    else
        "$apt_helper" -qq download-file "$1" "$2" >&2
    fi
}

# Is there a file at URL $1? Asked without fetching it, and for a bounded time.
offers() {
    if has curl; then
        curl --fail --silent --location --head --max-time 20 --output /dev/null "$1" 2>/dev/null
    elif has wget; then
        wget --quiet --spider --tries=1 --timeout=20 "$1" 2>/dev/null
    fi
}

sha256() { sha256sum "$1" | cut -d ' ' -f 1; }
