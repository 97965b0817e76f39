//! The log of the real program: floods, odd lines, a reader that stops, and no secret.

use crate::dock::{eventually, program};
use crate::harness::sccache_bin;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::collections::BTreeSet;
use std::io::{PipeReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

const TOKEN: &str = "write-token-0123456789";
/// Lines of a flood.
const FLOOD: u64 = 200_000;

/// `sccache-dock run` whose log is read only when the test says so.
struct Tap {
    child: Child,
    dir: tempfile::TempDir,
    output: Option<PipeReader>,
    log: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
}

impl Tap {
    /// The service `server` runs `body` (shell), and then becomes the real sccache. `$D` is the test's folder.
    fn launch(body: &str, env: &[(&str, &str)]) -> Tap {
        let dir = tempfile::tempdir().unwrap();
        let server = dir.path().join("server");
        let (here, sccache) = (dir.path().display(), sccache_bin());
        let script = format!(
            "#!/bin/sh\nD='{here}'\n{body}\nexec '{}' \"$@\"\n",
            sccache.display()
        );
        std::fs::write(&server, script).unwrap();
        std::fs::set_permissions(&server, std::fs::Permissions::from_mode(0o755)).unwrap();
        let (output, input) = std::io::pipe().unwrap();
        let child = Command::new(program())
            .arg("run")
            .env_clear()
            .env("PATH", std::env::var("PATH").unwrap())
            .env("SCCACHE_DIR", dir.path().join("state"))
            .env("SCCACHE_LISTEN", "127.0.0.1:0")
            .env("SCCACHE_BINARY", server)
            .env("SCCACHE_LOG", "info")
            .env("SCCACHE_AUTH_TOKEN", TOKEN)
            .envs(env.iter().copied())
            .stdout(input)
            .spawn()
            .unwrap();
        Tap {
            child,
            dir,
            output: Some(output),
            log: Arc::default(),
            reader: None,
        }
    }

    /// From here on everything is read as it comes.
    fn read(&mut self) {
        let (mut output, into) = (self.output.take().unwrap(), Arc::clone(&self.log));
        self.reader = Some(std::thread::spawn(move || {
            let mut buffer = vec![0; 64 << 10];
            while let Ok(count @ 1..) = output.read(&mut buffer) {
                into.lock().unwrap().extend_from_slice(&buffer[..count]);
            }
        }));
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    fn wait_file(&self, name: &str) {
        eventually(name, || self.path(name).exists().then_some(()));
    }

    fn wait_log(&self, part: &str) {
        eventually(part, || {
            memchr::memmem::find(&self.log.lock().unwrap(), part.as_bytes()).map(drop)
        });
    }

    fn status(&self) -> Option<Value> {
        let mut command = Command::new(program());
        let state = self.dir.path().join("state");
        let output = command
            .args(["status", "--json"])
            .env("SCCACHE_DIR", state)
            .output()
            .unwrap();
        serde_json::from_slice(&output.stdout).ok()
    }

    fn wait_state(&self, service: &str, state: &str) -> Value {
        eventually(&format!("{service} is {state}"), || {
            let status = self.status()?;
            let services = status["services"].as_array().unwrap();
            let known = services.iter().find(|it| it["name"] == service).unwrap();
            (known["state"] == state).then(|| known.clone())
        })
    }

    fn kill(&self, pid: &Value) {
        let pid = i32::try_from(pid.as_i64().unwrap()).unwrap();
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).unwrap();
        kill(Pid::from_raw(pid), signal).unwrap();
    }

    /// Stops it; gives the whole log.
    fn end(mut self) -> Vec<u8> {
        self.signal(Signal::SIGTERM);
        eventually("it ends", || self.child.try_wait().unwrap());
        self.reader.take().unwrap().join().unwrap();
        std::mem::take(&mut self.log.lock().unwrap())
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        // Nobody reads any more, which must not keep it; a second request kills what does not stop.
        drop(self.output.take());
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        while matches!(self.child.try_wait(), Ok(None)) {
            let _ = kill(pid, Signal::SIGTERM);
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}

/// The numbers N of the lines `server   flood N ...`; every line of the flood must be whole.
fn flood(log: &[u8]) -> Vec<u64> {
    let text = String::from_utf8_lossy(log);
    let lines = text.lines().filter(|line| line.contains("flood"));
    lines
        .map(|line| {
            let rest = line.strip_prefix("server   flood ").expect(line);
            let (number, fill) = rest.split_once(' ').expect(line);
            assert_eq!(fill, "x".repeat(80), "{line}");
            number.parse().unwrap()
        })
        .collect()
}

/// What the log says that it dropped.
fn announced(log: &[u8]) -> u64 {
    let text = String::from_utf8_lossy(log);
    let counts = text
        .lines()
        .filter_map(|line| line.strip_prefix("dock     WARN dropped "));
    counts
        .map(|rest| rest.split(' ').next().unwrap().parse::<u64>().unwrap())
        .sum()
}

/// Shell that writes a flood, once only, also when the service is started again.
fn flooding() -> String {
    let fill = "x".repeat(80);
    format!("[ -e $D/done ] || seq -f 'flood %.0f {fill}' 1 {FLOOD}\n: > $D/done")
}

#[test]
fn flood_is_printed_whole_and_in_order_while_the_reader_reads() {
    let mut tap = Tap::launch(&flooding(), &[]);
    tap.read();
    tap.wait_file("done");
    let log = tap.end();
    assert!(flood(&log).into_iter().eq(1..=FLOOD));
    assert_eq!(announced(&log), 0);
}

#[test]
fn flood_before_a_reader_that_stood_still_is_printed_or_counted() {
    let body = format!("until [ -e $D/go ]; do sleep 0.02; done\n{}", flooding());
    let mut tap = Tap::launch(
        &body,
        &[("SCCACHE_LOG_STALL", "300ms"), ("SCCACHE_LOG", "off")],
    );
    tap.wait_state("gateway", "ready");
    std::fs::write(tap.path("go"), "").unwrap();
    // Nobody has read a line yet.
    tap.wait_file("done");
    tap.wait_state("server", "ready");
    tap.read();
    tap.wait_log("log lines: the reader had stopped reading");
    let log = tap.end();
    let (printed, dropped) = (flood(&log), announced(&log));
    assert!(printed.is_sorted_by(|one, next| one < next), "in order");
    assert!(dropped > 0);
    assert_eq!(printed.len() as u64 + dropped, FLOOD);
}

#[test]
fn flood_of_one_service_holds_up_no_line_of_another() {
    let body = "(while :; do echo 'the flood goes on'; done) &";
    let mut tap = Tap::launch(body, &[]);
    tap.read();
    let gateway = tap.wait_state("gateway", "ready");
    tap.wait_log("the flood goes on");
    tap.kill(&gateway["pid"]);
    tap.wait_log("dock     WARN gateway exited");
    tap.wait_log("dock     INFO gateway ready");
    tap.signal(Signal::SIGUSR1);
    tap.wait_log("dock     INFO sccache-dock ");
    let log = tap.end();
    let text = String::from_utf8_lossy(&log);
    for line in text.lines().filter(|line| line.contains("flood")) {
        assert_eq!(line, "server   the flood goes on");
    }
    assert_eq!(announced(&log), 0);
}

#[test]
fn odd_lines_come_through_in_both_formats() {
    let body = "printf 'carriage\\r\\n'; printf 'bytes \\377\\000\\n'\n\
        head -c 65536 /dev/zero | tr '\\0' y; echo; head -c 3000000 /dev/zero | tr '\\0' z; echo\n\
        : > $D/done; printf 'no end'";
    for format in ["text", "json"] {
        // The rest of sccache's own lines would end the last one.
        let env = [("SCCACHE_LOG_FORMAT", format), ("SCCACHE_LOG", "off")];
        let mut tap = Tap::launch(body, &env);
        tap.read();
        tap.wait_file("done");
        tap.wait_state("server", "ready");
        let log = tap.end();
        let mut lines = Vec::new();
        for line in log.split(|byte| *byte == b'\n') {
            let mut message = line.strip_prefix(b"server   ").map(<[u8]>::to_vec);
            if format == "json" && !line.is_empty() {
                let value: Value = serde_json::from_slice(line).unwrap();
                let text = value["message"].as_str().unwrap().as_bytes().to_vec();
                message = (value["service"] == "server").then_some(text);
            }
            lines.extend(message);
        }
        let bytes: &[u8] = if format == "json" {
            "bytes \u{fffd}\0".as_bytes()
        } else {
            b"bytes \xff\0"
        };
        assert_eq!(lines[0], b"carriage", "{format}");
        assert_eq!(lines[1], bytes, "{format}");
        assert_eq!(lines[2], [b'y'; 65536], "{format}");
        assert_eq!(lines.last().unwrap(), b"no end", "{format}");
        let long = &lines[3..lines.len() - 1];
        assert_eq!(long.len(), 3, "{format}: cut at about 1 MiB");
        assert!(long.concat().iter().all(|byte| *byte == b'z'), "{format}");
        assert_eq!(long.concat().len(), 3_000_000, "{format}");
    }
}

#[test]
fn lines_of_services_and_own_lines_have_one_schema() {
    let mut tap = Tap::launch(
        "echo '[x WARN y] z'; env",
        &[("SCCACHE_LOG_FORMAT", "json")],
    );
    tap.read();
    tap.wait_state("server", "ready");
    let gateway = tap.wait_state("gateway", "ready");
    tap.kill(&gateway["pid"]);
    tap.wait_log("gateway exited");
    let log = String::from_utf8(tap.end()).unwrap();
    let mut seen = BTreeSet::new();
    for line in log.lines() {
        let value: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        let keys: Vec<&String> = value.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["level", "message", "service", "ts"], "{line}");
        assert!(
            value["level"].is_string() || value["level"].is_null(),
            "{line}"
        );
        humantime::parse_rfc3339(value["ts"].as_str().unwrap()).unwrap();
        let words = [&value["service"], &value["level"]].map(|it| it.as_str().unwrap_or("-"));
        seen.insert(words.join(" "));
    }
    for known in ["dock info", "dock warn", "server warn", "server -"] {
        assert!(seen.contains(known), "{known:?} is not in {seen:?}");
    }
}

#[test]
fn no_way_of_printing_a_token_shows_it() {
    let body = "t=$SCCACHE_WEBDAV_TOKEN; end=${t#?????????}; start=${t%\"$end\"}\n\
        printf 'ERROR split %s' \"$start\"; sleep 0.1; printf '%s\\n' \"$end\"\n\
        for before in 1048555 1048560 1048570; do head -c $before /dev/zero | tr '\\0' z; printf '%s' \"$t\"\n\
        head -c 2000 /dev/zero | tr '\\0' z; echo; done\n\
        echo \"WARN twice $t$t\"; : > $D/done; printf 'half %s' \"$start\"";
    for format in ["text", "json"] {
        let errors = tempfile::NamedTempFile::new().unwrap();
        let env = [
            ("SCCACHE_LOG_FORMAT", format),
            ("SCCACHE_LOG", "off"),
            ("SCCACHE_ERROR_LOG", errors.path().to_str().unwrap()),
        ];
        let mut tap = Tap::launch(body, &env);
        tap.read();
        tap.wait_file("done");
        let server = tap.wait_state("server", "ready");
        tap.kill(&server["pid"]);
        let crash = eventually("the crash is on record", || {
            let status = tap.status()?;
            let services = status["services"].as_array()?;
            let known = services.iter().find(|it| it["name"] == "server")?;
            known["last_crash"].is_object().then(|| known.to_string())
        });
        tap.wait_log("server exited");
        let log = String::from_utf8(tap.end()).unwrap();
        let errors = std::fs::read_to_string(errors.path()).unwrap();
        for part in ["ERROR split ***", "WARN twice ******"] {
            assert!(log.contains(part) && errors.contains(part), "{part:?}");
        }
        assert!(log.contains("half ***") && crash.contains("half ***"));
        for text in [log, errors, crash] {
            let leaks = ["0123", "6789", "write-tok"];
            assert!(leaks.iter().all(|leak| !text.contains(leak)), "{format}");
        }
    }
}
