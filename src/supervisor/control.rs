//! The control socket: a one-line request, answered with a JSON document.
//!
//! Requests: `status`, `restart SERVICE`, `stop SERVICE`, `reload`, and `hide SECRET`, with which the gateway announces
//! a token from a changed file before it accepts that token. The socket has mode 0600; whoever may open it may send any
//! request.

use super::peers::Peer;
use crate::base::secret::Secret;
use crate::contract::control::Response;
use crate::contract::tokens;
use std::io::Write;

/// Maximum length of a request: a word and a token.
pub const LINE_LIMIT: usize = tokens::LONGEST_TOKEN + 256;

/// A request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    Status,
    Restart(String),
    Stop(String),
    Reload,
    /// Redact this text in the log from now on.
    Hide(Secret),
    /// Not understood; the text lists what is.
    Garbage(String),
}

impl Request {
    /// Parses a request, once its line is complete or too long.
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

impl Response {
    /// Sends the answer. It is far smaller than a socket's buffer; a peer that does not read loses it.
    pub fn send(&self, mut to: Peer) {
        if let Ok(mut text) = serde_json::to_vec(self) {
            text.push(b'\n');
            let _ = to.stream.write_all(&text);
        }
    }
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
