//! The writer of a blob, as recorded in the blob's file. Pure.

use crate::contract::tokens::RESERVED;
use std::fmt;
use std::sync::Arc;

/// Maximum length of the text in bytes.
pub(super) const MOST_BYTES: usize = 96;
/// The name for blobs without a recorded writer.
const UNKNOWN: &str = "unknown";

/// The lane by which a blob came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// HTTP: WebDAV, which distributed clients use too, and the protocols of ccache, Bazel and Gradle.
    Webdav,
    /// sccache's own protocol on the port.
    Ipc,
    /// sccache's own protocol on the Unix socket.
    Socket,
    /// Fetched from the upstream.
    Upstream,
}

impl Lane {
    fn name(self) -> &'static str {
        match self {
            Lane::Webdav => "webdav",
            Lane::Ipc => "ipc",
            Lane::Socket => "socket",
            Lane::Upstream => "upstream",
        }
    }
}

/// The writer of a blob: the lane and, if known, the name of the token or the user. Empty if nothing was recorded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WrittenBy(Option<Arc<str>>);

impl WrittenBy {
    /// `name` is the name of a token, or `uid=1000` for a user of the socket.
    pub fn new(lane: Lane, name: Option<&str>) -> WrittenBy {
        let text = match name {
            Some(name) => format!("{} {name}", lane.name()),
            None => lane.name().to_owned(),
        };
        let text = if text.len() > MOST_BYTES {
            lane.name().to_owned()
        } else {
            text
        };
        WrittenBy(Some(text.into()))
    }

    /// Parses the text in a blob's file.
    pub(super) fn decode(text: &str) -> WrittenBy {
        WrittenBy((!text.is_empty()).then(|| text.into()))
    }

    /// The text for a blob's file.
    pub fn as_str(&self) -> &str {
        self.0.as_deref().unwrap_or_default()
    }

    /// The named token with which it was written.
    pub(super) fn token_by_name(&self) -> Option<&str> {
        let (lane, name) = self.as_str().split_once(' ')?;
        (lane == Lane::Webdav.name() && !RESERVED.contains(&name)).then_some(rule_of(name))
    }

    /// Whether `wanted` is the lane, the name, or the rule of a session; `unknown` matches blobs without a recorded
    /// writer.
    pub fn is(&self, wanted: &str) -> bool {
        match &self.0 {
            None => wanted == UNKNOWN,
            Some(text) => {
                let (lane, name) = text.split_once(' ').unwrap_or((text, ""));
                !wanted.is_empty() && [lane, name, rule_of(name)].contains(&wanted)
            }
        }
    }
}

/// The rule of a session that is called `RULE:BUILD`, or all of a token's name, which has no colon.
fn rule_of(name: &str) -> &str {
    name.split_once(':').map_or(name, |(rule, _)| rule)
}

impl fmt::Display for WrittenBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_deref().unwrap_or(UNKNOWN))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writer_is_known_by_lane_and_by_name() {
        let ci = WrittenBy::new(Lane::Webdav, Some("ci"));
        assert!(ci.is("ci") && ci.is("webdav"));
        assert!(!ci.is("webdav ci") && !ci.is("c") && !ci.is("unknown") && !ci.is(""));
        let session = WrittenBy::new(Lane::Webdav, Some("pulls:123"));
        assert!(session.is("pulls") && session.is("pulls:123") && !session.is("123"));
        assert_eq!(session.token_by_name(), Some("pulls"));
        let socket = WrittenBy::new(Lane::Socket, Some("uid=0"));
        assert!(socket.is("uid=0") && socket.is("socket"));
        assert!(!WrittenBy::new(Lane::Ipc, None).is(""));
        assert!(WrittenBy::default().is("unknown") && !WrittenBy::default().is(""));
        for by in [ci, socket, WrittenBy::default()] {
            assert_eq!(WrittenBy::decode(by.as_str()), by);
        }
        let long = WrittenBy::new(Lane::Webdav, Some(&"x".repeat(MOST_BYTES)));
        assert_eq!(long.as_str(), "webdav");
    }
}
