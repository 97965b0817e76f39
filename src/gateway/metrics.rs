//! What the gateway counts, for `/metrics` (Prometheus) and `/api/status`: one source for both.

mod policies;
mod process;
mod scrape;
mod tokens;

pub(crate) use scrape::{Sample, SampleOf, encode, encode_each};

use crate::contract::gateway_status::{NamespaceStatus, ProtocolStatus, Totals};
use crate::contract::key::shown_namespace;
use crate::gateway::access::Access;
use crate::gateway::disk::Disk;
use crate::gateway::tls::{Expiry, Tls};
use crate::store::Usage;
use parking_lot::RwLock;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Maximum number of namespaces with counters of their own; all others are counted as [`OTHER`].
const NAMESPACES: usize = 200;
/// Label for namespaces without counters of their own.
const OTHER: &str = "other";

/// Protocol family of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Protocol {
    /// WebDAV and plain HTTP.
    #[expect(non_camel_case_types, reason = "the label's value")]
    http,
    /// sccache's own.
    #[expect(non_camel_case_types, reason = "the label's value")]
    sccache,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    protocol: Protocol,
    method: &'static str,
    code: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MethodLabels {
    protocol: Protocol,
    method: &'static str,
}

/// Counters of one namespace.
#[derive(Debug, Default)]
pub struct Namespace {
    hits: AtomicU64,
    misses: AtomicU64,
    writes: AtomicU64,
    bytes_read: AtomicU64,
    bytes_written: AtomicU64,
}

impl Namespace {
    /// Counts a hit of a blob of `bytes`.
    pub fn hit(&self, bytes: u64) {
        self.hits.fetch_add(1, Relaxed);
        self.bytes_read.fetch_add(bytes, Relaxed);
    }

    /// Counts a miss.
    pub fn miss(&self) {
        self.misses.fetch_add(1, Relaxed);
    }

    /// Counts a stored blob of `bytes`.
    pub fn write(&self, bytes: u64) {
        self.writes.fetch_add(1, Relaxed);
        self.bytes_written.fetch_add(bytes, Relaxed);
    }

    fn snapshot(&self) -> NamespaceStatus {
        NamespaceStatus {
            hits: self.hits.load(Relaxed),
            misses: self.misses.load(Relaxed),
            writes: self.writes.load(Relaxed),
            bytes_read: self.bytes_read.load(Relaxed),
            bytes_written: self.bytes_written.load(Relaxed),
            ..NamespaceStatus::default()
        }
    }
}

/// Counters of one protocol.
#[derive(Debug, Default)]
struct Traffic {
    requests: AtomicU64,
    hits: AtomicU64,
    misses: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
    connections: AtomicU64,
}

#[derive(Debug, Default)]
struct Counters {
    namespaces: RwLock<BTreeMap<String, Arc<Namespace>>>,
    refusals: RwLock<BTreeMap<&'static str, u64>>,
    http: Traffic,
    sccache: Traffic,
}

/// All counters of the gateway.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Metrics without prefix, whose names are the same for every program.
    common: Registry,
    requests: Family<RequestLabels, Counter>,
    seconds: Family<MethodLabels, Histogram>,
    in_flight: Gauge,
    auth_failures: Counter,
    counters: Arc<Counters>,
}

impl Metrics {
    /// `usage` is called for the store's numbers at each scrape.
    pub fn new(usage: impl Fn() -> Usage + Send + Sync + 'static) -> Metrics {
        let mut registry = Registry::with_prefix("sccache_dock");
        let requests = Family::default();
        let seconds: Family<MethodLabels, Histogram> =
            Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.000_25, 4.0, 10)));
        let (in_flight, auth_failures) = (Gauge::default(), Counter::default());
        let counters = Arc::<Counters>::default();
        registry.register(
            "build",
            "Version of sccache-dock that is running",
            Info::new([("version", env!("CARGO_PKG_VERSION"))]),
        );
        registry.register(
            "requests",
            "Requests answered, by protocol, method and code",
            Family::clone(&requests),
        );
        let help = "Time from receiving a request's head to sending the response's head";
        registry.register_with_unit("request_duration", help, Unit::Seconds, seconds.clone());
        registry.register(
            "requests_in_flight",
            "Requests currently being answered",
            in_flight.clone(),
        );
        registry.register(
            "auth_failures",
            "Requests without a valid token",
            auth_failures.clone(),
        );
        registry.register_collector(Box::new(scrape::Scrape {
            counters: Arc::clone(&counters),
            usage: Box::new(usage),
        }));
        let mut common = Registry::default();
        common.register_collector(Box::new(process::Process));
        Metrics {
            registry,
            common,
            requests,
            seconds,
            in_flight,
            auth_failures,
            counters,
        }
    }

    /// Adds a collector.
    pub fn also(&mut self, figures: Box<dyn Collector>) {
        self.registry.register_collector(figures);
    }

    /// Adds metrics about the store's policies.
    pub(crate) fn scrape_policies(&mut self, disk: &Disk) {
        let policies = policies::Policies(disk.clone());
        self.registry.register_collector(Box::new(policies));
    }

    /// Adds metrics for each token.
    pub fn scrape_tokens(&mut self, access: &Arc<Access>) {
        let tokens = tokens::Tokens(Arc::clone(access));
        self.registry.register_collector(Box::new(tokens));
    }

    /// Adds the expiry of the certificate.
    pub(crate) fn scrape_expiry(&mut self, tls: &Arc<Tls>) {
        let expiry = Expiry(Arc::clone(tls));
        self.registry.register_collector(Box::new(expiry));
    }

    /// The counters of a namespace; an empty name is the default namespace.
    pub fn namespace(&self, name: &str) -> Arc<Namespace> {
        let name = shown_namespace(name);
        let known = self.counters.namespaces.read();
        if let Some(namespace) = known.get(name) {
            return Arc::clone(namespace);
        }
        let name = if known.len() >= NAMESPACES {
            OTHER
        } else {
            name
        };
        drop(known);
        let mut known = self.counters.namespaces.write();
        Arc::clone(known.entry(name.to_owned()).or_default())
    }

    /// Counts a request answered with `code` (an HTTP status, or "ok", "miss", "error") after `took`.
    pub fn answered(&self, protocol: Protocol, method: &'static str, code: &str, took: Duration) {
        self.counters
            .traffic(protocol)
            .requests
            .fetch_add(1, Relaxed);
        self.requests
            .get_or_create(&RequestLabels {
                protocol,
                method,
                code: code.to_owned(),
            })
            .inc();
        self.seconds
            .get_or_create(&MethodLabels { protocol, method })
            .observe(took.as_secs_f64());
    }

    /// Counts a hit by protocol.
    pub fn found(&self, protocol: Protocol) {
        self.counters.traffic(protocol).hits.fetch_add(1, Relaxed);
    }

    /// Counts a miss, by protocol and by namespace. A namespace that clients may have invented, because no blob of it
    /// `is_kept`, gets no counters of its own.
    pub fn missed(&self, protocol: Protocol, namespace: &str, is_kept: bool) {
        self.counters.traffic(protocol).misses.fetch_add(1, Relaxed);
        if is_kept || namespace.is_empty() {
            return self.namespace(namespace).miss();
        }
        let known = {
            let namespaces = &self.counters.namespaces;
            let known = namespaces.read();
            known.get(shown_namespace(namespace)).cloned()
        };
        known.unwrap_or_else(|| self.namespace(OTHER)).miss();
    }

    /// Counts received body bytes.
    pub fn received(&self, protocol: Protocol, bytes: u64) {
        self.counters
            .traffic(protocol)
            .received
            .fetch_add(bytes, Relaxed);
    }

    /// Counts body bytes passed on for sending.
    pub fn sent(&self, protocol: Protocol, bytes: u64) {
        self.counters
            .traffic(protocol)
            .sent
            .fetch_add(bytes, Relaxed);
    }

    /// The counters of refusals, which both ports count.
    pub(super) fn refusal_counters(&self) -> RefusalCounters {
        RefusalCounters {
            counters: Arc::clone(&self.counters),
            auth_failures: self.auth_failures.clone(),
        }
    }

    /// Counts a request as in flight until the guard is dropped.
    pub fn in_flight(&self) -> InFlight {
        self.in_flight.inc();
        InFlight(self.in_flight.clone())
    }

    /// Counts a connection as open until the guard is dropped.
    pub fn connection(&self, protocol: Protocol) -> Open {
        self.counters
            .traffic(protocol)
            .connections
            .fetch_add(1, Relaxed);
        Open {
            counters: Arc::clone(&self.counters),
            protocol,
        }
    }

    /// The metrics in OpenMetrics text format.
    ///
    /// # Errors
    /// Encoding failed.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode_registry(&mut text, &self.registry)?;
        encode_registry(&mut text, &self.common)?;
        encode_eof(&mut text)?;
        Ok(text)
    }

    /// Counters and disk usage by namespace.
    pub fn namespaces(&self, usage: &Usage) -> BTreeMap<String, NamespaceStatus> {
        let mut namespaces = self.counters.namespaces();
        for share in &usage.namespaces {
            let status = namespaces
                .entry(shown_namespace(&share.name).to_owned())
                .or_default();
            (status.entries, status.bytes) = (share.entries, share.bytes);
            (status.quota, status.pinned) = (share.quota, share.pinned);
            status.lost_hits = share.lost_hits;
        }
        namespaces
    }

    /// Totals over all namespaces.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals {
            auth_failures: self.auth_failures.get(),
            ..Totals::default()
        };
        for one in self.counters.namespaces().values() {
            totals.hits += one.hits;
            totals.misses += one.misses;
            totals.writes += one.writes;
            totals.bytes_read += one.bytes_read;
            totals.bytes_written += one.bytes_written;
        }
        totals
    }

    /// Traffic by protocol.
    pub fn protocols(&self) -> BTreeMap<String, ProtocolStatus> {
        let named = [
            ("http", &self.counters.http),
            ("sccache", &self.counters.sccache),
        ];
        named
            .into_iter()
            .map(|(name, traffic)| (name.to_owned(), traffic.snapshot()))
            .collect()
    }

    /// Refused requests by reason.
    pub fn refusals(&self) -> BTreeMap<String, u64> {
        let refusals = self.counters.refusals.read();
        refusals
            .iter()
            .map(|(reason, count)| ((*reason).to_owned(), *count))
            .collect()
    }
}

/// See [`Metrics::refusal_counters`].
#[derive(Debug)]
pub(super) struct RefusalCounters {
    counters: Arc<Counters>,
    auth_failures: Counter,
}

impl RefusalCounters {
    /// Counts a refused request.
    pub(super) fn refused(&self, reason: &'static str) {
        *self.counters.refusals.write().entry(reason).or_default() += 1;
    }

    /// Counts a request without a valid token.
    pub(super) fn unauthorized(&self) {
        self.auth_failures.inc();
    }
}

/// See [`Metrics::in_flight`].
#[derive(Debug)]
pub struct InFlight(Gauge);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// See [`Metrics::connection`].
#[derive(Debug)]
pub struct Open {
    counters: Arc<Counters>,
    protocol: Protocol,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.counters
            .traffic(self.protocol)
            .connections
            .fetch_sub(1, Relaxed);
    }
}

impl Counters {
    fn traffic(&self, protocol: Protocol) -> &Traffic {
        match protocol {
            Protocol::http => &self.http,
            Protocol::sccache => &self.sccache,
        }
    }

    fn namespaces(&self) -> BTreeMap<String, NamespaceStatus> {
        let namespaces = self.namespaces.read();
        namespaces
            .iter()
            .map(|(name, counters)| (name.clone(), counters.snapshot()))
            .collect()
    }
}

impl Traffic {
    fn snapshot(&self) -> ProtocolStatus {
        ProtocolStatus {
            requests: self.requests.load(Relaxed),
            hits: self.hits.load(Relaxed),
            misses: self.misses.load(Relaxed),
            bytes_received: self.received.load(Relaxed),
            bytes_sent: self.sent.load(Relaxed),
            connections: self.connections.load(Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage() -> Usage {
        Usage {
            bytes: 4096,
            reserved_bytes: 0,
            budget_bytes: 10_000,
            entries: 1,
            indexing: false,
            scanned: Default::default(),
            evicted_entries: 2,
            evicted_bytes: 8192,
            expired_entries: 0,
            expired_bytes: 0,
            pinned_refusals: 0,
            lost_hits: Default::default(),
            flaws: Default::default(),
            scrubbed: Default::default(),
            purging: None,
            vanished_entries: 0,
            foreign_files: 0,
            namespaces: Vec::new(),
            last_fault: None,
        }
    }

    #[test]
    fn metrics_follow_the_naming_rules() {
        let metrics = Metrics::new(usage);
        metrics.answered(Protocol::http, "GET", "200", Duration::from_millis(1));
        metrics.namespace("").hit(10);
        metrics.namespace("team/x").miss();
        metrics.refusal_counters().refused("overload");
        metrics.sent(Protocol::sccache, 7);
        let text = metrics.encode().unwrap();
        for line in [
            "sccache_dock_requests_total{protocol=\"http\",method=\"GET\",code=\"200\"} 1",
            "sccache_dock_hits_total{namespace=\"default\"} 1",
            "sccache_dock_read_bytes_total{namespace=\"default\"} 10",
            "sccache_dock_misses_total{namespace=\"team/x\"} 1",
            "sccache_dock_sent_bytes_total{protocol=\"sccache\"} 7",
            "sccache_dock_refusals_total{reason=\"overload\"} 1",
            "sccache_dock_store_size_bytes 4096",
            "sccache_dock_store_budget_bytes 10000",
            "sccache_dock_store_evicted_bytes_total 8192",
            "sccache_dock_request_duration_seconds_count{protocol=\"http\",method=\"GET\"} 1",
        ] {
            assert!(
                text.lines().any(|found| found == line),
                "{line}\nis not in\n{text}"
            );
        }
    }

    #[test]
    fn names_of_misses_are_remembered_only_where_there_is_something() {
        let metrics = Metrics::new(usage);
        metrics.namespace("team").hit(1);
        metrics.missed(Protocol::http, "", false);
        metrics.missed(Protocol::http, "team", false);
        metrics.missed(Protocol::http, "kept", true);
        for number in 0..10 {
            metrics.missed(Protocol::http, &format!("n{number}"), false);
        }
        let namespaces = metrics.namespaces(&usage());
        let misses: Vec<_> = namespaces
            .iter()
            .map(|(name, counters)| (name.as_str(), counters.misses))
            .collect();
        assert_eq!(
            misses,
            [("default", 1), ("kept", 1), ("other", 10), ("team", 1)]
        );
        assert_eq!(metrics.totals().misses, 13);
    }

    #[test]
    fn invented_namespaces_take_no_more_memory() {
        let metrics = Metrics::new(usage);
        for number in 0..10 * NAMESPACES {
            metrics.namespace(&format!("n{number}")).miss();
        }
        let namespaces = metrics.namespaces(&usage());
        assert_eq!(namespaces.len(), NAMESPACES + 1);
        let expected = u64::try_from(9 * NAMESPACES).unwrap();
        assert_eq!(namespaces["other"].misses, expected);
        assert_eq!(
            metrics.totals().misses,
            expected + u64::try_from(NAMESPACES).unwrap()
        );
    }
}
