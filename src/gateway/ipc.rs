//! sccache's own protocol: a client with `SCCACHE_CLIENT_SIDE=1` uses the cache with no server of its own.
//!
//! Storage requests are answered from the store. Statistics are relayed to the supervised sccache server,
//! which keeps them. A `Compile` request, sent by every client with default settings, could only work where
//! the server sees the client's files: inside our own container. Everywhere else the client is told to compile
//! by itself; a silent or closed connection would make its build hang or fail. The same rule makes the
//! answers to peers that the policy refuses: an empty cache that takes nothing, and a line in the log. And those to
//! requests whose layout is not known, as a later sccache may send them.
//!
//! No request is held in memory: heads are short, blobs go to the store and all else to the server as they arrive, and
//! what nobody wants is thrown away.
//!
//! Direct mode's entries are neither kept nor served, see [`Talk::handshake`].

pub mod frame;
mod relay;

use super::connection_limit;
use super::peer::Peer;
use crate::base::timeout::within;
use crate::contract::key::Key;
use crate::contract::sccache::{ANY_VERSION, OWN_PROTOCOL};
use crate::contract::tokens::Layers;
use crate::gateway::Gateway;
use crate::gateway::access::{Asked, Denied, Scope, default_gateways, is_podmans, may_speak_ipc};
use crate::gateway::audit::Event;
use crate::gateway::disk::DiskError;
use crate::gateway::journal::Did;
use crate::gateway::metrics::Protocol;
use crate::gateway::once::NotStored;
use crate::gateway::socket::write_both;
use crate::gateway::stopping::a_moment_after;
use crate::gateway::warnings::ADVICE;
use crate::store;
use crate::store::WrittenBy;
use frame::{EntryKind, Handshake, Malformed, Request};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

/// How long a client may be silent between two requests: it compiles meanwhile.
const IDLE: Duration = Duration::from_secs(2 * 60 * 60);
/// The same for a peer that the policy refuses.
const IDLE_UNAUTHENTICATED: Duration = Duration::from_secs(60);
/// How long after a stop the first request after the greeting may come: the client finds out about its compiler before.
const FIRST_REQUEST: Duration = Duration::from_secs(3);
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
        connection_limit::recognized();
    }
    let mut talk = Talk {
        gateway,
        peer,
        welcome,
        reader,
        writer,
        buffer: Vec::new(),
        unread: 0,
        stage: Stage::New,
    };
    loop {
        let stage = talk.stage;
        let end = async {
            match stage {
                Stage::New => a_moment_after(&mut stopping).await,
                Stage::Greeted => {
                    let _ = stopping.wait_for(|stopping| *stopping).await;
                    sleep(FIRST_REQUEST).await;
                }
                // Clients survive it: what they cannot read or store now, they compile or leave.
                Stage::Talking => drop(stopping.wait_for(|stopping| *stopping).await),
            }
        };
        let length = tokio::select! {
            biased;
            length = talk.next_frame() => length,
            () = end => return,
        };
        let _working = connection_limit::works();
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
                return gateway.refusals.refuse(
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
            let (ipc, podmans) = (&gateway.config.ipc, is_podmans());
            may_speak_ipc(ipc, address.ip(), *local, podmans, default_gateways)
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
    stage: Stage,
}

/// What of the known layout has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    New,
    /// The greeting alone. A compile of C fails if the request after it is not answered: direct mode takes no error.
    Greeted,
    Talking,
}

impl<R: AsyncBufRead + Unpin + Send, W: AsyncWrite + Unpin + Send> Talk<'_, R, W> {
    /// The length of the next frame; `None` when the client is done, or silent for too long.
    async fn next_frame(&mut self) -> Result<Option<u32>, End> {
        let idle = if self.welcome {
            IDLE
        } else {
            IDLE_UNAUTHENTICATED
        };
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
        let head = self.head(length).await?;
        self.stage = match &head {
            Ok((Request::Handshake, _)) => Stage::Greeted,
            Ok(_) => Stage::Talking,
            Err(_) => self.stage,
        };
        let (method, outcome) = match head {
            Ok((Request::Put { kind, key, length }, taken)) => {
                self.buffer.drain(..taken);
                ("put", self.put(kind, &key, length).await)
            }
            _ if length > LONGEST => return Err(End::TooLong(length)),
            Ok((request, _)) => self.answer(request, length).await,
            Err(cause) => ("other", self.unknown(length, &cause).await),
        };
        let code = outcome.as_ref().map_or("error", |(code, _)| *code);
        self.gateway
            .metrics
            .answered(Protocol::sccache, method, code, started.elapsed());
        outcome.map(|(_, goes_on)| goes_on)
    }

    /// Decodes the head of a frame. What was read beyond it, which is not much, stays in the buffer.
    async fn head(&mut self, length: u32) -> Result<Result<(Request, usize), Malformed>, End> {
        self.buffer.clear();
        self.unread = u64::from(length);
        loop {
            if let Some(found) = frame::decode(length, &self.buffer).transpose() {
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
            Request::Get { kind, key } => ("get", self.get(kind, &key).await),
            Request::ZeroStats | Request::GetStats | Request::DistStatus => {
                self.advise_policy();
                ("stats", self.refusal().await)
            }
            Request::Shutdown => {
                let hint = "clients cannot stop the shared cache; stop the container instead";
                self.gateway
                    .refusals
                    .refuse("shutdown", &self.peer, &"Shutdown", &hint);
                ("shutdown", self.refusal().await)
            }
            // Served while they arrive, see above and `serve`.
            Request::RecordStats | Request::Compile | Request::Put { .. } => {
                ("other", Ok(("error", false)))
            }
        }
    }

    /// A request as a later sccache may send it: its sender must not wait, and should not fail.
    async fn unknown(
        &mut self,
        length: u32,
        cause: &Malformed,
    ) -> Result<(&'static str, bool), End> {
        let (oldest, newest) = (OWN_PROTOCOL.start(), OWN_PROTOCOL.end());
        let known = format!(
            "known is that of sccache {oldest} to {newest}; use what `sccache-dock client-env {ANY_VERSION}` \
             prints, which works with every version"
        );
        if self.welcome {
            let message = format!(
                "client compiles without cache peer={}: its request of {length} bytes in sccache's own protocol has a \
                 layout that is not known ({cause}): {known}",
                self.peer
            );
            let kind = format!("layout from {}", self.peer.origin());
            self.gateway.refusals.warnings.warn(ADVICE, &kind, &message);
        } else {
            self.advise_policy();
        }
        let head = std::mem::take(&mut self.buffer);
        self.skip().await?;
        let advice =
            format!("sccache-dock does not know this protocol of a newer sccache: {known}");
        let is_first = self.stage == Stage::New;
        let answer = frame::answer_to_unknown(length, &head, is_first, &advice);
        self.send(&answer).await?;
        Ok(("refused", true))
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
            read_only: !self.welcome || self.layers().write.is_none(),
            direct_mode: self.welcome,
            max_size: self.gateway.config.budget_bytes,
        };
        self.send(&handshake.encode()).await?;
        Ok(("ok", true))
    }

    async fn get(&mut self, kind: EntryKind, text: &str) -> Result<(&'static str, bool), End> {
        let miss = frame::miss(kind);
        let keys = match (self.welcome, self.keys(text)) {
            (false, _) => {
                self.send(&miss).await?;
                return Ok(("refused", true));
            }
            (true, _) if kind == EntryKind::Preprocessor => {
                self.send(&miss).await?;
                return Ok(("ok", true));
            }
            (true, Err(cause)) => {
                self.gateway
                    .refusals
                    .refuse("key", &self.peer, &format!("get {text:?}"), &cause);
                self.send(&miss).await?;
                return Ok(("error", true));
            }
            (true, Ok(keys)) => keys.read,
        };
        let (mut blob, head) = match self.gateway.blob(&keys).await {
            Ok((key, blob)) => match frame::hit(kind, blob.length) {
                Some(head) => {
                    self.gateway.of_namespace(key).hit(blob.length);
                    self.gateway.metrics.found(Protocol::sccache);
                    let did = Did::Hit(blob.length);
                    self.gateway.note(&self.peer, None, key, did);
                    (blob, head)
                }
                None => {
                    let cause =
                        "the blob is too long for this protocol; the WebDAV lane can read it";
                    self.gateway.refusals.refuse(
                        "too_large",
                        &self.peer,
                        &format!("get {text:?}"),
                        &cause,
                    );
                    self.send(&miss).await?;
                    return Ok(("error", true));
                }
            },
            Err(fault) => {
                // A client treats an error like a miss, but counts it as a fault of the cache: so do we.
                let missing = matches!(fault, DiskError::Store(store::Error::Missing));
                if missing {
                    self.gateway.missed(&keys, Protocol::sccache);
                    if let Some(key) = keys.first() {
                        self.gateway.note(&self.peer, None, key, Did::Miss);
                    }
                } else {
                    self.gateway.refusals.refuse(
                        "fault",
                        &self.peer,
                        &format!("get {text:?}"),
                        &fault,
                    );
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
        kind: EntryKind,
        text: &str,
        length: u64,
    ) -> Result<(&'static str, bool), End> {
        let outcome = match (self.welcome, self.keys(text)) {
            (false, _) => {
                Err("this peer may not use the cache by this protocol (SCCACHE_IPC)".to_owned())
            }
            (true, _) if kind == EntryKind::Preprocessor => Ok(()),
            (true, Err(cause)) => Err(cause.to_string()),
            (true, Ok(keys)) => self.store(&keys, length).await?,
        };
        self.skip().await?;
        let Err(cause) = outcome else {
            self.send(&frame::stored(kind, Ok(()))).await?;
            return Ok(("ok", true));
        };
        if self.welcome {
            self.gateway
                .refusals
                .refuse("put", &self.peer, &format!("put {text:?}"), &cause);
        }
        self.send(&frame::stored(kind, Err(&cause))).await?;
        Ok(("error", true))
    }

    fn layers(&self) -> Layers {
        self.gateway.identity.access.local(match self.peer {
            Peer::Unix { uid, .. } => Some(uid),
            Peer::Tcp { .. } => None,
        })
    }

    /// What a key of the protocol means to this peer.
    fn keys(&self, text: &str) -> Result<Asked, Denied> {
        Scope::Layers(self.layers()).asked(Key::for_sccache(text)?.as_str())
    }

    /// The outer error ends the conversation, the inner one is the store's, or in words that nothing is written.
    async fn store(&mut self, keys: &Asked, length: u64) -> Result<Result<(), String>, End> {
        let Some(key) = &keys.write else {
            return Ok(Err("this peer only reads".to_owned()));
        };
        let by = match &self.peer {
            Peer::Tcp { .. } => WrittenBy::new(store::Lane::Ipc, None),
            Peer::Unix { uid, .. } => {
                WrittenBy::new(store::Lane::Socket, Some(&format!("uid={uid}")))
            }
        };
        let opened = self.gateway.disk.put(key, Some(length), by.clone());
        let mut upload = match opened.await {
            Ok(upload) => upload,
            Err(fault) => return Ok(Err(fault.to_string())),
        };
        while let Some(piece) = self.piece().await? {
            self.gateway
                .metrics
                .received(Protocol::sccache, piece.len() as u64);
            if let Err(fault) = upload.push(&piece).await {
                return Ok(Err(fault.to_string()));
            }
        }
        let may_replace = self.layers().replace;
        let stored = self.gateway.finish(upload, key, &by, may_replace).await;
        if stored.is_ok() {
            self.gateway.pass_on(key, &keys.read, length).await;
            self.gateway.of_namespace(key).write(length);
        }
        let detail = stored.as_ref().err().map(ToString::to_string);
        let event = match &stored {
            Ok(_) => "write",
            Err(NotStored::Conflict(_)) => "conflict",
            Err(NotStored::Disk(_)) => "refused",
        };
        let event = Event {
            bytes: Some(length),
            detail: detail.as_deref().unwrap_or_default(),
            ..Event::of(event, by.as_str(), key)
        };
        self.gateway.audit.note(&self.peer, event);
        let did = match stored {
            Ok(_) => Did::Write(length),
            Err(_) => Did::Refused("put"),
        };
        self.gateway.note(&self.peer, None, key, did);
        Ok(stored.map(drop).map_err(|fault| fault.to_string()))
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

    fn advise_policy(&self) {
        let message = format!(
            "client compiles without cache peer={}: it may not use sccache's own protocol, which has no \
             password; allow its address with SCCACHE_IPC, or let it use WebDAV with a token",
            self.peer
        );
        self.gateway.refusals.warnings.warn(
            ADVICE,
            &format!("policy for {}", self.peer.origin()),
            &message,
        );
    }
}
