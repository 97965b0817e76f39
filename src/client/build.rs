//! `build`: runs a build, and says afterwards what the cache was to it.
//!
//! ```text
//! begin at the gateway -> command, with a recorder before sccache -> records, digests -> end at the gateway -> report
//! ```
//!
//! The command is not held up by any of it: a gateway that is away costs one refused connection, and what only it knows
//! is missing in the report.

mod collect;
mod daemon;
mod headers;
mod helper;
mod output;
pub mod record;
mod saved;

pub use self::output::{Destination, Format};
pub(crate) use self::output::{parse as parse_destination, write as write_report};
pub(crate) use self::saved::{Saved, folder};

use self::helper::Helper;
use super::at;
use super::cargo_config;
use super::prefetch;
use super::remote::{self, Remote};
use super::whence::Whence;
use crate::exit;
use crate::explain::print::Places;
use crate::explain::protocol::{BEAT, Begun, End, Labels, Request};
use crate::explain::report::{Facts, Report, Seen, Wire, assess};
use std::ffi::OsString;
use std::io::{self, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant, SystemTime};

/// Another way to show who one is, which a token takes the place of.
const LOGIN: [&str; 2] = ["SCCACHE_WEBDAV_USERNAME", "SCCACHE_WEBDAV_PASSWORD"];
/// How long the end of a build may take at the gateway.
const END_TIMEOUT: Duration = Duration::from_secs(60);

/// Arguments of `build`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Format of the report, and its file: json=FILE; may be repeated [default: text, to standard error]
    #[arg(long, value_name = "FORMAT[=FILE]", value_parser = output::parse)]
    pub report: Vec<Destination>,
    #[command(flatten)]
    pub whence: Whence,
    /// URL at which this client reaches the gateway [default: SCCACHE_WEBDAV_ENDPOINT]
    #[arg(long, value_name = "URL")]
    pub endpoint: Option<String>,
    /// Download what this job will need before it asks, and upload results in the background, through a local cache
    #[arg(long)]
    pub prefetch: bool,
    /// The command and its arguments, after --
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// Why the command was not run, or its report not written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The current folder.
    #[error(
        "cannot read the current folder: {0}\nhint: it may have been removed; change to another"
    )]
    CurrentFolder(io::Error),
    /// The folder for records.
    #[error("cannot record the build in \"{}\": {cause}\nhint: set XDG_CACHE_HOME or TMPDIR to a folder of yours", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// The command itself.
    #[error("cannot run \"{}\": {cause}", program.to_string_lossy())]
    Command {
        /// Its first word.
        program: OsString,
        /// What the system said.
        cause: io::Error,
    },
    /// A file of the report.
    #[error("cannot write the report to \"{}\": {cause}", path.display())]
    Report {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
}

impl Error {
    /// The exit code, which no command uses for itself: those of `env` and `docker run`.
    pub fn code(&self) -> u8 {
        match self {
            Error::Command { cause, .. } => exit::of_command(cause),
            Error::Report { .. } => exit::FAILED,
            Error::CurrentFolder(_) | Error::Folder { .. } => exit::NOT_STARTED,
        }
    }
}

/// Runs the command and writes the report; gives the command's exit code.
///
/// # Errors
/// The command was not run, or a file of the report cannot be written.
pub fn run(args: &Args) -> Result<u8, Error> {
    let cwd = std::env::current_dir().map_err(Error::CurrentFolder)?;
    let environment = super::environment();
    let cargo_home = cargo_config::home(&environment);
    let config = cargo_config::Config::load(&cwd, cargo_home.as_deref());
    let mut seen = config.over(&environment);
    let root = at::checkout_around(&cwd).unwrap_or_else(|| cwd.clone());
    let labels = args.whence.labels(&environment, &root);

    let remote = remote::find(&seen, args.endpoint.as_deref());
    let begun = remote
        .as_ref()
        .map_err(ToString::to_string)
        .and_then(|remote| begin(remote, &labels).map_err(|cause| cause.to_string()));
    let helper = match (&remote, &begun) {
        _ if !args.prefetch => Ok(None),
        (Ok(remote), Ok(begun)) => {
            let helper = Helper::start(&seen, &config, remote, &labels, begun);
            helper.map(Some).map_err(|cause| cause.to_string())
        }
        (_, Err(cause)) => Err(format!("cannot prefetch: {cause}")),
        (Err(cause), _) => Err(format!("cannot prefetch: {cause}")),
    };
    let helper = helper.unwrap_or_else(|cause| {
        // The build goes on without.
        let _ = writeln!(io::stderr(), "warning: {cause}");
        None
    });
    if let Some(helper) = &helper {
        seen.extend(helper.settings().clone());
        for name in LOGIN {
            seen.remove(name);
        }
    }
    // Cargo starts the recorder in the folders of packages.
    let wrapper = seen.get("RUSTC_WRAPPER").filter(|it| !it.is_empty());
    let wrapper = wrapper.map_or("sccache".to_owned(), |it| cargo_config::program(it, &cwd));
    let setup = record::Setup {
        key: begun.as_ref().map(|it| it.key.clone()).unwrap_or_default(),
        places: Places {
            root: root.display().to_string(),
            cargo_home: cargo_home
                .map(|it| it.display().to_string())
                .unwrap_or_default(),
        },
    };
    let folder = record::Folder::prepare(&setup, &wrapper)?;
    let sccache = daemon::Sccache::new(wrapper, &seen);
    let before = sccache.stats();

    let [program, arguments @ ..] = args.command.as_slice() else {
        unreachable!("clap wants a command");
    };
    let mut command = Command::new(program);
    command.args(arguments);
    command.envs(folder.variables());
    if let Some(helper) = &helper {
        command.envs(helper.settings());
        for name in LOGIN {
            command.env_remove(name);
        }
    }
    let beating = remote.as_ref().ok().zip(begun.as_ref().ok());
    let beating = beating.map(|(remote, begun)| beat(remote, &begun.build));
    let (began, clock) = now();
    let status = wait(&mut command).map_err(|cause| Error::Command {
        program: program.clone(),
        cause,
    })?;
    let wall = clock.elapsed();
    drop(beating);

    let after = sccache.stats();
    let daemon = before
        .zip(after)
        .map(|(before, after)| after.since(&before));
    let collected = collect::collect(folder.path(), began, &sccache, &environment);
    let prefetched = match helper {
        Some(helper) => helper.end(),
        None => prefetch::used(&seen, &labels),
    };
    let end = End {
        build: begun
            .as_ref()
            .map(|it| it.build.clone())
            .unwrap_or_default(),
        labels,
        command: Path::new(program)
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned(),
        exit: i32::from(code(status)),
        wall_ms: u64::try_from(wall.as_millis()).unwrap_or(u64::MAX),
        units: collected.units,
        daemon,
        prefetched,
        away: begun.as_ref().err().cloned(),
    };
    let report = report(remote.ok().as_ref(), end);
    drop(folder);
    let saved = Saved {
        report,
        files: collected.files,
    };
    // Only `explain` misses it.
    let _ = saved.write(&root);
    output::write(&saved.report, &args.report)?;
    Ok(code(status))
}

/// A look at both clocks: the date is what files carry, the other one is even.
#[expect(
    clippy::disallowed_methods,
    reason = "a command of its own, which says how long it took"
)]
fn now() -> (SystemTime, Instant) {
    (SystemTime::now(), Instant::now())
}

fn begin(remote: &Remote, labels: &Labels) -> Result<Begun, remote::Error> {
    remote.post("/api/builds", &Request::Begin(labels.clone()))
}

/// Tells the gateway regularly that the build goes on, until the returned value is dropped. A build that was killed sends
/// nothing more.
fn beat(remote: &Remote, build: &str) -> Sender<()> {
    let (beating, stopped) = channel();
    let (remote, request) = (remote.clone(), Request::Beat(build.to_owned()));
    std::thread::spawn(move || {
        loop {
            // A lost beat is no error: the build's report is sent when it ends.
            let _ = remote.send("/api/builds", &request);
            if stopped.recv_timeout(BEAT) != Err(RecvTimeoutError::Timeout) {
                return;
            }
        }
    });
    beating
}

/// The gateway's report, or what is known without it.
fn report(remote: Option<&Remote>, mut end: End) -> Report {
    let asked = remote.filter(|_| end.away.is_none()).map(|remote| {
        let request = Request::End(Box::new(end.clone()));
        remote.within(END_TIMEOUT).post("/api/builds", &request)
    });
    match asked {
        Some(Ok(report)) => report,
        Some(Err(cause)) => {
            end.away = Some(cause.to_string());
            alone(&end)
        }
        None => alone(&end),
    }
}

/// What is known without the gateway.
fn alone(end: &End) -> Report {
    let facts = Facts {
        // What was asked for before the gateway went away, only that knew.
        seen: match end.build.is_empty() {
            true => Seen::Nothing,
            false => Seen::Forgotten,
        },
        ..Facts::default()
    };
    assess(
        end,
        vec![facts; end.units.len()],
        Wire::default(),
        crate::base::time::unix_seconds(),
    )
}

/// Runs the command to its end. The terminal's signals are for it; others are passed on to it.
fn wait(command: &mut Command) -> io::Result<ExitStatus> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGQUIT, SIGTERM, SIGHUP])?;
    let mut child = command.spawn()?;
    let pid = i32::try_from(child.id()).map(nix::unistd::Pid::from_raw);
    let handle = signals.handle();
    let passing = std::thread::spawn(move || {
        for signal in signals.forever() {
            // Those that the terminal sends to all of its group have arrived already.
            if let (Ok(pid), SIGTERM | SIGHUP) = (pid, signal)
                && let Ok(signal) = nix::sys::signal::Signal::try_from(signal)
            {
                let _ = nix::sys::signal::kill(pid, signal);
            }
        }
    });
    let status = end_of(&mut child);
    handle.close();
    let _ = passing.join();
    status
}

#[expect(
    clippy::disallowed_methods,
    reason = "the command's own child, not a service"
)]
fn end_of(child: &mut Child) -> io::Result<ExitStatus> {
    child.wait()
}

/// The exit code as shells give it.
fn code(status: ExitStatus) -> u8 {
    let code = status.code().or(status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok())
        .unwrap_or(exit::FAILED)
}

/// The branch of a git checkout.
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_those_of_shells() {
        assert_eq!(code(ExitStatus::from_raw(3 << 8)), 3);
        assert_eq!(code(ExitStatus::from_raw(15)), 143);
    }
}
