//! Environment, secret files and one optional TOML file into checked [`Settings`]: pure, all problems at once.
//!
//! Each setting is looked up in this order: the variable `NAME`, the file named by `NAME_FILE` (Docker secrets),
//! the TOML file, the default. The edges (reading the real environment and files) are in [`load`].

use crate::gateway::config::IpcPolicy;
use crate::secret::Secret;
use crate::variables;
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the optional TOML file stands, unless `SCCACHE_DOCK_CONFIG` names another.
pub const DEFAULT_FILE: &str = "/etc/sccache-dock.toml";

/// Which services run, and whether the cache must outlive the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The cache goes with the container.
    Ephemeral,
    /// The cache lies on a mount.
    Persistent,
}

impl Mode {
    fn parse(text: &str) -> Result<Mode, Fault> {
        match text {
            "ephemeral" | "volatile" => Ok(Mode::Ephemeral),
            "persistent" => Ok(Mode::Persistent),
            "distributed-ephemeral" | "distributed-persistent" | "builder" => Err(Fault::hint(
                "distributed compilation is not in this version",
                "use MODE=ephemeral or MODE=persistent: the shared cache works without it",
            )),
            other => Err(Fault::hint(
                format!("\"{other}\" is not a mode"),
                match variables::suggest(other, ["ephemeral", "persistent"]) {
                    Some(near) => format!("did you mean \"{near}\"?"),
                    None => "use \"ephemeral\" or \"persistent\"".into(),
                },
            )),
        }
    }

    /// The word as it is written in `MODE`.
    pub fn as_str(self) -> &'static str {
        match self {
            Mode::Ephemeral => "ephemeral",
            Mode::Persistent => "persistent",
        }
    }
}

/// How lines on standard output look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// `service LEVEL line`
    Text,
    /// One JSON object a line.
    Json,
}

/// Everything that can be set, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    pub mode: Mode,
    /// Root of all state.
    pub dir: PathBuf,
    /// Sockets; a folder that can be shared with clients.
    pub run_dir: PathBuf,
    /// Address of the cache port.
    pub listen: SocketAddr,
    pub cache_size_bytes: u64,
    /// Level, or filter in the syntax of `RUST_LOG`, for all processes.
    pub log: String,
    pub log_format: LogFormat,
    /// Warnings and errors go to this file too.
    pub error_log: Option<PathBuf>,
    /// How long a standing reader of the log may hold the services back.
    pub log_stall: Duration,
    pub ipc: IpcPolicy,
    /// Reads and writes the cache; generated and kept where none is set.
    pub auth_token: Option<Secret>,
    /// Only reads the cache.
    pub read_token: Option<Secret>,
    /// Anyone may read.
    pub anonymous_read: bool,
    /// Bound of an orderly stop.
    pub stop_grace: Duration,
    /// Program that runs as `server`.
    pub sccache: PathBuf,
}

/// Where a value came from.
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

/// One thing that is wrong, with what mends it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The variable or file, as typed.
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

/// All that is wrong with the settings.
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

/// Settings that hold, and what the operator should know about them all the same.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    pub settings: Settings,
    pub effective: Vec<Effective>,
    pub warnings: Vec<Problem>,
}

/// A setting's row: README.md shows the same table.
struct Row {
    name: &'static str,
    /// Key in the TOML file.
    key: &'static str,
    default: &'static str,
    secret: bool,
    about: &'static str,
}

const fn row(
    name: &'static str,
    key: &'static str,
    default: &'static str,
    about: &'static str,
) -> Row {
    Row {
        name,
        key,
        default,
        secret: false,
        about,
    }
}

const fn secret(name: &'static str, key: &'static str, about: &'static str) -> Row {
    Row {
        name,
        key,
        default: "",
        secret: true,
        about,
    }
}

const ROWS: &[Row] = &[
    row("MODE", "mode", "ephemeral", "ephemeral or persistent"),
    row(
        "SCCACHE_DIR",
        "dir",
        "/var/sccache",
        "root of all state: cache/, state/, run/",
    ),
    row(
        "SCCACHE_RUN_DIR",
        "run_dir",
        "",
        "folder of the sockets; run/ below SCCACHE_DIR where empty",
    ),
    row(
        "SCCACHE_LISTEN",
        "listen",
        "0.0.0.0:4226",
        "address of the cache port",
    ),
    row(
        "SCCACHE_CACHE_SIZE",
        "cache_size",
        "10G",
        "budget of the cache",
    ),
    row("SCCACHE_LOG", "log", "debug", "level for all processes"),
    row("SCCACHE_LOG_FORMAT", "log_format", "text", "text or json"),
    row(
        "SCCACHE_ERROR_LOG",
        "error_log",
        "",
        "also write warnings and errors to this file",
    ),
    row(
        "SCCACHE_LOG_STALL",
        "log_stall",
        "5s",
        "how long a standing reader of the log may hold the services back",
    ),
    row(
        "SCCACHE_IPC",
        "ipc",
        "local",
        "who may use sccache's own protocol on the port: off, local, CIDR list",
    ),
    secret(
        "SCCACHE_AUTH_TOKEN",
        "auth_token",
        "clients: read and write; generated and kept where empty",
    ),
    secret(
        "SCCACHE_READ_TOKEN",
        "read_token",
        "clients: read only; \"anonymous\" lets anyone read",
    ),
    row(
        "SCCACHE_STOP_GRACE",
        "stop_grace",
        "8s",
        "bound of an orderly stop",
    ),
    row(
        "SCCACHE_BINARY",
        "binary",
        "sccache",
        "the sccache to run, a name on PATH or a path",
    ),
];

/// Settings of later versions: never silently without effect.
const NOT_YET: &[&str] = &[
    "SCCACHE_SERVER_TOKEN",
    "SCCACHE_TLS_CERT",
    "SCCACHE_TLS_KEY",
    "SCCACHE_PUBLIC_ADDR",
    "SCCACHE_SCHEDULER_URL",
    "SCCACHE_BUILDER_ISOLATION",
    "SCCACHE_BUILDER_SLOTS",
    "SCCACHE_TOOLCHAIN_CACHE_SIZE",
    "SCCACHE_UPSTREAM",
];

/// Set by the image for programs started with `docker exec`, or read by the tests: no warning.
const EXPECTED: &[&str] = &[
    "SCCACHE_SERVER_UDS",
    "SCCACHE_CLIENT_SIDE",
    "SCCACHE_SERVER_PORT",
    "SCCACHE_DOCK_CONFIG",
    "SCCACHE_DOCK_TOOLS",
];

/// A value that does not parse.
struct Fault {
    message: String,
    hint: Option<String>,
}

impl Fault {
    fn hint(message: impl Into<String>, hint: impl Into<String>) -> Fault {
        Fault {
            message: message.into(),
            hint: Some(hint.into()),
        }
    }
}

/// Reads the process's environment, secret files and TOML file.
///
/// # Errors
/// All problems found, each with its variable.
pub fn load() -> Result<Loaded, Problems> {
    let environment: BTreeMap<String, String> = std::env::vars_os()
        .map(|(name, value)| {
            (
                name.to_string_lossy().into_owned(),
                value.to_string_lossy().into_owned(),
            )
        })
        .collect();
    check(&environment, &|path| std::fs::read_to_string(path))
}

/// [`load`] with its edges as arguments.
///
/// # Errors
/// All problems found, each with its variable.
pub fn check(
    environment: &BTreeMap<String, String>,
    read: &dyn Fn(&Path) -> io::Result<String>,
) -> Result<Loaded, Problems> {
    let mut lookup = Lookup::new(environment, read);
    let settings = lookup.settings();
    let warnings = lookup.stray();
    match settings {
        Some(settings) if lookup.problems.is_empty() => Ok(Loaded {
            settings,
            effective: lookup.effective,
            warnings,
        }),
        _ => Err(Problems(lookup.problems)),
    }
}

/// Prints the effective settings with their sources, secrets hidden, then the warnings.
///
/// # Errors
/// The output is closed.
pub fn print(loaded: &Loaded, out: &mut impl io::Write) -> io::Result<()> {
    let width = loaded
        .effective
        .iter()
        .map(|line| line.shown.len())
        .max()
        .unwrap_or(0)
        .max(5);
    writeln!(
        out,
        "{:<20} {:<width$} {:<14} ABOUT",
        "SETTING", "VALUE", "SOURCE"
    )?;
    for line in &loaded.effective {
        let source = line.source.to_string();
        writeln!(
            out,
            "{:<20} {:<width$} {:<14} {}",
            line.name, line.shown, source, line.about
        )?;
    }
    for warning in &loaded.warnings {
        writeln!(out, "\nwarning: {warning}")?;
    }
    Ok(())
}

struct Lookup<'a> {
    environment: &'a BTreeMap<String, String>,
    read: &'a dyn Fn(&Path) -> io::Result<String>,
    file: BTreeMap<String, String>,
    file_path: PathBuf,
    effective: Vec<Effective>,
    problems: Vec<Problem>,
}

impl<'a> Lookup<'a> {
    fn new(
        environment: &'a BTreeMap<String, String>,
        read: &'a dyn Fn(&Path) -> io::Result<String>,
    ) -> Self {
        let named = environment
            .get("SCCACHE_DOCK_CONFIG")
            .filter(|path| !path.is_empty());
        let file_path = PathBuf::from(named.map_or(DEFAULT_FILE, String::as_str));
        let mut lookup = Lookup {
            environment,
            read,
            file: BTreeMap::new(),
            file_path,
            effective: Vec::new(),
            problems: Vec::new(),
        };
        match read(&lookup.file_path) {
            Ok(text) => lookup.parse_file(&text),
            Err(error) if named.is_none() && error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                let subject = lookup.file_path.display().to_string();
                lookup.problem(&subject, format!("cannot read the file: {error}"), None);
            }
        }
        lookup
    }

    fn parse_file(&mut self, text: &str) {
        let path = self.file_path.display().to_string();
        let table: toml::Table = match text.parse() {
            Ok(table) => table,
            Err(error) => {
                return self.problem(
                    &path,
                    format!("cannot parse the file: {}", error.to_string().trim_end()),
                    None,
                );
            }
        };
        for (key, value) in table {
            if !ROWS.iter().any(|row| row.key == key) {
                let known: Vec<&str> = ROWS.iter().map(|row| row.key).collect();
                let hint = match variables::suggest(&key, known.iter().copied()) {
                    Some(near) => format!("did you mean \"{near}\"?"),
                    None => format!("known keys: {}", known.join(", ")),
                };
                self.problem(&path, format!("\"{key}\" is not a setting"), Some(hint));
                continue;
            }
            match value {
                toml::Value::String(text) => {
                    self.file.insert(key, text);
                }
                toml::Value::Integer(number) => {
                    self.file.insert(key, number.to_string());
                }
                other => {
                    let message = format!("\"{key}\" is of type {}", other.type_str());
                    self.problem(&path, message, Some("write it as a string".into()));
                }
            }
        }
    }

    fn problem(&mut self, subject: &str, message: String, hint: Option<String>) {
        self.problems.push(Problem {
            subject: subject.to_owned(),
            message,
            hint,
        });
    }

    /// The raw text of a setting, recorded with its source. An empty value counts as not set.
    fn raw(&mut self, name: &'static str) -> (String, String) {
        let row = ROWS
            .iter()
            .find(|row| row.name == name)
            .expect("every setting asked for has a row");
        let (value, source, subject) = self.find(row);
        let shown = match (row.secret, value.is_empty()) {
            (_, true) => String::new(),
            (true, false) if value != "anonymous" => "***".to_owned(),
            _ => value.clone(),
        };
        self.effective.push(Effective {
            name: row.name,
            shown,
            source,
            about: row.about,
        });
        (value, subject)
    }

    fn find(&mut self, row: &Row) -> (String, Source, String) {
        let name = row.name;
        if let Some(value) = self.environment.get(name).filter(|value| !value.is_empty()) {
            return (
                value.clone(),
                Source::Environment,
                format!("{name}={}", if row.secret { "***" } else { value }),
            );
        }
        if name == "MODE"
            && let Some(value) = self
                .environment
                .get("SCCACHE_STORAGE_MODE")
                .filter(|value| !value.is_empty())
        {
            return (
                value.clone(),
                Source::Environment,
                format!("SCCACHE_STORAGE_MODE={value}"),
            );
        }
        let file_name = format!("{name}_FILE");
        if let Some(path) = self
            .environment
            .get(&file_name)
            .filter(|path| !path.is_empty())
            .map(PathBuf::from)
        {
            match (self.read)(&path) {
                Ok(text) if !text.trim().is_empty() => {
                    return (
                        text.trim().to_owned(),
                        Source::SecretFile(path),
                        name.to_owned(),
                    );
                }
                Ok(_) => self.problem(
                    &format!("{file_name}={}", path.display()),
                    "the file is empty".into(),
                    None,
                ),
                Err(error) => {
                    let message = format!("cannot read the file: {error}");
                    self.problem(&format!("{file_name}={}", path.display()), message, None);
                }
            }
        }
        if let Some(value) = self.file.get(row.key) {
            let subject = format!("{}: {}", self.file_path.display(), row.key);
            return (value.clone(), Source::File(self.file_path.clone()), subject);
        }
        (row.default.to_owned(), Source::Default, name.to_owned())
    }

    fn parsed<T>(
        &mut self,
        name: &'static str,
        parse: impl FnOnce(&str) -> Result<T, Fault>,
    ) -> Option<T> {
        let (text, subject) = self.raw(name);
        match parse(&text) {
            Ok(value) => Some(value),
            Err(fault) => {
                self.problem(&subject, fault.message, fault.hint);
                None
            }
        }
    }

    fn settings(&mut self) -> Option<Settings> {
        let mode = self.parsed("MODE", Mode::parse);
        let dir = self.parsed("SCCACHE_DIR", absolute);
        let run_dir = self.parsed("SCCACHE_RUN_DIR", optional(absolute));
        let listen = self.parsed("SCCACHE_LISTEN", address);
        let cache_size_bytes = self.parsed("SCCACHE_CACHE_SIZE", size);
        let log = self.parsed("SCCACHE_LOG", log_filter);
        let log_format = self.parsed("SCCACHE_LOG_FORMAT", log_format);
        let error_log = self.parsed("SCCACHE_ERROR_LOG", optional(absolute));
        let log_stall = self.parsed("SCCACHE_LOG_STALL", duration);
        let ipc = self.parsed("SCCACHE_IPC", ipc);
        let auth_token = self.parsed("SCCACHE_AUTH_TOKEN", optional(writing_token));
        let read_token = self.parsed("SCCACHE_READ_TOKEN", optional(token));
        let stop_grace = self.parsed("SCCACHE_STOP_GRACE", duration);
        let sccache = self.parsed("SCCACHE_BINARY", |text| Ok(PathBuf::from(text)));
        let (auth_token, read_token) = (auth_token?, read_token?);
        if auth_token.is_some() && auth_token == read_token {
            self.problem(
                "SCCACHE_READ_TOKEN",
                "is the same as SCCACHE_AUTH_TOKEN, so it would write too".into(),
                None,
            );
        }
        let anonymous_read = read_token
            .as_ref()
            .is_some_and(|token| token.reveal() == "anonymous");
        let dir = dir?;
        Some(Settings {
            mode: mode?,
            run_dir: run_dir?.unwrap_or_else(|| dir.join("run")),
            dir,
            listen: listen?,
            cache_size_bytes: cache_size_bytes?,
            log: log?,
            log_format: log_format?,
            error_log: error_log?,
            log_stall: log_stall?,
            ipc: ipc?,
            auth_token,
            read_token: read_token.filter(|_| !anonymous_read),
            anonymous_read,
            stop_grace: stop_grace?,
            sccache: sccache?,
        })
    }

    /// Variables that look like settings and are none: unknown, of a later version, or sccache's own.
    fn stray(&mut self) -> Vec<Problem> {
        let mut warnings = Vec::new();
        for name in self
            .environment
            .keys()
            .filter(|name| name.starts_with("SCCACHE_"))
        {
            let bare = name.strip_suffix("_FILE").unwrap_or(name);
            let known = ROWS.iter().any(|row| row.name == bare);
            if known || EXPECTED.contains(&name.as_str()) || name == "SCCACHE_STORAGE_MODE" {
                continue;
            }
            if NOT_YET.contains(&bare) {
                let message = "is not in this version".to_owned();
                let hint = Some(
                    "unset it: going on without it could be less safe than you think".to_owned(),
                );
                self.problems.push(Problem {
                    subject: name.clone(),
                    message,
                    hint,
                });
                continue;
            }
            let (message, hint) = explain_stray(name);
            warnings.push(Problem {
                subject: name.clone(),
                message,
                hint: Some(hint),
            });
        }
        warnings
    }
}

fn explain_stray(name: &str) -> (String, String) {
    if let Some(instead) = variables::instead_of(name) {
        return (
            "sccache and sccache-dock do not know this variable; it has no effect".into(),
            instead.to_owned(),
        );
    }
    if variables::SCCACHE_OWN.contains(&name) {
        return (
            "is a variable of sccache itself; it has no effect on the container's services".into(),
            "set it where the client runs; \"sccache-dock client-env\" prints the whole set".into(),
        );
    }
    let known: Vec<&str> = ROWS.iter().map(|row| row.name).collect();
    let hint = match variables::suggest(name, known.iter().copied()) {
        Some(near) => format!("did you mean {near}?"),
        None => "\"sccache-dock config\" lists all settings".to_owned(),
    };
    ("is not a setting; it has no effect".into(), hint)
}

fn optional<T>(
    parse: impl FnOnce(&str) -> Result<T, Fault>,
) -> impl FnOnce(&str) -> Result<Option<T>, Fault> {
    move |text| {
        if text.is_empty() {
            Ok(None)
        } else {
            parse(text).map(Some)
        }
    }
}

fn absolute(text: &str) -> Result<PathBuf, Fault> {
    let path = PathBuf::from(text);
    if !path.is_absolute() {
        return Err(Fault::hint(
            "is not an absolute path",
            format!("write /{}", text.trim_start_matches("./")),
        ));
    }
    Ok(path)
}

fn address(text: &str) -> Result<SocketAddr, Fault> {
    if let Ok(port) = text.trim_start_matches(':').parse::<u16>() {
        return Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port));
    }
    text.parse()
        .map_err(|_| Fault::hint("is not an address", "write it as 0.0.0.0:4226 or [::]:4226"))
}

/// Bytes from "10G", "500 MiB", "1.5T" or "1048576". K, M, G and T are powers of 1024, as in sccache.
fn size(text: &str) -> Result<u64, Fault> {
    let fault = |message: &str| Fault::hint(message, "write it as 10G, 500M or a number of bytes");
    let trimmed = text.trim();
    let split = trimmed
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(split);
    let number: f64 = number.parse().map_err(|_| fault("is not a size"))?;
    let power = match unit.trim().to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KB" | "KIB" => 1,
        "M" | "MB" | "MIB" => 2,
        "G" | "GB" | "GIB" => 3,
        "T" | "TB" | "TIB" => 4,
        _ => return Err(fault("has an unknown unit")),
    };
    let bytes = number * 1024_f64.powi(power);
    if bytes < 1_048_576.0 {
        return Err(fault("is less than 1M, too small for a cache"));
    }
    if bytes > 9.0e18 {
        return Err(fault("is more than a file system can hold"));
    }
    Ok(bytes as u64)
}

fn duration(text: &str) -> Result<Duration, Fault> {
    let parsed = match text.parse::<u64>() {
        Ok(seconds) => Ok(Duration::from_secs(seconds)),
        Err(_) => humantime::parse_duration(text),
    };
    match parsed {
        Ok(duration) if duration <= Duration::from_secs(24 * 3600) => Ok(duration),
        Ok(_) => Err(Fault::hint(
            "is longer than a day",
            "write it as 8s or 500ms",
        )),
        Err(error) => Err(Fault::hint(
            format!("is not a duration: {error}"),
            "write it as 8s or 500ms",
        )),
    }
}

fn log_filter(text: &str) -> Result<String, Fault> {
    const LEVELS: &[&str] = &["off", "error", "warn", "info", "debug", "trace"];
    for directive in text.split(',') {
        let level = directive
            .rsplit('=')
            .next()
            .unwrap_or(directive)
            .trim()
            .to_ascii_lowercase();
        if !LEVELS.contains(&level.as_str()) {
            return Err(Fault::hint(
                format!("\"{directive}\" is not a level"),
                "use off, error, warn, info, debug, trace, or target=level pairs",
            ));
        }
    }
    Ok(text.to_owned())
}

fn log_format(text: &str) -> Result<LogFormat, Fault> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        other => Err(Fault::hint(
            format!("\"{other}\" is not a format"),
            "use text or json",
        )),
    }
}

fn ipc(text: &str) -> Result<IpcPolicy, Fault> {
    match text {
        "off" => Ok(IpcPolicy::Off),
        "local" => Ok(IpcPolicy::Local),
        list => list
            .split(',')
            .map(|item| {
                let item = item.trim();
                item.parse::<IpNet>()
                    .or_else(|_| item.parse::<IpAddr>().map(IpNet::from))
                    .map_err(|_| {
                        Fault::hint(
                            format!("\"{item}\" is neither a network nor an address"),
                            "use off, local, or a list such as 10.0.0.0/8,192.168.1.7",
                        )
                    })
            })
            .collect::<Result<Vec<IpNet>, Fault>>()
            .map(IpcPolicy::Networks),
    }
}

fn writing_token(text: &str) -> Result<Secret, Fault> {
    if text == "anonymous" {
        return Err(Fault::hint(
            "nobody may write without a token",
            "SCCACHE_READ_TOKEN=anonymous lets anyone read; leave this one unset to have one generated",
        ));
    }
    token(text)
}

fn token(text: &str) -> Result<Secret, Fault> {
    if text
        .chars()
        .any(|c| c.is_whitespace() || c.is_control() || !c.is_ascii())
    {
        return Err(Fault::hint(
            "has a character that an HTTP header cannot carry",
            "use letters, digits and -._~+/=",
        ));
    }
    if text != "anonymous" && text.len() < 8 {
        return Err(Fault::hint(
            "is shorter than 8 characters",
            "leave it unset to have a strong one generated",
        ));
    }
    Ok(Secret::new(text))
}

#[cfg(test)]
mod tests;
