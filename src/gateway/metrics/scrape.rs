//! Metrics whose values are kept elsewhere and read at each scrape.

use super::{Counters, NAMESPACES};
use crate::contract::gateway_status::{NamespaceStatus, ProtocolStatus};
use crate::contract::key::shown_namespace;
use crate::store::{NamespaceUsage, Usage};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// The store's usage, and the counters that are not `Counter`s.
pub(super) struct Scrape {
    pub(super) counters: Arc<Counters>,
    pub(super) usage: Box<dyn Fn() -> Usage + Send + Sync>,
}

impl fmt::Debug for Scrape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scrape").finish_non_exhaustive()
    }
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.encode_namespaces(&mut encoder)?;
        self.encode_traffic(&mut encoder)?;
        let usage = (self.usage)();
        let gauges: [Sample<'_>; 8] = [
            (
                "store_size",
                "Disk usage of the store in bytes",
                Some(&Unit::Bytes),
                usage.bytes,
            ),
            (
                "store_reserved",
                "Bytes reserved for writes in flight",
                Some(&Unit::Bytes),
                usage.reserved_bytes,
            ),
            (
                "store_budget",
                "Maximum disk usage of the store in bytes",
                Some(&Unit::Bytes),
                usage.budget_bytes,
            ),
            ("store_entries", "Blobs in the store", None, usage.entries),
            (
                "store_indexing",
                "1 while the scan at start is building the index",
                None,
                u64::from(usage.indexing),
            ),
            (
                "store_scan_folders",
                "Folders that the scan at start has to read",
                None,
                usage.scanned.total,
            ),
            (
                "store_scanned_folders",
                "Folders that the scan at start has read",
                None,
                usage.scanned.done,
            ),
            (
                "store_foreign_files",
                "Files in the store's folders that do not belong to the store",
                None,
                usage.foreign_files,
            ),
        ];
        encode(&mut encoder, MetricType::Gauge, &gauges)?;
        encode_shares(&mut encoder, &usage.namespaces)?;
        let counters: [Sample<'_>; 5] = [
            (
                "store_evicted_entries",
                "Blobs evicted",
                None,
                usage.evicted_entries,
            ),
            (
                "store_evicted",
                "Bytes evicted",
                Some(&Unit::Bytes),
                usage.evicted_bytes,
            ),
            (
                "store_broken_entries",
                "Corrupt blobs found",
                None,
                usage.flaws.sum(),
            ),
            (
                "store_vanished_entries",
                "Blobs whose files another program removed",
                None,
                usage.vanished_entries,
            ),
            (
                "store_faults",
                "Errors returned by the file system",
                None,
                usage.last_fault.map_or(0, |fault| fault.count),
            ),
        ];
        encode(&mut encoder, MetricType::Counter, &counters)
    }
}

/// Name, help, unit and value of one metric.
pub(crate) type Sample<'a> = (&'a str, &'a str, Option<&'a Unit>, u64);

/// Encodes metrics without labels, all counters or all gauges.
pub(crate) fn encode(
    encoder: &mut DescriptorEncoder<'_>,
    kind: MetricType,
    samples: &[Sample<'_>],
) -> fmt::Result {
    for (name, help, unit, value) in samples {
        let descriptor = encoder.encode_descriptor(name, help, *unit, kind)?;
        encode_value(descriptor, kind, *value)?;
    }
    Ok(())
}

/// Name, help and unit of a metric with one label, and a function that returns its value.
pub(crate) type SampleOf<'a, T> = (&'a str, &'a str, Option<&'a Unit>, fn(&T) -> u64);

/// Encodes metrics of several items, whose names are the values of one label; all counters or all gauges.
pub(crate) fn encode_each<N: AsRef<str>, T>(
    encoder: &mut DescriptorEncoder<'_>,
    kind: MetricType,
    label: &str,
    many: &[(N, T)],
    samples: &[SampleOf<'_, T>],
) -> fmt::Result {
    for (name, help, unit, figure) in samples {
        let mut family = encoder.encode_descriptor(name, help, *unit, kind)?;
        for (one, of_it) in many {
            let labels = [(label, one.as_ref())];
            encode_value(family.encode_family(&labels)?, kind, figure(of_it))?;
        }
    }
    Ok(())
}

fn encode_value(encoder: MetricEncoder<'_>, kind: MetricType, value: u64) -> fmt::Result {
    match kind {
        MetricType::Counter => ConstCounter::new(value).encode(encoder),
        _ => ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)).encode(encoder),
    }
}

impl Scrape {
    fn encode_namespaces(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let bytes = Some(&Unit::Bytes);
        let samples: [SampleOf<'_, NamespaceStatus>; 5] = [
            ("hits", "Blobs found", None, |one| one.hits),
            (
                "misses",
                "Requested blobs that were not in the cache",
                None,
                |one| one.misses,
            ),
            ("writes", "Blobs stored", None, |one| one.writes),
            ("read", "Bytes of hits", bytes, |one| one.bytes_read),
            ("written", "Bytes of stored blobs", bytes, |one| {
                one.bytes_written
            }),
        ];
        let namespaces: Vec<_> = self.counters.namespaces().into_iter().collect();
        let counter = MetricType::Counter;
        encode_each(encoder, counter, "namespace", &namespaces, &samples)?;
        let refusals = self.counters.refusals.read().clone();
        let refusals: Vec<_> = refusals.into_iter().collect();
        let samples: [SampleOf<'_, u64>; 1] = [("refusals", "Requests refused", None, |one| *one)];
        encode_each(encoder, counter, "reason", &refusals, &samples)
    }

    fn encode_traffic(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let bytes = Some(&Unit::Bytes);
        let counters: [SampleOf<'_, ProtocolStatus>; 4] = [
            ("protocol_hits", "Blobs found, by protocol", None, |one| {
                one.hits
            }),
            (
                "protocol_misses",
                "Blobs not found, by protocol",
                None,
                |one| one.misses,
            ),
            ("received", "Bytes of bodies received", bytes, |one| {
                one.bytes_received
            }),
            ("sent", "Bytes of bodies sent", bytes, |one| one.bytes_sent),
        ];
        let gauges: [SampleOf<'_, ProtocolStatus>; 1] =
            [("connections", "Open connections", None, |one| {
                one.connections
            })];
        let protocols = [
            ("http", self.counters.http.snapshot()),
            ("sccache", self.counters.sccache.snapshot()),
        ];
        let counter = MetricType::Counter;
        encode_each(encoder, counter, "protocol", &protocols, &counters)?;
        encode_each(encoder, MetricType::Gauge, "protocol", &protocols, &gauges)
    }
}

/// Disk usage by namespace. The largest namespaces have series of their own; the rest share the label "other".
fn encode_shares(encoder: &mut DescriptorEncoder<'_>, shares: &[NamespaceUsage]) -> fmt::Result {
    let mut largest: Vec<&NamespaceUsage> = shares.iter().collect();
    largest.sort_unstable_by_key(|share| std::cmp::Reverse(share.bytes));
    let mut named = BTreeMap::<&str, (u64, u64)>::new();
    for (rank, share) in largest.into_iter().enumerate() {
        let name = if rank < NAMESPACES {
            shown_namespace(&share.name)
        } else {
            "other"
        };
        let sum = named.entry(name).or_default();
        (sum.0, sum.1) = (sum.0 + share.entries, sum.1 + share.bytes);
    }
    let samples: [SampleOf<'_, (u64, u64)>; 2] = [
        (
            "namespace_entries",
            "Blobs of a namespace in the store",
            None,
            |sum| sum.0,
        ),
        (
            "namespace_size",
            "Bytes of a namespace on disk",
            Some(&Unit::Bytes),
            |sum| sum.1,
        ),
    ];
    let named: Vec<_> = named.into_iter().collect();
    encode_each(encoder, MetricType::Gauge, "namespace", &named, &samples)
}
