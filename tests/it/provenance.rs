//! Who wrote what: blobs remember it, whoever asks gets the bytes that were sent, and what one writer stored can be
//! removed alone.

use crate::access::with_tokens;
use crate::attacks::peer::{OwnProtocol, archive};
use crate::harness::{Gateway, WRITER};
use nix::sys::signal::Signal;
use sccache_dock::contract::gateway_status::PurgeAnswer;
use std::os::unix::net::UnixStream;

const CI: &str = "the-token-of-ci-machines";
const LAPTOPS: &str = "the-token-of-laptops";
const TOKENS: &str = "
[[token]]
name = 'ci'
token = 'the-token-of-ci-machines'
access = 'write'
[[token]]
name = 'laptops'
token = 'the-token-of-laptops'
access = 'write'
";

/// By which way a client speaks to the cache.
#[derive(Debug, Clone, Copy)]
enum Way {
    Http(&'static str),
    Port,
    Socket,
}

fn digits(number: usize) -> String {
    format!("{number:064x}")
}

fn path(number: usize) -> String {
    let digits = digits(number);
    format!(
        "/{}/{}/{}/{digits}",
        &digits[..1],
        &digits[1..2],
        &digits[2..3]
    )
}

fn socket(gateway: &Gateway) -> OwnProtocol<UnixStream> {
    OwnProtocol(UnixStream::connect(&gateway.config.socket).unwrap())
}

fn put(gateway: &Gateway, way: Way, number: usize, body: &[u8]) {
    let key = digits(number);
    let stored = match way {
        Way::Http(token) => {
            let answer = gateway.request_as(Some(token), "PUT", &path(number), body);
            [201, 204].contains(&answer.code)
        }
        Way::Port => OwnProtocol::connect(gateway.addr)
            .unwrap()
            .put(&key, body)
            .unwrap(),
        Way::Socket => socket(gateway).put(&key, body).unwrap(),
    };
    assert!(stored, "{way:?} {number}");
}

fn get(gateway: &Gateway, way: Way, number: usize) -> Option<Vec<u8>> {
    let key = digits(number);
    match way {
        Way::Http(token) => {
            let answer = gateway.request_as(Some(token), "GET", &path(number), b"");
            (answer.code == 200).then_some(answer.body)
        }
        Way::Port => OwnProtocol::connect(gateway.addr)
            .unwrap()
            .get(&key)
            .unwrap(),
        Way::Socket => socket(gateway).get(&key).unwrap(),
    }
}

/// How many blobs the request of a purge removes, or would.
fn purge(gateway: &Gateway, request: &str) -> u64 {
    let answer = gateway.request("POST", "/api/purge", request.as_bytes());
    assert_eq!(answer.code, 200, "{request}: {}", answer.text());
    serde_json::from_slice::<PurgeAnswer>(&answer.body)
        .unwrap()
        .entries
}

#[test]
fn what_one_writer_has_stored_is_purged_alone() {
    let folder = tempfile::tempdir().unwrap();
    let (_file, mut gateway) = with_tokens(folder.path(), TOKENS);
    let writers = [
        Way::Http(CI),
        Way::Http(CI),
        Way::Http(LAPTOPS),
        Way::Http(WRITER),
        Way::Port,
        Way::Socket,
    ];
    for (number, way) in writers.into_iter().enumerate() {
        put(&gateway, way, number, &archive(b"it"));
    }
    // Long enough to be written by the piece, and written by ci before laptops.
    put(&gateway, Way::Http(CI), 6, &archive(&[7; 1 << 20]));
    put(&gateway, Way::Http(LAPTOPS), 6, &archive(&[7; 1 << 20]));
    gateway.process.signal(Signal::SIGTERM);
    gateway.process.exit();
    gateway.restart();
    let uid = format!("uid={}", nix::unistd::geteuid());
    for (who, count) in [
        ("ci", 2),
        ("laptops", 2),
        ("auth", 1),
        ("webdav", 5),
        ("ipc", 1),
        ("socket", 1),
        (&uid, 1),
        ("upstream", 0),
        ("unknown", 0),
        ("c", 0),
    ] {
        let request = format!("{{\"written_by\": \"{who}\", \"dry_run\": true}}");
        assert_eq!(purge(&gateway, &request), count, "{who}");
    }
    let since =
        |seconds: u64| format!("{{\"written_by\": \"ci\", \"since_unix_seconds\": {seconds}}}");
    assert_eq!(purge(&gateway, &since(32_503_680_000)), 0, "the year 3000");
    assert_eq!(purge(&gateway, &since(0)), 2);
    let there = |gateway: &Gateway| -> Vec<bool> {
        let all = 0..7;
        all.map(|number| get(gateway, Way::Socket, number).is_some())
            .collect()
    };
    assert_eq!(
        there(&gateway),
        [false, false, true, true, true, true, true]
    );
    assert_eq!(purge(&gateway, "{\"written_by\": \"ipc\"}"), 1);
    assert_eq!(
        there(&gateway),
        [false, false, true, true, false, true, true]
    );
}

#[test]
fn bytes_are_those_that_were_sent_by_whatever_way() {
    let gateway = Gateway::start();
    let ways = [Way::Http(WRITER), Way::Port, Way::Socket];
    let bytes = |number: usize, size: usize| -> Vec<u8> {
        let all = 0..size;
        all.map(|at| u8::try_from((at * 31 + at / 251 + number) % 256).unwrap())
            .collect()
    };
    // Short ones, those around the bounds between ways of writing, and long ones.
    let sizes = [
        0,
        1,
        8 << 10,
        (256 << 10) - 1,
        256 << 10,
        (256 << 10) + 1,
        3 << 20,
    ];
    for (number, size) in sizes.into_iter().enumerate() {
        for (round, writer) in ways.into_iter().enumerate() {
            let sent = archive(&bytes(round, size));
            put(&gateway, writer, number, &sent);
            for reader in ways {
                let got = get(&gateway, reader, number).unwrap();
                assert!(
                    got == sent,
                    "{size} bytes by {writer:?}, read by {reader:?}"
                );
            }
        }
    }
}
