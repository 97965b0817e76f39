//! What the front counts, for `/metrics`.

use super::{Front, relay, upstream};
use crate::contract::gateway_status::{BuilderState, BuilderStatus};
use crate::gateway::metrics::{self, SampleOf, encode_each};
use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Unit;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    route: &'static str,
    code: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabels {
    route: &'static str,
}

/// The counters.
#[derive(Debug)]
pub(super) struct Metrics {
    requests: Family<RequestLabels, Counter>,
    seconds: Family<RouteLabels, Histogram>,
    in_flight: Gauge,
    allocations: Mutex<BTreeMap<&'static str, u64>>,
}

impl Default for Metrics {
    fn default() -> Metrics {
        let seconds = || Histogram::new(exponential_buckets(0.000_25, 4.0, 10));
        Metrics {
            requests: Family::default(),
            seconds: Family::new_with_constructor(seconds),
            in_flight: Gauge::default(),
            allocations: Mutex::default(),
        }
    }
}

impl Metrics {
    /// A request was answered.
    pub(super) fn answered(&self, route: &'static str, code: &str, took: Duration) {
        let code = code.to_owned();
        self.requests
            .get_or_create(&RequestLabels { route, code })
            .inc();
        let seconds = self.seconds.get_or_create(&RouteLabels { route });
        seconds.observe(took.as_secs_f64());
    }

    /// A request is being answered until the guard is dropped.
    pub(super) fn in_flight(&self) -> InFlight {
        self.in_flight.inc();
        InFlight(self.in_flight.clone())
    }

    /// An allocation was decided.
    pub(super) fn allocation(&self, outcome: &'static str) {
        let mut allocations = self.allocations.lock();
        *allocations.entry(outcome).or_default() += 1;
    }

    /// Allocations by outcome.
    pub(super) fn allocations(&self) -> BTreeMap<String, u64> {
        let allocations = self.allocations.lock();
        let named = allocations.iter();
        named
            .map(|(outcome, count)| ((*outcome).to_owned(), *count))
            .collect()
    }
}

/// See [`Metrics::in_flight`].
#[derive(Debug)]
pub(super) struct InFlight(Gauge);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Reads the front when somebody scrapes.
pub(super) fn collector(front: &Arc<Front>) -> Box<dyn Collector> {
    Box::new(Scrape {
        front: Arc::clone(front),
    })
}

#[derive(Debug)]
struct Scrape {
    front: Arc<Front>,
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let front = &self.front;
        let metrics = &front.metrics;
        let requests = encoder.encode_descriptor(
            "dist_requests",
            "Requests of clients and builders on the cluster port",
            None,
            MetricType::Counter,
        )?;
        metrics.requests.encode(requests)?;
        let seconds = encoder.encode_descriptor(
            "dist_request_duration",
            "Time from a request's headers to its response on the cluster port",
            Some(&Unit::Seconds),
            MetricType::Histogram,
        )?;
        metrics.seconds.encode(seconds)?;
        let help = "Requests in flight on the cluster port";
        let gauge =
            encoder.encode_descriptor("dist_requests_in_flight", help, None, MetricType::Gauge)?;
        metrics.in_flight.encode(gauge)?;
        let help = "Requests for a builder, by outcome";
        let mut family =
            encoder.encode_descriptor("dist_allocations", help, None, MetricType::Counter)?;
        for (outcome, count) in metrics.allocations() {
            let labels = [("outcome", outcome.as_str())];
            ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
        }
        let up = i64::from(front.link.health() == upstream::Health::Up);
        let help = "1 while the scheduler responds";
        let gauge =
            encoder.encode_descriptor("dist_scheduler_up", help, None, MetricType::Gauge)?;
        ConstGauge::new(up).encode(gauge)?;
        let counters = [
            (
                "dist_scheduler_outages",
                "Number of times the scheduler became unavailable",
                None,
                front.link.outages(),
            ),
            (
                "dist_replayed_heartbeats",
                "Heartbeats replayed to a new scheduler",
                None,
                front.replayed.load(Relaxed),
            ),
        ];
        metrics::encode(&mut encoder, MetricType::Counter, &counters)?;
        encode_builders(&front.status().builders, &mut encoder)?;
        if let Some(relay) = front.relay() {
            relay::encode(relay, &mut encoder)?;
        }
        encode_local_jobs(front, &mut encoder)
    }
}

fn encode_builders(builders: &[BuilderStatus], encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let gauges: [SampleOf<'_, &BuilderStatus>; 3] = [
        (
            "dist_builder_up",
            "1 while the builder sends heartbeats",
            None,
            |one| {
                let away = matches!(one.state, BuilderState::Lost | BuilderState::Silent);
                u64::from(!away)
            },
        ),
        (
            "dist_builder_slots",
            "Slots: jobs that the builder runs at a time",
            None,
            |one| one.slots,
        ),
        (
            "dist_jobs_in_flight",
            "Jobs assigned that have not ended",
            None,
            |one| one.jobs,
        ),
    ];
    let counters: [SampleOf<'_, &BuilderStatus>; 2] = [
        ("dist_jobs_done", "Jobs that completed", None, |one| {
            one.done
        }),
        (
            "dist_jobs_failed",
            "Jobs that were assigned and never completed",
            None,
            |one| one.failed,
        ),
    ];
    let named = builders.iter().map(|one| (one.address.to_string(), one));
    let named: Vec<_> = named.collect();
    encode_each(encoder, MetricType::Gauge, "builder", &named, &gauges)?;
    encode_each(encoder, MetricType::Counter, "builder", &named, &counters)
}

fn encode_local_jobs(front: &Front, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let jobs = front.reports.jobs();
    let help = "Running processes of jobs on the builder in this container";
    let gauge =
        encoder.encode_descriptor("dist_local_jobs_running", help, None, MetricType::Gauge)?;
    ConstGauge::new(i64::try_from(jobs.running).unwrap_or(i64::MAX)).encode(gauge)?;
    let help = "Ended processes of jobs on the builder in this container";
    let counter =
        encoder.encode_descriptor("dist_local_jobs_ended", help, None, MetricType::Counter)?;
    ConstCounter::new(jobs.ended).encode(counter)?;
    let help = "CPU time of jobs on the builder in this container";
    let seconds = Some(&Unit::Seconds);
    let counter =
        encoder.encode_descriptor("dist_local_jobs_cpu", help, seconds, MetricType::Counter)?;
    ConstCounter::new(jobs.cpu_seconds).encode(counter)?;
    let help = "Jobs on the builder in this container that exceeded a limit";
    let mut family =
        encoder.encode_descriptor("dist_local_jobs_limited", help, None, MetricType::Counter)?;
    for (limit, count) in &jobs.limits {
        let labels = [("limit", limit.as_str())];
        ConstCounter::new(*count).encode(family.encode_family(&labels)?)?;
    }
    let help = "Jobs on the builder in this container whose clients had to do them, because they looked for what was \
                not sent";
    let mut family =
        encoder.encode_descriptor("dist_local_jobs_sent_home", help, None, MetricType::Counter)?;
    for one in &jobs.sent_home {
        let labels = [
            ("crate", one.home.crate_name.as_str()),
            ("reason", one.home.reason.as_str()),
        ];
        ConstCounter::new(one.jobs).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}
