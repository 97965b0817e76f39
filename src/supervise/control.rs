//! The control socket: one line in, one JSON document out.
//!
//! Requests: `status` and `restart SERVICE`. The socket has mode 0600; whoever may open it may ask.

use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

/// A client must have asked and read within this time.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest request.
const LINE_LIMIT: usize = 256;
/// Clients at the same time; more are turned away.
const CLIENTS: usize = 16;

/// What can be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    Status,
    Restart(String),
}

impl Request {
    fn parse(line: &str) -> Result<Request, String> {
        let mut words = line.split_ascii_whitespace();
        match (words.next(), words.next(), words.next()) {
            (Some("status"), None, None) => Ok(Request::Status),
            (Some("restart"), Some(service), None) => Ok(Request::Restart(service.to_owned())),
            _ => {
                Err("cannot understand the request: send \"status\" or \"restart SERVICE\"".into())
            }
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
    pub last_exit: Option<String>,
}

/// The listening side, inside the loop.
pub struct Control {
    pub listener: UnixListener,
    pub clients: Vec<Client>,
}

/// One connection that has not been answered yet.
pub struct Client {
    pub stream: UnixStream,
    line: Vec<u8>,
    until: Instant,
}

impl Control {
    /// Takes over a listener, which must not block.
    pub fn new(listener: UnixListener) -> Control {
        Control {
            listener,
            clients: Vec::new(),
        }
    }

    /// Accepts whoever waits.
    pub fn accept(&mut self, now: Instant) {
        while let Ok((stream, _)) = self.listener.accept() {
            if self.clients.len() < CLIENTS && stream.set_nonblocking(true).is_ok() {
                self.clients.push(Client {
                    stream,
                    line: Vec::new(),
                    until: now + PATIENCE,
                });
            }
        }
    }

    /// When the next client runs out of patience.
    pub fn deadline(&self) -> Option<Instant> {
        self.clients.iter().map(|client| client.until).min()
    }

    /// Answers every request that is whole, and forgets clients that are done or too slow.
    pub fn serve(&mut self, now: Instant, mut answer: impl FnMut(Request) -> Response) {
        self.clients.retain_mut(|client| match client.read() {
            Ok(None) => now < client.until,
            Ok(Some(line)) => {
                let response = match Request::parse(&line) {
                    Ok(request) => answer(request),
                    Err(message) => Response::Error(message),
                };
                client.send(&response);
                false
            }
            Err(_) => false,
        });
    }
}

impl Client {
    fn read(&mut self) -> io::Result<Option<String>> {
        let mut buffer = [0; LINE_LIMIT];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => self.line.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            }
            let end = self.line.iter().position(|byte| *byte == b'\n');
            if end.is_none() && self.line.len() < LINE_LIMIT {
                continue;
            }
            let end = end.unwrap_or(self.line.len());
            return Ok(Some(
                String::from_utf8_lossy(&self.line[..end]).into_owned(),
            ));
        }
    }

    /// The answer is far smaller than a socket's buffer: a client that does not read loses it.
    fn send(&mut self, response: &Response) {
        if let Ok(mut text) = serde_json::to_vec(response) {
            text.push(b'\n');
            let _ = self.stream.write_all(&text);
        }
    }
}

/// Asks a running supervisor.
///
/// # Errors
/// There is none at this socket, or it does not answer within five seconds.
pub fn ask(socket: &Path, request: &str) -> io::Result<Response> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
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
        assert_eq!(Request::parse("status"), Ok(Request::Status));
        assert_eq!(
            Request::parse(" restart  server "),
            Ok(Request::Restart("server".into()))
        );
        for garbage in [
            "",
            "stat",
            "restart",
            "restart a b",
            "\u{0}\u{0}",
            "status now",
        ] {
            assert!(Request::parse(garbage).is_err(), "{garbage:?}");
        }
    }
}
