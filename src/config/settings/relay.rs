//! The settings of the relay, and of TLS on the scheduler's port.

use super::Lookup;
use super::dist::{PublicAddr, public_addr};
use super::values::{ValueError, duration, optional, size};
use std::time::Duration;

/// A client gives up 20 minutes after its request.
const LONGEST_QUEUE_TIME: Duration = Duration::from_secs(15 * 60);

/// Checked settings of the relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Relay {
    /// Where clients reach it; its own port where none is given.
    pub address: Option<PublicAddr>,
    /// How long a job may wait.
    pub queue_time: Duration,
    /// Most bytes of jobs that wait or run.
    pub queue_bytes: u64,
}

impl Lookup<'_> {
    /// The relay, where it is on.
    pub(super) fn relay(&mut self) -> Option<Option<Relay>> {
        let is_on = self.parsed("SCCACHE_RELAY", on_or_off);
        let address = self.parsed("SCCACHE_RELAY_ADDRESS", optional(public_addr));
        let queue_time = self.parsed("SCCACHE_QUEUE_TIME", queue_time);
        let queue_bytes = self.parsed("SCCACHE_QUEUE_SIZE", size);
        let relay = Relay {
            address: address?,
            queue_time: queue_time?,
            queue_bytes: queue_bytes?,
        };
        Some(is_on?.then_some(relay))
    }
}

/// Whether other machines may speak without TLS.
pub(super) fn scheduler_plain(text: &str) -> Result<bool, ValueError> {
    match text {
        "local" => Ok(false),
        "any" => Ok(true),
        other => Err(ValueError::hint(
            format!("\"{other}\" is nobody who could speak without TLS"),
            "use local or any",
        )),
    }
}

fn on_or_off(text: &str) -> Result<bool, ValueError> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        other => Err(ValueError::hint(
            format!("\"{other}\" is neither on nor off"),
            "use on or off",
        )),
    }
}

fn queue_time(text: &str) -> Result<Duration, ValueError> {
    match duration(text)? {
        time if time > LONGEST_QUEUE_TIME => Err(ValueError::hint(
            "is longer than 15m: a client gives up 20 minutes after its request, and its job has to run in what is left",
            "write it as 10m",
        )),
        time => Ok(time),
    }
}
