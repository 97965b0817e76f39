//! Makes room: reservation, eviction, and what to do if the disk is full before the budget is.
//!
//! At start, the store must know how much may be on disk before it has scanned it; otherwise writes could exceed the
//! budget in the meantime. The high-water mark, kept in a file, is therefore never below the actual usage. It is raised
//! in steps of a 64th of the budget before bytes are written, and set to the exact value at the end of each scan.
//!
//! Both cost disk writes that a request should not wait for. A thread, the housekeeper, evicts down to a mark below the
//! budget and each quota, removes blobs that are too old, and raises the high-water mark half a step ahead. Writes that
//! are faster than the housekeeper do this themselves: the budget holds even if the housekeeper never runs. It also
//! watches free disk space, see `low_disk.rs`.

use super::ghost_list::Cause;
use super::lru::{Item, Presence, Reach, Shortage};
use super::{Error, Inner, RemovalCause, State, Store, is_full, micros, now, trailer};
use crate::contract::key::Key;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, SystemTime};

/// Minimum number of bytes to evict if the disk is full before the budget is.
const ROOM_BYTES: u64 = 1024 * 1024;
/// How long a write waits for other threads to remove files, in steps of `WAIT`, `WAITS` times.
const WAIT: Duration = Duration::from_millis(2);
const WAITS: u32 = 1000;
/// Number of steps in which the high-water mark is raised.
const CEILING_STEPS: u64 = 64;

/// The housekeeper keeps this share of the budget free, at most [`MOST_FREE_BYTES`]. Of a budget below
/// [`LEAST_KEPT_BYTES`] it keeps nothing free, because every blob counts there.
const FREE_SHARE: u64 = 64;
const MOST_FREE_BYTES: u64 = 256 * 1024 * 1024;
const LEAST_KEPT_BYTES: u64 = 32 * 1024 * 1024;
/// Nothing is kept free either while the evictable bytes are less than this multiple of it.
const LEAST_LIVE: u64 = 4;
/// Number of bytes that the housekeeper evicts at a time.
const SWEEP_BYTES: u64 = 16 * 1024 * 1024;
/// Number of blobs removed at a time because of their age.
const SWEEP_BLOBS: usize = 256;
/// Number of bytes evicted at a time if the scan found more than the budget.
const CHUNK_BYTES: u64 = 64 * 1024 * 1024;
/// Interval at which the age of blobs is checked: a 20th of the maximum age, within these limits.
const AGE_PARTS: u32 = 20;
const AGE_PAUSES: (Duration, Duration) = (Duration::from_millis(100), PAUSE);

/// Why files are removed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum EvictionReason {
    /// To make room.
    Room(Cause),
    /// They have not been used for too long.
    Age,
}

/// Starts the housekeeper, which ends when the store is dropped.
pub(super) fn start_housekeeper(inner: &Arc<Inner>, wakes: Receiver<()>) -> io::Result<()> {
    // A weak reference, so that a store can be dropped and reopened at any time.
    let of_some = inner.ages.iter().map(|(_, age)| *age);
    let least_age = of_some.chain(inner.max_age).min();
    let pause = least_age.map_or(PAUSE, |age| {
        (age / AGE_PARTS).clamp(AGE_PAUSES.0, AGE_PAUSES.1)
    });
    let inner = Arc::downgrade(inner);
    let mut looked = SystemTime::UNIX_EPOCH;
    let keep_house = move || {
        loop {
            if wakes.recv_timeout(pause) == Err(RecvTimeoutError::Disconnected) {
                return;
            }
            let Some(inner) = inner.upgrade() else { return };
            if least_age.is_some() {
                inner.expire();
            }
            inner.close_unused();
            inner.keep_free();
            inner.keep_spare(&mut looked);
            inner.raise_high_water_mark();
        }
    };
    std::thread::Builder::new()
        .name("housekeeper".to_owned())
        .spawn(keep_house)
        .map(drop)
}

/// The high-water mark of the store in `dir`; the whole budget if there are blobs but no valid mark.
pub(super) fn read_high_water_mark(dir: &Path, budget: u64) -> u64 {
    let text = fs::read_to_string(dir.join("ceiling")).unwrap_or_default();
    if let Some(high_water_mark) = text
        .strip_suffix('\n')
        .and_then(|number| number.parse().ok())
    {
        return high_water_mark;
    }
    let is_empty =
        fs::read_dir(dir.join("blobs")).is_ok_and(|mut entries| entries.next().is_none());
    if is_empty { 0 } else { budget }
}

/// How to update the high-water mark.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum HighWaterMark {
    /// Raise it if necessary.
    Raise,
    /// Set it exactly, which may lower it.
    Set,
}

impl Store {
    /// Whether a blob of this length could be reserved at once, without evicting blobs or writing the high-water mark.
    pub fn has_room(&self, key: &Key, length: u64) -> bool {
        let inner = &*self.inner;
        let bytes = inner.disk_bytes(length.saturating_add(trailer::most(key.as_str())));
        let state = inner.state();
        let Some(namespace) = state.namespaces.number(inner.home(key)) else {
            return false;
        };
        let quota_left = state.lru.quota_left(namespace);
        let wanted = state.lru.taken().saturating_add(bytes);
        wanted <= inner.budget.min(inner.high_water_mark.load(Acquire))
            && quota_left.is_none_or(|left| bytes <= left)
    }
}

impl Inner {
    /// Reserves `bytes` for a write in a namespace, evicting as needed.
    pub(super) fn reserve(&self, namespace: u16, bytes: u64) -> Result<(), Error> {
        let mut held = 0;
        let mut waits = 0;
        while held < bytes {
            let mut state = self.state();
            let shortage = match state.lru.claim(namespace, bytes - held) {
                Ok(claim) => {
                    drop(state);
                    held += claim.claimed;
                    let parts = [
                        (claim.over_quota, Cause::Quota),
                        (claim.victims, Cause::Budget),
                    ];
                    let mut failed = None;
                    // Both are processed, even if the first fails: marked entries must be removed or restored.
                    for (victims, cause) in parts {
                        let wanted = bytes - held;
                        match self.evict_for(
                            namespace,
                            &victims,
                            wanted,
                            EvictionReason::Room(cause),
                        ) {
                            Ok(claimed) => held += claimed,
                            Err(error) => failed = failed.or(Some(error)),
                        }
                    }
                    if let Some(error) = failed.filter(|_| held < bytes) {
                        self.state().lru.release(namespace, held);
                        return Err(error);
                    }
                    continue;
                }
                Err(shortage) => shortage,
            };
            // Other writes hold the budget. Space that they are freeing becomes available soon, and the scan will find
            // something to evict; but what clients are still sending may take any time. Give back what is held, or two
            // writers could wait for each other.
            state.lru.release(namespace, std::mem::take(&mut held));
            if (state.lru.victim_bytes() == 0 && !state.indexing) || waits == WAITS {
                if shortage == Shortage::Pinned {
                    state.pinned_refusals += 1;
                    return Err(Error::Pinned);
                }
                return Err(Error::NoSpace);
            }
            waits += 1;
            self.changed.wait_for(&mut state, WAIT);
            drop(state);
        }
        let (is_short, taken) = {
            let state = self.state();
            let is_short =
                self.shortage(&state, 2) > 0 || self.quota_shortage(&state, namespace, 2) > 0;
            (is_short, state.lru.taken())
        };
        let high_water_mark = self.high_water_mark.load(Acquire);
        if taken > high_water_mark {
            self.keep_high_water_mark(HighWaterMark::Raise);
        }
        let is_near = high_water_mark < self.budget
            && high_water_mark - taken.min(high_water_mark) < self.high_water_step() / 2;
        if is_short || is_near {
            self.wake_housekeeper();
        }
        Ok(())
    }

    fn wake_housekeeper(&self) {
        // Full: the thread will run anyway. Disconnected: it cannot have ended, and writes work without it.
        let _ = self.housekeeper.try_send(());
    }

    /// Bytes by which free space falls short of the housekeeper's target (`1/part` of it).
    fn shortage(&self, state: &State, part: u64) -> u64 {
        if self.budget < LEAST_KEPT_BYTES || state.indexing {
            return 0;
        }
        let wanted = (self.budget / FREE_SHARE).min(MOST_FREE_BYTES) / part;
        // If little is unpinned, every blob counts as well.
        if state.lru.live(Reach::Unpinned) / LEAST_LIVE < wanted {
            return 0;
        }
        let soon_free = self.budget.saturating_sub(state.lru.taken()) + state.lru.victim_bytes();
        wanted.saturating_sub(soon_free)
    }

    /// The same for a namespace's quota.
    fn quota_shortage(&self, state: &State, namespace: u16, part: u64) -> u64 {
        let quota = state.lru.rule(namespace).quota;
        let Some(quota) = quota.filter(|quota| *quota >= LEAST_KEPT_BYTES && !state.indexing)
        else {
            return 0;
        };
        let wanted = (quota / FREE_SHARE).min(MOST_FREE_BYTES) / part;
        wanted.saturating_sub(state.lru.quota_left(namespace).unwrap_or(wanted))
    }

    fn close_unused(&self) {
        let unused = self.state().kept.forget_unused(micros(now()));
        drop(unused);
    }

    fn keep_free(&self) {
        self.sweep(Cause::Budget, |inner, state| {
            let live = state.lru.live(Reach::Unpinned);
            let bytes = inner.shortage(state, 1).min(SWEEP_BYTES).min(live);
            let victims = state.lru.mark_victims(bytes, Reach::Unpinned);
            victims.unwrap_or_default()
        });
        let governed = self.state().lru.governed();
        for namespace in governed {
            self.sweep(Cause::Quota, |inner, state| {
                let bytes = inner.quota_shortage(state, namespace, 1);
                state.lru.mark_victims_of(namespace, bytes.min(SWEEP_BYTES))
            });
        }
    }

    /// Evicts what the scan at start found beyond a quota or the budget, because that was lowered.
    pub(super) fn evict_overshoot(&self) {
        let governed = self.state().lru.governed();
        for namespace in governed {
            self.sweep(Cause::Quota, |_, state| {
                let over = state.lru.overshoot_of(namespace).min(CHUNK_BYTES);
                state.lru.mark_victims_of(namespace, over)
            });
        }
        self.sweep(Cause::Budget, |_, state| {
            // The budget has priority over everything, even over pins.
            let over = state.lru.overshoot().min(CHUNK_BYTES);
            let over = over.min(state.lru.live(Reach::All));
            state.lru.mark_victims(over, Reach::All).unwrap_or_default()
        });
    }

    /// Evicts what `choose` marks, until it marks nothing more.
    fn sweep(&self, cause: Cause, choose: impl Fn(&Inner, &mut State) -> Vec<Item>) {
        loop {
            let victims = choose(self, &mut self.state());
            // Failures have been recorded; the next write tries again.
            if victims.is_empty() || self.evict(&victims, EvictionReason::Room(cause)).is_err() {
                return;
            }
        }
    }

    /// Removes blobs that have not been used for as long as their namespace allows, or the setting for all.
    pub(super) fn expire(&self) {
        let now = micros(now());
        let since =
            |age: Duration| now.saturating_sub(u64::try_from(age.as_micros()).unwrap_or(u64::MAX));
        let until = |namespace: Option<u16>, is_pinned: bool| {
            let own = self
                .ages
                .iter()
                .find(|(number, _)| Some(*number) == namespace);
            match own {
                Some((_, age)) => Some(since(*age)),
                None if is_pinned => None,
                None => self.max_age.map(since),
            }
        };
        loop {
            let victims = {
                let mut state = self.state();
                if state.indexing {
                    return;
                }
                state.lru.mark_unused(until, SWEEP_BLOBS)
            };
            if victims.is_empty() || self.evict(&victims, EvictionReason::Age).is_err() {
                return;
            }
        }
    }

    /// Brings the high-water mark up to the current usage, or sets it exactly. A failure is recorded but does not fail
    /// the write: the mark only matters at the next start, whose scan corrects it.
    pub(super) fn keep_high_water_mark(&self, how: HighWaterMark) {
        // Held while the file is written: a thread that needs a higher mark must not write a blob before that.
        let _lock = self.lock_high_water_mark();
        let taken = self.state().lru.taken();
        if how == HighWaterMark::Set || taken > self.high_water_mark.load(Acquire) {
            self.write_high_water_mark(taken, 0);
        }
    }

    fn raise_high_water_mark(&self) {
        let _lock = self.lock_high_water_mark();
        let (taken, high_water_mark) =
            (self.state().lru.taken(), self.high_water_mark.load(Acquire));
        if high_water_mark < self.budget
            && high_water_mark < taken.saturating_add(self.high_water_step() / 2)
        {
            self.write_high_water_mark(taken, self.high_water_step());
        }
    }

    fn high_water_step(&self) -> u64 {
        (self.budget / CEILING_STEPS).max(1)
    }

    fn lock_high_water_mark(&self) -> parking_lot::MutexGuard<'_, ()> {
        self.high_water_lock.lock()
    }

    /// Writes the step above `taken + ahead`, but not more than the budget unless more is taken. The caller holds the
    /// high-water mark's lock.
    fn write_high_water_mark(&self, taken: u64, ahead: u64) {
        let wanted = taken.saturating_add(ahead);
        let raised = wanted
            .checked_next_multiple_of(self.high_water_step())
            .unwrap_or(u64::MAX);
        let raised = raised.min(self.budget.max(taken));
        if self.note_in_file("ceiling", &format!("{raised}\n")).is_ok() {
            self.high_water_mark.store(raised, Release);
        }
    }

    /// Removes marked files. Entries whose file cannot be removed are restored, and the first error is returned.
    pub(super) fn evict(&self, victims: &[Item], why: EvictionReason) -> Result<(), Error> {
        self.evict_for(0, victims, 0, why).map(drop)
    }

    /// Removes marked files and reserves up to `wanted` of the freed bytes for a write in a namespace. Returns the
    /// number of bytes reserved. Entries whose file cannot be removed are restored, and the first error is returned
    /// unless enough was freed without them.
    fn evict_for(
        &self,
        namespace: u16,
        victims: &[Item],
        wanted: u64,
        why: EvictionReason,
    ) -> Result<u64, Error> {
        let mut claimed = 0;
        let mut failed = None;
        for item in victims {
            let path = self.path_of_item(item);
            let _lock = self.lock_key(&item.digest);
            // A new blob may have replaced the marked one: its file must stay.
            if self.state().lru.presence(&item.digest) != Presence::Doomed {
                continue;
            }
            // Closes the file, so that its space is freed when it is removed.
            self.close(&item.digest);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    self.state().lru.restore(&item.digest);
                    failed = failed.or(Some(self.fault("evict blob", &path, error)));
                }
                Ok(()) | Err(_) => {
                    let mut state = self.state();
                    let collected = state.lru.collect(&item.digest, namespace, wanted - claimed);
                    if let Some(collected) = collected {
                        claimed += collected.claimed;
                        state.note_eviction(item, collected.freed, why);
                    }
                }
            }
        }
        if !victims.is_empty() {
            self.changed.notify_all();
        }
        match failed {
            Some(error) if claimed < wanted || wanted == 0 => {
                self.state().lru.release(namespace, claimed);
                Err(error)
            }
            _ => Ok(claimed),
        }
    }

    /// Runs `work`; if the disk is full, evicts some blobs and runs it once more.
    pub(super) fn with_room<T>(
        &self,
        bytes: u64,
        mut work: impl FnMut() -> io::Result<T>,
    ) -> io::Result<T> {
        match work() {
            Err(error) if is_full(&error) => {
                let victims = {
                    let mut state = self.state();
                    let live = state.lru.live(Reach::Unpinned);
                    state
                        .lru
                        .mark_victims(bytes.max(ROOM_BYTES).min(live), Reach::Unpinned)
                        .unwrap_or_default()
                };
                let why = EvictionReason::Room(Cause::Budget);
                if victims.is_empty() || self.evict(&victims, why).is_err() {
                    return Err(error);
                }
                work()
            }
            result => result,
        }
    }
}

impl State {
    fn note_eviction(&mut self, item: &Item, bytes: u64, why: EvictionReason) {
        let at = micros(now()) / 1_000_000;
        match why {
            EvictionReason::Room(cause) => {
                self.evicted_entries += 1;
                self.evicted_bytes += bytes;
                self.ghosts.push(&item.digest, bytes, cause);
                let cause = match cause {
                    Cause::Budget => RemovalCause::Budget,
                    Cause::Quota => RemovalCause::Quota,
                };
                self.removals.push(&item.digest, at, cause);
            }
            EvictionReason::Age => {
                self.expired_entries += 1;
                self.expired_bytes += bytes;
                self.removals.push(&item.digest, at, RemovalCause::Age);
            }
        }
    }
}

/// Interval between two rounds of the housekeeper.
pub(super) const PAUSE: Duration = Duration::from_secs(10);
