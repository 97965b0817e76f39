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

use crate::contract::builder_port;
use crate::dist_front::upstream::keep_alive;
use handshakes::HandshakeQueue;
use hello::Records;
use parking_lot::Mutex;
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

/// Jobs of the relay whose connections are here, by their numbers.
#[derive(Debug, Clone, Default)]
struct Jobs(Arc<Mutex<Vec<u64>>>);

/// One of them, until it is dropped.
#[derive(Debug)]
struct Job(Jobs, u64);

impl Jobs {
    fn begin(&self, job: u64) -> Job {
        self.0.lock().push(job);
        Job(self.clone(), job)
    }

    fn all(&self) -> Vec<u64> {
        self.0.lock().clone()
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        let mut jobs = self.0.0.lock();
        if let Some(at) = jobs.iter().position(|job| *job == self.1) {
            jobs.swap_remove(at);
        }
    }
}

/// What a peer begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum First {
    Hello,
    /// Whether the server is awake.
    Question,
    /// That, and which jobs it has.
    JobsQuestion,
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
        jobs: Jobs::default(),
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
    jobs: Jobs,
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
        // A peer that was cut off and still owes a part of its job keeps nobody waiting for it.
        keep_alive(&stream);
        let mut records = Records::default();
        let first = in_time(FIRST, first_message(&mut stream, &mut records)).await?;
        // Until the server has ended the connection, whatever becomes of the peer: so long its job may run.
        let _job = records.job().map(|job| self.jobs.begin(job));
        let turn = in_time(WAIT, async { Ok(self.turns.mine(peer.ip()).await) }).await?;
        let begin = Instant::now();
        let mut upstream = in_time(HANDSHAKE, TcpStream::connect(self.server)).await?;
        let _ = upstream.set_nodelay(true);
        if first != First::Hello {
            in_time(HANDSHAKE, hand_question_on(&mut upstream)).await?;
            if first == First::JobsQuestion {
                let answer = builder_port::answer(&self.jobs.all());
                in_time(HANDSHAKE, stream.write_all(&answer)).await?;
            }
            return Ok(());
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
        let passed = pass(stream, upstream, records.rest(), &sent, TAKE).await;
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

/// Reads until the peer's ClientHello is there, or a question of ours instead.
async fn first_message(stream: &mut TcpStream, records: &mut Records) -> io::Result<First> {
    let questions = [
        (builder_port::AWAKE, First::Question),
        (builder_port::JOBS, First::JobsQuestion),
    ];
    loop {
        read_more(stream, records).await?;
        let bytes = records.bytes();
        let asked = questions.iter().find(|(text, _)| bytes.starts_with(text));
        if let Some((_, asked)) = asked {
            return Ok(*asked);
        }
        let may_ask = questions.iter().any(|(text, _)| text.starts_with(bytes));
        if !may_ask && records.has_hello()? {
            return Ok(First::Hello);
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

/// The server answers by hanging up.
async fn hand_question_on(upstream: &mut TcpStream) -> io::Result<()> {
    upstream.write_all(builder_port::AWAKE).await?;
    let mut buffer = [0; 1 << 10];
    loop {
        match upstream.read(&mut buffer).await {
            Ok(0) | Err(_) => return Ok(()),
            Ok(_) => {}
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

/// Passes bytes on both ways until both sides, or the server, have ended; either may leave them standing for so long.
async fn pass(
    mut stream: TcpStream,
    mut upstream: TcpStream,
    rest: Vec<u8>,
    sent: &Sent<'_>,
    take: Duration,
) -> io::Result<()> {
    let (mut from_peer, mut to_peer) = stream.split();
    let (mut from_server, mut to_server) = upstream.split();
    let up = async {
        in_time(take, to_server.write_all(&rest)).await?;
        let count = |count| sent.add(count);
        match copy(&mut from_peer, &mut to_server, count, take).await {
            // It would take a part of the request for the whole, and its answer to that would be no fault of the builder.
            Err(Broken::NotTaken(cause)) => return Err(cause),
            Ok(()) | Err(Broken::NotRead(_)) => {}
        }
        // However the peer's side has ended, the server goes on with what it has, and this is its job until it has ended.
        to_server.shutdown().await?;
        // The answer is still to come.
        std::future::pending::<io::Result<()>>().await
    };
    let down = async {
        let answered = |_| {
            sent.answered();
            Ok(())
        };
        copy(&mut from_server, &mut to_peer, answered, take).await?;
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

/// Which side of a connection has ended it.
#[derive(Debug)]
enum Broken {
    /// That which sends.
    NotRead(io::Error),
    /// That which takes, or more came than it may.
    NotTaken(io::Error),
}

impl From<Broken> for io::Error {
    fn from(broken: Broken) -> io::Error {
        match broken {
            Broken::NotRead(cause) | Broken::NotTaken(cause) => cause,
        }
    }
}

async fn copy(
    from: &mut ReadHalf<'_>,
    to: &mut WriteHalf<'_>,
    count: impl Fn(usize) -> io::Result<()>,
    take: Duration,
) -> Result<(), Broken> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = in_time(SILENCE, from.read(&mut buffer)).await;
        match read.map_err(Broken::NotRead)? {
            0 => return Ok(()),
            length => {
                count(length).map_err(Broken::NotTaken)?;
                let written = in_time(take, to.write_all(&buffer[..length])).await;
                written.map_err(Broken::NotTaken)?;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both ends of a connection.
    async fn connection() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap());
        let (near, far) = tokio::join!(near, listener.accept());
        (near.unwrap(), far.unwrap().0)
    }

    #[tokio::test]
    async fn server_that_takes_nothing_gets_no_end_of_a_request_that_is_cut_off() {
        let (mut client, stream) = connection().await;
        let (upstream, _server) = connection().await;
        let bound = Bound {
            most: u64::MAX,
            uploaded: std::sync::mpsc::channel().0,
        };
        let sent = Sent::new(&bound);
        let moment = Duration::from_millis(100);
        let passed = async {
            let passed = pass(stream, upstream, Vec::new(), &sent, moment);
            timeout(Duration::from_secs(20), passed).await
        };
        // More than the kernel holds, until nobody takes it any more.
        let sends = async { while client.write_all(&[0; BUFFER]).await.is_ok() {} };
        let (passed, ()) = tokio::join!(passed, sends);
        let passed = passed.map_err(|_| "it waits for the answer to a part of the request");
        let kind = passed.unwrap().unwrap_err().kind();
        assert_eq!(kind, io::ErrorKind::TimedOut);
    }
}
