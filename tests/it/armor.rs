//! The profiles of AppArmor, by its own compilers of version 4 and 5. Nothing enforces them here: that takes a kernel with it.

use crate::dock::program;
use crate::docker::{PATIENCE, Ran, run};
use crate::harness::{clean, skip, tools};
use std::path::{Path, PathBuf};

/// A compiler for each version, with the abstractions that it comes with.
fn compilers() -> Vec<(&'static str, PathBuf)> {
    let suites = ["trixie", "sid"].map(|suite| (suite, tools().join("apparmor").join(suite)));
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
    let names = [
        printed(&["container"]),
        printed(&["program"]),
        printed(&["program", "--path", "/opt/with space/{sccache-dock}"]),
    ];
    assert_eq!(printed(&[]), names[0]);
    for (version, folder) in compilers() {
        for profile in &names {
            let ran = compile(&folder, profile);
            assert_eq!(ran.code, Some(0), "{version}: {}\n{profile}", ran.stderr);
        }
        // The compiler reads what is in it.
        let wrong = compile(&folder, &names[0].replace("  userns,\n", "  userspaces,\n"));
        assert_ne!(wrong.code, Some(0), "{version} takes anything");
    }
}

#[test]
fn container_is_given_namespaces_and_mounts_and_nothing_of_the_host() {
    let profile = printed(&["container"]);
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
