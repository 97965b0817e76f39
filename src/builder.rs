//! `sccache-dock builder`: isolates `sccache-dist server`, so that its jobs need no privileged container.
//!
//! ```text
//!  run -> builder (keep) --- tries each isolation in a process of its own, enters the one that works;
//!           |                has the builder's port, and passes on what comes there (relay.rs)
//!           '-> sccache-dist server -> shim (called as bubblewrap) -> bwrap -> compiler      one for each job
//! ```
//!
//! `keep` stays as the parent, because `sccache-dist` handles no signal: at SIGTERM it waits until no request is in
//! flight, and only then ends it.

mod advice;
mod filter;
mod folder;
pub mod guard;
pub mod isolation;
mod leftovers;
mod limits;
pub mod mounts;
mod oom_score;
mod output;
mod relay;
mod scratch;
pub mod shim;
mod toolchain;
mod tree;
mod unpacking;
mod uploads;

use self::mounts::Procfs;
use crate::base::config_file;
use crate::base::listeners;
use crate::base::surroundings::Surroundings;
use crate::config::settings::Isolation;
use crate::contract::builder_config::{Config, VARIABLE};
use crate::contract::service::RunAs;
use crate::exit;
use crate::supervisor::state_dir;
use clap::ValueEnum;
use guard::Guard;
use isolation::Failure;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use relay::InFlight;
use serde::{Deserialize, Serialize};
use shim::JobSpec;
use signal_hook::consts::{SIGCHLD, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::convert::Infallible;
use std::ffi::OsStr;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tracing::{info, warn};

/// Between two looks at what is in flight, in a stop.
const LOOK: Duration = Duration::from_millis(50);
/// So many looks in a row without anything in flight are an end: a client pauses between being given a builder and
/// sending its job.
const QUIET_LOOKS: u32 = 6;

/// The task of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Choose an isolation, enter it, and keep `sccache-dist` running
    Keep,
    /// Try a user namespace and print the result on standard output
    TryUserns,
    /// Try real root and print the result on standard output
    TryRoot,
    /// In a trial sandbox: look up an existing file, as a compiler would
    Look,
    /// Become `sccache-dist`
    Serve,
}

/// A seccomp profile that is built in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Profile {
    /// Docker's default plus the seven system calls that user namespaces need
    Userns,
    /// Docker's default plus pivot_root, for root with CAP_SYS_ADMIN
    Root,
    /// The same as userns, in the format of Kubernetes' container runtimes
    Kubernetes,
}

/// The text of a profile, for `--security-opt seccomp=FILE`.
pub fn seccomp(profile: Profile) -> &'static str {
    match profile {
        Profile::Userns => include_str!("../images/seccomp/userns.json"),
        Profile::Root => include_str!("../images/seccomp/root.json"),
        Profile::Kubernetes => include_str!("../images/seccomp/kubernetes.json"),
    }
}

/// Why there is no builder.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Config(#[from] config_file::Error),
    /// Every kind of isolation was tried.
    #[error("{0}")]
    Isolation(String),
    /// Somebody else listens there.
    #[error(
        "cannot take the builder's port: {0}\nhint: end the other program, or set SCCACHE_BUILDER_LISTEN and the port of SCCACHE_PUBLIC_ADDR"
    )]
    Port(io::Error),
    #[error("cannot {action}: {cause}")]
    System {
        action: &'static str,
        cause: io::Error,
    },
}

impl Error {
    /// The exit code that goes with it.
    pub fn code(&self) -> u8 {
        match self {
            Error::Config(_) => exit::USAGE,
            Error::Isolation(_) => exit::ISOLATION,
            Error::Port(_) | Error::System { .. } => exit::FAILED,
        }
    }
}

fn system<E: Into<io::Error>>(action: &'static str) -> impl Fn(E) -> Error {
    move |cause| Error::System {
        action,
        cause: cause.into(),
    }
}

/// How a trial went, on the standard output of the process that made it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Tried {
    Works(Procfs, Guard),
    Fails(Failure),
}

/// Does its part; gives the exit code.
///
/// # Errors
/// The builder cannot run here.
pub fn run(path: Option<&Path>, part: Part) -> Result<u8, Error> {
    crate::base::log::to_stderr();
    if part == Part::Look {
        return look();
    }
    let config: Config = match path {
        Some(path) => config_file::read(path)?,
        None => config_file::in_variable(VARIABLE)?,
    };
    match part {
        Part::Keep | Part::Look => keep(path, &config),
        Part::TryUserns => try_out(&config, Isolation::Userns),
        Part::TryRoot => try_out(&config, Isolation::Root),
        Part::Serve => serve(&config).map(|never| match never {}),
    }
}

#[expect(
    clippy::print_stdout,
    reason = "its parent reads the outcome from there"
)]
fn try_out(config: &Config, isolation: Isolation) -> Result<u8, Error> {
    let terms = terms(config, Procfs::Fresh, None);
    let outcome =
        isolation::enter(isolation, config.user).and_then(|()| isolation::trial(config, &terms));
    let tried = match outcome {
        Ok((procfs, guard)) => Tried::Works(procfs, guard),
        Err(failure) => Tried::Fails(failure),
    };
    let text = serde_json::to_string(&tried).map_err(|error| Error::System {
        action: "say how the trial went",
        cause: error.into(),
    })?;
    println!("{text}");
    Ok(exit::OK)
}

fn keep(path: Option<&Path>, config: &Config) -> Result<u8, Error> {
    let (isolation, procfs, guard) = choose(path, config)?;
    if let Some(user) = config.user.filter(|_| isolation != Isolation::Root) {
        // While we still may: real root could have been chosen the last time.
        leftovers::clean(&config.dir);
        let user = RunAs {
            uid: user.uid,
            gid: user.gid,
        };
        state_dir::hand_over(&config.dir, user).map_err(system("take over the folder of root"))?;
    }
    isolation::enter(isolation, config.user).map_err(|failure| {
        // It worked a moment ago.
        Error::Isolation(failure.to_string())
    })?;
    // In a user namespace we may remove what a job has closed.
    leftovers::clean(&config.dir);
    leftovers::say_what_stays(&config.dir);
    let terms = terms(config, procfs, Some(guard));
    info!(
        "jobs are isolated by {isolation:?} with a {procfs:?} procfs, each with at most {} MiB of memory, {} MiB of files, {} processes and {} s",
        terms.memory_bytes >> 20,
        terms.disk_bytes >> 20,
        terms.processes,
        terms.time_millis / 1000,
    );
    match guard {
        Guard::Watch => info!("Rust jobs that look for what was not sent go home"),
        Guard::List => {
            warn!("Rust jobs with macros that are not known to look for nothing go home");
        }
    }
    unpacking::watch(unpacking::Bounds {
        dir: config.dir.clone(),
        toolchain_bytes: limits::toolchain(&config.limits, &config.dir),
        job_bytes: terms.disk_bytes,
        jobs_socket: config.jobs_socket.clone(),
    });
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGCHLD]).map_err(system("catch signals"))?;
    let listener = listeners::bind_tcp(config.listen).map_err(Error::Port)?;
    let (uploaded, uploads) = std::sync::mpsc::channel();
    let bound = relay::Bound {
        most: config.toolchain_cache_bytes,
        uploaded,
    };
    let in_flight =
        relay::start(listener, config.server, bound).map_err(system("serve the builder's port"))?;
    let mut child = start(path, &terms).map_err(system("start sccache-dist"))?;
    uploads::clean_up(config.dir.join("cache/tc"), child.id(), uploads);
    for signal in &mut signals {
        if signal != SIGCHLD {
            return stop(config, &in_flight, &mut child);
        }
        if let Some(status) = child
            .try_wait()
            .map_err(system("look after sccache-dist"))?
        {
            warn!("sccache-dist ended: {status}");
            return Ok(exit::FAILED);
        }
    }
    Ok(exit::FAILED)
}

/// The first kind of isolation that works, the `/proc` that jobs can have in it, and how they can be guarded.
fn choose(path: Option<&Path>, config: &Config) -> Result<(Isolation, Procfs, Guard), Error> {
    let kinds: &[Isolation] = match config.isolation {
        Isolation::Userns => &[Isolation::Userns],
        Isolation::Root => &[Isolation::Root],
        Isolation::Auto if nix::unistd::geteuid().is_root() => {
            &[Isolation::Userns, Isolation::Root]
        }
        Isolation::Auto => &[Isolation::Userns],
    };
    let mut failures = Vec::new();
    for isolation in kinds {
        match try_apart(path, *isolation)? {
            Tried::Works(procfs, guard) => return Ok((*isolation, procfs, guard)),
            Tried::Fails(failure) => failures.push((*isolation, failure)),
        }
    }
    let around = Surroundings::look(&config.dir);
    Err(Error::Isolation(advice::explain(
        &failures,
        &around,
        &config.mode,
    )))
}

/// A process cannot go back on its namespaces: another one tries.
fn try_apart(path: Option<&Path>, isolation: Isolation) -> Result<Tried, Error> {
    const FAIL: &str = "try the isolation of jobs";
    let part = match isolation {
        Isolation::Root => Part::TryRoot,
        Isolation::Auto | Isolation::Userns => Part::TryUserns,
    };
    let output = ourselves(path, part)
        .stderr(Stdio::inherit())
        .output()
        .map_err(system(FAIL))?;
    serde_json::from_slice(&output.stdout).map_err(|_| Error::System {
        action: FAIL,
        cause: io::Error::other(format!("its process ended with {}", output.status)),
    })
}

fn ourselves(path: Option<&Path>, part: Part) -> Command {
    let program = std::env::current_exe().unwrap_or_else(|_| "sccache-dock".into());
    let mut command = Command::new(program);
    let word = part.to_possible_value();
    command
        .arg("builder")
        .args(
            path.iter()
                .flat_map(|path| [OsStr::new("--config"), path.as_os_str()]),
        )
        .arg("--part")
        .arg(word.as_ref().map_or("keep", |word| word.get_name()))
        .stdin(Stdio::null());
    command
}

/// Makes a thread that looks for a folder, as a compiler does.
fn look() -> Result<u8, Error> {
    let looked = std::thread::spawn(|| std::fs::metadata("/")).join();
    let looked = looked.unwrap_or_else(|_| Err(io::Error::other("its thread ended")));
    looked.map_err(system("look for a folder"))?;
    Ok(exit::OK)
}

fn terms(config: &Config, procfs: Procfs, guard: Option<Guard>) -> JobSpec {
    let bounds = limits::bounds(&config.limits, &config.dir);
    JobSpec {
        bwrap: config.bwrap.clone(),
        procfs,
        jobs_socket: Some(config.jobs_socket.clone()),
        guard,
        memory_bytes: bounds.memory_bytes,
        processes: bounds.processes,
        time_millis: config.limits.time_millis,
        disk_bytes: bounds.disk_bytes,
    }
}

/// Starts `sccache-dist` in a group of its own: a signal to ours must not end it before its jobs.
fn start(path: Option<&Path>, terms: &JobSpec) -> io::Result<Child> {
    ourselves(path, Part::Serve)
        .env(shim::VARIABLE, serde_json::to_string(terms)?)
        .process_group(0)
        .spawn()
}

/// Becomes `sccache-dist`, which goes with its parent and has the processors of its slots.
fn serve(config: &Config) -> Result<Infallible, Error> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(system("be tied to the parent"))?;
    if let Some(slots) = config.slots {
        take_slots(slots).map_err(system("limit the processors"))?;
    }
    oom_score::go_before_others();
    hold_files(config).map_err(system("limit the size of files"))?;
    let cause = Command::new(&config.sccache_dist)
        .args(["server", "--config"])
        .arg(&config.server_config)
        .env_remove(VARIABLE)
        .exec();
    Err(system("start sccache-dist")(cause))
}

/// Lets no file of what `sccache-dist` is sent grow without end: writing more is an error, which its client hears of.
fn hold_files(config: &Config) -> nix::Result<()> {
    let job = limits::bounds(&config.limits, &config.dir).disk_bytes;
    let toolchain = limits::toolchain(&config.limits, &config.dir);
    let most = job.max(toolchain).max(config.toolchain_cache_bytes);
    // The signal would end it, and all its jobs. A mask goes on to what a process becomes.
    SigSet::from(Signal::SIGXFSZ).thread_block()?;
    // Only the soft limit: each job sets its own.
    let (_, hard) = getrlimit(Resource::RLIMIT_FSIZE)?;
    setrlimit(Resource::RLIMIT_FSIZE, most.min(hard), hard)
}

/// The number of processors is all that `sccache-dist` goes by.
fn take_slots(slots: usize) -> nix::Result<()> {
    use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
    let this = nix::unistd::Pid::from_raw(0);
    let ours = sched_getaffinity(this)?;
    let mut taken = CpuSet::new();
    let usable = (0..CpuSet::count()).filter(|cpu| ours.is_set(*cpu).unwrap_or(false));
    let mut count = 0;
    for cpu in usable.take(slots) {
        taken.set(cpu)?;
        count += 1;
    }
    if count < slots {
        warn!("SCCACHE_BUILDER_SLOTS={slots}, but there are {count} processors");
    }
    sched_setaffinity(this, &taken)
}

/// Lets what is in flight come to its end, within the grace, then ends `sccache-dist`.
fn stop(config: &Config, in_flight: &InFlight, child: &mut Child) -> Result<u8, Error> {
    let looks = config.grace_millis / u64::try_from(LOOK.as_millis()).unwrap_or(1);
    let (mut quiet, mut most) = (0, 0);
    for _ in 0..looks {
        let requests = in_flight.requests();
        most = most.max(requests);
        quiet = if requests == 0 { quiet + 1 } else { 0 };
        let ended = child.try_wait().is_ok_and(|status| status.is_some());
        if quiet >= QUIET_LOOKS || ended {
            break;
        }
        std::thread::sleep(LOOK);
    }
    match in_flight.requests() {
        0 if most == 0 => info!("stopping without a job"),
        0 => info!("stopping after the last of {most} requests"),
        left => {
            warn!("stopping with {left} requests in flight: their clients compile by themselves")
        }
    }
    child.kill().map_err(system("end sccache-dist"))?;
    Ok(exit::OK)
}
