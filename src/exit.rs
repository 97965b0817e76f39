//! Exit codes of `sccache-dock`, as documented in README.md.

/// Success, or stopped on request.
pub const OK: u8 = 0;
/// A service failed permanently, or a check failed.
pub const FAILED: u8 = 1;
/// The settings, the arguments or the state folder are invalid; nothing was started.
pub const USAGE: u8 = 2;
/// Jobs of a builder cannot be isolated on this machine.
pub const ISOLATION: u8 = 3;
/// `at` could not start its command. This code and the next two are those of `env`, `nice` and `docker run`.
pub const NOT_STARTED: u8 = 125;
/// The command of `at` cannot be executed.
pub const NOT_RUNNABLE: u8 = 126;
/// The command of `at` does not exist.
pub const NO_COMMAND: u8 = 127;

/// The exit code for a command that the system did not start: [`NO_COMMAND`] or [`NOT_RUNNABLE`].
pub fn of_command(cause: &std::io::Error) -> u8 {
    match cause.kind() {
        std::io::ErrorKind::NotFound => NO_COMMAND,
        _ => NOT_RUNNABLE,
    }
}
