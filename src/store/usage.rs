//! Usage of the store at one moment.

use super::ghost_list::Tally;
use super::lru::{Rule, Totals};
use super::scrub::Scrubbed;
use super::{Fault, Flaws, Store};
use std::sync::Arc;

/// Usage of the store at one moment.
#[derive(Debug, Clone)]
pub struct Usage {
    /// Disk usage of all indexed blobs.
    pub bytes: u64,
    /// Bytes reserved for writes in flight; `bytes + reserved_bytes` stays within the budget.
    pub reserved_bytes: u64,
    /// The budget.
    pub budget_bytes: u64,
    /// Number of indexed blobs.
    pub entries: u64,
    /// Whether the scan at start is still running, so that `bytes` and `entries` still grow.
    pub indexing: bool,
    /// Progress of that scan in folders; each namespace counts with its maximum number of folders.
    pub scanned: Progress,
    /// Blobs evicted since the start.
    pub evicted_entries: u64,
    /// Disk usage of the evicted blobs.
    pub evicted_bytes: u64,
    /// Blobs removed because of their age since the start.
    pub expired_entries: u64,
    /// Disk usage of those blobs.
    pub expired_bytes: u64,
    /// Writes refused since the start because only pinned blobs could have been evicted.
    pub pinned_refusals: u64,
    /// Misses since the start of blobs that had been evicted.
    pub lost_hits: Tally,
    /// Blobs found corrupt since the start, by kind.
    pub flaws: Flaws,
    /// The scheduled verification of all blobs.
    pub scrubbed: Scrubbed,
    /// Progress of running purges in blobs, all together.
    pub purging: Option<Progress>,
    /// Blobs whose files were removed by another program.
    pub vanished_entries: u64,
    /// Foreign files in the store's folders; they are left alone and not counted in `bytes`.
    pub foreign_files: u64,
    /// Namespaces that have or had blobs or have rules, by name.
    pub namespaces: Vec<NamespaceUsage>,
    /// The most recent file-system error.
    pub last_fault: Option<Fault>,
}

/// Progress of a long operation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Number of items examined.
    pub done: u64,
    /// Total number of items.
    pub total: u64,
}

/// Usage of one namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamespaceUsage {
    /// Its name; empty for the default one.
    pub name: String,
    /// Disk usage.
    pub bytes: u64,
    /// Number of blobs.
    pub entries: u64,
    /// Maximum disk usage.
    pub quota: Option<u64>,
    /// Whether writes to other namespaces cannot evict its blobs.
    pub pinned: bool,
    /// Lost hits in this namespace.
    pub lost_hits: u64,
}

/// A namespace's name, usage, rule and lost hits.
type Share = (Arc<str>, Totals, Rule, u64);

impl Store {
    /// The current usage, for status and metrics.
    pub fn usage(&self) -> Usage {
        let (mut usage, shares) = self.figures();
        // Thousands of names are copied and sorted after releasing the lock.
        let shares = shares
            .into_iter()
            .map(|(name, totals, rule, lost_hits)| NamespaceUsage {
                name: name.as_ref().to_owned(),
                bytes: totals.bytes,
                entries: totals.entries,
                quota: rule.quota,
                pinned: rule.pinned,
                lost_hits,
            });
        let is_worth = |one: &NamespaceUsage| {
            one.entries > 0 || one.lost_hits > 0 || one.pinned || one.quota.is_some()
        };
        usage.namespaces = shares.filter(is_worth).collect();
        usage.namespaces.sort_by(|a, b| a.name.cmp(&b.name));
        usage
    }

    /// Everything but the namespaces, and the data from which those are made.
    fn figures(&self) -> (Usage, Vec<Share>) {
        let state = self.inner.state();
        let shares = state.namespaces.numbered().map(|(number, name)| {
            let (totals, rule) = (state.lru.totals(number), state.lru.rule(number));
            let lost_hits = state.lost_hits.get(usize::from(number));
            let lost_hits = lost_hits.copied().unwrap_or(0);
            (Arc::clone(name), totals, rule, lost_hits)
        });
        let shares = shares.collect();
        let usage = Usage {
            bytes: state.lru.used(),
            reserved_bytes: state.lru.reserved(),
            budget_bytes: self.inner.budget,
            entries: state.lru.count(),
            indexing: state.indexing,
            scanned: state.scanned,
            evicted_entries: state.evicted_entries,
            evicted_bytes: state.evicted_bytes,
            expired_entries: state.expired_entries,
            expired_bytes: state.expired_bytes,
            pinned_refusals: state.pinned_refusals,
            lost_hits: state.ghosts.tally().clone(),
            flaws: state.flaws,
            scrubbed: state.scrubbed,
            purging: state.purging.now(),
            vanished_entries: state.vanished_entries,
            foreign_files: state.foreign_files,
            namespaces: Vec::new(),
            last_fault: state.last_fault.clone(),
        };
        (usage, shares)
    }
}
