//! Making room: reservation, eviction, and what to do when the disk is full before the budget is.
//!
//! A start has to know how much there may be on disk before it has looked, or it would let writes exceed the
//! budget in the meantime. So a file, the ceiling, always says at least as much as there is. It is raised in
//! steps of a 64th of the budget before bytes are written, and set anew at the end of each scan.
//!
//! Both cost writes to the disk, which a request should not wait for. A thread, the housekeeper, evicts down to a
//! low mark below the budget and raises the ceiling half a step ahead. A write that comes faster than it can do
//! that does it itself: the budget holds whether or not the housekeeper ever gets to run.

use super::{Error, Inner, State, is_full};
use crate::gateway::lru::{Item, Presence};
use std::fs;
use std::io;
use std::path::Path;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

/// Evicted at least, when the disk is full before the budget is.
const ROOM_BYTES: u64 = 1024 * 1024;
/// How long a write waits for files that others are removing, and how often it looks.
const WAIT: Duration = Duration::from_millis(2);
const WAITS: u32 = 1000;
/// The ceiling is raised in so many steps.
const CEILING_STEPS: u64 = 64;

/// The housekeeper keeps this share of the budget free, or [`MOST_FREE_BYTES`]; of a budget below
/// [`LEAST_KEPT_BYTES`] nothing, as there every blob counts.
const FREE_SHARE: u64 = 64;
const MOST_FREE_BYTES: u64 = 256 * 1024 * 1024;
const LEAST_KEPT_BYTES: u64 = 32 * 1024 * 1024;
/// Evicted by the housekeeper at a time.
const SWEEP_BYTES: u64 = 16 * 1024 * 1024;

/// Starts the housekeeper, which ends when the store is dropped.
pub(super) fn start_housekeeper(inner: &Arc<Inner>, wakes: Receiver<()>) -> io::Result<()> {
    // Weak, so that a store can be dropped, and opened again, at any time.
    let inner = Arc::downgrade(inner);
    let keep_house = move || {
        while wakes.recv().is_ok() {
            let Some(inner) = inner.upgrade() else { return };
            inner.keep_free();
            inner.raise_ceiling_ahead();
        }
    };
    std::thread::Builder::new()
        .name("housekeeper".to_owned())
        .spawn(keep_house)
        .map(drop)
}

/// What the ceiling of the store in `dir` says; the whole budget if there are blobs but no whole ceiling.
pub(super) fn read_ceiling(dir: &Path, budget: u64) -> u64 {
    let text = fs::read_to_string(dir.join("ceiling")).unwrap_or_default();
    if let Some(ceiling) = text
        .strip_suffix('\n')
        .and_then(|number| number.parse().ok())
    {
        return ceiling;
    }
    let is_empty =
        fs::read_dir(dir.join("blobs")).is_ok_and(|mut entries| entries.next().is_none());
    if is_empty { 0 } else { budget }
}

/// What to do to the ceiling.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Ceiling {
    /// Nothing, where it is high enough.
    Raise,
    /// Lower it as well.
    Set,
}

impl Inner {
    /// Reserves `bytes`, evicting as needed.
    pub(super) fn reserve(&self, bytes: u64) -> Result<(), Error> {
        let mut held = 0;
        let mut waits = 0;
        while held < bytes {
            let mut state = self.state();
            if let Some(claim) = state.lru.claim(bytes - held) {
                drop(state);
                held += claim.claimed;
                match self.evict(&claim.victims, bytes - held) {
                    Ok(claimed) => held += claimed,
                    Err(error) => {
                        self.state().lru.release(held);
                        return Err(error);
                    }
                }
                continue;
            }
            // Others hold the budget. What they are removing comes free soon, and the scan finds something to
            // evict; what clients are still sending may take any time. Give back what is held, or two writers could wait for each other.
            state.lru.release(std::mem::take(&mut held));
            if (state.lru.doomed() == 0 && !state.indexing) || waits == WAITS {
                return Err(Error::NoSpace);
            }
            waits += 1;
            drop(self.changed.wait_timeout(state, WAIT));
        }
        self.keep_ceiling(Ceiling::Raise);
        if self.shortage(&self.state(), 2) > 0 {
            self.wake_housekeeper();
        }
        Ok(())
    }

    fn wake_housekeeper(&self) {
        // Full: it is about to look anyway. Closed: the thread cannot have ended, and writes do without it.
        let _ = self.housekeeper.try_send(());
    }

    /// Bytes that lack to the free room, or to the given part of it, that the housekeeper keeps.
    fn shortage(&self, state: &State, part: u64) -> u64 {
        if self.budget < LEAST_KEPT_BYTES || state.indexing {
            return 0;
        }
        let wanted = (self.budget / FREE_SHARE).min(MOST_FREE_BYTES) / part;
        let soon_free = self.budget.saturating_sub(state.lru.taken()) + state.lru.doomed();
        wanted.saturating_sub(soon_free)
    }

    fn keep_free(&self) {
        loop {
            let victims = {
                let mut state = self.state();
                let live = state.lru.used() - state.lru.doomed();
                let bytes = self.shortage(&state, 1).min(SWEEP_BYTES).min(live);
                state.lru.doom(bytes).unwrap_or_default()
            };
            // What cannot be removed is noted; the next write tries again.
            if victims.is_empty() || self.evict(&victims, 0).is_err() {
                return;
            }
        }
    }

    /// Makes the ceiling true for what is taken now, or exact. A failure is noted and no reason to refuse a
    /// write: the ceiling only matters to the next start, which the scan puts right.
    pub(super) fn keep_ceiling(&self, how: Ceiling) {
        let taken = self.state().lru.taken();
        let ceiling = self.ceiling.load(Acquire);
        if how == Ceiling::Raise && taken <= ceiling {
            if ceiling < self.budget && ceiling - taken < self.ceiling_step() / 2 {
                self.wake_housekeeper();
            }
            return;
        }
        // Held over the writing of the file: whoever needs a higher one must not write a blob before.
        let _lock = self.lock_ceiling();
        let taken = self.state().lru.taken();
        if how == Ceiling::Set || taken > self.ceiling.load(Acquire) {
            self.write_ceiling(taken, 0);
        }
    }

    fn raise_ceiling_ahead(&self) {
        let _lock = self.lock_ceiling();
        let (taken, ceiling) = (self.state().lru.taken(), self.ceiling.load(Acquire));
        if ceiling < self.budget && ceiling < taken.saturating_add(self.ceiling_step() / 2) {
            self.write_ceiling(taken, self.ceiling_step());
        }
    }

    fn ceiling_step(&self) -> u64 {
        (self.budget / CEILING_STEPS).max(1)
    }

    fn lock_ceiling(&self) -> std::sync::MutexGuard<'_, ()> {
        self.ceiling_lock
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the step above `taken` and `ahead`, but no more than the budget unless more is taken. The
    /// ceiling's lock is held.
    fn write_ceiling(&self, taken: u64, ahead: u64) {
        let wanted = taken.saturating_add(ahead);
        let raised = wanted
            .checked_next_multiple_of(self.ceiling_step())
            .unwrap_or(u64::MAX);
        let raised = raised.min(self.budget.max(taken));
        let path = self.dir.join("ceiling");
        let temp = self.dir.join("tmp/ceiling");
        let written =
            fs::write(&temp, format!("{raised}\n")).and_then(|()| fs::rename(&temp, &path));
        match written {
            Ok(()) => self.ceiling.store(raised, Release),
            Err(error) => drop(self.fault("write", &path, error)),
        }
    }

    /// Removes doomed files and reserves up to `wanted` of what that frees. Returns the bytes reserved. Those
    /// that cannot be removed are kept and the first error is reported, unless enough came free without them.
    pub(super) fn evict(&self, victims: &[Item], wanted: u64) -> Result<u64, Error> {
        let mut claimed = 0;
        let mut failed = None;
        for item in victims {
            let path = self.path_of_item(item);
            let _stripe = self.stripe(&item.digest);
            // A new blob may have taken the place of the doomed one: its file must stay.
            if self.state().lru.presence(&item.digest) != Presence::Doomed {
                continue;
            }
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    self.state().lru.revive(&item.digest);
                    failed = failed.or(Some(self.fault("evict blob", &path, error)));
                }
                Ok(()) | Err(_) => {
                    let mut state = self.state();
                    if let Some(collected) = state.lru.collect(&item.digest, wanted - claimed) {
                        claimed += collected.claimed;
                        state.evicted_entries += 1;
                        state.evicted_bytes += collected.freed;
                    }
                }
            }
        }
        if !victims.is_empty() {
            self.changed.notify_all();
        }
        match failed {
            Some(error) if claimed < wanted || wanted == 0 => {
                self.state().lru.release(claimed);
                Err(error)
            }
            _ => Ok(claimed),
        }
    }

    /// Does `work`, and when the disk is full, evicts some blobs and does it once more.
    pub(super) fn with_room<T>(
        &self,
        bytes: u64,
        mut work: impl FnMut() -> io::Result<T>,
    ) -> io::Result<T> {
        match work() {
            Err(error) if is_full(&error) => {
                let victims = {
                    let mut state = self.state();
                    let live = state.lru.used() - state.lru.doomed();
                    state
                        .lru
                        .doom(bytes.max(ROOM_BYTES).min(live))
                        .unwrap_or_default()
                };
                if victims.is_empty() || self.evict(&victims, 0).is_err() {
                    return Err(error);
                }
                work()
            }
            result => result,
        }
    }
}
