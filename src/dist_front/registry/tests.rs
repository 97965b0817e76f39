use super::*;

const T: &str = "t";

fn address(port: u16) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1], port))
}

fn beat(registry: &mut Registry, now: Instant, port: u16, nonce: u64) -> Result<bool, Stale> {
    let heartbeat = Heartbeat { cores: 4, nonce };
    registry.heartbeat(now, address(port), heartbeat, Bytes::from_static(b"body"))
}

/// A registry with builders at these ports.
fn with(now: Instant, ports: &[u16]) -> Registry {
    let mut registry = Registry::default();
    for port in ports {
        assert_eq!(beat(&mut registry, now, *port, 1), Ok(true));
    }
    registry
}

/// Takes a job through all its states.
fn whole_job(registry: &mut Registry, now: Instant, job: u64, port: u16) {
    registry.assigned(now, job, address(port), T, false);
    registry.progressed(now, job, address(port), JobState::Started);
    registry.progressed(now, job, address(port), JobState::Complete);
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

#[test]
fn heartbeat_of_a_replaced_process_is_refused_while_the_new_one_lives() {
    let now = Instant::now();
    let mut registry = with(now, &[1]);
    assert_eq!(beat(&mut registry, now, 1, 1), Ok(false));
    assert_eq!(beat(&mut registry, now, 1, 2), Ok(true));
    assert_eq!(beat(&mut registry, now, 1, 1), Err(Stale::Retired));
    assert_eq!(beat(&mut registry, now + LOST, 1, 1), Ok(true));
    assert_eq!(beat(&mut registry, now + LOST, 1, 2), Err(Stale::Retired));
}

#[test]
fn builders_are_bounded() {
    let now = Instant::now();
    let ports: Vec<u16> = (1..=u16::try_from(BUILDERS).unwrap()).collect();
    let mut registry = with(now, &ports);
    assert_eq!(beat(&mut registry, now, 9999, 1), Err(Stale::Full));
    // One that was lost makes room.
    for port in &ports[1..] {
        beat(&mut registry, now + LOST, *port, 1).unwrap();
    }
    assert_eq!(beat(&mut registry, now + LOST, 9999, 1), Ok(true));
    assert_eq!(beat(&mut registry, now + LOST, 9998, 1), Err(Stale::Full));
    let mut registry = with(now, &ports);
    assert_eq!(beat(&mut registry, now, 1, 1), Ok(false));
}

#[test]
fn only_fresh_heartbeats_of_staying_builders_are_replayed() {
    let now = Instant::now();
    let mut registry = with(now, &[1, 2]);
    assert!(registry.leave(&address(2)));
    assert!(!registry.leave(&address(3)));
    let replayed = |registry: &Registry, now| -> Vec<SocketAddr> {
        let heartbeats = registry.heartbeats(now);
        heartbeats.into_iter().map(|kept| kept.builder).collect()
    };
    assert_eq!(replayed(&registry, now + seconds(44)), [address(1)]);
    assert_eq!(replayed(&registry, now + REPLAYED), []);
    // A job's new state is a sign of life too.
    registry.progressed(now + seconds(40), 7, address(1), JobState::Started);
    assert_eq!(replayed(&registry, now + REPLAYED), [address(1)]);
}

#[test]
fn leaving_builder_gets_no_job_until_its_successor_comes() {
    let now = Instant::now();
    let mut registry = with(now, &[1]);
    registry.leave(&address(1));
    let assigned = registry.assigned(now, 1, address(1), T, false);
    assert_eq!(assigned, Assignment::Leaving);
    assert_eq!(beat(&mut registry, now, 1, 1), Ok(false));
    let assigned = registry.assigned(now, 2, address(1), T, false);
    assert_eq!(assigned, Assignment::Leaving);
    assert_eq!(beat(&mut registry, now, 1, 2), Ok(true));
    let assigned = registry.assigned(now, 3, address(1), T, false);
    assert_eq!(assigned, Assignment::Taken);
}

#[test]
fn clients_are_held_and_then_sent_home_while_a_toolchain_is_on_its_way() {
    let now = Instant::now();
    let mut registry = with(now, &[1]);
    assert_eq!(registry.admit(now, T), Admission::Single);
    registry.assigned(now, 1, address(1), T, true);
    assert_eq!(registry.admit(now, T), Admission::Hold(now + HOLD));
    assert_eq!(registry.admit(now + HOLD, T), Admission::Busy);
    let uploading = now + seconds(19);
    registry.progressed(uploading, 1, address(1), JobState::Ready);
    beat(&mut registry, uploading + seconds(60), 1, 1).unwrap();
    assert_eq!(registry.admit(uploading + seconds(119), T), Admission::Busy);
    let unpacking = uploading + seconds(119);
    registry.progressed(unpacking, 1, address(1), JobState::Started);
    assert_eq!(
        registry.admit(unpacking + seconds(9), "other"),
        Admission::Busy
    );
    registry.progressed(unpacking + seconds(9), 1, address(1), JobState::Complete);
    assert_eq!(registry.admit(unpacking + seconds(9), T), Admission::Open);
    let other = registry.admit(unpacking + seconds(9), "other");
    assert_eq!(other, Admission::Single);
}

#[test]
fn upload_that_never_comes_blocks_nobody_for_long() {
    let now = Instant::now();
    let mut registry = with(now, &[1]);
    registry.assigned(now, 1, address(1), T, true);
    assert_eq!(registry.admit(now + BEGINS, T), Admission::Single);
    registry.assigned(now + BEGINS, 2, address(1), T, true);
    registry.progressed(now + BEGINS, 2, address(1), JobState::Ready);
    beat(&mut registry, now + BEGINS + seconds(60), 1, 1).unwrap();
    assert_eq!(registry.admit(now + BEGINS + UPLOAD, T), Admission::Single);
}

#[test]
fn long_job_keeps_the_builder_closed_only_while_it_may_unpack() {
    let now = Instant::now();
    let mut registry = with(now, &[1]);
    registry.assigned(now, 1, address(1), T, false);
    registry.progressed(now, 1, address(1), JobState::Started);
    assert_eq!(registry.admit(now + seconds(9), T), Admission::Busy);
    assert_eq!(registry.admit(now + UNPACK, T), Admission::Open);
    // The local builder's shim says it sooner.
    let mut registry = with(now, &[1]);
    registry.assigned(now, 1, address(1), T, true);
    registry.runs(&address(1));
    assert_eq!(registry.admit(now + HOLD, T), Admission::Busy);
    registry.progressed(now, 1, address(1), JobState::Started);
    registry.runs(&address(1));
    assert_eq!(registry.admit(now, T), Admission::Open);
}

#[test]
fn free_builder_with_less_to_do_keeps_the_gate_open() {
    let now = Instant::now();
    let mut registry = with(now, &[1, 2]);
    registry.assigned(now, 1, address(1), T, true);
    assert_eq!(registry.admit(now, T), Admission::Single);
    whole_job(&mut registry, now, 2, 2);
    registry.assigned(now, 3, address(2), T, false);
    // As much to do on both: the scheduler may choose either.
    assert_eq!(registry.admit(now, T), Admission::Hold(now + HOLD));
    registry.progressed(now, 3, address(2), JobState::Complete);
    assert_eq!(registry.admit(now, T), Admission::Single);
}

#[test]
fn job_survives_the_scheduler_that_assigned_it() {
    let now = Instant::now();
    let mut registry = with(now, &[1, 2]);
    registry.assigned(now, 1, address(1), T, false);
    assert_eq!(registry.known(1, &address(1)), Known::Yes);
    registry.scheduler_started();
    assert_eq!(registry.known(1, &address(1)), Known::Lost);
    assert_eq!(registry.known(1, &address(2)), Known::No);
    assert_eq!(registry.known(2, &address(1)), Known::No);
    registry.progressed(now, 1, address(1), JobState::Complete);
    let builders = registry.builders(now, Some(address(1)));
    assert!(builders[0].local && !builders[1].local);
    assert_eq!((builders[0].jobs, builders[0].done), (0, 1));
}

#[test]
fn jobs_of_a_dead_process_and_unclaimed_ones_have_failed() {
    let now = Instant::now();
    let mut registry = with(now, &[1]);
    registry.assigned(now, 1, address(1), T, false);
    beat(&mut registry, now, 1, 2).unwrap();
    assert_eq!(registry.builders(now, None)[0].failed, 1);
    registry.assigned(now, 2, address(1), T, false);
    let later = now + jobs::UNCLAIMED_PENDING + seconds(1);
    beat(&mut registry, later, 1, 2).unwrap();
    let builder = &registry.builders(later, None)[0];
    assert_eq!((builder.failed, builder.jobs), (2, 0));
    let lost = &registry.builders(later + LOST, None)[0];
    assert_eq!(lost.state, BuilderState::Lost);
}

fn kept(port: u16, age: u64) -> SavedHeartbeat {
    SavedHeartbeat {
        builder: address(port),
        age: seconds(age),
        body: Bytes::from_static(b"body"),
    }
}

#[test]
fn kept_heartbeat_counts_until_its_builder_speaks_for_itself() {
    let now = Instant::now() + seconds(1000);
    let mut registry = Registry::default();
    let of_then = Heartbeat { cores: 4, nonce: 1 };
    assert!(registry.recall(now, kept(1, 20), of_then));
    assert_eq!(registry.builders(now, None)[0].last_sign_seconds, 20);
    assert_eq!(registry.heartbeats(now), [kept(1, 20)]);
    assert_eq!(registry.heartbeats(now + seconds(25)), []);
    assert_eq!(beat(&mut registry, now, 1, 2), Ok(true));
    assert!(!registry.recall(now, kept(1, 20), of_then));
    assert_eq!(registry.builders(now, None)[0].last_sign_seconds, 0);
    assert!(is_fresh(&kept(1, 44)) && !is_fresh(&kept(1, 45)));
}

#[test]
fn silent_builder_is_doubted_until_it_gives_a_sign_or_the_scheduler_shuns_it() {
    let now = Instant::now();
    let mut registry = with(now, &[1, 2]);
    whole_job(&mut registry, now, 1, 1);
    whole_job(&mut registry, now, 2, 2);
    assert_eq!(registry.admit(now, T), Admission::Open);
    assert_eq!(registry.quiet(now, seconds(1)), []);
    let later = now + seconds(1);
    assert_eq!(registry.quiet(later, seconds(1)), [address(1), address(2)]);
    assert!(registry.silent(later, &address(1)));
    assert!(!registry.silent(later, &address(1)));
    assert!(!registry.silent(later, &address(3)));
    let state = |registry: &Registry, now| registry.builders(now, None)[0].state;
    assert_eq!(state(&registry, later), BuilderState::Silent);
    assert_eq!(registry.admit(later, T), Admission::Single);
    let shunned = later + SHUNNED + seconds(1);
    assert_eq!(registry.quiet(shunned, seconds(1)), [address(2)]);
    assert_eq!(registry.admit(shunned, T), Admission::Open);
    assert!(registry.is_silent(shunned, &address(1)));
    assert_eq!(beat(&mut registry, shunned, 1, 1), Ok(false));
    assert_eq!(state(&registry, shunned), BuilderState::Ready);
    registry.silent(shunned, &address(1));
    registry.awake(&address(1));
    assert!(!registry.is_silent(shunned, &address(1)));
}

#[test]
fn admission_looks_at_no_job() {
    let now = Instant::now();
    let ports: Vec<u16> = (1..=u16::try_from(BUILDERS).unwrap()).collect();
    let mut registry = with(now, &ports);
    for job in 0..1 << 16 {
        let port = u16::try_from(job % BUILDERS as u64).unwrap() + 1;
        registry.assigned(now, job, address(port), T, false);
    }
    let start = Instant::now();
    for _ in 0..1000 {
        registry.admit(now, T);
    }
    // A look at every job takes minutes.
    assert!(start.elapsed() < seconds(20));
}
