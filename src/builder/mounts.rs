//! The mounts of a job that are not as `sccache-dist` asks for them.

use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::path::Path;

/// The last of the mounts that `sccache-dist` asks for.
const DEV: [&str; 2] = ["--dev", "/dev"];

/// Gives the job a `/dev` that takes no files, but for those in this folder as `/dev/shm`, and a `/proc` that it cannot
/// write to: there it could spare itself when memory runs out.
///
/// Bubblewrap makes a tmpfs of half the machine's memory of `/dev`, `/dev/shm` included. What lies in it is nobody's.
/// So is what a shared mapping of `/dev/zero` holds: in its place is `/dev/full`, which gives zeros and cannot be mapped.
pub(super) fn confine(arguments: &mut Vec<OsString>, procfs: Procfs, shm: Option<&Path>) {
    let at = |arguments: &[OsString], pair: [&str; 2]| {
        let mut pairs = arguments.windows(2);
        pairs.position(|words| words[0] == pair[0] && words[1] == pair[1])
    };
    // What follows is the job's own: the first is ours.
    if let Some(dev) = at(arguments, DEV) {
        let mut more: Vec<OsString> = ["--dev-bind", "/dev/full", "/dev/zero"]
            .map(OsString::from)
            .into();
        if let Some(shm) = shm {
            more.extend(["--bind".into(), shm.into(), "/dev/shm".into()]);
        }
        more.extend(["--remount-ro", "/dev"].map(OsString::from));
        if procfs == Procfs::Fresh {
            more.extend(["--remount-ro", "/proc"].map(OsString::from));
        }
        arguments.splice(dev + DEV.len()..dev + DEV.len(), more);
    }
    if procfs == Procfs::Bind
        && let Some(proc) = at(arguments, ["--proc", "/proc"])
    {
        let bind = ["--ro-bind", "/proc", "/proc"].map(OsString::from);
        arguments.splice(proc..proc + 2, bind);
    }
}

/// What a job gets for its `/proc`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Procfs {
    /// A procfs of its own process namespace.
    Fresh,
    /// Ours, read-only: a masked `/proc` forbids a new one in a user namespace.
    Bind,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn confined(text: &str, procfs: Procfs) -> String {
        let mut arguments: Vec<OsString> = text.split(' ').map(OsString::from).collect();
        confine(&mut arguments, procfs, Some(Path::new("/j/shm")));
        let words: Vec<_> = arguments
            .iter()
            .map(|word| word.to_str().unwrap())
            .collect();
        words.join(" ")
    }

    #[test]
    fn mounts_are_changed_and_what_the_job_runs_is_not() {
        let call = "--bind /t / --proc /proc --dev /dev --chdir / -- cc --proc /proc --dev /dev";
        let shm = "--dev-bind /dev/full /dev/zero --bind /j/shm /dev/shm --remount-ro /dev";
        assert_eq!(
            confined(call, Procfs::Fresh),
            format!(
                "--bind /t / --proc /proc --dev /dev {shm} --remount-ro /proc --chdir / \
                 -- cc --proc /proc --dev /dev"
            )
        );
        assert_eq!(
            confined(call, Procfs::Bind),
            format!(
                "--bind /t / --ro-bind /proc /proc --dev /dev {shm} --chdir / \
                 -- cc --proc /proc --dev /dev"
            )
        );
    }
}
