//! Docker's own commands, each bounded in time.

use crate::harness::{Answer, now};
use serde_json::Value;
use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Nothing that Docker does here takes longer, on a machine under load either.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// Building an image, or a hundred crates.
pub(crate) const LONG: Duration = Duration::from_secs(840);
/// A token that tests of plain containers set, to know it.
pub(crate) const TOKEN: &str = "token-of-the-docker-tests";

/// How a command went.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    /// Standard output, of a command that must have succeeded.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{}\n{}", self.stdout, self.stderr);
        self.stdout.trim_end().to_owned()
    }

    /// The command failed with `code` and said every one of `parts` on standard error.
    #[track_caller]
    pub(crate) fn refused(&self, code: i32, parts: &[&str]) {
        let said = &self.stderr;
        assert_eq!(self.code, Some(code), "{}\n{said}", self.stdout);
        for part in parts {
            assert!(said.contains(part), "{part:?} is missing in:\n{said}");
        }
    }
}

/// Runs a command to its end; a hang is a failure.
pub(crate) fn run(command: &mut Command, ceiling: Duration) -> Ran {
    let (stdout, stderr) = (
        tempfile::NamedTempFile::new().unwrap(),
        tempfile::NamedTempFile::new().unwrap(),
    );
    let mut child = command
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(stdout.reopen().unwrap())
        .stderr(stderr.reopen().unwrap())
        .spawn()
        .unwrap();
    let text = |file: &tempfile::NamedTempFile| {
        String::from_utf8_lossy(&fs::read(file.path()).unwrap()).into_owned()
    };
    let start = now();
    let code = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status.code();
        }
        if start.elapsed() > ceiling {
            let group = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
            let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
            panic!("{command:?} hangs:\n{}\n{}", text(&stdout), text(&stderr));
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    Ran {
        code,
        stdout: text(&stdout),
        stderr: text(&stderr),
    }
}

/// A Docker daemon: the machine's, or one at a socket.
#[derive(Debug, Clone, Default)]
pub(crate) struct Docker {
    pub(crate) host: Option<String>,
}

impl Docker {
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new("docker");
        if let Some(host) = &self.host {
            command.env("DOCKER_HOST", host);
        }
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        run(self.command().args(args), PATIENCE)
    }

    #[track_caller]
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        self.run(args).ok()
    }

    pub(crate) fn inspect(&self, container: &str, format: &str) -> String {
        self.ok(&[
            "inspect",
            "--type",
            "container",
            "--format",
            format,
            container,
        ])
    }

    /// All that the container has written.
    pub(crate) fn logs(&self, container: &str) -> String {
        let ran = self.run(&["logs", container]);
        ran.stdout + &ran.stderr
    }

    /// The container's processes, by their numbers on the host.
    pub(crate) fn pids(&self, container: &str) -> Vec<String> {
        let listed = self.ok(&["top", container, "-o", "pid"]);
        let pids: Vec<String> = listed
            .lines()
            .skip(1)
            .map(|line| line.trim().to_owned())
            .collect();
        assert!(pids.len() >= 3, "run, gateway and server: {listed}");
        pids
    }

    /// Waits until the program's own check passes.
    pub(crate) fn wait_healthy(&self, container: &str) {
        let start = now();
        loop {
            let state = self.inspect(container, "{{.State.Status}}");
            let check = self.run(&["exec", container, "sccache-dock", "healthcheck"]);
            if check.code == Some(0) {
                return;
            }
            let is_hopeless = state == "exited" || start.elapsed() > PATIENCE;
            assert!(!is_hopeless, "{state}: {check:?}\n{}", self.logs(container));
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// One request to the published port; the answer's code and body.
    pub(crate) fn request(&self, container: &str, method: &str, path: &str, body: &[u8]) -> Answer {
        let port = self.ok(&["port", container, "4226/tcp"]);
        let port = port.lines().next().unwrap().rsplit(':').next().unwrap();
        let mut stream = TcpStream::connect(("127.0.0.1", port.parse().unwrap())).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: it\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: {length}\r\n\
             Connection: close\r\n\r\n"
        );
        stream.write_all(&[head.as_bytes(), body].concat()).unwrap();
        Answer::read(&mut stream)
    }
}

/// Hits, misses and writes of compile results in the JSON of `status`.
pub(crate) fn counts(status: &Value) -> (u64, u64, u64) {
    let counters = &status["cache"]["namespaces"]["default"];
    let count = |name: &str| counters[name].as_u64().unwrap_or(0);
    (count("hits"), count("misses"), count("writes"))
}

/// A container that goes with its test.
pub(crate) struct Container<'a> {
    pub(crate) docker: &'a Docker,
    pub(crate) name: String,
}

impl Container<'_> {
    pub(crate) fn wait_healthy(&self) {
        self.docker.wait_healthy(&self.name);
    }

    pub(crate) fn exec(&self, args: &[&str]) -> Ran {
        let all = [&["exec", &self.name], args].concat();
        run(self.docker.command().args(all), LONG)
    }

    pub(crate) fn counts(&self) -> (u64, u64, u64) {
        let text = self.exec(&["sccache-dock", "status", "--json"]).ok();
        counts(&serde_json::from_str(&text).unwrap())
    }

    /// Waits for its end; gives the exit code and all that it said.
    pub(crate) fn end(&self) -> (String, String) {
        let code = self.docker.ok(&["wait", &self.name]);
        (code, self.docker.logs(&self.name))
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        self.docker.run(&["rm", "--force", "--volumes", &self.name]);
    }
}
