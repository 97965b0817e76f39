//! `warm`: brings the compilers to every builder before the first build does.
//!
//! The first job of a compiler on a builder carries the whole compiler with it, hundreds of megabytes for Rust, and
//! other jobs for that builder wait meanwhile until the scheduler takes it for broken. So one tiny compile goes to
//! each builder, at the same time: the scheduler gives a job to the builder with the least to do. They pass the cache
//! by and leave nothing in it.

mod transfer;

use super::endpoint::Endpoint;
use super::run::{Ended, LOOK, Running};
use crate::base::progress;
use crate::base::progress::Line as OnTerminal;
use crate::exit;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use transfer::Transfers;

/// Sccache may have to start its daemon, which asks the scheduler first.
const ASK_TIMEOUT: Duration = Duration::from_secs(45);
/// So many rounds in a row may bring a compiler to no builder that has not had it.
const VAIN_ROUNDS: u32 = 2;

const LATE: &str = "it took too long (--timeout)";

/// Arguments of `warm`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Compilers to send, as builds name them [default: rustc, cc and c++, if installed]
    pub compilers: Vec<PathBuf>,
    /// Time limit for each compiler: 10m, 90s
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, default_value = "10m")]
    pub timeout: Duration,
    /// Print JSON at the end
    #[arg(long)]
    pub json: bool,
}

/// Why nothing was brought.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The client uses no cluster.
    #[error(
        "cannot warm a cluster: sccache has no scheduler here\n\
         hint: eval the output of client-env --lane dist in this shell first"
    )]
    NoScheduler,
    /// The cluster is away.
    #[error("cannot warm the cluster: {0}\nhint: sccache-dock doctor looks for the reason")]
    NotConnected(String),
    /// Sccache itself.
    #[error(
        "cannot run sccache: {0}\n\
         hint: put the real sccache first on the PATH, for example with sccache-docker-manage.sh install-client"
    )]
    Sccache(String),
    /// There is nothing to bring.
    #[error(
        "cannot find a compiler: neither rustc nor cc nor c++ is on the PATH\nhint: name one: sccache-dock warm PATH"
    )]
    NoCompiler,
    /// The folder of the tiny compiles, or the output.
    #[error("cannot warm the cluster: {0}")]
    Io(#[from] io::Error),
}

/// What `sccache --dist-status` says about a scheduler.
#[derive(Debug, PartialEq, Eq, Deserialize)]
struct Capacity {
    num_servers: usize,
    num_cpus: usize,
    /// The scheduler's own port.
    #[serde(skip)]
    port: Option<u16>,
}

impl Capacity {
    /// Whether compiles that this one served went through the scheduler's relay, which brings a compiler to all builders.
    fn is_relay(&self, served_by: &str) -> bool {
        let port = served_by.rsplit_once(':');
        let port = port.and_then(|(_, port)| port.parse::<u16>().ok());
        port.is_some() && port == self.port
    }
}

/// Brings each compiler to each builder and prints how it went; the exit code is 0 if all of them have all.
///
/// # Errors
/// There is no cluster, no compiler, or no sccache.
pub fn run(args: &Args) -> Result<u8, Error> {
    let capacity = capacity(&sccache(&["--dist-status"])?)?;
    if capacity.num_servers == 0 {
        let cause = "no builder is registered".to_owned();
        return Err(Error::NotConnected(cause));
    }
    let mut compilers = args.compilers.clone();
    if compilers.is_empty() {
        compilers.extend(["rustc", "cc", "c++"].map(PathBuf::from));
        compilers.retain(|it| is_there(it));
    }
    if compilers.is_empty() {
        return Err(Error::NoCompiler);
    }
    let folder = Folder::new()?;
    let mut all = true;
    // A program is told how it went as a whole.
    let mut out: Box<dyn io::Write> = match args.json {
        true => Box::new(io::sink()),
        false => Box::new(io::stdout()),
    };
    for compiler in &compilers {
        let line = bring(compiler, &capacity, args.timeout, &folder.0)?;
        all &= line.warmed >= capacity.num_servers;
        let name = compiler.display();
        write!(
            out,
            "{name}: on {} of {} builders after {:.1} s",
            line.warmed, capacity.num_servers, line.seconds
        )?;
        if line.here > 0 && line.warmed < capacity.num_servers {
            write!(
                out,
                "; {} of the compiles ended up on this machine",
                line.here
            )?;
        }
        writeln!(out)?;
        if let Some(complaint) = line.complaint {
            writeln!(out, "  {complaint}")?;
        }
    }
    if all {
        writeln!(
            out,
            "build with the cluster's slots: cargo build --jobs {}",
            capacity.num_cpus
        )?;
        return Ok(exit::OK);
    }
    writeln!(
        out,
        "a builder without the compiler gets it with its first job; sccache-dock doctor looks for the reason"
    )?;
    Ok(exit::FAILED)
}

/// How it went with one compiler.
struct Line {
    warmed: usize,
    /// Compiles that fell back to this machine.
    here: u64,
    seconds: f64,
    complaint: Option<String>,
}

#[expect(
    clippy::disallowed_methods,
    reason = "a command of its own, which says how long it took"
)]
fn bring(
    compiler: &Path,
    capacity: &Capacity,
    limit: Duration,
    folder: &Path,
) -> Result<Line, Error> {
    let begin = Instant::now();
    let mut warmed = BTreeSet::new();
    let mut line = Line {
        warmed: 0,
        here: 0,
        seconds: 0.0,
        complaint: None,
    };
    let mut said = Said::new(compiler, capacity.num_servers);
    let mut vain = 0;
    while warmed.len() < capacity.num_servers && vain < VAIN_ROUNDS && line.complaint.is_none() {
        let left = limit.saturating_sub(begin.elapsed());
        if left.is_zero() {
            line.complaint = Some(LATE.to_owned());
            break;
        }
        let had = warmed.len();
        let before = counters(&sccache(&["--show-stats", "--stats-format", "json"])?)?;
        // All are started before the first is waited for.
        let compiles = (0..capacity.num_servers)
            .map(|number| Running::start(&mut tiny(compiler, number, folder)?, left))
            .collect::<io::Result<Vec<_>>>()?;
        for ended in all(compiles, |back| said.look(begin.elapsed(), back))? {
            match ended {
                Ended::Well(_) => {}
                Ended::Badly(text) => {
                    let text = text.lines().find(|it| !it.trim().is_empty());
                    line.complaint = Some(text.unwrap_or("it failed").to_owned());
                }
                Ended::Late => line.complaint = Some(LATE.to_owned()),
            }
        }
        let after = counters(&sccache(&["--show-stats", "--stats-format", "json"])?)?;
        line.here += after.dist_errors.saturating_sub(before.dist_errors);
        let served = after.dist_compiles.into_iter();
        warmed.extend(
            served
                .filter(|(builder, count)| before.dist_compiles.get(builder) != Some(count))
                .map(|(builder, _)| builder),
        );
        if warmed.len() == 1 && warmed.iter().all(|one| capacity.is_relay(one)) {
            line.warmed = capacity.num_servers;
            line.seconds = begin.elapsed().as_secs_f64();
            return Ok(line);
        }
        vain = if warmed.len() > had { 0 } else { vain + 1 };
    }
    line.warmed = warmed.len();
    line.seconds = begin.elapsed().as_secs_f64();
    Ok(line)
}

/// Waits for all of them; `look` hears at each look how many have ended.
fn all(mut running: Vec<Running>, mut look: impl FnMut(usize)) -> io::Result<Vec<Ended>> {
    let mut ended = Vec::new();
    loop {
        let mut still = Vec::new();
        for mut one in running {
            match one.look()? {
                Some(end) => ended.push(end),
                None => still.push(one),
            }
        }
        if still.is_empty() {
            return Ok(ended);
        }
        look(ended.len());
        std::thread::sleep(LOOK);
        running = still;
    }
}

/// What is said on a terminal while a compiler is on its way.
struct Said {
    name: String,
    builders: usize,
    line: Option<OnTerminal>,
    next: Duration,
}

impl Said {
    fn new(compiler: &Path, builders: usize) -> Said {
        Said {
            name: compiler.display().to_string(),
            builders,
            line: OnTerminal::open(),
            next: progress::FIRST,
        }
    }

    /// So long after the start, with so many compiles back.
    fn look(&mut self, elapsed: Duration, back: usize) {
        if let Some(line) = self.line.as_mut().filter(|_| elapsed >= self.next) {
            self.next = elapsed + progress::AGAIN;
            let seconds = elapsed.as_secs_f64();
            line.show(&Transfers::now().text(&self.name, back, self.builders, seconds));
        }
    }
}

/// A compile of nearly nothing by way of sccache; in the caller's folder, which may choose the toolchain.
fn tiny(compiler: &Path, number: usize, folder: &Path) -> io::Result<Command> {
    let mut command = Command::new("sccache");
    command.arg(compiler).env("SCCACHE_NO_CACHE", "1");
    let stem = compiler.file_stem().unwrap_or_default().to_string_lossy();
    let name = format!("warm{number}");
    let source = folder.join(&name);
    if stem.contains("rustc") {
        let source = source.with_extension("rs");
        fs::write(&source, "pub fn warm() {}\n")?;
        command.args([
            "--crate-type",
            "lib",
            "--emit",
            "link",
            "--crate-name",
            &name,
        ]);
        command.arg("--out-dir").arg(folder).arg(source);
    } else {
        let (object, source) = (source.with_extension("o"), source.with_extension("c"));
        fs::write(&source, "int warm(void) { return 0; }\n")?;
        command.arg("-c").arg(source).arg("-o").arg(object);
    }
    Ok(command)
}

fn sccache(arguments: &[&str]) -> Result<String, Error> {
    let failed = |error: io::Error| Error::Sccache(error.to_string());
    let mut command = Command::new("sccache");
    let running = Running::start(command.args(arguments), ASK_TIMEOUT).map_err(failed)?;
    match running.end().map_err(failed)? {
        Ended::Well(text) => Ok(text),
        Ended::Badly(text) => Err(Error::Sccache(text.trim().to_owned())),
        Ended::Late => Err(Error::Sccache(format!("{} does not end", arguments[0]))),
    }
}

fn capacity(printed: &str) -> Result<Capacity, Error> {
    #[derive(Deserialize)]
    enum Said {
        Disabled(serde::de::IgnoredAny),
        NotConnected(Option<String>, String),
        SchedulerStatus(String, Capacity),
    }
    match serde_json::from_str(printed) {
        Ok(Said::SchedulerStatus(url, capacity)) => {
            let endpoint = Endpoint::parse(&url).ok();
            let port = endpoint.map(|endpoint| endpoint.port);
            Ok(Capacity { port, ..capacity })
        }
        Ok(Said::Disabled(_)) => Err(Error::NoScheduler),
        Ok(Said::NotConnected(url, why)) => {
            let url = url.unwrap_or_default();
            Err(Error::NotConnected(format!("{url}: {why}")))
        }
        Err(error) => Err(Error::Sccache(format!(
            "--dist-status prints {printed:?}: {error}"
        ))),
    }
}

#[derive(Debug, Default, Deserialize)]
struct Counters {
    #[serde(default)]
    dist_compiles: BTreeMap<String, u64>,
    #[serde(default)]
    dist_errors: u64,
}

fn counters(printed: &str) -> Result<Counters, Error> {
    #[derive(Deserialize)]
    struct Stats {
        stats: Counters,
    }
    let parsed: Result<Stats, _> = serde_json::from_str(printed);
    parsed
        .map(|it| it.stats)
        .map_err(|error| Error::Sccache(format!("--show-stats: {error}")))
}

fn is_there(program: &Path) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// A folder of our own, which goes with the value.
struct Folder(PathBuf);

impl Folder {
    fn new() -> io::Result<Folder> {
        let mut bytes = [0_u8; 8];
        getrandom::fill(&mut bytes)?;
        let name = format!("sccache-dock-warm-{:016x}", u64::from_le_bytes(bytes));
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path)?;
        Ok(Folder(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What stays in a folder of scratch files harms nobody.
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_sccache_says_about_the_cluster_is_understood() {
        let connected = r#"{"SchedulerStatus":["http://h:10600/",{"num_servers":3,"num_cpus":6,"in_progress":0}]}"#;
        let expected = Capacity {
            num_servers: 3,
            num_cpus: 6,
            port: Some(10600),
        };
        let found = capacity(connected).unwrap();
        assert_eq!(found, expected);
        assert!(found.is_relay("10.0.0.7:10600") && !found.is_relay("10.0.0.7:10501"));
        let disabled = capacity(r#"{"Disabled":"disabled"}"#).unwrap_err();
        assert!(matches!(disabled, Error::NoScheduler), "{disabled}");
        let away = r#"{"NotConnected":["http://h:10600/","enabled, not connected"]}"#;
        let away = capacity(away).unwrap_err().to_string();
        assert!(
            away.starts_with("cannot warm the cluster: http://h:10600/: enabled, not connected"),
            "{away}"
        );
        let strange = capacity("what?").unwrap_err();
        assert!(matches!(strange, Error::Sccache(_)), "{strange}");
    }

    #[test]
    fn counters_of_an_sccache_without_them_are_none() {
        let found = counters(r#"{"stats":{},"version":"0.10.0"}"#).unwrap();
        assert!(found.dist_compiles.is_empty() && found.dist_errors == 0);
    }
}
