//! The cache gateway: one port for WebDAV, plain HTTP and sccache's own protocol.
//!
//! ```text
//! accept -> first byte -+- 0x00   -> ipc.rs  -+-> disk.rs -> store.rs
//!                       +- letter -> http.rs -+
//!                       +- 0x16   -> tls.rs -> http.rs
//!                       +- others: closed, with a line in the log
//! ```
//!
//! Where TLS is set, HTTP without it is for this machine (this container) only. sccache's own protocol does not support TLS;
//! who may speak it is decided by address, as ever.

pub(crate) mod accept;
pub mod access;
mod audit;
mod bazel;
pub mod body;
pub(crate) mod connection_limit;
pub mod database;
pub mod disk;
pub mod files;
pub mod history;
mod hosts;
pub mod http;
pub(crate) mod http1;
pub(crate) mod identity;
pub mod ipc;
mod journal;
mod logins;
mod lookup;
pub mod metrics;
mod oidc;
mod once;
pub mod page;
pub mod peer;
mod persistence;
pub(crate) mod refusals;
mod services;
pub(crate) mod socket;
mod status;
mod stopping;
pub mod tls;
pub mod upstream;
mod version;
pub mod warnings;
mod wrong_tokens;
pub mod zip;

use self::connection_limit::ConnectionLimiter;
use crate::base::regular_file;
use crate::base::time::unix_seconds;
use crate::contract::gateway_config::Config;
use crate::contract::gateway_status::DistStatus;
use crate::contract::key::Key;
use crate::gateway::access::Access;
use crate::gateway::audit::Audit;
use crate::gateway::disk::Disk;
use crate::gateway::files::Files;
use crate::gateway::history::{History, Range};
use crate::gateway::hosts::Hosts;
use crate::gateway::identity::Identity;
use crate::gateway::journal::{Did, Journal, Sender};
use crate::gateway::metrics::Metrics;
use crate::gateway::oidc::Oidc;
use crate::gateway::once::Rewrites;
use crate::gateway::peer::Peer;
use crate::gateway::refusals::Refusals;
use crate::gateway::services::Services;
use crate::gateway::tls::Tls;
use crate::gateway::upstream::Upstream;
use crate::gateway::warnings::ADVICE;
use crate::store::Store;
use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use std::io;
use std::sync::{Arc, OnceLock};
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;
use tracing::warn;

/// Ends of builds that are processed at a time: each may have a long body.
const ENDS: usize = 2;

/// Asked for the state of the cluster.
pub(crate) type ClusterStatus = Box<dyn Fn() -> DistStatus + Send + Sync>;

/// What all connections share.
pub struct Gateway {
    pub(crate) config: Config,
    pub(crate) identity: Arc<Identity>,
    pub(crate) refusals: Arc<Refusals>,
    /// Held while they are written.
    logins: Mutex<()>,
    /// How often what is kept of the sessions had changed when it was written last; held while it is.
    sessions: Mutex<u64>,
    pub(crate) disk: Disk,
    upstream: Option<Arc<Upstream>>,
    pub(crate) metrics: Metrics,
    audit: Arc<Audit>,
    rewrites: Arc<Rewrites>,
    /// How the cluster is, in the modes that distribute.
    cluster: Option<ClusterStatus>,
    hosts: Hosts,
    files: Files,
    pub(crate) limiter: ConnectionLimiter,
    services: Services,
    // Held for a sum, never across I/O or an await.
    history: Mutex<History>,
    pub(crate) journal: Journal,
    /// For what takes memory: the ends of builds.
    pub(crate) ends: Semaphore,
    sccache_version: OnceLock<String>,
    started: Instant,
}

impl Gateway {
    pub(crate) fn new(
        config: Config,
        store: Store,
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
        let logins = regular_file::read_to_string(&config.store_dir.join(logins::FILE)).ok();
        let access = Arc::new(Access::new(&config, logins.as_deref(), secret));
        persistence::take_up_sessions(&access, &config.store_dir);
        let mut metrics = Metrics::new(move || scraped.usage());
        metrics.scrape_policies(&disk);
        metrics.scrape_tokens(&access);
        let journal = Journal::open(&config.store_dir, config.budget_bytes);
        let mut history = History::default();
        for range in [Range::Day, Range::Quarter] {
            let points = journal.database().map(|it| it.points(range));
            match points.transpose() {
                Ok(points) => history.restore(range, &points.unwrap_or_default()),
                Err(cause) => warn!("cannot read history: {cause}"),
            }
        }
        let tls = config.tls.as_ref().map(|_| Arc::<Tls>::default());
        if let Some(tls) = &tls {
            metrics.scrape_expiry(tls);
        }
        let rewrites = Arc::<Rewrites>::default();
        let audit = config.policies.audit_bytes.map(|most| {
            let path = config.store_dir.join(audit::FILE);
            let failed = |cause| format!("cannot open \"{}\": {cause}", path.display());
            Audit::start(path.clone(), most).map_err(|cause| io::Error::other(failed(cause)))
        });
        let audit = Arc::new(audit.transpose()?.unwrap_or_default());
        let figures = once::Scrape(Arc::clone(&rewrites), Arc::clone(&audit));
        metrics.also(Box::new(figures));
        if let Some(upstream) = &upstream {
            metrics.also(Box::new(upstream::Scrape(Arc::clone(upstream))));
        }
        Ok(Gateway {
            upstream,
            refusals: Arc::new(Refusals::new(metrics.refusal_counters())),
            identity: Arc::new(Identity {
                access,
                oidc: Arc::default(),
                tls,
            }),
            logins: Mutex::default(),
            sessions: Mutex::default(),
            hosts: Hosts::new(config.hosts.iter().cloned().chain(own_name())),
            files: Files::new(asked),
            limiter: ConnectionLimiter::new(slots),
            services: Services::new(config.control_socket.clone()),
            history: Mutex::new(history),
            journal,
            ends: Semaphore::new(ENDS),
            config,
            metrics,
            cluster: None,
            disk,
            audit,
            rewrites,
            sccache_version: OnceLock::new(),
            started: Instant::now(),
        })
    }

    /// Shows the cluster's metrics and state, too.
    pub(crate) fn with_cluster(
        mut self,
        collector: Box<dyn Collector>,
        status: ClusterStatus,
    ) -> Gateway {
        self.metrics.also(collector);
        self.cluster = Some(status);
        self
    }

    /// Starts what runs beside the connections.
    pub(crate) fn start(self: &Arc<Gateway>) {
        self.keep_logins();
        files::reread(self);
        files::follow(self);
        Oidc::follow(&self.identity.oidc);
        let asking = Arc::clone(self);
        // On a thread that the end of the runtime does not wait for: the program may never answer.
        std::thread::spawn(move || asking.ask_sccache_version());
        persistence::remember(self);
    }

    /// Takes note of what was done for a client, while one wants to know.
    pub(crate) fn note(&self, peer: &Peer, token: Option<&str>, key: &Key, did: Did) {
        let sender = || Sender {
            origin: peer.origin(),
            token: token.map(str::to_owned),
        };
        self.journal.note(sender, key, did);
    }

    /// To be called every few seconds.
    fn tick(&self) {
        self.refusals.warnings.tick();
        self.identity.access.expire(unix_seconds());
        let tls = self.identity.tls.as_ref();
        if let Some(advice) = tls.and_then(|tls| tls.daily_advice(unix_seconds())) {
            self.refusals.warnings.warn(ADVICE, "certificate", &advice);
        }
    }

    /// The port on which clients and builders reach the scheduler.
    pub(crate) fn scheduler_port(&self) -> Option<u16> {
        let dist = self.config.dist.as_ref();
        dist.map(|dist| dist.listen.port())
    }
}

/// The name of this machine, or container.
fn own_name() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    Some(name.trim().to_owned())
}
