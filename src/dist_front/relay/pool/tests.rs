use super::*;

const AMD64: Machine = Machine(62);
const ARM64: Machine = Machine(183);

fn at(number: u16) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1], number))
}

fn is(nonce: u64, cores: u64) -> BuilderInfo {
    BuilderInfo {
        nonce,
        cores,
        machine: AMD64,
    }
}

fn need(avoid: &[(SocketAddr, u64)]) -> Need {
    Need {
        toolchain: "t".into(),
        avoid: avoid.to_vec(),
    }
}

/// Builders by their cores, at the ports from 1 on, with the toolchain.
fn pool(now: Instant, cores: &[u64]) -> Pool {
    let mut pool = Pool::default();
    for (number, cores) in (1..).zip(cores) {
        assert!(pool.heartbeat(now, at(number), is(1, *cores)));
        pool.prepared(&at(number), 1, &"t".into());
    }
    pool
}

fn chosen(pool: &Pool, now: Instant) -> Option<u16> {
    match pool.choose(now, &need(&[]), Some(AMD64)) {
        Choice::Builder(at, _) => Some(at.port()),
        Choice::Wait | Choice::Never => None,
    }
}

#[test]
fn job_goes_only_where_its_toolchain_is_and_there_is_room() {
    let now = Instant::now();
    let mut pool = Pool::default();
    assert_eq!(pool.choose(now, &need(&[]), None), Choice::Never);
    pool.heartbeat(now, at(1), is(1, 1));
    assert_eq!(pool.choose(now, &need(&[]), None), Choice::Wait);
    let toolchain: Toolchain = "t".into();
    assert_eq!(pool.prepare(now, &toolchain, Some(ARM64)), None);
    assert_eq!(pool.prepare(now, &toolchain, Some(AMD64)), Some((at(1), 1)));
    assert_eq!(pool.prepare(now, &toolchain, Some(AMD64)), None, "at it");
    assert_eq!(pool.choose(now, &need(&[]), None), Choice::Wait);
    pool.prepared(&at(1), 1, &toolchain);
    assert_eq!(chosen(&pool, now), Some(1));
    for attempt in 0..2 {
        pool.begin(now, attempt, &at(1));
    }
    assert_eq!(chosen(&pool, now), None);
    assert!(!pool.has_room(now));
    pool.complete(0, &at(1));
    assert_eq!(chosen(&pool, now), Some(1));
    let arm = pool.choose(now, &need(&[]), Some(ARM64));
    assert_eq!(arm, Choice::Never);
}

#[test]
fn new_builder_gets_few_jobs_until_it_has_done_some() {
    let now = Instant::now();
    let mut pool = pool(now, &[64]);
    let fill = |pool: &mut Pool, from: u64| {
        (from..)
            .take_while(|attempt| {
                let free = chosen(pool, now).is_some();
                if free {
                    pool.begin(now, *attempt, &at(1));
                }
                free
            })
            .count()
    };
    assert_eq!(fill(&mut pool, 0), 2);
    pool.end(now, 0, &at(1), Ended::Well(Duration::from_secs(1)));
    assert_eq!(fill(&mut pool, 10), 3);
}

#[test]
fn slower_builder_gets_fewer_jobs() {
    let now = Instant::now();
    let mut pool = pool(now, &[8, 8]);
    for attempt in 0..100 {
        for (port, seconds) in [(1, 4), (2, 1)] {
            pool.begin(now, attempt, &at(port));
            let took = Duration::from_secs(seconds);
            pool.end(now, attempt, &at(port), Ended::Well(took));
        }
    }
    let mut counts = [0, 0];
    for attempt in 0..9 {
        let port = chosen(&pool, now).unwrap();
        counts[usize::from(port) - 1] += 1;
        pool.begin(now, attempt, &at(port));
    }
    assert!(counts[1] >= 2 * counts[0], "{counts:?}");
}

#[test]
fn builder_that_fails_rests_longer_each_time_and_is_forgiven() {
    let mut now = Instant::now();
    let mut pool = pool(now, &[8]);
    let mut backs_off = Vec::new();
    for attempt in 0..3 {
        pool.begin(now, attempt, &at(1));
        pool.end(now, attempt, &at(1), Ended::Fault);
        let failed = now;
        while chosen(&pool, now).is_none() {
            assert_eq!(pool.choose(now, &need(&[]), None), Choice::Wait);
            now += Duration::from_millis(100);
        }
        backs_off.push((now - failed).as_millis());
    }
    assert_eq!(backs_off, [500, 1000, 2000]);
    pool.begin(now, 9, &at(1));
    pool.end(now, 9, &at(1), Ended::Well(Duration::from_secs(1)));
    pool.begin(now, 10, &at(1));
    pool.end(now, 10, &at(1), Ended::Fault);
    assert_eq!(chosen(&pool, now + FIRST_BACKOFF), Some(1));
}

#[test]
fn process_on_which_a_job_failed_is_avoided_and_its_successor_is_not() {
    let now = Instant::now();
    let mut pool = pool(now, &[8, 8]);
    let first = need(&[(at(1), 1)]);
    assert_eq!(
        pool.choose(now, &first, None),
        Choice::Builder(at(2), 1),
        "the other one"
    );
    let both = need(&[(at(1), 1), (at(2), 1)]);
    assert_eq!(pool.choose(now, &both, None), Choice::Never);
    // One that died is expected back, for a while.
    pool.begin(now, 1, &at(1));
    assert!(pool.gone(now, &at(1), 1), "it had one job");
    assert!(!pool.gone(now, &at(1), 1), "which is told once");
    assert_eq!(pool.choose(now, &both, None), Choice::Wait);
    assert_eq!(pool.choose(now + EXPECTED, &both, None), Choice::Never);
    pool.heartbeat(now, at(1), is(2, 8));
    pool.prepared(&at(1), 2, &"t".into());
    assert_eq!(pool.choose(now, &both, None), Choice::Builder(at(1), 2));
}

#[test]
fn abandoned_attempt_fills_its_slot_until_the_builder_says_that_it_is_over() {
    let mut now = Instant::now();
    let mut pool = pool(now, &[1]);
    pool.begin(now, 1, &at(1));
    pool.begin(now, 2, &at(1));
    pool.abandon(now, 1, &at(1));
    assert_eq!(chosen(&pool, now), None);
    pool.complete(1, &at(1));
    assert_eq!(chosen(&pool, now), Some(1));
    pool.complete(2, &at(1));
    pool.begin(now, 3, &at(1));
    pool.begin(now, 4, &at(1));
    now += LONGEST_ATTEMPT;
    pool.sign(now, &at(1));
    pool.expire(now);
    assert_eq!(chosen(&pool, now), Some(1));
}

#[test]
fn abandoned_attempt_that_the_builder_does_not_have_is_over() {
    let (now, bound) = (Instant::now(), Duration::from_secs(9));
    let mut pool = pool(now, &[1]);
    for attempt in 1..3 {
        pool.begin(now, attempt, &at(1));
    }
    assert!(pool.doubtful(now, bound).is_empty());
    // Their connection may be on its way: they are somebody's.
    assert!(pool.has(now, &at(1), &[]).is_empty());
    pool.abandon(now, 1, &at(1));
    assert_eq!(pool.doubtful(now, bound), [at(1)]);
    assert!(pool.has(now, &at(1), &[1, 2]).is_empty(), "it goes on");
    let before = now.checked_sub(Duration::from_millis(1)).unwrap();
    assert!(pool.has(before, &at(1), &[]).is_empty(), "an old answer");
    assert_eq!(chosen(&pool, now), None);
    assert_eq!(pool.has(now, &at(1), &[2]), [1]);
    assert_eq!(chosen(&pool, now), Some(1));
    assert!(pool.doubtful(now, bound).is_empty());
}

#[test]
fn builder_without_memory_for_another_job_gets_none() {
    let now = Instant::now();
    let mut pool = pool(now, &[8, 8]);
    for attempt in 0..16 {
        let builder = at(1 + (attempt % 2) as u16);
        pool.begin(now, attempt, &builder);
        pool.end(now, attempt, &builder, Ended::Well(Duration::from_secs(1)));
    }
    pool.has_free_memory(&at(1), Some(0));
    assert_eq!(chosen(&pool, now), Some(1), "one alone may try");
    pool.begin(now, 20, &at(1));
    for attempt in 21..31 {
        assert_eq!(chosen(&pool, now), Some(2));
        pool.begin(now, attempt, &at(2));
    }
    assert_eq!(chosen(&pool, now), None, "the other is full");
    // Jobs that have just begun will take memory.
    pool.has_free_memory(&at(1), Some(2 * MEMORY_OF_A_JOB - 1));
    assert_eq!(chosen(&pool, now), None);
    assert_eq!(chosen(&pool, now + YOUNG), Some(1));
    pool.has_free_memory(&at(1), None);
    assert_eq!(chosen(&pool, now), Some(1), "a stock one tells nothing");
}

#[test]
fn silent_leaving_and_lost_builders_get_no_jobs() {
    let now = Instant::now();
    let mut pool = pool(now, &[4]);
    pool.silent(&at(1));
    assert_eq!(chosen(&pool, now), None);
    assert_eq!(pool.doubtful(now, Duration::from_secs(9)), [at(1)]);
    pool.sign(now, &at(1));
    assert_eq!(chosen(&pool, now), Some(1));
    assert_eq!(chosen(&pool, now + LOST), None);
    pool.bar(&at(1), true);
    assert_eq!(chosen(&pool, now), None);
    assert_eq!(pool.totals(now), Totals::default());
    pool.bar(&at(1), false);
    assert_eq!(chosen(&pool, now), Some(1));
    pool.leave(&at(1));
    assert_eq!(chosen(&pool, now), None);
    assert_eq!(pool.totals(now), Totals::default());
}

#[test]
fn toolchain_that_a_builder_cannot_take_is_tried_again_later() {
    let now = Instant::now();
    let mut pool = Pool::default();
    pool.heartbeat(now, at(1), is(1, 4));
    let toolchain: Toolchain = "t".into();
    assert!(pool.prepare(now, &toolchain, None).is_some());
    pool.unprepared(now, &at(1), 1, &toolchain);
    assert_eq!(pool.prepare(now, &toolchain, None), None);
    let later = now + FIRST_BACKOFF;
    assert!(pool.prepare(later, &toolchain, None).is_some());
    // Jobs wait for a while, and then no longer; whether it can take it is still tried.
    let mut last = later;
    for _ in 1..FAILED_ATTEMPTS {
        assert_eq!(pool.choose(last, &need(&[]), None), Choice::Wait);
        pool.unprepared(last, &at(1), 1, &toolchain);
        last += LONGEST_BACKOFF;
        pool.sign(last, &at(1));
        assert!(pool.prepare(last, &toolchain, None).is_some());
    }
    assert_eq!(pool.choose(last, &need(&[]), None), Choice::Never);
    pool.prepared(&at(1), 1, &toolchain);
    assert_eq!(chosen(&pool, last), Some(1));
    // What comes late from a process that is no more does not count.
    pool.heartbeat(later, at(1), is(2, 4));
    pool.prepared(&at(1), 1, &toolchain);
    assert_eq!(chosen(&pool, later), None);
}
