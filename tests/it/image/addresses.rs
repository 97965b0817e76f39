//! Where a builder may be: behind published ports of one address, and in the network of the host.

use crate::distributed::{CLIENT, client_file, distributed, statistics};
use crate::docker::{Container, LONG, PATIENCE, TOKEN, run};
use crate::harness::wait_for;
use crate::machine::Machine;
use crate::site::{Site, free_port};
use serde_json::Value;
use std::path::Path;

const JOBS: usize = 8;

/// Flags of a container that may do nothing but isolate jobs.
fn locked(mode: &str) -> Vec<String> {
    let profile = Path::new(env!("CARGO_MANIFEST_DIR")).join("images/seccomp/userns.json");
    vec![
        "--user=1000:1000".into(),
        "--cap-drop=ALL".into(),
        "--env=SCCACHE_SERVER_TOKEN=token-of-the-builders".into(),
        format!("--security-opt=seccomp={}", profile.display()),
        format!("--env=MODE={mode}"),
    ]
}

fn start<'a>(site: &'a Site, what: &str, flags: &[String]) -> Container<'a> {
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let container = site.container(what, &flags);
    container.wait_healthy();
    container
}

/// Compiles on a host that knows the scheduler at this address; every one of them must be done by a builder.
fn compiles_there(scheduler: &str, builders: usize, main: &Container) {
    let client = Machine::new();
    client.write("dist.toml", &client_file(scheduler, TOKEN));
    for number in 1..=JOBS {
        client.write(
            &format!("f{number}.cpp"),
            &format!("int f{number}() {{ return {number}; }}\n"),
        );
    }
    let sh = |script: &str| run(&mut client.command(&format!("{CLIENT}{script}")), LONG);
    wait_for("the builders", PATIENCE, || {
        let known = format!("\"num_servers\":{builders}");
        sh("sccache --dist-status")
            .stdout
            .contains(&known)
            .then_some(())
    });
    let log = || main.docker.logs(&main.name);
    let warmed = sh("sccache-dock warm c++");
    assert_eq!(warmed.code, Some(0), "{warmed:?}\n{}", log());
    let before = distributed(&statistics(&client));
    let built = sh(&format!(
        "seq 1 {JOBS} | xargs -P 2 -I @ sccache c++ -c f@.cpp -o f@.o"
    ));
    assert_eq!(built.code, Some(0), "{}\n{}", built.stderr, log());
    let after = distributed(&statistics(&client));
    assert_eq!(after, (before.0 + JOBS as u64, before.1), "{}", log());
    sh("sccache --stop-server");
}

/// Jobs done, by the address of the builder.
fn done(main: &Container) -> Vec<(String, u64)> {
    let text = main.exec(&["sccache-dock", "status", "--json"]).ok();
    let status: Value = serde_json::from_str(&text).unwrap();
    let builders = status["cache"]["dist"]["builders"].as_array().unwrap();
    let known = builders.iter().map(|one| {
        let address = one["address"].as_str().unwrap().to_owned();
        (address, one["done"].as_u64().unwrap())
    });
    known.collect()
}

#[test]
fn builders_behind_published_ports_of_one_address_are_told_apart() {
    behind_one_address("nat", true);
}

/// The scheduler reaches the builder of its own container through the host, too, as behind a NAT.
#[test]
fn without_the_relay_clients_reach_builders_behind_published_ports() {
    behind_one_address("stock", false);
}

/// A network of Docker's with the addresses that begin so; its name, and the host's address in it.
fn network(site: &Site, what: &str, prefix: &str) -> (String, String) {
    let (name, host) = (site.name(what), format!("{prefix}.1"));
    let subnet = format!("{prefix}.0/24");
    let create = [
        "network",
        "create",
        "--subnet",
        &subnet,
        "--gateway",
        &host,
        &name,
    ];
    site.docker.ok(&create);
    (name, host)
}

/// Two builders with published ports of the host; with the relay, that of its own container needs none.
fn behind_one_address(what: &str, by_relay: bool) {
    let Some(site) = Site::open() else { return };
    let third = (std::process::id() + u32::from(by_relay)) % 250;
    let (network, host) = network(&site, what, &format!("10.78.{third}"));
    let [scheduler, first, second] = [(); 3].map(|()| free_port());
    let mut flags = locked("distributed-ephemeral");
    flags.extend([
        format!("--network={network}"),
        format!("--publish={host}:{scheduler}:10600"),
        format!("--env=SCCACHE_PUBLIC_ADDR={host}:{first}"),
    ]);
    if !by_relay {
        flags.push("--env=SCCACHE_RELAY=off".to_owned());
        flags.push(format!("--publish={host}:{first}:10501"));
    }
    let main = start(&site, &format!("{what}-front"), &flags);
    let mut flags = locked("builder");
    flags.extend([
        format!("--network={network}"),
        format!("--publish={host}:{second}:10501"),
        format!("--env=SCCACHE_PUBLIC_ADDR={host}:{second}"),
        format!("--env=SCCACHE_SCHEDULER_URL=http://{host}:{scheduler}"),
    ]);
    let _joined = start(&site, &format!("{what}-second"), &flags);
    compiles_there(&format!("{host}:{scheduler}"), 2, &main);
    let done = done(&main);
    for port in [first, second] {
        let address = format!("{host}:{port}");
        let worked = done
            .iter()
            .any(|(known, jobs)| *known == address && *jobs > 0);
        assert!(worked, "{address} did nothing: {done:?}");
    }
}

#[test]
fn container_in_the_network_of_the_host_builds_for_it() {
    let Some(site) = Site::open() else { return };
    let [cache, scheduler, builder] = [(); 3].map(|()| free_port());
    let mut flags = locked("distributed-ephemeral");
    flags.extend([
        "--network=host".to_owned(),
        format!("--env=SCCACHE_LISTEN=127.0.0.1:{cache}"),
        format!("--env=SCCACHE_SCHEDULER_LISTEN=127.0.0.1:{scheduler}"),
        format!("--env=SCCACHE_BUILDER_LISTEN=127.0.0.1:{builder}"),
        "--env=SCCACHE_PUBLIC_ADDR=127.0.0.1".to_owned(),
    ]);
    let main = start(&site, "hosted", &flags);
    compiles_there(&format!("127.0.0.1:{scheduler}"), 1, &main);
}

#[test]
fn script_publishes_the_builders_port_where_it_was_told_to_and_only_where_clients_need_it() {
    let Some(site) = Site::open() else { return };
    let script = site.script("bound");
    let port = free_port().to_string();
    for relay in ["off", "on"] {
        let mut command = script.command();
        command.envs([
            ("SCCACHE_BIND", "127.0.0.1"),
            ("SCCACHE_PUBLIC_ADDR", &format!("127.0.0.1:{port}")),
            ("SCCACHE_RELAY", relay),
        ]);
        let start = command.args(["start", "distributed-ephemeral"]);
        run(start, LONG).ok();
        let published = site.docker.run(&["port", &script.container, "10501"]);
        script.call(&["remove"]).ok();
        let expected = match relay {
            "off" => format!("127.0.0.1:{port}"),
            _ => String::new(),
        };
        assert_eq!(published.stdout.trim(), expected, "relay {relay}");
    }
}

/// From another machine: by a name that the container does not know, on another port than its own.
#[test]
fn client_of_a_name_that_only_it_knows_reaches_the_relay() {
    let Some(site) = Site::open() else { return };
    let port = free_port();
    let third = std::process::id() % 250;
    let (network, host) = network(&site, "names", &format!("10.79.{third}"));
    let mut flags = locked("distributed-ephemeral");
    flags.extend([
        format!("--network={network}"),
        format!("--publish={host}:{port}:10600"),
        format!("--env=SCCACHE_PUBLIC_ADDR={host}"),
    ]);
    let main = start(&site, "named", &flags);
    let format = format!("{{{{(index .NetworkSettings.Networks {network:?}).IPAddress}}}}");
    let address = site.docker.inspect(&main.name, &format);
    let ask = [
        "sccache-dock",
        "client-env",
        "--lane",
        "dist",
        "--endpoint",
        &format!("http://{address}:4226"),
        "--scheduler",
        &format!("http://only-clients-know:{port}"),
    ];
    let set = main.exec(&ask).ok();
    std::fs::write(site.home.path().join("set"), set).unwrap();
    let tools = [crate::harness::sccache_bin(), crate::dock::program()].map(|program| {
        let name = program.file_name().unwrap().to_str().unwrap();
        format!("--volume={}:/usr/local/bin/{name}:ro", program.display())
    });
    let script = "eval \"$(cat /set)\" && sccache-dock warm rustc >&2 && \
        sccache --show-stats --stats-format json";
    let mut client = std::process::Command::new("docker");
    client
        .args([
            "run",
            "--rm",
            "--name",
            &site.name("knows"),
            "--env=HOME=/tmp",
        ])
        .arg(format!("--network={network}"))
        .arg(format!("--add-host=only-clients-know:{host}"))
        .arg(format!(
            "--volume={}/set:/set:ro",
            site.home.path().display()
        ))
        .args(tools)
        .args(site.toolchain_flags())
        .args([site.base().unwrap(), "sh", "-c", script]);
    let built = run(&mut client, LONG);
    let log = site.docker.logs(&main.name);
    assert_eq!(built.code, Some(0), "{}\n{log}", built.stderr);
    let counted = serde_json::from_str::<Value>(&built.stdout).unwrap()["stats"].take();
    assert_eq!(distributed(&counted), (1, 0), "{counted:#}\n{log}");
}
