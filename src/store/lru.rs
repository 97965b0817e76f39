//! The store's index: which blobs it has, their sizes, and their order of use. Pure: no I/O, no clock, no lock.
//!
//! Bytes are in one of three states, and no operation here lets their sum exceed the budget:
//!
//! ```text
//!           claim                 commit
//!   free ----------> reserved -----------------> used (live, in order of use)
//!     ^                 | release                  | mark_victims
//!     +-----------------+                          v
//!     +------------------------------------- used (marked: its file is being removed)
//!                     collect
//! ```
//!
//! A victim counts as used until the caller has removed its file. The bytes it frees go directly to the reservation for
//! which it was evicted, so that no other writer can take them in between.
//!
//! Namespaces may have rules. A quota limits what a namespace takes, in the same three states; a write that would
//! exceed it evicts entries of the same namespace. Entries of a pinned namespace are evicted only by writes to it. Each
//! namespace with a rule has its own list in order of use, and all others share one, so the next victim is found by
//! comparing the ends of a few lists.
//!
//! After a start, there are files on disk that the index does not know yet. [`Lru::reserve_unscanned`] states how many
//! bytes they may take; these are not free until [`Lru::admit`] has added the files. Only if the files turn out to be
//! larger is the budget exceeded, and the caller evicts [`Lru::overshoot`]. [`Lru::reserve_unscanned_of`] does the same
//! for a quota.

pub mod quotas;
mod sorting;

pub use self::quotas::{Claim, Reach, Rule, Shortage};
use self::quotas::{List, Share};
pub use self::sorting::Sorting;
use super::slots::Slots;
use std::ops::Range;

/// Maximum size of an entry in bytes: sizes are stored as 32-bit counts of 512-byte units.
pub const MAX_ENTRY_BYTES: u64 = UNIT * u32::MAX as u64;
/// The time of use on disk may lag by this many microseconds, which saves a write per hit.
const PERSIST_AFTER_MICROS: u64 = 600 * 1_000_000;
const UNIT: u64 = 512;
const NONE: u32 = u32::MAX;

/// A key's hash: identifies the entry in the index and names its file.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Digest(pub [u8; 16]);

impl Digest {
    /// Keys are hashed with BLAKE3 before, so any eight of the bytes are evenly distributed.
    fn table_hash(&self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    }
}

/// State of a digest in the index.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Presence {
    /// Not in the index.
    Absent,
    /// It may be served.
    Live,
    /// Being evicted: its file is about to be removed.
    Doomed,
}

/// What a hit has to do besides serving the blob.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Touched {
    /// The time of use on disk is too old and must be written.
    pub persist: bool,
    /// The body's checksum has been verified since the start.
    pub checked: bool,
    /// The previous time of use on disk, in seconds.
    pub used_secs: u32,
}

/// Identifies an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Item {
    /// Hash of its key.
    pub digest: Digest,
    /// Its namespace.
    pub namespace: u16,
}

/// The result of [`Lru::collect`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Collected {
    /// Bytes that the entry occupied.
    pub freed: u64,
    /// How many of them are now reserved.
    pub claimed: u64,
}

/// A live entry, found while iterating over all slots.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Found {
    /// Its identity.
    pub item: Item,
    /// When it was last used.
    pub used_micros: u64,
    slot: u32,
}

/// Usage of a namespace.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Totals {
    /// Bytes.
    pub bytes: u64,
    /// Entries.
    pub entries: u64,
}

/// 48 bytes; including five bytes per bucket of the table, a million entries take 60 to 75 MB.
#[derive(Clone, Debug)]
struct Entry {
    digest: Digest,
    used_micros: u64,
    /// The time of use on disk, in seconds.
    persisted_secs: u32,
    units: u32,
    /// The next more recently used entry; `NONE` at the end, and in marked and vacant slots.
    newer: u32,
    /// The next less recently used entry; in vacant slots, the next vacant one.
    older: u32,
    namespace: u16,
    /// Being evicted. Vacant slots are marked as well.
    marked: bool,
    checked: bool,
    /// It has been used since it was written.
    hit: bool,
}

/// The index. See the module's documentation.
#[derive(Debug)]
pub struct Lru {
    entries: Vec<Entry>,
    table: Slots,
    vacant: u32,
    budget: u64,
    used: u64,
    marked: u64,
    reserved: u64,
    expected: u64,
    shares: Vec<Share>,
    /// The first list is shared by all namespaces without a rule.
    lists: Vec<List>,
}

impl Entry {
    fn item(&self) -> Item {
        Item {
            digest: self.digest,
            namespace: self.namespace,
        }
    }
}

impl Lru {
    /// Creates an empty index with a budget of `budget` bytes.
    pub fn new(budget: u64) -> Lru {
        Lru {
            entries: Vec::new(),
            table: Slots::new(),
            vacant: NONE,
            budget,
            used: 0,
            marked: 0,
            reserved: 0,
            expected: 0,
            shares: Vec::new(),
            lists: vec![List::new(false, None)],
        }
    }

    /// Bytes of all entries, live and marked.
    pub fn used(&self) -> u64 {
        self.used
    }

    /// Bytes of marked entries.
    pub fn victim_bytes(&self) -> u64 {
        self.marked
    }

    /// Bytes reserved.
    pub fn reserved(&self) -> u64 {
        self.reserved
    }

    /// Bytes used, reserved, and expected from the scan.
    pub fn taken(&self) -> u64 {
        self.used
            .saturating_add(self.reserved)
            .saturating_add(self.expected)
    }

    /// Counts `bytes` as taken by files that are not yet admitted; 0 when all are.
    pub fn reserve_unscanned(&mut self, bytes: u64) {
        self.expected = bytes;
    }

    /// Bytes by which the files found on disk exceed the budget.
    pub fn overshoot(&self) -> u64 {
        (self.used + self.reserved).saturating_sub(self.budget + self.marked)
    }

    /// Number of entries, live and marked.
    pub fn count(&self) -> u64 {
        self.table.len() as u64
    }

    /// Usage of a namespace, including marked entries.
    pub fn totals(&self, namespace: u16) -> Totals {
        self.share(namespace).totals
    }

    /// Whether a namespace without a rule has no entries, no reservations, and none that the scan may still find.
    pub fn is_empty(&self, namespace: u16) -> bool {
        let share = self.share(namespace);
        let bytes = share.reserved + share.expected;
        share.totals.entries == 0 && bytes == 0 && share.list == 0
    }

    /// The state of `digest`.
    pub fn presence(&self, digest: &Digest) -> Presence {
        match self.find(digest) {
            None => Presence::Absent,
            Some(slot) if self.entry(slot).marked => Presence::Doomed,
            Some(_) => Presence::Live,
        }
    }

    /// Forgets a marked entry whose file has been removed, and reserves up to `wanted` of its bytes for a write in
    /// `namespace`, as far as its quota allows. Returns `None` if it is no longer marked because a new blob has
    /// replaced it.
    pub fn collect(&mut self, digest: &Digest, namespace: u16, wanted: u64) -> Option<Collected> {
        if self.presence(digest) != Presence::Doomed {
            return None;
        }
        let freed = self.remove(digest)?;
        let claimed = wanted.min(freed).min(self.room_in_quota(namespace));
        self.reserve(namespace, claimed);
        Some(Collected { freed, claimed })
    }

    /// Makes a marked entry live again as the most recently used one: its file could not be removed, and the next
    /// attempt should try another.
    pub fn restore(&mut self, digest: &Digest) {
        let Some(slot) = self.find(digest).filter(|slot| self.entry(*slot).marked) else {
            return;
        };
        let (bytes, namespace) = (bytes_of(self.entry(slot).units), self.entry(slot).namespace);
        self.marked -= bytes;
        self.share_mut(namespace).marked -= bytes;
        self.entry_mut(slot).marked = false;
        self.link_newest(slot);
    }

    fn reserve(&mut self, namespace: u16, bytes: u64) {
        self.reserved += bytes;
        self.share_mut(namespace).reserved += bytes;
    }

    /// Returns bytes that were reserved for a write in `namespace`.
    pub fn release(&mut self, namespace: u16, bytes: u64) {
        let share = self.share_mut(namespace);
        debug_assert!(bytes <= share.reserved, "released more than was reserved");
        share.reserved = share.reserved.saturating_sub(bytes);
        self.reserved = self.reserved.saturating_sub(bytes);
    }

    /// Turns a reservation into a live, verified, most recently used entry of `bytes`, and returns the rest of the
    /// reservation. Returns whether this replaced an entry of the same digest.
    pub fn commit(&mut self, item: Item, bytes: u64, now_micros: u64, reserved: u64) -> bool {
        debug_assert!(bytes <= reserved, "committed more than was reserved");
        self.release(item.namespace, reserved);
        let replaced = self.remove(&item.digest).is_some();
        let slot = self.insert(item, bytes, now_micros);
        self.entry_mut(slot).checked = true;
        self.link_newest(slot);
        replaced
    }

    /// Adds a file found on disk as the least recently used entry (see [`Sorting`]), unless the digest is already
    /// known. Returns whether it was added.
    pub fn admit(&mut self, found: Item, bytes: u64, used_micros: u64) -> bool {
        if self.find(&found.digest).is_some() {
            return false;
        }
        let slot = self.insert(found, bytes, used_micros);
        self.expected = self.expected.saturating_sub(bytes);
        let share = self.share_mut(found.namespace);
        share.expected = share.expected.saturating_sub(bytes);
        self.link_oldest(slot);
        true
    }

    /// Makes an entry the most recently used one, if it is live.
    pub fn touch(&mut self, digest: &Digest, now_micros: u64) -> Option<Touched> {
        let slot = self.find(digest).filter(|slot| !self.entry(*slot).marked)?;
        self.unlink(slot);
        self.link_newest(slot);
        let entry = self.entry_mut(slot);
        entry.used_micros = now_micros;
        entry.hit = true;
        let used_secs = entry.persisted_secs;
        let persist = is_due(used_secs, now_micros);
        if persist {
            entry.persisted_secs = secs(now_micros);
        }
        Some(Touched {
            persist,
            checked: entry.checked,
            used_secs,
        })
    }

    /// Makes a live entry the most recently used one if a hit has nothing else to do (see [`Touched`]). Returns its
    /// time of use on disk, in seconds; if there is more to do, nothing changes.
    pub fn touch_only(&mut self, digest: &Digest, now_micros: u64) -> Option<u32> {
        let slot = self.find(digest)?;
        let entry = self.entry(slot);
        if entry.marked || !entry.checked || is_due(entry.persisted_secs, now_micros) {
            return None;
        }
        self.unlink(slot);
        self.link_newest(slot);
        let entry = self.entry_mut(slot);
        (entry.used_micros, entry.hit) = (now_micros, true);
        Some(entry.persisted_secs)
    }

    /// Makes the next hit verify the body's checksum again, and write the time of use.
    pub fn report(&mut self, digest: &Digest) {
        if let Some(slot) = self.find(digest) {
            let entry = self.entry_mut(slot);
            (entry.checked, entry.persisted_secs) = (false, 0);
        }
    }

    /// Whether a live entry has been read, not only written, after `since_micros`.
    pub fn was_hit_since(&self, digest: &Digest, since_micros: u64) -> bool {
        self.find(digest).is_some_and(|slot| {
            let entry = self.entry(slot);
            entry.hit && !entry.marked && entry.used_micros > since_micros
        })
    }

    /// Records that a live entry's body matches its checksum.
    pub fn mark_checked(&mut self, digest: &Digest) {
        if let Some(slot) = self.find(digest) {
            self.entry_mut(slot).checked = true;
        }
    }

    /// Removes an entry, live or marked, and returns its bytes.
    pub fn remove(&mut self, digest: &Digest) -> Option<u64> {
        let entries = &self.entries;
        let slot = self.table.remove(digest.table_hash(), |slot| {
            entries[slot as usize].digest == *digest
        })?;
        let entry = self.entry(slot);
        let (bytes, namespace, marked) = (bytes_of(entry.units), entry.namespace, entry.marked);
        if marked {
            self.marked -= bytes;
            self.share_mut(namespace).marked -= bytes;
        } else {
            self.unlink(slot);
        }
        self.used -= bytes;
        let totals = &mut self.share_mut(namespace).totals;
        totals.bytes -= bytes;
        totals.entries -= 1;
        let vacant = self.vacant;
        let entry = self.entry_mut(slot);
        (entry.older, entry.marked) = (vacant, true);
        self.vacant = slot;
        Some(bytes)
    }

    /// Live entries in this range of slots; `None` if it is beyond the last slot. An entry keeps its slot as long as it
    /// exists, so the index can be iterated in parts while entries come and go.
    pub fn live_in(&self, slots: Range<usize>) -> Option<impl Iterator<Item = Found>> {
        let last = slots.end.min(self.entries.len());
        let first = u32::try_from(slots.start).ok()?;
        let entries = self.entries.get(slots.start..last)?;
        let found = (first..).zip(entries).filter(|(_, entry)| !entry.marked);
        (!entries.is_empty()).then(|| {
            found.map(|(slot, entry)| Found {
                item: entry.item(),
                used_micros: entry.used_micros,
                slot,
            })
        })
    }

    /// The bytes of an entry, if it is live and was last used at or before `until_micros`.
    pub fn unused_since(&self, digest: &Digest, until_micros: u64) -> Option<u64> {
        let entry = self.entry(self.find(digest)?);
        (!entry.marked && entry.used_micros <= until_micros).then(|| bytes_of(entry.units))
    }

    fn find(&self, digest: &Digest) -> Option<u32> {
        self.table.find(digest.table_hash(), |slot| {
            self.entry(slot).digest == *digest
        })
    }

    fn entry(&self, slot: u32) -> &Entry {
        &self.entries[slot as usize]
    }

    fn entry_mut(&mut self, slot: u32) -> &mut Entry {
        &mut self.entries[slot as usize]
    }

    /// Fills a slot and updates the sums; the caller links it.
    fn insert(&mut self, new: Item, bytes: u64, used_micros: u64) -> u32 {
        let entry = Entry {
            digest: new.digest,
            used_micros,
            persisted_secs: secs(used_micros),
            units: units_of(bytes),
            newer: NONE,
            older: NONE,
            namespace: new.namespace,
            marked: false,
            checked: false,
            hit: false,
        };
        let bytes = bytes_of(entry.units);
        let slot = self.vacant;
        let slot = if slot == NONE {
            self.entries.push(entry);
            u32::try_from(self.entries.len() - 1)
                .expect("2^32 files need more inodes than a file system has")
        } else {
            self.vacant = self.entry(slot).older;
            *self.entry_mut(slot) = entry;
            slot
        };
        let entries = &self.entries;
        self.table.insert(new.digest.table_hash(), slot, |slot| {
            entries[slot as usize].digest.table_hash()
        });
        self.used += bytes;
        let totals = &mut self.share_mut(new.namespace).totals;
        totals.bytes += bytes;
        totals.entries += 1;
        slot
    }

    fn unlink(&mut self, slot: u32) {
        let Entry {
            newer,
            older,
            units,
            namespace,
            ..
        } = *self.entry(slot);
        let list = self.list_of(namespace);
        self.lists[list].bytes -= bytes_of(units);
        if self.lists[list].sorted == slot {
            self.lists[list].sorted = older;
        }
        match newer {
            NONE => self.lists[list].newest = older,
            newer => self.entry_mut(newer).older = older,
        }
        match older {
            NONE => self.lists[list].oldest = newer,
            older => self.entry_mut(older).newer = newer,
        }
    }

    fn link_newest(&mut self, slot: u32) {
        let list = self.list_of(self.entry(slot).namespace);
        let before = self.lists[list].newest;
        let entry = self.entry_mut(slot);
        (entry.older, entry.newer) = (before, NONE);
        let bytes = bytes_of(entry.units);
        match before {
            NONE => self.lists[list].oldest = slot,
            before => self.entry_mut(before).newer = slot,
        }
        self.lists[list].newest = slot;
        self.lists[list].bytes += bytes;
    }

    fn link_oldest(&mut self, slot: u32) {
        let list = self.list_of(self.entry(slot).namespace);
        let before = self.lists[list].oldest;
        let entry = self.entry_mut(slot);
        (entry.newer, entry.older) = (before, NONE);
        let bytes = bytes_of(entry.units);
        match before {
            NONE => self.lists[list].newest = slot,
            before => self.entry_mut(before).older = slot,
        }
        self.lists[list].oldest = slot;
        self.lists[list].bytes += bytes;
    }
}

/// Whether the time of use on disk must be written. This includes a time in the future, which would otherwise persist
/// after the clock was set back.
fn is_due(persisted_secs: u32, now_micros: u64) -> bool {
    let persisted_micros = u64::from(persisted_secs) * 1_000_000;
    now_micros.abs_diff(persisted_micros) >= PERSIST_AFTER_MICROS
}

fn units_of(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX)
}

fn bytes_of(units: u32) -> u64 {
    u64::from(units) * UNIT
}

fn secs(micros: u64) -> u32 {
    u32::try_from(micros / 1_000_000).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
