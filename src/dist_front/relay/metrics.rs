//! What the relay counts, for `/metrics`: the demand, by which builders can be added and taken away, and how jobs end.

use super::Relay;
use crate::contract::gateway_status::RelayStatus;
use crate::gateway::metrics;
use parking_lot::Mutex;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Unit;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

type Counts = Mutex<BTreeMap<&'static str, u64>>;

/// The counters.
#[derive(Debug)]
pub(super) struct RelayMetrics {
    jobs: Counts,
    attempts: Counts,
    seconds: Histogram,
}

impl Default for RelayMetrics {
    fn default() -> RelayMetrics {
        RelayMetrics {
            jobs: Mutex::default(),
            attempts: Mutex::default(),
            seconds: Histogram::new(exponential_buckets(0.015_625, 4.0, 9)),
        }
    }
}

impl RelayMetrics {
    /// A client was answered.
    pub(super) fn job(&self, outcome: &'static str) {
        count(&self.jobs, outcome);
    }

    /// A job came from a client and went back after so long.
    pub(super) fn took(&self, time: Duration) {
        self.seconds.observe(time.as_secs_f64());
    }

    /// A builder was tried.
    pub(super) fn attempt(&self, outcome: &'static str) {
        count(&self.attempts, outcome);
    }

    pub(super) fn jobs(&self) -> BTreeMap<String, u64> {
        named(&self.jobs)
    }

    pub(super) fn attempts(&self) -> BTreeMap<String, u64> {
        named(&self.attempts)
    }
}

fn count(counts: &Counts, outcome: &'static str) {
    let mut counts = counts.lock();
    *counts.entry(outcome).or_default() += 1;
}

fn named(counts: &Counts) -> BTreeMap<String, u64> {
    let counts = counts.lock();
    let named = counts.iter();
    named
        .map(|(name, count)| ((*name).to_owned(), *count))
        .collect()
}

/// Writes them.
pub(in crate::dist_front) fn encode(
    relay: &Relay,
    encoder: &mut DescriptorEncoder<'_>,
) -> fmt::Result {
    let RelayStatus {
        waiting,
        running,
        bytes,
        slots,
        slots_used,
        oldest_seconds,
        jobs,
        attempts,
    } = relay.status();
    let gauges = [
        (
            "dist_queue_jobs",
            "Jobs that wait for a slot",
            None,
            waiting,
        ),
        (
            "dist_demand_jobs",
            "Jobs that wait or run: what slots are needed for",
            None,
            waiting + running,
        ),
        (
            "dist_queue",
            "Bodies of jobs that wait or run",
            Some(&Unit::Bytes),
            bytes,
        ),
        (
            "dist_queue_oldest",
            "How long the first of the jobs that wait has waited",
            Some(&Unit::Seconds),
            oldest_seconds,
        ),
        (
            "dist_slots",
            "Slots of all builders that take jobs",
            None,
            slots,
        ),
        ("dist_slots_used", "Slots that have a job", None, slots_used),
    ];
    metrics::encode(encoder, MetricType::Gauge, &gauges)?;
    for (name, help, counts) in [
        (
            "dist_relay_jobs",
            "Jobs that clients were answered for, by outcome: all but done are compiled by the client",
            jobs,
        ),
        (
            "dist_relay_attempts",
            "Attempts to run a job on a builder, by outcome",
            attempts,
        ),
    ] {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (outcome, count) in counts {
            let labels = [("outcome", outcome.as_str())];
            ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
        }
    }
    let seconds = encoder.encode_descriptor(
        "dist_relay_job_duration",
        "Time from a job's arrival to its result, waiting included",
        Some(&Unit::Seconds),
        MetricType::Histogram,
    )?;
    relay.metrics.seconds.encode(seconds)
}
