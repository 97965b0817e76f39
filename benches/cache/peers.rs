//! The servers that are compared, each a process with a folder of its own, gone when dropped.

use crate::load::{Lane, Request};
use crate::now;
use sccache_dock::base::secret::Secret;
use sccache_dock::contract::gateway_config::{Config, IpcPolicy};
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::AtomicU64;
use std::time::Duration;

/// Budget where nothing is to be evicted.
pub(crate) const AMPLE: u64 = 16 << 30;

pub(crate) const TOKEN: &str = "token-of-the-benchmark";
/// Ticks of `/proc/PID/stat` in a second.
const TICKS: f64 = 100.0;

/// What a request is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Get,
    Put,
    Handshake,
}

/// A running server.
pub(crate) struct Peer {
    pub(crate) name: &'static str,
    pub(crate) lane: Lane,
    pub(crate) addr: SocketAddr,
    pub(crate) child: Child,
    pub(crate) folder: PathBuf,
    /// The number of the next key.
    pub(crate) next: AtomicU64,
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Told politely, so that nginx takes its workers along.
        if let Ok(pid) = i32::try_from(self.child.id()) {
            let pid = nix::unistd::Pid::from_raw(pid);
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        }
        let began = now();
        while began.elapsed() < Duration::from_secs(8) {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
    }
}

impl Peer {
    /// Starts `command`, which is to listen on `addr`, and waits until it does.
    fn start(
        name: &'static str,
        lane: Lane,
        addr: SocketAddr,
        folder: &Path,
        command: &mut Command,
    ) -> io::Result<Peer> {
        let log = std::fs::File::create(folder.join("log"))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let mut peer = Peer {
            name,
            lane,
            addr,
            child,
            folder: folder.to_owned(),
            next: AtomicU64::new(0),
        };
        let began = now();
        while TcpStream::connect(addr).is_err() {
            let ended = peer.child.try_wait()?.is_some();
            if ended || began.elapsed() > Duration::from_secs(20) {
                let log = std::fs::read_to_string(folder.join("log")).unwrap_or_default();
                return Err(io::Error::other(format!("{name} does not listen: {log}")));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(peer)
    }

    /// Our gateway; `lane` is how it is spoken to.
    pub(crate) fn ours(folder: &Path, lane: Lane, budget_bytes: u64) -> io::Result<Peer> {
        Peer::ours_with("ours", folder, lane, budget_bytes, None)
    }

    /// Another build of it.
    pub(crate) fn build(name: &str, program: &Path, folder: &Path) -> io::Result<Peer> {
        let (config, addr) = configured(folder, AMPLE, None)?;
        let name = Box::leak(name.to_owned().into_boxed_str());
        Peer::start(
            name,
            Lane::Http,
            addr,
            folder,
            &mut gateway(program, &config),
        )
    }

    /// The same with the token in this file.
    pub(crate) fn ours_with_tokens(folder: &Path, tokens: &Path) -> io::Result<Peer> {
        let tokens = Some(tokens.to_owned());
        Peer::ours_with("ours, three layers", folder, Lane::Http, AMPLE, tokens)
    }

    fn ours_with(
        name: &'static str,
        folder: &Path,
        lane: Lane,
        budget_bytes: u64,
        tokens_file: Option<PathBuf>,
    ) -> io::Result<Peer> {
        let (config, addr) = configured(folder, budget_bytes, tokens_file)?;
        let program = std::env::var_os("BENCH_OURS")
            .unwrap_or_else(|| env!("CARGO_BIN_EXE_sccache-dock-gateway").into());
        let mut command = gateway(Path::new(&program), &config);
        Peer::start(name, lane, addr, folder, &mut command)
    }

    /// nginx with its dav module: rename, no fsync, as many workers as processors. It opens each file anew, as it does
    /// unless told otherwise.
    pub(crate) fn nginx(folder: &Path) -> io::Result<Peer> {
        Peer::nginx_with("nginx", "", folder)
    }

    /// The same, told to keep files open as long as we do.
    pub(crate) fn nginx_with_open_files(folder: &Path) -> io::Result<Peer> {
        let kept = "open_file_cache max=1024 inactive=30s; open_file_cache_valid 1s;";
        Peer::nginx_with("nginx, open files", kept, folder)
    }

    fn nginx_with(name: &'static str, more: &str, folder: &Path) -> io::Result<Peer> {
        let addr = free_address()?;
        for name in ["data", "tmp"] {
            std::fs::create_dir_all(folder.join(name))?;
        }
        let at = folder.display();
        let user = if nix::unistd::geteuid().is_root() {
            "user root;"
        } else {
            ""
        };
        let config = format!(
            "{user} worker_processes auto; daemon off; pid {at}/pid; error_log stderr crit;\n\
             events {{ worker_connections 4096; }}\n\
             http {{ access_log off; sendfile on; keepalive_timeout 300; keepalive_requests 1000000000;\n\
             client_max_body_size 0; client_body_temp_path {at}/tmp; {more}\n\
             server {{ listen {addr}; root {at}/data; dav_methods PUT DELETE MKCOL; create_full_put_path on; }} }}\n"
        );
        let file = folder.join("nginx.conf");
        std::fs::write(&file, config)?;
        let mut command = Command::new("nginx");
        command.arg("-e").arg("stderr").arg("-c").arg(&file);
        Peer::start(name, Lane::Http, addr, folder, &mut command)
    }

    /// Redis that keeps everything in memory only.
    pub(crate) fn redis(folder: &Path) -> io::Result<Peer> {
        std::fs::create_dir_all(folder)?;
        let addr = free_address()?;
        let mut command = Command::new("redis-server");
        command.args([
            "--save",
            "",
            "--appendonly",
            "no",
            "--bind",
            "127.0.0.1",
            "--maxmemory",
            "3gb",
        ]);
        command.args([
            "--maxmemory-policy",
            "allkeys-lru",
            "--port",
            &addr.port().to_string(),
        ]);
        command.arg("--dir").arg(folder);
        Peer::start("redis", Lane::Redis, addr, folder, &mut command)
    }

    /// sccache's own server with its local disk cache.
    pub(crate) fn sccache(folder: &Path, program: &Path) -> io::Result<Peer> {
        std::fs::create_dir_all(folder)?;
        let addr = free_address()?;
        let mut command = Command::new(program);
        command
            .env("SCCACHE_START_SERVER", "1")
            .env("SCCACHE_NO_DAEMON", "1");
        command
            .env("SCCACHE_IDLE_TIMEOUT", "0")
            .env("SCCACHE_CONF", "/nonexistent");
        command.env("SCCACHE_SERVER_PORT", addr.port().to_string());
        command
            .env("SCCACHE_DIR", folder.join("cache"))
            .env("SCCACHE_CACHE_SIZE", "8G");
        Peer::start("sccache", Lane::Own, addr, folder, &mut command)
    }

    /// The request that does `verb` with key number `key`.
    pub(crate) fn request<'a>(&self, verb: Verb, key: u64, body: &'a [u8]) -> Request<'a> {
        // Spread as hashes are, and the same for all peers.
        let digits = format!(
            "{:064x}",
            u128::from(key).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)
        );
        let digits = format!("{}{}", &digits[32..], &digits[32..]);
        let body = if verb == Verb::Put { body } else { &[] };
        let length = body.len();
        let head = match (self.lane, verb) {
            (Lane::Http, _) => {
                let verb = if verb == Verb::Put { "PUT" } else { "GET" };
                let (a, b, c) = (&digits[..1], &digits[1..2], &digits[2..3]);
                let size = if length > 0 {
                    format!("Content-Length: {length}\r\n")
                } else {
                    String::new()
                };
                format!(
                    "{verb} /{a}/{b}/{c}/{digits} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {TOKEN}\r\n{size}\r\n"
                )
                .into_bytes()
            }
            (Lane::Redis, Verb::Put) => {
                return redis_set(&digits, body);
            }
            (Lane::Redis, _) => format!("*2\r\n$3\r\nGET\r\n$64\r\n{digits}\r\n").into_bytes(),
            (Lane::Own, Verb::Handshake) => frame(5, &[], 0),
            (Lane::Own, Verb::Get) => frame(7, digits.as_bytes(), 0),
            (Lane::Own, Verb::Put) => {
                let mut frame = frame(8, digits.as_bytes(), 8 + length);
                frame.extend((length as u64).to_le_bytes());
                frame
            }
        };
        Request { head, body }
    }

    /// Seconds of processor time that the server and its children have used.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        let own = self.child.id();
        let mut ticks = 0.0;
        for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else {
                continue;
            };
            let Some((name, rest)) = stat.rsplit_once(')') else {
                continue;
            };
            let fields: Vec<&str> = rest.split_whitespace().collect();
            let field = |index: usize| {
                fields
                    .get(index)
                    .and_then(|text| text.parse::<u32>().ok())
                    .unwrap_or(0)
            };
            let pid = name
                .split(' ')
                .next()
                .and_then(|pid| pid.parse::<u32>().ok());
            if pid == Some(own) || field(1) == own {
                ticks += f64::from(field(11)) + f64::from(field(12));
            }
        }
        ticks / TICKS
    }

    /// The most memory that the server itself ever held, in MiB.
    pub(crate) fn peak_mib(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))
            .unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
        kib.unwrap_or(f64::NAN) / 1024.0
    }
}

fn redis_set<'a>(digits: &str, body: &'a [u8]) -> Request<'a> {
    // The last two bytes stand where a line ends; Redis skips them unseen.
    let length = body.len() - 2;
    let head = format!("*3\r\n$3\r\nSET\r\n$64\r\n{digits}\r\n${length}\r\n").into_bytes();
    Request { head, body }
}

/// The head of a frame of sccache's own protocol; `more` bytes follow it.
fn frame(tag: u32, key: &[u8], more: usize) -> Vec<u8> {
    let mut body = tag.to_le_bytes().to_vec();
    if !key.is_empty() {
        body.extend((key.len() as u64).to_le_bytes());
        body.extend(key);
    }
    let length = u32::try_from(body.len() + more).unwrap_or(u32::MAX);
    [&length.to_be_bytes()[..], &body].concat()
}

/// The file of a gateway's configuration, and its address.
fn configured(
    folder: &Path,
    budget_bytes: u64,
    tokens_file: Option<PathBuf>,
) -> io::Result<(PathBuf, SocketAddr)> {
    std::fs::create_dir_all(folder)?;
    let addr = free_address()?;
    let config = Config {
        listen: addr,
        budget_bytes,
        ipc: IpcPolicy::Local,
        write_tokens: match tokens_file {
            Some(_) => vec![Secret::new("a-token-of-nobody-else")],
            None => vec![Secret::new(TOKEN)],
        },
        tokens_file,
        ..Config::in_folder(folder)
    };
    let file = folder.join("gateway.toml");
    std::fs::write(&file, toml::to_string(&config).map_err(io::Error::other)?)?;
    Ok((file, addr))
}

fn gateway(program: &Path, config: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .arg("--config")
        .arg(config)
        .env_remove("SCCACHE_LOG");
    command
}

fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind("127.0.0.1:0")?.local_addr()
}

/// A ZIP archive of `size` bytes with one stored member, as sccache's entries are.
pub(crate) fn archive(size: usize) -> Vec<u8> {
    const AROUND: usize = 33 + 49 + 22;
    let mut out = b"PK\x03\x04".to_vec();
    out.extend([0; 22]);
    out.extend([3, 0, 0, 0]);
    out.extend(b"obj");
    let mut state = 1_u32;
    out.extend((0..size - AROUND).map(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    }));
    let offset = out.len();
    out.extend(b"PK\x01\x02");
    out.extend([0; 42]);
    out.extend(b"obj");
    let length = out.len() - offset;
    out.extend(b"PK\x05\x06\0\0\0\0\x01\0\x01\0");
    for number in [length, offset] {
        out.extend(u32::try_from(number).unwrap_or(0).to_le_bytes());
    }
    out.extend([0, 0]);
    out
}
