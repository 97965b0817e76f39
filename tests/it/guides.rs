//! The guides of `docs/`: what they tell to type is typed here, in order, in the checkout of a small crate.
//!
//! A block of shell is run, unless it is marked `sh elsewhere`: then it needs what a test has not, and only its grammar
//! is checked. A block marked `file=NAME` is written to that file first. Every other kind of block is parsed.

use crate::dock::Dock;
use crate::docker::{LONG, run};
use crate::harness::{clean, sccache_bin, skip, wait_for};
use crate::machine::{Machine, kill_daemons};
use crate::site::{Script, Site, free_port};
use crate::upstream::Redis;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const GUIDES: &[&str] = &[
    "checkouts",
    "ci",
    "cpp",
    "cross",
    "docker-builds",
    "laptop",
    "migrate",
    "team",
];

/// What stands between two fences.
struct Block {
    language: String,
    mark: String,
    text: String,
}

impl Block {
    fn is_run(&self) -> bool {
        self.language == "sh" && self.mark != "elsewhere"
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn guide(name: &str) -> String {
    fs::read_to_string(root().join("docs").join(name).with_extension("md")).unwrap()
}

fn blocks(text: &str) -> Vec<Block> {
    let (mut blocks, mut open): (Vec<Block>, bool) = (Vec::new(), false);
    for line in text.lines() {
        match (line.trim_start().strip_prefix("```"), open) {
            (Some(_), true) => open = false,
            (Some(fence), false) => {
                let (language, mark) = fence.split_once(' ').unwrap_or((fence, ""));
                blocks.push(Block {
                    language: language.to_owned(),
                    mark: mark.to_owned(),
                    text: String::new(),
                });
                open = true;
            }
            (None, true) => {
                let block = &mut blocks.last_mut().unwrap().text;
                block.push_str(line);
                block.push('\n');
            }
            (None, false) => {}
        }
    }
    assert!(!open, "a block has no end");
    blocks
}

#[test]
fn blocks_that_are_not_run_here_are_at_least_well_formed() {
    for name in GUIDES {
        for block in blocks(&guide(name)) {
            let text = &block.text;
            match (block.language.as_str(), block.mark.as_str()) {
                ("sh", _) => {
                    let ran = run(clean("sh").args(["-n", "-c", text]), LONG);
                    assert_eq!(ran.code, Some(0), "{name}: {text}{}", ran.stderr);
                }
                ("toml", _) => assert!(text.parse::<toml::Table>().is_ok(), "{name}: {text}"),
                ("yaml", mark) => yaml(name, mark, text),
                ("dockerfile", _) => assert!(
                    text.lines().any(|line| line.starts_with("FROM ")),
                    "{name}: {text}"
                ),
                ("c" | "txt", mark) => assert!(mark.starts_with("file="), "{name}: {text}"),
                (other, mark) => panic!("{name}: what to do with \"{other} {mark}\"?"),
            }
        }
    }
}

/// Parsed by what reads it, where that is here, else by a parser of YAML.
fn yaml(name: &str, mark: &str, text: &str) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("guide.yml");
    fs::write(&file, text).unwrap();
    let parse =
        "import sys, yaml; top = yaml.safe_load(open(sys.argv[1])); assert sys.argv[2] in top, top";
    let key = match mark {
        "workflow" => "jobs",
        "compose" => "services",
        _ => "build",
    };
    let mut python = clean("python3");
    let ran = run(python.args(["-c", parse]).arg(&file).arg(key), LONG);
    if ran.stderr.contains("No module named") {
        return skip("python3 has no yaml");
    }
    assert_eq!(ran.code, Some(0), "{name}: {text}{}", ran.stderr);
    if mark != "compose" {
        return;
    }
    // The old Compose wants a version of the file, which the new one takes no notice of.
    fs::write(&file, format!("version: '3.8'\n{text}")).unwrap();
    let mut compose = clean("docker-compose");
    compose.arg("--file").arg(&file).arg("config");
    let ran = run(compose.env("SCCACHE_AUTH_TOKEN", "a-token"), LONG);
    assert_eq!(ran.code, Some(0), "{name}: {text}{}", ran.stderr);
}

/// A checkout of one small crate for one guide, with the files that the guide tells to write.
fn checkout(site: &Site, blocks: &[Block]) -> PathBuf {
    let checkout = site.home.path().join("checkout");
    let fixture = root().join("tests/fixtures/checkout/vendor/shapes");
    let copied = Command::new("cp")
        .arg("-r")
        .arg(fixture)
        .arg(&checkout)
        .status();
    assert!(copied.unwrap().success());
    for block in blocks {
        if let Some(name) = block.mark.strip_prefix("file=") {
            fs::write(checkout.join(name), &block.text).unwrap();
        }
    }
    checkout
}

/// Types everything that the guide tells, as its reader would, with this machine in the place of `build-cache`.
#[track_caller]
fn follow<'a>(site: &'a Site, name: &str) -> Script<'a> {
    let script = site.script("guide");
    let blocks = blocks(&guide(name));
    let checkout = checkout(site, &blocks);
    let mut text = format!(
        "set -eux; cd '{}'; export XDG_RUNTIME_DIR=\"$HOME\" PATH=\"$PATH:{}\"\n",
        checkout.display(),
        root().join("scripts").display()
    );
    let mut typed = 0;
    for block in blocks.iter().filter(|block| block.is_run()) {
        if !block.mark.is_empty() && clean(&block.mark).arg("--version").output().is_err() {
            skip(&format!("{name}: {} is not installed", block.mark));
            continue;
        }
        text.push_str(&block.text);
        typed += 1;
    }
    assert!(typed > 0, "{name} has nothing to type");
    let here = format!("localhost:{}", script.port);
    // This machine may have a folder of that name.
    let text = text
        .replace("build-cache:4226", &here)
        .replace("at /work --", "at /sdit-work --cargo-home /sdit-cargo --");
    let ran = site.shell(&script, &text, LONG);
    assert_eq!(ran.code, Some(0), "{name}:\n{}\n{}", ran.stdout, ran.stderr);
    println!("{name}: {typed} blocks typed");
    script
}

#[test]
fn laptop_shares_between_builds_and_checkouts() {
    let Some(site) = Site::open() else { return };
    // The container was made anew at the end; what was stored stayed.
    let script = follow(&site, "laptop");
    assert!(script.status()["cache"]["store"]["entries"].as_u64() >= Some(1));
    let config = fs::read_to_string(site.home.path().join(".cargo/config.toml")).unwrap();
    assert!(config.contains("rustc-wrapper"), "{config}");
}

#[test]
fn team_server_has_a_certificate_and_a_token_for_each_group() {
    let Some(site) = Site::open() else { return };
    let script = follow(&site, "team");
    let (_, misses, writes) = script.counts();
    assert!(misses > 0 && writes > 0, "{misses} {writes}");
    let laptop = fs::read_to_string(site.home.path().join("checkout/laptop.env")).unwrap();
    assert!(laptop.contains("laptops-change-this-secret"), "{laptop}");
    assert!(laptop.contains("https://localhost:"), "{laptop}");
}

#[test]
fn settings_for_ci_hold_no_token() {
    let Some(site) = Site::open() else { return };
    let script = follow(&site, "ci");
    let file = site.home.path().join("checkout/.cargo/config.toml");
    let config = fs::read_to_string(file).unwrap();
    assert!(!config.contains(&script.token()), "{config}");
    assert!(config.contains("rustc-wrapper"), "{config}");
}

#[test]
fn c_is_cached_for_make_cmake_and_ccache() {
    let Some(site) = Site::open() else { return };
    let script = follow(&site, "cpp");
    // sccache passes on in the background what its disk level has.
    wait_for("the entries of both", Duration::from_secs(60), || {
        let namespaces = &script.status()["cache"]["namespaces"];
        let written = |name: &str| namespaces[name]["writes"].as_u64().unwrap_or(0);
        (written("ccache") > 0 && written("default") > 0).then_some(())
    });
}

#[test]
fn settings_for_docker_builds_are_a_private_file() {
    let Some(site) = Site::open() else { return };
    let script = follow(&site, "docker-builds");
    let file = fs::read_to_string(site.home.path().join("checkout/cache.env")).unwrap();
    assert!(file.contains(&script.token()), "{file}");
    assert!(!file.contains(['"', '\'']), "{file}");
}

#[test]
fn toolchain_for_another_system_is_an_archive_that_sccache_takes() {
    let Some(site) = Site::open() else { return };
    let script = follow(&site, "cross");
    let checkout = site.home.path().join("checkout");
    let archive = checkout.join("cc-toolchain.tar.gz");
    assert!(fs::metadata(&archive).unwrap().len() > 1 << 20);
    // What the guide says about the file, with this archive and with a scheduler that nobody needs to have.
    let found = blocks(&guide("cross"));
    let block = found
        .iter()
        .find(|block| block.mark == "toolchains")
        .unwrap();
    let toolchain = block
        .text
        .replace(
            "/opt/toolchains/clang-linux-to-macos.tar.gz",
            archive.to_str().unwrap(),
        )
        .replace("/usr/local/opt/llvm/bin/clang", "/usr/bin/cc");
    let conf = format!(
        "[dist]\nscheduler_url = \"http://127.0.0.1:{}\"\n[dist.auth]\ntype = \"token\"\ntoken = \"none\"\n{toolchain}",
        free_port()
    );
    let file = checkout.join("sccache.conf");
    let status = |conf: &str| {
        fs::write(&file, conf).unwrap();
        let text = format!(
            "SCCACHE_CONF='{}' SCCACHE_SERVER_UDS='{}' sccache --dist-status",
            file.display(),
            checkout.join("own.sock").display()
        );
        let ran = site.shell(&script, &text, LONG);
        kill_daemons(site.home.path());
        ran.stdout + &ran.stderr
    };
    let taken = status(&conf);
    assert!(taken.contains("NotConnected"), "{taken}");
    let wrong = status(&conf.replace("archive_compiler_executable", "archive_compiler"));
    assert!(!wrong.contains("NotConnected"), "{wrong}");
}

#[test]
fn what_bare_sccache_left_in_redis_is_hit() {
    let Some(redis) = Redis::start(&[]) else {
        return;
    };
    let port = redis.port;
    let machine = Machine::new();
    machine.write("it.rs", "pub fn old() -> u32 { 42 }");
    let compile = "sccache rustc --crate-name it --crate-type rlib --emit link --out-dir . it.rs";
    let before = machine.sh(&format!(
        "export CARGO_INCREMENTAL=0 SCCACHE_REDIS_ENDPOINT=redis://127.0.0.1:{port} \
         SCCACHE_REDIS_KEY_PREFIX=team SCCACHE_SERVER_UDS=$HOME/old.sock\n{compile} && sccache --show-stats && sccache --stop-server"
    ));
    assert_eq!(before.code, Some(0), "{}", before.output);
    let upstream = format!("redis://127.0.0.1:{port}/0/team");
    let dock = Dock::start(&[("SCCACHE_UPSTREAM", &upstream)]);
    let after = machine.with_env(&dock, "--no-disk", &format!("rm libit.rlib\n{compile}"));
    assert_eq!(after.code, Some(0), "{}", after.output);
    assert_eq!(crate::docker::counts(&dock.status().unwrap()), (1, 0, 0));
    let hits = &dock.status().unwrap()["cache"]["upstream"]["hits"];
    assert_eq!(hits.as_u64(), Some(1), "it came from there");
}

#[test]
fn guides_stay_short_and_name_only_files_that_exist() {
    for entry in fs::read_dir(root().join("docs"))
        .unwrap()
        .map(Result::unwrap)
    {
        let file = entry.path();
        if file.extension().is_none_or(|kind| kind != "md") {
            continue;
        }
        let text = fs::read_to_string(&file).unwrap();
        let name = file.display();
        assert!(
            text.lines().count() <= 100 || file.ends_with("errors.md"),
            "{name} is too long"
        );
        assert!(
            !text.contains("/home/runner/work/n") && !text.contains("/root/"),
            "{name}"
        );
        for link in text.split("](").skip(1) {
            let link = link.split([')', '#']).next().unwrap();
            let exists = link.is_empty() || root().join("docs").join(link).exists();
            assert!(exists || link.starts_with("http"), "{name} names {link}");
        }
        let known = file.file_stem().unwrap().to_str().unwrap();
        let others = [
            "clients",
            "cluster",
            "errors",
            "kubernetes",
            "observability",
            "operating",
            "cache",
            "settings",
        ];
        let has_shell = blocks(&text).iter().any(|block| block.language == "sh");
        if has_shell && !others.contains(&known) {
            assert!(GUIDES.contains(&known), "nobody runs {name}");
        }
    }
}

/// The parts of a message that are the same every time.
fn fixed_parts(message: &str) -> Vec<&str> {
    let parts = message.split("...").map(str::trim);
    parts.filter(|part| part.len() > 3).collect()
}

#[test]
fn every_message_in_the_guide_of_errors_is_one_that_is_printed() {
    let sources = Command::new("find")
        .args([
            root().join("src"),
            root().join("scripts"),
            root().join("images"),
        ])
        .args(["-name", "*.rs", "-o", "-name", "*.sh"])
        .output()
        .unwrap();
    let mut printed = String::new();
    for file in String::from_utf8(sources.stdout).unwrap().lines() {
        printed += &fs::read_to_string(file).unwrap();
    }
    // As the text is after the compiler has read it.
    let printed = printed.replace("\\\"", "\"");
    let lines = printed.lines().map(str::trim_start);
    let printed = lines.collect::<Vec<_>>().join("\n").replace("\\\n", "");
    let sccache = sccache_bin();
    let mut theirs = fs::read(&sccache).unwrap();
    theirs.extend(fs::read(sccache.with_file_name("sccache-dist")).unwrap());
    let text = guide("errors");
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `"));
    let mut count = 0;
    for row in rows {
        let message = row.split('`').next().unwrap();
        let is_theirs = row.contains("(sccache)");
        for part in fixed_parts(message) {
            let found = match is_theirs {
                true => theirs.windows(part.len()).any(|it| it == part.as_bytes()),
                false => printed.contains(part),
            };
            assert!(found, "nothing prints {part:?} of {message:?}");
        }
        assert!(!fixed_parts(message).is_empty(), "{message:?} says nothing");
        count += 1;
    }
    assert!(count >= 40, "{count} messages");
    // And the other way round: what the commands can say is explained.
    for file in [
        "src/at.rs",
        "src/client/set.rs",
        "src/client/warm.rs",
        "src/status.rs",
        "src/state.rs",
    ] {
        let source = fs::read_to_string(root().join(file)).unwrap();
        for error in source.split("#[error(").skip(1) {
            let Some((_, literal)) = error.split_once('"') else {
                continue;
            };
            let literal = literal.replace("\\\"", "'");
            let literal = literal.split('"').next().unwrap().replace("\\n", "\n");
            let message = literal.split('\n').next().unwrap();
            let words = message.split(['{', '\'', '\\', ':']).next().unwrap().trim();
            let known = words.len() < 8 || text.contains(words);
            assert!(known, "docs/errors.md lacks {message:?} of {file}");
        }
    }
}
