//! Jobs that wait for a slot: bounded, fair, oldest first. Pure: the time is an argument.
//!
//! Whoever has the fewest jobs running comes next: first by token, then by the address that uses it, because a team may
//! share one token. Of the same tenant, and of tenants that have as few, the job that arrived first.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use tokio::time::Instant;

/// A toolchain's name, 64 hexadecimal digits.
pub(super) type Toolchain = Arc<str>;

/// Who sent a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Tenant {
    /// A number for the token.
    pub(super) token: u64,
    pub(super) address: IpAddr,
}

/// What is known of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct QueuedJob {
    pub(super) tenant: Tenant,
    pub(super) arrived: Instant,
    pub(super) toolchain: Toolchain,
    /// Processes of builders on which it came to nothing.
    pub(super) avoid: Vec<(SocketAddr, u64)>,
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
}

/// By which tenants of one token come first: how many of their jobs run, then the job that waits for longest.
type Turn = (usize, (Instant, u64), Tenant);

/// The queue, and how many jobs of whom run.
#[derive(Debug)]
pub(super) struct Queue {
    limits: Limits,
    waiting: HashMap<u64, QueuedJob>,
    lines: HashMap<Tenant, BTreeSet<(Instant, u64)>>,
    /// Tenants whose jobs wait, by token, and the tokens of those: kept in order, because with thousands of tenants
    /// nobody can sort them whenever a slot is free.
    turns: HashMap<u64, BTreeSet<Turn>>,
    tokens: BTreeSet<(usize, Turn)>,
    running: HashMap<u64, QueuedJob>,
    by_tenant: HashMap<Tenant, usize>,
    by_token: HashMap<u64, usize>,
    bytes: u64,
}

impl Queue {
    pub(super) fn new(limits: Limits) -> Queue {
        Queue {
            limits,
            waiting: HashMap::new(),
            lines: HashMap::new(),
            turns: HashMap::new(),
            tokens: BTreeSet::new(),
            running: HashMap::new(),
            by_tenant: HashMap::new(),
            by_token: HashMap::new(),
            bytes: 0,
        }
    }

    /// Whether one more job may wait, beside those that are here and so many others.
    ///
    /// # Errors
    /// It may not.
    pub(super) fn has_room(&self, others: usize) -> Result<(), Full> {
        match self.waiting.len() + self.running.len() + others {
            jobs if jobs >= self.limits.jobs => Err(Full::Jobs(jobs)),
            _ => Ok(()),
        }
    }

    /// Reserves room for one more job whose body has so many bytes, until they are released.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn reserve(&mut self, bytes: u64) -> Result<(), Full> {
        self.has_room(0)?;
        if self.bytes.saturating_add(bytes) > self.limits.bytes {
            return Err(Full::Bytes(self.bytes));
        }
        self.bytes += bytes;
        Ok(())
    }

    /// The body of a job is gone.
    pub(super) fn release(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    /// Lets a new job wait.
    pub(super) fn push(&mut self, job: u64, info: QueuedJob) {
        self.line_up(job, info);
    }

    /// Lets a job that ran wait again, in its old place, but for the process on which it came to nothing.
    pub(super) fn again(&mut self, job: u64, avoid: Option<(SocketAddr, u64)>) {
        if let Some(mut job_info) = self.stop(job) {
            job_info.avoid.extend(avoid);
            self.line_up(job, job_info);
        }
    }

    /// Forgets a job, whether it waits or runs.
    pub(super) fn remove(&mut self, job: u64) {
        if self.leave_line(job).is_none() {
            self.stop(job);
        }
    }

    /// A job that waits has been given a builder.
    pub(super) fn start(&mut self, job: u64) {
        if let Some(job_info) = self.leave_line(job) {
            let tenant = job_info.tenant;
            self.reorder(tenant, |queue| {
                *queue.by_tenant.entry(tenant).or_default() += 1;
                *queue.by_token.entry(tenant.token).or_default() += 1;
            });
            self.running.insert(job, job_info);
        }
    }

    /// Those that wait, in the order in which they are to be given builders.
    pub(super) fn in_order(&self) -> impl Iterator<Item = (u64, &QueuedJob)> {
        let tokens = self.tokens.iter();
        let turns = tokens.filter_map(|(_, (_, _, tenant))| self.turns.get(&tenant.token));
        let lines = turns
            .flatten()
            .filter_map(|(_, _, tenant)| self.lines.get(tenant));
        lines
            .flatten()
            .filter_map(|(_, job)| Some((*job, self.waiting.get(job)?)))
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
        let firsts = self.lines.values().filter_map(BTreeSet::first);
        firsts.map(|(arrived, _)| *arrived).min()
    }

    fn line_up(&mut self, job: u64, job_info: QueuedJob) {
        let place = (job_info.arrived, job);
        self.reorder(job_info.tenant, |queue| {
            queue
                .lines
                .entry(job_info.tenant)
                .or_default()
                .insert(place);
        });
        self.waiting.insert(job, job_info);
    }

    fn leave_line(&mut self, job: u64) -> Option<QueuedJob> {
        let job_info = self.waiting.remove(&job)?;
        let tenant = job_info.tenant;
        self.reorder(tenant, |queue| {
            if let Some(line) = queue.lines.get_mut(&tenant) {
                line.remove(&(job_info.arrived, job));
                if line.is_empty() {
                    queue.lines.remove(&tenant);
                }
            }
        });
        Some(job_info)
    }

    fn stop(&mut self, job: u64) -> Option<QueuedJob> {
        let job_info = self.running.remove(&job)?;
        let tenant = job_info.tenant;
        self.reorder(tenant, |queue| {
            count_down(&mut queue.by_tenant, tenant);
            count_down(&mut queue.by_token, tenant.token);
        });
        Some(job_info)
    }

    /// Changes what decides about a tenant's turn.
    fn reorder(&mut self, tenant: Tenant, change: impl FnOnce(&mut Queue)) {
        let token = tenant.token;
        let (before, of_token) = (self.turn(tenant), self.turn_of_token(token));
        change(self);
        let after = self.turn(tenant);
        let turns = self.turns.entry(token).or_default();
        if let Some(before) = before {
            turns.remove(&before);
        }
        turns.extend(after);
        if turns.is_empty() {
            self.turns.remove(&token);
        }
        if let Some(of_token) = of_token {
            self.tokens.remove(&of_token);
        }
        self.tokens.extend(self.turn_of_token(token));
    }

    fn turn(&self, tenant: Tenant) -> Option<Turn> {
        let first = self.lines.get(&tenant)?.first()?;
        let running = self.by_tenant.get(&tenant).copied().unwrap_or(0);
        Some((running, *first, tenant))
    }

    fn turn_of_token(&self, token: u64) -> Option<(usize, Turn)> {
        let first = self.turns.get(&token)?.first()?;
        let running = self.by_token.get(&token).copied().unwrap_or(0);
        Some((running, *first))
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
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    fn tenant(token: u64, host: u8) -> Tenant {
        Tenant {
            token,
            address: IpAddr::from([10, 0, 0, host]),
        }
    }

    fn job_info(tenant: Tenant, arrived: Instant) -> QueuedJob {
        QueuedJob {
            tenant,
            arrived,
            toolchain: "t".into(),
            avoid: Vec::new(),
        }
    }

    fn queue() -> Queue {
        Queue::new(Limits {
            jobs: 100,
            bytes: 1000,
        })
    }

    fn order(queue: &Queue) -> Vec<u64> {
        queue.in_order().map(|(job, _)| job).collect()
    }

    #[test]
    fn whoever_has_least_running_comes_next_and_of_equals_the_oldest() {
        let (mut queue, start) = (queue(), Instant::now());
        let at = |millis| start + Duration::from_millis(millis);
        // One host floods, another of the same token and one of another token have one job each.
        for job in 0..4 {
            let flood = job_info(tenant(1, 1), at(job));
            queue.push(job, flood);
        }
        queue.push(10, job_info(tenant(1, 2), at(10)));
        queue.push(20, job_info(tenant(2, 3), at(20)));
        assert_eq!(order(&queue), [0, 1, 2, 3, 10, 20]);
        queue.start(0);
        assert_eq!(order(&queue), [20, 10, 1, 2, 3]);
        queue.start(20);
        assert_eq!(order(&queue), [10, 1, 2, 3]);
        queue.remove(0);
        assert_eq!(order(&queue), [1, 2, 3, 10]);
    }

    #[test]
    fn job_that_comes_back_has_its_old_place_and_knows_where_it_failed() {
        let (mut queue, start) = (queue(), Instant::now());
        for job in 0..3 {
            let arrived = start + Duration::from_secs(job);
            queue.push(job, job_info(tenant(1, 1), arrived));
        }
        queue.start(0);
        let builder = SocketAddr::from(([10, 0, 0, 1], 10501));
        queue.again(0, Some((builder, 7)));
        assert_eq!(order(&queue), [0, 1, 2]);
        assert_eq!(
            queue.in_order().next().unwrap().1.avoid,
            [(builder, 7)].to_vec()
        );
    }

    #[test]
    fn jobs_and_bytes_are_bounded() {
        let limits = Limits { jobs: 2, bytes: 30 };
        let (mut queue, now) = (Queue::new(limits), Instant::now());
        for job in 0..2 {
            queue.reserve(10).unwrap();
            queue.push(job, job_info(tenant(1, 1), now));
        }
        queue.start(0);
        assert_eq!(queue.reserve(10), Err(Full::Jobs(2)), "one waits, one runs");
        queue.remove(0);
        assert_eq!(queue.has_room(1), Err(Full::Jobs(2)), "one is to come");
        queue.reserve(10).unwrap();
        assert_eq!(queue.reserve(1), Err(Full::Bytes(30)));
        queue.release(10);
        queue.reserve(1).unwrap();
    }

    #[derive(Debug, Clone)]
    enum Event {
        Push(u64, u64, u8),
        Start,
        Again(u64),
        Remove(u64),
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        let event = prop_oneof![
            3 => (0..12_u64, 0..3_u64, 0..2_u8).prop_map(|(job, token, host)| Event::Push(job, token, host)),
            3 => Just(Event::Start),
            1 => (0..12_u64).prop_map(Event::Again),
            2 => (0..12_u64).prop_map(Event::Remove),
        ];
        proptest::collection::vec(event, 0..80)
    }

    proptest! {
        #[test]
        fn counts_are_those_of_a_look_at_every_job(events in events()) {
            let (mut queue, start) = (queue(), Instant::now());
            for (number, event) in events.into_iter().enumerate() {
                match event {
                    Event::Push(job, token, host) => {
                        if !queue.waiting.contains_key(&job) && !queue.running.contains_key(&job) {
                            let arrived = start + Duration::from_millis(number as u64);
                            queue.push(job, job_info(tenant(token, host), arrived));
                        }
                    }
                    Event::Start => {
                        let next = queue.in_order().next().map(|(job, _)| job);
                        if let Some(job) = next {
                            queue.start(job);
                        }
                    }
                    Event::Again(job) => queue.again(job, None),
                    Event::Remove(job) => queue.remove(job),
                }
                prop_assert_eq!(queue.in_order().count(), queue.waiting());
                let next = queue.waiting.iter().min_by_key(|(job, job_info)| {
                    let tenant = &job_info.tenant;
                    let running = queue.by_tenant.get(tenant).copied().unwrap_or(0);
                    let of_token = queue.by_token.get(&tenant.token).copied().unwrap_or(0);
                    (of_token, running, job_info.arrived, **job)
                });
                prop_assert_eq!(queue.in_order().next().map(|(job, _)| job), next.map(|(job, _)| *job));
                prop_assert_eq!(queue.tokens.len(), queue.turns.len());
                prop_assert_eq!(queue.by_tenant.values().sum::<usize>(), queue.running());
                prop_assert_eq!(queue.by_token.values().sum::<usize>(), queue.running());
                prop_assert!(queue.by_tenant.values().all(|count| *count > 0));
                let oldest = queue.waiting.values().map(|job_info| job_info.arrived).min();
                prop_assert_eq!(queue.oldest(), oldest);
            }
        }
    }
}
