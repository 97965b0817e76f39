//! A builder where nothing can be watched: the list of harmless macros decides, and what it says is seen everywhere.

use crate::distributed::{Farm, distributed};
use crate::dock::eventually;
use std::path::Path;
use std::process::Command;

/// A program that runs others where ptrace is forbidden.
fn without_ptrace(folder: &Path) -> String {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/guard/without_ptrace.c");
    let program = folder.join("without_ptrace");
    let made = Command::new("cc")
        .arg("-o")
        .arg(&program)
        .arg(source)
        .status();
    assert!(made.unwrap().success());
    program.display().to_string()
}

#[test]
fn builder_that_cannot_watch_takes_the_jobs_whose_macros_are_known_and_says_why_others_go_home() {
    let tools = tempfile::tempdir().unwrap();
    let above = without_ptrace(tools.path());
    let dir = tempfile::tempdir().unwrap();
    let Some(farm) = Farm::start_below(&[&above], dir, &[]) else {
        return;
    };
    farm.dock.wait_log("cannot watch the jobs");
    farm.dock
        .wait_log("Rust jobs with macros that are not known to look for nothing go home");
    let package = |name: &str, rest: &str| {
        format!("[package]\nname = \"{name}\"\nversion = \"0.1.0\"\nedition = \"2021\"\n{rest}")
    };
    // One macro by the name of a harmless one, one that nobody knows and that reads a file, and a crate for each.
    let macros = "use proc_macro::TokenStream;
        #[proc_macro]
        pub fn text(_: TokenStream) -> TokenStream {
            let folder = std::env::var(\"CARGO_MANIFEST_DIR\").unwrap();
            let read = std::fs::read_to_string(folder + \"/conf.txt\");
            format!(\"{:?}\", read.unwrap_or_else(|_| \"default\".into())).parse().unwrap()
        }";
    for (name, uses) in [("paste", "by_paste"), ("curious", "by_curious")] {
        farm.write(
            &format!("{name}/Cargo.toml"),
            &package(name, "[lib]\nproc-macro = true\n"),
        );
        farm.write(&format!("{name}/src/lib.rs"), macros);
        let needs = format!("[dependencies]\n{name} = {{ path = \"../{name}\" }}\n");
        farm.write(&format!("{uses}/Cargo.toml"), &package(uses, &needs));
        farm.write(
            &format!("{uses}/src/lib.rs"),
            &format!("pub const TEXT: &str = {name}::text!();\n"),
        );
    }
    farm.write("by_curious/conf.txt", "from the file");
    farm.write("none/Cargo.toml", &package("none", ""));
    farm.write("none/src/lib.rs", "pub const TEXT: &str = \"none\";\n");
    let needed = ["none", "by_paste", "by_curious"];
    let needed: String = needed
        .map(|name| format!("{name} = {{ path = \"{name}\" }}\n"))
        .concat();
    let workspace = format!("[dependencies]\n{needed}[workspace]\n");
    farm.write("Cargo.toml", &package("show", &workspace));
    farm.write(
        "src/main.rs",
        "fn main() { println!(\"{} {} {}\", none::TEXT, by_paste::TEXT, by_curious::TEXT); }\n",
    );
    // Often enough for it to be no coincidence: each build has another key.
    for round in 1..=3_u64 {
        let build = format!(
            "rm -rf target && export RUSTFLAGS='--cfg round_{round}' RUSTC_WRAPPER=sccache CARGO_INCREMENTAL=0 &&
             cargo build -q --offline --jobs 1 && target/debug/show"
        );
        let built = farm.client(&build);
        // A macro of a harmless one's name is taken at its word.
        assert_eq!(built.output, "none default from the file\n");
        assert_eq!(distributed(&farm.statistics()), (2 * round, round));
    }
    let status = farm.dock.command(&["status"]);
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    let home =
        "3 jobs of by_curious went home: the last may use curious, and cannot be watched here";
    assert!(status.contains(home), "{status}");
    assert!(!status.contains("by_paste"), "{status}");
    let (token, address) = (farm.dock.token(), farm.dock.address());
    let metrics = eventually("the metrics", || {
        let found = farm.client(&format!(
            "curl -s -H 'Authorization: Bearer {token}' http://{address}/metrics"
        ));
        found.output.contains("sent_home").then_some(found.output)
    });
    let line =
        "sccache_dock_dist_local_jobs_sent_home_total{crate=\"by_curious\",reason=\"macro\"} 3";
    assert!(metrics.lines().any(|found| found == line), "{metrics}");
    // On the client and in the container.
    let doctor = farm
        .client
        .with_env(&farm.dock, "--lane dist", "sccache-dock doctor");
    let named = "by_curious (3 times; the last may use curious, and cannot be watched here)";
    assert!(doctor.output.contains(named), "{}", doctor.output);
    let inside = farm.dock.command(&["doctor"]);
    let inside = String::from_utf8_lossy(&inside.stdout).into_owned();
    assert!(inside.contains(named), "{inside}");
}
