//! What a build needs, brought ahead of its requests: for a gateway that serves one build.
//!
//! The upstream, another gateway, sends a list of what the same build needed the last time and then all of it in one
//! stream, in the order of need, while the build already runs. A request for what comes next in the stream waits for
//! it, so that nothing comes twice; what is further back is fetched at once.

use super::url::client;
use super::{Error, lock};
use crate::contract::gateway_config::{Ahead as Config, Upstream};
use crate::contract::key::Key;
use crate::explain::protocol::Prefetched;
use crate::gateway::disk::Disk;
use crate::store::{self, WrittenBy};
use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use reqwest::{Response, header};
use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tracing::{debug, info};

/// How long a request waits for the list: about as long as a request of its own would take.
const LIST: Duration = Duration::from_millis(500);
/// The longest list, in bytes.
const LONGEST_LIST: u64 = 16 << 20;
/// How many entries further on in the stream are waited for.
const NEAR: usize = 16;
/// For how long the stream may stand still before requests no longer wait for it.
const STALL: Duration = Duration::from_secs(2);

/// How far the stream is.
#[derive(Debug, Clone, Copy, Default)]
struct Progress {
    listed: bool,
    /// Place of the entry that comes now, or next.
    next: usize,
    ended: bool,
}

#[derive(Debug)]
struct Entry {
    /// As the upstream calls it.
    name: Box<str>,
    place: usize,
    /// Of its body, when it has come.
    bytes: Option<u64>,
    /// When it was first asked for.
    asked: Option<Duration>,
    /// A request fetches it by itself.
    elsewhere: bool,
}

/// What comes ahead.
#[derive(Debug)]
pub(super) struct Ahead {
    folder: String,
    began: Instant,
    progress: watch::Sender<Progress>,
    entries: Mutex<HashMap<Key, Entry>>,
}

impl Ahead {
    /// Starts to take the stream.
    pub(super) fn start(
        config: &Config,
        upstream: &Upstream,
        disk: Disk,
    ) -> Result<Arc<Ahead>, Error> {
        let ahead = Arc::new(Ahead {
            folder: config.folder.clone(),
            began: Instant::now(),
            progress: watch::Sender::default(),
            entries: Mutex::default(),
        });
        let url = upstream.url.reveal().trim_end_matches('/');
        let mut request = client(upstream)?
            .post(format!("{url}/api/prefetch"))
            .header(header::CONTENT_TYPE, "application/json")
            .body(config.request.clone());
        if let Some(token) = &upstream.token {
            request = request.bearer_auth(token.reveal());
        }
        let taking = Arc::clone(&ahead);
        tokio::spawn(async move {
            if let Err(cause) = taking.take(request, &disk).await {
                info!("nothing more comes ahead: {cause}");
            }
            taking.progress.send_modify(|it| it.ended = true);
        });
        Ok(ahead)
    }

    /// A client has asked for a blob.
    pub(super) fn asked(&self, key: &Key) {
        if let Some(entry) = lock(&self.entries).get_mut(key) {
            entry.asked.get_or_insert_with(|| self.began.elapsed());
        }
    }

    /// Whether the blob has come. Waits for it, where it is soon its turn.
    pub(super) async fn brings(&self, key: &Key) -> bool {
        let mut progress = self.progress.subscribe();
        let listed = progress.wait_for(|it| it.listed || it.ended);
        // Without the list, nobody knows.
        let _ = timeout(LIST, listed).await;
        self.asked(key);
        let mut moves = true;
        loop {
            let now = *progress.borrow_and_update();
            {
                let mut entries = lock(&self.entries);
                let Some(entry) = entries.get_mut(key) else {
                    return false;
                };
                if entry.bytes.is_some() {
                    return true;
                }
                let is_near = (now.next..=now.next + NEAR).contains(&entry.place);
                if !moves || now.ended || !is_near {
                    entry.elsewhere = true;
                    return false;
                }
            }
            moves = matches!(timeout(STALL, progress.changed()).await, Ok(Ok(())));
        }
    }

    /// Ends the stream, and gives what was asked for of that which has come; `None` if nothing has.
    pub(super) fn end(&self) -> Option<Prefetched> {
        self.progress.send_modify(|it| it.ended = true);
        let mut found = Prefetched::default();
        let mut used = Vec::new();
        let entries = std::mem::take(&mut *lock(&self.entries)).into_values();
        let mut entries: Vec<Entry> = entries.filter(|it| it.bytes.is_some()).collect();
        entries.sort_by_key(|entry| entry.place);
        for entry in entries {
            found.bytes += entry.bytes.unwrap_or(0);
            match entry.asked {
                Some(at) => used.push((at, entry.name.into_string())),
                None => found.unused.push(entry.name.into_string()),
            }
        }
        used.sort();
        for (at, name) in used {
            found
                .used_ms
                .push(u64::try_from(at.as_millis()).unwrap_or(u64::MAX));
            found.used.push(name);
        }
        let came = found.used.len() + found.unused.len();
        (came > 0).then_some(found)
    }

    async fn take(&self, request: reqwest::RequestBuilder, disk: &Disk) -> Result<(), Trouble> {
        let response = request.send().await?.error_for_status()?;
        let mut stream = Stream {
            response,
            buffer: BytesMut::new(),
        };
        while let Some((name, length)) = stream.head().await? {
            if self.progress.borrow().ended {
                return Ok(());
            }
            if name.is_empty() {
                self.note_list(&stream.whole(length).await?);
                continue;
            }
            let key = self.key(&name);
            let found = key.as_ref().and_then(|key| {
                let entries = lock(&self.entries);
                let entry = entries.get(key)?;
                Some((entry.place, entry.elsewhere))
            });
            if let Some((place, _)) = found {
                self.progress.send_modify(|it| it.next = place);
            }
            let wanted = key.filter(|_| found.is_some_and(|(_, elsewhere)| !elsewhere));
            let by = WrittenBy::new(store::Lane::Upstream, None);
            let mut upload = match &wanted {
                Some(key) => disk.put(key, Some(length), by).await.ok(),
                None => None,
            };
            let mut rest = length;
            while rest > 0 {
                let piece = stream.piece(rest).await?;
                rest -= piece.len() as u64;
                if let Some(open) = &mut upload
                    && let Err(cause) = open.push(&piece).await
                {
                    debug!("cannot keep {name}: {cause}");
                    upload = None;
                }
                // So that those who wait see that it moves.
                self.progress.send_modify(|_| {});
            }
            if let Some((upload, key)) = upload.zip(wanted) {
                match upload.finish().await {
                    Ok(_) => self.note_arrival(&key, length),
                    Err(cause) => debug!("cannot keep {name}: {cause}"),
                }
            }
            self.progress.send_modify(|it| it.next += 1);
        }
        Ok(())
    }

    fn note_list(&self, list: &[u8]) {
        let list = String::from_utf8_lossy(list);
        let mut entries = lock(&self.entries);
        for (place, name) in list.lines().enumerate() {
            if let Some(key) = self.key(name) {
                entries.entry(key).or_insert(Entry {
                    name: name.into(),
                    place,
                    bytes: None,
                    asked: None,
                    elsewhere: false,
                });
            }
        }
        drop(entries);
        self.progress.send_modify(|it| it.listed = true);
    }

    fn note_arrival(&self, key: &Key, length: u64) {
        if let Some(entry) = lock(&self.entries).get_mut(key) {
            entry.bytes = Some(length);
        }
    }

    /// By which the build asks for what the upstream calls so.
    fn key(&self, name: &str) -> Option<Key> {
        let digits = name.rsplit('/').next()?;
        let entry = Key::for_sccache(digits).ok()?;
        Key::parse(&format!("{}/{}", self.folder, entry.as_str())).ok()
    }
}

/// Why the stream has ended early.
#[derive(Debug)]
enum Trouble {
    Http(reqwest::Error),
    Form(io::Error),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trouble::Http(cause) => write!(f, "{cause}"),
            Trouble::Form(cause) => write!(f, "{cause}"),
        }
    }
}

impl From<reqwest::Error> for Trouble {
    fn from(cause: reqwest::Error) -> Trouble {
        Trouble::Http(cause)
    }
}

/// The answer to `/api/prefetch`, taken apart.
struct Stream {
    response: Response,
    buffer: BytesMut,
}

impl Stream {
    /// Reads until so many bytes are there, or none comes any more.
    async fn fill(&mut self, bytes: usize) -> Result<bool, Trouble> {
        while self.buffer.len() < bytes {
            match self.response.chunk().await? {
                Some(chunk) if self.buffer.is_empty() => self.buffer = chunk.into(),
                Some(chunk) => self.buffer.extend_from_slice(&chunk),
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    async fn need(&mut self, bytes: usize) -> Result<Bytes, Trouble> {
        match self.fill(bytes).await? {
            true => Ok(self.buffer.split_to(bytes).freeze()),
            false => Err(Trouble::Form(io::ErrorKind::UnexpectedEof.into())),
        }
    }

    /// Name and length of the next entry; `None` at the end.
    async fn head(&mut self) -> Result<Option<(String, u64)>, Trouble> {
        if !self.fill(1).await? {
            return Ok(None);
        }
        let number = |bytes: &[u8]| {
            bytes
                .iter()
                .fold(0, |sum, byte| sum << 8 | u64::from(*byte))
        };
        let length = number(&self.need(2).await?);
        let name = self.need(usize::try_from(length).unwrap_or(0)).await?;
        let name = String::from_utf8_lossy(&name).into_owned();
        let length = number(&self.need(8).await?);
        Ok(Some((name, length)))
    }

    /// A short body.
    async fn whole(&mut self, length: u64) -> Result<Bytes, Trouble> {
        if length > LONGEST_LIST {
            return Err(Trouble::Form(io::Error::other("its list is too long")));
        }
        self.need(usize::try_from(length).unwrap_or(0)).await
    }

    /// Some of the `rest` of a body.
    async fn piece(&mut self, rest: u64) -> Result<Bytes, Trouble> {
        if !self.fill(1).await? {
            return Err(Trouble::Form(io::ErrorKind::UnexpectedEof.into()));
        }
        let rest = usize::try_from(rest).unwrap_or(usize::MAX);
        let length = self.buffer.len().min(rest);
        Ok(self.buffer.split_to(length).freeze())
    }
}
