//! What outlives the gateway's process.

use super::{Client, checkout};
use crate::harness::{Gateway, READER, wait_for};
use crate::json::conforms;
use nix::sys::signal::Signal;
use serde_json::Value;
use std::time::Duration;

fn end(gateway: &mut Gateway, signal: Signal) {
    gateway.process.signal(signal);
    gateway.process.exit();
}

fn page(gateway: &Gateway, path: &str) -> String {
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {}\r\nAccept: text/html\r\nAuthorization: Bearer {READER}\r\nConnection: close\r\n\r\n",
        gateway.addr
    );
    let mut stream = gateway.connect();
    std::io::Write::write_all(&mut stream, request.as_bytes()).unwrap();
    let answer = crate::harness::Answer::read(&mut stream);
    assert_eq!(answer.code, 200, "{}", answer.text());
    answer.text()
}

#[test]
fn plots_and_sums_go_on_after_a_restart() {
    let mut gateway = Gateway::start();
    for number in 0..7 {
        gateway.request("GET", &format!("/cas/{number}"), b"");
    }
    end(&mut gateway, Signal::SIGTERM);
    gateway.restart();
    for range in ["day", "quarter"] {
        let page = page(&gateway, &format!("/?range={range}"));
        assert!(
            page.contains("0 hits, 7 misses, 0 writes."),
            "{range}: {page}"
        );
        assert!(page.contains("since 20"), "{page}");
    }
    gateway.request("GET", "/cas/x", b"");
    let page = page(&gateway, "/?range=day");
    assert!(page.contains("0 hits, 8 misses, 0 writes."), "{page}");
}

#[test]
fn gateway_that_is_killed_or_whose_history_is_damaged_starts_again() {
    let mut gateway = Gateway::start();
    let file = gateway.config.store_dir.join("history.redb");
    for round in 0..3 {
        gateway.request("GET", "/cas/x", b"");
        end(&mut gateway, Signal::SIGKILL);
        if round == 1 {
            let bytes = std::fs::read(&file).unwrap();
            std::fs::write(&file, &bytes[..bytes.len() / 3]).unwrap();
        }
        if round == 2 {
            std::fs::write(&file, vec![0xa5; 100_000]).unwrap();
        }
        gateway.restart();
        assert_eq!(gateway.request("GET", "/cas/x", b"").code, 404);
        assert_eq!(
            gateway.request("PUT", &format!("/cas/{round}"), b"x").code,
            201
        );
    }
    end(&mut gateway, Signal::SIGTERM);
    // A folder in its place: it goes on without.
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    gateway.restart();
    gateway.process.wait_for_line("cannot keep a history in");
    assert_eq!(gateway.request("GET", "/cas/1", b"").code, 200);
}

#[test]
fn builds_are_listed_by_repository_branch_and_job() {
    let mut gateway = Gateway::start();
    let client = Client::new(&gateway);
    checkout(&client.machine);
    let labels = "export GITHUB_REPOSITORY=team/project GITHUB_REF_NAME='<main>' GITHUB_JOB=check";
    let report = client.build(labels, "");
    end(&mut gateway, Signal::SIGTERM);
    gateway.restart();
    let listed = gateway.request_as(Some(READER), "GET", "/api/builds", b"");
    let listed: Value = serde_json::from_slice(&listed.body).unwrap();
    assert_eq!(listed[0]["build"], report["build"]);
    assert_eq!(listed[0]["repository"], "team/project");
    assert_eq!(listed[0]["sums"], report["sums"]);
    assert_eq!(listed[0]["rows"].as_array().unwrap().len(), 0);
    let front = page(&gateway, "/");
    assert!(
        front.contains("team/project") && front.contains("&lt;main&gt;"),
        "{front}"
    );
    let id = report["build"].as_str().unwrap();
    let one = page(&gateway, &format!("/api/builds/{id}"));
    assert!(
        one.contains("leaf7") && one.contains("never built anywhere"),
        "{one}"
    );
    assert_eq!(
        gateway.request_as(None, "GET", "/api/builds", b"").code,
        401
    );
    assert_eq!(gateway.request("GET", "/api/builds/none", b"").code, 404);
    for wrong in [&b"{}"[..], b"not json", b"{\"end\":{\"build\":\"\"}}"] {
        assert_eq!(gateway.request("POST", "/api/builds", wrong).code, 400);
    }
}

#[test]
fn report_has_the_forms_that_people_and_programs_want() {
    let gateway = Gateway::start();
    let client = Client::new(&gateway);
    checkout(&client.machine);
    let outcome = client.sh(
        "export GITHUB_STEP_SUMMARY=summary.md; echo before > summary.md\n\
         sccache-dock build --report text --report markdown=$GITHUB_STEP_SUMMARY --report html=page.html \
         --report trace=trace.json -- cargo check --offline --quiet --workspace; echo code $?",
    );
    assert!(
        outcome.output.contains("104 misses, 1 not cacheable"),
        "{}",
        outcome.output
    );
    assert!(outcome.output.contains("code 0"), "{}", outcome.output);
    let read = |name: &str| std::fs::read_to_string(client.machine.work().join(name)).unwrap();
    let summary = read("summary.md");
    assert!(summary.starts_with("before\n### cargo of "), "{summary}");
    assert!(read("page.html").contains("<!DOCTYPE html>"));
    let trace: Value = serde_json::from_str(&read("trace.json")).unwrap();
    assert_eq!(trace["traceEvents"].as_array().unwrap().len(), 106);
    // The command's own code, and that of one that is not there.
    let outcome = client.sh("sccache-dock build -- sh -c 'exit 7'; echo code $?");
    assert!(outcome.output.contains("code 7"), "{}", outcome.output);
    let outcome = client.sh("sccache-dock build -- no-such-program; echo code $?");
    assert!(outcome.output.contains("code 127"), "{}", outcome.output);
    let outcome = client.sh("sccache-dock build -- sh -c 'kill -TERM $$'; echo code $?");
    assert!(outcome.output.contains("code 143"), "{}", outcome.output);
    // A failing compile is told, and cargo's words are untouched.
    client.machine.write(
        "crates/base/src/lib.rs",
        "pub fn base() -> u32 { \"no\" }\n",
    );
    let outcome = client.sh(
        "sccache-dock build --report json=r.json -- cargo check --offline -p base; echo code $?",
    );
    assert!(
        outcome.output.contains("error[E0308]"),
        "{}",
        outcome.output
    );
    assert!(outcome.output.contains("code 101"), "{}", outcome.output);
    let report: Value = serde_json::from_str(&read("r.json")).unwrap();
    assert_eq!(super::told(&report, "base"), ("failed", "compile_failed"));
    conforms("explain", &report);
    let outcome = client.sh("sccache-dock explain --json");
    conforms("explain", &serde_json::from_str(&outcome.output).unwrap());
    // One that compiles nothing, and one whose cache forgets it.
    let nothing =
        client.sh("sccache-dock build --report json=r.json -- true; sccache-dock explain");
    assert!(
        nothing.output.contains("No compile was recorded."),
        "{}",
        nothing.output
    );
    let report: Value = serde_json::from_str(&read("r.json")).unwrap();
    assert!(report["rows"].as_array().unwrap().is_empty(), "{report:#}");
    conforms("explain", &report);
}

#[test]
fn c_of_build_scripts_goes_through_the_recorder() {
    let gateway = Gateway::start();
    let client = Client::new(&gateway);
    client.machine.write("Cargo.toml", "[workspace]\n");
    client.machine.write("it.c", "int it;\n");
    // As the crate `cc` does it, which asks for the wrapper's name.
    let compile =
        "rm -f it.o; case $RUSTC_WRAPPER in */sccache) $RUSTC_WRAPPER gcc -c it.c -o it.o;; esac";
    for expected in ["miss", "hit"] {
        let outcome = client.sh(&format!(
            "sccache-dock build --report json=r.json -- sh -c '{compile}'"
        ));
        assert_eq!(outcome.code, Some(0), "{}", outcome.output);
        let report = super::read(&client.machine.work().join("r.json"));
        let row = super::row(&report, "it.c");
        assert_eq!(
            (row["outcome"].as_str(), row["probably"].as_bool()),
            (Some(expected), Some(true))
        );
    }
}

#[test]
fn wrapper_may_be_relative_and_may_be_a_recorder() {
    let gateway = Gateway::start();
    let client = Client::new(&gateway);
    checkout(&client.machine);
    client.machine.write("deep/er/it", "");
    client.machine.write(
        "deep/.cargo/config.toml",
        "[build]\nrustc-wrapper = '../tools/sccache'\n",
    );
    let script = "#!/bin/sh\necho $1 >> $HOME/wrapped\nexec $REAL_SCCACHE \"$@\"\n";
    client.machine.write("tools/sccache", script);
    // Cargo runs compilers in the workspace's folder, wherever it is itself.
    let build = |before: &str, nested: &str| {
        let outcome = client.sh(&format!(
            "export REAL_SCCACHE=$(command -v sccache); chmod +x tools/sccache; rm -rf target $HOME/wrapped\n\
             cd deep/er; {before}\n\
             sccache-dock build --report json=$HOME/r.json -- {nested} \
             cargo check --offline --quiet --manifest-path $HOME/work/Cargo.toml -p top && cat $HOME/wrapped"
        ));
        assert_eq!(outcome.code, Some(0), "{before}: {}", outcome.output);
        let is_wrapped = outcome.output.lines().any(|line| line.ends_with("rustc"));
        assert!(is_wrapped, "{before}: {}", outcome.output);
        let report = super::read(&client.machine.work().join("../r.json"));
        assert_eq!(
            report["rows"].as_array().unwrap().len(),
            3,
            "{before}: {report:#}"
        );
        assert!(report["daemon"].is_object(), "{before}: {report:#}");
        report
    };
    build("export RUSTC_WRAPPER=../../tools/sccache", "");
    build("export CARGO_BUILD_RUSTC_WRAPPER=../../tools/sccache", "");
    build(
        "export PATH=$HOME/work/tools:$PATH RUSTC_WRAPPER=sccache",
        "",
    );
    build("true", "");
    // A build in another has the same compiles in its own report.
    let outer = build(
        "true",
        "sccache-dock build --report json=$HOME/inner.json --",
    );
    let inner = super::read(&client.machine.work().join("../inner.json"));
    assert_eq!(inner["rows"].as_array().unwrap().len(), 3, "{inner:#}");
    assert_eq!(outer["sums"], inner["sums"]);
}

#[test]
fn password_of_basic_authentication_is_a_token() {
    let gateway = Gateway::start();
    let client = Client::new(&gateway);
    checkout(&client.machine);
    let login = "unset SCCACHE_WEBDAV_TOKEN; export SCCACHE_WEBDAV_USERNAME=me SCCACHE_WEBDAV_PASSWORD=writer-token";
    for options in ["", "--prefetch"] {
        let outcome = client.sh(&format!(
            "rm -rf target; {login}\nsccache-dock build {options} --report json=r.json -- \
             cargo check --offline --quiet -p top"
        ));
        assert_eq!(outcome.code, Some(0), "{}", outcome.output);
        assert!(!outcome.output.contains("warning"), "{}", outcome.output);
        let report = super::read(&client.machine.work().join("r.json"));
        let requests =
            report["wire"]["hits"].as_u64().unwrap() + report["wire"]["writes"].as_u64().unwrap();
        let ahead = report["prefetched"][1].as_u64().unwrap_or(0);
        assert_eq!(requests + ahead, 3, "{report:#}");
        client.stop_daemon();
    }
    let fetched = client.with_disk();
    let outcome = fetched.sh(&format!("{login}\nsccache-dock prefetch"));
    assert!(
        outcome.output.starts_with("prefetched 3 entries"),
        "{}",
        outcome.output
    );
}

#[test]
fn hits_of_a_build_whose_cache_went_away_are_none_of_its_own_disk() {
    let mut gateway = Gateway::start();
    let client = Client::new(&gateway);
    checkout(&client.machine);
    client.build("", "");
    // The cache goes away when all was asked for.
    let wait = "touch compiled; while [ -e compiled ]; do sleep 0.1; done";
    let script = client.script(&format!(
        "rm -rf target; exec sccache-dock build --report json=r.json -- sh -c \
         'cargo check --offline --quiet --workspace; {wait}'"
    ));
    let mut process = client.machine.command(&script).spawn().unwrap();
    let compiled = client.machine.work().join("compiled");
    wait_for("the compiles", Duration::from_secs(100), || {
        compiled.exists().then_some(())
    });
    end(&mut gateway, Signal::SIGKILL);
    std::fs::remove_file(compiled).unwrap();
    assert_eq!(finished(&mut process), Some(0));
    let report = super::read(&client.machine.work().join("r.json"));
    let sums = &report["sums"];
    assert_eq!(
        (&sums["hits"], &sums["own_disk"]),
        (&104.into(), &0.into()),
        "{sums:#}"
    );
    conforms("explain", &report);
}

fn finished(process: &mut std::process::Child) -> Option<i32> {
    let status = wait_for("the end of the build", Duration::from_secs(60), || {
        process.try_wait().unwrap()
    });
    status.code()
}

#[test]
fn builds_at_one_time_say_so_and_do_not_claim_each_others_requests() {
    let gateway = Gateway::start();
    let client = Client::new(&gateway);
    checkout(&client.machine);
    client.machine.write(
        "build",
        "cargo check --offline --quiet --target-dir t$1 -p $2; touch compiled$1; while [ -e compiled$1 ]; do sleep 0.1; done\n",
    );
    let start = |number: u32, package: &str| {
        let script = client.script(&format!(
            "exec sccache-dock build --report json=r{number}.json -- sh build {number} {package}"
        ));
        client.machine.command(&script).spawn().unwrap()
    };
    let compiled = |number: u32| client.machine.work().join(format!("compiled{number}"));
    let (mut one, mut two) = (start(1, "mid"), start(2, "leaf1"));
    for number in [1, 2] {
        wait_for("the compiles", Duration::from_secs(100), || {
            compiled(number).exists().then_some(())
        });
    }
    let report = |number: u32, process: &mut std::process::Child| {
        std::fs::remove_file(compiled(number)).unwrap();
        assert_eq!(finished(process), Some(0));
        super::read(&client.machine.work().join(format!("r{number}.json")))
    };
    let (one, two) = (report(1, &mut one), report(2, &mut two));
    for (report, writes) in [(one, 2), (two, 1)] {
        assert_eq!(report["shared"], 1, "{report:#}");
        let wire = &report["wire"];
        assert_eq!(
            (&wire["writes"], &wire["hits"]),
            (&writes.into(), &0.into()),
            "{report:#}"
        );
        conforms("explain", &report);
    }
}
