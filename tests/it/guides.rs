//! The guides of `docs/`: what they tell to type is typed here, in order, in the checkout of a small crate.
//!
//! A block of shell is run, unless it is marked `sh elsewhere: WHY`: then it needs what a test has not, and only its
//! grammar is checked; `just guides` prints which, and why. `sh dock` is run beside a dock without Docker, `sh settings`
//! are settings, and any other word names a program that is needed. A block marked `file=NAME` is written to that file
//! first. What stands in other languages is checked by what reads it.

use crate::deploy::tool;
use crate::dock::Dock;
use crate::docker::{LONG, run};
use crate::harness::{clean, sccache_bin, skip, wait_for};
use crate::machine::kill_daemons;
use crate::site::{Script, Site, free_port};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Those that are followed from the top to the end, with Docker.
const GUIDES: &[&str] = &[
    "README",
    "checkouts",
    "ci",
    "cluster",
    "cpp",
    "cross",
    "docker-builds",
    "laptop",
    "migrate",
    "team",
];

/// What stands between two fences.
pub(crate) struct Block {
    language: String,
    mark: String,
    pub(crate) text: String,
}

impl Block {
    /// Why no test runs it, if none does.
    fn elsewhere(&self) -> Option<&str> {
        self.mark.strip_prefix("elsewhere: ")
    }

    /// It is typed where its guide is followed.
    pub(crate) fn is_typed(&self) -> bool {
        let special = ["dock", "settings"].contains(&self.mark.as_str());
        self.language == "sh" && self.elsewhere().is_none() && !special
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub(crate) fn guide(name: &str) -> String {
    let folder = if name == "README" { "." } else { "docs" };
    fs::read_to_string(root().join(folder).join(name).with_extension("md")).unwrap()
}

/// All documents with something to copy, by name.
fn documents() -> Vec<String> {
    let files = fs::read_dir(root().join("docs")).unwrap();
    let names = files.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let names = names.filter_map(|name| Some(name.strip_suffix(".md")?.to_owned()));
    let mut names: Vec<String> = names.chain(["README".to_owned()]).collect();
    names.sort_unstable();
    names
}

pub(crate) fn blocks(text: &str) -> Vec<Block> {
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
    for name in &documents() {
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
                ("groovy", "") => assert!(text.starts_with("pipeline {\n"), "{name}: {text}"),
                // A picture, or what a program prints.
                ("text", "") => {}
                (other, mark) => panic!("{name}: what to do with \"{other} {mark}\"?"),
            }
        }
    }
}

/// Checked by the published schema of what reads it, and by Compose itself.
fn yaml(name: &str, mark: &str, text: &str) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("guide.yml");
    fs::write(&file, text).unwrap();
    let schema = match mark {
        "workflow" => "github-workflows",
        "compose" => "compose-spec",
        "gitlab" => "gitlab-ci",
        "buildkite" => "buildkite",
        other => panic!("{name}: who reads YAML for \"{other}\"?"),
    };
    if let Some(checker) = tool("check-jsonschema", "--version") {
        let mut check = clean(checker);
        check.args(["--builtin-schema", &format!("vendor.{schema}")]);
        let ran = run(check.arg(&file), LONG);
        assert_eq!(ran.code, Some(0), "{name}: {text}{}", ran.stdout);
    }
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
    // Some call the script by its path in this repository.
    let scripts = root().join("scripts");
    std::os::unix::fs::symlink(scripts, checkout.join("scripts")).unwrap();
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
    for block in blocks.iter().filter(|block| block.is_typed()) {
        if !block.mark.is_empty() && clean(&block.mark).arg("--version").output().is_err() {
            skip(&format!("{} is not installed", block.mark));
            continue;
        }
        text.push_str(&block.text);
        typed += 1;
    }
    assert!(typed > 0, "{name} has nothing to type");
    let ran = site.shell(&script, &here(&text, &script), LONG);
    assert_eq!(ran.code, Some(0), "{name}:\n{}\n{}", ran.stdout, ran.stderr);
    println!("{name}: {typed} blocks typed");
    script
}

/// The same, where the cache is on this machine, which may have a folder called `/work`.
fn here(text: &str, script: &Script) -> String {
    text.replace("build-cache:4226", &format!("localhost:{}", script.port))
        .replace("at /work --", "at /sdit-work --cargo-home /sdit-cargo --")
}

#[test]
fn every_command_of_the_guides_is_run_or_says_why_not() {
    println!("| guide | blocks | run | not run, and why |");
    println!("| --- | --- | --- | --- |");
    for name in documents() {
        let blocks = blocks(&guide(&name));
        let shell: Vec<&Block> = blocks.iter().filter(|it| it.language == "sh").collect();
        let kept: Vec<&str> = shell.iter().filter_map(|it| it.elsewhere()).collect();
        for block in &shell {
            let is_followed = !block.is_typed() || GUIDES.contains(&name.as_str());
            assert!(is_followed, "nobody runs, of {name}:\n{}", block.text);
        }
        if !shell.is_empty() {
            let run = shell.len() - kept.len();
            println!("| {name} | {} | {run} | {} |", shell.len(), kept.join("; "));
        }
    }
}

#[test]
fn commands_beside_a_dock_do_what_they_say() {
    let dock = Dock::start(&[("SCCACHE_READ_TOKEN", "a-token-that-reads")]);
    let listen = dock.status().unwrap()["listen"]
        .as_str()
        .unwrap()
        .to_owned();
    let mut seen = 0;
    for name in documents() {
        for block in blocks(&guide(&name)) {
            match block.mark.as_str() {
                "dock" => {
                    let text = block.text.replace("127.0.0.1:4226", &listen);
                    let mut shell = Command::new("sh");
                    shell.args(["-euc", &text]).env_clear().envs(dock.env());
                    let own = crate::dock::program();
                    let path = std::env::var("PATH").unwrap();
                    let path = format!("{}:{path}", own.parent().unwrap().display());
                    let ran = run(shell.env("PATH", path), LONG);
                    assert_eq!(ran.code, Some(0), "{name}: {text}{}", ran.stderr);
                    let told = ["sccache_dock_requests_total", "blobs"];
                    let has_told = told.iter().any(|it| ran.stdout.contains(it));
                    assert!(has_told, "{name}: {text}{}", ran.stdout);
                }
                "settings" => {
                    let pairs = block.text.lines().filter_map(|line| line.split_once('='));
                    let mut config = Command::new(crate::dock::program());
                    config.arg("config").env_clear().envs(pairs.clone());
                    let shown = run(config.env("HOME", dock.dir.path()), LONG).ok();
                    for (setting, _) in pairs {
                        let row = shown.lines().find(|line| line.starts_with(setting));
                        assert!(!row.unwrap().contains(" default"), "{setting}: {shown}");
                    }
                }
                _ => continue,
            }
            seen += 1;
        }
    }
    assert!(seen >= 3, "{seen} blocks");
}

#[test]
fn readme_leads_to_a_first_cached_build() {
    let Some(site) = Site::open() else { return };
    let script = follow(&site, "README");
    let (_, misses, _) = script.counts();
    assert!(misses > 0, "the build did not ask the cache");
}

#[test]
fn cluster_of_the_guide_compiles() {
    let Some(site) = Site::open() else { return };
    let script = follow(&site, "cluster");
    let builders = &script.status()["cache"]["dist"]["builders"];
    let done = builders[0]["done"].as_u64();
    assert!(
        done > Some(0),
        "not even the compiler was tried: {builders}"
    );
}

#[test]
fn laptop_shares_between_builds_and_checkouts() {
    let Some(site) = Site::open() else { return };
    // The container was made anew at the end; what was stored stayed, and is counted while the cache serves already.
    let script = follow(&site, "laptop");
    wait_for("what was stored", Duration::from_secs(60), || {
        let entries = script.status()["cache"]["store"]["entries"].as_u64();
        (entries >= Some(1)).then_some(())
    });
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
fn jobs_of_ci_share_by_settings_that_hold_no_token() {
    let Some(site) = Site::open() else { return };
    let script = follow(&site, "ci");
    let checkout = site.home.path().join("checkout");
    let config = fs::read_to_string(checkout.join(".cargo/config.toml")).unwrap();
    assert!(!config.contains(&script.token()), "{config}");
    assert!(config.contains("rustc-wrapper"), "{config}");
    script.call(&["install-client"]).ok();
    let blocks = blocks(&guide("ci"));
    let jobs = blocks.iter().filter(|block| block.language == "yaml");
    for (number, job) in jobs.enumerate() {
        let Some(steps) = steps(&job.text) else {
            return skip("python3 has no yaml");
        };
        let text = here(&steps, &script)
            .replace("${{ job.services.sccache.id }}", &script.container)
            .replace("\" /usr/local/bin/", "\" \"$HOME/.local/bin/\"")
            .replace("127.0.0.1:4226", &format!("127.0.0.1:{}", script.port));
        // A fresh machine: nothing is left of the job before but the cache.
        let text = format!(
            "set -eux; cd '{}'; export GITHUB_ENV=\"$HOME/github-env-{number}\" SCCACHE_WEBDAV_TOKEN='{}'\n\
             cargo generate-lockfile --offline; cargo clean --quiet\n{text}",
            checkout.display(),
            script.token()
        );
        let (hits, misses, _) = script.counts();
        let ran = site.shell(&script, &text, LONG);
        kill_daemons(site.home.path());
        assert_eq!(ran.code, Some(0), "{}\n{}", ran.stdout, ran.stderr);
        let (hits_now, misses_now, _) = script.counts();
        println!(
            "job {number}: {} hits, {} misses",
            hits_now - hits,
            misses_now - misses
        );
        assert!(
            hits_now + misses_now > hits + misses,
            "it has not asked: {text}"
        );
    }
}

#[test]
fn jobs_of_other_systems_ask_the_cache_by_their_own_lines() {
    let Some(site) = Site::open() else { return };
    let script = site.script("guide");
    script.call(&["start", "ephemeral"]).ok();
    script.call(&["install-client"]).ok();
    let blocks = blocks(&guide("ci-others"));
    let checkout = checkout(&site, &[]);
    let template = fs::read_to_string(root().join("images/ci/gitlab.yml")).unwrap();
    let print = "import sys, yaml\n\
        top = yaml.safe_load(sys.argv[1])\n\
        template = yaml.safe_load(sys.argv[2])['.sccache-dock']\n\
        if isinstance(top.get('steps'), list):\n    \
            for line in top['steps'][0]['commands']: print(line.replace('$$', '$'))\n    \
            sys.exit()\n\
        job = top['build']\n\
        around = template if job.get('extends') == '.sccache-dock' else {}\n\
        print('(')\n\
        for line in around.get('before_script', []) + job['script']: print(line)\n\
        print(')')\n\
        print('(')\n\
        for line in around.get('after_script', ['true']): print(line)\n\
        print(')')";
    let mut jobs = 0;
    for block in &blocks {
        let text = match block.language.as_str() {
            "yaml" => {
                let python = crate::harness::tools().join("python/bin/python");
                let mut command = clean(python);
                command.args(["-c", print, &block.text, &template]);
                run(&mut command, LONG).ok()
            }
            "groovy" => block.text.split("'''").nth(1).unwrap().to_owned(),
            _ => continue,
        };
        // One of them takes the settings that the repository has.
        let commits = !text.contains("client-env");
        let token = script.token();
        let text = format!(
            "set -eux; cd '{}'\n\
             export SCCACHE_DOCK_ENDPOINT=http://build-cache:4226 SCCACHE_WEBDAV_TOKEN='{token}' SCCACHE_AUTH_TOKEN='{token}'\n\
             rm -rf .cargo; mkdir .cargo\n{}\n\
             cargo generate-lockfile --offline; cargo clean --quiet\n{text}",
            checkout.display(),
            match commits {
                true =>
                    "scripts/sccache-docker-manage.sh env --format cargo \
                     --no-token --no-disk --endpoint http://build-cache:4226 > .cargo/config.toml",
                false => ":",
            }
        );
        let (hits, misses, _) = script.counts();
        let ran = site.shell(&script, &here(&text, &script), LONG);
        kill_daemons(site.home.path());
        assert_eq!(ran.code, Some(0), "{}\n{}", ran.stdout, ran.stderr);
        let (hits_now, misses_now, _) = script.counts();
        assert!(
            hits_now + misses_now > hits + misses,
            "it has not asked: {text}"
        );
        jobs += 1;
    }
    assert_eq!(jobs, 4);
}

/// The steps of a workflow or of GitLab's script as shell, in the words that YAML makes of them. What a step appends to
/// `GITHUB_ENV` is there for those after it.
fn steps(yaml: &str) -> Option<String> {
    let print = "import sys, yaml\n\
        top = yaml.safe_load(sys.argv[1])\n\
        for job in top.get('jobs', top).values():\n    \
            for step in job.get('script') or [it['run'] for it in job['steps'] if 'run' in it]:\n        \
                print(step)\n        \
                print('if [ -s \"$GITHUB_ENV\" ]; then set -a; . \"$GITHUB_ENV\"; set +a; fi')";
    let ran = run(clean("python3").args(["-c", print, yaml]), LONG);
    (!ran.stderr.contains("No module named")).then(|| ran.ok())
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
    let file = fs::read_to_string(site.home.path().join(".config/sccache-dock/build.env")).unwrap();
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
    let mut listed = BTreeSet::new();
    let mut count = 0;
    for row in rows {
        let message = row.split('`').next().unwrap();
        assert!(listed.insert(message), "{message:?} has two rows");
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
        "src/client/at.rs",
        "src/client/build.rs",
        "src/client/explain.rs",
        "src/client/prefetch.rs",
        "src/client/set.rs",
        "src/client/warm.rs",
        "src/admin.rs",
        "src/supervisor/state_dir.rs",
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
