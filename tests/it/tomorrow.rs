//! Clients of sccache's own protocol with another layout than the known one, as a later sccache may have it: the real
//! client, and a relay that writes what it sends anew.

use crate::dock::Dock;
use crate::harness::{Outcome, now};
use crate::machine::Machine;
use nix::sys::socket::{Shutdown, shutdown};
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

/// What is made of a request's body.
type Rewrite = fn(Vec<u8>) -> Vec<u8>;

/// A hang would end with the three minutes that a script may take.
const PROMPT: Duration = Duration::from_secs(60);

fn tag_of(body: &[u8]) -> u32 {
    u32::from_le_bytes(body[..4].try_into().unwrap())
}

/// Another tag, at which nothing is known.
fn renumbered(mut body: Vec<u8>) -> Vec<u8> {
    let tag = tag_of(&body) + 100;
    body[..4].copy_from_slice(&tag.to_le_bytes());
    body
}

/// Passes frames on, each written anew, until the client is done.
fn rewrite_all(mut from: impl Read, mut to: impl Write, rewrite: Rewrite) -> io::Result<()> {
    loop {
        let mut length = [0; 4];
        from.read_exact(&mut length)?;
        let mut body = vec![0; u32::from_be_bytes(length) as usize];
        from.read_exact(&mut body)?;
        let body = rewrite(body);
        to.write_all(&u32::try_from(body.len()).unwrap().to_be_bytes())?;
        to.write_all(&body)?;
    }
}

fn stand_between(client: OwnedFd, server: OwnedFd, rewrite: Rewrite) {
    let (client, server) = (File::from(client), File::from(server));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _ = io::copy(&mut &server, &mut &client);
            let _ = shutdown(client.as_raw_fd(), Shutdown::Both);
        });
        let _ = rewrite_all(&client, &server, rewrite);
        let _ = shutdown(server.as_raw_fd(), Shutdown::Write);
    });
}

/// Where a client finds the dock by way of the relay.
fn relay(dock: &Dock, rewrite: Rewrite) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (port, to): (u16, SocketAddr) = (listener.local_addr().unwrap().port(), dock.address());
    std::thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let server = TcpStream::connect(to).unwrap();
            std::thread::spawn(move || stand_between(client.into(), server.into(), rewrite));
        }
    });
    port
}

/// The same for the socket of clients that live where the server lives.
fn relay_beside(dock: &Dock, at: &Path, rewrite: Rewrite) {
    let (listener, to) = (
        UnixListener::bind(at).unwrap(),
        dock.dir.path().join("run/sccache.sock"),
    );
    std::thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let server = UnixStream::connect(&to).unwrap();
            std::thread::spawn(move || stand_between(client.into(), server.into(), rewrite));
        }
    });
}

fn machine() -> Machine {
    let machine = Machine::new();
    machine.write("it.c", "int one(void) { return 1; }\n");
    machine.write("it.rs", "pub fn one() -> u32 { 1 }\n");
    machine
}

/// Compiles C and Rust with sccache where `address` says.
fn compile(machine: &Machine, address: &str) -> Outcome {
    let begin = now();
    let outcome = machine.sh(&format!(
        "set -e; export {address}
         sccache gcc -c it.c -o it.o
         sccache rustc --crate-name it --crate-type lib --emit link --out-dir . it.rs
         test -s it.o -a -s libit.rlib"
    ));
    assert!(now() - begin < PROMPT, "it hung: {}", outcome.output);
    outcome
}

fn client_side(port: u16) -> String {
    format!("SCCACHE_CLIENT_SIDE=1 SCCACHE_SERVER_PORT={port}")
}

fn assert_built(outcome: &Outcome, dock: &Dock) {
    let (output, log) = (&outcome.output, dock.log());
    assert_eq!(outcome.code, Some(0), "{output}\n--- log:\n{log}");
}

/// The one line that says what came, what is known, and what to do.
fn assert_told(dock: &Dock, came: &str) {
    let line = dock.wait_log("has a layout that is not known");
    for part in [
        "WARN",
        came,
        "0.17.0 to 0.19.0",
        "--lane webdav",
        "127.0.0.1",
    ] {
        assert!(line.contains(part), "{part:?} is missing: {line}");
    }
}

#[test]
fn client_with_default_settings_and_an_unknown_request_compiles_by_itself() {
    let dock = Dock::start(&[]);
    let port = relay(&dock, renumbered);
    let built = compile(&machine(), &format!("SCCACHE_SERVER_PORT={port}"));
    assert_built(&built, &dock);
    assert_told(&dock, "unknown request 104");
}

/// After the greeting each request is of another layout: the cache gives and takes nothing.
fn storage_requests(rewrite: Rewrite, came: &str) {
    let dock = Dock::start(&[]);
    let address = client_side(relay(&dock, rewrite));
    let machine = machine();
    for _ in 0..2 {
        assert_built(&compile(&machine, &address), &dock);
    }
    assert_told(&dock, came);
    let status = dock.status().unwrap();
    let counters = &status["cache"]["namespaces"]["default"];
    for counter in ["hits", "writes"] {
        assert_eq!(counters[counter].as_u64().unwrap_or(0), 0, "{counter}");
    }
}

fn is_storage(body: &[u8]) -> bool {
    (6..=10).contains(&tag_of(body))
}

#[test]
fn client_with_longer_storage_requests_compiles_by_itself() {
    let longer = |mut body: Vec<u8>| {
        if is_storage(&body) {
            body.extend([1; 24]);
        }
        body
    };
    storage_requests(longer, "does not fit");
}

#[test]
fn client_with_shorter_storage_requests_compiles_by_itself() {
    let shorter = |mut body: Vec<u8>| {
        if is_storage(&body) {
            body.truncate(body.len() - 8);
        }
        body
    };
    storage_requests(shorter, "does not fit");
}

#[test]
fn client_with_requests_of_no_bytes_compiles_by_itself() {
    let none = |body: Vec<u8>| if is_storage(&body) { Vec::new() } else { body };
    storage_requests(none, "does not fit");
}

#[test]
fn client_with_unknown_storage_requests_compiles_by_itself() {
    let other = |body: Vec<u8>| {
        if is_storage(&body) {
            renumbered(body)
        } else {
            body
        }
    };
    storage_requests(other, "unknown request 109");
}

/// A greeting has no answer that makes a client compile by itself: it must know the layout of the cache's. So it ends
/// at once, and says to its user what its cache has said.
#[test]
fn client_with_an_unknown_greeting_is_told_what_to_do() {
    let dock = Dock::start(&[]);
    let port = relay(&dock, renumbered);
    let ended = compile(&machine(), &client_side(port));
    assert_eq!(ended.code, Some(2), "{}", ended.output);
    for part in ["sccache-dock", "0.17.0 to 0.19.0", "--lane webdav"] {
        assert!(ended.output.contains(part), "{part}: {}", ended.output);
    }
    assert_told(&dock, "unknown request 105");
}

#[test]
fn client_with_a_longer_greeting_is_served() {
    let dock = Dock::start(&[]);
    let longer = |mut body: Vec<u8>| {
        if tag_of(&body) == 5 {
            body.extend([7; 40]);
        }
        body
    };
    let address = client_side(relay(&dock, longer));
    let machine = machine();
    for _ in 0..2 {
        assert_built(&compile(&machine, &address), &dock);
    }
    let status = dock.status().unwrap();
    let counters = &status["cache"]["namespaces"]["default"];
    assert_eq!(counters["hits"], 2, "{counters}");
}

/// Beside the server its requests are the server's, whose sccache may not know them either.
#[test]
fn client_whose_compile_the_server_does_not_understand_compiles_by_itself() {
    let dock = Dock::start(&[]);
    let machine = machine();
    let socket = machine.work().join("relay.sock");
    relay_beside(&dock, &socket, |mut body| {
        body.truncate(body.len() / 2);
        body
    });
    let address = format!("SCCACHE_SERVER_UDS={}", socket.display());
    assert_built(&compile(&machine, &address), &dock);
    let line = dock.wait_log("client compiles without cache");
    assert!(line.contains("the sccache server"), "{line}");
}
