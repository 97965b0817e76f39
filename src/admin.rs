//! `status`, `healthcheck` and `restart`: questions to a running sccache-dock, and their answers on a screen.

pub mod config;
pub mod inspect;
pub mod machine;
mod policies;
pub mod purge;
pub mod sessions;

mod table;
mod watch;

use self::table::table;
use crate::base::human::bytes;
use crate::base::secret::Secret;
use crate::base::terminal::Screen;
use crate::client;
use crate::config::plan;
use crate::config::settings;
use crate::config::settings::{Installation, Settings};
use crate::contract::address;
use crate::contract::control;
use crate::contract::control::{Health, Report, Response};
use crate::contract::gateway_status::Status as CacheStatus;
use crate::contract::paths;
use crate::contract::tokens;
use crate::exit;
use crate::gateway::tls;
use crate::supervisor::state_dir;
use serde::{Deserialize, Serialize};
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use self::watch::watch;

/// The service that knows the cache.
const GATEWAY: &str = "gateway";
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
    #[error("not known: the gateway is {0}")]
    NotUp(String),
    #[error("cannot ask the gateway at {endpoint}: {cause}")]
    Gateway { endpoint: String, cause: String },
    #[error(transparent)]
    State(#[from] state_dir::Error),
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

impl Error {
    /// The same for programs; docs/commands.md lists them.
    fn code(&self) -> &'static str {
        match self {
            Error::Supervisor { .. } | Error::Doubtful { .. } | Error::Gateway { .. } => {
                "unreachable"
            }
            Error::Refused(_) | Error::NotUp(_) => "refused",
            Error::Token { .. } => "token",
            Error::Client(_) => "client",
            Error::State(_) | Error::Print(_) => "failed",
        }
    }
}

/// What `status --json` prints.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// The same as the exit code, in a word.
    pub health: Health,
    #[serde(flatten)]
    pub supervisor: Report,
    /// Missing while the gateway does not answer.
    pub cache: Option<CacheStatus>,
}

fn ask(place: &Installation, request: &str) -> Result<Response, Error> {
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
pub fn report(place: &Installation) -> Result<Report, Error> {
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
        |bound| format!("http://{}", address::loopback(bound)),
    )
}

fn agent(patience: Duration) -> ureq::Agent {
    let config = ureq::Agent::config_builder()
        .timeout_global(Some(patience))
        .http_status_as_error(true)
        .proxy(None);
    config.build().into()
}

fn cache_status(place: &Installation, report: &Report) -> Result<CacheStatus, Error> {
    let endpoint = endpoint(report);
    let fail = |cause: String| Error::Gateway {
        endpoint: endpoint.clone(),
        cause,
    };
    let token = state_dir::auth_token_at(place)?;
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
pub fn cache(place: &Installation) -> Result<CacheStatus, Error> {
    cache_status(place, &report(place)?)
}

/// Prints services and cache, as a table or as JSON. The exit code is 0 when nothing is wrong: each service is ready or
/// on its way.
///
/// # Errors
/// No supervisor answers.
pub fn status(place: &Installation, json: bool) -> Result<u8, Error> {
    let supervisor = report(place)?;
    let cache = cache_now(place, &supervisor);
    let health = supervisor.health();
    if json {
        let status = Status {
            health,
            supervisor,
            cache: cache.ok(),
        };
        machine::print(status)?;
    } else {
        let mut out = io::stdout().lock();
        let screen = Screen::of_stdout();
        out.write_all(table(screen, &supervisor, cache.as_ref()).as_bytes())?;
    }
    Ok(match health {
        Health::Ready | Health::Starting => exit::OK,
        Health::Stopping | Health::Failing => exit::FAILED,
    })
}

/// The gateway's view of the cache, unless it is clear that it does not answer yet: the supervisor holds its port, so
/// that whoever asks waits for it.
fn cache_now(place: &Installation, report: &Report) -> Result<CacheStatus, Error> {
    let gateway = report.not_ready().find(|one| one.name == GATEWAY);
    match gateway {
        Some(gateway) => Err(Error::NotUp(gateway.state.clone())),
        None => cache_status(place, report),
    }
}

/// For `HEALTHCHECK`: every service is ready and the gateway answers.
///
/// # Errors
/// No supervisor answers.
pub fn healthcheck(place: &Installation, output: machine::Output) -> Result<u8, Error> {
    let (healthy, says) = checked(&report(place)?);
    match output.json {
        true => machine::print(machine::Healthcheck { healthy, says })?,
        // Docker keeps this line: it is often all that is left to look at.
        false => writeln!(io::stdout(), "{says}")?,
    }
    Ok(if healthy { exit::OK } else { exit::FAILED })
}

fn checked(report: &Report) -> (bool, String) {
    let verdict = match report.health() {
        Health::Ready => return answers(report),
        Health::Starting => "starting",
        Health::Stopping => "stopping",
        Health::Failing => "unhealthy",
    };
    let services = report.not_ready();
    let services: Vec<String> = services
        .map(|service| match &service.trouble {
            Some(trouble) => format!("{} is {} ({trouble})", service.name, service.state),
            None => format!("{} is {}", service.name, service.state),
        })
        .collect();
    let services = match services.is_empty() {
        true => "every service is ready still".to_owned(),
        false => services.join(", "),
    };
    (false, format!("{verdict}: {services}"))
}

/// A gateway that is up but hangs is not healthy either.
fn answers(report: &Report) -> (bool, String) {
    let endpoint = endpoint(report);
    let answer = agent(PATIENCE)
        .get(format!("{endpoint}/readyz"))
        .call()
        .and_then(|mut answer| answer.body_mut().read_to_string());
    match answer {
        Ok(text) => {
            // The lines below the first say what is still to come.
            let rest = text.lines().nth(1);
            (
                true,
                rest.map_or_else(|| "healthy".to_owned(), |rest| format!("healthy, {rest}")),
            )
        }
        Err(error) => (false, format!("unhealthy: {endpoint}/readyz: {error}")),
    }
}

/// Tells the supervisor to do something: `restart SERVICE`, `stop SERVICE`, `reload`.
///
/// # Errors
/// No supervisor answers, or it refuses.
pub fn tell(place: &Installation, request: &str) -> Result<u8, Error> {
    ask(place, request)?;
    Ok(exit::OK)
}

/// Restarts every service. The supervisor stays, and with it the ports: what a restart of the whole container lets go, a
/// client's own daemon may take.
///
/// # Errors
/// No supervisor answers, or it refuses.
pub fn restart_all(place: &Installation) -> Result<u8, Error> {
    for service in report(place)?.services {
        ask(place, &format!("restart {}", service.name))?;
    }
    Ok(exit::OK)
}

/// Prints what a client needs, with the token of this sccache-dock.
///
/// # Errors
/// There is no token yet, or the arguments do not fit the lane.
pub fn client_env(
    settings: &Settings,
    args: &client::EnvArgs,
    published: &client::Published,
    json: bool,
) -> Result<u8, Error> {
    let mut args = args.clone();
    let facts = client::Facts {
        endpoint: endpoint_of_clients(settings, args.lane, published.gateway.as_deref()),
        token: Some(token(settings, &args)?),
        socket: plan::client_socket(settings),
        scheduler_port: settings
            .mode
            .schedules()
            .then(|| settings.dist.scheduler_listen.port()),
    };
    // On the host of an endpoint that was given, the scheduler has its usual port.
    if args.endpoint.is_none() && args.scheduler.is_none() {
        let address = published.scheduler.as_ref().filter(|it| !it.is_empty());
        args.scheduler = address.map(|address| format!("http://{address}"));
    }
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let args = client::write_conf(&args, &facts, home.as_deref())?;
    if json {
        machine::print(client::env_value(&args, &facts)?)?;
    } else {
        let text = client::env_text(&args, &facts)?;
        io::stdout().write_all(text.as_bytes())?;
    }
    Ok(exit::OK)
}

/// The gateway's URL for a client on this machine, or on the host of this container, which reaches it at `published`.
fn endpoint_of_clients(settings: &Settings, lane: client::Lane, published: Option<&str>) -> String {
    let address = published.filter(|it| !it.is_empty()).map_or_else(
        || {
            // The port that is really bound, where the settings leave the choice to the system.
            let bound = report(&settings.installation())
                .ok()
                .and_then(|report| report.listen.parse::<SocketAddr>().ok());
            reached_here(bound.unwrap_or(settings.listen)).to_string()
        },
        str::to_owned,
    );
    // sccache's own protocol does not support TLS, and goes no further than this machine.
    let own_protocol = matches!(lane, client::Lane::Ipc | client::Lane::Socket);
    match &settings.tls {
        Some(tls) if !own_protocol => {
            // A name that the certificate is for: clients check it.
            let name = tls::name(&tls.cert).unwrap_or_else(|| "localhost".into());
            let port = address.rsplit(':').next().unwrap_or_default();
            format!("https://{name}:{port}")
        }
        Some(_) | None => format!("http://{address}"),
    }
}

/// Where this machine reaches what listens at `bound`: on its loopback, if that is on all addresses.
fn reached_here(bound: SocketAddr) -> SocketAddr {
    let ip = match bound.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, bound.port())
}

/// Prints what to type for a first cached build.
///
/// # Errors
/// The output is closed.
pub fn next_steps(settings: &Settings, args: &client::next::Args) -> Result<u8, Error> {
    let endpoint = endpoint_of_clients(settings, client::Lane::Webdav, Some(&args.published));
    let text = args.text(
        &endpoint,
        &asked_version(&settings.sccache),
        settings.mode.schedules(),
    );
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
        "auth" => return Ok(state_dir::auth_token(settings)?),
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
    let file = tokens::read(path).map_err(|cause| missing(cause, "fix the file".into()))?;
    let tokens = file.tokens;
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
    found.token().cloned().ok_or_else(|| {
        let hint =
            "give its holder the certificate; sccache itself can present none, so it needs a token";
        missing("it is a certificate, and no token".into(), hint.into())
    })
}

/// Prints our version and that of `sccache`, the program that runs as the server.
///
/// # Errors
/// The output is closed.
pub fn version(sccache: &Path, output: machine::Output) -> io::Result<()> {
    if output.json {
        return machine::print(machine::Version {
            sccache_dock: env!("CARGO_PKG_VERSION"),
            sccache: asked_version(sccache),
        });
    }
    writeln!(
        io::stdout(),
        "sccache-dock {}\n{}",
        env!("CARGO_PKG_VERSION"),
        asked_version(sccache)
    )
}

/// What `sccache --version` says, or why it says nothing.
fn asked_version(sccache: &Path) -> String {
    let asked = std::process::Command::new(sccache)
        .arg("--version")
        .output();
    match asked {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        }
        Ok(output) => format!("{} --version: {}", sccache.display(), output.status),
        Err(error) => format!("{}: {error}", sccache.display()),
    }
}
