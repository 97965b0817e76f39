//! Exit codes of `sccache-dock`; README.md says the same.

/// Done, or drained on request.
pub const OK: u8 = 0;
/// A service failed for good, or a check did not pass.
pub const FAILED: u8 = 1;
/// The settings, the arguments or the state folder are wrong; nothing was started.
pub const USAGE: u8 = 2;
/// The jobs of a builder cannot be isolated on this machine.
pub const ISOLATION: u8 = 3;
/// `at` could not start its command. This one and the next two are those of `env`, `nice` and `docker run`.
pub const NOT_STARTED: u8 = 125;
/// The command of `at` cannot be run.
pub const NOT_RUNNABLE: u8 = 126;
/// The command of `at` does not exist.
pub const NO_COMMAND: u8 = 127;
