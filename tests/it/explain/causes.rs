//! Causes of misses, each made for real in a build of more than a hundred crates; what is told of them first.

use super::{Client, LEAVES, checkout, row, told};
use crate::harness::{Gateway, READER, finish, now, tools, wait_for};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

const SECRET: &str = "correct-horse-battery-staple";

/// All misses of a build, which has as many as that, have one reason.
#[track_caller]
fn all_are(report: &Value, reason: &str) {
    let sums = &report["sums"];
    let misses = sums["misses"].as_u64().unwrap();
    assert!(misses >= LEAVES as u64, "{misses} misses: {sums:#}");
    assert_eq!(sums["reasons"][reason], misses, "{sums:#}");
}

/// What `explain` prints of a crate, in less than a second.
#[track_caller]
fn explained(client: &Client, what: &str) -> String {
    let begin = now();
    let outcome = client.sh(&format!("sccache-dock explain {what}"));
    let took = begin.elapsed();
    assert_eq!(outcome.code, Some(0), "{}", outcome.output);
    assert!(took < Duration::from_secs(1), "{took:?}");
    outcome.output
}

#[test]
fn what_differs_in_the_client_is_named() {
    let gateway = Gateway::start();
    let client = Client::new(&gateway);
    checkout(&client.machine);

    // 1: never built anywhere.
    let cold = client.build("", "");
    all_are(&cold, "never_built");
    assert_eq!(
        explained(&client, "base"),
        "base 0.1.0 (lib): miss: never built anywhere\n"
    );
    let hits = client.build("", "");
    assert_eq!(hits["sums"]["misses"], 0, "{:#}", hits["sums"]);
    assert_eq!(hits["sums"]["hits"], 104);
    assert!(
        hits["sums"]["saved_ms"].as_u64().unwrap() > 0,
        "{:#}",
        hits["sums"]
    );
    assert_eq!(told(&hits, "base"), ("hit", ""));

    // 2: not cacheable.
    assert_eq!(told(&hits, "program"), ("not_cached", "not_cacheable"));
    assert!(explained(&client, "program").contains("what is linked is never cached"));

    // 3 and 4: a changed source, and what depends on it.
    client.machine.write(
        "crates/base/src/other.rs",
        "pub fn base() -> u32 { 2 }\npub fn new() {}\n",
    );
    let changed = client.build("", "");
    assert_eq!(told(&changed, "base"), ("miss", "source"));
    assert_eq!(told(&changed, "mid"), ("miss", "dependency"));
    assert_eq!(told(&changed, "leaf7"), ("hit", ""));
    assert_eq!(row(&changed, "mid")["why"]["root"], "base");
    assert!(explained(&client, "base").contains("crates/base/src/other.rs"));
    assert!(explained(&client, "crates/base/src/other.rs").starts_with("base "));

    // 5: features.
    let features = client.build("", "--features featured/extra");
    assert_eq!(told(&features, "featured"), ("miss", "flags"));
    assert!(explained(&client, "featured").contains("with --cfg feature=\"extra\""));
    assert_eq!(told(&features, "base"), ("hit", ""));

    // 6: a variable, which holds a secret, and one that does not.
    let token = client.build(&format!("export CARGO_REGISTRY_TOKEN={SECRET}"), "");
    all_are(&token, "variable");
    assert_eq!(row(&token, "leaf1")["why"]["name"], "CARGO_REGISTRY_TOKEN");
    let colour = client.build("export CARGO_TERM_COLOR=always", "");
    all_are(&colour, "variable");
    let text = explained(&client, "leaf1");
    assert!(
        text.contains("CARGO_TERM_COLOR is always, and was unset"),
        "{text}"
    );
    // 7: the flags of everything. A secret is not seen in them either, whatever form the report has.
    let flags = format!(
        "export RUSTFLAGS='-Clink-arg=--password={SECRET} -Clink-arg=https://me:{SECRET}@host'"
    );
    all_are(&client.build(&flags, ""), "flags");
    let text = explained(&client, "leaf1");
    assert!(text.contains("link-arg=--password=<"), "{text}");
    let forms = "--report html=page.html --report trace=trace.json --report markdown=page.md";
    let forms = client.sh(&format!("sccache-dock explain {forms}"));
    assert_eq!(forms.code, Some(0), "{}", forms.output);
    client.sh("rm -rf target");
    nowhere(
        SECRET,
        &[gateway.folder.path(), &client.machine.work().join("..")],
    );

    // 8: another compiler.
    let compiler = other_compiler(&client);
    client.stop_daemon();
    let compiler = client.build(&format!("export RUSTC={}", compiler.display()), "");
    all_are(&compiler, "compiler");
    assert!(explained(&client, "leaf1").contains("another compiler: rustc 1.0.0 (seeded"));

    // 9: another version of sccache.
    client.stop_daemon();
    let older = tools().join("sccache-0.16.0/bin");
    let older = client.build(&format!("export PATH={}:$PATH", older.display()), "");
    all_are(&older, "sccache");
    assert!(
        explained(&client, "leaf1").contains("another sccache: 0.19.0")
            || explained(&client, "leaf1").contains("0.16.0")
    );
    client.stop_daemon();

    // 10: another path of the checkout, and of CARGO_HOME.
    let elsewhere = client.sh(
        "cp -r . ../elsewhere && cd ../elsewhere && rm -rf target && \
        sccache-dock build --report json=report.json -- cargo check --offline --quiet --workspace",
    );
    assert_eq!(elsewhere.code, Some(0), "{}", elsewhere.output);
    let report = super::read(&client.machine.work().join("../elsewhere/report.json"));
    all_are(&report, "path");
    assert_eq!(row(&report, "leaf1")["why"]["what"], "the checkout");
    let home = client.build("export CARGO_HOME=$HOME/other-cargo", "");
    all_are(&home, "path");
    assert_eq!(row(&home, "leaf1")["why"]["what"], "CARGO_HOME");
}

/// A compiler that says that it is another one.
fn other_compiler(client: &Client) -> PathBuf {
    let real = client.sh("rustc --print sysroot").output;
    let real = Path::new(real.trim()).join("bin/rustc");
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in\n*-vV*) {0} \"$@\" | sed 's/^rustc .*/rustc 1.0.0 (seeded)/';;\n*) exec {0} \"$@\";;\nesac\n",
        real.display()
    );
    client.machine.write("../compiler/rustc", &script);
    let path = client
        .machine
        .work()
        .join("../compiler/rustc")
        .canonicalize()
        .unwrap();
    let outcome = client.sh(&format!("chmod +x {}", path.display()));
    assert_eq!(outcome.code, Some(0));
    path
}

/// A text is in no file below these folders, but for what cargo itself has written.
#[track_caller]
fn nowhere(text: &str, folders: &[&Path]) {
    for folder in folders {
        let mut grep = std::process::Command::new("grep");
        grep.args([
            "--recursive",
            "--files-with-matches",
            "--binary-files=text",
            text,
        ])
        .arg(folder);
        let found = finish(&mut grep);
        assert_eq!(found.output, "", "{} holds it", folder.display());
        assert_eq!(found.code, Some(1));
    }
}

/// A checkout that was built once, so that all is in the cache.
fn built(gateway: &Gateway) -> Client {
    let client = Client::new(gateway);
    checkout(&client.machine);
    all_are(&client.build("", ""), "never_built");
    client
}

#[test]
fn what_became_of_the_entries_is_named() {
    // 11: evicted by the budget.
    let gateway = Gateway::start();
    let client = built(&gateway);
    for number in 0..70 {
        let answer = gateway.request("PUT", &format!("/cas/fill{number}"), &vec![7; 1 << 20]);
        assert_eq!(answer.code, 201, "{}", answer.text());
    }
    let report = client.build("", "");
    all_are(&report, "evicted");
    let text = explained(&client, "leaf1");
    assert!(
        text.contains("at a budget of 64.0 MiB") && text.contains("would have kept it"),
        "{text}"
    );

    // 12: purged.
    let answer = gateway.request("POST", "/api/purge", b"{}");
    assert_eq!(answer.code, 200, "{}", answer.text());
    all_are(&client.build("", ""), "purged");

    // 13: damaged.
    for file in blobs(&gateway) {
        let mut bytes = fs::read(&file).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0xff;
        fs::write(&file, bytes).unwrap();
    }
    let report = client.build("", "");
    all_are(&report, "broken");
    // And there again.
    assert_eq!(client.build("", "")["sums"]["misses"], 0);
}

/// Files of sccache's entries.
fn blobs(gateway: &Gateway) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![gateway.config.store_dir.join("blobs/@default")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            match entry.file_type().unwrap().is_dir() {
                true => folders.push(entry.path()),
                false => found.push(entry.path()),
            }
        }
    }
    found
}

#[test]
fn entries_that_went_by_a_policy_are_told_so() {
    // 14: its namespace's quota.
    let gateway = Gateway::start_with(|config| {
        let quota = 4 << 20;
        config.policies.quotas.insert("default".to_owned(), quota);
    });
    let client = built(&gateway);
    for number in 0..6 {
        let answer = gateway.request("PUT", &format!("/default/fill{number}"), &vec![7; 1 << 20]);
        assert!(answer.code < 300, "{}", answer.text());
    }
    all_are(&client.build("", ""), "quota");

    // 15: nobody used it for too long.
    let gateway = Gateway::start_with(|config| {
        config.policies.max_age = Some(Duration::from_secs(15));
    });
    let client = built(&gateway);
    wait_for("all to be too old", Duration::from_secs(60), || {
        (gateway.status().store.entries == 0).then_some(())
    });
    all_are(&client.build("", ""), "age");
}

#[test]
fn what_was_never_stored_and_what_could_not_be_asked_for_is_told() {
    // 16: a token that may only read.
    let mut gateway = Gateway::start();
    let mut client = Client::new(&gateway);
    client.token = READER.to_owned();
    checkout(&client.machine);
    all_are(&client.build("", ""), "never_built");
    all_are(&client.build("", ""), "refused");
    let text = explained(&client, "leaf1");
    assert!(text.contains("not stored: "), "{text}");

    // 17: the cache is away.
    gateway.process.signal(nix::sys::signal::Signal::SIGKILL);
    gateway.process.exit();
    let report = client.build("", "");
    all_are(&report, "away");
    let text = explained(&client, "leaf1");
    assert!(text.contains("the cache could not be asked"), "{text}");
}

#[test]
fn causes_of_misses_of_c_are_named_as_probable() {
    let gateway = Gateway::start();
    let client = Client::new(&gateway);
    let machine = &client.machine;
    machine.write("Cargo.toml", "[workspace]\n");
    machine.write(
        "src/it.c",
        "#include \"it.h\"\n#include <deep.h>\nint it = VALUE + DEEP;\n",
    );
    machine.write("src/it.h", "#define VALUE 1\n");
    machine.write("include/deep.h", "#define DEEP 1\n");
    machine.write(
        "compile",
        "rm -f it.o; $RUSTC_WRAPPER ${CC:-gcc} -Iinclude $FLAGS -c src/it.c -o it.o\n",
    );
    let told = |before: &str| {
        let outcome = client.sh(&format!(
            "{before}; sccache-dock build --report json=r.json -- sh compile && sccache-dock explain src/it.c"
        ));
        assert_eq!(outcome.code, Some(0), "{}", outcome.output);
        outcome.output
    };
    let miss = "it.c (c): miss: probably: ";
    let check = |before: &str, expected: &str| {
        let text = told(before);
        assert!(text.contains(&format!("{miss}{expected}")), "{text}");
        let again = told(before);
        assert!(again.contains("it.c (c): probably a hit"), "{again}");
    };
    check("true", "never built anywhere");
    machine.write("include/deep.h", "#define DEEP 2\n");
    check("true", "source changed: $ROOT/include/deep.h");
    machine.write("src/it.h", "#define VALUE 2\n");
    check("true", "source changed: $ROOT/src/it.h");
    machine.write("src/it.c", "#include \"it.h\"\nint it = VALUE;\n");
    check(
        "true",
        "source changed: $ROOT/include/deep.h, $ROOT/src/it.c",
    );
    check("export FLAGS=-DX=1", "other flags or features: with -DX=1");
    check(
        "export SCCACHE_C_CUSTOM_CACHE_BUSTER=2",
        "the variable SCCACHE_C_CUSTOM_CACHE_BUSTER is set, and was unset",
    );
    // The same version, and other bytes.
    machine.write("bin/gcc", "#!/bin/sh\nexec gcc \"$@\"\n");
    let compiler = "chmod +x bin/gcc; export CC=$PWD/bin/gcc";
    check(compiler, "another compiler: ");
    let answer = gateway.request("POST", "/api/purge", b"{}");
    assert_eq!(answer.code, 200, "{}", answer.text());
    let purged = told("true");
    assert!(purged.contains(&format!("{miss}purged ")), "{purged}");
    let failed = client.sh("sccache-dock build -- sh -c 'CC=gcc FLAGS=-Dit= sh compile'; sccache-dock explain src/it.c");
    assert!(
        failed.output.contains("failed: the compiler found errors"),
        "{}",
        failed.output
    );
}
