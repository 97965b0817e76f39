//! `doctor`: on a client, why it does not share; inside the container, what keeps it from serving.
//!
//! The judgement of a client is pure (`environment`, `daemon`: facts in, checks out); the edges (`probe`) ask the
//! gateway and run sccache, each bounded in time. It changes nothing: the write it tries is sccache's own probe
//! object, which the gateway answers from memory. `inside` looks at a sccache-dock itself.

mod certificate;
mod cluster;
pub mod connect;
mod container;
mod daemon;
mod environment;
mod http;
mod keys;
mod leftovers;
mod neighbour;
mod probe;
mod proxy;
mod results;

use crate::admin::machine;
use crate::base::mount;
use crate::base::secret::Secret;
use crate::base::terminal::{PIPE, Screen, Tint};
use crate::client::Lane;
use crate::client::endpoint::{Endpoint, GATEWAY_PORT};
use crate::client::sccache_file;
use crate::config::settings;
use crate::config::settings::{Loaded, Problems};
use crate::contract::paths;
use crate::exit;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::Path;

pub use self::container::inside;

/// Columns that a check's text and its verdict want beside the widest name.
const ROOM: usize = 40;

/// Arguments of `doctor`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// URL at which this client reaches the gateway [default: SCCACHE_WEBDAV_ENDPOINT, else http://127.0.0.1:4226]
    #[arg(long, value_name = "URL")]
    pub endpoint: Option<String>,
    /// Token for the cache [default: SCCACHE_WEBDAV_TOKEN]
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
    pub hint: Option<String>,
}

impl Check {
    /// A check that passed.
    pub fn ok(what: &str, found: impl Into<String>) -> Check {
        Check {
            verdict: Verdict::Ok,
            what: what.to_owned(),
            found: found.into(),
            hint: None,
        }
    }

    /// A check that passed with a reservation.
    pub fn warn(what: &str, found: impl Into<String>, hint: impl Into<String>) -> Check {
        Check {
            verdict: Verdict::Warn,
            hint: Some(hint.into()),
            ..Check::ok(what, found)
        }
    }

    /// A check that did not pass.
    pub fn fail(what: &str, found: impl Into<String>, hint: impl Into<String>) -> Check {
        Check {
            verdict: Verdict::Fail,
            ..Check::warn(what, found, hint)
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

    /// For people, in a file.
    pub fn table(&self) -> String {
        self.shown(PIPE)
    }

    /// For people: a line per check, its hint on a line below.
    fn shown(&self, screen: Screen) -> String {
        let widest = self.checks.iter().map(|it| it.what.len()).max();
        let widest = widest.unwrap_or(0);
        // Where that leaves too little room beside it, the text goes below the name.
        let is_narrow = screen.width.is_some_and(|columns| columns < widest + ROOM);
        let mut out = String::new();
        for check in &self.checks {
            let (tint, verdict) = match check.verdict {
                Verdict::Ok => (Tint::Good, "ok"),
                Verdict::Warn => (Tint::Doubtful, "warn"),
                Verdict::Fail => (Tint::Bad, "FAIL"),
            };
            let verdict = format!("{verdict:<4}");
            let (what, found) = (&check.what, &check.found);
            let below = if is_narrow {
                screen.hang(&mut out, tint, &verdict, "  ", what);
                screen.hang(&mut out, Tint::Plain, "", "      ", found);
                "      -> ".to_owned()
            } else {
                let lead = format!("  {what:<widest$}  ");
                screen.hang(&mut out, tint, &verdict, &lead, found);
                format!("      {:<widest$}  -> ", "")
            };
            if let Some(hint) = &check.hint {
                screen.hang(&mut out, Tint::Plain, "", &below, hint);
            }
        }
        let count = |verdict| {
            let them = self.checks.iter().filter(|it| it.verdict == verdict);
            them.count()
        };
        let _ = writeln!(
            out,
            "{} ok, {}, {}",
            count(Verdict::Ok),
            counted(count(Verdict::Warn), "warning"),
            counted(count(Verdict::Fail), "failure")
        );
        out
    }

    /// For programs: `{"schema": .., "passed": .., "checks": [{"verdict", "what", "found", "hint"}, ..]}`.
    pub fn json(&self) -> String {
        let schema = machine::SCHEMA;
        let value =
            serde_json::json!({ "schema": schema, "passed": self.passed(), "checks": self.checks });
        format!("{value:#}\n")
    }
}

fn counted(number: usize, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {what}{plural}")
}

/// Looks and prints. Without `--endpoint` it looks at a sccache-dock, where this is a container of ours or a
/// supervisor runs on the folder that is set; else at a client. The exit code is 0 when nothing failed.
///
/// # Errors
/// The output is closed.
pub fn run(args: &Args) -> io::Result<u8> {
    let loaded = settings::load();
    let report = if args.endpoint.is_none() && is_ours(&loaded) {
        inside(loaded)
    } else {
        client(args, &crate::client::environment())
    };
    let text = if args.json {
        report.json()
    } else {
        report.shown(Screen::of_stdout())
    };
    io::stdout().write_all(text.as_bytes())?;
    Ok(if report.passed() {
        exit::OK
    } else {
        exit::FAILED
    })
}

fn is_ours(loaded: &Result<Loaded, Problems>) -> bool {
    let in_container = mount::in_container() && std::env::var_os("MODE").is_some();
    let supervised = |loaded: &Loaded| paths::control_socket(&loaded.settings.run_dir).exists();
    in_container || loaded.as_ref().is_ok_and(supervised)
}

/// The environment of a process, by name.
pub type Environment = BTreeMap<String, String>;

/// Looks at the gateway, at sccache and at the environment of a client.
///
/// Takes at most about half a minute, when nothing answers. Never fails itself: what cannot be found out is a check
/// that did not pass.
pub fn client(args: &Args, environment: &Environment) -> Report {
    let cargo = probe::cargo(environment);
    let from_files = environment::cargo_files(&cargo, environment);
    let environment = &cargo.over(environment);
    let conf = sccache_file::load(environment);
    // What sccache makes of both.
    let seen = &conf
        .as_ref()
        .map_or_else(|| environment.clone(), |conf| conf.under(environment));
    let default = format!("http://127.0.0.1:{GATEWAY_PORT}");
    let given = args
        .endpoint
        .as_ref()
        .or(seen.get("SCCACHE_WEBDAV_ENDPOINT"));
    let given = given.unwrap_or(&default);
    let endpoint = match Endpoint::parse(given) {
        Ok(endpoint) => endpoint,
        Err(error) => {
            let error = error.to_string();
            let (cause, hint) = error.split_once("\nhint: ").unwrap_or((&error, ""));
            let checks = vec![Check::fail("endpoint", cause, hint)];
            return Report { checks };
        }
    };
    let set = |name: &str| seen.get(name).filter(|it| !it.is_empty());
    // The cache takes a password for the token.
    let set = set("SCCACHE_WEBDAV_TOKEN").or_else(|| set("SCCACHE_WEBDAV_PASSWORD"));
    let token = args.token.clone().or(set.map(|it| Secret::new(it)));
    let scheduler = conf.as_ref().and_then(|it| it.scheduler.as_deref());
    let lane = environment::lane(seen, scheduler);

    let mut checks = Vec::new();
    let prefix = seen.get("SCCACHE_WEBDAV_KEY_PREFIX");
    let place = probe::Place::look(endpoint, prefix, lane, environment, &mut checks);
    let status = probe::gateway(&place, token.as_ref(), &mut checks);
    certificate::judge(&place, environment, &mut checks);
    let endpoint = place.endpoint;
    if let (Some(conf), Some(url), Some(Lane::Dist)) = (&conf, scheduler, lane) {
        cluster::examine(conf, url, status.dist.as_ref(), environment, &mut checks);
    }
    let version = probe::sccache_version(Path::new("sccache"), &mut checks);
    if let Some(version) = version {
        let theirs = status.sccache_version.as_deref();
        checks.extend(daemon::versions(version, theirs, lane));
    }
    checks.extend(from_files);
    checks.extend(environment::judge(seen, &endpoint, lane));
    checks.extend(leftovers::judge(environment, conf.as_ref(), lane));
    let in_conf = conf.as_ref().is_some_and(|it| it.has_basedirs);
    checks.extend(environment::basedirs(seen, in_conf, version, lane));
    checks.extend(results::judge(seen, &cargo, lane));
    let parted = results::parted(seen, &cargo);
    let place = keys::Paths::look(environment);
    checks.extend(keys::judge(
        place.as_ref(),
        seen,
        &cargo,
        conf.as_ref(),
        lane,
    ));
    // Also in a file of cargo's own, as it differs between machines.
    checks.retain(|it| !parted.contains(&it.what.strip_prefix("env.").unwrap_or(&it.what)));
    checks.extend(probe::files(environment, conf.as_ref(), lane));
    checks.extend(neighbour::judge(environment, lane));
    if version.is_some() {
        let stats = probe::stats(environment);
        checks.push(daemon::judge(&stats, lane));
        // Asking sccache for more would start a daemon where none runs.
        let by_relay = status.dist.as_ref().is_some_and(|it| it.relay.is_some());
        if lane == Some(Lane::Dist)
            && let Some(check) = daemon::distributed(&stats, by_relay)
        {
            checks.extend([probe::dist_status(environment), check]);
        }
    }
    Report { checks }
}

fn secret(text: &str) -> Result<Secret, std::convert::Infallible> {
    Ok(Secret::new(text))
}

#[cfg(test)]
mod tests;
