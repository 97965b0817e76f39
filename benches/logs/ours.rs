//! Our side of the comparison: the loop of `sccache-dock run`, with the bench's children in the place of its services.

use crate::CHILDREN;
use sccache_dock::base::secret::Secret;
use sccache_dock::config::plan::Facts;
use sccache_dock::config::settings;
use sccache_dock::config::settings::Settings;
use sccache_dock::contract::service::Rules;
use sccache_dock::contract::service::{Plan, ReadyBy, Service, StopBy};
use sccache_dock::supervisor;
use std::process::{Command, ExitCode};
use std::time::Duration;

/// As the tags of the other tools.
const NAMES: [&str; CHILDREN] = ["child0", "child1", "child2", "child3"];

/// A command that supervises the children until it is told to stop.
pub(crate) fn command(format: &str, writer: &[String], dir: &std::path::Path) -> Command {
    let mut command = Command::new(&writer[0]);
    command.arg("ours").args(&writer[1..]).env_clear();
    command
        .env("SCCACHE_DIR", dir.join("state"))
        .env("SCCACHE_LISTEN", "127.0.0.1:0")
        // It has to be a program; no child is one of sccache.
        .env("SCCACHE_BINARY", &writer[0])
        .env("SCCACHE_LOG_FORMAT", format);
    command
}

/// Runs it, in the process of that command.
pub(crate) fn supervise() -> ExitCode {
    let code = supervisor::run_plan(settings::load().unwrap(), plan).unwrap();
    ExitCode::from(code)
}

#[expect(
    clippy::unnecessary_wraps,
    reason = "a planner may fail, this one does not"
)]
fn plan(_settings: &Settings, facts: &Facts) -> Result<Plan, toml::ser::Error> {
    let writer: Vec<String> = std::env::args().skip(2).collect();
    let service = |(number, name): (usize, &&'static str)| Service {
        name,
        program: std::env::current_exe().unwrap(),
        args: writer.iter().cloned().chain([number.to_string()]).collect(),
        env: Vec::new(),
        ready_by: ReadyBy::Spawn,
        keeps_root: false,
        stop_by: StopBy::Term,
        files: Vec::new(),
        rules: Rules {
            depends_on: Vec::new(),
            ready_timeout: Duration::from_secs(10),
            grace: Duration::from_secs(10),
            fatal_codes: &[],
        },
    };
    // Two secrets, as a real plan has them.
    let reader = Secret::new("mB2xkWq8RZ1nT5vJ0cLdYh7PfGsA3uEo");
    Ok(Plan {
        services: NAMES.iter().enumerate().map(service).collect(),
        secrets: vec![facts.auth_token.clone(), reader],
    })
}
