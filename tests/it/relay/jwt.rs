//! Stock and ours, both ways, where builders prove themselves by JWT.

use super::{Cluster, builder};
use crate::distributed::{CLIENT, client_file, distributed, is_possible, statistics};
use crate::dock::eventually;
use crate::harness::{Process, clean, sccache_bin};
use crate::machine::Machine;
use crate::site::free_port;
use std::path::Path;

/// What the real `sccache-dist auth` prints.
fn auth(arguments: &[&str]) -> String {
    let mut command = clean(sccache_bin().with_file_name("sccache-dist"));
    let printed = command.arg("auth").args(arguments).output().unwrap();
    assert!(printed.status.success(), "{printed:?}");
    String::from_utf8(printed.stdout).unwrap().trim().to_owned()
}

fn key() -> String {
    auth(&["generate-jwt-hs256-key"])
}

fn token(key: &str, server: &str) -> String {
    let arguments = ["--server", server, "--secret-key", key];
    auth(&[&["generate-jwt-hs256-server-token"], &arguments[..]].concat())
}

/// The real `sccache-dist`, as scheduler or server.
fn stock(folder: &Path, kind: &str, text: &str) -> Process {
    let file = folder.join(format!("{kind}.toml"));
    std::fs::write(&file, text).unwrap();
    let mut command = clean(sccache_bin().with_file_name("sccache-dist"));
    command.args([kind, "--config"]).arg(file);
    command
        .env("SCCACHE_NO_DAEMON", "1")
        .env("SCCACHE_LOG", "info");
    Process::start(&mut command)
}

#[test]
fn stock_builder_joins_by_jwt_and_takes_jobs_of_the_relay() {
    let key = key();
    let Some(cluster) = Cluster::start(0, &[("SCCACHE_SERVER_JWT_KEY", &key)]) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let at = format!("127.0.0.1:{}", free_port());
    let server = |token: &str| {
        let text = format!(
            "cache_dir = \"{0}/cache\"\npublic_addr = \"{at}\"\nscheduler_url = \"http://127.0.0.1:{1}\"\n\
             [scheduler_auth]\ntype = \"jwt_token\"\ntoken = \"{token}\"\n\
             [builder]\ntype = \"overlay\"\nbuild_dir = \"{0}/build\"\nbwrap_path = \"/usr/bin/bwrap\"\n",
            folder.path().display(),
            cluster.front
        );
        stock(folder.path(), "server", &text)
    };
    // With another key it stays a stranger.
    let mut stranger = server(&token(&self::key(), &at));
    cluster.dock.wait_log("reason=dist_server_token");
    stranger.signal(nix::sys::signal::Signal::SIGKILL);
    stranger.exit();
    let _stock = server(&token(&key, &at));
    eventually("two builders", || {
        (cluster.dist()["builders"].as_array().unwrap().len() == 2).then_some(())
    });
    cluster
        .client
        .write("warm.c", "int warm(void) { return 0; }\n");
    let warmed = cluster.client("sccache cc -c warm.c -o warm.o");
    assert_eq!(warmed.code, Some(0), "{}", warmed.output);
    eventually("the stock builder has the compiler", || {
        cluster
            .dock
            .log()
            .contains(&format!("is ready on builder {at}"))
            .then_some(())
    });
    cluster.write_sources(12);
    let built = cluster.client(&Cluster::build(12, 6));
    assert_eq!(built.code, Some(0), "{}", built.output);
    assert_eq!(cluster.done(), (13, 0), "{}", cluster.dock.log());
    let builders = cluster.dist()["builders"].as_array().unwrap().clone();
    let stock = builders.iter().find(|one| one["address"] == at.as_str());
    assert!(stock.unwrap()["done"].as_u64() > Some(1), "{builders:?}");
    assert!(!cluster.dock.log().contains(&key));
}

#[test]
fn builder_of_ours_joins_a_stock_scheduler_that_wants_a_jwt() {
    if !is_possible() {
        return;
    }
    let (key, folder) = (key(), tempfile::tempdir().unwrap());
    let scheduler = format!("127.0.0.1:{}", free_port());
    let text = format!(
        "public_addr = \"{scheduler}\"\n\
         [client_auth]\ntype = \"token\"\ntoken = \"token-of-a-client\"\n\
         [server_auth]\ntype = \"jwt_hs256\"\nsecret_key = \"{key}\"\n"
    );
    let _scheduler = stock(folder.path(), "scheduler", &text);
    let at = format!("127.0.0.1:{}", free_port());
    let _ours = builder(
        &format!("http://{scheduler}"),
        &[
            ("SCCACHE_SERVER_TOKEN", &token(&key, &at)),
            ("SCCACHE_PUBLIC_ADDR", &at),
            ("SCCACHE_BUILDER_LISTEN", &at),
        ],
    );
    let client = Machine::new();
    client.write("dist.toml", &client_file(&scheduler, "token-of-a-client"));
    client.write("a.c", "int a(void) { return 0; }\n");
    let built = client.sh(&format!("{CLIENT}sccache cc -c a.c -o a.o"));
    assert_eq!(built.code, Some(0), "{}", built.output);
    assert_eq!(distributed(&statistics(&client)), (1, 0));
}
