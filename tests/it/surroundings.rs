//! Hostile places, made for real in mount namespaces: works there, or says what is wrong before anything starts.

use crate::dock::{eventually, gateway_program, program, supervisor_program};
use crate::harness::{Answer, sccache_bin};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

/// A user that no file knows.
const NOBODY_KNOWN: &str = "12345";

/// `sccache-dock run` behind walls: programs in `/mnt/bin`, state in `/mnt/state`.
struct Walled {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
}

/// Needed to make a mount namespace.
fn is_root() -> bool {
    let root = nix::unistd::getuid().is_root();
    if !root {
        crate::harness::skip("a mount namespace needs root");
    }
    root
}

impl Walled {
    /// Runs as the user 12345 without capabilities, after `walls`, a script in the namespace of its own.
    fn start(walls: &str) -> Walled {
        Walled::start_as(
            &format!("--reuid {NOBODY_KNOWN} --regid {NOBODY_KNOWN} --clear-groups"),
            walls,
        )
    }

    fn start_as(user: &str, walls: &str) -> Walled {
        let script = format!(
            "set -e
            mount -t tmpfs -o mode=755 programs /mnt
            mkdir /mnt/bin /mnt/state
            cp '{}' /mnt/bin/sccache-dock
            cp '{}' /mnt/bin/sccache-dock-run
            cp '{}' /mnt/bin/sccache-dock-gateway
            cp '{}' /mnt/bin/sccache
            {walls}
            cd /
            exec setpriv {user} --no-new-privs --inh-caps=-all env -i PATH=/mnt/bin:/usr/bin:/bin \
                SCCACHE_DIR=/mnt/state SCCACHE_LISTEN=127.0.0.1:0 SCCACHE_LOG=info /mnt/bin/sccache-dock run 2>&1",
            program().display(),
            supervisor_program().display(),
            gateway_program().display(),
            sccache_bin().display()
        );
        let mut child = Command::new("unshare")
            .args(["--mount", "sh", "-c", &script])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let (out, into) = (child.stdout.take().unwrap(), Arc::clone(&lines));
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                into.lock().unwrap().push(line);
            }
        });
        Walled { child, lines }
    }

    fn log(&self) -> String {
        self.lines.lock().unwrap().join("\n")
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap())
    }

    /// The state folder, as it is seen from outside.
    fn state(&self) -> PathBuf {
        format!("/proc/{}/root/mnt/state", self.pid()).into()
    }

    fn ask(&self, command: &[&str]) -> std::process::Output {
        Command::new(program())
            .args(command)
            .env_clear()
            .env("SCCACHE_DIR", self.state())
            .output()
            .unwrap()
    }

    /// Waits until every service is ready, stores a blob and reads it, stops in order.
    fn works(mut self) -> String {
        eventually("healthy behind the walls", || {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("ended: {status}\n{}", self.log());
            }
            (self.ask(&["healthcheck"]).status.code() == Some(0)).then_some(())
        });
        let status = self.ask(&["status", "--json"]).stdout;
        let status: Value = serde_json::from_slice(&status).unwrap();
        let address = status["listen"].as_str().unwrap();
        let token = std::fs::read_to_string(self.state().join("state/auth-token")).unwrap();
        let request = |method: &str, body: &str| {
            let mut stream = TcpStream::connect(address).unwrap();
            write!(
                stream,
                "{method} /some/key HTTP/1.1\r\nAuthorization: Bearer {}\r\nContent-Length: {}\r\n\
                 Connection: close\r\n\r\n{body}",
                token.trim(),
                body.len()
            )
            .unwrap();
            Answer::read(&mut stream)
        };
        assert_eq!(request("PUT", "a blob").code, 201, "{}", self.log());
        assert_eq!(request("GET", "").text(), "a blob");
        kill(self.pid(), Signal::SIGTERM).unwrap();
        let status = eventually("the end", || self.child.try_wait().unwrap());
        assert_eq!(status.code(), Some(0), "{}", self.log());
        self.log()
    }

    /// Waits until it ends with exit code 2, before anything was started; gives what it said.
    fn refuses(mut self) -> String {
        let status = eventually("the refusal", || self.child.try_wait().unwrap());
        let said = eventually("its message", || {
            Some(self.log()).filter(|log| log.contains("hint: "))
        });
        assert_eq!(status.code(), Some(2), "{said}");
        assert!(!said.contains("started"), "{said}");
        said
    }
}

impl Drop for Walled {
    fn drop(&mut self) {
        // Its services see that it is gone, or are in its group.
        let _ = kill(self.pid(), Signal::SIGTERM);
        let _ = eventually("the end", || self.child.try_wait().unwrap());
    }
}

/// Everything is read-only but the state folder, which executes nothing; there is no /tmp; /dev/shm holds 64 KiB.
const NOTHING_BUT_THE_STATE: &str = "
    mount -t tmpfs -o mode=1777,noexec,nosuid,nodev state /mnt/state
    mount -t tmpfs -o mode=000,ro none /tmp
    mount -t tmpfs -o size=64k,noexec none /dev/shm
    mount -t tmpfs -o ro none /run
    mount -t tmpfs -o ro none /var/tmp
    mount -o remount,ro,bind /mnt
    mount -o remount,ro,bind /";

#[test]
fn any_user_needs_nothing_but_a_state_folder_that_executes_nothing() {
    if is_root() {
        // Owned by root with mode 1777, as an emptyDir of Kubernetes is.
        let log = Walled::start(NOTHING_BUT_THE_STATE).works();
        assert!(!log.contains(" WARN "), "{log}");
    }
}

#[test]
fn root_without_capabilities_needs_no_more() {
    if is_root() {
        let user = "--bounding-set=-all";
        Walled::start_as(user, NOTHING_BUT_THE_STATE).works();
    }
}

#[test]
fn sixty_four_descriptors_are_enough() {
    if is_root() {
        let walled = Walled::start("chmod 1777 /mnt/state\nulimit -n 64");
        let address = eventually("its address", || {
            let status: Value =
                serde_json::from_slice(&walled.ask(&["status", "--json"]).stdout).ok()?;
            Some(status["listen"].as_str()?.to_owned())
        });
        let crowd: Vec<TcpStream> = (0..100)
            .map(|_| TcpStream::connect(&address).unwrap())
            .collect();
        drop(crowd);
        let log = walled.works();
        assert!(!log.contains("exited after"), "{log}");
    }
}

#[test]
fn fewer_descriptors_are_refused_with_the_mend_or_raised() {
    if is_root() {
        let said = Walled::start("chmod 1777 /mnt/state\nulimit -n 32").refuses();
        assert!(said.contains("cannot work with 32 open files"), "{said}");
        assert!(said.contains("--ulimit nofile"), "{said}");
        Walled::start("chmod 1777 /mnt/state\nulimit -S -n 32").works();
    }
}

#[test]
fn read_only_state_folder_is_refused_with_the_hint() {
    if is_root() {
        let walls = "mount -t tmpfs -o ro,mode=1777 state /mnt/state";
        let said = Walled::start(walls).refuses();
        assert!(
            said.contains("\"/mnt/state") && said.contains("-v "),
            "{said}"
        );
    }
}

#[test]
fn state_folder_of_another_user_is_refused_with_its_owner() {
    if is_root() {
        let said = Walled::start("chown 7:7 /mnt/state").refuses();
        assert!(said.contains("belongs to 7:7"), "{said}");
        assert!(said.contains("--user 7:7"), "{said}");
    }
}

#[test]
fn program_that_may_not_be_executed_is_refused_by_name() {
    if is_root() {
        let walls = "chmod 1777 /mnt/state\nchmod 644 /mnt/bin/sccache";
        let said = Walled::start(walls).refuses();
        assert!(said.contains("cannot find \"sccache\""), "{said}");
        assert!(said.contains("SCCACHE_BINARY"), "{said}");
    }
}

#[test]
fn full_state_folder_is_refused_with_the_hint() {
    if is_root() {
        let walls = "mount -t tmpfs -o size=64k,mode=1777 state /mnt/state
            head -c 65536 /dev/zero > /mnt/state/filler";
        let said = Walled::start(walls).refuses();
        assert!(said.contains("No space left on device"), "{said}");
        assert!(said.contains("free some space"), "{said}");
    }
}

#[test]
fn sockets_belong_to_the_owner_of_the_folder_and_have_their_modes() {
    use std::os::unix::fs::MetadataExt;
    if is_root() {
        let walled = Walled::start_as("--reuid 0", "chown 12345:12345 /mnt/state");
        let run = walled.state().join("run");
        eventually("healthy", || {
            (walled.ask(&["healthcheck"]).status.code() == Some(0)).then_some(())
        });
        for (name, mode) in [
            ("sccache.sock", 0o666),
            ("control.sock", 0o600),
            ("notify.sock", 0o600),
        ] {
            let found = std::fs::symlink_metadata(run.join(name)).unwrap();
            let is = (found.uid(), found.gid(), found.mode() & 0o7777);
            assert_eq!(is, (12345, 12345, mode), "{name}");
        }
        walled.works();
    }
}
