//! sccache's own protocol: a client with `SCCACHE_CLIENT_SIDE=1` uses the cache with no server of its own.
//!
//! Storage requests are answered from the store. Statistics are relayed to the supervised sccache server,
//! which keeps them. A `Compile` request, sent by every client with default settings, could only work where
//! the server sees the client's files: inside our own container. Everywhere else the client is told to compile
//! by itself; a silent or closed connection would make its build hang or fail. The same rule makes the
//! answers to peers that the policy refuses: an empty cache that takes nothing, and a line in the log.
//!
//! No request is held in memory: heads are short, blobs go to the store and all else to the server as they arrive, and
//! what nobody wants is thrown away.
//!
//! Direct mode's entries are neither kept nor served, see [`Talk::handshake`].

pub mod frame;

use crate::gateway::access::{default_gateways, may_speak_ipc};
use crate::gateway::crowd;
use crate::gateway::disk::Fault;
use crate::gateway::key::Key;
use crate::gateway::metrics::Protocol;
use crate::gateway::socket::write_both;
use crate::gateway::store::WrittenBy;
use crate::gateway::warnings::ADVICE;
use crate::gateway::within::within;
use crate::gateway::{Gateway, Peer, a_moment_after, store};
use frame::{Handshake, Malformed, Request, Shelf};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{
    AsyncBufRead, AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt,
};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

/// How long a client may be silent between two requests: it compiles meanwhile.
const IDLE: Duration = Duration::from_secs(2 * 60 * 60);
/// The same for a peer that the policy refuses.
const IDLE_STRANGER: Duration = Duration::from_secs(60);
/// How long a frame's bytes, in either direction, may stand still.
const PROGRESS: Duration = Duration::from_secs(10);
/// How long the server may take for a relayed request.
const RELAY: Duration = Duration::from_secs(5);
/// Longest request that is no blob.
const LONGEST: u32 = 64 << 20;
/// Longest request of a peer that the policy refuses: the arguments and the environment of a compiler fit.
const LONGEST_REFUSED: u32 = 4 << 20;
/// Longest response of the server that is held in memory: its statistics.
const LONGEST_RESPONSE: u32 = 1 << 20;
/// Bytes read at once.
const PIECE: usize = 64 << 10;

/// Why a conversation ended before the client ended it.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("the frame is no request: {0}")]
    Malformed(#[from] Malformed),
    #[error("a request of {0} bytes is too long")]
    TooLong(u32),
    #[error("the client stood still in the middle of a request or an answer")]
    Stalled,
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("cannot read the blob to its end: {0}")]
    Blob(io::Error),
}

impl From<tokio::time::error::Elapsed> for End {
    fn from(_: tokio::time::error::Elapsed) -> End {
        End::Stalled
    }
}

/// Serves one connection until the client closes it, or until the request in flight is answered once we are
/// stopping.
pub(crate) async fn converse<R, W>(
    gateway: &Arc<Gateway>,
    reader: R,
    writer: W,
    peer: Peer,
    mut stopping: watch::Receiver<bool>,
) where
    R: AsyncBufRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send,
{
    let welcome = is_welcome(gateway, &peer);
    if welcome {
        crowd::recognized();
    }
    let mut talk = Talk {
        gateway,
        peer,
        welcome,
        reader,
        writer,
        buffer: Vec::new(),
        unread: 0,
    };
    let mut greeted = false;
    loop {
        let end = async {
            match greeted {
                // Clients survive it: what they cannot read or store now, they compile or leave.
                true => drop(stopping.wait_for(|stopping| *stopping).await),
                false => a_moment_after(&mut stopping).await,
            }
        };
        let length = tokio::select! {
            biased;
            length = talk.next_frame() => length,
            () = end => return,
        };
        greeted = true;
        let _working = crowd::works();
        let outcome = match length {
            Ok(Some(length)) => talk.serve(length).await,
            Ok(None) => return,
            Err(end) => Err(end),
        };
        match outcome {
            Ok(true) => {}
            Ok(false) => return,
            // The client went away, as it may at any time.
            Err(End::Io(_)) => return,
            Err(end) => {
                return gateway.refuse(
                    "frame",
                    &peer,
                    &"a request of sccache's own protocol",
                    &end,
                );
            }
        }
    }
}

fn is_welcome(gateway: &Gateway, peer: &Peer) -> bool {
    match peer {
        Peer::Unix { .. } => true,
        Peer::Tcp { address, local } => {
            may_speak_ipc(&gateway.config.ipc, address.ip(), *local, default_gateways)
        }
    }
}

struct Talk<'a, R, W> {
    gateway: &'a Gateway,
    peer: Peer,
    welcome: bool,
    reader: R,
    writer: W,
    /// What of the current frame was read and is not used up: its head, then a piece of a put's data.
    buffer: Vec<u8>,
    /// Bytes of the current frame that were not read.
    unread: u64,
}

impl<R: AsyncBufRead + Unpin + Send, W: AsyncWrite + Unpin + Send> Talk<'_, R, W> {
    /// The length of the next frame; `None` when the client is done, or silent for too long.
    async fn next_frame(&mut self) -> Result<Option<u32>, End> {
        let idle = if self.welcome { IDLE } else { IDLE_STRANGER };
        match timeout(idle, self.reader.read_u32()).await {
            Ok(Ok(length)) => Ok(Some(length)),
            Ok(Err(_)) | Err(_) => Ok(None),
        }
    }

    /// Answers the request in a frame of `length` bytes. `false` ends the conversation.
    async fn serve(&mut self, length: u32) -> Result<bool, End> {
        let (started, _in_flight) = (Instant::now(), self.gateway.metrics.in_flight());
        if !self.welcome && length > LONGEST_REFUSED {
            return Err(End::TooLong(length));
        }
        let (request, taken) = self.head(length).await?;
        let (method, outcome) = match request {
            Request::Put { shelf, key, length } => {
                self.buffer.drain(..taken);
                ("put", self.put(shelf, &key, length).await)
            }
            _ if length > LONGEST => return Err(End::TooLong(length)),
            request => self.answer(request, length).await,
        };
        let code = outcome.as_ref().map_or("error", |(code, _)| *code);
        self.gateway
            .metrics
            .answered(Protocol::sccache, method, code, started.elapsed());
        outcome.map(|(_, goes_on)| goes_on)
    }

    /// Decodes the head of a frame. What was read beyond it, which is not much, stays in the buffer.
    async fn head(&mut self, length: u32) -> Result<(Request, usize), End> {
        self.buffer.clear();
        self.unread = u64::from(length);
        loop {
            if let Some(found) = frame::decode(length, &self.buffer)? {
                return Ok(found);
            }
            self.more(frame::LONGEST_HEAD - self.buffer.len()).await?;
        }
    }

    /// Reads up to `most` bytes of the frame into the buffer.
    async fn more(&mut self, most: usize) -> Result<(), End> {
        let wanted = usize::try_from(self.unread).unwrap_or(most).min(most);
        self.buffer.reserve_exact(wanted);
        let read = within(
            PROGRESS,
            (&mut self.reader)
                .take(wanted as u64)
                .read_buf(&mut self.buffer),
        )
        .await??;
        if read == 0 {
            return Err(End::Io(io::ErrorKind::UnexpectedEof.into()));
        }
        self.unread -= read as u64;
        Ok(())
    }

    /// Bytes of the frame that have arrived, at least one.
    async fn arrived(&mut self) -> Result<&[u8], End> {
        let unread = usize::try_from(self.unread).unwrap_or(usize::MAX);
        let bytes = within(PROGRESS, self.reader.fill_buf()).await??;
        if bytes.is_empty() {
            return Err(End::Io(io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(&bytes[..bytes.len().min(unread)])
    }

    fn take(&mut self, count: usize) {
        self.reader.consume(count);
        self.unread -= count as u64;
    }

    /// Throws the rest of the frame away: the client listens only after it has sent everything.
    async fn skip(&mut self) -> Result<(), End> {
        self.buffer = Vec::new();
        while self.unread > 0 {
            let count = self.arrived().await?.len();
            self.take(count);
        }
        Ok(())
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), End> {
        for piece in bytes.chunks(PIECE) {
            within(PROGRESS, self.writer.write_all(piece)).await??;
        }
        within(PROGRESS, self.writer.flush()).await??;
        Ok(())
    }

    async fn send_both(&mut self, head: &[u8], body: &[u8]) -> Result<(), End> {
        write_both(&mut self.writer, head, body, PROGRESS).await
    }

    /// Everything but puts: the name for the metrics, then how it went and whether to go on.
    async fn answer(
        &mut self,
        request: Request,
        length: u32,
    ) -> (&'static str, Result<(&'static str, bool), End>) {
        match request {
            Request::RecordStats => return ("record_stats", self.record_stats(length).await),
            Request::Compile => return ("compile", self.compile(length).await),
            Request::ZeroStats | Request::GetStats | Request::DistStatus if self.welcome => {
                return ("stats", self.relay_stats(length).await);
            }
            _ => {}
        }
        // All that is left of the others is what a client of a later version may have added.
        if let Err(end) = self.skip().await {
            return ("other", Err(end));
        }
        match request {
            Request::Handshake => ("handshake", self.handshake().await),
            Request::GetPath => (
                "get_path",
                self.send(&frame::no_paths()).await.map(|()| ("ok", true)),
            ),
            Request::Get { shelf, key } => ("get", self.get(shelf, &key).await),
            Request::ZeroStats | Request::GetStats | Request::DistStatus => {
                self.advise_policy();
                ("stats", self.refusal().await)
            }
            Request::Shutdown => {
                let mend = "clients cannot stop the shared cache; stop the container instead";
                self.gateway
                    .refuse("shutdown", &self.peer, &"Shutdown", &mend);
                ("shutdown", self.refusal().await)
            }
            // Served while they arrive, see above and `serve`.
            Request::RecordStats | Request::Compile | Request::Put { .. } => {
                ("other", Ok(("error", false)))
            }
        }
    }

    async fn refusal(&mut self) -> Result<(&'static str, bool), End> {
        self.send(&frame::refusal()).await?;
        Ok(("refused", true))
    }

    /// Direct mode is on for what it does to keys: with it the line markers of the preprocessed text are part of a key
    /// of C and C++, as they are for a client with a disk level, and without it an object may have the line numbers of
    /// another source in its debug information. Its entries are not kept: they name the headers that one client has
    /// found and not those that it looked for in vain, so that another client would be given an object made of other
    /// headers than its own.
    async fn handshake(&mut self) -> Result<(&'static str, bool), End> {
        if !self.welcome {
            self.advise_policy();
        }
        let handshake = Handshake {
            location: "sccache-dock",
            read_only: !self.welcome,
            direct_mode: self.welcome,
            max_size: self.gateway.config.budget_bytes,
        };
        self.send(&handshake.encode()).await?;
        Ok(("ok", true))
    }

    async fn get(&mut self, shelf: Shelf, text: &str) -> Result<(&'static str, bool), End> {
        let miss = frame::miss(shelf);
        let blob = match (self.welcome, Key::for_sccache(text)) {
            (false, _) => {
                self.send(&miss).await?;
                return Ok(("refused", true));
            }
            (true, _) if shelf == Shelf::Preprocessor => {
                self.send(&miss).await?;
                return Ok(("ok", true));
            }
            (true, Err(cause)) => {
                self.gateway
                    .refuse("key", &self.peer, &format!("get {text:?}"), &cause);
                self.send(&miss).await?;
                return Ok(("error", true));
            }
            (true, Ok(key)) => (self.gateway.blob(&key).await, key),
        };
        let (mut blob, head) = match blob {
            (Ok(blob), key) => match frame::hit(shelf, blob.length) {
                Some(head) => {
                    self.gateway
                        .metrics
                        .namespace(key.namespace())
                        .hit(blob.length);
                    self.gateway.metrics.found(Protocol::sccache);
                    (blob, head)
                }
                None => {
                    let cause =
                        "the blob is too long for this protocol; the WebDAV lane can read it";
                    self.gateway
                        .refuse("too_large", &self.peer, &format!("get {text:?}"), &cause);
                    self.send(&miss).await?;
                    return Ok(("error", true));
                }
            },
            (Err(fault), key) => {
                // A client treats an error like a miss, but counts it as a fault of the cache: so do we.
                let missing = matches!(fault, Fault::Store(store::Error::Missing));
                if missing {
                    self.gateway.missed(&key, Protocol::sccache);
                } else {
                    self.gateway
                        .refuse("fault", &self.peer, &format!("get {text:?}"), &fault);
                }
                self.send(&miss).await?;
                return Ok((if missing { "miss" } else { "error" }, true));
            }
        };
        self.gateway.metrics.sent(Protocol::sccache, blob.length);
        // The head and a short blob are one packet.
        let first = blob.next().await.transpose().map_err(End::Blob)?;
        let first = first.unwrap_or_default();
        self.send_both(&head, &first).await?;
        while let Some(piece) = blob.next().await {
            self.send_both(&piece.map_err(End::Blob)?, &[]).await?;
        }
        within(PROGRESS, self.writer.flush()).await??;
        Ok(("hit", true))
    }

    /// Takes `length` bytes of data into the store. Whatever goes wrong there, the frame is read to its end:
    /// the client listens only after it has sent everything.
    async fn put(
        &mut self,
        shelf: Shelf,
        text: &str,
        length: u64,
    ) -> Result<(&'static str, bool), End> {
        let outcome = match (self.welcome, Key::for_sccache(text)) {
            (false, _) => {
                Err("this peer may not use the cache by this protocol (SCCACHE_IPC)".to_owned())
            }
            (true, _) if shelf == Shelf::Preprocessor => Ok(()),
            (true, Err(cause)) => Err(cause.to_string()),
            (true, Ok(key)) => self
                .store(&key, length)
                .await?
                .map_err(|fault| fault.to_string()),
        };
        self.skip().await?;
        let Err(cause) = outcome else {
            self.send(&frame::stored(shelf, Ok(()))).await?;
            return Ok(("ok", true));
        };
        if self.welcome {
            self.gateway
                .refuse("put", &self.peer, &format!("put {text:?}"), &cause);
        }
        self.send(&frame::stored(shelf, Err(&cause))).await?;
        Ok(("error", true))
    }

    /// The outer error ends the conversation, the inner one is the store's.
    async fn store(&mut self, key: &Key, length: u64) -> Result<Result<(), Fault>, End> {
        let by = match &self.peer {
            Peer::Tcp { .. } => WrittenBy::new(store::Lane::Ipc, None),
            Peer::Unix { uid, .. } => {
                WrittenBy::new(store::Lane::Socket, Some(&format!("uid={uid}")))
            }
        };
        let mut upload = match self.gateway.disk.put(key, Some(length), by).await {
            Ok(upload) => upload,
            Err(fault) => return Ok(Err(fault)),
        };
        while let Some(piece) = self.piece().await? {
            self.gateway
                .metrics
                .received(Protocol::sccache, piece.len() as u64);
            if let Err(fault) = upload.push(&piece).await {
                return Ok(Err(fault));
            }
        }
        let stored = upload.finish().await;
        if stored.is_ok() {
            self.gateway.pass_on(key);
            self.gateway
                .metrics
                .namespace(key.namespace())
                .write(length);
        }
        Ok(stored.map(drop))
    }

    /// The next piece of the data of a put; `None` at its end.
    async fn piece(&mut self) -> Result<Option<Vec<u8>>, End> {
        if self.buffer.is_empty() {
            if self.unread == 0 {
                return Ok(None);
            }
            self.more(PIECE).await?;
        }
        Ok(Some(std::mem::take(&mut self.buffer)))
    }

    /// A client's statistics go to the server, if it is there. They are a courtesy: the client is thanked
    /// in any case.
    async fn record_stats(&mut self, length: u32) -> Result<(&'static str, bool), End> {
        let relayed = if self.welcome {
            self.relay(length).await?
        } else {
            self.skip().await?;
            Ok(Vec::new())
        };
        if let Err(cause) = &relayed {
            let message = format!(
                "cannot relay RecordStats peer={}: the sccache server: {cause}",
                self.peer
            );
            self.gateway.warnings.warn(ADVICE, "RecordStats", &message);
        }
        self.send(&frame::stats_recorded()).await?;
        Ok((if relayed.is_ok() { "ok" } else { "error" }, true))
    }

    async fn relay_stats(&mut self, length: u32) -> Result<(&'static str, bool), End> {
        match self.relay(length).await? {
            Ok(response) => {
                let length = u32::try_from(response.len()).unwrap_or(u32::MAX);
                self.send(&[&length.to_be_bytes()[..], &response].concat())
                    .await?;
                Ok(("ok", true))
            }
            Err(cause) => {
                let cause = format!("the sccache server does not answer: {cause}");
                self.gateway
                    .refuse("relay", &self.peer, &"a request for statistics", &cause);
                Ok(("error", false))
            }
        }
    }

    /// Asks the sccache server what the client asked, on a connection of its own. The outer error is the client's, the
    /// inner one the server's.
    async fn relay(&mut self, length: u32) -> Result<io::Result<Vec<u8>>, End> {
        let mut server = match self.pass_on(length).await? {
            Ok(server) => server,
            Err(cause) => return Ok(Err(cause)),
        };
        let answer = async {
            let length = server.read_u32().await?;
            if length > LONGEST_RESPONSE {
                return Err(io::Error::other(format!(
                    "a response of {length} bytes is too long"
                )));
            }
            let mut response = vec![0; length as usize];
            server.read_exact(&mut response).await?;
            Ok(response)
        };
        Ok(in_time(answer).await)
    }

    /// Hands the frame to the sccache server as it arrives. Whatever goes wrong there, the frame is read to its end.
    async fn pass_on(&mut self, length: u32) -> Result<io::Result<UnixStream>, End> {
        let passed = self.copy_to_server(length).await?;
        if passed.is_err() {
            self.skip().await?;
        }
        Ok(passed)
    }

    async fn copy_to_server(&mut self, length: u32) -> Result<io::Result<UnixStream>, End> {
        let head = [&length.to_be_bytes()[..], &std::mem::take(&mut self.buffer)].concat();
        let connect = async {
            let mut server = UnixStream::connect(&self.gateway.config.server_socket).await?;
            server.write_all(&head).await?;
            Ok(server)
        };
        let mut server = match in_time(connect).await {
            Ok(server) => server,
            Err(cause) => return Ok(Err(cause)),
        };
        while self.unread > 0 {
            let piece = self.arrived().await?;
            let count = piece.len();
            if let Err(cause) = in_time(server.write_all(piece)).await {
                return Ok(Err(cause));
            }
            self.take(count);
        }
        Ok(Ok(server))
    }

    /// A client with default settings wants the server to compile for it.
    async fn compile(&mut self, length: u32) -> Result<(&'static str, bool), End> {
        let origin = self.peer.origin();
        if is_beside_us(&self.peer) {
            match self.pass_on(length).await? {
                Ok(mut server) => {
                    let (mut answers, mut requests) = server.split();
                    // The server watches the connection: when the client goes, its compile is ended.
                    tokio::select! {
                        _ = tokio::io::copy(&mut self.reader, &mut requests) => {}
                        _ = relay_responses(&mut answers, &mut self.writer) => {}
                    }
                    return Ok(("relayed", false));
                }
                Err(cause) => {
                    let message = format!(
                        "client compiles without cache peer={}: the sccache server does not answer: {cause}",
                        self.peer
                    );
                    self.gateway
                        .warnings
                        .warn(ADVICE, &format!("server for {origin}"), &message);
                }
            }
        } else if !self.welcome {
            self.advise_policy();
        } else {
            let message = format!(
                "client compiles without cache peer={}: it has sccache's default settings, which ask the server \
                 to compile; set SCCACHE_CLIENT_SIDE=1 (sccache 0.17 or newer) and unset SCCACHE_LOG there, or use \
                 what `sccache-dock client-env --lane webdav` prints, which every version knows",
                self.peer
            );
            self.gateway
                .warnings
                .warn(ADVICE, &format!("compile from {origin}"), &message);
        }
        self.skip().await?;
        self.send(&frame::unhandled_compile()).await?;
        Ok(("unhandled", true))
    }

    fn advise_policy(&self) {
        let message = format!(
            "client compiles without cache peer={}: it may not use sccache's own protocol, which knows no \
             password; allow its address with SCCACHE_IPC, or let it use WebDAV with a token",
            self.peer
        );
        self.gateway.warnings.warn(
            ADVICE,
            &format!("policy for {}", self.peer.origin()),
            &message,
        );
    }
}

/// Passes the server's responses on, all but the early notices of a finished `.rmeta`. They are a courtesy to Cargo,
/// since the last response repeats them, and an older client takes one for an error and starts its own
/// compiler beside the server's, on the same files.
async fn relay_responses(
    server: &mut (impl AsyncRead + Unpin),
    client: &mut (impl AsyncWrite + Unpin),
) -> io::Result<()> {
    loop {
        let length = u64::from(server.read_u32().await?);
        let mut head = Vec::new();
        let tag = length.min(4);
        (&mut *server).take(tag).read_to_end(&mut head).await?;
        let mut rest = (&mut *server).take(length - tag);
        if frame::is_notice(&head) {
            tokio::io::copy(&mut rest, &mut tokio::io::sink()).await?;
        } else {
            client
                .write_u32(u32::try_from(length).unwrap_or(u32::MAX))
                .await?;
            client.write_all(&head).await?;
            tokio::io::copy(&mut rest, client).await?;
            client.flush().await?;
        }
    }
}

/// The sccache server has [`RELAY`] for each of its steps.
async fn in_time<T>(step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let step = timeout(RELAY, step).await;
    step.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Does the client live where our sccache server lives, seeing the same files, as the same user? For another user,
/// root too, the server may lack the right to enter the folders, and a server that cannot look at the compiler
/// leaves the client waiting for ever.
fn is_beside_us(peer: &Peer) -> bool {
    match peer {
        Peer::Tcp { .. } => false,
        Peer::Unix { uid, pid } => *pid > 0 && *uid == nix::unistd::geteuid().as_raw(),
    }
}
