//! An idle PID 1 uses no processor time, whatever local processes have sent to its sockets or left out, and goes on
//! doing its work meanwhile.

use crate::dice::Dice;
use crate::dock::{Dock, eventually};
use crate::faults::limit_descriptors;
use crate::harness::{now, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use sccache_dock::base::listeners;
use sccache_dock::contract::control;
use sccache_dock::contract::control::Response;
use std::fs;
use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How long an idle supervisor is watched.
const WATCHED: Duration = Duration::from_secs(1);
/// Processor time in that: one that spins takes all that it can get.
const MOST_TIME: Duration = Duration::from_millis(60);
/// How often it may wake up in that: for whom it waits no longer, for a log line.
const MOST_WAKEUPS: u64 = 100;
/// The longest that a flood goes on.
const FLOOD: Duration = Duration::from_secs(60);
/// More than the supervisor holds open at a time.
const MANY: usize = 40;

/// Processor time so far, and how often the main thread has gone to sleep.
fn spent(pid: Pid) -> (Duration, u64) {
    let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap();
    let stat = read("stat");
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    let ticks = |at: usize| fields[at].parse::<u64>().unwrap();
    let status = read("status");
    let mut lines = status.lines();
    let slept = lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    // A tick has been a hundredth of a second for all programs since Linux 2.6.
    let time = Duration::from_millis(10 * (ticks(11) + ticks(12)));
    (time, slept.unwrap().trim().parse().unwrap())
}

/// Watches for a while and fails if the supervisor did more than wait.
fn assert_idle(dock: &Dock, after: &str) {
    let before = spent(dock.pid());
    let until = now() + WATCHED;
    wait_for("the while to pass", 2 * WATCHED, || {
        (now() >= until).then_some(())
    });
    let after_it = spent(dock.pid());
    let (time, wakeups) = (after_it.0 - before.0, after_it.1 - before.1);
    println!("{after}: {time:?} of processor time, {wakeups} wakeups in {WATCHED:?}");
    assert!(
        time < MOST_TIME && wakeups < MOST_WAKEUPS,
        "it spins after {after}"
    );
}

fn socket(dock: &Dock, name: &str) -> PathBuf {
    dock.dir.path().join("run").join(name)
}

/// What a server says when it is ready, and the same as if it were far longer.
const READY: &[u8] = b"\0\0\0\x04\0\0\0\0";
const LYING: &[u8] = b"\0\0\xff\xff\0\0\0\0";

fn connect(path: &Path, words: &[u8]) -> UnixStream {
    let mut stream = UnixStream::connect(path).unwrap();
    stream
        .set_write_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    // It may hang up in the middle of it.
    let _ = stream.write_all(words);
    stream
}

/// One thing that a local process may do; gives its name.
fn mischief(dice: &mut Dice, dock: &Dock, held: &mut Vec<UnixStream>) -> &'static str {
    let path = socket(dock, dice.of_these(&["control.sock", "notify.sock"]));
    let words = dice.of_these(&[
        &b"sta"[..],
        b"status\nstatus\n",
        b"\0\0\0",
        READY,
        LYING,
        b"\n\n",
    ]);
    match dice.below(12) {
        0 => {
            held.push(connect(&path, b""));
            "says nothing"
        }
        1 => {
            held.push(connect(&path, words));
            "reads nothing"
        }
        2 => {
            let stream = connect(&path, words);
            let _ = stream.shutdown(Shutdown::Write);
            held.push(stream);
            "closes its sending half"
        }
        3 => {
            let stream = connect(&path, words);
            let _ = stream.shutdown(Shutdown::Read);
            held.push(stream);
            "closes its receiving half"
        }
        4 => {
            drop(connect(&path, words));
            "hangs up"
        }
        5 => {
            let length = dice.below(3000);
            held.push(connect(&path, &dice.bytes(length)));
            "sends garbage"
        }
        6 => {
            held.extend((0..MANY).map(|_| connect(&path, words)));
            "connects many times"
        }
        7 => {
            let stream = connect(&path, b"");
            listeners::send(&stream, &[stream.as_fd(), std::io::stdout().as_fd()]).unwrap();
            held.push(stream);
            "sends descriptors"
        }
        8 => {
            if let Some(stream) = held.last_mut() {
                let _ = stream.set_nonblocking(true);
                let _ = stream.write_all(&dice.bytes(9));
            }
            "goes on"
        }
        9 => {
            let path = socket(dock, "sccache.sock");
            held.push(connect(&path, &dice.bytes(50)));
            "goes to the clients' socket"
        }
        10 => {
            let mut stream = TcpStream::connect(address(dock)).unwrap();
            let _ = stream.write_all(words);
            "goes to the port"
        }
        _ => {
            held.clear();
            "lets all go"
        }
    }
}

fn address(dock: &Dock) -> String {
    match ask(dock, "status") {
        Response::Status(report) => report.listen,
        other => panic!("{other:?}"),
    }
}

fn ask(dock: &Dock, request: &str) -> Response {
    control::ask(&socket(dock, "control.sock"), request).unwrap()
}

fn comes_back(dock: &Dock, name: &str) {
    let before = dock.service(name)["restarts"].as_u64();
    kill(dock.pid_of(name), Signal::SIGKILL).unwrap();
    eventually("it is back", || {
        let service = dock.service_if_up(name)?;
        let back = service["state"] == "ready" && service["restarts"].as_u64() > before;
        back.then_some(())
    });
}

#[test]
fn nothing_that_is_sent_to_its_sockets_keeps_the_supervisor_busy() {
    let mut dock = Dock::start(&[("SCCACHE_LOG", "error")]);
    let mut dice = Dice::of("IDLE_SEED");
    let mut held = Vec::new();
    assert_idle(&dock, "its start");
    for round in 0..4 {
        let mut last = "";
        for _ in 0..60 {
            last = mischief(&mut dice, &dock, &mut held);
        }
        assert_idle(&dock, &format!("round {round}, in which the last {last}"));
        assert!(matches!(ask(&dock, "status"), Response::Status(_)));
    }
    // Whoever holds on to what it has, the supervisor works.
    comes_back(&dock, "server");
    comes_back(&dock, "gateway");
    dock.signal(Signal::SIGTERM);
    assert_eq!(dock.wait_end().0.code(), Some(0), "{}", dock.log());
}

#[test]
fn half_a_frame_and_its_end_do_not_keep_the_supervisor_awake() {
    let dock = Dock::start(&[("SCCACHE_LOG", "error")]);
    let held: Vec<UnixStream> = ["control.sock", "notify.sock"]
        .map(|name| {
            let stream = connect(&socket(&dock, name), b"\0\0");
            stream.shutdown(Shutdown::Write).unwrap();
            stream
        })
        .into();
    assert_idle(&dock, "half a frame and its end");
    drop(held);
}

#[test]
fn socket_that_no_service_of_the_mode_uses_does_not_keep_the_supervisor_awake() {
    if !crate::distributed::is_possible() {
        return;
    }
    let dock = Dock::launch(&[
        ("MODE", "builder"),
        ("SCCACHE_LOG", "warn"),
        ("SCCACHE_SCHEDULER_URL", "http://127.0.0.1:1"),
        ("SCCACHE_BUILDER_LISTEN", "127.0.0.1:0"),
        ("SCCACHE_PUBLIC_ADDR", "127.0.0.1:1"),
        ("SCCACHE_SERVER_TOKEN", "a-token-of-builders-for-this-test"),
    ]);
    eventually("it runs", || {
        (dock.service_if_up("gateway")?["state"] == "ready").then_some(())
    });
    let held =
        [b"".as_slice(), b"\0\0", READY].map(|words| connect(&socket(&dock, "notify.sock"), words));
    assert_idle(&dock, "connections that nobody wants");
    let said = "cannot reach the scheduler, and try again until it answers: ";
    dock.wait_log(&format!("{said}the scheduler is not there"));
    assert_eq!(dock.log().matches(said).count(), 1, "{}", dock.log());
    drop(held);
}

#[test]
fn connections_that_cannot_be_accepted_do_not_keep_the_supervisor_awake() {
    let dock = Dock::start(&[("SCCACHE_LOG", "error")]);
    let folder = PathBuf::from(format!("/proc/{}/fd", dock.pid()));
    let is_free = |number: &i32| fs::symlink_metadata(folder.join(number.to_string())).is_err();
    limit_descriptors(&dock, (0..).find(is_free).unwrap());
    let held = ["control.sock", "notify.sock"].map(|name| connect(&socket(&dock, name), READY));
    assert_idle(&dock, "connections for which no descriptor is free");
    limit_descriptors(&dock, 1024);
    assert!(matches!(ask(&dock, "status"), Response::Status(_)));
    drop(held);
}

#[test]
fn flood_of_connections_does_not_keep_the_supervisor_from_its_work() {
    let dock = Dock::start(&[("SCCACHE_LOG", "error")]);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for name in ["control.sock", "notify.sock"] {
            let (path, over) = (socket(&dock, name), &over);
            scope.spawn(move || {
                let until = now() + FLOOD;
                while !over.load(Ordering::Relaxed) && now() < until {
                    // Refused where the queue is full for a moment.
                    drop(connect_at_once(&path));
                }
            });
        }
        for name in ["server", "gateway"] {
            comes_back(&dock, name);
        }
        over.store(true, Ordering::Relaxed);
    });
    assert!(matches!(ask(&dock, "status"), Response::Status(_)));
}

/// A connection, unless that takes a wait.
fn connect_at_once(path: &Path) -> rustix::io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let stream = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&stream, &SocketAddrUnix::new(path)?)?;
    Ok(stream.into())
}

#[test]
fn server_that_takes_no_connection_does_not_keep_the_supervisor_from_stopping() {
    let mut dock = Dock::start(&[("SCCACHE_STOP_GRACE", "2s")]);
    kill(dock.pid_of("server"), Signal::SIGSTOP).unwrap();
    let path = socket(&dock, "server.sock");
    // They stay in its queue when they are closed.
    let refused = (0..10_000).find_map(|_| connect_at_once(&path).err());
    assert_eq!(refused, Some(rustix::io::Errno::AGAIN));
    dock.signal(Signal::SIGTERM);
    let (status, _) = dock.wait_end();
    assert_eq!(status.code(), Some(0), "{}", dock.log());
}
