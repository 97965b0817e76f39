//! What goes wrong around the host's script: odd names, words too many, Ctrl-C, a container that is paused.

use super::conflicts::docker_that;
use crate::docker::{LONG, run};
use crate::harness::clean;
use crate::site::{Script, Site};
use std::fs;
use std::path::Path;

#[test]
fn words_that_it_would_ignore_and_names_that_it_cannot_take_are_refused() {
    let Some(site) = Site::open() else { return };
    let script = site.script("odd");
    let call = |args: &[&str]| script.call(args);
    // Without its quotes, a path is two.
    let more = |words: &str| format!("there are more words than {words}");
    call(&["start", "persistent", "/tmp/my", "cache"])
        .refused(2, &[&more("\"start\" takes: cache"), "quote a path"]);
    call(&["stop", "other"]).refused(
        2,
        &[&more("\"stop\" takes: other"), "SCCACHE_CONTAINER_NAME"],
    );
    call(&["remove", "other"]).refused(2, &[&more("\"remove\" takes: other")]);
    call(&["run-local", "persistent", "/tmp/my", "cache"])
        .refused(2, &[&more("\"run-local\" takes: cache")]);
    call(&["start", "persistent", "//"])
        .refused(2, &["cannot take all of this machine", "hint: for example"]);
    for folder in ["/tmp/a,b", "/tmp/a\"b"] {
        call(&["start", "persistent", folder])
            .refused(2, &["a comma or a quote", "hint: choose one without"]);
    }
    for (name, value, message) in [
        (
            "SCCACHE_CONTAINER_NAME",
            "../../x",
            "is no name of a container",
        ),
        ("SCCACHE_SOCKET_DIR", "/usr", "it has other things in it"),
    ] {
        let mut command = script.command();
        let ran = run(command.env(name, value).args(["start", "ephemeral"]), LONG);
        assert!(matches!(ran.code, Some(1 | 2)), "{ran:?}");
        assert!(
            ran.stderr.contains(message) && ran.stderr.contains(name),
            "{ran:?}"
        );
    }
}

#[test]
fn paths_with_spaces_and_quotes_are_printed_as_a_shell_takes_them() {
    let Some(site) = Site::open() else { return };
    let script = site.script("quoted");
    let place = tempfile::tempdir().unwrap();
    let repository = place.path().join("Ann's r&d|work \\ here");
    fs::create_dir(&repository).unwrap();
    for part in ["scripts", "images", "Cargo.toml"] {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join(part);
        let copied = std::process::Command::new("cp")
            .arg("-r")
            .arg(from)
            .arg(&repository)
            .status();
        assert!(copied.unwrap().success());
    }
    let me = repository.join("scripts/sccache-docker-manage.sh");
    let call = |args: &[&str]| run(script.environment(clean(&me)).args(args), LONG);
    let folder = place.path().join("a cache of Ann's/");
    let text = call(&["start", "persistent", folder.to_str().unwrap()]).ok();
    let typed = text
        .lines()
        .map(str::trim)
        .find(|it| it.starts_with("eval "));
    let typed = format!("{}; test \"$RUSTC_WRAPPER\" = sccache", typed.unwrap());
    site.shell(&script, &typed, LONG).ok();
    // The same folder, by another spelling.
    call(&[
        "start",
        "persistent",
        folder.to_str().unwrap().trim_end_matches('/'),
    ])
    .ok();
    let usage = call(&["help"]).ok();
    let typed = usage
        .lines()
        .find_map(|it| it.split_once("for a client: "))
        .unwrap()
        .1;
    site.shell(&script, typed, LONG).ok();
}

/// Ctrl-C while Docker starts what was just created: it goes, and so do the script's own files.
#[test]
fn start_that_is_interrupted_leaves_nothing() {
    let Some(site) = Site::open() else { return };
    let script = site.script("interrupted");
    let [folder, files] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let path = docker_that(
        &folder,
        "if [ \"$1\" = start ]; then kill -INT $PPID; exit 1; fi",
    );
    let mut command = script.command();
    command
        .env("PATH", path)
        .env("TMPDIR", files.path())
        .args(["start", "ephemeral"]);
    let ran = run(&mut command, LONG);
    assert_eq!(ran.code, Some(130), "{ran:?}");
    let left = site.docker.run(&["inspect", &script.container]);
    assert_ne!(left.code, Some(0), "{left:?}");
    assert_eq!(fs::read_dir(files.path()).unwrap().count(), 0);
}

#[test]
fn paused_container_goes_on_and_a_home_is_found_without_a_variable() {
    let Some(site) = Site::open() else { return };
    let script = site.script("paused");
    script.call(&["start", "ephemeral"]).ok();
    for word in [&["start", "ephemeral"][..], &["restart"]] {
        site.docker.ok(&["pause", &script.container]);
        script.call(word).ok();
        script.call(&["status"]).ok();
    }
    let mut help = clean(Script::path());
    let usage = run(
        help.env_remove("HOME")
            .env_remove("XDG_STATE_HOME")
            .arg("help"),
        LONG,
    )
    .ok();
    let home = run(
        clean("sh").args(["-c", "getent passwd \"$(id -u)\" | cut -d : -f 6"]),
        LONG,
    )
    .ok();
    let sockets = format!("SCCACHE_SOCKET_DIR={home}/.local/state/sccache-dock/");
    assert!(usage.contains(&sockets), "{usage}");
}
