//! The low-disk watermark: others write to the disk too, and a full one hurts them more than a miss hurts a build.
//!
//! Where less than a hundredth of the file system is free, or [`MOST_SPARE_BYTES`], the housekeeper evicts what lacks.
//! A file system below [`LEAST_DISK_BYTES`], such as a tmpfs, is the cache's own: nothing is kept free there.
//! Some file systems give blocks back only after seconds, so it looks again after a pause and not at once.

use super::eviction::EvictionReason;
use super::ghost_list::Cause;
use super::lru::Reach;
use super::{Inner, now};
use crate::store::eviction::PAUSE;
use nix::sys::statvfs::statvfs;
use std::time::SystemTime;

/// The free part of the disk that is kept free.
const SPARE_SHARE: u64 = 100;
const MOST_SPARE_BYTES: u64 = 256 * 1024 * 1024;
const LEAST_DISK_BYTES: u64 = 1024 * 1024 * 1024;
/// Nothing is evicted for it where what may be evicted is less than so many times of what lacks: the cache is not what
/// fills the disk then, and would be gone for nothing.
const LEAST_LIVE: u64 = 4;

impl Inner {
    /// Evicts until the disk has its spare room, if the last look at `looked` was long enough ago.
    pub(super) fn keep_spare(&self, looked: &mut SystemTime) {
        let begun = now();
        // A clock that was set back must not put it off.
        if begun
            .duration_since(*looked)
            .is_ok_and(|since| since < PAUSE)
        {
            return;
        }
        *looked = begun;
        let Ok(disk) = statvfs(&self.dir) else {
            // Whoever reads or writes there finds that out too, and says so.
            return;
        };
        let bytes = |blocks: u64| blocks.saturating_mul(disk.fragment_size());
        let (whole, free) = (bytes(disk.blocks()), bytes(disk.blocks_available()));
        let wanted = match whole {
            ..LEAST_DISK_BYTES => 0,
            _ => (whole / SPARE_SHARE).min(MOST_SPARE_BYTES),
        };
        let lacks = wanted.saturating_sub(free);
        {
            let state = self.state();
            if lacks == 0 || state.indexing || state.lru.live(Reach::Unpinned) / LEAST_LIVE < lacks
            {
                return;
            }
        }
        tracing::warn!(
            free,
            lacks,
            "the disk of \"{}\" is almost full: making room; lower SCCACHE_CACHE_SIZE, or free some of it",
            self.dir.display()
        );
        let mut rest = lacks;
        while rest > 0 {
            let (victims, bytes) = {
                let mut state = self.state();
                let before = state.lru.victim_bytes();
                let victims = state
                    .lru
                    .mark_victims(rest, Reach::Unpinned)
                    .unwrap_or_default();
                (victims, state.lru.victim_bytes() - before)
            };
            // What cannot be removed is noted.
            if victims.is_empty()
                || self
                    .evict(&victims, EvictionReason::Room(Cause::Budget))
                    .is_err()
            {
                return;
            }
            rest = rest.saturating_sub(bytes);
        }
    }
}
