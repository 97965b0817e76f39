//! Random events against a running sccache-dock under a loop of real compiles. A short run is part of the suite;
//! `just soak` makes the long one. The seed is printed; `SOAK_SEED` repeats its choices.

use crate::dice::Dice;
use crate::dock::{Dock, is_alive};
use crate::harness::{now, sccache_bin, setting, wait_for};
use crate::machine::Machine;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sccache_dock::contract::control;
use sccache_dock::contract::control::{Report, Response};
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const SERVICES: [&str; 2] = ["gateway", "server"];
/// Longest pause of a service, with time to start.
const BACK: Duration = Duration::from_secs(50);

/// An sccache that, as the server, leaves a process behind that writes numbered lines: a few all the time, a flood
/// when it is asked for one. How far each life has come is noted in a file.
struct Flooder {
    dir: tempfile::TempDir,
}

impl Flooder {
    fn new() -> Flooder {
        let flooder = Flooder {
            dir: tempfile::tempdir().unwrap(),
        };
        let dir = flooder.dir.path().display().to_string();
        fs::create_dir(flooder.notes()).unwrap();
        let text = format!(
            r#"#!/bin/sh
flood() {{
    life=$(cat /proc/sys/kernel/random/uuid) number=0
    while :; do
        most=$((number + 20))
        if rm '{dir}/please' 2>/dev/null; then most=$((number + 20000)); fi
        while [ $number -lt $most ]; do
            number=$((number + 1))
            echo "flood $life $number end"
        done
        echo $number > "{dir}/notes/$life"
        sleep 0.2
    done
}}
if [ -n "$SCCACHE_START_SERVER" ]; then flood & fi
exec '{}' "$@"
"#,
            sccache_bin().display()
        );
        fs::write(flooder.program(), text).unwrap();
        fs::set_permissions(flooder.program(), fs::Permissions::from_mode(0o755)).unwrap();
        flooder
    }

    fn program(&self) -> PathBuf {
        self.dir.path().join("sccache-flooding")
    }

    fn notes(&self) -> PathBuf {
        self.dir.path().join("notes")
    }

    fn ask(&self) {
        fs::write(self.dir.path().join("please"), "").unwrap();
    }

    /// Checks that of every life each line is in the log once and in order; gives lives and lines.
    fn check(&self, log: &str) -> (usize, u64) {
        let mut lives: BTreeMap<&str, u64> = BTreeMap::new();
        for line in log.lines() {
            let Some((_, rest)) = line.split_once("flood ") else {
                continue;
            };
            let words: Vec<&str> = rest.split(' ').collect();
            assert_eq!((words.len(), words.last()), (3, Some(&"end")), "{line:?}");
            let last = lives.entry(words[0]).or_default();
            let number: u64 = words[1].parse().unwrap();
            assert_eq!(number, *last + 1, "of life {}", words[0]);
            *last = number;
        }
        for note in fs::read_dir(self.notes()).unwrap().map(Result::unwrap) {
            let life = note.file_name().into_string().unwrap();
            let text = fs::read_to_string(note.path()).unwrap();
            // A note whose writer was killed may be empty.
            let written = text.trim().parse().unwrap_or(0);
            let read = lives.get(life.as_str()).copied().unwrap_or(0);
            assert!(read >= written, "{life}: {read} of {written} lines");
        }
        (lives.len(), lives.values().sum())
    }
}

fn write_sources(machine: &Machine) {
    for number in 1..=8 {
        let text = format!(
            "#include <stdio.h>\nint f{number}(void) {{ return puts(\"{number}\") + ROUND; }}\n"
        );
        machine.write(&format!("f{number}.c"), &text);
    }
}

/// Compiles until `stop`; gives how often. Every second time something that was never compiled before. Over WebDAV,
/// because a client of the other lanes gives up when the gateway dies while it talks to it.
fn build(machine: &Machine, dock: &Dock, stop: &AtomicBool) -> usize {
    let lanes = ["webdav", "webdav --no-disk"];
    let mut rounds = 0;
    while !stop.load(Ordering::Relaxed) {
        let lane = lanes[rounds / 2 % lanes.len()];
        let fresh = rounds / 2;
        let script = format!(
            "seq 1 8 | xargs -P 2 -I @ sccache gcc -O1 -DROUND={fresh} -c f@.c -o f@.o && rm f*.o"
        );
        let outcome = machine.with_env(dock, &format!("--lane {lane}"), &script);
        assert_eq!(
            outcome.code,
            Some(0),
            "round {rounds} over {lane}: {}",
            outcome.output
        );
        rounds += 1;
    }
    rounds
}

fn report(socket: &Path) -> Option<Report> {
    match control::ask(socket, "status").ok()? {
        Response::Status(report) => Some(report),
        Response::Done | Response::Error(_) => None,
    }
}

fn pid_of(socket: &Path, service: &str) -> Option<Pid> {
    let services = report(socket)?.services;
    let found = services.iter().find(|it| it.name == service)?;
    found.pid.map(Pid::from_raw)
}

fn wait_ready(dock: &Dock, socket: &Path) {
    wait_for("every service is ready", BACK, || {
        assert!(is_alive(dock.pid()), "{}", tail(dock));
        let services = report(socket)?.services;
        services.iter().all(|it| it.state == "ready").then_some(())
    });
}

fn tail(dock: &Dock) -> String {
    let log = dock.log();
    let own = log.lines().filter(|line| !line.contains("flood "));
    let own: Vec<&str> = own.collect();
    own[own.len().saturating_sub(60)..].join("\n")
}

/// Open descriptors of the supervisor, and its own memory in KiB (resident, proportional).
fn weigh(pid: Pid) -> (usize, u64, u64) {
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let field = |name: &str| {
        let line = rollup.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap()
            .trim()
            .trim_end_matches(" kB")
            .parse()
            .unwrap()
    };
    (fds, field("Rss:"), field("Pss:"))
}

/// Processes that stand still, until when.
type Frozen = Vec<(Pid, Instant)>;

fn thaw(frozen: &mut Frozen, at: Instant) {
    frozen.retain(|(pid, until)| {
        if *until <= at {
            let _ = kill(*pid, Signal::SIGCONT);
        }
        *until > at
    });
}

/// One random event; gives its name.
fn strike(
    dice: &mut Dice,
    dock: &Dock,
    socket: &Path,
    flooder: &Flooder,
    frozen: &mut Frozen,
) -> &'static str {
    let service = dice.of_these(&SERVICES);
    let to_service = |signal| {
        let pid = pid_of(socket, service);
        // It may be gone by now; then its number is nobody's for a long while.
        pid.inspect(|pid| kill(*pid, signal).unwrap_or_default())
    };
    match dice.below(20) {
        0..=2 => {
            to_service(Signal::SIGKILL);
            "kill -9"
        }
        3 | 4 => {
            to_service(Signal::SIGTERM);
            "TERM"
        }
        5..=7 => {
            let until = now() + Duration::from_millis(50 + dice.below(450));
            frozen.extend(to_service(Signal::SIGSTOP).map(|pid| (pid, until)));
            "STOP and CONT"
        }
        8 | 9 => {
            dock.signal(Signal::SIGHUP);
            "HUP"
        }
        10..=12 => {
            assert!(report(socket).is_some(), "no status\n{}", tail(dock));
            "status"
        }
        13..=15 => {
            let answer = control::ask(socket, &format!("restart {service}")).unwrap();
            assert_eq!(answer, Response::Done);
            "restart"
        }
        16 | 17 => {
            flooder.ask();
            "log flood"
        }
        18 => {
            dock.signal(Signal::SIGUSR1);
            "USR1"
        }
        _ => {
            let mut stream = UnixStream::connect(socket).unwrap();
            let _ = stream.write_all(&[0xff; 300]);
            "garbage"
        }
    }
}

#[test]
fn random_events_break_no_build_and_leave_nothing_behind() {
    let (events, seconds) = (setting("SOAK_EVENTS", 80), setting("SOAK_SECONDS", 30));
    let mut dice = Dice::of("SOAK_SEED");
    println!("{events} events in {seconds} s");
    let flooder = Flooder::new();
    let program = flooder.program();
    let mut dock = Dock::start(&[
        ("SCCACHE_BINARY", program.to_str().unwrap()),
        ("SCCACHE_LOG", "warn"),
    ]);
    let machine = Machine::new();
    write_sources(&machine);
    let socket = dock.dir.path().join("run/control.sock");
    let mut struck = BTreeMap::<&str, u32>::new();
    let (stop, mut frozen) = (AtomicBool::new(false), Frozen::new());
    let first = weigh(dock.pid());
    let begin = now();
    let (rounds, early) = std::thread::scope(|scope| {
        let building = scope.spawn(|| build(&machine, &dock, &stop));
        let mut early = first;
        for number in 0..events {
            let at = begin + Duration::from_millis(seconds * 1000 * number / events);
            while now() < at {
                thaw(&mut frozen, now());
                std::thread::sleep(Duration::from_millis(10));
            }
            assert!(!building.is_finished(), "a build failed\n{}", tail(&dock));
            assert!(is_alive(dock.pid()), "{}", tail(&dock));
            let name = strike(&mut dice, &dock, &socket, &flooder, &mut frozen);
            *struck.entry(name).or_default() += 1;
            if number == events / 10 {
                early = weigh(dock.pid());
            }
        }
        thaw(&mut frozen, begin + Duration::from_secs(seconds + 60));
        wait_ready(&dock, &socket);
        stop.store(true, Ordering::Relaxed);
        (building.join().unwrap(), early)
    });
    let report = report(&socket).unwrap();
    let last = weigh(dock.pid());
    let zombies = dock.children().into_iter().filter(|it| it.1 == 'Z');
    assert_eq!(zombies.count(), 0);
    // What is still on its way is in the log when the last word is.
    dock.signal(Signal::SIGTERM);
    let (status, _) = dock.wait_end();
    assert_eq!(status.code(), Some(0), "{}", tail(&dock));
    dock.wait_log("dock     INFO stopped");
    let log = dock.log();
    let (lives, lines) = flooder.check(&log);
    println!("events: {struck:?}");
    for service in &report.services {
        let (name, restarts) = (&service.name, service.restarts);
        println!(
            "{name}: {restarts} restarts, {} deaths",
            service.deaths_last_hour
        );
    }
    println!("builds: {rounds} of 8 compiles each, none failed");
    println!("log: {lines} numbered lines of {lives} lives, none lost");
    for (when, (fds, rss, pss)) in [("first", first), ("tenth", early), ("last", last)] {
        println!("supervisor, {when}: {fds} descriptors, Rss {rss} KiB, Pss {pss} KiB");
    }
    assert_eq!(last.0, first.0, "a descriptor leaks");
    assert!(last.1 <= early.1 + 2048, "memory grows");
    assert!(
        !log.contains("the reader had stopped reading"),
        "{}",
        tail(&dock)
    );
    assert!(rounds > 1);
}
