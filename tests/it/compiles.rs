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

#[test]
fn no_compile_fails_while_the_gateway_is_killed_five_times() {
    const FILES: usize = 160;
    let dock = Dock::start(&[]);
    let machine = Machine::new();
    for number in 0..FILES {
        let text =
            format!("#include <stdio.h>\nint f{number}(void) {{ return puts(\"{number}\"); }}\n");
        machine.write(&format!("f{number}.c"), &text);
    }
    // Once alone, so that one daemon serves them all; then eight at a time, as make -j8 does it.
    let script = format!(
        "sccache --start-server && seq 0 {} | xargs -P 8 -I N sccache gcc -O2 -c fN.c -o fN.o",
        FILES - 1
    );
    let outcome = std::thread::scope(|scope| {
        let build = scope.spawn(|| machine.with_env(&dock, "--lane webdav", &script));
        for round in 1..=5 {
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
            kill(dock.pid_of("gateway"), Signal::SIGKILL).unwrap();
            eventually("the gateway is back", || {
                let gateway = dock.service("gateway");
                (gateway["state"] == "ready" && gateway["restarts"] == round).then_some(())
            });
        }
        build.join().unwrap()
    });
    assert_eq!(outcome.code, Some(0), "{}\n{}", outcome.output, dock.log());
    let compiled = (0..FILES).filter(|n| machine.work().join(format!("f{n}.o")).exists());
    assert_eq!(compiled.count(), FILES);
    let errors = outcome.output.lines().filter(|line| line.contains("error"));
    assert_eq!(errors.count(), 0, "{}", outcome.output);
}
