//! The host's script on machines that differ: with SELinux, with IPv6, without `timeout`.

use super::conflicts::docker_that;
use crate::dock::eventually;
use crate::docker::{LONG, run};
use crate::harness::Process;
use crate::site::{Site, skip};
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::symlink;

#[test]
fn selinux_does_not_keep_the_container_from_its_folders() {
    let Some(site) = Site::open() else { return };
    let folder = tempfile::tempdir().unwrap();
    // No machine of the tests has it: Docker's word stands for it, and Docker itself takes what follows from that.
    let says =
        "if [ \"$1\" = info ]; then echo '[name=seccomp,profile=default name=selinux]'; exit; fi";
    let path = docker_that(&folder, says);
    for (has_it, path) in [(true, path), (false, std::env::var("PATH").unwrap())] {
        let script = site.script("labels");
        let mut command = script.command();
        command.env("PATH", path).args(["start", "ephemeral"]);
        run(&mut command, LONG).ok();
        let options = script
            .docker
            .inspect(&script.container, "{{.HostConfig.SecurityOpt}}");
        assert_eq!(options.contains("label=disable"), has_it, "{options}");
        assert!(options.contains("no-new-privileges"), "{options}");
    }
}

#[test]
fn address_of_ipv6_is_written_as_its_clients_need_it() {
    let Some(site) = Site::open() else { return };
    if TcpListener::bind("[::1]:0").is_err() {
        return skip("no IPv6").unwrap_or(());
    }
    for address in ["::1", "[::1]", "::"] {
        let script = site.script("six");
        let place = format!("http://[::1]:{}", script.port);
        let mut command = script.command();
        command
            .env("SCCACHE_BIND", address)
            .args(["start", "ephemeral"]);
        let started = run(&mut command, LONG).ok();
        let said = format!("the cache is at {place}.");
        assert!(started.contains(&said), "{address}: {started}");
        let set = script.call(&["env"]).ok();
        let endpoint = format!("SCCACHE_WEBDAV_ENDPOINT='{place}'");
        assert!(set.contains(&endpoint), "{address}: {set}");
        let client = format!(
            "eval \"$('{}' env)\"; ",
            crate::site::Script::path().display()
        );
        let doctor = format!("{client} '{}' doctor", crate::dock::program().display());
        let said = site.shell(&script, &doctor, LONG);
        let reached = format!("[::1]:{} accepts connections", script.port);
        assert!(said.stdout.contains(&reached), "{address}: {said:?}");
    }
    // Where a builder is reached: an address of IPv6 has colons, and need not have a port.
    for (reached, port) in [("fd00::7", "10501"), ("[fd00::7]:10999", "10999")] {
        let script = site.script("six");
        let mut command = script.command();
        command
            .envs([
                ("SCCACHE_BIND", "::1"),
                ("SCCACHE_PUBLIC_ADDR", reached),
                ("SCCACHE_RELAY", "off"),
            ])
            .args(["start", "distributed-ephemeral"]);
        run(&mut command, LONG).ok();
        let published = site.docker.ok(&["port", &script.container, "10501"]);
        assert!(published.ends_with(&format!("::1]:{port}")), "{published}");
    }
    // Without a container.
    let script = site.script("six");
    let mut command = script.command();
    command.env("SCCACHE_BIND", "::1").args(["run-local"]);
    let mut process = Process::start(&mut command);
    process.wait_for_line("In another terminal");
    let place = format!("http://[::1]:{}", script.port);
    eventually("what it says of itself", || {
        let mut ask = script.command();
        let ran = run(ask.env("SCCACHE_BIND", "::1").arg("env"), LONG);
        ran.stdout.contains(&format!("'{place}'")).then_some(())
    });
    process.signal(nix::sys::signal::Signal::SIGINT);
    process.exit();
}

/// What asks an image registry is bounded by the script itself: a machine need not have `timeout`.
#[test]
fn registry_is_asked_where_there_is_no_program_for_time_limits() {
    let Some(site) = Site::open() else { return };
    let folder = tempfile::tempdir().unwrap();
    // All the programs of this machine but that one. The registry has the image; nothing is built from it.
    let programs = folder.path().join("programs");
    fs::create_dir(&programs).unwrap();
    for from in ["/usr/bin", "/bin", "/usr/sbin"] {
        for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
            let name = entry.file_name();
            if name != "timeout" && name != "docker" {
                let _ = symlink(entry.path(), programs.join(name));
            }
        }
    }
    let answers = "case $1 in manifest) exit 0 ;; build) exit 7 ;; esac";
    docker_that(&folder, answers);
    let mut script = site.script("no-limits");
    script.image = Some("no-such-image-of-a-test".to_owned());
    let mut command = script.command();
    let path = format!("{}:{}", folder.path().display(), programs.display());
    command.env("PATH", path).args(["build", "ubuntu"]);
    let ran = run(&mut command, LONG);
    ran.refused(1, &["asking the image registry", "cannot build image"]);
    assert!(!ran.stderr.contains("no image registry"), "{}", ran.stderr);
}
