//! The filter of system calls that has a job's look-ups told to the shim.

use super::calls;
use nix::libc;
use rustix::io::{FdFlags, fcntl_setfd};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};
use std::ffi::OsString;
use std::io::{self, PipeReader, PipeWriter, Write};
use std::os::fd::AsRawFd;

/// A filter on its way to bubblewrap, which waits for it while it reads its arguments: until then it makes no process.
#[derive(Debug)]
pub(super) struct Filter {
    reader: PipeReader,
    writer: PipeWriter,
}

impl Filter {
    pub(super) fn new() -> io::Result<Filter> {
        let (reader, writer) = io::pipe()?;
        fcntl_setfd(&reader, FdFlags::empty())?;
        Ok(Filter { reader, writer })
    }

    /// What bubblewrap is told of it: an option that may stand there several times, unlike `--seccomp`.
    pub(super) fn arguments(&self) -> [OsString; 2] {
        let number = self.reader.as_raw_fd().to_string();
        ["--add-seccomp-fd".into(), number.into()]
    }

    /// Lets a started bubblewrap go on.
    pub(super) fn send(self) -> io::Result<()> {
        let Filter { reader, mut writer } = self;
        drop(reader);
        writer.write_all(&bytes(&program()?))
    }
}

/// As the kernel has it: `struct sock_filter`.
fn bytes(program: &BpfProgram) -> Vec<u8> {
    let instructions = program.iter().map(|one| {
        let [code_low, code_high] = one.code.to_ne_bytes();
        let [a, b, c, d] = one.k.to_ne_bytes();
        [code_low, code_high, one.jt, one.jf, a, b, c, d]
    });
    instructions.flatten().collect()
}

fn program() -> io::Result<BpfProgram> {
    let rules = calls::WATCHED.iter().map(|(number, _)| {
        let flags = match *number {
            libc::SYS_newfstatat => Some(3),
            libc::SYS_statx => Some(2),
            _ => None,
        };
        // What asks about an open file looks for none, and stands beside each that is opened.
        let conditions = flags.map(|argument| {
            let empty_path = u64::from(libc::AT_EMPTY_PATH.unsigned_abs());
            SeccompCondition::new(
                argument,
                SeccompCmpArgLen::Dword,
                SeccompCmpOp::MaskedEq(empty_path),
                0,
            )
            .and_then(|condition| SeccompRule::new(vec![condition]))
        });
        let conditions: Result<Vec<_>, _> = conditions.into_iter().collect();
        conditions.map(|conditions| (*number, conditions))
    });
    let rules: Result<_, _> = rules.collect();
    let arch = std::env::consts::ARCH.try_into();
    let filter = rules.and_then(|rules| {
        SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Trace(0), arch?)
    });
    filter
        .and_then(BpfProgram::try_from)
        .map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filter_is_short_enough_for_the_pipe_it_goes_through() {
        let length = bytes(&program().unwrap()).len();
        assert!(length.is_multiple_of(8) && length < 4096, "{length}");
    }
}
