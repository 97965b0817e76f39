//! What commands print for programs: one JSON value each, with the number of its schema; docs/schemas has them all.

use crate::config::settings::{Loaded, Problems};
use crate::{admin, client, exit};
use serde::Serialize;
use std::error::Error;
use std::io::{self, Write};

/// Counts up when a field is taken away or means something else.
pub const SCHEMA: u32 = 1;

/// `--json`, for the commands that have no more to say than a line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::Args)]
pub struct Output {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// A value with the number of its schema in front.
#[derive(Debug, Serialize)]
struct Numbered<T> {
    schema: u32,
    #[serde(flatten)]
    value: T,
}

/// Prints a value on standard output.
///
/// # Errors
/// The output is closed.
pub fn print(value: impl Serialize) -> io::Result<()> {
    write(io::stdout().lock(), value)
}

fn write(mut out: impl Write, value: impl Serialize) -> io::Result<()> {
    let schema = SCHEMA;
    serde_json::to_writer_pretty(&mut out, &Numbered { schema, value }).map_err(io::Error::from)?;
    writeln!(out)
}

/// That a command has done what it was told.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Done {
    done: bool,
}

impl Done {
    /// By the exit code of the command.
    pub fn by(code: u8) -> Done {
        Done {
            done: code == exit::OK,
        }
    }
}

/// What `version --json` prints.
#[derive(Debug, Serialize)]
pub(super) struct Version {
    pub(super) sccache_dock: &'static str,
    pub(super) sccache: String,
}

/// What `healthcheck --json` prints.
#[derive(Debug, Serialize)]
pub(super) struct Healthcheck {
    pub(super) healthy: bool,
    pub(super) says: String,
}

/// What `purge --json` prints.
#[derive(Debug, Serialize)]
pub(super) struct Purged {
    pub(super) entries: u64,
    pub(super) bytes: u64,
    pub(super) dry_run: bool,
}

#[derive(Debug, Serialize)]
struct Config<'a> {
    settings: Vec<Setting<'a>>,
    warnings: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Setting<'a> {
    name: &'a str,
    /// Secrets are hidden.
    value: &'a str,
    source: String,
    about: &'a str,
}

/// Prints the effective settings with their sources, secrets hidden.
///
/// # Errors
/// The output is closed.
pub fn config(loaded: &Loaded) -> io::Result<()> {
    let settings = loaded.effective.iter().map(|line| Setting {
        name: line.name,
        value: &line.shown,
        source: line.source.to_string(),
        about: line.about,
    });
    print(Config {
        settings: settings.collect(),
        warnings: loaded.warnings.iter().map(ToString::to_string).collect(),
    })
}

/// Why a command failed.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Failure {
    code: &'static str,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

#[derive(Debug, Serialize)]
struct Failed {
    error: Failure,
}

impl Failure {
    /// Of the error with which a command ended, and its exit code.
    pub fn new(error: &(dyn Error + 'static), exit: u8) -> Failure {
        let code = match error.downcast_ref::<admin::Error>() {
            Some(error) => error.code(),
            None if error.is::<Problems>() => "settings",
            None if error.is::<client::Error>() || error.is::<client::warm::Error>() => "client",
            None => match exit {
                exit::USAGE => "settings",
                exit::ISOLATION => "isolation",
                _ => "failed",
            },
        };
        Failure::of_text(code, &error.to_string())
    }

    /// A command line that clap refuses, by the text that it has for people.
    pub fn usage(text: &str) -> Failure {
        let text = text.trim().trim_start_matches("error: ");
        let (message, rest) = text.split_once("\n\n").unwrap_or((text, ""));
        Failure {
            code: "usage",
            message: message.to_owned(),
            hint: Some(rest.trim().to_owned()).filter(|hint| !hint.is_empty()),
        }
    }

    fn of_text(code: &'static str, text: &str) -> Failure {
        let (message, hint) = match text.split_once("\nhint: ") {
            Some((message, hint)) => (message, Some(hint.to_owned())),
            None => (text, None),
        };
        Failure {
            code,
            message: message.to_owned(),
            hint,
        }
    }

    /// Prints it on standard error: on the other there is what was asked for, or nothing.
    ///
    /// # Errors
    /// The output is closed.
    pub fn print(self) -> io::Result<()> {
        write(io::stderr().lock(), Failed { error: self })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hint_is_a_field_of_its_own() {
        let failure = Failure::of_text("failed", "cannot do it: no\nhint: do this\nand that");
        assert_eq!(failure.message, "cannot do it: no");
        assert_eq!(failure.hint.as_deref(), Some("do this\nand that"));
        assert_eq!(Failure::of_text("failed", "no").hint, None);
    }

    #[test]
    fn refused_command_line_says_what_is_wrong_in_one_line() {
        let failure =
            Failure::usage("error: unexpected argument '--x' found\n\nUsage: sccache-dock\n");
        assert_eq!(failure.message, "unexpected argument '--x' found");
        assert_eq!(failure.hint.as_deref(), Some("Usage: sccache-dock"));
    }
}
