//! What a release pushes: its tags, its signature, its packages. The steps of the workflow are scripts, which run here.

use crate::deploy::{passes, root};
use crate::docker::{LONG, PATIENCE, run};
use crate::harness::{clean, has_program};
use crate::image::compose::docker_with_plugins;
use crate::registry::Registry;
use crate::site::Site;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

fn tags(version: &str, variant: &str) -> Vec<String> {
    let mut command = clean(root().join("scripts/release-tags"));
    let text = passes(command.args([version, variant]));
    text.lines().map(str::to_owned).collect()
}

#[test]
fn tags_are_what_people_type() {
    assert_eq!(
        tags("v1.2.3", "ubuntu"),
        [
            "1.2.3",
            "1.2.3-ubuntu",
            "1.2",
            "1.2-ubuntu",
            "1",
            "1-ubuntu",
            "latest",
            "ubuntu"
        ]
    );
    assert_eq!(
        tags("v1.2.3", "client"),
        ["1.2.3-client", "1.2-client", "1-client", "client"]
    );
    // What is not finished is nobody's latest.
    assert_eq!(
        tags("v2.0.0-rc.1", "ubuntu"),
        ["2.0.0-rc.1", "2.0.0-rc.1-ubuntu"]
    );
    let mut wrong = clean(root().join("scripts/release-tags"));
    let ran = run(wrong.args(["v1", "ubuntu"]), PATIENCE);
    ran.refused(2, &["\"v1\" is no version", "hint: "]);
}

#[test]
fn images_of_two_machines_are_joined_under_every_tag_and_signed() {
    let Some(site) = Site::open() else { return };
    let Some(registry) = Registry::start() else {
        return;
    };
    let asked = docker_with_plugins("docker")
        .args(["buildx", "version"])
        .output();
    if !asked.is_ok_and(|output| output.status.success()) {
        return crate::harness::skip("no docker buildx");
    }
    let image = format!("{}/team/cache", registry.host);
    // One image stands for those of both machines: what it was made for is not looked at.
    for arch in ["amd64", "arm64"] {
        let name = format!("{image}:v1.2.3-ubuntu-{arch}");
        site.docker.ok(&["tag", &site.image, &name]);
        site.docker.ok(&["push", "--quiet", &name]);
        site.docker.ok(&["rmi", &name]);
    }
    // Signing takes a certificate of a workflow: here it is written down.
    let folder = tempfile::tempdir().unwrap();
    let cosign = folder.path().join("cosign");
    let signed = folder.path().join("signed");
    let text = format!("#!/bin/sh\necho \"$*\" >>'{}'\n", signed.display());
    fs::write(&cosign, text).unwrap();
    fs::set_permissions(&cosign, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!(
        "{}:{}",
        folder.path().display(),
        std::env::var("PATH").unwrap()
    );
    let mut step = docker_with_plugins("sh");
    step.args([
        "-euc",
        &step_of_release("Join the images of all machines and sign them"),
    ]);
    step.current_dir(root())
        .env("PATH", path)
        .env("IMAGE", &image);
    step.env("GITHUB_REF_NAME", "v1.2.3")
        .env("VARIANT", "ubuntu")
        .env("ARCHES", "amd64 arm64");
    let ran = run(&mut step, LONG);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let listed = passes(
        clean("curl")
            .args(["--silent", "--fail"])
            .arg(format!("http://{}/v2/team/cache/tags/list", registry.host)),
    );
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    let listed: BTreeSet<&str> = listed["tags"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|it| it.as_str())
        .collect();
    for tag in tags("v1.2.3", "ubuntu") {
        assert!(listed.contains(&*tag), "{tag} is missing in {listed:?}");
    }
    let digest = ran.stdout.lines().last().unwrap();
    assert!(digest.starts_with(&format!("{image}@sha256:")), "{digest}");
    assert_eq!(
        fs::read_to_string(signed).unwrap(),
        format!("sign --yes {digest}\n")
    );
}

/// The shell text of a step of the release workflow.
fn step_of_release(name: &str) -> String {
    let text = fs::read_to_string(root().join(".github/workflows/release.yml")).unwrap();
    let step = text.split(&format!("- name: {name}\n")).nth(1).unwrap();
    step.lines()
        .find_map(|line| line.trim().strip_prefix("run: "))
        .unwrap()
        .to_owned()
}

/// Makes both packages of these very programs.
pub(crate) fn debian_packages(to: &Path) {
    let mut command = clean(root().join("scripts/deb"));
    let sccache = crate::harness::sccache_bin();
    let tools = sccache.ancestors().nth(3).unwrap();
    command.arg(to).env("SCCACHE_DOCK_TOOLS", tools);
    let ran = run(
        command.env("SCCACHE_DOCK_PROGRAM", crate::dock::program()),
        LONG,
    );
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
}

#[test]
fn debian_packages_hold_programs_manuals_completions_and_the_unit() {
    if !has_program("dpkg-deb") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    debian_packages(folder.path());
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(folder.path()).unwrap().map(Result::unwrap) {
        let mut list = Command::new("dpkg-deb");
        let text = passes(list.arg("--contents").arg(entry.path()));
        for line in text.lines().filter(|line| line.starts_with('-')) {
            let (about, path) = line.split_once(" ./").unwrap();
            assert!(about.contains("root/root"), "{line}");
            found.insert(path.to_owned());
        }
    }
    for path in [
        "usr/bin/sccache",
        "usr/bin/sccache-dist",
        "usr/bin/sccache-dock",
        "usr/bin/sccache-dock-gateway",
        "usr/bin/sccache-dock-run",
        "usr/lib/systemd/system/sccache-dock.service",
        "usr/lib/sysusers.d/sccache-dock.conf",
        "usr/share/bash-completion/completions/sccache-dock",
        "usr/share/fish/vendor_completions.d/sccache-dock.fish",
        "usr/share/man/man1/sccache-dock-client-env.1.gz",
        "usr/share/sccache-dock/apparmor",
        "usr/share/sccache-dock/builder.conf",
        "usr/share/zsh/vendor-completions/_sccache-dock",
    ] {
        "usr/share/sccache-dock/pure-builder.conf",
        assert!(found.contains(path), "{path} is missing in {found:?}");
    }
}
