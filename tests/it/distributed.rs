//! Scheduler, builder and jobs, with the real sccache-dist, bubblewrap and compilers of this machine.

use crate::cluster::{Cluster, can_build};
use crate::dock::{Dock, eventually, is_alive, program};
use crate::harness::{Outcome, now, tools, wait_for};
use crate::machine::Machine;
use crate::site::{free_port, skip};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sccache_dock::builder::mounts::Procfs;
use sccache_dock::builder::shim::{JobSpec, Limit, Report, VARIABLE};
use sccache_dock::contract::job_end::COMPILER_FAILED;
use serde_json::Value;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

/// A sccache-dock that distributes on loopback, and a client of it.
pub(crate) struct Farm {
    pub(crate) dock: Dock,
    pub(crate) client: Machine,
    pub(crate) front: u16,
    /// The builder's own port.
    pub(crate) builder: u16,
}

/// Whether jobs can run here at all; a skipped test says so.
pub(crate) fn is_possible() -> bool {
    let is_here = Path::new("/usr/bin/bwrap").exists();
    is_here || skip::<()>("bubblewrap is not installed").is_some()
}

impl Farm {
    /// `None`, and a line, where there is no bubblewrap.
    pub(crate) fn start() -> Option<Farm> {
        Farm::start_with(&[])
    }

    /// One whose jobs sccache's own scheduler assigns, and whose clients reach the builder themselves.
    pub(crate) fn start_stock() -> Option<Farm> {
        Farm::start_with(&[STOCK])
    }

    pub(crate) fn start_with(more: &[(&str, &str)]) -> Option<Farm> {
        Farm::start_below(&[], tempfile::tempdir().unwrap(), more)
    }

    /// With its state in this folder.
    pub(crate) fn start_in(dir: tempfile::TempDir, more: &[(&str, &str)]) -> Option<Farm> {
        Farm::start_below(&[], dir, more)
    }

    /// The same, as the last words of another program's command line.
    pub(crate) fn start_below(
        above: &[&str],
        dir: tempfile::TempDir,
        more: &[(&str, &str)],
    ) -> Option<Farm> {
        if !is_possible() {
            return None;
        }
        let (front, builder) = (free_port(), free_port());
        let (front_at, builder_at) = (format!("127.0.0.1:{front}"), format!("127.0.0.1:{builder}"));
        let usual = [
            ("MODE", "distributed-ephemeral"),
            ("SCCACHE_SCHEDULER_LISTEN", front_at.as_str()),
            ("SCCACHE_BUILDER_LISTEN", builder_at.as_str()),
            ("SCCACHE_PUBLIC_ADDR", "127.0.0.1"),
            ("SCCACHE_BUILDER_SLOTS", "1"),
            ("SCCACHE_STOP_GRACE", "40s"),
        ];
        let mut dock = Dock::launch_below(above, dir, &[&usual[..], more].concat());
        dock.wait_ready();
        let client = Machine::new();
        client.write(
            "dist.toml",
            &client_file(&format!("127.0.0.1:{front}"), &dock.token()),
        );
        Some(Farm {
            dock,
            client,
            front,
            builder,
        })
    }

    /// Writes a file for a client's scripts.
    pub(crate) fn write(&self, name: &str, text: &str) {
        self.client.write(name, text);
    }

    /// Runs a script of a client that distributes.
    pub(crate) fn client(&self, script: &str) -> Outcome {
        self.client.sh(&format!("{CLIENT}{script}"))
    }

    pub(crate) fn statistics(&self) -> Value {
        statistics(&self.client)
    }
}

/// Without the relay.
pub(crate) const STOCK: (&str, &str) = ("SCCACHE_RELAY", "off");

/// What a client sets that distributes.
pub(crate) const CLIENT: &str =
    "export SCCACHE_CONF=$PWD/dist.toml SCCACHE_SERVER_UDS=$PWD/../c.sock\n";

/// The configuration file of a client, by hand.
pub(crate) fn client_file(front: &str, token: &str) -> String {
    format!(
        "[dist]\nscheduler_url = \"http://{front}\"\n\
         [dist.auth]\ntype = \"token\"\ntoken = \"{token}\"\n"
    )
}

pub(crate) fn statistics(client: &Machine) -> Value {
    let shown = client.sh(&format!("{CLIENT}sccache --show-stats --stats-format json"));
    serde_json::from_str::<Value>(&shown.output).unwrap()["stats"].take()
}

/// Compiles done by builders, and those that failed there.
pub(crate) fn distributed(statistics: &Value) -> (u64, u64) {
    let by_builder = statistics["dist_compiles"].as_object().unwrap();
    let done = by_builder.values().filter_map(Value::as_u64).sum();
    (done, statistics["dist_errors"].as_u64().unwrap())
}

/// Takes some seconds to compile, in every compiler and on every machine.
const LONG: &str = "#include <regex>\n#include <map>\n#include <string>\n\
    int main(int c, char **v) { std::map<std::string, std::regex> m;\n\
    for (int i = 0; i < c; i++) m[v[i]] = std::regex(v[i]); return m.size(); }\n";

#[test]
fn job_is_done_by_the_builder_and_what_fails_there_is_compiled_by_the_client() {
    let Some(farm) = Farm::start_stock() else {
        return;
    };
    farm.client
        .write("a.c", "int main(void) { return MEANING; }\n");
    let built = farm
        .client("sccache cc -DMEANING=42 -c a.c -o a.o && cc a.o -o a && { ./a; [ $? = 42 ]; }");
    assert_eq!(built.code, Some(0), "{}", built.output);
    assert_eq!(distributed(&farm.statistics()), (1, 0));
    let status = farm.client("sccache --dist-status");
    assert!(
        status.output.contains("\"num_servers\":1,\"num_cpus\":1"),
        "{}",
        status.output
    );
    let failing = farm.client("sccache cc -DMEANING=nonsense -c a.c -o b.o");
    assert_eq!(failing.code, Some(1), "{}", failing.output);
    assert!(failing.output.contains("nonsense"), "{}", failing.output);
    assert_eq!(distributed(&farm.statistics()).0, 1);
    let folder = farm.dock.dir.path().join("builder/build/builds");
    eventually("jobs leave nothing behind", || {
        std::fs::read_dir(&folder)
            .unwrap()
            .next()
            .is_none()
            .then_some(())
    });
    let log = farm.dock.log();
    for file in ["server-token", "auth-token"] {
        let token = std::fs::read_to_string(farm.dock.dir.path().join("state").join(file)).unwrap();
        assert!(!log.contains(token.trim()), "{file} is in the log");
    }
}

/// sccache packs the files that a crate reads and no folder beside them: `bits/../x.rs` leads nowhere then.
#[test]
fn crate_that_compiles_only_where_all_of_its_source_is_compiles_all_the_same() {
    let Some(farm) = Farm::start() else { return };
    farm.client.write(
        "src/lib.rs",
        "pub mod bits { #[path = \"../x.rs\"] pub mod x; }\n",
    );
    farm.client
        .write("src/x.rs", "pub fn meaning() -> u8 { 42 }\n");
    farm.client.write("src/bits/unused.rs", "");
    farm.client.write("plain/lib.rs", "pub fn plain() {}\n");
    let rustc = |source: &str, name: &str| {
        let command = format!(
            "sccache rustc --crate-name {name} --crate-type lib --emit=dep-info,metadata,link \
             --out-dir out {source}"
        );
        farm.client(&format!("mkdir -p out && {command}"))
    };
    let plain = rustc("plain/lib.rs", "plain");
    assert_eq!(plain.code, Some(0), "{}", plain.output);
    assert_eq!(distributed(&farm.statistics()), (1, 0), "rustc runs there");
    let built = rustc("src/lib.rs", "meaning");
    assert_eq!(built.code, Some(0), "{}", built.output);
    assert_eq!(distributed(&farm.statistics()), (1, 1));
    assert!(farm.client.work().join("out/libmeaning.rlib").exists());
}

/// As docs/cross.md has it for clients whose compilers sccache cannot pack; a wrapper stands for such a compiler here.
#[test]
fn prepared_archive_takes_the_place_of_a_compiler() {
    let Some(farm) = Farm::start() else { return };
    let wrapper = "#!/bin/sh\nexec /usr/bin/cc \"$@\"\n";
    farm.client.write("own/cc", wrapper);
    let packed =
        farm.client("chmod +x own/cc && sccache --package-toolchain /usr/bin/cc cc.tar.gz");
    assert_eq!(packed.code, Some(0), "{}", packed.output);
    let work = farm.client.work();
    let file = work.join("dist.toml");
    let conf = std::fs::read_to_string(&file).unwrap();
    let toolchain = format!(
        "[[dist.toolchains]]\ntype = \"path_override\"\ncompiler_executable = \"{0}/own/cc\"\n\
         archive = \"{0}/cc.tar.gz\"\narchive_compiler_executable = \"/usr/bin/cc\"\n",
        work.display()
    );
    std::fs::write(file, conf + &toolchain).unwrap();
    farm.client.write("a.c", "int main(void) { return 42; }\n");
    let built =
        farm.client("sccache $PWD/own/cc -c a.c -o a.o && cc a.o -o a && { ./a; [ $? = 42 ]; }");
    assert_eq!(built.code, Some(0), "{}", built.output);
    assert_eq!(distributed(&farm.statistics()), (1, 0));
    // Toolchains are known by the hash of their archives, with the digits of each byte the other way round: it was this
    // one, not what sccache would have packed of the wrapper.
    let archive = std::fs::read(work.join("cc.tar.gz")).unwrap();
    let hash = blake3::hash(&archive);
    let bytes = hash.as_bytes().iter();
    let name: String = bytes
        .map(|byte| format!("{:02x}", byte.rotate_left(4)))
        .collect();
    let unpacked = farm.dock.dir.path().join("builder/build/toolchains");
    assert!(unpacked.join(&name).is_dir(), "no {name} in {unpacked:?}");
}

#[test]
fn builder_that_is_stopped_finishes_its_job() {
    let Some(farm) = Farm::start() else { return };
    farm.client.write("long.cpp", LONG);
    farm.client.write("short.cpp", "int f() { return 0; }\n");
    // With it the toolchain is packed and sent, which takes longer than the job.
    let first = farm.client("sccache c++ -c short.cpp -o short.o");
    assert_eq!(first.code, Some(0), "{}", first.output);
    let folder = farm.dock.dir.path().join("builder/build/builds");
    let job = std::thread::scope(|scope| {
        let job = scope.spawn(|| farm.client("sccache c++ -O2 -c long.cpp -o long.o"));
        eventually("the job runs", || {
            let mut jobs = std::fs::read_dir(&folder).unwrap();
            (jobs.next().is_some() && shims() > 0).then_some(())
        });
        let stopped = farm.dock.command(&["stop", "builder"]);
        assert!(stopped.status.success(), "{stopped:?}");
        job.join().unwrap()
    });
    assert_eq!(job.code, Some(0), "{}", job.output);
    assert_eq!(distributed(&farm.statistics()), (2, 0));
    farm.dock.wait_log("stopping after the last of");
    eventually("the builder has stopped", || {
        (farm.dock.service("builder")["state"] == "stopped").then_some(())
    });
    let state = std::net::TcpStream::connect(("127.0.0.1", farm.front));
    assert!(state.is_ok(), "the front goes on: {state:?}");
}

/// Processes that stand in for bubblewrap right now, of all tests.
fn shims() -> usize {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let called = |pid: &Path| {
        let line = std::fs::read(pid.join("cmdline")).unwrap_or_default();
        line.starts_with(program().as_os_str().as_encoded_bytes())
            && line.windows(17).any(|part| part == b"--die-with-parent")
    };
    entries.filter(|entry| called(&entry.path())).count()
}

/// The only child of a process.
fn child_of(pid: Pid) -> Option<Pid> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    let child = text.split_ascii_whitespace().next()?;
    Some(Pid::from_raw(child.parse().ok()?))
}

#[test]
fn killed_builder_takes_its_server_along_and_comes_back() {
    let Some(farm) = Farm::start() else { return };
    let builder = farm.dock.pid_of("builder");
    let server = child_of(builder).unwrap();
    // What a crash leaves is counted and removed.
    let left = farm.dock.dir.path().join("builder/build/toolchains/left");
    std::fs::create_dir(&left).unwrap();
    std::fs::write(left.join("cc"), vec![0_u8; 3 << 20]).unwrap();
    kill(builder, Signal::SIGKILL).unwrap();
    eventually("sccache-dist is gone", || (!is_alive(server)).then_some(()));
    eventually("the builder is back", || {
        let service = farm.dock.service("builder");
        (service["state"] == "ready" && service["restarts"] == 1).then_some(())
    });
    let log = farm.dock.wait_log("unpacked toolchains");
    assert!(
        log.contains("removed 1 unpacked toolchains and 0 jobs of an earlier run, 3 MiB"),
        "{log}"
    );
    farm.client.write("a.c", "int main(void) { return 0; }\n");
    let built = farm.client("sccache cc -c a.c -o a.o");
    assert_eq!(built.code, Some(0), "{}", built.output);
    assert_eq!(distributed(&farm.statistics()), (1, 0));
}

#[test]
fn killed_server_of_a_builder_is_started_again() {
    let Some(farm) = Farm::start() else { return };
    let server = child_of(farm.dock.pid_of("builder")).unwrap();
    kill(server, Signal::SIGKILL).unwrap();
    eventually("the builder is back", || {
        let service = farm.dock.service("builder");
        (service["state"] == "ready" && service["restarts"] == 1).then_some(())
    });
}

#[test]
fn jobs_go_on_after_a_crash_of_scheduler_and_gateway() {
    for relay in ["on", "off"] {
        let farm = Farm::start_with(&[("SCCACHE_RELAY", relay)]);
        let Some(farm) = farm else { return };
        crash_scheduler_and_gateway(&farm);
    }
}

fn crash_scheduler_and_gateway(farm: &Farm) {
    farm.client.write("a.c", "int main(void) { return N; }\n");
    for (round, victim) in ["scheduler", "gateway"].iter().enumerate() {
        let before = farm.dock.service(victim)["restarts"].as_u64().unwrap();
        kill(farm.dock.pid_of(victim), Signal::SIGKILL).unwrap();
        eventually("it is back, and what it keeps too", || {
            let status = farm.dock.status()?;
            let services = status["services"].as_array().unwrap();
            let again = farm.dock.service(victim)["restarts"] == before + 1;
            let ready = services.iter().all(|service| service["state"] == "ready");
            (again && ready).then_some(())
        });
        eventually("the scheduler knows its builder", || {
            let status = farm.client("sccache --dist-status");
            status.output.contains("\"num_servers\":1").then_some(())
        });
        let script = format!("sccache cc -DN={round} -c a.c -o a.o");
        let built = farm.client(&script);
        assert_eq!(built.code, Some(0), "{}", built.output);
        let expected = (round as u64 + 1, 0);
        let found = distributed(&farm.statistics());
        assert_eq!(found, expected, "after {victim}:\n{}", farm.dock.log());
    }
}

/// Compiles one new file after another until a builder does one.
fn until_a_job(client: &Machine) -> Duration {
    let (start, before) = (now(), distributed(&statistics(client)).0);
    let mut number = 0;
    wait_for("a job by a builder", Duration::from_secs(60), || {
        number += 1;
        client.write("next.c", &format!("int next_{before}_{number};\n"));
        let built = client.sh(&format!("{CLIENT}sccache cc -c next.c -o next.o"));
        assert_eq!(built.code, Some(0), "{}", built.output);
        (distributed(&statistics(client)).0 > before).then_some(())
    });
    start.elapsed()
}

#[test]
fn builders_do_jobs_again_soon_after_a_crash_of_the_scheduler() {
    let Some(farm) = Farm::start_stock() else {
        return;
    };
    until_a_job(&farm.client);
    let usual = until_a_job(&farm.client);
    let ours: Vec<_> = (0..5)
        .map(|_| {
            kill(farm.dock.pid_of("scheduler"), Signal::SIGKILL).unwrap();
            until_a_job(&farm.client)
        })
        .collect();
    println!("the next job by a builder: usually after {usual:.2?}, after a crash {ours:.2?}");
    if !can_build() {
        return skip("this user cannot run sccache's own builder").unwrap_or(());
    }
    let mut stock = Cluster::start(&farm.dock.token());
    stock.add_builder();
    let client = Machine::new();
    client.write(
        "dist.toml",
        &client_file(&format!("127.0.0.1:{}", stock.port), &farm.dock.token()),
    );
    until_a_job(&client);
    let usual = until_a_job(&client);
    stock.crash_scheduler();
    let crashed = until_a_job(&client);
    println!("stock sccache-dist: usually after {usual:.2?}, after a crash {crashed:.2?}");
}

/// Runs a shell command as a job.
pub(crate) fn job(terms: &JobSpec, script: &str) -> Output {
    job_of(terms, &["sh", "-c", script])
}

/// Runs a command as a job: through the shim, in the sandbox that `sccache-dist` asks for.
fn job_of(terms: &JobSpec, words: &[&str]) -> Output {
    let mut command = Command::new(program());
    command
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env(VARIABLE, serde_json::to_string(terms).unwrap())
        .args(["--die-with-parent", "--cap-drop", "ALL", "--unshare-user"])
        .args(["--unshare-cgroup", "--unshare-ipc", "--unshare-pid"])
        .args(["--unshare-net", "--unshare-uts", "--bind", "/", "/"])
        .args(["--proc", "/proc", "--dev", "/dev", "--chdir", "/"])
        .args(["--setenv", "CLIENT", "yes", "--"])
        .args(words)
        .stdin(Stdio::null());
    command.output().unwrap()
}

pub(crate) fn terms() -> JobSpec {
    JobSpec {
        bwrap: "/usr/bin/bwrap".into(),
        procfs: Procfs::Fresh,
        jobs_socket: None,
        guard: None,
        memory_bytes: 256 << 20,
        processes: 40,
        time_millis: 60_000,
        disk_bytes: 1 << 30,
    }
}

#[test]
fn shim_passes_on_what_a_job_says_and_hides_its_own_environment() {
    if !is_possible() {
        return;
    }
    let ran = job(&terms(), "echo out; echo err >&2; env");
    assert_eq!(ran.status.code(), Some(0));
    let said = String::from_utf8(ran.stdout).unwrap();
    assert!(
        said.starts_with("out\n") && said.contains("CLIENT=yes"),
        "{said}"
    );
    assert!(!said.contains(VARIABLE), "{said}");
    assert_eq!(String::from_utf8(ran.stderr).unwrap(), "err\n");
    let version = Command::new(program())
        .env(VARIABLE, serde_json::to_string(&terms()).unwrap())
        .arg("--version")
        .output()
        .unwrap();
    assert!(version.stdout.starts_with(b"bubblewrap "), "{version:?}");
}

/// A job of a shell, and its last report.
pub(crate) fn reported(change: impl FnOnce(&mut JobSpec), script: &str) -> (Output, Report) {
    let mut terms = terms();
    change(&mut terms);
    reported_of(terms, &["sh", "-c", script])
}

/// A job, and its last report, from a socket of the test's own.
pub(crate) fn reported_of(mut terms: JobSpec, words: &[&str]) -> (Output, Report) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("jobs.sock");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    terms.jobs_socket = Some(path);
    let output = job_of(&terms, words);
    let next = || -> Report {
        let mut buffer = [0; 1024];
        let count = socket.recv(&mut buffer).unwrap();
        serde_json::from_slice(&buffer[..count]).unwrap()
    };
    assert!(matches!(next(), Report::Started { .. }));
    (output, next())
}

#[test]
fn job_is_reported_with_what_it_used() {
    if !is_possible() {
        return;
    }
    let (output, report) = reported(
        |_| {},
        "i=0; while [ $i -lt 100000 ]; do i=$((i + 1)); done; exit 3",
    );
    assert_eq!(
        output.status.signal(),
        Some(COMPILER_FAILED),
        "the client compiles it"
    );
    let Report::Ended {
        exit,
        seconds,
        cpu_seconds,
        peak_rss_bytes,
        limit,
        ..
    } = report
    else {
        panic!("{report:?}");
    };
    assert_eq!((exit, limit), (3, None));
    assert!(
        cpu_seconds > 0.01 && seconds > 0.01,
        "{cpu_seconds} {seconds}"
    );
    assert!(peak_rss_bytes > 1 << 20, "{peak_rss_bytes}");
}

#[test]
fn job_over_a_limit_ends_by_a_signal_so_that_its_client_compiles() {
    if !is_possible() {
        return;
    }
    let limits = |output: &Output, report: &Report, expected| {
        assert_eq!(output.status.signal(), Some(9), "{output:?}");
        let Report::Ended { limit, .. } = report else {
            panic!("{report:?}");
        };
        assert_eq!(*limit, Some(expected), "{output:?}");
    };
    // Kept in a variable of the shell; larger than the limit, well below what is reserved.
    let hog = "x=$(head -c 200000000 /dev/zero | tr '\\0' x); y=$x; sleep 30";
    let (output, report) = reported(|terms| terms.memory_bytes = 128 << 20, hog);
    limits(&output, &report, Limit::Memory);
    assert!(
        matches!(report, Report::Ended { peak_rss_bytes, .. } if peak_rss_bytes > 128 << 20),
        "{report:?}"
    );
    let bomb = "i=0; while [ $i -lt 100 ]; do sleep 30 & i=$((i + 1)); done; wait";
    let (output, report) = reported(|terms| terms.memory_bytes = 1 << 30, bomb);
    limits(&output, &report, Limit::Processes);
    let (output, report) = reported(|terms| terms.time_millis = 300, "sleep 30 & sleep 30");
    limits(&output, &report, Limit::Time);
}

#[test]
fn compiler_that_is_refused_memory_does_not_fail_its_client() {
    if !is_possible() {
        return;
    }
    // At once more than is reserved, so that no look comes in between.
    let hog = "head -c 700000000 /dev/zero | tail -c 650000000 >/dev/null";
    let (output, _) = reported(|terms| terms.memory_bytes = 64 << 20, hog);
    assert_eq!(output.status.signal(), Some(9), "{output:?}");
}

#[test]
fn sandbox_that_cannot_be_set_up_does_not_fail_its_client() {
    if !is_possible() {
        return;
    }
    let mut terms = terms();
    terms.bwrap = "/usr/bin/false".into();
    assert_eq!(job(&terms, "true").status.signal(), Some(COMPILER_FAILED));
    terms.bwrap = "/nowhere/bwrap".into();
    assert_eq!(job(&terms, "true").status.signal(), Some(9));
}

#[test]
fn machine_without_user_namespaces_is_told_which_setting_forbids_them() {
    if !is_possible() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("builder.toml");
    let text = format!(
        "mode = \"builder\"\nisolation = \"userns\"\ndir = \"{}\"\n\
         sccache_dist = \"/none\"\nserver_config = \"/none\"\nbwrap = \"/usr/bin/bwrap\"\n\
         listen = \"0.0.0.0:10501\"\nserver = \"127.0.0.1:10502\"\njobs_socket = \"/none\"\ngrace_millis = 0\ntoolchain_cache_bytes = 1\n[limits]\ntime_millis = 60000\n",
        folder.path().display()
    );
    std::fs::write(&file, text).unwrap();
    // In a user namespace of its own, where the limit holds for what is below only.
    let script = format!(
        "echo 0 >/proc/sys/user/max_user_namespaces && exec '{}' builder --config '{}'",
        program().display(),
        file.display()
    );
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "sh", "-c", &script])
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(
        said.contains("cannot make a user namespace: ENOSPC")
            && said.contains("user.max_user_namespaces"),
        "{said}"
    );
}

#[test]
fn machine_without_sccache_dist_is_told_so() {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(program())
        .arg("run")
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("MODE", "distributed-ephemeral")
        .env("SCCACHE_DIR", folder.path())
        .env("SCCACHE_BINARY", tools().join("sccache-0.19.0/bin/sccache"))
        .env("SCCACHE_DIST_BINARY", "/nowhere/sccache-dist")
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(
        said.contains("cannot find \"/nowhere/sccache-dist\"")
            && said.contains("hint: set SCCACHE_DIST_BINARY"),
        "{said}"
    );
}
