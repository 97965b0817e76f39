#!/bin/sh
# Makes a base image from package mirrors, where no image registry answers.
#
#   images/bootstrap.sh [DISTRO [SUITE [MIRROR]]]     -> image sccache-dock-base:DISTRO
#
# DISTRO is debian, ubuntu or archlinux; the host's own by default. SUITE and MIRROR come from the host's apt sources.
# The base already holds everything that images/Dockerfile would install, and trusts what the host trusts.
# Needs root (asks for it through sudo), because a system tree has owners and device nodes. Installs nothing on the host.
set -eu

name=bootstrap.sh

fail() {
    printf '%s: error: %s\n' "$name" "$1" >&2
    [ -z "${2:-}" ] || printf 'hint: %s\n' "$2" >&2
    exit 1
}

say() { printf '%s: %s\n' "$name" "$1" >&2; }

need() {
    command -v "$1" >/dev/null 2>&1 || fail "cannot find \"$1\"" "$2"
}

os_release() {
    sed -n "s/^$1=//p" /etc/os-release | tr -d '"'
}

host_distro() {
    case " $(os_release ID) $(os_release ID_LIKE) " in
    *" ubuntu "*) echo ubuntu ;;
    *" debian "*) echo debian ;;
    *" arch "*) echo archlinux ;;
    esac
}

# The host's first package source whose address ends in $1 (other vendors' repositories carry the same suite names).
host_mirror() {
    command -v apt-get >/dev/null 2>&1 || return 0
    apt-get indextargets --format "\$(REPO_URI)" 'Identifier: Packages' 2>/dev/null | sed -n "s,\(.*/$1\)/*\$,\1,p" | head -n 1
}

choose_apt() {
    own=$(host_distro)
    if [ "$distro" = "$own" ]; then
        suite=${suite:-$(os_release VERSION_CODENAME)}
        mirror=${mirror:-$(host_mirror "$distro")}
    fi
    case $distro in
    debian)
        suite=${suite:-stable}
        mirror=${mirror:-http://deb.debian.org/debian}
        security=$(host_mirror debian-security)
        security=${security:-http://deb.debian.org/debian-security}
        keyring=/usr/share/keyrings/debian-archive-keyring.gpg
        components=main
        ;;
    ubuntu)
        suite=${suite:-noble}
        mirror=${mirror:-http://archive.ubuntu.com/ubuntu}
        security=$mirror
        keyring=/usr/share/keyrings/ubuntu-archive-keyring.gpg
        components=main,universe
        ;;
    esac
}

bootstrap_apt() {
    need debootstrap "install it first: apt-get install debootstrap"
    [ -r "$keyring" ] || fail "cannot verify $distro's packages: $keyring is missing" \
        "install it first: apt-get install $distro-keyring (Ubuntu calls its own ubuntu-keyring)"
    say "$distro $suite from $mirror"
    debootstrap --variant=minbase --force-check-gpg --keyring="$keyring" --components="$components" \
        --include=bubblewrap,ca-certificates "$suite" "$root" "$mirror" >&2

    words=$(echo "$components" | tr , ' ')
    printf 'deb %s %s %s\n' "$mirror" "$suite" "$words" "$mirror" "$suite-updates" "$words" \
        "$security" "$suite-security" "$words" >"$root/etc/apt/sources.list"
    {
        printf 'path-exclude=/usr/share/%s/*\n' doc man info locale lintian
        # Licences stay: their holders ask for it.
        echo 'path-include=/usr/share/doc/*/copyright'
    } >"$root/etc/dpkg/dpkg.cfg.d/small"
    cp -L /etc/resolv.conf "$root/etc/resolv.conf"
    trust_host
    say "security updates from $security"
    DEBIAN_FRONTEND=noninteractive chroot "$root" sh -ec '
        apt-get update
        apt-get --yes --no-install-recommends dist-upgrade
        apt-get clean' >&2
    trust_host
    find "$root/usr/share/doc" -type f ! -name copyright -delete
    rm -rf "$root/var/lib/apt/lists" "$root/var/log" "$root/usr/share/man" "$root/usr/share/info" "$root/usr/share/locale" \
        "$root/var/cache/debconf" "$root/var/cache/apt"
    mkdir -p "$root/var/lib/apt/lists/partial" "$root/var/log" "$root/var/cache/apt/archives/partial" "$root/var/cache/debconf"
}

# Has not been run by the tests: no machine of theirs reaches an Arch mirror.
bootstrap_pacman() {
    need pacstrap "install it first: pacman -S arch-install-scripts (Debian: apt-get install arch-install-scripts pacman-package-manager)"
    set -- "$root" bash coreutils shadow pacman bubblewrap ca-certificates
    if [ -n "$mirror" ]; then
        printf '%s\n' '[options]' 'Architecture = auto' '[core]' "Server = $mirror/\$repo/os/\$arch" \
            '[extra]' "Server = $mirror/\$repo/os/\$arch" >"$work/pacman.conf"
        set -- -C "$work/pacman.conf" "$@"
    fi
    say "archlinux from ${mirror:-its own mirrors}"
    pacstrap -c -K "$@" >&2
    trust_host
    rm -rf "$root"/usr/share/doc "$root"/usr/share/man "$root"/usr/share/info "$root"/usr/share/locale "$root"/var/cache/pacman/pkg
}

# A machine behind a proxy that re-signs TLS needs its own authorities inside the image too.
trust_host() {
    bundle=/etc/ssl/certs/ca-certificates.crt
    [ ! -s "$bundle" ] || cat "$bundle" >"$root$bundle"
}

sweep() {
    # debootstrap leaves these behind when it is interrupted.
    umount "$root/proc" "$root/sys" 2>/dev/null || true
    rm -rf --one-file-system "$work"
}

case ${1:-} in
-h | --help)
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0"
    exit 0
    ;;
esac

distro=${1:-$(host_distro)}
suite=${2:-}
mirror=${3:-}
tag=sccache-dock-base:$distro
case $distro in
debian | ubuntu | archlinux) ;;
'') fail "cannot tell which distribution to make" "name it: $0 debian|ubuntu|archlinux" ;;
*) fail "cannot make a base of \"$distro\"" "choose debian, ubuntu or archlinux" ;;
esac
need docker "install Docker, or run without it: scripts/sccache-docker-manage.sh run-local"

if [ "$(id -u)" -ne 0 ]; then
    need sudo "run this as root: a system tree has owners and device nodes"
    say "needs root for the system tree: asking sudo"
    exec sudo -- "$0" "$@"
fi

work=$(mktemp -d "${TMPDIR:-/var/tmp}/sccache-dock-base.XXXXXX")
root=$work/root
mkdir -m 755 "$root"
trap sweep EXIT
trap 'exit 1' HUP INT TERM

if [ "$distro" = archlinux ]; then
    bootstrap_pacman
else
    choose_apt
    bootstrap_apt
fi
rm -f "$root/etc/resolv.conf"
say "importing $(du -sm "$root" | cut -f 1) MB as $tag"
tar --create --numeric-owner --directory "$root" . | docker import --change 'CMD ["/bin/sh"]' - "$tag"
