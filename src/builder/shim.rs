//! What `sccache-dist` takes for bubblewrap: one process around each job, which gives it what `sccache-dist` does not.
//!
//! ```text
//! sccache-dist -> shim -> bwrap -> compiler          started, ended -> the gateway's socket of jobs
//! ```
//!
//! Where procfs cannot be mounted, the job gets a read-only bind of ours. A job over one of its limits is killed, and so is
//! a Rust job that looks for what was not shipped ([`guard`](crate::builder::guard)).
//!
//! Whatever does not succeed here ends by a signal: `sccache-dist` answers that with an error, and the client compiles
//! by itself. An exit code would fail the client's build at once, and here a compiler fails for reasons that the client
//! does not have: sccache sends only the files that it knows to be read, so one that a macro reads, or a folder that
//! `../` leads through, is missing. What is wrong with the source, the client's own compiler says as well.

use crate::builder::guard::{Event, Guard, Job, SentHome, Watch};
use crate::builder::tree;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, UsageWho, getrusage, setrlimit};
use nix::sys::signal::{Signal, raise};
use serde::{Deserialize, Serialize};
use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

/// In the environment of `sccache-dist`: what its shims are to do, as JSON.
pub const VARIABLE: &str = "SCCACHE_DOCK_JOB";
/// The first look at a job; most have ended by then.
const FIRST_LOOK: Duration = Duration::from_millis(100);
/// Between two looks at a job that goes on.
const LOOK: Duration = Duration::from_millis(250);

/// What a job gets for its `/proc`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Procfs {
    /// A procfs of its own process namespace.
    Fresh,
    /// Ours, read-only: a masked `/proc` forbids a new one in a user namespace.
    Bind,
}

/// What every job gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// The real bubblewrap.
    pub bwrap: PathBuf,
    pub procfs: Procfs,
    /// Where jobs are reported.
    pub jobs_socket: Option<PathBuf>,
    /// How Rust jobs are guarded; not at all where there is none.
    pub guard: Option<Guard>,
    pub memory_bytes: u64,
    /// Processes and threads together.
    pub processes: u64,
    pub time_millis: u64,
}

/// The limit that a job went over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Limit {
    Memory,
    Processes,
    Time,
}

/// What is told of a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Report {
    /// A builder has found out how it can guard jobs.
    Guard {
        guard: Guard,
    },
    Started {
        job: String,
        guard: Option<Guard>,
    },
    Ended {
        job: String,
        exit: i32,
        seconds: f64,
        cpu_seconds: f64,
        /// The most that was seen of it.
        peak_rss_bytes: u64,
        limit: Option<Limit>,
        /// Why the client is to do it.
        home: Option<SentHome>,
    },
}

/// Whether this process was started in bubblewrap's place: no command of ours begins with a dash.
pub fn is_called(variable: Option<&OsStr>, argument: Option<&OsStr>) -> bool {
    let dashed = argument.is_some_and(|argument| argument.as_encoded_bytes().starts_with(b"--"));
    variable.is_some() && dashed
}

/// Does what bubblewrap was called for; gives 0, or ends by a signal where the job failed.
///
/// # Errors
/// Bubblewrap could not be started.
pub fn run(terms: &str, arguments: Vec<OsString>) -> io::Result<u8> {
    let terms: Terms = serde_json::from_str(terms)?;
    if arguments.first().is_some_and(|first| first == "--version") {
        return Err(Command::new(&terms.bwrap).args(arguments).exec());
    }
    // The job goes with whoever waits for it.
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    // Between two looks; in what is reserved, of which a compiler uses half.
    let reserved = terms.memory_bytes.saturating_mul(2);
    setrlimit(Resource::RLIMIT_DATA, reserved, reserved)?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    let job = name(&arguments);
    // Bubblewrap leaves before its own child, which has run the job: what that used would be lost with it.
    nix::sys::prctl::set_child_subreaper(true)?;
    let reports = Reports::to(terms.jobs_socket.as_deref());
    reports.send(&Report::Started {
        job: job.clone(),
        guard: terms.guard,
    });
    let begin = now();
    if let Err(home) = unwatched(&terms, &arguments) {
        reports.send(&Report::Ended {
            job,
            exit: 128 + Signal::SIGKILL as i32,
            seconds: 0.0,
            cpu_seconds: 0.0,
            peak_rss_bytes: 0,
            limit: None,
            home: Some(home),
        });
        raise(Signal::SIGKILL)?;
        return Ok(1);
    }
    let mut sandbox = Sandbox::start(&terms, arguments)?;
    let (status, limit) = sandbox.watch(&terms, begin)?;
    reap_the_rest();
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    // The kernel tells the largest process that ended by itself; one that was killed only a look has seen.
    let peak = u64::try_from(usage.max_rss()).unwrap_or(0) << 10;
    let peak = peak.max(sandbox.seen_bytes);
    let time = usage.user_time() + usage.system_time();
    let exit = status
        .code()
        .unwrap_or(128 + status.signal().unwrap_or_default());
    // A compiler that fails at more than the limit has run out of memory; if not, the client's own finds out the same.
    let starved = exit != 0 && peak > terms.memory_bytes;
    let limit = limit.or(starved.then_some(Limit::Memory));
    let home = sandbox.home;
    let is_done = exit == 0 && limit.is_none() && home.is_none();
    reports.send(&Report::Ended {
        job,
        exit,
        seconds: (now() - begin).as_secs_f64(),
        cpu_seconds: Duration::new(
            u64::try_from(time.tv_sec()).unwrap_or(0),
            u32::try_from(time.tv_usec()).unwrap_or(0) * 1000,
        )
        .as_secs_f64(),
        peak_rss_bytes: peak,
        limit,
        home,
    });
    if !is_done {
        raise(Signal::SIGKILL)?;
    }
    Ok(0)
}

#[expect(
    clippy::disallowed_methods,
    reason = "a job's time is what this process is for"
)]
fn now() -> Instant {
    Instant::now()
}

/// Refuses a Rust job that cannot be watched and may have to be.
fn unwatched(terms: &Terms, arguments: &[OsString]) -> Result<(), SentHome> {
    match terms.guard {
        Some(Guard::List) => Job::of(arguments).map_or(Ok(()), |job| job.by_list()),
        Some(Guard::Watch) | None => Ok(()),
    }
}

/// Collects what bubblewrap has left to us; its process namespace is ending.
#[expect(
    clippy::disallowed_methods,
    reason = "a process of its own, in which the supervisor's reaper does not run"
)]
fn reap_the_rest() {
    while nix::sys::wait::waitpid(None, None).is_ok() {}
}

/// A running bubblewrap.
struct Sandbox {
    child: Child,
    /// Readable when the child has ended.
    ended: UnixStream,
    /// The most memory of the whole job that any look has found.
    seen_bytes: u64,
    watch: Option<Watch>,
    home: Option<SentHome>,
}

impl Sandbox {
    fn start(terms: &Terms, mut arguments: Vec<OsString>) -> io::Result<Sandbox> {
        if terms.procfs == Procfs::Bind {
            bind_proc(&mut arguments);
        }
        let (ended, wake) = UnixStream::pair()?;
        signal_hook::low_level::pipe::register(signal_hook::consts::SIGCHLD, wake)?;
        let mut command = Command::new(&terms.bwrap);
        // Bubblewrap hands its own environment on to the job.
        command.env_clear();
        if let Some(path) = std::env::var_os("PATH") {
            command.env("PATH", path);
        }
        let rust = terms.guard.and_then(|_| Job::of(&arguments));
        let (child, watch) = match rust.filter(|_| terms.guard == Some(Guard::Watch)) {
            Some(job) => {
                let (child, watch) = Watch::start(job, &mut command, arguments)?;
                (child, Some(watch))
            }
            None => (command.args(arguments).spawn()?, None),
        };
        Ok(Sandbox {
            child,
            ended,
            seen_bytes: 0,
            watch,
            home: None,
        })
    }

    /// The job's status if it has ended. Ends it if it does not count.
    fn status(&mut self) -> io::Result<Option<ExitStatus>> {
        let Some(watch) = &mut self.watch else {
            return self.child.try_wait();
        };
        loop {
            match watch.serve()? {
                None => return Ok(None),
                Some(Event::Ended(status)) => return Ok(Some(status)),
                Some(Event::Counts(home)) => {
                    self.home = Some(home);
                    watch.kill();
                }
            }
        }
    }

    /// Waits for the end, and brings it about where a limit is passed.
    fn watch(&mut self, terms: &Terms, begin: Instant) -> io::Result<(ExitStatus, Option<Limit>)> {
        let (mut look_at, mut limit) = (begin + FIRST_LOOK, None);
        loop {
            if let Some(status) = self.status()? {
                return Ok((status, limit));
            }
            let left = look_at.saturating_duration_since(now()).as_millis() + 1;
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
            let mut fds = [PollFd::new(self.ended.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, timeout) {
                Ok(0) => {}
                Ok(_) => {
                    let _ = (&self.ended).read(&mut [0; 64])?;
                }
                Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            let now = now();
            if now < look_at {
                continue;
            }
            look_at = now + LOOK;
            if limit.is_none() {
                let size = tree::measure(self.child.id(), terms.processes);
                self.seen_bytes = self.seen_bytes.max(size.memory_bytes);
                limit = passed(terms, now - begin, size);
                if limit.is_some() {
                    match &self.watch {
                        Some(watch) => watch.kill(),
                        // Its process namespace goes with it.
                        None => self.child.kill()?,
                    }
                }
            }
        }
    }
}

/// The limit that the job has passed, if any.
fn passed(terms: &Terms, age: Duration, size: tree::Size) -> Option<Limit> {
    if age >= Duration::from_millis(terms.time_millis) {
        Some(Limit::Time)
    } else if size.tasks > terms.processes {
        Some(Limit::Processes)
    } else if size.memory_bytes > terms.memory_bytes {
        Some(Limit::Memory)
    } else {
        None
    }
}

/// `--proc /proc` becomes a read-only bind of what we have there.
fn bind_proc(arguments: &mut Vec<OsString>) {
    let found = arguments
        .windows(2)
        .position(|pair| pair[0] == "--proc" && pair[1] == "/proc");
    if let Some(at) = found {
        let bind = ["--ro-bind", "/proc", "/proc"].map(OsString::from);
        arguments.splice(at..at + 2, bind);
    }
}

/// The job's name: `sccache-dist` makes one of the toolchain's hash and a number, and a folder for it.
fn name(arguments: &[OsString]) -> String {
    let bound = arguments
        .iter()
        .position(|argument| argument == "--bind")
        .and_then(|at| arguments.get(at + 1));
    let folder = bound
        .and_then(|target| Path::new(target).parent())
        .and_then(Path::file_name)
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    match folder.rsplit_once('-') {
        Some((toolchain, number)) => format!("{:.8}-{number}", toolchain),
        None => folder,
    }
}

/// The gateway's socket. Nothing here waits for it: a report that it cannot take is lost.
struct Reports {
    socket: Option<UnixDatagram>,
}

impl Reports {
    fn to(path: Option<&Path>) -> Reports {
        let connect = |path: &Path| {
            let socket = UnixDatagram::unbound()?;
            socket.set_nonblocking(true)?;
            socket.connect(path)?;
            io::Result::Ok(socket)
        };
        Reports {
            socket: path.and_then(|path| connect(path).ok()),
        }
    }

    fn send(&self, report: &Report) {
        if let (Some(socket), Ok(text)) = (&self.socket, serde_json::to_vec(report)) {
            let _ = socket.send(&text);
        }
    }
}

/// Says on standard error, which the client may get to see, why there was no job at all.
pub fn complain(error: &io::Error) -> ! {
    let _ = writeln!(io::stderr(), "sccache-dock: cannot start the job: {error}");
    let _ = raise(Signal::SIGKILL);
    unreachable!("SIGKILL cannot be caught")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builder::guard::Reason;

    fn words(text: &str) -> Vec<OsString> {
        text.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn masked_proc_is_bound_and_only_the_first() {
        let mut arguments = words("--bind /t / --proc /proc --dev /dev -- cc --proc /proc");
        bind_proc(&mut arguments);
        let expected = "--bind /t / --ro-bind /proc /proc --dev /dev -- cc --proc /proc";
        assert_eq!(arguments, words(expected));
    }

    #[test]
    fn job_is_named_after_its_folder() {
        let arguments = words("--unshare-net --bind /b/builds/0123456789abcdef-17/target / -- cc");
        assert_eq!(name(&arguments), "01234567-17");
        assert_eq!(name(&words("--version")), "");
    }

    #[test]
    fn commands_of_ours_are_no_jobs() {
        let text = |text: &'static str| Some(OsStr::new(text));
        assert!(is_called(text("{}"), text("--die-with-parent")));
        assert!(!is_called(text("{}"), text("builder")));
        assert!(!is_called(None, text("--version")));
    }

    #[test]
    fn reports_are_as_the_gateway_reads_them() {
        let ended = Report::Ended {
            job: "a-1".into(),
            exit: 0,
            seconds: 1.5,
            cpu_seconds: 1.0,
            peak_rss_bytes: 1,
            limit: Some(Limit::Memory),
            home: Some(SentHome {
                crate_name: "it".into(),
                reason: Reason::Program,
                what: "git".into(),
            }),
        };
        assert_eq!(
            serde_json::to_string(&ended).unwrap(),
            r#"{"event":"ended","job":"a-1","exit":0,"seconds":1.5,"cpu_seconds":1.0,"peak_rss_bytes":1,"limit":"memory","home":{"crate":"it","reason":"program","what":"git"}}"#
        );
        let started = Report::Started {
            job: "a-1".into(),
            guard: Some(Guard::Watch),
        };
        assert_eq!(
            serde_json::to_string(&started).unwrap(),
            r#"{"event":"started","job":"a-1","guard":"watch"}"#
        );
    }
}
