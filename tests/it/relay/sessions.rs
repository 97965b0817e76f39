//! The session of a CI job as its client's token at the scheduler's port, with and without the relay.

use crate::distributed::{Farm, client_file, distributed};
use crate::dock::{eventually, program};
use crate::trust::issuer::{AUDIENCE, Issuer, Signer, claims, keys};
use serde_json::json;
use std::process::Command;

/// Sessions of the issuer `short` are over at once.
const RULES: &str = r#"
[[rule]]
name = "main"
issuer = "github"
claims = { repository_id = "1001", event_name = "push" }
read = ["main"]
write = "main"
distribute = true

[[rule]]
name = "pulls"
issuer = "github"
claims = { repository_id = "1001", event_name = "pull_request" }
read = ["pr/${ref_number}", "main"]
write = "pr/${ref_number}"

[[rule]]
name = "short"
issuer = "short"
claims = { repository_id = "1001", event_name = "push" }
read = ["main"]
write = "main"
distribute = true
"#;

/// A cluster, and what is needed to log in to it.
struct Scene {
    farm: Farm,
    signer: Signer,
    long: Issuer,
    short: Issuer,
    _folder: tempfile::TempDir,
}

impl Scene {
    fn start(relay: &str) -> Option<Scene> {
        let signer = Signer::rsa("one");
        let (long, short) = (
            Issuer::start(keys(&[&signer])),
            Issuer::start(keys(&[&signer])),
        );
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("tokens.toml");
        let tables = [
            long.table("github", ""),
            short.table("short", "session = \"6s\""),
        ];
        std::fs::write(&file, tables.concat() + RULES).unwrap();
        let farm = Farm::start_with(&[
            ("SCCACHE_TOKENS_FILE", file.to_str().unwrap()),
            ("SCCACHE_RELAY", relay),
        ])?;
        Some(Scene {
            farm,
            signer,
            long,
            short,
            _folder: folder,
        })
    }

    /// Logs in and gives the session's token to the client, whose daemon starts with it.
    fn log_in(&self, issuer: &Issuer, changes: serde_json::Value) {
        let output = Command::new(program())
            .args(["login", "--oidc", "--format", "token", "--audience"])
            .args([AUDIENCE, "--endpoint"])
            .arg(format!("http://{}", self.farm.dock.address()))
            .env(
                "SCCACHE_ID_TOKEN",
                self.signer.token(&claims(issuer, changes)),
            )
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let session = String::from_utf8(output.stdout).unwrap();
        let front = format!("127.0.0.1:{}", self.farm.front);
        self.farm.client("sccache --stop-server");
        self.farm
            .write("dist.toml", &client_file(&front, session.trim()));
    }

    /// Compiles something new; the exit code, and how many compiles builders have done since the daemon's start.
    fn compile(&self, name: &str) -> (Option<i32>, u64) {
        self.farm.write(
            &format!("{name}.c"),
            &format!("int {name}(void) {{ return 1; }}\n"),
        );
        let built = self
            .farm
            .client(&format!("sccache cc -c {name}.c -o {name}.o"));
        (built.code, distributed(&self.farm.statistics()).0)
    }
}

#[test]
fn session_with_the_grant_is_a_clients_token_until_it_ends() {
    for relay in ["off", "on"] {
        let Some(scene) = Scene::start(relay) else {
            return;
        };
        scene.log_in(&scene.long, json!({}));
        assert_eq!(scene.compile("one"), (Some(0), 1), "relay {relay}");
        // The cluster is not for everybody who may write somewhere.
        let pull =
            json!({"event_name": "pull_request", "ref": "refs/pull/42/merge", "run_id": "42"});
        scene.log_in(&scene.long, pull);
        assert_eq!(scene.compile("two"), (Some(1), 0), "relay {relay}");
        scene
            .farm
            .dock
            .wait_log("token \"pulls:42\" may not use the cluster");
        // A session goes on with the next gateway.
        scene.log_in(&scene.long, json!({"run_id": "5002"}));
        assert_eq!(scene.compile("three"), (Some(0), 1), "relay {relay}");
        let gateway = scene.farm.dock.pid_of("gateway");
        nix::sys::signal::kill(gateway, nix::sys::signal::Signal::SIGKILL).unwrap();
        eventually("a builder for the next job", || {
            let status = scene.farm.dock.status()?;
            (status["cache"]["dist"]["builders"][0]["state"] == "ready").then_some(())
        });
        assert_eq!(scene.compile("four"), (Some(0), 2), "relay {relay}");
        let ended = scene.farm.dock.command(&["sessions", "--revoke", "5002"]);
        assert!(ended.status.success(), "{ended:?}");
        assert_eq!(scene.compile("five"), (Some(1), 2), "relay {relay}");
        // One that ends by itself.
        scene.log_in(&scene.short, json!({"run_id": "5003"}));
        let sessions = || {
            let listed = scene.farm.dock.command(&["sessions"]);
            String::from_utf8(listed.stdout).unwrap()
        };
        assert!(sessions().contains("short:5003"), "{}", sessions());
        eventually("the session's end", || {
            (!sessions().contains("short:5003")).then_some(())
        });
        assert_eq!(scene.compile("six"), (Some(1), 0), "relay {relay}");
        scene.farm.client("sccache --stop-server");
    }
}
