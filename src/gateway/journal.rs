//! Builds: which requests belong to one, what became of its compiles, and what is kept of that.
//!
//! A client that wants to know begins a build and ends it; in between every look-up and every write is noted with the
//! origin it came from. At the end the client tells what it compiled, and both sides are joined by the names of the
//! members of the entries, which are read from the entries then: nothing is paid for it before.
//!
//! ```text
//! begin -> [hit, miss, write, refusal] ... -> end: units -> join by name -> assess -> report
//!                                                            |  by time where there is no name
//!                                                            '- fingerprints and fates: database.rs
//! ```
//!
//! While no build is open, a request pays for one look at a flag.

mod taken;

pub(super) use self::taken::Taken;
use self::taken::{Request, identity};
use super::access::Scope;
use super::database::{Asked, Database, Lifetime, Partition};
use crate::base::time::unix_seconds;
use crate::contract::gateway_status::Totals;
use crate::contract::key::Key;
use crate::explain::protocol::{BEAT, Begun, End, MOST_UNITS, Unit};
use crate::explain::report::{Facts, Lost, Report, assess};
use crate::gateway::history::Point;
use crate::store::{self, Store};
use parking_lot::{Mutex, MutexGuard};
use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;
use tokio::time::Instant;
use tracing::warn;

/// Requests that are remembered while builds are open.
const EVENTS: usize = 64 << 10;
/// Builds that may be open at a time; the oldest is given up for a new one.
const OPEN: usize = 256;
/// The same of one sender.
const OPEN_OF_ONE: usize = 16;
/// After this time nobody ends a build any more.
const LONGEST: Duration = Duration::from_secs(12 * 60 * 60);
/// The same if its client has said nothing for so long.
const SILENT: Duration = Duration::from_secs(5 * 60);
/// For so long after it was heard of, a build is taken to go on.
const ALIVE: Duration = BEAT.saturating_add(Duration::from_secs(15));
/// How far clocks of client and gateway may differ within a build, in milliseconds.
const SLACK: u64 = 150;

/// Who has sent a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sender {
    /// Its machine, or user.
    pub(crate) origin: String,
    /// Its token's name, where it has one.
    pub(crate) token: Option<String>,
}

impl Sender {
    /// Whether both may be of one build. Sccache's own protocol has no tokens.
    fn matches(&self, other: &Sender) -> bool {
        let tokens = self.token.as_ref().zip(other.token.as_ref());
        self.origin == other.origin && tokens.is_none_or(|(one, other)| one == other)
    }
}

/// What was done for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Did {
    /// A blob of so many bytes was sent.
    Hit(u64),
    /// There was none.
    Miss,
    /// One of so many bytes was stored.
    Write(u64),
    /// It was not stored, for this reason.
    Refused(&'static str),
}

#[derive(Debug)]
struct Event {
    at: Instant,
    key: Key,
    did: Did,
    lost: Option<store::Lost>,
}

#[derive(Debug)]
struct Open {
    id: String,
    sender: Sender,
    began: Instant,
    writes: bool,
    /// When its client last said that it goes on; the last request, where a client says nothing of the kind.
    heard: Instant,
    beats: bool,
    /// Builds that have ended meanwhile, and whose requests cannot be told from its own.
    met: u64,
    /// What its sender has asked for since.
    events: VecDeque<Event>,
}

#[derive(Debug, Default)]
struct State {
    open: Vec<Open>,
    /// Of all open builds.
    events: usize,
    /// Of misses that are being answered.
    lost: HashMap<Key, store::Lost>,
}

impl State {
    fn remove(&mut self, place: usize) -> Open {
        let open = self.open.remove(place);
        self.events -= open.events.len();
        open
    }

    /// The oldest build of the token that has the most.
    fn crowd(&self) -> usize {
        let of_one = |token: &Option<String>| {
            let all = self.open.iter();
            all.filter(|one| one.sender.token == *token).count()
        };
        // Of equal ones, the last is the greatest.
        let places = (0..self.open.len()).rev();
        let crowd = places.max_by_key(|place| of_one(&self.open[*place].sender.token));
        crowd.unwrap_or_default()
    }
}

/// By what a build is explained.
#[derive(Debug)]
pub(in crate::gateway) struct Memory {
    /// Where it is remembered.
    pub(super) own: Partition,
    /// Whose builds it is compared with besides.
    pub(super) others: Vec<Partition>,
    /// Where lists of keys are looked for.
    pub(super) lists: Vec<Partition>,
}

/// Builds, and what outlives the gateway.
#[derive(Debug)]
pub(crate) struct Journal {
    watching: AtomicBool,
    // Held for an assignment or a copy, never across I/O or an await.
    state: Mutex<State>,
    database: Option<Database>,
    key: [u8; 32],
    budget: u64,
    base: Lifetime,
}

impl Journal {
    /// Opens what earlier gateways have kept in the store's folder. Where that cannot be, it goes on without.
    pub(crate) fn open(folder: &Path, budget: u64) -> Journal {
        let opened = Database::open(folder, budget).and_then(|database| {
            let key = database.secret()?;
            let base = database.lifetime()?;
            Ok((database, key, base))
        });
        let (database, key, base) = match opened {
            Ok((database, key, base)) => (Some(database), key, base),
            Err(cause) => {
                warn!(
                    "cannot keep a history in \"{}\": {cause}; plots and what is known of builds end with this gateway",
                    folder.display()
                );
                (None, [0; 32], None)
            }
        };
        Journal {
            watching: AtomicBool::new(false),
            state: Mutex::default(),
            database,
            key,
            budget,
            base: base.unwrap_or(Lifetime {
                since_unix_seconds: unix_seconds(),
                sums: Point::default(),
            }),
        }
    }

    /// What outlives the gateway, where the folder lets it.
    pub(crate) fn database(&self) -> Option<&Database> {
        self.database.as_ref()
    }

    /// What earlier gateways have served, and this one with these counters.
    pub(crate) fn lifetime(&self, totals: &Totals) -> Lifetime {
        let mut lifetime = self.base;
        lifetime.sums.add(Point {
            hits: totals.hits,
            misses: totals.misses,
            writes: totals.writes,
            bytes_read: totals.bytes_read,
            bytes_written: totals.bytes_written,
        });
        lifetime
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Whether a build is open.
    pub(crate) fn is_watching(&self) -> bool {
        self.watching.load(Relaxed)
    }

    /// Takes note of a missed blob that was evicted before.
    pub(crate) fn note_lost(&self, key: &Key, lost: Option<store::Lost>) {
        if let Some(lost) = lost.filter(|_| self.is_watching()) {
            let mut state = self.state();
            if state.lost.len() >= EVENTS {
                state.lost.clear();
            }
            state.lost.insert(key.clone(), lost);
        }
    }

    /// Takes note of a request.
    pub(crate) fn note(&self, sender: impl FnOnce() -> Sender, key: &Key, did: Did) {
        if !self.is_watching() {
            return;
        }
        let (sender, at) = (sender(), Instant::now());
        let mut state = self.state();
        let State { open, events, lost } = &mut *state;
        let lost = match did {
            Did::Miss => lost.remove(key),
            Did::Hit(_) | Did::Write(_) | Did::Refused(_) => None,
        };
        for one in open.iter_mut().filter(|one| one.sender.matches(&sender)) {
            if !one.beats {
                one.heard = at;
            }
            one.events.push_back(Event {
                at,
                key: key.clone(),
                did,
                lost,
            });
            *events += 1;
        }
        // Whoever asks for the most forgets first, and some at once, so that nobody can make another build forget.
        while *events > EVENTS {
            let longest = open.iter_mut().max_by_key(|one| one.events.len());
            let Some(longest) = longest else { break };
            let some = longest.events.len().div_ceil(8);
            longest.events.drain(..some);
            *events -= some;
        }
    }

    /// Begins a build.
    pub(crate) fn begin(&self, sender: Sender, writes: bool) -> Begun {
        let began = Instant::now();
        let random = getrandom::u32().unwrap_or_default();
        let id = format!("{:010x}-{random:08x}", unix_seconds());
        let mut state = self.state();
        let of_sender = state.open.iter().filter(|open| open.sender == sender);
        if of_sender.count() == OPEN_OF_ONE {
            let oldest = state.open.iter().position(|open| open.sender == sender);
            oldest.map(|place| state.remove(place));
        }
        if state.open.len() == OPEN {
            let place = state.crowd();
            state.remove(place);
        }
        state.open.push(Open {
            id: id.clone(),
            sender,
            began,
            writes,
            heard: began,
            beats: false,
            met: 0,
            events: VecDeque::new(),
        });
        self.watching.store(true, Relaxed);
        drop(state);
        let key = self.key.iter().map(|byte| format!("{byte:02x}")).collect();
        Begun {
            build: id,
            key,
            writes,
        }
    }

    /// A build goes on.
    pub(crate) fn beat(&self, id: &str, sender: &Sender) {
        let mut state = self.state();
        let mut all = state.open.iter_mut();
        if let Some(open) = all.find(|open| open.id == id && open.sender == *sender) {
            (open.heard, open.beats) = (Instant::now(), true);
        }
    }

    /// To be called now and then: forgets builds that nobody ends, and what is needed by none.
    pub(crate) fn tidy(&self) {
        self.forget_older(LONGEST, SILENT);
    }

    fn forget_older(&self, longest: Duration, silent: Duration) {
        let mut state = self.state();
        state
            .open
            .retain(|open| open.began.elapsed() < longest && open.heard.elapsed() < silent);
        state.events = state.open.iter().map(|open| open.events.len()).sum();
        if state.open.is_empty() {
            *state = State::default();
        }
        self.watching.store(!state.open.is_empty(), Relaxed);
    }

    /// Takes an open build, with those of its events that are in its scope. One that is not known has none: the gateway was
    /// restarted meanwhile.
    pub(super) fn take(&self, id: &str, sender: &Sender, scope: &Scope) -> Taken {
        let mut state = self.state();
        let place = state
            .open
            .iter()
            .position(|open| open.id == id && open.sender == *sender);
        let Some(open) = place.map(|place| state.remove(place)) else {
            return Taken::default();
        };
        let mut shared = open.met;
        let others = state.open.iter_mut();
        for other in others.filter(|other| other.sender.matches(sender)) {
            other.met += 1;
            shared += u64::from(other.heard + ALIVE > open.began);
        }
        drop(state);
        let events = open.events.into_iter();
        let events = events.filter(|event| scope.reads(event.key.namespace()));
        let events = events.map(|event| Request {
            at_ms: u64::try_from((event.at - open.began).as_millis()).unwrap_or(u64::MAX),
            is_own: open.writes && scope.writes(event.key.namespace()),
            key: event.key,
            did: event.did,
            lost: event.lost,
        });
        let events = events.collect();
        self.tidy();
        Taken {
            events,
            writes: open.writes,
            known: true,
            shared,
            token: open.sender.token,
        }
    }

    /// Explains a build, and remembers it. `names` are those of the members of the entries of `taken.keys()`. Blocks.
    pub(super) fn explain(
        &self,
        memory: &Memory,
        mut end: End,
        mut taken: Taken,
        names: &[Vec<String>],
        removals: &[store::Removal],
    ) -> Report {
        end.units.truncate(MOST_UNITS);
        let now = unix_seconds();
        let (outputs, gone) = (taken.outputs(names), taken.gone(names));
        taken.drop_others(&end.units, &outputs);
        if let Some(database) = &self.database
            && let Err(cause) = database.note_removals(removals, self.budget)
        {
            warn!("cannot write history: {cause}");
        }
        let own = &memory.own;
        let partitions: Vec<&Partition> = std::iter::once(own).chain(&memory.others).collect();
        let mut joined = taken.join(&end.units, &outputs);
        for (unit, (facts, key)) in end.units.iter().zip(&mut joined) {
            facts.lost = facts.lost.map(|lost| Lost {
                budget: self.budget,
                ..lost
            });
            if let Err(cause) = self.look_up(&partitions, unit, facts, key.as_ref()) {
                warn!("cannot read history: {cause}");
                break;
            }
        }
        let (facts, keys): (Vec<Facts>, Vec<Option<Key>>) = joined.into_iter().unzip();
        let learned = taken.learned(own, &end.units, &facts, &keys);
        let report = Report {
            token: taken.token.clone(),
            shared: taken.shared,
            ..assess(&end, facts, taken.wire(), now)
        };
        // One that was not begun here, because the gateway was restarted, is explained and not kept.
        if let Some(database) = self.database.as_ref().filter(|_| taken.known) {
            // A build that had most on its own disk says little about what the next runner needs.
            let is_poor = end.prefetched.is_none() && report.sums.own_disk > report.sums.hits;
            let keys = taken.order(&end);
            let asked = Asked {
                labels: &end.labels,
                keys: &keys,
                is_whole: end.exit == 0,
                lists: &memory.lists,
            };
            let asked = (taken.writes && !is_poor && !keys.is_empty()).then_some(asked);
            let kept = database.learn(own, learned, &report, asked);
            // What went before the end of its own build was not known when it went.
            let gone = removals.iter().filter(|it| gone.contains(&it.id));
            let gone: Vec<store::Removal> = gone.copied().collect();
            let kept = kept.and_then(|()| database.note_removals(&gone, self.budget));
            if let Err(cause) = kept {
                warn!("cannot write history: {cause}");
            }
        }
        report
    }

    fn look_up(
        &self,
        partitions: &[&Partition],
        unit: &Unit,
        facts: &mut Facts,
        key: Option<&Key>,
    ) -> Result<(), super::database::Error> {
        let Some(database) = &self.database else {
            return Ok(());
        };
        let mut took = None;
        for partition in partitions {
            let identity = identity(&partition.name, unit);
            let (earlier, this_took) = database.earlier(partition, &identity, &unit.print)?;
            facts.earlier.extend(earlier);
            took = took.or(this_took);
        }
        facts.compile_ms = match key {
            Some(key) => database
                .result(&Store::id(key))?
                .and_then(|it| it.0)
                .or(took),
            None => took,
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests;
