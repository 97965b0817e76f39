//! What the script needs to make the programs is asked before anything takes long, and what is missing is said in one message.

use crate::docker::{PATIENCE, Ran, run};
use crate::harness::{clean, now};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// What every machine has.
const TOOLS: &[&str] = &[
    "sh", "awk", "cat", "cut", "df", "dirname", "grep", "head", "id", "mkdir", "mktemp",
    "readlink", "rm", "sed", "sort", "tr", "uname",
];

/// A machine with these tools and nothing else, as far as programs go.
struct Poor {
    folder: tempfile::TempDir,
}

impl Poor {
    fn new() -> Poor {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("bin")).unwrap();
        let poor = Poor { folder };
        TOOLS.iter().for_each(|tool| poor.add(tool));
        poor
    }

    fn add(&self, tool: &str) {
        let path = std::env::var_os("PATH").unwrap();
        let found = std::env::split_paths(&path).map(|folder| folder.join(tool));
        let found = found.into_iter().find(|it| it.is_file()).unwrap();
        symlink(found, self.folder.path().join("bin").join(tool)).unwrap();
    }

    /// A program that is no link but says `text`.
    fn says(&self, name: &str, text: &str) {
        let file = self.folder.path().join("bin").join(name);
        fs::write(&file, format!("#!/bin/sh\necho '{text}'\n")).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Asks for the programs, by `wrapper`.
    fn programs(&self, wrapper: &[&str], set: &[(&str, &str)]) -> Ran {
        let build = Path::new(env!("CARGO_MANIFEST_DIR")).join("images/build.sh");
        let mut command: Command = wrapper.first().map_or_else(|| clean("/bin/sh"), clean);
        command
            .args(wrapper.iter().skip(1))
            .arg(build)
            .arg("programs")
            .env("PATH", self.folder.path().join("bin"))
            .env("HOME", self.folder.path())
            .env_remove("XDG_CACHE_HOME")
            .envs(set.iter().copied());
        run(&mut command, PATIENCE)
    }
}

#[test]
fn all_that_is_missing_is_said_at_once() {
    let poor = Poor::new();
    let start = now();
    let ran = poor.programs(&[], &[("SCCACHE_FROM", "source")]);
    println!("after {:.1?}: {}", start.elapsed(), ran.stderr);
    assert!(start.elapsed() < Duration::from_secs(10));
    let missing =
        "packages, by their names in Debian: gcc libc6-dev libssl-dev pkg-config (as root: ";
    ran.refused(
        1,
        &[
            "this machine lacks:\n  - cargo, of Rust 1.95",
            missing,
            "hint: nothing was built",
        ],
    );
    assert_eq!(ran.stderr.matches("error: ").count(), 1, "{}", ran.stderr);

    // An archive wants less.
    let sums = ["1"; 2].map(|it| it.repeat(64)).join(" ");
    let ran = poor.programs(
        &[],
        &[("SCCACHE_FROM", "release"), ("SCCACHE_SHA256", &sums)],
    );
    ran.refused(1, &["gcc gzip libc6-dev tar (as root"]);
    assert!(!ran.stderr.contains("libssl-dev"), "{}", ran.stderr);

    poor.says("cargo", "cargo 1.80.1 (376290515 2024-07-16)");
    let ran = poor.programs(&[], &[]);
    ran.refused(1, &["Rust 1.95 or newer: ", "bin/cargo is 1.80.1"]);
}

#[test]
fn room_is_asked_for_before_it_is_filled() {
    let poor = Poor::new();
    ["mount", "unshare"].iter().for_each(|it| poor.add(it));
    let full = poor.folder.path().join("full");
    fs::create_dir(&full).unwrap();
    let full = full.to_str().unwrap();
    // A small disk that only this command sees.
    let mounted = format!("mount -t tmpfs -o size=1m none {full} && exec sh \"$@\"");
    let wrapper = [
        "unshare",
        "--user",
        "--map-root-user",
        "--mount",
        "sh",
        "-c",
        &mounted,
        "sh",
    ];
    let ran = poor.programs(
        &wrapper,
        &[("SCCACHE_DOCK_TOOLS", full), ("SCCACHE_FROM", "source")],
    );
    let room = format!("room in {full} for compiling sccache: 3000 MB are needed, 1 MB are free");
    ran.refused(1, &[&room]);
}

#[test]
fn ways_that_there_are_not_are_refused() {
    let ran = Poor::new().programs(&[], &[("SCCACHE_FROM", "homebrew")]);
    ran.refused(
        1,
        &[
            "cannot take sccache from \"homebrew\"",
            "auto, release, source or wheel",
        ],
    );
}

/// On a terminal, as "script" makes one.
#[test]
fn long_work_is_done_where_its_log_cannot_be_written() {
    let cache = tempfile::tempdir().unwrap();
    // Which root cannot write either.
    fs::create_dir_all(cache.path().join("sccache-dock/build.log")).unwrap();
    let repo = env!("CARGO_MANIFEST_DIR");
    let text = format!(
        "sh -euc 'name=it repo={repo}; . \"$repo/scripts/lib.sh\"; long \"a work\" echo done; echo and after'"
    );
    let mut command = clean("script");
    command
        .args(["--quiet", "--return", "--command", &text, "/dev/null"])
        .env("XDG_CACHE_HOME", cache.path());
    let said = run(&mut command, PATIENCE).ok();
    assert_eq!(said.lines().collect::<Vec<_>>(), ["done", "and after"]);
}

/// A project with programs of our names, a rustc that works and a home whose cargo is set up for something else.
#[test]
fn what_the_user_has_told_cargo_does_not_reach_our_programs() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let file = folder.path().join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for file in ["binaries.sh", "common.sh", "sccache.sha256"] {
        let to = folder.path().join("project/images").join(file);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(root.join("images").join(file), to).unwrap();
    }
    let programs = ["sccache-dock", "sccache-dock-run", "sccache-dock-gateway"];
    let bins = programs.map(|it| format!("[[bin]]\nname = \"{it}\"\npath = \"main.rs\"\n"));
    let package = "[package]\nname = \"ours\"\nversion = \"1.0.0\"\nedition = \"2024\"\n";
    let profile = "[profile.local]\ninherits = \"release\"\n[workspace]\n";
    write(
        "project/Cargo.toml",
        &format!("{package}{}{profile}", bins.concat()),
    );
    write(
        "project/Cargo.lock",
        "version = 4\n\n[[package]]\nname = \"ours\"\nversion = \"1.0.0\"\n",
    );
    write("project/main.rs", "fn main() { println!(\"ours\") }\n");
    let config = "[build]\ntarget = \"wasm32-unknown-unknown\"\ntarget-dir = \"elsewhere\"\n\
        rustc = \"/no/such/rustc\"\nrustc-wrapper = \"/no/such/wrapper\"\n\
        rustc-workspace-wrapper = \"/no/such/wrapper\"\nrustflags = [\"--no-such-flag\"]\n";
    write("with-config/config.toml", config);
    write("without/empty", "");
    let variables = [
        ("CARGO_BUILD_TARGET", "wasm32-unknown-unknown"),
        ("CARGO_TARGET_DIR", "somewhere"),
        ("CARGO_BUILD_TARGET_DIR", "elsewhere"),
        ("RUSTFLAGS", "--no-such-flag"),
        ("CARGO_ENCODED_RUSTFLAGS", "--no-such-flag"),
        ("RUSTC", "/no/such/rustc"),
        ("CARGO_BUILD_RUSTC", "/no/such/rustc"),
        ("RUSTC_WRAPPER", "/no/such/wrapper"),
        ("RUSTC_WORKSPACE_WRAPPER", "/no/such/wrapper"),
        ("CARGO_BUILD_RUSTC_WRAPPER", "/no/such/wrapper"),
    ];
    let path = format!(
        "{}/bin:{}",
        crate::site::sysroot().display(),
        std::env::var("PATH").unwrap()
    );
    let none: &[(&str, &str)] = &[];
    for (home, set) in [("with-config", none), ("without", &variables[..])] {
        let out = folder.path().join("out").join(home);
        let mut command = clean(folder.path().join("project/images/binaries.sh"));
        command
            .args(["dock", out.to_str().unwrap()])
            .current_dir(folder.path())
            .env("CARGO_HOME", folder.path().join(home))
            .env("PATH", &path)
            .envs(set.iter().copied());
        let ran = run(&mut command, PATIENCE);
        assert_eq!(ran.code, Some(0), "{home}: {}", ran.stderr);
        for program in programs {
            assert_eq!(run(&mut clean(out.join(program)), PATIENCE).ok(), "ours");
        }
    }
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    for place in ["project/target", "somewhere"] {
        let built = folder.path().join(place).join(&triple).join("local");
        assert!(built.join("sccache-dock").exists(), "{built:?}");
    }
}
