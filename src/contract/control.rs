//! What is answered on the control socket, and the question.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// How long the settings and the files that they name may take to be read.
pub const RELOAD_PATIENCE: Duration = Duration::from_secs(10);

/// What is answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    Status(Report),
    Done,
    Error(String),
}

/// The supervisor's view of things.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub version: String,
    pub mode: String,
    /// Address that the cache port is bound to.
    pub listen: String,
    pub uptime_seconds: f64,
    pub stopping: bool,
    pub services: Vec<ServiceReport>,
    pub orphans_reaped: u64,
}

/// One service, as status shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServiceReport {
    pub name: String,
    /// One of waiting, starting, ready, stopping, killed, backoff, stopped.
    pub state: String,
    pub pid: Option<i32>,
    /// Since when it is ready.
    pub ready_seconds: Option<f64>,
    pub restarts: u32,
    /// Within the last hour, where nobody had asked for them.
    pub deaths_last_hour: usize,
    /// What is wrong, until it has been ready for a minute.
    pub trouble: Option<TroubleReport>,
    /// From spawn to ready, the last time.
    pub time_to_ready_seconds: Option<f64>,
    /// From the end of a process until its successor was ready, the last time.
    pub away_seconds: Option<f64>,
    pub last_exit: Option<String>,
    /// The last death that nobody had asked for.
    pub last_crash: Option<Crash>,
}

/// How a service fails.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TroubleReport {
    /// `never ran` or `ran and died`.
    pub verdict: String,
    /// Since the first failure in this row.
    pub since_seconds: f64,
    /// In this row.
    pub failures: u32,
}

/// The record of one death, as status shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Crash {
    /// Exit code, signal, or why it could not start.
    pub exit: String,
    /// What stands behind it and what mends it, where that is known.
    pub cause: Option<String>,
    /// Between its start and its end.
    pub lived_seconds: f64,
    /// Of the process and the children that it waited for.
    pub cpu_seconds: f64,
    /// Its last output, secrets hidden.
    pub last_lines: Vec<String>,
}

/// How the services are, all together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// Each is ready.
    Ready,
    /// Those that are not are on their way, and nothing has gone wrong with them.
    Starting,
    /// The supervisor stops them all.
    Stopping,
    /// One of them is down, or does not come up.
    Failing,
}

impl Report {
    /// How the services are, all together.
    pub fn health(&self) -> Health {
        let on_its_way = |service: &ServiceReport| {
            matches!(service.state.as_str(), "waiting" | "starting") && service.trouble.is_none()
        };
        if self.stopping {
            Health::Stopping
        } else if self.not_ready().next().is_none() {
            Health::Ready
        } else if self.not_ready().all(on_its_way) {
            Health::Starting
        } else {
            Health::Failing
        }
    }

    /// The services that are not ready.
    pub fn not_ready(&self) -> impl Iterator<Item = &ServiceReport> {
        self.services.iter().filter(|one| one.state != "ready")
    }
}

impl fmt::Display for TroubleReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (times, since) = (self.failures, self.since_seconds);
        write!(f, "{}, {times} failures in {since:.0} s", self.verdict)
    }
}

impl fmt::Display for Report {
    /// One line a service, for the log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "up {:.0} s, {} orphans reaped",
            self.uptime_seconds, self.orphans_reaped
        )?;
        for service in &self.services {
            write!(
                f,
                "\n{} is {}, {} restarts",
                service.name, service.state, service.restarts
            )?;
            if let Some(exit) = &service.last_exit {
                write!(f, ", last {exit}")?;
            }
            if let Some(trouble) = &service.trouble {
                write!(f, " ({trouble})")?;
            }
        }
        Ok(())
    }
}

/// Asks a running supervisor.
///
/// # Errors
/// There is none at this socket, or it does not answer within five seconds; a reload may take ten more.
pub fn ask(socket: &Path, request: &str) -> io::Result<Response> {
    let mut stream = UnixStream::connect(socket)?;
    let patience = match request {
        "reload" => RELOAD_PATIENCE + PATIENCE,
        _ => PATIENCE,
    };
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(format!("{request}\n").as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    serde_json::from_str(&text).map_err(io::Error::from)
}

/// A peer must have said all that it has to say, and read the answer, within this time.
pub const PATIENCE: Duration = Duration::from_secs(5);
