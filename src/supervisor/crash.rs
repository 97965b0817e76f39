//! Records of processes that ended without having been asked to: the cause, the lifetime and the last lines.

use crate::contract::control::Crash;
use crate::contract::service::Exit;
use std::path::PathBuf;
use std::time::Duration;

impl Crash {
    /// Records an exit. `hung` means that we ended the process because it was not ready in time.
    pub(super) fn new(
        exit: Exit,
        hung: bool,
        lived: Duration,
        cpu: Duration,
        last_lines: Vec<String>,
    ) -> Crash {
        let cause = if hung {
            Some("it was not ready in time, and was stopped")
        } else {
            cause(exit).or_else(|| told(exit, &last_lines))
        };
        Crash {
            exit: exit.to_string(),
            cause: cause.map(str::to_owned),
            lived_seconds: lived.as_secs_f64(),
            cpu_seconds: cpu.as_secs_f64(),
            last_lines,
        }
    }
}

fn cause(exit: Exit) -> Option<&'static str> {
    use nix::errno::Errno;
    use nix::libc::{SIGABRT, SIGBUS, SIGILL, SIGKILL, SIGSEGV};
    let spawn = |errno| match Errno::from_raw(errno) {
        Errno::EAGAIN => {
            Some("the limit on processes is reached: raise it (docker run --pids-limit)")
        }
        Errno::EMFILE | Errno::ENFILE => {
            Some("the limit on open files is reached: raise it (docker run --ulimit nofile=1024)")
        }
        Errno::ENOMEM => Some("out of memory: give the container more (docker run --memory)"),
        _ => None,
    };
    let bind = |errno| match Errno::from_raw(errno) {
        Errno::EADDRINUSE => Some("another program has taken the address: stop it"),
        Errno::EADDRNOTAVAIL => {
            Some("no interface has the address any more: bring it back, or set SCCACHE_LISTEN")
        }
        Errno::EACCES | Errno::EPERM => Some(
            "this user may not listen there: give it the folder of the sockets, or a port above 1023",
        ),
        Errno::ENOENT => Some("the folder of the sockets is gone: restart the container"),
        Errno::EROFS | Errno::ENOSPC => Some("the folder of the sockets is read-only or full"),
        Errno::EEXIST => Some("another file is in the place of a socket: remove it"),
        _ => spawn(errno),
    };
    match exit {
        Exit::NotBound(errno) => bind(errno),
        Exit::OutOfMemory => {
            Some("the container ran out of memory: give it more (docker run --memory)")
        }
        Exit::Signal(SIGKILL) => Some("killed from outside the container, or by a user in it"),
        Exit::Signal(SIGSEGV | SIGBUS | SIGILL | SIGABRT) | Exit::Code(101) => {
            Some("a fault of the program: report it with its last lines")
        }
        Exit::NotSpawned(errno) => spawn(errno),
        Exit::Signal(_) | Exit::Code(_) => None,
    }
}

/// The cause, as told by the last lines of a process that exited by itself.
fn told(exit: Exit, last_lines: &[String]) -> Option<&'static str> {
    const TELLING: [(&str, &str); 3] = [
        (
            "No space left on device",
            "the disk is full: free some space, or lower SCCACHE_CACHE_SIZE",
        ),
        (
            "Address already in use",
            "another program has taken its address: stop it",
        ),
        (
            "Too many open files",
            "the limit on open files is reached: raise it (docker run --ulimit nofile=1024)",
        ),
    ];
    let says = |part: &str| last_lines.iter().any(|line| line.contains(part));
    let found = TELLING.iter().find(|(part, _)| says(part));
    found
        .filter(|_| matches!(exit, Exit::Code(code) if code != 0))
        .map(|(_, cause)| *cause)
}

/// The kernel's counter of out-of-memory kills in our control group, at the last check.
pub(super) struct Oom {
    file: Option<PathBuf>,
    count: u64,
}

impl Oom {
    /// Finds the counter: first in cgroup v2, then in v1, inside or outside a container.
    pub(super) fn now() -> Oom {
        let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let file = candidates(&groups)
            .into_iter()
            .find(|path| counter(path).is_some());
        let count = file.as_ref().and_then(counter).unwrap_or(0);
        Oom { file, count }
    }

    /// Whether the kernel has killed a process since the last check.
    pub(super) fn has_moved(&mut self) -> bool {
        let count = self.file.as_ref().and_then(counter).unwrap_or(self.count);
        std::mem::replace(&mut self.count, count) < count
    }
}

fn candidates(groups: &str) -> Vec<PathBuf> {
    let path_of = |controller: &str| {
        groups.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let controllers = fields.next()?;
            controllers
                .split(',')
                .any(|it| it == controller)
                .then(|| fields.next())?
        })
    };
    let mut found = Vec::new();
    let mut add = |root: &str, group: Option<&str>, file: &str| {
        for group in group.into_iter().chain(["/"]) {
            found.push(PathBuf::from(format!(
                "{root}{}/{file}",
                group.trim_end_matches('/')
            )));
        }
    };
    add("/sys/fs/cgroup", path_of(""), "memory.events");
    add(
        "/sys/fs/cgroup/memory",
        path_of("memory"),
        "memory.oom_control",
    );
    found
}

/// Both versions' files contain a line `oom_kill N`.
fn counter(path: &PathBuf) -> Option<u64> {
    parse(&std::fs::read_to_string(path).ok()?)
}

fn parse(text: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_of_both_versions_are_read() {
        assert_eq!(
            parse("low 0\nhigh 0\nmax 7\noom 2\noom_kill 3\noom_group_kill 0\n"),
            Some(3)
        );
        assert_eq!(
            parse("oom_kill_disable 0\nunder_oom 0\noom_kill 5\n"),
            Some(5)
        );
        assert_eq!(parse("oom_kill_disable 0\nunder_oom 0\n"), None);
    }

    #[test]
    fn counters_are_looked_for_in_our_group_then_at_the_root() {
        let paths = |groups: &str| -> Vec<String> {
            candidates(groups)
                .iter()
                .map(|path| path.display().to_string())
                .collect()
        };
        assert_eq!(
            paths("0::/system.slice/docker-1.scope\n"),
            [
                "/sys/fs/cgroup/system.slice/docker-1.scope/memory.events",
                "/sys/fs/cgroup/memory.events",
                "/sys/fs/cgroup/memory/memory.oom_control"
            ]
        );
        assert_eq!(
            paths("9:cpu,memory:/docker/1\n")[1],
            "/sys/fs/cgroup/memory/docker/1/memory.oom_control"
        );
    }

    fn judged(exit: Exit, hung: bool, line: &str) -> String {
        let (none, lines) = (Duration::ZERO, vec![line.to_owned()]);
        let crash = Crash::new(exit, hung, none, none, lines);
        crash.cause.unwrap_or_default()
    }

    #[test]
    fn cause_names_what_fixes_it() {
        let not_bound = |errno: nix::errno::Errno| Exit::NotBound(errno as i32);
        let in_use = not_bound(nix::errno::Errno::EADDRINUSE);
        let [away, denied, none_free] = [
            nix::errno::Errno::EADDRNOTAVAIL,
            nix::errno::Errno::EACCES,
            nix::errno::Errno::EMFILE,
        ]
        .map(not_bound);
        let full = "error: No space left on device (os error 28)";
        for (exit, hung, line, part) in [
            (Exit::OutOfMemory, false, "", "--memory"),
            (Exit::Signal(9), false, "", "from outside"),
            (Exit::Signal(11), false, full, "a fault of the program"),
            (Exit::Signal(15), true, full, "not ready in time"),
            (Exit::Code(1), false, full, "SCCACHE_CACHE_SIZE"),
            (in_use, false, "", "taken the address"),
            (away, false, "", "no interface"),
            (denied, false, "", "may not listen"),
            (none_free, false, "", "--ulimit nofile"),
        ] {
            let cause = judged(exit, hung, line);
            assert!(cause.contains(part), "{exit}: {cause}");
        }
        assert_eq!(judged(Exit::Code(1), false, "all is well"), "");
        assert_eq!(judged(Exit::Code(0), false, full), "");
    }
}
