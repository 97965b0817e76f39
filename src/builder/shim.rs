//! What `sccache-dist` takes for bubblewrap: one process around each job, which gives it what `sccache-dist` does not.
//!
//! ```text
//! sccache-dist -> shim -> bwrap -> compiler          started, ended -> the gateway's socket of jobs
//! ```
//!
//! Where procfs cannot be mounted, the job gets a read-only bind of ours. A job over one of its limits is killed, and so is
//! a Rust job that looks for what was not sent ([`guard`](crate::builder::guard)).
//!
//! Whatever does not succeed here ends by a signal: `sccache-dist` answers that with an error, and the client compiles
//! by itself; the signal tells the relay why ([`job_end`](crate::contract::job_end)). An exit code would fail the client's build at once, and here a compiler fails for reasons that the client
//! does not have: sccache sends only the files that it knows to be read, so one that a macro reads, or a folder that
//! `../` leads through, is missing. What is wrong with the source, the client's own compiler says as well.

use crate::builder::filter::Filters;
use crate::builder::folder::{Content, FILES, Folder};
use crate::builder::guard::{Guard, Job, Watch, clients_own};
use crate::builder::mounts::Procfs;
use crate::builder::mounts::confine;
use crate::builder::output::Output;
use crate::builder::{oom_score, toolchain, tree};
use crate::contract::job_end::{COMPILER_FAILED, KILLED, SENT_HOME};
use crate::contract::sent_home::SentHome;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage, setrlimit};
use nix::sys::signal::{SigSet, Signal, kill, raise};
use nix::unistd::Pid;
use parking_lot::{Mutex, MutexGuard};
use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions, WaitOptions, WaitStatus, wait, waitid};
use serde::{Deserialize, Serialize};
use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// In the environment of `sccache-dist`: what its shims are to do, as JSON.
pub const VARIABLE: &str = "SCCACHE_DOCK_JOB";
/// The first look at a job; most have ended by then.
const FIRST_LOOK: Duration = Duration::from_millis(100);
/// Between two looks at a job that goes on.
const LOOK: Duration = Duration::from_millis(250);

/// Most files, sockets and pipes that a process of a job may have open: no compiler needs more.
const OPEN_FILES: u64 = 1024;

/// What every job gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobSpec {
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
    /// What it may write, in all and to one file.
    pub disk_bytes: u64,
}

/// The limit that a job went over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Limit {
    Memory,
    Processes,
    Time,
    /// What it says.
    Output,
    /// What it writes.
    Disk,
    /// How many files it leaves, or of what kind: a FIFO, a socket, a device.
    Files,
}

/// What is told of a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Report {
    /// It was not run at all.
    Refused {
        why: String,
        /// What its inputs went over.
        limit: Option<Limit>,
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
        /// Why its result would not count.
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
    let terms: JobSpec = serde_json::from_str(terms)?;
    if arguments.first().is_some_and(|first| first == "--version") {
        return Err(Command::new(&terms.bwrap).args(arguments).exec());
    }
    // As `sccache-dist` has it, so that what is too large is an error there.
    SigSet::from(Signal::SIGXFSZ).thread_unblock()?;
    // The job goes with whoever waits for it.
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    // Between two looks; in what is reserved, of which a compiler uses half.
    let reserved = terms.memory_bytes.saturating_mul(2);
    setrlimit(Resource::RLIMIT_DATA, reserved, reserved)?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    // With the limit on processes, this bounds the memory that the kernel holds for them and that we cannot see.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let most = most.min(OPEN_FILES);
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    setrlimit(Resource::RLIMIT_FSIZE, terms.disk_bytes, terms.disk_bytes)?;
    let reports = Reports::to(terms.jobs_socket.as_deref());
    let mut folder = Folder::of(&arguments);
    // In memory what a job writes counts as that, too.
    let most = terms.disk_bytes.min(terms.memory_bytes);
    let prepared = folder
        .as_mut()
        .map(|folder| toolchain::check(folder).and_then(|()| folder.bound(most)));
    if let Some(Err(refused)) = prepared {
        reports.send(&Report::Refused {
            why: refused.to_string(),
            limit: None,
        });
        return Err(refused);
    }
    let job = name(folder.as_ref());
    // Bubblewrap leaves before its own child, which has run the job: what that used would be lost with it.
    nix::sys::prctl::set_child_subreaper(true)?;
    reports.send(&Report::Started {
        job: job.clone(),
        guard: terms.guard,
    });
    let begin = now();
    let end = match refused(&terms, &arguments) {
        Some(home) => End::before_its_begin(home),
        None => Sandbox::start(&terms, folder.as_ref(), arguments)?.attend(
            &terms,
            folder.as_ref(),
            begin,
        )?,
    };
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    // The kernel tells the largest process that ended by itself; one that was killed only a look has seen.
    let peak = u64::try_from(usage.max_rss()).unwrap_or(0) << 10;
    let peak = peak.max(end.seen_bytes);
    let time = usage.user_time() + usage.system_time();
    let status = end.status;
    let exit = status
        .code()
        .unwrap_or(128 + status.signal().unwrap_or_default());
    let limit = end.limit(&terms, folder.as_ref(), exit, peak);
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
        home: end.home.clone(),
    });
    let Some(signal) = end.signal(limit) else {
        return Ok(0);
    };
    if let Some(folder) = folder {
        folder.withhold()?;
    }
    raise(Signal::try_from(signal)?)?;
    // Should it not end us: `sccache-dist` may have been started so that it is ignored.
    raise(Signal::SIGKILL)?;
    Ok(0)
}

#[expect(
    clippy::disallowed_methods,
    reason = "a job's time is what this process is for"
)]
fn now() -> Instant {
    Instant::now()
}

/// Refuses a job that can only be right on its client, and a Rust job that cannot be watched and would have to be.
fn refused(terms: &JobSpec, arguments: &[OsString]) -> Option<SentHome> {
    clients_own(arguments).or_else(|| match terms.guard {
        Some(Guard::List) => Job::of(arguments)?.by_list().err(),
        Some(Guard::Watch) | None => None,
    })
}

/// How a job ended.
struct End {
    /// Whether it was run at all.
    began: bool,
    status: ExitStatus,
    limit: Option<Limit>,
    home: Option<SentHome>,
    /// The most memory of the whole job that any look has found.
    seen_bytes: u64,
}

impl End {
    fn before_its_begin(home: SentHome) -> End {
        End {
            began: false,
            status: ExitStatus::from_raw(Signal::SIGKILL as i32),
            limit: None,
            home: Some(home),
            seen_bytes: 0,
        }
    }

    /// The limit that it has passed, if any; `peak` is the most memory that it had.
    fn limit(
        &self,
        terms: &JobSpec,
        folder: Option<&Folder>,
        exit: i32,
        peak: u64,
    ) -> Option<Limit> {
        // A compiler that fails at more than the limit has run out of memory; if not, the client's own finds out the same.
        let starved = exit != 0 && peak > terms.memory_bytes;
        self.limit
            .or(starved.then_some(Limit::Memory))
            .or_else(|| left_over(terms, folder.filter(|_| self.began)?, exit))
    }

    /// The signal that tells why the job came to nothing; `None` where it did not.
    fn signal(&self, limit: Option<Limit>) -> Option<i32> {
        if limit.is_some() {
            Some(KILLED)
        } else if self.home.is_some() {
            Some(SENT_HOME)
        } else if self
            .status
            .code()
            .is_some_and(|code| (1..128).contains(&code))
        {
            Some(COMPILER_FAILED)
        } else {
            (!self.status.success()).then_some(KILLED)
        }
    }
}

/// A running bubblewrap.
struct Sandbox {
    bubblewrap: Pid,
    /// Whether it has not been collected yet: until then its number is its own.
    runs: Mutex<bool>,
    /// Written to when all has ended, or too much was said.
    wake: UnixStream,
    woken: UnixStream,
    watch: Option<Watch>,
    output: Output,
}

impl Sandbox {
    fn start(
        terms: &JobSpec,
        folder: Option<&Folder>,
        mut arguments: Vec<OsString>,
    ) -> io::Result<Sandbox> {
        let shm = folder.map(Folder::shm).transpose()?;
        confine(&mut arguments, terms.procfs, shm.as_deref());
        let (woken, wake) = UnixStream::pair()?;
        let filters = Filters::new()?;
        let mut command = Command::new(&terms.bwrap);
        command
            .args(filters.arguments())
            // Without a terminal of anybody's.
            .arg("--new-session")
            // Bubblewrap hands its own environment on to the job.
            .env_clear()
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(path) = std::env::var_os("PATH") {
            command.env("PATH", path);
        }
        let job = match terms.guard {
            Some(Guard::Watch) => Job::of(&arguments),
            Some(Guard::List) | None => None,
        };
        let (mut child, watch) = oom_score::first_to_go(|| match job {
            Some(job) => {
                let (child, watch) = Watch::start(job, &mut command, arguments)?;
                Ok((child, Some(watch)))
            }
            None => command.args(arguments).spawn().map(|child| (child, None)),
        })?;
        Ok(Sandbox {
            output: Output::pass_on(&mut child, &wake)?,
            bubblewrap: Pid::from_raw(child.id().cast_signed()),
            runs: Mutex::new(true),
            wake,
            woken,
            watch,
        })
    }

    /// Stays with the job to its end.
    fn attend(
        mut self,
        terms: &JobSpec,
        folder: Option<&Folder>,
        begin: Instant,
    ) -> io::Result<End> {
        let mut watch = self.watch.take();
        let sandbox = &self;
        let (followed, kept) = std::thread::scope(|scope| {
            let keeper = std::thread::Builder::new()
                .spawn_scoped(scope, move || sandbox.keep_within(terms, folder, begin))?;
            let followed = sandbox.follow(watch.as_mut());
            // It has to end, whatever happened.
            *sandbox.runs() = false;
            let _ = (&sandbox.wake).write(&[0]);
            Ok::<_, io::Error>((followed, keeper.join()))
        })?;
        let (status, home) = followed?;
        let (limit, seen_bytes) =
            kept.map_err(|_| io::Error::other("the thread that measures ended"))??;
        self.output.finish();
        let unseen = watch.filter(|_| status.success());
        let unseen = unseen.and_then(|watch| watch.unseen());
        Ok(End {
            began: true,
            status,
            limit: limit.or(self.output.is_too_much().then_some(Limit::Output)),
            home: home.or(unseen),
            seen_bytes,
        })
    }

    /// Until all processes have ended: bubblewrap ends before its own child, which has run the job.
    fn follow(&self, mut watch: Option<&mut Watch>) -> io::Result<(ExitStatus, Option<SentHome>)> {
        let (mut ended, mut home) = (None, None);
        loop {
            let (pid, status) = match self.next() {
                Ok(Some(next)) => next,
                Ok(None) | Err(Errno::INTR) => continue,
                Err(Errno::CHILD) => break,
                Err(error) => return Err(error.into()),
            };
            match &mut watch {
                Some(watch) if status.stopped() => home = watch.serve(pid, status).or(home),
                Some(watch) => watch.forget(pid),
                None => {}
            }
            if pid == self.bubblewrap && !status.stopped() {
                ended = Some(ExitStatus::from_raw(status.as_raw()));
            }
        }
        let lost = || io::Error::other("bubblewrap has vanished");
        Ok((ended.ok_or_else(lost)?, home))
    }

    /// Waits for a process that has ended, or has stopped and is watched. Not by nix, which refuses what a real-time
    /// signal has ended.
    #[expect(
        clippy::disallowed_methods,
        reason = "a process of its own, in which the supervisor's reaper does not run"
    )]
    fn next(&self) -> rustix::io::Result<Option<(Pid, WaitStatus)>> {
        // Sleeps without the lock, and collects with it.
        waitid(WaitId::All, WaitIdOptions::EXITED | WaitIdOptions::NOWAIT)?;
        let mut runs = self.runs();
        let next = wait(WaitOptions::NOHANG)?;
        let next = next.map(|(pid, status)| (Pid::from_raw(pid.as_raw_nonzero().get()), status));
        *runs &= !next.is_some_and(|(pid, status)| pid == self.bubblewrap && !status.stopped());
        Ok(next)
    }

    fn runs(&self) -> MutexGuard<'_, bool> {
        self.runs.lock()
    }

    /// Ends the job where it passes a limit; gives that, and the most memory of the whole job that any look has found.
    fn keep_within(
        &self,
        terms: &JobSpec,
        folder: Option<&Folder>,
        begin: Instant,
    ) -> io::Result<(Option<Limit>, u64)> {
        let (mut look_at, mut seen_bytes) = (begin + FIRST_LOOK, 0);
        let mut walk_at = look_at;
        loop {
            let left = look_at.saturating_duration_since(now()).as_millis() + 1;
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
            let mut fds = [PollFd::new(self.woken.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, timeout) {
                Ok(0) => {}
                Ok(_) => (&self.woken).read_exact(&mut [0])?,
                Err(nix::errno::Errno::EINTR) => continue,
                Err(error) => return Err(error.into()),
            }
            if !*self.runs() {
                return Ok((None, seen_bytes));
            }
            let now = now();
            let mut limit = self.output.is_too_much().then_some(Limit::Output);
            if limit.is_none() && now >= look_at {
                look_at = now + LOOK;
                let pid = self.bubblewrap.as_raw().unsigned_abs();
                let mut size = tree::measure(pid, terms.processes);
                size.memory_bytes += folder.map_or(0, Folder::memory_bytes);
                seen_bytes = size.memory_bytes.max(seen_bytes);
                limit = passed(terms, now - begin, size);
                if let Some(folder) = folder.filter(|_| limit.is_none() && now >= walk_at) {
                    limit = too_much(terms.disk_bytes, folder.content(terms.disk_bytes));
                    walk_at = self::now() + 20 * (self::now() - now);
                }
            }
            if limit.is_some() {
                if *self.runs() {
                    // Its process namespace goes with it.
                    let _ = kill(self.bubblewrap, Signal::SIGKILL);
                }
                return Ok((limit, seen_bytes));
            }
        }
    }
}

/// The limit that the job has passed, if any.
fn passed(terms: &JobSpec, age: Duration, size: tree::Size) -> Option<Limit> {
    if age >= Duration::from_millis(terms.time_millis) {
        Some(Limit::Time)
    } else if size.tasks > terms.processes {
        Some(Limit::Processes)
    } else if size.memory_bytes > terms.memory_bytes {
        Some(Limit::Memory)
    } else if size.written_bytes > terms.disk_bytes {
        Some(Limit::Disk)
    } else {
        None
    }
}

/// The limit of files that a job has passed, if any.
fn too_much(disk_bytes: u64, content: Content) -> Option<Limit> {
    if content.bytes > disk_bytes {
        Some(Limit::Disk)
    } else {
        (content.files > FILES).then_some(Limit::Files)
    }
}

/// The limit of files that a job has passed when it has ended.
fn left_over(terms: &JobSpec, folder: &Folder, exit: i32) -> Option<Limit> {
    let content = folder.content(terms.disk_bytes);
    let strange = content.is_strange.then_some(Limit::Files);
    // A compiler that fails where nothing more could be written.
    let is_held = exit != 0 && folder.is_full();
    too_much(terms.disk_bytes, content)
        .or(strange)
        .or(is_held.then_some(Limit::Disk))
}

/// The job's name: of the toolchain's hash and a number, as `sccache-dist` calls its folder.
fn name(folder: Option<&Folder>) -> String {
    let name = folder.and_then(Folder::name).unwrap_or_default();
    match name.rsplit_once('-') {
        Some((toolchain, number)) => format!("{toolchain:.8}-{number}"),
        None => name.to_owned(),
    }
}

/// The gateway's socket. Nothing here waits for it: a report that it cannot take is lost.
#[derive(Debug)]
pub(super) struct Reports {
    socket: Option<UnixDatagram>,
}

impl Reports {
    pub(super) fn to(path: Option<&Path>) -> Reports {
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

    pub(super) fn send(&self, report: &Report) {
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
mod tests;
