//! The cache gateway: one port for WebDAV, plain HTTP and sccache's own protocol.
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
pub mod ipc;
mod journal;
mod lookup;
pub mod metrics;
mod oidc;
mod once;
pub mod page;
pub mod peer;
mod services;
mod sessions;
pub(crate) mod socket;
mod status;
mod stopping;
pub mod tls;
pub mod upstream;
pub mod warnings;
pub mod zip;

use self::connection_limit::ConnectionLimiter;
use crate::base::private_file;
use crate::base::regular_file;
use crate::base::time::unix_seconds;
use crate::contract::gateway_config::Config;
use crate::contract::gateway_status::{
    DistStatus, Integrity, LostHits, Status, StoreStatus, TlsStatus, TokensStatus, Totals,
};
use crate::contract::key::Key;
use crate::contract::paths;
use crate::explain::protocol::Served;
use crate::explain::report::Report;
use crate::gateway::access::{Access, Caller};
use crate::gateway::audit::Audit;
use crate::gateway::database::{Lifetime, Whose};
use crate::gateway::disk::Disk;
use crate::gateway::files::Files;
use crate::gateway::history::{History, Point, Range};
use crate::gateway::hosts::Hosts;
use crate::gateway::journal::{Did, Journal, Sender};
use crate::gateway::metrics::Metrics;
use crate::gateway::oidc::Oidc;
use crate::gateway::once::Rewrites;
use crate::gateway::page::Traffic;
use crate::gateway::peer::Peer;
use crate::gateway::services::Services;
use crate::gateway::tls::{Presented, Tls};
use crate::gateway::upstream::Upstream;
use crate::gateway::warnings::{ADVICE, REFUSALS, Warnings};
use crate::store::Store;
use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use std::fmt;
use std::io::{self, BufRead};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::{Notify, Semaphore};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::warn;

/// Most bytes of a version's line.
const LONGEST_VERSION: u64 = 256;
/// Builds whose ends are worked at at a time: each may have a long body.
const ENDS: usize = 2;
/// Builds that the page looks at.
const BUILDS_SHOWN: usize = 200;
/// How often what outlives the gateway is written.
const KEEP: Duration = Duration::from_secs(60);

/// The file beside the blobs in which sessions by ID token are.
const SESSIONS_FILE: &str = paths::SESSIONS;

/// Asked for the state of the cluster.
pub(crate) type ClusterStatus = Box<dyn Fn() -> DistStatus + Send + Sync>;

/// What all connections share.
pub struct Gateway {
    pub(crate) config: Config,
    pub(crate) access: Arc<Access>,
    oidc: Arc<Oidc>,
    /// Held while they are written.
    logins: Mutex<()>,
    pub(crate) disk: Disk,
    upstream: Option<Arc<Upstream>>,
    pub(crate) metrics: Metrics,
    pub(crate) warnings: Warnings,
    audit: Arc<Audit>,
    rewrites: Arc<Rewrites>,
    /// How the cluster is, in the modes that distribute.
    cluster: Option<ClusterStatus>,
    pub(crate) tls: Option<Arc<Tls>>,
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
        let logins = regular_file::read_to_string(&config.store_dir.join(sessions::FILE)).ok();
        let access = Arc::new(Access::new(&config, logins.as_deref(), secret));
        let issued = regular_file::read_to_string(&config.store_dir.join(SESSIONS_FILE));
        access.take_up(&issued.unwrap_or_default());
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
            access,
            oidc: Arc::default(),
            logins: Mutex::default(),
            tls,
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
            warnings: Warnings::default(),
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

    /// Whether the holder of an issuer's ID token may use the cluster, by a rule of the tokens' file. Begins no session:
    /// the token is good until it ends, however often it is shown.
    pub(crate) async fn may_distribute(&self, id_token: &str) -> bool {
        let taken = self.oidc.take(id_token).await;
        taken.is_ok_and(|taken| taken.grant.distribute)
    }

    /// Starts what runs beside the connections.
    pub(crate) fn start(self: &Arc<Gateway>) {
        self.keep_logins();
        files::reread(self);
        files::follow(self);
        Oidc::follow(&self.oidc);
        let asking = Arc::clone(self);
        // On a thread that the end of the runtime does not wait for: the program may never answer.
        std::thread::spawn(move || asking.ask_sccache_version());
        remember(self);
    }

    /// Takes note of what was done for a client, while one wants to know.
    pub(crate) fn note(&self, peer: &Peer, token: Option<&str>, key: &Key, did: Did) {
        let sender = || Sender {
            origin: peer.origin(),
            token: token.map(str::to_owned),
        };
        self.journal.note(sender, key, did);
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
        self.access.expire(unix_seconds());
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

    /// What was served since the first start; nothing where nothing can be kept.
    pub(crate) fn lifetime(&self) -> Option<Lifetime> {
        self.journal.database()?;
        Some(self.journal.lifetime(&self.metrics.totals()))
    }

    /// The last builds, the latest first; nothing where nothing can be kept.
    pub(crate) fn builds(&self, whose: Whose<'_>) -> Option<Vec<Report>> {
        let database = self.journal.database()?;
        database.builds(whose, BUILDS_SHOWN).ok()
    }

    /// Writes the last of what outlives us: for a build's own gateway, what waits for the upstream.
    pub(crate) async fn end(self: &Arc<Gateway>) -> Option<Served> {
        let served = match &self.upstream {
            Some(upstream) => upstream.say_farewell().await,
            None => None,
        };
        if served.is_none() {
            self.record();
            self.keep_history(&mut Totals::default()).await;
        }
        served
    }

    fn record(&self) {
        let totals = self.metrics.totals();
        let mut history = self.history.lock();
        history.record(since_1970(), &totals);
    }

    /// Writes what has happened since the last time, if anything has.
    pub(crate) async fn keep_history(self: &Arc<Gateway>, known: &mut Totals) {
        let totals = self.metrics.totals();
        if totals == *known {
            return;
        }
        *known = totals.clone();
        let gateway = Arc::clone(self);
        let written = spawn_blocking(move || {
            let Some(database) = gateway.journal.database() else {
                return Ok(());
            };
            let removals = gateway.disk.take_removals();
            database.note_removals(&removals, gateway.config.budget_bytes)?;
            let stretches = {
                let mut history = gateway.history.lock();
                [Range::Day, Range::Quarter].map(|range| {
                    // What was written before may have grown since.
                    let newest = history.since(range, 0).last().map_or(0, |(at, _)| *at);
                    (range, history.since(range, newest.saturating_sub(3)))
                })
            };
            let lifetime = gateway.journal.lifetime(&totals);
            database.write_points(&stretches, &lifetime)
        });
        match written.await {
            Ok(Ok(())) => {}
            Ok(Err(cause)) => self.warnings.warn(
                ADVICE,
                "history",
                &format!("cannot write history: {cause}; plots may have gaps after a restart"),
            ),
            Err(cause) => warn!("cannot write history: {cause}"),
        }
    }

    /// What was asked of the cache lately.
    pub(crate) fn traffic(&self, range: Range) -> Traffic {
        let totals = self.metrics.totals();
        let mut history = self.history.lock();
        history.record(since_1970(), &totals);
        let lately = history.points(Range::Minutes).into_iter();
        Traffic {
            range,
            recent: lately.flatten().collect::<Point>(),
            points: history.points(range),
        }
    }

    /// Writes down what outlives us of the logins. Blocks.
    pub(crate) fn keep_logins(&self) {
        let _one = self.logins.lock();
        let path = self.config.store_dir.join(sessions::FILE);
        if let Err(cause) = private_file::write(&path, &self.access.logins()) {
            warn!(
                "cannot write \"{}\": {cause}; log-outs from the status page are forgotten with this gateway",
                path.display()
            );
        }
    }

    /// Writes down what outlives us of the sessions by ID token. Blocks.
    pub(crate) fn keep_sessions(&self) {
        let _one = self.logins.lock();
        let path = self.config.store_dir.join(SESSIONS_FILE);
        if let Err(cause) = private_file::write(&path, &self.access.issued_text()) {
            warn!(
                "cannot write \"{}\": {cause}; sessions by ID token end with this gateway, and the end of others is forgotten",
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
    /// Who sends a request with this `Authorization` header, over a connection with this certificate: the token decides where
    /// there is one.
    pub(crate) fn caller(
        &self,
        authorization: Option<&[u8]>,
        presented: Option<&Presented>,
    ) -> Caller {
        let caller = self.access.caller(authorization);
        let Some(presented) = presented.filter(|_| !caller.has_sent_a_token()) else {
            return caller;
        };
        match self.certified(presented) {
            Ok(certified) => certified,
            Err(why) => caller.not_certified(&why),
        }
    }

    /// Who has this certificate.
    ///
    /// # Errors
    /// Why it is good for nothing, in words.
    pub(crate) fn certified(&self, presented: &Presented) -> Result<Caller, String> {
        if let Some(tls) = &self.tls {
            tls.check(presented)?;
        }
        let certified = self.access.certified(&presented.names);
        certified.ok_or_else(|| {
            let names = presented.names.join(", ");
            format!("no table of SCCACHE_TOKENS_FILE has certificate = {names:?}")
        })
    }

    pub(crate) fn status(&self, caller: &Caller) -> Status {
        let mut status = self.whole_status();
        if caller.is_restricted() {
            return status::narrowed(status, caller);
        }
        if caller.is_anonymous() {
            status::without_grants(&mut status.tokens);
        }
        status
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
            dist: self.cluster.as_ref().map(|status| status()),
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

/// Fills the history for as long as the gateway lives.
fn remember(gateway: &Arc<Gateway>) {
    let gateway = Arc::downgrade(gateway);
    tokio::spawn(async move {
        let mut tick = interval(Range::Minutes.step());
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut kept = Instant::now();
        let mut known = Totals::default();
        loop {
            tick.tick().await;
            let Some(gateway) = gateway.upgrade() else {
                return;
            };
            gateway.record();
            if kept.elapsed() >= KEEP {
                kept = Instant::now();
                gateway.journal.tidy();
                gateway.keep_history(&mut known).await;
            }
        }
    });
}

fn since_1970() -> Duration {
    Duration::from_secs(unix_seconds())
}
