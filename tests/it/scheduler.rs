//! The front of the scheduler, with the real scheduler behind it and real builders.

mod cluster;
mod compiles;
mod refusals;

use crate::harness::{WRITER, wait_for};
use cluster::{
    Allocation, Builder, Cluster, Counted, Front, RealScheduler, SOON, free_port, toolchain,
};
use nix::sys::signal::Signal;
use sccache_dock::contract::gateway_config;
use sccache_dock::contract::gateway_config::WrongToken;
use sccache_dock::contract::gateway_status::BuilderState;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;

const READY: u32 = 1;
const STARTED: u32 = 2;
const COMPLETE: u32 = 3;

/// Reports of a whole job, as the builder would make them.
fn run(front: &Front, builder: SocketAddr, allocation: &Allocation) {
    for state in [READY, STARTED, COMPLETE] {
        let needs = matches!(
            allocation,
            Allocation::Assigned {
                needs_toolchain: true,
                ..
            }
        );
        if state != READY || needs {
            let answer = front.job_state(builder, allocation.job(), state);
            assert_eq!(answer.code, 200, "{state}: {}", answer.text());
        }
    }
}

#[test]
fn builder_with_another_address_than_its_connections_gets_jobs() {
    let cluster = Cluster::start();
    let (front, builder) = (&cluster.front, cluster.builder.address);
    assert_eq!(front.servers(), 1);
    let certificate = format!("/api/v1/scheduler/server_certificate/{builder}");
    assert!(front.get(&certificate).text().contains("cert_pem"));
    let stranger = "/api/v1/scheduler/server_certificate/10.9.9.9:1";
    assert_eq!(front.get(stranger).code, 500);

    let allocation = front.allocate('a');
    let Allocation::Assigned {
        builder: chosen,
        needs_toolchain,
        ..
    } = allocation
    else {
        panic!("{allocation:?}");
    };
    assert!(chosen == builder && needs_toolchain);
    let status = front.builder(builder);
    assert_eq!((status.state, status.jobs), (BuilderState::Preparing, 1));
    run(front, builder, &allocation);
    let status = front.builder(builder);
    assert_eq!((status.state, status.done), (BuilderState::Ready, 1));
    assert!(status.local && status.slots > 0);

    let metrics = front.page("/metrics");
    for line in [
        format!("sccache_dock_dist_builder_up{{builder=\"{builder}\"}} 1"),
        format!("sccache_dock_dist_jobs_done_total{{builder=\"{builder}\"}} 1"),
        "sccache_dock_dist_allocations_total{outcome=\"assigned\"} 1".to_owned(),
        "sccache_dock_dist_scheduler_up 1".to_owned(),
        "sccache_dock_dist_requests_total{route=\"job_state\",code=\"200\"} 3".to_owned(),
    ] {
        assert!(
            metrics.lines().any(|found| found == line),
            "{line}\n{metrics}"
        );
    }
}

#[test]
fn killed_scheduler_is_replaced_with_all_its_builders_and_jobs() {
    let mut cluster = Cluster::start();
    let second = Builder::start("127.0.0.3", cluster.front.address);
    cluster.front.wait_for_servers(2);
    let builder = cluster.builder.address;
    let allocations: Vec<_> = ['a', 'b'].map(|digit| cluster.front.allocate(digit)).into();
    let mut jobs: Vec<(SocketAddr, &Allocation)> = Vec::new();
    for allocation in &allocations {
        let Allocation::Assigned { builder, .. } = allocation else {
            panic!("{allocation:?}");
        };
        jobs.push((*builder, allocation));
    }
    assert_ne!(
        jobs[0].0, jobs[1].0,
        "each builder is busy with a toolchain"
    );
    let started = |at: usize, state: u32| {
        let (builder, allocation) = jobs[at];
        cluster
            .front
            .job_state(builder, allocation.job(), state)
            .code
    };
    assert_eq!((started(0, READY), started(0, STARTED)), (200, 200));
    let mut times = Vec::new();
    for _ in 0..3 {
        cluster.scheduler.kill();
        times.push(cluster.replace_scheduler(2));
    }
    println!("a new scheduler has all builders after {times:?} (stock: up to 30 s)");
    // Jobs in flight come to their end, those that had not started too.
    for (at, state) in [(0, COMPLETE), (1, READY), (1, STARTED), (1, COMPLETE)] {
        let (builder, allocation) = jobs[at];
        let answer = cluster.front.job_state(builder, allocation.job(), state);
        assert_eq!(answer.code, 200, "{at} {state}: {}", answer.text());
    }
    let status = cluster.front.status();
    assert_eq!(status.replayed_heartbeats, 6);
    assert!(
        status
            .builders
            .iter()
            .all(|one| (one.done, one.jobs) == (1, 0))
    );
    // A job that nobody was given is still unknown.
    assert_eq!(cluster.front.job_state(builder, 1, STARTED).code, 500);
    let after = cluster.front.allocate('a');
    let Allocation::Assigned { builder, .. } = after else {
        panic!("{after:?}");
    };
    run(&cluster.front, builder, &after);
    drop(second);
}

#[test]
fn builder_that_was_refused_while_the_scheduler_was_away_is_there_when_it_is_back() {
    let mut cluster = Cluster::start();
    cluster.scheduler.kill();
    // Its first heartbeat finds no scheduler, and is kept.
    let _second = Builder::start("127.0.0.3", cluster.front.address);
    cluster.front.process.wait_for_line("builder 127.0.0.3");
    assert_eq!(cluster.front.allocate_as(WRITER, &toolchain('a')).code, 503);
    cluster.replace_scheduler(2);
}

#[test]
fn stopped_scheduler_holds_up_nobody_for_long() {
    let cluster = Cluster::start();
    let front = &cluster.front;
    cluster.scheduler.process.signal(Signal::SIGSTOP);
    let start = crate::harness::now();
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| front.allocate_as(WRITER, &toolchain('a')).code);
        // The cache does not notice.
        while !asked.is_finished() {
            assert!(front.page("/readyz").contains("ready"));
        }
        assert_eq!(asked.join().unwrap(), 503);
    });
    println!("a client was sent home after {:?}", start.elapsed());
    // The next one hears it at once.
    let start = crate::harness::now();
    assert_eq!(front.allocate_as(WRITER, &toolchain('a')).code, 503);
    println!("the next one after {:?}", start.elapsed());
    cluster.scheduler.process.signal(Signal::SIGCONT);
    assert_eq!(front.hear(), b's');
    front.wait_for_servers(1);
}

#[test]
fn paused_builder_is_found_out_and_its_clients_are_sent_home() {
    let cluster = Cluster::start();
    let (front, builder) = (&cluster.front, cluster.builder.address);
    cluster.builder.process.signal(Signal::SIGSTOP);
    let start = crate::harness::now();
    let refused = front.allocate('a');
    println!("a client was sent home after {:?}", start.elapsed());
    let Allocation::Refused(message) = refused else {
        panic!("{refused:?}");
    };
    assert!(message.contains("does not answer"), "{message}");
    let status = front.status();
    assert!(status.scheduler_up && status.scheduler_outages == 0);
    assert_eq!(status.allocations["silent"], 1);
    assert_eq!(front.builder(builder).state, BuilderState::Silent);
    cluster.builder.process.signal(Signal::SIGCONT);
    wait_for("the builder to answer", SOON, || {
        (front.builder(builder).state == BuilderState::Ready).then_some(())
    });
    // The scheduler's own attempt succeeds now, for a client that is gone; there is room for others.
    let allocation = front.allocate('b');
    run(front, builder, &allocation);
}

#[test]
fn builder_is_asked_once_at_a_time_whoever_waits() {
    let scheduler = RealScheduler::start();
    let local = gateway_config::Scheduler::Local(scheduler.address);
    let front = Front::start(local, None, WrongToken::Fail);
    let bind = free_port("127.0.0.6");
    let counted = Counted::to(bind);
    let _builder =
        Builder::start_behind(counted.address, bind, front.address, cluster::SERVER_TOKEN);
    front.wait_for_servers(1);
    wait_for("the builder's port", SOON, || TcpStream::connect(bind).ok());
    // Allocations wait for one another until the toolchain is there.
    run(&front, counted.address, &front.allocate('a'));
    let (before, start) = (counted.questions(), crate::harness::now());
    scheduler.process.signal(Signal::SIGSTOP);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert_eq!(front.allocate_as(WRITER, &toolchain('a')).code, 503));
        }
    });
    scheduler.process.signal(Signal::SIGCONT);
    let (asked, took) = (counted.questions() - before, start.elapsed());
    println!("8 allocations waited for {took:?}, and the builder was asked {asked} times");
    let rounds = took.as_millis() / 500;
    assert!((1..=rounds + 1).contains(&(asked as u128)));
}

#[test]
fn gateway_and_scheduler_that_start_together_know_the_builders_of_before() {
    let Cluster {
        mut builder,
        front,
        mut scheduler,
    } = Cluster::start();
    let file = wait_for("the heartbeat in a file", SOON, || front.heartbeats());
    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    scheduler.kill();
    let front = front.replace();
    scheduler.start_again();
    assert_eq!((front.hear(), front.hear()), (b'b', b's'));
    assert_eq!(
        (front.servers(), front.status().replayed_heartbeats),
        (1, 1)
    );
    // With the key of the builder, which only its heartbeat has.
    let allocation = front.allocate('a');
    run(&front, builder.address, &allocation);

    // One that has gone meanwhile is not believed in.
    builder.process.signal(Signal::SIGKILL);
    builder.process.exit();
    scheduler.kill();
    let front = front.replace();
    scheduler.start_again();
    assert_eq!(front.hear(), b's');
    assert_eq!((front.servers(), front.status().builders), (0, Vec::new()));
}

#[test]
fn leaving_builder_gets_no_more_jobs_and_ends_those_it_has() {
    let mut cluster = Cluster::start();
    let builder = cluster.builder.address;
    let allocation = cluster.front.allocate('a');
    cluster.front.tell(b'L');
    wait_for("the builder to leave", SOON, || {
        (cluster.front.builder(builder).state == BuilderState::Leaving).then_some(())
    });
    run(&cluster.front, builder, &allocation);
    let refused = cluster.front.allocate('a');
    let Allocation::Refused(message) = refused else {
        panic!("{refused:?}");
    };
    assert!(message.contains("about to stop"), "{message}");
    assert_eq!(cluster.front.builder(builder).done, 1);
    cluster.builder.restart();
    assert_eq!(cluster.front.hear(), b'b');
    wait_for("the builder's port", SOON, || {
        TcpStream::connect(builder).ok()
    });
    let again = cluster.front.allocate('a');
    run(&cluster.front, builder, &again);
}

#[test]
fn clients_do_not_queue_behind_the_upload_of_a_toolchain() {
    let cluster = Cluster::start();
    let (front, builder) = (&cluster.front, cluster.builder.address);
    let first = front.allocate('a');
    // Held no longer than it takes.
    let (held, ()) = std::thread::scope(|scope| {
        let held = scope.spawn(|| front.allocate('a'));
        wait_for("the second request", SOON, || {
            let metrics = front.page("/metrics");
            metrics.contains("dist_requests_in_flight 1").then_some(())
        });
        run(front, builder, &first);
        (held.join().unwrap(), ())
    });
    assert!(matches!(held, Allocation::Assigned { .. }), "{held:?}");
    run(front, builder, &held);
    // Nor for long.
    let other = front.allocate('b');
    let start = crate::harness::now();
    let refused = front.allocate('a');
    println!("a client was held for {:?}", start.elapsed());
    let Allocation::Refused(message) = refused else {
        panic!("{refused:?}");
    };
    assert!(message.contains("busy with a toolchain"), "{message}");
    run(front, builder, &other);
    let status = front.status();
    assert_eq!(
        (status.allocations["busy"], status.allocations["assigned"]),
        (1, 3)
    );
}

#[test]
fn machine_that_only_builds_is_relayed_to_the_one_that_schedules() {
    let cluster = Cluster::start();
    let remote = gateway_config::Scheduler::Remote(format!("http://{}", cluster.front.address));
    let address = free_port("127.0.0.4");
    let machine = Front::start(remote, Some(address), WrongToken::Fail);
    assert_eq!(machine.hear(), b's');
    let builder = Builder::start_at(address, machine.address, cluster::SERVER_TOKEN);
    assert_eq!(machine.hear(), b'b');
    assert_eq!(cluster.front.servers(), 2);
    assert!(!cluster.front.builder(address).local);
    assert!(machine.builder(address).local);
    assert_eq!(machine.allocate_as(WRITER, &toolchain('a')).code, 503);
    machine.tell(b'L');
    wait_for("the builder to leave", SOON, || {
        (cluster.front.builder(address).state == BuilderState::Leaving).then_some(())
    });
    drop(builder);
}

#[test]
fn reports_of_local_jobs_are_added_up() {
    let cluster = Cluster::start();
    let (socket, front) = (UnixDatagram::unbound().unwrap(), &cluster.front);
    for text in [
        r#"{"event":"started","job":"1"}"#,
        "garbage",
        r#"{"event":"ended","job":"1","exit":1,"seconds":2.0,"cpu_seconds":1.5,"peak_rss_bytes":7,"limit":"memory"}"#,
        r#"{"event":"started","job":"2"}"#,
        r#"{"event":"ended","job":"2","exit":137,"seconds":1.0,"cpu_seconds":0.5,"peak_rss_bytes":7,"home":{"crate":"askama","reason":"file","what":"/templates/page.html"}}"#,
    ] {
        socket
            .send_to(text.as_bytes(), front.jobs_socket())
            .unwrap();
    }
    let jobs = wait_for("the reports", SOON, || {
        Some(front.status().local_jobs).filter(|jobs| jobs.ended == 2)
    });
    assert_eq!(
        (jobs.running, jobs.nonzero, jobs.limits["memory"]),
        (0, 2, 1)
    );
    let metrics = front.page("/metrics");
    let line = "sccache_dock_dist_local_jobs_limited_total{limit=\"memory\"} 1";
    assert!(metrics.contains(line), "{metrics}");
    let line = "sccache_dock_dist_local_jobs_sent_home_total{crate=\"askama\",reason=\"file\"} 1";
    assert!(metrics.contains(line), "{metrics}");
}
