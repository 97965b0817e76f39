//! A red team that stays: what an attacker tries, with what is right. Each was possible once, or is what others fell for.
//! Each is tried for real, bounded in count and time, and against loopback or networks of the test's own only.

mod builder;
mod crowds;
mod frames;
mod host_script;
mod jobs;
mod links;
mod memory;
mod names;
mod outputs;
mod own_protocol;
mod paths;
pub(crate) mod peer;
mod secrets;
mod toolchains;
mod uploads;

use crate::harness::Gateway;
use std::io::{Read, Write};

/// Sends bytes as they are and gives all that is answered until the connection closes, which is all of it where the
/// request asks for that; nothing where it is cut.
fn exchange(gateway: &Gateway, request: &[u8]) -> String {
    let mut stream = gateway.connect();
    let mut answer = Vec::new();
    // Refused in the middle, which may be seen as a reset: what came before counts.
    let _ = stream
        .write_all(request)
        .and_then(|()| stream.read_to_end(&mut answer));
    String::from_utf8_lossy(&answer).into_owned()
}

/// The status in an answer; 0 where there is none.
fn code(answer: &str) -> u16 {
    let word = answer.split(' ').nth(1).unwrap_or_default();
    word.parse().unwrap_or(0)
}
