//! One address for the whole cluster: TLS on the scheduler's port, and the relay, with the real sccache, sccache-dist,
//! bubblewrap and compilers.

mod addresses;
mod cuts;
mod jobs;
mod jwt;
mod losses;
mod sessions;
mod storm;
mod tickets;
mod tls;

use crate::distributed::{CLIENT, client_file, distributed, is_possible, statistics};
use crate::dock::{Dock, eventually};
use crate::harness::Outcome;
use crate::machine::Machine;
use crate::site::free_port;
use serde_json::Value;

/// What builders prove themselves with.
const BUILDERS_TOKEN: &str = "a-token-of-builders-for-this-test";

/// A container with the scheduler's port, and builders as containers of their own, all on loopback.
struct Cluster {
    dock: Dock,
    builders: Vec<Dock>,
    client: Machine,
    front: u16,
}

/// A scheduler's container. Its own builder has one slot.
fn scheduler(front: u16, more: &[(&str, &str)]) -> Dock {
    let front_at = format!("127.0.0.1:{front}");
    let builder_at = format!("127.0.0.1:{}", free_port());
    let usual = [
        ("MODE", "distributed-ephemeral"),
        ("SCCACHE_SCHEDULER_LISTEN", front_at.as_str()),
        ("SCCACHE_BUILDER_LISTEN", builder_at.as_str()),
        ("SCCACHE_PUBLIC_ADDR", "127.0.0.1"),
        ("SCCACHE_SERVER_TOKEN", BUILDERS_TOKEN),
        ("SCCACHE_BUILDER_SLOTS", "1"),
    ];
    Dock::start(&[&usual[..], more].concat())
}

/// A builder's container that joins the scheduler at `url`.
fn builder(url: &str, more: &[(&str, &str)]) -> Dock {
    let mut dock = launched_builder(url, more);
    dock.wait_ready();
    dock
}

/// The same, which may never be ready.
fn launched_builder(url: &str, more: &[(&str, &str)]) -> Dock {
    let (front, builder) = (free_port(), free_port());
    let (front_at, builder_at) = (format!("127.0.0.1:{front}"), format!("127.0.0.1:{builder}"));
    let usual = [
        ("MODE", "builder"),
        ("SCCACHE_SCHEDULER_URL", url),
        ("SCCACHE_SCHEDULER_LISTEN", front_at.as_str()),
        ("SCCACHE_BUILDER_LISTEN", builder_at.as_str()),
        ("SCCACHE_PUBLIC_ADDR", "127.0.0.1"),
        ("SCCACHE_SERVER_TOKEN", BUILDERS_TOKEN),
        ("SCCACHE_BUILDER_SLOTS", "1"),
    ];
    Dock::launch(&[&usual[..], more].concat())
}

impl Cluster {
    /// With so many builders beside the scheduler's own; `None`, and a line, where jobs cannot run.
    fn start(builders: usize, more: &[(&str, &str)]) -> Option<Cluster> {
        if !is_possible() {
            return None;
        }
        let front = free_port();
        let dock = scheduler(front, more);
        let client = Machine::new();
        let file = client_file(&format!("127.0.0.1:{front}"), &dock.token());
        client.write("dist.toml", &file);
        let mut cluster = Cluster {
            dock,
            builders: Vec::new(),
            client,
            front,
        };
        for _ in 0..builders {
            cluster.add_builder();
        }
        Some(cluster)
    }

    fn add_builder(&mut self) {
        let url = format!("http://127.0.0.1:{}", self.front);
        self.builders.push(builder(&url, &[]));
    }

    fn client(&self, script: &str) -> Outcome {
        self.client.sh(&format!("{CLIENT}{script}"))
    }

    /// Jobs done by builders as the client sees it, and those that it had to do.
    fn done(&self) -> (u64, u64) {
        distributed(&statistics(&self.client))
    }

    fn dist(&self) -> Value {
        let status = self.dock.status().expect("the supervisor answers");
        status["cache"]["dist"].clone()
    }

    /// A figure of the relay's status.
    fn figure(&self, name: &str) -> u64 {
        self.dist()["relay"][name].as_u64().expect("a figure")
    }

    /// How many attempts, or jobs, had this outcome.
    fn outcome(&self, of: &str, outcome: &str) -> u64 {
        self.dist()["relay"][of][outcome].as_u64().unwrap_or(0)
    }

    /// Files to compile, each once: `f0.cpp` and so on, which take half a second or so.
    fn write_sources(&self, count: usize) {
        for number in 0..count {
            let text = format!(
                "#include <map>\n#include <string>\nint f{number}(const char *s) {{\n\
                 std::map<std::string, int> m; m[s] = {number}; return m.size(); }}\n"
            );
            self.client.write(&format!("f{number}.cpp"), &text);
        }
    }

    /// A script that compiles them, so many at a time.
    fn build(count: usize, jobs: usize) -> String {
        format!(
            "seq 0 {} | xargs -P {jobs} -I N sccache c++ -O1 -c fN.cpp -o fN.o",
            count - 1
        )
    }

    /// Brings the compilers to the builders.
    fn warm(&self) {
        self.client.write("warm.cpp", "int warm() { return 0; }\n");
        let warmed = self.client("sccache c++ -O1 -c warm.cpp -o warm.o");
        assert_eq!(warmed.code, Some(0), "{}", warmed.output);
        let all = self.builders.len() + 1;
        eventually("every builder has the compiler", || {
            let log = self.dock.log();
            (log.matches(" is ready on builder ").count() >= all).then_some(())
        });
    }
}
