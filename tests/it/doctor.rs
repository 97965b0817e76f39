//! The client-side doctor against a real gateway.

use crate::dock::Dock;
use sccache_dock::doctor::{Args, Check, Environment, Report, Verdict, client};
use sccache_dock::secret::Secret;

fn examine(dock: &Dock, token: Option<&str>) -> Report {
    let listen = dock.address();
    let args = Args {
        endpoint: Some(format!("http://{listen}")),
        token: token.map(Secret::new),
        json: false,
    };
    client(&args, &Environment::new())
}

fn find<'a>(report: &'a Report, what: &str) -> Option<&'a Check> {
    report.checks.iter().find(|check| check.what == what)
}

#[test]
fn right_token_reads_and_writes_and_leaves_nothing_behind() {
    let dock = Dock::start(&[]);
    let report = examine(&dock, Some(&dock.token()));
    for what in ["connection", "gateway", "token", "writes"] {
        let check = find(&report, what).unwrap();
        assert_eq!(check.verdict, Verdict::Ok, "{}", report.table());
    }
    let entries = &dock.status().unwrap()["cache"]["store"]["entries"];
    assert_eq!(entries.as_u64(), Some(0), "{:#}", dock.status().unwrap());
}

#[test]
fn wrong_missing_and_reading_tokens_are_told_apart() {
    let dock = Dock::start(&[("SCCACHE_READ_TOKEN", "for-reading-only")]);
    for (token, what, verdict, part) in [
        (Some("wrong-token"), "token", Verdict::Fail, "wrong (401)"),
        (None, "token", Verdict::Fail, "one is needed (401)"),
        (
            Some("for-reading-only"),
            "writes",
            Verdict::Warn,
            "only reads",
        ),
    ] {
        let report = examine(&dock, token);
        let check = find(&report, what).unwrap();
        assert_eq!(check.verdict, verdict, "{}", report.table());
        assert!(check.found.contains(part), "{}", report.table());
    }
}
