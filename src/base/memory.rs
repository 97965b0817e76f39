//! How much memory this container has, and how much of it is free: what the machine has, within the limits of the control
//! group, of either version.

use std::fs;

/// Where each version of control groups tells the limit, the use, and how much of that is only cached files.
const GROUPS: [[&str; 3]; 2] = [
    [
        "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/memory.current",
        "/sys/fs/cgroup/memory.stat",
    ],
    [
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
    ],
];

/// Bytes that all processes may have together.
pub(crate) fn limit() -> Option<u64> {
    let machine = field(&read("/proc/meminfo"), "MemTotal:");
    let groups = GROUPS.iter().map(|[limit, ..]| number(&read(limit)));
    groups.chain([machine]).flatten().min()
}

/// Bytes that are free, or would be at once.
pub(crate) fn free() -> Option<u64> {
    let machine = field(&read("/proc/meminfo"), "MemAvailable:");
    let groups = GROUPS.iter().map(|group| {
        let [limit, used, stat] = group.map(read);
        free_of_group(&limit, &used, &stat)
    });
    groups.chain([machine]).flatten().min()
}

fn free_of_group(limit: &str, used: &str, stat: &str) -> Option<u64> {
    let cached = ["inactive_file ", "total_inactive_file "];
    let cached = cached.iter().find_map(|name| field(stat, name));
    let used = number(used)?.saturating_sub(cached.unwrap_or(0));
    Some(number(limit)?.saturating_sub(used))
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// A control group's limit; `max` is none.
fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// Bytes in the line that begins with `name`.
fn field(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    match rest.trim().strip_suffix(" kB") {
        Some(kib) => Some(number(kib)? << 10),
        None => number(rest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_and_control_groups_of_both_versions_are_read() {
        assert_eq!(number("1073741824\n"), Some(1 << 30));
        assert_eq!(number("max\n"), None);
        let meminfo = "MemTotal:       16 kB\nMemFree: 1 kB\nMemAvailable:  2 kB\n";
        assert_eq!(field(meminfo, "MemTotal:"), Some(16 << 10));
        assert_eq!(field(meminfo, "MemAvailable:"), Some(2 << 10));
        assert!(free() <= limit() && free().is_some());
    }

    #[test]
    fn cached_files_are_free() {
        for stat in [
            "anon 70\ninactive_file 20\n",
            "cache 9\ntotal_inactive_file 20\n",
        ] {
            assert_eq!(free_of_group("100\n", "90\n", stat), Some(30), "{stat}");
        }
        assert_eq!(free_of_group("100\n", "200\n", ""), Some(0));
        assert_eq!(free_of_group("max\n", "90\n", ""), None);
    }
}
