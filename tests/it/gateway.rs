//! The gateway's HTTP side and its life as a process.

use crate::harness::{
    Answer, Gateway, Process, READER, WRITER, address, command, config, now, skip, unfinished,
    wait_for,
};
use base64::Engine;
use nix::sys::signal::Signal;
use sccache_dock::base::listeners;
use sccache_dock::contract::gateway_config::IpcPolicy;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

const ENTRY: &str = "/a/b/c/abc0000000000000000000000000000000000000000000000000000000000000";

/// A ZIP with one stored member.
pub(crate) fn zip(body: &[u8]) -> Vec<u8> {
    let mut out = b"PK\x03\x04".to_vec();
    out.extend([0; 22]);
    out.extend([3, 0, 0, 0]);
    out.extend(b"obj");
    out.extend(body);
    let offset = u32::try_from(out.len()).unwrap();
    out.extend(b"PK\x01\x02");
    out.extend([0; 42]);
    out.extend(b"obj");
    let size = u32::try_from(out.len()).unwrap() - offset;
    out.extend(b"PK\x05\x06\0\0\0\0\x01\0\x01\0");
    out.extend(size.to_le_bytes());
    out.extend(offset.to_le_bytes());
    out.extend([0, 0]);
    out
}

#[test]
fn blob_of_every_size_comes_back_whole() {
    let gateway = Gateway::start();
    for size in [0, 1, 4096, 1 << 20, (1 << 20) + 1, 5_000_000] {
        let body: Vec<u8> = (0..size)
            .map(|at: usize| u8::try_from(at % 251).unwrap())
            .collect();
        let path = format!("/cas/{size}");
        assert_eq!(gateway.request("PUT", &path, &body).code, 201, "{size}");
        assert_eq!(gateway.request("PUT", &path, &body).code, 204, "{size}");
        let answer = gateway.request("GET", &path, b"");
        assert_eq!(answer.code, 200);
        assert!(answer.body == body, "{size} bytes came back different");
        let head = gateway.request("HEAD", &path, b"");
        assert!(head.code == 200 && head.body.is_empty());
        assert!(
            head.head.contains(&format!("content-length: {size}")),
            "{}",
            head.head
        );
        assert_eq!(gateway.request("DELETE", &path, b"").code, 204);
        assert_eq!(gateway.request("GET", &path, b"").code, 404);
        assert_eq!(gateway.request("DELETE", &path, b"").code, 404);
    }
    let status = gateway.status();
    assert_eq!(
        (
            status.namespaces["cas"].hits,
            status.namespaces["cas"].misses
        ),
        (6, 6)
    );
    assert_eq!(status.totals.writes, 12);
    assert!(
        status.protocols["http"].bytes_sent > 5_000_000,
        "{status:?}"
    );
}

#[test]
fn folders_always_exist() {
    let gateway = Gateway::start();
    for path in ["/", "/a/b/c/", "/team//x/", "/team"] {
        let answer = gateway.request("PROPFIND", path, b"<propfind/>");
        assert_eq!(answer.code, 207);
        let text = answer.text();
        assert!(
            text.contains("<D:collection/>") && text.contains("HTTP/1.1 200 OK"),
            "{text}"
        );
        let date = text
            .split("getlastmodified>")
            .nth(1)
            .unwrap()
            .trim_end_matches("</D:");
        assert!(httpdate::parse_http_date(date).is_ok(), "{date}");
        assert_eq!(gateway.request("MKCOL", path, b"").code, 201);
    }
    assert_eq!(gateway.request("OPTIONS", "/", b"").code, 200);
    assert_eq!(gateway.request("BREW", "/pot", b"").code, 405);
}

#[test]
fn start_check_is_answered_from_memory() {
    let gateway = Gateway::start_with(|config| config.budget_bytes = 0);
    for path in ["/.sccache_check", "//team/x/.sccache_check"] {
        assert_eq!(
            gateway.request_as(Some(READER), "GET", path, b"").text(),
            "Hello, World!"
        );
        assert_eq!(gateway.request("PUT", path, b"Hello, World!").code, 201);
        assert_eq!(
            gateway
                .request_as(Some(READER), "PUT", path, b"Hello, World!")
                .code,
            403
        );
        assert_eq!(gateway.request_as(None, "GET", path, b"").code, 401);
    }
    assert_eq!(gateway.status().totals.misses, 0);
}

#[test]
fn broken_entry_is_refused_and_named() {
    let gateway = Gateway::start();
    let archive = zip(&[7; 2000]);
    let cut = &archive[..archive.len() - 1];
    for body in [b"no archive".as_slice(), cut, b""] {
        let answer = gateway.request("PUT", ENTRY, body);
        assert_eq!(answer.code, 400, "{}", answer.text());
        assert_eq!(gateway.request("GET", ENTRY, b"").code, 404);
    }
    let line = gateway.process.wait_for_line("reason=zip");
    assert!(
        line.starts_with("WARN ") && line.contains(ENTRY) && line.contains("peer=127.0.0.1:"),
        "{line}"
    );
    assert_eq!(
        gateway
            .request("PUT", &format!("//team/{ENTRY}"), &archive)
            .code,
        201
    );
    assert_eq!(
        gateway.request("GET", &format!("/team{ENTRY}"), b"").body,
        archive
    );
}

#[test]
fn bad_keys_and_oversized_blobs_are_refused() {
    let gateway = Gateway::start_with(|config| config.budget_bytes = 1 << 20);
    for path in [
        "/a/../b",
        "/a/%2e%2e/b",
        "/a%00b",
        "/%ff",
        &format!("/{}", "x".repeat(2000)),
    ] {
        assert_eq!(gateway.request("PUT", path, b"x").code, 400, "{path}");
    }
    let huge = vec![0; 3 << 20];
    assert_eq!(
        gateway.request("PUT", "/cas/huge", &huge[..2 << 20]).code,
        413
    );
    let mut stream = gateway.connect();
    let head = format!(
        "PUT /cas/chunked HTTP/1.1\r\nAuthorization: Bearer {WRITER}\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    write!(stream, "{:x}\r\n", huge.len()).unwrap();
    // The answer may come, and the connection close, before all is sent.
    let _ = stream
        .write_all(&huge)
        .and_then(|()| stream.write_all(b"\r\n0\r\n\r\n"));
    assert_eq!(Answer::read(&mut stream).code, 413);
    assert_eq!(gateway.request("PUT", "/cas/fits", b"x").code, 201);
    assert_eq!(gateway.request("GET", "/readyz", b"").code, 200);
}

#[test]
fn matrix_of_tokens_and_requests() {
    let gateway = Gateway::start();
    let anonymous = Gateway::start_with(|config| config.anonymous_read = true);
    for gateway in [&gateway, &anonymous] {
        assert_eq!(gateway.request("PUT", "/cas/x", b"x").code, 201);
    }
    let open = |gateway: &Gateway, token: Option<&str>, closed: u16| {
        for (method, path, code) in [
            ("GET", "/cas/x", 200),
            ("HEAD", "/cas/x", 200),
            ("PROPFIND", "/", 207),
            ("GET", "/metrics", 200),
            ("GET", "/api/status", 200),
        ] {
            let expected = if closed == 0 { code } else { closed };
            assert_eq!(
                gateway.request_as(token, method, path, b"").code,
                expected,
                "{token:?} {method} {path}"
            );
        }
    };
    let closed_for_writes = |gateway: &Gateway, token: Option<&str>, code: u16| {
        for (method, path) in [
            ("PUT", "/cas/y"),
            ("DELETE", "/cas/x"),
            ("MKCOL", "/m/"),
            ("POST", "/api/purge"),
            ("PUT", "/.sccache_check"),
        ] {
            assert_eq!(
                gateway.request_as(token, method, path, b"{}").code,
                code,
                "{token:?} {method} {path}"
            );
        }
    };
    open(&gateway, Some(WRITER), 0);
    open(&gateway, Some(READER), 0);
    open(&gateway, Some("wrong"), 401);
    open(&gateway, None, 401);
    open(&anonymous, None, 0);
    closed_for_writes(&gateway, Some(READER), 403);
    closed_for_writes(&gateway, Some("wrong"), 401);
    closed_for_writes(&anonymous, None, 401);
    for path in ["/healthz", "/readyz", "/"] {
        assert_eq!(
            gateway.request_as(None, "GET", path, b"").code,
            200,
            "{path}"
        );
    }
    let refused = gateway.request_as(None, "GET", "/cas/x", b"");
    assert!(
        refused
            .head
            .contains("www-authenticate: bearer, basic realm=\"sccache-dock\""),
        "{}",
        refused.head
    );
    gateway.process.wait_for_line("reason=auth");
    assert!(gateway.status().totals.auth_failures > 10);
    assert!(
        !gateway.process.log().contains("-token"),
        "a token is in the log"
    );
}

#[test]
fn basic_password_is_the_token() {
    let gateway = Gateway::start();
    let password = base64::engine::general_purpose::STANDARD.encode(format!("gradle:{WRITER}"));
    let mut stream = gateway.connect();
    let head = format!(
        "PUT /cache/1 HTTP/1.1\r\nAuthorization: Basic {password}\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx"
    );
    stream.write_all(head.as_bytes()).unwrap();
    assert_eq!(Answer::read(&mut stream).code, 201);
}

#[test]
fn expectation_is_met_and_chunks_are_taken() {
    let gateway = Gateway::start();
    let mut stream = gateway.connect();
    let head = format!(
        "PUT /cache/2 HTTP/1.1\r\nAuthorization: Bearer {WRITER}\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut go_on = [0; 25];
    stream.read_exact(&mut go_on).unwrap();
    assert_eq!(&go_on, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream
        .write_all(b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
        .unwrap();
    assert_eq!(Answer::read(&mut stream).code, 201);
    assert_eq!(gateway.request("GET", "/cache/2", b"").body, b"abcde");
}

#[test]
fn body_that_cannot_be_a_whole_blob_is_refused() {
    let gateway = Gateway::start();
    let token = format!("Authorization: Bearer {WRITER}");
    for (request, code) in [
        (
            format!(
                "PUT /cas/x HTTP/1.1\r\n{token}\r\nContent-Range: bytes 3-4/5\r\nContent-Length: 2\r\nConnection: close\r\n\r\nlo"
            ),
            400,
        ),
        (
            format!("PUT /cas/x HTTP/1.1\r\n{token}\r\nConnection: close\r\n\r\n"),
            411,
        ),
        (format!("PUT /cas/x HTTP/1.0\r\n{token}\r\n\r\nbody"), 411),
    ] {
        let mut stream = gateway.connect();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer[9..], code.to_string().as_bytes(), "{request}");
        assert_eq!(gateway.request("GET", "/cas/x", b"").code, 404, "{request}");
    }
    // One that is empty, and says so, is a blob like others.
    assert_eq!(gateway.request("PUT", "/cas/empty", b"").code, 201);
    assert_eq!(gateway.request("GET", "/cas/empty", b"").code, 200);
}

#[test]
fn announced_blob_that_never_comes_evicts_nothing() {
    let gateway = Gateway::start();
    for number in 0..40 {
        let path = format!("/cas/{number}");
        assert_eq!(
            gateway.request("PUT", &path, &vec![number; 1 << 20]).code,
            201
        );
    }
    drop(begin_put(&gateway, "/cas/long", 63 << 20, b"a few bytes"));
    gateway.process.wait_for_line("reason=short_body");
    let store = gateway.status().store;
    assert_eq!((store.entries, store.evicted_entries), (40, 0));
    // What does come has all the room that it needs.
    let long = vec![7; 63 << 20];
    assert_eq!(gateway.request("PUT", "/cas/long", &long).code, 201);
    assert!(gateway.request("GET", "/cas/long", b"").body == long);
}

#[test]
fn readers_that_stand_still_keep_nobody_from_being_served() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    if most < 2048 {
        return skip("this needs 2048 open files");
    }
    setrlimit(Resource::RLIMIT_NOFILE, 2048, most).unwrap();
    let gateway = Gateway::start();
    assert_eq!(
        gateway.request("PUT", "/cas/long", &vec![1; 16 << 20]).code,
        201
    );
    let ask = format!("GET /cas/long HTTP/1.1\r\nAuthorization: Bearer {WRITER}\r\n\r\n");
    let crowd: Vec<TcpStream> = (0..1200)
        .map(|_| {
            let mut stream = gateway.connect();
            stream.write_all(ask.as_bytes()).unwrap();
            // Its answer has begun, and is far longer than what lies between us.
            stream.read_exact(&mut [0; 12]).unwrap();
            stream
        })
        .collect();
    for turn in 0..10 {
        let path = format!("/cas/{turn}");
        assert_eq!(gateway.request("PUT", &path, b"a blob").code, 201);
        assert_eq!(gateway.request("GET", &path, b"").body, b"a blob");
    }
    drop(crowd);
}

#[test]
fn bazel_and_gradle_store_by_their_paths() {
    let gateway = Gateway::start();
    let digest = "f".repeat(64);
    for path in [
        format!("/ac/{digest}"),
        format!("/cas/{digest}"),
        "/cache/0123456789abcdef".to_owned(),
    ] {
        assert_eq!(gateway.request("GET", &path, b"").code, 404);
        assert_eq!(gateway.request("PUT", &path, path.as_bytes()).code, 201);
        assert_eq!(gateway.request("GET", &path, b"").body, path.as_bytes());
    }
    let namespaces = gateway.status().namespaces;
    for name in ["ac", "cas", "cache"] {
        assert_eq!(
            (
                namespaces[name].hits,
                namespaces[name].misses,
                namespaces[name].entries
            ),
            (1, 0, 1),
            "{name}"
        );
    }
    let unknown = namespaces["other"].misses;
    assert_eq!(unknown, 3, "nothing was kept under their names yet");
}

#[test]
fn purge_removes_a_namespace_and_counts() {
    let gateway = Gateway::start();
    for path in ["/cache/1", "/cache/2", "/cas/1"] {
        assert_eq!(gateway.request("PUT", path, b"x").code, 201);
    }
    let answer = gateway.request("POST", "/api/purge", b"{\"namespace\":\"cache\"}");
    assert!(answer.text().contains("\"entries\":2"), "{}", answer.text());
    assert_eq!(gateway.request("GET", "/cache/1", b"").code, 404);
    assert_eq!(gateway.request("GET", "/cas/1", b"").code, 200);
    assert_eq!(
        gateway.request("POST", "/api/purge", b"{\"older\":1}").code,
        400
    );
    assert_eq!(gateway.request("GET", "/api/purge", b"").code, 405);
    assert!(
        gateway
            .request("POST", "/api/purge", b"")
            .text()
            .contains("\"entries\":1")
    );
}

#[test]
fn metrics_count_what_happened() {
    let gateway = Gateway::start();
    gateway.request("PUT", "/cache/1", b"xyz");
    gateway.request("GET", "/cache/1", b"");
    gateway.request("GET", "/cache/2", b"");
    let text = gateway.request("GET", "/metrics", b"").text();
    for line in [
        "sccache_dock_hits_total{namespace=\"cache\"} 1",
        "sccache_dock_misses_total{namespace=\"cache\"} 1",
        "sccache_dock_writes_total{namespace=\"cache\"} 1",
        "sccache_dock_written_bytes_total{namespace=\"cache\"} 3",
        "sccache_dock_requests_total{protocol=\"http\",method=\"GET\",code=\"404\"} 1",
        "sccache_dock_requests_in_flight 1",
        "sccache_dock_store_entries 1",
    ] {
        assert!(
            text.lines().any(|found| found == line),
            "{line}\nis not in\n{text}"
        );
    }
}

/// Sends the head and the first bytes of a PUT, then nothing.
fn begin_put(gateway: &Gateway, path: &str, announced: usize, sent: &[u8]) -> TcpStream {
    let mut stream = gateway.connect();
    let head = format!(
        "PUT {path} HTTP/1.1\r\nAuthorization: Bearer {WRITER}\r\nContent-Length: {announced}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(sent).unwrap();
    stream
}

#[test]
fn stalled_put_ends_with_503_and_stores_nothing() {
    let gateway = Gateway::start();
    let start = now();
    for (path, announced) in [("/cas/stalled", 100), ("/cas/stalled-large", 3_000_000)] {
        let mut stream = begin_put(&gateway, path, announced, b"some");
        if announced > 100 {
            assert_eq!(Answer::read(&mut stream).code, 503);
        } else {
            // Both stand still at the same time.
            std::thread::spawn(move || assert_eq!(Answer::read(&mut stream).code, 503));
        }
    }
    assert!(
        start.elapsed() < Duration::from_secs(15),
        "took {:?}",
        start.elapsed()
    );
    assert_eq!(gateway.request("GET", "/cas/stalled", b"").code, 404);
    assert_eq!(gateway.request("GET", "/cas/stalled-large", b"").code, 404);
    gateway.process.wait_for_line("reason=slow_body");
    let reserved = || {
        gateway
            .request("GET", "/metrics", b"")
            .text()
            .contains("\nsccache_dock_store_reserved_bytes 0\n")
    };
    wait_for(
        "the reservation to be released",
        Duration::from_secs(10),
        || reserved().then_some(()),
    );
}

#[test]
fn cut_put_stores_nothing() {
    let gateway = Gateway::start();
    drop(begin_put(&gateway, "/cas/cut", 2_000_000, &[1; 1_500_000]));
    gateway.process.wait_for_line("reason=short_body");
    assert_eq!(gateway.request("GET", "/cas/cut", b"").code, 404);
}

#[test]
fn half_a_put_is_never_served_after_kill() {
    let mut gateway = Gateway::start();
    let whole = vec![5; 3_000_000];
    assert_eq!(gateway.request("PUT", "/cas/whole", &whole).code, 201);
    let _open = begin_put(&gateway, "/cas/whole", 4_000_000, &[6; 3_500_000]);
    let _other = begin_put(&gateway, "/cas/half", 4_000_000, &[6; 3_500_000]);
    let temp_files = |gateway: &Gateway| {
        let half =
            |file: &PathBuf| std::fs::metadata(file).is_ok_and(|found| found.len() > 1_000_000);
        unfinished(&gateway.config.store_dir)
            .into_iter()
            .filter(half)
            .count()
    };
    wait_for("both to be half written", Duration::from_secs(20), || {
        (temp_files(&gateway) == 2).then_some(())
    });
    gateway.process.signal(Signal::SIGKILL);
    gateway.process.exit();
    gateway.restart();
    assert_eq!(gateway.request("GET", "/cas/half", b"").code, 404);
    assert!(gateway.request("GET", "/cas/whole", b"").body == whole);
    wait_for(
        "what is left to be removed",
        Duration::from_secs(20),
        || (!gateway.status().store.indexing).then_some(()),
    );
    assert!(unfinished(&gateway.config.store_dir).is_empty());
}

#[test]
fn term_lets_a_put_in_flight_finish() {
    let mut gateway = Gateway::start();
    let mut stream = begin_put(&gateway, "/cas/flight", 2_000_000, &[1; 1_000_000]);
    let flying = || {
        gateway
            .request("GET", "/metrics", b"")
            .text()
            .contains("sccache_dock_requests_in_flight 2")
    };
    wait_for("the PUT to be in flight", Duration::from_secs(10), || {
        flying().then_some(())
    });
    let idle = gateway.connect();
    gateway.process.signal(Signal::SIGTERM);
    gateway.process.wait_for_line("stopping signal=TERM");
    stream.write_all(&[1; 1_000_000]).unwrap();
    assert_eq!(Answer::read(&mut stream).code, 201);
    assert_eq!(gateway.process.exit().code(), Some(0));
    drop(idle);
    gateway.restart();
    assert_eq!(
        gateway.request("GET", "/cas/flight", b"").body.len(),
        2_000_000
    );
}

#[test]
fn drain_is_bounded() {
    let mut gateway = Gateway::start_with(|config| config.drain = Duration::from_millis(300));
    let _stream = begin_put(&gateway, "/cas/never", 2_000_000, b"x");
    let start = now();
    gateway.process.signal(Signal::SIGINT);
    assert_eq!(gateway.process.exit().code(), Some(0));
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "took {:?}",
        start.elapsed()
    );
}

#[test]
fn listeners_are_inherited_and_the_supervisors_end_is_ours() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path());
    let tcp = listeners::bind_tcp(config.listen).unwrap();
    let unix = listeners::bind_unix(&config.socket, 0o666).unwrap();
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    listeners::send(&ours, &[tcp.as_fd(), unix.as_fd()]).unwrap();
    let mut command = command(folder.path(), &config);
    let mut process = Process::start(
        command
            .arg("--inherit")
            .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs))),
    );
    // The command keeps its copy of the other end until it is dropped.
    drop(command);
    let mut ready = [0];
    ours.read_exact(&mut ready).unwrap();
    assert_eq!(&ready, b"R");
    for mut stream in [
        Box::new(TcpStream::connect(tcp.local_addr().unwrap()).unwrap()) as Box<dyn ReadWrite>,
        Box::new(UnixStream::connect(&config.socket).unwrap()),
    ] {
        stream
            .write_all(b"GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n")
            .unwrap();
        assert_eq!(Answer::read(&mut stream).text(), "ok\n");
    }
    drop(ours);
    assert_eq!(process.exit().code(), Some(0));
    assert!(
        process.log().contains("supervisor is gone"),
        "{}",
        process.log()
    );
}

trait ReadWrite: Read + Write {}
impl<T: Read + Write> ReadWrite for T {}

#[test]
fn other_protocols_are_closed_with_a_word() {
    let gateway = Gateway::start_with(|config| config.ipc = IpcPolicy::Off);
    for (hello, word) in [(&[0x16, 3, 1, 2][..], "TLS"), (&[0x80, 1], "0x80")] {
        let mut stream = gateway.connect();
        stream.write_all(hello).unwrap();
        // Closed with bytes unread, which a client may see as a reset.
        let _ = stream.read_to_end(&mut Vec::new());
        gateway.process.wait_for_line(word);
    }
    assert!(
        !gateway.config.socket.exists(),
        "the socket is open though the policy is off"
    );
}

#[test]
fn more_connections_than_descriptors_wait_their_turn() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = command(folder.path(), &config(folder.path()));
    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -n 40 && exec \"$@\"", "sh"]);
    shell.arg(gateway.get_program()).args(gateway.get_args());
    let process = Process::start(&mut shell);
    let addr = address(&process);
    let crowd: Vec<TcpStream> = (0..100)
        .map(|_| TcpStream::connect(addr).unwrap())
        .collect();
    let health = || {
        let mut stream = TcpStream::connect(addr).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        stream
            .write_all(b"GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n")
            .unwrap();
        Answer::read(&mut stream).code
    };
    drop(crowd);
    assert_eq!(health(), 200);
}

#[test]
fn client_that_takes_no_answer_is_dropped() {
    let gateway = Gateway::start();
    let body = vec![1; 20_000_000];
    assert_eq!(gateway.request("PUT", "/cas/long", &body).code, 201);
    let mut stream = gateway.connect();
    let head = format!("GET /cas/long HTTP/1.1\r\nAuthorization: Bearer {WRITER}\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let connections = || gateway.status().protocols["http"].connections;
    wait_for("the answer to stand", Duration::from_secs(10), || {
        (connections() == 2).then_some(())
    });
    wait_for("the drop", Duration::from_secs(45), || {
        (connections() == 1).then_some(())
    });
}

#[test]
fn flood_of_refusals_does_not_fill_the_log() {
    let gateway = Gateway::start();
    for _ in 0..200 {
        assert_eq!(gateway.request_as(None, "GET", "/cas/x", b"").code, 401);
    }
    let lines = gateway
        .process
        .log()
        .lines()
        .filter(|line| line.contains("reason=auth"))
        .count();
    assert!((1..=30).contains(&lines), "{lines} lines");
    gateway
        .process
        .wait_for_line("more warnings of this kind were not logged: auth");
    assert_eq!(gateway.status().refusals["auth"], 200);
}

#[test]
fn wrong_configuration_is_one_clear_message() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path());
    let mut right = command(folder.path(), &config);
    std::fs::write(folder.path().join("gateway.toml"), "listen = 1").unwrap();
    let mut process = Process::start(&mut right);
    assert_eq!(process.exit().code(), Some(2));
    process.wait_for_line("error: cannot understand");
    let mut command = command(folder.path(), &config);
    std::fs::remove_file(folder.path().join("gateway.toml")).unwrap();
    let mut process = Process::start(&mut command);
    assert_eq!(process.exit().code(), Some(2));
    process.wait_for_line("error: cannot read");
}

#[test]
fn readers_of_a_contested_key_see_whole_blobs() {
    let gateway = Gateway::start();
    std::thread::scope(|scope| {
        for writer in 0..8_u8 {
            let gateway = &gateway;
            scope.spawn(move || {
                for round in 0..20 {
                    let body = vec![writer; 200_000 + usize::from(writer) * 300_000];
                    let code = gateway.request("PUT", "/cas/contested", &body).code;
                    assert!(matches!(code, 201 | 204), "{code} in round {round}");
                    let found = gateway.request("GET", "/cas/contested", b"");
                    assert_eq!(found.code, 200);
                    let first = found.body[0];
                    assert!(
                        found.body.iter().all(|byte| *byte == first),
                        "two writers are mixed"
                    );
                    assert_eq!(found.body.len(), 200_000 + usize::from(first) * 300_000);
                }
            });
        }
    });
}

/// A frame of sccache's own protocol.
fn frame(tag: u32, rest: &[&[u8]]) -> Vec<u8> {
    let body = [&tag.to_le_bytes()[..], &rest.concat()].concat();
    [&u32::try_from(body.len()).unwrap().to_be_bytes()[..], &body].concat()
}

fn text(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u64).to_le_bytes()[..], bytes].concat()
}

fn exchange(stream: &mut TcpStream, request: &[u8]) -> Vec<u8> {
    stream.write_all(request).unwrap();
    let mut length = [0; 4];
    stream.read_exact(&mut length).unwrap();
    let mut body = vec![0; usize::try_from(u32::from_be_bytes(length)).unwrap()];
    stream.read_exact(&mut body).unwrap();
    body
}

#[test]
fn broken_archive_is_refused_by_the_own_protocol_which_goes_on() {
    let gateway = Gateway::start();
    let mut stream = gateway.connect();
    let key = text("d".repeat(64).as_bytes());
    for body in [vec![1; 10], vec![1; 3_000_000], Vec::new()] {
        let answer = exchange(&mut stream, &frame(8, &[&key, &text(&body)]));
        assert_eq!(
            answer[..8],
            [9, 0, 0, 0, 1, 0, 0, 0],
            "an error is the answer"
        );
        assert!(String::from_utf8_lossy(&answer).contains("not a whole ZIP"));
        assert_eq!(exchange(&mut stream, &frame(7, &[&key])), [8, 0, 0, 0, 0]);
    }
    for size in [10, 3_000_000] {
        let archive = zip(&vec![2; size]);
        assert_eq!(
            exchange(&mut stream, &frame(8, &[&key, &text(&archive)])),
            [9, 0, 0, 0, 0, 0, 0, 0]
        );
        let hit = exchange(&mut stream, &frame(7, &[&key]));
        assert!(hit[13..] == archive, "{size}");
    }
    assert_eq!(
        gateway
            .request("GET", &format!("/d/d/d/{}", "d".repeat(64)), b"")
            .body
            .len(),
        zip(&vec![2; 3_000_000]).len()
    );
}

#[test]
fn nonsense_in_the_own_protocol_is_answered_with_a_word_and_too_much_of_it_is_not() {
    let huge = [&[0xff; 4][..], &11_u32.to_le_bytes()].concat();
    let lying = frame(8, &[&u64::MAX.to_le_bytes(), b"x"]);
    for (nonsense, answered, word) in [
        (frame(99, &[]), Some(10), "unknown request 99"),
        (lying, Some(9), "does not fit"),
        (huge, None, "too long"),
    ] {
        let gateway = Gateway::start();
        let mut stream = gateway.connect();
        let handshake = exchange(&mut stream, &frame(5, &[]));
        assert_eq!(handshake[..4], [6, 0, 0, 0]);
        match answered {
            Some(tag) => {
                assert_eq!(exchange(&mut stream, &nonsense)[..4], [tag, 0, 0, 0]);
                let handshake = exchange(&mut stream, &frame(5, &[]));
                assert_eq!(handshake[..4], [6, 0, 0, 0], "it goes on");
            }
            None => {
                stream.write_all(&nonsense).unwrap();
                // Closed with bytes unread, which a client may see as a reset.
                let _ = stream.read_to_end(&mut Vec::new());
            }
        }
        gateway.process.wait_for_line(word);
        let pid = gateway.process.id();
        let memory = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap();
        let pages: u64 = memory.split(' ').nth(1).unwrap().parse().unwrap();
        assert!(pages * 4096 < 200 << 20, "{pages} pages are resident");
    }
}

/// A client that was greeted looks at its compiler before it goes on, and a compile of C ends if nobody answers then.
#[test]
fn first_request_after_the_greeting_is_answered_after_a_stop() {
    let mut gateway = Gateway::start();
    let mut stream = gateway.connect();
    assert_eq!(exchange(&mut stream, &frame(5, &[]))[..4], [6, 0, 0, 0]);
    gateway.process.signal(nix::sys::signal::Signal::SIGTERM);
    gateway.process.wait_for_line("stopping");
    let moment = Duration::from_millis(600);
    std::thread::sleep(moment);
    let key = [&64_u64.to_le_bytes()[..], &[b'a'; 64]];
    assert_eq!(exchange(&mut stream, &frame(9, &key))[..4], [10, 0, 0, 0]);
    assert!(gateway.process.exit().success());
}

#[test]
fn greeting_that_comes_as_the_gateway_stops_is_answered() {
    let mut gateway = Gateway::start();
    let mut stream = gateway.connect();
    // Connections are accepted in order: once a later one was answered, this one is the gateway's.
    assert_eq!(gateway.request("GET", "/cas/x", b"").code, 404);
    gateway.process.signal(nix::sys::signal::Signal::SIGTERM);
    gateway.process.wait_for_line("stopping");
    stream.write_all(&[0, 0, 0, 4, 5, 0, 0, 0]).unwrap();
    let mut length = [0; 4];
    stream.read_exact(&mut length).unwrap();
    let mut answer = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer[..4], [6, 0, 0, 0], "a handshake");
    assert!(gateway.process.exit().success());
}
