//! What `/proc` tells of processes, FIFOs that children report through, medians.

use crate::Outcome;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::AsFd;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// The longest that any single thing may take.
pub(crate) const CEILING: Duration = Duration::from_secs(60);

/// All samples of one supervisor.
#[derive(Default)]
pub(crate) struct Figures {
    pub(crate) start: Vec<Duration>,
    pub(crate) pss: Vec<f64>,
    pub(crate) dirty: Vec<f64>,
    pub(crate) wakeups: Option<f64>,
    pub(crate) restart: Vec<Duration>,
    pub(crate) stop: Vec<Duration>,
    pub(crate) stubborn: Vec<Duration>,
    pub(crate) storms: Vec<Storm>,
}

impl Figures {
    pub(crate) fn storm(&self, part: fn(&Storm) -> f64) -> Option<f64> {
        median(&self.storms.iter().map(part).collect::<Vec<f64>>())
    }

    pub(crate) fn own_exits(&self) -> String {
        let seen: usize = self.storms.iter().map(|storm| storm.own_seen).sum();
        let caused: usize = self.storms.iter().map(|storm| storm.own_caused).sum();
        format!("{caused} caused, {seen} answered by a restart")
    }
}

/// A sample that can be compared.
pub(crate) trait Sample: Copy {
    fn number(self) -> f64;
}

impl Sample for f64 {
    fn number(self) -> f64 {
        self
    }
}

impl Sample for Duration {
    /// In milliseconds.
    fn number(self) -> f64 {
        self.as_secs_f64() * 1e3
    }
}

pub(crate) fn median<T: Sample>(samples: &[T]) -> Option<f64> {
    let mut numbers: Vec<f64> = samples.iter().map(|sample| sample.number()).collect();
    numbers.sort_by(f64::total_cmp);
    let middle = numbers.len() / 2;
    match numbers.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(numbers[middle]),
        _ => Some((numbers[middle - 1] + numbers[middle]) / 2.0),
    }
}

#[expect(clippy::disallowed_methods, reason = "a bench measures time")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

#[expect(
    clippy::disallowed_methods,
    reason = "the bench's own child, not a service"
)]
pub(crate) fn wait(child: &mut Child) -> std::io::Result<ExitStatus> {
    child.wait()
}

/// Direct children of all threads of a process.
pub(crate) fn children(pid: i32) -> Vec<i32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task"));
    let tasks = tasks.into_iter().flatten().filter_map(Result::ok);
    tasks
        .filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok())
        .flat_map(|text| {
            text.split_ascii_whitespace()
                .filter_map(|pid| pid.parse().ok())
                .collect::<Vec<i32>>()
        })
        .collect()
}

/// A process and all below it, from the top.
pub(crate) fn tree(pid: i32) -> Vec<i32> {
    let mut found = vec![pid];
    let mut next = 0;
    while let Some(pid) = found.get(next).copied() {
        found.extend(children(pid));
        next += 1;
    }
    found
}

/// KiB of one line of `smaps_rollup`, over all processes.
pub(crate) fn sum(pids: &[i32], field: &str) -> f64 {
    let one = |pid: &i32| -> f64 {
        let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix(field));
        line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok())
            .unwrap_or(f64::NAN)
    };
    pids.iter().map(one).sum()
}

/// Context switches of all threads so far: how often somebody woke.
pub(crate) fn switches(pids: &[i32]) -> u64 {
    per_task(pids, "status", |text| {
        let counts = text.lines().filter(|line| line.contains("ctxt_switches"));
        counts
            .filter_map(|line| line.rsplit('\t').next()?.trim().parse::<u64>().ok())
            .sum()
    })
}

/// Processor time of all threads so far.
pub(crate) fn cpu(pids: &[i32]) -> Duration {
    Duration::from_nanos(per_task(pids, "schedstat", |text| {
        let first = text.split(' ').next();
        first.and_then(|first| first.parse().ok()).unwrap_or(0)
    }))
}

fn per_task(pids: &[i32], file: &str, read: fn(&str) -> u64) -> u64 {
    let tasks = pids
        .iter()
        .filter_map(|pid| std::fs::read_dir(format!("/proc/{pid}/task")).ok())
        .flatten()
        .filter_map(Result::ok);
    tasks
        .filter_map(|task| std::fs::read_to_string(task.path().join(file)).ok())
        .map(|text| read(&text))
        .sum()
}

/// Waits until there is something to read, or the end.
pub(crate) fn wait_readable(file: &impl AsFd, what: &str) -> Outcome<()> {
    let mut fds = [PollFd::new(file.as_fd(), PollFlags::POLLIN)];
    match poll(&mut fds, PollTimeout::try_from(CEILING)?)? {
        0 => Err(format!("waited {CEILING:?} in vain for {what}").into()),
        _ => Ok(()),
    }
}

/// What one storm did.
#[derive(Clone, Copy)]
pub(crate) struct Storm {
    /// Orphans that were never reaped.
    pub(crate) left: usize,
    /// From the word to end until the last was reaped.
    pub(crate) all: Duration,
    /// The part of it after the last orphan had ended.
    pub(crate) after_last: Duration,
    /// Of the supervisor.
    pub(crate) cpu: Duration,
    /// Children of ours that were killed in the storm, and came back.
    pub(crate) own_caused: usize,
    pub(crate) own_seen: usize,
}

/// Lines of a FIFO in which each child writes its pid when it runs.
pub(crate) struct Reports {
    pub(crate) fifo: File,
    text: Vec<u8>,
}

impl Reports {
    pub(crate) fn new(fifo: File) -> Reports {
        Reports {
            fifo,
            text: Vec::new(),
        }
    }

    /// The next pid.
    pub(crate) fn next(&mut self) -> Outcome<i32> {
        loop {
            if let Some(end) = self.text.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.text.drain(..=end).collect();
                return Ok(std::str::from_utf8(&line)?.trim().parse()?);
            }
            wait_readable(&self.fifo, "a child's report")?;
            let mut buffer = [0; 256];
            let count = self.fifo.read(&mut buffer)?;
            self.text.extend_from_slice(&buffer[..count]);
        }
    }
}

/// A process of which only the log is known.
pub(crate) struct Bare {
    child: Child,
    log: BufReader<ChildStdout>,
    begin: Instant,
}

impl Bare {
    pub(crate) fn spawn(mut command: Command) -> Outcome<Bare> {
        let begin = now();
        let mut child = command.stdout(Stdio::piped()).spawn()?;
        let log = child.stdout.take().ok_or("no standard output")?;
        Ok(Bare {
            child,
            log: BufReader::new(log),
            begin,
        })
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// How long it took from the start until this line.
    pub(crate) fn wait_line(&mut self, part: &str) -> Outcome<Duration> {
        let mut line = String::new();
        while self.log.read_line(&mut line)? > 0 {
            if line.contains(part) {
                return Ok(self.begin.elapsed());
            }
            line.clear();
        }
        Err(format!("it ended before \"{part}\"").into())
    }

    pub(crate) fn stop(mut self) -> Outcome<()> {
        kill(Pid::from_raw(self.pid()), Signal::SIGTERM)?;
        self.log.read_to_end(&mut Vec::new())?;
        wait(&mut self.child)?;
        Ok(())
    }
}
