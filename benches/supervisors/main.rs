//! `run` beside its peers, in one run on one machine: start, memory, wakeups, restart, orphans, stop.
//!
//! This program is the measuring side and, when it starts itself again, our supervisor with a plan of shell scripts:
//! the same `supervise` as in `sccache-dock run`. Peers come from the distribution; one that is not installed is
//! skipped by name. Rounds are interleaved, so that a noisy moment of the machine hits all alike; medians are printed.

mod measure;
mod peers;
mod storm;

use measure::{Figures, median};
use peers::{Peer, Running, Site};
use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// Children of each supervisor that can have several.
const CHILDREN: usize = 4;
/// How long a supervisor that does nothing is watched.
const IDLE: Duration = Duration::from_secs(10);
/// Older than runit's bound for an immediate restart.
const STABLE: Duration = Duration::from_millis(1_200);
/// For the child that ignores SIGTERM.
const GRACE: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let outcome = match arguments.next().as_deref() {
        Some(peers::OURS_ROLE) => peers::be_ours(),
        // `cargo bench` adds `--bench`.
        first => compare(
            first
                .into_iter()
                .map(str::to_owned)
                .chain(arguments)
                .collect(),
        ),
    };
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let _ = writeln!(io::stderr(), "error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What the command line asks for.
struct Options {
    rounds: usize,
    orphans: usize,
    /// Only these peers; all where empty.
    only: Vec<String>,
    /// Only these parts; all where empty.
    parts: Vec<String>,
    sccache: Option<String>,
}

impl Options {
    fn parse(arguments: Vec<String>) -> Outcome<Options> {
        let mut options = Options {
            rounds: 5,
            orphans: 10_000,
            only: Vec::new(),
            parts: Vec::new(),
            sccache: None,
        };
        let list = |text: String| text.split(',').map(str::to_owned).collect();
        let mut arguments = arguments.into_iter();
        while let Some(name) = arguments.next() {
            if name == "--bench" {
                continue;
            }
            let mut value = || arguments.next().ok_or(format!("{name} needs a value"));
            match name.as_str() {
                "--rounds" => options.rounds = value()?.parse()?,
                "--orphans" => options.orphans = value()?.parse()?,
                "--only" => options.only = list(value()?),
                "--parts" => options.parts = list(value()?),
                "--sccache" => options.sccache = Some(value()?),
                _ => {
                    return Err(format!(
                        "cannot understand \"{name}\"\nhint: [--rounds N] [--orphans N] [--only ours,s6,...] \
                         [--parts start,restart,idle,storm,stubborn,real] [--sccache PATH]"
                    )
                    .into());
                }
            }
        }
        Ok(options)
    }

    fn wants(&self, part: &str) -> bool {
        self.parts.is_empty() || self.parts.iter().any(|known| known == part)
    }
}

fn compare(arguments: Vec<String>) -> Outcome<u8> {
    let options = Options::parse(arguments)?;
    let mut out = io::stdout().lock();
    let mut rows: Vec<(Peer, Figures)> = Vec::new();
    for peer in Peer::ALL {
        if !options.only.is_empty() && !options.only.iter().any(|name| name == peer.name()) {
            continue;
        }
        match peer.program() {
            Some(_) => rows.push((peer, Figures::default())),
            None => writeln!(out, "{} is not installed: skipped", peer.name())?,
        }
    }
    if options.wants("start") {
        for _ in 0..3 * options.rounds {
            for (peer, figures) in rows.iter_mut().filter(|(peer, _)| !peer.is_slow()) {
                start_and_stop(*peer, figures)?;
            }
        }
    }
    if options.wants("restart") {
        for _ in 0..options.rounds {
            for (peer, figures) in &mut rows {
                live_and_restart(*peer, figures)?;
            }
        }
    }
    if options.wants("stubborn") {
        for _ in 0..options.rounds {
            for (peer, figures) in rows
                .iter_mut()
                .filter(|(peer, _)| peer.kills_the_stubborn())
            {
                stop_the_stubborn(*peer, figures)?;
            }
        }
    }
    if options.wants("idle") {
        watch_idle(&mut rows)?;
    }
    if options.wants("storm") {
        for _ in 0..options.rounds.min(3) {
            for (peer, figures) in rows.iter_mut().filter(|(peer, _)| peer.reaps_in_time()) {
                figures.storms.push(storm::weather(*peer, options.orphans)?);
            }
        }
    }
    print_table(&mut out, &rows)?;
    if options.wants("real") {
        real(&mut out, options.sccache.as_deref())?;
    }
    Ok(0)
}

fn start_and_stop(peer: Peer, figures: &mut Figures) -> Outcome<()> {
    let site = Site::new(GRACE)?;
    let mut running = Running::start(peer, site, CHILDREN)?;
    figures.start.push(running.wait_children()?);
    // runit lets a child that ended within a second rest for another.
    std::thread::sleep(STABLE);
    figures.stop.push(running.stop()?);
    Ok(())
}

fn live_and_restart(peer: Peer, figures: &mut Figures) -> Outcome<()> {
    let site = Site::new(GRACE)?;
    let mut running = Running::start(peer, site, CHILDREN)?;
    let took = running.wait_children()?;
    std::thread::sleep(STABLE);
    let own = running.own_processes();
    figures.pss.push(measure::sum(&own, "Pss:"));
    figures.dirty.push(measure::sum(&own, "Private_Dirty:"));
    if peer.restarts() {
        figures.restart.extend(running.restart_each()?);
    }
    let stopped = running.stop()?;
    if peer.is_slow() {
        figures.start.push(took);
        figures.stop.push(stopped);
    }
    Ok(())
}

fn stop_the_stubborn(peer: Peer, figures: &mut Figures) -> Outcome<()> {
    let site = Site::new(GRACE)?.with_a_stubborn_child()?;
    let mut running = Running::start(peer, site, CHILDREN)?;
    running.wait_children()?;
    let took = running.stop()?;
    figures.stubborn.push(took.saturating_sub(GRACE));
    Ok(())
}

/// All at once, because the window is long and nobody does anything in it.
fn watch_idle(rows: &mut [(Peer, Figures)]) -> Outcome<()> {
    let mut running = Vec::new();
    for (peer, _) in rows.iter() {
        let mut one = Running::start(*peer, Site::new(GRACE)?, CHILDREN)?;
        one.wait_children()?;
        running.push(one);
    }
    std::thread::sleep(STABLE);
    let count = |running: &Running| measure::switches(&running.own_processes());
    let before: Vec<u64> = running.iter().map(count).collect();
    std::thread::sleep(IDLE);
    for ((one, (_, figures)), before) in running.iter_mut().zip(rows).zip(before) {
        let wakeups = count(one).saturating_sub(before);
        figures.wakeups = Some(wakeups as f64 / IDLE.as_secs_f64());
        one.stop()?;
    }
    Ok(())
}

/// A title, and the figure below it.
type Column = (&'static str, fn(&Figures) -> Option<f64>);

fn print_table(out: &mut impl Write, rows: &[(Peer, Figures)]) -> Outcome<()> {
    let columns: [Column; 11] = [
        ("start ms", |f| median(&f.start)),
        ("Pss KiB", |f| median(&f.pss)),
        ("dirty KiB", |f| median(&f.dirty)),
        ("wakeups/s", |f| f.wakeups),
        ("restart ms", |f| median(&f.restart)),
        ("stop ms", |f| median(&f.stop)),
        ("grace + ms", |f| median(&f.stubborn)),
        ("orphans left", |f| {
            f.storms.iter().map(|s| s.left as f64).reduce(f64::max)
        }),
        ("storm ms", |f| {
            f.storm(|storm| storm.all.as_secs_f64() * 1e3)
        }),
        ("after last ms", |f| {
            f.storm(|storm| storm.after_last.as_secs_f64() * 1e3)
        }),
        ("storm CPU ms", |f| {
            f.storm(|storm| storm.cpu.as_secs_f64() * 1e3)
        }),
    ];
    let ours = rows.iter().find(|(peer, _)| *peer == Peer::Ours);
    write!(out, "\n| medians |")?;
    for (title, _) in columns {
        write!(out, " {title} |")?;
    }
    writeln!(out, "\n|---|{}", "---|".repeat(columns.len()))?;
    for (peer, figures) in rows {
        write!(out, "| {} |", peer.label())?;
        for (_, figure) in columns {
            let value = figure(figures);
            let base = ours.and_then(|(_, figures)| figure(figures));
            match (value, base) {
                (None, _) => write!(out, " - |")?,
                (Some(value), Some(base)) if *peer != Peer::Ours && value > 0.0 => {
                    write!(out, " {value:.1} ({:.2}) |", base / value)?;
                }
                (Some(value), _) => write!(out, " {value:.1} |")?,
            }
        }
        writeln!(out)?;
    }
    writeln!(
        out,
        "\nIn brackets: ours / theirs. {CHILDREN} children; one where it says so. Exits of our own children in the \
         storms: {}.",
        ours.map_or_else(|| "not measured".into(), |(_, figures)| figures.own_exits())
    )?;
    Ok(())
}

/// For information: `sccache-dock run` with the gateway and the sccache server.
fn real(out: &mut impl Write, sccache: Option<&str>) -> Outcome<()> {
    let sccache = sccache.unwrap_or("sccache");
    let dir = tempfile::tempdir()?;
    let mut starts = Vec::new();
    for _ in 0..5 {
        starts.push(real_once(dir.path(), sccache, None)?);
    }
    let mut report = String::new();
    real_once(dir.path(), sccache, Some(&mut report))?;
    writeln!(
        out,
        "sccache-dock run with gateway and server: both ready after {:.1} ms (median of {}); PID 1 alone: {report}",
        median(&starts).unwrap_or(f64::NAN),
        starts.len()
    )?;
    Ok(())
}

fn real_once(dir: &Path, sccache: &str, report: Option<&mut String>) -> Outcome<Duration> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sccache-dock"));
    command
        .arg("run")
        .env("SCCACHE_DIR", dir)
        .env("SCCACHE_LISTEN", "127.0.0.1:0")
        .env("SCCACHE_LOG", "info")
        .env("SCCACHE_BINARY", sccache)
        .stdin(Stdio::null());
    let mut bare = measure::Bare::spawn(command)?;
    let took = bare.wait_line("server ready")?;
    if let Some(report) = report {
        std::thread::sleep(STABLE);
        let own = [bare.pid()];
        let before = measure::switches(&own);
        std::thread::sleep(IDLE);
        *report = format!(
            "Pss {:.0} KiB, private dirty {:.0} KiB, {:.1} wakeups/s",
            measure::sum(&own, "Pss:"),
            measure::sum(&own, "Private_Dirty:"),
            (measure::switches(&own) - before) as f64 / IDLE.as_secs_f64()
        );
    }
    bare.stop()?;
    Ok(took)
}
