//! Settings that a repository carries, in checkouts that several containers, users and paths have in common.

use crate::docker::{LONG, run};
use crate::harness::sccache_bin;
use crate::site::{Script, Site, sysroot};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A checkout of one small crate with what `env --format cargo --no-token` prints.
fn checkout(site: &Site, settings: &str) -> PathBuf {
    let checkout = site.home.path().join("checkout");
    let fixture =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/checkout/vendor/shapes");
    let mut copy = Command::new("cp");
    run(copy.arg("-r").arg(fixture).arg(&checkout), LONG).ok();
    fs::create_dir(checkout.join(".cargo")).unwrap();
    fs::write(checkout.join(".cargo/config.toml"), settings).unwrap();
    // Whoever builds only reads the lock file.
    let mut lock = Command::new("cargo");
    run(
        lock.args(["generate-lockfile", "--offline"])
            .current_dir(&checkout),
        LONG,
    )
    .ok();
    checkout
}

/// Builds the checkout in a container of its own, where it lies at `path`, with `flags`.
fn build(script: &Script, site: &Site, checkout: &Path, path: &str, flags: &[&str]) {
    let network = site.name("net");
    let mut command = Command::new("docker");
    command.args([
        "run",
        "--rm",
        "--init",
        "--name",
        &site.name("client"),
        "--network",
        &network,
    ]);
    command.args(site.toolchain_flags());
    // Users other than root cannot enter the folder of the host's toolchain.
    command.arg(format!("--volume={}:/opt/rust:ro", sysroot().display()));
    command.arg("--env=PATH=/opt/rust/bin:/usr/local/bin:/usr/bin:/bin");
    command
        .arg("--env=HOME=/tmp")
        .arg(format!("--env=SCCACHE_WEBDAV_TOKEN={}", script.token()));
    command.arg(format!(
        "--volume={}:/usr/local/bin/sccache:ro",
        sccache_bin().display()
    ));
    command.arg(format!("--volume={}:{path}", checkout.display()));
    command.arg(format!("--workdir={}", path.trim_end_matches(":ro")));
    command.args(flags).arg(site.base().unwrap());
    run(
        command.args([
            "cargo",
            "build",
            "--locked",
            "--offline",
            "--target-dir",
            "/tmp/target",
        ]),
        LONG,
    )
    .ok();
}

/// The cache, on a network of its own with whoever builds; gives its address there.
fn start(site: &Site, script: &Script) -> String {
    script.call(&["start", "ephemeral"]).ok();
    let network = site.name("net");
    site.docker.ok(&["network", "create", &network]);
    site.docker
        .ok(&["network", "connect", &network, &script.container]);
    format!("http://{}:4226", script.container)
}

#[test]
fn file_in_the_checkout_works_for_root_then_another_user_read_only_and_at_long_paths() {
    let Some(site) = Site::open() else { return };
    let script = site.script("committed");
    let endpoint = start(&site, &script);
    let arguments = [
        "env",
        "--format",
        "cargo",
        "--no-token",
        "--no-disk",
        "--endpoint",
        &endpoint,
    ];
    let checkout = checkout(&site, &script.call(&arguments).ok());

    build(&script, &site, &checkout, "/committed", &["--user=0:0"]);
    let (_, _, stored) = script.counts();
    assert!(stored > 0, "nothing was stored");
    let left: Vec<_> = fs::read_dir(&checkout)
        .unwrap()
        .map(|it| it.unwrap().file_name())
        .collect();
    assert!(
        !left.iter().any(|it| it.to_string_lossy().contains("sock")),
        "{left:?}"
    );

    build(
        &script,
        &site,
        &checkout,
        "/committed:ro",
        &["--user=4711:4711"],
    );
    let (hits, ..) = script.counts();
    assert!(hits > 0, "nothing was shared");

    let long = format!("/{}", "x".repeat(199));
    build(&script, &site, &checkout, &long, &["--user=4711:4711"]);
    let (.., writes) = script.counts();
    assert!(writes > stored, "another path has keys of its own");
}

#[test]
fn variables_of_a_container_win_over_a_mounted_cargo_home() {
    let Some(site) = Site::open() else { return };
    let script = site.script("laptop");
    let endpoint = start(&site, &script);
    // As the guide for a laptop has it: the host's own address, in the user's own file.
    let cargo_home = site.home.path().join("cargo");
    fs::create_dir(&cargo_home).unwrap();
    let own = script.call(&["env", "--format", "cargo"]).ok();
    fs::write(cargo_home.join("config.toml"), own).unwrap();
    let file = site.home.path().join("cache.env");
    let set = script.call(&[
        "env",
        "--format",
        "docker",
        "--no-disk",
        "--endpoint",
        &endpoint,
    ]);
    fs::write(&file, set.ok()).unwrap();
    let checkout = checkout(&site, "");
    let flags = [
        format!("--env-file={}", file.display()),
        format!("--volume={}:/cargo:ro", cargo_home.display()),
        "--env=CARGO_HOME=/cargo".to_owned(),
        "--user=4711:4711".to_owned(),
    ];
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    build(&script, &site, &checkout, "/committed:ro", &flags);
    let (.., writes) = script.counts();
    assert!(writes > 0, "the set of the container had no effect");
}
