//! The same program by every lane: small projects with all that a compiler reads, built plainly and through the cache.
//!
//! Two people build each of them, in checkouts of their own and at one path that both have, with contents that change
//! (`SCENES`). What the built programs say is compared with what they say when no cache took part.

mod known;
mod matrix;
mod scenes;

use crate::dock::Dock;
use crate::site::{free_port, skip};
use scenes::{GROUPS, Stage};
use std::path::Path;

/// A way to the cache.
pub(crate) struct Lane {
    pub(crate) name: &'static str,
    /// Arguments of `client-env`.
    pub(crate) settings: &'static str,
    /// What the build runs below.
    pub(crate) below: &'static str,
}

pub(crate) const LANES: &[Lane] = &[
    lane("webdav", "--lane webdav", ""),
    lane("no-disk", "--lane webdav --no-disk", ""),
    lane("ipc", "--lane ipc", ""),
    lane("socket", "--lane socket", ""),
    lane("dist", "--lane dist", ""),
    lane(
        "at",
        "--lane webdav",
        "sccache-dock at /sdit-work --cargo-home /sdit-cargo --root . --",
    ),
];

const fn lane(name: &'static str, settings: &'static str, below: &'static str) -> Lane {
    Lane {
        name,
        settings,
        below,
    }
}

/// Builds everything by one lane; fails when a result differs that is not known to, or is the same and known to differ.
fn check(name: &str) {
    let lane = LANES.iter().find(|lane| lane.name == name).unwrap();
    let mut settings = vec![];
    let ports = [free_port(), free_port()].map(|port| format!("127.0.0.1:{port}"));
    if name == "dist" {
        if !Path::new("/usr/bin/bwrap").exists() {
            return skip("bubblewrap is not installed").unwrap_or_default();
        }
        settings = vec![
            ("MODE", "distributed-ephemeral"),
            ("SCCACHE_SCHEDULER_LISTEN", &*ports[0]),
            ("SCCACHE_BUILDER_LISTEN", &*ports[1]),
            ("SCCACHE_PUBLIC_ADDR", "127.0.0.1"),
        ];
    }
    let dock = Dock::start(&settings);
    let rows = GROUPS
        .iter()
        .flat_map(|group| Stage::new(&dock, lane, group).play())
        .collect();
    let (hits, ..) = crate::docker::counts(&dock.status().unwrap());
    println!("{name}: the cache had {hits} results");
    assert!(hits > 20, "nothing is shown of a cache without hits");
    let surprises = matrix::report(lane, &rows);
    assert!(surprises.is_empty(), "{}", surprises.join("\n"));
}

#[test]
fn by_webdav() {
    check("webdav");
}

#[test]
fn by_webdav_without_a_disk() {
    check("no-disk");
}

#[test]
fn by_ipc() {
    check("ipc");
}

#[test]
fn by_socket() {
    check("socket");
}

#[test]
fn by_dist() {
    check("dist");
}

#[test]
fn by_at() {
    check("at");
}
