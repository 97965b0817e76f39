//! Who only takes up room stops nobody.

use super::peer::OwnProtocol;
use crate::harness::{Gateway, now, skip};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// More than the gateway has places.
const IDLE: usize = 4_100;
/// So many it has at least.
const PLACES: usize = 4_090;

/// Room for so many connections in this process.
fn room() -> bool {
    let wanted = IDLE as u64 + 500;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let can = hard >= 2 * wanted && setrlimit(Resource::RLIMIT_NOFILE, wanted, hard).is_ok();
    if !can {
        skip("too few descriptors are allowed");
    }
    can
}

/// Local peers of sccache's own protocol may be silent for hours: their clients compile meanwhile.
#[test]
fn idle_local_connections_do_not_stop_the_cache_for_others() {
    if !room() {
        return;
    }
    let gateway = Gateway::start();
    assert_eq!(gateway.request("PUT", "/cas/x", b"x").code, 201);
    let mut crowd = Vec::new();
    for number in 0..IDLE {
        let mut own = OwnProtocol(UnixStream::connect(&gateway.config.socket).unwrap());
        if number < PLACES {
            assert!(own.may_write().unwrap());
        } else {
            // Of these nobody may be there yet to answer.
            own.0.write_all(&[0, 0, 0, 4, 5, 0, 0, 0]).unwrap();
        }
        crowd.push(own);
    }
    for _ in 0..20 {
        let start = now();
        assert_eq!(gateway.request("GET", "/cas/x", b"").code, 200);
        let mut own = OwnProtocol::connect(gateway.addr).unwrap();
        assert!(own.may_write().unwrap());
        let took = start.elapsed();
        assert!(took < Duration::from_secs(10), "it took {took:?}");
    }
    assert_eq!(gateway.request("GET", "/healthz", b"").code, 200);
    // Whoever is at work stays: a body that arrives slowly.
    let mut slow = gateway.connect();
    let head = "PUT /cas/slow HTTP/1.1\r\nAuthorization: Bearer writer-token\r\nContent-Length: 3\r\n\
                Connection: close\r\n\r\n";
    slow.write_all(head.as_bytes()).unwrap();
    for byte in b"abc" {
        for _ in 0..5 {
            assert_eq!(gateway.request("GET", "/cas/x", b"").code, 200);
        }
        slow.write_all(&[*byte]).unwrap();
    }
    let mut answer = String::new();
    slow.read_to_string(&mut answer).unwrap();
    assert_eq!(super::code(&answer), 201, "{answer}");
}

/// Strangers that come and go, send half a head, or nothing, from one address, while a client works.
#[test]
fn flood_of_connections_holds_no_client_up() {
    let gateway = Gateway::start();
    assert_eq!(gateway.request("PUT", "/cas/x", b"x").code, 201);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let gateway = &gateway;
            scope.spawn(move || {
                let mut held = std::collections::VecDeque::new();
                for number in 0..1_000 {
                    // The oldest were closed already.
                    let Ok(mut stream) = std::net::TcpStream::connect(gateway.addr) else {
                        continue;
                    };
                    let said = [
                        "",
                        "G",
                        "GET /cas/x HTTP/1.1\r\nHost: x\r\nX:",
                        "\u{0}\u{0}",
                    ];
                    let _ = stream.write_all(said[(number + thread) % 4].as_bytes());
                    held.push_back(stream);
                    if held.len() > 100 {
                        held.pop_front();
                    }
                }
            });
        }
        for _ in 0..50 {
            let start = now();
            assert_eq!(gateway.request("GET", "/cas/x", b"").code, 200);
            let took = start.elapsed();
            assert!(took < Duration::from_secs(10), "it took {took:?}");
        }
    });
    assert_eq!(gateway.request("PUT", "/cas/y", b"y").code, 201);
}
