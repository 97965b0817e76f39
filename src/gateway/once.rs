//! Writes to namespaces whose results must not change (`SCCACHE_WRITE_ONCE`): what became of them, counted and told.

use super::Gateway;
use super::audit::Audit;
use super::disk::{DiskError, Upload};
use super::metrics::{encode, encode_each};
use super::warnings::{REFUSALS, Rate};
use crate::contract::key::{Key, shown_namespace};
use crate::store::{Stored, WrittenBy};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Lines about results that differ.
const ALERTS: Rate = REFUSALS;

/// Second writes of a key.
#[derive(Debug, Default)]
pub(super) struct Rewrites {
    same: AtomicU64,
    different: AtomicU64,
    replaced: AtomicU64,
}

/// Why a result was not stored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotStored {
    /// The store's own answer.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// There is another one, which stays.
    #[error("another result of the same compile is here already, and stays: {0}")]
    Conflict(String),
}

impl Gateway {
    /// Whether what is stored under this key must not change.
    pub(crate) fn is_written_once(&self, key: &Key) -> bool {
        key.is_sccache_entry() && self.keeps_results_of(key.namespace())
    }

    /// Whether results in this namespace must not change.
    pub(crate) fn keeps_results_of(&self, namespace: &str) -> bool {
        let names = &self.config.policies.write_once;
        let is_named = |name: &str| names.contains(shown_namespace(name));
        names.contains("*") || is_named(namespace) || is_named(self.disk.home(namespace))
    }

    /// Makes a blob visible. Returns whether it replaced an older one, or an older one with the same result stays.
    pub(crate) async fn finish(
        &self,
        upload: Upload,
        key: &Key,
        by: &WrittenBy,
        may_replace: bool,
    ) -> Result<bool, NotStored> {
        if may_replace || !self.is_written_once(key) {
            return Ok(upload.finish().await?);
        }
        let rewrites = &self.rewrites;
        match upload.finish_once().await? {
            Stored::New => Ok(false),
            Stored::Replaced => {
                rewrites.replaced.fetch_add(1, Relaxed);
                Ok(true)
            }
            Stored::Same => {
                rewrites.same.fetch_add(1, Relaxed);
                Ok(true)
            }
            Stored::Different(found) => {
                rewrites.different.fetch_add(1, Relaxed);
                let sent = found
                    .sent
                    .map_or("unreadable".to_owned(), |sent| sent.to_string());
                let cause = format!(
                    "outputs {} by {} are kept, {sent} by {by} are not",
                    found.kept, found.kept_by
                );
                self.refusals.warnings.warn(
                    ALERTS,
                    "results that differ",
                    &format!("two results of one compile key={key}: {cause}"),
                );
                Err(NotStored::Conflict(cause))
            }
        }
    }
}

/// The figures for `/metrics`.
#[derive(Debug)]
pub(super) struct Scrape(pub(super) Arc<Rewrites>, pub(super) Arc<Audit>);

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let count = |counter: &AtomicU64| counter.load(Relaxed);
        let outcomes = [
            ("same".to_owned(), count(&self.0.same)),
            ("different".to_owned(), count(&self.0.different)),
            ("replaced".to_owned(), count(&self.0.replaced)),
        ];
        let help = "Events that are missing from the audit log, because it could not keep up";
        let dropped = ("audit_dropped_events", help, None, self.1.dropped());
        encode(&mut encoder, MetricType::Counter, &[dropped])?;
        let help = "Writes to existing write-once keys, by outcome";
        encode_each(
            &mut encoder,
            MetricType::Counter,
            "outcome",
            &outcomes,
            &[("rewrites", help, None, |count| *count)],
        )
    }
}
