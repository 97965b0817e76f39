//! The cache beside its peers, in one run: `just bench-cache`, or `just bench-cache --full`.
//!
//! Every figure is the median of several rounds, and within a round each peer has its turn, so that whatever else
//! the machine does meets all of them. Server and load share the processors. Peers that are not installed are
//! left out with a word.
//!
//! After many files were removed ext4 looks longer for room for new ones, for minutes and for whoever asks: figures of
//! PUT are worth most with `TMPDIR` on a file system that was just made.
//!
//! ```text
//! --full            all sizes and connections, longer (about ten minutes); without it a choice of them (one minute)
//! --only A,B        of: get put layers own stalled full million locks
//! --rounds N        --seconds S      of each measurement
//! --sizes A,B       in bytes         --connections A,B
//! --entries N       of the start with a large index
//! --builds A=PROGRAM,B=PROGRAM         GET and PUT beside other builds of the gateway, such as one without a short cut
//! ```

mod load;
mod locks;
mod peers;
mod scenes;

use std::path::PathBuf;
use std::time::{Duration, Instant};

/// What is to be measured.
pub(crate) struct Options {
    only: Vec<String>,
    rounds: usize,
    lasting: Duration,
    sizes: Vec<usize>,
    connections: Vec<usize>,
    entries: u64,
    builds: Vec<(String, PathBuf)>,
    folder: PathBuf,
}

#[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

fn numbers(text: &str) -> Vec<usize> {
    text.split(',')
        .filter_map(|number| number.parse().ok())
        .collect()
}

fn options(folder: PathBuf) -> Options {
    let mut options = Options {
        only: Vec::new(),
        rounds: 3,
        lasting: Duration::from_millis(250),
        sizes: vec![24 << 10, 1 << 20],
        connections: vec![1, 64],
        entries: 20_000,
        builds: Vec::new(),
        folder,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().unwrap_or_default();
        match argument.as_str() {
            "--full" => {
                (options.rounds, options.lasting) = (5, Duration::from_millis(600));
                options.sizes = vec![1 << 10, 24 << 10, 1 << 20, 6 << 20];
                options.connections = vec![1, 8, 64];
                options.entries = 1_000_000;
            }
            "--only" => options.only = value().split(',').map(str::to_owned).collect(),
            "--rounds" => options.rounds = value().parse().unwrap_or(options.rounds),
            "--seconds" => {
                options.lasting = Duration::from_secs_f64(value().parse().unwrap_or(0.25))
            }
            "--sizes" => options.sizes = numbers(&value()),
            "--connections" => options.connections = numbers(&value()),
            "--entries" => options.entries = value().parse().unwrap_or(options.entries),
            "--builds" => {
                let value = value();
                let builds = value.split(',').filter_map(|build| build.split_once('='));
                options.builds = builds
                    .map(|(name, at)| (name.to_owned(), at.into()))
                    .collect();
                options.only.push("builds".to_owned());
            }
            // Cargo adds `--bench`.
            _ => {}
        }
    }
    options
}

#[expect(clippy::print_stdout, reason = "the table is the result")]
pub(crate) fn say(line: &str) {
    println!("{line}");
}

fn main() -> std::io::Result<()> {
    let folder = tempfile::Builder::new()
        .prefix("sccache-dock-bench-")
        .tempdir()?;
    let options = options(folder.path().to_owned());
    let wanted = |name: &str| options.only.is_empty() || options.only.iter().any(|one| one == name);
    scenes::blobs(&options, wanted("get"), wanted("put"))?;
    if !options.builds.is_empty() {
        scenes::builds(&options)?;
    }
    if wanted("layers") {
        scenes::layers(&options)?;
    }
    if wanted("own") {
        scenes::own(&options)?;
    }
    if wanted("stalled") {
        scenes::stalled(&options)?;
    }
    if wanted("full") {
        scenes::full(&options)?;
    }
    if wanted("million") {
        scenes::million(&options)?;
    }
    if wanted("locks") {
        locks::locks(&options)?;
    }
    Ok(())
}
