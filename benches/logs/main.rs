//! The log path beside its peers: four children, a `write` for each line, one reader.
//!
//! `cargo bench --bench logs -- [LINES] [ROUNDS]` runs everything in turn, round after round, and prints medians.
//! `cargo bench --bench logs -- stand SECONDS` lets the reader stand still for so long while the children flood.
//! A peer that is not installed is named and left out.

#![expect(clippy::unwrap_used, reason = "a bench that cannot go on ends")]
#![expect(clippy::print_stdout, reason = "the table is the result")]
#![expect(
    clippy::disallowed_methods,
    reason = "it measures time, and its children are no services"
)]

mod ours;
mod reader;
mod tools;

use reader::Tally;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tools::Tool;

/// Children that write at the same time.
const CHILDREN: usize = 4;
/// Bytes of a line, with its end.
const LINE: usize = 120;
const FILL: [u8; LINE] = [b'x'; LINE];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|text| text != "--bench")
        .collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["writer", socket, lines, number] => write_lines(socket, lines.parse().unwrap(), number),
        ["ours", ..] => return ours::supervise(),
        ["stand", seconds] => stand(Duration::from_secs(seconds.parse().unwrap())),
        [] => compare(1_000_000, 5),
        [lines] => compare(lines.parse().unwrap(), 5),
        [lines, rounds, ..] => compare(lines.parse().unwrap(), rounds.parse().unwrap()),
    }
    ExitCode::SUCCESS
}

/// One of the children: waits for the start, then a line for each `write`.
fn write_lines(socket: &str, lines: u64, number: &str) {
    let mut gate = UnixStream::connect(socket).unwrap();
    if gate.read(&mut [0]).unwrap() == 0 {
        return;
    }
    let (mut line, mut out) = (
        FILL,
        std::fs::File::from(std::io::stdout().as_fd().try_clone_to_owned().unwrap()),
    );
    line[LINE - 2..].copy_from_slice(b".\n");
    for place in 0..lines {
        write!(&mut line[..], "#{number}:{place:08} ").unwrap();
        assert_eq!(
            out.write(&line).unwrap(),
            LINE,
            "a write of a line is whole"
        );
    }
    // Says that all is written, and stays: an end would be a reason to restart.
    gate.shutdown(std::net::Shutdown::Write).unwrap();
    let _ = gate.read(&mut [0]);
}

/// What one run of one tool showed.
struct Figures {
    lines_a_second: f64,
    cpu_seconds: f64,
    tally: Tally,
}

fn compare(lines: u64, rounds: usize) {
    let dir = tempfile::tempdir().unwrap();
    let (tools, missing) = tools::installed(dir.path());
    println!(
        "{CHILDREN} children, {lines} lines of {LINE} bytes each, a write for each line; median of {rounds} rounds"
    );
    for name in missing {
        println!("skipped, not installed: {name}");
    }
    let mut figures: Vec<Vec<Figures>> = tools.iter().map(|_| Vec::new()).collect();
    for _ in 0..rounds {
        for (tool, figures) in tools.iter().zip(&mut figures) {
            figures.push(measure(tool, dir.path(), lines, Duration::ZERO));
        }
    }
    let median = |figures: &[Figures], of: fn(&Figures) -> f64| {
        let mut all: Vec<f64> = figures.iter().map(of).collect();
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    };
    let anchor = tools.iter().position(|tool| tool.name == tools::ANCHOR);
    let anchor = anchor.map(|place| {
        let figures = &figures[place];
        (
            median(figures, |it| it.lines_a_second),
            median(figures, |it| it.cpu_seconds),
        )
    });
    println!(
        "{:<34} {:>9} {:>7} {:>9} {:>9}  lines",
        "", "M lines/s", "CPU s", "x rate", "x CPU"
    );
    for (tool, figures) in tools.iter().zip(&figures) {
        let rate = median(figures, |it| it.lines_a_second);
        let cpu = median(figures, |it| it.cpu_seconds);
        let ratio = |ours: f64, theirs: Option<f64>| {
            theirs.map_or("-".to_owned(), |it| format!("{:.2}", ours / it))
        };
        let worst = figures
            .iter()
            .map(|it| &it.tally)
            .max_by_key(|it| it.faults())
            .unwrap();
        println!(
            "{:<34} {:>9.2} {:>7.2} {:>9} {:>9}  {worst}",
            tool.name,
            rate / 1e6,
            cpu,
            ratio(rate, anchor.map(|it| it.0)),
            ratio(cpu, anchor.map(|it| it.1)),
        );
    }
}

/// Starts a tool with its children, opens the gate, and reads until everything was written and read. The reader
/// stands still for `pause` first.
fn measure(tool: &Tool, dir: &Path, lines: u64, pause: Duration) -> Figures {
    let running = (tool.start)(dir, lines);
    let used = running.cpu_seconds();
    let begin = Instant::now();
    running.open_gate();
    if !pause.is_zero() {
        std::thread::sleep(pause);
    }
    let (tally, last) = reader::drain(&running, lines);
    let cpu_seconds = running.cpu_seconds() - used;
    running.stop();
    let seconds = (last - begin).as_secs_f64();
    Figures {
        lines_a_second: tally.whole as f64 / seconds,
        cpu_seconds,
        tally,
    }
}

/// A reader that stands still for longer than the stall bound: the children must get on, and what is lost is counted.
fn stand(pause: Duration) {
    let dir = tempfile::tempdir().unwrap();
    let (tools, _) = tools::installed(dir.path());
    for tool in tools
        .iter()
        .filter(|tool| tool.name.starts_with(tools::OURS))
    {
        let lines = 1_000_000;
        let figures = measure(tool, dir.path(), lines, pause);
        let tally = &figures.tally;
        println!(
            "{}: reader stood for {pause:?}: {tally}; announced as dropped: {}",
            tool.name, tally.announced
        );
        assert_eq!(
            tally.whole + tally.announced,
            lines * CHILDREN as u64,
            "every line is printed or counted"
        );
        assert!(tally.announced > 0, "the children were not held back");
    }
}
