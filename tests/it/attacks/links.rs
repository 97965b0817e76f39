//! PID 1 as root on a folder of another user, who has put a link at a name that it uses: nothing of what the link leads to
//! is changed, and the start says what is in its way.

use crate::dock::{Dock, eventually, program};
use crate::harness::{finish, sccache_bin, skip};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

const ALICE: u32 = 12345;

/// A folder that everybody can reach, as a mount is.
fn reachable() -> TempDir {
    let folder = TempDir::new().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

/// What a victim has: a folder as those of the state are, all of root's.
fn victim() -> TempDir {
    let folder = reachable();
    for name in ["blobs", "tmp", "state", "file", "lock", "auth-token"] {
        let path = folder.path().join(name);
        match name {
            "blobs" | "tmp" | "state" => fs::create_dir(&path).unwrap(),
            _ => fs::write(&path, "theirs-0123456789").unwrap(),
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    folder
}

/// Everything below a folder with all that could be changed.
fn all(folder: &Path) -> Vec<(PathBuf, u32, u32, u32, String)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(path) = folders.pop() {
        let metadata = fs::symlink_metadata(&path).unwrap();
        if metadata.is_dir() {
            let entries = fs::read_dir(&path).unwrap();
            folders.extend(entries.map(|entry| entry.unwrap().path()));
        }
        let text = fs::read_to_string(&path).unwrap_or_default();
        found.push((path, metadata.uid(), metadata.gid(), metadata.mode(), text));
    }
    found.sort();
    found
}

/// A state folder of Alice's, with a link of hers at `name`.
fn planted(name: &str, target: &Path) -> TempDir {
    let folder = reachable();
    let link = folder.path().join(name);
    fs::create_dir_all(link.parent().unwrap()).unwrap();
    symlink(target, &link).unwrap();
    let mut way = link.parent();
    while let Some(path) = way.filter(|path| path.starts_with(folder.path())) {
        chown(path, Some(ALICE), Some(ALICE)).unwrap();
        way = path.parent();
    }
    lchown(&link, Some(ALICE), Some(ALICE)).unwrap();
    folder
}

fn root_only() -> bool {
    let is_root = nix::unistd::geteuid().is_root();
    if !is_root {
        skip("only root runs services as another user");
    }
    is_root
}

fn run(dir: &Path) -> Command {
    let mut command = Command::new(program());
    command
        .arg("run")
        .env_clear()
        .env("PATH", std::env::var("PATH").unwrap())
        .env("SCCACHE_DIR", dir)
        .env("SCCACHE_LISTEN", "127.0.0.1:0")
        .env("SCCACHE_BINARY", sccache_bin());
    command
}

#[test]
fn start_is_refused_where_another_users_link_is_in_its_way() {
    if !root_only() {
        return;
    }
    for (name, target) in [
        ("state", "state"),
        ("state", "none"),
        ("cache", "blobs"),
        ("run", "tmp"),
        ("state/lock", "lock"),
        ("state/lock", "none"),
        ("state/auth-token", "auth-token"),
        ("state/auth-token.new", "file"),
        ("state/auth-token.new", "none"),
        ("state/gateway.toml.new", "file"),
        ("run/sccache.sock", "file"),
        ("run/control.sock", "none"),
        ("run/notify.sock", "file"),
        ("error.log", "file"),
        ("error.log", "none"),
        ("logs/error.log", "file"),
    ] {
        let victim = victim();
        let folder = planted(name, &victim.path().join(target));
        let before = all(victim.path());
        let mut run = run(folder.path());
        if name.ends_with("error.log") {
            run.env("SCCACHE_ERROR_LOG", folder.path().join(name));
        }
        let outcome = finish(&mut run);
        let case = format!("{name} -> {target}: {}", outcome.output);
        assert_eq!(all(victim.path()), before, "{case}");
        assert_eq!(outcome.code, Some(2), "{case}");
        assert!(outcome.output.contains("error: cannot "), "{case}");
        assert!(outcome.output.contains(name), "{case}");
    }
}

#[test]
fn root_runs_no_program_that_another_user_can_replace() {
    if !root_only() {
        return;
    }
    let (folder, state) = (reachable(), reachable());
    let (program, ran) = (folder.path().join("sccache"), folder.path().join("ran"));
    fs::write(&program, format!("#!/bin/sh\n: >{}\n", ran.display())).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    for path in [folder.path(), &program] {
        chown(path, Some(ALICE), Some(ALICE)).unwrap();
    }
    let path = folder.path().to_str().unwrap();
    for (path, said) in [
        (path, format!("cannot run \"{path}/sccache\" as root")),
        // The folder that it is started in.
        ("", "cannot find \"sccache\"".to_owned()),
        (".:", "cannot find \"sccache\"".to_owned()),
    ] {
        let mut run = run(state.path());
        run.env("PATH", path).env("SCCACHE_BINARY", "sccache");
        let outcome = finish(run.current_dir(folder.path()));
        assert!(
            outcome.output.contains(&said),
            "{path:?}: {}",
            outcome.output
        );
        assert_eq!(outcome.code, Some(2), "{path:?}: {}", outcome.output);
        assert!(!ran.exists(), "{path:?}");
    }
}

#[test]
fn link_in_the_place_of_the_whole_folder_is_refused() {
    if !root_only() {
        return;
    }
    let victim = victim();
    let folder = planted("link", victim.path());
    let before = all(victim.path());
    let outcome = finish(&mut run(&folder.path().join("link")));
    assert_eq!(all(victim.path()), before, "{}", outcome.output);
    assert_eq!(outcome.code, Some(2), "{}", outcome.output);
    assert!(
        outcome.output.contains("it is a link of user 12345"),
        "{}",
        outcome.output
    );
}

/// These are in nobody's way: a name that is replaced, or one of which only what an earlier run has left is of use.
#[test]
fn links_that_are_in_no_ones_way_are_not_followed_either() {
    if !root_only() {
        return;
    }
    for (name, target) in [
        (".sccache-dock-probe", "file"),
        ("state/gateway.toml", "file"),
        ("cache/blobs", "blobs"),
        ("cache/tmp", "tmp"),
        ("cache/ceiling", "file"),
        ("state/other", "file"),
        ("tmp", "tmp"),
        ("tmp", ""),
        ("tmp/left-over", "tmp"),
    ] {
        let victim = victim();
        let folder = planted(name, &victim.path().join(target));
        let before = all(victim.path());
        let dock = Dock::launch_in(folder, &[("SCCACHE_LOG_FORMAT", "text")]);
        let begun = |dock: &Dock| dock.log().contains("starting") || dock.log().contains("cannot");
        eventually("the start to get past its folder", || {
            (dock.log().contains("in mode ephemeral") && begun(&dock)).then_some(())
        });
        drop(dock);
        assert_eq!(all(victim.path()), before, "{name} -> {target}");
    }
}
