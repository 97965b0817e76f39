//! Real builds of a project of more than a hundred crates through a running sccache-dock.

use crate::dock::{Dock, eventually, program};
use crate::harness::sccache_bin;
use crate::machine::kill_daemons;
use nix::sys::signal::{Signal, kill};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The project, in a folder of the test's own, at one path for all its builds.
struct Project {
    home: tempfile::TempDir,
}

impl Project {
    fn new() -> Project {
        let home = tempfile::tempdir().unwrap();
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/hundred");
        let copied = Command::new("cp")
            .arg("-r")
            .arg(&fixture)
            .arg(home.path().join("project"))
            .status()
            .unwrap();
        assert!(copied.success());
        Project { home }
    }

    fn dir(&self) -> PathBuf {
        self.home.path().join("project")
    }

    /// A clean build, with what `client-env` prints evaluated first, as a user does it.
    fn build(&self, dock: &Dock, client_env: &str) -> Output {
        let _ = std::fs::remove_dir_all(self.dir().join("target"));
        let client_env = format!("{} client-env {client_env}", program().display());
        let script = format!("eval \"$({client_env})\" && cargo build --locked --quiet");
        self.shell(dock, &script)
    }

    fn shell(&self, dock: &Dock, script: &str) -> Output {
        let path = std::env::var("PATH").unwrap();
        let cargo_home = std::env::var("CARGO_HOME")
            .unwrap_or_else(|_| std::env::var("HOME").unwrap() + "/.cargo");
        let rustup_home = std::env::var("RUSTUP_HOME")
            .unwrap_or_else(|_| std::env::var("HOME").unwrap() + "/.rustup");
        Command::new("sh")
            .arg("-c")
            .arg(script)
            .current_dir(self.dir())
            .env(
                "PATH",
                format!("{}:{path}", sccache_bin().parent().unwrap().display()),
            )
            .env("HOME", self.home.path())
            .env("CARGO_HOME", cargo_home)
            .env("RUSTUP_HOME", rustup_home)
            .env("SCCACHE_DIR", dock.dir.path())
            .env_remove("RUSTC_WRAPPER")
            .output()
            .unwrap()
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        kill_daemons(self.home.path());
    }
}

/// Hits, misses and writes of compile results; not of the preprocessor entries of C and C++.
fn totals(dock: &Dock) -> (u64, u64, u64) {
    let status = dock.status().unwrap();
    let counters = &status["cache"]["namespaces"]["default"];
    let total = |name: &str| counters[name].as_u64().unwrap_or(0);
    (total("hits"), total("misses"), total("writes"))
}

fn assert_built(output: &Output, dock: &Dock) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}\n--- log:\n{}", dock.log());
}

/// Hits, misses and writes since `before`.
fn since(dock: &Dock, before: (u64, u64, u64)) -> (u64, u64, u64) {
    let now = totals(dock);
    (now.0 - before.0, now.1 - before.1, now.2 - before.2)
}

/// Build scripts that try what the compiler can do (anyhow, proc-macro2) compile things that fail, and a failure
/// is never cached: this many misses stay in every build.
const FAILING_PROBES: u64 = 2;

/// Builds over WebDAV with the client's own disk level; gives what the gateway has when all is written.
fn build_cold(project: &Project, dock: &Dock) -> u64 {
    assert_built(&project.build(dock, "--lane webdav"), dock);
    let mut last = 0;
    eventually("all writes reached the gateway in the background", || {
        std::thread::sleep(std::time::Duration::from_millis(500));
        let (.., writes) = totals(dock);
        (std::mem::replace(&mut last, writes) == writes && writes >= 100).then_some(writes)
    })
}

/// The client is as new: no daemon, nothing on its own disk.
fn forget_client(project: &Project, dock: &Dock) {
    let env = format!(
        "eval \"$({} client-env --lane webdav)\"",
        program().display()
    );
    let script = format!("{env}; sccache --stop-server >/dev/null && rm -r \"$SCCACHE_DIR\"");
    assert_built(&project.shell(dock, &script), dock);
}

#[test]
fn every_lane_shares_one_cache_and_a_warm_build_hits_fully() {
    let dock = Dock::start(&[]);
    let project = Project::new();
    let stored = build_cold(&project, &dock);
    let (_, misses, _) = totals(&dock);
    println!("cold, webdav: {misses} misses, {stored} writes");
    assert_eq!(
        misses,
        stored + FAILING_PROBES,
        "every miss of the cold build was stored"
    );
    let before = totals(&dock);
    assert_built(&project.build(&dock, "--lane webdav"), &dock);
    assert_eq!(
        since(&dock, before),
        (0, FAILING_PROBES, 0),
        "the client's own disk answered"
    );
    forget_client(&project, &dock);
    for lane in ["webdav", "ipc", "socket"] {
        let before = totals(&dock);
        assert_built(&project.build(&dock, &format!("--lane {lane}")), &dock);
        let (hits, misses, written) = since(&dock, before);
        println!("warm, {lane}: {hits} hits, {misses} misses");
        assert_eq!(
            (hits, misses, written),
            (stored, FAILING_PROBES, 0),
            "over {lane}"
        );
    }
}

#[test]
fn build_survives_the_death_of_each_service() {
    let dock = Dock::start(&[]);
    let project = Project::new();
    for (round, lane) in ["webdav --no-disk", "socket"].into_iter().enumerate() {
        let before: Vec<Value> = ["gateway", "server"]
            .map(|name| dock.service(name)["restarts"].clone())
            .into();
        let output = std::thread::scope(|scope| {
            let build = scope.spawn(|| project.build(&dock, &format!("--lane {lane}")));
            for name in ["gateway", "server"] {
                let asked = totals(&dock).0 + totals(&dock).1;
                eventually("the build is under way", || {
                    let status = dock.status()?;
                    let totals = &status["cache"]["totals"];
                    let now = totals["hits"].as_u64()? + totals["misses"].as_u64()?;
                    (now > asked || build.is_finished()).then_some(())
                });
                kill(dock.pid_of(name), Signal::SIGKILL).unwrap();
                eventually("the service is back", || {
                    (dock.service(name)["state"] == "ready").then_some(())
                });
            }
            build.join().unwrap()
        });
        // Without a daemon, sccache fails a compile whose request it was writing when the other end died, and no setting
        // changes that: the next build goes on from there.
        let was_cut = String::from_utf8_lossy(&output.stderr).contains("Broken pipe");
        let output = match lane == "socket" && was_cut {
            true => project.build(&dock, &format!("--lane {lane}")),
            false => output,
        };
        assert_built(&output, &dock);
        for (name, before) in ["gateway", "server"].iter().zip(&before) {
            assert_eq!(
                dock.service(name)["restarts"].as_u64(),
                before.as_u64().map(|n| n + 1),
                "{name}, round {round}"
            );
        }
    }
    assert!(
        dock.children().iter().all(|(_, state)| *state != 'Z'),
        "{:?}",
        dock.children()
    );
}

#[test]
fn client_with_default_settings_builds_without_a_cache_and_the_log_names_the_hint() {
    let dock = Dock::start(&[]);
    let project = Project::new();
    let port = dock.address().port();
    let script =
        format!("RUSTC_WRAPPER=sccache SCCACHE_SERVER_PORT={port} cargo build --locked --quiet");
    let output = project.shell(&dock, &script);
    assert_built(&output, &dock);
    let line = dock.wait_log("SCCACHE_CLIENT_SIDE=1");
    assert!(line.contains("WARN"), "{line}");
    assert_eq!(totals(&dock), (0, 0, 0));
}
