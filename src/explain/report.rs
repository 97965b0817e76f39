//! A build, explained: what each compile was, and what all of them come to. Pure.

use super::decide::{Compiles, Earlier, decide};
use super::protocol::{Daemon, End, Labels, Unit};
use super::reason::Reason;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

const FORGOTTEN: &str = "it was restarted during the build, or heard nothing of it for minutes";

/// What the cache knows of one compile.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// What went over the wire.
    pub seen: Seen,
    /// Bytes of the entry, sent or stored.
    pub bytes: u64,
    /// The key, as far as it is known.
    pub key: Option<String>,
    /// The cache remembers to have evicted the entry.
    pub lost: Option<Lost>,
    /// How long the compile takes, as was recorded when the entry was made.
    pub compile_ms: Option<u64>,
    /// The entry was sent, and the client stored it again.
    pub unusable: bool,
    /// It was found by time and order, not by name.
    pub probably: bool,
    /// Earlier compiles of the same thing.
    pub earlier: Vec<Earlier>,
}

/// An entry that was evicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lost {
    /// The budget now.
    pub budget: u64,
    /// The least budget that would have kept it; missing if its namespace's quota was the cause.
    pub kept_by: Option<u64>,
}

/// What went over the wire for a compile.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Seen {
    /// Nothing.
    #[default]
    Nothing,
    /// The entry was sent.
    Hit,
    /// The entry was asked for in vain, or stored.
    Miss,
    /// Nobody knows: the cache has forgotten the build.
    Forgotten,
}

/// What a compile was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The cache sent the result.
    Hit,
    /// The client had it on its own disk.
    OwnDisk,
    /// It was compiled.
    Miss,
    /// It was compiled, and sccache does not cache such compiles.
    NotCached,
    /// The compiler found errors.
    Failed,
}

impl Outcome {
    /// Whether the result was there, and nothing was compiled.
    pub fn is_hit(self) -> bool {
        matches!(self, Outcome::Hit | Outcome::OwnDisk)
    }

    /// For people.
    pub fn text(self) -> &'static str {
        match self {
            Outcome::Hit => "hit",
            Outcome::OwnDisk => "hit on own disk",
            Outcome::Miss => "miss",
            Outcome::NotCached => "not cached",
            Outcome::Failed => "failed",
        }
    }
}

/// One compile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    pub name: String,
    pub version: String,
    pub kind: String,
    pub start_ms: u64,
    pub took_ms: u64,
    pub outcome: Outcome,
    /// The outcome was found by time and order.
    #[serde(default)]
    pub probably: bool,
    /// Why it was no hit.
    #[serde(default)]
    pub why: Option<Reason>,
    /// What else differs.
    #[serde(default)]
    pub also: Vec<Reason>,
    pub bytes: u64,
    /// How long the compile takes, of what was a hit.
    pub saved_ms: u64,
    #[serde(default)]
    pub key: Option<String>,
}

/// What went over the wire in a build, whoever of its compiles asked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Wire {
    pub hits: u64,
    pub misses: u64,
    pub writes: u64,
    pub read_bytes: u64,
    pub written_bytes: u64,
    /// Writes that were refused, and why.
    pub refused: BTreeMap<String, u64>,
}

/// A build, explained.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    pub build: String,
    /// Name of the token with which it was begun.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    #[serde(flatten)]
    pub labels: Labels,
    pub command: String,
    pub exit: i32,
    pub ended_unix_seconds: u64,
    pub wall_ms: u64,
    /// Other builds at the same time, by the same token and machine: requests of theirs may be in `wire`.
    #[serde(skip_serializing_if = "is_zero")]
    pub shared: u64,
    pub wire: Wire,
    /// What the client's daemon counted.
    pub daemon: Option<Daemon>,
    /// Entries that were fetched before the build, used of them, and their bytes.
    pub prefetched: Option<(u64, u64, u64)>,
    pub sums: Sums,
    /// Empty without a recorder.
    pub rows: Vec<Row>,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// What all compiles of a build come to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sums {
    pub hits: u64,
    pub own_disk: u64,
    pub misses: u64,
    pub not_cached: u64,
    pub failed: u64,
    /// The sum of the compile times of what was hit, as recorded when it was made.
    pub saved_ms: u64,
    /// Hits of which nobody knows how long they take to compile.
    pub untimed: u64,
    /// Misses by reason.
    pub reasons: BTreeMap<String, u64>,
}

impl Row {
    /// With the version: `serde 1.0.0`.
    pub fn full_name(&self) -> String {
        match self.version.as_str() {
            "" => self.name.clone(),
            version => format!("{} {version}", self.name),
        }
    }
}

impl Report {
    /// Hits of all compiles that could be hits, in percent.
    pub fn hit_percent(&self) -> Option<f64> {
        let hits = self.sums.hits + self.sums.own_disk;
        let all = hits + self.sums.misses;
        (all > 0).then(|| hits as f64 * 100.0 / all as f64)
    }

    /// The compiles that were no hits, the slowest first.
    pub fn slowest(&self) -> Vec<&Row> {
        let mut rows: Vec<&Row> = self.rows.iter().filter(|row| row.why.is_some()).collect();
        // What can be done something about goes first.
        rows.sort_by_key(|row| (row.outcome != Outcome::Miss, std::cmp::Reverse(row.took_ms)));
        rows
    }

    /// Without its rows: what is listed.
    pub fn head(&self) -> Report {
        Report {
            rows: Vec::new(),
            ..self.clone()
        }
    }
}

/// Puts together what the client recorded and what the cache knows: one of `facts` for each compile.
pub fn assess(end: &End, facts: Vec<Facts>, wire: Wire, now: u64) -> Report {
    let mut rows: Vec<Row> = end
        .units
        .iter()
        .zip(&facts)
        .map(|(unit, facts)| row(unit, facts, now))
        .collect();
    settle_unseen(end, &facts, &mut rows);
    follow(&end.units, &mut rows);
    let sums = sum(&rows);
    Report {
        build: end.build.clone(),
        token: None,
        labels: end.labels.clone(),
        command: end.command.clone(),
        exit: end.exit,
        ended_unix_seconds: now,
        wall_ms: end.wall_ms,
        shared: 0,
        wire,
        daemon: end.daemon.clone(),
        prefetched: end.prefetched.as_ref().map(|it| {
            let used = it.used.len() as u64;
            (used + it.unused.len() as u64, used, it.bytes)
        }),
        sums,
        rows,
    }
}

/// For each miss that follows from a dependency's, finds where the chain began.
fn follow(units: &[Unit], rows: &mut [Row]) {
    let (mut by_name, mut by_output) = (BTreeMap::new(), BTreeMap::new());
    for (at, unit) in units.iter().take(rows.len()).enumerate() {
        let places: &mut Vec<usize> = by_name.entry(unit.name.as_str()).or_default();
        places.push(at);
        by_output.insert(unit.output.as_str(), at);
    }
    let names: Vec<String> = (rows.iter())
        .map(|row| {
            let namesakes = by_name[row.name.as_str()].iter();
            match namesakes.clone().all(|at| rows[*at].version == row.version) {
                true => row.name.clone(),
                false => row.full_name(),
            }
        })
        .collect();
    let reasons: Vec<Option<Reason>> = (rows.iter())
        .map(|row| row.why.clone())
        .map(|why| why.filter(|reason| !matches!(reason, Reason::NotCacheable { .. })))
        .collect();
    let find = |at: usize, name: &str| -> Vec<usize> {
        match units[at].needs.get(name) {
            Some(outputs) => {
                let outputs = outputs.iter().map(String::as_str);
                outputs
                    .filter_map(|it| by_output.get(it).copied())
                    .collect()
            }
            None => by_name.get(name).cloned().unwrap_or_default(),
        }
    };
    let compiles = Compiles {
        names: &names,
        reasons: &reasons,
        find: &find,
    };
    let found: Vec<Option<Reason>> = (0..rows.len()).map(|at| compiles.follow(at)).collect();
    for (row, found) in rows.iter_mut().zip(found) {
        row.why = found.or(row.why.take());
    }
}

fn row(unit: &Unit, facts: &Facts, now: u64) -> Row {
    let (outcome, (why, also)) = match (&unit.not_cached, unit.exit, facts.seen) {
        (Some(cause), ..) => {
            let cause = cause.clone();
            let reason = Reason::NotCacheable { cause };
            (Outcome::NotCached, (Some(reason), Vec::new()))
        }
        (None, Some(0), Seen::Hit) => (Outcome::Hit, (None, Vec::new())),
        // Settled when all are known.
        (None, Some(0), Seen::Nothing | Seen::Forgotten) => (Outcome::OwnDisk, (None, Vec::new())),
        (None, Some(0), Seen::Miss) => (Outcome::Miss, miss(unit, facts, now)),
        (None, ..) => {
            let reason = Reason::CompileFailed;
            (Outcome::Failed, (Some(reason), Vec::new()))
        }
    };
    let is_hit = outcome.is_hit();
    Row {
        name: unit.name.clone(),
        version: unit.version.clone(),
        kind: unit.kind.clone(),
        start_ms: unit.start_ms,
        took_ms: unit.took_ms,
        outcome,
        // Of the others, what went over the wire says nothing.
        probably: facts.probably && matches!(outcome, Outcome::Hit | Outcome::Miss),
        why,
        also,
        bytes: facts.bytes,
        saved_ms: facts.compile_ms.filter(|_| is_hit).unwrap_or(0),
        key: facts.key.clone(),
    }
}

/// Why there was no hit. If this very key was there before, no part of it can be new.
fn miss(unit: &Unit, facts: &Facts, now: u64) -> (Option<Reason>, Vec<Reason>) {
    if facts.unusable {
        return (Some(Reason::Broken { seconds_ago: None }), Vec::new());
    }
    let kept_by = facts.lost.and_then(|lost| lost.kept_by);
    let (mut first, mut also) = decide(&unit.print, &facts.earlier, kept_by, now);
    // Whether a key of C holds a path depends on how sccache runs; what else differs is in it for certain.
    if unit.kind == "c" && matches!(first, Reason::Path { .. }) && !also.is_empty() {
        also.push(first);
        first = also.remove(0);
    }
    let is_fate = matches!(
        first,
        Reason::Evicted { .. }
            | Reason::Quota { .. }
            | Reason::Purged { .. }
            | Reason::Age { .. }
            | Reason::Broken { .. }
    );
    match facts.lost.filter(|_| !is_fate) {
        None => (Some(first), also),
        Some(Lost { kept_by: None, .. }) => (Some(Reason::Quota { seconds_ago: None }), Vec::new()),
        Some(Lost { budget, kept_by }) => {
            let reason = Reason::Evicted {
                seconds_ago: None,
                budget_bytes: budget,
                kept_by_bytes: kept_by,
            };
            (Some(reason), Vec::new())
        }
    }
}

/// Tells apart what a client had on its own disk from what it could not ask for: over the wire both are nothing. Its
/// daemon knows how many hits there were.
fn settle_unseen(end: &End, facts: &[Facts], rows: &mut [Row]) {
    let is_forgotten = facts.iter().any(|it| it.seen == Seen::Forgotten);
    let mut unseen: Vec<usize> = (0..rows.len())
        .filter(|at| rows[*at].outcome == Outcome::OwnDisk)
        .collect();
    let remote = rows
        .iter()
        .filter(|row| row.outcome == Outcome::Hit)
        .count();
    let number = |it: u64| usize::try_from(it).unwrap_or(usize::MAX);
    let hits = match &end.daemon {
        Some(daemon) => number(daemon.hits).saturating_sub(remote),
        None if is_forgotten || end.away.is_some() => 0,
        None => unseen.len(),
    };
    let own = match &end.daemon {
        Some(daemon) if is_forgotten => number(daemon.own_hits()),
        _ => hits,
    };
    // What took long was compiled.
    unseen.sort_by_key(|at| rows[*at].took_ms);
    for (place, at) in unseen.into_iter().enumerate().skip(own.min(hits)) {
        let row = &mut rows[at];
        if place < hits {
            row.outcome = Outcome::Hit;
            continue;
        }
        let cause = match (&end.away, &end.daemon) {
            (Some(cause), _) => cause.clone(),
            _ if is_forgotten => FORGOTTEN.to_owned(),
            (None, Some(daemon)) if daemon.timeouts > 0 => {
                format!("{} look-ups took longer than a minute", daemon.timeouts)
            }
            (None, Some(daemon)) if daemon.errors > 0 => {
                format!("{} look-ups failed", daemon.errors)
            }
            (None, _) => "nothing was asked of it for this compile".to_owned(),
        };
        row.outcome = Outcome::Miss;
        row.why = Some(Reason::Away { cause });
        row.saved_ms = 0;
    }
}

fn sum(rows: &[Row]) -> Sums {
    let mut sums = Sums::default();
    for row in rows {
        let count = match row.outcome {
            Outcome::Hit => &mut sums.hits,
            Outcome::OwnDisk => &mut sums.own_disk,
            Outcome::Miss => &mut sums.misses,
            Outcome::NotCached => &mut sums.not_cached,
            Outcome::Failed => &mut sums.failed,
        };
        *count += 1;
        sums.saved_ms += row.saved_ms;
        sums.untimed += u64::from(row.outcome.is_hit() && row.saved_ms == 0);
        if let (Outcome::Miss, Some(why)) = (row.outcome, &row.why) {
            *sums.reasons.entry(why.label().to_owned()).or_default() += 1;
        }
    }
    sums
}

#[cfg(test)]
pub(crate) mod tests;
