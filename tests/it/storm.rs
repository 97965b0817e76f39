//! The gateway killed at random moments under 32 clients that read and write.
//!
//! `SCCACHE_DOCK_KILLS` says how often (12 by default). nextest ends a test after a minute; for more than that:
//! `SCCACHE_DOCK_KILLS=200 cargo test --locked --test it storm`. The seed is printed; `STORM_SEED` repeats its choices.

use crate::dice::Dice;
use crate::harness::{Answer, Gateway, WRITER, now, unfinished, wait_for};
use nix::sys::signal::Signal;
use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

const CLIENTS: u64 = 32;
const KEYS: u64 = 64;
const LONGEST: u64 = 300_000;
/// Holds all blobs and all writes in flight.
const AMPLE: u64 = 64 << 20;
/// Holds a part of them.
const TIGHT: u64 = 6 << 20;

/// The body of the version of a key; what it should be can be told from its first bytes.
fn body(version: u64) -> Vec<u8> {
    let length = usize::try_from(16 + Dice::new(version | 1 << 40).below(LONGEST)).unwrap();
    let mut body = version.to_le_bytes().repeat(length / 8 + 1);
    body.truncate(length);
    body
}

fn version(found: &[u8]) -> u64 {
    let version = u64::from_le_bytes(found[..8].try_into().unwrap());
    assert!(
        found == body(version),
        "a blob of {} bytes is not what was put",
        found.len()
    );
    version
}

fn request(addr: SocketAddr, method: &str, key: u64, body: &[u8]) -> io::Result<Answer> {
    let mut stream = TcpStream::connect(addr)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let head = format!(
        "{method} /storm/{key} HTTP/1.1\r\nAuthorization: Bearer {WRITER}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    if !bytes.windows(4).any(|window| window == b"\r\n\r\n") {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let answer = Answer::read(&mut &bytes[..]);
    let length = answer
        .head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    let whole = length.is_none_or(|length| length.parse() == Ok(answer.body.len()));
    // A killed server cuts its answers, which a client can tell.
    if whole {
        Ok(answer)
    } else {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

/// Reads and writes until the gateway dies.
fn client(addr: SocketAddr, mut dice: Dice, number: u64, stored: &Mutex<HashMap<u64, u64>>) {
    for round in 1.. {
        let key = dice.below(KEYS);
        if dice.below(2) == 0 {
            match request(addr, "GET", key, b"") {
                Ok(answer) if answer.code == 200 => drop(version(&answer.body)),
                Ok(answer) => assert_eq!(answer.code, 404, "{}", answer.text()),
                Err(_) => return,
            }
        } else {
            let version = dice.below(1 << 30) << 20 | round << 5 | number;
            match request(addr, "PUT", key, &body(version)) {
                Ok(answer) if matches!(answer.code, 201 | 204) => {
                    stored.lock().unwrap().insert(key, version);
                }
                // A full cache in which only writes in flight are left.
                Ok(answer) => assert_eq!(answer.code, 507, "{}", answer.text()),
                Err(_) => return,
            }
        }
    }
}

fn bytes_on_disk(folder: &Path) -> u64 {
    std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let found = entry.metadata().unwrap();
            if found.is_dir() {
                bytes_on_disk(&entry.path())
            } else {
                found.blocks() * 512
            }
        })
        .sum()
}

#[test]
fn kill_at_any_moment_leaves_whole_blobs_within_the_budget() {
    let kills = std::env::var("SCCACHE_DOCK_KILLS").map_or(12, |kills| kills.parse().unwrap());
    let mut gateway = Gateway::start_with(|config| config.budget_bytes = AMPLE);
    let mut dice = Dice::of("STORM_SEED");
    let began = now();
    let mut checked = 0;
    for kill in 0..kills {
        let stored = Mutex::new(HashMap::new());
        let addr = gateway.addr;
        std::thread::scope(|scope| {
            for number in 0..CLIENTS {
                let dice = Dice::new(dice.below(u64::MAX));
                let stored = &stored;
                scope.spawn(move || client(addr, dice, number, stored));
            }
            // Not a wait for anything: the moment is what is random.
            std::thread::sleep(Duration::from_micros(dice.below(150_000)));
            gateway.process.signal(Signal::SIGKILL);
        });
        gateway.process.exit();
        let ample = gateway.config.budget_bytes == AMPLE;
        gateway.restart();
        let found = wait_for("the index to be whole", Duration::from_secs(20), || {
            Some(gateway.status().store).filter(|store| !store.indexing)
        });
        let budget = gateway.config.budget_bytes;
        assert!(found.bytes <= budget, "{found:?} after kill {kill}");
        let cache = &gateway.config.store_dir;
        assert!(bytes_on_disk(&cache.join("blobs")) <= budget);
        let unfinished = unfinished(cache);
        assert!(unfinished.is_empty(), "{unfinished:?} after kill {kill}");
        let stored = stored.into_inner().unwrap();
        for key in 0..KEYS {
            let answer = request(gateway.addr, "GET", key, b"").unwrap();
            match answer.code {
                200 => drop(version(&answer.body)),
                404 if ample => assert!(!stored.contains_key(&key), "key {key} is lost"),
                code => assert_eq!(code, 404, "{}", answer.text()),
            }
            checked += u64::from(answer.code == 200);
        }
        assert_eq!(
            gateway.status().store.broken_entries,
            0,
            "after kill {kill}"
        );
        // Now and then there is less room, and blobs have to go.
        gateway.process.signal(Signal::SIGTERM);
        gateway.process.exit();
        gateway.config.budget_bytes = if kill % 2 == 0 { TIGHT } else { AMPLE };
        gateway.restart();
    }
    println!(
        "{kills} kills in {:?}, {checked} blobs found whole",
        began.elapsed()
    );
}
