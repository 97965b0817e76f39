//! Quotas, pins, lost hits and integrity checks, for `/metrics` and `/api/status`.

use super::{NAMESPACES, encode};
use crate::contract::gateway_status::{Integrity, KeptBy, LostHits};
use crate::contract::key::shown_namespace;
use crate::gateway::disk::Disk;
use crate::store::{NamespaceUsage, Usage};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;
use std::collections::BTreeMap;
use std::fmt;
use std::time::SystemTime;

impl LostHits {
    pub(crate) fn new(usage: &Usage) -> LostHits {
        let tally = &usage.lost_hits;
        let kept = tally.kept_by().into_iter();
        LostHits {
            count: tally.count,
            bytes: tally.bytes,
            by_quota: tally.by_quota,
            kept_by: kept
                .map(|kept| KeptBy {
                    budget_bytes: kept.budget_bytes,
                    share: kept.share,
                })
                .collect(),
        }
    }
}

impl Integrity {
    pub(crate) fn new(usage: &Usage) -> Integrity {
        let (flaws, scrubbed) = (usage.flaws, usage.scrubbed);
        let percent = u16::from(scrubbed.part) * 100 / 256;
        Integrity {
            corrupt: BTreeMap::from([
                ("trailer".to_owned(), flaws.trailer),
                ("body".to_owned(), flaws.body),
                ("unreadable".to_owned(), flaws.unreadable),
            ]),
            scrub_seconds: scrubbed.period.map(|period| period.as_secs()),
            scrub_checked: scrubbed.checked,
            scrub_corrupt: scrubbed.corrupt,
            scrub_last_full_unix_seconds: scrubbed.last_full.map(unix_seconds),
            scrub_percent: u8::try_from(percent).unwrap_or(100),
            suspicions: scrubbed.suspicions,
        }
    }
}

fn unix_seconds(at: SystemTime) -> u64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// Read from the store at each scrape.
#[derive(Debug)]
pub(super) struct Policies(pub(super) Disk);

impl Collector for Policies {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let usage = self.0.usage();
        encode_namespaces(&mut encoder, &usage.namespaces)?;
        let (lost, integrity) = (LostHits::new(&usage), Integrity::new(&usage));
        encode_kept(&mut encoder, &lost)?;
        let help = "Corrupt blobs found, by kind";
        let counter = MetricType::Counter;
        let mut family = encoder.encode_descriptor("store_corrupt_blobs", help, None, counter)?;
        for (kind, count) in &integrity.corrupt {
            let labels = [("kind", kind.as_str())];
            ConstCounter::new(*count).encode(family.encode_family(&labels)?)?;
        }
        let counters = [
            (
                "store_lost_hits",
                "Bytes of blobs that were missed because they had been evicted",
                Some(&Unit::Bytes),
                lost.bytes,
            ),
            (
                "store_expired_entries",
                "Blobs removed because of SCCACHE_MAX_AGE",
                None,
                usage.expired_entries,
            ),
            (
                "store_expired",
                "Bytes removed because of SCCACHE_MAX_AGE",
                Some(&Unit::Bytes),
                usage.expired_bytes,
            ),
            (
                "store_pinned_refusals",
                "Writes refused because only pinned blobs could have been evicted",
                None,
                usage.pinned_refusals,
            ),
            (
                "store_scrub_checked_entries",
                "Blobs verified by the scheduled scrub",
                None,
                integrity.scrub_checked,
            ),
            (
                "store_scrub_corrupt_entries",
                "Corrupt blobs found by the scheduled scrub",
                None,
                integrity.scrub_corrupt,
            ),
            (
                "store_suspicions",
                "Blobs verified on suspicion",
                None,
                integrity.suspicions,
            ),
        ];
        encode(&mut encoder, counter, &counters)?;
        // Declared before there is a value, so that dashboards find it.
        let help = "End of the last scrub of all blobs, in Unix time";
        let seconds = Some(&Unit::Seconds);
        let name = "store_scrub_last_full_timestamp";
        let descriptor = encoder.encode_descriptor(name, help, seconds, MetricType::Gauge)?;
        if let Some(at) = integrity.scrub_last_full_unix_seconds {
            ConstGauge::new(i64::try_from(at).unwrap_or(i64::MAX)).encode(descriptor)?;
        }
        Ok(())
    }
}

fn encode_namespaces(
    encoder: &mut DescriptorEncoder<'_>,
    namespaces: &[NamespaceUsage],
) -> fmt::Result {
    let gauge = |value: u64| ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
    let bytes = Some(&Unit::Bytes);
    let help = "Maximum disk usage of a namespace in bytes";
    let mut quotas =
        encoder.encode_descriptor("namespace_quota", help, bytes, MetricType::Gauge)?;
    for one in namespaces {
        if let Some(quota) = one.quota {
            let labels = [("namespace", shown_namespace(&one.name))];
            gauge(quota).encode(quotas.encode_family(&labels)?)?;
        }
    }
    // Clients may invent namespaces: beyond a limit, they share one label.
    let mut lost = BTreeMap::<&str, u64>::new();
    for one in namespaces.iter().filter(|one| one.lost_hits > 0) {
        let name = if lost.len() < NAMESPACES {
            shown_namespace(&one.name)
        } else {
            "other"
        };
        *lost.entry(name).or_default() += one.lost_hits;
    }
    let help = "Misses of blobs that had been evicted";
    let mut family = encoder.encode_descriptor("lost_hits", help, None, MetricType::Counter)?;
    for (name, count) in lost {
        ConstCounter::new(count).encode(family.encode_family(&[("namespace", name)])?)?;
    }
    Ok(())
}

fn encode_kept(encoder: &mut DescriptorEncoder<'_>, lost: &LostHits) -> fmt::Result {
    let help = "Share of the lost hits that a budget of this size would have kept";
    let name = "lost_hits_kept_ratio";
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for kept in &lost.kept_by {
        let labels = [("budget_bytes", kept.budget_bytes.to_string())];
        ConstGauge::new(kept.share).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}
