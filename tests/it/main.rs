//! Integration tests: real processes, real sockets, real clients.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod clients;
mod gateway;
mod harness;
