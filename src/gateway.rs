//! The cache gateway: one port for WebDAV, plain HTTP and sccache's own protocol.
//!
//! Run as a supervised service: `sccache-dock gateway --config FILE`. The supervisor writes the file and
//! hands over the listeners, which it keeps open across restarts of the gateway.
//!
//! ```text
//! accept -> first byte -+- 0x00   -> ipc.rs  -+-> disk.rs -> store.rs
//!                       +- letter -> http.rs -+
//!                       +- 0x16 (TLS) and others: closed, with a line in the log
//! ```

pub mod access;
pub mod config;
pub mod disk;
pub mod http;
pub mod ipc;
pub mod key;
mod log;
pub mod lru;
pub mod metrics;
pub mod status;
pub mod store;
pub mod warnings;
pub mod zip;

use crate::gateway::access::Access;
use crate::gateway::config::{Config, IpcPolicy};
use crate::gateway::disk::Disk;
use crate::gateway::metrics::{Metrics, Protocol};
use crate::gateway::status::{Status, StoreStatus};
use crate::gateway::store::Store;
use crate::gateway::warnings::{REFUSALS, Warnings};
use crate::listeners;
use std::fmt;
use std::io::{self, BufRead};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, interval, sleep, timeout};
use tracing::{info, warn};

/// Most connections at one time; more wait to be accepted.
const CONNECTIONS: usize = 4096;
/// Descriptors left for blobs, relays and everything else.
const SPARE_FILES: u64 = 512;
/// How long a new connection may stay without a first byte.
const FIRST_BYTE: Duration = Duration::from_secs(10);
/// Pause after the kernel refused to accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Most bytes of a version's line.
const LONGEST_VERSION: u64 = 256;
/// How often suppressed warnings are looked after.
const TICK: Duration = Duration::from_secs(5);

/// Why the gateway could not serve.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration file cannot be read.
    #[error("cannot read \"{}\": {cause}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        cause: io::Error,
    },
    /// The configuration file is not as it should be.
    #[error("cannot understand \"{}\": {cause}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        cause: toml::de::Error,
    },
    /// The store's folder is not usable.
    #[error("cannot open the store in \"{}\": {cause}", path.display())]
    Store {
        /// The folder.
        path: PathBuf,
        /// Why.
        cause: store::Error,
    },
    /// No listeners.
    #[error("{0}")]
    Listen(io::Error),
    /// The runtime or its signal handlers.
    #[error("cannot start the gateway: {0}")]
    Start(io::Error),
}

impl Error {
    /// Whether another try with the same configuration file must fail too.
    pub fn is_in_the_file(&self) -> bool {
        matches!(self, Error::Read { .. } | Error::Parse { .. })
    }
}

/// Where clients connect.
#[derive(Debug)]
pub struct Listeners {
    /// The cache port.
    pub tcp: TcpListener,
    /// The socket for clients on the same machine.
    pub unix: Option<UnixListener>,
}

/// Serves the cache until SIGTERM, SIGINT or, with `inherit`, the end of the supervisor.
///
/// With `inherit` the listeners come from the Unix socket on standard input; the byte `R` goes back over it
/// as soon as connections are accepted.
pub fn serve(config: &Path, inherit: bool) -> Result<(), Error> {
    log::to_stderr();
    let path = config;
    let text = std::fs::read_to_string(path).map_err(|cause| Error::Read {
        path: path.into(),
        cause,
    })?;
    let config: Config = toml::from_str(&text).map_err(|cause| Error::Parse {
        path: path.into(),
        cause,
    })?;
    let (listeners, supervisor) = if inherit {
        let (listeners, supervisor) = inherited().map_err(Error::Listen)?;
        (listeners, Some(supervisor))
    } else {
        (bind(&config).map_err(Error::Listen)?, None)
    };
    let options = store::Options {
        dir: config.store_dir.clone(),
        budget_bytes: config.budget_bytes,
    };
    let store = Store::open(options).map_err(|cause| Error::Store {
        path: config.store_dir.clone(),
        cause,
    })?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(Error::Start)?;
    let served = runtime.block_on(async {
        let shutdown = shutdown(supervisor).map_err(Error::Start)?;
        run(listeners, config, store, shutdown)
            .await
            .map_err(Error::Start)
    });
    // A store call on a disk that hangs must not hold up the stop.
    runtime.shutdown_timeout(Duration::from_secs(1));
    served
}

/// The listeners of the configuration, bound here.
fn bind(config: &Config) -> io::Result<Listeners> {
    let tcp = listeners::bind_tcp(config.listen)?;
    let unix = match config.ipc {
        IpcPolicy::Off => None,
        IpcPolicy::Local | IpcPolicy::Networks(_) => {
            Some(listeners::bind_unix(&config.socket, 0o666)?)
        }
    };
    Ok(Listeners { tcp, unix })
}

/// The supervisor's listeners, and the socket that leads to it.
fn inherited() -> io::Result<(Listeners, UnixStream)> {
    let supervisor = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut sockets = listeners::receive(&supervisor)?.into_iter();
    let Some(tcp) = sockets.next() else {
        return Err(io::Error::other(
            "cannot receive the listeners: the message holds none",
        ));
    };
    let unix = sockets.next().map(UnixListener::from);
    Ok((
        Listeners {
            tcp: TcpListener::from(tcp),
            unix,
        },
        supervisor,
    ))
}

/// Ends when the gateway is to stop. Says that it is ready when it is first polled, by the accept loop.
fn shutdown(supervisor: Option<UnixStream>) -> io::Result<impl Future<Output = ()>> {
    let mut term = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let supervisor = match supervisor {
        None => None,
        Some(stream) => {
            stream.set_nonblocking(true)?;
            Some(tokio::net::UnixStream::from_std(stream)?)
        }
    };
    Ok(async move {
        let supervisor_gone = async {
            let Some(mut supervisor) = supervisor else {
                return std::future::pending().await;
            };
            if let Err(cause) = tokio::io::AsyncWriteExt::write_all(&mut supervisor, b"R").await {
                warn!("cannot report readiness: {cause}");
            }
            let mut byte = [0];
            while supervisor
                .read(&mut byte)
                .await
                .is_ok_and(|count| count > 0)
            {}
        };
        tokio::select! {
            _ = term.recv() => info!("stopping signal=TERM"),
            _ = interrupt.recv() => info!("stopping signal=INT"),
            () = supervisor_gone => info!("stopping because the supervisor is gone"),
        }
    })
}

/// Who is at the other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// Over the port: its address and ours.
    Tcp {
        /// The peer's.
        address: SocketAddr,
        /// Ours, as the peer named it.
        local: IpAddr,
    },
    /// Over the socket.
    Unix {
        /// Its user.
        uid: u32,
        /// Its process, 0 when it lives in another process namespace (outside this container).
        pid: i32,
    },
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::Tcp { address, .. } => write!(f, "{address}"),
            Peer::Unix { uid, pid: 0 } => {
                write!(f, "socket uid={uid} of another container or the host")
            }
            Peer::Unix { uid, pid } => write!(f, "socket uid={uid} pid={pid}"),
        }
    }
}

impl Peer {
    /// The same for all connections of one client machine (or user): what advice is limited by.
    pub fn origin(&self) -> String {
        match self {
            Peer::Tcp { address, .. } => address.ip().to_canonical().to_string(),
            Peer::Unix { uid, .. } => format!("socket uid={uid}"),
        }
    }
}

/// What all connections share.
#[derive(Debug)]
pub struct Gateway {
    pub(crate) config: Config,
    pub(crate) access: Access,
    pub(crate) disk: Disk,
    pub(crate) metrics: Metrics,
    pub(crate) warnings: Warnings,
    sccache_version: OnceLock<String>,
    started: Instant,
}

impl Gateway {
    fn new(config: Config, store: Store) -> Gateway {
        let disk = Disk::new(store);
        let scraped = disk.clone();
        Gateway {
            access: Access::new(&config),
            config,
            metrics: Metrics::new(move || scraped.usage()),
            disk,
            warnings: Warnings::default(),
            sccache_version: OnceLock::new(),
            started: Instant::now(),
        }
    }

    /// Counts and logs a refused request.
    pub(crate) fn refuse(
        &self,
        reason: &'static str,
        peer: &Peer,
        what: &dyn fmt::Display,
        cause: &dyn fmt::Display,
    ) {
        self.metrics.refused(reason);
        self.warnings.warn(
            REFUSALS,
            reason,
            &format!("refused {what} peer={peer} reason={reason}: {cause}"),
        );
    }

    /// Runs the supervised sccache once; without an answer the version stays unknown.
    fn ask_sccache_version(&self) {
        if let Some(version) = self.config.sccache.as_deref().and_then(version_of) {
            // Asked once, so set once.
            let _ = self.sccache_version.set(version);
        }
    }

    /// The answer of `/api/status`.
    pub(crate) fn status(&self) -> Status {
        let usage = self.disk.usage();
        let fault = self.disk.write_fault();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            sccache_version: self.sccache_version.get().cloned(),
            uptime_seconds: self.started.elapsed().as_secs(),
            ready: fault.is_none(),
            totals: self.metrics.totals(),
            namespaces: self.metrics.namespaces(&usage),
            protocols: self.metrics.protocols(),
            refusals: self.metrics.refusals(),
            recent_warnings: self.warnings.recent(),
            store: StoreStatus {
                bytes: usage.bytes,
                budget_bytes: usage.budget_bytes,
                entries: usage.entries,
                indexing: usage.indexing,
                evicted_entries: usage.evicted_entries,
                evicted_bytes: usage.evicted_bytes,
                broken_entries: usage.broken_entries,
                fault: fault.or(usage.last_fault.map(|fault| fault.message)),
            },
        }
    }
}

/// The last word of the first line that `PROGRAM --version` prints.
fn version_of(program: &Path) -> Option<String> {
    let mut child = Command::new(program)
        .arg("--version")
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .inspect_err(|cause| warn!("cannot run \"{}\": {cause}", program.display()))
        .ok()?;
    let mut line = String::new();
    let mut output = io::BufReader::new(io::Read::take(child.stdout.take()?, LONGEST_VERSION));
    let read = output.read_line(&mut line);
    // It may go on printing for ever; a program that has ended cannot be killed, which is fine.
    drop(output);
    let _ = child.kill();
    reap(&mut child);
    read.ok()?;
    line.split_whitespace().last().map(str::to_owned)
}

#[expect(
    clippy::disallowed_methods,
    reason = "the gateway's own child, not a service"
)]
fn reap(child: &mut Child) {
    let _ = child.wait();
}

/// Serves `store` on `listeners` until `shutdown` ends, then lets requests in flight finish within the
/// configuration's `drain`. An error means that the listeners cannot be used at all.
pub async fn run(
    listeners: Listeners,
    config: Config,
    store: Store,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    listeners.tcp.set_nonblocking(true)?;
    let tcp = tokio::net::TcpListener::from_std(listeners.tcp)?;
    let unix = match listeners.unix {
        None => None,
        Some(unix) => {
            unix.set_nonblocking(true)?;
            Some(tokio::net::UnixListener::from_std(unix)?)
        }
    };
    info!("listening on {}", tcp.local_addr()?);
    if let Some(path) = unix.as_ref().and_then(|unix| unix.local_addr().ok()) {
        info!(
            "listening on {}",
            path.as_pathname()
                .unwrap_or(Path::new("an unnamed socket"))
                .display()
        );
    }
    let drain = config.drain;
    let gateway = Arc::new(Gateway::new(config, store));
    let asking = Arc::clone(&gateway);
    // On a thread that the end of the runtime does not wait for: the program may never answer.
    std::thread::spawn(move || asking.ask_sccache_version());
    let most = connection_limit();
    let slots = Arc::new(Semaphore::new(most));
    let (stop, stopping) = watch::channel(false);
    accept_until(shutdown, &gateway, &tcp, unix.as_ref(), &slots, &stopping).await;
    drop((tcp, unix));
    stop.send_replace(true);
    let all = u32::try_from(most).unwrap_or(u32::MAX);
    let outcome = timeout(drain, slots.acquire_many(all)).await;
    match outcome {
        Ok(_) => info!("drained"),
        Err(_) => warn!(
            "stopped with {} connections still busy after {drain:?}",
            most - slots.available_permits()
        ),
    }
    Ok(())
}

async fn accept_until(
    shutdown: impl Future<Output = ()>,
    gateway: &Arc<Gateway>,
    tcp: &tokio::net::TcpListener,
    unix: Option<&tokio::net::UnixListener>,
    slots: &Arc<Semaphore>,
    stopping: &watch::Receiver<bool>,
) {
    let mut shutdown = std::pin::pin!(shutdown);
    let mut tick = interval(TICK);
    loop {
        let slot = tokio::select! {
            biased;
            () = &mut shutdown => return,
            slot = slots.clone().acquire_owned() => slot,
        };
        let Ok(slot) = slot else { return };
        let accept_unix = async {
            match unix {
                Some(unix) => unix.accept().await,
                None => std::future::pending().await,
            }
        };
        let accepted = tokio::select! {
            biased;
            () = &mut shutdown => return,
            _ = tick.tick() => { gateway.warnings.tick(); continue }
            accepted = tcp.accept() => accepted.map(|(stream, address)| {
                let local = stream.local_addr().map_or(address.ip(), |local| local.ip());
                let socket = rustix::net::sockopt::set_socket_keepalive(&stream, true);
                if let Err(cause) = stream.set_nodelay(true).and(socket.map_err(io::Error::from)) {
                    warn!("cannot set a connection's options peer={address}: {cause}");
                }
                spawn(gateway, stream, Peer::Tcp { address, local }, slot, stopping);
            }),
            accepted = accept_unix => accepted.map(|(stream, _)| {
                let (uid, pid) = stream.peer_cred().map_or((u32::MAX, 0), |peer| (peer.uid(), peer.pid().unwrap_or(0)));
                spawn(gateway, stream, Peer::Unix { uid, pid }, slot, stopping);
            }),
        };
        if let Err(cause) = accepted {
            let message = format!("cannot accept a connection: {cause}");
            gateway.warnings.warn(REFUSALS, "accept", &message);
            sleep(ACCEPT_PAUSE).await;
        }
    }
}

fn spawn<S: AsyncRead + AsyncWrite + Send + 'static>(
    gateway: &Arc<Gateway>,
    stream: S,
    peer: Peer,
    slot: OwnedSemaphorePermit,
    stopping: &watch::Receiver<bool>,
) {
    let (gateway, stopping) = (Arc::clone(gateway), stopping.clone());
    tokio::spawn(async move {
        converse(gateway, stream, peer, stopping).await;
        drop(slot);
    });
}

/// Finds out which protocol the peer speaks, and speaks it.
///
/// The first frame of sccache's own protocol is shorter than 16 MiB, so its big-endian length starts with 0.
async fn converse<S: AsyncRead + AsyncWrite + Send + 'static>(
    gateway: Arc<Gateway>,
    stream: S,
    peer: Peer,
    mut stopping: watch::Receiver<bool>,
) {
    let (mut reader, writer) = tokio::io::split(stream);
    let mut first = [0];
    let read = tokio::select! {
        read = timeout(FIRST_BYTE, reader.read(&mut first)) => read,
        _ = stopping.wait_for(|stopping| *stopping) => return,
    };
    match read {
        Ok(Ok(1)) => {}
        // Port scanners and health checks of others connect and say nothing.
        Ok(Ok(_) | Err(_)) | Err(_) => return,
    }
    let reader = io::Cursor::new(first).chain(reader);
    let what = "a connection";
    match first[0] {
        0 => {
            let _open = gateway.metrics.connection(Protocol::sccache);
            ipc::converse(&gateway, reader, writer, peer, stopping).await;
        }
        b'A'..=b'Z' | b'a'..=b'z' => {
            let _open = gateway.metrics.connection(Protocol::http);
            http::converse(&gateway, tokio::io::join(reader, writer), peer, stopping).await;
        }
        0x16 => gateway.refuse(
            "tls",
            &peer,
            &what,
            &"the client speaks TLS, which is not configured; use http://",
        ),
        byte => gateway.refuse(
            "protocol",
            &peer,
            &what,
            &format!("no known protocol starts with byte {byte:#04x}"),
        ),
    }
}

/// As many connections as descriptors allow, after asking for all that may be had.
fn connection_limit() -> usize {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return CONNECTIONS;
    };
    let wanted = (2 * CONNECTIONS as u64 + SPARE_FILES).min(hard).max(soft);
    let files = if setrlimit(Resource::RLIMIT_NOFILE, wanted, hard).is_ok() {
        wanted
    } else {
        soft
    };
    // A connection may hold a blob's file or a relay's socket besides its own.
    let share = usize::try_from(files.saturating_sub(SPARE_FILES) / 2).unwrap_or(CONNECTIONS);
    share.clamp(16, CONNECTIONS)
}
