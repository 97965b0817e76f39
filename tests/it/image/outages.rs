//! What breaks while a cluster builds: every time the build comes to its end with everything in it.

use crate::distributed::{CLIENT, client_file, distributed, statistics};
use crate::docker::{Container, LONG, PATIENCE, run};
use crate::harness::{now, wait_for};
use crate::machine::Machine;
use crate::site::{Site, free_port};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// Compiles of one build.
const FILES: usize = 40;
/// What a builder of two processors takes at a time.
const AT_ONCE: usize = 3;
const TOKEN_OF_BUILDERS: &str = "--env=SCCACHE_SERVER_TOKEN=token-of-the-builders";

/// Flags of a container that may do nothing but isolate jobs.
fn locked() -> Vec<String> {
    let profile = Path::new(env!("CARGO_MANIFEST_DIR")).join("images/seccomp/userns.json");
    let mut flags: Vec<String> = [
        "--user=1000:1000",
        "--cap-drop=ALL",
        "--security-opt=no-new-privileges",
        "--read-only",
        "--tmpfs=/tmp",
        TOKEN_OF_BUILDERS,
    ]
    .map(str::to_owned)
    .into();
    flags.push(format!("--security-opt=seccomp={}", profile.display()));
    flags
}

/// A container that schedules and builds, and a client on the host.
struct Cluster<'a> {
    main: Container<'a>,
    client: Machine,
    rounds: u32,
}

impl<'a> Cluster<'a> {
    fn start(site: &'a Site, what: &str, more: &[&str]) -> Cluster<'a> {
        // The same port after a restart of the container.
        let port = free_port();
        let mut flags = locked();
        flags.push("--env=MODE=distributed-ephemeral".into());
        flags.push(format!("--publish=127.0.0.1:{port}:10600"));
        flags.extend(more.iter().map(|&flag| flag.to_owned()));
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let main = site.container(what, &flags);
        main.wait_healthy();
        let client = Machine::new();
        client.write(
            "dist.toml",
            &client_file(&format!("127.0.0.1:{port}"), crate::docker::TOKEN),
        );
        for number in 1..=FILES {
            let text = format!(
                "#include <algorithm>\n#include <map>\n#include <string>\n\
                 int f{number}(std::map<std::string, int> &m) {{ return m[\"{number}\"] + ROUND; }}\n"
            );
            client.write(&format!("f{number}.cpp"), &text);
        }
        Cluster {
            main,
            client,
            rounds: 0,
        }
    }

    fn sh(&self, script: &str) -> crate::docker::Ran {
        run(&mut self.client.command(&format!("{CLIENT}{script}")), LONG)
    }

    /// The compiler is on so many builders, each of which has done a job.
    fn warm(&self, builders: usize) {
        wait_for("the builders", PATIENCE, || {
            let status = self.sh("sccache --dist-status").stdout;
            status
                .contains(&format!("\"num_servers\":{builders}"))
                .then_some(())
        });
        let warmed = self.sh("sccache-dock warm c++");
        assert_eq!(warmed.code, Some(0), "{warmed:?}\n{}", self.log());
    }

    fn log(&self) -> String {
        self.main.docker.logs(&self.main.name)
    }

    fn done(&self) -> (u64, u64) {
        distributed(&statistics(&self.client))
    }

    /// A whole build, and in its midst a fault. Gives how long it took, and how many jobs builders did.
    fn build(&mut self, what: &str, fault: impl FnOnce(&Cluster<'a>)) -> (Duration, u64) {
        self.rounds += 1;
        let round = self.rounds;
        let before = self.done();
        let folder = self.client.work().join(format!("o{round}"));
        fs::create_dir(&folder).unwrap();
        let objects = || fs::read_dir(&folder).unwrap().count();
        let script = format!(
            "seq 1 {FILES} | xargs -P {AT_ONCE} -I @ \
             sccache c++ -O1 -DROUND={round} -c f@.cpp -o o{round}/f@.o"
        );
        let start = now();
        let (ran, is_early) = std::thread::scope(|scope| {
            let build = scope.spawn(|| self.sh(&script));
            wait_for("compiles are under way", PATIENCE, || {
                (build.is_finished() || objects() >= AT_ONCE).then_some(())
            });
            let is_early = build.is_finished();
            if !is_early {
                fault(self);
            }
            (build.join().unwrap(), is_early)
        });
        let took = start.elapsed();
        assert_eq!(ran.code, Some(0), "{what}: {}\n{}", ran.stderr, self.log());
        assert!(!is_early, "{what}: the build was too short");
        let whole = (1..=FILES).filter(|number| {
            let size = fs::metadata(folder.join(format!("f{number}.o"))).map(|it| it.len());
            size.is_ok_and(|bytes| bytes > 0)
        });
        assert_eq!(whole.count(), FILES, "{what}");
        let (done, errors) = self.done();
        println!(
            "{what}: {FILES} objects after {took:.1?}; {} by builders, {} that they could not finish",
            done - before.0,
            errors - before.1
        );
        (took, done - before.0)
    }

    /// Kills a service of the container, as the kernel does it when memory runs out.
    fn kill(&self, service: &str) {
        let text = self.main.exec(&["sccache-dock", "status", "--json"]).ok();
        let status: Value = serde_json::from_str(&text).unwrap();
        let services = status["services"].as_array().unwrap();
        let found = services.iter().find(|one| one["name"] == service).unwrap();
        let kill = format!("kill -9 {}", found["pid"]);
        self.main.exec(&["sh", "-c", &kill]).ok();
    }

    /// Builders do jobs again; how long that took.
    fn wait_for_jobs(&self, what: &str) {
        let (start, before) = (now(), self.done().0);
        let mut number = 0;
        wait_for("a job by a builder", PATIENCE, || {
            number += 1;
            let file = format!("int {what}_{number};");
            self.client.write("next.cpp", &file);
            assert_eq!(self.sh("sccache c++ -c next.cpp -o next.o").code, Some(0));
            (self.done().0 > before).then_some(())
        });
        println!("{what}: a builder did a job {:.1?} later", start.elapsed());
    }
}

#[test]
fn build_goes_on_while_each_service_is_killed_and_the_container_restarted() {
    services_and_container("outages", &[]);
}

#[test]
fn build_without_the_relay_goes_on_while_each_service_is_killed_and_the_container_restarted() {
    services_and_container("stock-outages", &["--env=SCCACHE_RELAY=off"]);
}

fn services_and_container(what: &str, more: &[&str]) {
    let Some(site) = Site::open() else { return };
    let mut cluster = Cluster::start(&site, what, more);
    cluster.warm(1);
    for service in ["builder", "scheduler", "gateway"] {
        cluster.build(&format!("kill -9 of the {service}"), |it| it.kill(service));
        cluster.wait_for_jobs(service);
    }
    cluster.build("restart of the container", |it| {
        it.main.docker.ok(&["restart", &it.main.name]);
    });
    cluster.main.wait_healthy();
    cluster.wait_for_jobs("restart");
}

#[test]
fn build_goes_on_while_the_disk_of_the_builder_is_full() {
    let Some(site) = Site::open() else { return };
    let mut cluster = Cluster::start(
        &site,
        "full",
        &["--tmpfs=/var/sccache/builder:size=700m,mode=1777,exec"],
    );
    cluster.warm(1);
    let fill = "head -c 800M /dev/zero >/var/sccache/builder/filler";
    cluster.build("full disk of the builder", |it| {
        let filled = it.main.exec(&["sh", "-c", fill]);
        assert!(filled.stderr.contains("No space left"), "{filled:?}");
    });
    cluster
        .main
        .exec(&["rm", "/var/sccache/builder/filler"])
        .ok();
    cluster.wait_for_jobs("full");
}

/// A second builder in a container of its own, in a network where its address can be chosen.
struct Joined<'a> {
    builder: Container<'a>,
    network: String,
    address: String,
}

impl Drop for Joined<'_> {
    fn drop(&mut self) {
        let name = &self.builder.name;
        self.builder.docker.run(&["unpause", name]);
        let disconnect = ["network", "disconnect", "--force", &self.network, name];
        self.builder.docker.run(&disconnect);
    }
}

fn join<'a>(site: &'a Site, cluster: &Cluster) -> Joined<'a> {
    let network = site.name("farm");
    let subnet = format!("10.77.{}.0/24", std::process::id() % 250);
    let create = ["network", "create", "--subnet", &subnet, &network];
    site.docker.ok(&create);
    let connect = ["network", "connect", &network, &cluster.main.name];
    site.docker.ok(&connect);
    let mut flags = locked();
    flags.push("--env=MODE=builder".into());
    flags.push(format!(
        "--env=SCCACHE_SCHEDULER_URL=http://{}:10600",
        cluster.main.name
    ));
    flags.push(format!("--network={network}"));
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let builder = site.container("joined", &flags);
    builder.wait_healthy();
    let format = format!("{{{{(index .NetworkSettings.Networks {network:?}).IPAddress}}}}");
    let address = site.docker.inspect(&builder.name, &format);
    Joined {
        builder,
        network,
        address,
    }
}

#[test]
fn build_goes_on_while_a_builder_is_paused_and_while_its_network_is_cut() {
    let Some(site) = Site::open() else { return };
    let mut cluster = Cluster::start(&site, "farmer", &[]);
    let joined = join(&site, &cluster);
    cluster.warm(2);
    let (docker, name) = (&site.docker, &joined.builder.name);

    // Long enough that every slot of it waits for an answer, short of the 20 minutes for which sccache's client waits.
    let pause = Duration::from_secs(5);
    cluster.build("pause of a builder for 5 s", |_| {
        docker.ok(&["pause", name]);
        std::thread::sleep(pause);
        docker.ok(&["unpause", name]);
    });
    cluster.build("cut of a builder's network", |_| {
        let network = &joined.network;
        docker.ok(&["network", "disconnect", network, name]);
        std::thread::sleep(pause);
        docker.ok(&["network", "connect", "--ip", &joined.address, network, name]);
    });
    let (_, done) = cluster.build("after both", |_| {});
    assert!(done > 0, "{}", cluster.log());
}
