//! Real builds: as main, as a pull request, as another one and as a fork's.

use super::FORK;
use super::issuer::{Issuer, Signer, claims, keys};
use crate::dock::{Dock, eventually, program};
use crate::harness::{clean, sccache_bin};
use crate::machine::kill_daemons;
use sccache_dock::contract::gateway_status::LoginAnswer;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Libraries, each of which needs the one before.
const LIBRARIES: u64 = 6;

struct Project {
    home: tempfile::TempDir,
}

impl Project {
    fn new() -> Project {
        let home = tempfile::tempdir().unwrap();
        let names: Vec<String> = (0..LIBRARIES)
            .map(|number| format!("\"l{number}\""))
            .collect();
        let folder = home.path().join("project");
        write(
            &folder.join("Cargo.toml"),
            &format!(
                "[workspace]\nresolver = \"3\"\nmembers = [{}]\n",
                names.join(",")
            ),
        );
        for number in 0..LIBRARIES {
            let needs = match number {
                0 => String::new(),
                number => format!("l{} = {{ path = \"../l{}\" }}\n", number - 1, number - 1),
            };
            let of_own = format!(
                "[package]\nname = \"l{number}\"\nversion = \"0.1.0\"\nedition = \"2024\"\n[dependencies]\n{needs}"
            );
            write(&folder.join(format!("l{number}/Cargo.toml")), &of_own);
            write(
                &folder.join(format!("l{number}/src/lib.rs")),
                &format!("pub fn it() -> u32 {{ {number} }}\n"),
            );
        }
        Project { home }
    }

    fn folder(&self) -> PathBuf {
        self.home.path().join("project")
    }

    /// Changes the last library, which nobody needs.
    fn change(&self, what: &str) {
        let last = self.folder().join(format!("l{}/src/lib.rs", LIBRARIES - 1));
        write(&last, &format!("pub fn it() -> u32 {{ {what} }}\n"));
    }

    /// A clean build with this token, by a daemon of its own.
    fn build(&self, dock: &Dock, token: &str, more: &[(&str, &str)]) {
        let _ = fs::remove_dir_all(self.folder().join("target"));
        kill_daemons(self.home.path());
        let home = |name: &str| self.home.path().join(name);
        let rustup = std::env::var("RUSTUP_HOME")
            .unwrap_or_else(|_| std::env::var("HOME").unwrap() + "/.rustup");
        let output = clean("cargo")
            .args(["build", "--quiet"])
            .current_dir(self.folder())
            .env("HOME", self.home.path())
            .env("CARGO_HOME", home("cargo"))
            .env("RUSTUP_HOME", rustup)
            .env("RUSTC_WRAPPER", sccache_bin())
            .env("CARGO_INCREMENTAL", "0")
            .env("SCCACHE_SERVER_UDS", home("daemon.sock"))
            .env("SCCACHE_DIR", home("empty"))
            .env(
                "SCCACHE_WEBDAV_ENDPOINT",
                format!("http://{}", dock.address()),
            )
            .env("SCCACHE_WEBDAV_TOKEN", token)
            .envs(more.iter().copied())
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        kill_daemons(self.home.path());
    }
}

fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// Hits and misses of a token or rule, and blobs in a namespace.
fn figures(dock: &Dock, who: &str, namespace: &str) -> (u64, u64, u64) {
    let status = dock.status().unwrap();
    let cache = &status["cache"];
    let of = |name: &str| cache["tokens"]["by_name"][who][name].as_u64().unwrap_or(0);
    let entries = cache["namespaces"][namespace]["entries"]
        .as_u64()
        .unwrap_or(0);
    (of("hits"), of("misses"), entries)
}

#[test]
fn pull_requests_build_on_what_main_has_built_and_main_on_nothing_of_theirs() {
    let signer = Signer::rsa("one");
    let issuer = Issuer::start(keys(&[&signer]));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tokens.toml");
    let rules = "
[[token]]
name = \"fork\"
token = \"token-of-a-forks-pull\"
read = [\"main\"]
[[rule]]
name = \"main\"
issuer = \"github\"
claims = { repository_id = \"1001\", event_name = \"push\", ref = \"refs/heads/main\" }
read = [\"main\"]
write = \"main\"
[[rule]]
name = \"pulls\"
issuer = \"github\"
claims = { repository_id = \"1001\", event_name = \"pull_request\" }
read = [\"pr/${ref_number}\", \"main\"]
write = \"pr/${ref_number}\"
";
    fs::write(&file, issuer.table("github", "") + rules).unwrap();
    let mut dock = Dock::start(&[
        ("SCCACHE_TOKENS_FILE", file.to_str().unwrap()),
        ("SCCACHE_WRITE_ONCE", "*"),
        ("SCCACHE_QUOTAS", "pr/*=1G"),
    ]);
    dock.wait_ready();
    let login = |changes: Value| -> String {
        let output = Command::new(program())
            .args(["login", "--oidc", "--format", "token", "--endpoint"])
            .arg(format!("http://{}", dock.address()))
            .env("SCCACHE_ID_TOKEN", signer.token(&claims(&issuer, changes)))
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let pull = |number: u32| {
        login(
            json!({"event_name": "pull_request", "ref": format!("refs/pull/{number}/merge"), "run_id": number}),
        )
    };
    let _: Option<LoginAnswer> = None;
    let project = Project::new();
    let main = login(json!({}));
    project.build(&dock, &main, &[]);
    let settled = |who: &str, namespace: &str, entries: u64| {
        eventually("the writes", || {
            (figures(&dock, who, namespace).2 == entries).then_some(())
        });
        figures(&dock, who, namespace)
    };
    let (_, missed, _) = settled("main", "main", LIBRARIES);
    assert!(missed >= LIBRARIES);
    let since = |before: (u64, u64, u64), who: &str, namespace: &str| {
        let after = figures(&dock, who, namespace);
        (after.0 - before.0, after.1 - before.1)
    };
    // A pull request that changes nothing compiles nothing.
    let pull_42 = pull(42);
    let before = figures(&dock, "pulls", "pr/*");
    project.build(&dock, &pull_42, &[]);
    assert_eq!(since(before, "pulls", "pr/*"), (LIBRARIES, 0));
    // One that changes a library compiles that one, once, for itself alone.
    project.change("42");
    let before = figures(&dock, "pulls", "pr/*");
    project.build(&dock, &pull_42, &[]);
    assert_eq!(since(before, "pulls", "pr/*"), (LIBRARIES - 1, 1));
    settled("pulls", "pr/*", 1);
    let before = figures(&dock, "pulls", "pr/*");
    project.build(&dock, &pull_42, &[]);
    assert_eq!(
        since(before, "pulls", "pr/*"),
        (LIBRARIES, 0),
        "its own result"
    );
    // Another one with the same change gets nothing of it, but all of main's.
    let pull_43 = pull(43);
    let before = figures(&dock, "pulls", "pr/*");
    project.build(&dock, &pull_43, &[]);
    assert_eq!(since(before, "pulls", "pr/*"), (LIBRARIES - 1, 1));
    settled("pulls", "pr/*", 2);
    // Nor does main, nor a fork, which stores nothing.
    let before = figures(&dock, "main", "main");
    project.build(&dock, &main, &[]);
    assert_eq!(since(before, "main", "main"), (LIBRARIES - 1, 1));
    settled("main", "main", LIBRARIES + 1);
    project.change("44");
    let before = figures(&dock, "fork", "main");
    project.build(&dock, FORK, &[]);
    assert_eq!(since(before, "fork", "main"), (LIBRARIES - 1, 1));
    assert_eq!(figures(&dock, "fork", "main").2, LIBRARIES + 1);
    // Compiled anew and sent again, each result is the same: nothing is said, and nothing changes.
    project.change("42");
    project.build(&dock, &main, &[("SCCACHE_RECACHE", "1")]);
    let rewrites = || {
        let url = format!("http://{}/metrics", dock.address());
        let asked = ureq::get(url).header("Authorization", format!("Bearer {}", dock.token()));
        let text = asked.call().unwrap().body_mut().read_to_string().unwrap();
        ["same", "different"].map(|outcome| {
            let name = format!("sccache_dock_rewrites_total{{outcome=\"{outcome}\"}} ");
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix(&name))
                .unwrap();
            line.parse::<u64>().unwrap()
        })
    };
    eventually("the writes of the same", || {
        (rewrites()[0] == LIBRARIES).then_some(())
    });
    assert_eq!(rewrites()[1], 0);
}
