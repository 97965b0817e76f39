//! A service's past failures, and what follows from them: how long to wait, and when to give up.

use crate::contract::service::{Exit, Rules};
use nix::errno::Errno;
use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

/// The first restart is immediate; then the delay starts at this value and doubles up to [`BACKOFF_MAX`].
pub const BACKOFF_MIN: Duration = Duration::from_millis(250);
/// Maximum delay between two tries.
pub const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// The backoff starts over once a service has been ready for this long.
pub const RESET_AFTER: Duration = Duration::from_secs(60);
/// A service that was never ready is given up after this many failed starts in a row.
pub const NEVER_READY_LIMIT: u32 = 5;
/// This many failures of all services together within [`WINDOW`] end the run. A single service that fails at every try
/// needs three quarters of an hour to reach it, because of its backoff. No transient fault lasts that long, and whoever
/// restarts the container, or is told of its end, can do more than another try would.
pub const BUDGET: usize = 100;
/// How long a failure counts against [`BUDGET`], and an exit is remembered.
pub const WINDOW: Duration = Duration::from_secs(60 * 60);
/// Maximum number of remembered exits per service.
const MEMORY: usize = 2 * BUDGET;

/// What is wrong with a service that fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trouble {
    pub verdict: Verdict,
    /// Time of the first of these failures in a row.
    pub since: Instant,
    /// Number of failures in a row.
    pub failures: u32,
}

/// The two ways to fail, which call for different fixes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Never ready: check settings, programs and files.
    NeverRan,
    /// It was ready before: check its last lines, memory and disk.
    RanAndDied,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Verdict::NeverRan => "never ran",
            Verdict::RanAndDied => "ran and died",
        })
    }
}

/// Unrequested exits of one service.
#[derive(Debug, Clone, Default)]
pub(super) struct History {
    row: Option<Row>,
    deaths: VecDeque<Death>,
}

/// Failures since the service was last ready for [`RESET_AFTER`].
#[derive(Debug, Clone, Copy)]
struct Row {
    since: Instant,
    failures: u32,
}

#[derive(Debug, Clone, Copy)]
struct Death {
    at: Instant,
    /// Whether it counts against [`BUDGET`].
    counts: bool,
}

impl History {
    /// Ends the row of failures.
    pub(super) fn start_over(&mut self) {
        self.row = None;
    }

    pub(super) fn add(&mut self, now: Instant, counts: bool) {
        if self.deaths.len() == MEMORY {
            self.deaths.pop_front();
        }
        self.deaths.push_back(Death { at: now, counts });
        let row = self.row.get_or_insert(Row {
            since: now,
            failures: 0,
        });
        row.failures = row.failures.saturating_add(1);
    }

    pub(super) fn failures(&self) -> u32 {
        self.row.map_or(0, |row| row.failures)
    }

    pub(super) fn trouble(&self, was_ready: bool) -> Option<Trouble> {
        self.row.map(|Row { since, failures }| Trouble {
            verdict: match was_ready {
                true => Verdict::RanAndDied,
                false => Verdict::NeverRan,
            },
            since,
            failures,
        })
    }

    /// Exits within [`WINDOW`].
    pub(super) fn recent(&self, now: Instant) -> usize {
        let recent = |death: &&Death| death.is_recent(now);
        self.deaths.iter().filter(recent).count()
    }

    /// Those of them that count against [`BUDGET`].
    pub(super) fn spent(&self, now: Instant) -> usize {
        let counts = |death: &&Death| death.counts && death.is_recent(now);
        self.deaths.iter().filter(counts).count()
    }
}

impl Death {
    fn is_recent(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.at) < WINDOW
    }
}

/// No delay after the first failure, then doubling.
pub(super) fn backoff(failures: u32) -> Duration {
    match failures {
        0 | 1 => Duration::ZERO,
        more => BACKOFF_MIN
            .saturating_mul(1 << (more - 2).min(16))
            .min(BACKOFF_MAX),
    }
}

/// Whether the exit was caused from outside, or by something missing around it. Then it is not the service's fault, and
/// no reason to give up.
pub(super) fn is_from_outside(exit: Exit) -> bool {
    use nix::libc::{SIGHUP, SIGINT, SIGKILL, SIGQUIT, SIGTERM};
    const SHORTAGES: [Errno; 5] = [
        Errno::EAGAIN,
        Errno::EMFILE,
        Errno::ENFILE,
        Errno::ENOMEM,
        Errno::ETXTBSY,
    ];
    match exit {
        Exit::Signal(signal) => [SIGHUP, SIGINT, SIGKILL, SIGQUIT, SIGTERM].contains(&signal),
        // The address may become free again, or an interface may come back.
        Exit::NotBound(_) => true,
        Exit::NotSpawned(errno) => SHORTAGES.contains(&Errno::from_raw(errno)),
        Exit::Code(_) | Exit::OutOfMemory => false,
    }
}

/// Whether another try would end the same way.
pub(super) fn is_hopeless(exit: Exit, rules: &Rules) -> bool {
    // Missing, not executable, wrong format: the same image will not start it a second later either.
    const NEVER_MEND: [Errno; 5] = [
        Errno::ENOENT,
        Errno::EACCES,
        Errno::ENOEXEC,
        Errno::ENOTDIR,
        Errno::EPERM,
    ];
    match exit {
        Exit::Code(code) => rules.fatal_codes.contains(&code),
        Exit::NotSpawned(errno) => NEVER_MEND.contains(&Errno::from_raw(errno)),
        Exit::Signal(_) | Exit::OutOfMemory | Exit::NotBound(_) => false,
    }
}
