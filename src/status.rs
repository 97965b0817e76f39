//! `status`, `healthcheck` and `restart`: questions to a running sccache-dock, and their answers on a screen.

mod policies;
pub mod purge;

use crate::cli::exit;
use crate::client;
use crate::gateway::status::{BuilderState, DistStatus, Status as CacheStatus};
use crate::gateway::{files, tls};
use crate::plan::{self, paths};
use crate::secret::Secret;
use crate::settings::{self, Place, Settings};
use crate::state;
use crate::supervise::control::{self, Report, Response, ServiceReport};
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Longest wait for the gateway's answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "cannot reach the supervisor at \"{socket}\": {cause}\n\
         hint: is it running? ask with the same SCCACHE_DIR, as its user or as root", socket = socket.display()
    )]
    Supervisor { socket: PathBuf, cause: io::Error },
    #[error("{problems}\nerror: {at}")]
    Doubtful {
        at: Box<Error>,
        problems: settings::Problems,
    },
    #[error("the supervisor says: {0}")]
    Refused(String),
    #[error("cannot ask the gateway at {endpoint}: {cause}")]
    Gateway { endpoint: String, cause: String },
    #[error(transparent)]
    State(#[from] state::Error),
    #[error(transparent)]
    Client(#[from] client::Error),
    #[error("cannot find the token \"{name}\": {cause}\nhint: {hint}")]
    Token {
        name: String,
        cause: String,
        hint: String,
    },
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

fn ask(place: &Place, request: &str) -> Result<Response, Error> {
    let socket = paths::control_socket(&place.run_dir);
    match control::ask(&socket, request) {
        Ok(Response::Error(message)) => Err(Error::Refused(message)),
        Ok(response) => Ok(response),
        Err(cause) => {
            let error = Error::Supervisor { socket, cause };
            // With settings that hold, it might have been found elsewhere.
            Err(match place.doubts.clone() {
                Some(problems) => Error::Doubtful {
                    at: Box::new(error),
                    problems,
                },
                None => error,
            })
        }
    }
}

/// The supervisor's own view.
///
/// # Errors
/// No supervisor answers.
pub fn report(place: &Place) -> Result<Report, Error> {
    match ask(place, "status")? {
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

fn cache_status(place: &Place, report: &Report) -> Result<CacheStatus, Error> {
    let endpoint = endpoint(report);
    let fail = |cause: String| Error::Gateway {
        endpoint: endpoint.clone(),
        cause,
    };
    let token = state::auth_token_at(place)?;
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
pub fn cache(place: &Place) -> Result<CacheStatus, Error> {
    cache_status(place, &report(place)?)
}

/// Prints services and cache, as a table or as JSON. The exit code is 0 when every service is ready.
///
/// # Errors
/// No supervisor answers.
pub fn status(place: &Place, json: bool) -> Result<u8, Error> {
    let supervisor = report(place)?;
    let cache = cache_status(place, &supervisor);
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
            last_exit(service),
        );
    }
    match cache {
        Ok(cache) => {
            cache_table(&mut text, cache);
            if let Some(dist) = &cache.dist {
                dist_table(&mut text, dist);
            }
            token_table(&mut text, cache);
        }
        Err(error) => {
            let _ = writeln!(text, "\ncache      {error}");
        }
    }
    text
}

/// How it ended last, what stands behind that, and how long it has been failing.
fn last_exit(service: &ServiceReport) -> String {
    let mut text = service.last_exit.clone().unwrap_or_else(|| "-".to_owned());
    if let Some(crash) = &service.last_crash
        && service.last_exit.as_ref() == Some(&crash.exit)
        && let Some(cause) = &crash.cause
    {
        let _ = write!(text, ": {cause}");
    }
    if let Some(trouble) = &service.trouble {
        let _ = write!(text, " ({trouble})");
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
    policies::lines(text, cache);
    if let Some(upstream) = &cache.upstream {
        let state = match (upstream.available, &upstream.last_error) {
            (true, _) => "answers".to_owned(),
            (false, Some(error)) => format!("is left alone: {error}"),
            (false, None) => "is left alone".to_owned(),
        };
        let _ = writeln!(
            text,
            "upstream   {} {state}; {} hits, {} misses, {} passed on, {} waiting",
            upstream.name, upstream.hits, upstream.misses, upstream.uploaded, upstream.queued
        );
    }
    let tls = cache.tls.as_ref().and_then(|tls| tls.fault.as_ref());
    for fault in cache.tokens.fault.iter().chain(tls) {
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
            "{:<width$} {:>9} {:>9} {:>7} {:>9} {:>10} {:>10}{}",
            name,
            namespace.hits,
            namespace.misses,
            rate,
            namespace.writes,
            bytes(namespace.bytes_read),
            bytes(namespace.bytes),
            policies::of_namespace(namespace)
        );
    }
}

fn token_table(text: &mut String, cache: &CacheStatus) {
    let tokens = &cache.tokens.by_name;
    let width = tokens.keys().map(String::len).max().unwrap_or(0).max(20);
    let _ = writeln!(
        text,
        "\n{:<width$} {:>9} {:>9} {:>9} {:>9} {:>10} {:>10}",
        "TOKEN", "REQUESTS", "HITS", "MISSES", "REFUSED", "READ", "WRITTEN"
    );
    for (name, token) in tokens {
        let _ = writeln!(
            text,
            "{:<width$} {:>9} {:>9} {:>9} {:>9} {:>10} {:>10}",
            name,
            token.requests,
            token.hits,
            token.misses,
            token.refusals,
            bytes(token.bytes_sent),
            bytes(token.bytes_received)
        );
    }
}

fn dist_table(text: &mut String, dist: &DistStatus) {
    let scheduler = if dist.scheduler_up {
        "answers"
    } else {
        "does not answer"
    };
    let builders = dist.builders.iter();
    let there = builders.filter(|one| one.state != BuilderState::Lost);
    let (slots, jobs) = there.fold((0, 0), |(slots, jobs), one| {
        (slots + one.slots, jobs + one.jobs)
    });
    let asked = dist.allocations.iter();
    let asked: Vec<String> = asked
        .map(|(outcome, count)| format!("{count} {}", outcome.replace('_', " ")))
        .collect();
    let asked = if asked.is_empty() {
        "none yet".to_owned()
    } else {
        asked.join(", ")
    };
    let _ = writeln!(
        text,
        "\nscheduler  {scheduler}; {jobs} jobs on {slots} slots; asked for a builder: {asked}"
    );
    let _ = writeln!(
        text,
        "\n{:<24} {:<9} {:>5} {:>5} {:>8} {:>7} {:>9}",
        "BUILDER", "STATE", "SLOTS", "JOBS", "DONE", "FAILED", "LAST SIGN"
    );
    for builder in &dist.builders {
        let mark = if builder.local { " (here)" } else { "" };
        let state = match builder.state {
            BuilderState::Ready => "ready",
            BuilderState::Preparing => "preparing",
            BuilderState::Leaving => "leaving",
            BuilderState::Lost => "lost",
        };
        let _ = writeln!(
            text,
            "{:<24} {:<9} {:>5} {:>5} {:>8} {:>7} {:>9}",
            format!("{}{mark}", builder.address),
            state,
            builder.slots,
            builder.jobs,
            builder.done,
            builder.failed,
            span(builder.last_sign_seconds as f64)
        );
    }
    for (limit, count) in &dist.local_jobs.limits {
        let _ = writeln!(
            text,
            "limit      {count} jobs here went over their limit of {limit}"
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
pub fn healthcheck(place: &Place) -> Result<u8, Error> {
    let report = report(place)?;
    let mut out = io::stdout().lock();
    if let Some(service) = report
        .services
        .iter()
        .find(|service| service.state != "ready")
    {
        let (name, state) = (&service.name, &service.state);
        // Docker keeps this line: it is often all that is left to look at.
        match &service.trouble {
            Some(trouble) => writeln!(out, "unhealthy: {name} is {state} ({trouble})")?,
            None => writeln!(out, "unhealthy: {name} is {state}")?,
        }
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
pub fn tell(place: &Place, request: &str) -> Result<u8, Error> {
    ask(place, request)?;
    Ok(exit::OK)
}

/// Prints what a client needs, with the token of this sccache-dock.
///
/// # Errors
/// There is no token yet, or the arguments do not fit the lane.
pub fn client_env(settings: &Settings, args: &client::EnvArgs) -> Result<u8, Error> {
    // The port that is really bound, where the settings leave the choice to the system.
    let bound = report(&settings.place())
        .ok()
        .and_then(|report| report.listen.parse().ok());
    // sccache's own protocol knows no TLS, and goes no further than this machine.
    let own_protocol = matches!(args.lane, client::Lane::Ipc | client::Lane::Socket);
    let (scheme, host) = match &settings.tls {
        // A name that the certificate is for: clients check it.
        Some(tls) if !own_protocol => (
            "https",
            tls::name(&tls.cert).unwrap_or_else(|| "localhost".into()),
        ),
        Some(_) | None => ("http", "127.0.0.1".to_owned()),
    };
    let facts = client::Facts {
        endpoint: format!(
            "{scheme}://{host}:{}",
            bound.unwrap_or(settings.listen).port()
        ),
        token: Some(token(settings, args)?),
        socket: plan::client_socket(settings),
        scheduler_port: settings
            .mode
            .schedules()
            .then(|| settings.dist.scheduler_listen.port()),
    };
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let args = client::write_conf(args, &facts, home.as_deref())?;
    let text = client::env_text(&args, &facts)?;
    io::stdout().write_all(text.as_bytes())?;
    Ok(exit::OK)
}

/// The token whose name was asked for.
fn token(settings: &Settings, args: &client::EnvArgs) -> Result<Secret, Error> {
    let name = args.token_name.as_str();
    let missing = |cause: String, hint: String| Error::Token {
        name: name.to_owned(),
        cause,
        hint,
    };
    match name {
        "auth" => return Ok(state::auth_token(settings)?),
        "read" => {
            let hint = || "set SCCACHE_READ_TOKEN to have one".to_owned();
            let token = settings.read_token.clone();
            return token.ok_or_else(|| missing("none is set".into(), hint()));
        }
        _ => {}
    }
    let Some(path) = &settings.tokens_file else {
        let hint = "without SCCACHE_TOKENS_FILE there are only \"auth\" and \"read\"";
        return Err(missing("there is no file of tokens".into(), hint.into()));
    };
    let tokens =
        files::read_tokens(path).map_err(|cause| missing(cause, "mend the file".into()))?;
    let Some(found) = tokens.iter().find(|token| token.name == name) else {
        let names: Vec<&str> = tokens.iter().map(|token| token.name.as_str()).collect();
        let hint = format!("the file has: {}", names.join(", "));
        return Err(missing(
            format!("it is not in \"{}\"", path.display()),
            hint,
        ));
    };
    if let (Some(allowed), None) = (&found.namespaces, &args.namespace)
        && !allowed.iter().any(|one| one == "default")
    {
        let hint = format!("add --namespace {}", allowed[0]);
        return Err(missing("it is good for some namespaces only".into(), hint));
    }
    Ok(found.token.clone())
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
    fn builders_are_a_table() {
        let builder = |state, port| crate::gateway::status::BuilderStatus {
            address: SocketAddr::from(([10, 0, 0, 7], port)),
            local: port == 10501,
            state,
            slots: 8,
            jobs: 3,
            done: 40,
            failed: 1,
            last_sign_seconds: 12,
        };
        let dist = DistStatus {
            scheduler_up: true,
            scheduler_outages: 0,
            replayed_heartbeats: 0,
            allocations: [("assigned".to_owned(), 44), ("no_capacity".to_owned(), 2)].into(),
            builders: vec![
                builder(BuilderState::Ready, 10501),
                builder(BuilderState::Lost, 10502),
            ],
            local_jobs: Default::default(),
        };
        let mut text = String::new();
        dist_table(&mut text, &dist);
        let expected = "\n\
            scheduler  answers; 3 jobs on 8 slots; asked for a builder: 44 assigned, 2 no capacity\n\
            \n\
            BUILDER                  STATE     SLOTS  JOBS     DONE  FAILED LAST SIGN\n\
            10.0.0.7:10501 (here)    ready         8     3       40       1       12s\n\
            10.0.0.7:10502           lost          8     3       40       1       12s\n";
        assert_eq!(text, expected);
    }

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
