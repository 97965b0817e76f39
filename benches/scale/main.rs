//! How far one relay goes: the real gateway with simulated builders and clients, `just bench-scale`. Two minutes.
//!
//! Builders heartbeat, take jobs over TLS as `sccache-dist` does, report them, answer after a while, and come and go.
//! Clients speak TLS too and have one job each in flight. The gateway is a process of its own, whose memory and
//! processor time are read from `/proc`; everything else is this process, on the same machine.
//!
//! ```text
//! --builders N  500     --slots N  10, of each     --clients N  5000     --seconds N  60, of the measurement
//! --job N       30, seconds that a job takes on average                  --churn N    builders a minute that are replaced
//! ```

#![expect(clippy::unwrap_used, reason = "a measurement that cannot go on ends")]
#![expect(clippy::print_stdout, reason = "figures are what it is for")]

mod builders;
mod clients;
mod gateway;

use builders::Builders;
use gateway::Gateway;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// What is simulated.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) builders: usize,
    pub(crate) slots: u64,
    pub(crate) clients: usize,
    seconds: u64,
    pub(crate) job: u64,
    churn: usize,
}

/// What is counted.
#[derive(Default)]
pub(crate) struct Figures {
    pub(crate) done: AtomicU64,
    pub(crate) fallen_back: AtomicU64,
    pub(crate) in_flight: AtomicU64,
    /// From a job's first byte to the relay to its last at its first builder, in microseconds, by when it was sent.
    pub(crate) assigned: Mutex<HashMap<u64, u64>>,
}

impl Figures {
    pub(crate) fn was_assigned(&self, sent: u64, took: u64) {
        // One that has lost its builder comes again, with the time at which it was sent first.
        self.assigned.lock().unwrap().entry(sent).or_insert(took);
    }
}

#[expect(clippy::disallowed_methods, reason = "a measurement reads the clock")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

fn options() -> Options {
    let mut options = Options {
        builders: 500,
        slots: 10,
        clients: 5000,
        seconds: 60,
        job: 30,
        churn: 60,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        // Cargo adds it.
        if argument == "--bench" {
            continue;
        }
        let value = arguments.next().unwrap_or_default();
        let number: u64 = value.parse().expect("a number behind each option");
        let count = usize::try_from(number).unwrap();
        match argument.as_str() {
            "--builders" => options.builders = count,
            "--slots" => options.slots = number,
            "--clients" => options.clients = count,
            "--seconds" => options.seconds = number,
            "--job" => options.job = number,
            "--churn" => options.churn = count,
            other => panic!("unknown option {other}"),
        }
    }
    options
}

fn main() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let options = options();
    println!("{options:?}");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(run(options));
    runtime.shutdown_background();
}

async fn run(options: Options) {
    let figures = Arc::<Figures>::default();
    let gateway = Gateway::start();
    let front = gateway.front;
    let builders = Builders::start(&options, front, &figures).await;
    let idle = gateway.usage();
    println!("{} builders idle: {idle}", options.builders);
    let begin = now();
    clients::start(&options, &gateway, &figures).await;
    let wanted = (options.clients as u64).min(options.builders as u64 * options.slots) * 99 / 100;
    while figures.in_flight.load(Relaxed) < wanted && begin.elapsed() < Duration::from_secs(180) {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    println!(
        "{} jobs in flight after {:.0} s",
        figures.in_flight.load(Relaxed),
        begin.elapsed().as_secs_f64()
    );
    let since = u64::try_from(builders::BEGIN.elapsed().as_micros()).unwrap();
    let (before, done, start) = (gateway.usage(), figures.done.load(Relaxed), now());
    let every = Duration::from_secs(60) / u32::try_from(options.churn.max(1)).unwrap();
    while start.elapsed() < Duration::from_secs(options.seconds) {
        tokio::time::sleep(every).await;
        if options.churn > 0 {
            builders.replace_one();
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    let after = gateway.usage();
    let jobs = figures.done.load(Relaxed) - done;
    println!(
        "{jobs} jobs in {seconds:.0} s, {:.0} a second; {} in flight; {} left to their clients in all",
        jobs as f64 / seconds,
        figures.in_flight.load(Relaxed),
        figures.fallen_back.load(Relaxed),
    );
    let cpu = after.cpu - before.cpu;
    println!(
        "gateway: {after}, {:.2} processors, {:.2} ms of processor time a job",
        cpu / seconds,
        cpu * 1000.0 / jobs.max(1) as f64
    );
    let assigned = std::mem::take(&mut *figures.assigned.lock().unwrap());
    let assigned = assigned.into_iter().filter(|(sent, _)| *sent >= since);
    let mut assigned: Vec<u64> = assigned.map(|(_, took)| took).collect();
    assigned.sort_unstable();
    let at = |share: f64| {
        let index = (assigned.len().saturating_sub(1) as f64 * share) as usize;
        assigned.get(index).copied().unwrap_or(0) as f64 / 1000.0
    };
    println!(
        "from the relay to a builder, waiting for a slot included: median {:.1} ms, p99 {:.1} ms, of {} jobs",
        at(0.5),
        at(0.99),
        assigned.len()
    );
}
