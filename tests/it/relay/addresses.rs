//! Where clients are sent with their jobs: by the address or name that they know the scheduler by, from everywhere where a
//! client may be.

use super::{Cluster, scheduler};
use crate::distributed::{CLIENT, client_file, distributed, is_possible, statistics};
use crate::dock::Dock;
use crate::machine::Machine;
use crate::site::free_port;
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;

/// An address that leads nowhere (RFC 5737).
const NOWHERE: &str = "198.51.100.7";

/// One compile of a client that knows the scheduler by this authority; jobs done by builders, and those that failed there.
fn compiled_by(front: &str, dock: &Dock) -> (u64, u64) {
    let client = Machine::new();
    client.write("dist.toml", &client_file(front, &dock.token()));
    client.write("a.c", "int a(void) { return 1; }\n");
    let built = client.sh(&format!("{CLIENT}sccache cc -c a.c -o a.o"));
    assert_eq!(built.code, Some(0), "{front}: {}", built.output);
    let done = distributed(&statistics(&client));
    client.sh(&format!("{CLIENT}sccache --stop-server"));
    done
}

/// A port of 127.0.0.1 that leads to another address, as one that Docker publishes.
fn published(to: (IpAddr, u16)) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (client, server) = (client.unwrap(), TcpStream::connect(to).unwrap());
            let back = (server.try_clone().unwrap(), client.try_clone().unwrap());
            for (mut from, mut to) in [(client, server), back] {
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(std::net::Shutdown::Write);
                });
            }
        }
    });
    port
}

/// The address with which this machine reaches others.
fn own_address() -> IpAddr {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.connect((NOWHERE, 9)).unwrap();
    socket.local_addr().unwrap().ip()
}

#[test]
fn client_of_a_published_port_comes_back_to_it() {
    if !is_possible() {
        return;
    }
    let front = free_port();
    let at = format!("0.0.0.0:{front}");
    let dock = scheduler(front, &[("SCCACHE_SCHEDULER_LISTEN", &at)]);
    let port = published((own_address(), front));
    for host in ["localhost", "127.0.0.1"] {
        let done = compiled_by(&format!("{host}:{port}"), &dock);
        assert_eq!(done, (1, 0), "{host}: {}", dock.log());
    }
}

#[test]
fn client_that_came_by_the_sixth_version_comes_back_by_it() {
    if !is_possible() {
        return;
    }
    let front = free_port();
    let at = format!("[::]:{front}");
    let dock = scheduler(front, &[("SCCACHE_SCHEDULER_LISTEN", &at)]);
    for host in ["[::1]", "127.0.0.1"] {
        let done = compiled_by(&format!("{host}:{front}"), &dock);
        assert_eq!(done, (1, 0), "{host}: {}", dock.log());
    }
}

/// As behind a NAT that does not lead back in, or with a port that is not published.
#[test]
fn builder_of_the_relays_own_container_is_reached_whatever_its_address_is() {
    let public = [("SCCACHE_PUBLIC_ADDR", NOWHERE)];
    let Some(cluster) = Cluster::start(0, &public) else {
        return;
    };
    let front = format!("127.0.0.1:{}", cluster.front);
    assert_eq!(compiled_by(&front, &cluster.dock), (1, 0));
    let builder = &cluster.dist()["builders"][0];
    let address = builder["address"].as_str().unwrap();
    assert!(address.starts_with(NOWHERE), "{builder}");
    assert_eq!(builder["state"], "ready");
    assert!(builder["done"].as_u64() >= Some(1), "{builder}");
}

#[test]
fn every_name_of_the_scheduler_becomes_an_address() {
    let public = [("SCCACHE_PUBLIC_ADDR", "10.1.2.3")];
    let Some(cluster) = Cluster::start(0, &public) else {
        return;
    };
    let url = format!("http://127.0.0.1:{}/api/v1/dock/relay", cluster.front);
    let asked = |host: &str, token: &str| {
        let told = Command::new("curl")
            .args(["--silent", "--header", &format!("Host: {host}")])
            .args(["--header", &format!("Authorization: Bearer {token}"), &url])
            .output();
        String::from_utf8(told.unwrap().stdout).unwrap()
    };
    let token = cluster.dock.token();
    for (host, address) in [
        ("10.0.0.7:20600", "10.0.0.7:20600"),
        ("[fd00::7]:20600", "[fd00::7]:20600"),
        ("localhost:20600", "127.0.0.1:20600"),
        ("cache.localhost:20600", "127.0.0.1:20600"),
        // Nobody here knows it: where this machine says that others reach it.
        ("build-host.invalid:20600", "10.1.2.3:20600"),
        ("build-host.invalid", "10.1.2.3:80"),
    ] {
        let expected = format!("{{\"address\":\"{address}\"}}");
        assert_eq!(asked(host, &token), expected, "{host}");
    }
    let refused = asked("10.0.0.7", "another-token-than-the-clients");
    assert!(!refused.contains("10.0.0.7"), "{refused}");
}

#[test]
fn client_that_cannot_reach_the_relay_compiles_by_itself_and_doctor_says_why() {
    let closed = format!("127.0.0.1:{}", free_port());
    let Some(cluster) = Cluster::start(0, &[("SCCACHE_RELAY_ADDRESS", &closed)]) else {
        return;
    };
    let front = format!("127.0.0.1:{}", cluster.front);
    assert_eq!(compiled_by(&front, &cluster.dock), (0, 1));
    let printed = cluster.dock.command(&["client-env", "--lane", "dist"]);
    let file = cluster.client.work().join("env.sh");
    std::fs::write(file, printed.stdout).unwrap();
    let doctor = "eval \"$(cat env.sh)\"\nsccache-dock doctor";
    let said = cluster.client.sh(doctor).output;
    let found = format!("cannot reach {closed}, to which it sends this client's jobs");
    assert!(said.contains(&found), "{said}");
    assert!(said.contains("SCCACHE_RELAY_ADDRESS"), "{said}");
}

#[test]
fn compiler_that_the_cache_cannot_hold_is_sent_once_and_its_jobs_are_compiled_by_the_client() {
    let Some(cluster) = Cluster::start(0, &[("SCCACHE_CACHE_SIZE", "8M")]) else {
        return;
    };
    for number in 0..4 {
        let source = format!("int f{number}(void) {{ return 1; }}\n");
        cluster.client.write("a.c", &source);
        let built = cluster.client("sccache cc -c a.c -o a.o");
        assert_eq!(built.code, Some(0), "{}", built.output);
    }
    let log = cluster.dock.log();
    assert_eq!(cluster.done(), (0, 4), "{log}");
    assert_eq!(log.matches("cannot keep toolchain").count(), 1, "{log}");
    assert!(log.contains("is SCCACHE_CACHE_SIZE large enough"), "{log}");
    assert!(cluster.outcome("jobs", "toolchain") >= 3);
}
