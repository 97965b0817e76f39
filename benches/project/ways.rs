//! The ways to a cache: what a client sets, and the servers behind.

use crate::{Project, fail, now, say};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

/// Nothing here takes longer to start, or to come to rest.
const PATIENCE: Duration = Duration::from_secs(60);
/// Ticks of `/proc/PID/stat` in a second.
const TICKS: f64 = 100.0;

/// How a client reaches a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// sccache's own, the measure of the others.
    Disk,
    /// The same in client-side mode: each compile finds out about its compiler anew. The measure of
    /// [`Way::OursSocket`].
    DiskClientSide,
    /// What `client-env` prints: WebDAV behind a level on the client's disk.
    Ours,
    /// WebDAV alone.
    OursNoDisk,
    /// sccache's own protocol.
    OursSocket,
    /// What `client-env` of another build of ours prints, and that build's server: see `--before`.
    Before,
    /// The settings of [`Way::Ours`] with nginx behind them.
    Nginx,
    NginxNoDisk,
    Redis,
}

impl Way {
    pub(crate) const ALL: [Way; 9] = [
        Way::Disk,
        Way::DiskClientSide,
        Way::Ours,
        Way::OursNoDisk,
        Way::OursSocket,
        Way::Before,
        Way::Nginx,
        Way::NginxNoDisk,
        Way::Redis,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Way::Disk => "local disk",
            Way::DiskClientSide => "local disk, client side",
            Way::Ours => "ours",
            Way::OursNoDisk => "ours, no disk",
            Way::OursSocket => "ours, socket",
            Way::Before => "before",
            Way::Nginx => "nginx",
            Way::NginxNoDisk => "nginx, no disk",
            Way::Redis => "redis",
        }
    }

    /// Whether a level on the client's own disk stands before the server.
    pub(crate) fn has_disk(self) -> bool {
        matches!(self, Way::Ours | Way::Before | Way::Nginx)
    }

    /// Whether a daemon of the client's own works.
    fn has_daemon(self) -> bool {
        self != Way::OursSocket
    }
}

pub(crate) fn sccache() -> PathBuf {
    let home = || {
        PathBuf::from(std::env::var_os("HOME").unwrap_or_default())
            .join(".cache/sccache-dock/tools")
    };
    let tools = std::env::var_os("SCCACHE_DOCK_TOOLS").map_or_else(home, PathBuf::from);
    let program = tools.join("sccache-0.19.0/bin/sccache");
    if !program.exists() {
        fail(&format!(
            "there is no {}: scripts/test makes it",
            program.display()
        ));
    }
    program
}

/// A server, and where it is.
struct Server {
    /// What it is a command of, where it is ours.
    program: PathBuf,
    child: Child,
    addr: SocketAddr,
    folder: PathBuf,
}

/// All servers; they stand still while another one has its turn.
pub(crate) struct Servers {
    folder: PathBuf,
    ours: Server,
    before: Option<Server>,
    nginx: Option<Server>,
    redis: Option<Server>,
}

fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    listener.unwrap_or_else(|cause| fail(&format!("cannot find a free port: {cause}")))
}

fn start(name: &str, folder: &Path, addr: SocketAddr, command: &mut Command) -> Option<Server> {
    let log = std::fs::File::create(folder.join("log")).ok()?;
    let child = command
        .stdin(Stdio::null())
        .stdout(log.try_clone().ok()?)
        .stderr(log)
        .spawn()
        .inspect_err(|cause| say(&format!("without {name}: {cause}")))
        .ok()?;
    let mut server = Server {
        program: command.get_program().into(),
        child,
        addr,
        folder: folder.to_owned(),
    };
    let began = now();
    while TcpStream::connect(addr).is_err() {
        let ended = server.child.try_wait().is_ok_and(|status| status.is_some());
        if ended || began.elapsed() > PATIENCE {
            let log = std::fs::read_to_string(folder.join("log")).unwrap_or_default();
            say(&format!("without {name}, which does not listen: {log}"));
            return None;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Some(server)
}

impl Servers {
    /// `before`: the `sccache-dock` of another build, with its other programs beside it.
    pub(crate) fn start(folder: &Path, before: Option<&Path>) -> Servers {
        let at = |name: &str| {
            let folder = folder.join(name);
            for below in ["data", "tmp"] {
                if let Err(cause) = std::fs::create_dir_all(folder.join(below)) {
                    fail(&format!("cannot make \"{}\": {cause}", folder.display()));
                }
            }
            folder
        };
        let (ours, nginx, redis) = (at("server"), at("nginx"), at("redis"));
        let run = |name: &str, program: &Path, folder: &Path| {
            let addr = free_address();
            let mut command = dock(program, folder, addr);
            let server = start(name, folder, addr, command.arg("run"));
            server.unwrap_or_else(|| fail("there is nothing to measure"))
        };
        let servers = Servers {
            folder: folder.to_owned(),
            ours: run("ours", Path::new(env!("CARGO_BIN_EXE_sccache-dock")), &ours),
            before: before.map(|program| run("before", program, &at("before"))),
            nginx: start_nginx(&nginx),
            redis: start_redis(&redis),
        };
        servers.wait_ready();
        servers
    }

    fn wait_ready(&self) {
        let began = now();
        for server in [Some(&self.ours), self.before.as_ref()]
            .into_iter()
            .flatten()
        {
            while !server
                .command()
                .arg("healthcheck")
                .output()
                .is_ok_and(|output| output.status.success())
            {
                if began.elapsed() > PATIENCE {
                    fail("ours is not ready");
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }

    pub(crate) fn has(&self, way: Way) -> bool {
        matches!(way, Way::Disk | Way::DiskClientSide) || self.of(way).is_some()
    }

    fn of(&self, way: Way) -> Option<&Server> {
        match way {
            Way::Disk | Way::DiskClientSide => None,
            Way::Ours | Way::OursNoDisk | Way::OursSocket => Some(&self.ours),
            Way::Before => self.before.as_ref(),
            Way::Nginx | Way::NginxNoDisk => self.nginx.as_ref(),
            Way::Redis => self.redis.as_ref(),
        }
    }

    /// The home of the client that goes this way.
    pub(crate) fn home(&self, way: Way) -> PathBuf {
        self.folder.join(format!("home-{way:?}"))
    }

    /// Shell text with the client's settings.
    pub(crate) fn set(&self, way: Way) -> String {
        let home = self.home(way);
        let own = format!(
            "export RUSTC_WRAPPER=sccache CARGO_INCREMENTAL=0 SCCACHE_SERVER_UDS={0}/s.sock SCCACHE_DIR={0}/cache",
            home.display()
        );
        let addr = self.of(way).map(|server| server.addr);
        let webdav = |chain: &str| {
            let endpoint = addr.map_or_else(String::new, |addr| addr.to_string());
            format!(
                "{own} SCCACHE_MULTILEVEL_CHAIN={chain} SCCACHE_WEBDAV_ENDPOINT=http://{endpoint} \
                 SCCACHE_SKIP_CACHE_CHECK=1 SCCACHE_WEBDAV_DISABLE_CREATE_DIR=1 SCCACHE_IGNORE_SERVER_IO_ERROR=1"
            )
        };
        match way {
            Way::Disk => own,
            Way::DiskClientSide => format!("{own} SCCACHE_CLIENT_SIDE=1"),
            Way::Ours => self.ours.client_env(&["--lane", "webdav"]),
            Way::OursNoDisk => self.ours.client_env(&["--lane", "webdav", "--no-disk"]),
            Way::OursSocket => self.ours.client_env(&["--lane", "socket"]),
            Way::Before => self.before.as_ref().map_or_else(String::new, |server| {
                // Not the daemon of the other.
                let daemon = self.home(way).join("s.sock");
                let set = server.client_env(&["--lane", "webdav"]);
                format!("{set}\nexport SCCACHE_SERVER_UDS={}", daemon.display())
            }),
            Way::Nginx => webdav("disk,webdav"),
            Way::NginxNoDisk => webdav("webdav"),
            Way::Redis => {
                let addr = addr.map_or_else(String::new, |addr| addr.to_string());
                format!("{own} SCCACHE_REDIS_ENDPOINT=redis://{addr}")
            }
        }
    }

    fn client(&self, project: &Project, way: Way, command: &str) -> Option<String> {
        let script = format!("{}\n{command}", self.set(way));
        let output = project.shell(&self.home(way), &script).output().ok()?;
        output
            .status
            .success()
            .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Hits and misses that the client has counted.
    pub(crate) fn counts(&self, project: &Project, way: Way) -> (u64, u64) {
        let shown = self.client(project, way, "sccache --show-stats --stats-format json");
        let stats: Value = shown
            .and_then(|text| serde_json::from_str(&text).ok())
            .unwrap_or_default();
        let count = |what: &str| {
            let counts = stats["stats"][what]["counts"].as_object();
            counts
                .into_iter()
                .flat_map(|all| all.values())
                .filter_map(Value::as_u64)
                .sum()
        };
        (count("cache_hits"), count("cache_misses"))
    }

    /// Empties the server and the client.
    pub(crate) fn forget(&self, project: &Project, way: Way) {
        self.forget_client(project, way);
        let Some(server) = self.of(way) else { return };
        match way {
            Way::Disk | Way::DiskClientSide => {}
            Way::Ours | Way::OursNoDisk | Way::OursSocket | Way::Before => {
                let purged = server.command().arg("purge").output();
                if !purged.as_ref().is_ok_and(|output| output.status.success()) {
                    fail(&format!("cannot purge: {purged:?}"));
                }
            }
            Way::Nginx | Way::NginxNoDisk => {
                for entry in std::fs::read_dir(server.folder.join("data"))
                    .into_iter()
                    .flatten()
                    .flatten()
                {
                    let _ = std::fs::remove_dir_all(entry.path());
                }
            }
            Way::Redis => {
                if redis(server.addr, "FLUSHALL").as_deref() != Some("+OK") {
                    fail("cannot empty Redis");
                }
            }
        }
    }

    /// The client is as new.
    pub(crate) fn forget_client(&self, project: &Project, way: Way) {
        if way.has_daemon() {
            let _ = self.client(project, way, "sccache --stop-server");
        }
        let home = self.home(way);
        let _ = std::fs::remove_dir_all(&home);
        if let Err(cause) = std::fs::create_dir_all(&home) {
            fail(&format!("cannot make \"{}\": {cause}", home.display()));
        }
    }

    /// Starts the client's daemon, which no figure is to contain.
    pub(crate) fn start_client(&self, project: &Project, way: Way) {
        if way.has_daemon()
            && self
                .client(project, way, "sccache --start-server")
                .is_none()
        {
            fail(&format!(
                "{}: the client's daemon does not start",
                way.name()
            ));
        }
    }

    /// Waits until the client has written what it writes in the background.
    pub(crate) fn settle(&self, way: Way) {
        if !way.has_disk() {
            return;
        }
        let (began, mut last) = (now(), 0);
        loop {
            std::thread::sleep(Duration::from_millis(400));
            let stored = self.of(way).map_or(0, |server| files(&server.folder));
            if std::mem::replace(&mut last, stored) == stored {
                return;
            }
            if began.elapsed() > PATIENCE {
                fail(&format!(
                    "{}: the writes in the background do not end",
                    way.name()
                ));
            }
        }
    }

    /// Seconds of processor time so far on the client's side, and of the server.
    pub(crate) fn cpu(&self, way: Way) -> (f64, f64) {
        let server = |server: &Server| i32::try_from(server.child.id()).unwrap_or(0);
        let all = [
            Some(&self.ours),
            self.before.as_ref(),
            self.nginx.as_ref(),
            self.redis.as_ref(),
        ];
        let all: Vec<i32> = all.into_iter().flatten().map(server).collect();
        let (this, own) = (Pid::this().as_raw(), self.of(way).map(server));
        let (mut client, mut of_server) = (0.0, 0.0);
        for found in processes() {
            if Some(found.pid) == own || Some(found.parent) == own {
                of_server += found.own + found.waited;
            } else if found.parent == this && !all.contains(&found.pid) {
                // A daemon: it is our child since its parent went away.
                client += found.own + found.waited;
            }
        }
        let seconds = |time: nix::sys::time::TimeVal| {
            use nix::sys::time::TimeValLike;
            time.num_microseconds() as f64 / 1e6
        };
        let waited = getrusage(UsageWho::RUSAGE_CHILDREN);
        let waited = waited.map_or(0.0, |it| {
            seconds(it.user_time()) + seconds(it.system_time())
        });
        (client + waited, of_server)
    }
}

impl Server {
    fn command(&self) -> Command {
        dock(&self.program, &self.folder, self.addr)
    }

    fn client_env(&self, arguments: &[&str]) -> String {
        match self.command().arg("client-env").args(arguments).output() {
            Ok(output) if output.status.success() => {
                String::from_utf8_lossy(&output.stdout).into_owned()
            }
            other => fail(&format!("client-env: {other:?}")),
        }
    }
}

/// A program of ours, with the settings of the server.
fn dock(program: &Path, folder: &Path, addr: SocketAddr) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("SCCACHE_DIR", folder.join("data"))
        .env("SCCACHE_LISTEN", addr.to_string())
        .env("SCCACHE_BINARY", sccache())
        .env("SCCACHE_LOG", "warn");
    command
}

/// nginx with its dav module: rename, no fsync, as many workers as processors.
fn start_nginx(folder: &Path) -> Option<Server> {
    let (addr, at) = (free_address(), folder.display());
    let user = if nix::unistd::geteuid().is_root() {
        "user root;"
    } else {
        ""
    };
    let config = format!(
        "{user} worker_processes auto; daemon off; pid {at}/pid; error_log stderr crit;\n\
         events {{ worker_connections 1024; }}\n\
         http {{ access_log off; sendfile on; keepalive_timeout 300; keepalive_requests 1000000;\n\
         client_max_body_size 0; client_body_temp_path {at}/tmp;\n\
         server {{ listen {addr}; root {at}/data; dav_methods PUT DELETE MKCOL; create_full_put_path on; }} }}\n"
    );
    let file = folder.join("nginx.conf");
    std::fs::write(&file, config).ok()?;
    let mut command = Command::new("nginx");
    command.args(["-e", "stderr", "-c"]).arg(&file);
    start("nginx", folder, addr, &mut command)
}

/// Redis that keeps everything in memory only.
fn start_redis(folder: &Path) -> Option<Server> {
    let addr = free_address();
    let mut command = Command::new("redis-server");
    command
        .args(["--save", "", "--appendonly", "no", "--bind", "127.0.0.1"])
        .args(["--port", &addr.port().to_string(), "--dir"])
        .arg(folder);
    start("redis", folder, addr, &mut command)
}

/// The first line of the answer to a command without arguments.
fn redis(addr: SocketAddr, command: &str) -> Option<String> {
    let mut stream = TcpStream::connect(addr).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream
        .write_all(format!("{command}\r\nQUIT\r\n").as_bytes())
        .ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.lines().next().map(str::to_owned)
}

/// How many files there are below a folder.
fn files(folder: &Path) -> usize {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let counts = entries.map(|entry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => files(&entry.path()),
        Ok(_) => 1,
        Err(_) => 0,
    });
    counts.sum()
}

struct Process {
    pid: i32,
    parent: i32,
    /// Seconds of processor time: its own, and of its children that have ended.
    own: f64,
    waited: f64,
}

fn processes() -> impl Iterator<Item = Process> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        let fields: Vec<i64> = stat
            .rsplit(')')
            .next()?
            .split_whitespace()
            .map(|field| field.parse().unwrap_or(0))
            .collect();
        let seconds = |at: usize| fields.get(at).map_or(0.0, |ticks| *ticks as f64 / TICKS);
        Some(Process {
            pid,
            parent: i32::try_from(*fields.get(1)?).ok()?,
            own: seconds(11) + seconds(12),
            waited: seconds(13) + seconds(14),
        })
    })
}

/// The folder of all files.
static FOLDER: OnceLock<PathBuf> = OnceLock::new();

/// Ends every process that is left (servers, and daemons, which are our children), and removes all files.
pub(crate) fn sweep() {
    let this = Pid::this().as_raw();
    let signal_all = |signal: Signal| {
        for process in processes().filter(|process| process.parent == this) {
            // One that has ended meanwhile is none to end.
            let _ = kill(Pid::from_raw(process.pid), signal);
        }
    };
    signal_all(Signal::SIGTERM);
    std::thread::sleep(Duration::from_millis(500));
    signal_all(Signal::SIGKILL);
    if let Some(folder) = FOLDER.get() {
        let _ = std::fs::remove_dir_all(folder);
    }
}

/// Makes daemons our children. They and the folder go with the run, after Ctrl-C too.
pub(crate) fn sweep_when_ended(folder: &Path) {
    FOLDER.get_or_init(|| folder.to_owned());
    let adopted = nix::sys::prctl::set_child_subreaper(true);
    let signals = Signals::new([SIGINT, SIGTERM, SIGHUP]);
    let (Ok(()), Ok(mut signals)) = (adopted, signals) else {
        fail("cannot catch signals");
    };
    #[expect(
        clippy::exit,
        reason = "the other thread waits for a build that is killed"
    )]
    std::thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            sweep();
            std::process::exit(128 + signal);
        }
    });
}
