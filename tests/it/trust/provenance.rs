//! Who wrote what, shown and undone.

use super::{MAIN, PR42, TOKENS, asked, at, digits, entry, found, gateway_with, place};
use crate::attacks::peer::archive;
use crate::dock::{Dock, eventually};
use crate::harness::WRITER;
use serde_json::Value;

/// A token has leaked: what came with it is found in all namespaces and removed, and nothing else is.
#[test]
fn work_of_a_leaked_token_is_removed_and_nothing_else() {
    let leaked =
        "[[token]]\nname = \"leaked\"\ntoken = \"token-that-has-leaked\"\naccess = \"write\"\n";
    let (_folder, gateway) = gateway_with(&format!("{TOKENS}\n{leaked}"));
    for number in 0..500 {
        let namespace = ["", "/main", "/release", "/team/x", "/pr/42"][number % 5];
        let path = format!("{namespace}/{}", entry(number));
        let code = asked(
            &gateway,
            "token-that-has-leaked",
            "PUT",
            &path,
            &archive(b"evil"),
        )
        .code;
        assert_eq!(code, 201, "{path}");
    }
    let good = |number: usize| archive(format!("good {number}").as_bytes());
    for number in 500..700 {
        let path = format!("/{}", entry(number));
        let token = [MAIN, PR42, WRITER][number % 3];
        assert_eq!(
            asked(&gateway, token, "PUT", &path, &good(number)).code,
            201
        );
    }
    // What somebody else has put in its place since is not its work any more.
    place(&gateway, "main", &entry(1), &good(1));
    let purge = |request: &str| {
        let answer = gateway.request("POST", "/api/purge", request.as_bytes());
        assert_eq!(answer.code, 200);
        serde_json::from_slice::<Value>(&answer.body).unwrap()["entries"]
            .as_u64()
            .unwrap()
    };
    assert_eq!(purge("{\"written_by\":\"leaked\",\"dry_run\":true}"), 499);
    assert_eq!(purge("{\"written_by\":\"leaked\"}"), 499);
    assert_eq!(purge("{\"written_by\":\"leaked\"}"), 0);
    for number in 500..700 {
        let token = [MAIN, PR42, WRITER][number % 3];
        assert_eq!(
            found(&gateway, token, &format!("/{}", entry(number))),
            Some(good(number))
        );
    }
    assert_eq!(at(&gateway, "main", &entry(1)), Some(good(1)));
    assert_eq!(gateway.status().store.entries, 201);
}

#[test]
fn commands_tell_who_wrote_a_blob_and_who_may_touch_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tokens.toml");
    std::fs::write(&file, TOKENS).unwrap();
    let mut dock = Dock::start(&[
        ("SCCACHE_TOKENS_FILE", file.to_str().unwrap()),
        ("SCCACHE_QUOTAS", "pr/*=1G"),
        ("SCCACHE_AUDIT_LOG", "1M"),
        ("SCCACHE_WRITE_ONCE", "main"),
    ]);
    dock.wait_ready();
    let put = |token: &str, number: usize, body: &[u8]| {
        let url = format!("http://{}/{}", dock.address(), entry(number));
        let put = ureq::put(&url).header("Authorization", format!("Bearer {token}"));
        put.send(body).map_or_else(
            |error| error.to_string(),
            |answer| answer.status().to_string(),
        )
    };
    assert!(put(MAIN, 1, &archive(b"of main")).starts_with("201"));
    assert!(put(PR42, 1, &archive(b"of 42")).starts_with("201"));
    assert!(put(super::FORK, 1, &archive(b"of a fork")).contains("403"));
    let say = |args: &[&str]| {
        let output = dock.command(args);
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(text).unwrap())
    };
    let (code, text) = say(&["blob", &digits(1)]);
    assert_eq!(code, Some(0), "{text}");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert!(
        lines[0].starts_with("main: ") && lines[0].contains("by webdav main ("),
        "{text}"
    );
    assert!(
        lines[1].starts_with("pr/42: ") && lines[1].contains("by webdav pr-42 ("),
        "{text}"
    );
    assert_eq!(say(&["blob", &digits(2)]).0, Some(1));
    for (name, key, words) in [
        (
            "pr-42",
            digits(1),
            &[
                "reads pr/42, main; writes pr/42",
                "read    allowed",
                "write   allowed: the token's namespace, \"pr/42\"",
            ][..],
        ),
        (
            "fork",
            digits(1),
            &[
                "reads main; writes nothing",
                "write   denied: token \"fork\" may only read",
            ],
        ),
        (
            "pr-43",
            format!("main/{}", entry(1)),
            &["read    denied", "leave the folder out"],
        ),
        (
            "team",
            digits(1),
            &[
                "reads and writes team and all below",
                "denied: token \"team\" may not use the namespace \"default\"",
            ],
        ),
        ("local:1", digits(1), &["reads main; writes nothing"]),
        (
            "auth",
            format!("main/{}", entry(1)),
            &["every namespace that its path names", "by webdav main"],
        ),
        ("release", digits(1), &["release: not here"]),
    ] {
        let (code, text) = say(&["access", "--as", name, &key]);
        assert_eq!(code, Some(0), "{text}");
        for word in words {
            assert!(text.contains(word), "{name}: {word:?} is not in\n{text}");
        }
    }
    let (code, text) = say(&["access", "--as", "nobody", &digits(1)]);
    assert_eq!(code, Some(1));
    assert!(text.contains("there is no token \"nobody\""), "{text}");
    let audit = dock.dir.path().join("cache/audit.jsonl");
    let events = eventually("three events", || {
        let text = std::fs::read_to_string(&audit).ok()?;
        (text.lines().count() >= 3).then_some(text)
    });
    let refused = events
        .lines()
        .find(|line| line.contains("\"refused\""))
        .unwrap();
    let refused: Value = serde_json::from_str(refused).unwrap();
    assert_eq!(refused["by"], "webdav fork");
    assert!(refused["detail"].as_str().unwrap().contains("read_only"));
    assert!(!events.contains("token-of"), "a token is in the audit log");
}
