//! Builders that die, stand still, or are cut off while they compile: no build notices.

use super::{Cluster, builder};
use crate::dock::{descendants_of, eventually};
use crate::harness::now;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

/// Jobs that are done between two faults: more than there are builders, so that no job is twice the only one of a builder
/// that is killed, which would send it home.
const PACE: u64 = 6;

/// A build of so many files at so many at a time, during which `happens` is done every now and then.
fn build_while(cluster: &Cluster, (files, jobs): (usize, usize), happens: impl Fn(usize)) {
    cluster.warm();
    cluster.write_sources(files);
    let built = std::thread::scope(|scope| {
        let build = scope.spawn(|| cluster.client(&Cluster::build(files, jobs)));
        let mut round = 0;
        while !build.is_finished() {
            let before = cluster.outcome("jobs", "done");
            let enough = || build.is_finished() || cluster.outcome("jobs", "done") >= before + PACE;
            eventually("jobs are done", || enough().then_some(()));
            if !build.is_finished() {
                happens(round);
                round += 1;
            }
        }
        println!("it happened {round} times");
        build.join().unwrap()
    });
    assert_eq!(built.code, Some(0), "{}", built.output);
    let relay = &cluster.dist()["relay"];
    println!("{relay}");
    let expected = (files as u64 + 1, 0);
    assert_eq!(cluster.done(), expected, "{relay}\n{}", cluster.dock.log());
    for number in 0..files {
        let object = cluster.client.work().join(format!("f{number}.o"));
        assert!(object.exists(), "{}", object.display());
    }
}

#[test]
fn killed_builders_cost_no_job() {
    let Some(cluster) = Cluster::start(3, &[]) else {
        return;
    };
    build_while(&cluster, (48, 12), |round| {
        let victim = &cluster.builders[round % cluster.builders.len()];
        if let Some(pid) = victim.service("builder")["pid"].as_i64() {
            let _ = kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL);
        }
    });
    let lost = ["died", "cut", "gone", "unreachable"];
    let lost: u64 = lost
        .iter()
        .map(|outcome| cluster.outcome("attempts", outcome))
        .sum();
    assert!(
        lost > 0,
        "the builders were killed when they had nothing to do"
    );
}

#[test]
fn killed_gateway_fails_no_build() {
    let Some(cluster) = Cluster::start(1, &[]) else {
        return;
    };
    cluster.warm();
    cluster.write_sources(16);
    let built = std::thread::scope(|scope| {
        let build = scope.spawn(|| cluster.client(&Cluster::build(16, 8)));
        eventually("jobs run", || {
            (cluster.outcome("jobs", "done") >= 3).then_some(())
        });
        kill(cluster.dock.pid_of("gateway"), Signal::SIGKILL).unwrap();
        build.join().unwrap()
    });
    assert_eq!(built.code, Some(0), "{}", built.output);
    // Its successor knows the builders, and they have the compilers.
    eventually("both are there", || {
        let status = cluster.dock.status()?;
        (status["cache"]["dist"]["relay"]["slots"] == 4).then_some(())
    });
    let (before, _) = cluster.done();
    cluster.client.write("z.c", "int z(void) { return 0; }\n");
    let again = cluster.client("sccache cc -c z.c -o z.o");
    assert_eq!(again.code, Some(0), "{}", again.output);
    assert_eq!(cluster.done().0, before + 1, "{}", cluster.dock.log());
}

#[test]
fn silent_connections_to_every_port_change_nothing() {
    let Some(cluster) = Cluster::start(1, &[]) else {
        return;
    };
    cluster.warm();
    let builders = cluster.dist()["builders"].as_array().unwrap().clone();
    let mut ports: Vec<String> = builders
        .iter()
        .map(|one| one["address"].as_str().unwrap().to_owned())
        .collect();
    ports.push(format!("127.0.0.1:{}", cluster.front));
    ports.push(cluster.dock.address().to_string());
    let silent = |begin: &[u8]| -> Vec<TcpStream> {
        let connect = |port: &String| {
            let mut stream = TcpStream::connect(port).unwrap();
            stream.write_all(begin).unwrap();
            stream
        };
        ports.iter().map(connect).collect()
    };
    let _held = [silent(b""), silent(&[0x16, 3, 1, 2, 0, 1])];
    cluster.write_sources(8);
    let built = cluster.client(&Cluster::build(8, 8));
    assert_eq!(built.code, Some(0), "{}", built.output);
    assert_eq!(cluster.done(), (9, 0), "{}", cluster.dock.log());
    assert_eq!(cluster.outcome("attempts", "done"), 9, "none ran twice");
}

#[test]
fn job_on_a_paused_builder_runs_elsewhere_within_seconds() {
    let Some(cluster) = Cluster::start(1, &[]) else {
        return;
    };
    cluster.warm();
    let victim = &cluster.builders[0];
    let pids = || {
        let mut pids = descendants_of(victim.pid().as_raw());
        pids.push(victim.pid().as_raw());
        pids
    };
    let signal_all = |signal: Signal| {
        for pid in pids() {
            let _ = kill(Pid::from_raw(pid), signal);
        }
    };
    cluster.write_sources(8);
    let took = std::thread::scope(|scope| {
        let build = scope.spawn(|| cluster.client(&Cluster::build(8, 8)));
        eventually("jobs run on both", || {
            let builders = cluster.dist()["builders"].as_array().unwrap().clone();
            let both = builders.iter().all(|one| one["jobs"].as_u64().unwrap() > 0);
            both.then_some(())
        });
        signal_all(Signal::SIGSTOP);
        let start = now();
        eventually("its jobs were taken away", || {
            (cluster.outcome("attempts", "silent") > 0).then_some(())
        });
        let took = start.elapsed();
        let built = build.join().unwrap();
        assert_eq!(built.code, Some(0), "{}", built.output);
        took
    });
    println!("the jobs of a paused builder were taken away after {took:?}");
    assert!(took < Duration::from_secs(20), "{took:?}");
    assert_eq!(cluster.done(), (9, 0), "{}", cluster.dock.log());
    signal_all(Signal::SIGCONT);
    eventually("it is back", || {
        (cluster.dist()["builders"].as_array().unwrap().iter())
            .all(|one| one["state"] == "ready")
            .then_some(())
    });
}

#[test]
fn builder_that_is_told_to_leave_costs_no_job() {
    let Some(mut cluster) = Cluster::start(0, &[]) else {
        return;
    };
    let url = format!("http://127.0.0.1:{}", cluster.front);
    // Too little for a job.
    let leaving = builder(&url, &[("SCCACHE_STOP_GRACE", "200ms")]);
    cluster.builders.push(leaving);
    cluster.warm();
    cluster.write_sources(12);
    let built = std::thread::scope(|scope| {
        let build = scope.spawn(|| cluster.client(&Cluster::build(12, 8)));
        eventually("jobs run on both", || {
            let builders = cluster.dist()["builders"].as_array().unwrap().clone();
            let all = builders.iter().all(|one| one["jobs"].as_u64() > Some(0));
            all.then_some(())
        });
        cluster.builders[0].signal(Signal::SIGTERM);
        build.join().unwrap()
    });
    assert_eq!(built.code, Some(0), "{}", built.output);
    assert_eq!(cluster.done(), (13, 0), "{}", cluster.dock.log());
}
