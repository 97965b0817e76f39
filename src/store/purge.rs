//! Removes blobs on request.

use super::lru::{Found, Item};
use super::scrub::{SLOTS, end_of};
use super::{Error, Inner, Progress, RemovalCause, Store, micros, now};
use crate::contract::key::Key;
use glob::Pattern;
use std::fs;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// Selects blobs that match all criteria set here; without any, all blobs.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only blobs not used for at least this long.
    pub older_than: Option<Duration>,
    /// Only this namespace; empty for the default one.
    pub namespace: Option<String>,
    /// Only keys that match. This reads every file, because the index has no keys.
    pub pattern: Option<Pattern>,
    /// Only blobs written by this lane, or with the token of this name; see [`super::WrittenBy::is`]. As expensive as a
    /// pattern.
    pub written_by: Option<String>,
    /// Only blobs written at or after this time. As expensive as a pattern.
    pub since: Option<SystemTime>,
    /// Only count, remove nothing.
    pub dry_run: bool,
}

impl Filter {
    /// Whether a blob's trailer matches and, for a member of a group, names this namespace. A file that is gone or has no
    /// valid trailer does not.
    fn means(&self, path: &Path, member: Option<&str>) -> bool {
        let (pattern, by) = (self.pattern.as_ref(), self.written_by.as_ref());
        if pattern.is_none() && by.is_none() && self.since.is_none() && member.is_none() {
            return true;
        }
        let is_of = |key: &str, member: &str| {
            Key::from_canonical(key).is_ok_and(|key| key.namespace() == member)
        };
        end_of(path).is_some_and(|end| {
            member.is_none_or(|member| is_of(&end.key, member))
                && pattern.is_none_or(|pattern| pattern.matches(&end.key))
                && by.is_none_or(|wanted| end.by.is(wanted))
                && self
                    .since
                    .is_none_or(|since| end.trailer.written_micros >= micros(since))
        })
    }
}

/// What a purge removed, or would remove.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Purged {
    /// Number of blobs.
    pub entries: u64,
    /// Bytes on disk.
    pub bytes: u64,
}

/// Purges under way.
#[derive(Debug, Default)]
pub(super) struct Tracker {
    running: u32,
    sums: Progress,
}

impl Tracker {
    /// Progress of all running purges together; `None` if there is none.
    pub(super) fn now(&self) -> Option<Progress> {
        (self.running > 0).then_some(self.sums)
    }

    fn begin(&mut self, total: u64) {
        self.running += 1;
        self.sums.total += total;
    }

    fn end(&mut self) {
        self.running -= 1;
        if self.running == 0 {
            self.sums = Progress::default();
        }
    }
}

impl Store {
    /// Removes all matching blobs, pinned ones included. Waits for the end of the scan. Continues after files that
    /// cannot be removed, and returns the first such error.
    pub fn purge(&self, filter: &Filter) -> Result<Purged, Error> {
        let inner = &*self.inner;
        let until = match filter.older_than {
            Some(age) => {
                micros(now()).saturating_sub(u64::try_from(age.as_micros()).unwrap_or(u64::MAX))
            }
            None => u64::MAX,
        };
        let namespace = {
            let mut state = inner.state();
            inner.changed.wait_while(&mut state, |state| state.indexing);
            let namespace = match &filter.namespace {
                None => None,
                Some(name) => match state.namespaces.number(inner.groups.home(name)) {
                    Some(number) => Some(number),
                    None => return Ok(Purged::default()),
                },
            };
            let lru = &state.lru;
            let total = namespace.map_or(lru.count(), |number| lru.totals(number).entries);
            state.purging.begin(total);
            namespace
        };
        let mut purged = Purged::default();
        let mut failed = None;
        let slots = (0..).map(|chunk| chunk * SLOTS..(chunk + 1) * SLOTS);
        for found in slots.map_while(|slots| inner.live_in(slots, namespace)) {
            for found in found {
                if found.used_micros <= until {
                    match inner.purge_one(filter, &found.item, until) {
                        Ok(None) => {}
                        Ok(Some(bytes)) => {
                            purged.entries += 1;
                            purged.bytes += bytes;
                        }
                        Err(error) => failed = failed.or(Some(error)),
                    }
                }
                inner.state().purging.sums.done += 1;
            }
            inner.let_others_in();
        }
        inner.state().purging.end();
        failed.map_or(Ok(purged), Err)
    }
}

impl Inner {
    /// The blobs in this range of the index; `None` beyond its end.
    pub(super) fn live_in(
        &self,
        slots: Range<usize>,
        namespace: Option<u16>,
    ) -> Option<Vec<Found>> {
        let state = self.state();
        let found = state.lru.live_in(slots)?;
        let wanted = |found: &Found| namespace.is_none_or(|one| one == found.item.namespace);
        Some(found.filter(wanted).collect())
    }

    /// The bytes of a blob that was removed, or would be.
    fn purge_one(&self, filter: &Filter, item: &Item, until: u64) -> Result<Option<u64>, Error> {
        let path = self.path_of_item(item);
        let named = filter.namespace.as_deref();
        let member = named.filter(|name| self.groups.home(name) != *name);
        if !filter.means(&path, member) {
            return Ok(None);
        }
        let _lock = self.lock_key(&item.digest);
        // It may have been replaced meanwhile.
        if filter.written_by.is_some() && !filter.means(&path, member) {
            return Ok(None);
        }
        let Some(bytes) = self.state().lru.unused_since(&item.digest, until) else {
            return Ok(None);
        };
        if filter.dry_run {
            return Ok(Some(bytes));
        }
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(self.fault("remove blob", &path, error))
            }
            Ok(()) | Err(_) => {
                let at = micros(now()) / 1_000_000;
                let mut state = self.state();
                let removed = state.lru.remove(&item.digest);
                state.removals.push(&item.digest, at, RemovalCause::Purge);
                drop(state);
                self.close(&item.digest);
                Ok(Some(removed.unwrap_or(0)))
            }
        }
    }
}
