//! What the front of the scheduler costs: the same jobs through it, through the relay and without either, on this machine.
//!
//! Three stacks stand side by side: the stock one (`sccache-dist` scheduler and builder), the same with a gateway in front,
//! and the relay. Rounds alternate between them, so that whatever else the machine does hits all.
//!
//! 1. Requests of a job without its compile: allocation (with what it costs the builder) and three reports.
//! 2. Whole jobs: a real client compiles small C++ files, each once.
//!
//! With `--builders N`, each stack has so many builders, as many jobs run at a time, and only whole jobs are measured.

#![expect(clippy::unwrap_used, reason = "a measurement that cannot go on ends")]
#![expect(clippy::print_stdout, reason = "figures are what it is for")]

mod stack;

use stack::{Figures, Kind, Stack};

/// Rounds of each kind, where no argument tells another number; the median counts.
const ROUNDS: usize = 7;
/// Jobs in a round of requests.
const REQUESTS: usize = 200;
/// Compiles in a round of whole jobs.
const COMPILES: usize = 12;

fn main() {
    nix::sys::prctl::set_child_subreaper(true).unwrap();
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let builders = arguments.iter().position(|one| one == "--builders");
    let builders: usize = builders.map_or(1, |at| {
        let given = arguments.drain(at..=at + 1).next_back().unwrap();
        given.parse().unwrap()
    });
    let count = arguments.iter().find_map(|one| one.parse().ok());
    let count = count.unwrap_or(ROUNDS);
    let stacks = [Kind::Stock, Kind::Front, Kind::Relay].map(|kind| Stack::start(kind, builders));
    if builders == 1 {
        let requests = rounds(count, &stacks[..2], |stack, _| stack.requests(REQUESTS));
        report("requests of a job (4)", REQUESTS, &stacks, &requests);
    }
    let jobs = COMPILES * builders;
    let compiles = rounds(count, &stacks, |stack, round| stack.compiles(round, jobs));
    report("whole job", jobs, &stacks, &compiles);
    for stack in &stacks {
        let (distributed, errors) = stack.distributed();
        assert_eq!(errors, 0, "compiles fell back");
        println!("{}: {distributed} compiles distributed", stack.name());
    }
}

/// Figures of each stack, stock first, a set a round; a first round warms up.
fn rounds(count: usize, stacks: &[Stack], act: impl Fn(&Stack, usize)) -> Vec<Vec<Figures>> {
    let measured = (0..=count).map(|round| {
        // Who goes first alternates too.
        let turns = (0..stacks.len()).map(|turn| (turn + round) % stacks.len());
        let mut figures: Vec<(usize, Figures)> = turns
            .map(|which| (which, stacks[which].measure(|| act(&stacks[which], round))))
            .collect();
        figures.sort_by_key(|(which, _)| *which);
        figures.into_iter().map(|(_, figures)| figures).collect()
    });
    measured.skip(1).collect()
}

fn report(what: &str, count: usize, stacks: &[Stack], rounds: &[Vec<Figures>]) {
    type Figure = fn(&Figures) -> f64;
    println!(
        "{what}: median of {} rounds, {count} jobs each",
        rounds.len()
    );
    let figures: [(&str, Figure, f64, &str); 3] = [
        ("wall", |f| f.wall, 1000.0, "ms"),
        ("cpu", |f| f.cpu, 1000.0, "ms"),
        ("bytes", |f| f.bytes, 1.0 / 1024.0, "KiB"),
    ];
    for (name, figure, factor, unit) in figures {
        for (which, stack) in stacks.iter().enumerate().take(rounds[0].len()) {
            let of = rounds.iter().map(|round| figure(&round[which]));
            let ratio = rounds
                .iter()
                .map(|round| figure(&round[which]) / figure(&round[0]));
            println!(
                "  {name:<5} {:<5} {:>8.3} {unit:<3}  ratio {:.3}",
                stack.name(),
                median(of) * factor / count as f64,
                median(ratio)
            );
        }
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
