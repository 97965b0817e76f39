//! Jobs that misuse the builder they run on.

use crate::distributed::{is_possible, job, terms};
use crate::harness::tools;
use crate::site::skip;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// Compiles a program of this folder.
fn compiled(folder: &Path, name: &str) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/attacks");
    let program = folder.join(name);
    let made = Command::new("cc")
        .arg("-o")
        .arg(&program)
        .arg(source.join(format!("{name}.c")))
        .status();
    assert!(made.unwrap().success());
    program
}

/// The answers of a probe by name.
fn answers(output: &Output) -> BTreeMap<String, String> {
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stdout.clone()).unwrap();
    let pairs = said.lines().filter_map(|line| line.split_once(' '));
    pairs
        .map(|(name, answer)| (name.into(), answer.into()))
        .collect()
}

/// Needed by every program.
const ALLOWED: [&str; 3] = ["fork", "unix", "inet"];
/// Calls of another architecture, which end the caller.
const FOREIGN: [&str; 2] = ["x32", "i386"];
/// Refused for their arguments.
const FORBIDDEN: [&str; 9] = [
    "clone-high",
    "clone-mounts",
    "clone-net",
    "clone-user",
    "alg",
    "netlink",
    "packet",
    "tiocsti",
    "vsock",
];

fn expected(name: &str) -> &'static str {
    match name {
        _ if ALLOWED.contains(&name) => "ALLOWED",
        _ if FOREIGN.contains(&name) => "SIGSYS",
        _ if FORBIDDEN.contains(&name) => "EPERM",
        _ => "ENOSYS",
    }
}

#[test]
fn jobs_have_no_system_call_to_get_out_with() {
    if !is_possible() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let probe = compiled(folder.path(), "probe");
    // The sandbox alone leaves a job the whole surface of a user namespace.
    let bare = Command::new("/usr/bin/bwrap")
        .args(["--die-with-parent", "--cap-drop", "ALL", "--unshare-user"])
        .args(["--unshare-pid", "--unshare-net", "--unshare-ipc"])
        .args(["--bind", "/", "/", "--proc", "/proc", "--dev", "/dev"])
        .arg(&probe)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let bare = answers(&bare);
    for name in ["unshare-user", "clone-user", "clone3", "mount", "netlink"] {
        assert_eq!(bare[name], "ALLOWED", "{name}: the probe proves nothing");
    }
    let newer = ["trixie", "sid"].map(|suite| tools().join("bubblewrap").join(suite).join("bwrap"));
    for bwrap in ["/usr/bin/bwrap".into()].into_iter().chain(newer) {
        if !bwrap.exists() {
            return skip("no newer bubblewraps: run scripts/test").unwrap_or(());
        }
        let mut terms = terms();
        terms.bwrap = bwrap;
        let found = answers(&job(&terms, &probe.display().to_string()));
        assert_eq!(found.len(), bare.len(), "{found:?}");
        for (name, answer) in &found {
            assert_eq!(answer, expected(name), "{name} with {:?}", terms.bwrap);
        }
    }
}
