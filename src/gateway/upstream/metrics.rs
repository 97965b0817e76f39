//! The upstream's metrics.

use super::Upstream;
use crate::gateway::metrics::{self, Sample};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;
use std::fmt;
use std::sync::Arc;

/// The upstream's metrics for `/metrics`.
#[derive(Debug)]
pub(crate) struct Scrape(pub(crate) Arc<Upstream>);

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let status = self.0.status();
        let gauges: [Sample<'_>; 2] = [
            (
                "upstream_available",
                "1 while the upstream is available",
                None,
                u64::from(status.available),
            ),
            (
                "upstream_queued",
                "Blobs waiting to be uploaded",
                None,
                status.queued,
            ),
        ];
        metrics::encode(&mut encoder, MetricType::Gauge, &gauges)?;
        let bytes = Some(&Unit::Bytes);
        let counters: [Sample<'_>; 10] = [
            (
                "upstream_hits",
                "Blobs fetched from the upstream",
                None,
                status.hits,
            ),
            (
                "upstream_misses",
                "Blobs that the upstream did not have",
                None,
                status.misses,
            ),
            (
                "upstream_shared_fetches",
                "Requests that joined a fetch in progress",
                None,
                status.shared_fetches,
            ),
            (
                "upstream_skipped_reads",
                "Misses for which the upstream was not asked, because its circuit breaker was open",
                None,
                status.skipped_reads,
            ),
            (
                "upstream_read_errors",
                "Failed reads from the upstream",
                None,
                status.read_errors,
            ),
            (
                "upstream_writes",
                "Blobs uploaded to the upstream",
                None,
                status.uploaded,
            ),
            (
                "upstream_write_errors",
                "Failed writes to the upstream",
                None,
                status.write_errors,
            ),
            (
                "upstream_dropped_writes",
                "Blobs that were dropped instead of uploaded",
                None,
                status.dropped_writes,
            ),
            (
                "upstream_read",
                "Bytes of blobs fetched from the upstream",
                bytes,
                status.bytes_read,
            ),
            (
                "upstream_written",
                "Bytes of blobs uploaded to the upstream",
                bytes,
                status.bytes_written,
            ),
        ];
        metrics::encode(&mut encoder, MetricType::Counter, &counters)
    }
}
