//! `at`: checkouts share what they compile, and the command does not notice where it runs.

use crate::dock::{Dock, eventually, program};
use crate::docker::{LONG, PATIENCE, Ran, run};
use crate::harness::{clean, sccache_bin};
use crate::machine::kill_daemons;
use crate::site::{Site, skip};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Paths that no machine has.
const AT: &str = "at /sdit-work --cargo-home /sdit-cargo";
/// The build script of proc-macro2 tries what the compiler can do, and a failure is never cached.
const FAILING_PROBES: u64 = 1;

/// Somebody's machine: a home, a `CARGO_HOME` and a checkout, all at paths of its own.
struct Person {
    home: tempfile::TempDir,
}

impl Person {
    fn new() -> Person {
        let person = Person {
            home: tempfile::tempdir().unwrap(),
        };
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/checkout");
        copy(&fixture, &person.checkout());
        person
    }

    fn checkout(&self) -> PathBuf {
        self.home.path().join("checkout")
    }

    fn cargo_home(&self) -> PathBuf {
        self.home.path().join("cargo")
    }

    /// The downloads that the checkout needs, as if this person had fetched them.
    fn fetch(&self) {
        let (real, lock) = (cargo_home().join("registry"), "Cargo.lock");
        let lock = fs::read_to_string(self.checkout().join(lock)).unwrap();
        let lock: toml::Table = lock.parse().unwrap();
        copy(
            &real.join("index"),
            &self.cargo_home().join("registry/index"),
        );
        for registry in fs::read_dir(real.join("cache"))
            .unwrap()
            .map(Result::unwrap)
        {
            let into = self
                .cargo_home()
                .join("registry/cache")
                .join(registry.file_name());
            fs::create_dir_all(&into).unwrap();
            for package in lock["package"].as_array().unwrap() {
                let part = |name: &str| package[name].as_str().unwrap();
                let file = format!("{}-{}.crate", part("name"), part("version"));
                let _ = fs::copy(registry.path().join(&file), into.join(&file));
            }
        }
    }

    /// A shell in the checkout, with nothing of the test's own environment that matters to a build.
    fn shell(&self, text: &str) -> Command {
        let mut command = clean("sh");
        let rustup = std::env::var("RUSTUP_HOME")
            .unwrap_or_else(|_| std::env::var("HOME").unwrap() + "/.rustup");
        let path = [program(), sccache_bin()].map(|it| it.parent().unwrap().display().to_string());
        command
            .args(["-c", text])
            .current_dir(self.checkout())
            .env("RUSTUP_HOME", rustup)
            .env("HOME", self.home.path())
            // What a killed command leaves goes with the home.
            .env("XDG_RUNTIME_DIR", self.home.path())
            .env("CARGO_HOME", self.cargo_home())
            .env(
                "PATH",
                format!("{}:{}", path.join(":"), std::env::var("PATH").unwrap()),
            )
            .env_remove("SCCACHE_CONF");
        command
    }

    #[track_caller]
    fn sh(&self, text: &str) -> String {
        run(&mut self.shell(text), LONG).ok()
    }

    /// A clean build below `wrapper`, with the settings of `client_env`.
    #[track_caller]
    fn build(&self, dock: &Dock, wrapper: &str) {
        let settings = client_env(dock, "sh");
        let _ = fs::remove_dir_all(self.checkout().join("target"));
        let build = "cargo build --locked --offline --quiet";
        self.sh(&format!("{settings}\n{wrapper} {build}"));
    }
}

impl Drop for Person {
    fn drop(&mut self) {
        kill_daemons(self.home.path());
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    let copied = Command::new("cp").arg("-r").arg(from).arg(to).status();
    assert!(copied.unwrap().success());
}

fn cargo_home() -> PathBuf {
    std::env::var_os("CARGO_HOME").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cargo"),
        PathBuf::from,
    )
}

/// Without a level on the client's disk, so that the cache counts everything.
fn client_env(dock: &Dock, format: &str) -> String {
    let printed = dock.command(&["client-env", "--no-disk", "--format", format]);
    assert!(printed.status.success(), "{printed:?}");
    String::from_utf8(printed.stdout).unwrap()
}

/// Builds, and how many results each had from the cache.
struct Table<'a> {
    dock: &'a Dock,
    counted: (u64, u64),
}

impl<'a> Table<'a> {
    fn new(dock: &'a Dock) -> Table<'a> {
        println!(
            "{:<58} {:>9} {:>5} {:>6}",
            "build", "cacheable", "hits", "share"
        );
        Table {
            dock,
            counted: (0, 0),
        }
    }

    /// Hits and misses of the build that `act` does, but for what can never be cached.
    fn row(&mut self, what: &str, act: impl FnOnce()) -> (u64, u64) {
        act();
        let status = self.dock.status().unwrap();
        let (hits, misses, _) = crate::docker::counts(&status);
        let new = (
            hits - self.counted.0,
            misses - self.counted.1 - FAILING_PROBES,
        );
        self.counted = (hits, misses);
        let all = new.0 + new.1;
        println!(
            "{what:<58} {all:>9} {:>5} {:>4} %",
            new.0,
            100 * new.0 / all
        );
        new
    }
}

#[test]
fn checkouts_and_containers_share_every_result() {
    let dock = Dock::start(&[]);
    let [one, two] = [Person::new(), Person::new()];
    one.fetch();
    two.fetch();
    let mut table = Table::new(&dock);
    let (hits, all) = table.row("plain, one person", || one.build(&dock, ""));
    assert!(hits == 0 && all >= 8, "{hits} {all}");
    let row = table.row("plain, another person", || two.build(&dock, ""));
    assert_eq!(row, (0, all), "nothing is shared without at");
    let row = table.row("at, one person", || {
        one.build(&dock, &format!("sccache-dock {AT} --"))
    });
    assert_eq!(row, (0, all), "the first at these paths");
    let row = table.row("at, another person", || {
        two.build(&dock, &format!("sccache-dock {AT} --"))
    });
    assert_eq!(row, (all, 0));
    let built = two.checkout().join("target/debug/app");
    assert_eq!(
        run(&mut Command::new(built), PATIENCE).ok(),
        "42 at /sdit-work/parts"
    );
    let elsewhere = two.home.path().join("elsewhere");
    let set = format!(
        "CARGO_TARGET_DIR={} sccache-dock {AT} --",
        elsewhere.display()
    );
    let row = table.row("at, with CARGO_TARGET_DIR", || two.build(&dock, &set));
    assert_eq!(row, (all, 0));
    assert!(
        elsewhere.join("debug/app").exists(),
        "outputs are where they were wanted"
    );
    if nix::unistd::geteuid().is_root() {
        let row = table.row("at, without CAP_SYS_ADMIN", || {
            one.build(
                &dock,
                &format!("setpriv --bounding-set=-sys_admin sccache-dock {AT} --"),
            );
        });
        assert_eq!(row, (all, 0));
    }
    let Some(site) = Site::open() else { return };
    let three = Person::new();
    three.fetch();
    let row = table.row("a container with the folders mounted there", || {
        in_container(&site, &dock, &three, ["/sdit-work", "/sdit-cargo"], &[]).ok();
    });
    assert_eq!(row, (all, 0));
    let profile = Path::new(env!("CARGO_MANIFEST_DIR")).join("images/seccomp/userns.json");
    let profile = format!("--security-opt=seccomp={}", profile.display());
    let row = table.row("at, in a container with the folders elsewhere", || {
        in_container(&site, &dock, &three, ["/src/it", "/var/cargo"], &[&profile]).ok();
    });
    assert_eq!(row, (all, 0));
    // What Docker's own profile forbids is said, with both ways out.
    let refused = in_container(&site, &dock, &three, ["/src/it", "/var/cargo"], &[]);
    let parts = [
        "cannot show /src/it at /sdit-work",
        "CARGO_HOME at /sdit-cargo",
        "seccomp=userns.json",
    ];
    refused.refused(125, &parts);
}

/// A clean build with `at` in a container that sees the checkout and `CARGO_HOME` at `places`.
fn in_container(site: &Site, dock: &Dock, who: &Person, places: [&str; 2], flags: &[&str]) -> Ran {
    let _ = fs::remove_dir_all(who.checkout().join("target"));
    let file = who.home.path().join("client.env");
    fs::write(&file, client_env(dock, "docker")).unwrap();
    let mut command = Command::new("docker");
    command.args(["run", "--rm", "--network=host", "--env=HOME=/tmp"]);
    command.args(["--name", &site.name("at")]);
    command
        .args(site.toolchain_flags())
        .arg("--env-file")
        .arg(&file);
    let folders = [who.checkout(), who.cargo_home()];
    for (folder, place) in folders.iter().zip(places) {
        command.arg(format!("--volume={}:{place}", folder.display()));
    }
    for (name, from) in [("sccache", sccache_bin()), ("sccache-dock", program())] {
        command.arg(format!(
            "--volume={}:/usr/local/bin/{name}:ro",
            from.display()
        ));
    }
    command.arg(format!("--workdir={}", places[0]));
    command.arg(format!("--env=CARGO_HOME={}", places[1]));
    command
        .args(flags)
        .arg(site.base().unwrap())
        .arg("sccache-dock");
    command.args(AT.split(' ')).args(["--root", ".", "--"]);
    command.args(["cargo", "build", "--locked", "--offline", "--quiet"]);
    run(&mut command, LONG)
}

#[test]
fn a_daemon_outside_compiles_nothing_of_the_command_and_the_own_one_ends_with_it() {
    let dock = Dock::start(&[]);
    let person = Person::new();
    let settings = client_env(&dock, "sh");
    // Two checkouts that differ, at the same place; the daemon outside knows only that of the first.
    let text = "pub fn number() -> u32 { NUMBER }";
    for number in ["1", "2"] {
        let folder = person.checkout().join(number);
        fs::create_dir_all(folder.join(".git")).unwrap();
        fs::write(folder.join("it.rs"), text.replace("NUMBER", number)).unwrap();
    }
    let compile = "sccache rustc --crate-name it --crate-type rlib --emit link --out-dir . it.rs";
    let said = person.sh(&format!(
        "{settings}\nsccache --start-server >/dev/null\n\
         for it in 1 2; do (cd $it && sccache-dock {AT} -- sh -c '{compile} && echo $SCCACHE_SERVER_UDS'); done\n\
         echo $SCCACHE_SERVER_UDS"
    ));
    let lines: Vec<&str> = said.lines().collect();
    let [first, second, outside] = lines[..] else {
        panic!("{said}")
    };
    assert!(first != second && first != outside, "{said}");
    let ours = dock.status().unwrap();
    assert_eq!(
        crate::docker::counts(&ours),
        (0, 2, 2),
        "each compiled its own text"
    );
    for socket in [first, second] {
        let folder = Path::new(socket).parent().unwrap().to_owned();
        eventually("the daemon's folder is gone", || {
            (!folder.exists()).then_some(())
        });
        let own = format!("SCCACHE_SERVER_UDS={socket}");
        eventually("the daemon is gone", || (!runs_with(&own)).then_some(()));
    }
}

#[test]
fn a_config_file_of_cargo_brings_no_daemon_from_outside() {
    let dock = Dock::start(&[]);
    let person = Person::new();
    person.fetch();
    let file = person.checkout().join(".cargo/config.toml");
    fs::create_dir(file.parent().unwrap()).unwrap();
    let text = client_env(&dock, "cargo");
    fs::write(&file, &text).unwrap();
    let build = "cargo build --locked --offline --quiet --package shapes";
    // A daemon for the checkout as it is, and then, by way of the same file, another for what is seen elsewhere.
    person.sh(build);
    let again = format!("rm -r target && {build} && cat .cargo/config.toml");
    let said = person.sh(&format!("sccache-dock {AT} -- sh -c '{again}'"));
    assert!(said.contains("/sccache-dock-at-"), "{said}");
    assert_eq!(fs::read_to_string(&file).unwrap(), text);
    let counts = || crate::docker::counts(&dock.status().unwrap());
    assert_eq!(counts(), (0, 2, 2), "each was compiled, and stored");
    // A shell without the file has the same keys.
    fs::remove_file(&file).unwrap();
    let settings = client_env(&dock, "sh");
    person.sh(&format!("rm -r target\n{settings}\n{build}"));
    assert_eq!(counts(), (1, 2, 2), "a shell shares with the file");
}

/// Whether a process has this line in its environment.
fn runs_with(line: &str) -> bool {
    let entries = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let mut environments = entries.filter_map(|it| fs::read(it.path().join("environ")).ok());
    environments.any(|it| {
        it.split(|byte| *byte == 0)
            .any(|found| found == line.as_bytes())
    })
}

#[test]
fn lanes_without_a_daemon_keep_the_address_of_the_cache() {
    let person = Person::new();
    let said = person.sh(&format!(
        "SCCACHE_CLIENT_SIDE=1 SCCACHE_SERVER_UDS=/the/cache sccache-dock {AT} -- sh -c 'echo $SCCACHE_SERVER_UDS'"
    ));
    assert_eq!(said, "/the/cache");
    // As client-env --format cargo writes it.
    let config = "[env]\nSCCACHE_CLIENT_SIDE = { value = \"1\", force = true }\n";
    let file = person.checkout().join(".cargo/config.toml");
    fs::create_dir(file.parent().unwrap()).unwrap();
    fs::write(&file, config).unwrap();
    let said = person.sh(&format!(
        "sccache-dock {AT} -- sh -c 'echo none$SCCACHE_SERVER_UDS'"
    ));
    assert_eq!(said, "none");
}

#[test]
fn command_is_what_was_started() {
    let person = Person::new();
    let under = |command: &str| format!("exec sccache-dock {AT} -- {command}");
    let code = |command: &str| run(&mut person.shell(&under(command)), PATIENCE);
    assert_eq!(code("sh -c 'exit 7'").code, Some(7));
    let mut child = person
        .shell(&under(
            "sh -c 'echo $$; read line; echo \"$line\"; exec sleep 60'",
        ))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut line = || lines.next().unwrap().unwrap();
    assert_eq!(
        line(),
        child.id().to_string(),
        "no process stands in between"
    );
    child
        .stdin
        .take()
        .unwrap()
        .write_all(b"to the command\n")
        .unwrap();
    assert_eq!(line(), "to the command");
    assert_eq!(
        crate::dock::children_of(i32::try_from(child.id()).unwrap()),
        []
    );
    kill(
        Pid::from_raw(i32::try_from(child.id()).unwrap()),
        Signal::SIGTERM,
    )
    .unwrap();
    let status = eventually("it ends", || child.try_wait().unwrap());
    assert_eq!(status.signal(), Some(Signal::SIGTERM as i32));
    let said = person.sh(&format!(
        "cd parts/src && {}",
        under("sh -c 'pwd; echo $PWD; echo $CARGO_HOME'")
    ));
    assert_eq!(
        said,
        "/sdit-work/parts/src\n/sdit-work/parts/src\n/sdit-cargo"
    );
}

#[test]
fn the_terminal_is_the_commands() {
    let person = Person::new();
    let inner = "trap \"echo caught; exit 3\" INT; ps -o pgid=,tpgid= -p $$; tty >/dev/null && echo ready; sleep 60 & wait";
    let outer = format!(
        "script -qec 'exec sccache-dock {AT} -- sh {}/inner.sh' /dev/null",
        person.checkout().display()
    );
    fs::write(person.checkout().join("inner.sh"), inner).unwrap();
    let mut child = person
        .shell(&outer)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut line = || lines.next().unwrap().unwrap();
    let groups = line();
    let groups: Vec<&str> = groups.split_whitespace().collect();
    assert_eq!(groups[0], groups[1], "it is in the foreground");
    assert_eq!(line().trim(), "ready");
    // Control-C.
    let mut keyboard = child.stdin.take().unwrap();
    keyboard.write_all(b"\x03").unwrap();
    assert!(line().contains("caught"));
    let status = eventually("it ends", || child.try_wait().unwrap());
    assert_eq!(status.code(), Some(3));
}

#[test]
fn an_ordinary_user_stays_who_they_are_and_owns_what_is_written() {
    if !nix::unistd::geteuid().is_root() {
        // Then every other test here is this one.
        return;
    }
    let person = Person::new();
    let home = person.home.path();
    fs::set_permissions(home, fs::Permissions::from_mode(0o755)).unwrap();
    let copied = home.join("sccache-dock");
    fs::copy(program(), &copied).unwrap();
    let checkout = home.join("theirs");
    fs::create_dir_all(checkout.join(".git")).unwrap();
    for folder in [home, &checkout] {
        chown(folder, Some(12345), Some(12345)).unwrap();
    }
    let mut command = Command::new(&copied);
    command
        .args(AT.split(' '))
        .args([
            "--",
            "sh",
            "-c",
            "id -u; id -g; pwd; echo text >file; echo lost >/file; stat -c %u /sdit-work",
        ])
        .current_dir(&checkout)
        .env("HOME", home)
        .env("XDG_RUNTIME_DIR", home)
        .env_remove("CARGO_HOME")
        .uid(12345)
        .gid(12345);
    let ran = run(&mut command, PATIENCE);
    assert!(ran.stderr.contains("Read-only file system"), "{ran:?}");
    assert_eq!(ran.ok(), "12345\n12345\n/sdit-work\n12345");
    let written = fs::metadata(checkout.join("file")).unwrap();
    assert_eq!((written.uid(), written.gid()), (12345, 12345));
    assert!(!Path::new("/sdit-work").exists(), "nothing is left behind");
}

#[test]
fn folders_that_exist_are_used_without_a_new_root() {
    let person = Person::new();
    let [work, cargo] = ["work", "its-cargo"].map(|name| person.home.path().join(name));
    for folder in [&work, &cargo] {
        fs::create_dir(folder).unwrap();
    }
    let at = format!(
        "sccache-dock at {} --cargo-home {} --",
        work.display(),
        cargo.display()
    );
    let said = person.sh(&format!(
        "{at} sh -c 'pwd; touch made; ! test -w / || echo the old root'"
    ));
    let is_root = nix::unistd::geteuid().is_root();
    let old_root = if is_root { "\nthe old root" } else { "" };
    assert_eq!(said, format!("{}{old_root}", work.display()));
    assert!(person.checkout().join("made").exists());
    assert!(fs::read_dir(&work).unwrap().next().is_none());
}

#[test]
fn what_cannot_be_done_is_said_with_its_hint() {
    let person = Person::new();
    let refused = |text: &str, code: i32, parts: &[&str]| {
        run(&mut person.shell(text), PATIENCE).refused(code, parts);
    };
    let at = format!("exec sccache-dock {AT} --");
    refused(
        &format!("{at} no-such-command"),
        127,
        &["cannot run \"no-such-command\""],
    );
    refused(
        &format!("{at} /etc/passwd"),
        126,
        &["cannot run \"/etc/passwd\""],
    );
    refused(
        &format!("cd / && {at} true"),
        125,
        &["cannot find the checkout", "--root"],
    );
    refused(
        "exec sccache-dock at /usr -- true",
        125,
        &["cannot show anything at /usr", "another path"],
    );
    refused("exec sccache-dock at work -- true", 125, &["not absolute"]);
    refused(
        &format!("exec sccache-dock {AT} --own-results one,two -- true"),
        125,
        &["results of one, two apart", "no wrapper", "client-env"],
    );
    let turned_off = format!("RUSTC_WRAPPER= sccache-dock {AT} --own-results one,two -- true");
    assert_eq!(person.sh(&turned_off), "");
    let gone = "mkdir -p gone/.git && cd gone && rmdir .git ../gone";
    refused(&format!("{gone} && {at} true"), 125, &["current folder"]);
}

#[test]
fn a_machine_without_user_namespaces_is_told_which_setting_it_is() {
    let person = Person::new();
    // In a namespace of its own, where the limit can be set for this test alone.
    let inner = format!(
        "echo 0 >/proc/sys/user/max_user_namespaces && exec setpriv --bounding-set=-sys_admin sccache-dock {AT} -- true"
    );
    let text = format!("exec unshare --user --map-root-user sh -c '{inner}'");
    let ran = run(&mut person.shell(&text), PATIENCE);
    if ran.code == Some(1) {
        return skip::<()>(&format!("no user namespaces: {}", ran.stderr)).unwrap_or_default();
    }
    ran.refused(
        125,
        &["cannot make a user namespace", "user.max_user_namespaces"],
    );
}
