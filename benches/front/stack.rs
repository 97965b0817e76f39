//! Scheduler, builder and client, with or without the front between them, and with the relay.

use nix::sys::resource::{UsageWho, getrusage};
use sccache_dock::base::secret::Secret;
use sccache_dock::contract::dist_config::{Overlay, Scheduler, Server, Token};
use sccache_dock::contract::gateway_config;
use sccache_dock::contract::gateway_config::{Config, Dist, WrongToken};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const CLIENT: &str = "client-token";
const SERVER: &str = "server-token";
const STATUS: &str = "/api/v1/scheduler/status";

pub(crate) struct Figures {
    /// Seconds.
    pub(crate) wall: f64,
    /// Seconds of all processes of the stack, the compilers and the client.
    pub(crate) cpu: f64,
    /// Over loopback, headers and acknowledgements included.
    pub(crate) bytes: f64,
}

/// What is between client and builder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `sccache-dist` alone.
    Stock,
    /// Its scheduler behind our front.
    Front,
    /// The relay, which takes the jobs itself.
    Relay,
}

pub(crate) struct Stack {
    kind: Kind,
    folder: tempfile::TempDir,
    children: Vec<Child>,
    /// What clients and builders reach.
    scheduler: SocketAddr,
    builders: Vec<SocketAddr>,
}

fn free_port() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

#[expect(clippy::disallowed_methods, reason = "a measurement reads the clock")]
fn now() -> Instant {
    Instant::now()
}

fn tool(name: &str) -> PathBuf {
    let home =
        || PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache/sccache-dock/tools");
    let tools = std::env::var_os("SCCACHE_DOCK_TOOLS").map_or_else(home, PathBuf::from);
    tools.join("sccache-0.19.0/bin").join(name)
}

fn token(text: &str) -> Token {
    Token {
        token: Secret::new(text),
    }
}

impl Stack {
    /// With so many builders.
    pub(crate) fn start(kind: Kind, builders: usize) -> Stack {
        let scheduler = free_port();
        let ours = kind != Kind::Stock;
        let mut stack = Stack {
            kind,
            folder: tempfile::tempdir().unwrap(),
            children: Vec::new(),
            scheduler: if ours { free_port() } else { scheduler },
            builders: (0..builders).map(|_| free_port()).collect(),
        };
        stack.run_dist(
            "scheduler",
            &toml::to_string(&Scheduler {
                public_addr: scheduler,
                client_auth: token(CLIENT),
                server_auth: token(SERVER),
            })
            .unwrap(),
        );
        if ours {
            stack.run_gateway(scheduler);
        }
        // Its first heartbeat must find a scheduler, or the next one comes 10 s later.
        stack.wait_for("\"num_servers\":0");
        for (number, builder) in stack.builders.clone().into_iter().enumerate() {
            let folder = stack.folder.path();
            let server = Server {
                cache_dir: folder.join(format!("toolchains-{number}")),
                toolchain_cache_size: 1 << 30,
                public_addr: builder,
                bind_address: builder,
                scheduler_url: format!("http://{}", stack.scheduler),
                scheduler_auth: token(SERVER),
                builder: Overlay {
                    build_dir: folder.join(format!("build-{number}")),
                    bwrap_path: "/usr/bin/bwrap".into(),
                },
            };
            stack.run_dist("server", &toml::to_string(&server).unwrap());
            stack.wait_for(&format!("\"num_servers\":{}", number + 1));
            while TcpStream::connect(builder).is_err() {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        stack.write_client();
        match builders {
            1 if kind == Kind::Relay => {}
            1 => stack.first_job(),
            _ => stack.warm(),
        }
        stack
    }

    /// Brings the compiler to every builder, as a first build does; what falls back meanwhile does not count.
    fn warm(&self) {
        for round in 1_000_000..1_000_020 {
            self.compiles(round, 4 * self.builders.len());
            let seen = self.stats()["dist_compiles"].as_object().unwrap().len();
            // The relay brings it to all of them by itself.
            if seen == self.builders.len() || (self.kind == Kind::Relay && round > 1_000_001) {
                self.sccache().arg("--zero-stats").output().unwrap();
                return;
            }
        }
        panic!("not every builder of {} has compiled", self.name());
    }

    pub(crate) fn name(&self) -> &'static str {
        match self.kind {
            Kind::Stock => "stock",
            Kind::Front => "front",
            Kind::Relay => "relay",
        }
    }

    fn run_dist(&mut self, kind: &str, text: &str) {
        let file = self.folder.path().join(format!("{kind}.toml"));
        std::fs::write(&file, text).unwrap();
        let mut command = Command::new(tool("sccache-dist"));
        command.args([kind, "--config"]).arg(file);
        self.run(command.env("SCCACHE_NO_DAEMON", "1"));
    }

    fn run_gateway(&mut self, scheduler: SocketAddr) {
        let folder = self.folder.path();
        let config = Config {
            listen: free_port(),
            write_tokens: vec![Secret::new(CLIENT)],
            dist: Some(Dist {
                client_certificate: None,
                listen: self.scheduler,
                scheduler: gateway_config::Scheduler::Local(scheduler),
                scheduler_token: Secret::new(CLIENT),
                builder_token: Secret::new(SERVER),
                wrong_token: WrongToken::Fail,
                local_builder: Some(self.builders[0]),
                local_builder_port: None,
                jobs_socket: folder.join("jobs.sock"),
                heartbeats: folder.join("heartbeats"),
                plain: false,
                builder_jwt_key: None,
                tunnels_to: None,
                relay: (self.kind == Kind::Relay).then(|| gateway_config::Relay {
                    address: None,
                    public_ip: None,
                    queue_millis: 600_000,
                    queue_bytes: 1 << 30,
                    archive_bytes: 10 << 30,
                    spool: folder.join("spool"),
                    authority: folder.join("authority"),
                    machines: Default::default(),
                }),
            }),
            ..Config::in_folder(folder)
        };
        let file = folder.join("gateway.toml");
        std::fs::write(&file, toml::to_string(&config).unwrap()).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_sccache-dock-gateway"));
        self.run(command.arg("--config").arg(file));
    }

    fn run(&mut self, command: &mut Command) {
        command.stderr(Stdio::null()).stdout(Stdio::null());
        self.children.push(command.spawn().unwrap());
    }

    fn wait_for(&self, text: &str) {
        let start = now();
        while !self.answers(text) {
            assert!(start.elapsed() < Duration::from_secs(60), "no {text}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn answers(&self, text: &str) -> bool {
        let Ok(stream) = TcpStream::connect(self.scheduler) else {
            return false;
        };
        let answer = ask(
            stream,
            &format!("GET {STATUS} HTTP/1.1\r\nAccept: application/json\r\n"),
            b"",
        );
        String::from_utf8_lossy(&answer).contains(text)
    }

    fn post(&self, path: &str, bearer: &str, body: &[u8]) -> Vec<u8> {
        let stream = TcpStream::connect(self.scheduler).unwrap();
        let head = format!(
            "POST {path} HTTP/1.1\r\nContent-Type: application/octet-stream\r\nAuthorization: Bearer {bearer}\r\n"
        );
        let answer = ask(stream, &head, body);
        assert!(
            answer.starts_with(b"HTTP/1.1 200"),
            "{path}: {}",
            String::from_utf8_lossy(&answer)
        );
        answer
    }

    /// Requests a builder for a toolchain of one letter; the job's number.
    fn allocate(&self) -> u64 {
        let body = [64_u64.to_le_bytes().as_slice(), &[b'a'; 64]].concat();
        let answer = self.post("/api/v1/scheduler/alloc_job", CLIENT, &body);
        let end = answer
            .windows(4)
            .position(|four| four == b"\r\n\r\n")
            .unwrap();
        let body = &answer[end + 4..];
        assert_eq!(body[..4], [0; 4], "{}", String::from_utf8_lossy(body));
        let number = |at: usize| u64::from_le_bytes(body[at..at + 8].try_into().unwrap());
        number(12 + usize::try_from(number(4)).unwrap())
    }

    fn job_state(&self, job: u64, state: u32) {
        let bearer = format!("{} {SERVER}", self.builders[0]);
        let path = format!("/api/v1/scheduler/job_state/{job}");
        self.post(&path, &bearer, &state.to_le_bytes());
    }

    /// From then on the front knows that the toolchain is there; the builder itself says otherwise, so that
    /// the states of each job begin with "ready".
    fn first_job(&self) {
        let job = self.allocate();
        for state in 1..=3 {
            self.job_state(job, state);
        }
    }

    /// What a job asks of the scheduler.
    pub(crate) fn requests(&self, count: usize) {
        for _ in 0..count {
            let job = self.allocate();
            for state in 1..=3 {
                self.job_state(job, state);
            }
        }
    }

    fn write_client(&self) {
        let folder = self.folder.path();
        let text = format!(
            "[dist]\nscheduler_url = \"http://{}\"\ncache_dir = \"{}\"\n\
             [dist.auth]\ntype = \"token\"\ntoken = \"{CLIENT}\"\n",
            self.scheduler,
            folder.join("client").display()
        );
        std::fs::write(folder.join("client.toml"), text).unwrap();
    }

    fn sccache(&self) -> Command {
        let folder = self.folder.path();
        let mut command = Command::new(tool("sccache"));
        command.current_dir(folder);
        command.env("SCCACHE_CONF", folder.join("client.toml"));
        command.env("SCCACHE_DIR", folder.join("cache"));
        command.env("SCCACHE_SERVER_UDS", folder.join("client.sock"));
        command
    }

    /// Compiles files that nobody has compiled, as many at a time as there are builders.
    pub(crate) fn compiles(&self, round: usize, count: usize) {
        let at_once = self.builders.len();
        std::thread::scope(|scope| {
            for first in 0..at_once {
                scope.spawn(move || {
                    for file in (first..count).step_by(at_once) {
                        self.compile(round, file);
                    }
                });
            }
        });
    }

    fn compile(&self, round: usize, file: usize) {
        let (name, object) = (format!("f{round}_{file}.cpp"), format!("f{file}.o"));
        let text = format!(
            "#include <vector>\n#include <string>\nstd::vector<std::string> it{round}_{file}() {{ return {{\"a\"}}; }}\n"
        );
        std::fs::write(self.folder.path().join(&name), text).unwrap();
        let compiled = self
            .sccache()
            .args(["g++", "-O1", "-c", &name, "-o", &object])
            .output();
        let compiled = compiled.unwrap();
        assert!(
            compiled.status.success(),
            "{}",
            String::from_utf8_lossy(&compiled.stderr)
        );
    }

    fn stats(&self) -> serde_json::Value {
        let stats = self
            .sccache()
            .args(["--show-stats", "--stats-format", "json"])
            .output();
        let mut stats: serde_json::Value = serde_json::from_slice(&stats.unwrap().stdout).unwrap();
        stats["stats"].take()
    }

    /// Compiles that were distributed, and those that fell back.
    pub(crate) fn distributed(&self) -> (u64, u64) {
        let stats = self.stats();
        let distributed = stats["dist_compiles"].as_object().unwrap().values();
        let distributed = distributed.filter_map(serde_json::Value::as_u64).sum();
        (distributed, stats["dist_errors"].as_u64().unwrap())
    }

    pub(crate) fn measure(&self, act: impl FnOnce()) -> Figures {
        let (before, sent, start) = (cpu(), bytes(), now());
        act();
        Figures {
            wall: start.elapsed().as_secs_f64(),
            cpu: cpu() - before,
            bytes: bytes() - sent,
        }
    }
}

/// What went over loopback so far, of whomever.
fn bytes() -> f64 {
    let devices = std::fs::read_to_string("/proc/net/dev").unwrap();
    let loopback = devices
        .lines()
        .find_map(|line| line.trim().strip_prefix("lo:"));
    let received = loopback.unwrap().split_whitespace().next();
    received.unwrap().parse().unwrap()
}

/// Processor time so far of all our descendants. The stack that is not measured does nothing meanwhile.
///
/// Orphans (a client's daemon, what bubblewrap leaves) become our children, and the dead ones stay zombies whose times
/// can be read, because nobody waits for them.
fn cpu() -> f64 {
    let parent = std::process::id().to_string();
    let mut ticks = 0;
    for entry in std::fs::read_dir("/proc").unwrap().map(Result::unwrap) {
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else {
            continue;
        };
        let fields: Vec<&str> = stat
            .rsplit(')')
            .next()
            .unwrap()
            .split_whitespace()
            .collect();
        if fields.get(1) == Some(&parent.as_str()) {
            let times = fields[11..15]
                .iter()
                .map(|time| time.parse::<u64>().unwrap());
            ticks += times.sum::<u64>();
        }
    }
    let waited = getrusage(UsageWho::RUSAGE_CHILDREN).unwrap();
    let seconds = |time: nix::sys::time::TimeVal| {
        use nix::sys::time::TimeValLike;
        time.num_microseconds() as f64 / 1e6
    };
    ticks as f64 / 100.0 + seconds(waited.user_time()) + seconds(waited.system_time())
}

impl Drop for Stack {
    fn drop(&mut self) {
        let _ = self.sccache().arg("--stop-server").output();
        for child in &mut self.children {
            let _ = child.kill();
        }
    }
}

/// One request on a connection of its own, as sccache makes them.
fn ask(mut stream: TcpStream, head: &str, body: &[u8]) -> Vec<u8> {
    stream.set_nodelay(true).unwrap();
    let length = body.len();
    let mut request =
        format!("{head}Host: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n")
            .into_bytes();
    request.extend(body);
    stream.write_all(&request).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    answer
}
