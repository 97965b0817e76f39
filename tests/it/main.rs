//! Integration tests: real processes, real sockets, real sccache, real builds.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod builds;
mod clients;
mod dock;
mod doctor;
mod gateway;
mod harness;
mod supervise;
