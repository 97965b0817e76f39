//! The Compose files, with every Compose that is installed: version 1 and the plugin.

use crate::docker::{PATIENCE, run};
use crate::site::{Site, free_port, skip};
use std::path::Path;
use std::process::Command;

/// `docker-compose` and `docker compose`, as far as they answer.
fn composes() -> Vec<&'static [&'static str]> {
    let known: [&[&str]; 2] = [&["docker-compose"], &["docker", "compose"]];
    let answers = |compose: &&&[&str]| {
        let asked = Command::new(compose[0])
            .args(&compose[1..])
            .arg("version")
            .output();
        asked.is_ok_and(|output| output.status.success())
    };
    known.iter().filter(answers).copied().collect()
}

#[test]
fn files_for_compose_bring_up_a_cache_and_the_persistent_one_keeps_it() {
    let Some(site) = Site::open() else { return };
    let composes = composes();
    if composes.is_empty() {
        skip::<()>("no Compose");
    }
    for compose in composes {
        for mode in ["ephemeral", "persistent"] {
            let file = Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("images/compose")
                .join(format!("{mode}.yml"));
            let project = site.name(&format!("compose-{mode}"));
            let port = free_port().to_string();
            let call = |args: &[&str]| {
                let mut command = Command::new(compose[0]);
                command.args(&compose[1..]).arg("--file").arg(&file);
                command.args(["--project-name", &project]).args(args);
                command.env("SCCACHE_IMAGE_NAME", &site.image);
                run(command.env("SCCACHE_DEFAULT_PORT", &port), PATIENCE).ok()
            };
            call(&["config", "--quiet"]);
            let token = || {
                call(&["up", "--detach", "--no-build"]);
                let container = call(&["ps", "--quiet", "sccache"]);
                site.docker.wait_healthy(&container);
                let restart = "{{.HostConfig.RestartPolicy.Name}}";
                assert_eq!(site.docker.inspect(&container, restart), "unless-stopped");
                site.docker
                    .ok(&["exec", &container, "cat", "/var/sccache/state/auth-token"])
            };
            let first = token();
            call(&["down"]);
            let second = token();
            assert_eq!(first == second, mode == "persistent", "{compose:?} {mode}");
            call(&["down", "--volumes"]);
        }
    }
}
