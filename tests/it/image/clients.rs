//! Real builds: on the host by every lane, from another container, inside the container, with default settings.

use crate::docker::{Container, LONG, PATIENCE, run};
use crate::harness::{now, sccache_bin};
use crate::site::{FAILING_PROBES, Script, Site, project};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

/// Exactly what `start` tells the user to type.
fn told(started: &str) -> Vec<&str> {
    let lines = started.lines().filter_map(|line| line.strip_prefix("    "));
    lines.map(str::trim).collect()
}

/// Hits, misses and writes since `before`.
fn since(script: &Script, before: (u64, u64, u64)) -> (u64, u64, u64) {
    let now = script.counts();
    (now.0 - before.0, now.1 - before.1, now.2 - before.2)
}

#[test]
fn what_start_prints_makes_a_cache_that_every_lane_and_another_container_hit_fully() {
    let Some(site) = Site::open() else { return };
    let script = site.script("lanes");
    let start = now();
    let started = script.call(&["start", "ephemeral"]).ok();
    println!("start took {:.1?}", start.elapsed());
    let steps = told(&started);
    for (step, part) in steps.iter().zip(["install-client", "eval", "cargo build"]) {
        assert!(step.contains(part), "{steps:?}");
    }

    let start = now();
    site.shell(&script, &steps.join("\n"), LONG).ok();
    let stored = script.settled();
    let (hits, misses, _) = script.counts();
    println!(
        "cold in {:.1?}: {misses} misses, {stored} writes",
        start.elapsed()
    );
    assert_eq!((hits, misses), (0, stored + FAILING_PROBES));
    site.keep_blobs(&script);
    let forget = script.eval("") + " && sccache --stop-server && rm -r \"$SCCACHE_DIR\"";
    site.shell(&script, &forget, PATIENCE).ok();

    for lane in ["webdav", "ipc", "socket"] {
        let (before, start) = (script.counts(), now());
        site.build(&script, &script.eval(&format!("--lane {lane}")));
        let found = since(&script, before);
        println!("warm, {lane}: {} hits in {:.1?}", found.0, start.elapsed());
        assert_eq!(found, (stored, FAILING_PROBES, 0), "over {lane}");
    }

    let before = script.counts();
    build_in_another_container(&site, &script);
    assert_eq!(
        since(&script, before),
        (stored, FAILING_PROBES, 0),
        "from another container"
    );
}

/// A container that knows nothing but a file of variables and the name of the cache on their network.
fn build_in_another_container(site: &Site, script: &Script) {
    let network = site.name("net");
    site.docker.ok(&["network", "create", &network]);
    site.docker
        .ok(&["network", "connect", &network, &script.container]);
    let endpoint = format!("http://{}:4226", script.container);
    let file = site.home.path().join("client.env");
    let variables = script.call(&["env", "--format", "docker", "--endpoint", &endpoint]);
    std::fs::write(&file, variables.ok()).unwrap();
    let _ = std::fs::remove_dir_all(project().join("target"));
    let name = site.name("client");
    let mut command = Command::new("docker");
    command.args(["run", "--rm", "--name", &name, "--network", &network]);
    command
        .arg("--env-file")
        .arg(&file)
        .arg("--env=HOME=/tmp")
        .arg(user());
    command.arg(format!(
        "--volume={}:/usr/local/bin/sccache:ro",
        sccache_bin().display()
    ));
    command
        .args(site.toolchain_flags())
        .arg(site.base().unwrap());
    run(
        command.args(["cargo", "build", "--locked", "--offline", "--quiet"]),
        LONG,
    )
    .ok();
    site.docker
        .ok(&["network", "disconnect", &network, &script.container]);
    site.docker.ok(&["network", "rm", &network]);
}

/// The owner of the project's folder compiles in it.
fn user() -> String {
    format!("--user={}:{}", nix::unistd::getuid(), nix::unistd::getgid())
}

/// What a user of the container types, with what it sets.
const BUILD: &str =
    "HOME=/tmp RUSTC_WRAPPER=sccache CARGO_INCREMENTAL=0 cargo build --locked --offline --quiet";

#[test]
fn lane_to_the_cluster_is_what_the_script_prints() {
    let Some(site) = Site::open() else { return };
    let script = site.script("dist");
    let started = script.call(&["start", "distributed-ephemeral"]).ok();
    let steps = told(&started);
    for part in ["env --lane dist", "sccache-dock warm", "cargo build"] {
        assert!(steps.iter().any(|step| step.contains(part)), "{steps:?}");
    }
    let work = site.home.path().join("it.c");
    std::fs::write(&work, "int one(void) { return 1; }\n").unwrap();
    let text = format!(
        "'{}' install-client 2>&1 && {} && sccache-dock warm cc && sccache cc -c '{}' -o '{}' && sccache-dock doctor",
        Script::path().display(),
        script.eval("--lane dist"),
        work.display(),
        work.with_extension("o").display(),
    );
    let told = site.shell(&script, &text, LONG).ok();
    for part in [
        "cc: on 1 of 1 builders",
        "2 jobs handed over",
        "takes jobs at 127.0.0.1:",
        "2 compiles on builders, by way of the relay",
        " 0 failures",
    ] {
        assert!(told.contains(part), "{part:?} in\n{told}");
    }
    println!("{told}");
}

/// A container that starts with the blobs of `folder` and has the host's toolchain and project.
fn compiling<'a>(site: &'a Site, folder: &Path, more: &[&str]) -> Container<'a> {
    let volume = format!("--volume={}:/var/sccache", folder.display());
    let toolchain = site.toolchain_flags();
    let mut flags: Vec<&str> = toolchain.iter().map(String::as_str).collect();
    flags.push(&volume);
    flags.extend(more);
    let container = site.container("inside", &flags);
    container.wait_healthy();
    container
}

fn build_in(container: &Container, settings: &str) {
    let _ = std::fs::remove_dir_all(project().join("target"));
    container
        .exec(&["sh", "-c", &format!("{settings} {BUILD}")])
        .ok();
}

#[test]
fn build_inside_the_container_hits_the_same_cache() {
    let Some(site) = Site::open() else { return };
    let (folder, stored) = site.warm_folder();
    // As plain docker run has it: root in docker exec, services of the image's user.
    let container = compiling(&site, folder.path(), &[]);
    build_in(&container, "");
    assert_eq!(container.counts(), (stored, FAILING_PROBES, 0));
    // The server is another user and could not compile for root: root's client does it, and is told the hint.
    let _ = std::fs::remove_dir_all(project().join("target"));
    let build = format!("SCCACHE_LOG=debug {BUILD} -p indexmap -p anyhow");
    container.exec(&["sh", "-c", &build]).ok();
    let log = site.docker.logs(&container.name);
    let advice = log
        .lines()
        .find(|line| line.contains("SCCACHE_CLIENT_SIDE=1"));
    assert!(
        advice.is_some_and(|line| line.contains("unset SCCACHE_LOG")),
        "{log}"
    );
}

#[test]
fn server_mode_inside_the_container_hits_the_same_cache() {
    let Some(site) = Site::open() else { return };
    let (folder, stored) = site.warm_folder();
    // As the host's script runs it: the services are the caller's, and may write where the caller may.
    let container = compiling(&site, folder.path(), &[&user(), "--cap-drop=ALL"]);
    build_in(&container, "SCCACHE_LOG=debug");
    assert_eq!(container.counts(), (stored, FAILING_PROBES, 0));
}

#[test]
fn client_with_default_settings_builds_and_the_log_names_the_hint() {
    let Some(site) = Site::open() else { return };
    site.install_client();
    let mut script = site.script("default");
    let is_free = TcpListener::bind("127.0.0.1:4226").is_ok();
    let mut settings = "export RUSTC_WRAPPER=sccache".to_owned();
    if is_free {
        script.port = 4226;
    } else {
        settings += &format!(" SCCACHE_SERVER_PORT={}", script.port);
    }
    println!("published on {}", script.port);
    script.call(&["start", "ephemeral"]).ok();
    let _ = std::fs::remove_dir_all(project().join("target"));
    let build =
        format!("{settings} && cargo build --locked --offline --quiet -p indexmap -p anyhow");
    site.shell(&script, &build, PATIENCE * 2).ok();
    let log = site.docker.logs(&script.container);
    let line = log
        .lines()
        .find(|line| line.contains("SCCACHE_CLIENT_SIDE=1"));
    assert!(line.is_some_and(|line| line.contains("WARN")), "{log}");
    assert_eq!(script.counts(), (0, 0, 0));
}

/// A put of sccache's own protocol: length of the frame, tag 8, key, data.
const PUT: &str = r"\0\0\0\x56\x08\0\0\0\x40\0\0\0\0\0\0\0aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\x02\0\0\0\0\0\0\0PK";

#[test]
fn another_container_may_not_speak_the_protocol_that_knows_no_token() {
    let Some(site) = Site::open() else { return };
    let script = site.script("policy");
    script.call(&["start", "ephemeral"]).ok();
    let address = site
        .docker
        .inspect(&script.container, "{{.NetworkSettings.IPAddress}}");
    let ask = format!(
        "exec 3<>/dev/tcp/{address}/4226; printf '{PUT}' >&3; timeout 10 head --bytes 64 <&3 | tr -c '[:print:]' '.'"
    );
    let answer = site.docker.run(&[
        "run",
        "--rm",
        "--name",
        &site.name("stranger"),
        site.base().unwrap(),
        "bash",
        "-c",
        &ask,
    ]);
    assert!(
        answer.stdout.contains("may not use the cache"),
        "{answer:?}"
    );
    assert_eq!(script.status()["cache"]["store"]["entries"], 0);
    assert_eq!(script.counts(), (0, 0, 0));
}
