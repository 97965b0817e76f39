//! How large a job is: its processes, from `/proc`.

use std::fs;

/// What a process and all below it have.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size {
    /// Processes and threads.
    pub(super) tasks: u64,
    /// Memory of their own, in RAM: no program text, no files.
    pub(super) memory_bytes: u64,
}

/// Measures a process and all below it, and stops when it has found more than `enough` tasks.
pub(super) fn measure(pid: u32, enough: u64) -> Size {
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE);
    let page = page
        .ok()
        .flatten()
        .and_then(|size| u64::try_from(size).ok());
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
        let statm = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
        size.memory_bytes += own_pages(&statm).unwrap_or(0) * page.unwrap_or(4096);
        if size.tasks > enough {
            break;
        }
    }
    size
}

/// Resident pages that are not shared (proc(5): the second field less the third).
fn own_pages(statm: &str) -> Option<u64> {
    let mut fields = statm.split(' ').skip(1);
    let resident: u64 = fields.next()?.parse().ok()?;
    let shared: u64 = fields.next()?.parse().ok()?;
    Some(resident.saturating_sub(shared))
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
    fn only_own_pages_count() {
        assert_eq!(own_pages("2000 500 120 3 0 90 0\n"), Some(380));
        assert_eq!(own_pages(""), None);
    }
}
