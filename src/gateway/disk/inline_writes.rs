//! Which writes are done on the thread that serves the connection.
//!
//! A short write, of a blob or of a piece of one, ends in the kernel's memory within some microseconds; to hand it to a
//! thread that may block, and the answer back, costs as much again. So it is done on the spot, as long as the disk keeps
//! up.
//!
//! A disk that is slow, or hangs, must not hold up those who only read. So at any moment one thread of the runtime does
//! not write ([`threads`]). It may sleep while those that wait for the disk were the ones to look for events: another
//! thread, the watchdog, sees that a write has been waiting for long, wakes the runtime, and sends all writes the long way
//! for a while. A write whose thread could run, but has no processor, is not waiting for the disk.

use nix::unistd::{Pid, gettid};
use parking_lot::{Mutex, MutexGuard};
use std::sync::{Arc, OnceLock, Weak};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;

/// A write that takes so long may be waiting for the disk.
const SLOW: Duration = Duration::from_millis(5);
/// How often the watchdog looks, while there are writes.
const LOOK: Duration = Duration::from_millis(20);
/// How long no write is tried on the spot after a slow one.
const PAUSE: Duration = Duration::from_millis(100);
/// Looks without a write after which the watchdog rests.
const PATIENCE: u32 = 50;

/// Threads for the runtime that serves: one for each processor, and so many at least that two may write. Asks the
/// system, which takes some time.
pub(crate) fn threads() -> usize {
    thread::available_parallelism()
        .map_or(3, usize::from)
        .max(3)
}

#[derive(Debug)]
pub(super) struct InlineWrites {
    /// Writes at one time.
    at_once: usize,
    shared: Arc<Shared>,
    /// `None` where it cannot be started: then nothing is written on the spot.
    watchdog: OnceLock<Option<Thread>>,
}

#[derive(Debug, Default)]
struct Shared {
    // Held for a look or a change, never across I/O or an await.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// When each write under way began, and its thread.
    running: Vec<(Instant, Pid)>,
    /// Writes that began since the watchdog looked.
    begun: u32,
    quick_from: Option<Instant>,
    watchdog_rests: bool,
}

/// Permission to write on this thread; given back when dropped.
#[derive(Debug)]
pub(super) struct InlineWritePermit<'a> {
    writes: &'a InlineWrites,
    thread: Pid,
}

impl InlineWrites {
    pub(super) fn new() -> InlineWrites {
        InlineWrites {
            at_once: threads() - 1,
            shared: Arc::default(),
            watchdog: OnceLock::new(),
        }
    }

    /// `None` when the write had better take the long way. To be called on a thread of the runtime.
    pub(super) fn permit(&self) -> Option<InlineWritePermit<'_>> {
        let watchdog = self.watchdog.get_or_init(|| start_watchdog(&self.shared));
        let (watchdog, since, thread) = (watchdog.as_ref()?, now(), gettid());
        let mut state = self.shared.state();
        if state.running.len() >= self.at_once || state.quick_from.is_some_and(|from| since < from)
        {
            return None;
        }
        state.running.push((since, thread));
        state.begun += 1;
        if std::mem::take(&mut state.watchdog_rests) {
            watchdog.unpark();
        }
        Some(InlineWritePermit {
            writes: self,
            thread,
        })
    }
}

impl Drop for InlineWrites {
    fn drop(&mut self) {
        if let Some(Some(watchdog)) = self.watchdog.get() {
            watchdog.unpark();
        }
    }
}

impl Drop for InlineWritePermit<'_> {
    fn drop(&mut self) {
        let mut state = self.writes.shared.state();
        state.running.retain(|(_, thread)| *thread != self.thread);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// The threads of writes that have taken long.
    fn slow(&self, at: Instant) -> Vec<Pid> {
        let state = self.state();
        let slow = state
            .running
            .iter()
            .filter(|(since, _)| at.duration_since(*since) >= SLOW);
        slow.map(|(_, thread)| *thread).collect()
    }
}

/// Whether a thread waits for something but a processor.
fn waits(thread: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/self/task/{thread}/stat"));
    // The state follows the name, which may hold anything.
    let state = stat
        .ok()
        .and_then(|stat| Some(stat.rsplit_once(')')?.1.trim_start().starts_with('R')));
    state != Some(true)
}

fn start_watchdog(shared: &Arc<Shared>) -> Option<Thread> {
    let (shared, runtime) = (Arc::downgrade(shared), Handle::try_current().ok()?);
    let watchdog = thread::Builder::new()
        .name("watchdog".to_owned())
        .spawn(move || keep(&shared, &runtime))
        .inspect_err(|cause| {
            tracing::warn!("cannot start the thread that watches inline writes: {cause}")
        });
    Some(watchdog.ok()?.thread().clone())
}

/// Ends when `InlineWrites` is dropped.
fn keep(shared: &Weak<Shared>, runtime: &Handle) {
    let mut idle = 0;
    loop {
        thread::park_timeout(LOOK);
        let Some(shared) = shared.upgrade() else {
            return;
        };
        let at = now();
        let slow = shared.slow(at);
        let waits = slow.into_iter().any(waits);
        let mut state = shared.state();
        if waits {
            state.quick_from = Some(at + PAUSE);
            // Whichever thread takes this sees what else there is to do.
            runtime.spawn(async {});
        }
        let is_idle = std::mem::take(&mut state.begun) == 0 && state.running.is_empty();
        idle = if is_idle { idle + 1 } else { 0 };
        if idle == PATIENCE {
            state.watchdog_rests = true;
            drop(state);
            drop(shared);
            idle = 0;
            thread::park();
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

    #[tokio::test]
    async fn one_thread_of_the_runtime_is_never_lent() {
        let writes = InlineWrites::new();
        let taken: Vec<_> = std::iter::from_fn(|| writes.permit()).collect();
        assert!(taken.len() < threads());
        drop(taken);
        assert!(
            writes.shared.state().running.is_empty(),
            "all were given back"
        );
    }

    #[tokio::test]
    async fn while_a_write_hangs_and_a_while_after_no_other_begins() {
        let writes = InlineWrites::new();
        let hangs = writes.permit();
        while writes.shared.state().quick_from.is_none() {
            thread::sleep(SLOW);
        }
        drop(hangs);
        assert!(writes.shared.state().running.is_empty());
        writes.shared.state().quick_from = Some(now() + PAUSE);
        assert!(writes.permit().is_none());
    }

    #[tokio::test]
    async fn write_that_lacks_a_processor_does_not_wait_for_the_disk() {
        let writes = InlineWrites::new();
        let _works = writes.permit();
        let began = now();
        while began.elapsed() < 5 * LOOK {
            std::hint::spin_loop();
        }
        assert_eq!(writes.shared.state().quick_from, None);
    }

    #[tokio::test]
    async fn watchdog_rests_without_writes_and_ends_with_them() {
        let writes = InlineWrites::new();
        drop(writes.permit());
        while !writes.shared.state().watchdog_rests {
            thread::yield_now();
        }
        writes.shared.state().quick_from = None;
        assert!(writes.permit().is_some() && !writes.shared.state().watchdog_rests);
        let shared = Arc::downgrade(&writes.shared);
        drop(writes);
        while shared.strong_count() > 0 {
            thread::yield_now();
        }
    }
}
