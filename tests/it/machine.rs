//! A client machine of the test's own: a home, a work folder, some version of sccache on its PATH.

use crate::dock::{Dock, program};
use crate::harness::{Outcome, finish, sccache_bin};
use nix::sys::signal::{Signal, kill};
use std::path::{Path, PathBuf};
use std::process::Command;

pub(crate) struct Machine {
    home: tempfile::TempDir,
    sccache: PathBuf,
}

impl Machine {
    /// With the sccache of the container.
    pub(crate) fn new() -> Machine {
        Machine::with(sccache_bin())
    }

    /// With another one; `sccache` is the program's path.
    pub(crate) fn with(sccache: PathBuf) -> Machine {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join("work")).unwrap();
        Machine { home, sccache }
    }

    pub(crate) fn work(&self) -> PathBuf {
        self.home.path().join("work")
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        let path = self.work().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    /// Runs `script` in the work folder, with nothing in its environment but what every user has. At most three
    /// minutes.
    pub(crate) fn sh(&self, script: &str) -> Outcome {
        finish(&mut self.command(script))
    }

    /// The same, after the settings that `sccache-dock client-env ARGUMENTS` prints, as a user evaluates them.
    pub(crate) fn with_env(&self, dock: &Dock, arguments: &str, script: &str) -> Outcome {
        let printed = dock.command(&[&["client-env"], &*words(arguments)].concat());
        assert!(printed.status.success(), "{printed:?}");
        let file = self.home.path().join("client-env");
        std::fs::write(&file, printed.stdout).unwrap();
        self.sh(&format!("eval \"$(cat {})\"\n{script}", file.display()))
    }

    pub(crate) fn command(&self, script: &str) -> Command {
        let inherited = |name: &str| std::env::var(name).ok();
        let tools = self.sccache.parent().unwrap().display().to_string();
        let own = program().parent().unwrap().display().to_string();
        let home = inherited("HOME").unwrap();
        let mut command = Command::new("sh");
        command
            .args(["-c", script])
            .current_dir(self.work())
            .env_clear()
            .env(
                "PATH",
                format!("{tools}:{own}:{}", inherited("PATH").unwrap()),
            )
            .env("HOME", self.home.path());
        for (name, folder) in [("CARGO_HOME", ".cargo"), ("RUSTUP_HOME", ".rustup")] {
            let value = inherited(name).unwrap_or_else(|| format!("{home}/{folder}"));
            command.env(name, value);
        }
        command
    }
}

fn words(text: &str) -> Vec<&str> {
    text.split_whitespace().collect()
}

impl Drop for Machine {
    fn drop(&mut self) {
        kill_daemons(self.home.path());
    }
}

/// Kills the sccache daemons that a client with this home has left running: they carry it in their environment.
pub(crate) fn kill_daemons(home: &Path) {
    let marker = format!("HOME={}", home.display());
    for entry in std::fs::read_dir("/proc").unwrap().filter_map(Result::ok) {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        let mut lines = environment.split(|byte| *byte == 0);
        if lines.any(|line| line == marker.as_bytes()) {
            let _ = kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}
