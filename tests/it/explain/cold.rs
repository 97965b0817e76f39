//! `prefetch`: a fresh machine whose build finds everything on its own disk.

use super::{Client, checkout, read};
use crate::harness::Gateway;

const LABELS: &str = "--job check --repository team/project --branch main";

fn build(client: &Client, more: &str) -> serde_json::Value {
    let outcome = client.sh(&format!(
        "rm -rf target; sccache-dock build {LABELS} {more} --report json=report.json -- \
         cargo check --offline --quiet --workspace"
    ));
    assert_eq!(outcome.code, Some(0), "{}", outcome.output);
    read(&client.machine.work().join("report.json"))
}

#[test]
fn fresh_machine_has_all_before_it_asks() {
    let gateway = Gateway::start();
    let first = Client::new(&gateway).with_disk();
    checkout(&first.machine);
    let outcome = first.sh(&format!("sccache-dock prefetch {LABELS}"));
    assert!(
        outcome.output.contains("nothing to prefetch"),
        "{}",
        outcome.output
    );
    assert_eq!(build(&first, "")["sums"]["misses"], 104);

    // Another machine, with the checkout at the same path: only its own level and daemon are fresh.
    first.stop_daemon();
    let fresh = |what: &str| {
        first.stop_daemon();
        let removed = first.sh("rm -rf ../own-level ../.cache");
        assert_eq!(removed.code, Some(0), "{what}: {}", removed.output);
    };
    fresh("prefetch apart");
    let outcome = first.sh(&format!("sccache-dock prefetch {LABELS}"));
    assert!(
        outcome.output.starts_with("prefetched 104 entries"),
        "{}",
        outcome.output
    );
    let report = build(&first, "");
    assert_eq!(report["sums"]["own_disk"], 104, "{:#}", report["sums"]);
    assert_eq!(report["wire"]["hits"], 0);
    assert_eq!(report["prefetched"][1], 104, "{:#}", report["prefetched"]);
    // The list is still whole, though nothing was asked for.
    fresh("prefetch by the build");
    let report = build(&first, "--prefetch");
    assert_eq!(report["sums"]["own_disk"], 104, "{:#}", report["sums"]);

    // A build of one crate, or one that fails, takes nothing from the list; what that crate depends on has other keys,
    // without CARGO_PRIMARY_PACKAGE.
    for (command, code) in [
        ("cargo check --offline --quiet -p top", 0),
        ("sh -c 'cargo check --offline --quiet -p base; exit 1'", 1),
    ] {
        fresh(command);
        let script = format!("rm -rf target; sccache-dock build {LABELS} -- {command}");
        let outcome = first.sh(&script);
        assert_eq!(outcome.code, Some(code), "{}", outcome.output);
    }
    fresh("what some builds have not used");
    // What is not needed any more is dropped from the list after some builds.
    for number in 0..50 {
        let folder = first.machine.work().join(format!("crates/leaf{number}"));
        std::fs::remove_dir_all(folder).unwrap();
    }
    for round in 0..5 {
        let outcome = first.sh(&format!("sccache-dock prefetch {LABELS}"));
        let expected = "prefetched 106 entries";
        assert!(
            outcome.output.starts_with(expected),
            "{round}: {}",
            outcome.output
        );
        let report = build(&first, "");
        assert_eq!(report["prefetched"][0], 106);
        assert_eq!(report["prefetched"][1], 54);
        fresh("the next one");
    }
    let outcome = first.sh(&format!("sccache-dock prefetch {LABELS}"));
    assert!(
        outcome.output.starts_with("prefetched 54 entries"),
        "{}",
        outcome.output
    );
    fresh("bounded");
    let outcome = first.sh(&format!("sccache-dock prefetch {LABELS} --max-size 20K"));
    let few: u64 = outcome.output.split(' ').nth(1).unwrap().parse().unwrap();
    assert!((1..54).contains(&few), "{}", outcome.output);
}

#[test]
fn what_prevents_it_is_said() {
    let gateway = Gateway::start();
    let client = Client::new(&gateway);
    let outcome = client.sh("sccache-dock prefetch; echo code $?");
    assert!(
        outcome.output.contains("no level on disk"),
        "{}",
        outcome.output
    );
    assert!(outcome.output.contains("code 1"), "{}", outcome.output);
    let client = client.with_disk();
    let outcome = client.sh("sccache --start-server; sccache-dock prefetch; echo code $?");
    assert!(
        outcome
            .output
            .contains("sccache --stop-server, then prefetch"),
        "{}",
        outcome.output
    );
    client.stop_daemon();
    let outcome = client.sh("SCCACHE_WEBDAV_TOKEN=wrong sccache-dock prefetch");
    assert!(outcome.output.contains("answers 401"), "{}", outcome.output);
}
