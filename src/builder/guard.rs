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
mod flags;
mod macros;
mod rules;
mod trace;

pub(super) use trace::Watch;

use crate::contract::sent_home::{Reason, SentHome};
use rules::Rules;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
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

/// The compiler that is rustc and looks around.
const CLIPPY: &str = "clippy-driver";

/// A job's command, taken from the arguments of bubblewrap.
struct Command<'a> {
    /// Bubblewrap's own arguments.
    sandbox: &'a [OsString],
    program: &'a Path,
    compiler: &'a [OsString],
}

impl<'a> Command<'a> {
    fn of(arguments: &'a [OsString]) -> Option<Command<'a>> {
        let end = arguments.iter().position(|argument| argument == "--")?;
        let (program, compiler) = arguments.get(end + 1..)?.split_first()?;
        Some(Command {
            sandbox: &arguments[..end],
            program: Path::new(program),
            compiler,
        })
    }

    fn stem(&self) -> &str {
        let stem = self.program.file_stem().and_then(OsStr::to_str);
        stem.unwrap_or_default()
    }

    fn crate_name(&self) -> Option<&'a OsStr> {
        rules::value_of(self.compiler, "--crate-name")
    }

    fn is_rust(&self) -> bool {
        self.crate_name().is_some() || self.stem() == "rustc" || self.stem() == CLIPPY
    }
}

/// Why the job of these arguments of bubblewrap is its client's alone: its flags or variables say so before it begins.
pub(super) fn clients_own(arguments: &[OsString]) -> Option<SentHome> {
    let command = Command::of(arguments)?;
    let (reason, what) = flags::judge(&command)?;
    // What a compile of C is known by is its object.
    let output = || Path::new(rules::value_of(command.compiler, "-o")?).file_name();
    let name = command.crate_name().or_else(output).unwrap_or_default();
    Some(SentHome::new(&name.to_string_lossy(), reason, &what))
}

/// A Rust job that runs code which is not the compiler's own: nothing else looks for what sccache does not know of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Job {
    crate_name: String,
    rules: Rules,
    /// Names of libraries that may have macros.
    macros: BTreeSet<String>,
}

impl Job {
    /// From the arguments of bubblewrap. `None` for a job that cannot look around: what C reads is in it already, and rustc
    /// itself says what it cannot find.
    pub(super) fn of(arguments: &[OsString]) -> Option<Job> {
        let command = Command::of(arguments).filter(Command::is_rust)?;
        let sandbox = command.sandbox;
        let bound = sandbox.iter().position(|argument| argument == "--bind");
        let root = Path::new(bound.and_then(|at| sandbox.get(at + 1))?);
        let rules = Rules::new(sandbox, command.program, command.compiler);
        let mut macros = macros::loaded(root, &rules, command.compiler);
        // It reads a configuration.
        macros.extend((command.stem() == CLIPPY).then(|| CLIPPY.to_owned()));
        let name = command.crate_name().unwrap_or_default();
        (!macros.is_empty()).then(|| Job {
            crate_name: name.to_string_lossy().into_owned(),
            rules,
            macros,
        })
    }

    /// Judges the job by the names of its macros.
    pub(super) fn by_list(&self) -> Result<(), SentHome> {
        match self.macros.iter().find(|name| !macros::is_pure(name)) {
            Some(name) => Err(self.home(Reason::Macro, name)),
            None => Ok(()),
        }
    }

    pub(super) fn home(&self, reason: Reason, what: &str) -> SentHome {
        SentHome::new(&self.crate_name, reason, what)
    }
}
