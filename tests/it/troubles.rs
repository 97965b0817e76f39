//! A client in trouble of its own: what it lacks costs neither its build nor its team.

use crate::dock::{Dock, eventually};
use crate::docker::counts;
use crate::machine::Machine;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Twelve files of C whose objects do not compress, and the rules to compile them.
const SOURCES: &str = "
for i in $(seq 12); do
    { echo 'const char it[] = {'; head -c 150000 /dev/urandom | od -An -v -tu1 | sed 's/  */,/g; s/^,//; s/$/,/'; echo '};'; } > it$i.c
done
";

fn stored(dock: &Dock) -> u64 {
    dock.status().unwrap()["cache"]["totals"]["writes"]
        .as_u64()
        .unwrap()
}

#[test]
fn results_of_a_client_whose_disk_is_full_reach_the_others() {
    let dock = Dock::start(&[]);
    let machine = Machine::new();
    let build = format!(
        "mkdir work && cd work{SOURCES}for i in $(seq 12); do sccache cc -c it$i.c -o it$i.o || exit 1; done"
    );
    let settings = dock.command(&["client-env"]);
    machine.write("settings", std::str::from_utf8(&settings.stdout).unwrap());
    // A home of one MiB, in a mount namespace of its own; its level on disk is there.
    let script = format!(
        "mkdir home && unshare --user --map-root-user --mount sh -ec '
            mount -t tmpfs -o size=1m tmpfs home
            export HOME=$PWD/home
            . ./settings
            {}
            df home | tail -n 1
        '",
        build.replace('\'', r"'\''")
    );
    let outcome = machine.sh(&script);
    assert_eq!(outcome.code, Some(0), "{}", outcome.output);
    eventually("12 of 12 results", || (stored(&dock) == 12).then_some(()));
}

#[test]
fn client_without_a_home_to_write_to_builds_and_shares() {
    let dock = Dock::start(&[]);
    let long = format!("HOME=$PWD/{}; mkdir -p $HOME", "x".repeat(80));
    let cases = ["unset HOME", "HOME=/proc/nowhere", "HOME=", &long];
    for (number, home) in cases.iter().enumerate() {
        let machine = Machine::new();
        let settings = dock.command(&["client-env"]);
        machine.write("settings", std::str::from_utf8(&settings.stdout).unwrap());
        machine.write("it.c", &format!("int it(void) {{ return {number}; }}\n"));
        let before = stored(&dock);
        let outcome = machine.sh(&format!(
            "set -eu; {home}; . ./settings; sccache cc -c it.c -o it.o; sccache --stop-server >/dev/null"
        ));
        assert_eq!(outcome.code, Some(0), "{home}: {}", outcome.output);
        eventually("the result", || (stored(&dock) > before).then_some(()));
    }
}

#[test]
fn temporary_folder_in_which_sccache_cannot_start_is_named() {
    let dock = Dock::start(&[]);
    let machine = Machine::new();
    machine.write("it.c", "int it(void) { return 1; }\n");
    let start = |folder: &str| {
        let script = format!(
            "export TMPDIR={folder}; mkdir -p \"$TMPDIR\" 2>/dev/null; \
             sccache cc -c it.c -o it.o >/dev/null 2>&1; echo code=$?; \
             sccache-dock doctor --endpoint \"$SCCACHE_WEBDAV_ENDPOINT\"; sccache --stop-server >/dev/null 2>&1 || true"
        );
        machine.with_env(&dock, "", &script).output
    };
    let short = start("$HOME/t");
    assert!(short.contains("code=0"), "{short}");
    assert!(!short.contains("TMPDIR"), "{short}");
    for folder in ["/tmp/$(printf %0100d 7)", "/proc/nowhere"] {
        let said = start(folder);
        assert!(!said.contains("code=0"), "{said}");
        assert!(said.contains("FAIL  TMPDIR"), "{said}");
    }
}

#[test]
fn small_temporary_folder_is_named() {
    let dock = Dock::start(&[]);
    let machine = Machine::new();
    // A temporary folder of one MiB, in a mount namespace of its own.
    let script = "mkdir t; unshare --user --map-root-user --mount sh -ec '
        mount -t tmpfs -o size=1m tmpfs t
        export TMPDIR=$PWD/t
        sccache-dock doctor --endpoint \"$SCCACHE_WEBDAV_ENDPOINT\" || true'";
    let said = machine.with_env(&dock, "", script).output;
    let told = said.lines().find(|line| line.contains("TMPDIR"));
    let told = told.unwrap_or_else(|| panic!("{said}"));
    assert!(
        told.starts_with("warn") && told.contains("1.0 MiB left"),
        "{said}"
    );
}

/// A proxy that tells whether it was asked for a whole URL; it forwards to the gateway at `target`, or breaks everything.
fn proxy(target: Option<SocketAddr>) -> (String, Arc<AtomicBool>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let asked = Arc::new(AtomicBool::new(false));
    let tell = Arc::clone(&asked);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            tell.store(true, Ordering::SeqCst);
            let Some(target) = target else {
                // What is asked is read, or the kernel resets the connection before it is closed.
                let patience = Some(Duration::from_secs(5));
                stream.set_read_timeout(patience).unwrap();
                let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
                let _ = lines.find(String::is_empty);
                continue;
            };
            let mut line = Vec::new();
            let mut byte = [0];
            while stream.read(&mut byte).is_ok_and(|read| read == 1) && byte != *b"\n" {
                line.push(byte[0]);
            }
            // The path alone: `GET http://HOST:PORT/x HTTP/1.1`.
            let line = String::from_utf8(line).unwrap();
            let line = line.replacen(&format!("http://{target}"), "", 1);
            let mut server = TcpStream::connect(target).unwrap();
            server.write_all(format!("{line}\n").as_bytes()).unwrap();
            let mut back = server.try_clone().unwrap();
            let mut out = stream.try_clone().unwrap();
            std::thread::spawn(move || std::io::copy(&mut stream, &mut server));
            std::thread::spawn(move || std::io::copy(&mut back, &mut out));
        }
    });
    (address, asked)
}

#[test]
fn doctor_names_a_proxy_just_where_sccache_asks_it() {
    let dock = Dock::start(&[]);
    for (name, exceptions) in [
        ("HTTP_PROXY", ""),
        ("HTTP_PROXY", "127.0.0.0/8"),
        ("HTTP_PROXY", "10.0.0.0/8"),
        ("http_proxy", "localhost, 127.0.0.1"),
        ("ALL_PROXY", "*"),
        ("ALL_PROXY", "0.0.0.1"),
        ("HTTPS_PROXY", ""),
        ("HTTP_PROXY= http_proxy", ""),
        ("REQUEST_METHOD=GET HTTP_PROXY", ""),
    ] {
        let (address, asked) = proxy(None);
        let machine = Machine::new();
        machine.write("it.c", "int it(void) { return 1; }\n");
        let set = format!("export {name}={address} NO_PROXY='{exceptions}'\n");
        let compile = "sccache cc -c it.c -o it.o && sccache --stop-server >/dev/null";
        let compiled = machine.with_env(&dock, "--no-disk", &format!("{set}{compile}"));
        assert_eq!(compiled.code, Some(0), "{}", compiled.output);
        let is_asked = asked.load(Ordering::SeqCst);
        let said = machine.with_env(&dock, "--no-disk", &format!("{set}sccache-dock doctor"));
        let said = said.output;
        let is_named = said.contains("through this proxy");
        assert_eq!(is_named, is_asked, "{name} {exceptions:?}: {said}");
        // Nothing passes this proxy.
        assert_eq!(said.contains("nothing is shared"), is_asked, "{said}");
        assert_eq!(said.contains("export NO_PROXY="), is_asked, "{said}");
    }
}

#[test]
fn proxy_that_leads_to_the_cache_is_a_warning() {
    let dock = Dock::start(&[]);
    let (address, asked) = proxy(Some(dock.address()));
    let machine = Machine::new();
    let script = format!("export http_proxy={address}; sccache-dock doctor");
    let said = machine.with_env(&dock, "--no-disk", &script).output;
    assert!(
        said.contains("warn  http_proxy") && !said.contains("FAIL  http_proxy"),
        "{said}"
    );
    assert!(asked.load(Ordering::SeqCst));
}

#[test]
fn own_commands_take_the_proxy_that_sccache_takes() {
    let dock = Dock::start(&[]);
    for (exceptions, is_taken) in [("", true), ("127.0.0.1", false)] {
        let (address, asked) = proxy(None);
        let machine = Machine::new();
        machine.write(".git/HEAD", "");
        let script =
            format!("export ALL_PROXY={address} NO_PROXY={exceptions}; sccache-dock prefetch");
        let said = machine.with_env(&dock, "", &script);
        assert_eq!(asked.load(Ordering::SeqCst), is_taken, "{}", said.output);
        assert_eq!(said.code, Some(0), "{}", said.output);
        let goes_past = said.output.contains("asking it directly");
        assert_eq!(goes_past, is_taken, "{}", said.output);
        let script = format!(
            "export ALL_PROXY={address} https_proxy= NO_PROXY={exceptions} SCCACHE_ID_TOKEN=x; sccache-dock login --oidc"
        );
        let said = machine.with_env(&dock, "", &script);
        let is_refused = said.output.contains("401")
            || said.output.contains("403")
            || said.output.contains("404");
        assert!(is_refused, "{}", said.output);
        let goes_past = said.output.contains("asking it directly");
        assert_eq!(goes_past, is_taken, "{}", said.output);
    }
}

/// What somebody may have left over of another cache, in variables that a file for containers or for a workflow sets to
/// something else, and in sccache's config file.
const LEFT_OVER: &str = "export SCCACHE_CLIENT_SIDE=1 SCCACHE_NO_DAEMON=1 SCCACHE_GHA_ENABLED=true \
     SCCACHE_WEBDAV_RW_MODE=READ_ONLY SCCACHE_LOCAL_RW_MODE=READ_ONLY SCCACHE_BASEDIRS=relative\n\
     mkdir -p $HOME/.config/sccache\n\
     cat >$HOME/.config/sccache/config <<END\nbasedirs = ['/']\nclient_side_mode = true\n\
     [cache.s3]\nbucket = 'b'\nno_credentials = true\n[dist]\nscheduler_url = 'http://127.0.0.1:1'\nEND\n";

#[test]
fn what_is_left_over_of_another_cache_changes_nothing() {
    let dock = Dock::start(&[]);
    let source = "int it(void) { return 42; }\n";
    let ours = Machine::new();
    ours.write("it.c", source);
    let compile = "sccache cc -c it.c -o it.o";
    let plain = ours.with_env(&dock, "--lane webdav", compile);
    assert_eq!(plain.code, Some(0), "{}", plain.output);
    eventually("the object", || (stored(&dock) == 1).then_some(()));
    let hits = || counts(&dock.status().unwrap()).0;
    for arguments in [
        "--format sh",
        "--format docker",
        "--format github",
        "--format github --no-disk",
        "--lane ipc --format sh",
        "--lane ipc --format docker",
    ] {
        let theirs = Machine::new();
        theirs.write("it.c", source);
        let words: Vec<&str> = arguments.split(' ').collect();
        let printed = dock.command(&[&["client-env"], &*words].concat());
        assert!(printed.status.success(), "{printed:?}");
        theirs.write("set", &String::from_utf8(printed.stdout).unwrap());
        let read = match arguments.contains("--format sh") {
            true => "eval \"$(cat set)\"",
            false => "set -a; . ./set; SCCACHE_DIR=$PWD/disk",
        };
        let ask = match arguments.contains("ipc") {
            true => "",
            false => "SCCACHE_SERVER_UDS=$PWD/s; sccache --dist-status | grep Disabled &&",
        };
        // Allowed there, and its own.
        let read = match arguments.contains("--no-disk") {
            true => format!("{read}; unset SCCACHE_BASEDIRS"),
            false => read.to_owned(),
        };
        let before = hits();
        let said = theirs.sh(&format!("{LEFT_OVER}{read}\n{ask} {compile}"));
        assert_eq!(said.code, Some(0), "{arguments}: {}", said.output);
        assert_eq!(hits(), before + 1, "{arguments}: {}", said.output);
    }
}
