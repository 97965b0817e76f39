//! An image by its name in a registry is pulled, and nothing is built.

use super::conflicts::docker_that;
use crate::docker::{PATIENCE, run};
use crate::registry::Registry;
use crate::site::Site;
use std::fs;

#[test]
fn image_of_a_registry_is_pulled_instead_of_built() {
    let Some(registry) = Registry::start() else {
        return;
    };
    let Some(site) = Site::open() else { return };
    // Docker takes a registry of this machine without a certificate.
    let name = format!("{}/team/cache:1", registry.host);
    site.docker.ok(&["tag", &site.image, &name]);
    site.docker.ok(&["push", "--quiet", &name]);
    site.docker.ok(&["rmi", &name]);
    let script = site.script("pulled");
    let call = |image: &str, args: &[&str]| {
        let mut command = script.command();
        command
            .env_remove("SCCACHE_DOCK_PROGRAM")
            .env_remove("SCCACHE_IMAGE_NAME");
        run(
            command.env("SCCACHE_DOCK_IMAGE", image).args(args),
            PATIENCE * 2,
        )
    };
    let started = call(&name, &["start", "ephemeral"]);
    assert_eq!(started.code, Some(0), "{}", started.stderr);
    assert!(
        started.stderr.contains(&format!("pulling \"{name}\"")),
        "{}",
        started.stderr
    );
    for made in ["compiling", "asking the image registry", "making a base"] {
        assert!(!started.stderr.contains(made), "{}", started.stderr);
    }
    assert_eq!(
        site.docker.inspect(&script.container, "{{.Config.Image}}"),
        name
    );
    call(&name, &["install-client"]).ok();

    // Whoever types the next commands elsewhere has not set the variable: the image is the same, after an update too.
    let without = |image: Option<&str>, args: &[&str]| {
        let mut command = script.command();
        command
            .env_remove("SCCACHE_DOCK_PROGRAM")
            .env_remove("SCCACHE_IMAGE_NAME");
        command.envs(image.map(|image| ("SCCACHE_IMAGE_NAME", image)));
        run(command.args(args), PATIENCE * 2)
    };
    let again = without(None, &["start", "ephemeral"]);
    assert!(!again.stderr.contains("an older image"), "{again:?}");
    script.docker.ok(&["stop", &script.container]);
    without(None, &["restart"]).ok();
    without(None, &["install-client"]).ok();
    without(None, &["remove"]).ok();
    site.docker.ok(&["rmi", &name]);
    let anew = without(None, &["start", "ephemeral"]);
    let said = format!("taking \"{name}\", as the last start did");
    anew.refused(0, &[&said, &format!("pulling \"{name}\"")]);
    let used = || {
        script
            .docker
            .inspect(&script.container, "{{.Config.Image}}")
    };
    assert_eq!(used(), name);
    without(None, &["remove"]).ok();
    // Another name is the last word.
    without(Some(&site.image), &["start", "ephemeral"]).ok();
    assert_eq!(used(), site.image);
    let again = without(None, &["start", "ephemeral"]);
    assert!(!again.stderr.contains("taking "), "{again:?}");
    without(None, &["remove"]).ok();
    site.docker.ok(&["rmi", &name]);

    // Nothing else is made or started in its place.
    let wrong = name.replace("cache:1", "cache:2");
    let refused = call(&wrong, &["start", "ephemeral"]);
    refused.refused(
        1,
        &["cannot pull image", &wrong, "hint: ", "manifest unknown"],
    );
    assert!(!refused.stderr.contains("compiling"), "{}", refused.stderr);
}

#[test]
fn remembered_image_is_not_taken_for_one_that_is_asked_for_by_name() {
    let Some(site) = Site::open() else { return };
    let script = site.script("noted");
    let state = site.home.path().join(".local/state/sccache-dock");
    fs::create_dir_all(&state).unwrap();
    let note = state.join(format!("{}.image", script.container));
    // Docker that has no registry, and builds nothing.
    let folder = tempfile::tempdir().unwrap();
    let path = docker_that(
        &folder,
        "case $1 in pull | manifest | build) exit 9 ;; esac",
    );
    let call = |args: &[&str]| {
        let mut command = script.command();
        command
            .env("PATH", &path)
            .env("SCCACHE_BASE_IMAGE", site.base().unwrap())
            .env_remove("SCCACHE_IMAGE_NAME");
        run(command.args(args), PATIENCE * 2)
    };
    fs::write(&note, "registry.example/cache:1\n").unwrap();
    let builds = "SCCACHE_DOCK_IMAGE= (empty) builds one here";
    let pulls = "cannot pull image \"registry.example/cache:1\"";
    call(&["build"]).refused(1, &[pulls, builds]);
    call(&["build", "debian"]).refused(1, &["cannot build image \"sccache-debian\""]);
    // As a full disk leaves it.
    fs::write(&note, "").unwrap();
    let started = call(&["start", "ephemeral"]);
    assert!(!started.stderr.contains("taking"), "{}", started.stderr);
}
