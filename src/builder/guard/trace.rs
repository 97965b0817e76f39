//! Follows the processes of a job, and stops each where it looks for something.

use super::Job;
use super::calls::{self, Access, Call, Flags, Registers};
use super::filter::Gate;
use super::rules::{self, Verdict};
use crate::contract::sent_home::{Reason, SentHome};
use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;
use rustix::process::WaitStatus;
use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::io::{self, IoSliceMut};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

/// Longest path that the kernel takes, with its NUL.
const PATH: usize = 4096;
/// At least as small as a page anywhere: what is read at once must not reach into the next.
const PAGE: u64 = 4096;
/// `SIGTRAP`, as the kernel marks it at the end of a system call (`PTRACE_O_TRACESYSGOOD`).
const CALL_ENDED: i32 = libc::SIGTRAP | 0x80;

/// How far a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Bubblewrap prepares everything.
    Sandbox,
    /// The compiler is being loaded, by this process.
    Loading(Pid),
    /// It has made a thread: before that, no macro runs.
    Judged,
    /// It is to end.
    Over,
}

/// A job whose look-ups are watched, by the thread that started it.
#[derive(Debug)]
pub(in crate::builder) struct Watch {
    job: Job,
    stage: Stage,
    /// All that is followed.
    threads: HashSet<Pid>,
    /// Look-ups that go on, by thread, and whether they open what they find.
    awaited: HashMap<Pid, (PathBuf, bool)>,
}

impl Watch {
    /// Starts bubblewrap with what the command has already and these arguments.
    ///
    /// # Errors
    /// It cannot be started, or the kernel does not let us follow it.
    pub(in crate::builder) fn start(
        job: Job,
        command: &mut Command,
        arguments: Vec<OsString>,
    ) -> io::Result<(Child, Watch)> {
        let gate = Gate::new()?;
        let mut child = command.args(gate.arguments()).args(arguments).spawn()?;
        let bubblewrap = Pid::from_raw(child.id().cast_signed());
        // All that it makes is followed from the first moment, and goes with us.
        let options = Options::PTRACE_O_TRACEFORK
            | Options::PTRACE_O_TRACEVFORK
            | Options::PTRACE_O_TRACECLONE
            | Options::PTRACE_O_TRACESECCOMP
            | Options::PTRACE_O_TRACESYSGOOD
            | Options::PTRACE_O_EXITKILL;
        let seized = ptrace::seize(bubblewrap, options).map_err(io::Error::from);
        if let Err(error) = seized.and_then(|()| gate.open()) {
            child.kill()?;
            return Err(error);
        }
        let watch = Watch {
            job,
            stage: Stage::Sandbox,
            threads: HashSet::from([bubblewrap]),
            awaited: HashMap::new(),
        };
        Ok((child, watch))
    }

    /// A thread has stopped: lets it go on, unless the job does not count.
    pub(in crate::builder) fn serve(&mut self, pid: Pid, status: WaitStatus) -> Option<SentHome> {
        self.threads.insert(pid);
        if self.stage == Stage::Over {
            kill_one(pid);
            return None;
        }
        let raw = status.as_raw();
        let outcome = match (raw >> 8 & 0xff, raw >> 16) {
            (_, libc::PTRACE_EVENT_SECCOMP) => self.enters(pid),
            (CALL_ENDED, _) => self.leaves(pid),
            (_, libc::PTRACE_EVENT_CLONE | libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_VFORK) => {
                self.multiplies(pid)
            }
            (signal, 0) => match Signal::try_from(signal) {
                Ok(signal) => let_go(pid, Some(signal)),
                // One of the real-time signals, which cannot be passed on.
                Err(_) => Ok(Some((Reason::Unwatched, format!("signal {signal}")))),
            },
            // A new one, or one that was told to pause: there is nobody to wake it later.
            _ => let_go(pid, None),
        };
        let (reason, what) = match outcome {
            // It was killed meanwhile.
            Err(Errno::ESRCH) | Ok(None) => return None,
            Ok(Some(counts)) => counts,
            Err(error) => (Reason::Unwatched, error.desc().to_owned()),
        };
        self.kill();
        Some(self.job.home(reason, &what))
    }

    /// A process has ended.
    pub(in crate::builder) fn forget(&mut self, pid: Pid) {
        self.threads.remove(&pid);
        self.awaited.remove(&pid);
    }

    /// Ends all of the job, also where bubblewrap does not yet see to that.
    pub(in crate::builder) fn kill(&mut self) {
        self.stage = Stage::Over;
        // Their numbers stay theirs until we have collected them.
        self.threads.iter().copied().for_each(kill_one);
    }

    /// Why a job that has ended does not count although nothing was seen: nothing would have been.
    pub(in crate::builder) fn unseen(&self) -> Option<SentHome> {
        let is_seen = self.stage == Stage::Judged;
        (!is_seen).then(|| self.job.home(Reason::Unwatched, "no compiler was seen"))
    }

    /// A thread has made another, or a process.
    fn multiplies(&mut self, pid: Pid) -> Outcome {
        // What bubblewrap has made before is told late at times.
        if self.stage == Stage::Loading(pid) {
            self.stage = Stage::Judged;
            if let Ok(compiler) = std::fs::read_link(format!("/proc/{pid}/exe")) {
                self.job.rules.compiler_is(&compiler);
            }
        }
        let_go(pid, None)
    }

    /// A thread is about to make a call that is watched.
    fn enters(&mut self, pid: Pid) -> Outcome {
        let registers = match self.stage {
            Stage::Loading(_) | Stage::Over => return let_go(pid, None),
            Stage::Sandbox | Stage::Judged => Registers::from(ptrace::getregs(pid)?),
        };
        let call = calls::find(registers.number);
        if self.stage == Stage::Judged {
            return self.judge(pid, call, &registers);
        }
        // Bubblewrap takes the filter on right before it becomes the compiler.
        if matches!(call, Some(Call::Execute { .. })) {
            self.stage = Stage::Loading(pid);
        }
        let_go(pid, None)
    }

    fn judge(&mut self, pid: Pid, call: Option<Call>, registers: &Registers) -> Outcome {
        let (path, relative, flags) = match call {
            None => return let_go(pid, None),
            Some(Call::Socket) => return Ok(Some((Reason::Network, "socket".into()))),
            Some(Call::Name) => return Ok(Some((Reason::Machine, "uname".into()))),
            Some(Call::Execute { path }) => {
                let path = read_path(pid, registers.arguments[path])?;
                let name = Path::new(&path).file_name().unwrap_or(&path);
                return Ok(Some((Reason::Program, name.to_string_lossy().into_owned())));
            }
            Some(Call::Path {
                path,
                relative,
                flags,
            }) => (path, relative, flags),
        };
        let found = read_path(pid, registers.arguments[path])?;
        if found.is_empty() {
            // An error everywhere.
            return let_go(pid, None);
        }
        let access = match flags {
            Flags::None => Access::Look,
            Flags::At(argument) => calls::access(registers.arguments[argument]),
            Flags::Behind(argument) => {
                let mut flags = [0; 8];
                read_memory(pid, registers.arguments[argument], &mut flags)?;
                calls::access(u64::from_ne_bytes(flags))
            }
        };
        let folder = match relative {
            true => registers.arguments[path - 1],
            false => AT_FDCWD,
        };
        let path = absolute(pid, folder, found);
        match self.job.rules.judge(&path, access) {
            Verdict::Fine => let_go(pid, None),
            Verdict::Counts(reason) => Ok(Some((reason, path.to_string_lossy().into_owned()))),
            Verdict::Await => {
                self.awaited.insert(pid, (path, access == Access::Read));
                ptrace::syscall(pid, None).map(|()| None)
            }
        }
    }

    /// A call has ended whose outcome matters.
    fn leaves(&mut self, pid: Pid) -> Outcome {
        let Some((path, opens)) = self.awaited.remove(&pid) else {
            return let_go(pid, None);
        };
        let result = Registers::from(ptrace::getregs(pid)?).result;
        let what = || path.to_string_lossy().into_owned();
        if is_failure(result) {
            let root = PathBuf::from(format!("/proc/{pid}/root"));
            let other = rules::other_module(&path).is_some_and(|other| {
                let inside = other.strip_prefix("/").unwrap_or(&other);
                root.join(inside).exists()
            });
            if !other {
                return Ok(Some((Reason::File, what())));
            }
        } else if opens && Path::new(&format!("/proc/{pid}/fd/{result}")).is_dir() {
            return Ok(Some((Reason::Folder, what())));
        }
        let_go(pid, None)
    }
}

/// Why the job does not count, if it does not.
type Outcome = nix::Result<Option<(Reason, String)>>;

/// A folder's number that stands for the current one.
const AT_FDCWD: u64 = (libc::AT_FDCWD as i64).cast_unsigned();

fn kill_one(pid: Pid) {
    // It may have ended.
    let _ = kill(pid, Signal::SIGKILL);
}

fn let_go(pid: Pid, signal: Option<Signal>) -> Outcome {
    ptrace::cont(pid, signal).map(|()| None)
}

/// The errors of a look-up that finds nothing; others say that the question was wrong.
fn is_failure(result: i64) -> bool {
    let errors = [
        Errno::ENOENT,
        Errno::ENOTDIR,
        Errno::EACCES,
        Errno::EPERM,
        Errno::ELOOP,
        Errno::ENAMETOOLONG,
        Errno::ENXIO,
        Errno::ENODEV,
        Errno::EROFS,
    ];
    errors
        .iter()
        .any(|error| result == -i64::from(*error as i32))
}

/// The path as the job's own root has it.
fn absolute(pid: Pid, folder: u64, path: OsString) -> PathBuf {
    let path = PathBuf::from(path);
    if path.is_absolute() {
        return path;
    }
    // Descriptors are 32 bits wide.
    let base = match folder as u32 == AT_FDCWD as u32 {
        true => format!("/proc/{pid}/cwd"),
        false => format!("/proc/{pid}/fd/{}", folder as u32),
    };
    // What cannot be resolved is at no known place.
    std::fs::read_link(base).unwrap_or_default().join(path)
}

/// Reads text that ends with a NUL from a thread's memory.
fn read_path(pid: Pid, address: u64) -> nix::Result<OsString> {
    let mut path = Vec::new();
    while path.len() < PATH {
        let from = address.saturating_add(path.len() as u64);
        let mut piece = [0; 256];
        let room = usize::try_from(PAGE - from % PAGE).unwrap_or(piece.len());
        let count = room.min(piece.len());
        let piece = &mut piece[..count];
        match read_memory(pid, from, piece) {
            // The kernel tells the job the same.
            Err(Errno::EFAULT) => return Ok(OsString::new()),
            other => other?,
        }
        match piece.iter().position(|byte| *byte == 0) {
            Some(end) => {
                path.extend_from_slice(&piece[..end]);
                break;
            }
            None => path.extend_from_slice(piece),
        }
    }
    Ok(OsString::from_vec(path))
}

fn read_memory(pid: Pid, address: u64, buffer: &mut [u8]) -> nix::Result<()> {
    let remote = RemoteIoVec {
        base: usize::try_from(address).map_err(|_| Errno::EFAULT)?,
        len: buffer.len(),
    };
    process_vm_readv(pid, &mut [IoSliceMut::new(buffer)], &[remote]).map(drop)
}
