//! The Compose files, with every Compose that is installed: version 1 and the plugin.

use crate::docker::{PATIENCE, run};
use crate::site::{Site, free_port, skip};
use std::path::Path;
use std::process::Command;

/// `docker-compose` and `docker compose`, as far as they answer.
pub(super) fn composes() -> Vec<&'static [&'static str]> {
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

#[test]
fn files_for_a_cluster_are_what_every_compose_reads_from_their_folder_and_from_elsewhere() {
    let composes = composes();
    if composes.is_empty() {
        skip::<()>("no Compose");
    }
    // A repository of its own, with a profile that no container is started with.
    let root = tempfile::tempdir().unwrap();
    let profile = root.path().join("seccomp/userns.json");
    std::fs::create_dir(root.path().join("seccomp")).unwrap();
    std::fs::write(&profile, "{}").unwrap();
    let copied = Command::new("cp")
        .arg("-r")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("images/compose"))
        .arg(root.path())
        .status();
    assert!(copied.unwrap().success());
    for compose in composes {
        for name in ["distributed", "cluster"] {
            let file = root.path().join("compose").join(format!("{name}.yml"));
            let token = ("SCCACHE_SERVER_TOKEN", Path::new("token"));
            let config = |folder: &Path, variables: &[(&str, &Path)]| {
                let mut command = Command::new(compose[0]);
                command.args(&compose[1..]).arg("--file").arg(&file);
                command.envs(variables.iter().copied());
                run(command.arg("config").current_dir(folder), PATIENCE)
            };
            let beside = config(file.parent().unwrap(), &[token]).ok();
            let away = [token, ("SCCACHE_SECCOMP", &profile)];
            let elsewhere = config(Path::new("/"), &away).ok();
            assert!(beside.contains("userns.json"), "{beside}");
            assert_eq!(
                beside.contains("MODE: builder"),
                name == "cluster",
                "{beside}"
            );
            assert!(!elsewhere.contains("container_name"), "{elsewhere}");
            let without_token = config(Path::new("/"), &away[1..]);
            if name == "cluster" {
                assert_ne!(without_token.code, Some(0));
                assert!(
                    without_token.stderr.contains("SCCACHE_SERVER_TOKEN"),
                    "{without_token:?}"
                );
            }
        }
    }
}
