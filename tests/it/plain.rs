//! Plain HTTP/1.1 on one connection: order, frames, and what must not be taken for a frame.

use crate::gateway::zip;
use crate::harness::{Answer, Gateway, WRITER, wait_for};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

fn head(method: &str, path: &str, more: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {WRITER}\r\n{more}\r\n")
}

fn put(path: &str, body: &str) -> String {
    let length = format!("Content-Length: {}\r\n", body.len());
    head("PUT", path, &length) + body
}

/// Reads one answer with a `content-length`, or without a body.
fn read_one(stream: &mut (impl Read + ?Sized)) -> Answer {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        bytes.push(byte[0]);
    }
    let mut answer = Answer::read(&mut &bytes[..]);
    let length = answer
        .head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    answer.body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    stream.read_exact(&mut answer.body).unwrap();
    answer
}

/// Sends `bytes` and nothing more, and returns all that comes back.
fn exchange(gateway: &Gateway, bytes: &[u8]) -> String {
    let mut stream = gateway.connect();
    // The connection may be closed before all is taken.
    let _ = stream
        .write_all(bytes)
        .and_then(|()| stream.shutdown(Shutdown::Write));
    let mut all = Vec::new();
    let _ = stream.read_to_end(&mut all);
    String::from_utf8_lossy(&all).into_owned()
}

/// Found by the fuzzer of the front: hyper takes the end of what a client sends for the end of the client.
#[test]
fn client_that_says_that_it_has_sent_everything_is_answered() {
    let gateway = Gateway::start();
    gateway.request("PUT", "/cas/x", b"blob");
    let chunked = head("PUT", "/cas/y", "Transfer-Encoding: chunked\r\n") + "1\r\nx\r\n0\r\n\r\n";
    for _ in 0..50 {
        let old = head("GET", "/cas/x", "").replace("HTTP/1.1", "HTTP/1.0");
        let answer = exchange(&gateway, old.as_bytes());
        assert!(answer.ends_with("\r\n\r\nblob"), "{answer:?}");
        let answer = exchange(&gateway, chunked.as_bytes());
        assert!(answer.starts_with("HTTP/1.1 20"), "{answer:?}");
        let answer = exchange(&gateway, head("GET", "/cas/x", "").as_bytes());
        assert!(answer.ends_with("\r\n\r\nblob"), "{answer:?}");
    }
}

#[test]
fn requests_in_one_write_are_answered_in_order() {
    let gateway = Gateway::start();
    let mut stream = gateway.connect();
    let many = [
        put("/cas/1", "one"),
        put("/cas/2", ""),
        head("GET", "/cas/1", ""),
        head("HEAD", "/cas/1", "").replace("content-length", ""),
        head("GET", "/cas/none", "Connection: keep-alive\r\n"),
        head("PROPFIND", "/cas/", "Content-Length: 2\r\n") + "<>",
        head("MKCOL", "/cas/", ""),
        head("GET", "/cas/2", "Connection: close\r\n"),
        head("GET", "/cas/1", ""),
    ];
    stream.write_all(many.concat().as_bytes()).unwrap();
    for (code, body) in [(201, ""), (201, ""), (200, "one")] {
        let answer = read_one(&mut stream);
        assert_eq!((answer.code, answer.text().as_str()), (code, body));
    }
    let mut line = [0; 15];
    stream.read_exact(&mut line).unwrap();
    assert_eq!(&line, b"HTTP/1.1 200 OK");
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    // The answer to PROPFIND quotes a status.
    let rest = rest.replace("<D:status>HTTP/1.1", "");
    let codes: Vec<&str> = rest
        .split("HTTP/1.1 ")
        .skip(1)
        .map(|answer| &answer[..3])
        .collect();
    assert_eq!(codes, ["404", "207", "201", "200"], "{rest}");
    assert!(
        rest.contains("connection: close") && rest.contains("\r\ndate: "),
        "{rest}"
    );
}

#[test]
fn request_is_answered_however_its_bytes_arrive() {
    let gateway = Gateway::start();
    let mut stream = gateway.connect();
    stream.set_nodelay(true).unwrap();
    for byte in [put("/cas/slow", "body"), head("GET", "/cas/slow", "")]
        .concat()
        .as_bytes()
    {
        stream.write_all(&[*byte]).unwrap();
    }
    assert_eq!(read_one(&mut stream).code, 201);
    assert_eq!(read_one(&mut stream).text(), "body");
}

#[test]
fn connection_goes_on_after_a_request_that_is_not_plain() {
    let gateway = Gateway::start();
    let mut stream = gateway.connect();
    for round in 0..3 {
        let path = format!("/cas/{round}");
        stream.write_all(put(&path, "old").as_bytes()).unwrap();
        assert_eq!(read_one(&mut stream).code, 201);
        let chunked =
            head("PUT", &path, "Transfer-Encoding: chunked\r\n") + "3\r\nnew\r\n0\r\n\r\n";
        stream
            .write_all((chunked + &head("GET", &path, "")).as_bytes())
            .unwrap();
        assert_eq!(read_one(&mut stream).code, 204);
        assert_eq!(read_one(&mut stream).text(), "new");
    }
}

#[test]
fn frame_of_two_meanings_is_refused_and_what_follows_never_served() {
    let gateway = Gateway::start();
    assert_eq!(gateway.request("PUT", "/cas/secret", b"secret").code, 201);
    let inner = head("GET", "/cas/secret", "");
    let length = inner.len();
    for fields in [
        format!("Content-Length: {length}\r\nTransfer-Encoding: chunked\r\n"),
        format!("Transfer-Encoding: chunked\r\nContent-Length: {length}\r\n"),
        format!("Transfer-Encoding: identity\r\nContent-Length: {length}\r\n"),
        format!("Content-Length: 0\r\nContent-Length: {length}\r\n"),
        format!("Content-Length: {length}\r\nContent-Length: {length}\r\n"),
        format!("Content-Length: {length}, {length}\r\n"),
        format!("Content-Length: +{length}\r\n"),
        format!("Content-Length: -{length}\r\n"),
        format!("Content-Length: 0x{length:x}\r\n"),
        "Content-Length: \r\n".to_owned(),
        format!("Content-Length : {length}\r\n"),
        "Content-Length: 99999999999999999999\r\n".to_owned(),
        format!("X: y\r\n Content-Length: {length}\r\n"),
        "Transfer-Encoding: xchunked\r\n".to_owned(),
        "Transfer-Encoding\u{b}: chunked\r\n".to_owned(),
    ] {
        let answers = exchange(
            &gateway,
            (head("PUT", "/cas/x", &fields) + &inner).as_bytes(),
        );
        assert!(
            answers.matches("HTTP/1.1 ").count() <= 1,
            "{fields:?}: {answers}"
        );
        assert!(!answers.contains("secret"), "{fields:?}: {answers}");
        assert!(
            answers.is_empty() || answers.starts_with("HTTP/1.1 4"),
            "{fields:?}: {answers}"
        );
    }
    assert_eq!(gateway.request("GET", "/cas/x", b"").code, 404);
}

#[test]
fn head_without_end_is_refused() {
    let gateway = Gateway::start();
    let flood = head(
        "GET",
        "/cas/x",
        &"X: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n".repeat(20_000),
    );
    let answers = exchange(&gateway, flood.as_bytes());
    assert!(
        answers.is_empty() || answers.starts_with("HTTP/1.1 431"),
        "{answers}"
    );
    let garbage = exchange(&gateway, b"GET /\0 HTTP/1.1\r\n\r\n");
    assert!(garbage.starts_with("HTTP/1.1 400"), "{garbage}");
    let mut stream = gateway.connect();
    stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n").unwrap();
    let mut old = String::new();
    stream.read_to_string(&mut old).unwrap();
    assert!(
        old.starts_with("HTTP/1.0 200") && old.ends_with("ok\n"),
        "{old}"
    );
}

#[test]
fn refused_body_that_is_not_read_ends_the_connection() {
    let gateway = Gateway::start_with(|config| config.budget_bytes = 1 << 20);
    let mut stream = gateway.connect();
    let inner = head("GET", "/healthz", "");
    let mut request = head("PUT", "/cas/huge", "Content-Length: 4000000\r\n").into_bytes();
    request.extend(inner.repeat(4_000_000 / inner.len()).as_bytes());
    let _ = stream.write_all(&request);
    let mut all = Vec::new();
    let _ = stream.read_to_end(&mut all);
    let all = String::from_utf8_lossy(&all);
    assert_eq!(all.matches("HTTP/1.1 ").count(), 1, "{all}");
    assert!(
        all.starts_with("HTTP/1.1 413") && all.contains("connection: close"),
        "{all}"
    );
    // A refused body that is short is read, and the connection goes on.
    let mut stream = gateway.connect();
    stream.write_all(put("/a/../b", &inner).as_bytes()).unwrap();
    assert_eq!(read_one(&mut stream).code, 400);
    stream.write_all(inner.as_bytes()).unwrap();
    assert_eq!(read_one(&mut stream).text(), "ok\n");
}

#[test]
fn long_blob_comes_over_the_socket_as_over_the_port() {
    let gateway = Gateway::start();
    let blob: Vec<u8> = (0..3_000_000_u32)
        .map(|at| at.to_le_bytes()[at as usize % 3])
        .collect();
    assert_eq!(gateway.request("PUT", "/cas/long", &blob).code, 201);
    let mut unix = UnixStream::connect(&gateway.config.socket).unwrap();
    let mut tcp = gateway.connect();
    for _ in 0..3 {
        for stream in [&mut unix as &mut dyn ReadWrite, &mut tcp] {
            stream
                .write_all(head("GET", "/cas/long", "").as_bytes())
                .unwrap();
            assert!(read_one(stream).body == blob);
        }
    }
}

trait ReadWrite: Read + Write {}
impl<T: Read + Write> ReadWrite for T {}

#[test]
fn blob_cut_while_it_is_sent_cuts_the_answer_and_is_gone() {
    let gateway = Gateway::start();
    assert_eq!(
        gateway
            .request("PUT", "/cas/cut", &vec![1; 30_000_000])
            .code,
        201
    );
    let mut stream: TcpStream = gateway.connect();
    stream
        .write_all(head("GET", "/cas/cut", "").as_bytes())
        .unwrap();
    // The answer has begun, and is more than sockets hold.
    stream.read_exact(&mut [0; 1000]).unwrap();
    let file = find_file(&gateway.config.store_dir.join("blobs")).unwrap();
    std::fs::File::options()
        .write(true)
        .open(file)
        .unwrap()
        .set_len(20_000_000)
        .unwrap();
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    assert!(rest.len() < 21_000_000, "{} bytes came", rest.len());
    assert_eq!(gateway.request("GET", "/cas/cut", b"").code, 404);
    wait_for(
        "the broken blob to be counted",
        Duration::from_secs(10),
        || {
            let store = gateway.status().store;
            (store.broken_entries == 1 && store.bytes == 0).then_some(())
        },
    );
}

fn find_file(folder: &std::path::Path) -> Option<std::path::PathBuf> {
    std::fs::read_dir(folder).unwrap().find_map(|entry| {
        let path = entry.unwrap().path();
        if path.is_dir() {
            find_file(&path)
        } else {
            Some(path)
        }
    })
}

#[test]
fn sccache_entry_is_checked_on_every_way_in() {
    let gateway = Gateway::start();
    let archive = zip(&[3; 200_000]);
    let path = format!("/e/e/e/{}", "e".repeat(64));
    let mut stream = gateway.connect();
    for (body, code) in [(&archive[1..], 400), (&archive[..], 201)] {
        let length = format!("Content-Length: {}\r\n", body.len());
        stream
            .write_all(head("PUT", &path, &length).as_bytes())
            .unwrap();
        stream.write_all(body).unwrap();
        assert_eq!(read_one(&mut stream).code, code);
    }
}
