//! `status`, `healthcheck`, `restart` and `purge`: questions to a running sccache-dock, and their answers on a screen.

use crate::cli::exit;
use crate::client;
use crate::gateway::status::{PurgeAnswer, Status as CacheStatus};
use crate::plan::{self, paths};
use crate::settings::Settings;
use crate::state;
use crate::supervise::control::{self, Report, Response};
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Longest wait for the gateway's answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// A purge of a million blobs takes its time.
const PURGE_PATIENCE: Duration = Duration::from_secs(600);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "cannot reach the supervisor at \"{socket}\": {cause}\n\
         hint: is it running? ask with the same SCCACHE_DIR, as its user or as root", socket = socket.display()
    )]
    Supervisor { socket: PathBuf, cause: io::Error },
    #[error("the supervisor says: {0}")]
    Refused(String),
    #[error("cannot ask the gateway at {endpoint}: {cause}")]
    Gateway { endpoint: String, cause: String },
    #[error(transparent)]
    State(#[from] state::Error),
    #[error(transparent)]
    Client(#[from] client::Error),
    #[error("cannot print: {0}")]
    Print(#[from] io::Error),
}

/// What `status --json` prints.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    #[serde(flatten)]
    pub supervisor: Report,
    /// Missing while the gateway does not answer.
    pub cache: Option<CacheStatus>,
}

fn ask(settings: &Settings, request: &str) -> Result<Response, Error> {
    let socket = paths::control_socket(&settings.run_dir);
    match control::ask(&socket, request) {
        Ok(Response::Error(message)) => Err(Error::Refused(message)),
        Ok(response) => Ok(response),
        Err(cause) => Err(Error::Supervisor { socket, cause }),
    }
}

/// The supervisor's own view.
///
/// # Errors
/// No supervisor answers.
pub fn report(settings: &Settings) -> Result<Report, Error> {
    match ask(settings, "status")? {
        Response::Status(report) => Ok(report),
        Response::Done | Response::Error(_) => {
            Err(Error::Refused("an answer to another question".into()))
        }
    }
}

/// The gateway of this machine, as the supervisor bound it.
fn endpoint(report: &Report) -> String {
    let bound: Result<SocketAddr, _> = report.listen.parse();
    bound.map_or_else(
        |_| format!("http://{}", report.listen),
        |bound| format!("http://{}", plan::loopback(bound)),
    )
}

fn agent(patience: Duration) -> ureq::Agent {
    let config = ureq::Agent::config_builder()
        .timeout_global(Some(patience))
        .http_status_as_error(true)
        .proxy(None);
    config.build().into()
}

fn cache_status(settings: &Settings, report: &Report) -> Result<CacheStatus, Error> {
    let endpoint = endpoint(report);
    let fail = |cause: String| Error::Gateway {
        endpoint: endpoint.clone(),
        cause,
    };
    let token = state::auth_token(settings)?;
    let text = agent(PATIENCE)
        .get(format!("{endpoint}/api/status"))
        .header("Authorization", format!("Bearer {}", token.reveal()))
        .call()
        .and_then(|mut response| response.body_mut().read_to_string())
        .map_err(|error| fail(error.to_string()))?;
    serde_json::from_str(&text).map_err(|error| fail(error.to_string()))
}

/// The gateway's view of the cache.
///
/// # Errors
/// No supervisor or no gateway answers.
pub fn cache(settings: &Settings) -> Result<CacheStatus, Error> {
    cache_status(settings, &report(settings)?)
}

/// Prints services and cache, as a table or as JSON. The exit code is 0 when every service is ready.
///
/// # Errors
/// No supervisor answers.
pub fn status(settings: &Settings, json: bool) -> Result<u8, Error> {
    let supervisor = report(settings)?;
    let cache = cache_status(settings, &supervisor);
    let all_ready = supervisor
        .services
        .iter()
        .all(|service| service.state == "ready");
    let mut out = io::stdout().lock();
    if json {
        let status = Status {
            supervisor,
            cache: cache.ok(),
        };
        serde_json::to_writer_pretty(&mut out, &status).map_err(io::Error::from)?;
        writeln!(out)?;
    } else {
        out.write_all(table(&supervisor, cache.as_ref()).as_bytes())?;
    }
    Ok(if all_ready { exit::OK } else { exit::FAILED })
}

fn table(report: &Report, cache: Result<&CacheStatus, &Error>) -> String {
    let mut text = String::new();
    let stopping = if report.stopping { ", stopping" } else { "" };
    // Writing to a string cannot fail.
    let _ = writeln!(
        text,
        "sccache-dock {}  mode {}  on {}  up {}{stopping}\n",
        report.version,
        report.mode,
        report.listen,
        span(report.uptime_seconds)
    );
    let _ = writeln!(
        text,
        "{:<10} {:<9} {:>7} {:>9} {:>8}  LAST EXIT",
        "SERVICE", "STATE", "PID", "READY", "RESTARTS"
    );
    for service in &report.services {
        let _ = writeln!(
            text,
            "{:<10} {:<9} {:>7} {:>9} {:>8}  {}",
            service.name,
            service.state,
            service
                .pid
                .map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
            service.ready_seconds.map_or_else(|| "-".to_owned(), span),
            service.restarts,
            match (&service.last_exit, &service.last_crash) {
                (Some(exit), Some(crash)) if crash.exit == *exit => match &crash.cause {
                    Some(cause) => format!("{exit}: {cause}"),
                    None => exit.clone(),
                },
                (Some(exit), _) => exit.clone(),
                (None, _) => "-".to_owned(),
            },
        );
    }
    match cache {
        Ok(cache) => cache_table(&mut text, cache),
        Err(error) => {
            let _ = writeln!(text, "\ncache      {error}");
        }
    }
    text
}

fn cache_table(text: &mut String, cache: &CacheStatus) {
    let store = &cache.store;
    let percent = store.bytes as f64 * 100.0 / store.budget_bytes.max(1) as f64;
    let indexing = if store.indexing {
        ", still counting"
    } else {
        ""
    };
    let _ = writeln!(
        text,
        "\ncache      {} of {} ({percent:.1} %) in {} blobs{indexing}; {} evicted ({})",
        bytes(store.bytes),
        bytes(store.budget_bytes),
        store.entries,
        store.evicted_entries,
        bytes(store.evicted_bytes)
    );
    if let Some(fault) = &store.fault {
        let _ = writeln!(text, "fault      {fault}");
    }
    let names = cache.namespaces.keys().map(|name| name.chars().count());
    let width = names.max().unwrap_or(0).max(20);
    let _ = writeln!(
        text,
        "\n{:<width$} {:>9} {:>9} {:>7} {:>9} {:>10} {:>10}",
        "NAMESPACE", "HITS", "MISSES", "RATE", "WRITES", "READ", "SIZE"
    );
    for (name, namespace) in &cache.namespaces {
        let asked = namespace.hits + namespace.misses;
        let rate = match asked {
            0 => "-".to_owned(),
            _ => format!("{:.1} %", namespace.hits as f64 * 100.0 / asked as f64),
        };
        let _ = writeln!(
            text,
            "{:<width$} {:>9} {:>9} {:>7} {:>9} {:>10} {:>10}",
            name,
            namespace.hits,
            namespace.misses,
            rate,
            namespace.writes,
            bytes(namespace.bytes_read),
            bytes(namespace.bytes)
        );
    }
}

/// Bytes with a binary unit: `1.5 GiB`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = count as f64;
    let mut unit = "B";
    for larger in UNITS {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = larger;
    }
    if unit == "B" {
        format!("{count} B")
    } else {
        format!("{value:.1} {unit}")
    }
}

/// A span of time in its two largest units: `3h 12m`.
fn span(seconds: f64) -> String {
    let seconds = seconds as u64;
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {}s", seconds % 60),
        (0, _, _) => format!("{hours}h {minutes}m"),
        _ => format!("{days}d {hours}h"),
    }
}

/// For `HEALTHCHECK`: every service is ready and the gateway answers.
///
/// # Errors
/// No supervisor answers.
pub fn healthcheck(settings: &Settings) -> Result<u8, Error> {
    let report = report(settings)?;
    let mut out = io::stdout().lock();
    if let Some(service) = report
        .services
        .iter()
        .find(|service| service.state != "ready")
    {
        writeln!(out, "unhealthy: {} is {}", service.name, service.state)?;
        return Ok(exit::FAILED);
    }
    // A gateway that is up but hangs is not healthy either.
    let endpoint = endpoint(&report);
    match agent(PATIENCE).get(format!("{endpoint}/readyz")).call() {
        Ok(_) => {
            writeln!(out, "healthy")?;
            Ok(exit::OK)
        }
        Err(error) => {
            writeln!(out, "unhealthy: {endpoint}/readyz: {error}")?;
            Ok(exit::FAILED)
        }
    }
}

/// Tells the supervisor to do something: `restart SERVICE`, `stop SERVICE`, `reload`.
///
/// # Errors
/// No supervisor answers, or it refuses.
pub fn tell(settings: &Settings, request: &str) -> Result<u8, Error> {
    ask(settings, request)?;
    Ok(exit::OK)
}

/// Removes blobs: all, those of one namespace, those not used for a while.
///
/// # Errors
/// No supervisor or gateway answers.
pub fn purge(
    settings: &Settings,
    older_than: Option<Duration>,
    namespace: Option<&str>,
) -> Result<u8, Error> {
    let report = report(settings)?;
    let endpoint = endpoint(&report);
    let fail = |cause: String| Error::Gateway {
        endpoint: endpoint.clone(),
        cause,
    };
    let token = state::auth_token(settings)?;
    let body = serde_json::json!({
        // Rounded up: half a second must not become none, which matches everything.
        "older_than_seconds": older_than.map(|age| age.as_secs() + u64::from(age.subsec_nanos() > 0)),
        "namespace": namespace,
    });
    let text = agent(PURGE_PATIENCE)
        .post(format!("{endpoint}/api/purge"))
        .header("Authorization", format!("Bearer {}", token.reveal()))
        .content_type("application/json")
        .send(body.to_string())
        .and_then(|mut response| response.body_mut().read_to_string())
        .map_err(|error| fail(error.to_string()))?;
    let purged: PurgeAnswer =
        serde_json::from_str(&text).map_err(|error| fail(error.to_string()))?;
    writeln!(
        io::stdout(),
        "purged {} blobs, {}",
        purged.entries,
        bytes(purged.bytes)
    )?;
    Ok(exit::OK)
}

/// Prints what a client needs, with the token of this sccache-dock.
///
/// # Errors
/// There is no token yet, or the arguments do not fit the lane.
pub fn client_env(settings: &Settings, args: &client::EnvArgs) -> Result<u8, Error> {
    // The port that is really bound, where the settings leave the choice to the system.
    let bound = report(settings)
        .ok()
        .and_then(|report| report.listen.parse().ok());
    let facts = client::Facts {
        endpoint: format!(
            "http://127.0.0.1:{}",
            bound.unwrap_or(settings.listen).port()
        ),
        token: Some(state::auth_token(settings)?),
        socket: plan::client_socket(settings),
    };
    let text = client::env_text(args, &facts)?;
    io::stdout().write_all(text.as_bytes())?;
    Ok(exit::OK)
}

/// Prints our version and that of `sccache`, the program that runs as the server.
///
/// # Errors
/// The output is closed.
pub fn version(sccache: &Path) -> io::Result<()> {
    let asked = std::process::Command::new(sccache)
        .arg("--version")
        .output();
    let sccache = match asked {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        }
        Ok(output) => format!("{} --version: {}", sccache.display(), output.status),
        Err(error) => format!("{}: {error}", sccache.display()),
    };
    writeln!(
        io::stdout(),
        "sccache-dock {}\n{sccache}",
        env!("CARGO_PKG_VERSION")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_spans_are_short() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(10 << 30), "10.0 GiB");
        assert_eq!(span(59.9), "59s");
        assert_eq!(span(61.0), "1m 1s");
        assert_eq!(span(7_260.0), "2h 1m");
        assert_eq!(span(90_000.0), "1d 1h");
    }
}
