//! `at --own-results`: checkouts that differ in files which only a procedural macro reads.

use crate::dock::Dock;
use crate::docker::counts;
use crate::machine::Machine;
use std::fs;

/// Macros that read without telling rustc: one lists a folder, as `include_dir!` does, one makes a literal of a file's
/// text, as those of sqlx do.
const MACROS: &str = r#"
use proc_macro::TokenStream;
fn package() -> String { std::env::var("CARGO_MANIFEST_DIR").unwrap() }
#[proc_macro]
pub fn listed(_: TokenStream) -> TokenStream {
    let files = std::fs::read_dir(package() + "/assets").unwrap();
    let mut names: Vec<_> = files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    format!("{:?}", names.join(" ")).parse().unwrap()
}
#[proc_macro]
pub fn read(_: TokenStream) -> TokenStream {
    let text = std::fs::read_to_string(package() + "/conf.toml").unwrap_or("default".into());
    format!("{text:?}").parse().unwrap()
}
#[proc_macro]
pub fn made(_: TokenStream) -> TokenStream {
    let text = std::fs::read_to_string(std::env::var("OUT_DIR").unwrap() + "/made.txt").unwrap();
    format!("{text:?}").parse().unwrap()
}
#[proc_macro]
pub fn described(_: TokenStream) -> TokenStream {
    let git = std::process::Command::new("git").args(["describe", "--tags", "--dirty"]).output().unwrap();
    format!("{:?}", String::from_utf8(git.stdout).unwrap().trim()).parse().unwrap()
}
"#;

/// A checkout with these files in the folder of assets, and this text.
fn checkout(machine: &Machine, assets: &[&str], conf: &str, workspace: &str) {
    let library = |name: &str, dependencies: &str| {
        let text = format!(
            "[package]\nname = \"{name}\"\nversion = \"0.1.0\"\nedition = \"2021\"\n{dependencies}"
        );
        machine.write(&format!("{name}/Cargo.toml"), &text);
    };
    let members = "members = [\"macros\", \"the-uses\", \"other\", \"show\"]\nresolver = \"2\"\n";
    machine.write("Cargo.toml", &format!("[workspace]\n{members}{workspace}"));
    library("macros", "[lib]\nproc-macro = true\n");
    machine.write("macros/src/lib.rs", MACROS);
    library(
        "the-uses",
        "[dependencies]\nmacros = { path = \"../macros\" }\n",
    );
    machine.write(
        "the-uses/src/lib.rs",
        "pub const LISTED: &str = macros::listed!();\npub const READ: &str = macros::read!();\n",
    );
    for name in assets {
        machine.write(&format!("the-uses/assets/{name}"), "");
    }
    machine.write("the-uses/conf.toml", conf);
    library("other", "");
    machine.write("other/src/lib.rs", "pub fn other() {}\n");
    let dependencies =
        "[dependencies]\nthe-uses = { path = \"../the-uses\" }\nother = { path = \"../other\" }\n";
    library("show", dependencies);
    machine.write(
        "show/src/main.rs",
        "fn main() { other::other(); println!(\"{}, {}\", the_uses::LISTED, the_uses::READ) }\n",
    );
}

/// What the program of a clean build shows.
#[track_caller]
fn shown(machine: &Machine, dock: &Dock, lane: &str, own: &str) -> String {
    let outcome = machine.with_env(
        dock,
        lane,
        &format!(
            "rm -rf target; sccache-dock at /sdit-own --cargo-home /sdit-own-cargo {own} -- \
             cargo build --offline --quiet && ./target/debug/show"
        ),
    );
    assert_eq!(outcome.code, Some(0), "{}", outcome.output);
    outcome.output.trim().to_owned()
}

fn hits(dock: &Dock) -> u64 {
    counts(&dock.status().unwrap()).0
}

#[test]
fn each_checkout_shows_what_its_own_files_say() {
    let named = "[workspace.metadata.sccache-dock]\nown-results = [\"the-uses\"]\n";
    for (lane, own, workspace) in [
        ("--lane webdav --no-disk", "--own-results the-uses", ""),
        ("--lane ipc", "", named),
    ] {
        let dock = Dock::start(&[]);
        let [one, two] = [Machine::new(), Machine::new()];
        checkout(&one, &["a"], "one", workspace);
        checkout(&two, &["a", "b"], "two", workspace);
        assert_eq!(shown(&one, &dock, lane, own), "a, one", "{lane}");
        assert_eq!(hits(&dock), 0);
        assert_eq!(shown(&two, &dock, lane, own), "a b, two", "{lane}");
        assert_eq!(hits(&dock), 1, "the other crate is shared as before");
        assert_eq!(shown(&one, &dock, lane, own), "a, one", "{lane}");
        assert_eq!(hits(&dock), 3, "both are hits in the same checkout");
        fs::write(one.work().join("the-uses/conf.toml"), "changed").unwrap();
        assert_eq!(shown(&one, &dock, lane, own), "a, changed", "{lane}");
        assert_eq!(hits(&dock), 4);
    }
}

/// What a macro asks git for changes without any file of the checkout.
#[test]
fn result_of_another_commit_or_tag_is_not_taken() {
    let dock = Dock::start(&[]);
    let machine = Machine::new();
    checkout(&machine, &["a"], "one", "");
    machine.write(
        "the-uses/src/lib.rs",
        "pub const LISTED: &str = macros::described!();\npub const READ: &str = macros::read!();\n",
    );
    machine.write(".gitignore", "target\n");
    let git = |commands: &str| {
        let script = format!(
            "git() {{ command git -c user.name=n -c user.email=e@example.com \"$@\" || exit; }}\n{commands}"
        );
        let outcome = machine.sh(&script);
        assert_eq!(outcome.code, Some(0), "{}", outcome.output);
    };
    git(
        "cargo generate-lockfile --offline; git init -q -b main .; git add .; git commit -qm one; git tag v1",
    );
    let shown = |expected: &str, hits_after: u64| {
        let lane = "--lane webdav --no-disk";
        let found = shown(&machine, &dock, lane, "--own-results the-uses");
        assert_eq!((found.as_str(), hits(&dock)), (expected, hits_after));
    };
    shown("v1, one", 0);
    git("git tag -d v1; git tag v2");
    shown("v2, one", 1);
    git(
        "git switch -q -c two; echo two >the-uses/conf.toml; git commit -qam two; git tag v3; git switch -q main",
    );
    shown("v2, one", 2);
    git("git switch -q two");
    shown("v3, two", 3);
    // Staged or not, there is a difference to the commit.
    git("echo three >the-uses/conf.toml; git add .");
    shown("v3-dirty, three", 4);
    // The same files, committed.
    git("git commit -qm three; git tag v4");
    shown("v4, three", 5);
}

/// What a macro reads may depend on more than the checkout.
#[test]
fn result_of_another_output_of_the_build_script_is_not_taken() {
    let dock = Dock::start(&[]);
    let machine = Machine::new();
    checkout(&machine, &["a"], "one", "");
    machine.write(
        "the-uses/src/lib.rs",
        "pub const LISTED: &str = macros::made!();\npub const READ: &str = macros::read!();\n",
    );
    machine.write(
        "the-uses/build.rs",
        "fn main() {
            let text = std::fs::read(std::env::var(\"HOME\").unwrap() + \"/made.txt\").unwrap();
            std::fs::write(std::env::var(\"OUT_DIR\").unwrap() + \"/made.txt\", text).unwrap();
        }",
    );
    let locked = machine.sh("cargo generate-lockfile --offline");
    assert_eq!(locked.code, Some(0), "{}", locked.output);
    for (made, expected) in [("x", 0), ("y", 1), ("x", 3)] {
        fs::write(machine.work().join("../made.txt"), made).unwrap();
        let lane = "--lane webdav --no-disk";
        let built = shown(&machine, &dock, lane, "--own-results the-uses");
        assert_eq!(built, format!("{made}, one"));
        assert_eq!(hits(&dock), expected);
    }
}

#[test]
fn c_of_build_scripts_is_still_cached() {
    let dock = Dock::start(&[]);
    let machine = Machine::new();
    machine.write("Cargo.toml", "[workspace]\n");
    machine.write("it.c", "int it;\n");
    // As the crate `cc` does it, which asks for the wrapper's name.
    let compile = "case $RUSTC_WRAPPER in */sccache) $RUSTC_WRAPPER gcc -c it.c -o it.o;; esac";
    for expected in 0..2 {
        let script = format!(
            "rm -f it.o; sccache-dock at /sdit-own --cargo-home /sdit-own-cargo --own-results it -- sh -c '{compile}' \
             && test -s it.o"
        );
        let outcome = machine.with_env(&dock, "--lane webdav --no-disk", &script);
        assert_eq!(outcome.code, Some(0), "{}", outcome.output);
        assert_eq!(hits(&dock), expected);
    }
}
