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
/// How long a client may take to begin with an upload that it was asked for, and the next one after an upload that failed.
const BEGINS: Duration = Duration::from_secs(20);
/// How long an upload may take before another client is asked too: the first one may never come to its end.
const ALONE: Duration = Duration::from_secs(120);
/// How long the next bytes may take to come.
const PAUSE: Duration = Duration::from_secs(30);
/// How long nobody is asked again for what the store has refused, which may be larger than the whole cache, or for what came
/// to nothing again and again.
const REFUSED: Duration = Duration::from_secs(60);
/// After so many uploads in a row that failed, the next one would too: all jobs would wait for it.
const FAILURES: u32 = 3;

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
    /// Those that are on their way, or are to come.
    awaited: HashMap<Toolchain, Uploads>,
    /// Those that the store has refused, or that did not come as a whole, and until when nobody is asked for them.
    refused: HashMap<Toolchain, Instant>,
}

/// What is known of one that is not here yet.
#[derive(Debug)]
struct Uploads {
    /// How many clients send it.
    running: usize,
    /// How many sent it in vain.
    failed: u32,
    /// Until when one is waited for that has not begun.
    begins: Instant,
    /// From when on another client is asked.
    next: Instant,
}

impl Uploads {
    fn is_on_its_way(&self, now: Instant) -> bool {
        self.running > 0 || now < self.begins
    }
}

impl State {
    /// What is known of the uploads of one that is not here. If nothing was, somebody was asked for it just now, or is to be
    /// asked next.
    fn uploads(&mut self, toolchain: &Toolchain, now: Instant) -> &mut Uploads {
        self.awaited.entry(toolchain.clone()).or_insert(Uploads {
            running: 0,
            failed: 0,
            begins: now + BEGINS,
            next: now,
        })
    }

    /// Nobody is asked for it, unless another one is on its way, which may come to a better end.
    fn refuse(&mut self, toolchain: &Toolchain, now: Instant) {
        let uploads = self.awaited.get(toolchain);
        if uploads.is_none_or(|uploads| uploads.running <= 1) {
            self.refused.insert(toolchain.clone(), now + REFUSED);
        }
    }

    fn is_refused(&mut self, toolchain: &Toolchain, now: Instant) -> bool {
        self.refused.retain(|_, until| now < *until);
        self.refused.contains_key(toolchain)
    }
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
        state.awaited.retain(|_, one| one.is_on_its_way(now));
        let uploads = state.uploads(toolchain, now);
        if now < uploads.next {
            return false;
        }
        (uploads.begins, uploads.next) = (now + BEGINS, now + BEGINS);
        true
    }

    /// Whether the store has just refused it, or it failed too often: to send it again would be in vain.
    pub(super) fn is_refused(&self, toolchain: &Toolchain) -> bool {
        self.state().is_refused(toolchain, Instant::now())
    }

    /// Waits until the toolchain is here, or the store has refused it, or nobody sends it. After an upload that failed, the
    /// next client that asks for a builder is asked for it, and so this waits for that one too, a few times.
    pub(super) async fn wait_for(&self, toolchain: &Toolchain, deadline: Instant) -> bool {
        loop {
            let ended = self.ended.notified();
            if self.has(toolchain).await {
                return true;
            }
            let now = Instant::now();
            if now >= deadline {
                return false;
            }
            let until = {
                let mut state = self.state();
                let is_refused = state.is_refused(toolchain, now);
                // It was here when its client asked, and is not any more.
                let uploads = state.uploads(toolchain, now);
                match uploads.running {
                    0 if is_refused || now >= uploads.begins => return false,
                    0 => uploads.begins.min(deadline),
                    _ => deadline,
                }
            };
            let _ = timeout_at(until, ended).await;
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
        let upload = Upload::begin(self, toolchain);
        let taken = self.store(toolchain, body, most).await;
        let (mut state, now) = (self.state(), Instant::now());
        match &taken {
            Ok(_) => {
                state.here.insert(toolchain.clone(), now);
                state.awaited.remove(toolchain);
                state.refused.remove(toolchain);
            }
            Err(Fault::Store(_) | Fault::TooLarge(_)) => state.refuse(toolchain, now),
            Err(Fault::Mismatch | Fault::Slow | Fault::Cut(_)) => {
                let uploads = state.awaited.get_mut(toolchain);
                let failed = uploads.map_or(0, |uploads| {
                    uploads.failed += 1;
                    uploads.failed
                });
                if failed >= FAILURES {
                    state.refuse(toolchain, now);
                }
            }
        }
        drop(state);
        drop(upload);
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

/// An upload, which ends for those who wait for it when this is dropped, however it ended.
struct Upload<'a>(&'a Archives, &'a Toolchain);

impl Upload<'_> {
    fn begin<'a>(archives: &'a Archives, toolchain: &'a Toolchain) -> Upload<'a> {
        let (mut state, now) = (archives.state(), Instant::now());
        let uploads = state.uploads(toolchain, now);
        uploads.running += 1;
        uploads.next = now + ALONE;
        drop(state);
        Upload(archives, toolchain)
    }
}

impl Drop for Upload<'_> {
    fn drop(&mut self) {
        let (mut state, now) = (self.0.state(), Instant::now());
        if let Some(uploads) = state.awaited.get_mut(self.1) {
            uploads.running = uploads.running.saturating_sub(1);
            (uploads.begins, uploads.next) = (now + BEGINS, now);
        }
        drop(state);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Options, Store};
    use futures_util::stream;
    use http_body_util::{Full, StreamBody};
    use hyper::body::Frame;
    use std::pin::pin;
    use std::sync::Arc;
    use tokio::time::sleep;

    fn archives(folder: &std::path::Path) -> Archives {
        let options = Options {
            dir: folder.join("cache"),
            budget_bytes: 64 << 20,
            policies: Default::default(),
        };
        Archives::new(Disk::new(Store::open(options).unwrap()))
    }

    /// A body that ends before its end.
    fn cut(bytes: &'static [u8]) -> impl Body<Data = Bytes, Error = &'static str> + Unpin {
        let pieces = [Ok(Frame::data(Bytes::from_static(bytes))), Err("cut")];
        StreamBody::new(stream::iter(pieces))
    }

    fn far_away() -> Instant {
        Instant::now() + Duration::from_secs(600)
    }

    #[tokio::test]
    async fn upload_that_fails_sends_no_other_client_home() {
        let folder = tempfile::tempdir().unwrap();
        let archives = Arc::new(archives(folder.path()));
        let toolchain: Toolchain = name_of(&blake3::hash(b"compiler")).into();
        assert!(archives.ask_for(&toolchain));
        assert!(!archives.ask_for(&toolchain), "one is enough");
        let waits = {
            let (archives, toolchain) = (Arc::clone(&archives), toolchain.clone());
            tokio::spawn(async move { archives.wait_for(&toolchain, far_away()).await })
        };
        let taken = archives.take(&toolchain, &mut cut(b"comp"), 100).await;
        assert!(matches!(taken, Err(Fault::Cut(_))), "{taken:?}");
        assert!(archives.ask_for(&toolchain), "the next one is asked");
        let mut other = Full::new(Bytes::from_static(b"something else"));
        let taken = archives.take(&toolchain, &mut other, 100).await;
        assert!(matches!(taken, Err(Fault::Mismatch)), "{taken:?}");
        sleep(Duration::from_millis(50)).await;
        assert!(!waits.is_finished());
        assert!(archives.ask_for(&toolchain), "the next one is asked");
        assert!(!archives.ask_for(&toolchain));
        let mut whole = Full::new(Bytes::from_static(b"compiler"));
        archives.take(&toolchain, &mut whole, 100).await.unwrap();
        assert!(waits.await.unwrap());
    }

    #[tokio::test]
    async fn upload_that_fails_each_time_holds_no_jobs() {
        let folder = tempfile::tempdir().unwrap();
        let archives = archives(folder.path());
        let toolchain: Toolchain = name_of(&blake3::hash(b"compiler")).into();
        for failed in 1..=FAILURES {
            assert!(archives.ask_for(&toolchain));
            let taken = archives.take(&toolchain, &mut cut(b"comp"), 100).await;
            assert!(matches!(taken, Err(Fault::Cut(_))), "{taken:?}");
            assert_eq!(archives.is_refused(&toolchain), failed == FAILURES);
        }
        assert!(!archives.wait_for(&toolchain, far_away()).await);
        // A client that was asked before may still come.
        let mut whole = Full::new(Bytes::from_static(b"compiler"));
        archives.take(&toolchain, &mut whole, 100).await.unwrap();
        assert!(!archives.is_refused(&toolchain));
        assert!(archives.wait_for(&toolchain, far_away()).await);
    }

    #[tokio::test]
    async fn upload_that_fails_ends_no_other_of_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let archives = archives(folder.path());
        let toolchain: Toolchain = name_of(&blake3::hash(b"compiler")).into();
        let (end, ends) = tokio::sync::oneshot::channel::<()>();
        let last = stream::once(async {
            let _ = ends.await;
            Ok::<_, &str>(Frame::data(Bytes::from_static(b"compiler")))
        });
        let mut slow = StreamBody::new(Box::pin(last));
        let mut slow = pin!(archives.take(&toolchain, &mut slow, 100));
        // It has begun as soon as it waits for its body.
        while archives.state().awaited.is_empty() {
            assert!(futures_util::poll!(&mut slow).is_pending());
        }
        let mut waits = pin!(archives.wait_for(&toolchain, far_away()));
        let taken = archives.take(&toolchain, &mut cut(b"comp"), 100).await;
        assert!(matches!(taken, Err(Fault::Cut(_))), "{taken:?}");
        let mut large = Full::new(Bytes::from_static(b"compiler"));
        let taken = archives.take(&toolchain, &mut large, 7).await;
        assert!(matches!(taken, Err(Fault::TooLarge(7))), "{taken:?}");
        let running = archives.state().awaited[&toolchain].running;
        assert_eq!(running, 1);
        assert!(!archives.is_refused(&toolchain), "the first may come");
        let still = timeout(Duration::from_millis(200), &mut waits).await;
        assert!(still.is_err(), "{still:?}");
        end.send(()).unwrap();
        slow.await.unwrap();
        assert!(waits.await);
    }

    #[tokio::test]
    async fn what_the_store_refuses_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let archives = archives(folder.path());
        let toolchain: Toolchain = name_of(&blake3::hash(b"compiler")).into();
        assert!(archives.ask_for(&toolchain));
        let mut waits = pin!(archives.wait_for(&toolchain, far_away()));
        assert!(futures_util::poll!(&mut waits).is_pending());
        let mut large = Full::new(Bytes::from_static(b"compiler"));
        let taken = archives.take(&toolchain, &mut large, 7).await;
        assert!(matches!(taken, Err(Fault::TooLarge(7))), "{taken:?}");
        assert!(!waits.await);
    }
}
