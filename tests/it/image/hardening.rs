//! Every way in which people lock a container down.

use crate::docker::{Container, PATIENCE};
use crate::harness::wait_for;
use crate::site::Site;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

/// The user that the image comes with.
const IMAGE_USER: u32 = 10426;

/// Starts a container; it must become healthy, take a blob and give it back.
fn serves<'a>(site: &'a Site, what: &str, flags: &[&str]) -> Container<'a> {
    println!("{what}: {}", flags.join(" "));
    let container = site.container(what, flags);
    container.wait_healthy();
    let path = "/it/blob-of-the-test";
    let put = site.docker.request(&container.name, "PUT", path, b"bytes");
    assert!([201, 204].contains(&put.code), "{what}: {}", put.text());
    let got = site.docker.request(&container.name, "GET", path, b"");
    assert_eq!((got.code, got.text().as_str()), (200, "bytes"), "{what}");
    container
}

/// The user of the gateway's process, as the container sees it.
fn uid_of_gateway(container: &Container) -> u32 {
    let find = "for p in /proc/[0-9]*; do if tr '\\0' ' ' <$p/cmdline | grep -q 'dock[-]gateway'; then stat -c %u $p; fi; done";
    container
        .exec(&["sh", "-c", find])
        .ok()
        .lines()
        .next()
        .unwrap()
        .parse()
        .unwrap()
}

/// Owners of all files below a folder.
fn owners(folder: &Path) -> Vec<u32> {
    let mut found = vec![folder.metadata().unwrap().uid()];
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if entry.file_type().unwrap().is_dir() {
            found.extend(owners(&path));
        } else {
            found.push(path.symlink_metadata().unwrap().uid());
        }
    }
    found.sort_unstable();
    found.dedup();
    found
}

#[test]
fn serves_under_every_restriction() {
    let Some(site) = Site::open() else { return };
    let all = [
        "--user=12345:12345",
        "--read-only",
        "--cap-drop=ALL",
        "--security-opt=no-new-privileges",
    ];
    for (what, flags) in [
        ("user", &all[..1]),
        ("read-only", &all[1..2]),
        ("cap-drop", &all[2..3]),
        ("no-new-privileges", &all[3..]),
        ("all", &all[..]),
        (
            "root-locked",
            &[
                "--user=root",
                "--read-only",
                "--cap-drop=ALL",
                "--security-opt=no-new-privileges",
            ][..],
        ),
        ("tmpfs", &["--tmpfs=/var/sccache"]),
        (
            "tmpfs-user",
            &[
                "--tmpfs=/var/sccache:mode=1777",
                "--user=12345:12345",
                "--read-only",
            ],
        ),
        ("init", &["--init"]),
    ] {
        let container = serves(&site, what, flags);
        if flags.contains(&all[0]) {
            assert_eq!(uid_of_gateway(&container), 12345, "{what}");
        }
        if what == "init" {
            site.docker.ok(&["stop", &container.name]);
            let (code, said) = container.end();
            assert_eq!(code, "0", "{said}");
            assert!(said.ends_with("stopped\n"), "{said}");
        }
    }
}

#[test]
fn root_steps_down_to_the_users_of_the_image_and_becomes_healthy_for_docker() {
    let Some(site) = Site::open() else { return };
    for (what, flags) in [
        ("default", &["--health-interval=1s"][..]),
        ("root", &["--user=root"]),
    ] {
        let container = serves(&site, what, flags);
        assert_eq!(uid_of_gateway(&container), IMAGE_USER, "{what}");
        if what == "default" {
            let format = "{{.State.Health.Status}}";
            wait_for("HEALTHCHECK", PATIENCE, || {
                (site.docker.inspect(&container.name, format) == "healthy").then_some(())
            });
        }
    }
}

#[test]
fn named_volume_keeps_blobs_from_one_container_to_the_next_and_its_owner() {
    let Some(site) = Site::open() else { return };
    let volume = site.name("volume");
    let mount = format!("--volume={volume}:/var/sccache");
    let first = serves(&site, "volume", &[&mount, "--env=MODE=persistent"]);
    site.docker.ok(&["stop", &first.name]);
    drop(first);
    let second = site.container(
        "volume",
        &[&mount, "--env=MODE=persistent", "--user=12345:12345"],
    );
    let (code, said) = second.end();
    assert_eq!(code, "2", "{said}");
    assert!(
        said.contains("hint: ") && said.contains("--user 10426"),
        "{said}"
    );
    drop(second);
    let third = site.container("volume", &[&mount, "--env=MODE=persistent"]);
    third.wait_healthy();
    let got = site
        .docker
        .request(&third.name, "GET", "/it/blob-of-the-test", b"");
    assert_eq!((got.code, got.text().as_str()), (200, "bytes"));
    drop(third);
    site.docker.ok(&["volume", "rm", &volume]);
}

#[test]
fn files_in_the_folder_of_a_host_belong_to_its_owner() {
    let Some(site) = Site::open() else { return };
    let uid = if nix::unistd::getuid().is_root() {
        1000
    } else {
        nix::unistd::getuid().as_raw()
    };
    let folder = tempfile::tempdir().unwrap();
    if nix::unistd::getuid().is_root() {
        chown(folder.path(), Some(uid), Some(uid)).unwrap();
    }
    let mount = format!("--volume={}:/var/sccache", folder.path().display());
    let container = serves(&site, "host-folder", &[&mount, "--env=MODE=persistent"]);
    assert_eq!(uid_of_gateway(&container), uid);
    assert_eq!(owners(folder.path()), [uid]);
}

#[test]
fn folder_that_root_left_behind_is_handed_over_to_the_services() {
    let Some(site) = Site::open() else { return };
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
    let mount = format!("--volume={}:/var/sccache", folder.path().display());
    // Root without capabilities cannot step down: its files are root's.
    let owner = format!("--user={}:{}", nix::unistd::getuid(), nix::unistd::getgid());
    drop(serves(&site, "left", &[&mount, "--cap-drop=ALL", &owner]));
    let container = serves(&site, "left", &[&mount]);
    let got = site
        .docker
        .request(&container.name, "DELETE", "/it/blob-of-the-test", b"");
    assert_eq!(got.code, 204, "{}", got.text());
    let expected = if nix::unistd::getuid().is_root() {
        IMAGE_USER
    } else {
        nix::unistd::getuid().as_raw()
    };
    assert_eq!(uid_of_gateway(&container), expected);
    assert_eq!(owners(folder.path()), [expected]);
}
