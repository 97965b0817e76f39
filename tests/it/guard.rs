//! Rust jobs that look for what was not sent: the client compiles them, and their programs are right.

mod list;

use crate::distributed::{Farm, distributed, is_possible, reported_of, terms};
use sccache_dock::builder::guard::Guard;
use sccache_dock::builder::shim::Report;
use sccache_dock::contract::sent_home::Reason;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Macros that look around on the machine that compiles, and go on with a default where they find nothing.
const CURIOUS: &str = r#"
use proc_macro::TokenStream;
use std::path::PathBuf;
use std::process::Command;

fn own(name: &str) -> PathBuf {
    PathBuf::from(std::env::var("CARGO_MANIFEST_DIR").unwrap()).join(name)
}

fn text(found: Option<String>) -> TokenStream {
    format!("{:?}", found.as_deref().unwrap_or("default").trim()).parse().unwrap()
}

#[proc_macro]
pub fn file(_: TokenStream) -> TokenStream {
    text(std::fs::read_to_string(own("conf/app.toml")).ok())
}

#[proc_macro]
pub fn folder(_: TokenStream) -> TokenStream {
    let mut names: Vec<_> = std::fs::read_dir(own("src")).unwrap().flatten().map(|one| one.file_name()).collect();
    names.sort();
    text(Some(format!("{names:?}")))
}

#[proc_macro]
pub fn program(_: TokenStream) -> TokenStream {
    let git = Command::new("git").args(["describe", "--tags"]).current_dir(own(".")).output();
    text(git.ok().filter(|one| one.status.success()).and_then(|one| String::from_utf8(one.stdout).ok()))
}

#[proc_macro]
pub fn network(_: TokenStream) -> TokenStream {
    let address = std::fs::read_to_string(own("src/address.txt")).unwrap();
    let reached = std::net::TcpStream::connect(address.trim()).is_ok();
    text(reached.then(|| "reached".into()))
}

#[proc_macro]
pub fn plain(input: TokenStream) -> TokenStream {
    text(Some(input.to_string()))
}
"#;

/// One library for each macro, so that each is a job of its own, and a program that shows what they came to.
fn project(farm: &Farm, address: &str) {
    let kinds = ["file", "folder", "program", "network", "plain"];
    let package = |name: &str, rest: &str| {
        format!("[package]\nname = \"{name}\"\nversion = \"0.1.0\"\nedition = \"2021\"\n{rest}")
    };
    let mut needed = String::from("[dependencies]\n");
    let mut shown = String::new();
    for kind in kinds {
        let name = format!("by_{kind}");
        needed += &format!("{name} = {{ path = \"{name}\" }}\n");
        shown += &format!("println!(\"{kind}: {{}}\", {name}::TEXT);");
        let needs = "[dependencies]\ncurious = { path = \"../curious\" }\n";
        farm.client
            .write(&format!("{name}/Cargo.toml"), &package(&name, needs));
        farm.client.write(
            &format!("{name}/src/lib.rs"),
            &format!("pub const TEXT: &str = curious::{kind}!(as it is);\n"),
        );
    }
    farm.client
        .write("by_file/conf/app.toml", "from the file\n");
    farm.client.write("by_folder/src/more.txt", "");
    // Sent along, so that only the connection is missing.
    farm.client.write(
        "by_network/src/lib.rs",
        "pub const ADDRESS: &str = include_str!(\"address.txt\");\n\
         pub const TEXT: &str = curious::network!();\n",
    );
    farm.client.write("by_network/src/address.txt", address);
    farm.client.write(
        "curious/Cargo.toml",
        &package("curious", "[lib]\nproc-macro = true\n"),
    );
    farm.client.write("curious/src/lib.rs", CURIOUS);
    let workspace = format!("{needed}[workspace]\n");
    farm.client
        .write("Cargo.toml", &package("show", &workspace));
    farm.client
        .write("src/main.rs", &format!("fn main() {{ {shown} }}\n"));
    let prepared = farm.client.sh(
        "git init -q . && printf 'target\\n' >.gitignore && git add . &&\
         git -c user.name=n -c user.email=e@x commit -qm one && git tag v1.0 && cargo generate-lockfile -q",
    );
    assert_eq!(prepared.code, Some(0), "{}", prepared.output);
}

#[test]
fn macro_that_looks_for_what_was_not_sent_makes_what_it_would_have_made_at_home() {
    let Some(farm) = Farm::start() else { return };
    let peer = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    project(&farm, &peer.local_addr().unwrap().to_string());
    // One after another: the builder has one slot.
    let build = "cargo build -q --offline --jobs 1 && target/debug/show";
    let plain = farm.client.sh(build);
    assert_eq!(
        plain.output,
        "file: from the file\nfolder: [\"lib.rs\", \"more.txt\"]\nprogram: v1.0\nnetwork: reached\nplain: as it is\n"
    );
    let again = format!("rm -r target && RUSTC_WRAPPER=sccache CARGO_INCREMENTAL=0 {build}");
    let built = farm.client(&again);
    assert_eq!(built.output, plain.output);
    assert_eq!(distributed(&farm.statistics()), (1, 4));
    // What was stored is as right.
    let hit = farm.client(&again);
    assert_eq!(hit.output, plain.output);
    let statistics = farm.statistics();
    assert_eq!(distributed(&statistics), (1, 4));
    assert_eq!(
        statistics["cache_hits"]["counts"]["Rust"], 5,
        "{statistics}"
    );
    let status = farm.dock.command(&["status"]);
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    for home in [
        "1 jobs of by_file went home: the last looked for ",
        "1 jobs of by_folder went home: the last listed ",
        "1 jobs of by_program went home: the last ran git",
        "1 jobs of by_network went home: the last opened a socket",
    ] {
        assert!(status.contains(home), "{home}: {status}");
    }
    assert!(!status.contains("by_plain"), "{status}");
}

/// What would be compiled for the builder's CPU, or there by another assembler.
#[test]
fn job_whose_flags_mean_something_else_on_a_builder_is_its_clients() {
    let Some(farm) = Farm::start() else { return };
    farm.write("it.c", "int it(void) { return 1; }\n");
    farm.write("it.rs", "pub fn it() {}\n");
    farm.write(
        "own/as",
        "#!/bin/sh\nexec /usr/bin/as --defsym own=1 \"$@\"\n",
    );
    let built = farm.client("chmod +x own/as; sccache cc -c it.c -o plain.o");
    assert_eq!(built.code, Some(0), "{}", built.output);
    assert_eq!(distributed(&farm.statistics()), (1, 0));
    let rustc = "sccache rustc --crate-name it --crate-type lib --emit link --out-dir . it.rs";
    for (at, build) in [
        "sccache cc -march=native -c it.c -o native.o",
        "sccache cc -Bown -c it.c -o folder.o && nm folder.o | grep ' own$'",
        "export COMPILER_PATH=own && sccache cc -c it.c -o path.o -DOTHER && nm path.o | grep ' own$'",
        &format!("{rustc} -Ctarget-cpu=native"),
    ]
    .iter()
    .enumerate()
    {
        let built = farm.client(build);
        assert_eq!(built.code, Some(0), "{build}: {}", built.output);
        let counts = distributed(&farm.statistics());
        assert_eq!(counts, (1, at as u64 + 1), "{build}");
    }
    let status = farm.dock.command(&["status"]);
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    for home in [
        "1 jobs of native.o went home: the last asked about the machine: -march=native",
        "1 jobs of folder.o went home: the last looked for -Bown",
        "1 jobs of path.o went home: the last looked for COMPILER_PATH",
        "1 jobs of it went home: the last asked about the machine: target-cpu=native",
    ] {
        assert!(status.contains(home), "{home}: {status}");
    }
}

/// Libraries that use the macros, compiled as jobs without a cluster: all files are there, but not all that is looked for.
struct Bench {
    folder: tempfile::TempDir,
    rustc: PathBuf,
}

impl Bench {
    fn new() -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let sysroot = Command::new("rustc").args(["--print", "sysroot"]).output();
        let sysroot = String::from_utf8(sysroot.unwrap().stdout).unwrap();
        let bench = Bench {
            folder,
            rustc: Path::new(sysroot.trim()).join("bin/rustc"),
        };
        std::fs::create_dir(bench.folder.path().join("out")).unwrap();
        bench.write("curious.rs", MORE_CURIOUS);
        let made = Command::new(&bench.rustc)
            .args([
                "--edition=2021",
                "--crate-type=proc-macro",
                "--extern=proc_macro",
            ])
            .args(["--crate-name=curious", "curious.rs"])
            .current_dir(bench.folder.path())
            .status();
        assert!(made.unwrap().success());
        bench
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.folder.path().join(name), text).unwrap();
    }

    /// Whether it counts as a success, and why not.
    fn compile(&self, guard: Guard, text: &str) -> (bool, Option<(Reason, String)>) {
        self.write("it.rs", text);
        let (rustc, folder) = (self.rustc.display(), self.folder.path().display());
        let line = format!(
            "{rustc} --edition=2021 --crate-name it --crate-type lib --emit=dep-info,metadata,link --out-dir {folder}/out \
             -L dependency={folder} --extern curious={folder}/libcurious.so {folder}/it.rs"
        );
        self.run(guard, &line.split(' ').collect::<Vec<_>>())
    }

    fn run(&self, guard: Guard, words: &[&str]) -> (bool, Option<(Reason, String)>) {
        let mut terms = terms();
        terms.guard = Some(guard);
        terms.memory_bytes = 2 << 30;
        let (output, report) = reported_of(terms, words);
        let Report::Ended { home, .. } = report else {
            panic!("{report:?}");
        };
        let success = output.status.success();
        assert!(success || output.status.code().is_none(), "{output:?}");
        (success, home.map(|home| (home.reason, home.what)))
    }
}

/// Each does one thing that its input names, and makes nothing of it.
const MORE_CURIOUS: &str = r#"
use proc_macro::TokenStream;
#[proc_macro]
pub fn does(input: TokenStream) -> TokenStream {
    let input = input.to_string();
    let (what, path) = input.split_once(' ').unwrap_or((&input, ""));
    let path = path.trim().trim_matches('"');
    match what {
        "nothing" => {}
        "read" => drop(std::fs::read(path)),
        "open" => drop(std::fs::File::open(path)),
        "ask" => drop(std::fs::metadata(path)),
        "resolve" => drop(std::fs::canonicalize(path)),
        "list" => drop(std::fs::read_dir(path)),
        "write" => drop(std::fs::write(path, "")),
        "run" => drop(std::process::Command::new(path).status()),
        "send" => drop(std::net::UdpSocket::bind("127.0.0.1:0")),
        "thread" => {
            let path = path.to_owned();
            drop(std::thread::spawn(move || std::fs::read(path)).join());
        }
        other => panic!("{other}"),
    }
    TokenStream::new()
}
"#;

#[test]
fn whatever_a_macro_looks_for_in_vain_ends_its_job_with_the_reason() {
    if !is_possible() {
        return;
    }
    let bench = Bench::new();
    let here = bench.folder.path().display().to_string();
    let none = format!("{here}/none");
    let listed = format!("{here}/more");
    std::fs::create_dir(&listed).unwrap();
    let elsewhere = format!("/var/tmp/guard-{}", std::process::id());
    for does in [
        "nothing".to_owned(),
        format!("read {:?}", format!("{here}/it.rs")),
        format!("ask {here:?}"),
        format!("resolve {here:?}"),
        "read \"/proc/self/maps\"".into(),
        "write \"/dev/null\"".into(),
    ] {
        let compiled = bench.compile(Guard::Watch, &format!("curious::does!({does});"));
        assert_eq!(compiled, (true, None), "{does}");
    }
    for (does, reason, what) in [
        ("read", Reason::File, &none),
        ("ask", Reason::File, &none),
        ("resolve", Reason::File, &none),
        ("thread", Reason::File, &none),
        ("list", Reason::Folder, &listed),
        // Of libraries, and the compiler lists it as well.
        ("list", Reason::Folder, &here),
        ("open", Reason::Folder, &listed),
        ("write", Reason::Write, &elsewhere),
        ("run", Reason::Program, &"true".to_owned()),
        ("send", Reason::Network, &"socket".to_owned()),
        (
            "read",
            Reason::Machine,
            &"/proc/sys/kernel/hostname".to_owned(),
        ),
    ] {
        let compiled = bench.compile(Guard::Watch, &format!("curious::does!({does} {what:?});"));
        assert_eq!(compiled, (false, Some((reason, what.clone()))), "{does}");
    }
    // It never came to that.
    assert!(!Path::new(&elsewhere).exists());
}

#[test]
fn module_in_either_of_its_two_places_is_no_reason() {
    if !is_possible() {
        return;
    }
    let bench = Bench::new();
    std::fs::create_dir(bench.folder.path().join("b")).unwrap();
    bench.write("a.rs", "");
    bench.write("b/mod.rs", "");
    let text = "mod a; mod b; curious::does!(nothing);";
    assert_eq!(bench.compile(Guard::Watch, text), (true, None));
}

#[test]
fn job_that_cannot_be_watched_does_not_count() {
    if !is_possible() {
        return;
    }
    let bench = Bench::new();
    // Without a thread there is nothing to tell the compiler by.
    let unseen = bench.folder.path().join("clippy-driver");
    std::os::unix::fs::symlink("/bin/true", &unseen).unwrap();
    let (success, home) = bench.run(Guard::Watch, &[unseen.to_str().unwrap()]);
    assert_eq!((success, home.unwrap().0), (false, Reason::Unwatched));
    let unknown = bench.compile(Guard::List, "curious::does!(nothing);");
    assert_eq!(unknown, (false, Some((Reason::Macro, "curious".into()))));
}
