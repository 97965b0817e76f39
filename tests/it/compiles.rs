//! C compiles through a running sccache-dock: by the server inside the container, and while the gateway dies.

use crate::dock::{Dock, eventually};
use crate::machine::Machine;
use nix::sys::signal::{Signal, kill};

/// The settings of a client inside the container that does not ask for client-side mode: the server compiles for it.
fn beside_the_server(dock: &Dock, script: &str) -> String {
    let socket = dock.dir.path().join("run/sccache.sock");
    format!("export SCCACHE_SERVER_UDS='{}'\n{script}", socket.display())
}

/// Hits and writes of compile results.
fn hits_and_writes(dock: &Dock) -> (u64, u64) {
    let status = dock.status().unwrap();
    let counters = &status["cache"]["namespaces"]["default"];
    let count = |name: &str| counters[name].as_u64().unwrap_or(0);
    (count("hits"), count("writes"))
}

fn compile(name: &str) -> String {
    format!("sccache gcc -O1 -c {name}.c -o {name}.o && test -s {name}.o")
}

#[test]
fn c_compiled_by_the_server_and_by_clients_is_shared_both_ways() {
    let dock = Dock::start(&[]);
    let machine = Machine::new();
    machine.write("it.h", "#define ANSWER 42\n");
    for name in ["first", "second"] {
        let text = format!("#include \"it.h\"\nint {name}(void) {{ return ANSWER; }}\n");
        machine.write(&format!("{name}.c"), &text);
    }
    let client = machine.with_env(&dock, "--lane webdav", &compile("first"));
    assert_eq!(client.code, Some(0), "{}", client.output);
    eventually("the client's result is stored", || {
        (hits_and_writes(&dock) == (0, 1)).then_some(())
    });
    let server = machine.sh(&beside_the_server(&dock, &compile("first")));
    assert_eq!(server.code, Some(0), "{}", server.output);
    assert_eq!(hits_and_writes(&dock), (1, 1), "{}", dock.log());

    let server = machine.sh(&beside_the_server(&dock, &compile("second")));
    assert_eq!(server.code, Some(0), "{}", server.output);
    eventually("the server's result is stored", || {
        (hits_and_writes(&dock) == (1, 2)).then_some(())
    });
    for (lane, hits) in [("webdav", 2), ("ipc", 3), ("socket", 4)] {
        let client = machine.with_env(&dock, &format!("--lane {lane}"), &compile("second"));
        assert_eq!(client.code, Some(0), "{}", client.output);
        assert_eq!(hits_and_writes(&dock), (hits, 2), "{lane}: {}", dock.log());
    }
    assert!(!dock.log().contains("WARN"), "{}", dock.log());
    let stats = machine.sh(&beside_the_server(
        &dock,
        "sccache --show-stats --stats-format json",
    ));
    let stats: serde_json::Value = serde_json::from_str(&stats.output).unwrap();
    let levels = stats["stats"]["multi_level"].as_array().unwrap();
    assert_eq!(
        (&levels[1]["hits"], &levels[1]["writes"]),
        (&1.into(), &1.into()),
        "the gateway's share is in the server's statistics: {stats:#}"
    );
}

/// Something happens three times to the gateway in the midst of a build by `lane`, which ends with everything in it. Eight
/// compiles at a time, as `make -j8` does it.
fn build_while(lane: &str, prepare: &str, files: usize, happens: impl Fn(&Dock)) {
    let dock = Dock::start(&[]);
    let machine = Machine::new();
    for number in 0..files {
        let text =
            format!("#include <stdio.h>\nint f{number}(void) {{ return puts(\"{number}\"); }}\n");
        machine.write(&format!("f{number}.c"), &text);
    }
    let script = format!(
        "{prepare} seq 0 {} | xargs -P 8 -I N sccache gcc -O2 -c fN.c -o fN.o",
        files - 1
    );
    let outcome = std::thread::scope(|scope| {
        let build = scope.spawn(|| machine.with_env(&dock, lane, &script));
        for round in 1..=3 {
            let asked = |status: &serde_json::Value| {
                let totals = &status["cache"]["totals"];
                Some(totals["hits"].as_u64()? + totals["misses"].as_u64()?)
            };
            eventually("compiles are under way", || {
                (build.is_finished() || asked(&dock.status()?)? > 0).then_some(())
            });
            assert!(
                !build.is_finished(),
                "the build was too short: round {round}"
            );
            happens(&dock);
            eventually("the gateway is back", || {
                let gateway = dock.service("gateway");
                (gateway["state"] == "ready" && gateway["restarts"] == round).then_some(())
            });
        }
        build.join().unwrap()
    });
    assert_eq!(outcome.code, Some(0), "{}\n{}", outcome.output, dock.log());
    let compiled = (0..files).filter(|n| machine.work().join(format!("f{n}.o")).exists());
    assert_eq!(compiled.count(), files);
    let errors = outcome.output.lines().filter(|line| line.contains("error"));
    assert_eq!(errors.count(), 0, "{}", outcome.output);
}

#[test]
fn no_compile_fails_while_the_gateway_is_killed_again_and_again() {
    // Once alone, so that one daemon serves them all.
    let prepare = "sccache --start-server &&";
    build_while("--lane webdav", prepare, 160, |dock| {
        kill(dock.pid_of("gateway"), Signal::SIGKILL).unwrap();
    });
}

/// A compile of C, greeted and not yet answered more, would end with "encountered fatal error".
fn restarts_of_the_gateway_fail_no_compile(lane: &str) {
    build_while(lane, "", 60, |dock| {
        let restarted = dock.command(&["restart", "gateway"]);
        assert!(restarted.status.success(), "{restarted:?}");
    });
}

#[test]
fn no_compile_by_the_port_fails_while_the_gateway_is_restarted() {
    restarts_of_the_gateway_fail_no_compile("--lane ipc");
}

#[test]
fn no_compile_by_the_socket_fails_while_the_gateway_is_restarted() {
    restarts_of_the_gateway_fail_no_compile("--lane socket");
}

#[test]
fn restart_without_a_name_restarts_every_service() {
    let mut dock = Dock::start(&[]);
    let pids = |dock: &Dock| ["gateway", "server"].map(|name| dock.pid_of(name));
    let before = pids(&dock);
    let restarted = dock.command(&["restart"]);
    assert!(restarted.status.success(), "{restarted:?}");
    eventually("both are new", || {
        let all = ["gateway", "server"].map(|name| dock.service(name)["restarts"].as_u64());
        (all == [Some(1), Some(1)]).then_some(())
    });
    dock.wait_ready();
    let after = pids(&dock);
    assert!(before[0] != after[0] && before[1] != after[1]);
}
