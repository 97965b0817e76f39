//! The low-disk watermark: other programs write to the disk too, and a full disk hurts them more than a miss hurts a
//! build.
//!
//! If less than a hundredth of the file system is free, or less than [`MOST_SPARE_BYTES`] if that is smaller, the
//! housekeeper evicts the difference. A file system smaller than [`LEAST_DISK_BYTES`], such as a tmpfs, belongs to the
//! cache: nothing is kept free there. Some file systems free blocks only after seconds, so the next check is delayed.

use super::eviction::EvictionReason;
use super::ghost_list::Cause;
use super::lru::Reach;
use super::{Inner, now};
use crate::store::eviction::PAUSE;
use nix::sys::statvfs::statvfs;
use std::time::SystemTime;

/// The watermark as a fraction of the file system's size.
const SPARE_SHARE: u64 = 100;
const MOST_SPARE_BYTES: u64 = 256 * 1024 * 1024;
const LEAST_DISK_BYTES: u64 = 1024 * 1024 * 1024;
/// Nothing is evicted if the evictable bytes are less than this multiple of the shortage: the cache is then not what
/// fills the disk, and evicting all of it would not help.
const LEAST_LIVE: u64 = 4;

impl Inner {
    /// Evicts until free space reaches the watermark, unless the last check, at `looked`, was too recent.
    pub(super) fn keep_spare(&self, looked: &mut SystemTime) {
        let begun = now();
        // If the clock was set back, the check must not be postponed.
        if begun
            .duration_since(*looked)
            .is_ok_and(|since| since < PAUSE)
        {
            return;
        }
        *looked = begun;
        let Ok(disk) = statvfs(&self.dir) else {
            // Reads and writes in that folder will report the same error.
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
            // Failures to remove a file have been recorded.
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
