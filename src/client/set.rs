//! The set of variables for a lane, before it is written in a format; checked.

use super::endpoint::{BadEndpoint, Endpoint};
use super::strays::{BASEDIRS, STRAYS, STRAYS_OWN_PROTOCOL, STRAYS_WEBDAV, neutral_value};
use super::{EnvArgs, Facts, Format, Lane, SOCKET_PATH_MAX, sccache_file};
use crate::base::secret::Secret;
use crate::contract::sccache;
use std::path::Path;

/// Where the ports of clients' own daemons begin: below those that Linux gives to outgoing connections.
pub(super) const FIRST_PORT: u16 = 20_000;
/// How many there are.
pub(super) const PORTS: u16 = 10_000;
/// A daemon that a client starts because the gateway is away sits on the gateway's own address: it must soon be gone.
const FALLBACK_IDLE_SECONDS: &str = "60";

/// Why a set cannot be made.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// The URL of the gateway cannot be used.
    #[error(transparent)]
    Endpoint(#[from] BadEndpoint),
    /// The namespace cannot be a folder of the cache.
    #[error(
        "cannot use namespace \"{0}\": it is not made of letters, digits, \".\", \"_\", \"-\" and \"/\"\n\
         hint: choose a name such as \"team\" or \"team/main\""
    )]
    Namespace(String),
    /// There is no scheduler to name.
    #[error(
        "cannot print lane \"dist\": this container runs no scheduler\n\
         hint: start it with MODE=distributed-ephemeral or distributed-persistent, or name another with --scheduler"
    )]
    NoScheduler,
    /// The file of the lane needs the token.
    #[error(
        "cannot print lane \"dist\" without a token: sccache reads the scheduler's token from its config file only\n\
         hint: leave --no-token out and keep the file private"
    )]
    DistToken,
    /// The format cannot carry the config file.
    #[error(
        "cannot print lane \"dist\" as \"{format}\": sccache reads the scheduler from a config file, which this format \
         cannot carry\n\
         hint: put the output of --format toml where the client runs, and name that path here with --conf"
    )]
    NoConf {
        /// As it is typed.
        format: &'static str,
    },
    /// The path of the config file cannot be used.
    #[error("cannot use config file \"{path}\": {cause}\nhint: {hint}")]
    Conf {
        /// As it was given.
        path: String,
        /// What is wrong with it.
        cause: String,
        /// What to do instead.
        hint: &'static str,
    },
    /// There is no socket to name.
    #[error(
        "cannot print lane \"socket\": the container shares no socket\n\
         hint: name it as the client sees it with --socket, or use --lane webdav"
    )]
    NoSocket,
    /// The path of the socket cannot be used.
    #[error(
        "cannot use socket \"{path}\": {cause}\nhint: name a short absolute path such as /run/sccache-dock/sccache.sock"
    )]
    Socket {
        /// As it was given.
        path: String,
        /// What is wrong with it.
        cause: &'static str,
    },
}

/// A value that is not the same text in every format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    Text(String),
    Token(Secret),
    /// The token, which the client has in its environment already.
    Inherited,
    /// The folder of the client's disk level.
    Folder,
    /// A folder in which nothing is ever stored.
    EmptyFolder,
    /// The socket of the client's own daemon.
    OwnSocket,
    /// Its port where sccache knows no Unix sockets.
    OwnPort,
    /// The folder of packed toolchains.
    Toolchains,
    /// The config file that the text itself writes.
    OwnConf,
}

/// What a client of WebDAV has before the shared cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    /// A level on its own disk. Direct mode is on, and its entries stay there.
    Disk,
    /// A level that is never written: every header is looked for anew. Without any, sccache leaves the line markers out
    /// of the keys of C and C++, which are others than everybody else's then, and the same for sources that differ in
    /// their line numbers.
    Empty,
}

/// The compile cluster.
#[derive(Debug)]
pub(super) struct Dist {
    pub(super) scheduler: String,
    pub(super) token: Secret,
}

/// What a client sets and unsets.
#[derive(Debug)]
pub(super) struct Set {
    pub(super) lane: Lane,
    pub(super) endpoint: String,
    pub(super) namespace: Option<String>,
    pub(super) level: Level,
    pub(super) dist: Option<Dist>,
    pub(super) variables: Vec<(&'static str, Value)>,
    pub(super) strays: Vec<&'static str>,
    /// Names the daemon's socket: changes with everything that the daemon is told.
    pub(super) id: String,
    /// Names the disk level's folder: outlives a change of the token.
    pub(super) place: String,
}

impl Set {
    pub(super) fn new(args: &EnvArgs, facts: &Facts) -> Result<Set, Error> {
        let given = args.endpoint.as_deref().unwrap_or(&facts.endpoint);
        let endpoint = Endpoint::parse(given)?;
        if let Some(namespace) = &args.namespace {
            check_namespace(namespace)?;
        }
        let token = facts.token.as_ref().filter(|_| !args.no_token);
        let namespace = args.namespace.as_deref().map(|name| name.trim_matches('/'));
        let dist = match args.lane {
            Lane::Dist => Some(cluster(args, facts, &endpoint, token)?),
            Lane::Webdav | Lane::Ipc | Lane::Socket => None,
        };
        // Daemons with a cluster and without one may run at the same time, and a disk level has one owner.
        let scheduler = dist.as_ref().map_or("", |dist| &dist.scheduler);
        let place = fingerprint(&[&endpoint.url, namespace.unwrap_or(""), scheduler]);
        let id = fingerprint(&[
            &place,
            token.map_or("", Secret::reveal),
            if args.no_disk { "empty" } else { "disk" },
        ]);
        let level = if args.no_disk {
            Level::Empty
        } else {
            Level::Disk
        };
        let mut set = Set {
            lane: args.lane,
            endpoint: endpoint.url.clone(),
            namespace: namespace.map(str::to_owned),
            level,
            dist,
            variables: vec![
                ("RUSTC_WRAPPER", text("sccache")),
                ("CARGO_INCREMENTAL", text("0")),
                // The user's own may name another store, or a scheduler, which turns client-side mode off.
                ("SCCACHE_CONF", text(sccache_file::NONE)),
            ],
            strays: STRAYS.iter().map(|it| it.name).collect(),
            id,
            place,
        };
        match args.lane {
            Lane::Webdav => set.webdav(match (args.no_token, token) {
                (true, _) => Some(Value::Inherited),
                (false, token) => token.cloned().map(Value::Token),
            }),
            Lane::Dist => {
                set.webdav(token.cloned().map(Value::Token));
                set.cluster(conf(args)?);
            }
            Lane::Ipc => {
                let port = endpoint.loopback_port(given)?;
                let address = ("SCCACHE_SERVER_PORT", text(&port.to_string()));
                set.own_protocol(address, "SCCACHE_SERVER_UDS");
            }
            Lane::Socket => {
                let path = args.socket.as_deref().or(facts.socket.as_deref());
                let path = check_socket(path.ok_or(Error::NoSocket)?)?;
                set.own_protocol(("SCCACHE_SERVER_UDS", text(path)), "SCCACHE_SERVER_PORT");
            }
        }
        let has_direct_entries = match args.lane {
            Lane::Webdav | Lane::Dist => level == Level::Disk,
            // Those of the daemon that a client starts while the gateway is away.
            Lane::Ipc | Lane::Socket => true,
        };
        if has_direct_entries && sccache::SHIPPED < sccache::SAFE_BASEDIRS {
            set.strays.push(BASEDIRS.name);
        }
        set.strays.sort_unstable();
        Ok(set)
    }

    fn webdav(&mut self, token: Option<Value>) {
        self.strays.extend(STRAYS_WEBDAV.iter().map(|it| it.name));
        // It names the store too, so that no stray variable can choose another.
        self.variables
            .push(("SCCACHE_MULTILEVEL_CHAIN", text("disk,webdav")));
        match self.level {
            Level::Disk => self.own_level([
                ("SCCACHE_DIR", Value::Folder),
                // A full disk here does not keep a result from the others.
                ("SCCACHE_MULTILEVEL_WRITE_ERROR_POLICY", text("ignore")),
            ]),
            Level::Empty => self.own_level([
                ("SCCACHE_DIR", Value::EmptyFolder),
                ("SCCACHE_LOCAL_RW_MODE", text("READ_ONLY")),
                // A put is waited for, as without a chain: what uses this often ends at once.
                ("SCCACHE_MULTILEVEL_WRITE_ERROR_POLICY", text("all")),
            ]),
        }
        self.variables
            .push(("SCCACHE_WEBDAV_ENDPOINT", text(&self.endpoint)));
        match &self.namespace {
            Some(name) => self
                .variables
                .push(("SCCACHE_WEBDAV_KEY_PREFIX", text(name))),
            None => self.strays.push("SCCACHE_WEBDAV_KEY_PREFIX"),
        }
        match token {
            Some(token) => self.variables.push(("SCCACHE_WEBDAV_TOKEN", token)),
            None => self.strays.push("SCCACHE_WEBDAV_TOKEN"),
        }
        self.variables.extend([
            ("SCCACHE_SKIP_CACHE_CHECK", text("1")),
            ("SCCACHE_WEBDAV_DISABLE_CREATE_DIR", text("1")),
            ("SCCACHE_IGNORE_SERVER_IO_ERROR", text("1")),
            ("SCCACHE_SERVER_UDS", Value::OwnSocket),
            ("SCCACHE_SERVER_PORT", Value::OwnPort),
        ]);
    }

    fn own_level<const N: usize>(&mut self, variables: [(&'static str, Value); N]) {
        let is_own = |stray: &&str| variables.iter().any(|(name, _)| name == stray);
        self.strays.retain(|stray| !is_own(stray));
        self.variables.extend(variables);
    }

    fn cluster(&mut self, conf: Value) {
        self.variables.retain(|(name, _)| *name != "SCCACHE_CONF");
        self.variables.extend([
            ("SCCACHE_CONF", conf),
            ("SCCACHE_DIST_CLIENT_CACHE_DIR", Value::Toolchains),
        ]);
    }

    fn own_protocol(&mut self, address: (&'static str, Value), other_address: &'static str) {
        self.strays
            .extend(STRAYS_OWN_PROTOCOL.iter().map(|it| it.name));
        self.strays.push(other_address);
        self.variables.extend([
            ("SCCACHE_CLIENT_SIDE", text("1")),
            address,
            ("SCCACHE_IGNORE_SERVER_IO_ERROR", text("1")),
            ("SCCACHE_IDLE_TIMEOUT", text(FALLBACK_IDLE_SECONDS)),
            ("SCCACHE_DIR", Value::Folder),
        ]);
    }

    /// Whether the text is for a file that several people and machines share: it names no token.
    pub(super) fn is_shared(&self) -> bool {
        self.variables
            .iter()
            .any(|(_, value)| *value == Value::Inherited)
    }

    /// The port of the client's own daemon where nothing says whose it is: daemons of other settings have others.
    pub(super) fn port(&self) -> u16 {
        let id = u32::from_str_radix(&self.id, 16).unwrap_or(0);
        FIRST_PORT + u16::try_from(id % u32::from(PORTS)).unwrap_or(0)
    }

    /// What a format without `unset` sets on top.
    pub(super) fn neutral(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        self.strays
            .iter()
            .filter_map(|name| Some((*name, neutral_value(name)?)))
    }
}

/// The scheduler that is named, else the gateway's own on the gateway's host.
fn cluster(
    args: &EnvArgs,
    facts: &Facts,
    endpoint: &Endpoint,
    token: Option<&Secret>,
) -> Result<Dist, Error> {
    let given = match (&args.scheduler, facts.scheduler_port) {
        (Some(url), _) => url.clone(),
        (None, Some(port)) => endpoint.with_port(port),
        (None, None) => return Err(Error::NoScheduler),
    };
    let scheduler = Endpoint::parse(&given)?;
    if scheduler.has_path() {
        return Err(Error::Endpoint(BadEndpoint {
            endpoint: given,
            cause: "it has a path, and sccache reaches a scheduler only at the root",
            hint: format!("write {}", scheduler.with_port(scheduler.port)),
        }));
    }
    Ok(Dist {
        scheduler: scheduler.url,
        token: token.cloned().ok_or(Error::DistToken)?,
    })
}

/// Where the client finds its config file.
fn conf(args: &EnvArgs) -> Result<Value, Error> {
    let Some(path) = &args.conf else {
        let format = match args.format {
            Format::Sh | Format::Fish | Format::Toml => return Ok(Value::OwnConf),
            Format::Docker => "docker",
            Format::Github => "github",
            Format::Cargo => "cargo",
        };
        return Err(Error::NoConf { format });
    };
    let refused = |cause: &str| Error::Conf {
        path: path.display().to_string(),
        cause: cause.to_owned(),
        hint: "name it as the client sees it, such as /run/secrets/sccache.conf",
    };
    let name = path.to_str().ok_or(refused("it is not UTF-8"))?;
    if !path.is_absolute() {
        return Err(refused("it is not absolute"));
    }
    if name.chars().any(char::is_control) {
        return Err(refused("it contains control characters"));
    }
    Ok(text(name))
}

fn text(value: &str) -> Value {
    Value::Text(value.to_owned())
}

fn fingerprint(parts: &[&str]) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    hasher.finalize().to_hex()[..8].to_owned()
}

fn check_namespace(name: &str) -> Result<(), Error> {
    let is_folder = |part: &str| {
        !part.is_empty()
            && !part.chars().all(|c| c == '.')
            && part
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
    };
    if name.trim_matches('/').split('/').all(is_folder) {
        Ok(())
    } else {
        Err(Error::Namespace(name.to_owned()))
    }
}

fn check_socket(path: &Path) -> Result<&str, Error> {
    let refused = |cause| Error::Socket {
        path: path.display().to_string(),
        cause,
    };
    let text = path.to_str().ok_or(refused("it is not UTF-8"))?;
    if !path.is_absolute() {
        return Err(refused("it is not absolute"));
    }
    if text.len() > SOCKET_PATH_MAX {
        return Err(refused("it is longer than 107 bytes"));
    }
    if text.chars().any(char::is_control) {
        return Err(refused("it contains control characters"));
    }
    Ok(text)
}

/// Named by what others on the machine do not know, the token: none of them can make it first, and fill it.
pub(super) fn empty_folder(set: &Set) -> String {
    format!("/tmp/sccache-dock-empty-{}", set.id)
}
