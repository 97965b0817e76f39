//! Why a job was ended on its builder and left to its client to compile.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Maximum number of characters of a reported path.
const WHAT: usize = 200;

/// Why a job's result could differ from the client's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reason {
    /// It looked for a file that is not on the builder.
    File,
    /// It listed a folder that is only partly on the builder.
    Folder,
    /// It ran a program.
    Program,
    /// It opened a socket.
    Network,
    /// It wrote a file that would not be sent back.
    Write,
    /// It asked about the machine: its name, its hardware.
    Machine,
    /// Jobs cannot be watched on this builder, and it may use a macro that is not known to be pure.
    Macro,
    /// It could not be watched, although others can be.
    Unwatched,
}

impl Reason {
    /// The name used in metrics.
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

/// A job that was ended so that its client compiles it. Displayed as what the job did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SentHome {
    /// The crate's name, as known to rustc.
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
    /// Truncates the texts to the length that a report may have.
    pub(crate) fn new(crate_name: &str, reason: Reason, what: &str) -> SentHome {
        let short = |text: &str| text.chars().take(WHAT).collect();
        SentHome {
            crate_name: short(crate_name),
            reason,
            what: short(what),
        }
    }
}
