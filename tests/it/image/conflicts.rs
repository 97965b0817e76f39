//! What is there already when the host's script starts a container: others of its name, its port or its mode.

use crate::docker::{LONG, run};
use crate::site::{Script, Site};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

const IS_RUNNING: &str = "{{.State.Running}}";

/// A PATH on which `docker` is shell text that ends in the real one, as `exec "$docker" "$@"`.
pub(crate) fn docker_that(folder: &tempfile::TempDir, text: &str) -> String {
    let docker = run(std::process::Command::new("which").arg("docker"), LONG).ok();
    let file = folder.path().join("docker");
    let text = format!("#!/bin/sh\ndocker='{docker}'\n{text}\nexec \"$docker\" \"$@\"\n");
    fs::write(&file, text).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    format!(
        "{}:{}",
        folder.path().display(),
        std::env::var("PATH").unwrap()
    )
}

#[test]
fn container_of_somebody_else_is_neither_started_nor_stopped_nor_removed() {
    let Some(site) = Site::open() else { return };
    let script = site.script("stranger");
    let run = ["run", "--detach", "--name", &script.container];
    let sleeps = ["--entrypoint=sleep", &site.image, "600"];
    let id = site.docker.ok(&[&run[..], &sleeps].concat());
    for args in [
        &["start", "ephemeral"][..],
        &["stop"],
        &["restart"],
        &["remove"],
    ] {
        let hint = "hint: choose a name for its own: SCCACHE_CONTAINER_NAME=";
        script
            .call(args)
            .refused(1, &["was not started by this script", hint]);
    }
    assert_eq!(site.docker.inspect(&id, IS_RUNNING), "true");
}

#[test]
fn slash_at_the_end_of_a_folder_makes_no_other_folder() {
    let Some(site) = Site::open() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let script = site.script("slash");
    // As the script's containers were before it took slashes away.
    let user = format!("--user={}:{}", nix::unistd::getuid(), nix::unistd::getgid());
    let volume = format!("--volume={path}:/var/sccache");
    let label = format!("--label=sccache-dock.folder={path}/");
    let labels = ["--label=sccache-dock.mode=persistent", &label];
    let flags = [&user, &volume, "--env=MODE=persistent"];
    let container = site.container("slash", &[&flags[..], &labels].concat());
    container.wait_healthy();
    for typed in [path.to_owned(), format!("{path}//")] {
        let ran = script.call(&["start", "persistent", &typed]);
        ran.refused(0, &["runs already"]);
    }
    let other = script.call(&["start", "persistent", &format!("{path}/other")]);
    other.refused(1, &["exists with mode persistent"]);
}

/// As a quadlet, Compose or plain Docker has started it: what starts it after a reboot is theirs.
#[test]
fn cache_that_the_script_has_not_started_is_restarted_in_its_place() {
    let Some(site) = Site::open() else { return };
    let container = site.container("quadlet", &[]);
    container.wait_healthy();
    let script = site.script("quadlet");
    let pids = site.docker.pids(&container.name);
    script.call(&["restart"]).ok();
    assert_ne!(site.docker.pids(&container.name), pids);
    let policy = "{{.HostConfig.RestartPolicy.Name}}";
    assert_eq!(site.docker.inspect(&container.name, policy), "no");
    site.docker.ok(&["stop", &container.name]);
    script
        .call(&["restart"])
        .refused(1, &["was not started by this script"]);
}

/// Another start is quicker, between the look for a container and its creation.
#[test]
fn start_that_loses_against_another_uses_what_that_one_has_made() {
    let Some(site) = Site::open() else { return };
    let script = site.script("twice");
    let folder = tempfile::tempdir().unwrap();
    let first = format!(
        "if [ \"$1\" = create ] && mkdir '{0}/once' 2>/dev/null; then\n\
         PATH={1} {2} start ephemeral >/dev/null 2>'{0}/first' || exit 9; \"$docker\" inspect \
         --format '{{{{.Id}}}}' {3} >'{0}/id'; fi",
        folder.path().display(),
        std::env::var("PATH").unwrap(),
        Script::path().display(),
        script.container
    );
    let path = docker_that(&folder, &first);
    let mut second = script.command();
    let ran = run(second.args(["start", "ephemeral"]).env("PATH", path), LONG);
    let said = ran.stderr.clone();
    ran.ok();
    assert!(said.contains("another start has made container"), "{said}");
    let id = fs::read_to_string(folder.path().join("id")).unwrap();
    assert_eq!(
        script.docker.inspect(&script.container, "{{.Id}}"),
        id.trim()
    );
    script.call(&["status"]).ok();
}

#[test]
fn who_has_the_port_and_what_differs_is_named() {
    let Some(site) = Site::open() else { return };
    let first = site.script("first");
    first.call(&["start", "ephemeral"]).ok();
    let mut second = site.script("second");
    second.port = first.port;
    let refused = second.call(&["start", "ephemeral"]);
    let message = format!(
        "cannot publish port {}: it is in use by container \"{}\"",
        first.port, first.container
    );
    let other = format!("SCCACHE_DEFAULT_PORT={}", first.port + 100);
    refused.refused(1, &[&message, "hint: ", &other]);
    let left = site.docker.run(&["inspect", &second.container]);
    assert_ne!(left.code, Some(0), "a container that never ran is removed");
    let refused = first.call(&["start", "persistent", "/srv/other"]);
    let difference = "exists with mode ephemeral, not with mode persistent /srv/other";
    refused.refused(
        1,
        &[
            difference,
            "hint: remove it first",
            "SCCACHE_CONTAINER_NAME=",
        ],
    );

    // One whose scheduler's port is taken says so.
    let third = site.script("third");
    let port = first.port.to_string();
    let mut command = third.command();
    command.env("SCCACHE_SCHEDULER_PORT", &port);
    let ran = run(command.args(["start", "distributed-ephemeral"]), LONG);
    ran.refused(1, &["cannot publish port ", "SCCACHE_SCHEDULER_PORT="]);
}

/// Docker that calls itself Podman, of a user and of root: the advice goes by that, whoever starts the container.
#[test]
fn what_podman_needs_for_a_reboot_goes_by_whose_podman_it_is() {
    let Some(site) = Site::open() else { return };
    let script = site.script("reboot");
    for (security, enable) in [
        ("name=rootless", "once: systemctl --user enable"),
        ("name=seccomp", "once: systemctl enable"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let says = format!(
            "case $1 in version) echo Podman Engine; exit ;; info) echo '[{security}]'; exit ;; esac"
        );
        let path = docker_that(&folder, &says);
        // Nothing is enabled on this machine.
        symlink("/bin/false", folder.path().join("systemctl")).unwrap();
        let mut command = script.command();
        let ran = run(command.args(["start", "ephemeral"]).env("PATH", path), LONG);
        ran.refused(0, &[&format!("{enable} podman-restart.service")]);
        script.call(&["remove"]).ok();
    }
}
