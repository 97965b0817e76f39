//! Sorts entries found on disk by time of use, a few at a time, so that requests need not wait.
//!
//! ```text
//! collect, collect, ...   the times of use, bit by bit, as entries come and go
//! order                   of these alone, without the index
//! place, place, ...       links the entries anew, least recently used first:
//!
//!   least recently used                                                    most recently used
//!   | placed, in order | not yet placed: of any age, none older than those | used meanwhile |
//! ```
//!
//! An entry used, written or removed after its time was noted keeps the place that this gave it.

use super::{Entry, Lru, NONE};

/// Number of entries examined, or relinked, in one step, which takes some hundred microseconds.
const COLLECTED: usize = 1 << 14;
const PLACED: usize = 1 << 10;

/// One pass over an index.
#[derive(Debug)]
pub struct Sorting {
    /// Times of use, with the slots of the entries.
    order: Vec<(u64, u32)>,
    pub(super) looked_at: usize,
    placed: usize,
    /// Maximum number of entries in a step.
    most: [usize; 2],
}

impl Default for Sorting {
    fn default() -> Sorting {
        Sorting::in_steps_of([COLLECTED, PLACED])
    }
}

impl Sorting {
    pub(super) fn in_steps_of(most: [usize; 2]) -> Sorting {
        Sorting {
            order: Vec::new(),
            looked_at: 0,
            placed: 0,
            most,
        }
    }

    /// Notes the times of use of the next entries. Returns `false` when there are no more.
    pub fn collect(&mut self, lru: &Lru) -> bool {
        let end = self.looked_at + self.most[0];
        let Some(found) = lru.live_in(self.looked_at..end) else {
            return false;
        };
        self.order
            .extend(found.map(|found| (found.used_micros, found.slot)));
        self.looked_at = end;
        true
    }

    /// Sorts what was noted. This takes long and does not need the index. Entries with the same time are in any order.
    pub fn order(&mut self) {
        self.order.sort_unstable();
    }

    /// Links the next entries in order. Returns `false` when there are no more.
    pub fn place(&mut self, lru: &mut Lru) -> bool {
        if self.placed == 0 {
            for list in &mut lru.lists {
                list.sorted = NONE;
            }
        }
        let end = self.order.len().min(self.placed + self.most[1]);
        for (used_micros, slot) in &self.order[self.placed..end] {
            let entry = lru.entry(*slot);
            if !entry.marked && entry.used_micros == *used_micros {
                lru.unlink(*slot);
                lru.link_sorted(*slot);
            }
        }
        self.placed = end;
        end < self.order.len()
    }
}

impl Lru {
    /// Links an entry as the newest of those already sorted.
    fn link_sorted(&mut self, slot: u32) {
        let list = self.list_of(self.entry(slot).namespace);
        let older = self.lists[list].sorted;
        let newer = match older {
            NONE => NONE,
            older => self.entry(older).newer,
        };
        match (older, newer) {
            (NONE, _) => self.link_oldest(slot),
            (_, NONE) => self.link_newest(slot),
            (older, newer) => {
                let entry: &mut Entry = self.entry_mut(slot);
                (entry.older, entry.newer) = (older, newer);
                let bytes = super::bytes_of(entry.units);
                self.entry_mut(older).newer = slot;
                self.entry_mut(newer).older = slot;
                self.lists[list].bytes += bytes;
            }
        }
        self.lists[list].sorted = slot;
    }
}
