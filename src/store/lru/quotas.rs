//! Rules of namespaces: quotas and pins, and which entries are evicted for a write.

use super::{Item, Lru, NONE, Totals, bytes_of};

/// Maximum number of entries marked at a time; a caller that needs more room asks again.
pub(super) const MOST_VICTIMS: usize = 1024;

/// The rule of a namespace.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Rule {
    /// Maximum number of bytes that it may take.
    pub quota: Option<u64>,
    /// Whether writes to other namespaces cannot evict its entries.
    pub pinned: bool,
}

/// Which entries may become victims.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reach {
    /// Entries that are not pinned.
    Unpinned,
    /// Those, and after them the entries of this namespace.
    And(u16),
    /// All entries, pinned ones last.
    All,
}

/// The result of [`Lru::claim`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Claim {
    /// Bytes already reserved.
    pub claimed: u64,
    /// Files to remove to make room in the namespace's quota, each followed by [`Lru::collect`]. If there were too many
    /// to list, they do not cover the whole rest, which must be claimed again.
    pub over_quota: Vec<Item>,
    /// Files to remove after that, to make room in the budget.
    pub victims: Vec<Item>,
}

/// Why there is not enough room.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shortage {
    /// All evictable entries together are smaller than the request.
    Full,
    /// There would be enough, but it is pinned.
    Pinned,
}

/// Usage and rule of a namespace.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Share {
    pub(super) totals: Totals,
    /// Marked bytes among them.
    pub(super) marked: u64,
    pub(super) reserved: u64,
    pub(super) expected: u64,
    pub(super) rule: Rule,
    /// Index of the list that holds its live entries.
    pub(super) list: u16,
}

/// Live entries in order of use.
#[derive(Clone, Copy, Debug)]
pub(super) struct List {
    pub(super) newest: u32,
    pub(super) oldest: u32,
    /// The newest of the oldest entries that [`super::Sorting`] has put in order.
    pub(super) sorted: u32,
    pub(super) bytes: u64,
    pub(super) pinned: bool,
    /// `None` for the list of all namespaces without a rule.
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
    /// Sets the rule of a namespace that has no entries yet.
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

    /// The namespaces that have a rule.
    pub fn governed(&self) -> Vec<u16> {
        self.lists
            .iter()
            .filter_map(|list| list.namespace)
            .collect()
    }

    /// Counts `bytes` of a namespace as taken by files that are not yet admitted, so that its quota holds from the
    /// start.
    pub fn reserve_unscanned_of(&mut self, namespace: u16, bytes: u64) {
        self.share_mut(namespace).expected = bytes;
    }

    /// Bytes by which the files found on disk exceed the namespace's quota.
    pub fn overshoot_of(&self, namespace: u16) -> u64 {
        let share = self.share(namespace);
        let most = share.rule.quota.unwrap_or(u64::MAX);
        (share.totals.bytes + share.reserved).saturating_sub(most.saturating_add(share.marked))
    }

    /// Bytes that the namespace's quota leaves free, or will when evictions end; `None` without a quota.
    pub fn quota_left(&self, namespace: u16) -> Option<u64> {
        let share = self.share(namespace);
        let taken = share.totals.bytes + share.reserved + share.expected - share.marked;
        share.rule.quota.map(|quota| quota.saturating_sub(taken))
    }

    /// Bytes of live entries that may become victims.
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

    /// Reserves `bytes` for a write in a namespace. Free bytes are reserved at once. The rest comes from victims: first
    /// from the namespace itself as far as its quota is exceeded, then from all entries within reach in order of use.
    /// Returns an error and changes nothing if these are not enough.
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

    /// Marks entries within reach, first from namespaces over their quota, then in order of use, until they amount to
    /// `bytes` or to the maximum number. Returns `None` and changes nothing if all together are less.
    pub fn mark_victims(&mut self, bytes: u64, reach: Reach) -> Option<Vec<Item>> {
        if self.live(reach) < bytes {
            return None;
        }
        Some(self.mark_while(bytes, MOST_VICTIMS, |lru| lru.next_list(reach)))
    }

    /// Marks the least recently used entries of one namespace with a rule until they amount to `bytes` or to the
    /// maximum number, or none is left.
    pub fn mark_victims_of(&mut self, namespace: u16, bytes: u64) -> Vec<Item> {
        let list = self.list_of(namespace);
        debug_assert!(list > 0, "the namespace has no list of its own");
        self.mark_while(bytes, MOST_VICTIMS, |_| Some(list))
    }

    /// Marks entries that were last used at the time that `until` gives for their namespace, `None` for those without
    /// rules, or before; at most `most`. `until` is also told whether the namespace is pinned.
    pub fn mark_unused(
        &mut self,
        until: impl Fn(Option<u16>, bool) -> Option<u64>,
        most: usize,
    ) -> Vec<Item> {
        let mut victims = Vec::new();
        for list in 0..self.lists.len() {
            let Some(until) = until(self.lists[list].namespace, self.lists[list].pinned) else {
                continue;
            };
            while victims.len() < most {
                let oldest = self.lists[list].oldest;
                if oldest == NONE || self.entry(oldest).used_micros > until {
                    break;
                }
                victims.push(self.mark_one(oldest));
            }
        }
        victims
    }

    /// Repeatedly marks the oldest entry of the list that `choose` returns, until the entries amount to `bytes` or
    /// `most`, or none is left.
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
