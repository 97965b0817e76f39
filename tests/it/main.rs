//! Integration tests: real processes, real sockets, real sccache, real builds.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![expect(
    clippy::print_stdout,
    reason = "figures of a run are shown by --no-capture"
)]

mod access;
mod action;
mod armor;
mod at;
mod attacks;
mod bases;
mod bazel;
mod book;
mod browser;
mod builders;
mod builds;
mod chart;
mod cli;
mod clients;
mod cluster;
mod compiles;
mod deploy;
mod dice;
mod distributed;
mod dock;
mod docker;
mod docs;
mod doctor;
mod ends;
mod explain;
mod faults;
mod fuzzed;
mod gateway;
mod guard;
mod guides;
mod harness;
mod headers;
mod idle;
pub(crate) mod image;
mod json;
mod logs;
mod machine;
mod migrate;
mod needs;
mod observe;
mod older;
mod own_results;
mod page;
mod places;
mod plain;
mod policies;
mod provenance;
mod proxied;
mod publish;
mod reboot;
mod registry;
mod relay;
mod releases;
mod reloads;
mod same;
mod scan;
mod scheduler;
mod screens;
mod site;
mod soak;
mod storm;
mod supervise;
mod surroundings;
mod today;
mod tomorrow;
mod troubles;
mod trust;
mod upstream;
mod walls;
mod watch;
