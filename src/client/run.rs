//! Runs a program of the client, sccache above all, bounded in time.

use std::io::{Read, Result};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Between two looks at a running program.
pub(crate) const LOOK: Duration = Duration::from_millis(20);
/// What a killed program may take to go.
const FAREWELL: Duration = Duration::from_secs(10);

/// How a program ended.
pub(crate) enum Ended {
    /// With this on its standard output.
    Well(String),
    /// With this on its standard error.
    Badly(String),
    /// Not in time; it was killed.
    Late,
}

/// A program that was started, and how many looks at it are left.
pub(crate) struct Running {
    child: Child,
    looks: u128,
}

impl Running {
    /// Starts `command`. What it prints must fit into a pipe: sccache prints some 4 KiB of 64.
    pub(crate) fn start(command: &mut Command, limit: Duration) -> Result<Running> {
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let looks = limit.as_millis() / LOOK.as_millis();
        Ok(Running { child, looks })
    }

    /// Waits for the end.
    pub(crate) fn end(mut self) -> Result<Ended> {
        loop {
            if let Some(ended) = self.look()? {
                return Ok(ended);
            }
            std::thread::sleep(LOOK);
        }
    }

    /// How it ended, if it has. To be asked every [`LOOK`].
    pub(crate) fn look(&mut self) -> Result<Option<Ended>> {
        if let Some(exit) = self.child.try_wait()? {
            return Ok(Some(if exit.success() {
                Ended::Well(rest(self.child.stdout.take()))
            } else {
                Ended::Badly(rest(self.child.stderr.take()))
            }));
        }
        if self.looks == 0 {
            self.abandon();
            return Ok(Some(Ended::Late));
        }
        self.looks -= 1;
        Ok(None)
    }

    fn abandon(&mut self) {
        // It may have ended since the last look; there is nothing to do about a failure either way.
        let _ = self.child.kill();
        for _ in 0..FAREWELL.as_millis() / LOOK.as_millis() {
            if matches!(self.child.try_wait(), Ok(Some(_)) | Err(_)) {
                return;
            }
            std::thread::sleep(LOOK);
        }
    }
}

/// What is in the pipe of a process that has ended: one read gives all of it. Not up to the end of the stream, which
/// does not come while a daemon holds the pipe.
fn rest(pipe: Option<impl Read>) -> String {
    let mut bytes = vec![0; 64 * 1024];
    let length = pipe.and_then(|mut pipe| pipe.read(&mut bytes).ok());
    String::from_utf8_lossy(&bytes[..length.unwrap_or(0)]).into_owned()
}
