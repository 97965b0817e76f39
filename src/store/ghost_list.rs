//! Remembers evicted blobs, to count misses that would have been hits with a larger budget. Pure: no I/O, no clock, no
//! lock.
//!
//! Evicted keys are remembered, newest first, as a continuation of the index beyond its end:
//!
//! ```text
//!   most recently used                             evicted last      evicted first
//!   | live, as many as fit into the budget         | ghosts ........................ | forgotten
//!   '-------- budget ------------------------------'---- g ----'
//! ```
//!
//! A budget that reached past the ghost `g` would have kept it. Such a budget is larger than the current one by the
//! bytes of the ghosts before `g` and of `g` itself. This is exact for a single order of use without quotas; with
//! quotas it is an estimate. No budget would have kept what was evicted because of its namespace's quota, so that is
//! counted separately.
//!
//! A ghost consists of 32 bits of the key's hash, its size, a place in a Fenwick tree of sums and one in a table: 22 to
//! 28 bytes, for at most [`MOST`] ghosts (13 MB, allocated only as blobs are evicted). Keys with equal hash bits are
//! confused: with the maximum number of ghosts, one miss in 9,000 is wrongly counted as a lost hit.

use super::lru::Digest;
use super::slots::Slots;

/// Maximum number of ghosts.
pub const MOST: usize = (1 << 19) / 8 * 7;
/// There is one ghost per this many bytes of the budget, but at least [`LEAST`].
const BYTES_PER_GHOST: u64 = 16 * 1024;
const LEAST: usize = 1024;
const UNIT: u64 = 512;
/// Flag in the size of a ghost that was evicted because of a quota.
const BY_QUOTA: u32 = 1 << 31;
/// Budgets to compare, in eighths of the current budget added to it.
const EIGHTHS: [u64; 9] = [1, 2, 4, 8, 16, 24, 40, 56, 120];

/// One remembered key; a size of 0 marks an unused place.
#[derive(Clone, Copy, Debug, Default)]
struct Ghost {
    tag: u32,
    units: u32,
}

impl Ghost {
    fn bytes(self) -> u64 {
        u64::from(self.units & !BY_QUOTA) * UNIT
    }

    /// Units by which the older ghosts are further from the end of the index.
    fn weight(self) -> u64 {
        if self.units & BY_QUOTA == 0 {
            u64::from(self.units)
        } else {
            0
        }
    }
}

/// Why a blob was evicted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cause {
    /// The budget was full.
    Budget,
    /// Its namespace's quota was full.
    Quota,
}

/// A miss that would have been a hit with a larger budget or quota.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lost {
    /// Bytes that the blob occupied.
    pub bytes: u64,
    /// The smallest budget that would have kept it; `None` if it was evicted because of a quota.
    pub kept_by: Option<u64>,
}

/// The share of the lost hits that a budget would have kept.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct HitRatio {
    /// The budget.
    pub budget_bytes: u64,
    /// From 0 to 1, not counting those evicted because of a quota.
    pub share: f64,
}

/// All lost hits since the start.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Tally {
    /// Number of lost hits.
    pub count: u64,
    /// Bytes that the blobs occupied, counted at each miss.
    pub bytes: u64,
    /// Number of lost hits of blobs evicted because of a quota.
    pub by_quota: u64,
    budget: u64,
    /// Counts by the first budget that would have been sufficient.
    kept: [u64; EIGHTHS.len()],
}

impl Tally {
    fn add(&mut self, lost: Lost) {
        self.count += 1;
        self.bytes += lost.bytes;
        match lost.kept_by {
            None => self.by_quota += 1,
            Some(least) => {
                let budgets = EIGHTHS.map(|eighths| larger(self.budget, eighths));
                if let Some(at) = budgets.iter().position(|budget| *budget >= least) {
                    self.kept[at] += 1;
                }
            }
        }
    }

    /// The effect of larger budgets, smallest first; empty if there are no lost hits to compare.
    pub fn kept_by(&self) -> Vec<HitRatio> {
        let all = self.count - self.by_quota;
        if all == 0 {
            return Vec::new();
        }
        let mut sum = 0;
        let budgets = EIGHTHS.iter().zip(self.kept);
        budgets
            .map(|(eighths, kept)| {
                sum += kept;
                HitRatio {
                    budget_bytes: larger(self.budget, *eighths),
                    share: sum as f64 / all as f64,
                }
            })
            .collect()
    }
}

fn larger(budget: u64, eighths: u64) -> u64 {
    budget.saturating_add(budget / 8 * eighths)
}

/// The remembered keys, and the tally of those that were requested again.
#[derive(Debug)]
pub struct Ghosts {
    budget: u64,
    /// A ring buffer; `next` is the oldest ghost, or an unused place.
    ring: Vec<Ghost>,
    next: usize,
    /// Sums of weights, arranged as a Fenwick tree.
    sums: Vec<u64>,
    /// Places in the ring by tag.
    table: Slots,
    tally: Tally,
}

impl Ghosts {
    /// Creates an empty list for an index of `budget` bytes.
    pub fn new(budget: u64) -> Ghosts {
        let wanted = usize::try_from(budget / BYTES_PER_GHOST).unwrap_or(MOST);
        Ghosts::with_room(budget, wanted.clamp(LEAST, MOST))
    }

    fn with_room(budget: u64, most: usize) -> Ghosts {
        Ghosts {
            budget,
            ring: vec![Ghost::default(); most],
            next: 0,
            sums: vec![0; most + 1],
            table: Slots::new(),
            tally: Tally {
                budget,
                ..Tally::default()
            },
        }
    }

    /// The lost hits so far.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Remembers a key whose blob of `bytes` was evicted.
    pub fn push(&mut self, digest: &Digest, bytes: u64, cause: Cause) {
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX);
        let units = units.clamp(1, BY_QUOTA - 1);
        let flag = match cause {
            Cause::Budget => 0,
            Cause::Quota => BY_QUOTA,
        };
        let tag = tag_of(digest);
        self.forget_tag(tag);
        self.place(Ghost {
            tag,
            units: units | flag,
        });
    }

    /// Forgets a key because it has a blob again.
    pub fn forget(&mut self, digest: &Digest) {
        self.forget_tag(tag_of(digest));
    }

    /// Looks up a key that is not in the index, and counts a lost hit if it had been evicted.
    pub fn ask(&mut self, digest: &Digest) -> Option<Lost> {
        let tag = tag_of(digest);
        let at = self.find(tag)?;
        let ghost = self.ring[at];
        let kept_by = (ghost.units & BY_QUOTA == 0).then(|| {
            let units = self.newer_than(at) + ghost.weight();
            self.budget.saturating_add(units * UNIT)
        });
        let lost = Lost {
            bytes: ghost.bytes(),
            kept_by,
        };
        self.tally.add(lost);
        // With a larger budget, it would now be the most recently used.
        self.forget_tag(tag);
        self.place(ghost);
        Some(lost)
    }

    fn place(&mut self, ghost: Ghost) {
        let at = self.next;
        let oldest = self.ring[at];
        if oldest.units != 0 {
            self.forget_tag(oldest.tag);
        }
        self.ring[at] = ghost;
        self.add(at, ghost.weight());
        let slot = u32::try_from(at).expect("there are fewer than 2^19");
        let ring = &self.ring;
        self.table.insert(hash_of(ghost.tag), slot, |slot| {
            hash_of(ring[slot as usize].tag)
        });
        self.next = (at + 1) % self.ring.len();
    }

    fn find(&self, tag: u32) -> Option<usize> {
        let is_it = |slot| self.ring[slot as usize].tag == tag;
        let found = self.table.find(hash_of(tag), is_it);
        found.map(|slot| slot as usize)
    }

    fn forget_tag(&mut self, tag: u32) {
        let ring = &self.ring;
        let is_it = |slot| ring[slot as usize].tag == tag;
        let Some(slot) = self.table.remove(hash_of(tag), is_it) else {
            return;
        };
        let at = slot as usize;
        let weight = self.ring[at].weight();
        self.ring[at] = Ghost::default();
        self.add(at, weight.wrapping_neg());
    }

    /// Units of the ghosts that are newer than the one at this place.
    fn newer_than(&self, at: usize) -> u64 {
        let (to_it, to_next) = (self.sum(at + 1), self.sum(self.next));
        if at < self.next {
            to_next - to_it
        } else {
            self.sum(self.ring.len()) - to_it + to_next
        }
    }

    fn add(&mut self, at: usize, units: u64) {
        let mut node = at + 1;
        while node < self.sums.len() {
            // Negative numbers are added as their two's complement.
            self.sums[node] = self.sums[node].wrapping_add(units);
            node += node & node.wrapping_neg();
        }
    }

    /// Units of the first `count` places.
    fn sum(&self, count: usize) -> u64 {
        let (mut node, mut sum) = (count, 0);
        while node > 0 {
            sum += self.sums[node];
            node &= node - 1;
        }
        sum
    }
}

/// Bits of the key's hash, other than those that the index uses.
fn tag_of(digest: &Digest) -> u32 {
    let [.., a, b, c, d] = digest.0;
    u32::from_le_bytes([a, b, c, d])
}

/// Spreads the tag over 64 bits, because the table uses bits from both ends.
fn hash_of(tag: u32) -> u64 {
    u64::from(tag).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn digest(number: u32) -> Digest {
        let mut digest = Digest([0; 16]);
        digest.0[12..].copy_from_slice(&number.to_le_bytes());
        digest
    }

    /// A cache of `budget` units by the plainest means: hits and evicted numbers of a sequence of uses.
    fn lru(budget: u64, uses: &[(u32, u64)]) -> Vec<(bool, Vec<(u32, u64)>)> {
        let mut live: Vec<(u32, u64)> = Vec::new();
        let mut outcome = Vec::new();
        for used in uses {
            let at = live.iter().position(|one| one.0 == used.0);
            at.map(|at| live.remove(at));
            live.push(*used);
            let mut evicted = Vec::new();
            while live.iter().map(|one| one.1).sum::<u64>() > budget {
                evicted.push(live.remove(0));
            }
            outcome.push((at.is_some(), evicted));
        }
        outcome
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn estimate_is_what_a_larger_cache_does(
            budget in 1..8u64, numbers in proptest::collection::vec(0..30u32, 1..300)
        ) {
            let uses: Vec<(u32, u64)> = numbers.iter().map(|number| (*number, 1)).collect();
            let mut ghosts = Ghosts::with_room(budget * UNIT, 1024);
            let mut least = Vec::new();
            for (number, (hit, evicted)) in numbers.iter().zip(lru(budget, &uses)) {
                least.push(if hit { Some(0) } else {
                    ghosts.ask(&digest(*number)).map(|lost| lost.kept_by.unwrap() / UNIT)
                });
                ghosts.forget(&digest(*number));
                for (gone, units) in evicted {
                    ghosts.push(&digest(gone), units * UNIT, Cause::Budget);
                }
            }
            for larger in budget..40 {
                let hits: Vec<bool> = lru(larger, &uses).into_iter().map(|(hit, _)| hit).collect();
                let told: Vec<bool> = least.iter().map(|least| least.is_some_and(|least| least <= larger)).collect();
                prop_assert_eq!(hits, told, "budget {}, not {}", larger, budget);
            }
        }

        #[test]
        fn sums_hold_whatever_is_remembered_and_forgotten(
            most in 1..20usize, ops in proptest::collection::vec((0..25u32, 0..5u8, 1..9u64), 1..200)
        ) {
            let mut ghosts = Ghosts::with_room(UNIT, most);
            // Oldest first.
            let mut model: Vec<(u32, u64, Cause)> = Vec::new();
            let mut order = 0;
            let mut placed: Vec<(u32, usize)> = Vec::new();
            for (number, what, units) in ops {
                let known = model.iter().position(|one| one.0 == number);
                match what {
                    0 => {
                        ghosts.forget(&digest(number));
                        known.map(|at| model.remove(at));
                    }
                    1 => {
                        let newer = known.map(|at| model[at + 1..].iter().filter(|one| one.2 == Cause::Budget).map(|one| one.1).sum::<u64>());
                        let expected = known.map(|at| Lost {
                            bytes: model[at].1 * UNIT,
                            kept_by: (model[at].2 == Cause::Budget).then(|| (1 + newer.unwrap() + model[at].1) * UNIT),
                        });
                        prop_assert_eq!(ghosts.ask(&digest(number)), expected);
                        if let Some(at) = known {
                            let ghost = model.remove(at);
                            model.push(ghost);
                            placed.push((number, order));
                            order += 1;
                        }
                    }
                    _ => {
                        let cause = if what == 2 { Cause::Quota } else { Cause::Budget };
                        ghosts.push(&digest(number), units * UNIT, cause);
                        known.map(|at| model.remove(at));
                        model.push((number, units, cause));
                        placed.push((number, order));
                        order += 1;
                    }
                }
                // The ring goes round: whoever was placed a whole round ago is forgotten.
                model.retain(|one| {
                    let last = placed.iter().rev().find(|place| place.0 == one.0).unwrap();
                    last.1 + most >= order
                });
                for one in &model {
                    prop_assert!(ghosts.find(one.0).is_some());
                }
                prop_assert_eq!(ghosts.table.len(), model.len());
            }
        }
    }

    #[test]
    fn budget_decides_how_many_ghosts_there_may_be() {
        let most = |budget: u64| Ghosts::new(budget).ring.len();
        assert_eq!([0, 16 << 20, 64 << 20].map(most), [1024, 1024, 4096]);
        assert_eq!([1 << 40, u64::MAX].map(most), [458_752, 458_752]);
    }

    #[test]
    fn blobs_of_any_size_are_remembered() {
        let largest = u64::from(BY_QUOTA - 1) * UNIT;
        let sizes = [(0, UNIT), (1, UNIT), (513, 2 * UNIT), (u64::MAX, largest)];
        for (bytes, remembered) in sizes {
            let mut ghosts = Ghosts::with_room(UNIT, 4);
            for (number, cause) in [(1, Cause::Budget), (2, Cause::Quota)] {
                ghosts.push(&digest(number), bytes, cause);
            }
            let lost = |bytes, kept_by| Some(Lost { bytes, kept_by });
            assert_eq!(
                ghosts.ask(&digest(1)),
                lost(remembered, Some(UNIT + remembered))
            );
            assert_eq!(ghosts.ask(&digest(2)), lost(remembered, None));
            assert_eq!(ghosts.ask(&digest(3)), None);
            assert_eq!((ghosts.tally().count, ghosts.tally().by_quota), (2, 1));
            assert_eq!(ghosts.tally().kept_by()[0].budget_bytes, UNIT + UNIT / 8);
        }
    }

    #[test]
    fn tally_says_which_budget_would_have_been_enough() {
        let mut tally = Tally {
            budget: 800,
            ..Tally::default()
        };
        for kept_by in [Some(801), Some(900), Some(1600), Some(1_000_000), None] {
            tally.add(Lost { bytes: 10, kept_by });
        }
        assert_eq!((tally.count, tally.bytes, tally.by_quota), (5, 50, 1));
        let shares: Vec<(u64, f64)> = tally
            .kept_by()
            .iter()
            .map(|kept| (kept.budget_bytes, kept.share))
            .collect();
        assert_eq!(shares[..2], [(900, 0.5), (1000, 0.5)]);
        assert_eq!(shares[3], (1600, 0.75));
        assert_eq!(shares.last(), Some(&(12_800, 0.75)));
        assert_eq!(Tally::default().kept_by(), []);
    }

    #[test]
    fn ghosts_take_no_more_memory_than_is_said() {
        let mut ghosts = Ghosts::new(u64::MAX);
        for number in 0..u32::try_from(MOST + 1000).unwrap() {
            ghosts.push(&digest(number), 4096, Cause::Budget);
        }
        let ring = ghosts.ring.capacity() * size_of::<Ghost>();
        let bytes = ring + ghosts.sums.capacity() * 8 + ghosts.table.allocation_size();
        assert!(bytes <= 28 * MOST, "{bytes} of {}", 28 * MOST);
        assert_eq!(ghosts.find(999), None, "the oldest are forgotten");
        assert!(ghosts.find(1000).is_some());
    }
}
