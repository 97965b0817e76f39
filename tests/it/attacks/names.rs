//! Where anyone may read, a page of another site must not: its name may be made to point here (DNS rebinding).

use super::{code, exchange};
use crate::dock::Dock;
use crate::harness::{Gateway, READER};
use std::io::{Read, Write};

/// Every path at which there is something to read.
const PATHS: [&str; 5] = ["/cas/x", "/", "/api/status", "/metrics", "/.sccache_check"];

fn ask(gateway: &Gateway, target: &str, fields: &str) -> String {
    let head =
        format!("GET {target} HTTP/1.1\r\n{fields}Accept: text/html\r\nConnection: close\r\n\r\n");
    exchange(gateway, head.as_bytes())
}

#[test]
fn page_under_a_name_of_its_own_reads_nothing() {
    let gateway = Gateway::start_with(|config| {
        config.anonymous_read = true;
        config.hosts = vec!["cache.example.com".to_owned()];
    });
    let body = b"what a build has made";
    assert_eq!(gateway.request("PUT", "/cas/x", body).code, 201);
    let port = gateway.addr.port();
    for path in PATHS {
        for fields in [
            format!("Host: evil.example:{port}\r\n"),
            "host:evil.example\r\n".to_owned(),
            format!("Host: 127.0.0.1.evil.example:{port}\r\n"),
            format!("Host: localhost:{port}\r\nHost: evil.example\r\n"),
            format!("Host: evil.example:{port}\r\nAuthorization: Bearer wrong\r\n"),
            "Host: evil.example\r\nX-Forwarded-Host: localhost\r\n".to_owned(),
        ] {
            let answer = ask(&gateway, path, &fields);
            assert_eq!(code(&answer), 421, "{path} {fields}: {answer}");
            assert!(answer.contains("SCCACHE_HOSTS"), "{answer}");
            assert!(!answer.contains("what a build has made"));
        }
        let absolute = format!("http://evil.example{path}");
        let answer = ask(&gateway, &absolute, "Host: localhost\r\n");
        assert_eq!(code(&answer), 421, "{absolute}: {answer}");
        for fields in [
            format!("Host: {}\r\n", gateway.addr),
            format!("Host: localhost:{port}\r\n"),
            format!("Host: host.docker.internal:{port}\r\n"),
            "Host: sccache\r\n".to_owned(),
            "Host: sccache.build.svc.cluster.local\r\n".to_owned(),
            format!("Host: cache.example.com:{port}\r\n"),
            format!("Host: evil.example:{port}\r\nAuthorization: Bearer {READER}\r\n"),
            String::new(),
        ] {
            let answer = ask(&gateway, path, &fields);
            assert_eq!(code(&answer), 200, "{path} {fields}: {answer}");
        }
    }
    let alive = ask(&gateway, "/healthz", "Host: evil.example\r\n");
    assert_eq!(code(&alive), 200, "it says nothing of anybody");
    assert!(gateway.status().refusals["host"] >= 30);
    gateway.process.wait_for_line("reason=host");
    let strict = Gateway::start();
    let answer = ask(&strict, "/cas/x", "Host: evil.example\r\n");
    assert_eq!(code(&answer), 401, "without a token nobody reads anyway");
}

#[test]
fn names_of_the_public_dns_are_a_setting() {
    let dock = Dock::start(&[
        ("SCCACHE_READ_TOKEN", "anonymous"),
        ("SCCACHE_HOSTS", "cache.example.com, *.ci.example.com"),
    ]);
    let ask = |host: &str| {
        let mut stream = std::net::TcpStream::connect(dock.address()).unwrap();
        let head = format!("GET /metrics HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        code(&answer)
    };
    assert_eq!(ask("cache.example.com"), 200);
    assert_eq!(ask("a.ci.example.com:4226"), 200);
    assert_eq!(ask("www.example.com"), 421);
}
