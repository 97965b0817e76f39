//! How each tool is set up on the containers, and one build by it.

use crate::Options;
use crate::containers::Site;
use serde_json::Value;
use std::path::Path;

/// Jobs that a builder of one processor takes at a time: what sccache-dist gives it; the peers are set to the same.
const AT_ONCE: usize = 2;
/// While toolchains travel and are unpacked, which no figure contains.
const CPUS_TO_WARM: f64 = 2.0;
const SERVER_TOKEN: &str = "token-of-the-builders";
const ICECC_LOG: &str = "/bench/icecc.log";
const DISTCC_LOG: &str = "/bench/distcc.log";

/// What compiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tool {
    /// The client alone.
    Alone,
    Ours,
    /// Another build of ours: see `--before`.
    Before,
    Icecc,
    Distcc,
}

/// What one build took.
pub(crate) struct Build {
    /// Seconds.
    pub(crate) wall: f64,
    /// Seconds of processor time in the client's container, compiler and daemon and all.
    pub(crate) client_cpu: f64,
    /// Files that builders compiled.
    pub(crate) remote: usize,
}

/// Templates only: little to preprocess, much to compile, as where distribution is worth it. `SEED` makes each
/// build's one that nobody has compiled.
const SOURCE: &str = r"#include <cstddef>
#include <cstdint>
#include <tuple>
#include <utility>

template <std::size_t N, std::size_t K> struct Mix {
    static constexpr std::uint64_t value = Mix<N - 1, K>::value * 6364136223846793005ull + K;
};
template <std::size_t K> struct Mix<0, K> {
    static constexpr std::uint64_t value = K;
};

template <std::size_t I, std::size_t K> std::uint64_t step(std::uint64_t x) {
    const std::uint64_t m = Mix<I % 64, K>::value;
    for (unsigned round = 0; round < I % 7 + 2; ++round) {
        x ^= x >> (I % 13 + 1);
        x *= m | 1;
        x += x << 7;
    }
    return x & 1 ? x * 3 + I : x / 2 + K;
}

template <std::size_t K, std::size_t... I> std::uint64_t all(std::uint64_t x, std::index_sequence<I...>) {
    ((x = step<I, K>(x)), ...);
    return x;
}

std::uint64_t work(std::uint64_t x) { return all<SEED>(x, std::make_index_sequence<SIZE>{}); }
";

fn builder(tool: Tool, number: usize) -> String {
    format!("{}{number}", tool.name())
}

impl Tool {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Tool::Alone => "alone",
            Tool::Ours => "ours",
            Tool::Before => "before",
            Tool::Icecc => "icecc",
            Tool::Distcc => "distcc",
        }
    }

    pub(crate) fn named(name: &str) -> Option<Tool> {
        [Tool::Icecc, Tool::Distcc]
            .into_iter()
            .find(|tool| tool.name() == name)
    }

    /// Starts one more builder, and brings the toolchain to all of the `count` that there are now.
    pub(crate) fn add_builder(self, site: &Site, options: &Options, count: usize) {
        let name = builder(self, count);
        match self {
            Tool::Alone => return,
            Tool::Ours | Tool::Before => self.start(site, options, count),
            Tool::Icecc | Tool::Distcc => {
                site.run(&name, options.builder_cpus, &[], &["sleep", "infinity"]);
            }
        }
        let builders: Vec<String> = (1..=count).map(|number| builder(self, number)).collect();
        let client = ["client".to_owned()];
        site.set_cpus(&builders, CPUS_TO_WARM);
        site.set_cpus(&client, CPUS_TO_WARM);
        match self {
            Tool::Alone => {}
            Tool::Ours | Tool::Before => self.join(site, count),
            Tool::Icecc => join_icecc(site, count),
            Tool::Distcc => {
                let daemon = format!(
                    "distccd --daemon --allow 0.0.0.0/0 --jobs {AT_ONCE} --enable-tcp-insecure --user nobody"
                );
                site.shell(&name, &daemon);
            }
        }
        // So many that each builder has some of them.
        let few = Options {
            files: 4 * count,
            size: 20,
            ..options.clone()
        };
        self.build(site, &few, count, 900 + count);
        site.set_cpus(&builders, options.builder_cpus);
        site.set_cpus(&client, options.client_cpus);
    }

    /// Compiles all files once; `sequence` is a number that no other build has.
    pub(crate) fn build(
        self,
        site: &Site,
        options: &Options,
        builders: usize,
        sequence: usize,
    ) -> Build {
        let before = self.remote(site);
        let at_once = AT_ONCE * builders.max(1);
        let compiler = match self {
            Tool::Alone => "g++",
            Tool::Ours | Tool::Before => "sccache g++",
            Tool::Icecc => "icecc g++",
            Tool::Distcc => "distcc g++",
        };
        let Options { files, size, .. } = options;
        let set = self.set(site, builders);
        // Both versions of control groups.
        let cpu = "{ cat /sys/fs/cgroup/cpuacct/cpuacct.usage 2>/dev/null || \
                   awk '/^usage_usec/ { print $2 * 1000 }' /sys/fs/cgroup/cpu.stat; }";
        let script = format!(
            "{set}; rm -rf /bench/build; mkdir -p /bench/build; cd /bench/build\n\
             for file in $(seq {files}); do cp ../source.cpp f$file.cpp; done\n\
             cpu=$({cpu}); began=$(date +%s%N)\n\
             seq {files} | xargs -P {at_once} -I @ {compiler} -std=c++17 -O2 -DSIZE={size} -DSEED=1{sequence:03}@ \
             -c f@.cpp -o f@.o\n\
             ended=$(date +%s%N); spent=$({cpu})\n\
             for file in $(seq {files}); do test -s f$file.o; done\n\
             echo $((ended - began)) $((spent - cpu))"
        );
        site.write("client", "/bench/source.cpp", SOURCE);
        let printed = site.shell("client", &script);
        let last = printed.lines().last().unwrap_or_default();
        let numbers: Vec<f64> = last.split(' ').flat_map(str::parse).collect();
        let [wall, cpu] = numbers[..] else {
            panic!("{}: {printed}", self.name());
        };
        Build {
            wall: wall / 1e9,
            client_cpu: cpu / 1e9,
            remote: self.remote(site) - before,
        }
    }

    /// Shell text that tells the client where the builders are.
    fn set(self, site: &Site, builders: usize) -> String {
        match self {
            Tool::Alone => ":".into(),
            // Each has a daemon of its own.
            Tool::Ours | Tool::Before => format!(
                "eval \"$(cat {})\"; export SCCACHE_SERVER_UDS=/bench/{}.sock",
                self.client_set(),
                self.name()
            ),
            Tool::Icecc => format!("export ICECC_DEBUG=debug ICECC_LOGFILE={ICECC_LOG}"),
            Tool::Distcc => {
                let hosts: Vec<String> = (1..=builders)
                    .map(|number| format!("{}/{AT_ONCE}", site.name(&builder(self, number))))
                    .collect();
                // What no builder compiles fails.
                format!(
                    "mkdir -p /bench/distcc; export DISTCC_FALLBACK=0 DISTCC_DIR=/bench/distcc \
                     DISTCC_LOG={DISTCC_LOG} DISTCC_VERBOSE=0 DISTCC_HOSTS='{}'",
                    hosts.join(" ")
                )
            }
        }
    }

    /// Compiles by builders so far, as the tool itself tells.
    fn remote(self, site: &Site) -> usize {
        let count = |words: &str, log: &str| {
            let counted = site.shell("client", &format!("grep -c '{words}' {log} || true"));
            counted.parse().unwrap_or(0)
        };
        match self {
            Tool::Alone => 0,
            Tool::Ours | Tool::Before => {
                let ask = format!(
                    "{}; sccache --show-stats --stats-format json",
                    self.set(site, 0)
                );
                let stats = serde_json::from_str::<Value>(&site.shell("client", &ask));
                let stats = stats.unwrap_or_else(|cause| panic!("{cause}"));
                let by_builder = stats["stats"]["dist_compiles"].as_object();
                let done = by_builder.into_iter().flat_map(|all| all.values());
                done.filter_map(Value::as_u64).sum::<u64>() as usize
            }
            Tool::Icecc => count("Have to use host", ICECC_LOG),
            Tool::Distcc => count("compile from", DISTCC_LOG),
        }
    }
}

/// The two of ours.
impl Tool {
    /// In the client's container.
    fn client_set(self) -> String {
        format!("/bench/set-{}", self.name())
    }

    /// As docs/cluster.md has it: nothing but the profile. The first one has the cache and the scheduler too.
    fn start(self, site: &Site, options: &Options, count: usize) {
        let profile = Path::new(env!("CARGO_MANIFEST_DIR")).join("images/seccomp/userns.json");
        let mut flags: Vec<String> = [
            "--user=1000:1000",
            "--cap-drop=ALL",
            "--security-opt=no-new-privileges",
            "--read-only",
            "--tmpfs=/tmp",
            "--env=SCCACHE_LOG=warn",
        ]
        .map(str::to_owned)
        .into();
        flags.push(format!("--security-opt=seccomp={}", profile.display()));
        flags.push(format!("--env=SCCACHE_SERVER_TOKEN={SERVER_TOKEN}"));
        if count == 1 {
            flags.push("--env=MODE=distributed-ephemeral".into());
        } else {
            let first = site.name(&builder(self, 1));
            flags.push("--env=MODE=builder".into());
            flags.push(format!("--env=SCCACHE_SCHEDULER_URL=http://{first}:10600"));
        }
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let name = builder(self, count);
        site.run(
            &name,
            options.builder_cpus,
            &flags,
            &["sccache-dock", "run"],
        );
    }

    fn join(self, site: &Site, count: usize) {
        let first = builder(self, 1);
        site.wait(
            &builder(self, count),
            "a builder of ours",
            "sccache-dock healthcheck",
        );
        if count == 1 {
            let endpoint = format!("http://{}:4226", site.name(&first));
            let ask = format!("sccache-dock client-env --lane dist --endpoint {endpoint}");
            // Beside it the file with the scheduler's address.
            let set = format!("export XDG_CACHE_HOME=/bench/{}\n", self.name());
            let set = set + &site.shell(&first, &ask);
            site.write("client", &self.client_set(), &set);
        }
        let set = self.set(site, count);
        let all = format!("{set}; sccache --dist-status | grep '\"num_servers\":{count},'");
        site.wait("client", "all builders of ours", &all);
        let path = format!("export PATH=/{}:$PATH", self.name());
        site.shell("client", &format!("{set}; {path}; sccache-dock warm g++"));
    }
}

fn join_icecc(site: &Site, count: usize) {
    let first = site.name(&builder(Tool::Icecc, 1));
    if count == 1 {
        site.shell("icecc1", "icecc-scheduler -d -n bench");
        let daemon = format!("iceccd -d -n bench -s {first} -m 1 --no-remote");
        site.shell("client", &daemon);
    }
    let daemon = format!("iceccd -d -n bench -s {first} -m {AT_ONCE}");
    site.shell(&builder(Tool::Icecc, count), &daemon);
    // They log in after some seconds, and what they say of it is for people.
    let jobs = 4 * count;
    let try_out = format!(
        "{}; mkdir -p /bench/icecc; cd /bench/icecc; echo 'int one;' >one.cpp\n\
         seq {jobs} | xargs -P {jobs} -I @ icecc g++ -c one.cpp -o @.o\n\
         [ $(grep -o 'Have to use host [0-9.]*' {ICECC_LOG} | sort -u | wc -l) -eq {count} ]",
        Tool::Icecc.set(site, count)
    );
    site.wait("client", "all builders of icecc", &try_out);
}
