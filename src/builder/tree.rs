//! How large a job is: its processes, from `/proc`.

use std::fs;

/// What a process and all below it have.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size {
    /// Processes and threads.
    pub(super) tasks: u64,
    /// Memory of their own, memory that they share, and the tables of their pages: no program text, no files.
    pub(super) memory_bytes: u64,
    /// Written to the disk, by those that have ended too, and to files that have been removed since.
    pub(super) written_bytes: u64,
}

/// Measures a process and all below it, and stops when it has found more than `enough` tasks.
pub(super) fn measure(pid: u32, enough: u64) -> Size {
    let (mut size, mut left) = (Size::default(), vec![pid]);
    while let Some(pid) = left.pop() {
        let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
            // It has ended since.
            continue;
        };
        for task in tasks.flatten() {
            size.tasks += 1;
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
    fn numbers_are_found_by_their_name() {
        let status = "Name:\tcc\nRssAnon:\t     500 kB\nRssShmem:\t  12 kB\n";
        assert_eq!(field(status, "RssAnon:"), 500 << 10);
        assert_eq!(field(status, "RssShmem:"), 12 << 10);
        assert_eq!(field(status, "VmSwap:"), 0);
    }
}
