//! Turns the environment, secret files and an optional TOML file into checked [`Settings`]. Pure; reports all problems
//! at once.
//!
//! Each setting is looked up in this order: the variable `NAME`, the file named by `NAME_FILE` (Docker secrets), the
//! TOML file, the default. Only [`load`] reads the real environment and files.

mod dist;
mod lookup;
mod policies;
mod public_addr;
mod relay;
mod rows;
mod values;

pub use self::dist::Distribution;
pub use self::public_addr::PublicAddr;
pub use self::relay::Relay;
pub use crate::contract::builder_config::Isolation;

use self::lookup::Lookup;
use self::rows::DEFAULT_DIR;
use self::values::{
    ValueError, absolute, address, duration, file, ipc, log_filter, log_format, optional,
    sent_token, size, tls_version, token, upstream, writing_token,
};
use super::variables;
use crate::base::regular_file;
use crate::base::secret::Secret;
use crate::contract::gateway_config::{ClientCertificate, IpcPolicy, Policies, TlsFiles};
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Path of the optional TOML file, unless `SCCACHE_DOCK_CONFIG` names another.
pub const DEFAULT_FILE: &str = "/etc/sccache-dock.toml";

/// Which services run, and whether the cache must outlive the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The cache is lost with the container.
    Ephemeral,
    /// The cache is on a mount.
    Persistent,
    /// Like ephemeral, with a scheduler and a builder.
    DistributedEphemeral,
    /// Like persistent, with a scheduler and a builder.
    DistributedPersistent,
    /// A builder for the scheduler of another machine.
    Builder,
}

const MODES: [Mode; 5] = [
    Mode::Ephemeral,
    Mode::Persistent,
    Mode::DistributedEphemeral,
    Mode::DistributedPersistent,
    Mode::Builder,
];

impl Mode {
    fn parse(text: &str) -> Result<Mode, ValueError> {
        let text = if text == "volatile" {
            "ephemeral"
        } else {
            text
        };
        let words = MODES.map(Mode::as_str);
        let found = MODES.into_iter().find(|mode| mode.as_str() == text);
        found.ok_or_else(|| {
            ValueError::hint(
                format!("\"{text}\" is not a mode"),
                match variables::suggest(text, words) {
                    Some(near) => format!("did you mean \"{near}\"?"),
                    None => format!("use one of {}", words.join(", ")),
                },
            )
        })
    }

    /// The name used in `MODE`.
    pub fn as_str(self) -> &'static str {
        match self {
            Mode::Ephemeral => "ephemeral",
            Mode::Persistent => "persistent",
            Mode::DistributedEphemeral => "distributed-ephemeral",
            Mode::DistributedPersistent => "distributed-persistent",
            Mode::Builder => "builder",
        }
    }

    /// Whether the state folder must outlive the container.
    pub fn persists(self) -> bool {
        matches!(self, Mode::Persistent | Mode::DistributedPersistent)
    }

    /// Whether the scheduler runs here.
    pub fn schedules(self) -> bool {
        matches!(
            self,
            Mode::DistributedEphemeral | Mode::DistributedPersistent
        )
    }

    /// Whether a builder runs here.
    pub fn builds(self) -> bool {
        self.schedules() || self == Mode::Builder
    }
}

/// Format of lines on standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// `service LEVEL line`
    Text,
    /// One JSON object per line.
    Json,
}

/// All settings, validated.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    pub mode: Mode,
    /// Root of all state.
    pub dir: PathBuf,
    /// Folder of the sockets, which can be shared with clients.
    pub run_dir: PathBuf,
    /// Address of the cache port.
    pub listen: SocketAddr,
    pub cache_size_bytes: u64,
    /// Further rules for what the cache keeps.
    pub policies: Policies,
    /// Level, or filter in `RUST_LOG` syntax, for all processes.
    pub log: String,
    pub log_format: LogFormat,
    /// File that also receives warnings and errors.
    pub error_log: Option<PathBuf>,
    /// How long a log reader that has stopped reading may block the services.
    pub log_stall: Duration,
    pub ipc: IpcPolicy,
    /// Token for reading and writing; generated and kept if `None`.
    pub auth_token: Option<Secret>,
    /// Token for reading only.
    pub read_token: Option<Secret>,
    /// Whether anyone may read.
    pub anonymous_read: bool,
    /// Public DNS names under which anonymous reads are allowed.
    pub hosts: Vec<String>,
    /// URL of the upstream; may contain credentials.
    pub upstream: Option<Secret>,
    /// Bearer token for an upstream over HTTP.
    pub upstream_token: Option<Secret>,
    /// What is presented to the scheduler, in `MODE=builder`, and to an upstream over HTTPS; `None` where there is neither.
    pub client_certificate: Option<ClientCertificate>,
    /// Environment variables for the upstream, passed to the gateway: `AWS_*` if it is S3, and those that name proxies
    /// or the certificates of a private authority.
    pub aws: Vec<(String, Secret)>,
    /// File of named tokens.
    pub tokens_file: Option<PathBuf>,
    /// TLS on the cache port.
    pub tls: Option<TlsFiles>,
    /// Time limit for an orderly stop.
    pub stop_grace: Duration,
    /// Program of the service `server`.
    pub sccache: PathBuf,
    /// Settings used only in the modes with a builder.
    pub dist: Distribution,
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    Environment,
    /// The file that `NAME_FILE` names.
    SecretFile(PathBuf),
    /// The TOML file.
    File(PathBuf),
    Default,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Environment => f.write_str("environment"),
            Source::SecretFile(path) | Source::File(path) => write!(f, "{}", path.display()),
            Source::Default => f.write_str("default"),
        }
    }
}

/// One line of `sccache-dock config`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effective {
    pub name: &'static str,
    /// `***` for a secret.
    pub shown: String,
    pub source: Source,
    pub about: &'static str,
}

/// A problem with a setting, and how to fix it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The variable or file, as the user typed it.
    pub subject: String,
    pub message: String,
    pub hint: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.subject, self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "\nhint: {hint}"),
            None => Ok(()),
        }
    }
}

/// All problems with the settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\nerror: ")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// Valid settings, with warnings for the operator.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    pub settings: Settings,
    pub effective: Vec<Effective>,
    pub warnings: Vec<Problem>,
}

/// Reads the process's environment, the secret files and the TOML file.
///
/// # Errors
/// All problems found, each with its variable.
pub fn load() -> Result<Loaded, Problems> {
    load_by(&regular_file::read_to_string)
}

/// Like [`load`], but reads files with `read`.
///
/// # Errors
/// All problems found, each with its variable.
pub fn load_by(read: &dyn Fn(&Path) -> io::Result<String>) -> Result<Loaded, Problems> {
    check(&environment(), read)
}

fn environment() -> BTreeMap<String, String> {
    let text = |part: std::ffi::OsString| part.to_string_lossy().into_owned();
    std::env::vars_os()
        .map(|(name, value)| (text(name), text(value)))
        .collect()
}

fn run_dir_of(dir: &Path) -> PathBuf {
    dir.join("run")
}

/// Like [`load`], with the environment and files as arguments.
///
/// # Errors
/// All problems found, each with its variable.
pub fn check(
    environment: &BTreeMap<String, String>,
    read: &dyn Fn(&Path) -> io::Result<String>,
) -> Result<Loaded, Problems> {
    let mut lookup = Lookup::new(environment, read);
    let settings = lookup.settings();
    let mut warnings = lookup.stray();
    warnings.append(&mut lookup.warnings);
    match settings {
        Some(settings) if lookup.problems.is_empty() => Ok(Loaded {
            settings,
            effective: lookup.effective,
            warnings,
        }),
        _ => Err(Problems(lookup.problems)),
    }
}

/// Where to find a running sccache-dock.
#[derive(Debug, Clone, PartialEq)]
pub struct Installation {
    pub dir: PathBuf,
    pub run_dir: PathBuf,
    pub auth_token: Option<Secret>,
    /// Problems with the settings from which this was read.
    pub doubts: Option<Problems>,
}

impl Settings {
    /// Where to find an sccache-dock that runs with these settings.
    pub fn installation(&self) -> Installation {
        Installation {
            dir: self.dir.clone(),
            run_dir: self.run_dir.clone(),
            auth_token: self.auth_token.clone(),
            doubts: None,
        }
    }
}

/// Reads only the location, so that a mistake in another setting does not hide a running sccache-dock.
pub fn installation() -> Installation {
    installation_in(&environment(), &regular_file::read_to_string)
}

fn installation_in(
    environment: &BTreeMap<String, String>,
    read: &dyn Fn(&Path) -> io::Result<String>,
) -> Installation {
    let problems = match check(environment, read) {
        Ok(loaded) => return loaded.settings.installation(),
        Err(problems) => problems,
    };
    let mut lookup = Lookup::new(environment, read);
    let dir = lookup.parsed("SCCACHE_DIR", absolute);
    let dir = dir.unwrap_or_else(|| PathBuf::from(DEFAULT_DIR));
    let run_dir = lookup.parsed("SCCACHE_RUN_DIR", optional(absolute));
    let auth_token = lookup.parsed("SCCACHE_AUTH_TOKEN", optional(writing_token));
    Installation {
        run_dir: run_dir.flatten().unwrap_or_else(|| run_dir_of(&dir)),
        dir,
        auth_token: auth_token.flatten(),
        doubts: Some(problems),
    }
}

impl Lookup<'_> {
    fn settings(&mut self) -> Option<Settings> {
        let mode = self.parsed("MODE", Mode::parse);
        let dir = self.parsed("SCCACHE_DIR", absolute);
        let run_dir = self.parsed("SCCACHE_RUN_DIR", optional(absolute));
        let listen = self.parsed("SCCACHE_LISTEN", address);
        let cache_size_bytes = self.parsed("SCCACHE_CACHE_SIZE", size);
        let policies = self.policies(cache_size_bytes);
        let log = self.parsed("SCCACHE_LOG", log_filter);
        let log_format = self.parsed("SCCACHE_LOG_FORMAT", log_format);
        let error_log = self.parsed("SCCACHE_ERROR_LOG", optional(absolute));
        let log_stall = self.parsed("SCCACHE_LOG_STALL", duration);
        let ipc = self.parsed("SCCACHE_IPC", ipc);
        let auth_token = self.parsed("SCCACHE_AUTH_TOKEN", optional(writing_token));
        let read_token = self.parsed("SCCACHE_READ_TOKEN", optional(token));
        let hosts = self.parsed("SCCACHE_HOSTS", policies::hosts);
        let upstream = self.parsed("SCCACHE_UPSTREAM", optional(upstream));
        let upstream_token = self.parsed("SCCACHE_UPSTREAM_TOKEN", optional(sent_token));
        let tokens_file = self.parsed("SCCACHE_TOKENS_FILE", optional(file));
        let tls = self.tls();
        let client_certificate = self.client_certificate();
        self.check_bridge(ipc.as_ref(), tls.as_ref(), tokens_file.as_ref());
        let stop_grace = self.parsed("SCCACHE_STOP_GRACE", duration);
        let sccache = self.parsed("SCCACHE_BINARY", |text| Ok(PathBuf::from(text)));
        let dist = self.distribution(mode, client_certificate.is_some());
        let (auth_token, read_token) = (auth_token?, read_token?);
        if auth_token.is_some() && auth_token == read_token {
            self.problem(
                "SCCACHE_READ_TOKEN",
                "is the same as SCCACHE_AUTH_TOKEN, so it could write too".into(),
                None,
            );
        }
        let anonymous_read = read_token
            .as_ref()
            .is_some_and(|token| token.reveal() == "anonymous");
        let (upstream, upstream_token) = (upstream?, upstream_token?);
        let takes_a_token = upstream
            .as_ref()
            .is_some_and(|url| url.reveal().starts_with("http"));
        if upstream_token.is_some() && !takes_a_token {
            self.problem(
                "SCCACHE_UPSTREAM_TOKEN",
                "is for an upstream over http:// or https://, and there is none".into(),
                Some("set SCCACHE_UPSTREAM, or unset this".into()),
            );
        }
        let is_https = |url: &Secret| url.reveal().starts_with("https://");
        let presents = mode == Some(Mode::Builder) || upstream.as_ref().is_some_and(is_https);
        let s3 = upstream
            .as_ref()
            .is_some_and(|url| url.reveal().starts_with("s3:"));
        let joins_by_tls = dist.as_ref().is_some_and(|dist| {
            let url = dist.scheduler_url.as_ref();
            url.is_some_and(|url| url.starts_with("https://"))
        });
        let aws = self
            .environment
            .iter()
            .filter(|(name, _)| match name.as_str() {
                "SSL_CERT_FILE" | "SSL_CERT_DIR" => upstream.is_some() || joins_by_tls,
                name if variables::PROXIES.contains(&name) => upstream.is_some(),
                name => s3 && name.starts_with("AWS_"),
            });
        let aws = aws
            .map(|(name, value)| (name.clone(), Secret::new(value)))
            .collect();
        let dir = dir?;
        Some(Settings {
            upstream,
            upstream_token,
            client_certificate: client_certificate.filter(|_| presents),
            aws,
            mode: mode?,
            run_dir: run_dir?.unwrap_or_else(|| run_dir_of(&dir)),
            dir,
            listen: listen?,
            cache_size_bytes: cache_size_bytes?,
            policies: policies?,
            log: log?,
            log_format: log_format?,
            error_log: error_log?,
            log_stall: log_stall?,
            ipc: ipc?,
            auth_token,
            read_token: read_token.filter(|_| !anonymous_read),
            anonymous_read,
            hosts: hosts?,
            tokens_file: tokens_file?,
            tls,
            stop_grace: stop_grace?,
            sccache: sccache?,
            dist: dist?,
        })
    }

    /// With TLS or named tokens, `bridge` would let in everyone behind Docker's proxy without either.
    fn check_bridge(
        &mut self,
        ipc: Option<&IpcPolicy>,
        tls: Option<&TlsFiles>,
        tokens_file: Option<&Option<PathBuf>>,
    ) {
        let beside = match (tls, tokens_file) {
            (Some(_), _) => "SCCACHE_TLS_CERT",
            (None, Some(Some(_))) => "SCCACHE_TOKENS_FILE",
            (None, _) => return,
        };
        if matches!(ipc, Some(IpcPolicy::Beyond { bridge: true, .. })) {
            self.problem(
                "SCCACHE_IPC",
                format!(
                    "\"bridge\" cannot be combined with {beside}: everyone whom Docker's proxy forwards could use the cache \
                     without a token and without TLS"
                ),
                Some(
                    "leave it out, and use the lanes webdav or socket on the Docker host; or name the one address, such as \
                     SCCACHE_IPC=172.17.0.1"
                        .into(),
                ),
            );
        }
    }

    /// Certificate and key must be set together.
    fn tls(&mut self) -> Option<TlsFiles> {
        let cert = self.parsed("SCCACHE_TLS_CERT", optional(file))?;
        let key = self.parsed("SCCACHE_TLS_KEY", optional(file))?;
        let min_version = self.parsed("SCCACHE_TLS_MIN_VERSION", tls_version)?;
        let client_ca = self.parsed("SCCACHE_TLS_CLIENT_CA", optional(file))?;
        let (missing, there) = match (cert, key) {
            (Some(cert), Some(key)) => {
                return Some(TlsFiles {
                    cert,
                    key,
                    min_version,
                    client_ca,
                });
            }
            (None, None) if client_ca.is_some() => ("SCCACHE_TLS_CERT", "SCCACHE_TLS_CLIENT_CA"),
            (None, None) => return None,
            (Some(_), None) => ("SCCACHE_TLS_KEY", "SCCACHE_TLS_CERT"),
            (None, Some(_)) => ("SCCACHE_TLS_CERT", "SCCACHE_TLS_KEY"),
        };
        let hint = "set both for TLS, or none".to_owned();
        self.problem(missing, format!("is not set, but {there} is"), Some(hint));
        None
    }
}

#[cfg(test)]
mod tests;
