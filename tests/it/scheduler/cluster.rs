//! The front of a gateway, a real scheduler behind it, and real builders: all on loopback addresses.

use crate::harness::{self, Answer, Process, WRITER, clean, now, sccache_bin, wait_for};
use nix::sys::signal::Signal;
use sccache_dock::base::listeners;
use sccache_dock::base::secret::Secret;
use sccache_dock::contract::dist_config::{Overlay, Scheduler, Server, Token};
use sccache_dock::contract::gateway_config;
use sccache_dock::contract::gateway_config::{Config, Dist, WrongToken};
use sccache_dock::contract::gateway_status::{BuilderStatus, DistStatus, Status};
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

pub(super) const SERVER_TOKEN: &str = "server-token";
const SCHEDULER_TOKEN: &str = "scheduler-token";
/// What a test may wait for.
pub(super) const SOON: Duration = Duration::from_secs(20);

/// A toolchain that no builder has.
pub(super) fn toolchain(digit: char) -> Vec<u8> {
    let name: String = std::iter::repeat_n(digit, 64).collect();
    [&64_u64.to_le_bytes(), name.as_bytes()].concat()
}

pub(super) fn free_port(ip: &str) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), crate::site::free_port())
}

fn token(text: &str) -> Token {
    Token {
        token: Secret::new(text),
    }
}

/// `sccache-dist` with a file of its own.
fn sccache_dist(folder: &Path, kind: &str, text: &str) -> Process {
    let file = folder.join(format!("{kind}.toml"));
    std::fs::write(&file, text).unwrap();
    let mut command = clean(sccache_bin().with_file_name("sccache-dist"));
    command.args([kind, "--config"]).arg(file);
    command.env("SCCACHE_NO_DAEMON", "1");
    command.env("SCCACHE_LOG", "info");
    Process::start(&mut command)
}

/// A real builder. Its address is not the one that its connections come from.
pub(super) struct Builder {
    pub(super) process: Process,
    pub(super) address: SocketAddr,
    folder: tempfile::TempDir,
    front: SocketAddr,
    bind: SocketAddr,
}

impl Builder {
    pub(super) fn start(ip: &str, front: SocketAddr) -> Builder {
        Builder::start_at(free_port(ip), front, SERVER_TOKEN)
    }

    pub(super) fn start_at(address: SocketAddr, front: SocketAddr, builder_token: &str) -> Builder {
        Builder::start_behind(address, address, front, builder_token)
    }

    /// One that listens elsewhere than where others reach it.
    pub(super) fn start_behind(
        address: SocketAddr,
        bind: SocketAddr,
        front: SocketAddr,
        builder_token: &str,
    ) -> Builder {
        let folder = tempfile::tempdir().unwrap();
        let process = Builder::process(folder.path(), [address, bind], front, builder_token);
        Builder {
            process,
            address,
            folder,
            front,
            bind,
        }
    }

    fn process(
        folder: &Path,
        [address, bind]: [SocketAddr; 2],
        front: SocketAddr,
        secret: &str,
    ) -> Process {
        let server = Server {
            cache_dir: folder.join("cache"),
            toolchain_cache_size: 1 << 30,
            public_addr: address,
            bind_address: bind,
            scheduler_url: format!("http://{front}"),
            scheduler_auth: token(secret),
            builder: Overlay {
                build_dir: folder.join("build"),
                bwrap_path: "/usr/bin/bwrap".into(),
            },
        };
        sccache_dist(folder, "server", &toml::to_string(&server).unwrap())
    }

    /// Kills it and starts it again.
    pub(super) fn restart(&mut self) {
        self.process.signal(Signal::SIGKILL);
        self.process.exit();
        let addresses = [self.address, self.bind];
        self.process = Builder::process(self.folder.path(), addresses, self.front, SERVER_TOKEN);
    }
}

/// The way to a builder, on which it is counted how often the front asks whether it is awake.
pub(super) struct Counted {
    pub(super) address: SocketAddr,
    questions: Arc<AtomicUsize>,
}

impl Counted {
    pub(super) fn to(builder: SocketAddr) -> Counted {
        let listener = TcpListener::bind((builder.ip(), 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let questions = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&questions);
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let counter = Arc::clone(&counter);
                std::thread::spawn(move || pass(stream, builder, &counter));
            }
        });
        Counted { address, questions }
    }

    pub(super) fn questions(&self) -> usize {
        self.questions.load(Relaxed)
    }
}

fn pass(mut stream: TcpStream, builder: SocketAddr, counter: &AtomicUsize) -> io::Result<()> {
    let mut first = [0; 4];
    stream.read_exact(&mut first)?;
    counter.fetch_add(usize::from(first == *b"GET "), Relaxed);
    let mut upstream = TcpStream::connect(builder)?;
    upstream.write_all(&first)?;
    let (mut back, mut to) = (upstream.try_clone()?, stream.try_clone()?);
    std::thread::spawn(move || {
        let _ = io::copy(&mut back, &mut to);
        to.shutdown(Shutdown::Both)
    });
    io::copy(&mut stream, &mut upstream)?;
    upstream.shutdown(Shutdown::Write)
}

/// The scheduler's process, and how to start another.
pub(super) struct RealScheduler {
    pub(super) process: Process,
    pub(super) address: SocketAddr,
    folder: tempfile::TempDir,
}

impl RealScheduler {
    pub(super) fn start() -> RealScheduler {
        let (address, folder) = (free_port("127.0.0.1"), tempfile::tempdir().unwrap());
        RealScheduler {
            process: RealScheduler::process(folder.path(), address),
            address,
            folder,
        }
    }

    fn process(folder: &Path, address: SocketAddr) -> Process {
        let scheduler = Scheduler {
            public_addr: address,
            client_auth: token(SCHEDULER_TOKEN),
            server_auth: token(SERVER_TOKEN),
        };
        sccache_dist(folder, "scheduler", &toml::to_string(&scheduler).unwrap())
    }

    pub(super) fn kill(&mut self) {
        self.process.signal(Signal::SIGKILL);
        self.process.exit();
    }

    pub(super) fn start_again(&mut self) {
        self.process = RealScheduler::process(self.folder.path(), self.address);
    }
}

/// A gateway with a front, run as the supervisor runs it.
pub(super) struct Front {
    pub(super) process: Process,
    pub(super) address: SocketAddr,
    pub(super) cache: SocketAddr,
    pub(super) config: Config,
    pub(super) supervisor: UnixStream,
    folder: tempfile::TempDir,
}

impl Front {
    pub(super) fn start(
        scheduler: gateway_config::Scheduler,
        builder: Option<SocketAddr>,
        wrong_token: WrongToken,
    ) -> Front {
        Front::start_in(
            tempfile::tempdir().unwrap(),
            scheduler,
            builder,
            wrong_token,
        )
    }

    /// Kills it and starts another one in its folder, at another address: no builder speaks to that.
    pub(super) fn replace(mut self) -> Front {
        self.process.signal(Signal::SIGKILL);
        self.process.exit();
        let dist = self.config.dist.unwrap();
        Front::start_in(
            self.folder,
            dist.scheduler,
            dist.local_builder,
            dist.wrong_token,
        )
    }

    fn start_in(
        folder: tempfile::TempDir,
        scheduler: gateway_config::Scheduler,
        builder: Option<SocketAddr>,
        wrong_token: WrongToken,
    ) -> Front {
        let mut config = harness::config(folder.path());
        let cache = listeners::bind_tcp(config.listen).unwrap();
        let front = listeners::bind_tcp("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = front.local_addr().unwrap();
        config.dist = Some(Dist {
            listen: address,
            scheduler,
            scheduler_token: Secret::new(SCHEDULER_TOKEN),
            builder_token: Secret::new(SERVER_TOKEN),
            wrong_token,
            local_builder: builder,
            local_builder_port: None,
            jobs_socket: folder.path().join("jobs.sock"),
            heartbeats: folder.path().join("heartbeats"),
            plain: false,
            builder_jwt_key: None,
            client_certificate: None,
            tunnels_to: None,
            relay: None,
        });
        let (supervisor, theirs) = UnixStream::pair().unwrap();
        supervisor.set_read_timeout(Some(SOON)).unwrap();
        listeners::send(&supervisor, &[cache.as_fd(), front.as_fd()]).unwrap();
        let mut command = harness::command(folder.path(), &config);
        command.arg("--inherit").env("SCCACHE_LOG", "debug");
        let process = Process::start(command.stdin(Stdio::from(OwnedFd::from(theirs))));
        let front = Front {
            process,
            address,
            cache: cache.local_addr().unwrap(),
            config,
            supervisor,
            folder,
        };
        assert_eq!(front.hear(), b'R');
        front
    }

    pub(super) fn jobs_socket(&self) -> PathBuf {
        self.config.dist.as_ref().unwrap().jobs_socket.clone()
    }

    /// The file with the builders' heartbeats, once it is there.
    pub(super) fn heartbeats(&self) -> Option<PathBuf> {
        let path = self.config.dist.as_ref().unwrap().heartbeats.clone();
        path.exists().then_some(path)
    }

    /// The next byte for the supervisor.
    pub(super) fn hear(&self) -> u8 {
        let mut byte = [0];
        (&self.supervisor).read_exact(&mut byte).unwrap();
        byte[0]
    }

    pub(super) fn tell(&self, byte: u8) {
        (&self.supervisor).write_all(&[byte]).unwrap();
    }

    pub(super) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        let patience = Some(Duration::from_secs(60));
        stream.set_read_timeout(patience).unwrap();
        stream
    }

    pub(super) fn post(&self, path: &str, headers: &str, body: &[u8]) -> Answer {
        let length = body.len();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: front\r\nContent-Type: application/octet-stream\r\n\
             Connection: close\r\nContent-Length: {length}\r\n{headers}\r\n"
        );
        let mut stream = self.connect();
        stream.write_all(head.as_bytes()).unwrap();
        // A refusal may come before all is sent.
        let _ = stream.write_all(body);
        Answer::read(&mut stream)
    }

    /// What a client asks for first.
    pub(super) fn allocate_as(&self, token: &str, toolchain: &[u8]) -> Answer {
        let bearer = format!("Authorization: Bearer {token}\r\n");
        self.post("/api/v1/scheduler/alloc_job", &bearer, toolchain)
    }

    /// The same with the right token and a good answer, decoded.
    pub(super) fn allocate(&self, digit: char) -> Allocation {
        let answer = self.allocate_as(WRITER, &toolchain(digit));
        assert_eq!(answer.code, 200, "{}", answer.text());
        Allocation::read(&answer.body)
    }

    /// What a builder reports of a job.
    pub(super) fn job_state(&self, builder: SocketAddr, job: u64, state: u32) -> Answer {
        let bearer = format!("Authorization: Bearer {builder} {SERVER_TOKEN}\r\n");
        let path = format!("/api/v1/scheduler/job_state/{job}");
        self.post(&path, &bearer, &state.to_le_bytes())
    }

    pub(super) fn get(&self, path: &str) -> Answer {
        let mut stream = self.connect();
        let head = format!(
            "GET {path} HTTP/1.1\r\nHost: x\r\nAccept: application/json\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        Answer::read(&mut stream)
    }

    /// The gateway's pages lie on the cache's port.
    pub(super) fn page(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.cache).unwrap();
        let head = format!(
            "GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {WRITER}\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        let answer = Answer::read(&mut stream);
        assert_eq!(answer.code, 200);
        answer.text()
    }

    pub(super) fn status(&self) -> DistStatus {
        let status: Status = serde_json::from_str(&self.page("/api/status")).unwrap();
        status.dist.unwrap()
    }

    pub(super) fn builder(&self, address: SocketAddr) -> BuilderStatus {
        let builders = self.status().builders;
        let found = builders.into_iter().find(|one| one.address == address);
        found.unwrap()
    }

    /// Builders that the scheduler itself counts.
    pub(super) fn servers(&self) -> u64 {
        let answer = self.get("/api/v1/scheduler/status");
        let status: serde_json::Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        status["num_servers"].as_u64().unwrap_or(0)
    }

    pub(super) fn wait_for_servers(&self, count: u64) {
        wait_for("registered builders", SOON, || {
            (self.servers() == count).then_some(())
        });
    }
}

/// The scheduler's answer to a client, as sccache 0.19 lays it out.
#[derive(Debug, PartialEq)]
pub(super) enum Allocation {
    Assigned {
        job: u64,
        builder: SocketAddr,
        auth: String,
        needs_toolchain: bool,
    },
    Refused(String),
}

impl Allocation {
    fn read(body: &[u8]) -> Allocation {
        let number = |at: usize| u64::from_le_bytes(body[at..at + 8].try_into().unwrap());
        let length = usize::try_from(number(4)).unwrap();
        let text = String::from_utf8(body[12..12 + length].to_vec()).unwrap();
        if body[..4] != [0; 4] {
            return Allocation::Refused(text);
        }
        let rest = &body[12 + length + 8..];
        assert_eq!(rest[..4], [0; 4], "an IPv4 address");
        let ip: [u8; 4] = rest[4..8].try_into().unwrap();
        let port = u16::from_le_bytes(rest[8..10].try_into().unwrap());
        Allocation::Assigned {
            job: number(12 + length),
            builder: SocketAddr::from((ip, port)),
            auth: text,
            needs_toolchain: rest[10] == 1,
        }
    }

    pub(super) fn job(&self) -> u64 {
        match self {
            Allocation::Assigned { job, .. } => *job,
            Allocation::Refused(message) => panic!("refused: {message}"),
        }
    }
}

/// A scheduler, its front, and one builder that is registered.
pub(super) struct Cluster {
    pub(super) builder: Builder,
    pub(super) front: Front,
    pub(super) scheduler: RealScheduler,
}

impl Cluster {
    pub(super) fn start() -> Cluster {
        Cluster::start_with(WrongToken::Fail)
    }

    pub(super) fn start_with(wrong_token: WrongToken) -> Cluster {
        let scheduler = RealScheduler::start();
        let address = free_port("127.0.0.2");
        let local = gateway_config::Scheduler::Local(scheduler.address);
        let front = Front::start(local, Some(address), wrong_token);
        assert_eq!(front.hear(), b's');
        let builder = Builder::start_at(address, front.address, SERVER_TOKEN);
        assert_eq!(front.hear(), b'b');
        // It listens a moment after it has registered.
        wait_for("the builder's port", SOON, || {
            TcpStream::connect(address).ok()
        });
        Cluster {
            builder,
            front,
            scheduler,
        }
    }

    /// Starts another scheduler as the supervisor does, and waits until it knows the builders.
    pub(super) fn replace_scheduler(&mut self, builders: u64) -> Duration {
        let start = now();
        self.scheduler.start_again();
        self.front.tell(b'S');
        assert_eq!(self.front.hear(), b's');
        self.front.wait_for_servers(builders);
        start.elapsed()
    }
}
