//! C by each lane: the object is the one that the compiler makes of the headers and lines that are there, whoever has
//! compiled before, and all lanes share what they can.

use crate::dock::{Dock, eventually};
use crate::harness::skip;
use crate::machine::Machine;
use crate::site::free_port;
use std::fs;
use std::path::Path;

const LANES: [&str; 4] = [
    "--lane webdav",
    "--lane webdav --no-disk",
    "--lane ipc",
    "--lane socket",
];

/// Hits, misses and writes of compile results.
fn counts(dock: &Dock) -> (u64, u64, u64) {
    let status = dock.status().unwrap();
    let counters = &status["cache"]["namespaces"]["default"];
    let count = |name: &str| counters[name].as_u64().unwrap_or(0);
    (count("hits"), count("misses"), count("writes"))
}

/// Runs `compile` with sccache before the compiler, then without; both must leave the same `it.o`.
#[track_caller]
fn same_as_plain(machine: &Machine, dock: &Dock, lane: &str, compile: &str) {
    let (first, rest) = compile.split_once(" && ").unwrap_or(("true", compile));
    let script = format!(
        "set -e; {first}; sccache {rest}; mv it.o cached.o; {rest}; cmp cached.o it.o; rm -f it.o cached.o"
    );
    let outcome = machine.with_env(dock, lane, &script);
    assert_eq!(
        outcome.code,
        Some(0),
        "{lane}: {compile}:\n{}",
        outcome.output
    );
}

/// A project of one source at `folder`, with the header in the second folder of the search path, and perhaps one more
/// in the first.
fn project(folder: &Path, first: bool) {
    let _ = fs::remove_dir_all(folder);
    for inc in ["one", "two"] {
        fs::create_dir_all(folder.join(inc)).unwrap();
    }
    fs::write(folder.join("it.c"), "#include \"it.h\"\nint v = V;\n").unwrap();
    fs::write(folder.join("two/it.h"), "#define V 2\n").unwrap();
    if first {
        fs::write(folder.join("one/it.h"), "#define V 1\n").unwrap();
    }
}

#[test]
fn user_with_one_more_header_gets_an_object_of_its_own() {
    let dock = Dock::start(&[]);
    for lane in LANES {
        // At one path for both, as in two containers.
        let shared = tempfile::tempdir().unwrap();
        let folder = shared.path().join("project");
        let compile = format!("cd {} && gcc -Ione -Itwo -c it.c -o it.o", folder.display());
        project(&folder, false);
        let first = Machine::new();
        for _ in 0..2 {
            same_as_plain(&first, &dock, lane, &compile);
        }
        project(&folder, true);
        same_as_plain(&Machine::new(), &dock, lane, &compile);
    }
}

#[test]
fn entries_of_direct_mode_that_somebody_has_stored_are_not_used() {
    let dock = Dock::start(&[]);
    let namespaces = |dock: &Dock| dock.status().unwrap()["cache"]["namespaces"].clone();
    let machine = Machine::new();
    machine.write("it.h", "#define V 1\n");
    machine.write("it.c", "#include \"it.h\"\nint v = V;\n");
    for lane in ["--lane ipc", "--lane socket"] {
        same_as_plain(&machine, &dock, lane, "gcc -c it.c -o it.o");
        let found = namespaces(&dock);
        let names: Vec<&String> = found.as_object().unwrap().keys().collect();
        assert_eq!(names, ["default"], "only results are kept");
    }
}

#[test]
fn c_of_each_lane_is_hit_by_the_others() {
    let dock = Dock::start(&[]);
    let machine = Machine::new();
    for (round, writer) in LANES.iter().enumerate() {
        machine.write("it.c", &format!("int it_{round}(void) {{ return 1; }}"));
        let (hits, misses, writes) = counts(&dock);
        let script = "sccache gcc -g -c it.c -o it.o";
        let readers = LANES.iter().filter(|lane| *lane != writer);
        for (turn, lane) in [writer].into_iter().chain(readers).enumerate() {
            let outcome = machine.with_env(&dock, lane, script);
            assert_eq!(outcome.code, Some(0), "{lane}: {}", outcome.output);
            let expected = (hits + turn as u64, misses + 1, writes + 1);
            // With a disk level the write is in the background.
            eventually(&format!("{lane} after {writer}: {expected:?}"), || {
                (counts(&dock) == expected).then_some(())
            });
        }
    }
}

/// Formats for files, which cannot say where a folder of the user's own is.
#[test]
fn c_of_a_file_without_a_disk_is_hit_by_the_others() {
    let dock = Dock::start(&[]);
    let build = "fn main() {
        let mut sccache = std::process::Command::new(\"sccache\");
        let compile = [\"gcc\", \"-g\", \"-c\", \"it.c\", \"-o\", \"it.o\"];
        assert!(sccache.args(compile).status().unwrap().success());
    }";
    for (format, file, script) in [
        (
            "cargo",
            ".cargo/config.toml",
            "cargo build --offline --quiet",
        ),
        (
            "toml",
            "sccache.toml",
            "SCCACHE_CONF=$PWD/sccache.toml SCCACHE_SERVER_UDS=$PWD/sock sccache gcc -g -c it.c -o it.o",
        ),
    ] {
        let machine = Machine::new();
        let printed = dock.command(&["client-env", "--no-disk", "--format", format]);
        machine.write(file, &String::from_utf8(printed.stdout).unwrap());
        machine.write(
            "Cargo.toml",
            "[package]\nname = \"it\"\nedition = \"2024\"\n",
        );
        machine.write("src/lib.rs", "");
        machine.write("build.rs", build);
        let text = format!("int it_{format}(void) {{ return 1; }}");
        machine.write("it.c", &text);
        let (hits, ..) = counts(&dock);
        for (script, expected) in [(script, hits), ("sccache gcc -g -c it.c -o it.o", hits + 1)] {
            let outcome = match expected == hits {
                true => machine.sh(script),
                false => machine.with_env(&dock, "--lane webdav", script),
            };
            assert_eq!(outcome.code, Some(0), "{format}: {}", outcome.output);
            assert_eq!(counts(&dock).0, expected, "{format}: {}", outcome.output);
        }
    }
}

#[test]
fn c_of_a_cluster_is_hit_without_one() {
    if !Path::new("/usr/bin/bwrap").exists() {
        return skip("bubblewrap is not installed");
    }
    let [front, builder] = [free_port(), free_port()].map(|port| format!("127.0.0.1:{port}"));
    let dock = Dock::start(&[
        ("MODE", "distributed-ephemeral"),
        ("SCCACHE_SCHEDULER_LISTEN", &front),
        ("SCCACHE_BUILDER_LISTEN", &builder),
        ("SCCACHE_PUBLIC_ADDR", "127.0.0.1"),
    ]);
    let machine = Machine::new();
    machine.write("it.c", "int it(void) { return 1; }");
    let dist = format!("--lane dist --scheduler http://{front}");
    for (lane, expected) in [(&*dist, (0, 1, 1)), ("--lane webdav", (1, 1, 1))] {
        let outcome = machine.with_env(&dock, lane, "sccache gcc -g -c it.c -o it.o");
        assert_eq!(outcome.code, Some(0), "{lane}: {}", outcome.output);
        eventually(&format!("{lane}: {expected:?}"), || {
            (counts(&dock) == expected).then_some(())
        });
    }
}

#[test]
fn lines_in_the_debug_information_are_those_of_the_source() {
    let dock = Dock::start(&[]);
    for lane in LANES {
        let machine = Machine::new();
        let text = "int it(int *p) {\n  return *p;\n}\n";
        for above in ["", "// One.\n// Two.\n"] {
            machine.write("it.c", &format!("{above}{text}"));
            same_as_plain(&machine, &dock, lane, "gcc -g -c it.c -o it.o");
        }
    }
}

/// With sccache's own variable for it, which the set takes away where it is not safe.
#[test]
fn checkouts_with_basedirs_get_objects_of_their_own() {
    let dock = Dock::start(&[]);
    for (lane, shares) in [("--lane webdav", false), ("--lane webdav --no-disk", true)] {
        let machine = Machine::new();
        let folders = ["a", "b", "c"].map(|name| machine.work().join(name));
        for (folder, value) in folders.iter().zip([1, 2, 2]) {
            fs::create_dir_all(folder.join("inc")).unwrap();
            fs::write(folder.join("inc/it.h"), format!("#define V {value}\n")).unwrap();
            fs::write(folder.join("it.c"), "#include \"it.h\"\nint v = V;\n").unwrap();
        }
        let printed = machine.with_env(&dock, lane, "true");
        assert_eq!(printed.code, Some(0), "{}", printed.output);
        let all: Vec<String> = folders.iter().map(|it| it.display().to_string()).collect();
        for folder in &all {
            let (hits, ..) = counts(&dock);
            let compile = format!("gcc -I{folder}/inc -c it.c -o");
            // As users do it: the variable in the shell's profile, then the set.
            let outcome = machine.sh(&format!(
                "set -e; export SCCACHE_BASEDIRS={}; eval \"$(cat ~/client-env)\"; cd {folder}
                 sccache {compile} cached.o; {compile} it.o; cmp cached.o it.o",
                all.join(":")
            ));
            assert_eq!(outcome.code, Some(0), "{lane} {folder}: {}", outcome.output);
            if shares && folder.ends_with('c') {
                assert_eq!(counts(&dock).0, hits + 1, "the same headers as in b");
            }
        }
    }
}
