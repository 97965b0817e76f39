//! The cache gateway: one port for WebDAV, plain HTTP and sccache's own protocol.
//!
//! Run as a supervised service: `sccache-dock-gateway --config FILE`. The supervisor writes the file and
//! hands over the listeners, which it keeps open across restarts of the gateway.
//!
//! ```text
//! accept -> first byte -+- 0x00   -> ipc.rs  -+-> disk.rs -> store.rs
//!                       +- letter -> http.rs -+
//!                       +- 0x16   -> tls.rs -> http.rs
//!                       +- others: closed, with a line in the log
//! ```
//!
//! Where TLS is set, HTTP without it is for this machine (this container) only. sccache's own protocol knows no TLS;
//! who may speak it is decided by address, as ever.

pub mod handover;
pub(crate) mod connection_limit;
mod accept;
pub mod access;
mod bazel;
pub mod disk;
pub mod files;
pub mod history;
mod hosts;
pub mod http;
pub mod ipc;
pub mod metrics;
pub mod page;
mod services;
mod sessions;
mod socket;
pub mod tls;
pub mod upstream;
pub mod warnings;
pub mod zip;

pub(crate) use accept::a_moment_after;
pub use self::handover::Listeners;
pub(crate) use self::handover::REREAD;

use crate::base::config_file;
use crate::base::regular_file;
use crate::contract::gateway_config::Config;
use crate::contract::gateway_status::{
    Integrity, LostHits, Status, StoreStatus, TlsStatus, TokensStatus,
};
use crate::gateway::access::{Access, Caller};
use self::connection_limit::Crowd;
use crate::gateway::disk::{Disk, Download, Fault};
use crate::gateway::files::Files;
use crate::gateway::history::{History, Point, Range};
use crate::gateway::hosts::Hosts;
use crate::contract::key::Key;
use crate::gateway::metrics::{Metrics, Protocol};
use crate::gateway::page::Traffic;
use crate::dist_front::{Front, Supervisor};
use crate::gateway::services::Services;
use crate::store::Store;
use crate::gateway::tls::Tls;
use crate::gateway::upstream::{Found, Upstream};
use crate::gateway::warnings::{ADVICE, REFUSALS, Warnings, unix_seconds};
use crate::supervisor::state_dir;
use std::fmt;
use std::io::{self, BufRead};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tracing::{info, warn};

/// Most bytes of a version's line.
const LONGEST_VERSION: u64 = 256;

/// Why the gateway could not serve.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration file.
    #[error(transparent)]
    Config(#[from] config_file::Error),
    /// The store's folder is not usable.
    #[error("cannot open the store in \"{}\": {cause}", path.display())]
    Store {
        /// The folder.
        path: PathBuf,
        /// Why.
        cause: crate::store::Error,
    },
    /// A file that is read while the gateway runs may not be read by its user.
    #[error("cannot read \"{}\": {cause}\nhint: the gateway runs as uid {uid}, which must be allowed to read it", path.display())]
    Forbidden {
        /// The file.
        path: PathBuf,
        /// What the system says.
        cause: io::Error,
        /// Our user.
        uid: u32,
    },
    /// No listeners.
    #[error("{0}")]
    Listen(io::Error),
    /// The second level cannot be used as it is configured.
    #[error("{0}")]
    Upstream(upstream::Error),
    /// The runtime or its signal handlers.
    #[error("cannot start the gateway: {0}")]
    Start(io::Error),
}

impl Error {
    /// Whether another try with the same configuration file must fail too.
    pub fn is_in_the_file(&self) -> bool {
        matches!(
            self,
            Error::Config(_) | Error::Forbidden { .. } | Error::Upstream(_)
        )
    }
}

/// Serves the cache until SIGTERM, SIGINT or, with `inherit`, the end of the supervisor.
///
/// With `inherit` the listeners come from the Unix socket on standard input; the byte `R` goes back over it
/// as soon as connections are accepted.
pub fn serve(config: &Path, inherit: bool) -> Result<(), Error> {
    crate::base::log::to_stderr();
    let config: Config = config_file::read(config)?;
    files::check_rights(&config).map_err(|(path, cause)| Error::Forbidden {
        path,
        cause,
        uid: nix::unistd::geteuid().as_raw(),
    })?;
    let (listeners, supervisor) = if inherit {
        let (listeners, supervisor) = self::handover::inherited(&config).map_err(Error::Listen)?;
        (listeners, Some(supervisor))
    } else {
        (self::handover::bind(&config).map_err(Error::Listen)?, None)
    };
    if let Some(config) = &config.upstream {
        upstream::operator(config).map_err(Error::Upstream)?;
    }
    let options = crate::store::Options {
        dir: config.store_dir.clone(),
        budget_bytes: config.budget_bytes,
        policies: config.policies.clone(),
    };
    let store = Store::open(options).map_err(|cause| Error::Store {
        path: config.store_dir.clone(),
        cause,
    })?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(disk::threads())
        .enable_all()
        .build()
        .map_err(Error::Start)?;
    let served = runtime.block_on(async {
        let (talk, ends) = crate::dist_front::talk();
        let asked = Arc::<Notify>::default();
        let shutdown =
            self::handover::shutdown(supervisor, ends, Arc::clone(&asked)).map_err(Error::Start)?;
        run(listeners, config, store, (talk, asked), shutdown)
            .await
            .map_err(Error::Start)
    });
    // A store call on a disk that hangs must not hold up the stop.
    runtime.shutdown_timeout(Duration::from_secs(1));
    served
}

/// Who is at the other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// Over the port: its address and ours.
    Tcp {
        /// The peer's.
        address: SocketAddr,
        /// Ours, as the peer named it.
        local: IpAddr,
    },
    /// Over the socket.
    Unix {
        /// Its user.
        uid: u32,
        /// Its process, 0 when it lives in another process namespace (outside this container).
        pid: i32,
    },
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::Tcp { address, .. } => write!(f, "{address}"),
            Peer::Unix { uid, pid: 0 } => {
                write!(f, "socket uid={uid} of another container or the host")
            }
            Peer::Unix { uid, pid } => write!(f, "socket uid={uid} pid={pid}"),
        }
    }
}

impl Peer {
    /// Is it this machine, or this container?
    fn is_ourselves(&self) -> bool {
        match self {
            Peer::Unix { .. } => true,
            Peer::Tcp { address, local } => access::is_ourselves(address.ip(), *local),
        }
    }

    /// The same for all connections of one client machine (or user): what advice is limited by.
    pub fn origin(&self) -> String {
        match self {
            Peer::Tcp { address, .. } => address.ip().to_canonical().to_string(),
            Peer::Unix { uid, .. } => format!("socket uid={uid}"),
        }
    }
}

/// What all connections share.
#[derive(Debug)]
pub struct Gateway {
    pub(crate) config: Config,
    pub(crate) access: Arc<Access>,
    /// Held while they are written.
    logins: Mutex<()>,
    pub(crate) disk: Disk,
    upstream: Option<Arc<Upstream>>,
    pub(crate) metrics: Metrics,
    pub(crate) warnings: Warnings,
    front: Option<Arc<Front>>,
    tls: Option<Arc<Tls>>,
    hosts: Hosts,
    files: Files,
    crowd: Crowd,
    services: Services,
    // Held for a sum, never across I/O or an await.
    history: Mutex<History>,
    sccache_version: OnceLock<String>,
    started: Instant,
}

impl Gateway {
    fn new(
        config: Config,
        store: Store,
        front: Option<Arc<Front>>,
        asked: Arc<Notify>,
        slots: usize,
    ) -> io::Result<Gateway> {
        let mut secret = [0; 32];
        getrandom::fill(&mut secret)?;
        let disk = Disk::new(store);
        let scraped = disk.clone();
        let upstream = config.upstream.as_ref();
        let upstream = upstream.map(|config| Upstream::start(config, disk.clone()));
        let upstream = upstream.transpose().map_err(io::Error::other)?;
        let logins = regular_file::read_to_string(&config.store_dir.join(sessions::FILE)).ok();
        let access = Arc::new(Access::new(&config, logins.as_deref(), secret));
        let mut metrics = Metrics::new(move || scraped.usage());
        metrics.scrape_policies(&disk);
        metrics.scrape_tokens(&access);
        let tls = config.tls.as_ref().map(|_| Arc::<Tls>::default());
        if let Some(tls) = &tls {
            metrics.scrape_expiry(tls);
        }
        if let Some(front) = &front {
            metrics.also(front.collector());
        }
        if let Some(upstream) = &upstream {
            metrics.also(Box::new(upstream::Scrape(Arc::clone(upstream))));
        }
        Ok(Gateway {
            upstream,
            access,
            logins: Mutex::default(),
            tls,
            hosts: Hosts::new(config.hosts.iter().cloned().chain(own_name())),
            files: Files::new(asked),
            crowd: Crowd::new(slots),
            services: Services::new(config.control_socket.clone()),
            history: Mutex::default(),
            config,
            metrics,
            front,
            disk,
            warnings: Warnings::default(),
            sccache_version: OnceLock::new(),
            started: Instant::now(),
        })
    }

    /// A blob of our store or, where it is missing here, of the upstream.
    pub(crate) async fn blob(&self, key: &Key) -> Result<Download, Fault> {
        let found = self.disk.get(key).await;
        if matches!(found, Err(Fault::Store(crate::store::Error::Missing))) {
            self.disk.note_miss(key);
        }
        match (&self.upstream, &found) {
            (Some(upstream), Err(Fault::Store(crate::store::Error::Missing))) => {
                match upstream.fetch(key).await {
                    Found::Here => self.disk.get(key).await,
                    Found::Nowhere => found,
                }
            }
            _ => found,
        }
    }

    /// Counts a blob that a client has asked for in vain.
    pub(crate) fn missed(&self, key: &Key, protocol: Protocol) {
        let name = key.namespace();
        self.metrics.missed(protocol, name, self.disk.knows(name));
    }

    /// Tells the upstream of a blob that a client has stored here.
    pub(crate) fn pass_on(&self, key: &Key) {
        if let Some(upstream) = &self.upstream {
            upstream.offer(key);
        }
    }

    /// Counts and logs a refused request.
    pub(crate) fn refuse(
        &self,
        reason: &'static str,
        peer: &Peer,
        what: &dyn fmt::Display,
        cause: &dyn fmt::Display,
    ) {
        self.metrics.refused(reason);
        self.warnings.warn(
            REFUSALS,
            reason,
            &format!("refused {what} peer={peer} reason={reason}: {cause}"),
        );
    }

    /// To be called every few seconds.
    fn tick(&self) {
        self.warnings.tick();
        let tls = self.tls.as_ref();
        if let Some(advice) = tls.and_then(|tls| tls.daily_advice(unix_seconds())) {
            self.warnings.warn(ADVICE, "certificate", &advice);
        }
    }

    /// Runs the supervised sccache once; without an answer the version stays unknown.
    fn ask_sccache_version(&self) {
        if let Some(version) = self.config.sccache.as_deref().and_then(version_of) {
            // Asked once, so set once.
            let _ = self.sccache_version.set(version);
        }
    }

    /// What was asked of the cache lately.
    pub(crate) fn traffic(&self, range: Range) -> Traffic {
        let totals = self.metrics.totals();
        let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        history.record(self.started.elapsed(), &totals);
        let lately = history.points(Range::Minutes).into_iter();
        Traffic {
            range,
            recent: lately.flatten().collect::<Point>(),
            points: history.points(range),
        }
    }

    /// Writes down what outlives us of the logins. Blocks.
    pub(crate) fn keep_logins(&self) {
        let _one = self.logins.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.config.store_dir.join(sessions::FILE);
        if let Err(cause) = state_dir::write_private(&path, &self.access.logins(), None) {
            warn!(
                "cannot write \"{}\": {cause}; log-outs from the status page are forgotten with this gateway",
                path.display()
            );
        }
    }

    /// The port on which clients and builders reach the scheduler.
    pub(crate) fn scheduler_port(&self) -> Option<u16> {
        let dist = self.config.dist.as_ref();
        dist.map(|dist| dist.listen.port())
    }

    /// The answer of `/api/status`, as far as `caller` may see it.
    pub(crate) fn status(&self, caller: &Caller) -> Status {
        let status = self.whole_status();
        if caller.is_restricted() {
            status.narrowed(caller)
        } else {
            status
        }
    }

    fn whole_status(&self) -> Status {
        let usage = self.disk.usage();
        let fault = self.disk.write_fault();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            sccache_version: self.sccache_version.get().cloned(),
            uptime_seconds: self.started.elapsed().as_secs(),
            ready: fault.is_none(),
            upstream: self.upstream.as_ref().map(|upstream| upstream.status()),
            totals: self.metrics.totals(),
            lost_hits: LostHits::new(&usage),
            integrity: Integrity::new(&usage),
            namespaces: self.metrics.namespaces(&usage),
            protocols: self.metrics.protocols(),
            refusals: self.metrics.refusals(),
            tokens: TokensStatus::new(&self.access, self.files.faults().tokens),
            tls: self.tls.as_ref().map(|tls| TlsStatus {
                not_after_unix_seconds: tls.not_after(),
                fault: self.files.faults().tls,
            }),
            recent_warnings: self.warnings.recent(),
            dist: self.front.as_ref().map(|front| front.status()),
            store: StoreStatus {
                bytes: usage.bytes,
                budget_bytes: usage.budget_bytes,
                entries: usage.entries,
                indexing: usage.indexing,
                scan: usage.indexing.then(|| usage.scanned.into()),
                evicted_entries: usage.evicted_entries,
                evicted_bytes: usage.evicted_bytes,
                broken_entries: usage.flaws.sum(),
                expired_entries: usage.expired_entries,
                expired_bytes: usage.expired_bytes,
                pinned_refusals: usage.pinned_refusals,
                purge: usage.purging.map(Into::into),
                fault: fault.or(usage.last_fault.map(|fault| fault.message)),
            },
        }
    }
}

/// The name of this machine, or container.
fn own_name() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    Some(name.trim().to_owned())
}

/// The last word of the first line that `PROGRAM --version` prints.
fn version_of(program: &Path) -> Option<String> {
    let mut child = Command::new(program)
        .arg("--version")
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .inspect_err(|cause| warn!("cannot run \"{}\": {cause}", program.display()))
        .ok()?;
    let mut line = String::new();
    let mut output = io::BufReader::new(io::Read::take(child.stdout.take()?, LONGEST_VERSION));
    let read = output.read_line(&mut line);
    // It may go on printing for ever; a program that has ended cannot be killed, which is fine.
    drop(output);
    let _ = child.kill();
    reap(&mut child);
    read.ok()?;
    line.split_whitespace().last().map(str::to_owned)
}

#[expect(
    clippy::disallowed_methods,
    reason = "the gateway's own child, not a service"
)]
fn reap(child: &mut Child) {
    let _ = child.wait();
}

/// Serves `store` on `listeners` until `shutdown` ends, then lets requests in flight finish within the
/// configuration's `drain`. Files are read again when `asked` is notified. An error means that the listeners cannot be
/// used at all.
pub async fn run(
    listeners: Listeners,
    config: Config,
    store: Store,
    (supervisor, asked): (Supervisor, Arc<Notify>),
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    listeners.tcp.set_nonblocking(true)?;
    let tcp = tokio::net::TcpListener::from_std(listeners.tcp)?;
    let unix = match listeners.unix {
        None => None,
        Some(unix) => {
            unix.set_nonblocking(true)?;
            Some(tokio::net::UnixListener::from_std(unix)?)
        }
    };
    info!("listening on {}", tcp.local_addr()?);
    if let Some(path) = unix.as_ref().and_then(|unix| unix.local_addr().ok()) {
        info!(
            "listening on {}",
            path.as_pathname()
                .unwrap_or(Path::new("an unnamed socket"))
                .display()
        );
    }
    info!(
        "sccache's own protocol, which knows no token, is for {}",
        access::describe_ipc(&config.ipc, access::default_gateways)
    );
    let drain = config.drain;
    let limits = accept::limits();
    store.keep_files(limits.kept_files);
    let most = limits.connections;
    let dist = config.dist.clone();
    let front = dist.map(|dist| Arc::new(Front::new(dist, supervisor.say)));
    let gateway = Gateway::new(config, store, front, asked, most)?;
    let gateway = Arc::new(gateway);
    gateway.keep_logins();
    files::reread(&gateway);
    files::follow(&gateway);
    let asking = Arc::clone(&gateway);
    // On a thread that the end of the runtime does not wait for: the program may never answer.
    std::thread::spawn(move || asking.ask_sccache_version());
    remember(&gateway);
    let slots = Arc::new(Semaphore::new(most));
    let (stop, stopping) = watch::channel(false);
    let fronting = match (listeners.dist, &gateway.front) {
        (Some(listener), Some(front)) => {
            listener.set_nonblocking(true)?;
            let listener = tokio::net::TcpListener::from_std(listener)?;
            info!("scheduler's front on {}", listener.local_addr()?);
            let (gateway, front) = (Arc::clone(&gateway), Arc::clone(front));
            let heard = supervisor.heard;
            let serving = crate::dist_front::serve(gateway, front, listener, heard, stopping.clone());
            Some(tokio::spawn(serving))
        }
        (None, _) | (_, None) => None,
    };
    let unix = unix.as_ref();
    accept::accept_until(shutdown, &gateway, &tcp, unix, &slots, &stopping).await;
    accept::accept_waiting(&gateway, &tcp, unix, &slots, &stopping).await;
    drop((tcp, unix));
    stop.send_replace(true);
    let all = u32::try_from(most).unwrap_or(u32::MAX);
    let drained = async {
        // Neither fails: nobody closes the semaphore, and a front that panicked has nothing to drain.
        let _ = slots.acquire_many(all).await;
        if let Some(fronting) = fronting {
            let _ = fronting.await;
        }
    };
    match timeout(drain, drained).await {
        Ok(()) => info!("drained"),
        Err(_) => warn!(
            "stopped with {} connections still busy after {drain:?}",
            most - slots.available_permits()
        ),
    }
    Ok(())
}

/// Fills the history for as long as the gateway lives.
fn remember(gateway: &Arc<Gateway>) {
    let gateway = Arc::downgrade(gateway);
    tokio::spawn(async move {
        let mut tick = interval(Range::Minutes.step());
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            tick.tick().await;
            let Some(gateway) = gateway.upgrade() else {
                return;
            };
            let totals = gateway.metrics.totals();
            let mut history = gateway
                .history
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            history.record(gateway.started.elapsed(), &totals);
        }
    });
}
