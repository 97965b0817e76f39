//! The same program by every lane: small projects with all that a compiler reads, built plainly and through the cache.
//!
//! Two people build each of them, in checkouts of their own and at one path, with contents that change (`SCENES`). What
//! the built programs say is compared with what they say when no cache took part.

mod known;
mod matrix;
mod scenes;

use crate::dock::Dock;
use crate::docker::counts;
use crate::harness::skip;
use crate::site::free_port;
use matrix::Matrix;
use scenes::{Group, Site, group};
use std::collections::BTreeSet;
use std::path::Path;

/// A way to the cache.
pub(crate) struct Lane {
    pub(crate) name: &'static str,
    /// Arguments of `client-env`.
    pub(crate) settings: &'static str,
    /// What the build runs below.
    pub(crate) below: &'static str,
}

const LANES: &[Lane] = &[
    lane("webdav", "--lane webdav", ""),
    lane("no-disk", "--lane webdav --no-disk", ""),
    lane("ipc", "--lane ipc", ""),
    lane("socket", "--lane socket", ""),
    lane("dist", "--lane dist", ""),
    lane(
        "at",
        "--lane webdav",
        "sccache-dock at /sdit-work --cargo-home /sdit-cargo --root . --own-results asks,lists,reads,runs --",
    ),
];

const fn lane(name: &'static str, settings: &'static str, below: &'static str) -> Lane {
    Lane {
        name,
        settings,
        below,
    }
}

/// Builds all groups by all lanes and prints the matrix; fails when a result differs that is not known to, or is the same
/// and known to differ.
fn check(groups: &[Group]) {
    let mut sites: Vec<Site> = groups.iter().filter_map(Site::open).collect();
    let mut matrix = Matrix::default();
    for lane in LANES {
        let ports = [free_port(), free_port()].map(|port| format!("127.0.0.1:{port}"));
        let mut settings = vec![];
        if lane.name == "dist" {
            if !Path::new("/usr/bin/bwrap").exists() {
                skip("bubblewrap is not installed");
                continue;
            }
            settings = vec![
                ("MODE", "distributed-ephemeral"),
                ("SCCACHE_SCHEDULER_LISTEN", &*ports[0]),
                ("SCCACHE_BUILDER_LISTEN", &*ports[1]),
                ("SCCACHE_PUBLIC_ADDR", "127.0.0.1"),
            ];
        }
        let dock = Dock::start(&settings);
        let rows = sites.iter_mut().flat_map(|site| site.play(&dock, lane));
        matrix.add(lane, rows.collect());
        let (hits, ..) = counts(&dock.status().unwrap());
        assert!(hits > 0, "nothing is shown of a cache without hits");
    }
    println!("{matrix}");
    let surprises = matrix.surprises();
    assert!(surprises.is_empty(), "{}", surprises.join("\n"));
}

#[test]
fn c_by_every_lane() {
    check(&[
        group("c", "cc"),
        group("clock", "faketime"),
        group("basedirs", "cc"),
        group("poison", "curl"),
    ]);
}

#[test]
fn rust_by_every_lane() {
    // The last: what fails is not stored.
    check(&[group("rust", "git"), group("fails", "cc")]);
}

/// What users are told is what is listed, and what is listed is what is found.
#[test]
fn differences_that_are_known_are_those_of_the_documents() {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/keys.md"));
    let text = text.unwrap();
    let (_, section) = text.split_once("## What is known to go wrong").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    let first = rows.filter_map(|row| row.split(" | ").next());
    let told: BTreeSet<&str> = first
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .collect();
    let known: BTreeSet<&str> = known::KNOWN.iter().map(|known| known.row).collect();
    assert_eq!(told, known);
}
