//! The profiles of AppArmor, by its own compilers of version 3, 4 and 5. Nothing enforces them here: that takes a kernel with it.

use crate::dock::program;
use crate::docker::{PATIENCE, Ran, run};
use crate::harness::{clean, skip, tools};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// A compiler for each version, with the abstractions that it comes with.
fn compilers() -> Vec<(&'static str, PathBuf)> {
    let suites =
        ["bookworm", "trixie", "sid"].map(|suite| (suite, tools().join("apparmor").join(suite)));
    let found = suites.into_iter().filter(|(suite, folder)| {
        let is_there = folder.join("apparmor_parser").exists();
        if !is_there {
            skip(&format!("no apparmor_parser of {suite}"));
        }
        is_there
    });
    found.collect()
}

/// Compiles, and loads nothing.
fn compile(folder: &Path, profile: &str) -> Ran {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), profile).unwrap();
    let mut parser = clean(folder.join("apparmor_parser"));
    // Neither the kernel nor a cache is asked; what comes out is what the kernel would be given.
    parser.args([
        "--skip-kernel-load",
        "--skip-cache",
        "--ofile",
        "/dev/null",
        "--base",
    ]);
    run(
        parser.arg(folder.join("apparmor.d")).arg(file.path()),
        PATIENCE,
    )
}

fn printed(args: &[&str]) -> String {
    run(clean(program()).arg("apparmor").args(args), PATIENCE).ok()
}

#[test]
fn profiles_are_what_apparmor_compiles() {
    for (suite, folder) in compilers() {
        let mut parser = clean(folder.join("apparmor_parser"));
        let version = run(parser.arg("--version"), PATIENCE).ok();
        let is_old = version.contains(" version 3.");
        assert_eq!(is_old, suite == "bookworm", "{version}");
        let of = |args: &[&str]| printed(&[args, &["--parser", &version]].concat());
        let profiles = [
            of(&["container"]),
            of(&["program"]),
            of(&["program", "--path", "/opt/with space/{sccache-dock}"]),
        ];
        assert_eq!(of(&[]), profiles[0]);
        for profile in &profiles {
            let ran = compile(&folder, profile);
            assert_eq!(ran.code, Some(0), "{suite}: {}\n{profile}", ran.stderr);
            assert_eq!(profile.contains("\n  userns,\n"), !is_old, "{profile}");
        }
        // The compiler reads what is in it.
        let wrong = compile(
            &folder,
            &profiles[0].replace("  pivot_root,\n", "  pivot_leaf,\n"),
        );
        assert_ne!(wrong.code, Some(0), "{suite} takes anything");
        if is_old {
            let ran = compile(&folder, &printed(&["container", "--parser", "4"]));
            assert_ne!(ran.code, Some(0), "there would be no need for another one");
        }
    }
}

#[test]
fn parser_of_the_machine_is_asked_and_one_of_another_may_be_named() {
    let folder = tempfile::tempdir().unwrap();
    let parser = folder.path().join("apparmor_parser");
    for (version, abi) in [("3.0.8", "abi/3.0"), ("4.1.0", "abi/4.0")] {
        std::fs::write(
            &parser,
            format!("#!/bin/sh\necho AppArmor parser version {version}\n"),
        )
        .unwrap();
        std::fs::set_permissions(&parser, std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut command = clean(program());
        let text = run(command.arg("apparmor").env("PATH", folder.path()), PATIENCE).ok();
        assert!(text.contains(abi), "{version}: {text}");
    }
    assert!(printed(&["--parser", "3"]).contains("abi/3.0"));
    assert!(printed(&["--parser", ""]).contains("abi/4.0"));
    let refused = run(
        clean(program()).args(["apparmor", "--parser", "2.13"]),
        PATIENCE,
    );
    refused.refused(2, &["is too old: AppArmor 3 or newer"]);
}

#[test]
fn container_is_given_namespaces_and_mounts_and_nothing_of_the_host() {
    let profile = printed(&["container", "--parser", "4"]);
    let rules: Vec<&str> = profile.lines().map(str::trim).collect();
    for rule in ["userns,", "mount,", "umount,", "pivot_root,"] {
        assert!(rules.contains(&rule), "{rule}");
    }
    for rule in [
        "change_profile",
        "dbus",
        "flags=(unconfined)",
        "mqueue",
        "io_uring",
    ] {
        assert!(!profile.contains(rule), "{rule}");
    }
    for path in [
        "@{PROC}/kcore",
        "@{PROC}/sysrq-trigger",
        "/sys/kernel/security/**",
        "/sys/firmware/**",
    ] {
        let denied = rules
            .iter()
            .any(|rule| rule.starts_with("deny ") && rule.contains(path));
        assert!(denied, "{path}");
    }
    // The one for the host names the program that prints it, and confines nothing.
    let own = printed(&["program"]);
    assert!(
        own.contains(&format!("\"{}\" flags=(unconfined)", program().display())),
        "{own}"
    );
}
