//! What the store has to tell: its figures at one moment.

use super::ghost_list::Tally;
use super::lru::{Rule, Totals};
use super::scrub::Scrubbed;
use super::{Flaws, Store};
use std::sync::Arc;
use std::time::SystemTime;

/// The store at one moment.
#[derive(Debug, Clone)]
pub struct Usage {
    /// Bytes on disk of all indexed blobs.
    pub bytes: u64,
    /// Bytes held for writes in flight; `bytes + reserved_bytes` stays within the budget.
    pub reserved_bytes: u64,
    /// The budget.
    pub budget_bytes: u64,
    /// Indexed blobs.
    pub entries: u64,
    /// The start's scan has not ended: `bytes` and `entries` still grow.
    pub indexing: bool,
    /// How far that scan is, in folders; a namespace counts as many as it may have.
    pub scanned: Progress,
    /// Blobs evicted since the start.
    pub evicted_entries: u64,
    /// Their bytes on disk.
    pub evicted_bytes: u64,
    /// Blobs removed since the start because nobody used them for too long.
    pub expired_entries: u64,
    /// Their bytes on disk.
    pub expired_bytes: u64,
    /// Writes refused since the start because only pinned blobs could have made room.
    pub pinned_refusals: u64,
    /// Misses since the start of blobs that were evicted before.
    pub lost_hits: Tally,
    /// Blobs found corrupt since the start, by kind.
    pub flaws: Flaws,
    /// The scheduled check of all blobs.
    pub scrubbed: Scrubbed,
    /// The purge that is under way, in blobs; the sums where there are several.
    pub purging: Option<Progress>,
    /// Blobs whose files vanished behind our back.
    pub vanished_entries: u64,
    /// Files in the store's folders that are not ours; they are left alone and not counted in `bytes`.
    pub foreign_files: u64,
    /// Namespaces that hold or lost blobs or have rules, by name.
    pub namespaces: Vec<NamespaceUsage>,
    /// The last time that the file system refused something.
    pub last_fault: Option<Fault>,
}

/// How much of a long work is done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// What was looked at.
    pub done: u64,
    /// What there is to look at.
    pub total: u64,
}

/// One namespace's share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamespaceUsage {
    /// Its name; empty for the default one.
    pub name: String,
    /// Bytes on disk.
    pub bytes: u64,
    /// Blobs.
    pub entries: u64,
    /// Most bytes that it may take.
    pub quota: Option<u64>,
    /// Writes of others do not evict from it.
    pub pinned: bool,
    /// Its part of the lost hits.
    pub lost_hits: u64,
}

/// The file system refused something.
#[derive(Debug, Clone)]
pub struct Fault {
    /// What, in the form `cannot <verb> <object>: <cause>`.
    pub message: String,
    /// When.
    pub at: SystemTime,
    /// How many there were since the start.
    pub count: u64,
    pub(super) logged_at: SystemTime,
}

/// A namespace's name, what it holds and may hold, and its lost hits.
type Share = (Arc<str>, Totals, Rule, u64);

impl Store {
    /// Figures for status and metrics.
    pub fn usage(&self) -> Usage {
        let (mut usage, shares) = self.figures();
        // Thousands of names are copied and sorted without the lock.
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

    /// All but the namespaces, and what those are made of.
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
