//! How large a job is: its processes, from `/proc`.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

/// What a process and all below it have.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size {
    /// Processes and threads.
    pub(super) tasks: u64,
    /// Memory of their own, memory that they share, the tables of their pages, and what the kernel may hold for their sockets
    /// and pipes: no program text, no files.
    pub(super) memory_bytes: u64,
    /// Written to the disk, by those that have ended too, and to files that have been removed since.
    pub(super) written_bytes: u64,
}

/// Measures a process and all below it, and stops when it has found more than `enough` tasks.
pub(super) fn measure(pid: u32, enough: u64) -> Size {
    let (mut size, mut left) = (Size::default(), vec![pid]);
    let mut open = Open::default();
    while let Some(pid) = left.pop() {
        let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
            // It has ended since.
            continue;
        };
        for task in tasks.flatten() {
            size.tasks += 1;
            // A thread can have files of its own.
            size.memory_bytes += open.held_for(&task.path());
            // A child belongs to the thread that made it.
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            left.extend(
                children
                    .split_ascii_whitespace()
                    .filter_map(|pid| pid.parse::<u32>().ok()),
            );
        }
        size.memory_bytes += memory(pid);
        size.written_bytes += written(pid);
        if size.tasks > enough {
            break;
        }
    }
    size
}

/// The most that the kernel holds of what was sent to a socket and not read: its buffer as it is made, which a job cannot
/// have enlarged (filter.rs). TCP's buffers grow by themselves, so what they hold is read from /proc.
const SOCKET_BYTES: u64 = 208 << 10;
/// The same for a pipe.
const PIPE_BYTES: u64 = 64 << 10;

/// Sockets and pipes that were counted already: several threads can have the same one open.
#[derive(Debug, Default)]
struct Open {
    seen: HashSet<PathBuf>,
    has_sockets: bool,
}

impl Open {
    /// Bytes of memory that the kernel may hold for a thread's open sockets and pipes that were not counted yet.
    fn held_for(&mut self, task: &Path) -> u64 {
        let mut held = 0;
        for file in fs::read_dir(task.join("fd"))
            .into_iter()
            .flatten()
            .flatten()
        {
            // `socket:[123]`, `pipe:[124]`, or a path.
            let Ok(link) = fs::read_link(file.path()) else {
                continue;
            };
            let name = link.as_os_str().as_encoded_bytes();
            let is_socket = name.starts_with(b"socket:[");
            let bytes = match is_socket {
                true => SOCKET_BYTES,
                false if name.starts_with(b"pipe:[") => PIPE_BYTES,
                false => continue,
            };
            if self.seen.insert(link) {
                held += bytes;
            }
            if is_socket && !self.has_sockets {
                self.has_sockets = true;
                held += held_by_tcp(task);
            }
        }
        held
    }
}

/// Bytes that the connections in a thread's network hold, including those that are still being closed.
fn held_by_tcp(task: &Path) -> u64 {
    let tables = ["net/tcp", "net/tcp6"];
    let tables = tables.map(|name| fs::read_to_string(task.join(name)).unwrap_or_default());
    tables.iter().map(|table| queued(table)).sum()
}

/// What waits to be sent, and to be read, by a table of TCP's connections.
fn queued(table: &str) -> u64 {
    let number = |text: &str| u64::from_str_radix(text, 16).unwrap_or(0);
    let lines = table.lines().skip(1);
    let queues = lines.filter_map(|line| line.split_ascii_whitespace().nth(4)?.split_once(':'));
    queues.map(|(sent, read)| number(sent) + number(read)).sum()
}

/// Bytes of one process: its own, in RAM or swapped out, and its share of the memory that it shares. The tables of its
/// pages count, because a program can have many for pages that are all one and the same.
fn memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let own = ["RssAnon:", "VmSwap:", "VmPTE:"];
    let own: u64 = own.iter().map(|name| field(&status, name)).sum();
    let shared = match field(&status, "RssShmem:") {
        0 => 0,
        // Exact, but it goes through all pages: only for the few that share at all.
        all => fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))
            .map_or(all, |rollup| field(&rollup, "Pss_Shmem:")),
    };
    own + shared
}

/// Bytes that a process, and those that it has waited for, have written to the disk.
fn written(pid: u32) -> u64 {
    let io = fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
    let line = io
        .lines()
        .find_map(|line| line.strip_prefix("write_bytes:"));
    line.and_then(|number| number.trim().parse().ok())
        .unwrap_or(0)
}

/// The number of a line of `/proc`, given there in KiB, in bytes.
fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.trim().strip_suffix(" kB"));
    number
        .and_then(|number| number.parse::<u64>().ok())
        .map_or(0, |kib| kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn processes_below_a_process_are_counted_with_their_memory() {
        let before = measure(std::process::id(), u64::MAX);
        let ballast = vec![1_u8; 32 << 20];
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let after = measure(std::process::id(), u64::MAX);
        child.kill().unwrap();
        while child.try_wait().unwrap().is_none() {
            std::thread::yield_now();
        }
        assert!(after.tasks > before.tasks, "{before:?} {after:?}");
        assert!(
            after.memory_bytes > before.memory_bytes + (30 << 20),
            "{before:?} {after:?}"
        );
        drop(ballast);
        assert_eq!(measure(std::process::id(), 0).tasks.min(1), 1);
    }

    #[test]
    fn what_waits_in_tcp_is_read() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n   \
            0: 0100007F:1F90 00000000:0000 0A 00000000:00000010 00:00000000 00000000     0        0 1 1\n   \
            1: 0100007F:1F90 0100007F:8000 01 00010000:00000001 00:00000000 00000000     0        0 2 1\n";
        assert_eq!(queued(table), 0x10 + 0x10000 + 1);
        assert_eq!(queued(""), 0);
    }

    #[test]
    fn numbers_are_found_by_their_name() {
        let status = "Name:\tcc\nRssAnon:\t     500 kB\nRssShmem:\t  12 kB\n";
        assert_eq!(field(status, "RssAnon:"), 500 << 10);
        assert_eq!(field(status, "RssShmem:"), 12 << 10);
        assert_eq!(field(status, "VmSwap:"), 0);
    }
}
