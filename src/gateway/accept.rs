//! Connections: how many, from whom, and in which protocol.

use super::connection_limit::End;
use super::peer::Peer;
use crate::contract::sccache::{ANY_VERSION, OWN_PROTOCOL};
use crate::gateway::metrics::Protocol;
use crate::gateway::socket::{Prompt, Socket};
use crate::gateway::stopping::{LAST_WORDS, a_moment_after};
use crate::gateway::tls::Presented;
use crate::gateway::{Gateway, http, ipc};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, BufReader, WriteHalf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{interval, sleep, timeout};
use tracing::warn;

/// Most connections at one time; more wait to be accepted.
const CONNECTIONS: usize = 4096;
/// The same of the cluster's port: with the relay, each job that waits or runs has one, and another one to its builder.
const CLUSTER_CONNECTIONS: usize = 8192;
/// Blobs' files that are kept open, see `store/open_files.rs`, where that leaves enough for connections.
const KEPT_FILES: usize = 1024;
/// Descriptors left for blobs, relays and everything else.
const SPARE_FILES: u64 = 512;
/// How long a new connection may stay without a first byte. Less than an unauthenticated one may: whoever says nothing at all, as
/// browsers do that connect in advance, goes without a word in the log.
const FIRST_BYTE: Duration = Duration::from_secs(9);
/// How long the next of those who have connected before a stop may be on its way to us.
const WAITING: Duration = Duration::from_millis(20);
/// Read buffer of a connection in sccache's own protocol.
const FRAME_BUFFER: usize = 4 << 10;
/// How often an idle connection is looked for while every place is taken.
const FULL: Duration = Duration::from_millis(100);
/// Pause after the kernel refused to accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How often suppressed warnings are looked after.
const TICK: Duration = Duration::from_secs(5);

/// Accepts connections until it is told to stop.
pub(crate) async fn accept_until(
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
            () = sleep(FULL) => { gateway.limiter.make_room(); continue }
        };
        let Ok(slot) = slot else { return };
        if slots.available_permits() == 0 {
            gateway.limiter.make_room();
        }
        let accepted = tokio::select! {
            biased;
            () = &mut shutdown => return,
            _ = tick.tick() => { gateway.tick(); continue }
            accepted = accept(tcp, unix) => accepted,
        };
        let accepted = accepted.map(|connection| connection.serve(gateway, slot, stopping));
        if let Err(cause) = accepted {
            let message = format!("cannot accept a connection: {cause}");
            gateway.refusals.warn("accept", &message);
            sleep(ACCEPT_PAUSE).await;
        }
    }
}

/// Accepts those who have connected already: one that is cut off without an answer fails the build of a client of sccache's
/// own protocol.
pub(crate) async fn accept_waiting(
    gateway: &Arc<Gateway>,
    tcp: &tokio::net::TcpListener,
    unix: Option<&tokio::net::UnixListener>,
    slots: &Arc<Semaphore>,
    stopping: &watch::Receiver<bool>,
) {
    let all = async {
        while let Ok(slot) = slots.clone().try_acquire_owned()
            && let Ok(Ok(connection)) = timeout(WAITING, accept(tcp, unix)).await
        {
            connection.serve(gateway, slot, stopping);
        }
    };
    let _ = timeout(LAST_WORDS, all).await;
}

/// A connection that was just accepted.
enum Connection {
    Tcp(tokio::net::TcpStream, SocketAddr),
    Unix(tokio::net::UnixStream),
}

async fn accept(
    tcp: &tokio::net::TcpListener,
    unix: Option<&tokio::net::UnixListener>,
) -> io::Result<Connection> {
    let accept_unix = async {
        match unix {
            Some(unix) => unix.accept().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        accepted = tcp.accept() => accepted.map(|(stream, address)| Connection::Tcp(stream, address)),
        accepted = accept_unix => accepted.map(|(stream, _)| Connection::Unix(stream)),
    }
}

impl Connection {
    fn serve(
        self,
        gateway: &Arc<Gateway>,
        slot: OwnedSemaphorePermit,
        stopping: &watch::Receiver<bool>,
    ) {
        match self {
            Connection::Tcp(stream, address) => {
                let local = stream.local_addr().map_or(address.ip(), |local| local.ip());
                let socket = rustix::net::sockopt::set_socket_keepalive(&stream, true);
                if let Err(cause) = stream
                    .set_nodelay(true)
                    .and(socket.map_err(io::Error::from))
                {
                    warn!("cannot set a connection's options peer={address}: {cause}");
                }
                spawn(
                    gateway,
                    stream,
                    Peer::Tcp { address, local },
                    slot,
                    stopping,
                );
            }
            Connection::Unix(stream) => {
                let peer = stream.peer_cred();
                let (uid, pid) =
                    peer.map_or((u32::MAX, 0), |peer| (peer.uid(), peer.pid().unwrap_or(0)));
                spawn(gateway, stream, Peer::Unix { uid, pid }, slot, stopping);
            }
        }
    }
}

fn spawn<S: Socket>(
    gateway: &Arc<Gateway>,
    stream: S,
    peer: Peer,
    slot: OwnedSemaphorePermit,
    stopping: &watch::Receiver<bool>,
) {
    let (gateway, stopping) = (Arc::clone(gateway), stopping.clone());
    tokio::spawn(async move {
        let conversation = converse(Arc::clone(&gateway), stream, peer, stopping);
        let end = gateway.limiter.attend(&peer, conversation).await;
        drop(slot);
        let (reason, cause) = match end {
            End::Over => return,
            End::Slow => (
                "slow_head",
                "no whole request came in time; clients of the cache send one at once",
            ),
            End::Crowded => (
                "crowded",
                "there are too many connections without an allowed request; do all of that address have a right token?",
            ),
            End::Idle => (
                "idle",
                "every place is taken, its peer has the most idle ones, and this one was idle for longest",
            ),
        };
        gateway
            .refusals
            .refuse(reason, &peer, &"a connection", &cause);
    });
}

/// Finds out which protocol the peer speaks, and speaks it.
///
/// The first frame of sccache's own protocol is shorter than 16 MiB, so its big-endian length starts with 0.
async fn converse<S: Socket>(
    gateway: Arc<Gateway>,
    mut stream: S,
    peer: Peer,
    mut stopping: watch::Receiver<bool>,
) {
    let mut first = [0];
    let read = tokio::select! {
        read = timeout(FIRST_BYTE, stream.read(&mut first)) => read,
        () = a_moment_after(&mut stopping) => return,
    };
    match read {
        Ok(Ok(1)) => {}
        // Port scanners, health checks of others and spare connections of browsers say nothing.
        Ok(Ok(_) | Err(_)) | Err(_) => return,
    }
    let what = "a connection";
    match first[0] {
        0 => {
            let _open = gateway.metrics.connection(Protocol::sccache);
            let (reader, writer) = after(first, Prompt(stream));
            // A frame's length and its head arrive together; what is longer is read past this buffer.
            let reader = BufReader::with_capacity(FRAME_BUFFER, reader);
            ipc::converse(&gateway, reader, writer, peer, stopping).await;
        }
        b'A'..=b'Z' | b'a'..=b'z' if gateway.identity.tls.is_some() && !peer.is_ourselves() => {
            let (reader, writer) = after(first, stream);
            http::refuse_plain(&gateway, tokio::io::join(reader, writer), &peer).await;
        }
        b'A'..=b'Z' | b'a'..=b'z' => {
            let _open = gateway.metrics.connection(Protocol::http);
            http::converse(&gateway, stream, &first, peer, stopping).await;
        }
        0x16 => {
            let Some(tls) = &gateway.identity.tls else {
                let cause = "the client speaks TLS, which is not configured; use http://, or set SCCACHE_TLS_CERT";
                return gateway.refusals.refuse("tls", &peer, &what, &cause);
            };
            let (reader, writer) = after(first, stream);
            match tls.shake_hands(tokio::io::join(reader, writer)).await {
                Ok(stream) => {
                    let _open = gateway.metrics.connection(Protocol::http);
                    let wire = http::Wire::Tls(Presented::of(stream.get_ref().1));
                    http::converse_by_hyper(&gateway, stream, peer, wire, stopping).await;
                }
                Err(cause) => gateway.refusals.refuse("tls", &peer, &what, &cause),
            }
        }
        byte => gateway.refusals.refuse(
            "protocol",
            &peer,
            &what,
            &format!(
                "no known protocol starts with byte {byte:#04x}; an sccache that does is newer than {}: use {ANY_VERSION}",
                OWN_PROTOCOL.end()
            ),
        ),
    }
}

/// The two directions of a connection whose first byte was read already.
fn after<S: AsyncRead + AsyncWrite + Unpin>(
    first: [u8; 1],
    stream: S,
) -> (impl AsyncRead + Unpin, WriteHalf<S>) {
    let (reader, writer) = tokio::io::split(stream);
    (io::Cursor::new(first).chain(reader), writer)
}

/// What descriptors allow.
pub(crate) struct Limits {
    pub(crate) connections: usize,
    /// Blobs' files that are open without a connection.
    pub(crate) kept_files: usize,
    /// Connections to the cluster's port.
    pub(crate) cluster_connections: usize,
}

/// Asks for all descriptors that may be had, and shares them out; the cluster's port has a share where there is one.
pub(crate) fn limits(has_cluster: bool) -> Limits {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let cluster = if has_cluster { CLUSTER_CONNECTIONS } else { 0 };
    let wanted = 2 * (CONNECTIONS + cluster) as u64 + KEPT_FILES as u64 + SPARE_FILES;
    let files = match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((soft, hard)) => {
            let wanted = wanted.min(hard).max(soft);
            match setrlimit(Resource::RLIMIT_NOFILE, wanted, hard) {
                Ok(()) => wanted,
                Err(_) => soft,
            }
        }
        Err(_) => wanted,
    };
    shared_out(usize::try_from(files).unwrap_or(usize::MAX), cluster)
}

/// The share of each of so many descriptors. A connection may hold a blob's file, a relay's socket, or one to a builder
/// besides its own.
fn shared_out(files: usize, cluster: usize) -> Limits {
    const FEW: usize = 4096;
    let cluster = cluster.min(files.min(FEW) / 8 + files.saturating_sub(FEW) / 3);
    let rest = files.saturating_sub(2 * cluster + SPARE_FILES as usize);
    let kept_files = (rest / 8).min(KEPT_FILES);
    Limits {
        connections: ((rest - kept_files) / 2).clamp(16, CONNECTIONS),
        kept_files,
        cluster_connections: cluster,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_shared_out_and_never_twice() {
        for (files, cluster, expected) in [
            (1024, 0, (224, 64, 0)),
            (1024, CLUSTER_CONNECTIONS, (112, 32, 128)),
            (20_000, CLUSTER_CONNECTIONS, (3440, 982, 5813)),
            (1 << 20, CLUSTER_CONNECTIONS, (4096, 1024, 8192)),
        ] {
            let limits = shared_out(files, cluster);
            let found = (
                limits.connections,
                limits.kept_files,
                limits.cluster_connections,
            );
            assert_eq!(found, expected, "{files}");
            let used = 2 * (found.0 + found.2) + found.1;
            assert!(used + SPARE_FILES as usize <= files, "{files}: {used}");
        }
    }
}
