//! Requests and answers on the control socket.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Time limit for reading the settings and the files that they name.
pub const RELOAD_PATIENCE: Duration = Duration::from_secs(10);

/// An answer on the control socket.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    Status(Report),
    Done,
    Error(String),
}

/// The supervisor's view of all services.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub version: String,
    pub mode: String,
    /// Address to which the cache port is bound.
    pub listen: String,
    pub uptime_seconds: f64,
    pub stopping: bool,
    pub services: Vec<ServiceReport>,
    pub orphans_reaped: u64,
}

/// One service, as shown by `status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServiceReport {
    pub name: String,
    /// One of waiting, starting, ready, stopping, killed, backoff, stopped.
    pub state: String,
    pub pid: Option<i32>,
    /// Seconds since it became ready.
    pub ready_seconds: Option<f64>,
    pub restarts: u32,
    /// Unrequested exits within the last hour.
    pub deaths_last_hour: usize,
    /// What is wrong; kept until the service has been ready for a minute.
    pub trouble: Option<TroubleReport>,
    /// Duration of the last start, from spawn to ready.
    pub time_to_ready_seconds: Option<f64>,
    /// Duration of the last outage, from the end of a process until its successor was ready.
    pub away_seconds: Option<f64>,
    pub last_exit: Option<String>,
    /// The last unrequested exit.
    pub last_crash: Option<Crash>,
}

/// How a service is failing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TroubleReport {
    /// `never ran` or `ran and died`.
    pub verdict: String,
    /// Seconds since the first of these failures in a row.
    pub since_seconds: f64,
    /// Number of failures in a row.
    pub failures: u32,
}

/// The record of one crash, as shown by `status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Crash {
    /// Exit code, signal, or why it could not be started.
    pub exit: String,
    /// The cause and how to fix it, if known.
    pub cause: Option<String>,
    /// Lifetime of the process in seconds.
    pub lived_seconds: f64,
    /// CPU time of the process and of the children that it waited for.
    pub cpu_seconds: f64,
    /// Its last lines of output, with secrets redacted.
    pub last_lines: Vec<String>,
}

/// Overall state of the services.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// Every service is ready.
    Ready,
    /// Some services are not ready yet, but have not failed.
    Starting,
    /// The supervisor is stopping all services.
    Stopping,
    /// A service is down, or fails to become ready.
    Failing,
}

impl Report {
    /// Overall state of the services.
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
    /// One line per service, for the log.
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

/// Sends a request to a running supervisor.
///
/// # Errors
/// No supervisor listens on this socket, or it does not answer within five seconds; a reload may take ten more.
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

/// Time limit for a peer to send its request and read the answer.
pub const PATIENCE: Duration = Duration::from_secs(5);
