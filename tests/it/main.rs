//! Integration tests: real processes, real sccache, real builds.

mod dock;
mod supervise;
