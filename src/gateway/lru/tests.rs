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

/// The same index by the plainest means: a list in order of use.
#[derive(Default)]
struct Model {
    /// Oldest first: number, bytes, time of use.
    live: Vec<(u8, u64, u64)>,
    doomed: Vec<(u8, u64)>,
    reserved: u64,
    expected: u64,
}

impl Model {
    fn used(&self) -> u64 {
        self.live
            .iter()
            .map(|entry| entry.1)
            .chain(self.doomed.iter().map(|entry| entry.1))
            .sum()
    }

    fn remove(&mut self, number: u8) -> Option<u64> {
        if let Some(at) = self.live.iter().position(|entry| entry.0 == number) {
            return Some(self.live.remove(at).1);
        }
        let at = self.doomed.iter().position(|entry| entry.0 == number)?;
        Some(self.doomed.remove(at).1)
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
        1 => Just(Op::Sort),
        1 => (0..30u64).prop_map(|units| Op::Expect { units }),
    ]
}

struct World {
    lru: Lru,
    model: Model,
    budget: u64,
    admitted: u64,
    now: u64,
}

impl World {
    fn new(budget: u64) -> World {
        World {
            lru: Lru::new(budget),
            model: Model::default(),
            budget,
            admitted: 0,
            now: 1000,
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
            let (number, size, _) = self.model.live.remove(0);
            assert_eq!(victim, item(number));
            self.model.doomed.push((number, size));
            made += size;
        }
        assert!(made >= missing);
        Some(missing)
    }

    fn collect(&mut self, number: u8, namespace: u16, wanted: u64) -> u64 {
        let expected = self
            .model
            .doomed
            .iter()
            .find(|entry| entry.0 == number)
            .copied();
        let collected = self.lru.collect(&digest(number), namespace, wanted);
        assert_eq!(collected.map(|c| c.freed), expected.map(|entry| entry.1));
        self.model.doomed.retain(|entry| entry.0 != number);
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
                let victims: Vec<u8> = self.model.doomed.iter().map(|entry| entry.0).collect();
                for victim in victims {
                    missing -= self.collect(victim, namespace, missing);
                }
                assert_eq!(missing, 0);
                let replaced = self.lru.commit(item(number), bytes, self.now, bytes);
                self.model.reserved -= bytes;
                assert_eq!(replaced, self.model.remove(number).is_some());
                self.model.live.push((number, bytes, self.now));
            }
            Op::Claim { units } => {
                self.claim(0, units * UNIT);
            }
            Op::Collect { nth } => {
                if let Some((number, size)) = self.model.doomed.get(nth).copied() {
                    self.collect(number, 0, size / 2);
                }
            }
            Op::Revive { nth } => {
                if nth < self.model.doomed.len() {
                    let (number, size) = self.model.doomed.remove(nth);
                    self.lru.revive(&digest(number));
                    self.model.live.push((number, size, self.now));
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
                    let (_, size, _) = self.model.live.remove(at);
                    self.model.live.push((number, size, self.now));
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
                    self.model
                        .live
                        .insert(0, (number, units * UNIT, used_micros));
                    self.admitted += units * UNIT;
                    self.model.expected = self.model.expected.saturating_sub(units * UNIT);
                }
            }
            Op::Expect { units } => {
                self.lru.expect(units * UNIT);
                self.model.expected = units * UNIT;
            }
            Op::Sort => {
                // A revived entry keeps its time of use, which the model does not know: take it from the index.
                for entry in &mut self.model.live {
                    entry.2 = self
                        .lru
                        .entry(self.lru.find(&digest(entry.0)).unwrap())
                        .used_micros;
                }
                self.model.live.sort_by_key(|entry| entry.2);
                self.lru.sort();
            }
        }
    }

    fn check(&self) {
        let (lru, model) = (&self.lru, &self.model);
        let order: Vec<Item> = model.live.iter().map(|entry| item(entry.0)).collect();
        assert_eq!(lru.select(u64::MAX, None), order);
        assert_eq!((lru.used(), lru.reserved()), (model.used(), model.reserved));
        assert_eq!(
            lru.doomed(),
            model.doomed.iter().map(|entry| entry.1).sum::<u64>()
        );
        assert_eq!(lru.count() as usize, model.live.len() + model.doomed.len());
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
            .chain(model.doomed.iter().copied())
        {
            let total = totals.entry(item(number).namespace).or_default();
            total.bytes += bytes;
            total.entries += 1;
            let doomed = model.doomed.iter().any(|entry| entry.0 == number);
            assert_eq!(
                lru.presence(&digest(number)),
                if doomed {
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
fn blob_put_again_while_doomed_is_kept() {
    let mut lru = Lru::new(10 * UNIT);
    let namespace = item(1).namespace;
    lru.claim(namespace, 6 * UNIT).unwrap();
    lru.commit(item(1), 6 * UNIT, 1, 6 * UNIT);
    lru.claim(namespace, 3 * UNIT).unwrap();
    let victims = lru.doom(1, Reach::Unpinned).unwrap();
    assert_eq!(victims, [item(1)]);
    assert_eq!(
        lru.touch(&digest(1), 2),
        None,
        "a doomed entry is not served"
    );
    lru.commit(item(1), 3 * UNIT, 3, 3 * UNIT);
    assert_eq!(lru.collect(&digest(1), namespace, UNIT), None);
    assert_eq!(
        (lru.presence(&digest(1)), lru.used(), lru.doomed()),
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
    let order = lru.select(u64::MAX, None);
    assert_eq!(order, [2, 3, 1].map(item));
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
fn slots_are_gone_through_by_the_first_byte() {
    let mut lru = Lru::new(100 * UNIT);
    for number in [1, 2, 3] {
        lru.admit(item(number), UNIT, 1);
    }
    lru.remove(&digest(1));
    assert_eq!(
        lru.beginning_with(1, 0..10),
        Some(vec![]),
        "its slot is vacant"
    );
    assert_eq!(lru.beginning_with(2, 0..2), Some(vec![item(2)]));
    assert_eq!(lru.beginning_with(3, 0..2), Some(vec![]));
    assert_eq!(lru.beginning_with(3, 2..4), Some(vec![item(3)]));
    assert_eq!(lru.beginning_with(3, 3..6), None);
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
fn live_entries_are_selected_by_age_and_namespace() {
    let mut lru = Lru::new(100 * UNIT);
    for (number, used) in [(0, 10), (1, 20), (3, 30), (4, 40)] {
        lru.admit(item(number), UNIT, used);
    }
    lru.sort();
    let [a, b, c, d] = [0, 1, 3, 4].map(item);
    assert_eq!(lru.select(u64::MAX, None), [a, b, c, d]);
    assert_eq!(lru.select(20, None), [a, b], "the moment itself counts");
    assert_eq!(lru.select(u64::MAX, Some(1)), [b, d]);
    assert_eq!(lru.select(39, Some(1)), [b]);
    assert_eq!(lru.select(u64::MAX, Some(2)), []);
}

#[test]
fn doubt_asks_the_next_hit_for_a_check_and_for_the_time_of_use() {
    let mut lru = Lru::new(1 << 20);
    let now = 1_000_000_000;
    let claimed = lru.claim(item(1).namespace, 4096).unwrap().claimed;
    lru.commit(item(1), 4096, now, claimed);
    assert_eq!(lru.touch_only(&digest(1), now), Some(1000));
    lru.doubt(&digest(1));
    assert_eq!(lru.touch_only(&digest(1), now), None);
    let touched = lru.touch(&digest(1), now).unwrap();
    assert!(touched.persist && !touched.checked);
    lru.mark_checked(&digest(1));
    assert_eq!(lru.touch_only(&digest(1), now), Some(1000));
}
