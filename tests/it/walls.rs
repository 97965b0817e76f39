//! The walls between the wings of the house, as ARCHITECTURE.md draws them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// From the ground up: a wing imports those before it.
const WINGS: [&str; 15] = [
    "exit",
    "base",
    "contract",
    "explain",
    "config",
    "supervisor",
    "store",
    "client",
    "gateway",
    "dist_front",
    "serve",
    "builder",
    "admin",
    "doctor",
    "cli",
];

/// What must not be in PID 1: it would double its memory.
const NOT_IN_PID_1: [&str; 7] = [
    "rustls", "ring", "hyper", "tokio", "reqwest", "opendal", "clap",
];

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn files_of(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files_of(&path, found);
        } else if path.extension().is_some_and(|end| end == "rs") {
            found.push(path);
        }
    }
}

/// The files of each wing, those of tests left out.
fn wings() -> BTreeMap<String, Vec<PathBuf>> {
    let mut files = Vec::new();
    files_of(&source(), &mut files);
    let mut wings = BTreeMap::<String, Vec<PathBuf>>::new();
    for file in files {
        let path = file.strip_prefix(source()).unwrap().with_extension("");
        let parts: Vec<&str> = path.iter().map(|part| part.to_str().unwrap()).collect();
        let is_root = matches!(parts[..], ["lib" | "main"] | ["bin", ..]);
        if !is_root && !parts.contains(&"tests") {
            wings.entry(parts[0].to_owned()).or_default().push(file);
        }
    }
    wings
}

/// The code of a file: no comments, nothing from its tests on.
fn code(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap();
    let code = text.split("#[cfg(test)]\nmod ").next().unwrap();
    let lines = code.lines().map(|line| line.split("//").next().unwrap());
    lines.collect::<Vec<_>>().join("\n")
}

/// The wings that stand behind `crate::` in this code, also those in braces.
fn imports(code: &str) -> Vec<String> {
    let word = |text: &str| {
        let end = text.find(|one: char| !one.is_alphanumeric() && one != '_');
        text[..end.unwrap_or(text.len())].to_owned()
    };
    let mut found = Vec::new();
    for rest in code.split("crate::").skip(1) {
        let Some(group) = rest.strip_prefix('{') else {
            found.push(word(rest));
            continue;
        };
        let (mut depth, mut begins) = (0, true);
        for (at, one) in group.char_indices() {
            match one {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' => begins = depth == 0,
                _ if one.is_whitespace() => {}
                _ if begins => {
                    found.push(word(&group[at..]));
                    begins = false;
                }
                _ => {}
            }
        }
    }
    found
}

#[test]
fn no_wing_imports_one_above_it() {
    let wings = wings();
    let known: Vec<&str> = wings.keys().map(String::as_str).collect();
    let mut listed = WINGS.to_vec();
    listed.sort_unstable();
    assert_eq!(known, listed, "the wings of src/ and those of this test");
    let floor = |wing: &str| WINGS.iter().position(|one| *one == wing);
    let mut upward = Vec::new();
    for (wing, files) in &wings {
        for file in files {
            for import in imports(&code(file)) {
                if floor(&import) > floor(wing) {
                    upward.push(format!("{} imports {import}", file.display()));
                }
            }
        }
    }
    assert_eq!(upward, [""; 0], "arrows that run up");
}

#[test]
fn imports_are_found_in_braces_and_in_paths() {
    let code = "use crate::{base::{a, b}, store, config::c};\nlet x = crate::exit::OK;";
    assert_eq!(imports(code), ["base", "store", "config", "exit"]);
}

#[test]
fn store_needs_no_runtime_and_no_http() {
    for file in &wings()["store"] {
        let code = code(file);
        for library in ["tokio", "hyper"] {
            assert!(!code.contains(library), "{library} in {}", file.display());
        }
    }
}

#[test]
fn pid_1_holds_no_http_no_tls_and_no_command_line() {
    let output = Command::new("nm")
        .arg("--demangle")
        .arg(env!("CARGO_BIN_EXE_sccache-dock-run"))
        .output()
        .unwrap();
    let symbols = String::from_utf8(output.stdout).unwrap();
    assert!(symbols.contains("sccache_dock::supervisor::"));
    for library in NOT_IN_PID_1 {
        let path = format!("{library}::");
        let is_its = |line: &&str| {
            line.match_indices(&path).any(|(at, _)| {
                !line[..at].ends_with(|one: char| one.is_alphanumeric() || one == '_')
            })
        };
        let found = symbols.lines().find(is_its);
        assert_eq!(found, None, "{library} is linked into sccache-dock-run");
    }
}
