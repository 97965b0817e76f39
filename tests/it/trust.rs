//! Who may write what, and who reads whom: what the server enforces, tried over every lane.

mod builds;
mod certificates;
mod forged;
mod hostile;
pub(crate) mod issuer;
mod layers;
mod memory;
mod oidc;
mod provenance;
mod write_once;

use crate::access::with_tokens;
use crate::harness::{Answer, Gateway, WRITER};
use tempfile::TempDir;

/// Clients that choose no namespace themselves, and one that does.
const TOKENS: &str = r#"
[[token]]
name = "pr-42"
token = "token-of-pull-42"
read = ["pr/42", "main"]
write = "pr/42"

[[token]]
name = "pr-43"
token = "token-of-pull-43"
read = ["pr/43", "main"]
write = "pr/43"

[[token]]
name = "main"
token = "token-of-main-branch"
read = ["main"]
write = "main"

[[token]]
name = "release"
token = "token-of-releases"
read = ["release"]
write = "release"

[[token]]
name = "fork"
token = "token-of-a-forks-pull"
read = ["main"]

[[token]]
name = "team"
token = "token-of-the-team-a"
access = "write"
namespaces = ["team"]

[[local]]
read = ["main"]
"#;

const PR42: &str = "token-of-pull-42";
const PR43: &str = "token-of-pull-43";
const MAIN: &str = "token-of-main-branch";
const RELEASE: &str = "token-of-releases";
const FORK: &str = "token-of-a-forks-pull";
const TEAM: &str = "token-of-the-team-a";

/// A gateway with these tokens in force.
fn gateway() -> (TempDir, Gateway) {
    gateway_with(TOKENS)
}

fn gateway_with(tokens: &str) -> (TempDir, Gateway) {
    let folder = tempfile::tempdir().unwrap();
    let (_, gateway) = with_tokens(folder.path(), tokens);
    gateway.process.wait_for_line("named tokens in force");
    (folder, gateway)
}

/// The path of an sccache entry.
fn entry(number: usize) -> String {
    let digits = digits(number);
    format!(
        "{}/{}/{}/{digits}",
        &digits[..1],
        &digits[1..2],
        &digits[2..3]
    )
}

fn digits(number: usize) -> String {
    format!("{number:064x}")
}

/// Stores a blob in a namespace, by the token that may do everything.
fn place(gateway: &Gateway, namespace: &str, entry: &str, body: &[u8]) {
    let answer = gateway.request("PUT", &format!("/{namespace}/{entry}"), body);
    assert!(
        [201, 204].contains(&answer.code),
        "{namespace}/{entry}: {answer:?}"
    );
}

/// What is in a namespace, whoever could see it.
fn at(gateway: &Gateway, namespace: &str, entry: &str) -> Option<Vec<u8>> {
    found(gateway, WRITER, &format!("/{namespace}/{entry}"))
}

fn found(gateway: &Gateway, token: &str, path: &str) -> Option<Vec<u8>> {
    let answer = asked(gateway, token, "GET", path, b"");
    (answer.code == 200).then_some(answer.body)
}

fn asked(gateway: &Gateway, token: &str, method: &str, path: &str, body: &[u8]) -> Answer {
    gateway.request_as(Some(token), method, path, body)
}
