//! Whole jobs: a real client, the front, a real scheduler, a real builder with overlay and bubblewrap.

use super::cluster::{Cluster, SOON};
use crate::harness::{Outcome, WRITER, clean, finish, sccache_bin, wait_for};
use sccache_dock::contract::gateway_config::WrongToken;
use std::net::SocketAddr;
use std::process::Command;

/// Takes seconds to compile and no time to read.
const SLOW: &str = "constexpr unsigned f() { unsigned s = 1; for (unsigned i = 0; i < 1500000; ++i) s = s * 3 + i; return s; }\n\
    constexpr unsigned g = f();\n\
    unsigned it() { return g; }\n";

/// A machine that compiles with `sccache` and the configuration file of a client that distributes.
struct Client {
    folder: tempfile::TempDir,
}

impl Client {
    fn new(front: SocketAddr, token: &str) -> Client {
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path().join("dist");
        let text = format!(
            "[dist]\nscheduler_url = \"http://{front}\"\ncache_dir = \"{}\"\n\
             [dist.auth]\ntype = \"token\"\ntoken = \"{token}\"\n",
            cache.display()
        );
        std::fs::write(folder.path().join("client.toml"), text).unwrap();
        Client { folder }
    }

    fn sccache(&self) -> Command {
        let mut command = clean(sccache_bin());
        command
            .current_dir(self.folder.path())
            .env("SCCACHE_CONF", self.folder.path().join("client.toml"))
            .env("SCCACHE_DIR", self.folder.path().join("cache"))
            .env("SCCACHE_SERVER_UDS", self.folder.path().join("s.sock"));
        command
    }

    fn compile(&self, name: &str, text: &str) -> Outcome {
        std::fs::write(self.folder.path().join(name), text).unwrap();
        let mut command = self.sccache();
        command.args(["g++", "-std=c++17", "-c", name, "-o", "it.o"]);
        command.args([
            "-fconstexpr-loop-limit=100000000",
            "-fconstexpr-ops-limit=1000000000",
        ]);
        finish(&mut command)
    }

    /// Distributed compiles, and those that were to be and were not.
    fn distributed(&self) -> (u64, u64) {
        let stats = finish(
            self.sccache()
                .args(["--show-stats", "--stats-format", "json"]),
        );
        let stats: serde_json::Value = serde_json::from_str(&stats.output).unwrap();
        let stats = &stats["stats"];
        let compiles = stats["dist_compiles"].as_object().unwrap().values();
        let compiles = compiles.filter_map(serde_json::Value::as_u64).sum();
        (compiles, stats["dist_errors"].as_u64().unwrap())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        finish(self.sccache().arg("--stop-server"));
    }
}

#[test]
fn compile_outlives_the_scheduler_that_placed_it() {
    let mut cluster = Cluster::start();
    let client = Client::new(cluster.front.address, WRITER);
    let first = client.compile("first.cpp", "int it() { return 1; }\n");
    assert_eq!(first.code, Some(0), "{}", first.output);
    assert_eq!(
        client.distributed(),
        (1, 0),
        "{}",
        cluster.builder.process.log()
    );
    let builder = cluster.builder.address;
    let outcome = std::thread::scope(|scope| {
        let compile = scope.spawn(|| client.compile("slow.cpp", SLOW));
        wait_for("the job's start", SOON, || {
            let metrics = cluster.front.page("/metrics");
            // Ready and complete of the first job, started of both: the first one uploaded the toolchain.
            let line = "dist_requests_total{route=\"job_state\",code=\"200\"} 4";
            metrics.contains(line).then_some(())
        });
        cluster.scheduler.kill();
        let took = cluster.replace_scheduler(1);
        println!("the builder is back at a new scheduler after {took:?}");
        compile.join().unwrap()
    });
    assert_eq!(outcome.code, Some(0), "{}", outcome.output);
    assert_eq!(client.distributed(), (2, 0));
    let status = cluster.front.builder(builder);
    assert_eq!((status.done, status.failed), (2, 0));
    let third = client.compile("third.cpp", "int it() { return 3; }\n");
    assert_eq!((third.code, client.distributed()), (Some(0), (3, 0)));
}

#[test]
fn compile_with_a_wrong_token_fails_or_falls_back_as_configured() {
    for (wrong_token, code, local) in [(WrongToken::Fail, 1, 0), (WrongToken::Fallback, 0, 1)] {
        let cluster = Cluster::start_with(wrong_token);
        let client = Client::new(cluster.front.address, "not-the-token");
        let outcome = client.compile("it.cpp", "int it() { return 1; }\n");
        assert_eq!(outcome.code, Some(code), "{}", outcome.output);
        assert_eq!(client.distributed(), (0, local));
        if wrong_token == WrongToken::Fail {
            assert!(outcome.output.contains("hint: "), "{}", outcome.output);
        }
    }
}

#[test]
fn builder_that_cannot_build_does_not_fail_the_compile() {
    let cluster = Cluster::start();
    let client = Client::new(cluster.front.address, WRITER);
    cluster
        .builder
        .process
        .signal(nix::sys::signal::Signal::SIGKILL);
    let outcome = client.compile("it.cpp", "int it() { return 1; }\n");
    assert_eq!(outcome.code, Some(0), "{}", outcome.output);
    assert_eq!(client.distributed(), (0, 1));
    let line = cluster.front.process.wait_for_line("could not place a job");
    assert!(line.contains("127.0.0.2"), "{line}");
}
