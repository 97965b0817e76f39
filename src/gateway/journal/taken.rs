//! A build whose end has come: its requests, joined with its compiles. Pure.

use super::super::database::{Learned, Partition};
use super::{Did, SLACK};
use crate::contract::key::Key;
use crate::explain::protocol::{End, Unit};
use crate::explain::report::{Facts, Lost, Seen, Wire};
use crate::store::{self, Store};
use std::collections::{BTreeMap, BTreeSet};

/// A request of a build.
#[derive(Debug, Clone)]
pub(in crate::gateway) struct Request {
    /// Since the build began.
    pub(super) at_ms: u64,
    pub(super) key: Key,
    /// It is in a namespace to which the build writes.
    pub(super) is_own: bool,
    pub(super) did: Did,
    pub(super) lost: Option<store::Lost>,
}

/// A build whose end has come.
#[derive(Debug, Default)]
pub(in crate::gateway) struct Taken {
    pub(super) events: Vec<Request>,
    pub(super) writes: bool,
    /// It was begun with this gateway.
    pub(super) known: bool,
    /// Other builds of its sender at the same time: their requests are among these.
    pub(super) shared: u64,
    /// Name of the token with which it was begun.
    pub(super) token: Option<String>,
}

/// A compile's facts and key.
pub(super) type Joined = (Facts, Option<Key>);

impl Taken {
    /// The keys of entries that there should be, each once.
    pub(in crate::gateway) fn keys(&self) -> Vec<Key> {
        let mut seen = BTreeSet::new();
        let there = self
            .events
            .iter()
            .filter(|event| matches!(event.did, Did::Hit(_) | Did::Write(_)));
        let fresh =
            there.filter(|event| event.key.is_sccache_entry() && seen.insert(event.key.as_str()));
        fresh.map(|event| event.key.clone()).collect()
    }

    /// Ids of the entries of [`Taken::keys`] that are not there any more.
    pub(super) fn gone(&self, names: &[Vec<String>]) -> BTreeSet<[u8; 16]> {
        let keys = self.keys().into_iter().zip(names);
        let gone = keys.filter(|(_, names)| names.is_empty());
        gone.map(|(key, _)| Store::id(&key)).collect()
    }

    /// Keys by the names of their outputs.
    pub(super) fn outputs(&self, names: &[Vec<String>]) -> BTreeMap<String, Vec<Key>> {
        let mut outputs: BTreeMap<String, Vec<Key>> = BTreeMap::new();
        for (key, names) in self.keys().into_iter().zip(names) {
            let stems: BTreeSet<&str> = names.iter().filter_map(|name| stem(name)).collect();
            for stem in stems {
                outputs
                    .entry(stem.to_owned())
                    .or_default()
                    .push(key.clone());
            }
        }
        outputs
    }

    /// Leaves out what only other builds at the same time can have asked for: entries of what this one did not compile.
    pub(super) fn drop_others(&mut self, units: &[Unit], outputs: &BTreeMap<String, Vec<Key>>) {
        if self.shared == 0 || units.is_empty() {
            return;
        }
        let own: BTreeSet<&str> = units.iter().map(|unit| unit.output.as_str()).collect();
        let (mine, others): (Vec<_>, Vec<_>) = outputs
            .iter()
            .partition(|(output, _)| own.contains(output.as_str()));
        let keys = |of: Vec<(&String, &Vec<Key>)>| -> BTreeSet<String> {
            let keys = of.into_iter().flat_map(|(_, keys)| keys);
            keys.map(|key| key.as_str().to_owned()).collect()
        };
        let (mine, others) = (keys(mine), keys(others));
        self.events.retain(|event| {
            let key = event.key.as_str();
            mine.contains(key) || !others.contains(key)
        });
    }

    /// What went over the wire for each compile: by name; what has none, by time.
    pub(super) fn join(&self, units: &[Unit], outputs: &BTreeMap<String, Vec<Key>>) -> Vec<Joined> {
        let named: BTreeSet<&str> = outputs.values().flatten().map(Key::as_str).collect();
        let rest: Vec<&Request> = self
            .events
            .iter()
            .filter(|event| event.key.is_sccache_entry() && !named.contains(event.key.as_str()))
            .filter(|event| matches!(event.did, Did::Hit(_) | Did::Miss))
            .collect();
        let by_name = units.iter().map(|unit| {
            let keys = outputs.get(&unit.output).filter(|_| unit.kind != "c");
            keys.map(|keys| self.facts_of(keys, unit))
        });
        let mut joined: Vec<Option<Joined>> = by_name.collect();
        // Each request goes to the compile that ends first of those during which it came: no other choice leaves fewer
        // without one.
        let mut free: Vec<usize> = (0..units.len())
            .filter(|at| joined[*at].is_none() && units[*at].not_cached.is_none())
            .collect();
        free.sort_by_key(|at| units[*at].start_ms + units[*at].took_ms);
        for event in rest {
            let place = free.iter().position(|at| during(&units[*at], event));
            if let Some(at) = place.map(|place| free.remove(place)) {
                let (mut facts, key) = self.facts_of(std::slice::from_ref(&event.key), &units[at]);
                facts.probably = true;
                joined[at] = Some((facts, key));
            }
        }
        let nothing = Facts {
            seen: match self.known {
                true => Seen::Nothing,
                false => Seen::Forgotten,
            },
            ..Facts::default()
        };
        let joined = joined.into_iter();
        joined
            .map(|it| it.unwrap_or_else(|| (nothing.clone(), None)))
            .collect()
    }

    fn facts_of(&self, keys: &[Key], unit: &Unit) -> Joined {
        let mut facts = Facts::default();
        let mut found = None;
        let mut events: Vec<&Request> = self.events.iter().collect();
        events.retain(|event| keys.contains(&event.key));
        if self.shared > 0 {
            // At another time, another build has asked for it.
            if events.iter().any(|event| during(unit, event)) {
                events.retain(|event| during(unit, event));
            }
            let is_hit = |event: &&Request| matches!(event.did, Did::Hit(_));
            facts.probably = events.iter().any(is_hit) && !events.iter().all(is_hit);
        }
        for event in events {
            let (seen, bytes) = match event.did {
                Did::Hit(bytes) => (Seen::Hit, bytes),
                Did::Write(bytes) => (Seen::Miss, bytes),
                Did::Miss | Did::Refused(_) => (Seen::Miss, 0),
            };
            // A write after a miss is its consequence.
            facts.unusable |= facts.seen == Seen::Hit && matches!(event.did, Did::Write(_));
            facts.seen = seen;
            facts.bytes = facts.bytes.max(bytes);
            facts.lost = facts.lost.or(event.lost.map(|lost| Lost {
                budget: 0,
                kept_by: lost.kept_by,
            }));
            found = Some(event.key.clone());
        }
        facts.key = found.as_ref().map(|key| key.as_str().to_owned());
        (facts, found)
    }

    pub(super) fn wire(&self) -> Wire {
        let mut wire = Wire::default();
        for event in &self.events {
            match event.did {
                Did::Hit(bytes) => {
                    wire.hits += 1;
                    wire.read_bytes += bytes;
                }
                Did::Miss => wire.misses += 1,
                Did::Write(bytes) => {
                    wire.writes += 1;
                    wire.written_bytes += bytes;
                }
                Did::Refused(reason) => {
                    *wire.refused.entry(reason.to_owned()).or_default() += 1;
                }
            }
        }
        wire
    }

    /// What is worth remembering of the compiles.
    pub(super) fn learned(
        &self,
        partition: &Partition,
        units: &[Unit],
        facts: &[Facts],
        keys: &[Option<Key>],
    ) -> Vec<Learned> {
        let written: BTreeSet<&str> = self
            .events
            .iter()
            .filter(|event| matches!(event.did, Did::Write(_) | Did::Hit(_)))
            .map(|event| event.key.as_str())
            .collect();
        let own = self.events.iter().filter(|event| event.is_own);
        let own: BTreeSet<&str> = own.map(|event| event.key.as_str()).collect();
        let refused: BTreeMap<&str, &str> = self
            .events
            .iter()
            .filter_map(|event| match event.did {
                Did::Refused(reason) => Some((event.key.as_str(), reason)),
                Did::Hit(_) | Did::Miss | Did::Write(_) => None,
            })
            .collect();
        let cached = units
            .iter()
            .zip(facts.iter().zip(keys))
            .filter(|(unit, _)| unit.not_cached.is_none() && unit.exit == Some(0));
        cached
            .map(|(unit, (facts, key))| {
                let there = key.as_ref().filter(|key| written.contains(key.as_str()));
                let cause = match key.as_ref().and_then(|key| refused.get(key.as_str())) {
                    Some(reason) => format!("the cache refused it ({reason})"),
                    None if !self.writes => "its token may only read".to_owned(),
                    None => "the client did not store it".to_owned(),
                };
                let missed = facts.seen == Seen::Miss;
                Learned {
                    identity: identity(&partition.name, unit),
                    print: unit.print.clone(),
                    result: there.map(Store::id),
                    is_own: there.is_some_and(|key| own.contains(key.as_str())),
                    compile_ms: missed.then_some(unit.took_ms),
                    refused: (missed && there.is_none()).then_some(cause),
                }
            })
            .collect()
    }

    /// The keys in the order in which they were wanted. What was fetched ahead was not asked for here; what of it was
    /// used keeps its place.
    pub(super) fn order(&self, end: &End) -> Vec<String> {
        let used = end.prefetched.iter().flat_map(|it| {
            let times = it.used_ms.iter().copied().chain(std::iter::repeat(0));
            times.zip(it.used.iter().map(String::as_str))
        });
        let used = used.filter(|(_, key)| Key::parse(key).is_ok_and(|key| key.is_sccache_entry()));
        let mut wanted = BTreeMap::new();
        for event in &self.events {
            wanted.entry(event.key.as_str()).or_insert(event.at_ms);
        }
        let asked = self
            .events
            .iter()
            .filter(|event| matches!(event.did, Did::Hit(_) | Did::Write(_)))
            .filter(|event| event.key.is_sccache_entry())
            .map(|event| event.key.as_str())
            // A miss comes before its write.
            .map(|key| (wanted.get(key).copied().unwrap_or(0), key));
        let mut keys: Vec<(u64, &str)> = used.chain(asked).collect();
        keys.sort_by_key(|(at, _)| *at);
        let mut seen = BTreeSet::new();
        let keys = keys.into_iter().filter(|(_, key)| seen.insert(*key));
        keys.map(|(_, key)| key.to_owned()).collect()
    }
}

/// Whether a request came while something was compiled.
fn during(unit: &Unit, event: &Request) -> bool {
    let begin = unit.start_ms.saturating_sub(SLACK);
    (begin..=unit.start_ms + unit.took_ms + SLACK).contains(&event.at_ms)
}

/// What is compiled, and for whom it is known.
pub(super) fn identity(partition: &str, unit: &Unit) -> String {
    format!("{partition}\0{}", unit.identity())
}

/// The name of an output without `lib` and extension, as a recorder knows it.
fn stem(member: &str) -> Option<&str> {
    let (stem, _) = member.rsplit_once('.')?;
    // Crates of other kinds are not cached.
    Some(stem.strip_prefix("lib").unwrap_or(stem))
}
