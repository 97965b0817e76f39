//! Processes: spawning, signalling, and the only place that reaps.
//!
//! The machine refers to services. Only this table knows pids, and it forgets one in the call that reaps it, so that a
//! late signal cannot hit an unrelated process.

use crate::contract::service::RunAs;
use crate::contract::service::{Exit, Id};
use crate::contract::service::{ReadyBy, Service};
use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, killpg};
use nix::sys::wait::WaitPidFlag;
use nix::unistd::Pid;
use rustix::process::{WaitId, WaitIdOptions, WaitOptions, WaitStatus};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// A new process's output and, if the plan asks for it, the other end of its standard input.
pub struct Spawned {
    pub output: io::PipeReader,
    pub handover: Option<UnixStream>,
}

/// A service's process that has been reaped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    pub id: Id,
    pub exit: Exit,
    /// CPU time of the process and of the children that it waited for.
    pub cpu: Duration,
}

/// The running processes of the services.
#[derive(Default)]
pub struct Children {
    pids: BTreeMap<Id, Pid>,
}

impl Children {
    /// Starts the service's process in its own process group.
    ///
    /// # Errors
    /// The kernel's error number.
    pub fn spawn(
        &mut self,
        id: Id,
        service: &Service,
        dir: &Path,
        run_as: Option<RunAs>,
    ) -> Result<Spawned, Errno> {
        debug_assert!(!self.pids.contains_key(&id), "one process a service");
        let errno = |error: io::Error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
        let (output, write_end) = io::pipe().map_err(errno)?;
        set_nonblocking(&output)?;
        let (handover, stdin) = if service.ready_by == ReadyBy::Handover {
            let (ours, theirs) = UnixStream::pair().map_err(errno)?;
            ours.set_nonblocking(true).map_err(errno)?;
            (Some(ours), Stdio::from(OwnedFd::from(theirs)))
        } else {
            (None, Stdio::null())
        };
        let mut command = Command::new(&service.program);
        command
            .args(&service.args)
            .env_clear()
            .envs(service.env.iter().map(|(name, value)| (name, value)))
            .current_dir(dir)
            .stdin(stdin)
            .stdout(write_end.try_clone().map_err(errno)?)
            .stderr(write_end)
            .process_group(0);
        if let Some(RunAs { uid, gid }) = run_as.filter(|_| !service.keeps_root) {
            command.uid(uid).gid(gid);
        }
        let child = command.spawn().map_err(errno)?;
        self.pids.insert(
            id,
            Pid::from_raw(i32::try_from(child.id()).map_err(|_| Errno::EOVERFLOW)?),
        );
        Ok(Spawned { output, handover })
    }

    /// The pid, for status only.
    pub fn pid(&self, id: Id) -> Option<i32> {
        self.pids.get(&id).map(|pid| pid.as_raw())
    }

    /// Sends a signal to the service's whole process group. It is not an error if the group is gone.
    pub fn signal(&self, id: Id, signal: Signal) {
        if let Some(pid) = self.pids.get(&id) {
            let _ = killpg(*pid, signal);
        }
    }

    fn service_of(&self, pid: Pid) -> Option<Id> {
        let mut services = self.pids.iter();
        services.find_map(|(id, known)| (*known == pid).then_some(*id))
    }

    /// Reaps one process that has ended, and returns its CPU time if it is a service's.
    fn collect_one(&self) -> Option<(Pid, Exit, Duration)> {
        let zombie = match next_zombie()? {
            Zombie::Known(pid) => Some(pid),
            // If it is not one of ours, it is an orphan, whose pid does not matter.
            Zombie::Unknown => self.pids.values().copied().find(|pid| has_ended(*pid)),
        };
        let ours = zombie.filter(|pid| self.service_of(*pid).is_some());
        let before = ours.map(|pid| {
            // The zombie still holds the group's number: kill what is left of the group together with its leader.
            let _ = killpg(pid, Signal::SIGKILL);
            cpu_of_children()
        });
        let (pid, exit) = collect(zombie)?;
        if ours.is_none() && self.service_of(pid).is_some() {
            // It ended just now and was reaped instead of the orphan. As long as anything of its group is left, the
            // kernel does not reuse the number.
            let _ = killpg(pid, Signal::SIGKILL);
        }
        let cpu = before.map(|before| cpu_of_children().saturating_sub(before));
        Some((pid, exit, cpu.unwrap_or_default()))
    }

    /// Reaps every process that has ended. Those of services are returned; orphans are only counted.
    pub fn reap(&mut self) -> (Vec<Ended>, u64) {
        // A process that ends meanwhile is found by this loop, or raises a signal after it. Nothing is spawned in
        // between.
        let mask = SigSet::from_iter([Signal::SIGCHLD]).thread_swap_mask(SigmaskHow::SIG_BLOCK);
        let (mut exits, mut orphans) = (Vec::new(), 0);
        while let Some((pid, exit, cpu)) = self.collect_one() {
            match self.service_of(pid) {
                Some(id) => {
                    self.pids.remove(&id);
                    exits.push(Ended { id, exit, cpu });
                }
                None => orphans += 1,
            }
        }
        if let Ok(mask) = mask {
            // Cannot fail for a mask that came from the kernel.
            let _ = mask.thread_set_mask();
        }
        (exits, orphans)
    }
}

/// A process that has ended but has not been reaped.
enum Zombie {
    Known(Pid),
    /// One that nix cannot describe, because it has no name for the signal that ended it (a real-time signal).
    Unknown,
}

#[expect(clippy::disallowed_methods, reason = "the one reaper")]
fn next_zombie() -> Option<Zombie> {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    match nix::sys::wait::waitid(nix::sys::wait::Id::All, flags) {
        Ok(status) => status.pid().map(Zombie::Known),
        Err(Errno::ECHILD) => None,
        Err(_) => Some(Zombie::Unknown),
    }
}

/// Whether this child has ended but has not been reaped.
#[expect(clippy::disallowed_methods, reason = "the one reaper")]
fn has_ended(pid: Pid) -> bool {
    let flags = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    let found = number(pid).map(|pid| rustix::process::waitid(WaitId::Pid(pid), flags));
    matches!(found, Some(Ok(Some(_))))
}

/// Reaps this child, or any that has ended. Uses the kernel's raw status, in which no signal number is rejected.
#[expect(clippy::disallowed_methods, reason = "the one reaper")]
fn collect(pid: Option<Pid>) -> Option<(Pid, Exit)> {
    let collected = match pid {
        Some(pid) => rustix::process::waitpid(number(pid), WaitOptions::NOHANG),
        None => rustix::process::wait(WaitOptions::NOHANG),
    };
    let (pid, status) = collected.ok().flatten()?;
    Some((Pid::from_raw(pid.as_raw_pid()), exit_of(status)))
}

fn number(pid: Pid) -> Option<rustix::process::Pid> {
    rustix::process::Pid::from_raw(pid.as_raw())
}

fn exit_of(status: WaitStatus) -> Exit {
    match status.terminating_signal() {
        Some(signal) => Exit::Signal(signal),
        None => Exit::Code(status.exit_status().unwrap_or_default()),
    }
}

/// CPU time of all processes reaped so far.
fn cpu_of_children() -> Duration {
    use nix::sys::resource::{UsageWho, getrusage};
    let Ok(usage) = getrusage(UsageWho::RUSAGE_CHILDREN) else {
        return Duration::ZERO;
    };
    let part = |time: nix::sys::time::TimeVal| {
        let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
        let micros = u64::try_from(time.tv_usec()).unwrap_or(0);
        Duration::from_secs(seconds) + Duration::from_micros(micros)
    };
    part(usage.user_time()) + part(usage.system_time())
}

fn set_nonblocking(fd: &impl AsFd) -> Result<(), Errno> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).map(|_| ())
}
