//! Integration tests: real processes, real sccache, real builds.

#![expect(
    clippy::unwrap_used,
    reason = "a test ends where something is not as it should be"
)]

mod dock;
mod supervise;
