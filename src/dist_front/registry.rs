//! What the front knows of builders and jobs, and what follows from it. Pure: the time is an argument.
//!
//! ```text
//! builder: heartbeat -> alive -> (90 s without a sign) lost; leaving until a process with a new nonce comes
//!          silent: its port does not answer; until it does, or gives another sign
//! job:     assigned -> ready -> started -> complete; lost by the scheduler's restart, it may still complete
//! toolchain on a builder: unknown -> preparing (upload, unpack) -> there
//! ```

mod jobs;

use self::jobs::Jobs;
use super::wire::{Heartbeat, JobState};
use crate::contract::gateway_status::{BuilderState, BuilderStatus};
use bytes::Bytes;
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::time::Instant;

/// Without a sign for this long a builder is lost: the scheduler's own bound.
const LOST: Duration = Duration::from_secs(90);
/// A heartbeat comes every 30 s; one that is older than this is not replayed to a new scheduler.
const REPLAYED: Duration = Duration::from_secs(45);
/// How long a client may take to begin with the upload of a toolchain, or to send the inputs.
const BEGINS: Duration = Duration::from_secs(20);
/// How long a builder may be busy with an upload.
const UPLOAD: Duration = Duration::from_secs(120);
/// How long it may unpack after that. The scheduler itself waits 30 s for a builder that is busy.
const UNPACK: Duration = Duration::from_secs(10);
/// The scheduler waits 30 s for a builder that stands still, and for 5 minutes prefers others after that.
const SHUNNED: Duration = Duration::from_secs(40);
/// How long clients are held while a builder prepares a toolchain, before they compile by themselves.
const HOLD: Duration = Duration::from_secs(3);
/// Most builders.
const BUILDERS: usize = 1024;
/// Most former processes of a builder that are remembered.
const RETIRED: usize = 16;
/// Most toolchains of a builder that are remembered.
const TOOLCHAINS: usize = 1024;

/// Why a heartbeat does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Stale {
    /// It is that of a process that another one has replaced.
    #[error(
        "it is that of an earlier process at this address: either it was captured and sent again, or two builders \
         use the same address (hint: give each its own SCCACHE_PUBLIC_ADDR)"
    )]
    Retired,
    /// There are too many builders.
    #[error("there are {BUILDERS} builders already")]
    Full,
}

/// May an allocation be passed on to the scheduler, which alone chooses the builder?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Yes, beside others.
    Open,
    /// Yes, when no other one is on its way: its answer decides about the next.
    Single,
    /// It would choose a builder that is busy with a toolchain: not before this moment, unless things change.
    Hold(Instant),
    /// The same, and it took too long already.
    Busy,
}

/// What became of an allocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Assignment {
    /// The client may go there.
    Taken,
    /// The builder is about to stop.
    Leaving,
}

/// What the front knows about a job whose state changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// Nothing: it was assigned before this process started, or to another builder, or never.
    No,
    /// The scheduler that assigned it is gone: its successor does not know it.
    Lost,
    /// The scheduler should know it.
    Yes,
}

#[derive(Debug)]
struct Builder {
    cores: u64,
    nonce: u64,
    /// The body of the last heartbeat.
    heartbeat: Bytes,
    last_sign: Instant,
    /// Since when its port does not answer: its process stands still.
    silent: Option<Instant>,
    leaving: bool,
    /// Its token or certificate is no longer valid.
    barred: bool,
    /// The name of its token.
    token: Option<String>,
    /// The version of its machine's sccache-dock.
    version: Option<String>,
    /// Nonces of former processes.
    retired: VecDeque<u64>,
    toolchains: HashSet<String>,
    preparing: Option<Preparing>,
    done: u64,
    failed: u64,
}

/// A builder holds one lock while it receives or unpacks a toolchain; whoever assigns it a job meanwhile waits.
#[derive(Debug, Clone)]
struct Preparing {
    job: u64,
    toolchain: String,
    since: Instant,
    until: Instant,
    started: bool,
}

/// Builders and jobs.
#[derive(Debug, Default)]
pub struct Registry {
    builders: BTreeMap<SocketAddr, Builder>,
    jobs: Jobs,
}

impl Registry {
    /// Takes note of a genuine heartbeat; true when its process is new here.
    pub fn heartbeat(
        &mut self,
        now: Instant,
        address: SocketAddr,
        heartbeat: Heartbeat,
        body: Bytes,
    ) -> Result<bool, Stale> {
        self.expire(now);
        let Heartbeat { cores, nonce } = heartbeat;
        if let Some(builder) = self.builders.get_mut(&address) {
            if builder.nonce == nonce {
                builder.sign(now);
                builder.heartbeat = body;
                return Ok(false);
            }
            if builder.retired.contains(&nonce) && builder.is_alive(now) {
                return Err(Stale::Retired);
            }
        } else if self.builders.len() >= BUILDERS && !self.forget_one(now) {
            return Err(Stale::Full);
        }
        let former = self.builders.remove(&address);
        let mut retired = VecDeque::new();
        let (mut done, mut failed) = (0, 0);
        if let Some(former) = former {
            (retired, done, failed) = (former.retired, former.done, former.failed);
            retired.retain(|known| *known != nonce);
            retired.push_back(former.nonce);
            if retired.len() > RETIRED {
                retired.pop_front();
            }
            // Its jobs died with it.
            failed += self.jobs.remove_of(&address);
        }
        let builder = Builder {
            cores,
            nonce,
            heartbeat: body,
            last_sign: now,
            silent: None,
            leaving: false,
            barred: false,
            token: None,
            version: None,
            retired,
            toolchains: HashSet::new(),
            preparing: None,
            done,
            failed,
        };
        self.builders.insert(address, builder);
        Ok(true)
    }

    /// With which token of the file the builder has joined.
    pub fn joined_with(&mut self, address: &SocketAddr, token: Option<String>) {
        if let Some(builder) = self.builders.get_mut(address) {
            builder.token = token;
        }
    }

    /// Which version of ours the builder's machine has.
    pub fn runs_version(&mut self, address: &SocketAddr, version: Option<String>) {
        if let Some(builder) = self.builders.get_mut(address) {
            builder.version = version;
        }
    }

    /// The builder is about to stop. False when there is none at that address.
    pub fn leave(&mut self, address: &SocketAddr) -> bool {
        let builder = self.builders.get_mut(address);
        builder.map(|builder| builder.leaving = true).is_some()
    }

    /// Bars a builder from jobs, or admits it again.
    pub fn bar(&mut self, address: &SocketAddr, is_barred: bool) {
        if let Some(builder) = self.builders.get_mut(address) {
            builder.barred = is_barred;
        }
    }

    /// The addresses of all known builders.
    pub fn addresses(&self) -> HashSet<SocketAddr> {
        self.builders.keys().copied().collect()
    }

    /// A new scheduler has taken the place of the one that knew the jobs.
    pub fn scheduler_started(&mut self) {
        self.jobs.lose();
    }

    /// Takes up a heartbeat that a gateway before this one has kept. False when the builder spoke for itself already.
    pub fn recall(&mut self, now: Instant, kept: SavedHeartbeat, heartbeat: Heartbeat) -> bool {
        let Some(then) = now.checked_sub(kept.age) else {
            return false;
        };
        !self.builders.contains_key(&kept.builder)
            && self
                .heartbeat(then, kept.builder, heartbeat, kept.body)
                .is_ok()
    }

    /// Builders for which the scheduler may be waiting: those without a sign for so long that are not lost, nor known
    /// to the scheduler as standing still.
    pub fn quiet(&self, now: Instant, bound: Duration) -> Vec<SocketAddr> {
        let quiet = |builder: &&Builder| {
            builder.is_alive(now)
                && now.duration_since(builder.last_sign) >= bound
                && !builder.is_shunned(now)
        };
        let builders = self.builders.iter();
        builders
            .filter(|(_, builder)| quiet(builder))
            .map(|(address, _)| *address)
            .collect()
    }

    /// The port of the builder does not answer. True when that is news.
    pub fn silent(&mut self, now: Instant, address: &SocketAddr) -> bool {
        let builder = self.builders.get_mut(address);
        let builder = builder.filter(|builder| builder.silent.is_none());
        builder.map(|builder| builder.silent = Some(now)).is_some()
    }

    /// The port of the builder answers. Not a sign that the scheduler would count.
    pub fn awake(&mut self, address: &SocketAddr) {
        if let Some(builder) = self.builders.get_mut(address) {
            builder.silent = None;
        }
    }

    /// The builder is there and does not answer.
    pub fn is_silent(&self, now: Instant, address: &SocketAddr) -> bool {
        let builder = self.builders.get(address);
        builder.is_some_and(|builder| builder.silent.is_some() && builder.is_alive(now))
    }

    /// Heartbeats that tell a new scheduler of all builders that are there, as far as anybody knows.
    pub fn heartbeats(&self, now: Instant) -> Vec<SavedHeartbeat> {
        let there = |builder: &&Builder| {
            builder.may_have_jobs() && now.duration_since(builder.last_sign) < REPLAYED
        };
        let builders = self.builders.iter();
        builders
            .filter(|(_, builder)| there(builder))
            .map(|(address, builder)| SavedHeartbeat {
                builder: *address,
                age: now.duration_since(builder.last_sign),
                body: builder.heartbeat.clone(),
            })
            .collect()
    }

    /// May a job with this toolchain be allocated now?
    pub fn admit(&mut self, now: Instant, toolchain: &str) -> Admission {
        self.expire(now);
        let (mut all_have_it, mut free, mut busy) = (true, f64::INFINITY, f64::INFINITY);
        let mut all_are_awake = true;
        let mut hold = None;
        for (address, builder) in &self.builders {
            if !builder.is_alive(now) {
                continue;
            }
            all_have_it &= builder.toolchains.contains(toolchain);
            all_are_awake &= builder.silent.is_none() || builder.is_shunned(now);
            let weight = builder.weight(self.jobs.counted(address));
            match &builder.preparing {
                None => free = free.min(weight),
                Some(preparing) => {
                    busy = busy.min(weight);
                    let until = preparing.since + HOLD;
                    hold = Some(hold.map_or(until, |hold: Instant| hold.min(until)));
                }
            }
        }
        match hold {
            // Equal ones are tried in an order that only the scheduler knows.
            Some(until) if free >= busy && until > now => Admission::Hold(until),
            Some(_) if free >= busy => Admission::Busy,
            // One at a time finds out whether the scheduler still waits for one that is silent.
            None if all_have_it && all_are_awake && !self.builders.is_empty() => Admission::Open,
            Some(_) | None => Admission::Single,
        }
    }

    /// The scheduler gave the job to the builder.
    pub fn assigned(
        &mut self,
        now: Instant,
        job: u64,
        address: SocketAddr,
        toolchain: &str,
        needs_it: bool,
    ) -> Assignment {
        let state = if needs_it {
            JobState::Pending
        } else {
            JobState::Ready
        };
        self.jobs.insert(now, job, address, toolchain, state);
        let Some(builder) = self.builders.get_mut(&address) else {
            return Assignment::Taken;
        };
        if !builder.may_have_jobs() {
            self.jobs.remove(job);
            return Assignment::Leaving;
        }
        if needs_it {
            builder.toolchains.remove(toolchain);
        }
        if builder.preparing.is_none() && !builder.toolchains.contains(toolchain) {
            builder.preparing = Some(Preparing {
                job,
                toolchain: toolchain.to_owned(),
                since: now,
                until: now + BEGINS,
                started: false,
            });
        }
        Assignment::Taken
    }

    /// What is known of a job that the builder at `address` speaks of.
    pub fn known(&self, job: u64, address: &SocketAddr) -> Known {
        match self.jobs.get(job) {
            Some(found) if found.builder != *address => Known::No,
            Some(found) if found.lost => Known::Lost,
            Some(_) => Known::Yes,
            None => Known::No,
        }
    }

    /// The builder brought the job into a new state.
    pub fn progressed(&mut self, now: Instant, job: u64, address: SocketAddr, state: JobState) {
        let Some(builder) = self.builders.get_mut(&address) else {
            return;
        };
        builder.sign(now);
        let complete = state == JobState::Complete;
        if let Some(preparing) = builder
            .preparing
            .as_mut()
            .filter(|preparing| preparing.job == job)
        {
            preparing.started |= state == JobState::Started;
            preparing.until = match state {
                JobState::Pending => preparing.until,
                JobState::Ready => now + UPLOAD,
                JobState::Started => now + UNPACK,
                JobState::Complete => now,
            };
            if complete {
                builder.preparing = None;
            }
        }
        if complete {
            builder.done += 1;
            if let Some(over) = self.jobs.remove(job) {
                builder.remember(over.toolchain);
            }
        } else {
            self.jobs.progressed(now, job, state);
        }
    }

    /// The job has ended, also where its builder could not report it.
    pub fn over(&mut self, job: u64) {
        if let Some(over) = self.jobs.remove(job)
            && let Some(builder) = self.builders.get_mut(&over.builder)
        {
            builder.failed += 1;
        }
    }

    /// A job's process runs on the builder: its toolchain is unpacked.
    pub fn runs(&mut self, address: &SocketAddr) {
        let Some(builder) = self.builders.get_mut(address) else {
            return;
        };
        if let Some(preparing) = builder.preparing.take_if(|preparing| preparing.started) {
            builder.remember(preparing.toolchain);
        }
    }

    /// Every builder, for people.
    pub fn builders(&self, now: Instant, local: Option<SocketAddr>) -> Vec<BuilderStatus> {
        let builders = self.builders.iter();
        builders
            .map(|(address, builder)| BuilderStatus {
                address: *address,
                local: local == Some(*address),
                token: builder.token.clone(),
                version: builder.version.clone(),
                state: match builder {
                    builder if !builder.is_alive(now) => BuilderState::Lost,
                    builder if builder.silent.is_some() => BuilderState::Silent,
                    builder if !builder.may_have_jobs() => BuilderState::Leaving,
                    builder if builder.preparing.is_some() => BuilderState::Preparing,
                    _ => BuilderState::Ready,
                },
                slots: builder.cores,
                jobs: self.jobs.of(address),
                done: builder.done,
                failed: builder.failed,
                last_sign_seconds: now.duration_since(builder.last_sign).as_secs(),
            })
            .collect()
    }

    /// Forgets the builder that was lost first: where they come and go, each may have an address of its own.
    fn forget_one(&mut self, now: Instant) -> bool {
        let lost = self.builders.iter().filter(|(_, one)| !one.is_alive(now));
        let first = lost.min_by_key(|(_, one)| one.last_sign);
        let Some(first) = first.map(|(address, _)| *address) else {
            return false;
        };
        self.builders.remove(&first);
        self.jobs.remove_of(&first);
        true
    }

    /// Forgets what is over without anybody having said so.
    fn expire(&mut self, now: Instant) {
        for job in self.jobs.expire(now) {
            if let Some(builder) = self.builders.get_mut(&job.builder) {
                builder.failed += 1;
            }
        }
        for builder in self.builders.values_mut() {
            let over = |preparing: &mut Preparing| preparing.until <= now;
            if let Some(preparing) = builder.preparing.take_if(over)
                && preparing.started
            {
                builder.remember(preparing.toolchain);
            }
        }
    }
}

/// Whether a heartbeat is young enough for a new scheduler.
pub(super) fn is_fresh(kept: &SavedHeartbeat) -> bool {
    kept.age < REPLAYED
}

impl Builder {
    fn sign(&mut self, now: Instant) {
        self.last_sign = now;
        self.silent = None;
    }

    fn may_have_jobs(&self) -> bool {
        !self.leaving && !self.barred
    }

    fn is_shunned(&self, now: Instant) -> bool {
        self.silent
            .is_some_and(|since| now.duration_since(since) > SHUNNED)
    }

    fn is_alive(&self, now: Instant) -> bool {
        now.duration_since(self.last_sign) < LOST
    }

    /// By this the scheduler chooses: the lowest wins, and 2 or more gets no job.
    fn weight(&self, jobs: u64) -> f64 {
        if jobs > self.cores + self.cores / 8 {
            f64::INFINITY
        } else {
            jobs as f64 / self.cores as f64
        }
    }

    fn remember(&mut self, toolchain: String) {
        if self.toolchains.len() >= TOOLCHAINS {
            self.toolchains.clear();
        }
        self.toolchains.insert(toolchain);
    }
}

/// A heartbeat as it is sent again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedHeartbeat {
    pub builder: SocketAddr,
    /// Since the builder's last sign of life.
    pub age: Duration,
    /// As the builder sent it.
    pub body: Bytes,
}

#[cfg(test)]
mod tests;
