//! Lists of keys in the order in which builds of a job ask for them.
//!
//! A job may consist of several builds, and a build may end early or be one of a single crate. So a build's keys come to
//! the front of the list, and what it did not ask for goes when enough builds in a row have not.

use super::{Database, Partition, Result, decode, encode};
use crate::explain::protocol::Labels;
use redb::{ReadableDatabase, ReadableTable, ReadableTableMetadata, WriteTransaction};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Most lists of keys.
const KEPT: u64 = 200;
/// Keys in one list.
const KEYS: usize = 20_000;
/// How much is added to a key's idle count by a large build that does not ask for it, and by a small one.
const AFTER_LARGE: u8 = 8;
const AFTER_SMALL: u8 = 1;
/// The idle count at which a key is dropped: after five large builds, or forty small ones.
const GONE: u8 = 40;

/// Keys in the order in which builds asked for them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    pub unix_seconds: u64,
    pub keys: Vec<String>,
    /// The idle count of each key.
    #[serde(default)]
    idle: Vec<u8>,
    /// How many keys a large build has; falls a little with each whole build that has fewer.
    #[serde(default)]
    most: usize,
}

/// The keys that one build asked for.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    pub labels: &'a Labels,
    pub keys: &'a [String],
    /// It has come to its end, and asked for all that it needed.
    pub is_whole: bool,
    /// Where other lists are looked for if its partition has none.
    pub lists: &'a [Partition],
}

impl Order {
    /// The list after a build.
    fn after(&self, asked: &Asked<'_>, now: u64) -> Order {
        let size = asked.keys.len();
        let (step, most) = match (asked.is_whole, size * 2 >= self.most) {
            (false, _) => (0, self.most),
            (true, true) => (AFTER_LARGE, self.most - self.most.div_ceil(32)),
            (true, false) => (AFTER_SMALL, self.most - self.most.div_ceil(32)),
        };
        let fresh: BTreeSet<&String> = asked.keys.iter().collect();
        let idle = self.idle.iter().copied().chain(std::iter::repeat(0));
        let rest = self.keys.iter().zip(idle);
        let rest = rest.filter(|(key, _)| !fresh.contains(key));
        let rest = rest.map(|(key, idle)| (key, idle.saturating_add(step)));
        let all = asked.keys.iter().map(|key| (key, 0));
        let all = all.chain(rest.filter(|(_, idle)| *idle < GONE)).take(KEYS);
        let (keys, idle) = all.map(|(key, idle)| (key.clone(), idle)).unzip();
        Order {
            unix_seconds: now,
            keys,
            idle,
            most: most.max(size),
        }
    }
}

impl Database {
    /// The keys that builds with these labels ask for, in their order; those of another branch if there was none on this
    /// one.
    pub fn order(&self, partition: &Partition, labels: &Labels) -> Result<Option<Order>> {
        let read = self.file.begin_read()?;
        find(
            &read.open_table(partition.tables().orders)?,
            partition,
            labels,
        )
    }
}

/// Remembers what a build has asked for. Its branch goes on with the list that it was given.
pub(super) fn write(
    write: &WriteTransaction,
    partition: &Partition,
    asked: &Asked<'_>,
    now: u64,
) -> Result<()> {
    let mut before = None;
    for one in std::iter::once(partition).chain(asked.lists) {
        if before.is_none() {
            before = find(&write.open_table(one.tables().orders)?, one, asked.labels)?;
        }
    }
    let order = before.unwrap_or_default().after(asked, now);
    let mut orders = write.open_table(partition.tables().orders)?;
    orders.insert(
        &*name(&partition.name, asked.labels),
        encode(&order).as_slice(),
    )?;
    while orders.len()? > KEPT {
        let mut oldest = None;
        for row in orders.iter()? {
            let (name, order) = row?;
            let at = decode::<Order>(order.value()).map_or(0, |order| order.unix_seconds);
            if oldest.as_ref().is_none_or(|(least, _)| at < *least) {
                oldest = Some((at, name.value().to_owned()));
            }
        }
        let Some((_, name)) = oldest else { break };
        orders.remove(&*name)?;
    }
    Ok(())
}

fn find(
    orders: &impl ReadableTable<&'static str, &'static [u8]>,
    partition: &Partition,
    labels: &Labels,
) -> Result<Option<Order>> {
    if let Some(order) = orders.get(&*name(&partition.name, labels))? {
        return Ok(decode(order.value()));
    }
    let any_branch = Labels {
        branch: None,
        ..labels.clone()
    };
    let prefix = name(&partition.name, &any_branch);
    let mut latest: Option<Order> = None;
    for row in orders.range(&*prefix..)? {
        let (name, order) = row?;
        if !name.value().starts_with(&prefix) {
            break;
        }
        let order = decode::<Order>(order.value()).unwrap_or_default();
        if latest
            .as_ref()
            .is_none_or(|it| it.unix_seconds < order.unix_seconds)
        {
            latest = Some(order);
        }
    }
    Ok(latest)
}

/// Sorted by job and repository, so that branches of one job lie together.
fn name(partition: &str, labels: &Labels) -> String {
    let part = |part: &Option<String>| part.clone().unwrap_or_default().replace('\0', "");
    let branch = labels
        .branch
        .as_ref()
        .map(|branch| branch.replace('\0', ""));
    format!(
        "{partition}\0{}\0{}\0{}",
        part(&labels.repository),
        part(&labels.job),
        branch.unwrap_or_default()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(numbers: impl IntoIterator<Item = u32>) -> Vec<String> {
        numbers.into_iter().map(|it| it.to_string()).collect()
    }

    fn after(order: &Order, numbers: impl IntoIterator<Item = u32>, is_whole: bool) -> Order {
        let asked = Asked {
            labels: &Labels::default(),
            keys: &keys(numbers),
            is_whole,
            lists: &[],
        };
        order.after(&asked, 1)
    }

    #[test]
    fn build_that_ends_early_or_is_small_does_not_shrink_the_list() {
        let all = after(&Order::default(), 0..100, true);
        assert_eq!(all.keys, keys(0..100));
        let mut order = all.clone();
        for _ in 0..100 {
            order = after(&order, 0..60, false);
        }
        assert_eq!(order.keys, all.keys);
        let mut order = all.clone();
        for _ in 0..39 {
            order = after(&order, [7], true);
        }
        assert_eq!(order.keys.len(), 100);
        assert_eq!(order.keys[..2], keys([7, 0]));
        assert_eq!(after(&order, [7], true).keys, keys([7]));
    }

    #[test]
    fn what_several_builds_do_not_need_goes_and_what_is_new_comes_first() {
        let mut order = after(&Order::default(), 0..100, true);
        for round in 0..5 {
            assert_eq!(order.keys.len(), 100 + usize::from(round > 0), "{round}");
            order = after(&order, [200].into_iter().chain(0..60), true);
        }
        assert_eq!(order.keys, keys([200].into_iter().chain(0..60)));
    }

    #[test]
    fn several_builds_of_a_job_have_one_list() {
        let mut order = Order::default();
        for _ in 0..20 {
            order = after(&order, 0..50, true);
            order = after(&order, 30..90, true);
        }
        assert_eq!(order.keys, keys((30..90).chain(0..30)));
    }
}
