//! How long a request waits for the store's lock, at worst, while the store is busy with all of its entries.
//!
//! One connection asks for one blob in memory again and again: a few tens of microseconds, and whatever it waits. The
//! first row says what this machine adds of its own.

use crate::load::{self, Lane, Until};
use crate::peers::{AMPLE, Peer, Verb, archive};
use crate::scenes::{fill, gauges, populate};
use crate::{Options, now, say};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// A run of the prober: short, so that it ends soon after what it watches.
const TURN: Duration = Duration::from_millis(50);

/// Asks until `is_over`; the worst and the median, in microseconds.
fn probe(peer: &Peer, mut is_over: impl FnMut() -> io::Result<bool>) -> io::Result<(f64, f64)> {
    let (mut most, mut median) = (0.0_f64, 0.0);
    while !is_over()? {
        let figures = load::run(peer.addr, peer.lane, 1, Until::Time(TURN), || {
            peer.request(Verb::Get, 3, &[])
        })?;
        (most, median) = (most.max(figures.most_micros), figures.p50_micros);
    }
    Ok((most, median))
}

fn purge(peer: &Peer, filter: &str) -> io::Result<()> {
    let mut stream = TcpStream::connect(peer.addr)?;
    write!(
        stream,
        "POST /api/purge HTTP/1.1\r\nAuthorization: Bearer bench-token\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{filter}",
        filter.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    match answer.split(' ').nth(1) {
        Some("200") => Ok(()),
        _ => Err(io::Error::other(answer)),
    }
}

/// Waits for the lock at a start with many entries, and while they are purged.
pub(crate) fn locks(options: &Options) -> io::Result<()> {
    let folder = options.folder.join("locks");
    let body = archive(1 << 10);
    let peer = Peer::ours(&folder, Lane::Http, AMPLE)?;
    fill(&peer, &body)?;
    drop(peer);
    populate(&folder, options.entries)?;
    say(&format!(
        "\n## A GET of 1 KiB, {} entries\n\n| while | worst µs | median µs |\n| --- | --- | --- |",
        options.entries
    ));
    let row = |what: &str, (most, median): (f64, f64)| {
        say(&format!("| {what} | {most:.0} | {median:.0} |"));
    };
    let peer = Peer::ours(&folder, Lane::Http, AMPLE)?;
    let scan = probe(&peer, || {
        Ok(gauges(&peer, &["sccache_dock_store_indexing"])?[0] == 0)
    })?;
    let began = now();
    let quiet = probe(&peer, || Ok(began.elapsed() > Duration::from_secs(2)))?;
    row("nothing else", quiet);
    row("the start's scan, and the sort at its end", scan);
    for (what, filter) in [
        (
            "a purge of what is a day old",
            r#"{"older_than_seconds":86400}"#,
        ),
        ("a purge that only counts", r#"{"dry_run":true}"#),
    ] {
        let found = std::thread::scope(|scope| {
            let purging = scope.spawn(|| purge(&peer, filter));
            let found = probe(&peer, || Ok(purging.is_finished()));
            let purged = purging.join();
            purged.unwrap_or_else(|_| Err(io::Error::other("the purge panicked")))?;
            found
        })?;
        row(what, found);
    }
    Ok(())
}
