//! The edges of the doctor: asks the gateway, runs sccache, looks at files. Each step is bounded in time.

use super::cluster::{self, Cluster};
use super::connect::connect;
use super::daemon::Stats;
use super::http::{Http, refused_certificate};
use super::proxy;
use super::{Check, Environment};
use crate::base::human;
use crate::base::regular_file;
use crate::base::secret::Secret;
use crate::client::cargo_config;
use crate::client::conf::MARK;
use crate::client::endpoint::Endpoint;
use crate::client::proxy::Between;
use crate::client::run::{Ended, Running};
use crate::client::sccache_file::{self, Conf};
use crate::client::{Lane, SOCKET_PATH_MAX, tls};
use crate::contract::sccache::Version;
use nix::sys::statvfs::statvfs;
use nix::unistd::{AccessFlags, access};
use serde::Deserialize;
use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const RUN_TIMEOUT: Duration = Duration::from_secs(10);
/// What sccache writes to see whether it may, on the path that it uses.
const PROBE_PATH: &str = "/.sccache_check";
pub(super) const PROBE_TEXT: &str = "Hello, World!";

/// What is found of a client without a token that needs one.
pub(super) const NO_TOKEN: &str = "none, and one is needed (401)";

/// What the gateway says about its container.
#[derive(Default, Deserialize)]
pub(super) struct Status {
    pub(super) sccache_version: Option<String>,
    pub(super) dist: Option<Cluster>,
}

/// Where a client's entries are.
pub(super) struct Place {
    pub(super) endpoint: Endpoint,
    /// The namespace, empty or such as `team/x`.
    pub(super) folder: String,
    /// The proxy that leads there.
    pub(super) between: Option<Between>,
}

impl Place {
    /// Finds the proxy, and says what becomes of requests there.
    pub(super) fn look(
        endpoint: Endpoint,
        prefix: Option<&String>,
        lane: Option<Lane>,
        environment: &Environment,
        checks: &mut Vec<Check>,
    ) -> Place {
        let pages: Vec<String> = bases(&endpoint)
            .map(|base| format!("{base}/healthz"))
            .collect();
        let between = match lane {
            Some(Lane::Webdav | Lane::Dist) => proxy::judge(environment, &endpoint, &pages, checks),
            // Sccache's own protocol knows no proxies.
            Some(Lane::Ipc | Lane::Socket) | None => None,
        };
        // As sccache writes it.
        let names = prefix
            .map_or("", String::as_str)
            .split('/')
            .filter(|name| !name.is_empty());
        Place {
            endpoint,
            folder: names.collect::<Vec<_>>().join("/"),
            between,
        }
    }

    fn http<'a>(&self, base: &str, token: Option<&'a Secret>, is_direct: bool) -> Http<'a> {
        let proxy = self.between.as_ref().filter(|_| !is_direct);
        Http::with(
            base,
            token,
            tls::anonymous(),
            proxy.and_then(Between::for_agent),
        )
    }

    /// What sccache reads and writes first.
    pub(super) fn probe(&self) -> String {
        match self.folder.as_str() {
            "" => PROBE_PATH.to_owned(),
            folder => format!("/{folder}{PROBE_PATH}"),
        }
    }
}

/// Where the gateway's own pages may be: where a reverse proxy serves it below a path, and at its root, whatever folder
/// the endpoint names.
fn bases(endpoint: &Endpoint) -> impl Iterator<Item = String> {
    let root = endpoint.with_port(endpoint.port);
    let below = endpoint.has_path().then(|| endpoint.url.clone());
    below.into_iter().chain([root])
}

/// Reaches the gateway, and tries what a client does there.
pub(super) fn gateway(place: &Place, token: Option<&Secret>, checks: &mut Vec<Check>) -> Status {
    let endpoint = &place.endpoint;
    let is_direct = connect("connection", endpoint, checks);
    if !is_direct {
        let Some(between) = &place.between else {
            return Status::default();
        };
        checks.pop();
        let found = format!("only through the proxy that {} names", between.variable);
        checks.push(Check::ok("connection", found));
    }
    let mut last = None;
    for base in bases(endpoint) {
        let http = place.http(&base, token, is_direct);
        match http.get("/healthz") {
            Ok(answer) if answer.code == 200 => {
                let status = identify(&http, endpoint, checks);
                if status.is_some() {
                    let http = place.http(&endpoint.url, token, is_direct);
                    rights(&http, &place.probe(), &place.folder, checks);
                }
                return status.unwrap_or_default();
            }
            answer => last = Some(answer),
        }
    }
    let check = match last {
        Some(Ok(answer)) => other_scheme(endpoint).unwrap_or_else(|| {
            let found = format!("{} answers {} to /healthz", endpoint.url, answer.code);
            let hint = "this is another server, or a proxy whose server is away: check the endpoint and the container";
            Check::fail("gateway", found, hint)
        }),
        Some(Err(error)) => refused_certificate(&error, endpoint)
            .or_else(|| other_scheme(endpoint))
            .unwrap_or_else(|| silent(endpoint, &error)),
        None => return Status::default(),
    };
    checks.push(check);
    Status::default()
}

/// Says so, if the server speaks the other one of HTTP and HTTPS. No token is sent.
fn other_scheme(endpoint: &Endpoint) -> Option<Check> {
    let (says, speaks) = match endpoint.tls {
        true => ("https", "HTTP, and no TLS"),
        false => ("http", "HTTPS"),
    };
    let other = Endpoint::parse(&endpoint.with_other_scheme()).ok()?;
    match Http::new(&other.url, None).get("/healthz") {
        Ok(answer) if answer.code == 200 => {}
        Err(error) if refused_certificate(&error, &other).is_some() => {}
        Ok(_) | Err(_) => return None,
    }
    let found = format!(
        "the endpoint says {says}, but {} speaks {speaks}",
        endpoint.place()
    );
    let hint = match endpoint.tls {
        true => format!(
            "use {}, or give the cache a certificate: SCCACHE_TLS_CERT",
            other.url
        ),
        false => format!("use {}, with a name that is in its certificate", other.url),
    };
    Some(Check::fail("gateway", found, hint))
}

fn silent(endpoint: &Endpoint, error: &ureq::Error) -> Check {
    let (what, hint) = match endpoint.tls {
        true => (
            "HTTPS",
            "check the endpoint, and on the cache's host SCCACHE_TLS_CERT and its log",
        ),
        false => (
            "HTTP",
            "another service is there, perhaps an sccache daemon of this host: sccache --stop-server",
        ),
    };
    let found = format!("{} does not speak {what}: {error}", endpoint.url);
    Check::fail("gateway", found, hint)
}

/// Whether it is ours; then its status, as far as the token lets us see it.
fn identify(http: &Http, endpoint: &Endpoint, checks: &mut Vec<Check>) -> Option<Status> {
    #[derive(Deserialize)]
    struct Ours {
        version: String,
        #[serde(rename = "store")]
        _store: serde::de::IgnoredAny,
        #[serde(flatten)]
        status: Status,
    }
    let stranger = |found: String| {
        let hint = "check the endpoint: clients would send their token to it";
        Check::fail("gateway", found, hint)
    };
    match http.get("/api/status") {
        Ok(answer) if answer.code == 200 => match serde_json::from_str::<Ours>(&answer.body) {
            Ok(ours) => {
                let found = format!("sccache-dock {} at {}", ours.version, endpoint.url);
                checks.push(Check::ok("gateway", found));
                Some(ours.status)
            }
            Err(_) => {
                checks.push(stranger(format!("{} is no sccache-dock", endpoint.url)));
                None
            }
        },
        Ok(answer) if answer.is_our_refusal() => {
            checks.push(Check::ok(
                "gateway",
                format!("sccache-dock at {}", endpoint.url),
            ));
            Some(Status::default())
        }
        Ok(answer) => {
            let found = format!(
                "{} is no sccache-dock: it answers {} to /api/status",
                endpoint.url, answer.code
            );
            checks.push(stranger(found));
            None
        }
        Err(error) => {
            checks.push(stranger(format!(
                "{} does not answer /api/status: {error}",
                endpoint.url
            )));
            None
        }
    }
}

/// Reads and writes as a client does when it starts, and where it does.
fn rights(http: &Http, probe: &str, folder: &str, checks: &mut Vec<Check>) {
    let place = match folder {
        "" => String::new(),
        folder => format!(" in {folder}"),
    };
    let token_mend = "take the token from sccache-dock client-env on the gateway's host";
    match http.get(probe) {
        Ok(answer) if [200, 404].contains(&answer.code) => {
            let found = if http.token.is_some() {
                "may read"
            } else {
                "none, and none needed to read"
            };
            checks.push(Check::ok("token", format!("{found}{place}")));
        }
        Ok(answer) if answer.code == 401 => {
            let found = if http.token.is_some() {
                "wrong (401)"
            } else {
                NO_TOKEN
            };
            checks.push(Check::fail("token", found, token_mend));
            return;
        }
        Ok(answer) if answer.code == 403 => {
            checks.push(Check::fail(
                "token",
                format!("may not read{place} (403)"),
                token_mend,
            ));
            return;
        }
        Ok(answer) if answer.code == 429 => {
            let found = "wrong, and so were too many that came from this address (429)";
            let hint = format!(
                "{token_mend}: the right one is served at once; others here may still send an old one"
            );
            checks.push(Check::fail("token", found, hint));
            return;
        }
        Ok(answer) => {
            let found = format!("reading answers {}", answer.code);
            checks.push(Check::fail("token", found, "look at the container's log"));
            return;
        }
        Err(error) => {
            checks.push(Check::fail(
                "token",
                format!("reading fails: {error}"),
                "look at the container's log",
            ));
            return;
        }
    }
    let log = "look at the container's log and at sccache-dock status";
    checks.push(match http.put(probe, PROBE_TEXT) {
        Ok(200 | 201 | 204) => Check::ok("writes", format!("allowed{place}")),
        Ok(401 | 403) => Check::warn(
            "writes",
            format!("not allowed{place}: this client only reads"),
            "use the token for reading and writing, unless that is meant",
        ),
        Ok(507) => Check::fail(
            "writes",
            "refused: no space (507)",
            "free space on the disk of the cache",
        ),
        Ok(code) => Check::fail("writes", format!("refused ({code})"), log),
        Err(error) => Check::fail("writes", format!("fail: {error}"), log),
    });
}

/// The version of `sccache`, a name on the PATH or a path.
pub(super) fn sccache_version(sccache: &Path, checks: &mut Vec<Check>) -> Option<Version> {
    let failed = |found: &str, hint: &str| Some(Check::fail("sccache", found, hint));
    let mut version = None;
    let check = match run(sccache, &["--version"]) {
        Ok(Ended::Well(text) | Ended::Badly(text)) => {
            version = Version::parse(&text);
            match version {
                Some(_) => None,
                None => failed(
                    "sccache --version prints no version",
                    "put the real sccache first on the PATH",
                ),
            }
        }
        Ok(Ended::Late) => failed(
            "sccache --version does not end",
            "put the real sccache first on the PATH",
        ),
        Err(error) if error.kind() == ErrorKind::NotFound => failed(
            "not on the PATH",
            "install it, for example with sccache-docker-manage.sh install-client",
        ),
        Err(error) => failed(
            &format!("cannot run sccache: {error}"),
            "check the file's permissions",
        ),
    };
    checks.extend(check);
    version
}

/// What the daemon of this client says about itself; starts none.
pub(super) fn stats(environment: &Environment) -> Stats {
    let arguments = ["--show-stats", "--stats-format", "json"];
    match run_in(environment, &arguments) {
        Ok(Ended::Well(text)) => Stats::Text(text),
        Ok(Ended::Badly(complaint)) => Stats::Failed(complaint),
        Ok(Ended::Late) => Stats::Silent,
        Err(error) => Stats::Failed(format!("cannot run sccache: {error}")),
    }
}

fn run(sccache: &Path, arguments: &[&str]) -> std::io::Result<Ended> {
    Running::start(Command::new(sccache).args(arguments), RUN_TIMEOUT)?.end()
}

/// The client's sccache, with the address that cargo's files give to it.
fn run_in(environment: &Environment, arguments: &[&str]) -> std::io::Result<Ended> {
    let ours = environment
        .iter()
        .filter(|(name, _)| name.starts_with("SCCACHE_"));
    let mut command = Command::new("sccache");
    Running::start(command.args(arguments).envs(ours), RUN_TIMEOUT)?.end()
}

/// What the daemon of this client says about the cluster; there is one.
pub(super) fn dist_status(environment: &Environment) -> Check {
    match run_in(environment, &["--dist-status"]) {
        Ok(Ended::Well(text)) => cluster::judge_daemon(&text),
        Ok(Ended::Badly(complaint)) => cluster::judge_daemon(&complaint),
        Ok(Ended::Late) => {
            cluster::judge_daemon("{\"NotConnected\": [null, \"it does not answer\"]}")
        }
        Err(error) => Check::fail(
            "daemon's cluster",
            format!("cannot run sccache: {error}"),
            "check the file's permissions",
        ),
    }
}

/// What cargo's files say in the current folder.
pub(super) fn cargo(environment: &Environment) -> cargo_config::Config {
    let home = cargo_config::home(environment);
    match std::env::current_dir() {
        Ok(folder) => cargo_config::Config::load(&folder, home.as_deref()),
        Err(_) => cargo_config::Config::default(),
    }
}

/// Files that decide whether the client works: the folder of its socket, sccache's config file.
pub(super) fn files(
    environment: &Environment,
    conf: Option<&Conf>,
    lane: Option<Lane>,
) -> Vec<Check> {
    let mut checks = Vec::new();
    let set = |name: &str| environment.get(name).filter(|it| !it.is_empty());
    if let Some(folder) = set("SCCACHE_SERVER_UDS").and_then(|it| Path::new(it).parent())
        && folder.is_absolute()
        && !folder.is_dir()
    {
        let found = format!(
            "its folder {} does not exist: sccache cannot start its daemon",
            folder.display()
        );
        let hint = format!("mkdir -p {}", folder.display());
        checks.push(Check::fail("SCCACHE_SERVER_UDS", found, hint));
    }
    checks.extend(temporary(environment));
    checks.extend(own_level(environment));
    checks.extend(passed_over(environment));
    let what = "config file";
    match (conf, sccache_file::path(environment)) {
        (Some(conf), _) => checks.extend(judge_config(conf, environment, lane)),
        (None, Some(path)) if path.exists() => {
            let path = path.display();
            let found = format!("{path} is not TOML, or cannot be read: sccache refuses to run");
            checks.push(Check::fail(what, found, "fix it, or move it away"));
        }
        (None, Some(path)) if set("SCCACHE_CONF").is_some() => {
            let found = format!(
                "there is no {}; sccache goes on without it and without a word",
                path.display()
            );
            let hint =
                "write it again with sccache-dock client-env --lane dist, or unset SCCACHE_CONF";
            checks.push(Check::warn(what, found, hint));
        }
        (None, _) => {}
    }
    checks
}

/// Where sccache's client listens for its daemon's start: `TMPDIR/sccacheXXXXXX/sock`.
fn temporary(environment: &Environment) -> Option<Check> {
    const NAME: usize = "/sccacheXXXXXX/sock".len();
    let what = "TMPDIR";
    let set = environment.get(what).filter(|it| !it.is_empty());
    let folder = set.map_or("/tmp", String::as_str);
    let (longest, hint) = (SOCKET_PATH_MAX - NAME, "export TMPDIR=/tmp");
    if folder.len() > longest {
        let found = format!(
            "{} bytes long, and sccache makes a socket in it: more than {longest} keep its daemon from starting",
            folder.len()
        );
        return Some(Check::fail(what, found, hint));
    }
    if access(Path::new(folder), AccessFlags::W_OK).is_err() {
        let found = format!(
            "{folder} does not exist or cannot be written: sccache's daemon does not start"
        );
        return Some(Check::fail(what, found, hint));
    }
    let free = free_bytes(Path::new(folder)).filter(|free| *free < LITTLE)?;
    let found = format!(
        "{folder} has {} left: compilers keep what they work on there, and a compile fails when it is full",
        human::bytes(free)
    );
    let hint = "free space there, or export TMPDIR=/var/tmp";
    Some(Check::warn(what, found, hint))
}

/// Less than this is soon used up.
const LITTLE: u64 = 64 << 20;

fn free_bytes(folder: &Path) -> Option<u64> {
    let disk = folder.ancestors().find_map(|it| statvfs(it).ok())?;
    Some(disk.blocks_available().saturating_mul(disk.fragment_size()))
}

/// The client's own level, on a disk that may be full.
fn own_level(environment: &Environment) -> Option<Check> {
    let what = "SCCACHE_DIR";
    let folder = Path::new(environment.get(what)?);
    let free = free_bytes(folder)?;
    (free < LITTLE).then(|| {
        let found = format!(
            "its disk has {} left: what does not fit is in the shared cache alone, if SCCACHE_MULTILEVEL_WRITE_ERROR_POLICY is ignore",
            human::bytes(free)
        );
        let hint = format!("free space there, or remove {}", folder.display());
        Check::warn(what, found, hint)
    })
}

/// What `client-env --format toml` printed, and sccache does not read, as another of our formats keeps it from all files.
fn passed_over(environment: &Environment) -> Option<Check> {
    let (name, none) = ("SCCACHE_CONF", sccache_file::NONE);
    environment.get(name).filter(|it| *it == none)?;
    let path = sccache_file::usual_path(environment)?;
    let text = regular_file::read_to_string(&path).ok()?;
    let file = Conf::parse(&path, &text).filter(|_| text.starts_with(MARK))?;
    let is_set = |name: &str| environment.get(name).filter(|it| !it.is_empty());
    let is_said = match &file.webdav {
        Some(endpoint) => is_set("SCCACHE_WEBDAV_ENDPOINT") == Some(endpoint),
        None => is_set("SCCACHE_CLIENT_SIDE").is_some(),
    };
    if is_said && file.scheduler.is_none() {
        return None;
    }
    let path = path.display();
    let found = format!("{none}: sccache does not read {path}, which client-env printed");
    let hint = format!("unset {name}, or remove the file if the variables of this shell are meant");
    Some(Check::warn(name, found, hint))
}

fn judge_config(conf: &Conf, environment: &Environment, lane: Option<Lane>) -> Vec<Check> {
    let what = "config file";
    let path = conf.path.display();
    if conf.scheduler.is_none() {
        return vec![Check::ok(what, format!("{path} is read too"))];
    }
    if matches!(lane, Some(Lane::Ipc | Lane::Socket)) {
        let found =
            format!("{path} names a scheduler, which turns client-side mode off without a word");
        let hint = "use --lane webdav or dist, or remove scheduler_url";
        return vec![Check::fail(what, found, hint)];
    }
    cluster::judge_conf(conf, environment)
}
