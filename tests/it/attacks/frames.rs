//! Two opinions on where a request ends let one hide in another; heads that come slowly let one wait for ever. More on
//! both is in `access.rs`.

use super::{code, exchange};
use crate::harness::{Gateway, WRITER};
use std::io::{Read, Write};

#[test]
fn requests_whose_end_is_told_in_two_ways_hide_none() {
    let gateway = Gateway::start();
    let auth = format!("Authorization: Bearer {WRITER}\r\n");
    let hidden = format!("PUT /cas/hidden HTTP/1.1\r\n{auth}Content-Length: 1\r\n\r\nx");
    let length = hidden.len();
    for (name, fields, body) in [
        (
            "both",
            format!(
                "Content-Length: {}\r\nTransfer-Encoding: chunked\r\n",
                length + 5
            ),
            "0\r\n\r\n",
        ),
        (
            "both, the other way round",
            format!(
                "Transfer-Encoding: chunked\r\nContent-Length: {}\r\n",
                length + 5
            ),
            "0\r\n\r\n",
        ),
        (
            "two lengths",
            format!("Content-Length: 0\r\nContent-Length: {length}\r\n"),
            "",
        ),
        (
            "the same length twice",
            "Content-Length: 0\r\nContent-Length: 0\r\n".to_owned(),
            "",
        ),
        ("a list", format!("Content-Length: 0, {length}\r\n"), ""),
        ("hexadecimal", "Content-Length: 0x0\r\n".to_owned(), ""),
        ("a sign", "Content-Length: +0\r\n".to_owned(), ""),
        (
            "a space before the colon",
            format!("Content-Length : {length}\r\n"),
            "",
        ),
        (
            "a folded line",
            format!("X: y\r\n Content-Length: {length}\r\n"),
            "",
        ),
        (
            "a folded value",
            format!("Transfer-Encoding:\r\n chunked\r\nContent-Length: {length}\r\n"),
            "",
        ),
        (
            "an unknown coding",
            "Transfer-Encoding: identity, chunked\r\n".to_owned(),
            "0\r\n\r\n",
        ),
        (
            "a vertical tab",
            format!("Transfer-Encoding:\u{b}chunked\r\nContent-Length: {length}\r\n"),
            "",
        ),
        (
            "a lone carriage return",
            format!("X: y\rContent-Length: {length}\r\n"),
            "",
        ),
    ] {
        let request = format!("PUT /cas/outer HTTP/1.1\r\n{auth}{fields}\r\n{body}{hidden}");
        let answer = exchange(&gateway, request.as_bytes());
        assert_eq!(code(&answer), 400, "{name}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{name}: {answer}");
        for path in ["/cas/outer", "/cas/hidden"] {
            assert_eq!(gateway.request("GET", path, b"").code, 404, "{name} {path}");
        }
    }
}

#[test]
fn lines_that_end_with_a_line_feed_alone_are_read_in_one_way() {
    let gateway = Gateway::start();
    let auth = format!("Authorization: Bearer {WRITER}\n");
    let next = "GET /cas/next HTTP/1.1\r\nConnection: close\r\n\r\n";
    // As one request with one body, or not at all.
    let request = format!(
        "PUT /cas/lf HTTP/1.1\n{auth}Content-Length: {}\n\n{next}",
        next.len()
    );
    let mut stream = gateway.connect();
    stream.write_all(request.as_bytes()).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer}");
    let stored = gateway.request("GET", "/cas/lf", b"");
    match code(&answer) {
        201 => assert_eq!(stored.text(), next),
        400 => assert_eq!(stored.code, 404),
        other => panic!("{other}: {answer}"),
    }
    let chunks = format!(
        "PUT /cas/chunks HTTP/1.1\r\nAuthorization: Bearer {WRITER}\r\nTransfer-Encoding: chunked\r\n\r\n\
         1\nx\n0\n\n"
    );
    let answer = exchange(&gateway, chunks.as_bytes());
    assert!(matches!(code(&answer), 0 | 400), "{answer}");
    assert_eq!(gateway.request("GET", "/cas/chunks", b"").code, 404);
}

#[test]
fn requests_that_arrive_byte_by_byte_or_all_at_once_are_answered_alike() {
    let gateway = Gateway::start();
    let request = |path: &str, rest: &str| {
        format!(
            "PUT {path} HTTP/1.1\r\nAuthorization: Bearer {WRITER}\r\n{rest}Content-Length: 3\r\n\r\nabc"
        )
    };
    let three = [
        request("/cas/1", ""),
        request("/cas/2", ""),
        request("/cas/3", "Connection: close\r\n"),
    ]
    .concat();
    let whole = exchange(&gateway, three.as_bytes());
    assert_eq!(whole.matches("HTTP/1.1 201").count(), 3, "{whole}");
    let mut stream = gateway.connect();
    stream.set_nodelay(true).unwrap();
    for byte in three.replace("/cas/", "/cas/slow-").as_bytes() {
        stream.write_all(&[*byte]).unwrap();
    }
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer.matches("HTTP/1.1 201").count(), 3, "{answer}");
    for number in 1..=3 {
        let found = gateway.request("GET", &format!("/cas/slow-{number}"), b"");
        assert_eq!(found.body, b"abc");
    }
}
