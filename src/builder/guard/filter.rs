//! The filter of system calls that has a job's look-ups told to the shim.

use super::calls;
use crate::builder::filter::{bytes, program, rule};
use nix::libc;
use rustix::io::{FdFlags, fcntl_setfd};
use seccompiler::{BackendError, BpfProgram, SeccompAction, SeccompCmpOp};
use std::ffi::OsString;
use std::io::{self, PipeReader, PipeWriter, Write};
use std::os::fd::AsRawFd;

/// The filter on its way to bubblewrap, which waits for it while it reads its arguments: until then it makes no process.
#[derive(Debug)]
pub(super) struct Gate {
    reader: PipeReader,
    writer: PipeWriter,
}

impl Gate {
    pub(super) fn new() -> io::Result<Gate> {
        let (reader, writer) = io::pipe()?;
        fcntl_setfd(&reader, FdFlags::empty())?;
        Ok(Gate { reader, writer })
    }

    /// What bubblewrap is called with.
    pub(super) fn arguments(&self) -> [OsString; 2] {
        let number = self.reader.as_raw_fd().to_string();
        ["--add-seccomp-fd".into(), number.into()]
    }

    /// Lets a started bubblewrap go on.
    pub(super) fn open(self) -> io::Result<()> {
        let Gate { reader, mut writer } = self;
        drop(reader);
        writer.write_all(&bytes(&watching().map_err(io::Error::other)?))
    }
}

fn watching() -> Result<BpfProgram, BackendError> {
    let rules = calls::WATCHED.iter().map(|(number, _)| {
        let flags = match *number {
            libc::SYS_newfstatat => Some(3),
            libc::SYS_statx => Some(2),
            _ => None,
        };
        // What asks about an open file looks for none, and stands beside each that is opened.
        let empty_path = u64::from(libc::AT_EMPTY_PATH.unsigned_abs());
        let conditions = flags
            .map(|argument| rule(&[(argument, SeccompCmpOp::MaskedEq(empty_path), 0)]))
            .transpose();
        conditions.map(|conditions| (*number, conditions.into_iter().collect()))
    });
    program(
        rules.collect::<Result<_, _>>()?,
        // Where nobody listens the call fails: nothing goes unseen.
        SeccompAction::Trace(0),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filter_is_short_enough_for_the_pipe_it_goes_through() {
        let length = bytes(&watching().unwrap()).len();
        assert!(length.is_multiple_of(8) && length < 4096, "{length}");
    }
}
