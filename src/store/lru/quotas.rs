//! Rules of namespaces: quotas and pins, and whose entries make room for a write.

use super::{Item, Lru, NONE, Totals, bytes_of};

/// Entries that are marked at a time at most: whoever needs more room than they make asks again.
pub(super) const MOST_VICTIMS: usize = 1024;

/// What holds for one namespace.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Rule {
    /// Most bytes that it may take.
    pub quota: Option<u64>,
    /// Writes of others do not evict from it.
    pub pinned: bool,
}

/// Whose entries may be victims.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reach {
    /// Those that are not pinned.
    Unpinned,
    /// Those, and when there are no more, the ones of this namespace.
    And(u16),
    /// All; the pinned ones last.
    All,
}

/// The answer to [`Lru::claim`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Claim {
    /// Bytes that are reserved already.
    pub claimed: u64,
    /// Remove these files, which make room in the namespace's quota, and [`Lru::collect`] each. Where they were too
    /// many to be named all, that is not the whole rest, which is to be claimed again.
    pub over_quota: Vec<Item>,
    /// And then these, which make room in the budget.
    pub victims: Vec<Item>,
}

/// Why there is no room.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shortage {
    /// All live entries within reach together are less than is wanted.
    Full,
    /// There would be enough, but it is pinned.
    Pinned,
}

/// What a namespace holds, and may hold.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Share {
    pub(super) totals: Totals,
    /// Bytes of marked entries among them.
    pub(super) marked: u64,
    pub(super) reserved: u64,
    pub(super) expected: u64,
    pub(super) rule: Rule,
    /// Which of the lists its live entries are in.
    pub(super) list: u16,
}

/// Live entries in order of use.
#[derive(Clone, Copy, Debug)]
pub(super) struct List {
    pub(super) newest: u32,
    pub(super) oldest: u32,
    /// The newest of those that [`super::Sorting`] has put in order, which are the oldest.
    pub(super) sorted: u32,
    pub(super) bytes: u64,
    pub(super) pinned: bool,
    /// Of all namespaces without a rule where it is none.
    pub(super) namespace: Option<u16>,
}

impl List {
    pub(super) fn new(pinned: bool, namespace: Option<u16>) -> List {
        List {
            newest: NONE,
            oldest: NONE,
            sorted: NONE,
            bytes: 0,
            pinned,
            namespace,
        }
    }
}

impl Lru {
    /// Makes a rule for a namespace that has no entries yet.
    pub fn govern(&mut self, namespace: u16, rule: Rule) {
        debug_assert_eq!(self.totals(namespace).entries, 0, "it has entries");
        let list = u16::try_from(self.lists.len())
            .expect("one list by namespace, whose number is as short");
        self.lists.push(List::new(rule.pinned, Some(namespace)));
        let share = self.share_mut(namespace);
        (share.rule, share.list) = (rule, list);
    }

    /// The rule of a namespace.
    pub fn rule(&self, namespace: u16) -> Rule {
        self.share(namespace).rule
    }

    /// Namespaces that have a rule.
    pub fn governed(&self) -> Vec<u16> {
        self.lists
            .iter()
            .filter_map(|list| list.namespace)
            .collect()
    }

    /// Counts `bytes` of a namespace as taken by files that are still to be admitted: its quota holds from the start
    /// on.
    pub fn reserve_unscanned_of(&mut self, namespace: u16, bytes: u64) {
        self.share_mut(namespace).expected = bytes;
    }

    /// Bytes by which files found on disk go past the namespace's quota.
    pub fn overshoot_of(&self, namespace: u16) -> u64 {
        let share = self.share(namespace);
        let most = share.rule.quota.unwrap_or(u64::MAX);
        (share.totals.bytes + share.reserved).saturating_sub(most.saturating_add(share.marked))
    }

    /// Bytes that the namespace's quota leaves free, or that are about to come free; `None` without a quota.
    pub fn quota_left(&self, namespace: u16) -> Option<u64> {
        let share = self.share(namespace);
        let taken = share.totals.bytes + share.reserved + share.expected - share.marked;
        share.rule.quota.map(|quota| quota.saturating_sub(taken))
    }

    /// Bytes of live entries that may be victims.
    pub fn live(&self, reach: Reach) -> u64 {
        let lists = self.lists.iter();
        lists
            .filter(|list| {
                !list.pinned
                    || match reach {
                        Reach::Unpinned => false,
                        Reach::And(namespace) => list.namespace == Some(namespace),
                        Reach::All => true,
                    }
            })
            .map(|list| list.bytes)
            .sum()
    }

    /// Reserves `bytes` for a write in a namespace: what is free at once, the rest from victims: those of the
    /// namespace itself as far as its quota lacks room, then all within reach in order of use. An error, and nothing
    /// changes, when they would not make enough room.
    pub fn claim(&mut self, namespace: u16, bytes: u64) -> Result<Claim, Shortage> {
        let over_quota = bytes - self.room_in_quota(namespace).min(bytes);
        let free = self.budget.saturating_sub(self.taken());
        let over_budget = bytes - free.min(bytes);
        let list = self.list_of(namespace);
        let reach = Reach::And(namespace);
        if self.lists[list].bytes < over_quota {
            return Err(Shortage::Full);
        }
        if self.live(reach) < over_budget {
            return Err(if self.live(Reach::All) < over_budget {
                Shortage::Full
            } else {
                Shortage::Pinned
            });
        }
        let claimed = bytes - over_quota.max(over_budget);
        let before = self.marked;
        let own = self.mark_while(over_quota, MOST_VICTIMS, |_| Some(list));
        let rest = over_budget.saturating_sub(self.marked - before);
        let most = MOST_VICTIMS - own.len();
        let victims = self.mark_while(rest, most, |lru| lru.next_list(reach));
        self.reserve(namespace, claimed);
        Ok(Claim {
            claimed,
            over_quota: own,
            victims,
        })
    }

    /// Dooms entries within reach, from namespaces over their quota first, then in order of use, until they make up
    /// `bytes`, or are many. `None`, and nothing changes, when all together are less.
    pub fn mark_victims(&mut self, bytes: u64, reach: Reach) -> Option<Vec<Item>> {
        if self.live(reach) < bytes {
            return None;
        }
        Some(self.mark_while(bytes, MOST_VICTIMS, |lru| lru.next_list(reach)))
    }

    /// Dooms the least recently used entries of one namespace with a rule until they make up `bytes`, are
    /// many, or there are no more.
    pub fn mark_victims_of(&mut self, namespace: u16, bytes: u64) -> Vec<Item> {
        let list = self.list_of(namespace);
        debug_assert!(list > 0, "the namespace has no list of its own");
        self.mark_while(bytes, MOST_VICTIMS, |_| Some(list))
    }

    /// Dooms entries last used at `until_micros` or before, at most `most`, pinned ones not.
    pub fn mark_unused(&mut self, until_micros: u64, most: usize) -> Vec<Item> {
        let mut victims = Vec::new();
        for list in 0..self.lists.len() {
            while victims.len() < most && !self.lists[list].pinned {
                let oldest = self.lists[list].oldest;
                if oldest == NONE || self.entry(oldest).used_micros > until_micros {
                    break;
                }
                victims.push(self.mark_one(oldest));
            }
        }
        victims
    }

    /// Dooms the oldest of the list that `choose` names, again and again, until that makes up `bytes` or `most` entries,
    /// or there is none.
    fn mark_while(
        &mut self,
        bytes: u64,
        most: usize,
        choose: impl Fn(&Lru) -> Option<usize>,
    ) -> Vec<Item> {
        let mut victims = Vec::new();
        let enough = self.marked + bytes;
        while self.marked < enough && victims.len() < most {
            let oldest = choose(self).map_or(NONE, |list| self.lists[list].oldest);
            if oldest == NONE {
                break;
            }
            victims.push(self.mark_one(oldest));
        }
        victims
    }

    fn mark_one(&mut self, slot: u32) -> Item {
        self.unlink(slot);
        let entry = self.entry_mut(slot);
        entry.marked = true;
        let (bytes, item) = (bytes_of(entry.units), entry.item());
        self.marked += bytes;
        self.share_mut(item.namespace).marked += bytes;
        item
    }

    /// The list whose oldest entry is the next victim.
    fn next_list(&self, reach: Reach) -> Option<usize> {
        let candidates = |pinned: bool| {
            let lists = self.lists.iter().enumerate();
            lists.filter(move |(_, list)| list.pinned == pinned && list.oldest != NONE)
        };
        let used = |(_, list): &(usize, &List)| self.entry(list.oldest).used_micros;
        let over = candidates(false).find(|(_, list)| {
            let namespace = list.namespace;
            namespace.is_some_and(|namespace| self.overshoot_of(namespace) > 0)
        });
        let unpinned = || candidates(false).min_by_key(used);
        let pinned = || match reach {
            Reach::Unpinned => None,
            Reach::And(namespace) => {
                candidates(true).find(|(_, list)| list.namespace == Some(namespace))
            }
            Reach::All => candidates(true).min_by_key(used),
        };
        let found = over.or_else(unpinned).or_else(pinned);
        found.map(|(index, _)| index)
    }

    pub(super) fn share(&self, namespace: u16) -> Share {
        let share = self.shares.get(usize::from(namespace));
        share.copied().unwrap_or_default()
    }

    pub(super) fn share_mut(&mut self, namespace: u16) -> &mut Share {
        let namespace = usize::from(namespace);
        if self.shares.len() <= namespace {
            self.shares.resize(namespace + 1, Share::default());
        }
        &mut self.shares[namespace]
    }

    pub(super) fn list_of(&self, namespace: u16) -> usize {
        usize::from(self.share(namespace).list)
    }

    pub(super) fn room_in_quota(&self, namespace: u16) -> u64 {
        let share = self.share(namespace);
        let taken = share.totals.bytes + share.reserved + share.expected;
        let quota = share.rule.quota;
        quota.map_or(u64::MAX, |quota| quota.saturating_sub(taken))
    }
}

#[cfg(test)]
mod tests;
