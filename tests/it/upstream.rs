//! The upstream: the real gateway before real stores (another gateway, Redis, an S3-compatible server).

use crate::access::with_tls;
use crate::dock::Dock;
use crate::harness::{Gateway, Process, READER, WRITER, now, skip, tools, wait_for};
use crate::site::free_port;
use sccache_dock::base::secret::Secret;
use sccache_dock::contract::gateway_config::Upstream;
use sccache_dock::contract::gateway_status::UpstreamStatus;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

const BODY: &[u8] = b"the blob";

/// A gateway whose upstream is at `url`.
fn before(url: &str) -> Gateway {
    before_with(url, 64 << 20)
}

fn before_with(url: &str, budget_bytes: u64) -> Gateway {
    Gateway::start_with(|config| {
        config.budget_bytes = budget_bytes;
        config.upstream = Some(Upstream {
            ahead: None,
            url: Secret::new(url),
            token: url.starts_with("http").then(|| Secret::new(WRITER)),
            client_certificate: None,
            queue: config.socket.with_file_name("upstream-queue"),
        });
    })
}

fn upstream(gateway: &Gateway) -> UpstreamStatus {
    gateway.status().upstream.expect("it has an upstream")
}

fn wait_status(gateway: &Gateway, what: &str, holds: impl Fn(&UpstreamStatus) -> bool) {
    wait_for(what, Duration::from_secs(60), || {
        let status = upstream(gateway);
        holds(&status).then_some(())
    });
}

fn wait_port(port: u16) {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    wait_for("the port", Duration::from_secs(20), || {
        TcpStream::connect(address).ok().map(drop)
    });
}

/// A Redis of the test's own.
pub(crate) struct Redis {
    pub(crate) port: u16,
    _process: Process,
    _folder: tempfile::TempDir,
}

impl Redis {
    /// Starts it, and waits until it answers; `None`, and that is said, where it is not installed.
    pub(crate) fn start(arguments: &[&str]) -> Option<Redis> {
        if Command::new("redis-server")
            .arg("--version")
            .output()
            .is_err()
        {
            skip("redis-server is not installed");
            return None;
        }
        let (folder, port) = (tempfile::tempdir().unwrap(), free_port());
        let process = Process::start(
            Command::new("redis-server")
                .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
                .args(["--save", ""])
                .args(arguments)
                .current_dir(folder.path())
                .stdout(Stdio::null()),
        );
        wait_port(port);
        Some(Redis {
            port,
            _process: process,
            _folder: folder,
        })
    }
}

/// What one gateway stores, a second one finds behind the same upstream.
fn shares(url: &str) {
    let (first, second) = (before(url), before(url));
    let large = vec![7; 3 << 20];
    assert_eq!(first.request("PUT", "/cas/small", BODY).code, 201);
    assert_eq!(first.request("PUT", "/team/cas/large", &large).code, 201);
    wait_status(&first, "both are passed on", |status| {
        status.uploaded == 2 && status.queued == 0
    });
    assert_eq!(second.request("GET", "/cas/small", b"").body, BODY);
    let answer = second.request("GET", "/team/cas/large", b"");
    assert!(answer.body == large, "{} bytes", answer.body.len());
    assert_eq!(second.request("GET", "/cas/nowhere", b"").code, 404);
    let status = upstream(&second);
    assert_eq!((status.hits, status.misses), (2, 1), "{status:?}");
    let metrics = second.request("GET", "/metrics", b"").text();
    assert!(
        metrics.contains("sccache_dock_upstream_hits_total 2"),
        "{metrics}"
    );
    // From now on it is here.
    assert_eq!(second.request("GET", "/cas/small", b"").body, BODY);
    assert_eq!(upstream(&second).hits, 2);
}

#[test]
fn two_caches_share_through_a_third() {
    let third = Gateway::start();
    shares(&third.url());
    let namespaces = third.status().namespaces;
    assert_eq!(namespaces["team"].entries, 1, "{namespaces:?}");
}

#[test]
fn two_caches_share_through_redis() {
    let Some(redis) = Redis::start(&["--requirepass", "redis-password"]) else {
        return;
    };
    shares(&format!(
        "redis://:redis-password@127.0.0.1:{}/folder",
        redis.port
    ));
}

#[test]
fn two_caches_share_through_s3() {
    let server = tools().join("cargo/bin/s3s-fs");
    if !server.exists() {
        return skip("s3s-fs is not installed");
    }
    let (folder, port) = (tempfile::tempdir().unwrap(), free_port());
    std::fs::create_dir(folder.path().join("bucket")).unwrap();
    let _s3 = Process::start(
        Command::new(server)
            .args(["--host", "127.0.0.1", "--port", &port.to_string()])
            .args(["--access-key", "the-key", "--secret-key", "the-secret"])
            .arg(folder.path())
            .stdout(Stdio::null()),
    );
    wait_port(port);
    shares(&format!(
        "s3://bucket/folder?endpoint=http://127.0.0.1:{port}&region=us-east-1\
         &access_key_id=the-key&secret_access_key=the-secret"
    ));
    assert!(folder.path().join("bucket/folder/cas/small").exists());
}

/// Accepts, answers nothing.
fn black_hole() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    (listener, url)
}

#[test]
fn upstream_that_is_down_costs_nothing_and_gets_all_of_it_later() {
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let url = format!("http://127.0.0.1:{port}");
    let mut gateway = before(&url);
    for name in ["a", "b", "c", "d", "e"] {
        assert_eq!(
            gateway.request("PUT", &format!("/cas/{name}"), BODY).code,
            201
        );
        assert_eq!(
            gateway
                .request("GET", &format!("/cas/not-{name}"), b"")
                .code,
            404
        );
    }
    wait_status(&gateway, "it is left alone", |status| !status.available);
    gateway.process.wait_for_line("is left alone for a while");
    let log = gateway.process.log();
    assert_eq!(log.matches("is left alone for a while").count(), 1, "{log}");
    // What waits outlives us.
    wait_status(&gateway, "all wait", |status| status.queued == 5);
    gateway.process.signal(nix::sys::signal::Signal::SIGKILL);
    gateway.process.exit();
    gateway.restart();
    wait_status(&gateway, "all wait again", |status| status.queued == 5);
    let listen = SocketAddr::from(([127, 0, 0, 1], port));
    let third = Gateway::start_with(|config| {
        config.listen = listen;
        config.store_dir = folder.path().join("cache");
    });
    wait_status(&gateway, "all are passed on", |status| {
        status.available && status.queued == 0 && status.uploaded == 5
    });
    assert_eq!(third.request("GET", "/cas/e", b"").body, BODY);
}

#[test]
fn hanging_upstream_delays_the_first_misses_and_no_write() {
    let (_hole, url) = black_hole();
    let gateway = before(&url);
    let begin = now();
    assert_eq!(gateway.request("GET", "/cas/x", b"").code, 404);
    let waited = now() - begin;
    // Sccache would wait for a minute; the ceiling leaves room for a machine under load.
    assert!(waited < Duration::from_secs(30), "{waited:?}");
    assert_eq!(gateway.request("PUT", "/cas/y", BODY).code, 201);
    assert_eq!(gateway.request("GET", "/cas/y", b"").body, BODY);
}

#[test]
fn hits_do_not_wait_for_misses_that_hang() {
    let (_hole, url) = black_hole();
    let gateway = before(&url);
    assert_eq!(gateway.request("PUT", "/cas/here", BODY).code, 201);
    let answered = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for number in 0..64 {
            let (gateway, answered) = (&gateway, &answered);
            scope.spawn(move || {
                let path = format!("/cas/{number}");
                assert_eq!(gateway.request("GET", &path, b"").code, 404);
                answered.fetch_add(1, SeqCst);
            });
        }
        let connections = || gateway.status().protocols["http"].connections;
        wait_for("all to hang", Duration::from_secs(60), || {
            (connections() > 64 || answered.load(SeqCst) > 0).then_some(())
        });
        for _ in 0..20 {
            assert_eq!(gateway.request("GET", "/cas/here", b"").body, BODY);
        }
        assert_eq!(answered.load(SeqCst), 0, "they still hang");
    });
}

#[test]
fn upstream_that_may_only_be_read_is_read() {
    let third = Gateway::start();
    for number in 0..8 {
        let path = format!("/cas/{number}");
        assert_eq!(third.request("PUT", &path, BODY).code, 201);
    }
    let gateway = Gateway::start_with(|config| {
        config.upstream = Some(Upstream {
            ahead: None,
            url: Secret::new(&third.url()),
            token: Some(Secret::new(READER)),
            client_certificate: None,
            queue: config.socket.with_file_name("upstream-queue"),
        });
    });
    for name in ["a", "b", "c", "d"] {
        let path = format!("/cas/{name}");
        assert_eq!(gateway.request("PUT", &path, BODY).code, 201);
    }
    wait_status(&gateway, "no write to be tried", |status| {
        !status.available && status.write_errors >= 3
    });
    gateway.process.wait_for_line("takes no blobs");
    for number in 0..8 {
        let path = format!("/cas/{number}");
        assert_eq!(gateway.request("GET", &path, b"").body, BODY);
    }
    let status = upstream(&gateway);
    assert_eq!(
        (status.hits, status.skipped_reads, status.queued),
        (8, 0, 4)
    );
}

#[test]
fn blob_that_the_upstream_does_not_take_holds_no_others_up() {
    let third = Gateway::start_with(|config| config.budget_bytes = 1 << 20);
    let gateway = before(&third.url());
    assert_eq!(
        gateway.request("PUT", "/cas/large", &vec![1; 2 << 20]).code,
        201
    );
    wait_status(&gateway, "no write to be tried", |status| !status.available);
    for name in ["a", "b", "c"] {
        let path = format!("/cas/{name}");
        assert_eq!(gateway.request("PUT", &path, BODY).code, 201);
    }
    wait_status(&gateway, "the others to pass", |status| {
        status.uploaded == 3 && status.dropped_writes == 1 && status.queued == 0
    });
    assert_eq!(third.request("GET", "/cas/c", b"").body, BODY);
}

#[test]
fn many_who_miss_the_same_blob_cause_one_fetch() {
    let third = Gateway::start();
    assert_eq!(third.request("PUT", "/cas/x", &vec![1; 2 << 20]).code, 201);
    let gateway = before(&third.url());
    std::thread::scope(|scope| {
        for _ in 0..50 {
            scope.spawn(|| {
                let answer = gateway.request("GET", "/cas/x", b"");
                assert_eq!((answer.code, answer.body.len()), (200, 2 << 20));
            });
        }
    });
    let (status, asked) = (upstream(&gateway), third.status().totals);
    // Who came after it had landed found it here.
    assert_eq!((status.hits, asked.hits), (1, 1), "{status:?}");
}

#[test]
fn truncated_answer_of_the_upstream_is_not_stored() {
    let url = answering("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf of it".into());
    let gateway = before(&url);
    assert_eq!(gateway.request("GET", "/cas/x", b"").code, 404);
    assert_eq!(gateway.status().store.entries, 0);
    assert!(upstream(&gateway).read_errors > 0);
}

/// Gives every request this answer.
fn answering(answer: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    url
}

#[test]
fn blob_of_the_upstream_that_is_no_whole_archive_is_not_served_as_an_entry() {
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 14\r\nConnection: close\r\n\r\n";
    let gateway = before(&answering(format!("{head}not an archive")));
    let entry = format!("/a/b/c/abc{}", "0".repeat(61));
    assert_eq!(gateway.request("GET", &entry, b"").code, 404);
    assert_eq!(
        gateway.request("GET", "/cas/x", b"").body,
        b"not an archive"
    );
}

#[test]
fn blob_that_is_evicted_before_it_was_passed_on_is_counted() {
    let port = free_port();
    let gateway = before_with(&format!("http://127.0.0.1:{port}"), 2 << 20);
    for turn in 0..8 {
        let path = format!("/cas/{turn}");
        assert_eq!(
            gateway.request("PUT", &path, &vec![turn; 1 << 19]).code,
            201
        );
    }
    let _third = Gateway::start_with(|config| {
        config.listen = SocketAddr::from(([127, 0, 0, 1], port));
    });
    wait_status(&gateway, "each is passed on or counted", |status| {
        status.uploaded + status.dropped_writes == 8 && status.dropped_writes > 0
    });
}

#[test]
fn caches_that_are_each_others_upstream_notice_it_and_do_without() {
    let ports = [free_port(), free_port(), free_port()];
    let url = |port: u16| format!("http://127.0.0.1:{port}");
    let ring: Vec<Gateway> = (0..ports.len())
        .map(|at| {
            Gateway::start_with(|config| {
                config.listen = SocketAddr::from(([127, 0, 0, 1], ports[at]));
                config.upstream = Some(Upstream {
                    ahead: None,
                    url: Secret::new(&url(ports[(at + 1) % ports.len()])),
                    token: Some(Secret::new(WRITER)),
                    client_certificate: None,
                    queue: config.socket.with_file_name("upstream-queue"),
                });
            })
        })
        .collect();
    for gateway in &ring {
        wait_status(gateway, "it knows", |status| {
            !status.available && status.last_error.is_some()
        });
        gateway
            .process
            .wait_for_line("this cache is its own upstream, by way of http://127.0.0.1:");
    }
    // Nothing goes round, and nobody waits for the next one.
    assert_eq!(ring[0].request("PUT", "/cas/here", BODY).code, 201);
    assert_eq!(ring[1].request("GET", "/cas/here", b"").code, 404);
    let status = upstream(&ring[1]);
    assert_eq!((status.skipped_reads, status.misses), (1, 0), "{status:?}");
    assert_eq!(upstream(&ring[0]).dropped_writes, 1);
}

#[test]
fn caches_behind_each_other_are_no_cycle() {
    let last = Gateway::start();
    let middle = before(&last.url());
    let first = before(&middle.url());
    assert_eq!(last.request("PUT", "/cas/there", BODY).code, 201);
    // A number that is somebody else's goes on, and changes nothing.
    let number = ["--header", "sccache-dock-cycle: 00000000000000aa 1"];
    let page = format!("{}/healthz", first.url());
    let asked = Command::new("curl")
        .args(["--silent", "--noproxy", "*"])
        .args(number)
        .arg(page)
        .output();
    assert_eq!(asked.unwrap().stdout, b"ok\n");
    assert_eq!(first.request("GET", "/cas/there", b"").body, BODY);
    assert!(upstream(&first).available && upstream(&middle).available);
}

/// A proxy as people have one: it fetches for others what they name by its whole URL, and lets through what speaks TLS.
/// Counts what it was asked.
fn proxy() -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!(
        "http://any:proxy-password@{}",
        listener.local_addr().unwrap()
    );
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    std::thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let count = Arc::clone(&count);
            std::thread::spawn(move || forward(client, &count));
        }
    });
    (url, asked)
}

/// One request, and then no more.
fn forward(mut client: TcpStream, asked: &AtomicUsize) -> Option<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        client.read_exact(&mut byte).ok()?;
        head.extend(byte);
    }
    asked.fetch_add(1, SeqCst);
    let head = String::from_utf8(head).unwrap();
    if let Some(rest) = head.strip_prefix("CONNECT ") {
        let server = TcpStream::connect(rest.split(' ').next()?).ok()?;
        write!(client, "HTTP/1.1 200 Connection established\r\n\r\n").ok()?;
        let (mut from, mut to) = (client.try_clone().ok()?, server.try_clone().ok()?);
        std::thread::spawn(move || std::io::copy(&mut from, &mut to));
        std::io::copy(&mut &server, &mut client).ok()?;
        return client.shutdown(std::net::Shutdown::Both).ok();
    }
    let (method, rest) = head.split_once(" http://").expect("a whole URL");
    let (host, rest) = rest.split_once('/').unwrap();
    let mut server = TcpStream::connect(host).unwrap();
    let (line, fields) = rest.split_once("\r\n").unwrap();
    write!(server, "{method} /{line}\r\nConnection: close\r\n{fields}").unwrap();
    let mut body = client.try_clone().unwrap();
    let mut there = server.try_clone().unwrap();
    std::thread::spawn(move || std::io::copy(&mut body, &mut there));
    std::io::copy(&mut server, &mut client).ok()?;
    client.shutdown(std::net::Shutdown::Both).ok()
}

/// What a client of this cache is given, whatever proxies its own environment names.
fn fetched(dock: &Dock) -> Vec<u8> {
    let url = format!("http://{}/cas/there", dock.address());
    let token = format!("Authorization: Bearer {}", dock.token());
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--noproxy", "*", "--header", &token, &url]);
    curl.output().unwrap().stdout
}

#[test]
fn upstream_is_reached_by_the_proxy_of_the_container_unless_its_network_is_excepted() {
    for (exceptions, is_proxied) in [
        ("", true),
        ("10.0.0.0/8, localhost", true),
        ("127.0.0.0/8", false),
        ("10.0.0.0/8,127.0.0.1", false),
    ] {
        let (third, (proxy, asked)) = (Gateway::start(), proxy());
        let dock = Dock::start(&[
            ("SCCACHE_UPSTREAM", &third.url()),
            ("SCCACHE_UPSTREAM_TOKEN", WRITER),
            ("HTTP_PROXY", &proxy),
            ("NO_PROXY", exceptions),
        ]);
        assert_eq!(third.request("PUT", "/cas/there", BODY).code, 201);
        assert_eq!(fetched(&dock), BODY, "{exceptions:?}: {}", dock.log());
        assert_eq!(asked.load(SeqCst) > 0, is_proxied, "{exceptions:?}");
        let line = dock.wait_log("blobs to pass on; by HTTP_PROXY");
        assert_eq!(line.contains("NO_PROXY"), !exceptions.is_empty(), "{line}");
        assert!(!dock.log().contains("proxy-password"), "{}", dock.log());
    }
}

#[test]
fn upstream_with_tls_is_reached_through_the_proxy_and_stays_secret_to_it() {
    let (_authority, folder, third) = with_tls();
    let (proxy, asked) = proxy();
    let url = format!("https://localhost:{}", third.addr.port());
    let ca = folder.path().join("ca.pem");
    let settings = [
        ("SCCACHE_UPSTREAM", &*url),
        ("SCCACHE_UPSTREAM_TOKEN", WRITER),
        ("SSL_CERT_FILE", ca.to_str().unwrap()),
        ("HTTPS_PROXY", &proxy),
    ];
    let dock = Dock::start(&settings);
    assert_eq!(third.request("PUT", "/cas/there", BODY).code, 201);
    assert_eq!(fetched(&dock), BODY, "{}", dock.log());
    assert!(asked.load(SeqCst) > 0, "{}", dock.log());
    dock.wait_log("blobs to pass on; by HTTPS_PROXY");
    assert!(!dock.log().contains("proxy-password"), "{}", dock.log());
}
