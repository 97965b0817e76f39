//! Files that settings name and that do not answer: a FIFO in the place of a secret, a file system that stands still.
//! Neither a start nor a reload waits for them, and PID 1 goes on with its work.

use crate::dock::{Dock, eventually, program};
use crate::ends::orphan;
use crate::faults::Wrapper;
use crate::harness::{sccache_bin, skip, wait_for};
use crate::policies::{Disk, Frozen};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};
use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const TOKEN: &str = "a-token-of-the-tests-of-reloads";

/// Puts a FIFO in the place of a file.
fn clog(path: &Path) {
    let _ = fs::remove_file(path);
    mkfifo(path, Mode::S_IRWXU).unwrap();
}

/// Each setting that names a file, and the name of one for it.
const NAMING: [(&str, &str); 4] = [
    ("SCCACHE_DOCK_CONFIG", "dock.toml"),
    ("SCCACHE_READ_TOKEN_FILE", "secret"),
    ("SCCACHE_TOKENS_FILE", "tokens.toml"),
    ("SCCACHE_TLS_CERT", "cert.pem"),
];

#[test]
fn start_refuses_a_fifo_in_the_place_of_any_file() {
    for (variable, name) in NAMING {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(name);
        clog(&file);
        let output = Command::new(program())
            .arg("run")
            .env_clear()
            .env("PATH", std::env::var("PATH").unwrap())
            .env("SCCACHE_DIR", dir.path().join("state"))
            .env("SCCACHE_LISTEN", "127.0.0.1:0")
            .env("SCCACHE_BINARY", sccache_bin())
            .env(
                "SCCACHE_TLS_KEY",
                if name == "cert.pem" {
                    &*file
                } else {
                    Path::new("")
                },
            )
            .env(variable, &file)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{variable}: {said}");
        assert!(said.contains("a FIFO"), "{variable}: {said}");
    }
}

#[test]
fn reload_refuses_a_fifo_in_the_place_of_any_file_and_all_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let whole = || {
        let _ = ["dock.toml", "secret", "tokens.toml"].map(|name| fs::remove_file(at(name)));
        fs::write(at("dock.toml"), "cache_size = \"1G\"\n").unwrap();
        fs::write(at("secret"), TOKEN).unwrap();
        fs::write(at("tokens.toml"), "").unwrap();
    };
    whole();
    let paths = NAMING.map(|(_, name)| at(name).display().to_string());
    let named: Vec<(&str, &str)> = (0..3).map(|i| (NAMING[i].0, &*paths[i])).collect();
    let dock = Dock::start(&named);
    let generated = dock.dir.path().join("state/auth-token");
    let ours = dock.dir.path().join("state/gateway.toml.new");
    let token = fs::read_to_string(&generated).unwrap();
    let clogged = [
        (at("dock.toml"), "dock.toml"),
        (at("secret"), "secret"),
        (at("tokens.toml"), "tokens.toml"),
        (generated.clone(), "auth-token"),
        // Written beside the file that it is to replace.
        (ours.clone(), "gateway.toml"),
    ];
    for (file, name) in &clogged {
        clog(file);
        let reload = dock.command(&["reload"]);
        let text = String::from_utf8_lossy(&reload.stderr).into_owned();
        assert_eq!(reload.status.code(), Some(1), "{name}: {text}");
        assert!(
            text.contains("cannot reload, keeping the previous settings"),
            "{text}"
        );
        assert!(text.contains(name), "{text}");
        fs::remove_file(file).unwrap();
        fs::write(&generated, &token).unwrap();
        whole();
    }
    let reload = dock.command(&["reload"]);
    assert_eq!(reload.status.code(), Some(0), "{reload:?}");
    assert_eq!(dock.service("gateway")["restarts"], 0, "nothing changed");
}

#[test]
fn reload_on_a_file_system_that_stands_still_is_given_up_and_all_goes_on() {
    let disk = match Disk::new(64 << 20) {
        Ok(disk) => disk,
        Err(cause) => return skip(&format!("no disk of its own: {cause}")),
    };
    let wrapper =
        Wrapper::new("[ -e \"$MARKER\" ] || { : > \"$MARKER\"; (setsid sleep 1000 &) ; }");
    let sockets = tempfile::tempdir().unwrap();
    let dock = wrapper.start(&[
        ("SCCACHE_DIR", disk.mount.join("dock").to_str().unwrap()),
        ("SCCACHE_RUN_DIR", sockets.path().to_str().unwrap()),
    ]);
    let orphan = orphan(&dock);
    let reaped = || dock.status()?["orphans_reaped"].as_u64();
    let before = reaped().unwrap();
    let frozen = Frozen::new(&disk);
    std::thread::scope(|scope| {
        let reload = scope.spawn(|| dock.command(&["reload"]));
        kill(orphan, Signal::SIGKILL).unwrap();
        eventually("the orphan is reaped", || {
            (reaped()? > before).then_some(())
        });
        assert!(!reload.is_finished(), "the file system stands still");
        let reload = reload.join().unwrap();
        let text = String::from_utf8_lossy(&reload.stderr).into_owned();
        assert_eq!(reload.status.code(), Some(1), "{text}");
        assert!(text.contains("takes more than 10 s"), "{text}");
    });
    // Another does not wait as long as that.
    let again = dock.command(&["reload"]);
    let text = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(
        text.contains("still waiting for the files of the services"),
        "{text}"
    );
    drop(frozen);
    eventually("it works again", || {
        let reload = dock.command(&["reload"]);
        (reload.status.code() == Some(0)).then_some(())
    });
}

#[test]
fn listener_that_cannot_be_opened_again_says_why() {
    let dock = Dock::start(&[]);
    let (address, socket) = (dock.address(), dock.dir.path().join("run/sccache.sock"));
    eventually("a long pause", || {
        if let Some(pid) = dock.service("gateway")["pid"].as_i64() {
            let _ = kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL);
        }
        TcpStream::connect(address).is_err().then_some(())
    });
    fs::remove_file(&socket).unwrap();
    fs::write(&socket, "in the way").unwrap();
    let crash = eventually("the record", || {
        let crash = dock.service("gateway")["last_crash"].clone();
        let exit = crash["exit"].as_str()?.to_owned();
        exit.starts_with("cannot listen: ").then_some(crash)
    });
    let cause = crash["cause"].as_str().unwrap();
    assert!(cause.contains("in the place of a socket"), "{crash}");
    fs::remove_file(&socket).unwrap();
    wait_for("the gateway is back", Duration::from_secs(45), || {
        (dock.command(&["healthcheck"]).status.code() == Some(0)).then_some(())
    });
}
