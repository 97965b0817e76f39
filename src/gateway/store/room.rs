//! Making room: reservation, eviction, and what to do when the disk is full before the budget is.

use super::{Error, Inner, is_full};
use crate::gateway::lru::{Item, Presence};
use std::fs;
use std::io;
use std::time::Duration;

/// Evicted at least, when the disk is full before the budget is.
const ROOM_BYTES: u64 = 1024 * 1024;
/// How long a write waits for files that others are removing, and how often it looks.
const WAIT: Duration = Duration::from_millis(100);
const WAITS: u32 = 20;

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
            // Others hold the budget. What they are removing comes free soon; what clients are still sending
            // may take any time. Give back what is held, or two writers could wait for each other.
            state.lru.release(std::mem::take(&mut held));
            if state.lru.doomed() == 0 || waits == WAITS {
                return Err(Error::NoSpace);
            }
            waits += 1;
            drop(self.changed.wait_timeout(state, WAIT));
        }
        Ok(())
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
                    failed = failed.or(Some(self.fault("evict", &path, error)));
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
