//! Limits that nobody set, from what the container has.

use crate::base::memory;
use crate::contract::builder_config::Limits;
use std::fs;
use std::path::Path;

/// Processes and threads that no compiler needs more of.
const PROCESSES: u64 = 512;
/// Bytes of files that no compiler needs more of, with its inputs, and that none consists of.
const DISK_BYTES: u64 = 10 << 30;

/// What a job may have at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bounds {
    pub(super) memory_bytes: u64,
    pub(super) processes: u64,
    pub(super) disk_bytes: u64,
}

/// The limits that are set; where none is, half of what there is, so that one job never takes the others with it. Jobs
/// write below `dir`.
pub(super) fn bounds(set: &Limits, dir: &Path) -> Bounds {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let processes = [
        number(&read("/sys/fs/cgroup/pids.max")),
        number(&read("/sys/fs/cgroup/pids/pids.max")),
    ];
    chosen(
        set,
        memory::limit(),
        processes.into_iter().flatten().min(),
        free(dir),
    )
}

fn chosen(set: &Limits, memory: Option<u64>, processes: Option<u64>, disk: Option<u64>) -> Bounds {
    let half = |most: Option<u64>| most.map_or(u64::MAX, |most| (most / 2).max(1));
    Bounds {
        memory_bytes: set.memory_bytes.unwrap_or(half(memory)),
        processes: set.processes.unwrap_or(half(processes).min(PROCESSES)),
        disk_bytes: set.disk_bytes.unwrap_or(half(disk).min(DISK_BYTES)),
    }
}

/// The most that a toolchain may unpack to below `dir`.
pub(super) fn toolchain(set: &Limits, dir: &Path) -> u64 {
    let half = free(dir).map_or(u64::MAX, |free| free / 2);
    set.toolchain_bytes.unwrap_or(half.min(DISK_BYTES))
}

/// Bytes that may still be written to the file system of a folder.
fn free(dir: &Path) -> Option<u64> {
    let found = nix::sys::statvfs::statvfs(dir).ok()?;
    Some(found.blocks_available() * found.fragment_size())
}

/// A control group's limit; `max` is none.
fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNSET: Limits = Limits {
        memory_bytes: None,
        processes: None,
        disk_bytes: None,
        toolchain_bytes: None,
        time_millis: 1,
    };

    #[test]
    fn half_of_the_container_is_the_limit_of_a_job() {
        let found = chosen(&UNSET, Some(8 << 30), Some(100), Some(6 << 30));
        assert_eq!((found.memory_bytes, found.processes), (4 << 30, 50));
        assert_eq!(found.disk_bytes, 3 << 30);
        let found = chosen(&UNSET, Some(1), None, None);
        assert_eq!((found.processes, found.disk_bytes), (PROCESSES, DISK_BYTES));
        let set = Limits {
            memory_bytes: Some(7),
            processes: Some(9_000),
            disk_bytes: Some(8),
            ..UNSET
        };
        let found = chosen(&set, Some(8 << 30), Some(100), Some(1));
        assert_eq!((found.memory_bytes, found.processes), (7, 9_000));
        assert_eq!(found.disk_bytes, 8);
    }
}
