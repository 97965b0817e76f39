//! Jobs through the relay: where they run, how they wait, and what clients see of it.

use super::{Cluster, builder, scheduler};
use crate::distributed::{STOCK, is_possible};
use crate::dock::{descendants_of, eventually};
use crate::site::free_port;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

#[test]
fn job_goes_through_the_relay_and_what_fails_there_is_compiled_by_the_client() {
    let Some(cluster) = Cluster::start(0, &[]) else {
        return;
    };
    cluster
        .client
        .write("a.c", "int main(void) { return MEANING; }\n");
    let built = cluster
        .client("sccache cc -DMEANING=42 -c a.c -o a.o && cc a.o -o a && { ./a; [ $? = 42 ]; }");
    assert_eq!(built.code, Some(0), "{}", built.output);
    assert_eq!(cluster.done(), (1, 0), "{}", cluster.dock.log());
    let status = cluster.client("sccache --dist-status");
    let expected = "\"num_servers\":1,\"num_cpus\":1,\"in_progress\":0";
    assert!(status.output.contains(expected), "{}", status.output);
    // Its own compiler says the same, once and for all: nobody tries again.
    let failing = cluster.client("sccache cc -DMEANING=nonsense -c a.c -o b.o");
    assert_eq!(failing.code, Some(1), "{}", failing.output);
    assert!(failing.output.contains("nonsense"), "{}", failing.output);
    assert_eq!(cluster.done().0, 1);
    assert_eq!(cluster.outcome("attempts", "compiler"), 1);
    assert_eq!(cluster.outcome("attempts", "done"), 1);
    assert_eq!(cluster.figure("slots_used"), 0);
    assert_eq!(cluster.figure("bytes"), 0);
}

#[test]
fn toolchain_is_sent_once_and_a_builder_that_joins_gets_it_from_the_relay() {
    let Some(mut cluster) = Cluster::start(1, &[]) else {
        return;
    };
    cluster.warm();
    cluster.add_builder();
    let log = eventually("the new builder has the compiler", || {
        let log = cluster.dock.log();
        (log.matches(" is ready on builder ").count() == 3).then_some(log)
    });
    assert_eq!(log.matches(" is here bytes=").count(), 1, "{log}");
    let route = "dist_requests_total{route=\"submit_toolchain\",code=\"200\"}";
    let token = cluster.dock.token();
    let address = cluster.dock.address();
    let metrics = cluster.client(&format!(
        "curl -s -H 'Authorization: Bearer {token}' http://{address}/metrics"
    ));
    let line = metrics.output.lines().find(|line| line.contains(route));
    assert!(line.is_some_and(|line| line.ends_with(" 1")), "{line:?}");
    for name in [
        "sccache_dock_dist_queue_jobs 0",
        "sccache_dock_dist_demand_jobs 0",
        "sccache_dock_dist_slots 6",
        "sccache_dock_dist_relay_jobs_total{outcome=\"done\"} 1",
    ] {
        let has = metrics.output.lines().any(|line| line == name);
        assert!(has, "{name}\n{}", metrics.output);
    }
}

#[test]
fn warm_and_doctor_know_the_relay() {
    let Some(cluster) = Cluster::start(1, &[]) else {
        return;
    };
    let warmed = cluster.client("sccache-dock warm cc");
    assert_eq!(warmed.code, Some(0), "{}", warmed.output);
    assert!(
        warmed.output.contains("on 2 of 2 builders"),
        "{}",
        warmed.output
    );
    let printed = cluster.dock.command(&["client-env", "--lane", "dist"]);
    let file = cluster.client.work().join("env.sh");
    std::fs::write(file, printed.stdout).unwrap();
    let doctor = cluster
        .client
        .sh("eval \"$(cat env.sh)\"\nsccache-dock doctor");
    let there = format!("takes jobs at 127.0.0.1:{}", cluster.front);
    assert!(doctor.output.contains(&there), "{}", doctor.output);
    assert!(
        doctor.output.contains("jobs handed over"),
        "{}",
        doctor.output
    );
    let said = "the relay reaches it, no client has to";
    assert_eq!(doctor.output.matches(said).count(), 2, "{}", doctor.output);
}

#[test]
fn more_jobs_than_slots_wait_and_none_goes_home() {
    let Some(cluster) = Cluster::start(2, &[]) else {
        return;
    };
    cluster.warm();
    for number in 0..24 {
        // Next to nothing to preprocess, much to compile: they come faster than builders take them.
        let text = format!(
            "template <int A, int N> struct G {{ static int g(int x) {{ return G<A, N - 1>::g(x * N + A) ^ (x >> (N % 5)); }} }};\n\
             template <int A> struct G<A, 0> {{ static int g(int x) {{ return x; }} }};\n\
             int f{number}(int x) {{ return G<1, 600>::g(x) + G<2, 600>::g(x + {number}); }}\n"
        );
        cluster.client.write(&format!("f{number}.cpp"), &text);
    }
    let (built, most) = std::thread::scope(|scope| {
        let build = scope.spawn(|| cluster.client(&Cluster::build(24, 24)));
        let mut most = 0;
        while !build.is_finished() {
            most = most.max(cluster.figure("waiting"));
        }
        (build.join().unwrap(), most)
    });
    assert_eq!(built.code, Some(0), "{}", built.output);
    assert_eq!(cluster.done(), (25, 0), "{}", cluster.dock.log());
    assert!(most >= 6, "{most} jobs waited at most");
    let builders = cluster.dist()["builders"].as_array().unwrap().clone();
    let each: Vec<u64> = builders
        .iter()
        .map(|one| one["done"].as_u64().unwrap())
        .collect();
    assert!(each.iter().all(|done| *done >= 4), "{each:?}");
}

#[test]
fn without_a_queue_what_finds_no_slot_is_compiled_by_the_client() {
    let Some(cluster) = Cluster::start(0, &[("SCCACHE_QUEUE_TIME", "0s")]) else {
        return;
    };
    cluster.warm();
    cluster.write_sources(12);
    let built = cluster.client(&Cluster::build(12, 12));
    assert_eq!(built.code, Some(0), "{}", built.output);
    let turned_away = cluster.outcome("jobs", "no_capacity");
    assert!(turned_away > 0, "{}", cluster.dist());
    assert!(cluster.done().0 < 13);
}

#[test]
fn client_that_hangs_up_leaves_the_queue() {
    let Some(cluster) = Cluster::start(0, &[]) else {
        return;
    };
    cluster.warm();
    cluster.write_sources(10);
    std::thread::scope(|scope| {
        let build = scope.spawn(|| cluster.client(&Cluster::build(10, 10)));
        eventually("jobs wait", || {
            (cluster.figure("waiting") >= 4).then_some(())
        });
        // The daemon holds the connections.
        cluster.client("sccache --stop-server");
        let _ = build.join().unwrap();
    });
    eventually("nobody waits any more", || {
        let idle = cluster.figure("waiting") == 0 && cluster.figure("running") == 0;
        (idle && cluster.figure("bytes") == 0).then_some(())
    });
    eventually("the builder has finished what it had", || {
        (cluster.figure("slots_used") == 0).then_some(())
    });
    // It goes on.
    cluster.client.write("b.c", "int b(void) { return 0; }\n");
    let before = cluster.outcome("jobs", "done");
    let built = cluster.client("sccache cc -c b.c -o b.o");
    assert_eq!(built.code, Some(0), "{}", built.output);
    assert_eq!(cluster.outcome("jobs", "done"), before + 1);
}

#[test]
fn builder_that_nobody_reaches_takes_jobs_through_its_own_connections() {
    let Some(mut cluster) = Cluster::start(0, &[]) else {
        return;
    };
    let url = format!("http://127.0.0.1:{}", cluster.front);
    let hidden = builder(&url, &[("SCCACHE_PUBLIC_ADDR", "none")]);
    cluster.builders.push(hidden);
    cluster.warm();
    cluster.write_sources(12);
    let built = cluster.client(&Cluster::build(12, 12));
    assert_eq!(built.code, Some(0), "{}", built.output);
    assert_eq!(cluster.done(), (13, 0), "{}", cluster.dock.log());
    let builders = cluster.dist()["builders"].as_array().unwrap().clone();
    let is_hidden = |one: &&serde_json::Value| one["local"] == false;
    let hidden = builders.iter().find(is_hidden).unwrap();
    assert!(hidden["done"].as_u64().unwrap() >= 3, "{hidden}");
    // Its machine dies, and comes back under another name.
    let dead = cluster.builders.pop().unwrap();
    for pid in descendants_of(dead.pid().as_raw()) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    dead.signal(Signal::SIGKILL);
    drop(dead);
    let back = builder(&url, &[("SCCACHE_PUBLIC_ADDR", "none")]);
    cluster.builders.push(back);
    eventually("the new one has the compiler", || {
        let log = cluster.dock.log();
        (log.matches(" is ready on builder ").count() == 3).then_some(())
    });
    cluster.client.write("z.c", "int z(void) { return 0; }\n");
    let built = cluster.client("sccache cc -c z.c -o z.o");
    assert_eq!(built.code, Some(0), "{}", built.output);
    assert_eq!(cluster.done(), (14, 0), "{}", cluster.dock.log());
    // The relay's process dies, and the next one hears of the builder before its next heartbeat.
    let (told, back) = ("builders_told=1/1", &cluster.builders[0]);
    let before = back.log().matches(told).count();
    kill(cluster.dock.pid_of("gateway"), Signal::SIGKILL).unwrap();
    eventually("the builder tells the next relay of itself", || {
        (back.log().matches(told).count() > before).then_some(())
    });
    eventually("both are there", || {
        let status = cluster.dock.status()?;
        (status["cache"]["dist"]["relay"]["slots"] == 4).then_some(())
    });
}

#[test]
fn toolchain_never_goes_to_a_builder_of_another_kind() {
    let other = format!("127.0.0.1:{}", free_port());
    let kind = format!("{other}=arm64");
    let Some(mut cluster) = Cluster::start(0, &[("SCCACHE_BUILDER_MACHINES", &kind)]) else {
        return;
    };
    let url = format!("http://127.0.0.1:{}", cluster.front);
    let set = [
        ("SCCACHE_PUBLIC_ADDR", other.as_str()),
        ("SCCACHE_BUILDER_LISTEN", other.as_str()),
    ];
    cluster.builders.push(builder(&url, &set));
    cluster.write_sources(8);
    // Once alone, so that one daemon serves them all.
    cluster.client("sccache --start-server");
    let built = cluster.client(&Cluster::build(8, 8));
    assert_eq!(built.code, Some(0), "{}", built.output);
    assert_eq!(cluster.done(), (8, 0), "{}", cluster.dock.log());
    let machine = if cfg!(target_arch = "aarch64") {
        183
    } else {
        62
    };
    cluster
        .dock
        .wait_log(&format!("is for ELF's machine {machine}"));
    let builders = cluster.dist()["builders"].as_array().unwrap().clone();
    let of = |address: &str| {
        let found = builders.iter().find(|one| one["address"] == address);
        found.unwrap().clone()
    };
    assert_eq!(of(&other)["done"], 0, "{builders:?}");
    assert_eq!(of(&other)["version"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn builder_that_nobody_reaches_says_that_it_needs_a_relay() {
    if !is_possible() {
        return;
    }
    let front = free_port();
    let _without = scheduler(front, &[STOCK]);
    let url = format!("http://127.0.0.1:{front}");
    let hidden = builder(&url, &[("SCCACHE_PUBLIC_ADDR", "none")]);
    let line = hidden.wait_log("cannot keep connections to the relay open");
    assert!(line.contains("SCCACHE_RELAY=on there"), "{line}");
}

#[test]
fn builder_joins_by_a_token_of_the_file_until_it_is_taken_out() {
    const TOKEN: &str = "the-token-of-the-builders-in-rack-7";
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tokens.toml");
    let named = format!("[[token]]\nname = \"rack-7\"\ntoken = \"{TOKEN}\"\naccess = \"build\"\n");
    std::fs::write(&file, &named).unwrap();
    let setting = [("SCCACHE_TOKENS_FILE", file.to_str().unwrap())];
    let Some(mut cluster) = Cluster::start(0, &setting) else {
        return;
    };
    let url = format!("http://127.0.0.1:{}", cluster.front);
    let joined = builder(&url, &[("SCCACHE_SERVER_TOKEN", TOKEN)]);
    cluster.builders.push(joined);
    cluster.warm();
    let find = || {
        let builders = cluster.dist()["builders"].as_array().unwrap().clone();
        let named = builders.into_iter().find(|one| one["token"] == "rack-7");
        named.map(|one| one["state"].as_str().unwrap().to_owned())
    };
    assert_eq!(find().as_deref(), Some("ready"));
    let table = cluster.dock.command(&["status"]);
    let table = String::from_utf8(table.stdout).unwrap();
    assert!(table.contains("(rack-7)"), "{table}");
    // It is good for nothing else.
    let address = cluster.dock.address();
    let read = cluster.client(&format!(
        "curl -s -o /dev/null -w '%{{http_code}}' -H 'Authorization: Bearer {TOKEN}' http://{address}/metrics"
    ));
    assert_eq!(read.output.trim(), "403");
    std::fs::write(&file, "").unwrap();
    eventually("it gets no more jobs", || {
        (find().as_deref() == Some("leaving")).then_some(())
    });
    cluster.client.write("z.c", "int z(void) { return 0; }\n");
    let built = cluster.client("sccache cc -c z.c -o z.o");
    assert_eq!(built.code, Some(0), "{}", built.output);
    assert_eq!(cluster.figure("slots"), 2, "those of the other builder");
    std::fs::write(&file, &named).unwrap();
    eventually("it gets jobs again", || {
        let is_ready = find().as_deref() == Some("ready");
        (is_ready && cluster.figure("slots") == 4).then_some(())
    });
    assert!(!cluster.dock.log().contains(TOKEN));
}
