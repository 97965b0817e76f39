//! Peers without a token at the builder's own port.

use crate::distributed::{Farm, STOCK, distributed};
use crate::harness::now;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket, sockopt,
};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

/// The attacker's address, which is not the client's.
const ATTACKER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 66);

/// A connection from another address of this machine.
fn connect_from(source: Ipv4Addr, port: u16) -> TcpStream {
    let stream = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .unwrap();
    setsockopt(&stream, sockopt::ReuseAddr, &true).unwrap();
    let address = |ip, port| SockaddrIn::from(SocketAddrV4::new(ip, port));
    bind(stream.as_raw_fd(), &address(source, 0)).unwrap();
    connect(stream.as_raw_fd(), &address(Ipv4Addr::LOCALHOST, port)).unwrap();
    TcpStream::from(stream)
}

/// The first message of a real client.
fn hello() -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let name = Ipv4Addr::LOCALHOST.into();
    let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

/// A compile that a builder must do, however busy others keep its port.
fn job(farm: &Farm, number: u64) {
    farm.write("a.c", "int main(void) { return N; }\n");
    let start = now();
    let built = farm.client(&format!("sccache cc -DN={number} -c a.c -o a.o"));
    println!("job {number} took {:?}", start.elapsed());
    assert_eq!(built.code, Some(0), "{}", built.output);
    let found = distributed(&farm.statistics());
    assert_eq!(found, (number, 0), "{}", farm.dock.log());
}

#[test]
fn silent_and_slow_peers_of_a_builder_hold_nobody_up() {
    // The same port, for the relay's jobs and for clients'.
    for more in [&[][..], &[STOCK]] {
        let Some(farm) = Farm::start_with(more) else {
            return;
        };
        hold_up(&farm);
    }
}

fn hold_up(farm: &Farm) {
    job(farm, 1);
    let (hello, port) = (hello(), farm.builder);
    let silent: Vec<TcpStream> = (0..100).map(|_| connect_from(ATTACKER, port)).collect();
    job(farm, 2);
    let begun: Vec<TcpStream> = (0..100)
        .map(|length| {
            let mut stream = connect_from(ATTACKER, port);
            stream
                .write_all(&hello[..1 + length % (hello.len() - 1)])
                .unwrap();
            stream
        })
        .collect();
    job(farm, 3);
    // Those get as far as sccache-dist, one at a time.
    let halfway: Vec<TcpStream> = (0..100)
        .map(|_| {
            let mut stream = connect_from(ATTACKER, port);
            stream.write_all(&hello).unwrap();
            stream
        })
        .collect();
    for number in 4..8 {
        job(farm, number);
    }
    // Each is closed in bounded time, whatever it does.
    for mut stream in silent.into_iter().chain(begun).chain(halfway) {
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer) {
            Ok(_) => {}
            Err(cause) => assert_eq!(cause.kind(), ErrorKind::ConnectionReset),
        }
    }
}

#[test]
fn builder_is_there_in_a_flood_of_connections() {
    let Some(farm) = Farm::start_stock() else {
        return;
    };
    job(&farm, 1);
    let (hello, port, over) = (hello(), farm.builder, AtomicBool::new(false));
    std::thread::scope(|scope| {
        for source in 0..4 {
            let (hello, over) = (&hello, &over);
            scope.spawn(move || {
                let source = Ipv4Addr::new(127, 0, 1, source);
                let mut held = std::collections::VecDeque::new();
                // Bounded: 20,000 connections, 300 of them at a time.
                for number in 0..5000 {
                    if over.load(Relaxed) {
                        return;
                    }
                    let mut stream = connect_from(source, port);
                    let bytes: &[u8] = match number % 4 {
                        0 => b"",
                        1 => b"POST /api/v1/distserver/run_job/1 HTTP/1.1\r\n\r\n",
                        2 => &hello[..20],
                        _ => hello,
                    };
                    // It may hang up before it has read all.
                    let _ = stream.write_all(bytes);
                    held.push_back(stream);
                    if held.len() > 300 {
                        held.pop_front();
                    }
                    std::thread::sleep(Duration::from_millis(2));
                }
            });
        }
        for number in 2..5 {
            job(&farm, number);
        }
        over.store(true, Relaxed);
    });
}
