//! What a job says: passed on to `sccache-dist`, which holds it in memory until the job has ended, and within a bound.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, spawn};

/// The most that a job may say, in bytes, on standard output and on standard error each.
const MOST: u64 = 16 << 20;

/// The threads that pass on what a job says.
#[derive(Debug)]
pub(super) struct Output {
    threads: Vec<JoinHandle<()>>,
    is_too_much: Arc<AtomicBool>,
}

impl Output {
    /// Takes the pipes of a child that was started with them; writes to `wake` when the child has said too much.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub(super) fn pass_on(child: &mut Child, wake: &UnixStream) -> io::Result<Output> {
        let mut output = Output {
            threads: Vec::new(),
            is_too_much: Arc::default(),
        };
        let from_to = [
            (
                child.stdout.take().map(OwnedFd::from),
                io::stdout().as_fd().try_clone_to_owned()?,
            ),
            (
                child.stderr.take().map(OwnedFd::from),
                io::stderr().as_fd().try_clone_to_owned()?,
            ),
        ];
        for (from, to) in from_to {
            let Some(from) = from else { continue };
            let (mut wake, is_too_much) = (wake.try_clone()?, Arc::clone(&output.is_too_much));
            output.threads.push(spawn(move || {
                // An error is that nobody listens any more.
                if copy(File::from(from), File::from(to), MOST).unwrap_or(false) {
                    is_too_much.store(true, Ordering::Release);
                    let _ = wake.write(&[0]);
                }
            }));
        }
        Ok(output)
    }

    /// Whether the job has said more than it may.
    pub(super) fn is_too_much(&self) -> bool {
        self.is_too_much.load(Ordering::Acquire)
    }

    /// Waits until all is passed on, which needs the end of all who could say more.
    pub(super) fn finish(&mut self) {
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Passes on at most so many bytes; gives whether there would be more.
fn copy(from: impl Read, mut to: impl Write, most: u64) -> io::Result<bool> {
    let mut from = from.take(most);
    io::copy(&mut from, &mut to)?;
    let is_full = from.limit() == 0;
    Ok(is_full && from.into_inner().read(&mut [0])? > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_the_bound_is_passed_on() {
        for (said, heard, more) in [
            ("ab", "ab", false),
            ("abc", "abc", false),
            ("abcd", "abc", true),
        ] {
            let mut to = Vec::new();
            assert_eq!(copy(said.as_bytes(), &mut to, 3).unwrap(), more);
            assert_eq!(to, heard.as_bytes());
        }
    }
}
