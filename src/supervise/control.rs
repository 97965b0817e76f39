//! The control socket: one line in, one JSON document out.
//!
//! Requests: `status`, `restart SERVICE`, `stop SERVICE`, `reload` and `hide SECRET`, by which the gateway tells of a
//! token that it has read from a changed file, before it takes it. The socket has mode 0600; whoever may open it may ask.

use super::crash::Crash;
use super::peers::{PATIENCE, Peer};
use crate::base::secret::Secret;
use crate::contract::tokens;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// How long the settings and the files that they name may take to be read.
pub const RELOAD_PATIENCE: Duration = Duration::from_secs(10);
/// Longest request: a word and a token.
pub const LINE_LIMIT: usize = tokens::LONGEST_TOKEN + 256;

/// What can be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    Status,
    Restart(String),
    Stop(String),
    Reload,
    /// Let no line of the log show it.
    Hide(Secret),
    /// Not understood; the text says what is.
    Garbage(String),
}

impl Request {
    /// What these bytes ask for, once a line is whole or too long.
    pub fn understand(bytes: &[u8]) -> Option<Request> {
        let bytes = &bytes[..bytes.len().min(LINE_LIMIT)];
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let end = end.or((bytes.len() >= LINE_LIMIT).then_some(bytes.len()))?;
        Some(Request::parse(&String::from_utf8_lossy(&bytes[..end])))
    }

    fn parse(line: &str) -> Request {
        let mut words = line.split_ascii_whitespace();
        match (words.next(), words.next(), words.next()) {
            (Some("status"), None, None) => Request::Status,
            (Some("reload"), None, None) => Request::Reload,
            (Some("hide"), Some(secret), None) => Request::Hide(Secret::new(secret)),
            (Some("stop"), Some(service), None) => Request::Stop(service.to_owned()),
            (Some("restart"), Some(service), None) => Request::Restart(service.to_owned()),
            _ => Request::Garbage(
                "cannot understand the request: send \"status\", \"restart SERVICE\", \"stop SERVICE\" or \"reload\""
                    .into(),
            ),
        }
    }
}

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

impl Response {
    /// Answers. It is far smaller than a socket's buffer: a peer that does not read loses it.
    pub fn send(&self, mut to: Peer) {
        if let Ok(mut text) = serde_json::to_vec(self) {
            text.push(b'\n');
            let _ = to.stream.write_all(&text);
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_word_by_word() {
        assert_eq!(Request::parse("status"), Request::Status);
        assert_eq!(
            Request::parse("stop gateway"),
            Request::Stop("gateway".into())
        );
        assert_eq!(Request::parse("reload"), Request::Reload);
        let longest = "x".repeat(tokens::LONGEST_TOKEN);
        assert_eq!(
            Request::understand(format!("hide {longest}\n").as_bytes()),
            Some(Request::Hide(Secret::new(&longest)))
        );
        assert_eq!(
            Request::parse(" restart  server "),
            Request::Restart("server".into())
        );
        for garbage in [
            "",
            "stat",
            "restart",
            "restart a b",
            "\u{0}\u{0}",
            "status now",
        ] {
            assert!(
                matches!(Request::parse(garbage), Request::Garbage(_)),
                "{garbage:?}"
            );
        }
    }
}
