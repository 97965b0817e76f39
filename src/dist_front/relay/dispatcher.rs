//! Queue and pool together: which job goes to which builder now. Pure: the time is an argument.

use super::pool::{Choice, Machine, Pool};
use super::queue::{Full, Limits, Need, Queue, Tenant, Toolchain};
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::time::Instant;

/// A toolchain that nobody has used for so long is not brought to new builders.
const RECENT: Duration = Duration::from_secs(3600);
/// Most toolchains that are remembered.
const TOOLCHAINS: usize = 256;
/// How long a slot is kept for a client that was told to send its job.
const COMES: Duration = Duration::from_secs(10);

/// What is to be done with a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decision {
    /// It goes to this process of a builder.
    Assign {
        job: u64,
        builder: SocketAddr,
        nonce: u64,
        attempt: u64,
    },
    /// No builder could ever take it.
    Fallback { job: u64 },
}

/// What jobs have told of a toolchain.
#[derive(Debug, Clone)]
struct Known {
    /// A program in it, by which it is unpacked.
    executable: String,
    machine: Kind,
    used: Instant,
}

/// For which kind of processor a toolchain is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Nobody has looked: it did not matter.
    Unknown,
    /// Somebody looks.
    LookedAt,
    Is(Machine),
    /// It does not tell.
    Unclear,
}

/// Work for the side: a toolchain that a builder lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ToolchainPush {
    pub(super) builder: SocketAddr,
    pub(super) nonce: u64,
    pub(super) toolchain: Toolchain,
    pub(super) executable: String,
}

/// Everything that decides.
#[derive(Debug)]
pub(super) struct Dispatcher {
    pub(super) queue: Queue,
    pub(super) pool: Pool,
    toolchains: HashMap<Toolchain, Known>,
    /// Jobs whose clients were told to send them, when, and which.
    expected: HashMap<u64, (Instant, Tenant)>,
    next_attempt: u64,
}

impl Dispatcher {
    /// Attempts are numbered from `first` on.
    pub(super) fn new(limits: Limits, first: u64) -> Dispatcher {
        Dispatcher {
            queue: Queue::new(limits),
            pool: Pool::default(),
            toolchains: HashMap::new(),
            expected: HashMap::new(),
            next_attempt: first,
        }
    }

    /// A number that no attempt had.
    pub(super) fn number(&mut self) -> u64 {
        self.next_attempt = self.next_attempt.wrapping_add(1);
        self.next_attempt
    }

    /// A client is told to send a job.
    pub(super) fn let_in(&mut self, now: Instant, job: u64, tenant: Tenant) {
        self.expected.insert(job, (now, tenant));
    }

    /// It has sent it.
    pub(super) fn came(&mut self, job: u64) {
        self.expected.remove(&job);
    }

    /// Whether one more job of this client may come, beside those that are here and those whose clients were told to send
    /// them.
    ///
    /// # Errors
    /// It may not.
    pub(super) fn has_room(&self, tenant: Tenant) -> Result<(), Full> {
        let own = self.expected.values().filter(|(_, whose)| *whose == tenant);
        let own = own.count();
        self.queue.has_room(tenant, self.expected.len(), own)
    }

    /// Whether there is a slot that nobody has, waits for, or was let in for.
    pub(super) fn has_free_slot(&mut self, now: Instant) -> bool {
        self.expected
            .retain(|_, (since, _)| now.duration_since(*since) < COMES);
        let totals = self.pool.totals(now);
        let wanted = self.queue.waiting() + self.expected.len();
        totals.slots > totals.jobs + wanted as u64
    }

    /// A job uses a toolchain, and this program in it; true when nobody has used it before.
    pub(super) fn learn(&mut self, now: Instant, toolchain: &Toolchain, executable: &str) -> bool {
        if let Some(known) = self.toolchains.get_mut(toolchain) {
            known.used = now;
            return false;
        }
        if self.toolchains.len() >= TOOLCHAINS {
            let oldest = self.toolchains.iter().min_by_key(|(_, known)| known.used);
            if let Some(oldest) = oldest.map(|(name, _)| name.clone()) {
                self.toolchains.remove(&oldest);
            }
        }
        let known = Known {
            executable: executable.to_owned(),
            machine: Kind::Unknown,
            used: now,
        };
        self.toolchains.insert(toolchain.clone(), known);
        true
    }

    /// What goes where now.
    pub(super) fn dispatch(&mut self, now: Instant) -> Vec<Decision> {
        let mut decisions = Vec::new();
        // Needs for which there is no builder now.
        let mut in_vain = HashSet::<Need>::new();
        while self.queue.waiting() > 0 && self.pool.has_room(now) {
            let next = self.queue.next(now, |need| {
                if in_vain.contains(need) {
                    return None;
                }
                match self.pool.choose(now, need, self.machine(&need.toolchain)) {
                    Choice::Builder(builder, nonce) => Some((builder, nonce)),
                    Choice::Wait | Choice::Never => {
                        in_vain.insert(need.clone());
                        None
                    }
                }
            });
            let Some((job, (builder, nonce))) = next else {
                break;
            };
            let attempt = self.number();
            self.queue.start(now, job);
            self.pool.begin(now, attempt, &builder);
            decisions.push(Decision::Assign {
                job,
                builder,
                nonce,
                attempt,
            });
        }
        decisions
    }

    /// Jobs that wait for nothing; forgets those whose clients did not come.
    pub(super) fn unplaceable(&mut self, now: Instant) -> Vec<Decision> {
        self.expected
            .retain(|_, (since, _)| now.duration_since(*since) < COMES);
        let unplaceable = self.queue.of(|need| {
            let toolchain = &need.toolchain;
            self.is_unclear(toolchain)
                || self.pool.choose(now, need, self.machine(toolchain)) == Choice::Never
        });
        let home = |job: u64| {
            self.queue.remove(job);
            Decision::Fallback { job }
        };
        unplaceable.into_iter().map(home).collect()
    }

    /// Toolchains that are to be brought to builders; each builder is busy with one at a time.
    pub(super) fn pushes(&mut self, now: Instant) -> Vec<ToolchainPush> {
        let mut pushes = Vec::new();
        for (toolchain, known) in &self.toolchains {
            if now.duration_since(known.used) >= RECENT {
                continue;
            }
            let machine = match known.machine {
                Kind::Is(machine) => Some(machine),
                Kind::Unknown | Kind::LookedAt | Kind::Unclear => None,
            };
            while let Some((builder, nonce)) = self.pool.prepare(now, toolchain, machine) {
                pushes.push(ToolchainPush {
                    builder,
                    nonce,
                    toolchain: toolchain.clone(),
                    executable: known.executable.clone(),
                });
            }
        }
        pushes
    }

    /// Toolchains of which it matters for which kind of processor they are, and which program in each of them tells: there
    /// are builders of more than one kind. Whoever asks finds out.
    pub(super) fn unidentified(&mut self) -> Vec<(Toolchain, String)> {
        if !self.pool.is_mixed() {
            return Vec::new();
        }
        let known = self.toolchains.iter_mut();
        let unknown = known.filter(|(_, known)| known.machine == Kind::Unknown);
        unknown
            .map(|(name, known)| {
                known.machine = Kind::LookedAt;
                (name.clone(), known.executable.clone())
            })
            .collect()
    }

    /// The toolchain is here (again): what could not be done without it is tried at once.
    pub(super) fn arrived(&mut self, toolchain: &Toolchain) {
        self.pool.fits_again(toolchain);
        if let Some(known) = self.toolchains.get_mut(toolchain)
            && known.machine == Kind::Unclear
        {
            known.machine = Kind::Unknown;
        }
    }

    /// The toolchain is for this kind of processor.
    pub(super) fn identified(&mut self, toolchain: &Toolchain, machine: Option<Machine>) {
        if let Some(known) = self.toolchains.get_mut(toolchain) {
            known.machine = machine.map_or(Kind::Unclear, Kind::Is);
        }
    }

    fn machine(&self, toolchain: &Toolchain) -> Option<Machine> {
        match self.toolchains.get(toolchain)?.machine {
            Kind::Is(machine) => Some(machine),
            Kind::Unknown | Kind::LookedAt | Kind::Unclear => None,
        }
    }

    /// Whether no builder can be chosen for it.
    fn is_unclear(&self, toolchain: &Toolchain) -> bool {
        let known = self.toolchains.get(toolchain);
        known.is_some_and(|known| known.machine == Kind::Unclear) && self.pool.is_mixed()
    }
}

#[cfg(test)]
mod tests {
    use super::super::pool::{BuilderInfo, Ended};
    use super::super::queue::QueuedJob;
    use super::*;
    use proptest::prelude::*;

    const LIMITS: Limits = Limits {
        jobs: 1000,
        bytes: 1 << 20,
    };

    fn at(number: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], number))
    }

    fn is(nonce: u64, machine: u16) -> BuilderInfo {
        BuilderInfo {
            nonce,
            cores: 2,
            machine: Machine(machine),
        }
    }

    fn job(toolchain: &str, arrived: Instant) -> QueuedJob {
        QueuedJob {
            tenant: Tenant {
                token: 1,
                address: [10, 0, 0, 9].into(),
            },
            arrived,
            need: need(toolchain),
        }
    }

    fn need(toolchain: &str) -> Need {
        Need {
            toolchain: toolchain.into(),
            avoid: Vec::new(),
        }
    }

    #[test]
    fn each_toolchain_goes_to_the_builders_of_its_kind_and_so_do_its_jobs() {
        let (mut dispatcher, now) = (Dispatcher::new(LIMITS, 0), Instant::now());
        dispatcher.pool.heartbeat(now, at(1), is(1, 62));
        dispatcher.pool.heartbeat(now, at(2), is(1, 183));
        for (name, machine) in [("amd", 62), ("arm", 183)] {
            dispatcher.learn(now, &name.into(), "/usr/bin/cc");
            assert_eq!(dispatcher.unidentified().len(), 1);
            let before = dispatcher.pool.choose(now, &need(name), None);
            assert_eq!(before, Choice::Wait, "never by a guess");
            dispatcher.identified(&name.into(), Some(Machine(machine)));
        }
        for (number, name) in ["amd", "arm"].into_iter().enumerate() {
            dispatcher.queue.push(number as u64, job(name, now));
        }
        assert!(
            dispatcher.dispatch(now).is_empty(),
            "no builder has a toolchain"
        );
        let mut pushes = dispatcher.pushes(now);
        pushes.sort_by_key(|push| push.builder);
        let found: Vec<_> = pushes
            .iter()
            .map(|push| (push.builder.port(), &*push.toolchain))
            .collect();
        assert_eq!(found, [(1, "amd"), (2, "arm")]);
        for push in &pushes {
            let ToolchainPush {
                builder, toolchain, ..
            } = push;
            dispatcher.pool.prepared(builder, 1, toolchain);
        }
        let went = dispatcher
            .dispatch(now)
            .into_iter()
            .map(|decision| match decision {
                Decision::Assign { job, builder, .. } => (job, builder.port()),
                Decision::Fallback { .. } => panic!("{decision:?}"),
            });
        let mut went: Vec<_> = went.collect();
        went.sort_unstable();
        assert_eq!(went, [(0, 1), (1, 2)]);
    }

    #[test]
    fn jobs_for_a_builder_that_is_full_or_away_keep_no_others_waiting() {
        let (mut dispatcher, now) = (Dispatcher::new(LIMITS, 0), Instant::now());
        for (number, name, machine) in [(1, "amd", 62), (2, "arm", 183)] {
            dispatcher.pool.heartbeat(now, at(number), is(1, machine));
            dispatcher.learn(now, &name.into(), "/usr/bin/cc");
            dispatcher.unidentified();
            dispatcher.identified(&name.into(), Some(Machine(machine)));
            dispatcher.pool.prepared(&at(number), 1, &name.into());
        }
        dispatcher.pool.silent(&at(2));
        for number in 0..200 {
            dispatcher.queue.push(number, job("arm", now));
        }
        let later = now + Duration::from_millis(1);
        dispatcher.queue.push(200, job("amd", later));
        let went = |dispatcher: &mut Dispatcher| -> Vec<u64> {
            let decisions = dispatcher.dispatch(later).into_iter();
            let assigned = decisions.map(|decision| match decision {
                Decision::Assign { job, .. } => job,
                Decision::Fallback { .. } => panic!("{decision:?}"),
            });
            assigned.collect()
        };
        assert_eq!(went(&mut dispatcher), [200]);
        dispatcher.pool.sign(later, &at(2));
        assert_eq!(went(&mut dispatcher), [0, 1], "they are still there");
    }

    #[test]
    fn toolchain_that_was_gone_and_is_sent_again_is_brought_to_its_builders_at_once() {
        let (mut dispatcher, now) = (Dispatcher::new(LIMITS, 0), Instant::now());
        for (number, machine) in [(1, 62), (2, 183)] {
            dispatcher.pool.heartbeat(now, at(number), is(1, machine));
        }
        let toolchain: Toolchain = "t".into();
        dispatcher.learn(now, &toolchain, "/usr/bin/cc");
        dispatcher.unidentified();
        dispatcher.identified(&toolchain, None);
        dispatcher.queue.push(1, job("t", now));
        let home = dispatcher.unplaceable(now);
        assert_eq!(home, [Decision::Fallback { job: 1 }], "nobody can tell");
        dispatcher.arrived(&toolchain);
        assert_eq!(dispatcher.unidentified().len(), 1);
        dispatcher.identified(&toolchain, Some(Machine(62)));
        for _ in 0..3 {
            assert_eq!(dispatcher.pushes(now).len(), 1);
            dispatcher.pool.unprepared(now, &at(1), 1, &toolchain);
            assert!(dispatcher.pushes(now).is_empty());
            dispatcher.arrived(&toolchain);
        }
        dispatcher.queue.push(2, job("t", now));
        assert_eq!(dispatcher.unplaceable(now), []);
    }

    #[test]
    fn client_that_only_asks_for_builders_fills_no_queue_for_others() {
        let limits = Limits {
            jobs: 80,
            bytes: 1 << 20,
        };
        let (mut dispatcher, now) = (Dispatcher::new(limits, 0), Instant::now());
        let [many, few] = [8, 9].map(|host| Tenant {
            token: 1,
            address: [10, 0, 0, host].into(),
        });
        let mut asks = |tenant, job| {
            let has_room = dispatcher.has_room(tenant);
            if has_room.is_ok() {
                dispatcher.let_in(now, job, tenant);
            }
            has_room
        };
        let refused = (0..80).find_map(|job| Some((job, asks(many, job).err()?)));
        assert_eq!(refused, Some((70, Full::Share)));
        assert_eq!(asks(few, 80), Ok(()));
        dispatcher.unplaceable(now + COMES);
        assert_eq!(dispatcher.has_room(many), Ok(()), "they did not come");
    }

    #[test]
    fn job_that_no_builder_can_take_goes_home() {
        let (mut dispatcher, now) = (Dispatcher::new(LIMITS, 0), Instant::now());
        dispatcher.queue.push(1, job("t", now));
        assert_eq!(dispatcher.unplaceable(now), [Decision::Fallback { job: 1 }]);
        assert_eq!(dispatcher.queue.waiting(), 0);
        dispatcher.pool.heartbeat(now, at(1), is(1, 62));
        dispatcher.queue.push(2, job("t", now));
        assert_eq!(dispatcher.unplaceable(now), []);
        let lost = now + Duration::from_secs(90);
        assert_eq!(
            dispatcher.unplaceable(lost),
            [Decision::Fallback { job: 2 }]
        );
    }

    #[derive(Debug, Clone)]
    enum Event {
        Arrive,
        Leave(usize),
        End(usize, u8),
        Abandon(usize),
        Complete(usize),
        Restart(u16),
        Silent(u16),
        Sign(u16),
        Prepare(bool),
        Wait(u64),
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        let (one, builder) = (0..64_usize, 1..4_u16);
        let event = prop_oneof![
            6 => Just(Event::Arrive),
            1 => one.clone().prop_map(Event::Leave),
            5 => (one.clone(), 0..3_u8).prop_map(|(one, how)| Event::End(one, how)),
            1 => one.clone().prop_map(Event::Abandon),
            1 => one.prop_map(Event::Complete),
            1 => builder.clone().prop_map(Event::Restart),
            1 => builder.clone().prop_map(Event::Silent),
            1 => builder.prop_map(Event::Sign),
            3 => any::<bool>().prop_map(Event::Prepare),
            2 => prop_oneof![Just(100), Just(2_000), Just(20_000), Just(91_000)].prop_map(Event::Wait),
        ];
        proptest::collection::vec(event, 0..120)
    }

    proptest! {
        /// Whatever happens: a job is waiting, running or over, runs once at a time, never where its toolchain is not,
        /// never on a process on which it failed; and no builder has more jobs than slots.
        #[test]
        fn jobs_are_in_one_place(events in events()) {
            let (mut dispatcher, mut now) = (Dispatcher::new(LIMITS, 0), Instant::now());
            let (mut next, mut nonces) = (0_u64, [0_u64; 4]);
            // Attempts whose clients wait, and those that builders still have.
            let mut running: Vec<(u64, u64, SocketAddr, u64)> = Vec::new();
            let mut ghosts: Vec<(u64, SocketAddr)> = Vec::new();
            let mut failed: HashMap<u64, Vec<(SocketAddr, u64)>> = HashMap::new();
            for event in events {
                match event {
                    Event::Arrive => {
                        next += 1;
                        dispatcher.learn(now, &"t".into(), "/cc");
                        dispatcher.queue.push(next, job("t", now));
                    }
                    Event::Leave(one) => {
                        let waiting = dispatcher.queue.of(|_| true);
                        if let Some(job) = waiting.get(one) {
                            dispatcher.queue.remove(*job);
                        }
                    }
                    Event::End(one, how) if !running.is_empty() => {
                        let (job, attempt, builder, nonce) = running.remove(one % running.len());
                        let how = [Ended::Well(Duration::from_secs(1)), Ended::Fault, Ended::Job][usize::from(how)];
                        dispatcher.pool.end(now, attempt, &builder, how);
                        if matches!(how, Ended::Well(_)) {
                            dispatcher.queue.remove(job);
                        } else {
                            failed.entry(job).or_default().push((builder, nonce));
                            dispatcher.queue.again(job, Some((builder, nonce)));
                        }
                    }
                    Event::Abandon(one) if !running.is_empty() => {
                        let (job, attempt, builder, _) = running.remove(one % running.len());
                        dispatcher.pool.abandon(now, attempt, &builder);
                        dispatcher.pool.blame(now, &builder);
                        dispatcher.queue.remove(job);
                        ghosts.push((attempt, builder));
                    }
                    Event::Complete(one) if !ghosts.is_empty() => {
                        let (attempt, builder) = ghosts.remove(one % ghosts.len());
                        dispatcher.pool.complete(attempt, &builder);
                    }
                    Event::End(..) | Event::Abandon(_) | Event::Complete(_) => {}
                    Event::Restart(builder) => {
                        let nonce = &mut nonces[usize::from(builder)];
                        *nonce += 1;
                        dispatcher.pool.heartbeat(now, at(builder), is(*nonce, 62));
                        ghosts.retain(|(_, one)| *one != at(builder));
                    }
                    Event::Silent(builder) => dispatcher.pool.silent(&at(builder)),
                    Event::Sign(builder) => dispatcher.pool.sign(now, &at(builder)),
                    Event::Prepare(well) => for push in dispatcher.pushes(now) {
                        match well {
                            true => dispatcher.pool.prepared(&push.builder, push.nonce, &push.toolchain),
                            false => dispatcher.pool.unprepared(now, &push.builder, push.nonce, &push.toolchain),
                        }
                    },
                    Event::Wait(millis) => now += Duration::from_millis(millis),
                }
                for decision in dispatcher.dispatch(now) {
                    let Decision::Assign { job, builder, nonce, attempt } = decision else {
                        panic!("{decision:?}");
                    };
                    prop_assert!(running.iter().all(|(one, ..)| *one != job), "runs twice");
                    prop_assert_eq!(nonce, nonces[usize::from(builder.port())]);
                    let avoid = failed.get(&job).cloned().unwrap_or_default();
                    prop_assert!(!avoid.contains(&(builder, nonce)), "where it failed");
                    running.push((job, attempt, builder, nonce));
                }
                prop_assert_eq!(dispatcher.queue.running(), running.len());
                let totals = dispatcher.pool.totals(now);
                prop_assert!(totals.jobs <= totals.slots, "{:?}", totals);
                // Nothing waits while somebody idle could take it.
                let idle = dispatcher.queue.next(now, |need| {
                    let choice = dispatcher.pool.choose(now, need, None);
                    matches!(choice, Choice::Builder(..)).then_some(())
                });
                prop_assert_eq!(idle, None);
            }
        }
    }
}
