#!/bin/sh
# Makes userns.json and root.json from docker-default.json.
#
#   images/seccomp/generate.sh [DIR]     writes them to DIR, its own folder by default
#
# docker-default.json is what Docker uses where nothing is said: github.com/moby/profiles, seccomp/default.json, under the
# Apache License 2.0. Each of ours adds one group at its end and changes nothing else, so that `diff` shows what it allows.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here}

with() {
    # The last three lines close the last group, the list and the file.
    head -n -3 "$here/docker-default.json"
    printf '\t\t},\n\t\t{\n\t\t\t"names": [\n'
    separator=
    for name in "$@"; do
        printf '%s\t\t\t\t"%s"' "$separator" "$name"
        separator=',
'
    done
    printf '\n\t\t\t],\n\t\t\t"action": "SCMP_ACT_ALLOW"\n\t\t}\n\t]\n}\n'
}

# What a user namespace, the overlay of a job and bubblewrap take.
with chroot clone mount pivot_root umount2 unshare >"$out/userns.json"
# CAP_SYS_ADMIN brings the others in Docker's own profile.
with pivot_root >"$out/root.json"
