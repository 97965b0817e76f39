//! Builders in containers that have no privilege, and what each flag is for.

use crate::distributed::{CLIENT, client_file, distributed, statistics};
use crate::docker::{Container, LONG, Ran, TOKEN, run};
use crate::harness::tools;
use crate::machine::Machine;
use crate::site::{Site, skip};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A container that may do nothing.
const LOCKED: &[&str] = &[
    "--user=1000:1000",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
    "--read-only",
];

fn profiles() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("images/seccomp")
}

fn profile(name: &str) -> Value {
    let text = fs::read_to_string(profiles().join(format!("{name}.json"))).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// The last group of a profile, by name.
fn added(profile: &mut Value) -> &mut Vec<Value> {
    let groups = profile["syscalls"].as_array_mut().unwrap();
    groups.last_mut().unwrap()["names"].as_array_mut().unwrap()
}

#[test]
fn profiles_are_dockers_default_and_exactly_what_jobs_need() {
    for (name, expected) in [
        (
            "userns",
            &[
                "chroot",
                "clone",
                "mount",
                "mount_setattr",
                "pivot_root",
                "umount2",
                "unshare",
            ][..],
        ),
        ("root", &["pivot_root"]),
    ] {
        let mut ours = profile(name);
        let group = ours["syscalls"].as_array_mut().unwrap().pop().unwrap();
        assert_eq!(ours, profile("docker-default"), "{name}");
        assert_eq!(
            group,
            serde_json::json!({ "names": expected, "action": "SCMP_ACT_ALLOW" })
        );
    }
}

/// Runtimes that know no conditions would allow what stands below one.
#[test]
fn profile_of_kubernetes_has_no_conditions_and_allows_nothing_more() {
    let (conditional, flat) = (profile("userns"), profile("kubernetes"));
    let names = |group: &Value| -> Vec<String> {
        let names = group["names"].as_array().unwrap().iter();
        names
            .map(|name| name.as_str().unwrap().to_owned())
            .collect()
    };
    let groups = conditional["syscalls"].as_array().unwrap();
    let free = groups.iter().filter(|group| {
        let caps = group["includes"]["caps"].as_array();
        caps.is_none_or(Vec::is_empty) && group["action"] == "SCMP_ACT_ALLOW"
    });
    let free: BTreeSet<String> = free.flat_map(names).collect();
    assert!(free.contains("unshare") && !free.contains("bpf"));
    for group in flat["syscalls"].as_array().unwrap() {
        assert!(group["includes"].is_null() && group["excludes"].is_null());
        let refused = group["action"] == "SCMP_ACT_ERRNO";
        assert!(refused || names(group).iter().all(|name| free.contains(name)));
    }
    assert!(flat["archMap"].is_null() && flat["architectures"].is_array());
}

#[test]
fn profiles_are_made_by_their_script_and_printed_by_the_program() {
    let folder = tempfile::tempdir().unwrap();
    let made = Command::new(profiles().join("generate.sh"))
        .arg(folder.path())
        .status();
    assert!(made.unwrap().success());
    for name in ["userns", "root", "kubernetes"] {
        let committed = fs::read(profiles().join(format!("{name}.json"))).unwrap();
        let file = folder.path().join(format!("{name}.json"));
        assert!(fs::read(file).unwrap() == committed, "{name}");
        let printed = Command::new(crate::dock::program())
            .args(["seccomp", name])
            .output()
            .unwrap();
        assert!(printed.stdout == committed, "{name}");
    }
}

/// The bubblewraps that the profiles are for: the image's own, and newer ones that scripts/test has fetched.
const BUBBLEWRAPS: [(&str, &str); 3] = [
    ("own", "/usr/bin/bwrap"),
    ("trixie", "/bubblewrap/trixie/bwrap"),
    ("sid", "/bubblewrap/sid/bwrap"),
];

/// What the builder's own trial of a job says in a container with these flags, under this profile, with this bubblewrap.
fn trial(site: &Site, flags: &[&str], kind: &str, profile: &Value, bwrap: &str) -> Value {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let file = folder.path().join("profile.json");
    fs::write(&file, profile.to_string()).unwrap();
    let config = format!(
        "mode = \"builder\"\nisolation = \"userns\"\ndir = \"/var/sccache/builder\"\n\
         sccache_dist = \"/none\"\ntoolchain_cache_bytes = 1073741824\n\
         server_config = \"/none\"\nbwrap = \"{bwrap}\"\n\
         listen = \"0.0.0.0:10501\"\nserver = \"127.0.0.1:10502\"\njobs_socket = \"/none\"\ngrace_millis = 0\n[limits]\ntime_millis = 60000\n"
    );
    fs::write(folder.path().join("builder.toml"), config).unwrap();
    let newer = tools().join("bubblewrap");
    let ran = run(
        Command::new("docker")
            .args(["run", "--rm", "--init", "--name", &site.name("trial")])
            .args(flags)
            .arg(format!("--security-opt=seccomp={}", file.display()))
            .arg(format!("--volume={}:/trial:ro", folder.path().display()))
            .arg(format!("--volume={}:/bubblewrap:ro", newer.display()))
            .args(["--entrypoint=sccache-dock", &site.image])
            .args(["builder", "--config=/trial/builder.toml"])
            .arg(format!("--part=try-{kind}")),
        LONG,
    );
    serde_json::from_str(&ran.ok()).unwrap()
}

/// The versions of [`BUBBLEWRAPS`], to be printed; `None` where the newer ones are missing.
fn newer_bubblewraps() -> Option<Vec<String>> {
    let version = |suite: &str| {
        let bwrap = tools().join("bubblewrap").join(suite).join("bwrap");
        let output = Command::new(bwrap).arg("--version").output().ok()?;
        Some(String::from_utf8(output.stdout).unwrap().trim().to_owned())
    };
    let versions: Option<Vec<String>> = ["trixie", "sid"].map(version).into_iter().collect();
    versions.or_else(|| skip("no newer bubblewraps: run scripts/test"))
}

#[test]
fn profiles_are_enough_for_every_bubblewrap() {
    let Some(site) = Site::open() else { return };
    let Some(versions) = newer_bubblewraps() else {
        return;
    };
    println!("{versions:?}");
    let as_root = ["--user=root", "--cap-add=SYS_ADMIN", "--read-only"];
    for (name, bwrap) in BUBBLEWRAPS {
        for (kind, flags, file, procfs) in [
            ("userns", LOCKED, "userns", "bind"),
            ("userns", LOCKED, "kubernetes", "bind"),
            ("root", &as_root[..], "root", "fresh"),
        ] {
            let outcome = trial(&site, flags, kind, &profile(file), bwrap);
            let works = serde_json::json!({ "works": [procfs, "watch"] });
            assert_eq!(outcome, works, "{file} with {name}");
        }
    }
}

#[test]
fn every_system_call_of_the_profile_is_needed_by_a_job() {
    let Some(site) = Site::open() else { return };
    if newer_bubblewraps().is_none() {
        return;
    }
    let mut whole = profile("userns");
    let all = added(&mut whole).clone();
    let mut steps = BTreeSet::new();
    for (index, name) in all.iter().enumerate() {
        let mut less = whole.clone();
        added(&mut less).remove(index);
        for (bubblewrap, bwrap) in BUBBLEWRAPS {
            let outcome = trial(&site, LOCKED, "userns", &less, bwrap);
            println!("{bubblewrap} without {name}: {outcome}");
            match outcome["fails"]["step"].as_str() {
                Some(step) => {
                    steps.insert(step.to_owned());
                }
                // Newer ones set flags of mounts by another call.
                None => assert!(
                    name == "mount_setattr" && bubblewrap != "sid",
                    "{bubblewrap} works without {name}"
                ),
            }
        }
    }
    assert!(steps.len() > 1, "they fail at different steps: {steps:?}");
}

#[test]
fn container_without_the_profile_ends_with_3_and_prints_the_command() {
    let Some(site) = Site::open() else { return };
    let flags = [LOCKED, &["--env=MODE=distributed-ephemeral"]].concat();
    let container = site.container("no-profile", &flags);
    let (code, said) = container.end();
    assert_eq!(code, "3", "{said}");
    for part in [
        "cannot make a user namespace",
        "seccomp profile forbids it",
        "seccomp userns >sccache-userns.json",
        "--security-opt seccomp=sccache-userns.json",
    ] {
        assert!(said.contains(part), "{part:?} is missing in:\n{said}");
    }
    drop(container);
    // On the container's own layer no overlay can be mounted.
    let seccomp = format!(
        "--security-opt=seccomp={}",
        profiles().join("userns.json").display()
    );
    let container = site.container(
        "own-layer",
        &[
            "--env=MODE=distributed-ephemeral",
            "--env=SCCACHE_DIR=/tmp/state",
            &seccomp,
        ],
    );
    let (code, said) = container.end();
    assert_eq!(code, "3", "{said}");
    assert!(said.contains("a volume or a tmpfs"), "{said}");
}

/// A client on the host; nothing of the builder is published.
fn client(site: &Site, container: &Container) -> Machine {
    let address = site
        .docker
        .inspect(&container.name, "{{.NetworkSettings.IPAddress}}");
    let client = Machine::new();
    client.write(
        "dist.toml",
        &client_file(&format!("{address}:10600"), TOKEN),
    );
    client
}

fn on_the_host(client: &Machine, script: &str) -> Ran {
    run(&mut client.command(&format!("{CLIENT}{script}")), LONG)
}

/// A crate with a dependency, and a C file.
fn project(client: &Machine) {
    client.write(
        "Cargo.toml",
        "[package]\nname = \"it\"\nversion = \"1.0.0\"\nedition = \"2021\"\n\
         [dependencies]\nmeaning = { path = \"meaning\" }\n",
    );
    client.write(
        "meaning/Cargo.toml",
        "[package]\nname = \"meaning\"\nversion = \"1.0.0\"\nedition = \"2021\"\n",
    );
    client.write("meaning/src/lib.rs", "pub fn meaning() -> u32 { 42 }\n");
    client.write(
        "src/lib.rs",
        "pub fn twice() -> u32 { meaning::meaning() * 2 }\n",
    );
    client.write(
        "src/main.rs",
        "fn main() { println!(\"{}\", it::twice()); }\n",
    );
    client.write("a.c", "int main(void) { return 42; }\n");
}

#[test]
fn locked_down_container_builds_for_its_host() {
    let Some(site) = Site::open() else { return };
    let seccomp = format!(
        "--security-opt=seccomp={}",
        profiles().join("userns.json").display()
    );
    let flags = [LOCKED, &["--env=MODE=distributed-ephemeral", &seccomp]].concat();
    let container = site.container("locked", &flags);
    container.wait_healthy();
    let client = client(&site, &container);
    project(&client);
    let built = on_the_host(
        &client,
        "sccache cc -c a.c -o a.o && cc a.o -o a && { ./a; [ $? = 42 ]; } &&
        export RUSTC_WRAPPER=sccache CARGO_INCREMENTAL=0 && cargo build --quiet && target/debug/it",
    );
    let log = site.docker.logs(&container.name);
    assert_eq!(
        (built.code, built.stdout.as_str()),
        (Some(0), "84\n"),
        "{}\n{log}",
        built.stderr
    );
    let (done, failed) = distributed(&statistics(&client));
    assert_eq!((done, failed), (3, 0), "a.c and two libraries\n{log}");
    assert!(log.contains("with a Bind procfs"), "{log}");
}

#[test]
fn root_with_sys_admin_builds_for_its_host_and_hands_its_folder_over() {
    let Some(site) = Site::open() else { return };
    let volume = site.name("volume");
    let seccomp = format!(
        "--security-opt=seccomp={}",
        profiles().join("root.json").display()
    );
    let container = site.container(
        "root",
        &[
            "--user=root",
            "--cap-add=SYS_ADMIN",
            "--env=MODE=distributed-ephemeral",
            "--env=SCCACHE_BUILDER_ISOLATION=root",
            &format!("--volume={volume}:/var/sccache"),
            &seccomp,
        ],
    );
    container.wait_healthy();
    let client = client(&site, &container);
    project(&client);
    let built = on_the_host(&client, "sccache cc -c a.c -o a.o");
    let log = site.docker.logs(&container.name);
    assert_eq!(built.code, Some(0), "{}\n{log}", built.stderr);
    assert_eq!(distributed(&statistics(&client)), (1, 0), "{log}");
    assert!(log.contains("Root with a Fresh procfs"), "{log}");
    site.docker.run(&["kill", &container.name]);
    drop((container, client));
    // PID 1 is root there too, and its builder is not.
    let seccomp = seccomp.replace("root.json", "userns.json");
    let mount = format!("--volume={volume}:/var/sccache");
    let flags = ["--env=MODE=distributed-persistent", &mount, &seccomp];
    let container = site.container("after-root", &flags);
    container.wait_healthy();
    let client = self::client(&site, &container);
    project(&client);
    let built = on_the_host(&client, "sccache cc -DAGAIN -c a.c -o a.o");
    let log = site.docker.logs(&container.name);
    assert_eq!(built.code, Some(0), "{}\n{log}", built.stderr);
    assert_eq!(distributed(&statistics(&client)), (1, 0), "{log}");
    assert!(log.contains("removed 1 unpacked toolchains"), "{log}");
    assert!(log.contains("Userns with a Bind procfs"), "{log}");
    drop(container);
    site.docker.ok(&["volume", "rm", &volume]);
}

#[test]
fn builder_of_another_container_joins_and_takes_over() {
    takes_over("relayed", "on");
}

#[test]
fn builder_of_another_container_takes_over_without_the_relay() {
    takes_over("stock", "off");
}

fn takes_over(what: &str, relay: &str) {
    let Some(site) = Site::open() else { return };
    let relay = format!("--env=SCCACHE_RELAY={relay}");
    let seccomp = format!(
        "--security-opt=seccomp={}",
        profiles().join("userns.json").display()
    );
    let token = "--env=SCCACHE_SERVER_TOKEN=token-of-the-builders";
    let here = [
        LOCKED,
        &["--env=MODE=distributed-ephemeral", token, &relay, &seccomp],
    ]
    .concat();
    let scheduler = site.container(&format!("{what}-scheduler"), &here);
    scheduler.wait_healthy();
    let format = "{{.NetworkSettings.IPAddress}}";
    let address = site.docker.inspect(&scheduler.name, format);
    let url = format!("--env=SCCACHE_SCHEDULER_URL={address}");
    let there = [LOCKED, &["--env=MODE=builder", token, &url, &seccomp]].concat();
    let builder = site.container(&format!("{what}-builder"), &there);
    builder.wait_healthy();
    let client = client(&site, &scheduler);
    project(&client);
    let status = on_the_host(&client, "sccache --dist-status").ok();
    assert!(status.contains("\"num_servers\":2"), "{status}");
    scheduler.exec(&["sccache-dock", "stop", "builder"]).ok();
    // sccache's scheduler learns from the first job that nobody is there; its client compiles by itself.
    let script = "sccache cc -DFIRST -c a.c -o a.o && sccache cc -DSECOND -c a.c -o a.o";
    let built = on_the_host(&client, script);
    let logs = [&scheduler, &builder].map(|it| site.docker.logs(&it.name));
    assert_eq!(built.code, Some(0), "{}\n{logs:?}", built.stderr);
    let other = site.docker.inspect(&builder.name, format);
    // Its own builder is stopped, which the exit code tells.
    let told = scheduler.exec(&["sccache-dock", "status", "--json"]);
    let told: Value = serde_json::from_str(&told.stdout).unwrap();
    let builders = told["cache"]["dist"]["builders"].as_array().unwrap();
    let known = |one: &&Value| one["address"] == format!("{other}:10501");
    let by_other = builders.iter().find(known).map(|one| one["done"].clone());
    let by_other = by_other.and_then(|done| done.as_u64());
    assert!(
        by_other.is_some_and(|jobs| jobs >= 1),
        "{builders:?} {logs:?}"
    );
    if what == "relayed" {
        assert_eq!(distributed(&statistics(&client)), (2, 0), "{logs:?}");
    }
}
