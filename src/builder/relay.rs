//! The builder's port, in front of `sccache-dist server` on loopback.
//!
//! The HTTP library of `sccache-dist` shakes hands for TLS in the one thread that accepts: while one peer is silent,
//! nobody else gets in. So a connection reaches it only when its first message is there as a whole, one after the other,
//! and each has a bounded time for the rest of the handshake.
//!
//! ```text
//! peer --- its whole ClientHello, in time --- its turn --- handshake, in time ===> bytes both ways ---> sccache-dist
//! ```
//!
//! Who takes long over a handshake has to wait longer before each further one; who was quick the last time comes first.
//! It must be TLS 1.3, which all of sccache's clients speak: there it can be seen from outside when a handshake is over.

mod handshakes;
mod hello;
mod permits;

use handshakes::HandshakeQueue;
use hello::Records;
use permits::{ConnectionPermit, ConnectionPermits};
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::Sender;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, warn};

/// How long a peer may take for its first message, and for the first byte of its request.
const FIRST: Duration = Duration::from_secs(10);
/// How long it may wait for its turn.
const WAIT: Duration = Duration::from_secs(30);
/// How long it may take for the rest of the handshake.
const HANDSHAKE: Duration = Duration::from_secs(3);
/// How long while others wait, of whom the front of the scheduler has two seconds. What takes longer is a wasted turn.
const SLOW: Duration = Duration::from_secs(1);
/// How long either side may be silent after that: sccache's clients wait for 20 minutes, and a job may take as long.
const SILENCE: Duration = Duration::from_secs(25 * 60);
/// How long a peer may leave bytes standing.
const TAKE: Duration = Duration::from_secs(60);
/// How long it may take to close its end after an answer.
const LINGER: Duration = Duration::from_secs(2);
/// Bytes that are held of each direction of a connection.
const BUFFER: usize = 16 << 10;
/// Pause after the kernel refused to accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// What the front of the scheduler asks to find out whether a builder is awake, and what begins no TLS.
const QUESTION: &[u8] = b"GET / HTTP/1.0\r\n\r\n";

/// A request of more bytes may have been a toolchain.
const LARGE: u64 = 1 << 20;
/// What TLS and HTTP add to a body, at most: one part of so many.
const OVERHEAD: u64 = 32;

/// How much may come by a connection.
#[derive(Debug)]
pub(super) struct Bound {
    /// Bytes of one request's body.
    pub(super) most: u64,
    /// Is told when a large one has come to its end.
    pub(super) uploaded: Sender<()>,
}

/// Requests that are on their way through.
#[derive(Debug, Clone, Default)]
pub(super) struct InFlight(Arc<AtomicUsize>);

/// One of them, until it is dropped.
#[derive(Debug)]
struct Request(InFlight);

impl InFlight {
    /// How many there are. Peers that have not come as far as a request do not count.
    pub(super) fn requests(&self) -> usize {
        self.0.load(Relaxed)
    }

    fn request(&self) -> Request {
        self.0.fetch_add(1, Relaxed);
        Request(self.clone())
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Relaxed);
    }
}

/// Takes connections for `server`, on a thread of its own, for as long as this process lives.
///
/// # Errors
/// The system gives no thread, or no poller.
pub(super) fn start(
    listener: std::net::TcpListener,
    server: SocketAddr,
    bound: Bound,
) -> io::Result<InFlight> {
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let listener = {
        let _inside = runtime.enter();
        TcpListener::from_std(listener)?
    };
    let relay = Arc::new(Relay {
        server,
        permits: ConnectionPermits::new(),
        turns: HandshakeQueue::new(handshakes::PAUSE),
        in_flight: InFlight::default(),
        bound,
    });
    let in_flight = relay.in_flight.clone();
    std::thread::Builder::new()
        .name("relay".into())
        .spawn(move || runtime.block_on(relay.serve(listener)))?;
    Ok(in_flight)
}

/// What all connections share.
#[derive(Debug)]
struct Relay {
    server: SocketAddr,
    permits: ConnectionPermits,
    turns: Arc<HandshakeQueue>,
    in_flight: InFlight,
    bound: Bound,
}

impl Relay {
    async fn serve(self: Arc<Relay>, listener: TcpListener) -> Infallible {
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => {
                    if let Some(permit) = self.permits.take(peer.ip()) {
                        tokio::spawn(Arc::clone(&self).attend(stream, peer, permit));
                    }
                }
                Err(cause) => {
                    warn!("cannot accept a connection to the builder's port: {cause}");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn attend(
        self: Arc<Relay>,
        stream: TcpStream,
        peer: SocketAddr,
        permit: ConnectionPermit,
    ) {
        let outcome = tokio::select! {
            outcome = self.converse(stream, peer, &permit) => outcome,
            () = permit.is_needed() => Err(io::Error::other("too many connections")),
        };
        if let Err(cause) = outcome {
            debug!("a connection to the builder's port came to nothing: {cause} peer={peer}");
        }
    }

    async fn converse(
        &self,
        mut stream: TcpStream,
        peer: SocketAddr,
        permit: &ConnectionPermit,
    ) -> io::Result<()> {
        // What cannot be set is only slower.
        let _ = stream.set_nodelay(true);
        let _ = rustix::net::sockopt::set_socket_keepalive(&stream, true);
        let mut records = Records::default();
        let is_question = in_time(FIRST, first_message(&mut stream, &mut records)).await?;
        let turn = in_time(WAIT, async { Ok(self.turns.mine(peer.ip()).await) }).await?;
        let begin = Instant::now();
        let mut upstream = in_time(HANDSHAKE, TcpStream::connect(self.server)).await?;
        let _ = upstream.set_nodelay(true);
        if is_question {
            return in_time(HANDSHAKE, hand_question_on(&mut stream, &mut upstream)).await;
        }
        let others_wait = async {
            sleep(SLOW).await;
            turn.is_wanted().await;
        };
        let shaken = shake_hands(&mut stream, &mut upstream, &mut records);
        let shaken = tokio::select! {
            shaken = in_time(HANDSHAKE, shaken) => shaken,
            () = others_wait => Err(io::ErrorKind::TimedOut.into()),
        };
        if begin.elapsed() > SLOW {
            if turn.wasted() {
                warn!(
                    "a peer takes long over its TLS handshakes: it has to wait for each peer={peer}"
                );
            }
        } else if shaken.is_ok() {
            turn.used();
        }
        drop(turn);
        if !shaken? {
            in_time(FIRST, stream.readable()).await?;
        }
        permit.keep();
        let _request = self.in_flight.request();
        let sent = Sent::new(&self.bound);
        let passed = pass(stream, upstream, records.rest(), &sent).await;
        if sent.is_too_much() {
            warn!(
                "a request of more than {} MiB was cut off: no toolchain may be larger than all of them together (SCCACHE_TOOLCHAIN_CACHE_SIZE) peer={peer}",
                self.bound.most >> 20
            );
        }
        passed
    }
}

async fn in_time<T>(limit: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    match timeout(limit, work).await {
        Ok(outcome) => outcome,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// Reads until the peer's ClientHello is there; true if it asks our question instead.
async fn first_message(stream: &mut TcpStream, records: &mut Records) -> io::Result<bool> {
    loop {
        read_more(stream, records).await?;
        if records.bytes().starts_with(QUESTION) {
            return Ok(true);
        }
        let may_ask = QUESTION.starts_with(records.bytes());
        if !may_ask && records.has_hello()? {
            return Ok(false);
        }
    }
}

async fn read_more(stream: &mut TcpStream, records: &mut Records) -> io::Result<()> {
    let mut buffer = [0; 4 << 10];
    match stream.read(&mut buffer).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        length => records.add(&buffer[..length]),
    }
}

/// The other side answers by hanging up; so do we.
async fn hand_question_on(stream: &mut TcpStream, upstream: &mut TcpStream) -> io::Result<()> {
    upstream.write_all(QUESTION).await?;
    let mut buffer = [0; 1 << 10];
    loop {
        match upstream.read(&mut buffer).await {
            Ok(0) | Err(_) => return Ok(()),
            Ok(length) => stream.write_all(&buffer[..length]).await?,
        }
    }
}

/// Passes whole records on until the server says something to the peer's Finished: a ticket, or an alert and the end.
/// True where a request has begun behind it.
async fn shake_hands(
    stream: &mut TcpStream,
    upstream: &mut TcpStream,
    records: &mut Records,
) -> io::Result<bool> {
    upstream.write_all(&records.take_whole()?).await?;
    let (mut answered, mut encrypted) = (false, 0);
    let mut buffer = [0; 4 << 10];
    loop {
        tokio::select! {
            read = upstream.read(&mut buffer) => {
                let length = read?;
                if length == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                stream.write_all(&buffer[..length]).await?;
                if encrypted > 0 {
                    return Ok(encrypted > 1);
                }
                answered = true;
            }
            read = read_more(stream, records) => {
                read?;
                // Nothing encrypted can come before the server's keys.
                if answered {
                    encrypted += records.encrypted()?;
                }
                upstream.write_all(&records.take_whole()?).await?;
            }
        }
    }
}

/// What a peer has sent of its request.
#[derive(Debug)]
struct Sent<'a> {
    bound: &'a Bound,
    /// Since the last answer, and the most of any request.
    bytes: AtomicU64,
    most: AtomicU64,
}

impl Sent<'_> {
    fn new(bound: &Bound) -> Sent<'_> {
        Sent {
            bound,
            bytes: AtomicU64::new(0),
            most: AtomicU64::new(0),
        }
    }

    fn add(&self, count: usize) -> io::Result<()> {
        let bytes = self.bytes.fetch_add(count as u64, Relaxed) + count as u64;
        self.most.fetch_max(bytes, Relaxed);
        match self.is_too_much() {
            true => Err(io::Error::other("the request is too large")),
            false => Ok(()),
        }
    }

    fn answered(&self) {
        self.bytes.store(0, Relaxed);
    }

    fn is_too_much(&self) -> bool {
        let most = self.bound.most;
        let allowed = most.saturating_add(most / OVERHEAD).saturating_add(LARGE);
        self.most.load(Relaxed) > allowed
    }
}

impl Drop for Sent<'_> {
    fn drop(&mut self) {
        if self.most.load(Relaxed) > LARGE {
            // Nobody listens any more when the process ends.
            let _ = self.bound.uploaded.send(());
        }
    }
}

/// Passes bytes on both ways until both sides, or the server, have ended.
async fn pass(
    mut stream: TcpStream,
    mut upstream: TcpStream,
    rest: Vec<u8>,
    sent: &Sent<'_>,
) -> io::Result<()> {
    let (mut from_peer, mut to_peer) = stream.split();
    let (mut from_server, mut to_server) = upstream.split();
    let up = async {
        in_time(TAKE, to_server.write_all(&rest)).await?;
        copy(&mut from_peer, &mut to_server, |count| sent.add(count)).await?;
        to_server.shutdown().await?;
        // The answer is still to come.
        std::future::pending::<io::Result<()>>().await
    };
    let down = async {
        let answered = |_| {
            sent.answered();
            Ok(())
        };
        copy(&mut from_server, &mut to_peer, answered).await?;
        to_peer.shutdown().await
    };
    tokio::select! {
        outcome = up => return outcome,
        outcome = down => outcome?,
    }
    // Closed at once, with bytes of its unread, it might never see the answer.
    let mut sink = tokio::io::sink();
    let _ = timeout(LINGER, tokio::io::copy(&mut stream, &mut sink)).await;
    Ok(())
}

async fn copy(
    from: &mut ReadHalf<'_>,
    to: &mut WriteHalf<'_>,
    count: impl Fn(usize) -> io::Result<()>,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        match in_time(SILENCE, from.read(&mut buffer)).await? {
            0 => return Ok(()),
            length => {
                count(length)?;
                in_time(TAKE, to.write_all(&buffer[..length])).await?;
            }
        }
    }
}
