//! Why a job was ended on its builder, for its client to compile.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Most characters that are told of a path.
const WHAT: usize = 200;

/// Why a job's result would not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reason {
    /// It looked for a file that is not here.
    File,
    /// It listed a folder, of which only a part is here.
    Folder,
    /// It ran a program.
    Program,
    /// It opened a socket.
    Network,
    /// It wrote a file that nobody would fetch.
    Write,
    /// It asked about the machine: its name, its hardware.
    Machine,
    /// Nothing can be watched here, and it may use a macro that is not known to be pure.
    Macro,
    /// It could not be watched, though others can here.
    Unwatched,
}

impl Reason {
    /// As in figures.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::File => "file",
            Reason::Folder => "folder",
            Reason::Program => "program",
            Reason::Network => "network",
            Reason::Write => "write",
            Reason::Machine => "machine",
            Reason::Macro => "macro",
            Reason::Unwatched => "unwatched",
        }
    }
}

/// A job that was ended so that its client does it. Shown as what it did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SentHome {
    /// The crate's name, as rustc has it.
    #[serde(rename = "crate")]
    pub crate_name: String,
    pub reason: Reason,
    /// The path, the program or the macro.
    pub what: String,
}

impl fmt::Display for SentHome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = &self.what;
        match self.reason {
            Reason::File => write!(f, "looked for {what}"),
            Reason::Folder => write!(f, "listed {what}"),
            Reason::Program => write!(f, "ran {what}"),
            Reason::Network => write!(f, "opened a {what}"),
            Reason::Write => write!(f, "wrote {what}"),
            Reason::Machine => write!(f, "asked about the machine: {what}"),
            Reason::Macro => write!(f, "may use {what}, and cannot be watched here"),
            Reason::Unwatched => write!(f, "could not be watched: {what}"),
        }
    }
}

impl SentHome {
    /// With texts cut to a length that a report may have.
    pub(crate) fn new(crate_name: &str, reason: Reason, what: &str) -> SentHome {
        let short = |text: &str| text.chars().take(WHAT).collect();
        SentHome {
            crate_name: short(crate_name),
            reason,
            what: short(what),
        }
    }
}
