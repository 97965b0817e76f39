//! Whether a Rust job found everything that it looked for.
//!
//! sccache ships the files that it knows a compile to read. A procedural macro may read others, list a folder, run git or
//! ask a database; where it has a default for what it does not find, the job ends well with a result that a plain compile
//! would not have made, and the cache hands it on. So what a job looks for is watched, and at the first thing that was not
//! shipped the job is ended: its client compiles by itself.
//!
//! ```text
//! shim --- seizes bubblewrap, which has a filter for the job --- bubblewrap -> rustc
//!   '-- told of each look-up before and, where it matters, after it (seccomp's RET_TRACE, ptrace) --'
//! ```
//!
//! This keeps honest jobs right. It is no boundary: that is bubblewrap's part.
//!
//! Seccomp's user notification would do the same for a little less. No safe interface to it is to be had without the C
//! library libseccomp, which the client program and everyone who compiles us would need; nix and seccompiler are Rust.

mod calls;
mod filter;
mod pure;
mod rules;
mod trace;

pub(super) use trace::{Event, Watch};

use rules::Rules;
use serde::{Deserialize, Serialize};
use std::ffi::{OsStr, OsString};
use std::path::Path;

/// How Rust jobs are guarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Guard {
    /// Each look-up is watched.
    Watch,
    /// Nothing can be watched here: jobs run that have no macros but those known to look for nothing.
    List,
}

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
    /// Nothing is watched here, and it may use a macro that is not known to be pure.
    Macro,
}

/// A job that was ended so that its client does it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SentHome {
    /// The crate's name, as rustc has it.
    #[serde(rename = "crate")]
    pub crate_name: String,
    pub reason: Reason,
    /// The path, the program or the macro.
    pub what: String,
}

/// Most characters that are told of a path.
const WHAT: usize = 200;

impl SentHome {
    fn new(crate_name: &str, reason: Reason, what: &str) -> SentHome {
        let short = |text: &str| text.chars().take(WHAT).collect();
        SentHome {
            crate_name: short(crate_name),
            reason,
            what: short(what),
        }
    }
}

/// A Rust job, from the arguments of bubblewrap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Job {
    crate_name: String,
    rules: Rules,
    /// The job's root folder, as we see it.
    root: OsString,
}

impl Job {
    /// `None` for a job of another compiler: what C reads is in it already.
    pub(super) fn of(arguments: &[OsString]) -> Option<Job> {
        let end = arguments.iter().position(|argument| argument == "--")?;
        let (sandbox, command) = (&arguments[..end], arguments.get(end + 1..)?);
        let (program, compiler) = command.split_first()?;
        let stem = Path::new(program).file_stem().and_then(OsStr::to_str);
        let name = rules::value_of(compiler, "--crate-name");
        if name.is_none() && !matches!(stem, Some("rustc" | "clippy-driver")) {
            return None;
        }
        let crate_name = name.unwrap_or_default().to_string_lossy().into_owned();
        let bound = sandbox.iter().position(|argument| argument == "--bind");
        let root = bound.and_then(|at| sandbox.get(at + 1)).cloned();
        Some(Job {
            crate_name,
            rules: Rules::new(sandbox, Path::new(program), compiler),
            root: root.unwrap_or_default(),
        })
    }

    /// Judges the job by the names of the macros that came with it.
    pub(super) fn by_list(&self) -> Result<(), SentHome> {
        let unknown = self.rules.libraries().find_map(|folder| {
            let folder = folder.strip_prefix("/").unwrap_or(folder);
            pure::unknown_macro_in(&Path::new(&self.root).join(folder))
        });
        match unknown {
            Some(name) => Err(self.home(Reason::Macro, &name)),
            None => Ok(()),
        }
    }

    fn home(&self, reason: Reason, what: &str) -> SentHome {
        SentHome::new(&self.crate_name, reason, what)
    }
}
