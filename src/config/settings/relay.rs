//! The settings of the relay, and of TLS on the scheduler's port.

use super::Lookup;
use super::public_addr::{PublicAddr, public_addr};
use super::values::{ValueError, duration, optional, size};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

/// A client gives up 20 minutes after its request.
const LONGEST_QUEUE_TIME: Duration = Duration::from_secs(15 * 60);

/// Kinds of processors by the names of Docker and Go, and as ELF numbers them.
const MACHINES: [(&str, u16); 2] = [("amd64", 62), ("arm64", 183)];

/// Checked settings of the relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relay {
    /// Where clients reach it; its own port where none is given.
    pub address: Option<PublicAddr>,
    /// How long a job may wait.
    pub queue_time: Duration,
    /// Most bytes of jobs that wait or run.
    pub queue_bytes: u64,
    /// Kinds of processors of builders that do not tell theirs, as ELF's `e_machine`.
    pub machines: BTreeMap<SocketAddr, u16>,
}

impl Lookup<'_> {
    /// The relay, where it is on.
    pub(super) fn relay(&mut self) -> Option<Option<Relay>> {
        let is_on = self.parsed("SCCACHE_RELAY", on_or_off);
        let address = self.parsed("SCCACHE_RELAY_ADDRESS", optional(public_addr));
        let queue_time = self.parsed("SCCACHE_QUEUE_TIME", queue_time);
        let queue_bytes = self.parsed("SCCACHE_QUEUE_SIZE", size);
        let machines = self.parsed("SCCACHE_BUILDER_MACHINES", machines);
        let relay = Relay {
            machines: machines?,
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

/// `IP:PORT=amd64,IP:PORT=arm64`.
fn machines(text: &str) -> Result<BTreeMap<SocketAddr, u16>, ValueError> {
    let entries = text
        .split(',')
        .map(str::trim)
        .filter(|entry| !entry.is_empty());
    entries
        .map(|entry| {
            let (address, kind) = entry.split_once('=')?;
            let (_, machine) = MACHINES.iter().find(|(name, _)| *name == kind)?;
            Some((address.parse().ok()?, *machine))
        })
        .collect::<Option<_>>()
        .ok_or_else(|| {
            ValueError::hint(
                "is no list of builders and their processors",
                "write it as 10.0.0.7:10501=arm64,10.0.0.8:10501=amd64",
            )
        })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_named_by_builder() {
        let found = machines("10.0.0.7:10501=arm64, [fd00::8]:10501=amd64").ok();
        let expected = [("10.0.0.7:10501", 183), ("[fd00::8]:10501", 62)]
            .map(|(address, machine)| (address.parse().unwrap(), machine));
        assert_eq!(found, Some(expected.into()));
        assert_eq!(machines("").ok(), Some(BTreeMap::new()));
        for bad in [
            "10.0.0.7=arm64",
            "10.0.0.7:1=sparc",
            "a-name:1=arm64",
            "arm64",
        ] {
            assert!(machines(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn queue_leaves_time_for_the_job() {
        assert_eq!(queue_time("0s").ok(), Some(Duration::ZERO));
        assert_eq!(queue_time("15m").ok(), Some(LONGEST_QUEUE_TIME));
        assert!(queue_time("16m").is_err());
    }
}
