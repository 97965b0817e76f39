//! A service: how it is started, reports that it is ready, is stopped, and ends; and the plan of all services.

use crate::base::secret::Secret;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// How a service is asked to stop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopBy {
    /// SIGTERM to its process group.
    Term,
    /// The `Shutdown` request of sccache's own protocol, because sccache handles no signals.
    SccacheShutdown(PathBuf),
}

/// How a service reports that it is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadyBy {
    /// It receives the listeners over its standard input, and answers there.
    Handover,
    /// It connects to the notification socket.
    Notify,
    /// It does not report: it counts as ready once it runs.
    Spawn,
    /// The gateway reports it, with this byte over its handover socket.
    Gateway(u8),
}

/// One service of the plan.
#[derive(Debug, Clone)]
pub struct Service {
    pub name: &'static str,
    pub program: PathBuf,
    pub args: Vec<String>,
    /// The complete environment: nothing is inherited.
    pub env: Vec<(String, String)>,
    pub ready_by: ReadyBy,
    /// Whether it runs with the supervisor's privileges and drops them itself.
    pub keeps_root: bool,
    pub stop_by: StopBy,
    /// Files that it reads at start.
    pub files: Vec<File>,
    pub rules: Rules,
}

impl Service {
    /// Whether a running process of `self` can serve as one of `other`.
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

/// The services of this mode, ordered by [`Id`].
#[derive(Debug, Clone)]
pub struct Plan {
    pub services: Vec<Service>,
    /// Secrets that the log must redact.
    pub secrets: Vec<Secret>,
}

impl Plan {
    /// The services that must restart to change from plan `before` to this one, which has the same services.
    pub fn changed_since(&self, before: &Plan) -> Vec<Id> {
        let pairs = self.services.iter().zip(&before.services).enumerate();
        pairs
            .filter(|(_, (new, old))| !new.runs_like(old))
            .map(|(index, _)| Id(index))
            .collect()
    }
}

/// A service, identified by its index in the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id(pub usize);

/// How a process ended. A failed spawn is also an exit, so that there is one path for every way to die.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    Code(i32),
    Signal(i32),
    /// The kernel killed it because memory ran out.
    OutOfMemory,
    /// The process could not be created, with the error number.
    NotSpawned(i32),
    /// No process was created because one of its listeners could not be reopened, with the error number.
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

/// Limits and dependencies of one service.
#[derive(Debug, Clone)]
pub struct Rules {
    pub depends_on: Vec<Id>,
    /// Maximum time from spawn to ready.
    pub ready_timeout: Duration,
    /// Maximum time from terminate to kill, outside a drain.
    pub grace: Duration,
    /// Exit codes after which a restart is pointless.
    pub fatal_codes: &'static [i32],
}

/// User and group under which services run, if different from the supervisor's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunAs {
    pub uid: u32,
    pub gid: u32,
}

/// Sent by the gateway when the scheduler answers.
pub const SCHEDULER_ANSWERS: u8 = b's';

/// Sent by the gateway when the scheduler has accepted the local builder's heartbeat.
pub const BUILDER_REGISTERED: u8 = b'b';

/// Sent by the supervisor to have files reloaded.
pub(crate) const REREAD: u8 = b'F';

/// What `sccache-dock-gateway --check-certificate` prints if nothing is wrong; otherwise it prints the error.
pub const CERTIFICATE_IS_GOOD: &str = "good";
