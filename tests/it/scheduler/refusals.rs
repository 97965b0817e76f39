//! What the front refuses, and that nothing else is disturbed by it.

use super::cluster::{Builder, Cluster, Front, SERVER_TOKEN, SOON, free_port, toolchain};
use crate::harness::{Answer, READER, WRITER, wait_for};
use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
use sccache_dock::contract::gateway_config::WrongToken;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Most connections of one peer that have shown no token.
const STRANGERS: usize = 256;
const HEARTBEAT: &str = "/api/v1/scheduler/heartbeat_server";

/// A body that a builder could send.
fn heartbeat(nonce: u64) -> Vec<u8> {
    let bytes = |text: &[u8]| [&(text.len() as u64).to_le_bytes(), text].concat();
    let certificate = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    [
        bytes(&[7; 32]),
        4_u64.to_le_bytes().to_vec(),
        nonce.to_le_bytes().to_vec(),
        bytes(&[1; 32]),
        bytes(certificate),
    ]
    .concat()
}

fn bearer(builder: SocketAddr, token: &str) -> String {
    format!("Authorization: Bearer {builder} {token}\r\n")
}

/// A well-meaning client is still served, and no secret was logged.
fn check_well(cluster: &Cluster) {
    assert_eq!(cluster.front.servers(), 1);
    assert_eq!(cluster.front.allocate_as(WRITER, &toolchain('f')).code, 200);
    let log = cluster.front.process.log();
    for secret in [WRITER, SERVER_TOKEN, "scheduler-token", "not-the-token"] {
        assert!(!log.contains(secret), "{secret} is in the log:\n{log}");
    }
}

#[test]
fn wrong_client_token_fails_or_falls_back_as_configured() {
    for (wrong_token, code) in [(WrongToken::Fail, 401), (WrongToken::Fallback, 503)] {
        let cluster = Cluster::start_with(wrong_token);
        let front = &cluster.front;
        for token in ["not-the-token", READER, ""] {
            let answer = front.allocate_as(token, &toolchain('a'));
            assert_eq!(answer.code, code, "{token:?}");
            assert!(answer.text().contains("hint: "), "{}", answer.text());
        }
        let line = front.process.wait_for_line("reason=dist_client_token");
        assert!(
            line.starts_with("WARN ") && line.contains("peer=127.0.0.1:"),
            "{line}"
        );
        check_well(&cluster);
        assert!(
            front
                .page("/metrics")
                .contains("refusals_total{reason=\"dist_client_token\"} 3")
        );
    }
}

#[test]
fn wrong_tokens_are_slowed_down_here_too_and_the_right_one_is_not() {
    let cluster = Cluster::start();
    let codes: Vec<u16> = (0..100)
        .map(|_| {
            let answer = cluster.front.allocate_as("not-the-token", &toolchain('a'));
            answer.code
        })
        .collect();
    assert_eq!(codes[0], 401);
    assert!(codes.contains(&429), "{codes:?}");
    check_well(&cluster);
}

#[test]
fn builder_with_a_wrong_token_is_kept_out() {
    let cluster = Cluster::start();
    let front = &cluster.front;
    let _stranger = Builder::start_at(free_port("127.0.0.3"), front.address, "not-the-token");
    let line = front.process.wait_for_line("reason=dist_server_token");
    assert!(line.contains("SCCACHE_SERVER_TOKEN"), "{line}");
    check_well(&cluster);
}

#[test]
fn forged_address_helps_nobody_without_the_token() {
    let cluster = Cluster::start();
    let (front, builder) = (&cluster.front, cluster.builder.address);
    let forged = format!(
        "X-Real-IP: {0}\r\nX-Forwarded-For: {0}\r\nForwarded: for={0}\r\n",
        builder.ip()
    );
    for token in [
        String::new(),
        bearer(builder, "not-the-token"),
        bearer(builder, ""),
        format!("Authorization: Bearer {SERVER_TOKEN}\r\n"),
        format!("Authorization: Basic {builder} {SERVER_TOKEN}\r\n"),
        format!("Authorization: Bearer {WRITER}\r\n"),
    ] {
        for (path, body) in [
            (HEARTBEAT, heartbeat(1)),
            ("/api/v1/scheduler/job_state/1", vec![3, 0, 0, 0]),
            ("/api/v1/dock/leaving", Vec::new()),
        ] {
            let answer = front.post(path, &format!("{forged}{token}"), &body);
            assert_eq!(answer.code, 401, "{path} {token:?}");
        }
    }
    // With the token the address is the one of the token, whatever the header says.
    let forged = "X-Real-IP: 10.9.9.9\r\n";
    let answer = front.post(
        "/api/v1/scheduler/job_state/1",
        &format!("{forged}{}", bearer(builder, SERVER_TOKEN)),
        &[2, 0, 0, 0],
    );
    assert!(
        answer.code == 500 && answer.text().contains("Unknown job"),
        "{}",
        answer.text()
    );
    check_well(&cluster);
}

#[test]
fn heartbeat_of_an_earlier_process_is_refused() {
    let mut cluster = Cluster::start();
    let builder = cluster.builder.address;
    // The scheduler refuses the certificate; the front has taken note of the process before that.
    let send = |front: &Front| front.post(HEARTBEAT, &bearer(builder, SERVER_TOKEN), &heartbeat(9));
    assert_eq!(send(&cluster.front).code, 500);
    cluster.builder.restart();
    assert_eq!(cluster.front.hear(), b'b');
    assert_eq!(send(&cluster.front).code, 401);
    let line = cluster.front.process.wait_for_line("reason=dist_replay");
    assert!(line.contains("SCCACHE_PUBLIC_ADDR"), "{line}");
    wait_for("the builder's port", SOON, || {
        TcpStream::connect(builder).ok()
    });
    check_well(&cluster);
}

#[test]
fn oversized_and_malformed_bodies_never_fail_a_compile() {
    let cluster = Cluster::start();
    let front = &cluster.front;
    for body in [
        vec![b'a'; 4 << 20],
        vec![0; 5 << 10],
        b"short".to_vec(),
        Vec::new(),
    ] {
        let answer = front.allocate_as(WRITER, &body);
        assert_eq!(answer.code, 503, "{} bytes", body.len());
    }
    let server = bearer(cluster.builder.address, SERVER_TOKEN);
    assert_eq!(front.post(HEARTBEAT, &server, &vec![0; 1 << 20]).code, 503);
    assert_eq!(front.post(HEARTBEAT, &server, b"x").code, 400);
    front.process.wait_for_line("reason=dist_body");
    check_well(&cluster);
}

#[test]
fn garbage_and_smuggled_requests_end_at_the_front() {
    let cluster = Cluster::start();
    let front = &cluster.front;
    let say = |text: &[u8]| {
        let mut stream = front.connect();
        // It may close before all is said.
        let _ = stream.write_all(text);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    };
    for garbage in [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".as_slice(),
        b"\0\0\0\x04\x01\0\0\0",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\r\n\r\n\r\n\xff\xfe garbage \r\n\r\n",
    ] {
        let answer = say(garbage);
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 400"),
            "{answer}"
        );
    }
    front.process.wait_for_line("reason=dist_protocol");
    let client = format!("Host: x\r\nAuthorization: Bearer {WRITER}\r\n");
    let alloc = "POST /api/v1/scheduler/alloc_job HTTP/1.1\r\n";
    let inner = "POST /api/v1/scheduler/job_state/1 HTTP/1.1\r\nHost: x\r\n\r\n";
    let length = inner.len();
    for head in [
        format!(
            "{alloc}{client}Content-Length: 0\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{inner}"
        ),
        format!(
            "{alloc}{client}Content-Length: {length}\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n0\r\n\r\n{inner}"
        ),
        format!(
            "{alloc}{client}Transfer-Encoding: chunked, identity\r\nConnection: close\r\n\r\n0\r\n\r\n{inner}"
        ),
        format!("{alloc}{client}Content-Length: +5\r\nConnection: close\r\n\r\nhello{inner}"),
    ] {
        let answer = say(head.as_bytes());
        assert!(!answer.contains("HTTP/1.1 200"), "{head}\n{answer}");
        assert!(answer.matches("HTTP/1.1").count() <= 1, "{head}\n{answer}");
    }
    assert!(!cluster.scheduler.process.log().contains("Unknown request"));
    assert_eq!(front.get("/api/v1/scheduler/%61lloc_job").code, 404);
    assert_eq!(front.get("/metrics").code, 404);
    check_well(&cluster);
}

/// A connection from another address of this machine.
fn connect_from(ip: [u8; 4], to: SocketAddr) -> TcpStream {
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&socket, &SocketAddr::from((ip, 0))).unwrap();
    connect(&socket, &to).unwrap();
    TcpStream::from(socket)
}

#[test]
fn slow_peers_do_not_keep_others_out() {
    let cluster = Cluster::start();
    let front = &cluster.front;
    let mut slow: Vec<TcpStream> = Vec::new();
    for _ in 0..600 {
        let mut stream = connect_from([127, 0, 0, 9], front.address);
        let _ = stream.write_all(b"POST /api/v1/scheduler/alloc_job HTTP/1.1\r\nHost: ");
        slow.push(stream);
    }
    front.process.wait_for_line("reason=dist_connections");
    check_well(&cluster);
    // The oldest of them went, so a client behind the same address gets in.
    let mut stream = connect_from([127, 0, 0, 9], front.address);
    let ask = format!(
        "POST /api/v1/scheduler/job_state/1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{}Content-Length: 0\r\n\r\n",
        bearer(cluster.builder.address, SERVER_TOKEN)
    );
    stream.write_all(ask.as_bytes()).unwrap();
    assert_eq!(Answer::read(&mut stream).code, 400, "it has no body");
    wait_for("the count of those that went", SOON, || {
        let metrics = front.page("/metrics");
        let line = "sccache_dock_refusals_total{reason=\"dist_connections\"} ";
        let mut values = metrics.lines().filter_map(|found| found.strip_prefix(line));
        let went = values.next()?.parse::<usize>().ok()?;
        (went > 600 - STRANGERS).then_some(())
    });
    // A body that never comes is given up too.
    let mut stream = front.connect();
    let head = format!(
        "POST /api/v1/scheduler/alloc_job HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {WRITER}\r\n\
         Content-Length: 72\r\nConnection: close\r\n\r\nslow"
    );
    stream.write_all(head.as_bytes()).unwrap();
    assert_eq!(Answer::read(&mut stream).code, 503);
    let line = front.process.wait_for_line("reason=dist_slow");
    assert!(line.contains("took too long"), "{line}");
    let mut last = slow.remove(0);
    last.set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    let closed = last.read(&mut [0; 16]);
    assert!(matches!(closed, Ok(0..) | Err(_)), "{closed:?}");
    drop(slow);
}
