//! From bare sccache with a store of its own to a dock before that store, and back: what docs/migrate.md promises.

use crate::dock::Dock;
use crate::docker::counts;
use crate::harness::{Process, clean, skip, tools, wait_for};
use crate::machine::Machine;
use crate::site::free_port;
use serde_json::Value;
use std::fs;
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Who moves: compiles Rust and C by bare sccache with a store of its own, then with a dock before that store, then by
/// bare sccache again. `old` are the variables of before, `new` those of the dock that take their place.
fn moves_there_and_back(old: &str, new: &[(&str, &str)]) {
    let machine = Machine::new();
    machine.write("it.rs", "pub fn old() -> u32 { 42 }");
    machine.write("new.rs", "pub fn new() -> u32 { 43 }");
    machine.write("it.c", "int old(void) { return 42; }\n");
    let rust = |name: &str| {
        format!(
            "sccache rustc --crate-name {name} --crate-type rlib --emit link --out-dir . {name}.rs &&"
        )
    };
    let (rust, other) = (rust("it"), rust("new"));
    let c = "sccache cc -c it.c -o it.o &&";
    let bare = |name: &str, compiles: &str| {
        let own = format!("CARGO_INCREMENTAL=0 SCCACHE_SERVER_UDS=$HOME/{name}.sock");
        let sh = |text: &str| machine.sh(&format!("export {own} {old}\n{text}"));
        let ran = sh(&format!("{compiles} true"));
        assert_eq!(ran.code, Some(0), "{}", ran.output);
        // It writes in the background.
        let counted = wait_for("the writes", Duration::from_secs(60), || {
            let shown = sh("sccache --show-stats --stats-format json").output;
            let stats = serde_json::from_str::<Value>(&shown).unwrap()["stats"].take();
            let count = |kind: &str| {
                let by_language = stats[kind]["counts"].as_object().unwrap();
                by_language.values().filter_map(Value::as_u64).sum::<u64>()
            };
            let misses = count("cache_misses");
            let is_over = stats["cache_writes"].as_u64() == Some(misses);
            is_over.then(|| (count("cache_hits"), misses))
        });
        sh("sccache --stop-server");
        counted
    };
    assert_eq!(bare("before", &format!("{rust} {c}")), (0, 2));

    let dock = Dock::start(new);
    let after = |lane: &str, compiles: &str| {
        let ran = machine.with_env(&dock, lane, &format!("rm -f *.rlib *.o\n{compiles} true"));
        assert_eq!(ran.code, Some(0), "{}", ran.output);
        counts(&dock.status().unwrap())
    };
    let (hits, misses, _) = after("--no-disk", &rust);
    assert_eq!((hits, misses), (1, 0), "what was there is found");
    let upstream = || dock.status().unwrap()["cache"]["upstream"].clone();
    assert_eq!(upstream()["hits"], 1, "it came from there");
    let (hits, misses, _) = after("", &rust);
    assert_eq!((hits, misses), (2, 0));
    let (_, misses, _) = after("", c);
    assert_eq!(misses, 1, "docs/migrate.md says that C starts anew");
    after("--no-disk", &other);
    wait_for("all is passed on", Duration::from_secs(60), || {
        let upstream = upstream();
        (upstream["uploaded"].as_u64() > Some(0) && upstream["queued"] == 0).then_some(())
    });
    assert_eq!(bare("again", &other), (1, 0), "the way back is open");
}

#[test]
fn what_bare_sccache_left_in_redis_is_hit_and_the_way_back_is_open() {
    if clean("redis-server").arg("--version").output().is_err() {
        return skip("redis-server is not installed");
    }
    let (folder, port) = (tempfile::tempdir().unwrap(), free_port());
    let mut redis = Command::new("redis-server");
    redis.args(["--port", &port.to_string(), "--save", ""]);
    redis.args(["--bind", "127.0.0.1"]);
    let redis = redis.current_dir(folder.path()).stdout(Stdio::null());
    let _redis = Process::start(redis);
    wait_port(port);
    moves_there_and_back(
        &format!("SCCACHE_REDIS_ENDPOINT=redis://127.0.0.1:{port} SCCACHE_REDIS_KEY_PREFIX=team"),
        &[(
            "SCCACHE_UPSTREAM",
            &format!("redis://127.0.0.1:{port}/0/team"),
        )],
    );
}

#[test]
fn what_bare_sccache_left_in_s3_is_hit_and_the_way_back_is_open() {
    let server = tools().join("cargo/bin/s3s-fs");
    if !server.exists() {
        return skip("s3s-fs is not installed");
    }
    let (folder, port) = (tempfile::tempdir().unwrap(), free_port());
    fs::create_dir(folder.path().join("bucket")).unwrap();
    let mut s3 = Command::new(server);
    s3.args(["--host", "127.0.0.1", "--port", &port.to_string()]);
    s3.args(["--access-key", "the-key", "--secret-key", "the-secret"]);
    let _s3 = Process::start(s3.arg(folder.path()).stdout(Stdio::null()));
    wait_port(port);
    moves_there_and_back(
        &format!(
            "SCCACHE_BUCKET=bucket SCCACHE_REGION=us-east-1 SCCACHE_S3_KEY_PREFIX=team \
             SCCACHE_ENDPOINT=http://127.0.0.1:{port} SCCACHE_S3_USE_SSL=false \
             AWS_ACCESS_KEY_ID=the-key AWS_SECRET_ACCESS_KEY=the-secret"
        ),
        &[
            (
                "SCCACHE_UPSTREAM",
                &format!("s3://bucket/team?region=us-east-1&endpoint=http://127.0.0.1:{port}"),
            ),
            ("AWS_ACCESS_KEY_ID", "the-key"),
            ("AWS_SECRET_ACCESS_KEY", "the-secret"),
        ],
    );
}

fn wait_port(port: u16) {
    wait_for("the port", Duration::from_secs(20), || {
        TcpStream::connect(("127.0.0.1", port)).ok().map(drop)
    });
}
