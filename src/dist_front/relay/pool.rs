//! Builders as the relay sees them, and which of them gets a job. Pure: the time is an argument.
//!
//! ```text
//! toolchain on a builder: lacking -> preparing (sent, unpacked by a job of our own) -> there
//! attempt:                begun -> over | abandoned, which fills its slot until the builder says that it is complete, or
//!                         that it does not have it (any more): nothing else may come of a connection that broke
//! ```
//!
//! A job goes only where its toolchain is unpacked: `sccache-dist` spoils a toolchain for ever when a job comes before the
//! archive, and stands still while it unpacks.

use super::queue::{Need, Toolchain};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::time::Instant;

/// Without a sign for this long a builder is lost, as for sccache's own scheduler.
const LOST: Duration = Duration::from_secs(90);
/// How long a builder that has just died is expected to come back.
const EXPECTED: Duration = Duration::from_secs(30);
/// First and longest time without jobs after a fault of the builder's.
const FIRST_BACKOFF: Duration = Duration::from_millis(500);
const LONGEST_BACKOFF: Duration = Duration::from_secs(60);
/// After this many failed attempts to send it a toolchain, no job waits for that builder.
const FAILED_ATTEMPTS: u32 = 3;
/// An attempt that nobody waits for any more is forgotten: sccache's clients wait for 20 minutes at most.
const LONGEST_ATTEMPT: Duration = Duration::from_secs(20 * 60);
/// How much the last job says of a builder's pace.
const WEIGHT: f64 = 0.1;
/// How much slower or faster than the others one job can make a builder seem.
const PACES: std::ops::RangeInclusive<f64> = 0.25..=4.0;

/// Bytes of memory that one more job must find free, and each that began so short a time ago that it may not have taken
/// its memory yet. What a job takes in the end nobody knows before; one that finds too little is run again elsewhere.
const MEMORY_OF_A_JOB: u64 = 256 << 20;
const YOUNG: Duration = Duration::from_secs(3);

/// A kind of processor, `e_machine` of ELF.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Machine(pub(super) u16);

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// With a result, after so long.
    Well(Duration),
    /// By the fault of the builder.
    Fault,
    /// By the fault of the job.
    Job,
}

/// Which builder gets a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Choice {
    /// This one, and its process.
    Builder(SocketAddr, u64),
    /// One that has no room, or is getting ready.
    Wait,
    /// There is none that could ever take it.
    Never,
}

/// What a builder says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BuilderInfo {
    pub(super) nonce: u64,
    pub(super) cores: u64,
    pub(super) machine: Machine,
}

#[derive(Debug, Clone, Copy)]
struct Attempt {
    began: Instant,
    /// Nobody waits for it any more.
    abandoned: Option<Instant>,
}

#[derive(Debug)]
struct Builder {
    is: BuilderInfo,
    last_sign: Instant,
    leaving: bool,
    /// Its token or certificate is no longer valid.
    barred: bool,
    /// Its port does not answer: its process stands still.
    silent: bool,
    /// It died.
    gone: Option<Instant>,
    toolchains: HashSet<Toolchain>,
    preparing: Option<Toolchain>,
    /// Toolchains that it could not take, how often, and until when nobody tries again.
    unfit: HashMap<Toolchain, (u32, Instant)>,
    attempts: HashMap<u64, Attempt>,
    /// Bytes that were free when it last told.
    memory: Option<u64>,
    done: u64,
    /// How long its jobs take, as a multiple of everybody's.
    pace: f64,
    faults: u32,
    backoff_until: Option<Instant>,
}

impl Builder {
    fn new(now: Instant, is: BuilderInfo) -> Builder {
        Builder {
            is,
            last_sign: now,
            leaving: false,
            barred: false,
            silent: false,
            gone: None,
            toolchains: HashSet::new(),
            preparing: None,
            unfit: HashMap::new(),
            attempts: HashMap::new(),
            memory: None,
            done: 0,
            pace: 1.0,
            faults: 0,
            backoff_until: None,
        }
    }

    fn is_there(&self, now: Instant) -> bool {
        !self.leaving
            && !self.barred
            && !self.silent
            && self.gone.is_none()
            && now.duration_since(self.last_sign) < LOST
    }

    fn is_expected(&self, now: Instant) -> bool {
        let back_soon = |since: Instant| now.duration_since(since) < EXPECTED;
        let stays_away = self.leaving || self.barred;
        self.is_there(now) || (!stays_away && self.gone.is_some_and(back_soon))
    }

    fn backs_off(&self, now: Instant) -> bool {
        self.backoff_until.is_some_and(|until| now < until)
    }

    /// As many as sccache's scheduler would give it.
    fn slots(&self) -> u64 {
        self.is.cores + 1 + self.is.cores / 8
    }

    /// A new one begins with few.
    fn ramp(&self) -> u64 {
        self.slots()
            .min(self.done.saturating_mul(2).saturating_add(2))
    }

    fn free(&self) -> u64 {
        self.ramp().saturating_sub(self.attempts.len() as u64)
    }

    /// Whether one more job finds memory. One alone always may try.
    fn has_memory(&self, now: Instant) -> bool {
        let young = |one: &&Attempt| now.duration_since(one.began) < YOUNG;
        let wanted = || MEMORY_OF_A_JOB * (1 + self.attempts.values().filter(young).count() as u64);
        self.attempts.is_empty() || self.memory.is_none_or(|free| free >= wanted())
    }

    /// How long a job would take here, as a multiple of what it would take alone on a usual core.
    fn load(&self) -> f64 {
        (self.attempts.len() as f64 + 1.0) / self.is.cores as f64 * self.pace
    }

    /// A toolchain that is too large for it, or that it cannot unpack. Others go on trying, jobs do not wait for it.
    fn cannot_take(&self, toolchain: &Toolchain) -> bool {
        let unfit = self.unfit.get(toolchain);
        unfit.is_some_and(|(tries, _)| *tries >= FAILED_ATTEMPTS)
    }

    fn suits(&self, machine: Option<Machine>) -> bool {
        machine.is_none_or(|machine| machine == self.is.machine)
    }
}

/// All builders.
#[derive(Debug, Default)]
pub(super) struct Pool {
    builders: BTreeMap<SocketAddr, Builder>,
    /// There are builders of more than one kind of processor.
    mixed: bool,
    /// How long jobs take, on average.
    usual: Option<f64>,
}

impl Pool {
    /// A builder gave a sign of life, or a new process has taken its place: true then.
    pub(super) fn heartbeat(&mut self, now: Instant, at: SocketAddr, is: BuilderInfo) -> bool {
        if let Some(builder) = self.builders.get_mut(&at)
            && builder.is.nonce == is.nonce
        {
            // A gateway that has just started learns from its file less than the builder tells.
            let former = std::mem::replace(&mut builder.is, is);
            builder.last_sign = now;
            (builder.silent, builder.gone) = (false, None);
            if former.machine != is.machine {
                self.look_at_kinds();
            }
            return false;
        }
        self.builders.insert(at, Builder::new(now, is));
        self.look_at_kinds();
        true
    }

    fn look_at_kinds(&mut self) {
        let mut kinds = self.builders.values().map(|one| one.is.machine);
        let first = kinds.next();
        self.mixed = kinds.any(|kind| Some(kind) != first);
    }

    /// It gave a sign of life by other ways.
    pub(super) fn sign(&mut self, now: Instant, at: &SocketAddr) {
        if let Some(builder) = self.builders.get_mut(at) {
            builder.last_sign = now;
            builder.silent = false;
        }
    }

    /// So many bytes of memory are free there; a stock builder tells nothing.
    pub(super) fn has_free_memory(&mut self, at: &SocketAddr, free: Option<u64>) {
        if let Some(builder) = self.builders.get_mut(at) {
            builder.memory = free;
        }
    }

    /// It is about to stop.
    pub(super) fn leave(&mut self, at: &SocketAddr) {
        if let Some(builder) = self.builders.get_mut(at) {
            builder.leaving = true;
        }
    }

    /// Bars a builder from jobs, or admits it again.
    pub(super) fn bar(&mut self, at: &SocketAddr, is_barred: bool) {
        if let Some(builder) = self.builders.get_mut(at) {
            builder.barred = is_barred;
        }
    }

    /// Its port does not answer.
    pub(super) fn silent(&mut self, at: &SocketAddr) {
        if let Some(builder) = self.builders.get_mut(at) {
            builder.silent = true;
        }
    }

    /// Nobody listens at its port any more. True when it died with one job alone, which may have been the cause.
    pub(super) fn gone(&mut self, now: Instant, at: &SocketAddr, nonce: u64) -> bool {
        let builder = self.process(at, nonce);
        builder.is_some_and(|builder| {
            builder.gone.get_or_insert(now);
            let had = std::mem::take(&mut builder.attempts);
            had.len() == 1
        })
    }

    /// The toolchain is unpacked there.
    pub(super) fn prepared(&mut self, at: &SocketAddr, nonce: u64, toolchain: &Toolchain) {
        if let Some(builder) = self.process(at, nonce) {
            builder.preparing = None;
            builder.unfit.remove(toolchain);
            builder.toolchains.insert(toolchain.clone());
        }
    }

    /// The toolchain could not be brought there.
    pub(super) fn unprepared(
        &mut self,
        now: Instant,
        at: &SocketAddr,
        nonce: u64,
        toolchain: &Toolchain,
    ) {
        if let Some(builder) = self.process(at, nonce) {
            builder.preparing = None;
            builder.toolchains.remove(toolchain);
            let (tries, until) = builder.unfit.entry(toolchain.clone()).or_insert((0, now));
            *until = now + backoff(*tries);
            *tries += 1;
        }
    }

    /// Lets the toolchain be tried again on builders that could not take it.
    pub(super) fn fits_again(&mut self, toolchain: &Toolchain) {
        for builder in self.builders.values_mut() {
            builder.unfit.remove(toolchain);
        }
    }

    /// The builder has thrown the toolchain away.
    pub(super) fn lost_toolchain(&mut self, at: &SocketAddr, nonce: u64, toolchain: &Toolchain) {
        if let Some(builder) = self.process(at, nonce) {
            builder.toolchains.remove(toolchain);
        }
    }

    /// A builder that has nothing else to prepare and lacks this toolchain; it is taken to prepare it from now on.
    pub(super) fn prepare(
        &mut self,
        now: Instant,
        toolchain: &Toolchain,
        machine: Option<Machine>,
    ) -> Option<(SocketAddr, u64)> {
        // Which kind it is for does not matter where there is one, and is found out where there are more.
        if machine.is_none() && self.is_mixed() {
            return None;
        }
        let lacks = |builder: &Builder| {
            let waits = |(_, until): &(u32, Instant)| now < *until;
            builder.is_there(now)
                && builder.suits(machine)
                && builder.preparing.is_none()
                && !builder.toolchains.contains(toolchain)
                && !builder.unfit.get(toolchain).is_some_and(waits)
        };
        let (at, builder) = self.builders.iter_mut().find(|(_, one)| lacks(one))?;
        builder.preparing = Some(toolchain.clone());
        Some((*at, builder.is.nonce))
    }

    /// Which builder gets a job that needs a toolchain for this kind of processor.
    pub(super) fn choose(&self, now: Instant, need: &Need, machine: Option<Machine>) -> Choice {
        if machine.is_none() && self.is_mixed() {
            return Choice::Wait;
        }
        let (mut best, mut later) = (None, false);
        for (at, builder) in &self.builders {
            let avoided = need.avoid.contains(&(*at, builder.is.nonce)) && builder.gone.is_none();
            if avoided
                || !builder.suits(machine)
                || !builder.is_expected(now)
                || builder.cannot_take(&need.toolchain)
            {
                continue;
            }
            later = true;
            let load = builder.load();
            // Of hundreds of builders few are better than the best so far: only those are looked at more closely.
            if best.is_none_or(|(least, _, _)| load < least)
                && builder.is_there(now)
                && builder.free() > 0
                && !builder.backs_off(now)
                && builder.toolchains.contains(&need.toolchain)
                && builder.has_memory(now)
            {
                best = Some((load, *at, builder.is.nonce));
            }
        }
        match best {
            Some((_, at, nonce)) => Choice::Builder(at, nonce),
            None if later => Choice::Wait,
            None => Choice::Never,
        }
    }

    /// Whether there is a builder at this address, or was one not long ago.
    pub(super) fn knows(&self, at: &SocketAddr) -> bool {
        self.builders.contains_key(at)
    }

    /// Whether there are builders of more than one kind of processor.
    pub(super) fn is_mixed(&self) -> bool {
        self.mixed
    }

    /// Whether any builder could take any job now.
    pub(super) fn has_room(&self, now: Instant) -> bool {
        let mut builders = self.builders.values();
        builders.any(|one| one.is_there(now) && one.free() > 0 && !one.backs_off(now))
    }

    /// Whether there are builders, or are expected back.
    pub(super) fn has_builders(&self, now: Instant) -> bool {
        self.builders.values().any(|one| one.is_expected(now))
    }

    /// An attempt begins there.
    pub(super) fn begin(&mut self, now: Instant, attempt: u64, at: &SocketAddr) {
        if let Some(builder) = self.builders.get_mut(at) {
            let (began, abandoned) = (now, None);
            builder
                .attempts
                .insert(attempt, Attempt { began, abandoned });
        }
    }

    /// An attempt is over: its slot is free.
    pub(super) fn end(&mut self, now: Instant, attempt: u64, at: &SocketAddr, how: Ended) {
        let usual = self.usual;
        let Some(builder) = self.builders.get_mut(at) else {
            return;
        };
        builder.attempts.remove(&attempt);
        match how {
            Ended::Well(took) => {
                let took = took.as_secs_f64().max(0.001);
                let usual = usual.unwrap_or(took);
                self.usual = Some(mix(usual, took));
                let pace = (took / usual).clamp(*PACES.start(), *PACES.end());
                builder.pace = mix(builder.pace, pace);
                builder.done += 1;
                (builder.faults, builder.backoff_until) = (0, None);
            }
            Ended::Fault => builder.has_failed(now),
            Ended::Job => {}
        }
    }

    /// Nobody waits for the attempt any more, but its builder may go on with it.
    pub(super) fn abandon(&mut self, now: Instant, attempt: u64, at: &SocketAddr) {
        let builder = self.builders.get_mut(at);
        if let Some(attempt) = builder.and_then(|builder| builder.attempts.get_mut(&attempt)) {
            attempt.abandoned = Some(now);
        }
    }

    /// An attempt came to nothing by the builder's fault.
    pub(super) fn blame(&mut self, now: Instant, at: &SocketAddr) {
        if let Some(builder) = self.builders.get_mut(at) {
            builder.has_failed(now);
        }
    }

    /// The builder was asked at this time which attempts it has. Of those that were abandoned before, the others are over:
    /// their slots are free, and they are given back.
    pub(super) fn has(&mut self, asked: Instant, at: &SocketAddr, told: &[u64]) -> Vec<u64> {
        let Some(builder) = self.builders.get_mut(at) else {
            return Vec::new();
        };
        let is_over = |number: &u64, attempt: &mut Attempt| {
            attempt.abandoned.is_some_and(|since| since <= asked) && !told.contains(number)
        };
        let over = builder.attempts.extract_if(is_over);
        over.map(|(number, _)| number).collect()
    }

    /// The builder says that an attempt has ended.
    pub(super) fn complete(&mut self, attempt: u64, at: &SocketAddr) {
        if let Some(builder) = self.builders.get_mut(at) {
            builder.attempts.remove(&attempt);
        }
    }

    /// Forgets attempts that nobody can wait for, and builders that are long gone.
    pub(super) fn expire(&mut self, now: Instant) {
        for builder in self.builders.values_mut() {
            let attempts = &mut builder.attempts;
            attempts.retain(|_, one| now.duration_since(one.began) < LONGEST_ATTEMPT);
        }
        let before = self.builders.len();
        self.builders
            .retain(|_, one| now.duration_since(one.last_sign) < LONGEST_ATTEMPT);
        if self.builders.len() < before {
            self.look_at_kinds();
        }
    }

    /// Builders that are to be asked how they are: those with attempts and without a sign of life for so long, and those
    /// with abandoned ones, of which nobody else tells whether they go on.
    pub(super) fn doubtful(&self, now: Instant, bound: Duration) -> Vec<SocketAddr> {
        let is_doubtful = |one: &Builder| {
            let is_quiet = now.duration_since(one.last_sign) >= bound;
            let mut attempts = one.attempts.values();
            one.silent || attempts.any(|one| is_quiet || one.abandoned.is_some())
        };
        let builders = self.builders.iter();
        let doubtful = builders.filter(|(_, one)| one.gone.is_none() && is_doubtful(one));
        doubtful.map(|(at, _)| *at).collect()
    }

    /// Builders that take jobs, their processors, and jobs on them.
    pub(super) fn totals(&self, now: Instant) -> Totals {
        let there = self.builders.values().filter(|one| one.is_there(now));
        there.fold(Totals::default(), |sum, one| Totals {
            builders: sum.builders + 1,
            cores: sum.cores + one.is.cores,
            slots: sum.slots + one.slots(),
            jobs: sum.jobs + one.attempts.len() as u64,
        })
    }

    fn process(&mut self, at: &SocketAddr, nonce: u64) -> Option<&mut Builder> {
        let builder = self.builders.get_mut(at);
        builder.filter(|builder| builder.is.nonce == nonce)
    }
}

/// Sums over all builders that take jobs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) builders: u64,
    pub(super) cores: u64,
    pub(super) slots: u64,
    pub(super) jobs: u64,
}

impl Builder {
    fn has_failed(&mut self, now: Instant) {
        self.backoff_until = Some(now + backoff(self.faults));
        self.faults += 1;
    }
}

/// How long after the fault of this number.
fn backoff(faults: u32) -> Duration {
    FIRST_BACKOFF
        .saturating_mul(1 << faults.min(10))
        .min(LONGEST_BACKOFF)
}

fn mix(before: f64, now: f64) -> f64 {
    before * (1.0 - WEIGHT) + now * WEIGHT
}

#[cfg(test)]
mod tests;
