//! Integration tests: real processes, real sockets, real sccache, real builds.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![expect(
    clippy::print_stdout,
    reason = "figures of a run are shown by --no-capture"
)]

mod builders;
mod builds;
mod cli;
mod clients;
mod compiles;
mod dock;
mod docker;
mod docs;
mod doctor;
mod gateway;
mod harness;
mod image;
mod machine;
mod older;
mod reboot;
mod site;
mod supervise;
