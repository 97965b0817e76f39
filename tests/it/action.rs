//! The GitHub Action: its steps, run as a runner runs them.

use crate::deploy::{root, tool};
use crate::dock::{Dock, program};
use crate::docker::{LONG, Ran, run};
use crate::harness::{clean, sccache_bin, skip, tools};
use crate::machine::kill_daemons;
use crate::site::{Script, Site, project, sysroot};
use crate::trust::issuer::{AUDIENCE, Issuer, Signer, claims, keys, runner};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// `action.yml` as the runner reads it; `None`, and a line, where nothing here reads YAML.
fn action() -> Option<Value> {
    let python = tools().join("python/bin/python");
    let text = "import sys, json, yaml; print(json.dumps(yaml.safe_load(open(sys.argv[1]))))";
    let mut command = clean(python);
    let ran = run(
        command.args(["-c", text]).arg(root().join("action.yml")),
        LONG,
    );
    if ran.code != Some(0) {
        skip("no python with yaml");
        return None;
    }
    Some(serde_json::from_str(&ran.stdout).unwrap())
}

/// A job on a runner: its own folder, and the files by which steps speak to it.
struct Job<'a> {
    /// The machine's set-up for Docker; `None` for a runner with the programs on its PATH and nothing else.
    script: Option<&'a Script<'a>>,
    checkout: PathBuf,
    folder: tempfile::TempDir,
    /// What earlier steps have exported.
    environment: BTreeMap<String, String>,
    path: Vec<String>,
    outputs: BTreeMap<String, String>,
    log: String,
}

impl<'a> Job<'a> {
    fn new(script: &'a Script<'a>) -> Job<'a> {
        Job::in_checkout(Some(script), project())
    }

    fn in_checkout(script: Option<&'a Script<'a>>, checkout: PathBuf) -> Job<'a> {
        Job {
            script,
            checkout,
            folder: tempfile::tempdir().unwrap(),
            environment: BTreeMap::new(),
            path: Vec::new(),
            outputs: BTreeMap::new(),
            log: String::new(),
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The lines of a file of commands, which starts empty for each step.
    fn taken(&self, name: &str) -> Vec<String> {
        let text = fs::read_to_string(self.file(name)).unwrap_or_default();
        fs::write(self.file(name), "").unwrap();
        text.lines().map(str::to_owned).collect()
    }

    /// Runs shell text as `shell: bash` has it.
    fn step(&mut self, text: &str, env: &[(String, String)]) -> Ran {
        let step = self.file("step.sh");
        fs::write(&step, text).unwrap();
        let mut command = match self.script {
            Some(script) => script.environment(clean("bash")),
            None => {
                let mut command = clean("bash");
                command.env("HOME", self.folder.path());
                command
            }
        };
        command.args(["--noprofile", "--norc", "-e", "-o", "pipefail"]);
        command
            .arg(step)
            .current_dir(&self.checkout)
            .envs(&self.environment);
        for name in [
            "GITHUB_ENV",
            "GITHUB_PATH",
            "GITHUB_OUTPUT",
            "GITHUB_STEP_SUMMARY",
        ] {
            command.env(name, self.file(name));
        }
        let own = std::env::var("PATH").unwrap();
        let mut path = self.path.clone();
        match self.environment.get("PATH") {
            Some(bare) => path.push(bare.clone()),
            None => path.extend([format!("{}/bin", sysroot().display()), own]),
        }
        command
            .env("PATH", path.join(":"))
            .env("GITHUB_ACTION_PATH", root())
            .env("RUNNER_TEMP", self.folder.path())
            .envs(env.iter().cloned());
        let ran = run(&mut command, LONG);
        self.log += &ran.stdout;
        self.log += &ran.stderr;
        for line in self.taken("GITHUB_ENV") {
            let (name, value) = line.split_once('=').unwrap();
            self.environment.insert(name.to_owned(), value.to_owned());
        }
        let path = self.taken("GITHUB_PATH");
        self.path.splice(0..0, path);
        for line in self.taken("GITHUB_OUTPUT") {
            let (name, value) = line.split_once('=').unwrap();
            self.outputs.insert(name.to_owned(), value.to_owned());
        }
        ran
    }

    /// `uses:` with these inputs.
    fn uses(&mut self, action: &Value, with: &[(&str, &str)]) -> Ran {
        let inputs = action["inputs"].as_object().unwrap();
        for (name, _) in with {
            assert!(inputs.contains_key(*name), "there is no input {name}");
        }
        let input = |name: &str| {
            let given = with.iter().find(|(known, _)| *known == name);
            given.map_or_else(
                || inputs[name]["default"].as_str().unwrap().to_owned(),
                |(_, value)| (*value).to_owned(),
            )
        };
        let mut last = None;
        for step in action["runs"]["steps"].as_array().unwrap() {
            assert_eq!(step["shell"], "bash");
            let condition = step["if"].as_str().unwrap();
            if condition != format!("inputs.step == '{}'", input("step")) {
                continue;
            }
            let env = step["env"].as_object().into_iter().flatten();
            let env: Vec<(String, String)> = env
                .map(|(name, value)| {
                    let name_of = value.as_str().unwrap().strip_prefix("${{ inputs.").unwrap();
                    (name.clone(), input(name_of.strip_suffix(" }}").unwrap()))
                })
                .collect();
            last = Some(self.step(step["run"].as_str().unwrap(), &env));
        }
        last.unwrap()
    }
}

/// A table without its columns.
fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// sccache under the names that a compile of C has, twice: a miss or a hit in the job's cache.
const COMPILE: &str = "printf 'int main(void) { return 42; }\\n' >\"$RUNNER_TEMP/a.c\"\n\
    cd \"$RUNNER_TEMP\" && $RUSTC_WRAPPER cc -c a.c -o a.o";

#[test]
fn action_connects_to_a_cache_and_reports_what_the_job_took_from_it() {
    let (Some(action), Some(site)) = (action(), Site::open()) else {
        return;
    };
    let script = site.script("action");
    script.call(&["start", "ephemeral"]).ok();
    let (endpoint, token) = (format!("http://127.0.0.1:{}", script.port), script.token());
    let with = [
        ("endpoint", &*endpoint),
        ("token", &*token),
        ("image", &*site.image),
    ];
    for (number, figure) in ["hits 0", "hits 1"].iter().enumerate() {
        let mut job = Job::new(&script);
        let ran = job.uses(&action, &with);
        assert_eq!(ran.code, Some(0), "{}", job.log);
        assert_eq!(job.outputs["endpoint"], endpoint);
        assert!(
            job.log.contains(&format!("::add-mask::{token}\n")),
            "{}",
            job.log
        );
        let open = job.log.replace(&format!("::add-mask::{token}"), "");
        assert!(!open.contains(&token), "{open}");
        // The machine has sccache on its PATH, or the image's.
        assert_eq!(job.environment["RUSTC_WRAPPER"], "sccache");
        let ran = job.step(COMPILE, &[]);
        assert_eq!(ran.code, Some(0), "{}", job.log);
        let ran = job.uses(&action, &[("step", "report")]);
        assert_eq!(ran.code, Some(0), "{}", job.log);
        assert!(
            words(&ran.stdout).contains(&format!("Cache {figure}")),
            "job {number}: {}",
            ran.stdout
        );
        let summary = fs::read_to_string(job.file("GITHUB_STEP_SUMMARY")).unwrap();
        assert!(
            summary.contains("Compiler cache") && words(&summary).contains(figure),
            "{summary}"
        );
        assert_eq!(
            script.status()["services"][0]["state"],
            "ready",
            "it is not ours to stop"
        );
        kill_daemons(job.folder.path());
    }
}

/// A job whose ID token is its identity, twice: the second one is brought what the first one has built.
#[test]
fn action_logs_in_by_id_token_brings_what_the_job_needs_and_shows_its_build() {
    let Some(action) = action() else { return };
    let signer = Signer::rsa("one");
    let issuer = Issuer::start(keys(&[&signer]));
    let folder = tempfile::tempdir().unwrap();
    let tokens = folder.path().join("tokens.toml");
    let rules = "[[rule]]\nname = \"main\"\nissuer = \"github\"\n\
        claims = { repository_id = \"1001\", event_name = \"push\" }\nread = [\"main\"]\nwrite = \"main\"\n\
        [[token]]\nname = \"fork\"\ntoken = \"token-of-a-forks-pull\"\nread = [\"main\"]\n";
    fs::write(&tokens, issuer.table("github", "") + rules).unwrap();
    let dock = Dock::start(&[("SCCACHE_TOKENS_FILE", tokens.to_str().unwrap())]);
    let endpoint = format!("http://{}", dock.address());
    // What a runner has on its PATH.
    let bin = folder.path().join("bin");
    fs::create_dir(&bin).unwrap();
    for program in [sccache_bin(), program()] {
        let name = program.file_name().unwrap();
        std::os::unix::fs::symlink(&program, bin.join(name)).unwrap();
    }
    let checkout = folder.path().join("checkout");
    for (name, text) in [
        (
            "Cargo.toml",
            "[package]\nname = \"one\"\nversion = \"0.1.0\"\nedition = \"2024\"\n",
        ),
        ("src/lib.rs", "pub fn one() -> u32 { 1 }\n"),
    ] {
        let path = checkout.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let job = |run_id: &str| {
        let mut job = Job::in_checkout(None, checkout.clone());
        job.path.push(bin.display().to_string());
        let url = runner(signer.token(&claims(&issuer, json!({ "run_id": run_id }))));
        let rustup = std::env::var("RUSTUP_HOME")
            .unwrap_or_else(|_| std::env::var("HOME").unwrap() + "/.rustup");
        for (name, value) in [
            ("ACTIONS_ID_TOKEN_REQUEST_URL", &*url),
            ("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "runner-secret"),
            ("GITHUB_ACTIONS", "true"),
            ("GITHUB_JOB", "build"),
            ("GITHUB_REPOSITORY", "team/project"),
            ("GITHUB_REF_NAME", "main"),
            ("RUSTUP_HOME", &rustup),
            ("CARGO_INCREMENTAL", "0"),
            // The same for all jobs: it is part of a key.
            ("CARGO_HOME", folder.path().join("cargo").to_str().unwrap()),
        ] {
            job.environment.insert(name.to_owned(), value.to_owned());
        }
        job
    };
    let with = [
        ("endpoint", &*endpoint),
        ("oidc", "true"),
        ("audience", AUDIENCE),
        ("prefetch", "true"),
    ];
    for (number, brought, figure) in [
        (
            "81",
            "nothing to prefetch",
            "| Hits | 0.0 %: 0 from the cache; 1 misses |",
        ),
        ("82", "prefetched 1 entries", "| Hits | 100.0 %"),
    ] {
        let mut job = job(number);
        let ran = job.uses(&action, &with);
        assert_eq!(ran.code, Some(0), "{}", job.log);
        let token = job.environment["SCCACHE_WEBDAV_TOKEN"].clone();
        assert!(token.starts_with("sd1-"), "{token}");
        assert!(
            job.log.contains(&format!("::add-mask::{token}\n")),
            "{}",
            job.log
        );
        let open = job.log.replace(&format!("::add-mask::{token}"), "");
        assert!(!open.contains(&token), "{open}");
        assert!(
            open.contains(&format!("logged in as main:{number}")),
            "{open}"
        );
        assert!(open.contains(brought), "{open}");
        let built = job.step(
            "rm -rf target; sccache-dock build -- cargo build --quiet",
            &[],
        );
        assert_eq!(built.code, Some(0), "{}", job.log);
        let ran = job.uses(&action, &[("step", "report")]);
        assert_eq!(ran.code, Some(0), "{}", job.log);
        let summary = fs::read_to_string(job.file("GITHUB_STEP_SUMMARY")).unwrap();
        assert!(
            summary.contains("Compiler cache") && summary.contains(figure),
            "{summary}"
        );
        kill_daemons(job.folder.path());
        // The next machine is a fresh one.
        fs::remove_dir_all(&job.environment["SCCACHE_DIR"]).unwrap();
    }
    // A fork's job gets no ID token, and reads with one that writes nothing.
    let mut fork = job("83");
    fork.environment.remove("ACTIONS_ID_TOKEN_REQUEST_URL");
    let ran = fork.uses(&action, &with);
    assert_eq!(ran.code, Some(1), "{}", fork.log);
    assert!(
        fork.log.contains("hint: permissions: id-token: write"),
        "{}",
        fork.log
    );
    let by_token = [&with[..], &[("token", "token-of-a-forks-pull")]].concat();
    let ran = fork.uses(&action, &by_token);
    assert_eq!(ran.code, Some(0), "{}", fork.log);
    assert_eq!(
        fork.environment["SCCACHE_WEBDAV_TOKEN"],
        "token-of-a-forks-pull"
    );
    assert!(fork.log.contains("prefetched 1 entries"), "{}", fork.log);
    fs::remove_dir_all(&fork.environment["SCCACHE_DIR"]).unwrap();
}

#[test]
fn action_starts_a_cache_of_its_own_and_takes_it_away() {
    let (Some(action), Some(site)) = (action(), Site::open()) else {
        return;
    };
    let script = site.script("action-own");
    let folder = tempfile::tempdir().unwrap();
    for figure in ["hits 0", "hits 1"] {
        let mut job = Job::new(&script);
        let with = [
            ("image", &*site.image),
            ("folder", folder.path().to_str().unwrap()),
        ];
        let ran = job.uses(&action, &with);
        assert_eq!(ran.code, Some(0), "{}", job.log);
        assert!(job.log.contains("::add-mask::"), "{}", job.log);
        assert_eq!(job.step(COMPILE, &[]).code, Some(0), "{}", job.log);
        let ran = job.uses(&action, &[("step", "report")]);
        assert_eq!(ran.code, Some(0), "{}", job.log);
        for part in [figure, "gateway ready", "is removed"] {
            assert!(
                words(&job.log).contains(part),
                "{part:?} is missing in {}",
                job.log
            );
        }
    }
}

/// A cache that runs on the runner already is used, and goes on after the job.
#[test]
fn action_takes_away_only_what_it_has_started() {
    let (Some(action), Some(site)) = (action(), Site::open()) else {
        return;
    };
    let script = site.script("action-kept");
    script.call(&["start", "ephemeral"]).ok();
    let id = script.docker.inspect(&script.container, "{{.Id}}");
    for (what, remains) in [("another's", true), ("its own", false)] {
        if !remains {
            script.call(&["remove"]).ok();
        }
        let mut job = Job::new(&script);
        let ran = job.uses(&action, &[("image", &*site.image)]);
        assert_eq!(ran.code, Some(0), "{what}: {}", job.log);
        let ran = job.uses(&action, &[("step", "report")]);
        assert_eq!(ran.code, Some(0), "{what}: {}", job.log);
        let left = script.docker.run(&["inspect", &id]);
        assert_eq!(left.code == Some(0), remains, "{what}: {}", job.log);
        let left = script.docker.run(&["inspect", &script.container]);
        assert_eq!(left.code == Some(0), remains, "{what}: {}", job.log);
        kill_daemons(job.folder.path());
    }
    // A new one of the same name, which was started after the job's was removed, is not the job's.
    let mut job = Job::new(&script);
    let ran = job.uses(&action, &[("image", &*site.image)]);
    assert_eq!(ran.code, Some(0), "{}", job.log);
    script.call(&["remove"]).ok();
    script.call(&["start", "ephemeral"]).ok();
    let _ = job.uses(&action, &[("step", "report")]);
    script.call(&["status"]).ok();
    kill_daemons(job.folder.path());
}

#[test]
fn action_says_what_is_missing() {
    let (Some(action), Some(site)) = (action(), Site::open()) else {
        return;
    };
    let script = site.script("action-wrong");
    let refused = |with: &[(&str, &str)], path: Option<&Path>, parts: &[&str]| {
        let mut job = Job::new(&script);
        if let Some(path) = path {
            job.environment
                .insert("PATH".to_owned(), path.display().to_string());
        }
        let ran = job.uses(&action, with);
        assert!(matches!(ran.code, Some(1 | 2)), "{}", job.log);
        for part in parts {
            assert!(job.log.contains(part), "{part:?} is missing in {}", job.log);
        }
    };
    refused(
        &[("endpoint", "http://build-cache:4226")],
        None,
        &[
            "::error title=sccache-dock::there is no token for http://build-cache:4226",
            "hint: token:",
        ],
    );
    // A runner with nothing but what every system has.
    let bare = tempfile::tempdir().unwrap();
    for program in ["bash", "sh", "readlink", "dirname", "mkdir", "date"] {
        let found = run(clean("which").arg(program), LONG).ok();
        std::os::unix::fs::symlink(found, bare.path().join(program)).unwrap();
    }
    refused(
        &[
            ("endpoint", "http://build-cache:4226"),
            ("token", "a-token-of-a-secret"),
        ],
        Some(bare.path()),
        &[
            "has no sccache and sccache-dock on its PATH",
            "hint: name an image",
        ],
    );
    refused(
        &[("folder", "relative"), ("image", &site.image)],
        None,
        &["the path is relative"],
    );
}

#[test]
fn action_is_one_that_runners_take() {
    let Some(action) = action() else { return };
    for (name, input) in action["inputs"].as_object().unwrap() {
        assert!(input["default"].is_string(), "{name} has no default");
        let description = input["description"].as_str().unwrap();
        assert!(description.ends_with('.'), "{name}: {description}");
    }
    if let Some(schema) = tool("check-jsonschema", "--version") {
        let mut check = clean(schema);
        check.args(["--builtin-schema", "vendor.github-actions"]);
        let ran = run(check.arg(root().join("action.yml")), LONG);
        assert_eq!(ran.code, Some(0), "{}", ran.stdout);
    }
    if let Some(zizmor) = tool("zizmor", "--version") {
        let mut audit = clean(zizmor);
        audit.args(["--offline", "--no-progress", "--min-severity", "medium"]);
        let ran = run(audit.arg(root().join("action.yml")), LONG);
        assert_eq!(ran.code, Some(0), "{}", ran.stdout);
    }
}
