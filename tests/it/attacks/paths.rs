//! No spelling of a path leads a token out of its namespace.

use super::{code, exchange};
use crate::access::with_tokens;
use crate::harness::{READER, wait_for};
use std::collections::BTreeMap;
use std::time::Duration;

const READS: &str = "reads-the-team-0123456789";
const WRITES: &str = "writes-the-team-0123456789";
const OTHER: &str = "writes-another-0123456789";
/// What is in the blobs that none of them may touch, with a length that nothing else has.
const TREASURE: &str = "treasure";
const LENGTH: usize = 4099;
/// Where they are.
const HIDDEN: [&str; 4] = ["/secret/x", "/x0", "/secret/deep/x", "/teams/x"];

/// Request targets that lead, or seem to lead, from `team` to one of those, or to a page.
const SPELLINGS: [&str; 70] = [
    "/secret/x",
    "//secret/x",
    "///secret///x",
    "/secret/x/",
    "/secret/./x",
    "/./secret/x",
    "/.//secret/x",
    "/team/../secret/x",
    "/team/./../secret/x",
    "/team/a/../../secret/x",
    "/team/../team/../secret/x",
    "/team//../secret/x",
    "/team/..//secret/x",
    "/../secret/x",
    "/team/../../secret/x",
    "/team/%2e%2e/secret/x",
    "/team/%2E%2E/secret/x",
    "/team/.%2e/secret/x",
    "/team/%2e./secret/x",
    "/team/%2e%2e%2fsecret%2fx",
    "/team/..%2fsecret%2fx",
    "/team%2f..%2fsecret%2fx",
    "%2fsecret%2fx",
    "/%2fsecret/x",
    "/%2e/secret/x",
    "/team/%252e%252e/secret/x",
    "/team/%25252e%25252e/secret/x",
    "/team/..%252fsecret%252fx",
    "/team/..%5csecret%5cx",
    "/team/..\\secret\\x",
    "/team\\..\\secret/x",
    "/secret\\x",
    "/team/..;/secret/x",
    "/team;/../secret/x",
    "/team/;x=y/../secret/x",
    "/team/.../secret/x",
    "/team/..%00/secret/x",
    "/team%00/../secret/x",
    "/secret/x%00",
    "/secret%00/x",
    "/secret/x%0a",
    "/team/..%09/secret/x",
    "/team/%20../secret/x",
    "/team/..%20/secret/x",
    "/team/%c0%ae%c0%ae/secret/x",
    "/team/%e0%80%ae%e0%80%ae/secret/x",
    "/team/%u002e%u002e/secret/x",
    "/team/%ef%bc%8e%ef%bc%8e/secret/x",
    "/team/\u{ff0e}\u{ff0e}/secret/x",
    "/%73ecret/x",
    "/%53ecret/x",
    "/%2573ecret/x",
    "/SECRET/x",
    "/Secret/X",
    "/secret/x?team",
    "/secret/x#/team/x",
    "/team?/../secret/x",
    "/secret/x;/team",
    "http://team/secret/x",
    "HTTP://team/../secret/x",
    "http://team/team/../secret/x",
    "team/../secret/x",
    "/default/x0",
    "/%64efault/x0",
    "/@default/x0",
    "/x0",
    "/teams/x",
    "/team%73/x",
    "/secret/deep/../x",
    "/team/\u{1}/../secret/x",
];

#[test]
fn no_spelling_of_a_path_leads_out_of_a_namespace() {
    let folder = tempfile::tempdir().unwrap();
    let named = |name: &str, token: &str, access: &str, namespace: &str| {
        format!(
            "[[token]]\nname = \"{name}\"\ntoken = \"{token}\"\naccess = \"{access}\"\n\
             namespaces = [\"{namespace}\"]\n"
        )
    };
    let tokens = named("reads", READS, "read", "team")
        + &named("writes", WRITES, "write", "team")
        + &named("other", OTHER, "write", "other");
    let (_, gateway) = with_tokens(folder.path(), &tokens);
    let treasure = TREASURE.repeat(LENGTH / TREASURE.len() + 1);
    let treasure = &treasure.as_bytes()[..LENGTH];
    for path in HIDDEN.iter().chain(&["/team/own"]) {
        assert_eq!(gateway.request("PUT", path, treasure).code, 201, "{path}");
    }
    wait_for("the tokens", Duration::from_secs(30), || {
        let answer = gateway.request_as(Some(READS), "GET", "/team/own", b"");
        (answer.code == 200).then_some(())
    });
    let entries = || -> BTreeMap<String, u64> {
        let answer = gateway.request_as(Some(READER), "GET", "/api/status", b"");
        let status: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        let namespaces = status["namespaces"].as_object().unwrap();
        let entries = namespaces
            .iter()
            .map(|(name, it)| (name.clone(), it["entries"].as_u64().unwrap()));
        // What they may do there is theirs.
        let outside = entries.filter(|(name, entries)| {
            *entries > 0 && !matches!(name.split('/').next(), Some("team" | "other"))
        });
        outside.collect()
    };
    let before = entries();
    for (token, may_write) in [(READS, false), (WRITES, true), (OTHER, true)] {
        let ask = |method: &str, target: &str| {
            let head = format!(
                "{method} {target} HTTP/1.1\r\nHost: cache\r\nAuthorization: Bearer {token}\r\n\
                 Connection: close\r\nContent-Length: 6\r\n\r\nforged"
            );
            exchange(&gateway, head.as_bytes())
        };
        for target in SPELLINGS {
            for method in ["GET", "HEAD", "PROPFIND", "PUT", "DELETE", "MKCOL"] {
                let (answer, case) = (ask(method, target), format!("{method} {target} {token}"));
                let shown = answer.to_lowercase();
                assert!(!shown.contains(TREASURE), "{case}: {answer}");
                assert!(!shown.contains(&LENGTH.to_string()), "{case}: {answer}");
                let changes = matches!(method, "PUT" | "DELETE");
                let done = (200..300).contains(&code(&answer));
                assert!(may_write || !changes || !done, "{case}: {answer}");
            }
        }
        let own = if token == OTHER { "/other" } else { "/team" };
        for (check, right) in [
            (format!("{own}/.sccache_check"), 200),
            (format!("{own}/%2e%2e/.sccache_check"), 400),
            (format!("{own}/../.sccache_check"), 400),
            (format!("{own}/a/../../secret/.sccache_check"), 400),
            (format!("{own}/.%2e/secret/.sccache_check"), 400),
            (format!("{own}/\u{1}/.sccache_check"), 400),
            ("/.sccache_check".to_owned(), 403),
            ("//.sccache_check".to_owned(), 403),
            ("/secret/.sccache_check".to_owned(), 403),
            ("/default/.sccache_check".to_owned(), 403),
        ] {
            assert_eq!(code(&ask("GET", &check)), right, "{check} {token}");
        }
    }
    for path in HIDDEN {
        assert!(
            gateway.request("GET", path, b"").body == treasure,
            "{path} was changed"
        );
    }
    assert_eq!(entries(), before, "something was written outside");
}
