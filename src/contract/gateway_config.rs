//! What the gateway needs to know: written by the supervisor as a TOML file of mode 0600, never by hand.

use crate::base::secret::Secret;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// The gateway's configuration file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// TCP address of the cache port (4226). Not bound when the listeners are handed over on standard input.
    pub listen: SocketAddr,
    /// Unix socket that speaks sccache's own protocol (and HTTP), mode 0666: the folder is the gate.
    pub socket: PathBuf,
    /// Folder of the blobs.
    pub store_dir: PathBuf,
    /// Most bytes that the store may take on disk, in whole file-system blocks.
    pub budget_bytes: u64,
    /// What else the store keeps to.
    #[serde(default)]
    pub policies: Policies,
    /// Who may speak sccache's own protocol on the TCP port.
    pub ipc: IpcPolicy,
    /// Socket of the supervised sccache server: statistics are relayed to it, and compile requests of
    /// clients inside the same container.
    pub server_socket: PathBuf,
    /// The supervised sccache, asked once for its version so that clients can compare.
    pub sccache: Option<PathBuf>,
    /// Socket of the supervisor, asked for the services that the status page shows.
    #[serde(default)]
    pub control_socket: Option<PathBuf>,
    /// Tokens that may read and write.
    pub write_tokens: Vec<Secret>,
    /// Tokens that may only read.
    pub read_tokens: Vec<Secret>,
    /// Anyone may read.
    pub anonymous_read: bool,
    /// Names of the public DNS under which they may; see `hosts.rs`.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// More tokens, by name; read again whenever it changes.
    #[serde(default)]
    pub tokens_file: Option<PathBuf>,
    /// TLS on the cache port.
    #[serde(default)]
    pub tls: Option<TlsFiles>,
    /// How long requests in flight may still take after SIGTERM.
    #[serde(with = "millis")]
    pub drain: Duration,
    /// The front of the scheduler, in the modes that distribute.
    #[serde(default)]
    pub dist: Option<Dist>,
    /// The upstream.
    pub upstream: Option<Upstream>,
}

/// What the store keeps to besides its budget. Namespaces by the names that people see: "default" is the nameless one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policies {
    /// Most bytes on disk of a namespace.
    pub quotas: BTreeMap<String, u64>,
    /// Namespaces from which writes to others do not evict.
    pub pinned: BTreeSet<String>,
    /// Namespaces in which a result of sccache's is written once; `*` is all.
    pub write_once: BTreeSet<String>,
    /// Most bytes of the log of who has written what; there is none without.
    pub audit_bytes: Option<u64>,
    /// Blobs unused for longer are removed.
    #[serde(with = "optional_millis")]
    pub max_age: Option<Duration>,
    /// In this time every blob is compared with its checksum once.
    #[serde(with = "optional_millis")]
    pub scrub: Option<Duration>,
}

/// What the front of the scheduler needs to know.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dist {
    /// Address of the front: 10600 for clients and builders of other machines; loopback in MODE=builder.
    pub listen: SocketAddr,
    /// The scheduler behind it.
    pub scheduler: Scheduler,
    /// What the local scheduler takes for a client: the front checks clients itself and puts this in its place.
    pub scheduler_token: Secret,
    /// Builders prove themselves with it.
    pub builder_token: Secret,
    /// What a client with a wrong token gets.
    pub wrong_token: WrongToken,
    /// Public address of the builder in this container.
    pub local_builder: Option<SocketAddr>,
    /// Datagram socket on which the builder's shim reports jobs.
    pub jobs_socket: PathBuf,
    /// Where the builders' last heartbeats are kept for the next gateway; it holds keys, so its mode is 0600.
    pub heartbeats: PathBuf,
}

/// Where the scheduler is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scheduler {
    /// In this container, on loopback.
    Local(SocketAddr),
    /// The front of another machine, `http://host:port`.
    Remote(String),
}

/// What a client with a wrong token gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WrongToken {
    /// 401: the client's compile fails, so nobody overlooks it.
    Fail,
    /// 503: the client compiles locally.
    Fallback,
}

/// The upstream of the cache.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Upstream {
    /// `s3://`, `redis://`, `rediss://`, `http://` or `https://`; may hold keys.
    pub url: Secret,
    /// Bearer token for an upstream over HTTP.
    pub token: Option<Secret>,
    /// File of what is still to be passed on.
    pub queue: PathBuf,
}

/// Where certificate and key stand; both are read again whenever one of them changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// The certificate, then the intermediate ones, in PEM.
    pub cert: PathBuf,
    /// Its private key, in PEM.
    pub key: PathBuf,
    /// Clients that offer less are refused.
    #[serde(default)]
    pub min_version: TlsVersion,
}

/// A version of TLS that rustls still considers safe.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum TlsVersion {
    /// TLS 1.2 (RFC 5246).
    #[default]
    #[serde(rename = "1.2")]
    V1_2,
    /// TLS 1.3 (RFC 8446).
    #[serde(rename = "1.3")]
    V1_3,
}

/// Who may speak sccache's own protocol, which knows no authentication, on the TCP port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IpcPolicy {
    /// Nobody; the Unix socket is not opened either.
    Off,
    /// Loopback and our own address.
    Local,
    /// The same, and these.
    Beyond {
        /// The container's default gateway: under its address a published port shows the Docker host and whoever the
        /// host forwards, which Docker's proxy does for every machine that reaches the port.
        bridge: bool,
        /// Networks.
        networks: Vec<IpNet>,
    },
}

mod optional_millis {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use std::time::Duration;

    pub(super) fn serialize<S: Serializer>(
        value: &Option<Duration>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        let millis = |value: &Duration| u64::try_from(value.as_millis()).unwrap_or(u64::MAX);
        value.as_ref().map(millis).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<Duration>, D::Error> {
        Ok(Option::<u64>::deserialize(from)?.map(Duration::from_millis))
    }
}

mod millis {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use std::time::Duration;

    pub(super) fn serialize<S: Serializer>(value: &Duration, to: S) -> Result<S::Ok, S::Error> {
        u64::try_from(value.as_millis())
            .unwrap_or(u64::MAX)
            .serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_millis)
    }
}
