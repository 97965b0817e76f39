#!/bin/sh
# Makes userns.json, root.json and kubernetes.json from docker-default.json.
#
#   images/seccomp/generate.sh [DIR]     writes them to DIR, its own folder by default
#
# docker-default.json is what Docker uses where nothing is said: github.com/moby/profiles, seccomp/default.json, under the
# Apache License 2.0. The first two add one group at its end and change nothing else, so that `diff` shows what they allow.
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

# What a user namespace, the overlay of a job and bubblewrap take; mount_setattr is for bubblewrap 0.13 and newer.
with chroot clone mount mount_setattr pivot_root umount2 unshare >"$out/userns.json"
# CAP_SYS_ADMIN brings the others in Docker's own profile.
with pivot_root >"$out/root.json"

# Kubernetes hands a profile to runtimes that know no conditions: they would allow what Docker allows to some capability
# only. So this is userns.json as it is for a container without capabilities, on the machines that images are made for.
python3 - "$out/userns.json" >"$out/kubernetes.json" <<'END'
import json, sys

profile = json.load(open(sys.argv[1]))
ours = {"amd64", "x86", "x32", "arm64", "arm"}
calls = []
for rule in profile["syscalls"]:
    includes, excludes = rule.get("includes", {}), rule.get("excludes", {})
    if includes.get("caps") or not ours & set(includes.get("arches", ours)):
        continue
    assert set(includes) <= {"arches", "minKernel"} and set(excludes) <= {"caps", "arches"}, rule
    assert not ours & set(excludes.get("arches", [])), rule
    calls.append({key: rule[key] for key in ("names", "action", "errnoRet", "args") if key in rule})
machines = [one for one in profile["archMap"] if one["architecture"] in ("SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64")]
names = [name for one in machines for name in (one["architecture"], *one["subArchitectures"])]
flat = {key: profile[key] for key in ("defaultAction", "defaultErrnoRet")}
print(json.dumps({**flat, "architectures": names, "syscalls": calls}, indent="\t"))
END
