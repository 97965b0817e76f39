//! What the front of the scheduler costs: the same jobs through it and without it, on this machine.
//!
//! Two stacks stand side by side: the stock one (`sccache-dist` scheduler and builder) and ours (the same with
//! a gateway in front). Rounds alternate between them, so that whatever else the machine does hits both.
//!
//! 1. Requests of a job without its compile: allocation (with what it costs the builder) and three reports.
//! 2. Whole jobs: a real client compiles small C++ files, each once.

#![expect(clippy::unwrap_used, reason = "a measurement that cannot go on ends")]
#![expect(clippy::print_stdout, reason = "figures are what it is for")]

mod stack;

use stack::{Figures, Stack};

/// Rounds of each kind; the median counts.
const ROUNDS: usize = 7;
/// Jobs in a round of requests.
const REQUESTS: usize = 200;
/// Compiles in a round of whole jobs.
const COMPILES: usize = 12;

fn main() {
    nix::sys::prctl::set_child_subreaper(true).unwrap();
    let stacks = [Stack::start(false), Stack::start(true)];
    let requests = rounds(&stacks, |stack, _| stack.requests(REQUESTS));
    report("requests of a job (4)", REQUESTS, &requests);
    let compiles = rounds(&stacks, |stack, round| stack.compiles(round, COMPILES));
    report("whole job", COMPILES, &compiles);
    for stack in &stacks {
        let (distributed, errors) = stack.distributed();
        assert_eq!(errors, 0, "compiles fell back");
        println!("{}: {distributed} compiles distributed", stack.name());
    }
}

/// Figures of the stock stack and of ours, a pair a round; a first round warms up.
fn rounds(stacks: &[Stack; 2], act: impl Fn(&Stack, usize)) -> Vec<[Figures; 2]> {
    let measured = (0..=ROUNDS).map(|round| {
        let [stock, ours] = stacks;
        // Who goes first alternates too.
        if round % 2 == 0 {
            let first = stock.measure(|| act(stock, round));
            [first, ours.measure(|| act(ours, round))]
        } else {
            let first = ours.measure(|| act(ours, round));
            [stock.measure(|| act(stock, round)), first]
        }
    });
    measured.skip(1).collect()
}

fn report(what: &str, count: usize, rounds: &[[Figures; 2]]) {
    type Figure = fn(&Figures) -> f64;
    let per_job = |figure: Figure, which: usize| {
        median(rounds.iter().map(|round| figure(&round[which]))) * 1000.0 / count as f64
    };
    let ratio = |figure: Figure| {
        median(
            rounds
                .iter()
                .map(|[stock, ours]| figure(ours) / figure(stock)),
        )
    };
    let figures: [(&str, Figure); 2] = [("wall", |f| f.wall), ("cpu", |f| f.cpu)];
    println!(
        "{what}: median of {} rounds, {count} jobs each",
        rounds.len()
    );
    for (name, figure) in figures {
        println!(
            "  {name:<4} stock {:>8.3} ms  ours {:>8.3} ms  ratio {:.3}",
            per_job(figure, 0),
            per_job(figure, 1),
            ratio(figure)
        );
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
