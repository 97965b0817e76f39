//! `doctor --endpoint URL`: why this client does not share, and what to do about it.
//!
//! The judgement is pure (`environment`, `daemon`: facts in, checks out); the edges (`probe`) ask the gateway and run sccache, each bounded in time. It changes nothing: the write it tries is sccache's own probe
//! object, which the gateway answers from memory.

mod daemon;
mod environment;
mod probe;

use crate::client::endpoint::{Endpoint, GATEWAY_PORT};
use crate::secret::Secret;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Arguments of `doctor`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Where this client reaches the gateway [default: SCCACHE_WEBDAV_ENDPOINT, else http://127.0.0.1:4226]
    #[arg(long, value_name = "URL")]
    pub endpoint: Option<String>,
    /// The token of the cache [default: SCCACHE_WEBDAV_TOKEN]
    #[arg(long, value_parser = secret)]
    pub token: Option<Secret>,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

/// The outcome of one check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Builds work, but slower or less shared than they could.
    Warn,
    /// Builds fail, or share nothing.
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// The outcome.
    pub verdict: Verdict,
    /// What was looked at: a short noun or the name of a variable.
    pub what: String,
    /// What was found.
    pub found: String,
    /// What to do about it; absent when there is nothing to do.
    pub mend: Option<String>,
}

impl Check {
    /// A check that passed.
    pub fn ok(what: &str, found: impl Into<String>) -> Check {
        Check {
            verdict: Verdict::Ok,
            what: what.to_owned(),
            found: found.into(),
            mend: None,
        }
    }

    /// A check that passed with a reservation.
    pub fn warn(what: &str, found: impl Into<String>, mend: impl Into<String>) -> Check {
        Check {
            verdict: Verdict::Warn,
            mend: Some(mend.into()),
            ..Check::ok(what, found)
        }
    }

    /// A check that did not pass.
    pub fn fail(what: &str, found: impl Into<String>, mend: impl Into<String>) -> Check {
        Check {
            verdict: Verdict::Fail,
            ..Check::warn(what, found, mend)
        }
    }
}

/// All checks, in the order in which they were made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The checks.
    pub checks: Vec<Check>,
}

impl Report {
    /// Whether no check failed; warnings pass.
    pub fn passed(&self) -> bool {
        self.checks.iter().all(|it| it.verdict != Verdict::Fail)
    }

    /// For people: a line per check, its mend on a line below.
    pub fn table(&self) -> String {
        let width = self.checks.iter().map(|it| it.what.len()).max();
        let width = width.unwrap_or(0);
        let mut out = String::new();
        for check in &self.checks {
            let verdict = match check.verdict {
                Verdict::Ok => "ok",
                Verdict::Warn => "warn",
                Verdict::Fail => "FAIL",
            };
            let _ = writeln!(out, "{verdict:<4}  {:<width$}  {}", check.what, check.found);
            if let Some(mend) = &check.mend {
                let _ = writeln!(out, "      {:<width$}  -> {mend}", "");
            }
        }
        let count = |verdict| {
            let them = self.checks.iter().filter(|it| it.verdict == verdict);
            them.count()
        };
        let _ = writeln!(
            out,
            "{} ok, {} warnings, {} failures",
            count(Verdict::Ok),
            count(Verdict::Warn),
            count(Verdict::Fail)
        );
        out
    }

    /// For programs: `{"passed": .., "checks": [{"verdict", "what", "found", "mend"}, ..]}`.
    pub fn json(&self) -> String {
        let value = serde_json::json!({ "passed": self.passed(), "checks": self.checks });
        format!("{value:#}\n")
    }
}

/// The environment of a process, by name.
pub type Environment = BTreeMap<String, String>;

/// Looks at the gateway, at sccache and at the environment of a client.
///
/// Takes at most about half a minute, when nothing answers. Never fails itself: what cannot be found out is a check
/// that did not pass.
pub fn client(args: &Args, environment: &Environment) -> Report {
    let default = format!("http://127.0.0.1:{GATEWAY_PORT}");
    let given = args
        .endpoint
        .as_ref()
        .or(environment.get("SCCACHE_WEBDAV_ENDPOINT"))
        .unwrap_or(&default);
    let endpoint = match Endpoint::parse(given) {
        Ok(endpoint) => endpoint,
        Err(error) => {
            let error = error.to_string();
            let (cause, hint) = error.split_once("\nhint: ").unwrap_or((&error, ""));
            let checks = vec![Check::fail("endpoint", cause, hint)];
            return Report { checks };
        }
    };
    let from_environment = environment.get("SCCACHE_WEBDAV_TOKEN");
    let from_environment = from_environment.filter(|it| !it.is_empty());
    let token = args
        .token
        .clone()
        .or(from_environment.map(|it| Secret::new(it)));
    let lane = environment::lane(environment);

    let mut checks = Vec::new();
    let status = probe::gateway(&endpoint, token.as_ref(), &mut checks);
    let version = probe::sccache_version(&mut checks);
    if let Some(version) = version {
        let theirs = status.sccache_version.as_deref();
        checks.extend(daemon::versions(version, theirs, lane));
    }
    checks.extend(environment::judge(environment, &endpoint));
    checks.extend(probe::files(environment));
    if version.is_some() {
        checks.push(daemon::judge(probe::stats(), lane));
    }
    Report { checks }
}

fn secret(text: &str) -> Result<Secret, std::convert::Infallible> {
    Ok(Secret::new(text))
}

#[cfg(test)]
mod tests;
