//! The front of the scheduler: what clients and builders reach on port 10600.
//!
//! ```text
//! client  --- token ----------.                                  .- loopback --> sccache-dist scheduler
//! builder --- address, token --+-> checked here, bounded, counted +
//!                                                                '- MODE=builder --> front of another machine
//! ```
//!
//! sccache's client takes every 4xx for a reason to fail the compile and everything else for one to compile by
//! itself; so nothing that passes is answered 4xx. The scheduler believes any `X-Real-IP`; so it hears only
//! ours. It forgets everything when it dies; so builders' heartbeats are kept for its successor, and jobs that
//! only its predecessor knew come to their end. The modules: upstream.rs (the way to the scheduler), registry.rs (builders and
//! jobs, pure), heartbeats.rs (kept in a file), wire.rs (bytes, pure), exchange.rs (one request and its answer), routes.rs
//! (requests), auth.rs (who may make them), admission.rs (which of them may go on, and when), reports.rs (the jobs' own socket), metrics.rs; relay.rs
//! (jobs taken here), tunnels.rs (connections of a builder that nobody reaches), revocation.rs and jwt.rs (builders' tokens).

pub mod admission;
mod auth;
mod exchange;
pub mod heartbeats;
mod jwt;
pub mod metrics;
pub mod registry;
mod relay;
mod reports;
mod revocation;
mod routes;
mod tunnels;
pub mod upstream;
pub mod wire;

use self::metrics::Metrics;
use self::registry::Registry;
use self::relay::Relay;
use self::reports::Reports;
use self::revocation::Proofs;
use self::upstream::UpstreamClient;
use crate::contract::gateway_config::Dist;
use crate::contract::gateway_status::DistStatus;
use crate::gateway::body::turn_away;
use crate::gateway::connection_limit::{ConnectionLimiter, End};
use crate::gateway::disk::Disk;
use crate::gateway::http::Wire;
use crate::gateway::http1::{self, Limits};
use crate::gateway::identity::Identity;
use crate::gateway::peer::Peer;
use crate::gateway::refusals::Refusals;
use crate::gateway::tls::Presented;
use bytes::Bytes;
use hyper::StatusCode;
use hyper::service::service_fn;
use parking_lot::{Mutex, MutexGuard};
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

const LIMITS: Limits = Limits {
    head: Duration::from_secs(10),
    take: Duration::from_secs(10),
    buffer: 16 << 10,
    half_close: false,
};
/// While every place is taken, one is freed so often.
const FULL: Duration = Duration::from_millis(250);
/// With what a peer begins that speaks TLS: the kind of its first record, a handshake (RFC 8446, 5.1).
const TLS: u8 = 0x16;
/// How long a new connection may stay without a first byte.
const FIRST_BYTE: Duration = Duration::from_secs(9);
/// Pause after the kernel refused to accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Threads of the scheduler that allocations leave to everything else.
const SPARE_THREADS: usize = 4;

/// The two directions between the front and the supervisor, one byte a message.
#[derive(Debug)]
pub struct SupervisorChannel {
    /// `S`: a scheduler was started; `L`: the local builder is about to stop.
    pub heard: UnboundedReceiver<u8>,
    /// `s`: the scheduler answers; `b`: the local builder is registered.
    pub say: UnboundedSender<u8>,
}

/// The supervisor's ends of it.
#[derive(Debug)]
pub struct SupervisorEnds {
    /// What the supervisor says goes in here.
    pub hear: UnboundedSender<u8>,
    /// What it is told comes out here.
    pub said: UnboundedReceiver<u8>,
}

/// Both ends.
pub fn talk() -> (SupervisorChannel, SupervisorEnds) {
    let (hear, heard) = unbounded_channel();
    let (say, said) = unbounded_channel();
    (
        SupervisorChannel { heard, say },
        SupervisorEnds { hear, said },
    )
}

/// What the cluster's port shares with the cache's.
pub(crate) struct Shared {
    /// Who may do what.
    pub(crate) identity: Arc<Identity>,
    /// What is refused.
    pub(crate) refusals: Arc<Refusals>,
    /// Where the relay keeps toolchains.
    pub(crate) disk: Disk,
}

/// What all connections of the front share.
#[derive(Debug)]
pub(crate) struct Front {
    config: Dist,
    identity: Arc<Identity>,
    refusals: Arc<Refusals>,
    link: UpstreamClient,
    // Plain mutexes: held for a look-up, never across I/O or an await.
    registry: Mutex<Registry>,
    /// Something happened in the registry that held allocations wait for.
    changed: Notify,
    /// There are heartbeats that the file does not have.
    news: Notify,
    round: Mutex<Option<self::admission::Round>>,
    /// Held by the one allocation whose answer decides about the next.
    single: Arc<tokio::sync::Mutex<()>>,
    /// Each allocation holds a thread of the scheduler until the builder has answered.
    allocations: Arc<Semaphore>,
    metrics: Metrics,
    reports: Reports,
    replayed: AtomicU64,
    say: UnboundedSender<u8>,
    /// The local builder's process that the supervisor knows to be registered.
    registered: Mutex<Option<u64>>,
    /// Those of its connections that have shown no token.
    limiter: ConnectionLimiter,
    /// Most connections at one time.
    connections: usize,
    relay: Option<Relay>,
    /// Entries of the file with which builders have joined.
    proofs: Proofs,
}

impl Front {
    /// Blocks, once, at the start.
    ///
    /// # Errors
    /// The relay cannot work.
    pub(crate) fn new(
        config: Dist,
        say: UnboundedSender<u8>,
        connections: usize,
        shared: Shared,
    ) -> io::Result<Front> {
        let relay = config.relay.clone();
        let relay = relay
            .map(|relay| Relay::new(relay, connections, shared.disk))
            .transpose()?;
        let threads = 8 * std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Front {
            identity: shared.identity,
            refusals: shared.refusals,
            relay,
            proofs: Proofs::default(),
            link: UpstreamClient::new(config.scheduler.clone(), config.client_certificate.clone()),
            config,
            registry: Mutex::default(),
            changed: Notify::new(),
            news: Notify::new(),
            round: Mutex::default(),
            single: Arc::default(),
            allocations: Arc::new(Semaphore::new(threads - SPARE_THREADS)),
            metrics: Metrics::default(),
            reports: Reports::default(),
            replayed: AtomicU64::new(0),
            say,
            registered: Mutex::default(),
            limiter: ConnectionLimiter::new(connections),
            connections,
        })
    }

    pub(crate) fn status(&self) -> DistStatus {
        let local = self.config.local_builder;
        DistStatus {
            scheduler_up: self.link.health() == self::upstream::Health::Up,
            scheduler_outages: self.link.outages(),
            replayed_heartbeats: self.replayed.load(Relaxed),
            allocations: self.metrics.allocations(),
            builders: self.registry().builders(Instant::now(), local),
            local_jobs: self.reports.jobs(),
            relay: self.relay.as_ref().map(Relay::status),
        }
    }

    /// Metrics for `/metrics`.
    pub(crate) fn collector(self: &Arc<Front>) -> Box<dyn prometheus_client::collector::Collector> {
        self::metrics::collector(self)
    }

    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock()
    }

    /// Where a builder is reached from here. The public address of this container's own may lead out of it and back in,
    /// as behind a NAT, and then only if its port is published.
    fn port_of(&self, builder: SocketAddr) -> SocketAddr {
        match self.config.local_builder_port {
            Some(port) if self.config.local_builder == Some(builder) => port,
            _ => builder,
        }
    }

    /// Says once of every process of the local builder that it is registered.
    fn registered(&self, builder: SocketAddr, nonce: u64) {
        if self.config.local_builder != Some(builder) {
            return;
        }
        let mut registered = self.registered.lock();
        if registered.replace(nonce) != Some(nonce) {
            // Without a supervisor nobody listens.
            let _ = self.say.send(b'b');
        }
    }

    /// Tells a scheduler that has come back of all builders, and the supervisor of the scheduler.
    async fn look_after_the_scheduler(&self) {
        let recall = async {
            self.recall_heartbeats().await;
            self.relay_recalls();
        };
        tokio::join!(self.link.returned(), recall);
        loop {
            self.link.returned().await;
            let since = match self.link.health() {
                self::upstream::Health::Down { since, .. } => since,
                self::upstream::Health::Up => Instant::now(),
            };
            let kept = self.registry().heartbeats(Instant::now());
            let (all, mut told) = (kept.len(), 0);
            for one in kept {
                told += usize::from(self.replay(one.builder, one.body).await);
            }
            self.link.up();
            self.changed.notify_waiters();
            let down_ms = since.elapsed().as_millis();
            info!("the scheduler answers down_ms={down_ms} builders_told={told}/{all}");
            let _ = self.say.send(b's');
        }
    }

    async fn replay(&self, builder: SocketAddr, body: Bytes) -> bool {
        let heartbeat = wire::heartbeat(&body);
        let request = self.builders_request(builder, routes::HEARTBEAT, body);
        match self.link.ask(request, routes::QUICK).await {
            Ok(answer) if answer.status().is_success() => {
                self.replayed.fetch_add(1, Relaxed);
                if let Ok(heartbeat) = heartbeat {
                    self.registered(builder, heartbeat.nonce);
                }
                true
            }
            Ok(answer) => {
                warn!(
                    "cannot tell the scheduler of builder {builder}: {}",
                    answer.status()
                );
                false
            }
            Err(fault) => {
                warn!("cannot tell the scheduler of builder {builder}: {fault}");
                false
            }
        }
    }

    /// Does what the supervisor says, until it is gone.
    async fn obey(&self, mut heard: UnboundedReceiver<u8>) {
        while let Some(word) = heard.recv().await {
            match word {
                b'S' => {
                    self.registry().scheduler_started();
                    self.link.started();
                }
                b'L' => self.local_builder_leaves().await,
                // A later supervisor may have more to say.
                _ => {}
            }
        }
    }

    async fn local_builder_leaves(&self) {
        let Some(builder) = self.config.local_builder else {
            return;
        };
        info!("builder {builder} leaves");
        self.registry().leave(&builder);
        self.relay_leaves(&builder);
        self.changed.notify_waiters();
        self.news.notify_one();
        if !self.link.is_local() {
            let request = self.builders_request(builder, routes::LEAVING, Bytes::new());
            let told = self.link.ask(request, routes::QUICK).await;
            if let Err(fault) = told {
                warn!("cannot tell the scheduler's machine that builder {builder} leaves: {fault}");
            }
        }
    }
}

/// Serves the front until `stopping`, then ends as soon as the requests in flight are answered.
pub(crate) async fn serve(
    front: Arc<Front>,
    listener: TcpListener,
    heard: UnboundedReceiver<u8>,
    mut stopping: watch::Receiver<bool>,
) {
    front.announce_relay();
    let slots = Arc::new(Semaphore::new(front.connections));
    let of_connections = stopping.clone();
    let beside = async {
        tokio::join!(
            front.look_after_the_scheduler(),
            front.obey(heard),
            front.keep_heartbeats(),
            reports::listen(&front),
            front.look_after_the_relay(),
            front.keep_tunnels(),
            front.look_after_proofs(),
        )
    };
    tokio::select! {
        () = accept(&front, &listener, &slots, &of_connections) => {}
        _ = beside => {}
        _ = stopping.wait_for(|stopping| *stopping) => {}
    }
    drop(listener);
    let all = u32::try_from(front.connections).unwrap_or(u32::MAX);
    // It fails only when the semaphore is closed, which nobody does.
    let _ = slots.acquire_many(all).await;
}

async fn accept(
    front: &Arc<Front>,
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
    stopping: &watch::Receiver<bool>,
) {
    loop {
        let slot = tokio::select! {
            biased;
            slot = Arc::clone(slots).acquire_owned() => slot,
            () = sleep(FULL) => {
                front.limiter.make_room();
                continue;
            }
        };
        let Ok(slot) = slot else { return };
        if slots.available_permits() == 0 {
            front.limiter.make_room();
        }
        match listener.accept().await {
            Ok((stream, address)) => {
                welcome(front, stream, address, slot, stopping.clone());
            }
            Err(cause) => {
                let message = format!("cannot accept a connection to the scheduler: {cause}");
                front.refusals.warn("dist_accept", &message);
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn welcome(
    front: &Arc<Front>,
    stream: TcpStream,
    address: SocketAddr,
    slot: OwnedSemaphorePermit,
    stopping: watch::Receiver<bool>,
) {
    let local = stream.local_addr().map_or(address.ip(), |local| local.ip());
    let peer = Peer::Tcp { address, local };
    // What cannot be set is only slower.
    let _ = stream.set_nodelay(true);
    upstream::keep_alive(&stream);
    let front = Arc::clone(front);
    tokio::spawn(async move {
        let conversation = converse(&front, stream, peer, stopping);
        let end = front.limiter.attend(&peer, conversation).await;
        drop(slot);
        let (reason, cause) = match end {
            End::Over => return,
            End::Slow => ("dist_slow", "no whole request came in time"),
            End::Crowded => (
                "dist_connections",
                "there are too many connections without a right token",
            ),
            End::Idle => (
                "dist_connections",
                "every place is taken, and this one was idle",
            ),
        };
        front
            .refusals
            .refuse(reason, &peer, &"a connection", &cause);
    });
}

/// Finds out whether the peer speaks TLS, and serves it.
async fn converse(
    front: &Arc<Front>,
    stream: TcpStream,
    peer: Peer,
    stopping: watch::Receiver<bool>,
) {
    let mut first = [0];
    match timeout(FIRST_BYTE, stream.peek(&mut first)).await {
        Ok(Ok(1)) => {}
        // Port scanners, and the front's own question whether somebody listens, say nothing.
        Ok(Ok(_) | Err(_)) | Err(_) => return,
    }
    let what = "a connection";
    let tls = front.identity.tls.as_deref();
    if first == [TLS] {
        if tls.is_none() && front.relay.is_none() {
            let cause = "the peer speaks TLS, which is not configured; use http://, or set SCCACHE_TLS_CERT";
            return front.refusals.refuse("dist_tls", &peer, &what, &cause);
        }
        let local = match peer {
            Peer::Tcp { local, .. } => local,
            Peer::Unix { .. } => return,
        };
        match relay::shake_hands(tls, front.relay(), stream, local).await {
            Ok(stream) => {
                let wire = Wire::Tls(Presented::of(stream.get_ref().1));
                serve_http(front, stream, (peer, wire), stopping).await;
            }
            Err(cause) => front.refusals.refuse("dist_tls", &peer, &what, &cause),
        }
    } else if tls.is_some() && !front.config.plain && !peer.is_ourselves() {
        refuse_plain(front, stream, &peer).await;
    } else {
        serve_http(front, stream, (peer, Wire::Plain), stopping).await;
    }
}

/// Tells a peer that sends its token in clear to use TLS. Not by a 4xx, which would fail a client's build.
async fn refuse_plain(front: &Front, stream: TcpStream, peer: &Peer) {
    let cause = "it speaks HTTP without TLS, and its token could be read on its way: use https:// for the scheduler's \
                 URL (hint: SCCACHE_SCHEDULER_PLAIN=any allows it)";
    front
        .refusals
        .refuse("dist_plain", peer, &"a connection", &cause);
    let body = "this scheduler speaks HTTPS: use https:// with the name in its certificate\n";
    turn_away(stream, StatusCode::SERVICE_UNAVAILABLE, body).await;
}

/// Serves one connection until it closes, or until the request in flight is answered once we are stopping.
async fn serve_http<S: AsyncRead + AsyncWrite + Send + 'static>(
    front: &Arc<Front>,
    stream: S,
    (peer, wire): (Peer, Wire),
    stopping: watch::Receiver<bool>,
) {
    let service = service_fn(|request| {
        let (front, wire) = (Arc::clone(front), wire.clone());
        async move {
            let answer = routes::answer(&front, (&peer, &wire), request).await;
            Ok::<_, Infallible>(answer)
        }
    });
    let outcome = http1::serve(stream, service, LIMITS, stopping).await;
    // How else a connection ends concerns nobody: each request was accounted for.
    if let Err(cause) = outcome {
        if cause.is_parse() {
            front
                .refusals
                .refuse("dist_protocol", &peer, &"a connection", &cause);
        } else if cause.is_timeout() {
            front.refusals.refuse(
                "dist_slow",
                &peer,
                &"a connection",
                &"the request's head took too long",
            );
        }
    }
}
