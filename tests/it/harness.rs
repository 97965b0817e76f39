//! Starts the real gateway and real clients, each bounded in time and gone at the end of its test.

use sccache_dock::base::secret::Secret;
use sccache_dock::contract::gateway_config::{Config, IpcPolicy};
use sccache_dock::contract::gateway_status::Status;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub(crate) const WRITER: &str = "writer-token";
pub(crate) const READER: &str = "reader-token";

/// Polls `condition` until it yields something; panics after `ceiling`.
pub(crate) fn wait_for<T>(
    what: &str,
    ceiling: Duration,
    mut condition: impl FnMut() -> Option<T>,
) -> T {
    let start = now();
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(
            start.elapsed() < ceiling,
            "waited {ceiling:?} in vain for {what}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A number from the environment, by which a recipe makes a test larger than it is in the suite.
pub(crate) fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

#[expect(
    clippy::disallowed_methods,
    reason = "tests of real processes take real time"
)]
pub(crate) fn now() -> std::time::Instant {
    std::time::Instant::now()
}

/// A child that does not outlive its test, with the lines of its stderr.
pub(crate) struct Process {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
}

impl Process {
    pub(crate) fn start(command: &mut Command) -> Process {
        let mut child = command
            .process_group(0)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Arc::<Mutex<Vec<String>>>::default();
        let (stderr, lines) = (child.stderr.take().unwrap(), Arc::clone(&log));
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                lines.lock().unwrap().push(line);
            }
        });
        Process { child, log }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().join("\n")
    }

    /// Waits for a line that contains `text`.
    pub(crate) fn wait_for_line(&self, text: &str) -> String {
        wait_for(
            &format!("the line {text:?}"),
            Duration::from_secs(20),
            || {
                self.log
                    .lock()
                    .unwrap()
                    .iter()
                    .find(|line| line.contains(text))
                    .cloned()
            },
        )
    }

    pub(crate) fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    }

    /// Waits for the exit.
    pub(crate) fn exit(&mut self) -> std::process::ExitStatus {
        wait_for("an exit", Duration::from_secs(30), || {
            self.child.try_wait().unwrap()
        })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let group = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
        self.exit();
    }
}

/// The real gateway on a port and a socket of its own.
pub(crate) struct Gateway {
    pub(crate) process: Process,
    pub(crate) addr: SocketAddr,
    pub(crate) config: Config,
    pub(crate) folder: tempfile::TempDir,
}

impl Gateway {
    pub(crate) fn start() -> Gateway {
        Gateway::start_with(|_| {})
    }

    pub(crate) fn start_with(change: impl FnOnce(&mut Config)) -> Gateway {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config(folder.path());
        change(&mut config);
        let process = Process::start(&mut command(folder.path(), &config));
        let addr = address(&process);
        Gateway {
            process,
            addr,
            config,
            folder,
        }
    }

    /// Starts again on the same folders, after the process has ended.
    pub(crate) fn restart(&mut self) {
        self.process = Process::start(&mut command(self.folder.path(), &self.config));
        self.addr = address(&self.process);
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// One request with the writer's token.
    pub(crate) fn request(&self, method: &str, path: &str, body: &[u8]) -> Answer {
        self.request_as(Some(WRITER), method, path, body)
    }

    pub(crate) fn request_as(
        &self,
        token: Option<&str>,
        method: &str,
        path: &str,
        body: &[u8],
    ) -> Answer {
        let token = token
            .map(|token| format!("Authorization: Bearer {token}\r\n"))
            .unwrap_or_default();
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\n{token}Content-Length: {length}\r\nConnection: close\r\n\r\n"
        );
        let mut stream = self.connect();
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body).unwrap();
        Answer::read(&mut stream)
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.addr).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        stream
    }

    pub(crate) fn status(&self) -> Status {
        let answer = self.request_as(Some(READER), "GET", "/api/status", b"");
        assert_eq!(answer.code, 200);
        serde_json::from_slice(&answer.body).unwrap()
    }
}

pub(crate) fn config(folder: &Path) -> Config {
    Config {
        budget_bytes: 64 << 20,
        ipc: IpcPolicy::Local,
        write_tokens: vec![Secret::new(WRITER)],
        read_tokens: vec![Secret::new(READER)],
        drain: Duration::from_secs(5),
        ..Config::in_folder(folder)
    }
}

/// Files of writes in flight in a store's folder.
pub(crate) fn unfinished(store: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(store).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(unfinished(&entry.path()));
        } else if entry.file_name().to_string_lossy().starts_with("new-") {
            found.push(entry.path());
        }
    }
    found
}

pub(crate) fn command(folder: &Path, config: &Config) -> Command {
    let file = folder.join("gateway.toml");
    std::fs::write(&file, toml::to_string(config).unwrap()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_sccache-dock-gateway"));
    command.arg("--config").arg(file).env_remove("SCCACHE_LOG");
    command
}

pub(crate) fn address(process: &Process) -> SocketAddr {
    let line = process.wait_for_line("listening on 127.0.0.1:");
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

/// An HTTP answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// Reads to the end of the connection.
    pub(crate) fn read(stream: &mut impl Read) -> Answer {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n");
        let end =
            end.unwrap_or_else(|| panic!("no HTTP answer: {:?}", String::from_utf8_lossy(&bytes)));
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let code = head.split(' ').nth(1).unwrap().parse().unwrap();
        Answer {
            code,
            head: head.to_lowercase(),
            body: bytes[end + 4..].to_vec(),
        }
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// How a client's command went.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) code: Option<i32>,
    pub(crate) output: String,
}

/// Runs a client's command to its end, at most a minute: a hang is a failure.
pub(crate) fn finish(command: &mut Command) -> Outcome {
    let file = tempfile::NamedTempFile::new().unwrap();
    let stdout = file.reopen().unwrap();
    // One place in the file for both, or each would write over the other.
    let stderr = stdout.try_clone().unwrap();
    let mut process = command
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(stderr)
        .spawn()
        .unwrap();
    let start = now();
    let code = loop {
        if let Some(status) = process.try_wait().unwrap() {
            break status.code();
        }
        if start.elapsed() > Duration::from_secs(180) {
            let group = nix::unistd::Pid::from_raw(i32::try_from(process.id()).unwrap());
            let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
            panic!("{command:?} hangs");
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let mut output = String::new();
    let _ = write!(
        output,
        "{}",
        String::from_utf8_lossy(&std::fs::read(file.path()).unwrap())
    );
    Outcome { code, output }
}

/// A test that cannot run here says so; in CI, where `scripts/test` has brought everything, it fails.
pub(crate) fn skip(why: &str) {
    let ci = std::env::var("CI").unwrap_or_default();
    assert!(matches!(&*ci, "" | "0" | "false"), "skipped in CI: {why}");
    println!("skipped: {why}");
}

/// Whether a program is here; a test that needs it and is skipped says so.
pub(crate) fn has_program(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_here = std::env::split_paths(&path).any(|folder| folder.join(program).is_file());
    if !is_here {
        skip(&format!("{program} is not installed"));
    }
    is_here
}

#[test]
fn skipped_tests_fail_in_ci() {
    let ends = |ci: &str| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args([
                "--exact",
                "harness::test_that_is_skipped_when_it_is_told_to",
            ])
            .env("SKIPPING", "no-such-program")
            .env("CI", ci);
        finish(&mut command).code == Some(0)
    };
    for ci in ["", "0", "false"] {
        assert!(ends(ci), "CI={ci}");
    }
    for ci in ["true", "1", "yes"] {
        assert!(!ends(ci), "CI={ci}");
    }
}

#[test]
fn test_that_is_skipped_when_it_is_told_to() {
    if let Ok(program) = std::env::var("SKIPPING") {
        assert!(!has_program(&program));
    }
}

/// Every test goes through here to be skipped, or it would pass in CI without having run.
#[test]
fn no_test_is_skipped_by_words_of_its_own() {
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it")];
    let words = concat!("skipped", ": ");
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if !path.ends_with("harness.rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                assert!(!text.contains(words), "{}", path.display());
            }
        }
    }
}

/// Where programs lie that the tests need, as `scripts/test` puts them there.
pub(crate) fn tools() -> PathBuf {
    std::env::var_os("SCCACHE_DOCK_TOOLS").map_or_else(
        || {
            let home = || PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache");
            let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
            cache.unwrap_or_else(home).join("sccache-dock/tools")
        },
        PathBuf::from,
    )
}

/// The real sccache 0.19.0.
pub(crate) fn sccache_bin() -> PathBuf {
    if let Some(path) = std::env::var_os("SCCACHE_BIN") {
        return path.into();
    }
    let path = tools().join("sccache-0.19.0/bin/sccache");
    assert!(
        path.exists(),
        "no sccache at {}: run scripts/test",
        path.display()
    );
    path
}

/// A command whose environment has no setting of sccache, cargo or ccache in it.
pub(crate) fn clean(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        let stray = ["SCCACHE_", "CCACHE_", "CARGO_", "RUSTC_WRAPPER", "RUST_LOG"];
        if stray.iter().any(|stray| name.starts_with(stray)) && name != "CARGO_HOME" {
            command.env_remove(name);
        }
    }
    command.env("SCCACHE_CONF", "/nonexistent");
    command
}
