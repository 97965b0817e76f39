//! Jobs that misuse the builder they run on.

use crate::distributed::{is_possible, job, reported, terms};
use crate::harness::{Process, tools};
use crate::site::skip;
use sccache_dock::builder::mounts::Procfs;
use sccache_dock::builder::shim::{Limit, Report};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// Compiles a program of this folder.
fn compiled(folder: &Path, name: &str) -> PathBuf {
    let program = folder.join(name);
    compile(&[], name, &program);
    program
}

/// The same to this place, with more words for the compiler.
pub(super) fn compile(words: &[&str], name: &str, program: &Path) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/attacks");
    let made = Command::new("cc")
        .args(words)
        .arg("-o")
        .arg(program)
        .arg(source.join(format!("{name}.c")))
        .status();
    assert!(made.unwrap().success());
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

/// The limit that ended a job with 128 MiB.
fn limit(script: &str) -> Option<Limit> {
    let (output, report) = reported(|terms| terms.memory_bytes = 128 << 20, script);
    let Report::Ended { limit, .. } = report else {
        panic!("{report:?}");
    };
    println!("{limit:?} {output:?}");
    limit
}

#[test]
fn no_memory_of_a_job_is_hidden_from_its_limit() {
    if !is_possible() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let unmapped = compiled(folder.path(), "unmapped");
    let unmapped = unmapped.display();
    // Four times the limit.
    for kind in ["shared", "zero"] {
        let refused = format!("{unmapped} {kind} 512 1; [ $? = 3 ]");
        let output = job(&terms(), &refused);
        assert!(output.status.success(), "{kind}: {output:?}");
    }
    let tables = format!("{unmapped} tables 160 30");
    assert_eq!(limit(&tables), Some(Limit::Memory));
    // What others have not read yet.
    // Of pipes, a user has 64 MiB and then small ones.
    for (kind, mib) in [("sockets", 512), ("pipes", 70), ("tcp", 512)] {
        let unread = format!("{unmapped} {kind} {mib} 30");
        assert_eq!(limit(&unread), Some(Limit::Memory), "{kind}");
    }
    // What is in the place of /dev/zero gives what that gives.
    let zeros = "[ $(head -c 1000 /dev/zero | tr '\\0' x | grep -o x | wc -l) = 1000 ]";
    let output = job(&terms(), zeros);
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn files_that_a_job_has_open_and_their_buffers_are_bounded() {
    if !is_possible() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let unmapped = compiled(folder.path(), "unmapped");
    let script = format!("ulimit -n; ulimit -Hn; {} enlarge 0 0", unmapped.display());
    let output = job(&terms(), &script);
    let expected = b"1024\n1024\nsocket: refused\npipe: refused\n";
    assert_eq!(output.stdout, expected, "{output:?}");
}

#[test]
fn programs_that_reserve_space_for_a_file_do_without() {
    if !is_possible() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let reserve = compiled(folder.path(), "reserve");
    let file = folder.path().join("file").display().to_string();
    // The call itself is refused, the C library writes instead.
    let script = format!("{} {file}", reserve.display());
    let output = job(&terms(), &script);
    assert_eq!(
        output.stdout, b"fallocate: 95\nposix_fallocate: 0\n",
        "{output:?}"
    );
}

#[test]
fn no_tmpfs_of_a_job_takes_files() {
    if !is_possible() {
        return;
    }
    let script = "for folder in /dev /dev/shm /dev/pts /proc; do
        touch $folder/file && echo $folder; done 2>/dev/null; echo x >/dev/null && echo well";
    for procfs in [Procfs::Fresh, Procfs::Bind] {
        let mut terms = terms();
        terms.procfs = procfs;
        let output = job(&terms, script);
        assert_eq!(output.stdout, b"well\n", "{procfs:?}: {output:?}");
    }
}

#[test]
fn jobs_are_the_first_to_go_when_memory_runs_out_and_cannot_change_that() {
    if !is_possible() {
        return;
    }
    let script = "cat /proc/self/oom_score_adj; echo 0 >/proc/self/oom_score_adj; cat /proc/self/oom_score_adj";
    for procfs in [Procfs::Fresh, Procfs::Bind] {
        let mut terms = terms();
        terms.procfs = procfs;
        let output = job(&terms, &format!("{script}; true"));
        assert_eq!(output.stdout, b"1000\n1000\n", "{output:?}");
    }
}

/// What jobs can read of another process in the `/proc` that they share with it, as docs/cluster.md says.
const SEEN: [&str; 7] = [
    "cmdline", "comm", "mounts", "net/tcp", "stat", "status", "task/",
];
const UNSEEN: [&str; 8] = [
    "auxv", "cwd/", "environ", "fd/0", "maps", "mem", "root/", "syscall",
];

#[test]
fn jobs_see_of_proc_what_the_documents_say() {
    if !is_possible() {
        return;
    }
    let other = Process::start(Command::new("sleep").arg("120").env("A_TOKEN", "secret"));
    let mut looks = String::new();
    for name in SEEN.iter().chain(&UNSEEN) {
        let path = format!("/proc/{}/{name}", other.id());
        let read = match name.strip_suffix('/') {
            Some(_) => format!("ls {path}"),
            None => format!("head -c 1 {path}"),
        };
        looks += &format!("{read} >/dev/null 2>&1 && echo {name}\n");
    }
    looks += "echo own; head -c 1 /proc/self/environ >/dev/null && ls /proc/self/fd >/dev/null && echo self";
    let seen = |procfs| {
        let mut terms = terms();
        terms.procfs = procfs;
        let output = job(&terms, &looks);
        String::from_utf8(output.stdout).unwrap()
    };
    let (fresh, shared) = (seen(Procfs::Fresh), seen(Procfs::Bind));
    assert_eq!(fresh, "own\nself\n");
    assert_eq!(shared, format!("{}\nown\nself\n", SEEN.join("\n")));
}
