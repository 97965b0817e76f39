# How the scripts here fetch files; sourced, and they define "fail".
# shellcheck shell=sh

apt_helper=/usr/lib/apt/apt-helper

has() { command -v "$1" >/dev/null 2>&1; }

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
