//! A service: how it starts, says that it is ready, stops and ends; and the plan of all of them.

use crate::base::secret::Secret;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// How a service is asked to stop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopBy {
    /// SIGTERM to its group.
    Term,
    /// The `Shutdown` request of sccache's own protocol; sccache handles no signal.
    SccacheShutdown(PathBuf),
}

/// How a service says that it is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadyBy {
    /// It takes the listeners over its standard input, and answers there.
    Handover,
    /// It connects to the notification socket.
    Notify,
    /// It says nothing: it counts as ready when it runs.
    Spawn,
    /// The gateway says so, with this byte over its handover socket.
    Gateway(u8),
}

/// One service of the plan.
#[derive(Debug, Clone)]
pub struct Service {
    pub name: &'static str,
    pub program: PathBuf,
    pub args: Vec<String>,
    /// The whole environment: nothing is inherited.
    pub env: Vec<(String, String)>,
    pub ready_by: ReadyBy,
    /// Runs as the supervisor does, and steps down by itself.
    pub keeps_root: bool,
    pub stop_by: StopBy,
    /// What it reads at its start.
    pub files: Vec<File>,
    pub rules: Rules,
}

impl Service {
    /// Whether a running process of `self` is as good as one of `other`.
    fn runs_like(&self, other: &Service) -> bool {
        (&self.program, &self.args, &self.env, &self.files)
            == (&other.program, &other.args, &other.env, &other.files)
    }
}

/// A file that a service reads, mode 0600.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    pub path: PathBuf,
    pub text: String,
}

/// The services of this mode, in the order of their [`Id`]s.
#[derive(Debug, Clone)]
pub struct Plan {
    pub services: Vec<Service>,
    /// What the log must hide.
    pub secrets: Vec<Secret>,
}

impl Plan {
    /// The services that must restart to run by this plan instead of by `before`, which has the same services.
    pub fn changed_since(&self, before: &Plan) -> Vec<Id> {
        let pairs = self.services.iter().zip(&before.services).enumerate();
        pairs
            .filter(|(_, (new, old))| !new.runs_like(old))
            .map(|(index, _)| Id(index))
            .collect()
    }
}

/// A service, by its place in the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id(pub usize);

/// How a process ended. A failed spawn is an exit too: one path for every way to die.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    Code(i32),
    Signal(i32),
    /// The kernel killed it for want of memory.
    OutOfMemory,
    /// The process could not be created; the error number says why.
    NotSpawned(i32),
    /// There was no process: one of the listeners for it could not be opened again; the error number says why.
    NotBound(i32),
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exit::Code(code) => write!(f, "exit code {code}"),
            Exit::Signal(signal) => write!(f, "signal {signal}"),
            Exit::OutOfMemory => write!(f, "signal 9, out of memory"),
            Exit::NotBound(errno) => write!(
                f,
                "cannot listen: {}",
                std::io::Error::from_raw_os_error(*errno)
            ),
            Exit::NotSpawned(errno) => write!(
                f,
                "cannot start: {}",
                std::io::Error::from_raw_os_error(*errno)
            ),
        }
    }
}

/// The bounds of one service.
#[derive(Debug, Clone)]
pub struct Rules {
    pub depends_on: Vec<Id>,
    /// From spawn to ready.
    pub ready_timeout: Duration,
    /// From terminate to kill, outside a drain.
    pub grace: Duration,
    /// Exit codes after which another try cannot help.
    pub fatal_codes: &'static [i32],
}

/// User and group that services run as, where they differ from our own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunAs {
    pub uid: u32,
    pub gid: u32,
}

/// The gateway says it of the scheduler: it answers.
pub const SCHEDULER_ANSWERS: u8 = b's';

/// The gateway says it of the local builder: the scheduler has accepted its heartbeat.
pub const BUILDER_REGISTERED: u8 = b'b';

/// The supervisor's word for reading files again.
pub(crate) const REREAD: u8 = b'F';

/// What `sccache-dock-gateway --check-certificate` prints where nothing is wrong; else it prints what is.
pub const CERTIFICATE_IS_GOOD: &str = "good";
