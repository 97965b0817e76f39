//! A red team that stays: what an attacker tries, with what is right. Each was possible once, or is what others fell for.
//! Each is tried for real, bounded in count and time, and against loopback or networks of the test's own only.

mod host_script;
mod jobs;
mod memory;
mod own_protocol;
pub(crate) mod peer;
