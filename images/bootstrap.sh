#!/bin/sh
# Makes a base image from package mirrors, where no image registry answers.
#
#   images/bootstrap.sh [DISTRO [SUITE [MIRROR]]]     -> image sccache-dock-base:DISTRO, or SCCACHE_BASE_IMAGE
#
# DISTRO is debian, ubuntu or archlinux; the host's own by default. SUITE and MIRROR come from the host's own sources.
# The base already holds everything that images/Dockerfile would install, and trusts what the host trusts.
#
# Needs Docker, and neither root nor the distribution's tools: the packages of a minimal system are fetched, compared with
# their index, unpacked as ordinary files and imported. A container, in which Docker is root, installs them for good.
# The index (of Arch Linux: each package) is verified with the distribution's keyring, the host's own or the file
# SCCACHE_BASE_KEYRING; where there is none, a mirror is trusted by https alone, and that is said.
set -eu

name=bootstrap.sh

say() { printf '%s: %s\n' "$name" "$1" >&2; }

# shellcheck source=images/common.sh
. "$(dirname "$(readlink -f "$0")")/common.sh"

# The authorities that the host trusts: a proxy may sign TLS anew.
host_bundle() {
    for bundle in /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt; do
        [ ! -s "$bundle" ] || {
            echo "$bundle"
            return
        }
    done
}

# The programs that this script needs and the host lacks; nothing where all are there. What fetches is another matter.
missing() {
    for program in docker awk gzip sha256sum tar; do
        has "$program" || echo "$program"
    done
    if [ "$distro" = archlinux ]; then
        has zstd || echo zstd
    else
        has dpkg-deb || has bsdtar || { has ar && has xz; } || echo bsdtar
    fi
}

fetch() { try_to_fetch "$@" || fail "cannot fetch $1" "another mirror: $0 $distro SUITE MIRROR"; }

# Refuses file $1 if its SHA-256 is not $2.
check() {
    found=$(sha256 "$1")
    [ "$found" = "$2" ] || fail "${1##*/} is not what its index names: SHA-256 $found instead of $2" "fetch it again, or from another mirror"
}

# Is there something to verify signatures with? Without it only https will do.
choose_keyring() {
    for keyring in ${SCCACHE_BASE_KEYRING:-"$@"}; do
        [ ! -r "$keyring" ] || break
    done
    has gpgv || has sqv || keyring=
    if [ -z "$keyring" ] || ! [ -r "$keyring" ]; then
        keyring=
        case $mirror in
        https://*) say "no keyring of $distro here: $mirror is trusted by its certificate alone" ;;
        *) fail "cannot verify the packages of $mirror: there is no keyring of $distro (or neither gpgv nor sqv)" \
            "name its file by SCCACHE_BASE_KEYRING, or a mirror with https: $0 $distro SUITE MIRROR" ;;
        esac
    fi
}

# Refuses file $1 if $2 is not its signature by a key of the ring.
verify() {
    if [ -z "$keyring" ]; then
        return
    elif has gpgv; then
        gpgv --keyring "$keyring" "$2" "$1" >"$work/gpgv" 2>&1
    else
        sqv --keyring "$keyring" "$2" "$1" >"$work/gpgv" 2>&1
    fi || fail "the signature of ${1##*/} is not by a key of $keyring: $(tail -n 1 "$work/gpgv")" "do not use this mirror"
}

# The index below URL $1 as $work/Release, verified: of one file where that can be, because a cache may have the two of
# different hours.
get_release() {
    if [ -n "$keyring" ] && has gpgv; then
        fetch "$1/InRelease" "$work/InRelease"
        gpgv --keyring "$keyring" --output "$work/Release" "$work/InRelease" 2>"$work/gpgv" ||
            fail "the signature of $1/InRelease is not by a key of $keyring: $(tail -n 1 "$work/gpgv")" "do not use this mirror"
    else
        fetch "$1/Release" "$work/Release"
        fetch "$1/Release.gpg" "$work/Release.gpg"
        verify "$work/Release" "$work/Release.gpg"
    fi
}

# The packages that the names in "$@" need, from lines "name, file, sha256, is needed anyway, dependencies, provides", with tabs:
# "file sha256", a line each. Dependencies are "a|b, c" without versions: one suite has one version of a package.
resolve() {
    awk -F '\t' -v "wanted=$*" '
        !($1 in file) {
            file[$1] = $2; sum[$1] = $3; needs[$1] = $5
            count = split($6, names, /, */)
            for (i = 1; i <= count; i++) given[names[i]] = given[names[i]] " " $1
            if ($4 == "yes") wanted = wanted " " $1
        }
        function taken(name,    i, some, list) {
            if (name in queued) return 1
            some = split(given[name], list, " ")
            for (i = 1; i <= some; i++) if (list[i] in queued) return 1
            return 0
        }
        function take(name,    list) {
            if (!(name in file) && split(given[name], list, " ")) name = list[1]
            if (!(name in file)) return 0
            queued[name] = 1; queue[++last] = name
            return 1
        }
        END {
            count = split(wanted, names, " ")
            for (i = 1; i <= count; i++) if (!taken(names[i]) && !take(names[i])) { print "there is no " names[i] > "/dev/stderr"; exit 1 }
            for (done = 1; done <= last; done++) {
                groups = split(needs[queue[done]], group, /, */)
                for (i = 1; i <= groups; i++) {
                    others = split(group[i], other, /[|]/); ok = 0
                    for (j = 1; j <= others && !ok; j++) ok = taken(other[j])
                    for (j = 1; j <= others && !ok; j++) ok = take(other[j])
                    if (!ok) { print queue[done] " needs " group[i] > "/dev/stderr"; exit 1 }
                }
            }
            for (i = 1; i <= last; i++) print file[queue[i]], sum[queue[i]]
        }'
}

# Packages of a .deb index as lines for resolve.
table_of_apt() {
    awk '
        function flush() { if (name != "") print name "\t" file "\t" sum "\t" always "\t" needs "\t" gives; name = file = sum = needs = gives = ""; always = "no" }
        function plain(text) { gsub(/\([^)]*\)|:any|:native| /, "", text); return text }
        { value = substr($0, index($0, ": ") + 2) }
        /^Package: / { name = value }
        /^Filename: / { file = value }
        /^SHA256: / { sum = value }
        /^Essential: yes|^Priority: required/ { always = "yes" }
        /^(Pre-)?Depends: / { needs = needs (needs == "" ? "" : ",") plain(value) }
        /^Provides: / { gives = plain(value) }
        /^$/ { flush() }
        END { flush() }'
}

# The same of a database of pacman: all its desc files, one after the other.
table_of_pacman() {
    awk '
        function flush() { if (name != "") print name "\t" file "\t" sum "\tno\t" needs "\t" gives; name = file = sum = needs = gives = "" }
        function plain(text) { sub(/[<>=].*/, "", text); return text }
        /^%FILENAME%$/ { flush() }
        /^%.*%$/ { field = $0; next }
        $0 == "" { next }
        field == "%FILENAME%" { file = $0 }
        field == "%NAME%" { name = $0 }
        field == "%SHA256SUM%" { sum = $0 }
        field == "%DEPENDS%" { needs = needs (needs == "" ? "" : ",") plain($0) }
        field == "%PROVIDES%" { gives = gives (gives == "" ? "" : ",") plain($0) }
        END { flush() }'
}

# Fetches what resolve has printed from below URL $1, and unpacks it.
get_packages() {
    total=$(wc -l <"$work/packages")
    number=0
    while read -r file sum; do
        number=$((number + 1))
        package=$root/bootstrap/${file##*/}
        say "package $number of $total: ${file##*/}"
        fetch "$1/$file" "$package"
        check "$package" "$sum"
        if [ "$distro" = archlinux ]; then
            fetch "$1/$file.sig" "$package.sig"
            verify "$package" "$package.sig"
            tar --extract --preserve-permissions --keep-directory-symlink --exclude '.[A-Z]*' --directory "$root" --file "$package"
        else
            if has dpkg-deb; then
                dpkg-deb --fsys-tarfile "$package"
            elif has bsdtar; then
                bsdtar -xOf "$package" 'data.tar*'
            else
                ar p "$package" "$(ar t "$package" | grep '^data\.tar')"
            fi >"$work/data"
            tar --extract --preserve-permissions --keep-directory-symlink --directory "$root" --file "$work/data"
        fi
    done <"$work/packages"
}

# The host's first package source whose address ends in $1 (other vendors' repositories carry the same suite names).
host_mirror() {
    has apt-get || return 0
    apt-get indextargets --format "\$(REPO_URI)" 'Identifier: Packages' 2>/dev/null | sed -n "s,\(.*/$1\)/*\$,\1,p" | head -n 1
}

apt() {
    case $(uname -m) in
    x86_64) arch=amd64 ports='' ;;
    aarch64) arch=arm64 ports=http://ports.ubuntu.com/ubuntu-ports ;;
    *) fail "cannot make a base for $(uname -m)" "x86_64 and aarch64 are known" ;;
    esac
    if [ "$distro" = "$(host_distro)" ]; then
        suite=${suite:-$(os_release VERSION_CODENAME)}
        mirror=${mirror:-$(host_mirror "$distro")}
    fi
    case $distro in
    debian)
        suite=${suite:-stable}
        mirror=${mirror:-http://deb.debian.org/debian}
        security=$(host_mirror debian-security)
        security=${security:-http://deb.debian.org/debian-security}
        components=main
        ;;
    ubuntu)
        suite=${suite:-noble}
        mirror=${mirror:-${ports:-http://archive.ubuntu.com/ubuntu}}
        security=$mirror
        components='main universe'
        ;;
    esac
    say "$distro $suite from $mirror, security updates from $security"
    choose_keyring "/usr/share/keyrings/$distro-archive-keyring.gpg" "/usr/share/keyrings/$distro-archive-keyring.pgp"
    get_release "$mirror/dists/$suite"
    index=main/binary-$arch/Packages.gz
    sum=$(awk -v "index_=$index" '/^SHA256:/ { on = 1; next } /^[^ ]/ { on = 0 } on && $3 == index_ { print $1 }' "$work/Release")
    [ -n "$sum" ] || fail "$mirror has no $index of $suite for this machine" "another suite: $0 $distro SUITE"
    fetch "$mirror/dists/$suite/$index" "$work/Packages.gz"
    check "$work/Packages.gz" "$sum"
    gzip -dc "$work/Packages.gz" | table_of_apt >"$work/table"
    # It says of the system below that /bin is merged already; the other package that does needs all of Perl.
    # shellcheck disable=SC2046,SC2094
    resolve apt $(cut -f 1 "$work/table" | grep -x usr-is-merged) <"$work/table" >"$work/packages" ||
        fail "cannot find the packages of $suite"
    # Packages of before the merge have files in /bin, and those of after it in /usr/bin.
    for folder in bin sbin lib; do
        mkdir -p "$root/usr/$folder"
        ln -s "usr/$folder" "$root/$folder"
    done
    if [ "$arch" = amd64 ]; then
        mkdir -p "$root/usr/lib64"
        ln -s usr/lib64 "$root/lib64"
    fi
    get_packages "$mirror"

    printf "deb %s %s $components\n" "$mirror" "$suite" "$mirror" "$suite-updates" "$security" "$suite-security" \
        >"$root/bootstrap/sources.list"
    # A proxy that only apt knows of.
    ! has apt-config || apt-config dump 2>/dev/null | grep -i '^Acquire::https\?::Proxy' >"$root/bootstrap/proxy" || true
    cat >"$root/bootstrap/configure" <<'SCRIPT'
export DEBIAN_FRONTEND=noninteractive
{
    # An image that is half made is made anew: nothing needs to wait for the disk.
    echo force-unsafe-io
    printf 'path-exclude=/usr/share/%s/*\n' doc man info locale lintian
    # Licences stay: their holders ask for it.
    echo 'path-include=/usr/share/doc/*/copyright'
} >/etc/dpkg/dpkg.cfg.d/small
find /usr/share/doc -type f ! -name copyright -delete
rm -rf /usr/share/man /usr/share/info /usr/share/locale
mkdir -p /var/lib/dpkg/info /var/lib/dpkg/updates
: >/var/lib/dpkg/status
: >/var/lib/dpkg/available
# Maintainers' scripts ask for these before base-passwd is configured.
cp /usr/share/base-passwd/passwd.master /etc/passwd
cp /usr/share/base-passwd/group.master /etc/group
[ -e /usr/bin/awk ] || ln -s mawk /usr/bin/awk
# All at once: each needs some other.
dpkg --force-depends --force-confnew --install /bootstrap/*.deb
cp /bootstrap/sources.list /etc/apt/sources.list
[ ! -s /bootstrap/proxy ] || cp /bootstrap/proxy /etc/apt/apt.conf.d/00-bootstrap
apt-get update
apt-get --yes --no-install-recommends dist-upgrade
apt-get --yes --no-install-recommends install bubblewrap ca-certificates
apt-get clean
rm -rf /etc/apt/apt.conf.d/00-bootstrap /var/lib/apt/lists/* /var/log/* /var/cache/debconf/* /var/cache/apt/*.bin
SCRIPT
}

pacman() {
    # The host's own, if it is an Arch Linux.
    list=/etc/pacman.d/mirrorlist
    [ -n "$mirror" ] || [ ! -r "$list" ] ||
        mirror=$(sed -n "s,^Server *= *\(.*\)/[\$]repo/os/[\$]arch.*,\1,p" "$list" | head -n 1)
    [ -n "$mirror" ] || fail "there is no mirror of Arch Linux in $list" "name one, as far as \$repo: $0 archlinux '' https://MIRROR"
    arch=$(uname -m)
    say "archlinux from $mirror"
    choose_keyring /etc/pacman.d/gnupg/pubring.gpg
    fetch "$mirror/core/os/$arch/core.db" "$work/core.db"
    mkdir "$work/core"
    tar --extract --directory "$work/core" --file "$work/core.db"
    find "$work/core" -name desc -exec cat {} + | table_of_pacman |
        resolve bash coreutils pacman archlinux-keyring >"$work/packages" || fail "cannot find the packages of core"
    get_packages "$mirror/core/os/$arch"

    cat >"$root/bootstrap/pacman.conf" <<CONFIG
[options]
Architecture = auto
# Each package, and the databases if they are signed.
SigLevel = Required DatabaseOptional
LocalFileSigLevel = Optional
NoExtract = usr/share/doc/* usr/share/man/* usr/share/info/* usr/share/locale/*

[core]
Server = $mirror/\$repo/os/\$arch

[extra]
Server = $mirror/\$repo/os/\$arch
CONFIG
    cat >"$root/bootstrap/configure" <<'SCRIPT'
mkdir -p /var/lib/pacman /var/cache/pacman/pkg /etc/pacman.d /var/log
cp /bootstrap/pacman.conf /etc/pacman.conf
pacman-key --init
pacman-key --populate archlinux
# A sandbox of its own for downloads, which a container's seccomp profile may not let it have.
set -- --noconfirm --overwrite '*'
! pacman --sync --help | grep -q disable-sandbox || set -- "$@" --disable-sandbox
pacman --sync --refresh --sysupgrade "$@" bash coreutils shadow pacman archlinux-keyring bubblewrap ca-certificates
# Its package may have brought another.
cp /bootstrap/pacman.conf /etc/pacman.conf
# Nobody may know the key that signs for this image's pacman: "pacman-key --init" makes another.
gpgconf --homedir /etc/pacman.d/gnupg --kill all || true
rm -rf /etc/pacman.d/gnupg /etc/pacman.conf.pacnew /var/lib/pacman/sync /var/cache/pacman/pkg /var/log/*
rm -rf /usr/share/doc /usr/share/man /usr/share/info /usr/share/locale
SCRIPT
}

sweep() {
    [ -z "$container" ] || docker rm --force "$container" >/dev/null 2>&1 || true
    [ -z "$unpacked" ] || docker rmi "$unpacked" >/dev/null 2>&1 || true
    chmod -R u+rwX "$work" 2>/dev/null || true
    rm -rf --one-file-system "$work"
}

case ${1:-} in
-h | --help)
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0"
    exit 0
    ;;
esac

# With "missing" in front, only that is said.
what='make'
if [ "${1:-}" = missing ]; then
    what=missing
    shift
fi
distro=${1:-$(host_distro)}
suite=${2:-}
mirror=${3:-}
tag=${SCCACHE_BASE_IMAGE:-sccache-dock-base:$distro}
case $distro in
debian | ubuntu | archlinux) ;;
'') fail "cannot tell which distribution to make" "name it: $0 debian|ubuntu|archlinux" ;;
*) fail "cannot make a base of \"$distro\"" "choose debian, ubuntu or archlinux" ;;
esac
lacking=$(missing)
if [ "$what" = missing ]; then
    [ -z "$lacking" ] || echo "$lacking"
    exit 0
fi
can_fetch || lacking="$lacking curl"
[ -z "$lacking" ] || fail "cannot find $(echo "$lacking" | tr '\n' ' ')" "install it, or run without an image: scripts/sccache-docker-manage.sh run-local"

work=$(mktemp -d "${TMPDIR:-/var/tmp}/sccache-dock-base.XXXXXX")
root=$work/root
container=
unpacked=
trap sweep EXIT
trap 'exit 1' HUP INT TERM
mkdir -p "$root/bootstrap"
chmod 755 "$root"
case $distro in
archlinux) pacman ;;
*) apt ;;
esac
bundle=$(host_bundle)
[ -z "$bundle" ] || cat "$bundle" >"$root/bootstrap/ca-bundle.crt"

say "importing $(du -sm "$root" | cut -f 1) MB, to be configured in a container"
unpacked=$(tar --create --owner 0 --group 0 --numeric-owner --directory "$root" . | docker import - "$tag-unpacked")
# On the host's network, where the mirror was just reached. What the bundle has, is trusted before and after that
# package is configured, whose script writes the file anew.
container=$(docker create --network host --env http_proxy --env https_proxy --env no_proxy "$tag-unpacked" /bin/sh -euc '
    export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
    trust() { [ ! -s /bootstrap/ca-bundle.crt ] || { mkdir -p /etc/ssl/certs && cat /bootstrap/ca-bundle.crt >/etc/ssl/certs/ca-certificates.crt; }; }
    trust
    . /bootstrap/configure
    trust
    rm -rf /bootstrap')
docker start --attach "$container" >&2 || fail "cannot configure the packages of $distro" "the lines above say why"
docker export "$container" | docker import --change 'CMD ["/bin/sh"]' - "$tag"
