//! The system calls that look for something, and where their arguments are.

use nix::libc::{self, c_long, user_regs_struct};

/// What a call does with a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Asks whether it is there, what it is, where it leads.
    Look,
    Read,
    /// Opens a folder to list it.
    List,
    Write,
}

/// Where a call has the open flags.
#[derive(Debug, Clone, Copy)]
pub(super) enum Flags {
    None,
    /// In this argument.
    At(usize),
    /// In the first eight bytes of what this argument points to.
    Behind(usize),
}

/// What kind of call it is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Call {
    /// Of the path in the argument `path`, from the folder in the one before if `relative`.
    Path {
        path: usize,
        relative: bool,
        flags: Flags,
    },
    Execute {
        path: usize,
    },
    Socket,
    Name,
}

const fn plain(path: usize) -> Call {
    Call::Path {
        path,
        relative: false,
        flags: Flags::None,
    }
}

const fn at(flags: Flags) -> Call {
    Call::Path {
        path: 1,
        relative: true,
        flags,
    }
}

/// The calls that are told to the shim.
pub(super) const WATCHED: &[(c_long, Call)] = &[
    (libc::SYS_openat, at(Flags::At(2))),
    (libc::SYS_openat2, at(Flags::Behind(2))),
    (libc::SYS_newfstatat, at(Flags::None)),
    (libc::SYS_statx, at(Flags::None)),
    (libc::SYS_faccessat, at(Flags::None)),
    (libc::SYS_faccessat2, at(Flags::None)),
    (libc::SYS_readlinkat, at(Flags::None)),
    (libc::SYS_chdir, plain(0)),
    (libc::SYS_execve, Call::Execute { path: 0 }),
    (libc::SYS_execveat, Call::Execute { path: 1 }),
    (libc::SYS_socket, Call::Socket),
    (libc::SYS_uname, Call::Name),
    #[cfg(target_arch = "x86_64")]
    (
        libc::SYS_open,
        Call::Path {
            path: 0,
            relative: false,
            flags: Flags::At(1),
        },
    ),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_stat, plain(0)),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_lstat, plain(0)),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_access, plain(0)),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_readlink, plain(0)),
];

/// The call of this number.
pub(super) fn find(number: u64) -> Option<Call> {
    let found = WATCHED
        .iter()
        .find(|(one, _)| u64::try_from(*one) == Ok(number));
    found.map(|(_, call)| *call)
}

/// What is done with a path that is opened with these flags.
pub(super) fn access(flags: u64) -> Access {
    let has = |flag: libc::c_int| flags & u64::from(flag.unsigned_abs()) != 0;
    if has(libc::O_PATH) {
        Access::Look
    } else if has(libc::O_CREAT | libc::O_WRONLY | libc::O_RDWR) {
        Access::Write
    } else if has(libc::O_DIRECTORY) {
        Access::List
    } else {
        Access::Read
    }
}

/// A system call in the registers of its thread.
#[derive(Debug, Clone, Copy)]
pub(super) struct Registers {
    pub(super) number: u64,
    pub(super) arguments: [u64; 6],
    /// After the call: what it gave, below 0 an error.
    pub(super) result: i64,
}

#[cfg(target_arch = "x86_64")]
impl From<user_regs_struct> for Registers {
    fn from(all: user_regs_struct) -> Registers {
        Registers {
            number: all.orig_rax,
            arguments: [all.rdi, all.rsi, all.rdx, all.r10, all.r8, all.r9],
            result: all.rax.cast_signed(),
        }
    }
}

#[cfg(target_arch = "aarch64")]
impl From<user_regs_struct> for Registers {
    fn from(all: user_regs_struct) -> Registers {
        let [a, b, c, d, e, f, _, _, number, ..] = all.regs;
        Registers {
            number,
            arguments: [a, b, c, d, e, f],
            result: a.cast_signed(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_of_an_open_tell_what_it_is_for() {
        let of = |flags: libc::c_int| access(u64::from(flags.unsigned_abs()));
        assert_eq!(of(libc::O_RDONLY | libc::O_CLOEXEC), Access::Read);
        assert_eq!(of(libc::O_RDONLY | libc::O_DIRECTORY), Access::List);
        assert_eq!(of(libc::O_PATH | libc::O_DIRECTORY), Access::Look);
        assert_eq!(of(libc::O_RDWR), Access::Write);
        assert_eq!(of(libc::O_RDONLY | libc::O_CREAT), Access::Write);
    }
}
