//! Jobs in flight, counted by builder as they come and go: an allocation asks for every builder's load. Pure.

use super::super::wire::JobState;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::time::Instant;

/// The scheduler gives up jobs whose client does not claim them, at the builder's next heartbeat.
const UNCLAIMED: Duration = Duration::from_secs(90);
/// It waits longer for those whose toolchain is missing.
pub(super) const UNCLAIMED_PENDING: Duration = Duration::from_secs(300);
/// A job that started so long ago is forgotten: the client itself waits for 20 minutes at most.
const LONGEST_JOB: Duration = Duration::from_secs(3600);
/// Most jobs that are remembered.
const JOBS: usize = 1 << 16;

#[derive(Debug)]
pub(super) struct Job {
    pub(super) builder: SocketAddr,
    pub(super) toolchain: String,
    /// The scheduler that knew it is gone.
    pub(super) lost: bool,
    state: JobState,
    since: Instant,
    /// The scheduler counts it.
    counted: bool,
}

impl Job {
    /// When the scheduler counts it no more, then when it is forgotten.
    fn due(&self) -> Instant {
        self.since
            + match self.state {
                JobState::Ready if self.counted => UNCLAIMED,
                JobState::Pending | JobState::Ready => UNCLAIMED_PENDING,
                JobState::Started | JobState::Complete => LONGEST_JOB,
            }
    }
}

/// The jobs of one builder.
#[derive(Debug, Default)]
struct Share {
    jobs: HashSet<u64>,
    counted: u64,
}

/// All jobs.
#[derive(Debug, Default)]
pub(super) struct Jobs {
    jobs: HashMap<u64, Job>,
    /// When something happens to each by itself.
    due: BTreeSet<(Instant, u64)>,
    of: HashMap<SocketAddr, Share>,
}

impl Jobs {
    /// Remembers a new job, while there is room.
    pub(super) fn insert(
        &mut self,
        now: Instant,
        job: u64,
        builder: SocketAddr,
        toolchain: &str,
        state: JobState,
    ) {
        self.remove(job);
        if self.jobs.len() < JOBS {
            let toolchain = toolchain.to_owned();
            let found = Job {
                builder,
                toolchain,
                lost: false,
                state,
                since: now,
                counted: true,
            };
            self.put(job, found);
        }
    }

    pub(super) fn get(&self, job: u64) -> Option<&Job> {
        self.jobs.get(&job)
    }

    /// The job came into a new state.
    pub(super) fn progressed(&mut self, now: Instant, job: u64, state: JobState) {
        if let Some(mut found) = self.remove(job) {
            found.state = state;
            found.since = now;
            found.counted = !found.lost;
            self.put(job, found);
        }
    }

    pub(super) fn remove(&mut self, job: u64) -> Option<Job> {
        let found = self.jobs.remove(&job)?;
        self.due.remove(&(found.due(), job));
        if let Some(share) = self.of.get_mut(&found.builder) {
            share.jobs.remove(&job);
            share.counted -= u64::from(found.counted);
            if share.jobs.is_empty() {
                self.of.remove(&found.builder);
            }
        }
        Some(found)
    }

    /// Removes all jobs of a builder; how many there were.
    pub(super) fn remove_of(&mut self, builder: &SocketAddr) -> u64 {
        let share = self.of.get(builder);
        let jobs: Vec<u64> =
            share.map_or_else(Vec::new, |share| share.jobs.iter().copied().collect());
        for job in &jobs {
            self.remove(*job);
        }
        jobs.len() as u64
    }

    /// The scheduler that knew them is gone.
    pub(super) fn lose(&mut self) {
        let all: Vec<u64> = self.jobs.keys().copied().collect();
        for job in all {
            if let Some(mut found) = self.remove(job) {
                (found.lost, found.counted) = (true, false);
                self.put(job, found);
            }
        }
    }

    /// Takes out what is over without anybody having said so.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<Job> {
        let mut over = Vec::new();
        while let Some((due, job)) = self.due.first().copied()
            && due < now
        {
            let Some(mut found) = self.remove(job) else {
                self.due.pop_first();
                continue;
            };
            let is_unclaimed = found.counted && found.state == JobState::Ready;
            if is_unclaimed {
                found.counted = false;
                self.put(job, found);
            } else {
                over.push(found);
            }
        }
        over
    }

    /// Jobs of the builder that the scheduler counts.
    pub(super) fn counted(&self, builder: &SocketAddr) -> u64 {
        self.of.get(builder).map_or(0, |share| share.counted)
    }

    /// All jobs of the builder.
    pub(super) fn of(&self, builder: &SocketAddr) -> u64 {
        let share = self.of.get(builder);
        share.map_or(0, |share| share.jobs.len() as u64)
    }

    fn put(&mut self, job: u64, found: Job) {
        let share = self.of.entry(found.builder).or_default();
        share.jobs.insert(job);
        share.counted += u64::from(found.counted);
        self.due.insert((found.due(), job));
        self.jobs.insert(job, found);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BUILDERS: u16 = 3;

    fn builder(number: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], number))
    }

    #[derive(Debug, Clone)]
    enum Event {
        Insert(u64, u16, JobState),
        Progress(u64, JobState),
        Remove(u64),
        RemoveOf(u16),
        Lose,
        Wait(u64),
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        let state = prop_oneof![
            Just(JobState::Pending),
            Just(JobState::Ready),
            Just(JobState::Started)
        ];
        let (job, of) = (0..8_u64, 0..BUILDERS);
        let event = prop_oneof![
            4 => (job.clone(), of.clone(), state.clone())
                .prop_map(|(job, of, state)| Event::Insert(job, of, state)),
            3 => (job.clone(), state).prop_map(|(job, state)| Event::Progress(job, state)),
            1 => job.prop_map(Event::Remove),
            1 => of.prop_map(Event::RemoveOf),
            1 => Just(Event::Lose),
            4 => prop_oneof![Just(1), Just(90), Just(91), Just(211), Just(301), Just(3601)].prop_map(Event::Wait),
        ];
        proptest::collection::vec(event, 0..60)
    }

    /// What a look at every job says.
    fn looked_at(jobs: &Jobs, now: Instant, of: &SocketAddr) -> (u64, u64) {
        let all = jobs.jobs.values().filter(|job| job.builder == *of);
        let counted = all.clone().filter(|job| {
            let bound = match job.state {
                JobState::Pending => UNCLAIMED_PENDING,
                JobState::Ready => UNCLAIMED,
                JobState::Started | JobState::Complete => LONGEST_JOB,
            };
            !job.lost && now.duration_since(job.since) <= bound
        });
        (all.count() as u64, counted.count() as u64)
    }

    proptest! {
        #[test]
        fn counts_are_those_of_a_look_at_every_job(events in events()) {
            let (mut jobs, mut now) = (Jobs::default(), Instant::now());
            for event in events {
                match event {
                    Event::Insert(job, of, state) => jobs.insert(now, job, builder(of), "t", state),
                    Event::Progress(job, state) => jobs.progressed(now, job, state),
                    Event::Remove(job) => drop(jobs.remove(job)),
                    Event::RemoveOf(of) => {
                        let there = jobs.of(&builder(of));
                        prop_assert_eq!(jobs.remove_of(&builder(of)), there);
                    }
                    Event::Lose => jobs.lose(),
                    Event::Wait(seconds) => now += Duration::from_secs(seconds),
                }
                for over in jobs.expire(now) {
                    let age = now.duration_since(over.since);
                    prop_assert!(age > UNCLAIMED_PENDING);
                }
                for of in (0..BUILDERS).map(builder) {
                    prop_assert_eq!((jobs.of(&of), jobs.counted(&of)), looked_at(&jobs, now, &of));
                }
                prop_assert_eq!(jobs.due.len(), jobs.jobs.len());
                let waits = jobs.due.iter().all(|(due, job)| *due >= now && jobs.jobs[job].due() == *due);
                prop_assert!(waits);
            }
        }
    }
}
