//! Those who must not take the room of clients, and requests that nobody sends by accident.

use super::{CEILING, ask, head, head_or_cut};
use crate::attacks::peer::OwnProtocol;
use crate::harness::{
    Answer, Gateway, Process, WRITER, address, command, config, now, skip, wait_for,
};
use sccache_dock::contract::gateway_config::IpcPolicy;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::process::Command;
use std::time::Duration;

#[test]
fn head_that_never_ends_is_cut_within_seconds() {
    let gateway = Gateway::start();
    let start = now();
    // Older than the other one: its end would be told first.
    let mut silent = gateway.connect();
    let mut slow = gateway.connect();
    slow.write_all(b"GET /cas/x HTTP/1.1\r\n").unwrap();
    slow.set_read_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    loop {
        // A letter now and then, as a slow loris does.
        let gone = slow.write_all(b"x").is_err();
        let read = slow.read(&mut [0; 64]);
        let waits = matches!(&read, Err(cause) if cause.kind() == std::io::ErrorKind::WouldBlock);
        if gone || !waits {
            break;
        }
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "it holds a place for long"
        );
    }
    let line = gateway.process.wait_for_line("reason=slow_head");
    assert!(line.contains("peer=127.0.0.1:"), "{line}");
    assert_eq!(silent.read(&mut [0; 1]).unwrap(), 0, "it went as well");
    let refusals = gateway.status().refusals;
    assert_eq!(refusals["slow_head"], 1, "silence is no fault");
}

/// Podman's proxy for published ports connects from inside a rootless container, so that everybody has its own address.
#[test]
fn own_address_is_everybodys_in_a_container_of_podmans() {
    if !nix::unistd::geteuid().is_root() {
        return skip("only root can show the gateway another /run");
    }
    let probe = UdpSocket::bind("0.0.0.0:0").unwrap();
    probe.connect("192.0.2.77:9").unwrap();
    let own = SocketAddr::new(probe.local_addr().unwrap().ip(), 0);
    let bridge = IpcPolicy::Beyond {
        bridge: true,
        networks: Vec::new(),
    };
    for (policy, make, is_let_in) in [
        (IpcPolicy::Local, "mkdir /run/podman", true),
        (IpcPolicy::Local, ": >/run/.containerenv", false),
        (bridge, ": >/run/.containerenv", true),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config(folder.path());
        (config.listen, config.ipc) = (own, policy);
        let gateway = command(folder.path(), &config);
        let mut contained = Command::new("unshare");
        let script = format!("mount -t tmpfs none /run && {make} && exec \"$@\"");
        contained.args(["--mount", "sh", "-c", &script, "sh"]);
        contained
            .arg(gateway.get_program())
            .args(gateway.get_args());
        let process = Process::start(&mut contained);
        let line = process.wait_for_line(&format!("listening on {}:", own.ip()));
        let address: SocketAddr = line.rsplit(' ').next().unwrap().parse().unwrap();
        let mut peer = OwnProtocol::connect(address).unwrap();
        assert_eq!(
            peer.may_write().unwrap(),
            is_let_in,
            "{make}: {}",
            process.log()
        );
    }
}

#[test]
fn client_with_a_right_token_may_be_idle() {
    let gateway = Gateway::start();
    let mut kept = gateway.connect();
    let mut stranger = gateway.connect();
    assert_eq!(ask(&mut kept, WRITER), 200);
    assert_eq!(ask(&mut stranger, "wrong"), 401);
    // The stranger's end is also the moment at which the other one would have gone.
    assert_eq!(stranger.read(&mut [0; 64]).unwrap(), 0);
    assert_eq!(ask(&mut kept, WRITER), 200);
}

#[test]
fn crowd_of_strangers_makes_room_for_clients() {
    let gateway = Gateway::start();
    let mut crowd: Vec<TcpStream> = (0..300).map(|_| gateway.connect()).collect();
    assert_eq!(gateway.request("PUT", "/cas/x", b"x").code, 201);
    let line = gateway.process.wait_for_line("reason=crowded");
    assert!(line.contains("peer=127.0.0.1:"), "{line}");
    let crowded = || gateway.status().refusals["crowded"];
    wait_for("the oldest to go", CEILING, || {
        (crowded() >= 44).then_some(())
    });
    assert_eq!(crowd[0].read(&mut [0; 1]).unwrap(), 0, "the oldest went");
}

#[test]
fn readers_without_a_token_take_no_room_of_clients() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path());
    config.anonymous_read = true;
    let gateway = command(folder.path(), &config);
    // There are 44 places then.
    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -n 600 && exec \"$@\"", "sh"]);
    shell.arg(gateway.get_program()).args(gateway.get_args());
    let process = Process::start(&mut shell);
    let addr = address(&process);
    let connect = || {
        let stream = TcpStream::connect(addr).unwrap();
        stream.set_read_timeout(Some(CEILING)).unwrap();
        stream
    };
    let read = b"HEAD /cas/x HTTP/1.1\r\n\r\n";
    let mut readers: Vec<TcpStream> = (0..100)
        .map(|_| {
            let mut reader = connect();
            reader.write_all(read).unwrap();
            assert_eq!(head(&mut reader), 404);
            reader
        })
        .collect();
    let mut clients: Vec<TcpStream> = (0..10).map(|_| connect()).collect();
    for client in &mut clients {
        assert_eq!(ask(client, WRITER), 200);
    }
    // While there is room, they may be idle; this one's end is the moment at which strangers have to go.
    assert_eq!(connect().read(&mut [0; 64]).unwrap(), 0);
    let newest = readers.last_mut().unwrap();
    newest.write_all(read).unwrap();
    assert_eq!(head(newest), 404);
    process.wait_for_line("reason=crowded");
}

#[test]
fn wrong_tokens_are_limited_and_the_right_one_never_is() {
    let gateway = Gateway::start();
    let mut codes = Vec::new();
    for _ in 0..100 {
        codes.push(
            gateway
                .request_as(Some("guessed-token"), "GET", "/cas/x", b"")
                .code,
        );
        let right = gateway.request("GET", "/cas/x", b"").code;
        assert_eq!(right, 404, "the same address with the right token");
    }
    assert!(codes[..30].iter().all(|code| *code == 401), "{codes:?}");
    assert!(codes.contains(&429), "{codes:?}");
    assert_eq!(
        gateway.request_as(None, "GET", "/cas/x", b"").code,
        401,
        "no token is no guess"
    );
    let answer = gateway.request_as(Some("guessed-token"), "GET", "/cas/x", b"");
    if answer.code == 429 {
        assert!(
            answer.head.contains("connection: close") && answer.head.contains("retry-after: 1")
        );
    }
    gateway.process.wait_for_line("reason=auth_flood");
    assert!(
        !gateway.process.log().contains("guessed"),
        "the token is in the log"
    );
}

#[test]
fn ambiguous_requests_are_refused_or_read_in_one_way() {
    let gateway = Gateway::start();
    let auth = format!("Authorization: Bearer {WRITER}\r\n");
    let smuggled = "GET /smuggled HTTP/1.1\r\n\r\n";
    for (request, code) in [
        (
            format!("PUT /cas/a HTTP/1.1\r\n{auth}Content-Length: 1\r\nContent-Length: 2\r\n\r\nx"),
            400,
        ),
        (
            format!("PUT /cas/a HTTP/1.1\r\n{auth}Content-Length: 1, 2\r\n\r\nx"),
            400,
        ),
        (
            format!("PUT /cas/a HTTP/1.1\r\n{auth}Content-Length: +1\r\n\r\nx"),
            400,
        ),
        (
            format!("PUT /cas/a HTTP/1.1\r\n{auth}Content-Length: -1\r\n\r\nx"),
            400,
        ),
        (
            format!(
                "PUT /cas/a HTTP/1.1\r\n{auth}Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n"
            ),
            400,
        ),
        (
            format!("PUT /cas/a HTTP/1.1\r\n{auth}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
            400,
        ),
        (
            format!("PUT /cas/a HTTP/1.1\r\n{auth}Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n"),
            400,
        ),
        (
            format!("PUT /cas/a HTTP/1.1\r\n{auth}Content-Length: 1\r\n folded: x\r\n\r\nx"),
            400,
        ),
        (
            format!(
                "PUT /cas/a HTTP/1.1\r\n{auth}Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n"
            ),
            400,
        ),
        (
            format!("PUT /cas/a HTTP/1.1\r\n{auth}Transfer-Encoding: chunked\r\n\r\nz\r\n"),
            400,
        ),
        (
            format!("PUT /cas/a\0 HTTP/1.1\r\n{auth}Content-Length: 1\r\n\r\nx"),
            400,
        ),
        (
            format!("PUT /../../etc/passwd HTTP/1.1\r\n{auth}Content-Length: 1\r\n\r\nx"),
            400,
        ),
        (
            format!("PUT /a/%2e%2e/%2e%2e/b HTTP/1.1\r\n{auth}Content-Length: 1\r\n\r\nx"),
            400,
        ),
        (
            format!("PUT http://elsewhere/../a HTTP/1.1\r\n{auth}Content-Length: 1\r\n\r\nx"),
            400,
        ),
    ] {
        let mut stream = gateway.connect();
        stream.write_all(request.as_bytes()).unwrap();
        let answer = head_or_cut(&mut stream);
        // Whoever breaks the frame of a body while it is read is cut: there is nothing to wait for.
        let is_cut = answer.is_none() && request.contains("chunked\r\n\r\n");
        assert!(answer == Some(code) || is_cut, "{request:?}: {answer:?}");
    }
    assert_eq!(gateway.request("GET", "/cas/a", b"").code, 404);
    // Both frames: the chunks count, and what stands after them is not hidden in the body.
    let length = 5 + smuggled.len();
    let both = format!(
        "PUT /cas/b HTTP/1.1\r\n{auth}Content-Length: {length}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}"
    );
    let mut stream = gateway.connect();
    stream.write_all(both.as_bytes()).unwrap();
    // The rest may be a request of its own, which has no token, or go down with the connection.
    let answers = (head_or_cut(&mut stream), head_or_cut(&mut stream));
    assert!(
        matches!(answers, (Some(201), None | Some(401)) | (Some(400), None)),
        "{answers:?}"
    );
    let stored = gateway.request("GET", "/cas/b", b"");
    assert!(stored.code == 404 || stored.body.is_empty(), "{stored:?}");
    gateway.process.wait_for_line("reason=malformed");
}

#[test]
fn chunks_whose_frame_never_ends_are_cut() {
    let gateway = Gateway::start();
    for (name, begin, piece) in [
        ("extension", "1;", "x".repeat(64 << 10)),
        ("trailer", "1\r\nx\r\n0\r\n", "x: y\r\n".repeat(10_000)),
    ] {
        let mut stream = gateway.connect();
        let head = format!(
            "PUT /cas/{name} HTTP/1.1\r\nAuthorization: Bearer {WRITER}\r\nTransfer-Encoding: chunked\r\n\r\n{begin}"
        );
        stream.write_all(head.as_bytes()).unwrap();
        let sent = (0..1024).take_while(|_| stream.write_all(piece.as_bytes()).is_ok());
        assert!(sent.count() < 1024, "{name} is read on and on");
        let path = format!("/cas/{name}");
        assert_eq!(gateway.request("GET", &path, b"").code, 404);
    }
}

#[test]
fn page_of_another_site_cannot_purge_with_a_token_that_the_browser_keeps() {
    let gateway = Gateway::start();
    assert_eq!(gateway.request("PUT", "/cas/x", b"x").code, 201);
    let ask = |path: &str, fields: &str| {
        let mut stream = gateway.connect();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: cache:4226\r\nAuthorization: Bearer {WRITER}\r\n{fields}\
             Content-Length: 0\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        Answer::read(&mut stream).code
    };
    for path in ["/api/purge", "//api//purge", "/%61pi/purge"] {
        for fields in [
            "Sec-Fetch-Site: cross-site\r\n",
            "Origin: http://elsewhere.example\r\n",
            "Origin: null\r\n",
        ] {
            assert_eq!(ask(path, fields), 403, "{path} {fields}");
        }
    }
    assert_eq!(gateway.request("GET", "/cas/x", b"").code, 200);
    assert_eq!(ask("/api/purge", "Origin: http://cache:4226\r\n"), 200);
    assert_eq!(gateway.request("GET", "/cas/x", b"").code, 404);
}

#[test]
fn flood_of_headers_is_refused() {
    let gateway = Gateway::start();
    let many = "x: y\r\n".repeat(500);
    let long = format!("x: {}\r\n", "y".repeat(200_000));
    let path = format!("/{}", "p".repeat(100_000));
    for (path, headers, codes) in [
        ("/cas/x", many.as_str(), [431, 431]),
        ("/cas/x", &long, [431, 431]),
        (&path, "", [414, 431]),
    ] {
        let mut stream = gateway.connect();
        // The answer may come, and the connection close, before all is sent.
        let _ = stream.write_all(format!("GET {path} HTTP/1.1\r\n{headers}\r\n").as_bytes());
        let mut answer = [0; 12];
        if stream.read_exact(&mut answer).is_ok() {
            let code: u16 = std::str::from_utf8(&answer[9..]).unwrap().parse().unwrap();
            assert!(codes.contains(&code), "{code}");
        }
    }
    gateway.process.wait_for_line("reason=malformed");
    assert_eq!(gateway.request("GET", "/healthz", b"").code, 200);
}
