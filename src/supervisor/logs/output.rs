//! The thread that writes the log, and the state that it shares with the loop.

use super::CAPACITY;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Bytes written at a time. A reader that takes less than this within the stall limit counts as stopped.
const PIECE: usize = 64 << 10;
/// Buffers up to this size are kept.
const KEPT: usize = 8 << 10;
/// Larger buffers are freed after the log has been silent for this long.
const SILENCE: Duration = Duration::from_secs(1);

/// State shared by the loop and the thread.
#[derive(Default)]
pub(super) struct Shared {
    state: Mutex<Pending>,
    changed: Condvar,
}

#[derive(Default)]
pub(super) struct Pending {
    pub(super) text: Vec<u8>,
    pub(super) errors: Vec<u8>,
    /// Bytes that the thread has taken but not yet written.
    in_flight: usize,
    /// Bytes written since the start.
    pub(super) written: u64,
    /// The loop waits for room and wants to be woken through the socket.
    pub(super) wanted: bool,
    /// It has been woken.
    pub(super) woken: bool,
    /// The thread waits for something to write.
    sleeping: bool,
    /// A caller waits in [`Shared::wait_while`].
    watched: bool,
    /// Set when writing to the error file fails.
    pub(super) error_file_fault: Option<io::Error>,
    pub(super) closing: bool,
}

impl Pending {
    /// Bytes waiting for the reader.
    pub(super) fn used(&self) -> usize {
        self.text.len() + self.in_flight
    }

    /// Wakes the loop. The lock is held, so that whoever sees the flag also finds the byte.
    fn wake(&mut self, mut waker: &UnixStream) {
        self.woken = true;
        // This never blocks: a full socket wakes the loop as well.
        let _ = waker.write(b"w");
    }
}

impl Shared {
    // No panic can happen while the lock is held: it only covers formatting and moving buffers.
    pub(super) fn lock(&self) -> MutexGuard<'_, Pending> {
        self.state.lock()
    }

    /// Releases the lock and makes the thread write what was added.
    pub(super) fn publish(&self, mut pending: MutexGuard<'_, Pending>) {
        let due = pending.closing || !(pending.text.is_empty() && pending.errors.is_empty());
        let wake = due && std::mem::take(&mut pending.sleeping);
        drop(pending);
        if wake {
            self.changed.notify_all();
        }
    }

    /// Waits while `busy` returns true; gives up if nothing is written for `patience`. Only for shutdown: the loop
    /// never waits here otherwise.
    pub(super) fn wait_while(&self, patience: Duration, busy: impl Fn(&Pending) -> bool) -> bool {
        let mut pending = self.lock();
        pending.watched = true;
        while busy(&pending) {
            let before = pending.written;
            let still = |pending: &mut Pending| pending.written == before && busy(pending);
            let waited = self.changed.wait_while_for(&mut pending, still, patience);
            if waited.timed_out() {
                break;
            }
        }
        pending.watched = false;
        !busy(&pending)
    }
}

/// Writes until the log is closed and empty.
pub(super) fn write_out(
    shared: &Shared,
    mut out: File,
    mut error_file: Option<File>,
    waker: &UnixStream,
) {
    let (mut text, mut errors) = (Vec::new(), Vec::new());
    let mut takes_errors = true;
    loop {
        let mut pending = shared.lock();
        while pending.text.is_empty() && pending.errors.is_empty() {
            if pending.closing {
                return;
            }
            pending.sleeping = true;
            let large = [&text, &pending.text, &errors, &pending.errors]
                .into_iter()
                .any(|it| it.capacity() > KEPT);
            let limit = if large { SILENCE } else { Duration::MAX };
            let waited = shared.changed.wait_for(&mut pending, limit);
            if waited.timed_out() && pending.used() == 0 {
                let held = &mut *pending;
                for buffer in [&mut text, &mut held.text, &mut errors, &mut held.errors] {
                    buffer.shrink_to(0);
                }
            }
        }
        pending.sleeping = false;
        std::mem::swap(&mut pending.text, &mut text);
        std::mem::swap(&mut pending.errors, &mut errors);
        pending.in_flight = text.len();
        drop(pending);
        for piece in text.chunks(PIECE) {
            // Errors are ignored: standard output is the log, and if it is closed the services must continue.
            write_all(&mut out, piece);
            advance(shared, piece.len(), waker);
        }
        if let Some(file) = &mut error_file {
            let fault = file.write_all(&errors).err();
            let took_errors = std::mem::replace(&mut takes_errors, fault.is_none());
            if let Some(fault) = fault.filter(|_| took_errors) {
                let mut pending = shared.lock();
                pending.error_file_fault = Some(fault);
                pending.wake(waker);
            }
        }
        text.clear();
        errors.clear();
    }
}

/// Announces that `count` more bytes have been written.
fn advance(shared: &Shared, count: usize, waker: &UnixStream) {
    let mut pending = shared.lock();
    pending.in_flight -= count;
    pending.written += count as u64;
    if pending.wanted && pending.used() < CAPACITY / 2 {
        pending.wanted = false;
        pending.wake(waker);
    }
    if pending.watched {
        drop(pending);
        shared.changed.notify_all();
    }
}

/// Writes everything, even if another program made standard output non-blocking. Gives up if it is closed.
pub(super) fn write_all(out: &mut File, mut text: &[u8]) {
    while !text.is_empty() {
        match out.write(text) {
            Ok(0) => return,
            Ok(count) => text = &text[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let mut fds = [PollFd::new(out.as_fd(), PollFlags::POLLOUT)];
                if poll(&mut fds, PollTimeout::NONE).is_err_and(|errno| errno != Errno::EINTR) {
                    return;
                }
            }
            Err(_) => return,
        }
    }
}
