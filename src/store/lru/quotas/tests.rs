use super::*;
use crate::store::lru::UNIT;
use crate::store::lru::tests::{digest, item, sort};
use proptest::prelude::*;

/// What is done to an index with rules. Namespaces are `number % 3`, see [`item`].
#[derive(Clone, Debug)]
enum RuledOp {
    Put { number: u8, units: u64 },
    Touch { number: u8 },
    Remove { number: u8 },
    Begin { namespace: u16, units: u64 },
    End { nth: usize },
    HousekeepingOf { namespace: u16, units: u64 },
    Housekeeping { units: u64 },
}

fn ruled_op() -> impl Strategy<Value = RuledOp> {
    let number = 0..30u8;
    prop_oneof![
        6 => (number.clone(), 1..12u64).prop_map(|(number, units)| RuledOp::Put { number, units }),
        3 => number.clone().prop_map(|number| RuledOp::Touch { number }),
        1 => number.prop_map(|number| RuledOp::Remove { number }),
        1 => (0..3u16, 1..12u64).prop_map(|(namespace, units)| RuledOp::Begin { namespace, units }),
        1 => (0..4usize).prop_map(|nth| RuledOp::End { nth }),
        1 => (0..3u16, 0..9u64).prop_map(|(namespace, units)| RuledOp::HousekeepingOf { namespace, units }),
        1 => (0..9u64).prop_map(|units| RuledOp::Housekeeping { units }),
    ]
}

fn rule() -> impl Strategy<Value = Rule> {
    (proptest::option::of(1..40u64), proptest::bool::ANY).prop_map(|(units, pinned)| Rule {
        quota: units.map(|units| units * UNIT),
        pinned,
    })
}

/// An index with rules, and what it holds by the plainest means.
struct Ruled {
    lru: Lru,
    rules: [Rule; 3],
    budget: u64,
    /// Oldest first: number and bytes.
    live: Vec<(u8, u64)>,
    /// Writes that have begun: namespace and bytes.
    begun: Vec<(u16, u64)>,
    now: u64,
}

impl Ruled {
    fn new(budget: u64, rules: [Rule; 3]) -> Ruled {
        let mut lru = Lru::new(budget);
        for (namespace, rule) in (0..).zip(rules) {
            // Without a rule it shares a list with all others like it.
            if rule != Rule::default() {
                lru.govern(namespace, rule);
            }
        }
        Ruled {
            lru,
            rules,
            budget,
            live: Vec::new(),
            begun: Vec::new(),
            now: 0,
        }
    }

    fn live_of(&self, of: impl Fn(u16) -> bool) -> u64 {
        let live = self.live.iter();
        live.filter(|one| of(item(one.0).namespace))
            .map(|one| one.1)
            .sum()
    }

    fn begun_of(&self, of: impl Fn(u16) -> bool) -> u64 {
        let begun = self.begun.iter();
        begun.filter(|one| of(one.0)).map(|one| one.1).sum()
    }

    /// Reserves as the store does, and checks who had to go. Whether it was possible.
    fn claim(&mut self, namespace: u16, bytes: u64) -> bool {
        let (rule, rules) = (self.rules[usize::from(namespace)], self.rules);
        let own = |other: u16| other == namespace;
        let within_quota = rule
            .quota
            .is_none_or(|quota| bytes + self.begun_of(own) <= quota);
        let pinned_by_others =
            self.live_of(|other| other != namespace && rules[usize::from(other)].pinned);
        let begun = self.begun_of(|_| true);
        let room = self.budget - begun;
        let expected = if !within_quota || bytes > room {
            Err(Shortage::Full)
        } else if bytes > room.saturating_sub(pinned_by_others) {
            Err(Shortage::Pinned)
        } else {
            Ok(())
        };
        let claim = match self.lru.claim(namespace, bytes) {
            Err(shortage) => {
                assert_eq!(expected, Err(shortage));
                return false;
            }
            Ok(claim) => claim,
        };
        assert_eq!(expected, Ok(()));
        let mut held = claim.claimed;
        let gone = |items: &[Item]| {
            items
                .iter()
                .map(|item| item.digest.0[0])
                .collect::<Vec<u8>>()
        };
        let (over_quota, victims) = (gone(&claim.over_quota), gone(&claim.victims));
        for number in &over_quota {
            assert_eq!(
                item(*number).namespace,
                namespace,
                "the quota is the namespace's own affair"
            );
        }
        for number in over_quota.iter().chain(&victims) {
            let at = self.live.iter().position(|one| one.0 == *number).unwrap();
            let of = item(*number).namespace;
            assert!(
                of == namespace || !rules[usize::from(of)].pinned,
                "a pinned blob went for another's"
            );
            let older = self.live[..at]
                .iter()
                .any(|one| item(one.0).namespace == of);
            assert!(!older, "an older one of its namespace stayed");
            let general = !over_quota.contains(number) && !rules[usize::from(of)].pinned;
            if general {
                let unpinned = |one: &(u8, u64)| !rules[usize::from(item(one.0).namespace)].pinned;
                assert!(!self.live[..at].iter().any(unpinned), "an older one stayed");
            }
            self.live.remove(at);
            let wanted = bytes - held;
            held += self
                .lru
                .collect(&digest(*number), namespace, wanted)
                .unwrap()
                .claimed;
        }
        assert_eq!(held, bytes, "nobody else was there to take it");
        true
    }

    /// What the housekeeper dooms must not be pinned, unless it is over its own quota.
    fn sweep(&mut self, victims: &[Item], of: Option<u16>) {
        for victim in victims {
            let rule = self.rules[usize::from(victim.namespace)];
            assert!(of == Some(victim.namespace) || (of.is_none() && !rule.pinned));
            self.lru.collect(&victim.digest, 0, 0).unwrap();
            self.live.retain(|one| one.0 != victim.digest.0[0]);
        }
    }

    fn apply(&mut self, op: RuledOp) {
        self.now += 1;
        match op {
            RuledOp::Put { number, units } => {
                let bytes = units * UNIT;
                if self.claim(item(number).namespace, bytes) {
                    self.lru.commit(item(number), bytes, self.now, bytes);
                    self.live.retain(|one| one.0 != number);
                    self.live.push((number, bytes));
                }
            }
            RuledOp::Touch { number } => {
                self.lru.touch(&digest(number), self.now);
                if let Some(at) = self.live.iter().position(|one| one.0 == number) {
                    let one = self.live.remove(at);
                    self.live.push(one);
                }
            }
            RuledOp::Remove { number } => {
                self.lru.remove(&digest(number));
                self.live.retain(|one| one.0 != number);
            }
            RuledOp::Begin { namespace, units } => {
                if self.claim(namespace, units * UNIT) {
                    self.begun.push((namespace, units * UNIT));
                }
            }
            RuledOp::End { nth } => {
                if nth < self.begun.len() {
                    let (namespace, bytes) = self.begun.remove(nth);
                    self.lru.release(namespace, bytes);
                }
            }
            RuledOp::HousekeepingOf { namespace, units } => {
                if self.rules[usize::from(namespace)] != Rule::default() {
                    let victims = self.lru.mark_victims_of(namespace, units * UNIT);
                    self.sweep(&victims, Some(namespace));
                }
            }
            RuledOp::Housekeeping { units } => {
                let victims = self.lru.mark_victims(units * UNIT, Reach::Unpinned);
                self.sweep(&victims.unwrap_or_default(), None);
            }
        }
    }

    fn check(&self) {
        assert!(self.lru.used() + self.lru.reserved() <= self.budget);
        for (namespace, rule) in (0..).zip(self.rules) {
            let own = |other: u16| other == namespace;
            let (live, begun) = (self.live_of(own), self.begun_of(own));
            assert_eq!(self.lru.totals(namespace).bytes, live);
            assert!(
                rule.quota.is_none_or(|quota| live + begun <= quota),
                "over its quota"
            );
            let left = rule.quota.map(|quota| quota - live - begun);
            assert_eq!(self.lru.quota_left(namespace), left);
            assert_eq!(self.lru.overshoot_of(namespace), 0);
        }
        let pinned = |namespace: u16| self.rules[usize::from(namespace)].pinned;
        assert_eq!(self.lru.live(Reach::All), self.live_of(|_| true));
        assert_eq!(
            self.lru.live(Reach::Unpinned),
            self.live_of(|one| !pinned(one))
        );
        assert_eq!(
            self.lru.live(Reach::And(1)),
            self.live_of(|one| one == 1 || !pinned(one))
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn rules_hold_whatever_is_written(
        budget in 10..80u64,
        rules in [rule(), rule(), rule()],
        free in 0..3usize,
        ops in proptest::collection::vec(ruled_op(), 1..120),
    ) {
        let mut rules = rules;
        rules[free] = Rule::default();
        let mut ruled = Ruled::new(budget * UNIT, rules);
        for op in ops {
            ruled.apply(op);
            ruled.check();
        }
    }
}

#[test]
fn other_writers_victims_do_not_lift_a_namespace_over_its_quota() {
    let quota = Rule {
        quota: Some(10 * UNIT),
        pinned: false,
    };
    let mut lru = Lru::new(20 * UNIT);
    lru.govern(1, quota);
    // The budget is full of another namespace's blobs.
    for number in [0, 3, 6, 9] {
        lru.claim(0, 5 * UNIT).unwrap();
        lru.commit(item(number), 5 * UNIT, u64::from(number), 5 * UNIT);
    }
    let [first, second] = [lru.claim(1, 10 * UNIT), lru.claim(1, 10 * UNIT)].map(Result::unwrap);
    let claimed = |lru: &mut Lru, victims: &[Item]| -> u64 {
        let collected = victims
            .iter()
            .map(|one| lru.collect(&one.digest, 1, 10 * UNIT));
        collected.map(|one| one.unwrap().claimed).sum()
    };
    assert_eq!(claimed(&mut lru, &first.victims), 10 * UNIT);
    assert_eq!(
        claimed(&mut lru, &second.victims),
        0,
        "the quota is used up"
    );
    assert_eq!(lru.claim(1, UNIT), Err(Shortage::Full));
}

#[test]
fn what_a_quota_may_hold_already_counts_until_it_is_found() {
    let mut lru = Lru::new(100 * UNIT);
    lru.govern(
        1,
        Rule {
            quota: Some(10 * UNIT),
            pinned: false,
        },
    );
    lru.reserve_unscanned_of(1, 10 * UNIT);
    assert_eq!(lru.claim(1, UNIT), Err(Shortage::Full));
    lru.admit(item(1), 4 * UNIT, 5);
    let claim = lru.claim(1, 2 * UNIT).unwrap();
    assert_eq!((claim.claimed, claim.over_quota), (0, vec![item(1)]));
    lru.collect(&digest(1), 1, 2 * UNIT).unwrap();
    lru.reserve_unscanned_of(1, 0);
    assert_eq!(lru.claim(1, 8 * UNIT).unwrap().claimed, 8 * UNIT);
}

#[test]
fn namespace_over_its_quota_goes_first() {
    let mut lru = Lru::new(100 * UNIT);
    lru.govern(
        1,
        Rule {
            quota: Some(10 * UNIT),
            pinned: false,
        },
    );
    lru.admit(item(0), 20 * UNIT, 1);
    for (number, used) in [(1, 30), (4, 20), (7, 10)] {
        lru.admit(item(number), 8 * UNIT, used);
    }
    sort(&mut lru);
    assert_eq!(lru.overshoot_of(1), 14 * UNIT);
    assert_eq!(
        lru.mark_victims(20 * UNIT, Reach::Unpinned).unwrap(),
        [item(7), item(4), item(0)]
    );
}

/// Those last used at `until` or before, but not pinned ones.
fn unused(lru: &mut Lru, until: u64, most: usize) -> Vec<Item> {
    lru.mark_unused(|_, is_pinned| (!is_pinned).then_some(until), most)
}

#[test]
fn namespaces_have_ages_of_their_own() {
    let mut lru = Lru::new(100 * UNIT);
    lru.govern(1, Rule::default());
    for (number, used) in [(0, 10), (3, 30), (1, 10), (4, 30)] {
        lru.admit(item(number), UNIT, used);
    }
    sort(&mut lru);
    let own = lru.mark_unused(
        |namespace, _| (namespace == Some(1)).then_some(u64::MAX),
        10,
    );
    let others = lru.mark_unused(|namespace, _| namespace.is_none().then_some(u64::MAX), 10);
    assert!(
        own.iter().all(|one| one.namespace == 1) && !own.is_empty(),
        "{own:?}"
    );
    assert!(others.iter().all(|one| one.namespace != 1), "{others:?}");
    assert_eq!(own.len() + others.len(), 4);
}

#[test]
fn unused_blobs_are_marked_but_not_pinned_ones() {
    let mut lru = Lru::new(100 * UNIT);
    lru.govern(
        1,
        Rule {
            quota: None,
            pinned: true,
        },
    );
    for (number, used) in [(0, 10), (3, 30), (1, 10)] {
        lru.admit(item(number), UNIT, used);
    }
    sort(&mut lru);
    assert_eq!(unused(&mut lru, 9, 10), []);
    assert_eq!(unused(&mut lru, 40, 0), []);
    assert_eq!(unused(&mut lru, 29, 10), [item(0)]);
    assert_eq!(unused(&mut lru, 30, 10), [item(3)]);
    assert_eq!(unused(&mut lru, u64::MAX, 10), []);
    assert_eq!(
        lru.mark_victims(1, Reach::All).unwrap(),
        [item(1)],
        "the budget beats a pin"
    );
}

/// An index in which namespace 1 may take ten units, and has three entries of two units each, oldest first.
fn with_quota() -> Lru {
    let mut lru = Lru::new(100 * UNIT);
    let quota = Some(10 * UNIT);
    let pinned = false;
    lru.govern(1, Rule { quota, pinned });
    for (number, used) in [(1, 10), (4, 20), (7, 30)] {
        lru.admit(item(number), 2 * UNIT, used);
    }
    sort(&mut lru);
    lru
}

#[test]
fn quota_leaves_what_is_neither_used_nor_reserved_nor_expected() {
    let mut lru = with_quota();
    assert_eq!(lru.quota_left(0), None);
    assert_eq!(lru.quota_left(1), Some(4 * UNIT));
    lru.reserve_unscanned_of(1, UNIT);
    assert_eq!(lru.quota_left(1), Some(3 * UNIT));
    assert_eq!(lru.claim(1, 2 * UNIT).unwrap().claimed, 2 * UNIT);
    assert_eq!(lru.quota_left(1), Some(UNIT));
    assert_eq!(lru.mark_victims_of(1, UNIT), [item(1)]);
    assert_eq!(
        lru.quota_left(1),
        Some(3 * UNIT),
        "it is about to come free"
    );
}

#[test]
fn entry_that_is_revived_counts_in_its_quota_again() {
    let mut lru = with_quota();
    lru.mark_victims_of(1, 4 * UNIT);
    assert_eq!(lru.quota_left(1), Some(8 * UNIT));
    lru.restore(&digest(1));
    assert_eq!(lru.quota_left(1), Some(6 * UNIT));
    lru.restore(&digest(4));
    assert_eq!(lru.quota_left(1), Some(4 * UNIT));
}

#[test]
fn all_that_is_live_may_be_marked_and_no_more() {
    let mut lru = with_quota();
    assert_eq!(lru.mark_victims(6 * UNIT + 1, Reach::Unpinned), None);
    let all = [item(1), item(4), item(7)];
    assert_eq!(lru.mark_victims(6 * UNIT, Reach::Unpinned).unwrap(), all);
}

#[test]
fn whole_quota_can_be_claimed_and_no_more() {
    let mut lru = with_quota();
    assert_eq!(lru.claim(1, 10 * UNIT + 1), Err(Shortage::Full));
    let claim = lru.claim(1, 10 * UNIT).unwrap();
    let all = vec![item(1), item(4), item(7)];
    assert_eq!((claim.claimed, claim.over_quota), (4 * UNIT, all));
}
