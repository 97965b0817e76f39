//! The same behaviour wherever `run` finds itself: as PID 1 of a namespace, under a shell, under an init; and orphans
//! by the thousand.

use crate::dock::{Dock, children_of, descendants_of, eventually, is_alive, supervisor_program};
use crate::harness::{has_program, skip, wait_for};
use crate::supervise::wrapped_sccache;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};
use std::fs::{self, File, OpenOptions};
use std::path::Path;
use std::time::Duration;

/// Forking ten thousand processes takes this long on a machine under load.
const STORM_CEILING: Duration = Duration::from_secs(120);
const ORPHANS: usize = 10_000;
/// The gateway asks the same program for its version: that leaves none.
const ORPHANS_OF_THE_SERVER: &str =
    "[ -z \"$SCCACHE_START_SERVER\" ] || { (setsid sleep 0.3 &) ; (setsid sleep 0.4 &) ; }";

/// The supervisor below the program that was started in its place.
fn supervisor_below(dock: &Dock) -> Pid {
    let is_ours = |pid: &i32| {
        fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|path| path == supervisor_program())
    };
    let found = descendants_of(dock.pid().as_raw())
        .into_iter()
        .find(is_ours);
    Pid::from_raw(found.expect("the supervisor runs"))
}

fn child_that_runs(supervisor: Pid, part: &str) -> Option<Pid> {
    let runs = |pid: &i32| {
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.contains(part)
    };
    let mut pids = children_of(supervisor.as_raw())
        .into_iter()
        .map(|(pid, _)| pid);
    pids.find(runs).map(Pid::from_raw)
}

fn no_zombie_below(supervisor: Pid) {
    let children = children_of(supervisor.as_raw());
    assert!(
        children.iter().all(|(_, state)| *state != 'Z'),
        "{children:?}"
    );
}

/// Restarts, reaps, and stops in order below `above`; TERM goes to the process that `told` chooses.
fn behaves_below(above: &[&str], told: fn(&Dock, Pid) -> Pid) {
    let dir = tempfile::tempdir().unwrap();
    let wrapper = wrapped_sccache(dir.path(), ORPHANS_OF_THE_SERVER);
    let state = tempfile::tempdir().unwrap();
    let mut dock = Dock::launch_below(above, state, &[("SCCACHE_BINARY", &wrapper)]);
    dock.wait_ready();
    let supervisor = supervisor_below(&dock);
    eventually("two orphans are reaped", || {
        (dock.status()?["orphans_reaped"].as_u64()? >= 2).then_some(())
    });

    let gateway = child_that_runs(supervisor, "--inherit").expect("the gateway runs");
    kill(gateway, Signal::SIGKILL).unwrap();
    eventually("the gateway is ready again", || {
        let gateway = dock.service("gateway");
        (gateway["state"] == "ready" && gateway["restarts"] == 1).then_some(())
    });
    no_zombie_below(supervisor);

    let pids = descendants_of(dock.pid().as_raw());
    dock.wait_log("gateway ready");
    kill(told(&dock, supervisor), Signal::SIGTERM).unwrap();
    let (status, _) = dock.wait_end();
    assert_eq!(status.code(), Some(0), "{}", dock.log());
    let left: Vec<i32> = pids
        .into_iter()
        .filter(|pid| is_alive(Pid::from_raw(*pid)))
        .collect();
    assert!(left.is_empty(), "still there: {left:?}");
    dock.wait_log("stopped");
    let log = dock.log();
    let at = |part: &str| {
        log.rfind(part)
            .unwrap_or_else(|| panic!("no {part:?} in:\n{log}"))
    };
    assert!(
        at("server exited") < at("gateway exited"),
        "dependents stop first:\n{log}"
    );
}

#[test]
fn run_is_pid_1_of_a_namespace() {
    if !nix::unistd::geteuid().is_root() {
        return skip("only root may make a PID namespace");
    }
    let unshare = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"];
    behaves_below(&unshare, |_, supervisor| {
        let status = fs::read_to_string(format!("/proc/{supervisor}/status")).unwrap();
        let numbers = status
            .lines()
            .find(|line| line.starts_with("NSpid:"))
            .unwrap();
        assert!(numbers.ends_with("\t1"), "{numbers}");
        supervisor
    });
}

#[test]
fn run_is_the_child_of_a_shell() {
    // Two commands, or the shell would become the first.
    behaves_below(&["sh", "-c", "\"$0\" \"$@\"; exit $?"], |_, supervisor| {
        supervisor
    });
}

#[test]
fn run_is_the_child_of_an_init() {
    if !has_program("tini") {
        return;
    }
    // Not as PID 1 here, so it wants to be told to adopt; the orphans are ours in any case.
    behaves_below(&["tini", "-s", "--"], |dock, _| dock.pid());
}

/// A script that leaves `count` orphans, which end together when the gate is closed.
fn maker(dir: &Path, count: usize) -> String {
    mkfifo(&dir.join("gate"), Mode::S_IRWXU).unwrap();
    let path = dir.join("maker");
    let dir = dir.display();
    let script = format!(
        "exec 8<'{dir}/gate'\ni=0\nwhile [ $i -lt {count} ]; do (read x <&8) & i=$((i+1)); done\ntouch '{dir}/made'\n"
    );
    fs::write(&path, script).unwrap();
    // The server is started again in the storm, the storm is not.
    format!("mkdir '{dir}/once' 2>/dev/null && (setsid sh '{dir}/maker' >/dev/null 2>&1 &)")
}

#[test]
fn ten_thousand_orphans_at_once_cost_no_exit_of_ours() {
    let most = fs::read_to_string("/proc/sys/kernel/pid_max").unwrap();
    let count = ORPHANS.min(most.trim().parse::<usize>().unwrap() / 3);
    if count < ORPHANS {
        println!("only {count} orphans: this machine has no more process numbers");
    }
    let dir = tempfile::tempdir().unwrap();
    let wrapper = wrapped_sccache(dir.path(), &maker(dir.path(), count));
    let gate: File = {
        let mut both = OpenOptions::new();
        both.read(true)
            .write(true)
            .open(dir.path().join("gate"))
            .unwrap()
    };
    let dock = Dock::start(&[("SCCACHE_BINARY", &wrapper)]);
    wait_for("the orphans to be made", STORM_CEILING, || {
        dir.path().join("made").exists().then_some(())
    });
    let [gateway, server] = ["gateway", "server"].map(|name| dock.pid_of(name));

    drop(gate);
    for pid in [gateway, server] {
        kill(pid, Signal::SIGKILL).unwrap();
    }
    let status = wait_for("all orphans are reaped", STORM_CEILING, || {
        let status = dock.status()?;
        (status["orphans_reaped"].as_u64()? >= count as u64).then_some(status)
    });
    println!("{} orphans reaped", status["orphans_reaped"]);
    for name in ["gateway", "server"] {
        eventually("both services are ready again", || {
            let service = dock.service(name);
            let back = service["state"] == "ready" && service["restarts"] == 1;
            (back && service["last_exit"] == "signal 9").then_some(())
        });
    }
    no_zombie_below(dock.pid());
}
