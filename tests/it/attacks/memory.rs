//! Nothing that a peer sends before it is allowed is kept, and what an allowed one sends is not held whole either.

use super::peer::OwnProtocol;
use crate::harness::{Gateway, Process};
use sccache_dock::contract::gateway_config::IpcPolicy;
use std::io::Write;

const CONNECTIONS: usize = 6;
/// A request to compile of so many bytes was legal, and held in memory, from anybody.
const LENGTH: u32 = 60 << 20;
/// Far more than the gateway needs, and far less than those requests together.
const CEILING_KIB: u64 = 160 << 10;

/// The most memory that a process has had, in KiB.
fn peak(process: &Process) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let mut fields = line.unwrap().split_ascii_whitespace();
    fields.nth(1).unwrap().parse().unwrap()
}

/// Sends requests to compile, all but their last byte. Gives how many were taken so far.
fn unfinished_requests(gateway: &Gateway) -> usize {
    let peers = (0..CONNECTIONS).map(|_| OwnProtocol::connect(gateway.addr).unwrap());
    let mut peers: Vec<_> = peers.collect();
    let head = [LENGTH.to_be_bytes(), 4_u32.to_le_bytes()].concat();
    let body = vec![b'x'; LENGTH as usize - 5];
    let taken = peers.iter_mut().map(|peer| {
        peer.may_write().unwrap();
        // Whoever is refused is cut off in the middle.
        let sent = peer
            .0
            .write_all(&head)
            .and_then(|()| peer.0.write_all(&body));
        usize::from(sent.is_ok())
    });
    let taken = taken.sum();
    assert_eq!(gateway.request("GET", "/healthz", b"").code, 200);
    taken
}

#[test]
fn long_requests_of_refused_peers_take_no_memory() {
    let gateway = Gateway::start_with(|config| config.ipc = IpcPolicy::Off);
    assert_eq!(unfinished_requests(&gateway), 0);
    let peak = peak(&gateway.process);
    assert!(peak < CEILING_KIB, "{peak} KiB");
}

#[test]
fn long_requests_of_allowed_peers_are_not_held_either() {
    let gateway = Gateway::start();
    assert_eq!(unfinished_requests(&gateway), CONNECTIONS);
    let peak = peak(&gateway.process);
    assert!(peak < CEILING_KIB, "{peak} KiB");
}
