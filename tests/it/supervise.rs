//! The supervisor with real services: the real sccache, our gateway, real signals.

use crate::dock::{Dock, eventually, is_alive, program, supervisor_program};
use crate::harness::{now, sccache_bin};
use nix::sys::signal::{Signal, kill};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// A program that runs `body` (shell) and then becomes the real sccache.
pub(crate) fn wrapped_sccache(dir: &Path, body: &str) -> String {
    let path = dir.join("sccache-wrapped");
    std::fs::write(
        &path,
        format!(
            "#!/bin/sh\n{body}\nexec '{}' \"$@\"\n",
            sccache_bin().display()
        ),
    )
    .unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path.display().to_string()
}

/// Settings, a part of the message and a part of its hint.
type Refusal<'a> = (&'a [(&'a str, &'a str)], &'a str, &'a str);

/// Runs `sccache-dock run` with settings that must be refused; gives the exit code and standard error.
fn refused(env: &[(&str, &str)]) -> (Option<i32>, String) {
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(program())
        .arg("run")
        .env_clear()
        .env("PATH", std::env::var("PATH").unwrap())
        .env("SCCACHE_DIR", dir.path())
        .env("SCCACHE_LISTEN", "127.0.0.1:0")
        .env("SCCACHE_BINARY", sccache_bin())
        .envs(env.iter().copied())
        .output()
        .unwrap();
    (
        output.status.code(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

#[test]
fn programs_without_those_beside_them_say_so() {
    let dir = tempfile::tempdir().unwrap();
    let here = |name: &str| dir.path().join(name);
    let run = || {
        let output = Command::new(here("sccache-dock"))
            .arg("run")
            .env_clear()
            .env("PATH", std::env::var("PATH").unwrap())
            .env("SCCACHE_DIR", here("state"))
            .env("SCCACHE_LISTEN", "127.0.0.1:0")
            .env("SCCACHE_BINARY", sccache_bin())
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{said}");
        said
    };
    let mut installed = [program(), supervisor_program()].into_iter();
    for missing in ["sccache-dock-run", "sccache-dock-gateway"] {
        let next = installed.next().unwrap();
        let copy = here(next.file_name().unwrap().to_str().unwrap());
        if std::fs::hard_link(&next, &copy).is_err() {
            std::fs::copy(&next, &copy).unwrap();
        }
        let said = run();
        assert!(
            said.contains(&format!("\"{}\"", here(missing).display()))
                && said.contains("hint: ")
                && said.contains("must be in one folder"),
            "{said}"
        );
    }
}

#[test]
fn both_services_become_ready_and_status_says_so() {
    let dock = Dock::start(&[]);
    let table = dock.command(&["status"]);
    let text = String::from_utf8_lossy(&table.stdout).into_owned();
    assert_eq!(table.status.code(), Some(0), "{text}");
    for part in ["gateway", "server", "ready", "NAMESPACE", "of 10.0 GiB"] {
        assert!(text.contains(part), "{part:?} is missing in:\n{text}");
    }
    let health = dock.command(&["healthcheck"]);
    assert_eq!(
        health.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&health.stdout)
    );
}

#[test]
fn killed_service_comes_back_counted_and_leaves_no_zombie() {
    let dock = Dock::start(&[]);
    for name in ["gateway", "server"] {
        let before = dock.pid_of(name);
        kill(before, Signal::SIGKILL).unwrap();
        let after = eventually("the service is ready again", || {
            let service = dock.service(name);
            (service["state"] == "ready" && service["restarts"] == 1).then_some(service)
        });
        assert_ne!(
            after["pid"].as_i64(),
            Some(i64::from(before.as_raw())),
            "{name}"
        );
        assert_eq!(after["last_exit"], "signal 9", "{name}");
    }
    assert!(
        dock.children().iter().all(|(_, state)| *state != 'Z'),
        "{:?}",
        dock.children()
    );
    let other = dock.service("server");
    assert_eq!(
        other["restarts"], 1,
        "the gateway's death left the server alone"
    );
}

#[test]
fn term_stops_in_order_within_the_grace() {
    let mut dock = Dock::start(&[]);
    let pids = [dock.pid_of("gateway"), dock.pid_of("server")];
    dock.signal(Signal::SIGTERM);
    let (status, took) = dock.wait_end();
    assert_eq!(status.code(), Some(0), "{}", dock.log());
    assert!(took < Duration::from_secs(8), "{took:?}");
    assert!(
        pids.iter().all(|pid| !is_alive(*pid)),
        "a service is still there"
    );
    let log = dock.log();
    let at = |part: &str| {
        log.find(part)
            .unwrap_or_else(|| panic!("{part:?} is missing in:\n{log}"))
    };
    assert!(
        at("server exited") < at("gateway exited"),
        "dependents stop first:\n{log}"
    );
}

#[test]
fn frozen_service_is_killed_after_the_grace() {
    let mut dock = Dock::start(&[("SCCACHE_STOP_GRACE", "1s")]);
    let server = dock.pid_of("server");
    kill(server, Signal::SIGSTOP).unwrap();
    dock.signal(Signal::SIGTERM);
    let (status, took) = dock.wait_end();
    assert_eq!(status.code(), Some(0));
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert!(!is_alive(server));
    assert!(
        dock.log().contains("server did not stop in time: killed"),
        "{}",
        dock.log()
    );
}

#[test]
fn second_term_kills_at_once() {
    let mut dock = Dock::start(&[("SCCACHE_STOP_GRACE", "60s")]);
    kill(dock.pid_of("server"), Signal::SIGSTOP).unwrap();
    dock.signal(Signal::SIGTERM);
    dock.wait_log("stopping");
    dock.signal(Signal::SIGTERM);
    let (status, took) = dock.wait_end();
    assert_eq!(status.code(), Some(0));
    assert!(took < Duration::from_secs(10), "{took:?}");
}

#[test]
fn term_during_start_ends_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let slow = wrapped_sccache(dir.path(), "sleep 20");
    let mut dock = Dock::launch(&[("SCCACHE_BINARY", &slow), ("SCCACHE_STOP_GRACE", "2s")]);
    dock.wait_log("server started");
    dock.signal(Signal::SIGTERM);
    let (status, _) = dock.wait_end();
    assert_eq!(status.code(), Some(0), "{}", dock.log());
}

#[test]
fn orphans_of_a_service_are_reaped() {
    let dir = tempfile::tempdir().unwrap();
    let program = wrapped_sccache(dir.path(), "(setsid sleep 0.3 &) ; (setsid sleep 0.4 &)");
    let dock = Dock::start(&[("SCCACHE_BINARY", &program)]);
    eventually("two orphans are reaped", || {
        (dock.status()?["orphans_reaped"].as_u64()? >= 2).then_some(())
    });
    assert!(
        dock.children().iter().all(|(_, state)| *state != 'Z'),
        "{:?}",
        dock.children()
    );
}

#[test]
fn service_that_never_starts_ends_the_run_with_its_last_lines() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("broken");
    std::fs::write(&path, "#!/bin/sh\necho 'no such luck'\nexit 7\n").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut dock = Dock::launch(&[("SCCACHE_BINARY", path.to_str().unwrap())]);
    let (status, _) = dock.wait_end();
    assert_eq!(status.code(), Some(1));
    let log = dock.log();
    assert_eq!(log.matches("no such luck").count(), 5, "five tries:\n{log}");
    assert!(log.contains("server cannot run: exit code 7"), "{log}");
}

#[test]
fn last_line_without_newline_is_printed() {
    let dir = tempfile::tempdir().unwrap();
    let program = wrapped_sccache(dir.path(), "printf 'half a line' >&2");
    let dock = Dock::start(&[("SCCACHE_BINARY", &program), ("SCCACHE_LOG", "off")]);
    kill(dock.pid_of("server"), Signal::SIGKILL).unwrap();
    let line = dock.wait_log("half a line");
    assert!(line.starts_with("server "), "{line:?}");
}

#[test]
fn no_token_ever_reaches_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let program = wrapped_sccache(
        dir.path(),
        "env; printf 'auth '; sleep 0.1; env | grep TOKEN",
    );
    let env = [
        ("SCCACHE_BINARY", program.as_str()),
        ("SCCACHE_AUTH_TOKEN", "write-token-0123456789"),
        ("SCCACHE_READ_TOKEN", "read-token-0123456789"),
        ("SCCACHE_LOG", "trace"),
    ];
    let dock = Dock::start(&env);
    dock.wait_log("SCCACHE_WEBDAV_TOKEN=***");
    let log = dock.log();
    assert!(
        !log.contains("write-token-0123456789") && !log.contains("read-token-0123456789"),
        "{log}"
    );
    assert!(
        !log.contains(" MODE="),
        "the environment of services is scrubbed"
    );
}

#[test]
fn json_log_has_one_object_a_line() {
    let dock = Dock::start(&[("SCCACHE_LOG_FORMAT", "json")]);
    dock.wait_log("server ready");
    for line in dock.log().lines() {
        let value: serde_json::Value =
            serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        assert!(
            value["service"].is_string() && value["ts"].is_string() && value["message"].is_string(),
            "{line}"
        );
    }
}

#[test]
fn warnings_go_to_the_error_log_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("errors.log");
    let dock = Dock::start(&[
        ("SCCACHE_ERROR_LOG", path.to_str().unwrap()),
        ("SCCACHE_DIST_PREFIX", "tcp://h:1"),
    ]);
    dock.wait_log("SCCACHE_DIST_PREFIX");
    eventually("the warning is in the file", || {
        std::fs::read_to_string(&path)
            .ok()?
            .contains("SCCACHE_DIST_PREFIX")
            .then_some(())
    });
}

#[test]
fn restart_on_request_is_counted_and_unknown_services_are_named() {
    let dock = Dock::start(&[]);
    assert_eq!(dock.command(&["restart", "server"]).status.code(), Some(0));
    eventually("the server is back", || {
        let service = dock.service("server");
        (service["state"] == "ready" && service["restarts"] == 1).then_some(())
    });
    let output = dock.command(&["restart", "sever"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&output.stderr)
            .contains("no service \"sever\"; there are gateway, server")
    );
}

#[test]
fn token_and_folder_survive_a_restart() {
    let mut dock = Dock::start(&[]);
    let token = dock.token();
    dock.signal(Signal::SIGTERM);
    dock.wait_end();
    let dir = std::mem::replace(&mut dock.dir, tempfile::tempdir().unwrap());
    let mut again = Dock::launch_in(dir, &[]);
    again.wait_ready();
    assert_eq!(again.token(), token);
}

#[test]
fn server_of_a_killed_supervisor_is_ended_by_the_next_one() {
    let mut dock = Dock::start(&[]);
    let (gateway, server) = (dock.pid_of("gateway"), dock.pid_of("server"));
    dock.signal(Signal::SIGKILL);
    dock.wait_end();
    eventually("the gateway sees that its supervisor is gone", || {
        (!is_alive(gateway)).then_some(())
    });
    assert!(is_alive(server), "sccache does not notice");
    let dir = std::mem::replace(&mut dock.dir, tempfile::tempdir().unwrap());
    let mut again = Dock::launch_in(dir, &[]);
    again.wait_ready();
    eventually("the old server is gone", || {
        (!is_alive(server)).then_some(())
    });
}

#[test]
fn closed_standard_output_does_not_end_the_services() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = Command::new("sh")
        .arg("-c")
        .arg("\"$0\" run >&-")
        .arg(program())
        .env_clear()
        .env("PATH", std::env::var("PATH").unwrap())
        .env("SCCACHE_DIR", dir.path())
        .env("SCCACHE_LISTEN", "127.0.0.1:0")
        .env("SCCACHE_BINARY", sccache_bin())
        .spawn()
        .unwrap();
    let ask = |args: &[&str]| {
        Command::new(program())
            .args(args)
            .env("SCCACHE_DIR", dir.path())
            .output()
            .unwrap()
    };
    eventually("healthy", || {
        (ask(&["healthcheck"]).status.code() == Some(0)).then_some(())
    });
    let pid = ask(&["status", "--json"]);
    assert!(!pid.stdout.is_empty());
    // sh may have replaced itself by the program or may be its parent: stop both.
    let _ = Command::new("pkill")
        .args(["-TERM", "-P", &child.id().to_string()])
        .status();
    let _ = kill(
        nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap()),
        Signal::SIGTERM,
    );
    eventually("it ends", || child.try_wait().unwrap());
}

#[test]
fn reader_that_stands_still_blocks_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let (read_end, write_end) = std::io::pipe().unwrap();
    let noisy = wrapped_sccache(
        dir.path(),
        "(while :; do head -c 1000000 /dev/zero | tr '\\0' 'x'; echo; done) &",
    );
    let mut child = Command::new(program())
        .arg("run")
        .env_clear()
        .env("PATH", std::env::var("PATH").unwrap())
        .env("SCCACHE_DIR", dir.path())
        .env("SCCACHE_LISTEN", "127.0.0.1:0")
        .env("SCCACHE_BINARY", noisy)
        .env("SCCACHE_LOG_STALL", "300ms")
        .env("SCCACHE_STOP_GRACE", "2s")
        .stdout(write_end)
        .spawn()
        .unwrap();
    let ask = |args: &[&str]| {
        Command::new(program())
            .args(args)
            .env("SCCACHE_DIR", dir.path())
            .output()
            .unwrap()
    };
    eventually("healthy though nobody reads the log", || {
        (ask(&["healthcheck"]).status.code() == Some(0)).then_some(())
    });
    let begin = now();
    kill(
        nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap()),
        Signal::SIGTERM,
    )
    .unwrap();
    eventually("it ends", || child.try_wait().unwrap());
    assert!(now() - begin < Duration::from_secs(8));
    drop(read_end);
}

#[test]
fn each_wrong_setting_gives_one_clear_message_and_exit_code_2() {
    let busy = TcpListener::bind("127.0.0.1:0").unwrap();
    let busy_port = busy.local_addr().unwrap().to_string();
    let cases: &[Refusal<'_>] = &[
        (
            &[("MODE", "persistant")],
            "\"persistant\" is not a mode",
            "did you mean \"persistent\"?",
        ),
        (
            &[("SCCACHE_CACHE_SIZE", "lots")],
            "SCCACHE_CACHE_SIZE=lots",
            "write it as 10G",
        ),
        (
            &[("SCCACHE_DIR", "/proc/nowhere")],
            "cannot create the folder \"/proc/nowhere\"",
            "hint: ",
        ),
        (
            &[("SCCACHE_LISTEN", &busy_port)],
            "Address already in use",
            "sccache --stop-server",
        ),
        (
            &[("SCCACHE_BINARY", "/no/such/sccache")],
            "cannot find \"/no/such/sccache\"",
            "SCCACHE_BINARY",
        ),
        (
            &[
                ("MODE", "persistent"),
                ("SCCACHE_DIR", "/dev/shm/sccache-dock-test"),
            ],
            "MODE=persistent needs a mount",
            "-v",
        ),
        (
            &[
                ("MODE", "builder"),
                ("SCCACHE_SERVER_TOKEN", "token-of-the-builders"),
            ],
            "SCCACHE_SCHEDULER_URL: is required in MODE=builder",
            "http://host:10600",
        ),
    ];
    for (env, message, hint) in cases {
        let (code, text) = refused(env);
        assert_eq!(code, Some(2), "{env:?}: {text}");
        assert!(
            text.contains(message) && text.contains(hint),
            "{env:?}:\n{text}"
        );
        assert_eq!(text.matches("error: ").count(), 1, "one message:\n{text}");
    }
    let _ = std::fs::remove_dir("/dev/shm/sccache-dock-test");
}

#[test]
fn second_supervisor_on_one_folder_is_refused() {
    let dock = Dock::start(&[]);
    let (code, text) = refused(&[("SCCACHE_DIR", dock.dir.path().to_str().unwrap())]);
    assert_eq!(code, Some(2));
    assert!(
        text.contains("another sccache-dock uses this folder"),
        "{text}"
    );
    assert_eq!(
        dock.command(&["healthcheck"]).status.code(),
        Some(0),
        "the first one is not disturbed"
    );
}

#[test]
fn unknown_variable_is_a_warning_with_a_suggestion() {
    let dock = Dock::start(&[("SCCACHE_CACHESIZE", "1G")]);
    let lines = dock.wait_log("SCCACHE_CACHESIZE: is not a setting");
    assert!(lines.contains("WARN"), "{lines}");
    dock.wait_log("did you mean SCCACHE_CACHE_SIZE?");
}

#[test]
fn stopped_service_stays_stopped_until_it_is_restarted() {
    let dock = Dock::start(&[]);
    let state = || dock.service("server")["state"].clone();
    assert_eq!(dock.command(&["stop", "server"]).status.code(), Some(0));
    eventually("it is stopped", || (state() == "stopped").then_some(()));
    assert_eq!(dock.command(&["healthcheck"]).status.code(), Some(1));
    assert_eq!(dock.command(&["restart", "server"]).status.code(), Some(0));
    eventually("it is back", || (state() == "ready").then_some(()));
}

#[test]
fn clients_of_a_stopped_gateway_are_refused_and_find_it_again_at_the_same_place() {
    use std::net::TcpStream;
    use std::os::unix::net::UnixStream;
    let dock = Dock::start(&[]);
    let address = dock.address();
    let socket = dock.dir.path().join("run/sccache.sock");
    assert!(TcpStream::connect(address).is_ok() && UnixStream::connect(&socket).is_ok());
    assert_eq!(dock.command(&["stop", "gateway"]).status.code(), Some(0));
    eventually("clients are refused", || {
        (TcpStream::connect(address).is_err() && UnixStream::connect(&socket).is_err())
            .then_some(())
    });
    assert_eq!(dock.command(&["restart", "gateway"]).status.code(), Some(0));
    eventually("the gateway is back", || {
        (dock.command(&["healthcheck"]).status.code() == Some(0)).then_some(())
    });
    assert!(TcpStream::connect(address).is_ok() && UnixStream::connect(&socket).is_ok());
}

#[test]
fn death_is_recorded_with_cause_and_last_lines() {
    let dir = tempfile::tempdir().unwrap();
    let program = wrapped_sccache(dir.path(), "echo 'famous last words' >&2");
    let dock = Dock::start(&[("SCCACHE_BINARY", &program), ("SCCACHE_LOG", "off")]);
    kill(dock.pid_of("server"), Signal::SIGKILL).unwrap();
    let crash = eventually("the record", || {
        let crash = dock.service("server")["last_crash"].clone();
        crash.is_object().then_some(crash)
    });
    assert_eq!(crash["exit"], "signal 9");
    assert_eq!(crash["last_lines"][0], "famous last words");
    assert!(
        crash["cause"]
            .as_str()
            .is_some_and(|cause| cause.contains("killed from outside")),
        "{crash}"
    );
    assert!(
        crash["lived_seconds"]
            .as_f64()
            .is_some_and(|lived| lived > 0.0)
    );
}

#[test]
fn reload_restarts_only_what_changed_and_keeps_serving_on_a_mistake() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("dock.toml");
    std::fs::write(&file, "cache_size = \"2G\"\n").unwrap();
    let dock = Dock::start(&[("SCCACHE_DOCK_CONFIG", file.to_str().unwrap())]);
    let budget = || dock.status().unwrap()["cache"]["store"]["budget_bytes"].as_u64();
    assert_eq!(budget(), Some(2 << 30));

    std::fs::write(&file, "cache_size = \"3G\"\n").unwrap();
    dock.signal(Signal::SIGHUP);
    eventually("the new budget", || {
        (budget() == Some(3 << 30)).then_some(())
    });
    assert_eq!(dock.service("gateway")["restarts"], 1);
    assert_eq!(
        dock.service("server")["restarts"],
        0,
        "nothing of it changed"
    );

    std::fs::write(&file, "cache_size = \"lots\"\n").unwrap();
    // The signal first: nothing answers it but the log, and the file is not to change under it.
    dock.signal(Signal::SIGHUP);
    dock.wait_log("cannot reload, keeping the previous settings");
    assert_eq!(dock.command(&["reload"]).status.code(), Some(1));

    std::fs::write(&file, "cache_size = \"3G\"\nmode = \"persistent\"\n").unwrap();
    dock.signal(Signal::SIGHUP);
    dock.wait_log("require a restart of the container");
    std::fs::write(&file, "cache_size = \"3G\"\n").unwrap();
    assert_eq!(dock.command(&["reload"]).status.code(), Some(0));
    dock.wait_log("settings reloaded: nothing changed");
    assert_eq!(dock.service("gateway")["restarts"], 1);
}

#[test]
fn usr1_prints_the_status_to_the_log() {
    let dock = Dock::start(&[]);
    dock.signal(Signal::SIGUSR1);
    dock.wait_log("server is ready, 0 restarts");
}

#[test]
fn garbage_on_the_control_socket_is_answered_and_disturbs_nobody() {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    let dock = Dock::start(&[]);
    let socket = dock.dir.path().join("run/control.sock");
    let silent: Vec<UnixStream> = (0..8)
        .map(|_| UnixStream::connect(&socket).unwrap())
        .collect();
    for garbage in [&b"\0\xff\n"[..], b"status now\n", &[b'x'; 4096]] {
        let mut stream = UnixStream::connect(&socket).unwrap();
        let _ = stream.write_all(garbage);
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        assert!(
            answer.is_empty() || answer.contains("cannot understand"),
            "{answer:?}"
        );
    }
    assert_eq!(dock.command(&["healthcheck"]).status.code(), Some(0));
    drop(silent);
}
