//! A build through builders that are killed, paused and cut off at random. A small one is part of the suite; `just
//! cluster-storm` makes the large one. The seed is printed; `STORM_SEED` repeats its choices.

use super::{Cluster, builder};
use crate::dice::Dice;
use crate::dock::{Dock, descendants_of, eventually};
use crate::harness::{now, setting};
use crate::site::free_port;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Builders besides the scheduler's own.
const BUILDERS: usize = 3;
/// A builder with one processor has two slots.
const SLOTS: usize = 2 * (BUILDERS + 1);
/// Jobs in flight for each slot.
const CROWD: usize = 4;
/// Compiles of one command, which must not take minutes.
const PART: usize = 200;
/// Longest pause, and longest cut: some are noticed as such, some end before.
const LONGEST: u64 = 15_000;

/// The network between the relay and a builder.
pub(super) struct Wire {
    pub(super) address: SocketAddr,
    is_cut: Arc<AtomicBool>,
    ends: Arc<Mutex<Vec<TcpStream>>>,
}

impl Wire {
    pub(super) fn to(builder: SocketAddr) -> Wire {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let wire = Wire {
            address: listener.local_addr().unwrap(),
            is_cut: Arc::default(),
            ends: Arc::default(),
        };
        let (is_cut, ends) = (Arc::clone(&wire.is_cut), Arc::clone(&wire.ends));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if !is_cut.load(Relaxed) {
                    let ends = Arc::clone(&ends);
                    std::thread::spawn(move || pass(stream, builder, &ends));
                }
            }
        });
        wire
    }

    /// Ends all connections, and takes no more until it is mended.
    pub(super) fn cut(&self) {
        self.is_cut.store(true, Relaxed);
        for end in self.ends.lock().unwrap().drain(..) {
            let _ = end.shutdown(Shutdown::Both);
        }
    }

    pub(super) fn mend(&self) {
        self.is_cut.store(false, Relaxed);
    }
}

fn pass(near: TcpStream, builder: SocketAddr, ends: &Mutex<Vec<TcpStream>>) -> io::Result<()> {
    let far = TcpStream::connect(builder)?;
    let (back, to) = (far.try_clone()?, near.try_clone()?);
    ends.lock()
        .unwrap()
        .extend([near.try_clone()?, far.try_clone()?]);
    std::thread::spawn(move || copy(back, to));
    copy(near, far)
}

fn copy(mut from: TcpStream, mut to: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        match from.read(&mut buffer)? {
            0 => return to.shutdown(Shutdown::Write),
            length => to.write_all(&buffer[..length])?,
        }
    }
}

/// Builders, the way to each, and until when something is wrong with it.
struct Storm<'a> {
    cluster: &'a Cluster,
    wires: Vec<Wire>,
    dice: Dice,
    paused: Vec<(usize, Instant)>,
    cut: Vec<(usize, Instant)>,
}

impl Storm<'_> {
    fn signal(&self, victim: usize, signal: Signal) {
        let pid = self.cluster.builders[victim].pid().as_raw();
        for pid in descendants_of(pid).into_iter().chain([pid]) {
            // It may have ended meanwhile.
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    /// Ends pauses and cuts whose time is over.
    fn calm(&mut self, at: Instant) {
        let over = |(_, until): &mut (usize, Instant)| *until <= at;
        let (paused, cut): (Vec<_>, Vec<_>) = (
            self.paused.extract_if(.., over).collect(),
            self.cut.extract_if(.., over).collect(),
        );
        for (builder, _) in paused {
            self.signal(builder, Signal::SIGCONT);
        }
        for (builder, _) in cut {
            self.wires[builder].mend();
        }
    }

    /// One random fault of a builder with which nothing is wrong; gives its name.
    fn strike(&mut self) -> &'static str {
        let mut suffers = [false; BUILDERS];
        for (builder, _) in self.paused.iter().chain(&self.cut) {
            suffers[*builder] = true;
        }
        let well = (0..BUILDERS).filter(|builder| !suffers[*builder]);
        let well: Vec<usize> = well.collect();
        let until = now() + Duration::from_millis(500 + self.dice.below(LONGEST));
        let what = self.dice.below(3);
        if what == 0 || well.is_empty() {
            let all: Vec<&Dock> = well
                .iter()
                .map(|one| &self.cluster.builders[*one])
                .collect();
            let all = [&all[..], &[&self.cluster.dock]].concat();
            let victim = self.dice.of_these(&all);
            if let Some(pid) = victim.service("builder")["pid"].as_i64() {
                let _ = kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL);
            }
            return "kill -9";
        }
        let victim = self.dice.of_these(&well);
        if what == 1 {
            self.signal(victim, Signal::SIGSTOP);
            self.paused.push((victim, until));
            return "pause";
        }
        self.wires[victim].cut();
        self.cut.push((victim, until));
        "cut"
    }
}

#[test]
fn random_faults_of_builders_cost_no_job_and_change_no_result() {
    let compiles = usize::try_from(setting("STORM_COMPILES", 64)).unwrap();
    let faults = setting("STORM_FAULTS", 6);
    let dice = Dice::of("STORM_SEED");
    let Some(mut cluster) = Cluster::start(0, &[]) else {
        return;
    };
    let url = format!("http://127.0.0.1:{}", cluster.front);
    let mut wires = Vec::new();
    for _ in 0..BUILDERS {
        let listen = format!("127.0.0.1:{}", free_port());
        let wire = Wire::to(listen.parse().unwrap());
        let reached = wire.address.to_string();
        let changes = [
            ("SCCACHE_BUILDER_LISTEN", listen.as_str()),
            ("SCCACHE_PUBLIC_ADDR", reached.as_str()),
        ];
        cluster.builders.push(builder(&url, &changes));
        wires.push(wire);
    }
    cluster.warm();
    for number in 0..compiles {
        let text = format!(
            "#include <vector>\nint f{number}(int n) {{ std::vector<int> v(n, {number}); return v.back(); }}\n"
        );
        cluster.client.write(&format!("f{number}.cpp"), &text);
    }
    let mut storm = Storm {
        cluster: &cluster,
        wires,
        dice,
        paused: Vec::new(),
        cut: Vec::new(),
    };
    let (begin, mut struck) = (now(), BTreeMap::<&str, u32>::new());
    let parts = (0..compiles)
        .step_by(PART)
        .map(|from| format!("seq {from} {}", (from + PART).min(compiles) - 1));
    let parts: Vec<String> = parts.collect();
    let build = |part: &String| {
        let jobs = CROWD * SLOTS;
        let script = format!("{part} | xargs -P {jobs} -I N sccache c++ -O1 -c fN.cpp -o fN.o");
        let built = cluster.client(&script);
        assert_eq!(built.code, Some(0), "{}", built.output);
    };
    std::thread::scope(|scope| {
        let build = scope.spawn(|| parts.iter().for_each(build));
        let mut number = 0;
        while !build.is_finished() {
            storm.calm(now());
            let done = cluster.outcome("jobs", "done");
            // One after another, as far as the build is.
            if number < faults && done * (faults + 1) >= (number + 1) * compiles as u64 {
                *struck.entry(storm.strike()).or_default() += 1;
                number += 1;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        storm.calm(now() + Duration::from_secs(60));
        build.join().unwrap();
    });
    println!(
        "{compiles} compiles in {:?}, faults: {struck:?}",
        begin.elapsed()
    );
    let relay = &cluster.dist()["relay"];
    println!("{relay}");
    let expected = (compiles as u64 + 1, 0);
    assert_eq!(cluster.done(), expected, "{relay}\n{}", cluster.dock.log());
    assert_eq!(u64::from(struck.values().sum::<u32>()), faults);
    for part in &parts {
        let compare = "sh -c 'c++ -O1 -c fN.cpp -o pN.o && cmp fN.o pN.o'";
        let script = format!("{part} | xargs -P 2 -I N {compare}");
        let compared = cluster.client.sh(&script);
        assert_eq!(compared.code, Some(0), "{}", compared.output);
    }
    eventually("every builder is back", || {
        let builders = cluster.dist()["builders"].as_array().unwrap().clone();
        let mut builders = builders.iter();
        builders.all(|one| one["state"] == "ready").then_some(())
    });
}
