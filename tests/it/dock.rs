//! A running `sccache-dock run` of the test's own: private folder, free port, killed on drop.

use crate::harness::{now, sccache_bin, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The longest that any single condition may take; a machine under load is slow, not broken.
const CEILING: Duration = Duration::from_secs(30);

/// The program under test.
pub(crate) fn program() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_sccache-dock"))
}

/// What its `run` becomes.
pub(crate) fn supervisor_program() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_sccache-dock-run"))
}

/// The gateway's, beside it.
pub(crate) fn gateway_program() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_sccache-dock-gateway"))
}

/// Polls until `probe` gives something, for at most [`CEILING`].
pub(crate) fn eventually<T>(what: &str, probe: impl FnMut() -> Option<T>) -> T {
    wait_for(what, CEILING, probe)
}

pub(crate) struct Dock {
    child: Child,
    pub(crate) dir: tempfile::TempDir,
    env: BTreeMap<String, String>,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Dock {
    /// Starts and waits until every service is ready.
    pub(crate) fn start(env: &[(&str, &str)]) -> Dock {
        let mut dock = Dock::launch(env);
        dock.wait_ready();
        dock
    }

    /// Starts and waits for nothing.
    pub(crate) fn launch(env: &[(&str, &str)]) -> Dock {
        let dir = tempfile::tempdir().unwrap();
        Dock::launch_in(dir, env)
    }

    pub(crate) fn launch_in(dir: tempfile::TempDir, env: &[(&str, &str)]) -> Dock {
        Dock::launch_below(&[], dir, env)
    }

    /// Starts as the last words of another program's command line.
    pub(crate) fn launch_below(
        above: &[&str],
        dir: tempfile::TempDir,
        env: &[(&str, &str)],
    ) -> Dock {
        let mut all = BTreeMap::from([
            ("PATH".to_owned(), std::env::var("PATH").unwrap()),
            ("SCCACHE_DIR".to_owned(), dir.path().display().to_string()),
            ("SCCACHE_LISTEN".to_owned(), "127.0.0.1:0".to_owned()),
            (
                "SCCACHE_BINARY".to_owned(),
                sccache_bin().display().to_string(),
            ),
            ("SCCACHE_LOG".to_owned(), "info".to_owned()),
        ]);
        all.extend(
            env.iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned())),
        );
        let run = [program().into_os_string(), "run".into()];
        let mut words = above.iter().map(OsString::from).chain(run);
        let mut child = Command::new(words.next().unwrap())
            .args(words)
            .env_clear()
            .envs(&all)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let (out, into) = (child.stdout.take().unwrap(), Arc::clone(&lines));
        std::thread::spawn(move || {
            for line in BufReader::new(out).split(b'\n').map_while(Result::ok) {
                into.lock()
                    .unwrap()
                    .push(String::from_utf8_lossy(&line).into_owned());
            }
        });
        Dock {
            child,
            dir,
            env: all,
            lines,
        }
    }

    pub(crate) fn wait_ready(&mut self) -> Value {
        eventually("every service is ready", || {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("ended while starting: {status}\n{}", self.log());
            }
            self.status().filter(|status| {
                let services = status["services"].as_array().unwrap();
                services.iter().all(|service| service["state"] == "ready")
            })
        })
    }

    /// `status --json`, when it answers.
    pub(crate) fn status(&self) -> Option<Value> {
        let output = self.command(&["status", "--json"]);
        serde_json::from_slice(&output.stdout).ok()
    }

    /// Where its cache port is.
    pub(crate) fn address(&self) -> SocketAddr {
        let status = self.status().unwrap();
        status["listen"].as_str().unwrap().parse().unwrap()
    }

    /// Runs another command of the program with the same environment.
    pub(crate) fn command(&self, args: &[&str]) -> Output {
        Command::new(program())
            .args(args)
            .env_clear()
            .envs(&self.env)
            .output()
            .unwrap()
    }

    /// What it was started with.
    pub(crate) fn env(&self) -> &BTreeMap<String, String> {
        &self.env
    }

    pub(crate) fn service(&self, name: &str) -> Value {
        self.service_if_up(name).expect("the supervisor answers")
    }

    /// The same, while the supervisor answers.
    pub(crate) fn service_if_up(&self, name: &str) -> Option<Value> {
        let services = self.status()?["services"].as_array().unwrap().clone();
        let mut services = services.into_iter();
        let found = services.find(|service| service["name"] == name);
        Some(found.expect("the service is in the plan"))
    }

    pub(crate) fn pid_of(&self, name: &str) -> Pid {
        let pid = self.service(name)["pid"].as_i64().expect("it runs");
        Pid::from_raw(i32::try_from(pid).unwrap())
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap())
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// Waits for the end; gives the status and how long it took.
    pub(crate) fn wait_end(&mut self) -> (ExitStatus, Duration) {
        let begin = now();
        let status = eventually("the supervisor ends", || self.child.try_wait().unwrap());
        (status, now() - begin)
    }

    pub(crate) fn token(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("state/auth-token"))
            .unwrap()
            .trim()
            .to_owned()
    }

    pub(crate) fn log(&self) -> String {
        self.lines.lock().unwrap().join("\n")
    }

    pub(crate) fn wait_log(&self, part: &str) -> String {
        eventually(
            &format!("log line with {part:?} in:\n{}", self.log()),
            || {
                self.lines
                    .lock()
                    .unwrap()
                    .iter()
                    .find(|line| line.contains(part))
                    .cloned()
            },
        )
    }

    /// Processes whose parent is the supervisor, with their states as in `/proc/PID/stat`.
    pub(crate) fn children(&self) -> Vec<(i32, char)> {
        children_of(self.pid().as_raw())
    }
}

/// Children of a process, with their states as in `/proc/PID/stat`.
pub(crate) fn children_of(parent: i32) -> Vec<(i32, char)> {
    let entries = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let rest = stat.rsplit_once(") ")?.1;
        let mut fields = rest.split(' ');
        let state = fields.next()?.chars().next()?;
        (fields.next()?.parse::<i32>().ok()? == parent).then_some((pid, state))
    })
    .collect()
}

/// All processes below one, from the top.
pub(crate) fn descendants_of(ancestor: i32) -> Vec<i32> {
    let mut found = vec![ancestor];
    let mut next = 0;
    while let Some(parent) = found.get(next) {
        let below = children_of(*parent);
        found.extend(below.iter().map(|(pid, _)| pid));
        next += 1;
    }
    found.split_off(1)
}

impl Drop for Dock {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // What a failed wait leaves untold.
            let cache = self.status().map(|status| status["cache"].to_string());
            println!("--- log:\n{}\n--- cache: {cache:?}", self.log());
        }
        let leftovers = match self.child.try_wait() {
            Ok(Some(_)) => Vec::new(),
            Ok(None) | Err(_) => descendants_of(self.pid().as_raw()),
        };
        let _ = self.child.kill();
        let _ = wait(&mut self.child);
        for pid in leftovers {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            let _ = kill(Pid::from_raw(-pid), Signal::SIGKILL);
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the test's own child, not a service"
)]
fn wait(child: &mut Child) -> std::io::Result<ExitStatus> {
    child.wait()
}

/// Whether a process with this pid exists and is no zombie.
pub(crate) fn is_alive(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat"));
    stat.is_ok_and(|stat| !stat.contains(") Z "))
}
