//! Toolchains at the front: each is sent here once, and goes to builders from here.
//!
//! They lie in the cache's store, in the namespace `toolchains`, and so within its budget, quotas and pins. Whoever has a
//! token may write there; therefore an archive is compared with its name, a hash, each time before a builder sees a byte
//! of it. Every job that needs one marks it as used: those in use go last.

use super::elf;
use super::pool::Machine;
use super::queue::Toolchain;
use crate::contract::key::Key;
use crate::gateway::disk::{Disk, DiskError, Download};
use crate::store::WrittenBy;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Body;
use parking_lot::{Mutex, MutexGuard};
use std::collections::HashMap;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::warn;

/// The store's namespace of toolchains.
const NAMESPACE: &str = "toolchains";
/// So long what the store said of a toolchain is believed.
const FRESH: Duration = Duration::from_secs(30);
/// How long a client may take to begin with an upload that it was asked for.
const BEGINS: Duration = Duration::from_secs(20);
/// How long an upload may take: sccache's client gives up a request after 20 minutes.
const UPLOAD: Duration = Duration::from_secs(20 * 60);
/// How long the next bytes may take to come.
const PAUSE: Duration = Duration::from_secs(30);
/// How long nobody is asked again for what the store has refused: it may be larger than the whole cache.
const REFUSED: Duration = Duration::from_secs(60);

/// Why a toolchain is not here after its upload.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("what was sent is another archive than its name says")]
    Mismatch,
    #[error(
        "it has more than {} MiB, more than builders keep (SCCACHE_TOOLCHAIN_CACHE_SIZE)",
        .0 >> 20
    )]
    TooLarge(u64),
    #[error("nothing came for {} s", PAUSE.as_secs())]
    Slow,
    #[error("the connection ended: {0}")]
    Cut(String),
    #[error(
        "the store does not take it: {0} (hint: the cache keeps compilers too: is SCCACHE_CACHE_SIZE large enough, and is \
         there room on its disk?)"
    )]
    Store(String),
}

/// What is known of toolchains here.
#[derive(Debug)]
pub(super) struct Archives {
    disk: Disk,
    // Held for a look-up, never across I/O or an await.
    state: Mutex<State>,
    /// An upload has ended.
    ended: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Those that were here a moment ago.
    here: HashMap<Toolchain, Instant>,
    /// Those that a client was asked for, and until when it is waited for.
    awaited: HashMap<Toolchain, Instant>,
    /// Those that the store has refused, and until when nobody is asked for them.
    refused: HashMap<Toolchain, Instant>,
}

impl Archives {
    /// Of those in this store.
    pub(super) fn new(disk: Disk) -> Archives {
        Archives {
            disk,
            state: Mutex::default(),
            ended: Notify::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Whether the toolchain is here; marks it as used.
    pub(super) async fn has(&self, toolchain: &Toolchain) -> bool {
        let now = Instant::now();
        let fresh = |then: &Instant| now.duration_since(*then) < FRESH;
        if self.state().here.get(toolchain).is_some_and(fresh) {
            return true;
        }
        let Some(key) = key(toolchain) else {
            return false;
        };
        let missing = self.disk.use_all(vec![key]).await;
        let is_here = missing.is_ok_and(|missing| missing.is_empty());
        let mut state = self.state();
        state.here.retain(|_, then| fresh(then));
        if is_here {
            state.here.insert(toolchain.clone(), now);
        }
        is_here
    }

    /// Whether the next client is to send a toolchain that is not here: not while another one is about to.
    pub(super) fn ask_for(&self, toolchain: &Toolchain) -> bool {
        let now = Instant::now();
        let mut state = self.state();
        state.awaited.retain(|_, until| now < *until);
        if state.awaited.contains_key(toolchain) {
            return false;
        }
        state.awaited.insert(toolchain.clone(), now + BEGINS);
        true
    }

    /// Whether the store has just refused it: to send it again would be in vain.
    pub(super) fn is_refused(&self, toolchain: &Toolchain) -> bool {
        let now = Instant::now();
        let mut state = self.state();
        state.refused.retain(|_, until| now < *until);
        state.refused.contains_key(toolchain)
    }

    /// Waits until the toolchain is here, or nobody sends it any more.
    pub(super) async fn wait_for(&self, toolchain: &Toolchain, deadline: Instant) -> bool {
        loop {
            let ended = self.ended.notified();
            if self.has(toolchain).await {
                return true;
            }
            let until = self.state().awaited.get(toolchain).copied();
            let now = Instant::now();
            let Some(until) = until.filter(|until| now < *until && now < deadline) else {
                return false;
            };
            let _ = timeout_at(until.min(deadline), ended).await;
        }
    }

    /// Takes an upload of at most so many bytes.
    ///
    /// # Errors
    /// The toolchain is not here after it.
    pub(super) async fn take<B>(
        &self,
        toolchain: &Toolchain,
        body: &mut B,
        most: u64,
    ) -> Result<u64, Fault>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: std::fmt::Display,
    {
        let until = Instant::now() + UPLOAD;
        self.state().awaited.insert(toolchain.clone(), until);
        let awaited = Awaited(self, toolchain);
        let taken = self.store(toolchain, body, most).await;
        let (mut state, now) = (self.state(), Instant::now());
        match &taken {
            Ok(_) => {
                state.here.insert(toolchain.clone(), now);
            }
            Err(Fault::Store(_) | Fault::TooLarge(_)) => {
                state.refused.insert(toolchain.clone(), now + REFUSED);
            }
            Err(Fault::Mismatch | Fault::Slow | Fault::Cut(_)) => {}
        }
        drop(state);
        drop(awaited);
        taken
    }

    async fn store<B>(&self, toolchain: &Toolchain, body: &mut B, most: u64) -> Result<u64, Fault>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: std::fmt::Display,
    {
        if self.has(toolchain).await {
            // Somebody else was faster. What is not read to its end is sent in vain, and the answer is not seen.
            while let Some(frame) = next(body).await? {
                drop(frame);
            }
            return Ok(0);
        }
        let store = |fault: DiskError| Fault::Store(fault.to_string());
        let key = key(toolchain).ok_or(Fault::Mismatch)?;
        let by = WrittenBy::default();
        let mut upload = self.disk.put(&key, None, by).await.map_err(store)?;
        let mut hasher = blake3::Hasher::new();
        while let Some(piece) = next(body).await? {
            if upload.received() + piece.len() as u64 > most {
                return Err(Fault::TooLarge(most));
            }
            hasher.update(&piece);
            upload.push(&piece).await.map_err(store)?;
        }
        if name_of(&hasher.finalize()) != **toolchain {
            return Err(Fault::Mismatch);
        }
        let length = upload.received();
        upload.finish().await.map_err(store)?;
        Ok(length)
    }

    /// The archive, after it was compared with its name; what is another one is thrown away.
    pub(super) async fn open(&self, toolchain: &Toolchain) -> Option<Download> {
        let key = key(toolchain)?;
        let mut read = self.disk.get(&key).await.ok()?;
        let mut hasher = blake3::Hasher::new();
        while let Some(piece) = read.next().await {
            hasher.update(&piece.ok()?);
        }
        if name_of(&hasher.finalize()) != **toolchain {
            warn!("what the cache has as toolchain {toolchain:.8} is another archive: it goes");
            self.state().here.remove(toolchain);
            let _ = self.disk.delete(&key).await;
            return None;
        }
        self.disk.get(&key).await.ok()
    }
}

impl Archives {
    /// For which kind of processor a toolchain is, whose compiler is at this path.
    pub(super) async fn machine(&self, toolchain: &Toolchain, executable: &str) -> Option<Machine> {
        let mut read = self.disk.get(&key(toolchain)?).await.ok()?;
        let mut archive = elf::Archive::new();
        while let Some(piece) = read.next().await {
            let piece = piece.ok()?;
            let pushed = spawn_blocking(move || archive.push(&piece).map(|()| archive));
            archive = pushed.await.ok()?.ok()?;
        }
        archive.machine(executable)
    }
}

/// Ends an upload for those who wait for it, however it ended.
struct Awaited<'a>(&'a Archives, &'a Toolchain);

impl Drop for Awaited<'_> {
    fn drop(&mut self) {
        self.0.state().awaited.remove(self.1);
        self.0.ended.notify_waiters();
    }
}

async fn next<B>(body: &mut B) -> Result<Option<Bytes>, Fault>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    loop {
        let frame = timeout(PAUSE, body.frame()).await;
        match frame.map_err(|_| Fault::Slow)? {
            None => return Ok(None),
            Some(Err(cause)) => return Err(Fault::Cut(cause.to_string())),
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}

fn key(toolchain: &Toolchain) -> Option<Key> {
    Key::parse(&format!("{NAMESPACE}/{toolchain}")).ok()
}

/// The name that sccache makes of an archive's hash: the digits of each byte the other way round.
fn name_of(hash: &blake3::Hash) -> String {
    let bytes = hash.as_bytes().iter();
    bytes
        .map(|byte| format!("{:02x}", byte.rotate_left(4)))
        .collect()
}
