use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

pub(super) fn digest(number: u8) -> Digest {
    Digest([number; 16])
}

pub(super) fn item(number: u8) -> Item {
    Item {
        digest: digest(number),
        namespace: u16::from(number % 3),
    }
}

/// All live entries, of each list least recently used first.
pub(super) fn order(lru: &Lru) -> Vec<Item> {
    let some = |slot: u32| Some(slot).filter(|slot| *slot != NONE);
    let slots = lru.lists.iter().flat_map(|list| {
        std::iter::successors(some(list.oldest), move |slot| some(lru.entry(*slot).newer))
    });
    slots.map(|slot| lru.entry(slot).item()).collect()
}

/// Puts all in order at once.
pub(super) fn sort(lru: &mut Lru) {
    let mut sorting = Sorting::default();
    while sorting.collect(lru) {}
    sorting.order();
    while sorting.place(lru) {}
}

/// The same index by the plainest means: a list in order of use.
#[derive(Default)]
struct Model {
    /// Oldest first: number and bytes.
    live: Vec<(u8, u64)>,
    /// How many of the oldest ones were sorted.
    sorted: usize,
    marked: Vec<(u8, u64)>,
    reserved: u64,
    expected: u64,
}

impl Model {
    fn used(&self) -> u64 {
        self.live
            .iter()
            .map(|entry| entry.1)
            .chain(self.marked.iter().map(|entry| entry.1))
            .sum()
    }

    fn take(&mut self, at: usize) -> (u8, u64) {
        self.sorted -= usize::from(at < self.sorted);
        self.live.remove(at)
    }

    fn remove(&mut self, number: u8) -> Option<u64> {
        if let Some(at) = self.live.iter().position(|entry| entry.0 == number) {
            return Some(self.take(at).1);
        }
        let at = self.marked.iter().position(|entry| entry.0 == number)?;
        Some(self.marked.remove(at).1)
    }
}

#[derive(Clone, Debug)]
enum Op {
    Put {
        number: u8,
        units: u64,
    },
    Claim {
        units: u64,
    },
    /// Handles the n-th pending victim, its file being gone.
    Collect {
        nth: usize,
    },
    Revive {
        nth: usize,
    },
    Release {
        units: u64,
    },
    Touch {
        number: u8,
    },
    Remove {
        number: u8,
    },
    Admit {
        number: u8,
        units: u64,
        used_micros: u64,
    },
    /// A step of one entry; begins anew after the last.
    Sort,
    Expect {
        units: u64,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let number = 0..12u8;
    let units = 0..40u64;
    prop_oneof![
        4 => (number.clone(), units.clone()).prop_map(|(number, units)| Op::Put { number, units }),
        2 => units.clone().prop_map(|units| Op::Claim { units }),
        3 => (0..8usize).prop_map(|nth| Op::Collect { nth }),
        1 => (0..8usize).prop_map(|nth| Op::Revive { nth }),
        2 => units.clone().prop_map(|units| Op::Release { units }),
        3 => number.clone().prop_map(|number| Op::Touch { number }),
        2 => number.clone().prop_map(|number| Op::Remove { number }),
        1 => (number, units, 0..1000u64).prop_map(|(number, units, used_micros)| Op::Admit { number, units, used_micros }),
        6 => Just(Op::Sort),
        1 => (0..30u64).prop_map(|units| Op::Expect { units }),
    ]
}

struct World {
    lru: Lru,
    model: Model,
    budget: u64,
    admitted: u64,
    now: u64,
    sorting: Step,
}

/// How far it is put in order; with what the model noted, and how much of that is in its place.
enum Step {
    Collect(Sorting, Vec<(u64, u32, u8)>),
    Place(Sorting, Vec<(u64, u32, u8)>, usize),
}

impl Step {
    fn first() -> Step {
        Step::Collect(Sorting::in_steps_of([1, 1]), Vec::new())
    }
}

impl World {
    fn new(budget: u64) -> World {
        World {
            lru: Lru::new(budget),
            model: Model::default(),
            budget,
            admitted: 0,
            now: 1000,
            sorting: Step::first(),
        }
    }

    /// Claims, checks the victims against the model, and says how many bytes are still to collect.
    fn claim(&mut self, namespace: u16, bytes: u64) -> Option<u64> {
        let free = self
            .budget
            .saturating_sub(self.model.used() + self.model.reserved + self.model.expected);
        let missing = bytes - free.min(bytes);
        let live: u64 = self.model.live.iter().map(|entry| entry.1).sum();
        let claim = self.lru.claim(namespace, bytes);
        assert_eq!(claim.is_ok(), live >= missing);
        let claim = claim.ok()?;
        assert_eq!(claim.over_quota, []);
        assert_eq!(claim.claimed, bytes - missing);
        self.model.reserved += claim.claimed;
        let mut made = 0;
        for victim in claim.victims {
            assert!(made < missing, "evicted more than was needed");
            let (number, size) = self.model.take(0);
            assert_eq!(victim, item(number));
            self.model.marked.push((number, size));
            made += size;
        }
        assert!(made >= missing);
        Some(missing)
    }

    fn collect(&mut self, number: u8, namespace: u16, wanted: u64) -> u64 {
        let expected = self
            .model
            .marked
            .iter()
            .find(|entry| entry.0 == number)
            .copied();
        let collected = self.lru.collect(&digest(number), namespace, wanted);
        assert_eq!(collected.map(|c| c.freed), expected.map(|entry| entry.1));
        self.model.marked.retain(|entry| entry.0 != number);
        let claimed = collected.map_or(0, |c| c.claimed);
        assert_eq!(claimed, expected.map_or(0, |entry| entry.1.min(wanted)));
        self.model.reserved += claimed;
        claimed
    }

    fn apply(&mut self, op: Op) {
        self.now += 1;
        match op {
            Op::Put { number, units } => {
                let bytes = units * UNIT;
                let namespace = item(number).namespace;
                let Some(mut missing) = self.claim(namespace, bytes) else {
                    return;
                };
                let victims: Vec<u8> = self.model.marked.iter().map(|entry| entry.0).collect();
                for victim in victims {
                    missing -= self.collect(victim, namespace, missing);
                }
                assert_eq!(missing, 0);
                let replaced = self.lru.commit(item(number), bytes, self.now, bytes);
                self.model.reserved -= bytes;
                assert_eq!(replaced, self.model.remove(number).is_some());
                self.model.live.push((number, bytes));
            }
            Op::Claim { units } => {
                self.claim(0, units * UNIT);
            }
            Op::Collect { nth } => {
                if let Some((number, size)) = self.model.marked.get(nth).copied() {
                    self.collect(number, 0, size / 2);
                }
            }
            Op::Revive { nth } => {
                if nth < self.model.marked.len() {
                    let (number, size) = self.model.marked.remove(nth);
                    self.lru.restore(&digest(number));
                    self.model.live.push((number, size));
                }
            }
            Op::Release { units } => {
                let bytes = (units * UNIT).min(self.model.reserved);
                self.lru.release(0, bytes);
                self.model.reserved -= bytes;
            }
            Op::Touch { number } => {
                let at = self.model.live.iter().position(|entry| entry.0 == number);
                assert_eq!(
                    self.lru.touch(&digest(number), self.now).is_some(),
                    at.is_some()
                );
                if let Some(at) = at {
                    let used = self.model.take(at);
                    self.model.live.push(used);
                }
            }
            Op::Remove { number } => {
                assert_eq!(self.lru.remove(&digest(number)), self.model.remove(number))
            }
            Op::Admit {
                number,
                units,
                used_micros,
            } => {
                let known = self.lru.presence(&digest(number)) != Presence::Absent;
                assert_eq!(
                    self.lru.admit(item(number), units * UNIT, used_micros),
                    !known
                );
                if !known {
                    self.model.live.insert(0, (number, units * UNIT));
                    self.model.sorted += usize::from(self.model.sorted > 0);
                    self.admitted += units * UNIT;
                    self.model.expected = self.model.expected.saturating_sub(units * UNIT);
                }
            }
            Op::Expect { units } => {
                self.lru.reserve_unscanned(units * UNIT);
                self.model.expected = units * UNIT;
            }
            Op::Sort => self.sort_one(),
        }
    }

    fn sort_one(&mut self) {
        let seen = |world: &World, number: u8| {
            let slot = world.lru.find(&digest(number))?;
            Some((world.lru.entry(slot).used_micros, slot, number))
        };
        self.sorting = match std::mem::replace(&mut self.sorting, Step::first()) {
            Step::Collect(mut sorting, mut noted) => {
                let slot = sorting.looked_at as u32;
                let live = self.model.live.iter();
                let found = live.filter_map(|entry| seen(self, entry.0));
                noted.extend(found.filter(|found| found.1 == slot));
                if sorting.collect(&self.lru) {
                    Step::Collect(sorting, noted)
                } else {
                    sorting.order();
                    noted.sort_unstable();
                    self.model.sorted = 0;
                    Step::Place(sorting, noted, 0)
                }
            }
            Step::Place(mut sorting, noted, placed) => {
                let goes_on = sorting.place(&mut self.lru);
                assert_eq!(goes_on, placed + 1 < noted.len());
                if placed == 0 {
                    self.model.sorted = 0;
                }
                if let Some((used, slot, _)) = noted.get(placed) {
                    // Whoever is in that slot now, at the same time of use.
                    let live = self.model.live.iter();
                    let at = live.map(|entry| seen(self, entry.0)).position(|found| {
                        found.is_some_and(|now| (now.0, now.1) == (*used, *slot))
                    });
                    if let Some(at) = at {
                        let entry = self.model.take(at);
                        self.model.live.insert(self.model.sorted, entry);
                        self.model.sorted += 1;
                    }
                }
                if goes_on {
                    Step::Place(sorting, noted, placed + 1)
                } else {
                    Step::first()
                }
            }
        };
    }

    fn check(&self) {
        let (lru, model) = (&self.lru, &self.model);
        let expected: Vec<Item> = model.live.iter().map(|entry| item(entry.0)).collect();
        assert_eq!(order(lru), expected);
        assert_eq!((lru.used(), lru.reserved()), (model.used(), model.reserved));
        assert_eq!(
            lru.victim_bytes(),
            model.marked.iter().map(|entry| entry.1).sum::<u64>()
        );
        assert_eq!(lru.count() as usize, model.live.len() + model.marked.len());
        let live: u64 = model.live.iter().map(|entry| entry.1).sum();
        let over = (live + model.reserved).saturating_sub(self.budget);
        assert_eq!(lru.overshoot(), over);
        // The budget holds but for what was on disk already.
        assert!(lru.used() + lru.reserved() <= self.budget + self.admitted);
        let mut totals = BTreeMap::<u16, Totals>::new();
        for (number, bytes) in model
            .live
            .iter()
            .map(|e| (e.0, e.1))
            .chain(model.marked.iter().copied())
        {
            let total = totals.entry(item(number).namespace).or_default();
            total.bytes += bytes;
            total.entries += 1;
            let marked = model.marked.iter().any(|entry| entry.0 == number);
            assert_eq!(
                lru.presence(&digest(number)),
                if marked {
                    Presence::Doomed
                } else {
                    Presence::Live
                }
            );
        }
        for namespace in 0..3 {
            assert_eq!(
                lru.totals(namespace),
                totals.get(&namespace).copied().unwrap_or_default()
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn index_agrees_with_a_naive_model(budget in 1..120u64, ops in proptest::collection::vec(op(), 1..80)) {
        let mut world = World::new(budget * UNIT);
        for op in ops {
            world.apply(op);
            world.check();
        }
    }

    #[test]
    fn budget_is_never_exceeded_by_writes(budget in 1..60u64, ops in proptest::collection::vec(op(), 1..80)) {
        let mut world = World::new(budget * UNIT);
        for op in ops.into_iter().filter(|op| !matches!(op, Op::Admit { .. })) {
            world.apply(op);
            prop_assert!(world.lru.used() + world.lru.reserved() <= budget * UNIT);
        }
    }
}

#[test]
fn claim_that_cannot_be_met_changes_nothing() {
    let mut world = World::new(10 * UNIT);
    world.apply(Op::Put {
        number: 1,
        units: 4,
    });
    world.apply(Op::Claim { units: 6 });
    assert_eq!(world.lru.claim(0, 5 * UNIT), Err(Shortage::Full));
    world.check();
}

#[test]
fn blob_put_again_while_marked_is_kept() {
    let mut lru = Lru::new(10 * UNIT);
    let namespace = item(1).namespace;
    lru.claim(namespace, 6 * UNIT).unwrap();
    lru.commit(item(1), 6 * UNIT, 1, 6 * UNIT);
    lru.claim(namespace, 3 * UNIT).unwrap();
    let victims = lru.mark_victims(1, Reach::Unpinned).unwrap();
    assert_eq!(victims, [item(1)]);
    assert_eq!(
        lru.touch(&digest(1), 2),
        None,
        "a marked entry is not served"
    );
    lru.commit(item(1), 3 * UNIT, 3, 3 * UNIT);
    assert_eq!(lru.collect(&digest(1), namespace, UNIT), None);
    assert_eq!(
        (lru.presence(&digest(1)), lru.used(), lru.victim_bytes()),
        (Presence::Live, 3 * UNIT, 0)
    );
}

#[test]
fn order_of_use_is_no_matter_of_the_clock() {
    let mut lru = Lru::new(10 * UNIT);
    for (number, now_micros) in [(1, 9_000_000), (2, 1_000_000), (3, 5_000_000)] {
        lru.claim(item(number).namespace, UNIT).unwrap();
        lru.commit(item(number), UNIT, now_micros, UNIT);
    }
    // The clock stands before all of them.
    lru.touch(&digest(1), 0);
    assert_eq!(order(&lru), [2, 3, 1].map(item));
}

#[test]
fn use_is_persisted_once_per_ten_minutes() {
    let minute = 60_000_000;
    let mut lru = Lru::new(UNIT);
    lru.admit(item(1), UNIT, 100 * minute);
    let mut touch = |minutes: u64| lru.touch(&digest(1), minutes * minute).unwrap().persist;
    assert_eq!(
        [100, 109, 110, 111, 119, 120].map(&mut touch),
        [false, false, true, false, false, true]
    );
    assert_eq!([30, 31].map(touch), [true, false], "the clock was set back");
}

#[test]
fn a_million_entries_fit_into_80_mb() {
    assert!(size_of::<Entry>() <= 48);
    let mut lru = Lru::new(u64::MAX / 2);
    for number in 0..1_000_000u128 {
        let digest = Digest(
            number
                .wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835)
                .to_le_bytes(),
        );
        lru.admit(
            Item {
                digest,
                namespace: 0,
            },
            4096,
            1,
        );
    }
    let bytes = lru.entries.capacity() * size_of::<Entry>() + lru.table.allocation_size();
    assert!(bytes <= 80_000_000, "{bytes}");
}

#[test]
fn only_use_makes_a_hit() {
    let mut lru = Lru::new(100 * UNIT);
    lru.claim(0, UNIT).unwrap();
    lru.commit(item(0), UNIT, 50, UNIT);
    assert!(!lru.was_hit_since(&digest(0), 0), "it was only written");
    lru.touch(&digest(0), 60);
    assert!(lru.was_hit_since(&digest(0), 59) && !lru.was_hit_since(&digest(0), 60));
}

#[test]
fn live_entries_are_gone_through_by_their_slots() {
    let mut lru = Lru::new(100 * UNIT);
    for number in [1, 2, 3] {
        lru.admit(item(number), UNIT, u64::from(number));
    }
    lru.remove(&digest(1));
    let found = |slots| {
        let found = lru.live_in(slots)?;
        Some(
            found
                .map(|one| (one.item, one.used_micros))
                .collect::<Vec<_>>(),
        )
    };
    assert_eq!(found(0..1), Some(vec![]), "the slot is vacant");
    assert_eq!(found(0..2), Some(vec![(item(2), 2)]));
    assert_eq!(found(2..4), Some(vec![(item(3), 3)]));
    assert_eq!(found(3..6), None);
}

/// What is done under the lock at a time does not grow with the index.
#[test]
fn no_step_takes_more_the_more_entries_there_are() {
    const MANY: u64 = 200_000;
    let mut lru = Lru::new(MANY * UNIT);
    for number in 0..MANY {
        let digest = Digest(
            blake3::hash(&number.to_le_bytes()).as_bytes()[..16]
                .try_into()
                .unwrap(),
        );
        lru.admit(
            Item {
                digest,
                namespace: 0,
            },
            UNIT,
            number * 7919 % MANY,
        );
    }
    assert!(
        lru.table.largest_part() < 500,
        "{}",
        lru.table.largest_part()
    );
    let mut sorting = Sorting::default();
    let (mut looks, mut steps) = (1, 1);
    while sorting.collect(&lru) {
        looks += 1;
    }
    sorting.order();
    while sorting.place(&mut lru) {
        steps += 1;
    }
    assert!(looks > 10 && steps > 100, "{looks} and {steps} steps");
    let victims = lru.mark_victims(MANY * UNIT, Reach::Unpinned).unwrap();
    assert!(victims.len() < 2000, "{} victims at a time", victims.len());
    let used = victims
        .iter()
        .map(|item| lru.entry(lru.find(&item.digest).unwrap()).used_micros);
    assert!(used.eq(0..victims.len() as u64), "in their order of use");
    let claim = lru.claim(0, MANY / 2 * UNIT).unwrap();
    assert!(claim.claimed == 0 && (1..2000).contains(&claim.victims.len()));
}

#[test]
fn largest_entry_counts_whole_and_no_more_does() {
    let mut lru = Lru::new(u64::MAX);
    lru.admit(item(1), MAX_ENTRY_BYTES, 1);
    assert_eq!(lru.used(), MAX_ENTRY_BYTES);
    lru.admit(item(2), MAX_ENTRY_BYTES + 1, 1);
    assert_eq!(lru.used(), 2 * MAX_ENTRY_BYTES);
}

#[test]
fn doubt_asks_the_next_hit_for_a_check_and_for_the_time_of_use() {
    let mut lru = Lru::new(1 << 20);
    let now = 1_000_000_000;
    let claimed = lru.claim(item(1).namespace, 4096).unwrap().claimed;
    lru.commit(item(1), 4096, now, claimed);
    assert_eq!(lru.touch_only(&digest(1), now), Some(1000));
    lru.report(&digest(1));
    assert_eq!(lru.touch_only(&digest(1), now), None);
    let touched = lru.touch(&digest(1), now).unwrap();
    assert!(touched.persist && !touched.checked);
    lru.mark_checked(&digest(1));
    assert_eq!(lru.touch_only(&digest(1), now), Some(1000));
}
