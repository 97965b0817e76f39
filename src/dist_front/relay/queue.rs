//! Jobs that wait for a slot: bounded, fair, oldest first. Pure: the time is an argument.
//!
//! Whoever has the fewest jobs running comes next: first by token, then by the address that uses it, because a team may
//! share one token. Of the same tenant, and of tenants that have as few, the job that arrived first.
//!
//! Jobs that need different builders wait in different lines: one that nobody can take stands in nobody's way. And a token,
//! or an address, that got nothing in a line for a while comes first there, whatever it has running elsewhere: it would
//! wait for ever behind those that always have a little less.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How long a token, or an address, gets nothing in a line before it comes first.
const STARVES: Duration = Duration::from_secs(30);

/// A toolchain's name, 64 hexadecimal digits.
pub(super) type Toolchain = Arc<str>;

/// Who sent a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Tenant {
    /// A number for the token.
    pub(super) token: u64,
    pub(super) address: IpAddr,
}

/// What decides which builders can take a job.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Need {
    pub(super) toolchain: Toolchain,
    /// Processes of builders on which it came to nothing.
    pub(super) avoid: Vec<(SocketAddr, u64)>,
}

/// What is known of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct QueuedJob {
    pub(super) tenant: Tenant,
    pub(super) arrived: Instant,
    pub(super) need: Need,
}

/// Most of everything.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Jobs that wait or run: each holds a connection of its client.
    pub(super) jobs: usize,
    /// Bytes of all bodies, of those that run too.
    pub(super) bytes: u64,
}

/// Why a job may not wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Full {
    #[error("{0} jobs wait or run already")]
    Jobs(usize),
    #[error("the jobs that wait have {} MiB", .0 >> 20)]
    Bytes(u64),
    #[error("the queue is almost full, and this client has half of it")]
    Share,
}

/// The place of a job in the line of its tenant.
type Place = (Instant, u64);

/// What decides which tenant of a token comes first: how many of its jobs run, then its job that has waited longest.
type Turn = (usize, Place, Tenant);

/// What decides which token, or which tenant of a token, comes first: the least one does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// It got nothing since then.
    Starves(Instant),
    /// It has so many jobs running.
    Runs(usize),
}

/// How many jobs of whom run.
#[derive(Debug, Clone, Default)]
struct Running {
    by_tenant: HashMap<Tenant, usize>,
    by_token: HashMap<u64, usize>,
}

/// The tenants of one token that wait in a line.
#[derive(Debug, Clone, Default)]
struct Turns {
    by_running: BTreeSet<Turn>,
    by_wait: BTreeSet<(Instant, Tenant)>,
}

/// Jobs of one need. Tenants and tokens are kept in order, because with thousands of tenants nobody can sort them whenever
/// a slot is free.
#[derive(Debug, Clone, Default)]
struct Line {
    places: HashMap<Tenant, BTreeSet<Place>>,
    turns: HashMap<u64, Turns>,
    by_running: BTreeSet<(usize, Turn)>,
    by_wait: BTreeSet<(Instant, u64)>,
    /// When those who wait were last given a builder.
    served: HashMap<Tenant, Instant>,
    served_token: HashMap<u64, Instant>,
}

/// The queue, and how many jobs of whom run.
#[derive(Debug, Clone)]
pub(super) struct Queue {
    limits: Limits,
    waiting: HashMap<u64, QueuedJob>,
    lines: HashMap<Need, Line>,
    running: HashMap<u64, QueuedJob>,
    counts: Running,
    bytes: u64,
    /// Jobs and bytes of each client, of which nobody may leave too little to the others.
    held: HashMap<Tenant, (usize, u64)>,
}

impl Queue {
    pub(super) fn new(limits: Limits) -> Queue {
        Queue {
            limits,
            waiting: HashMap::new(),
            lines: HashMap::new(),
            running: HashMap::new(),
            counts: Running::default(),
            bytes: 0,
            held: HashMap::new(),
        }
    }

    /// Whether one more job of this client may wait, beside those that are here and so many that are expected, of which so
    /// many are its own.
    ///
    /// # Errors
    /// It may not.
    pub(super) fn has_room(&self, tenant: Tenant, expected: usize, own: usize) -> Result<(), Full> {
        let most = self.limits.jobs;
        let (held, _) = self.held.get(&tenant).copied().unwrap_or_default();
        match self.waiting.len() + self.running.len() + expected {
            jobs if jobs >= most => Err(Full::Jobs(jobs)),
            jobs if jobs >= most - most / 8 && held + own >= most / 2 => Err(Full::Share),
            _ => Ok(()),
        }
    }

    /// Reserves room for one more job of this client, whose body has so many bytes, until they are released.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn reserve(&mut self, tenant: Tenant, bytes: u64) -> Result<(), Full> {
        self.has_room(tenant, 0, 0)?;
        let most = self.limits.bytes;
        let (jobs, own) = self.held.get(&tenant).copied().unwrap_or_default();
        match self.bytes.saturating_add(bytes) {
            all if all > most => return Err(Full::Bytes(self.bytes)),
            all if jobs > 0 && all > most - most / 8 && own + bytes > most / 2 => {
                return Err(Full::Share);
            }
            all => self.bytes = all,
        }
        self.held.insert(tenant, (jobs + 1, own + bytes));
        Ok(())
    }

    /// The body of a job is gone.
    pub(super) fn release(&mut self, tenant: Tenant, bytes: u64) {
        self.bytes = self.bytes.saturating_sub(bytes);
        if let Some((jobs, own)) = self.held.get_mut(&tenant) {
            (*jobs, *own) = (jobs.saturating_sub(1), own.saturating_sub(bytes));
            if *jobs == 0 {
                self.held.remove(&tenant);
            }
        }
    }

    /// Lets a new job wait.
    pub(super) fn push(&mut self, job: u64, info: QueuedJob) {
        let (tenant, place) = (info.tenant, (info.arrived, job));
        let line = self.lines.entry(info.need.clone()).or_default();
        line.change(&self.counts, tenant, |line| {
            line.places.entry(tenant).or_default().insert(place);
        });
        self.waiting.insert(job, info);
    }

    /// Lets a job that ran wait again, in its old place, but for the process on which it came to nothing.
    pub(super) fn again(&mut self, job: u64, avoid: Option<(SocketAddr, u64)>) {
        if let Some(mut job_info) = self.stop(job) {
            job_info.need.avoid.extend(avoid);
            self.push(job, job_info);
        }
    }

    /// Forgets a job, whether it waits or runs.
    pub(super) fn remove(&mut self, job: u64) {
        if self.leave_line(job, None).is_none() {
            self.stop(job);
        }
    }

    /// A job that waits has been given a builder.
    pub(super) fn start(&mut self, now: Instant, job: u64) {
        if let Some(job_info) = self.leave_line(job, Some(now)) {
            self.count(job_info.tenant, |running, tenant| {
                *running.by_tenant.entry(tenant).or_default() += 1;
                *running.by_token.entry(tenant.token).or_default() += 1;
            });
            self.running.insert(job, job_info);
        }
    }

    /// The next job that fits, and what it was found to fit. Jobs of one need are asked about once.
    pub(super) fn next<T>(
        &self,
        now: Instant,
        mut fits: impl FnMut(&Need) -> Option<T>,
    ) -> Option<(u64, T)> {
        let lines = self.lines.iter();
        let mut heads: Vec<_> = lines
            .filter_map(|(need, line)| Some((line.head(now)?, need)))
            .collect();
        heads.sort_unstable_by_key(|(head, _)| *head);
        let mut heads = heads.into_iter();
        heads.find_map(|((_, _, (_, job)), need)| Some((job, fits(need)?)))
    }

    /// The jobs whose need fulfils this.
    pub(super) fn of(&self, mut is_such: impl FnMut(&Need) -> bool) -> Vec<u64> {
        let lines = self.lines.iter().filter(|(need, _)| is_such(need));
        let places = lines.flat_map(|(_, line)| line.places.values().flatten());
        places.map(|(_, job)| *job).collect()
    }

    /// How many wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// How many run, as far as their clients wait for them.
    pub(super) fn running(&self) -> usize {
        self.running.len()
    }

    /// Bytes of all bodies.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// When the job that waits for longest arrived.
    pub(super) fn oldest(&self) -> Option<Instant> {
        let lines = self.lines.values();
        let firsts = lines.flat_map(|line| line.places.values().filter_map(BTreeSet::first));
        firsts.map(|(arrived, _)| *arrived).min()
    }

    /// Takes a job out of its line, because it was given a builder at that time, or for another reason.
    fn leave_line(&mut self, job: u64, served: Option<Instant>) -> Option<QueuedJob> {
        let job_info = self.waiting.remove(&job)?;
        let (tenant, place) = (job_info.tenant, (job_info.arrived, job));
        let line = self.lines.get_mut(&job_info.need)?;
        line.change(&self.counts, tenant, |line| {
            if let Some(places) = line.places.get_mut(&tenant) {
                places.remove(&place);
            }
            if let Some(served) = served {
                line.served.insert(tenant, served);
                line.served_token.insert(tenant.token, served);
            }
        });
        if line.places.is_empty() {
            self.lines.remove(&job_info.need);
        }
        Some(job_info)
    }

    fn stop(&mut self, job: u64) -> Option<QueuedJob> {
        let job_info = self.running.remove(&job)?;
        self.count(job_info.tenant, |running, tenant| {
            count_down(&mut running.by_tenant, tenant);
            count_down(&mut running.by_token, tenant.token);
        });
        Some(job_info)
    }

    /// Changes how many jobs of a tenant run, by which it comes first or last in every line.
    fn count(&mut self, tenant: Tenant, change: impl FnOnce(&mut Running, Tenant)) {
        for line in self.lines.values_mut() {
            line.take_out(&self.counts, tenant);
        }
        change(&mut self.counts, tenant);
        for line in self.lines.values_mut() {
            line.put_in(&self.counts, tenant);
        }
    }
}

impl Line {
    /// Changes what decides about a tenant's turn.
    fn change(&mut self, running: &Running, tenant: Tenant, change: impl FnOnce(&mut Line)) {
        self.take_out(running, tenant);
        change(self);
        if self.places.get(&tenant).is_some_and(BTreeSet::is_empty) {
            self.places.remove(&tenant);
            self.served.remove(&tenant);
        }
        self.put_in(running, tenant);
    }

    /// Who comes first here: by its token, then by its address, then by the job.
    fn head(&self, now: Instant) -> Option<(Rank, Rank, Place)> {
        let starves = |since: Instant| now.duration_since(since) >= STARVES;
        let (since, token) = *self.by_wait.first()?;
        let (by_token, token) = match starves(since) {
            true => (Rank::Starves(since), token),
            false => {
                let (running, (_, _, tenant)) = *self.by_running.first()?;
                (Rank::Runs(running), tenant.token)
            }
        };
        let turns = self.turns.get(&token)?;
        let (since, tenant) = *turns.by_wait.first()?;
        let (by_tenant, tenant) = match starves(since) {
            true => (Rank::Starves(since), tenant),
            false => {
                let (running, _, tenant) = *turns.by_running.first()?;
                (Rank::Runs(running), tenant)
            }
        };
        Some((by_token, by_tenant, *self.places.get(&tenant)?.first()?))
    }

    fn take_out(&mut self, running: &Running, tenant: Tenant) {
        if let Some((by_running, by_wait)) = self.of_token(running, tenant.token) {
            self.by_running.remove(&by_running);
            self.by_wait.remove(&by_wait);
        }
        if let Some((by_running, by_wait)) = self.of_tenant(running, tenant)
            && let Some(turns) = self.turns.get_mut(&tenant.token)
        {
            turns.by_running.remove(&by_running);
            turns.by_wait.remove(&by_wait);
        }
    }

    fn put_in(&mut self, running: &Running, tenant: Tenant) {
        if let Some((by_running, by_wait)) = self.of_tenant(running, tenant) {
            let turns = self.turns.entry(tenant.token).or_default();
            turns.by_running.insert(by_running);
            turns.by_wait.insert(by_wait);
        }
        if let Some((by_running, by_wait)) = self.of_token(running, tenant.token) {
            self.by_running.insert(by_running);
            self.by_wait.insert(by_wait);
        } else {
            self.turns.remove(&tenant.token);
            self.served_token.remove(&tenant.token);
        }
    }

    fn of_tenant(&self, running: &Running, tenant: Tenant) -> Option<(Turn, (Instant, Tenant))> {
        let first = *self.places.get(&tenant)?.first()?;
        let running = running.by_tenant.get(&tenant).copied().unwrap_or(0);
        let served = self.served.get(&tenant).copied();
        let since = first.0.max(served.unwrap_or(first.0));
        Some(((running, first, tenant), (since, tenant)))
    }

    fn of_token(&self, running: &Running, token: u64) -> Option<((usize, Turn), (Instant, u64))> {
        let turns = self.turns.get(&token)?;
        let (first, (since, _)) = (*turns.by_running.first()?, *turns.by_wait.first()?);
        let running = running.by_token.get(&token).copied().unwrap_or(0);
        let served = self.served_token.get(&token).copied();
        Some((
            (running, first),
            (since.max(served.unwrap_or(since)), token),
        ))
    }
}

fn count_down<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, usize>, key: K) {
    if let Some(count) = counts.get_mut(&key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests;
