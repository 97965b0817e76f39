//! The distributed lane on the client: the real sccache with the file of `client-env`, a real scheduler, and real
//! builders where this user may run them.

use crate::dock::Dock;
use crate::harness::{Process, clean, sccache_bin, wait_for};
use crate::machine::Machine;
use crate::site::free_port;
use serde::Serialize;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const SERVER_TOKEN: &str = "token-of-the-builders";

#[derive(Serialize)]
struct SchedulerFile<'a> {
    public_addr: String,
    client_auth: Token<'a>,
    server_auth: Token<'a>,
}

#[derive(Serialize)]
struct BuilderFile<'a> {
    cache_dir: &'a Path,
    public_addr: String,
    scheduler_url: String,
    builder: Overlay<'a>,
    scheduler_auth: Token<'a>,
}

#[derive(Serialize)]
struct Token<'a> {
    r#type: &'a str,
    token: &'a str,
}

#[derive(Serialize)]
struct Overlay<'a> {
    r#type: &'a str,
    build_dir: &'a Path,
    bwrap_path: &'a str,
}

fn token(token: &str) -> Token<'_> {
    Token {
        r#type: "token",
        token,
    }
}

/// The stock programs of a cluster on loopback.
pub(crate) struct Cluster {
    folder: tempfile::TempDir,
    pub(crate) port: u16,
    pub(crate) scheduler: Process,
    builders: Vec<Process>,
}

impl Cluster {
    pub(crate) fn start(client_token: &str) -> Cluster {
        let folder = tempfile::tempdir().unwrap();
        let port = free_port();
        let file = SchedulerFile {
            public_addr: format!("127.0.0.1:{port}"),
            client_auth: token(client_token),
            server_auth: token(SERVER_TOKEN),
        };
        let path = folder.path().join("scheduler.conf");
        std::fs::write(&path, toml::to_string(&file).unwrap()).unwrap();
        Cluster {
            scheduler: scheduler(folder.path()),
            folder,
            port,
            builders: Vec::new(),
        }
    }

    /// Kills the scheduler, and starts it anew at once.
    pub(crate) fn crash_scheduler(&mut self) {
        self.scheduler.signal(nix::sys::signal::Signal::SIGKILL);
        self.scheduler.exit();
        self.scheduler = scheduler(self.folder.path());
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(crate) fn add_builder(&mut self) -> u16 {
        let port = free_port();
        let folder = self.folder.path().join(port.to_string());
        std::fs::create_dir(&folder).unwrap();
        let file = BuilderFile {
            cache_dir: &folder.join("cache"),
            public_addr: format!("127.0.0.1:{port}"),
            scheduler_url: self.url(),
            builder: Overlay {
                r#type: "overlay",
                build_dir: &folder.join("build"),
                bwrap_path: "/usr/bin/bwrap",
            },
            scheduler_auth: token(SERVER_TOKEN),
        };
        let path = folder.join("builder.conf");
        std::fs::write(&path, toml::to_string(&file).unwrap()).unwrap();
        let builder = Process::start(dist().args(["server", "--config"]).arg(path));
        builder.wait_for_line("Server connected to scheduler");
        self.builders.push(builder);
        port
    }
}

/// The stock scheduler with the file in this folder.
fn scheduler(folder: &Path) -> Process {
    let scheduler = Process::start(
        dist()
            .args(["scheduler", "--config"])
            .arg(folder.join("scheduler.conf"))
            .env("SCCACHE_NO_DAEMON", "1"),
    );
    scheduler.wait_for_line("Scheduler listening");
    scheduler
}

fn dist() -> Command {
    let mut command = clean(sccache_bin().with_file_name("sccache-dist"));
    command.env("SCCACHE_LOG", "info").stdin(Stdio::null());
    command
}

/// Whether sccache's own builder can run here as it is.
pub(crate) fn can_build() -> bool {
    let bwrap = Command::new("/usr/bin/bwrap")
        .args([
            "--bind",
            "/",
            "/",
            "--unshare-pid",
            "--proc",
            "/proc",
            "true",
        ])
        .output();
    nix::unistd::getuid().is_root() && bwrap.is_ok_and(|it| it.status.success())
}

#[test]
fn real_sccache_takes_the_file_and_finds_the_scheduler() {
    let dock = Dock::start(&[]);
    let machine = Machine::new();
    let cluster = Cluster::start(&dock.token());
    let lane = format!("--lane dist --scheduler {}", cluster.url());
    let ask = "sccache --dist-status";
    let connected = machine.with_env(&dock, &lane, ask);
    let expected = format!(
        r#"{{"SchedulerStatus":["{}/",{{"num_servers":0,"num_cpus":0,"in_progress":0}}]}}"#,
        cluster.url()
    );
    assert_eq!(connected.output.trim(), expected);

    drop(cluster.scheduler);
    let away = machine.with_env(&dock, &lane, ask).output;
    let expected = format!(r#"{{"NotConnected":["http://127.0.0.1:{}/","#, cluster.port);
    assert!(away.starts_with(&expected), "{away}");
    // A daemon that starts without a scheduler starts nevertheless, and the build shares the cache.
    machine.write("it.c", "int one(void) { return 1; }\n");
    let build = "sccache --stop-server >stopped 2>&1; sccache gcc -c it.c -o it.o";
    let built = machine.with_env(&dock, &lane, build);
    assert_eq!(built.code, Some(0), "{}", built.output);
    wait_for("the result is stored", Duration::from_secs(20), || {
        let entries = dock.status()?["cache"]["store"]["entries"].as_u64();
        (entries == Some(1)).then_some(())
    });
}

#[test]
fn written_file_and_evaluated_one_are_the_same_to_sccache() {
    let dock = Dock::start(&[]);
    let machine = Machine::new();
    let cluster = Cluster::start(&dock.token());
    let file = machine.work().join("own.conf");
    let lane = format!(
        "--lane dist --scheduler {} --write={}",
        cluster.url(),
        file.display()
    );
    let connected = machine.with_env(&dock, &lane, "sccache --dist-status; echo $SCCACHE_CONF");
    assert!(
        connected.output.contains("SchedulerStatus")
            && connected.output.ends_with(&format!("{}\n", file.display())),
        "{}",
        connected.output
    );
    // The file alone says where the cache is, too.
    let alone = format!(
        "SCCACHE_SERVER_UDS=$PWD/s.sock SCCACHE_CONF={} ",
        file.display()
    );
    let ask = format!("export {alone}; sccache --dist-status; sccache --show-stats");
    let seen = machine.sh(&ask).output;
    assert!(
        seen.contains("SchedulerStatus") && seen.contains("L1 (webdav)"),
        "{seen}"
    );
}

#[test]
fn doctor_names_what_is_wrong_with_the_cluster() {
    let dock = Dock::start(&[]);
    let machine = Machine::new();
    let stranger = Cluster::start("another-token-than-the-caches");
    let lane = format!("--lane dist --scheduler {}", stranger.url());
    let told = machine.with_env(&dock, &lane, "sccache-dock doctor");
    assert_eq!(told.code, Some(1), "{}", told.output);
    for part in [
        "no builder is registered",
        "wrong: every compile that misses the cache fails",
        "has scheduler and token",
    ] {
        assert!(told.output.contains(part), "{part:?} in\n{}", told.output);
    }
    let vanished = "rm $SCCACHE_CONF; sccache-dock doctor";
    let told = machine.with_env(&dock, &lane, vanished).output;
    assert!(
        told.contains("there is no ") && told.contains("without a word"),
        "{told}"
    );
    drop(stranger);
    let told = machine.with_env(&dock, &lane, "sccache-dock doctor").output;
    assert!(told.contains("FAIL  scheduler"), "{told}");
    let refused = machine.with_env(&dock, &lane, "sccache-dock warm");
    assert_eq!(refused.code, Some(1), "{}", refused.output);
    assert!(
        refused
            .output
            .contains("cannot warm the cluster: http://127.0.0.1:"),
        "{}",
        refused.output
    );
}

#[test]
fn compiler_is_brought_to_every_builder_and_leaves_nothing_in_the_cache() {
    if !can_build() {
        return crate::site::skip("this user cannot run sccache's builder").unwrap_or(());
    }
    let dock = Dock::start(&[]);
    let machine = Machine::new();
    let mut cluster = Cluster::start(&dock.token());
    let ports = [cluster.add_builder(), cluster.add_builder()];
    let lane = format!("--lane dist --scheduler {}", cluster.url());
    let warmed = machine.with_env(&dock, &lane, "sccache-dock warm cc");
    assert_eq!(warmed.code, Some(0), "{}", warmed.output);
    println!("{}", warmed.output);
    assert!(
        warmed.output.starts_with("cc: on 2 of 2 builders after ")
            && warmed.output.contains("cargo build --jobs "),
        "{}",
        warmed.output
    );
    assert_eq!(dock.status().unwrap()["cache"]["store"]["entries"], 0);

    machine.write("it.c", "int one(void) { return 1; }\n");
    let build = "sccache cc -c it.c -o it.o && sccache --show-stats --stats-format json";
    let built = machine.with_env(&dock, &lane, build);
    assert_eq!(built.code, Some(0), "{}", built.output);
    let stats: serde_json::Value = serde_json::from_str(&built.output).unwrap();
    let compiles = &stats["stats"]["dist_compiles"];
    let served = ports.map(|port| compiles[format!("127.0.0.1:{port}")].as_u64());
    assert_eq!(served.into_iter().flatten().sum::<u64>(), 3, "{compiles}");
    assert_eq!(stats["stats"]["dist_errors"], 0);

    let told = machine.with_env(&dock, &lane, "sccache-dock doctor");
    assert_eq!(told.code, Some(0), "{}", told.output);
    assert!(
        told.output.contains("3 compiles on 2 builders"),
        "{}",
        told.output
    );

    // What is wrong with one builder is no failure of a build, and is reported.
    cluster.builders.clear();
    let refused = machine.with_env(&dock, &lane, "sccache-dock warm cc");
    assert_eq!(refused.code, Some(1), "{}", refused.output);
    assert!(
        refused.output.contains("ended up on this machine"),
        "{}",
        refused.output
    );
}
