//! The store as asynchronous code sees it: blocking calls on threads that may block, in bounded number, for
//! bounded time, holding bounded memory.
//!
//! A body of up to [`SMALL`] bytes is written in one call; a longer one as its pieces come while the disk keeps pace
//! (`inline_writes.rs`), and else in pieces of [`CHUNK`] bytes.
//! Whoever finds no memory or no thread within [`PATIENCE`] is refused at once: a cache that makes builds
//! wait is worse than none.

mod download;
pub mod inline_writes;
mod upload;

use self::inline_writes::InlineWrites;
pub(crate) use self::inline_writes::threads;
use crate::base::timeout::within;
use crate::contract::key::Key;
use crate::gateway::zip;
use crate::store;
use crate::store::{
    Blob, Facts, Filter, Lost, Progress, Purged, Removal, Store, Usage, page_cache,
};
use bytes::Bytes;
pub use download::Download;
pub(crate) use download::FilePart;
use download::{Held, State};
use parking_lot::Mutex;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_blocking;
use tokio::time::timeout;
pub use upload::Upload;

/// Longest body that is held in memory whole.
const SMALL: usize = 256 << 10;
/// Longest body that is copied where the kernel has it in memory; longer ones go from there to the socket.
const INLINE: usize = 8 << 10;
/// Piece of a longer body on its way into the store, and longest body that is read whole by a thread that may block.
const CHUNK: usize = 256 << 10;
/// Piece of a longer body on its way to a client through memory: as many clients as there may be, each of which leaves a
/// piece standing, do not take all the memory.
const PIECE: usize = 64 << 10;
/// Distance of the pages of a file of which it is asked whether they are in memory.
const PROBE: usize = 128 << 10;
/// Memory that all bodies on their way may hold, in units of [`UNIT`].
const MEMORY_UNITS: usize = 4096;
const UNIT: usize = 64 << 10;
/// Store calls at one time.
const SLOTS: usize = 128;
/// Purges at one time; more wait.
const PURGES: usize = 4;
/// How long a request waits for memory or a thread.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long one store call may take.
const CALL: Duration = Duration::from_secs(10);

/// Why a request to the store failed.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The store's own answer.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// Too many requests at once.
    #[error("too many requests at once")]
    Overloaded,
    /// The disk did not answer in time.
    #[error("the disk did not answer within {} s", CALL.as_secs())]
    Stalled,
    /// What was put under the key of an sccache entry is no whole ZIP archive.
    #[error("the body is not a whole ZIP archive, as sccache's entries are")]
    NotZip,
}

/// Does the store take writes?
#[derive(Debug, Clone, PartialEq, Eq)]
enum Writable {
    Unknown,
    Yes,
    No(String),
}

/// The store and its limits. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Disk {
    store: Store,
    slots: Arc<Semaphore>,
    /// For calls that write blobs. More of them at a time only wait for each other in the file system.
    writers: Arc<Semaphore>,
    inline_writes: Arc<InlineWrites>,
    memory: Arc<Semaphore>,
    purges: Arc<Semaphore>,
    // A plain mutex: held for an assignment, never across I/O or an await.
    writable: Arc<Mutex<Writable>>,
}

impl Disk {
    /// Takes over the store.
    pub fn new(store: Store) -> Disk {
        Disk {
            store,
            slots: Arc::new(Semaphore::new(SLOTS)),
            writers: Arc::new(Semaphore::new(writers())),
            inline_writes: Arc::new(InlineWrites::new()),
            memory: Arc::new(Semaphore::new(MEMORY_UNITS)),
            purges: Arc::new(Semaphore::new(PURGES)),
            writable: Arc::new(Mutex::new(Writable::Unknown)),
        }
    }

    /// Figures of the store.
    pub fn usage(&self) -> Usage {
        self.store.usage()
    }

    /// How far the start's scan is; `None` when it has ended.
    pub fn scan(&self) -> Option<Progress> {
        self.store.scan()
    }

    /// Opens a blob for reading; a short one is read at once. What the kernel has in memory is served on the
    /// caller's thread, see `store/page_cache.rs`.
    pub async fn get(&self, key: &Key) -> Result<Download, DiskError> {
        let found = self.get_first(std::slice::from_ref(key)).await;
        found.map(|(_, blob)| blob)
    }

    /// The same for the first of these blobs that is there, with its key.
    pub(crate) async fn get_first<'a>(
        &self,
        mut keys: &'a [Key],
    ) -> Result<(&'a Key, Download), DiskError> {
        loop {
            let (place, resident) = self.store.get_resident(keys)?;
            let (before, rest) = keys.split_at(place + 1);
            let key = &before[place];
            match self.open(key, resident).await {
                // It has gone meanwhile, or the scan of the start has not come to it yet.
                Err(DiskError::Store(store::Error::Missing)) if !rest.is_empty() => keys = rest,
                opened => return Ok((key, opened?)),
            }
        }
    }

    async fn open(&self, key: &Key, resident: Option<Blob>) -> Result<Download, DiskError> {
        let is_resident = resident.is_some();
        let (mut blob, whole, permit) = match resident {
            Some(blob) => {
                let held = usize::try_from(blob.len).unwrap_or(PIECE).min(PIECE);
                let permit = self.memory(held).await?;
                let whole = if blob.len <= INLINE as u64 {
                    let mut body = vec![0; held];
                    let resident = page_cache::read(&blob.file, &mut body, 0);
                    resident.is_ok_and(|whole| whole).then_some(body)
                } else {
                    None
                };
                (blob, whole, permit)
            }
            None => {
                let mut permit = self.memory(CHUNK).await?;
                let asked = key.clone();
                let (blob, whole) = self
                    .call(move |store| {
                        let blob = store.get(&asked)?;
                        if blob.len > CHUNK as u64 {
                            return Ok((blob, None));
                        }
                        let mut body = vec![0; usize::try_from(blob.len).unwrap_or(CHUNK)];
                        match blob.file.read_exact_at(&mut body, 0) {
                            Ok(()) => Ok((blob, Some(body))),
                            Err(cause) => Err(store.distrust(&asked, cause)),
                        }
                    })
                    .await?;
                let held = whole.as_ref().map_or(PIECE, Vec::len);
                let spare = permit.num_permits().saturating_sub(units(held));
                drop(permit.split(spare));
                (blob, whole, permit)
            }
        };
        let state = match whole {
            Some(body) => State::Whole(Some(Bytes::from_owner(Held {
                body,
                _permit: permit,
            }))),
            None => State::Pieces {
                file: blob.file,
                unchecked: blob.unchecked.take(),
                report: self.store.report(key),
                end_is_resident: is_resident,
                at: 0,
                read: None,
                _permit: permit,
            },
        };
        Ok(Download {
            length: blob.len,
            modified: blob.modified,
            state,
        })
    }

    /// The body of a blob, if it has at most `most` bytes.
    pub async fn read(&self, key: &Key, most: u64) -> Result<Option<Bytes>, DiskError> {
        let mut blob = self.get(key).await?;
        let Some(length) = usize::try_from(blob.length)
            .ok()
            .filter(|_| blob.length <= most)
        else {
            return Ok(None);
        };
        let permit = self.memory(length).await?;
        let mut body = Vec::with_capacity(length);
        while let Some(piece) = blob.next().await {
            body.extend_from_slice(&piece.map_err(store::Error::Io)?);
        }
        Ok(Some(Bytes::from_owner(Held {
            body,
            _permit: permit,
        })))
    }

    /// Marks all of these as used, and returns those that are missing.
    pub async fn use_all(&self, keys: Vec<Key>) -> Result<Vec<Key>, DiskError> {
        self.call(move |store| store.use_all(keys)).await
    }

    /// A client has missed this blob.
    pub fn note_miss(&self, key: &Key) -> Option<Lost> {
        self.store.note_miss(key)
    }

    /// See [`Store::home`].
    pub fn home<'a>(&'a self, namespace: &'a str) -> &'a str {
        self.store.home(namespace)
    }

    /// See [`Store::take_removals`].
    pub fn take_removals(&self) -> Vec<Removal> {
        self.store.take_removals()
    }

    /// The names of an sccache entry's members; none where it is gone or no archive.
    pub async fn member_names(&self, keys: Vec<Key>) -> Result<Vec<Vec<String>>, DiskError> {
        self.call(move |store| {
            let names = |key: &Key| {
                let tail = store.tail(key, zip::DIRECTORY).unwrap_or_default();
                zip::names(&tail).unwrap_or_default()
            };
            Ok(keys.iter().map(names).collect())
        })
        .await
    }

    /// See [`Store::knows`].
    pub fn knows(&self, namespace: &str) -> bool {
        self.store.knows(namespace)
    }

    /// Bytes of a blob's body.
    pub async fn size(&self, key: &Key) -> Result<u64, DiskError> {
        let key = key.clone();
        self.call(move |store| store.size(&key)).await
    }

    /// What is known of a blob.
    pub async fn facts(&self, key: &Key) -> Result<Facts, DiskError> {
        let key = key.clone();
        self.call(move |store| store.facts(&key)).await
    }

    /// The blobs of an entry in all namespaces; takes as long as it takes.
    pub async fn find(&self, entry: String) -> Result<Vec<Facts>, DiskError> {
        let turn = self.purges.clone().acquire_owned().await;
        let turn = turn.map_err(|_| DiskError::Overloaded)?;
        let store = self.store.clone();
        let found = spawn_blocking(move || {
            let found = store.find(&entry);
            drop(turn);
            found
        });
        let found = found.await;
        Ok(found.map_err(lost)??)
    }

    /// Removes a blob.
    pub async fn delete(&self, key: &Key) -> Result<(), DiskError> {
        let key = key.clone();
        self.call(move |store| store.delete(&key)).await
    }

    /// Removes all blobs that match; takes as long as it takes.
    pub async fn purge(&self, filter: Filter) -> Result<Purged, DiskError> {
        let turn = self.purges.clone().acquire_owned().await;
        let turn = turn.map_err(|_| DiskError::Overloaded)?;
        let store = self.store.clone();
        let purged = spawn_blocking(move || {
            let purged = store.purge(&filter);
            // Not before: whoever asked may have gone away, but not the work.
            drop(turn);
            purged
        });
        let purged = purged.await;
        Ok(purged.map_err(lost)??)
    }

    /// Does the store take writes? Tries, unless the last write has just shown it.
    pub async fn check_writable(&self) -> Result<(), String> {
        if *self.writable.lock() == Writable::Yes {
            return Ok(());
        }
        let tried = self
            .call(|store| {
                let key = Key::parse(".sccache-dock-probe").map_err(io::Error::other)?;
                let mut writer = store.put(&key, Some(1))?;
                writer.write(b"?")?;
                writer.commit()?;
                store.delete(&key)
            })
            .await;
        self.note_write(&tried);
        if matches!(tried, Err(DiskError::Store(store::Error::Pinned))) {
            // Writes to what is pinned go on, and nothing is wrong with the disk.
            return Ok(());
        }
        tried.map_err(|fault| fault.to_string())
    }

    fn note_write<T>(&self, outcome: &Result<T, DiskError>) {
        let found = match outcome {
            Ok(_) => Writable::Yes,
            Err(
                DiskError::Store(store::Error::NoSpace | store::Error::Io(_)) | DiskError::Stalled,
            ) => Writable::No(
                outcome
                    .as_ref()
                    .err()
                    .map(DiskError::to_string)
                    .unwrap_or_default(),
            ),
            Err(_) => return,
        };
        *self.writable.lock() = found;
    }

    /// Why the store took no write the last time, if it did not.
    pub fn write_fault(&self) -> Option<String> {
        match &*self.writable.lock() {
            Writable::No(cause) => Some(cause.clone()),
            Writable::Unknown | Writable::Yes => None,
        }
    }

    /// Runs `work`, which makes room for a blob of `bytes` or writes it: on this thread, if that takes no
    /// time. See `inline_writes.rs`.
    async fn write_quickly<T: Send + 'static>(
        &self,
        key: &Key,
        bytes: u64,
        work: impl FnOnce(&Store) -> Result<T, store::Error> + Send + 'static,
    ) -> Result<T, DiskError> {
        if self.store.has_room(key, bytes)
            && let Some(_turn) = self.inline_writes.permit()
        {
            return Ok(work(&self.store)?);
        }
        self.write(work).await
    }

    /// Runs `work`, which writes, when it is its turn.
    async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> Result<T, store::Error> + Send + 'static,
    ) -> Result<T, DiskError> {
        let turn = match within(CALL, self.writers.clone().acquire_owned()).await {
            Ok(Ok(turn)) => turn,
            Ok(Err(_)) | Err(_) => return Err(DiskError::Overloaded),
        };
        let outcome = self.call(move |store| {
            let outcome = work(store);
            drop(turn);
            outcome
        });
        outcome.await
    }

    async fn memory(&self, bytes: usize) -> Result<OwnedSemaphorePermit, DiskError> {
        let wanted = u32::try_from(units(bytes)).map_err(|_| DiskError::Overloaded)?;
        match within(PATIENCE, self.memory.clone().acquire_many_owned(wanted)).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) | Err(_) => Err(DiskError::Overloaded),
        }
    }

    /// Runs `work` where it may block. A call that outlives its time goes on alone and keeps its slot, so that
    /// a disk that hangs cannot collect threads without end.
    async fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> Result<T, store::Error> + Send + 'static,
    ) -> Result<T, DiskError> {
        let slot = match within(PATIENCE, self.slots.clone().acquire_owned()).await {
            Ok(Ok(slot)) => slot,
            Ok(Err(_)) | Err(_) => return Err(DiskError::Overloaded),
        };
        let store = self.store.clone();
        let task = spawn_blocking(move || {
            let outcome = work(&store);
            drop(slot);
            outcome
        });
        match timeout(CALL, task).await {
            Ok(outcome) => Ok(outcome.map_err(lost)??),
            Err(_) => Err(DiskError::Stalled),
        }
    }
}

/// Writes of blobs at one time.
fn writers() -> usize {
    std::thread::available_parallelism().map_or(4, |processors| processors.get() + 2)
}

fn units(bytes: usize) -> usize {
    bytes.div_ceil(UNIT).max(1)
}

/// A store call panicked or was cut off by the end of the runtime.
fn lost(error: tokio::task::JoinError) -> store::Error {
    store::Error::Io(io::Error::other(error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Options, WrittenBy};

    fn disk(folder: &std::path::Path) -> Disk {
        let options = Options {
            dir: folder.join("cache"),
            budget_bytes: 64 << 20,
            policies: Default::default(),
        };
        Disk::new(Store::open(options).unwrap())
    }

    #[tokio::test]
    async fn memory_is_given_back() {
        let folder = tempfile::tempdir().unwrap();
        let disk = disk(folder.path());
        for (name, size) in [("cas/small", 100), ("cas/large", 3 << 20)] {
            let key = Key::parse(name).unwrap();
            let mut upload = disk.put(&key, None, WrittenBy::default()).await.unwrap();
            upload.push(&vec![7; size]).await.unwrap();
            upload.finish().await.unwrap();
            let mut download = disk.get(&key).await.unwrap();
            let first = download.next().await.unwrap().unwrap();
            let held = MEMORY_UNITS - disk.memory.available_permits();
            assert!(
                (1..=CHUNK / UNIT).contains(&held),
                "{name} holds {held} units"
            );
            drop((first, download));
            drop(
                disk.put(&key, Some(size as u64), WrittenBy::default())
                    .await
                    .unwrap(),
            );
            assert_eq!(disk.memory.available_permits(), MEMORY_UNITS);
        }
    }

    #[tokio::test]
    async fn request_without_memory_is_refused_soon() {
        let folder = tempfile::tempdir().unwrap();
        let disk = disk(folder.path());
        let key = Key::parse("cas/x").unwrap();
        let mut upload = disk.put(&key, None, WrittenBy::default()).await.unwrap();
        upload.push(b"body").await.unwrap();
        upload.finish().await.unwrap();
        let all = u32::try_from(MEMORY_UNITS).unwrap();
        let _held = disk.memory.clone().acquire_many_owned(all).await.unwrap();
        let outcome = disk.get(&key).await;
        assert!(matches!(outcome, Err(DiskError::Overloaded)), "{outcome:?}");
        let miss = disk.get(&Key::parse("cas/y").unwrap()).await;
        assert!(
            matches!(miss, Err(DiskError::Store(store::Error::Missing))),
            "a miss needs none: {miss:?}"
        );
    }

    #[tokio::test]
    async fn fault_of_a_write_is_remembered_until_one_succeeds() {
        let folder = tempfile::tempdir().unwrap();
        let disk = disk(folder.path());
        let key = Key::parse("cas/x").unwrap();
        disk.note_write::<()>(&Err(DiskError::Store(store::Error::NoSpace)));
        assert!(disk.write_fault().is_some());
        disk.note_write::<()>(&Err(DiskError::NotZip));
        assert!(
            disk.write_fault().is_some(),
            "a client's fault says nothing about the disk"
        );
        assert_eq!(disk.check_writable().await, Ok(()));
        assert_eq!(disk.write_fault(), None);
        assert!(matches!(
            disk.size(&key).await,
            Err(DiskError::Store(store::Error::Missing))
        ));
    }
}
