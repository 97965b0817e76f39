//! Why a job ended on a builder of ours, by the signal that ends its shim: `sccache-dist` tells the front nothing else.

/// The compiler has failed. Its client's own finds out the same, or what the builder does not have.
pub const COMPILER_FAILED: i32 = 10;
/// It looked for what was not sent.
pub const SENT_HOME: i32 = 12;
/// It went over a limit, could not be started, or memory ran out: it may do better elsewhere.
pub const KILLED: i32 = 9;
