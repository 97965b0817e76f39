//! The current time.

use std::time::SystemTime;

/// The current time in seconds since the Unix epoch.
#[expect(
    clippy::disallowed_methods,
    reason = "the one place that asks for the date"
)]
pub fn unix_seconds() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
