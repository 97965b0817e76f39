//! Configuration of the gateway, written by the supervisor as a TOML file of mode 0600, never by hand.

use crate::base::secret::Secret;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The gateway's configuration file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// TCP address of the cache port (4226). Not bound if the listeners are passed over standard input.
    pub listen: SocketAddr,
    /// Unix socket that serves sccache's own protocol (and HTTP), mode 0666: access is controlled by its folder.
    pub socket: PathBuf,
    /// Folder that holds the blobs.
    pub store_dir: PathBuf,
    /// Maximum disk usage of the store in bytes, counted in whole file-system blocks.
    pub budget_bytes: u64,
    /// Further rules for what the store keeps.
    #[serde(default)]
    pub policies: Policies,
    /// Who may use sccache's own protocol on the TCP port.
    pub ipc: IpcPolicy,
    /// Socket of the supervised sccache server, which answers statistics requests and compiles for clients in the same
    /// container.
    pub server_socket: PathBuf,
    /// The supervised sccache, which is asked once for its version, so that clients can compare.
    pub sccache: Option<PathBuf>,
    /// Socket of the supervisor, which is asked for the services that the status page shows.
    #[serde(default)]
    pub control_socket: Option<PathBuf>,
    /// Tokens that may read and write.
    pub write_tokens: Vec<Secret>,
    /// Tokens that may only read.
    pub read_tokens: Vec<Secret>,
    /// Whether anyone may read.
    pub anonymous_read: bool,
    /// Public DNS names under which anonymous reads are allowed; see `hosts.rs`.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// File of named tokens; reloaded when it changes.
    #[serde(default)]
    pub tokens_file: Option<PathBuf>,
    /// TLS on the cache port.
    #[serde(default)]
    pub tls: Option<TlsFiles>,
    /// How long requests in flight may continue after SIGTERM.
    #[serde(with = "millis")]
    pub drain: Duration,
    /// The reverse proxy of the scheduler, in the distributed modes.
    #[serde(default)]
    pub dist: Option<Dist>,
    /// The upstream store.
    pub upstream: Option<Upstream>,
}

impl Config {
    /// A gateway that has all its files in `folder`, on a free port of loopback, with a GiB and without tokens: what a caller
    /// wants otherwise, it says.
    pub fn in_folder(folder: &Path) -> Config {
        Config {
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            socket: folder.join("sccache.sock"),
            store_dir: folder.join("cache"),
            budget_bytes: 1 << 30,
            policies: Policies::default(),
            ipc: IpcPolicy::Off,
            server_socket: folder.join("server.sock"),
            sccache: None,
            control_socket: None,
            write_tokens: Vec::new(),
            read_tokens: Vec::new(),
            anonymous_read: false,
            hosts: Vec::new(),
            tokens_file: None,
            tls: None,
            drain: Duration::from_secs(1),
            dist: None,
            upstream: None,
        }
    }
}

/// Rules for what the store keeps besides its budget. Namespaces have the names shown to users: "default" is the one
/// without a prefix.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policies {
    /// Quota by namespace, in bytes on disk.
    pub quotas: BTreeMap<String, u64>,
    /// Namespaces whose blobs are not evicted by writes to others.
    pub pinned: BTreeSet<String>,
    /// Namespaces in which a result of sccache's is written once; `*` is all.
    pub write_once: BTreeSet<String>,
    /// Most bytes of the log of who has written what; there is none without.
    pub audit_bytes: Option<u64>,
    /// Blobs unused for longer than this are removed.
    #[serde(with = "optional_millis")]
    pub max_age: Option<Duration>,
    /// The same for single namespaces, in seconds; it applies in place of `max_age`, and to pinned ones too.
    pub ages: BTreeMap<String, u64>,
    /// Period in which every blob is verified once.
    #[serde(with = "optional_millis")]
    pub scrub: Option<Duration>,
}

/// Configuration of the scheduler's reverse proxy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dist {
    /// Its address: port 10600 for clients and builders of other machines; loopback in MODE=builder.
    pub listen: SocketAddr,
    /// The scheduler to which requests are forwarded.
    pub scheduler: Scheduler,
    /// Client token of the local scheduler. The proxy checks clients itself, and replaces their token with this one.
    pub scheduler_token: Secret,
    /// Token that builders must present.
    pub builder_token: Secret,
    /// Key for builders that join with a JWT.
    #[serde(default)]
    pub builder_jwt_key: Option<JwtKey>,
    /// The answer to a client with a wrong token.
    pub wrong_token: WrongToken,
    /// Public address of the builder in this container.
    pub local_builder: Option<SocketAddr>,
    /// Where this container reaches that builder, whatever its public address.
    #[serde(default)]
    pub local_builder_port: Option<SocketAddr>,
    /// Datagram socket on which the builder's shim reports jobs.
    pub jobs_socket: PathBuf,
    /// File in which the builders' last heartbeats are kept for the next gateway. It holds keys, so its mode is 0600.
    pub heartbeats: PathBuf,
    /// With TLS on the ports, other machines may speak without it to this one.
    #[serde(default)]
    pub plain: bool,
    /// The builder's port, where nobody else reaches it: connections to the relay of the scheduler's machine are kept open
    /// and lead there.
    #[serde(default)]
    pub tunnels_to: Option<SocketAddr>,
    /// The relay, where it is on.
    #[serde(default)]
    pub relay: Option<Relay>,
    /// What is presented to the scheduler of another machine.
    #[serde(default)]
    pub client_certificate: Option<ClientCertificate>,
}

/// A key of 32 bytes in base64url without padding, as `sccache-dist auth generate-jwt-hs256-key` prints it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JwtKey(Secret);

impl JwtKey {
    /// The key of this text, if it is one.
    pub fn parse(text: &str) -> Option<JwtKey> {
        let key = JwtKey(Secret::new(text));
        (key.bytes().len() == 32).then_some(key)
    }

    /// Itself.
    pub fn bytes(&self) -> Vec<u8> {
        URL_SAFE_NO_PAD.decode(self.0.reveal()).unwrap_or_default()
    }

    /// Its text.
    pub fn text(&self) -> &Secret {
        &self.0
    }
}

/// What the relay needs to know.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Relay {
    /// Where clients reach the scheduler's port, by an address; from their requests where none is given.
    pub address: Option<SocketAddr>,
    /// Where others reach this machine, as far as is known: for clients that call it by a name that means nothing here.
    #[serde(default)]
    pub public_ip: Option<IpAddr>,
    /// How long a job may wait for a slot.
    pub queue_millis: u64,
    /// Most bytes of jobs that wait or run.
    pub queue_bytes: u64,
    /// Most bytes of one packed toolchain: what builders keep of all together.
    pub archive_bytes: u64,
    /// Folder of bodies that are kept.
    pub spool: PathBuf,
    /// File of the relay's certificate authority; its mode is 0600.
    pub authority: PathBuf,
    /// Kinds of processors of builders that are not ours, as ELF's `e_machine`.
    #[serde(default)]
    pub machines: BTreeMap<SocketAddr, u16>,
}

impl Relay {
    /// How long a job may wait for a slot.
    pub fn queue_time(&self) -> Duration {
        Duration::from_millis(self.queue_millis)
    }
}

/// Location of the scheduler.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scheduler {
    /// In this container, on loopback.
    Local(SocketAddr),
    /// The scheduler port of another machine, `http://host:port` or `https://host:port`.
    Remote(String),
}

/// The answer to a client with a wrong token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WrongToken {
    /// 401: the client's compile fails, so that the mistake is noticed.
    Fail,
    /// 503: the client compiles locally.
    Fallback,
}

/// The upstream of the cache.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Upstream {
    /// `s3://`, `redis://`, `rediss://`, `http://` or `https://`; may contain credentials.
    pub url: Secret,
    /// Bearer token for an upstream over HTTP.
    pub token: Option<Secret>,
    /// What is presented to an upstream over HTTPS.
    #[serde(default)]
    pub client_certificate: Option<ClientCertificate>,
    /// File that holds the blobs still to be uploaded.
    pub queue: PathBuf,
    /// Set where the gateway serves one build and ends with it.
    #[serde(default)]
    pub ahead: Option<Ahead>,
}

/// What a build's own gateway takes from the upstream, another gateway, before it is asked for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ahead {
    /// Body of the request to the upstream's `/api/prefetch`.
    pub request: String,
    /// Folder of the build's keys, empty or such as `team/x`. Entries are found there whatever the upstream calls them.
    pub folder: String,
    /// Most bytes that wait to be passed on: further writes wait for room.
    pub unsent_bytes: u64,
    /// How long the end may wait for them.
    #[serde(with = "millis")]
    pub farewell: Duration,
}

/// Paths of certificate and key; all are reloaded when one of them changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// The certificate, followed by intermediate certificates, in PEM.
    pub cert: PathBuf,
    /// Its private key, in PEM.
    pub key: PathBuf,
    /// Clients that offer less are refused.
    #[serde(default)]
    pub min_version: TlsVersion,
    /// Authorities whose certificates clients may present, in PEM.
    #[serde(default)]
    pub client_ca: Option<PathBuf>,
}

/// Paths of the certificate that is presented to another machine, and of its key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientCertificate {
    /// The certificate, followed by intermediate certificates, in PEM.
    pub cert: PathBuf,
    /// Its private key, in PEM.
    pub key: PathBuf,
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

/// Who may use sccache's own protocol, which has no authentication, on the TCP port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IpcPolicy {
    /// Nobody; the Unix socket is not opened either.
    Off,
    /// Loopback and the container's own address.
    Local,
    /// The same, plus these.
    Beyond {
        /// The container's default gateway. Connections to a published port have its address if they come from the
        /// Docker host or through Docker's proxy, which forwards every machine that reaches the port.
        bridge: bool,
        /// Further networks.
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
