//! What goes wrong around the supervisor, caused for real: crashes at the wrong moment, missing descriptors, a frozen
//! supervisor, a settings file that is broken while everything runs.

use crate::dock::{Dock, eventually, is_alive};
use crate::harness::{now, sccache_bin, skip, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sccache_dock::contract::control;
use serde_json::Value;
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// An sccache that, as the server, runs `body` (shell) before it becomes the real one.
pub(crate) struct Wrapper {
    dir: tempfile::TempDir,
}

impl Wrapper {
    pub(crate) fn new(body: &str) -> Wrapper {
        let dir = tempfile::tempdir().unwrap();
        let wrapper = Wrapper { dir };
        let (marker, real) = (wrapper.marker(), sccache_bin());
        let text = format!(
            "#!/bin/sh\nMARKER='{}'\nif [ -n \"$SCCACHE_START_SERVER\" ]; then :\n{body}\nfi\nexec '{}' \"$@\"\n",
            marker.display(),
            real.display()
        );
        fs::write(wrapper.program(), text).unwrap();
        fs::set_permissions(wrapper.program(), fs::Permissions::from_mode(0o755)).unwrap();
        wrapper
    }

    /// One that exits with code 3, after a word, while the marker is there.
    pub(crate) fn breakable() -> Wrapper {
        Wrapper::new("if [ -e \"$MARKER\" ]; then echo 'out of luck'; exit 3; fi")
    }

    pub(crate) fn program(&self) -> PathBuf {
        self.dir.path().join("sccache-wrapped")
    }

    pub(crate) fn marker(&self) -> PathBuf {
        self.dir.path().join("marker")
    }

    pub(crate) fn set(&self) {
        fs::write(self.marker(), "").unwrap();
    }

    pub(crate) fn unset(&self) {
        fs::remove_file(self.marker()).unwrap();
    }

    pub(crate) fn start(&self, env: &[(&str, &str)]) -> Dock {
        let mut dock = self.launch(env);
        dock.wait_ready();
        dock
    }

    pub(crate) fn launch(&self, env: &[(&str, &str)]) -> Dock {
        let program = self.program();
        let mut all = vec![("SCCACHE_BINARY", program.to_str().unwrap())];
        all.extend(env);
        Dock::launch(&all)
    }
}

/// Waits until the server's report fulfils `condition`.
pub(crate) fn server_when(dock: &Dock, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
    eventually(what, || {
        Some(dock.service("server")).filter(|server| condition(server))
    })
}

pub(crate) fn failures(server: &Value) -> u64 {
    server["trouble"]["failures"].as_u64().unwrap_or(0)
}

#[test]
fn running_dock_can_be_asked_while_its_settings_are_broken() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("dock.toml");
    fs::write(&file, "cache_size = \"2G\"\n").unwrap();
    let dock = Dock::start(&[("SCCACHE_DOCK_CONFIG", file.to_str().unwrap())]);
    for broken in ["cache_size = \"lots\"\n", "cache_size = "] {
        fs::write(&file, broken).unwrap();
        for args in [&["healthcheck"][..], &["status"], &["restart", "server"]] {
            let output = dock.command(args);
            assert_eq!(output.status.code(), Some(0), "{args:?}: {output:?}");
            server_when(&dock, "it is back", |it| it["state"] == "ready");
        }
        let reload = dock.command(&["reload"]);
        let text = String::from_utf8_lossy(&reload.stderr).into_owned();
        assert_eq!(reload.status.code(), Some(1), "{text}");
        assert!(
            text.contains("cannot reload, keeping the previous settings"),
            "{text}"
        );
        assert!(
            text.contains("cache_size") || text.contains("cannot parse"),
            "{text}"
        );
    }
    assert_eq!(dock.service("gateway")["restarts"], 0, "nothing changed");
}

#[test]
fn place_that_is_a_guess_is_called_one() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("dock.toml");
    fs::write(&file, "run_dir = \"/somewh").unwrap();
    let output = Command::new(crate::dock::program())
        .arg("status")
        .env_clear()
        .env("SCCACHE_DOCK_CONFIG", &file)
        .env("SCCACHE_DIR", folder.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text.contains("cannot parse the file") && text.contains("cannot reach the supervisor"),
        "{text}"
    );
}

#[test]
fn clients_of_a_gateway_in_a_long_backoff_are_refused_until_it_is_back() {
    let dock = Dock::start(&[]);
    let address = dock.address();
    let socket = dock.dir.path().join("run/sccache.sock");
    eventually("a pause that is too long to wait for", || {
        let gateway = dock.service("gateway");
        if let Some(pid) = gateway["pid"].as_i64() {
            let _ = kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL);
        } else if gateway["trouble"]["failures"].as_u64() < Some(5) {
            // Up to the fourth failure they wait, and none is refused.
            TcpStream::connect(address).expect("the door is open in a short pause");
        }
        TcpStream::connect(address).is_err().then_some(())
    });
    assert!(UnixStream::connect(&socket).is_err());
    assert!(dock.service("gateway")["trouble"]["failures"].as_u64() >= Some(5));
    eventually("the gateway is back at the same place", || {
        (dock.command(&["healthcheck"]).status.code() == Some(0)).then_some(())
    });
    assert!(TcpStream::connect(address).is_ok() && UnixStream::connect(&socket).is_ok());
}

#[test]
fn port_that_was_taken_in_a_long_pause_is_waited_for() {
    let dock = Dock::start(&[]);
    let address = dock.address();
    eventually("a long pause", || {
        if let Some(pid) = dock.service("gateway")["pid"].as_i64() {
            let _ = kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL);
        }
        TcpStream::connect(address).is_err().then_some(())
    });
    let thief = TcpListener::bind(address).unwrap();
    let crash = eventually("the record", || {
        let crash = dock.service("gateway")["last_crash"].clone();
        let exit = crash["exit"].as_str()?.to_owned();
        exit.starts_with("cannot listen: Address already in use")
            .then_some(crash)
    });
    assert!(
        crash["cause"].as_str().unwrap().contains("taken the"),
        "{crash}"
    );
    drop(thief);
    wait_for("the gateway is back", Duration::from_secs(45), || {
        (dock.command(&["healthcheck"]).status.code() == Some(0)).then_some(())
    });
}

#[test]
fn service_that_ran_and_died_says_so_with_cause_count_and_times() {
    let wrapper = Wrapper::breakable();
    let dock = wrapper.start(&[]);
    let server = dock.service("server");
    assert!(server["trouble"].is_null(), "{server}");
    assert!(server["time_to_ready_seconds"].as_f64() > Some(0.0));
    assert!(server["away_seconds"].is_null(), "it was never away");
    wrapper.set();
    kill(dock.pid_of("server"), Signal::SIGKILL).unwrap();
    let server = server_when(&dock, "three failures", |it| failures(it) >= 3);
    assert_eq!(server["trouble"]["verdict"], "ran and died");
    assert!(server["deaths_last_hour"].as_u64() >= Some(3), "{server}");
    assert_eq!(server["last_crash"]["exit"], "exit code 3");
    assert_eq!(server["last_crash"]["last_lines"][0], "out of luck");
    let table = dock.command(&["status"]);
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    assert!(table.contains("(ran and died, "), "{table}");
    wrapper.unset();
    let server = server_when(&dock, "it is back", |it| it["state"] == "ready");
    assert!(server["away_seconds"].as_f64() > Some(0.2), "{server}");
}

#[test]
fn service_that_never_ran_says_so_until_the_end() {
    let wrapper = Wrapper::breakable();
    wrapper.set();
    let mut dock = wrapper.launch(&[]);
    eventually("the verdict", || {
        let services = dock.status()?["services"].clone();
        (services[1]["trouble"]["verdict"] == "never ran").then_some(())
    });
    let (status, _) = dock.wait_end();
    assert_eq!(status.code(), Some(1));
    dock.wait_log("server cannot run: exit code 3 (never ran, 5 failures in ");
}

#[test]
fn failed_spawn_is_recorded_and_tried_again() {
    let wrapper = Wrapper::new("");
    let dock = wrapper.start(&[]);
    // A program that is open for writing cannot be executed.
    let writer = fs::OpenOptions::new()
        .append(true)
        .open(wrapper.program())
        .unwrap();
    kill(dock.pid_of("server"), Signal::SIGKILL).unwrap();
    let server = server_when(&dock, "the record", |it| {
        let exit = it["last_crash"]["exit"].as_str();
        exit.is_some_and(|exit| exit.starts_with("cannot start: "))
    });
    assert!(server["pid"].is_null() && failures(&server) >= 2);
    drop(writer);
    server_when(&dock, "it is back", |it| it["state"] == "ready");
}

/// Sets the number of descriptors that the supervisor may have, while it runs.
pub(crate) fn limit_descriptors(dock: &Dock, most: i32) {
    let status = Command::new("prlimit")
        .args(["--pid", &dock.pid().to_string()])
        .arg(format!("--nofile={most}:"))
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
fn supervisor_without_free_descriptors_tries_again_until_there_are_some() {
    let dock = Dock::start(&[]);
    let server = dock.pid_of("server");
    // Enough to wait for what is open, none for anything new.
    limit_descriptors(&dock, 12);
    kill(server, Signal::SIGKILL).unwrap();
    // Without a descriptor nobody can be answered: the log alone tells.
    dock.wait_log("cannot start server");
    limit_descriptors(&dock, 1024);
    let server = server_when(&dock, "it is back", |it| it["state"] == "ready");
    let cause = server["last_crash"]["cause"].as_str();
    assert!(
        cause.is_some_and(|cause| cause.contains("--ulimit nofile")),
        "{server}"
    );
}

#[test]
fn deaths_that_come_in_one_signal_are_all_taken() {
    let orphans = 100;
    let wrapper = Wrapper::new(&format!(
        "[ -e \"$MARKER\" ] || {{ : > \"$MARKER\"; i=0; \
         while [ $i -lt {orphans} ]; do (setsid sleep 1000 &); i=$((i + 1)); done; }}"
    ));
    let dock = wrapper.start(&[]);
    let before: Vec<Pid> = ["gateway", "server"].map(|name| dock.pid_of(name)).into();
    let strays = eventually("the orphans", || {
        let strays = strays(&dock);
        (strays.len() == orphans).then_some(strays)
    });
    // While it stands still, its signals merge into one.
    dock.signal(Signal::SIGSTOP);
    for pid in strays.iter().chain(&before) {
        kill(*pid, Signal::SIGKILL).unwrap();
    }
    dock.signal(Signal::SIGCONT);
    eventually("all are back, counted once", || {
        let status = dock.status()?;
        let services = status["services"].as_array()?.clone();
        let back = |it: &Value| it["state"] == "ready" && it["restarts"] == 1;
        (services.iter().all(back) && status["orphans_reaped"].as_u64() >= Some(100)).then_some(())
    });
    let zombies = dock.children().into_iter().filter(|it| it.1 == 'Z');
    assert_eq!(zombies.count(), 0);
}

/// Processes named `sleep` that the server has left: they carry its environment.
fn strays(dock: &Dock) -> Vec<Pid> {
    let marker = format!("SCCACHE_DIR={}", dock.dir.path().join("state").display());
    let pids = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    pids.filter_map(|entry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let comm = fs::read_to_string(entry.path().join("comm")).ok()?;
        let environment = fs::read(entry.path().join("environ")).ok()?;
        let environment = String::from_utf8_lossy(&environment).into_owned();
        (comm.trim() == "sleep" && environment.contains(&marker)).then(|| Pid::from_raw(pid))
    })
    .collect()
}

#[test]
fn term_at_any_moment_of_the_start_leaves_nothing_behind() {
    for delay in [0, 1, 2, 4, 8, 16, 32, 64] {
        let mut dock = Dock::launch(&[]);
        let until = now() + Duration::from_millis(delay);
        eventually("the moment", || (now() >= until).then_some(()));
        dock.signal(Signal::SIGTERM);
        let (status, _) = dock.wait_end();
        // Before its handlers stand, it ends as every program does.
        let plain = status.signal() == Some(15);
        assert!(
            plain || status.code() == Some(0),
            "{delay} ms: {status}\n{}",
            dock.log()
        );
        let left = processes_on(dock.dir.path());
        assert!(left.is_empty(), "{delay} ms: {left:?}");
    }
}

/// Processes that know this folder, by their arguments or environment.
fn processes_on(dir: &Path) -> Vec<String> {
    let marker = dir.to_str().unwrap();
    let pids = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    pids.filter_map(|entry| {
        let _: i32 = entry.file_name().to_str()?.parse().ok()?;
        let mut known = fs::read(entry.path().join("cmdline")).ok()?;
        known.extend(fs::read(entry.path().join("environ")).unwrap_or_default());
        let known = String::from_utf8_lossy(&known).into_owned();
        known.contains(marker).then_some(known)
    })
    .collect()
}

#[test]
fn term_during_backoff_ends_at_once() {
    let wrapper = Wrapper::breakable();
    let mut dock = wrapper.start(&[]);
    wrapper.set();
    kill(dock.pid_of("server"), Signal::SIGKILL).unwrap();
    server_when(&dock, "a pause of two seconds", |it| {
        it["state"] == "backoff" && failures(it) >= 5
    });
    dock.signal(Signal::SIGTERM);
    let (status, _) = dock.wait_end();
    assert_eq!(status.code(), Some(0), "{}", dock.log());
    assert!(dock.log().contains("gateway exited: exit code 0"));
}

#[test]
fn nothing_is_reloaded_or_restarted_during_a_stop() {
    let mut dock = Dock::start(&[("SCCACHE_STOP_GRACE", "60s")]);
    let server = dock.pid_of("server");
    kill(server, Signal::SIGSTOP).unwrap();
    dock.signal(Signal::SIGTERM);
    dock.wait_log("stopping");
    for args in [
        &["reload"][..],
        &["restart", "gateway"],
        &["stop", "server"],
    ] {
        let output = dock.command(args);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{args:?}: {text}");
        assert!(text.contains("everything is stopping"), "{text}");
    }
    dock.signal(Signal::SIGHUP);
    dock.wait_log("cannot reload, keeping the previous settings: everything is stopping");
    kill(server, Signal::SIGCONT).unwrap();
    let (status, _) = dock.wait_end();
    assert_eq!(status.code(), Some(0));
    assert!(!is_alive(server));
}

#[test]
fn start_that_hangs_is_ended_and_recorded() {
    let wrapper =
        Wrapper::new("if [ ! -e \"$MARKER\" ]; then : > \"$MARKER\"; exec sleep 1000; fi");
    let dock = wrapper.launch(&[]);
    let back = Duration::from_secs(55);
    let server = wait_for("the second try", back, || {
        let services = dock.status()?["services"].clone();
        (services[1]["state"] == "ready").then(|| services[1].clone())
    });
    assert_eq!(server["last_crash"]["exit"], "signal 15");
    let cause = server["last_crash"]["cause"].as_str();
    assert!(cause.is_some_and(|cause| cause.contains("not ready in time")));
}

#[test]
fn spent_budget_ends_the_run_and_names_the_culprit_with_its_last_lines() {
    let wrapper = Wrapper::breakable();
    let mut dock = wrapper.start(&[]);
    wrapper.set();
    kill(dock.pid_of("server"), Signal::SIGKILL).unwrap();
    let socket = dock.dir.path().join("run/control.sock");
    // A requested restart cuts the pause short: a storm of an hour in a few seconds.
    let end = wait_for("the end", Duration::from_secs(55), || {
        match dock.service_if_up("server") {
            Some(server) if server["state"] == "backoff" => {
                let _ = control::ask(&socket, "restart server");
                None
            }
            Some(_) => None,
            None => Some(dock.wait_end().0),
        }
    });
    assert_eq!(end.code(), Some(1), "{}", dock.log());
    dock.wait_log("giving up: server failed 100 times within 60 minutes: exit code 3");
    dock.wait_log("server: out of luck");
    assert!(
        dock.log().contains("gateway exited: exit code 0"),
        "drained"
    );
}

/// A control group for this test's process and what it starts, with a bound of its memory.
struct MemoryGroup {
    path: PathBuf,
    home: PathBuf,
}

impl MemoryGroup {
    fn enter(most_bytes: u64) -> Option<MemoryGroup> {
        let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
        let own = |prefix: &str| {
            let found = groups.lines().find_map(|line| {
                let (_, rest) = line.split_once(':')?;
                rest.strip_prefix(prefix)
            });
            found.map(|path| path.trim_start_matches('/').to_owned())
        };
        let (home, limit) = match own("memory:") {
            Some(own) => (
                Path::new("/sys/fs/cgroup/memory").join(own),
                "memory.limit_in_bytes",
            ),
            None => (Path::new("/sys/fs/cgroup").join(own(":")?), "memory.max"),
        };
        let name = format!("sccache-dock-test-{}", std::process::id());
        // A group of version 2 that holds processes hands no controller on; the one at the top does.
        let bounded = [home.clone(), "/sys/fs/cgroup".into()].map(|above| above.join(&name));
        let path = bounded.into_iter().find(|path| {
            let made = fs::create_dir(path).is_ok();
            let found = made && path.join(limit).exists();
            if made && !found {
                let _ = fs::remove_dir(path);
            }
            found
        })?;
        let group = MemoryGroup { path, home };
        fs::write(group.path.join(limit), most_bytes.to_string()).ok()?;
        let me = std::process::id().to_string();
        fs::write(group.path.join("cgroup.procs"), me).ok()?;
        Some(group)
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        let me = std::process::id().to_string();
        let _ = fs::write(self.home.join("cgroup.procs"), me);
        // It can be removed when the last process has left it.
        eventually("the group is empty", || {
            (fs::remove_dir(&self.path).is_ok() || !self.path.exists()).then_some(())
        });
    }
}

#[test]
fn service_that_is_killed_for_want_of_memory_says_so_with_the_hint() {
    let Some(_group) = MemoryGroup::enter(300 << 20) else {
        return skip("no control group of memory can be made here");
    };
    // It asks for more and more memory, once.
    let wrapper =
        Wrapper::new("if [ -e \"$MARKER\" ]; then rm \"$MARKER\"; exec tail /dev/zero; fi");
    let dock = wrapper.start(&[]);
    wrapper.set();
    kill(dock.pid_of("server"), Signal::SIGKILL).unwrap();
    let server = server_when(&dock, "the record", |it| {
        it["state"] == "ready" && it["last_exit"] == "signal 9, out of memory"
    });
    let cause = server["last_crash"]["cause"].as_str();
    assert!(
        cause.is_some_and(|cause| cause.contains("docker run --memory")),
        "{server}"
    );
}
