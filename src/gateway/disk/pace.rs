//! Which writes are done on the thread that serves the connection.
//!
//! A short write ends in the kernel's memory within some microseconds; to hand it to a thread that may block, and the
//! answer back, costs as much again. So it is done on the spot, as long as the disk keeps that pace. A disk that is
//! slow, or hangs, must not hold up those who only read: one thread of the runtime never writes ([`threads`]), and
//! after a write that took [`SLOW`] all go the long way for a while.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

/// A write that takes so long waited for the disk.
const SLOW: Duration = Duration::from_millis(5);
/// How long no write is tried on the spot after a slow one.
const PAUSE: Duration = Duration::from_secs(1);

/// Threads for the runtime that serves: as many as may write at a time, and one.
pub(crate) fn threads() -> usize {
    turns() + 1
}

fn turns() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[derive(Debug)]
pub(super) struct Pace {
    // A plain mutex: held for a sum, never across I/O or an await.
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    free: usize,
    quick_from: Option<Instant>,
}

/// Leave to write on this thread; given back when dropped.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    pace: &'a Pace,
    since: Instant,
}

impl Pace {
    pub(super) fn new() -> Pace {
        Pace {
            state: Mutex::new(State {
                free: turns(),
                quick_from: None,
            }),
        }
    }

    /// `None` when the write had better take the long way.
    pub(super) fn turn(&self) -> Option<Turn<'_>> {
        let since = now();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.free == 0 || state.quick_from.is_some_and(|from| since < from) {
            return None;
        }
        state.free -= 1;
        Some(Turn { pace: self, since })
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let ended = now();
        let state = self.pace.state.lock();
        let mut state = state.unwrap_or_else(PoisonError::into_inner);
        state.free += 1;
        if ended.duration_since(self.since) >= SLOW {
            state.quick_from = Some(ended + PAUSE);
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "measures how long a write takes")]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thread_of_the_runtime_is_never_lent() {
        let pace = Pace::new();
        let taken: Vec<_> = std::iter::from_fn(|| pace.turn()).collect();
        assert_eq!(taken.len() + 1, threads());
        drop(taken);
        assert!(pace.turn().is_some(), "all were given back");
    }

    #[test]
    fn after_a_slow_write_none_is_tried_on_the_spot() {
        let pace = Pace::new();
        let turn = pace.turn();
        std::thread::sleep(SLOW);
        drop(turn);
        assert!(pace.turn().is_none());
    }
}
