//! Every way in which a process can end, of a service and of an orphan: each exit code, each signal, stopped and
//! continued, traced. None may keep PID 1 from collecting the next.

use crate::dock::{Dock, eventually, is_alive};
use crate::faults::{Wrapper, server_when};
use crate::harness::wait_for;
use nix::libc;
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};
use sccache_dock::contract::control;
use sccache_dock::contract::control::{Response, ServiceReport};
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

/// Deaths of a service that nobody asked for end the run when there are too many in an hour: each run gets so many.
const A_RUN: usize = 80;

/// The words of the shell by which a process ends.
#[derive(Debug, Clone, Copy)]
enum End {
    Code(i32),
    Signal(i32),
}

impl End {
    fn all() -> Vec<End> {
        let codes = (0..=255).map(End::Code);
        codes.chain((1..=64).map(End::Signal)).collect()
    }

    /// A signal that ends nobody is followed by an exit.
    fn words(self) -> String {
        match self {
            End::Code(code) => format!("exit {code}"),
            End::Signal(signal) => format!("kill -{signal} $$; exit 0"),
        }
    }

    /// What the status is to say of it, where the process ignores these signals.
    fn told(self, ignored: u64) -> String {
        match self {
            End::Signal(_) if self.is_ignored() || self.stops() => "exit code 0".to_owned(),
            End::Signal(signal) if ignored >> (signal - 1) & 1 == 1 => "exit code 0".to_owned(),
            End::Signal(signal) => format!("signal {signal}"),
            End::Code(code) => format!("exit code {code}"),
        }
    }

    fn is_ignored(self) -> bool {
        let ignored = [libc::SIGCHLD, libc::SIGCONT, libc::SIGURG, libc::SIGWINCH];
        matches!(self, End::Signal(signal) if ignored.contains(&signal))
    }

    fn stops(self) -> bool {
        let stopping = [libc::SIGSTOP, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];
        matches!(self, End::Signal(signal) if stopping.contains(&signal))
    }
}

fn ask(dock: &Dock, request: &str) -> Response {
    control::ask(&dock.dir.path().join("run/control.sock"), request).unwrap()
}

fn server(dock: &Dock) -> ServiceReport {
    let Response::Status(report) = ask(dock, "status") else {
        panic!("no status")
    };
    let mut services = report.services.into_iter();
    services.find(|service| service.name == "server").unwrap()
}

fn state(pid: i32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// The signals that a process ignores. Of the two that the C library keeps to itself it makes its children do so.
fn ignored_by(pid: i32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let mut lines = status.lines();
    let mask = lines.find_map(|line| line.strip_prefix("SigIgn:"))?;
    u64::from_str_radix(mask.trim(), 16).ok()
}

/// Lets the server of the next start end in this way; gives what the status says of it, and what it should say.
fn end_server(dock: &Dock, orders: &Path, end: End) -> (String, String) {
    let mut order = eventually("a server that waits for its order", || {
        let server = server(dock);
        if server.state == "backoff" {
            // It cuts the pause short.
            ask(dock, "restart server");
        }
        let mut open = OpenOptions::new();
        // Without a reader this fails.
        open.write(true).custom_flags(libc::O_NONBLOCK);
        open.open(orders).ok()
    });
    // Asked only now: the status before may have been of the server whose end was not seen yet.
    let (pid, ignored) = eventually("its process", || {
        let pid = server(dock).pid?;
        Some((pid, ignored_by(pid)?))
    });
    let expected = end.told(ignored);
    writeln!(order, "{}", end.words()).unwrap();
    drop(order);
    if end.stops() {
        eventually("it stands still", || (state(pid)? == 'T').then_some(()));
        assert_eq!(server(dock).pid, Some(pid), "a stop is no end");
        kill(Pid::from_raw(pid), Signal::SIGCONT).unwrap();
    }
    let told = eventually("the death is seen", || {
        let server = server(dock);
        (server.pid != Some(pid)).then_some(server.last_exit?)
    });
    (told, expected)
}

#[test]
fn service_may_end_in_every_way_and_status_says_how() {
    for ends in End::all().chunks(A_RUN) {
        let wrapper = Wrapper::new(
            "if [ -e \"$MARKER\" ]; then ulimit -c 0; read -r words < \"$MARKER.orders\"; eval \"$words\"; fi",
        );
        let orders = wrapper.marker().with_added_extension("orders");
        mkfifo(&orders, Mode::S_IRWXU).unwrap();
        let dock = wrapper.start(&[]);
        wrapper.set();
        kill(dock.pid_of("server"), Signal::SIGKILL).unwrap();
        for end in ends {
            let (told, expected) = end_server(&dock, &orders, *end);
            println!("{:<20} {told}", end.words());
            assert_eq!(told, expected, "{end:?}");
        }
        wrapper.unset();
        assert_eq!(dock.service("gateway")["restarts"], 0);
    }
}

#[test]
fn orphan_may_end_in_every_way_and_the_next_is_reaped_too() {
    let mut body = "[ -e \"$MARKER\" ] || { : > \"$MARKER\"; ulimit -c 0\n".to_owned();
    let ends = End::all();
    for end in &ends {
        body += &format!("(setsid sh -c '{}' &)\n", end.words());
    }
    let wrapper = Wrapper::new(&(body + "}"));
    let mut dock = wrapper.start(&[]);
    let reaped = || {
        let status = dock.status()?;
        status["orphans_reaped"].as_u64()
    };
    // The other signals that stop are for the terminal's sake, which a session of one's own has none of.
    let stopped = eventually("one stands still", || {
        let mut children = dock.children().into_iter();
        children.find_map(|(pid, state)| (state == 'T').then_some(pid))
    });
    let all = ends.len() as u64;
    eventually("the others are reaped", || {
        (reaped()? == all - 1).then_some(())
    });
    kill(Pid::from_raw(stopped), Signal::SIGCONT).unwrap();
    eventually("all are reaped", || (reaped()? == all).then_some(()));
    println!("{all} orphans, each ended in a way of its own: all are reaped");
    let zombies = dock.children().into_iter().filter(|it| it.1 == 'Z');
    assert_eq!(zombies.count(), 0);
    stays_well(&dock);
    dock.signal(Signal::SIGTERM);
    let (status, _) = dock.wait_end();
    assert_eq!(status.code(), Some(0), "{}", dock.log());
}

/// A gateway that is killed comes back.
fn stays_well(dock: &Dock) {
    let before = dock.service("gateway")["restarts"].as_u64();
    kill(dock.pid_of("gateway"), Signal::SIGKILL).unwrap();
    eventually("the gateway is back", || {
        let gateway = dock.service("gateway");
        let back = gateway["state"] == "ready" && gateway["restarts"].as_u64() > before;
        back.then_some(())
    });
}

/// An orphan of its own for the test, which lives until it is killed.
pub(crate) fn orphan(dock: &Dock) -> Pid {
    let of_the_shell = |(pid, _): (i32, char)| {
        let words = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        words.starts_with(b"sleep\x001000\0").then_some(pid)
    };
    let pid = eventually("the orphan", || {
        dock.children().into_iter().find_map(of_the_shell)
    });
    Pid::from_raw(pid)
}

fn with_an_orphan() -> (Wrapper, Dock) {
    let wrapper = Wrapper::new(
        "[ -e \"$MARKER\" ] || { : > \"$MARKER\"; (setsid sleep 1000 &) ; (setsid sleep 1000 &) ; }",
    );
    let dock = wrapper.start(&[]);
    (wrapper, dock)
}

#[test]
fn orphan_that_dies_of_a_real_time_signal_keeps_no_service_from_coming_back() {
    let (_wrapper, mut dock) = with_an_orphan();
    let orphan = orphan(&dock);
    let killed = std::process::Command::new("sh")
        .args(["-c", &format!("kill -40 {orphan}")])
        .status()
        .unwrap();
    assert!(killed.success());
    // The second of these gateways is younger than the orphan.
    stays_well(&dock);
    stays_well(&dock);
    let zombies = dock.children().into_iter().filter(|it| it.1 == 'Z');
    assert_eq!(zombies.count(), 0);
    dock.signal(Signal::SIGTERM);
    let (status, took) = dock.wait_end();
    assert_eq!(status.code(), Some(0), "{}", dock.log());
    assert!(took < Duration::from_secs(8), "{took:?}");
}

#[test]
fn what_dies_under_a_debugger_is_collected_when_that_lets_go() {
    let (_wrapper, mut dock) = with_an_orphan();
    let (orphan, server) = (orphan(&dock), dock.pid_of("server"));
    for pid in [orphan, server] {
        ptrace::seize(pid, ptrace::Options::empty()).unwrap();
        kill(pid, Signal::SIGKILL).unwrap();
        eventually("it is dead", || (!is_alive(pid)).then_some(()));
    }
    // Nobody but the debugger may collect them now; what else ends is collected.
    stays_well(&dock);
    assert_eq!(dock.pid_of("server"), server);
    for pid in [orphan, server] {
        let_go(pid);
    }
    server_when(&dock, "it is back", |it| {
        it["state"] == "ready" && it["last_exit"] == "signal 9" && it["restarts"] == 1
    });
    wait_for("no zombie is left", Duration::from_secs(30), || {
        let mut children = dock.children().into_iter();
        children.all(|(_, state)| state != 'Z').then_some(())
    });
    dock.signal(Signal::SIGTERM);
    assert_eq!(dock.wait_end().0.code(), Some(0), "{}", dock.log());
}

/// What a debugger does with a process that has ended.
#[expect(
    clippy::disallowed_methods,
    reason = "no child of ours, but one that we trace"
)]
fn let_go(pid: Pid) {
    nix::sys::wait::waitpid(pid, Some(nix::sys::wait::WaitPidFlag::__WALL)).unwrap();
}
