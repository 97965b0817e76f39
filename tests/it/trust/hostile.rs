//! A pull request that tries to change what main reads, by every spelling and lane.

use super::{MAIN, PR42, RELEASE, TOKENS, asked, digits, entry, found, gateway_with, place};
use crate::attacks::peer::{OwnProtocol, archive};
use crate::harness::Gateway;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

/// Entries that main and releases have.
const GOOD: usize = 50;

/// Sends a request as it is; what is answered does not matter.
fn send(gateway: &Gateway, request: &[u8], over_socket: bool) {
    let mut answer = Vec::new();
    if over_socket {
        let mut stream = UnixStream::connect(&gateway.config.socket).unwrap();
        let _ = stream
            .write_all(request)
            .and_then(|()| stream.read_to_end(&mut answer));
    } else {
        let mut stream = gateway.connect();
        let _ = stream
            .write_all(request)
            .and_then(|()| stream.read_to_end(&mut answer));
    }
}

/// Ways to spell main's entry.
fn spellings(entry: &str) -> Vec<String> {
    let digits = entry.rsplit('/').next().unwrap();
    let encoded = entry.replace('/', "%2f");
    let mut paths: Vec<String> = [
        "/main",
        "/release",
        "//main/",
        "/./main",
        "/pr/42/../main",
        "/pr/42/../../main",
        "/pr/42/%2e%2e/%2e%2e/main",
        "/%6dain",
        "/main%2f",
        "/MAIN",
        "/default",
        "/@default",
        "/pr/42/main",
        "/main/pr/42",
        "/pr%2f42",
        "/pr",
        "/pr/43",
        "/main%00",
        "/main/.",
        "/%2fmain",
        "/main//pr/42/",
        "/pr/42//main/",
        "/..",
        "/main/%2f%2f",
        "/team",
        "/preprocessor",
    ]
    .iter()
    .map(|start| format!("{start}/{entry}"))
    .collect();
    paths.extend([
        format!("/{entry}"),
        format!("/{encoded}"),
        format!("/main%2f{encoded}"),
        format!("/{entry}?namespace=main"),
        format!("/{entry}#/main"),
        format!("/{entry}/"),
        format!("/main/{digits}"),
        format!("/cas/{digits}"),
        format!("/ac/{digits}"),
        format!("/main/ac/{digits}"),
        format!("http://main/{entry}"),
        format!("http://cache/main/{entry}"),
    ]);
    paths
}

#[test]
fn thousand_hostile_writes_change_nothing_that_others_read() {
    let uid = nix::unistd::geteuid();
    let tokens = format!(
        "{TOKENS}\n[[local]]\nuid = {uid}\nread = [\"pr/42\", \"main\"]\nwrite = \"pr/42\"\n"
    );
    let (_folder, gateway) = gateway_with(&tokens);
    let good = |name: &str, number: usize| archive(format!("{name} {number}").as_bytes());
    for number in 0..GOOD {
        place(&gateway, "main", &entry(number), &good("main", number));
        place(
            &gateway,
            "release",
            &entry(number),
            &good("release", number),
        );
    }
    for (path, body) in [
        ("/ac/x", "main ac"),
        ("/cas/x", "main cas"),
        ("/ab/c", "main ccache"),
    ] {
        assert_eq!(
            asked(&gateway, MAIN, "PUT", path, body.as_bytes()).code,
            201
        );
    }
    let poison = archive(b"poison");
    let mut writes = 0;
    for number in 0..GOOD {
        let entry = entry(number);
        for (turn, path) in spellings(&entry).into_iter().enumerate() {
            // Once plainly, once in chunks, once over the socket; now and then by other methods and headers.
            let method = match (number + turn) % 7 {
                0 => "DELETE",
                1 => "MOVE",
                _ => "PUT",
            };
            let chunked = (number + turn).is_multiple_of(3);
            let length = match chunked {
                true => "Transfer-Encoding: chunked".to_owned(),
                false => format!("Content-Length: {}", poison.len()),
            };
            let head = format!(
                "{method} {path} HTTP/1.1\r\nHost: main\r\nAuthorization: Bearer {PR42}\r\n\
                 Destination: /main/{entry}\r\nX-Original-URL: /main/{entry}\r\nX-HTTP-Method-Override: PUT\r\n\
                 {length}\r\nConnection: close\r\n\r\n"
            );
            let body = match chunked {
                true => {
                    let size = format!("{:x}\r\n", poison.len());
                    [size.as_bytes(), &poison, b"\r\n0\r\n\r\n"].concat()
                }
                false => poison.clone(),
            };
            send(
                &gateway,
                &[head.as_bytes(), &body].concat(),
                turn.is_multiple_of(5),
            );
            writes += 1;
        }
        // sccache's own protocol, as the user who is a pull request here, and by the port, which only reads.
        let mut socket = OwnProtocol(UnixStream::connect(&gateway.config.socket).unwrap());
        assert!(socket.put(&digits(number), &poison).unwrap());
        let mut port = OwnProtocol::connect(gateway.addr).unwrap();
        assert!(!port.put(&digits(number), &poison).unwrap());
        writes += 2;
    }
    for path in [
        "/ac/x",
        "/cas/x",
        "/ab/c",
        "/main/ac/x",
        "/pr/42/../../ac/x",
    ] {
        asked(&gateway, PR42, "PUT", path, b"poison");
        asked(&gateway, PR42, "DELETE", path, b"");
        writes += 2;
    }
    assert!(writes >= 1000, "{writes}");
    for number in 0..GOOD {
        let path = format!("/{}", entry(number));
        assert_eq!(
            found(&gateway, MAIN, &path),
            Some(good("main", number)),
            "{number}"
        );
        assert_eq!(
            found(&gateway, RELEASE, &path),
            Some(good("release", number)),
            "{number}"
        );
    }
    for (path, body) in [
        ("/ac/x", "main ac"),
        ("/cas/x", "main cas"),
        ("/ab/c", "main ccache"),
    ] {
        assert_eq!(
            found(&gateway, MAIN, path).unwrap(),
            body.as_bytes(),
            "{path}"
        );
    }
    let status = gateway.status();
    let main = &status.tokens.by_name["main"];
    assert_eq!(
        (main.hits, main.misses),
        (GOOD as u64 + 3, 0),
        "main's hit rate"
    );
    // What it poisoned is its own, and once that is gone it hits as often as main.
    let purge = gateway.request("POST", "/api/purge", b"{\"written_by\":\"pr-42\"}");
    assert_eq!(purge.code, 200);
    gateway.request("POST", "/api/purge", b"{\"namespace\":\"pr/42\"}");
    for number in 0..GOOD {
        let path = format!("/{}", entry(number));
        assert_eq!(
            found(&gateway, PR42, &path),
            Some(good("main", number)),
            "{number}"
        );
    }
}
