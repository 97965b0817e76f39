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
        need: need("t"),
    }
}

fn need(toolchain: &str) -> Need {
    Need {
        toolchain: toolchain.into(),
        avoid: Vec::new(),
    }
}

fn next(queue: &Queue, now: Instant) -> Option<u64> {
    queue.next(now, |_| Some(())).map(|(job, ())| job)
}

fn queue() -> Queue {
    Queue::new(Limits {
        jobs: 100,
        bytes: 1000,
    })
}

fn order(queue: &Queue, now: Instant) -> Vec<u64> {
    let mut queue = queue.clone();
    let next = || {
        let job = next(&queue, now)?;
        queue.remove(job);
        Some(job)
    };
    std::iter::from_fn(next).collect()
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
    assert_eq!(order(&queue, start), [0, 1, 2, 3, 10, 20]);
    queue.start(start, 0);
    assert_eq!(order(&queue, start), [20, 10, 1, 2, 3]);
    queue.start(start, 20);
    assert_eq!(order(&queue, start), [10, 1, 2, 3]);
    queue.remove(0);
    assert_eq!(order(&queue, start), [1, 2, 3, 10]);
}

#[test]
fn job_that_comes_back_has_its_old_place_and_knows_where_it_failed() {
    let (mut queue, start) = (queue(), Instant::now());
    for job in 0..3 {
        let arrived = start + Duration::from_secs(job);
        queue.push(job, job_info(tenant(1, 1), arrived));
    }
    queue.start(start, 0);
    let builder = SocketAddr::from(([10, 0, 0, 1], 10501));
    queue.again(0, Some((builder, 7)));
    assert_eq!(order(&queue, start), [0, 1, 2]);
    let avoid = queue.next(start, |need| Some(need.avoid.clone()));
    assert_eq!(avoid, Some((0, [(builder, 7)].to_vec())));
}

#[test]
fn job_that_nobody_can_take_stands_in_nobodys_way() {
    let (mut queue, start) = (queue(), Instant::now());
    for job in 0..90 {
        let mut first = job_info(tenant(1, 1), start);
        first.need = need("nobody's");
        queue.push(job, first);
    }
    let later = start + Duration::from_secs(1);
    queue.push(90, job_info(tenant(1, 1), later));
    let mut asked = 0;
    let fits = |one: &Need| {
        asked += 1;
        (*one == need("t")).then_some(())
    };
    assert_eq!(queue.next(later, fits), Some((90, ())));
    assert_eq!(asked, 2, "once for all jobs of a need");
}

#[test]
fn whoever_always_has_a_little_less_running_lets_nobody_starve() {
    for (poor, rich) in [(tenant(2, 2), tenant(1, 1)), (tenant(1, 2), tenant(1, 1))] {
        let (mut queue, start) = (queue(), Instant::now());
        for job in 0..5 {
            let mut elsewhere = job_info(rich, start);
            elsewhere.need = need("elsewhere");
            queue.push(job, elsewhere);
            queue.start(start, job);
        }
        queue.push(5, job_info(rich, start));
        // One slot, and the other one has its next job there before the last one is over.
        let mut waited = 0;
        for second in 0..60 {
            let (now, job) = (start + Duration::from_secs(second), 10 + second);
            queue.push(job, job_info(poor, now));
            let first = next(&queue, now).unwrap();
            queue.start(now, first);
            queue.remove(first);
            if first == 5 {
                waited = second;
            }
        }
        assert_eq!(waited, STARVES.as_secs());
        // That was its share for a while.
        let now = start + Duration::from_secs(60);
        queue.push(6, job_info(rich, now));
        assert_eq!(next(&queue, now), Some(69), "{rich:?}");
    }
}

#[test]
fn jobs_and_bytes_are_bounded() {
    let limits = Limits { jobs: 2, bytes: 30 };
    let (mut queue, start) = (Queue::new(limits), Instant::now());
    for job in 0..2 {
        queue.reserve(tenant(1, 1), 10).unwrap();
        queue.push(job, job_info(tenant(1, 1), start));
    }
    queue.start(start, 0);
    assert_eq!(
        queue.reserve(tenant(1, 1), 10),
        Err(Full::Jobs(2)),
        "one waits, one runs"
    );
    queue.remove(0);
    assert_eq!(
        queue.has_room(tenant(1, 1), 1, 1),
        Err(Full::Jobs(2)),
        "one is to come"
    );
    queue.reserve(tenant(1, 2), 10).unwrap();
    assert_eq!(queue.reserve(tenant(1, 2), 1), Err(Full::Bytes(30)));
    queue.release(tenant(1, 2), 10);
    queue.reserve(tenant(1, 2), 1).unwrap();
}

#[test]
fn no_client_fills_the_queue_for_others() {
    let limits = Limits {
        jobs: 80,
        bytes: 800,
    };
    let (mut queue, start) = (Queue::new(limits), Instant::now());
    let (many, few) = (tenant(1, 1), tenant(1, 2));
    let refused = (0..80).find_map(|job| match queue.reserve(many, 1) {
        Ok(()) => {
            queue.push(job, job_info(many, start));
            None
        }
        Err(full) => Some((job, full)),
    });
    assert_eq!(refused, Some((70, Full::Share)));
    assert_eq!(queue.has_room(many, 0, 0), Err(Full::Share));
    assert_eq!(queue.has_room(few, 0, 0), Ok(()));
    // The same with bytes.
    let mut queue = Queue::new(limits);
    queue.reserve(many, 700).unwrap();
    assert_eq!(queue.reserve(many, 1), Err(Full::Share));
    queue.reserve(few, 100).unwrap();
    assert_eq!(queue.reserve(few, 1), Err(Full::Bytes(800)));
    queue.release(many, 700);
    queue.release(few, 100);
    assert!(queue.held.is_empty() && queue.bytes() == 0);
}

#[derive(Debug, Clone)]
enum Event {
    Push(u64, u64, u8, bool),
    Start,
    Again(u64),
    Remove(u64),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        3 => (0..12_u64, 0..3_u64, 0..2_u8, any::<bool>())
            .prop_map(|(job, token, host, other)| Event::Push(job, token, host, other)),
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
                Event::Push(job, token, host, other) => {
                    if !queue.waiting.contains_key(&job) && !queue.running.contains_key(&job) {
                        let arrived = start + Duration::from_millis(number as u64);
                        let mut info = job_info(tenant(token, host), arrived);
                        info.need = need(if other { "other" } else { "t" });
                        queue.push(job, info);
                    }
                }
                Event::Start => {
                    if let Some(job) = next(&queue, start) {
                        queue.start(start, job);
                    }
                }
                Event::Again(job) => queue.again(job, None),
                Event::Remove(job) => queue.remove(job),
            }
            prop_assert_eq!(queue.of(|_| true).len(), queue.waiting());
            let counts = &queue.counts;
            for one in [None, Some(need("t")), Some(need("other"))] {
                let waiting = queue.waiting.iter();
                let such = |need: &Need| one.as_ref().is_none_or(|one| one == need);
                let such_jobs = waiting.filter(|(_, job_info)| such(&job_info.need));
                let expected = such_jobs.min_by_key(|(job, job_info)| {
                    let tenant = &job_info.tenant;
                    let running = counts.by_tenant.get(tenant).copied().unwrap_or(0);
                    let of_token = counts.by_token.get(&tenant.token).copied().unwrap_or(0);
                    (of_token, running, job_info.arrived, **job)
                });
                let found = queue.next(start, |need| such(need).then_some(()));
                prop_assert_eq!(found.map(|(job, ())| job), expected.map(|(job, _)| *job));
            }
            for line in queue.lines.values() {
                let tenants: usize = line.turns.values().map(|turns| turns.by_running.len()).sum();
                let waits: usize = line.turns.values().map(|turns| turns.by_wait.len()).sum();
                prop_assert_eq!((tenants, waits), (line.places.len(), line.places.len()));
                let tokens = line.turns.len();
                prop_assert_eq!((line.by_running.len(), line.by_wait.len()), (tokens, tokens));
                prop_assert!(line.served.len() <= tenants && line.served_token.len() <= tokens);
            }
            prop_assert_eq!(counts.by_tenant.values().sum::<usize>(), queue.running());
            prop_assert_eq!(counts.by_token.values().sum::<usize>(), queue.running());
            prop_assert!(counts.by_tenant.values().all(|count| *count > 0));
            let oldest = queue.waiting.values().map(|job_info| job_info.arrived).min();
            prop_assert_eq!(queue.oldest(), oldest);
        }
    }
}
