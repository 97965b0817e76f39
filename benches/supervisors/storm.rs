//! Thousands of orphans that end together, below a supervisor that is PID 1 of a namespace of its own.

use crate::Outcome;
use crate::measure::{self, CEILING, Reports, Storm, now};
use crate::peers::{Peer, Site, open_both};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::Pid;
use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// The process with its namespace, which ends with it.
struct Namespace(Child);

impl Drop for Namespace {
    fn drop(&mut self) {
        for pid in measure::tree(self.0.id().cast_signed()).into_iter().skip(1) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        let _ = self.0.kill();
        let _ = measure::wait(&mut self.0);
    }
}

pub(crate) fn weather(peer: Peer, count: usize) -> Outcome<Storm> {
    let site = Site::new(crate::GRACE)?;
    for fifo in ["gate", "last", "made"] {
        nix::unistd::mkfifo(&site.path(fifo), Mode::S_IRWXU)?;
    }
    let quoted = |name: &str| format!("'{}'", site.path(name).display());
    // Each orphan waits at the gate and holds `last` open; their parent ends before they do.
    let maker = format!(
        "sh -c 'exec 9>\"$1\" 8<\"$2\"; i=0; while [ $i -lt {count} ]; do read x <&8 & i=$((i+1)); done' sh {} {}\n\
         echo 1 >{}\nexec sleep 1000000",
        quoted("last"),
        quoted("gate"),
        quoted("made")
    );
    site.add("maker", &maker)?;
    let companions = if peer == Peer::Ours { 4 } else { 0 };
    for index in 0..companions {
        let script = format!("echo 1 >{}\nexec sleep 1000000", quoted("reports"));
        site.add(&format!("child{index}"), &script)?;
    }
    let mut reports = Reports::new(open_both(&site.path("reports"))?);
    let mut made = Reports::new(open_both(&site.path("made"))?);
    let gate = open_both(&site.path("gate"))?;
    let last = OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_NONBLOCK)
        .open(site.path("last"))?;
    let inner = site.command(peer)?;
    let mut command = Command::new("unshare");
    command
        .args(["--pid", "--fork", "--mount-proc", "--kill-child"])
        .arg(inner.get_program())
        .args(inner.get_args())
        .envs(
            inner
                .get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        )
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let namespace = Namespace(command.spawn()?);
    for _ in 0..companions {
        reports.next()?;
    }
    made.next()?;
    let outer = namespace.0.id().cast_signed();
    let init = *measure::children(outer).first().ok_or("no namespace")?;
    let before = measure::children(init).len();
    if before < count {
        return Err(format!("only {before} of {count} orphans were adopted").into());
    }
    let settled = before - count;
    storm(init, settled, (gate, &last), companions, &mut reports)
}

fn storm(
    init: i32,
    settled: usize,
    (gate, last): (File, &File),
    companions: usize,
    reports: &mut Reports,
) -> Outcome<Storm> {
    let victims: Vec<i32> = measure::children(init)
        .into_iter()
        .filter(|pid| {
            let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline"));
            companions > 0 && line.is_ok_and(|line| line.starts_with("sleep"))
        })
        .collect();
    let cpu = measure::cpu(&[init]);
    let begin = now();
    drop(gate);
    for pid in victims.iter().take(companions) {
        kill(Pid::from_raw(*pid), Signal::SIGKILL)?;
    }
    let mut fds = [PollFd::new(last.as_fd(), PollFlags::empty())];
    if poll(&mut fds, PollTimeout::try_from(CEILING)?)? == 0 {
        return Err("the orphans do not end".into());
    }
    let ended = begin.elapsed();
    let left = loop {
        let left = measure::children(init).len().saturating_sub(settled);
        if left == 0 || begin.elapsed() > Duration::from_secs(20) {
            break left;
        }
        std::thread::sleep(Duration::from_micros(500));
    };
    let all = begin.elapsed();
    let cpu = measure::cpu(&[init]).saturating_sub(cpu);
    let seen = (0..companions).take_while(|_| reports.next().is_ok());
    let own_seen = seen.count();
    Ok(Storm {
        left,
        all,
        after_last: all.saturating_sub(ended),
        cpu,
        own_caused: companions,
        own_seen,
    })
}
