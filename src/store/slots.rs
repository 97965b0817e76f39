//! A hash table from digests to slots of a vector. Pure: no I/O, no clock, no lock.
//!
//! A growing table is copied as a whole, which takes a hundred milliseconds for millions of entries, while every user
//! waits. This is therefore a set of many small tables, of which one grows at a time.

use hashbrown::HashTable;

const PARTS: usize = 1024;

/// Slots, by the hash of the entries in them.
#[derive(Debug)]
pub(super) struct Slots {
    parts: Vec<HashTable<u32>>,
    len: usize,
}

impl Slots {
    pub(super) fn new() -> Slots {
        Slots {
            parts: vec![HashTable::new(); PARTS],
            len: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The slot with this hash for which `is_it` returns true.
    pub(super) fn find(&self, hash: u64, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        let found = self.parts[part(hash)].find(hash, |slot| is_it(*slot));
        found.copied()
    }

    /// Adds a slot; `hash_of` returns the hash of any slot in the table.
    pub(super) fn insert(&mut self, hash: u64, slot: u32, hash_of: impl Fn(u32) -> u64) {
        self.parts[part(hash)].insert_unique(hash, slot, |slot| hash_of(*slot));
        self.len += 1;
    }

    /// Removes the slot with this hash for which `is_it` returns true.
    pub(super) fn remove(&mut self, hash: u64, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        let found = self.parts[part(hash)].find_entry(hash, |slot| is_it(*slot));
        let (slot, _) = found.ok()?.remove();
        self.len -= 1;
        Some(slot)
    }

    #[cfg(test)]
    pub(super) fn allocation_size(&self) -> usize {
        let parts = self.parts.iter().map(HashTable::allocation_size);
        parts.sum::<usize>() + self.parts.capacity() * size_of::<HashTable<u32>>()
    }

    /// Maximum number of slots that are moved when one table grows.
    #[cfg(test)]
    pub(super) fn largest_part(&self) -> usize {
        self.parts.iter().map(HashTable::len).max().unwrap_or(0)
    }
}

/// Selects bits from the middle, because the small tables use those at both ends.
fn part(hash: u64) -> usize {
    (hash >> 32) as usize % PARTS
}
