//! The blob store: one folder, one owner, and a budget in bytes on disk that holds at every moment.
//!
//! ```text
//! put -> reserve (evict) -> temporary file beside it -> body, trailer -> rename -> commit in the index
//! get -> index (touch) -> open -> trailer whole and of this key? -> body
//!
//! DIR/                                      locked by the owner
//! DIR/ceiling                               the most bytes that blobs may take, see `eviction.rs`
//! DIR/scrub                                 how far the check of all blobs has come, see `scrub.rs`
//! DIR/blobs/NAMESPACE/2 HEX/32 HEX          body and trailer; the name is the key's BLAKE3 hash
//! DIR/blobs/NAMESPACE/2 HEX/new-RUN-NUMBER  a write in flight; the next start's scan removes what is left of them
//! ```
//!
//! - A blob is visible only after rename, and served only with an intact trailer (see `trailer.rs`). A body that this
//!   process did not write itself is verified before it is first served, because a power failure may keep a file's
//!   length and lose its pages: nothing is flushed on the request path. A long body is verified while it is served, and
//!   its last piece is not sent if it is wrong ([`Blob::unchecked`]).
//! - A write is in the same folder as its final path: if all writes shared one folder they would wait for it, and a
//!   rename between folders waits for every other such rename in the file system.
//! - The state is behind a plain mutex that is never held during a system call. Every section under it is short: iterations
//!   over all entries proceed in parts, with a pause in between ([`Inner::let_others_in`]), and sorting and copying happen
//!   without it.
//! - Renaming and removing one key's file are ordered by a lock per key: removing an old blob must not undo the rename
//!   of a new one. A thread holds at most one such lock, and takes the state's lock after it. No body is read under it.
//! - The time of last use is the file's modification time: reading does not change it, and backups keep it. The time of
//!   writing is in the trailer.
//! - Not here: HTTP, flushing, and keeping bodies in memory.

mod error;
pub mod eviction;
mod facts;
pub mod ghost_list;
mod groups;
mod key_locks;
pub mod lookup;
pub mod low_disk;
pub mod lru;
mod names;
pub mod once;
pub mod open_files;
mod outputs;
pub mod page_cache;
mod purge;
pub mod removals;
mod scan;
mod scrub;
pub mod slots;
mod trailer;
mod usage;
mod writer;
mod written_by;

pub use self::error::{Error, Fault};
use self::error::{described, is_full};
pub use self::facts::Facts;
use self::ghost_list::Ghosts;
pub use self::ghost_list::Lost;
use self::groups::Groups;
use self::key_locks::{KeyLock, KeyLocks};
pub use self::lookup::{Flaws, Unchecked};
use self::lru::{Digest, Item, Lru, MAX_ENTRY_BYTES, Presence, Rule};
use self::names::Namespaces;
pub use self::once::{Difference, Stored};
use self::open_files::KeptFiles;
pub use self::outputs::OutputsDigest;
pub use self::purge::{Filter, Purged};
pub use self::removals::{Removal, RemovalCause};
pub use self::scrub::{CorruptionReport, Scrubbed};
pub use self::usage::{NamespaceUsage, Progress, Usage};
pub use self::writer::Writer;
pub use self::written_by::{Lane, WrittenBy};
use crate::contract::gateway_config::Policies;
use crate::contract::key;
use crate::contract::key::Key;
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, SystemTime};

/// Maximum number of namespaces: each costs counters and folders.
pub const MAX_NAMESPACES: usize = 4096;
/// Spare capacity behind the last bytes of a body that saves a copy of them.
pub const TRAILER_ROOM: usize = 256;
/// How many times to try for the lock, because an owner may just be ending.
const LOCK_TRIES: u32 = 100;
const LOCK_PAUSE: Duration = Duration::from_millis(20);
/// Pause for other threads between two sections under the state's lock, long enough for one to wake up.
const YIELD_PAUSE: Duration = Duration::from_micros(100);
/// Maximum length of a body that is verified before it is served.
const CHECKED_FIRST: u64 = 16 << 20;

/// Location, size and rules of a store.
#[derive(Debug, Clone)]
pub struct Options {
    /// The store's own folder; created if missing.
    pub dir: PathBuf,
    /// Maximum disk usage of blobs and writes in flight, in bytes of whole file-system blocks.
    pub budget_bytes: u64,
    /// Further rules.
    pub policies: Policies,
}

/// The store. Clones are cheap and refer to the same store. All calls block: call them from a thread that may.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

/// A blob, open for reading: its body is the first `len` bytes of `file`, which is shared and must be read by position.
#[derive(Debug)]
pub struct Blob {
    /// The file. It stays readable if the blob is evicted or replaced meanwhile.
    pub file: Arc<File>,
    /// Length of the body in bytes.
    pub len: u64,
    /// When the blob was written.
    pub modified: SystemTime,
    /// Verification that must succeed before the last byte is sent.
    pub unchecked: Option<Box<Unchecked>>,
}

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    budget: u64,
    max_age: Option<Duration>,
    /// Of single namespaces, by number.
    ages: Vec<(u16, Duration)>,
    groups: Groups,
    /// The file system's allocation unit in bytes.
    block: u64,
    state: Mutex<State>,
    /// Notified when files are removed and when the scan ends.
    changed: Condvar,
    key_locks: KeyLocks,
    /// Content of the file of that name; updated under the lock.
    high_water_mark: AtomicU64,
    high_water_lock: Mutex<()>,
    /// Wakes the housekeeper, see `eviction.rs`; full if it is awake already.
    housekeeper: SyncSender<()>,
    /// Queue of blobs to verify on suspicion, see `scrub.rs`.
    scrubber: SyncSender<lookup::Suspect>,
    /// Names of the temporary files.
    temps: writer::Names,
    /// Holds the lock while it is open.
    _lock: File,
}

#[derive(Debug)]
struct State {
    lru: Lru,
    kept: KeptFiles,
    namespaces: Namespaces,
    indexing: bool,
    scanned: Progress,
    evicted_entries: u64,
    evicted_bytes: u64,
    expired_entries: u64,
    expired_bytes: u64,
    pinned_refusals: u64,
    ghosts: Ghosts,
    removals: removals::Removals,
    /// Lost hits, indexed by number of the namespace.
    lost_hits: Vec<u64>,
    flaws: Flaws,
    scrubbed: Scrubbed,
    purging: purge::Tracker,
    vanished_entries: u64,
    foreign_files: u64,
    last_fault: Option<Fault>,
}

impl State {
    /// Whether the blob may be on disk: it is indexed, or the scan may still find it.
    fn may_have(&self, digest: &Digest) -> bool {
        self.lru.presence(digest) == Presence::Live || self.unscanned(digest)
    }

    /// Whether the scan may still find the blob.
    fn unscanned(&self, digest: &Digest) -> bool {
        self.indexing && self.lru.presence(digest) == Presence::Absent
    }
}

impl Store {
    /// Opens or creates the store, and starts to index it on a thread of its own, which also removes the remains of
    /// interrupted writes. The store serves requests at once.
    ///
    /// Until the scan ends, what it has not found yet counts as taken. If it finds more than the budget, because that
    /// was lowered, it evicts down to it.
    pub fn open(options: Options) -> Result<Store, Error> {
        let Options {
            dir,
            budget_bytes,
            policies,
        } = options;
        let at = |path: &Path, verb: &str, error: io::Error| described(verb, path, &error);
        let blobs = dir.join("blobs");
        fs::create_dir_all(&blobs).map_err(|error| at(&blobs, "create folder", error))?;
        let lock = lock(&dir)?;
        let block = nix::sys::statvfs::statvfs(&dir)
            .map_err(|error| at(&dir, "stat file system of", error.into()))?;
        let high_water_mark = self::eviction::read_high_water_mark(&dir, budget_bytes);
        let mut lru = Lru::new(budget_bytes);
        lru.reserve_unscanned(high_water_mark);
        let mut namespaces = Namespaces::default();
        let ages = govern(&mut lru, &mut namespaces, &policies, &blobs);
        let (housekeeper, wakes) = sync_channel(1);
        let (scrubber, suspects) = sync_channel(scrub::MOST_SUSPECTS);
        let inner = Arc::new(Inner {
            budget: budget_bytes,
            max_age: policies.max_age,
            ages,
            groups: Groups::new(&policies),
            block: block.fragment_size().max(512),
            state: Mutex::new(State {
                lru,
                kept: KeptFiles::new(),
                namespaces,
                indexing: true,
                scanned: Progress::default(),
                evicted_entries: 0,
                evicted_bytes: 0,
                expired_entries: 0,
                expired_bytes: 0,
                pinned_refusals: 0,
                ghosts: Ghosts::new(budget_bytes),
                removals: removals::Removals::default(),
                lost_hits: Vec::new(),
                flaws: Flaws::default(),
                scrubbed: Scrubbed::default(),
                purging: purge::Tracker::default(),
                vanished_entries: 0,
                foreign_files: 0,
                last_fault: None,
            }),
            changed: Condvar::new(),
            key_locks: KeyLocks::new(),
            high_water_mark: AtomicU64::new(high_water_mark),
            high_water_lock: Mutex::new(()),
            housekeeper,
            scrubber,
            temps: writer::Names::new(),
            _lock: lock,
            dir,
        });
        self::eviction::start_housekeeper(&inner, wakes)
            .and_then(|()| scan::start(&inner))
            .and_then(|()| scrub::start(&inner, policies.scrub, suspects))
            .map_err(|error| at(&inner.dir, "start threads for", error))?;
        Ok(Store { inner })
    }

    /// Opens a blob and marks it as used. Returns [`Error::Missing`] on a miss.
    pub fn get(&self, key: &Key) -> Result<Blob, Error> {
        let inner = &*self.inner;
        let digest = digest_of(key);
        let now = now();
        let (may_have, touched) = {
            let mut state = inner.state();
            (
                state.may_have(&digest),
                state.lru.touch(&digest, micros(now)),
            )
        };
        if !may_have {
            return Err(Error::Missing);
        }
        let opened = inner.find(key, &digest, touched.is_some())?;
        let mut touched = touched.or_else(|| inner.state().lru.touch(&digest, micros(now)));
        let mtime_secs = i64::try_from(micros(opened.used) / 1_000_000).unwrap_or(i64::MAX);
        if touched
            .is_some_and(|touched| self::open_files::was_changed(mtime_secs, touched.used_secs))
        {
            let mut state = inner.state();
            state.lru.report(&digest);
            touched = state.lru.touch(&digest, micros(now));
        }
        let is_checked = touched.is_some_and(|touched| touched.checked);
        let unchecked = (!is_checked && opened.trailer.body_len > CHECKED_FIRST)
            .then(|| Unchecked::new(self, key, &opened.trailer));
        if !is_checked && unchecked.is_none() {
            inner.check_body(key, &digest, &opened)?;
        }
        if touched.is_some_and(|touched| touched.persist) {
            inner.note_use(key, &digest, &opened.file, now);
        }
        let modified =
            SystemTime::UNIX_EPOCH + Duration::from_micros(opened.trailer.written_micros);
        Ok(Blob {
            file: Arc::new(opened.file),
            len: opened.trailer.body_len,
            modified,
            unchecked,
        })
    }

    /// Counts and returns a lost hit if this blob, which a client requested in vain, had been evicted.
    pub fn note_miss(&self, key: &Key) -> Option<Lost> {
        let digest = digest_of(key);
        let mut state = self.inner.state();
        if state.lru.presence(&digest) != Presence::Absent {
            return None;
        }
        let lost = state.ghosts.ask(&digest)?;
        let number = state.namespaces.number(self.home(key.namespace()));
        if let Some(number) = number.map(usize::from) {
            if state.lost_hits.len() <= number {
                state.lost_hits.resize(number + 1, 0);
            }
            state.lost_hits[number] += 1;
        }
        Some(lost)
    }

    /// The name under which a namespace is kept and counted: that of the group that it is in, such as `pr/*`, or its own.
    pub fn home<'a>(&'a self, namespace: &'a str) -> &'a str {
        self.inner.groups.home(namespace)
    }

    /// The id of a key in [`Removal`]s.
    pub fn id(key: &Key) -> [u8; 16] {
        digest_of(key).0
    }

    /// Takes the removals since the last call, oldest first. The oldest are dropped if there were too many.
    pub fn take_removals(&self) -> Vec<Removal> {
        self.inner.state().removals.take()
    }

    /// Reads up to `most` bytes from the end of a blob's body. Does not count as a use and does not verify the checksum.
    pub fn tail(&self, key: &Key, most: u64) -> Result<Vec<u8>, Error> {
        let opened = self.look(key, &digest_of(key))?;
        let length = opened.trailer.body_len;
        let wanted = length.min(most);
        let mut tail = vec![0; usize::try_from(wanted).unwrap_or_default()];
        opened.file.read_exact_at(&mut tail, length - wanted)?;
        Ok(tail)
    }

    /// Whether this namespace (empty for the default one) has blobs, recently had some, or has a rule.
    pub fn knows(&self, namespace: &str) -> bool {
        self.inner.state().namespaces.number(namespace).is_some()
    }

    /// Reserves room for a blob, evicting others if necessary, and opens it for writing. `length` is the length of its
    /// body if known beforehand; `commit` then refuses any other length.
    pub fn put(&self, key: &Key, length: Option<u64>) -> Result<Writer, Error> {
        self.put_by(key, length, WrittenBy::default())
    }

    /// The same, recording who sent the blob.
    pub fn put_by(&self, key: &Key, length: Option<u64>, by: WrittenBy) -> Result<Writer, Error> {
        Writer::open(&self.inner, key, length, by)
    }

    /// Progress of the scan at start; `None` when it has ended.
    pub fn scan(&self) -> Option<Progress> {
        let state = self.inner.state();
        state.indexing.then_some(state.scanned)
    }

    /// Removes a blob.
    pub fn delete(&self, key: &Key) -> Result<(), Error> {
        let inner = &*self.inner;
        let digest = digest_of(key);
        let path = inner.path_of(key, &digest);
        let _lock = inner.lock_key(&digest);
        if !inner.state().may_have(&digest) {
            return Err(Error::Missing);
        }
        match fs::remove_file(&path) {
            Ok(()) => {
                let at = micros(now()) / 1_000_000;
                let mut state = inner.state();
                state.lru.remove(&digest);
                state.removals.push(&digest, at, RemovalCause::Purge);
                drop(state);
                inner.close(&digest);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(inner.vanished(&digest)),
            Err(error) => Err(inner.fault("remove blob", &path, error)),
        }
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        // The counters stay correct if a thread panics: no section under the lock can panic half-way.
        self.state.lock()
    }

    fn lock_key(&self, digest: &Digest) -> KeyLock<'_> {
        self.key_locks.lock(digest)
    }

    /// Must be called between two of many sections under the state's lock: a thread that unlocks a mutex and locks it
    /// again usually gets it before those that wait.
    fn let_others_in(&self) {
        std::thread::sleep(YIELD_PAUSE);
    }

    /// Closes the file of a blob that is leaving the index, because only then is its space freed.
    fn close(&self, digest: &Digest) {
        let kept = self.state().kept.forget(digest);
        drop(kept);
    }

    fn path(&self, folder: &str, digest: &Digest) -> PathBuf {
        let name = format!("{:032x}", u128::from_be_bytes(digest.0));
        let mut path = self.dir.join("blobs");
        path.extend([folder, &name[..2], &name]);
        path
    }

    fn path_of(&self, key: &Key, digest: &Digest) -> PathBuf {
        self.path(&key::folder_name(self.home(key)), digest)
    }

    /// The namespace, or group of namespaces, in which a key's blob is kept.
    fn home<'a>(&'a self, key: &'a Key) -> &'a str {
        self.groups.home(key.namespace())
    }

    fn path_of_item(&self, item: &Item) -> PathBuf {
        let folder = self.state().namespaces.folder(item.namespace);
        self.path(&folder, &item.digest)
    }

    /// Writes one of the store's own files, completely or not at all.
    fn note_in_file(&self, name: &str, text: &str) -> Result<(), Error> {
        let (path, new) = (self.dir.join(name), self.dir.join(format!("{name}.new")));
        let written = fs::write(&new, text).and_then(|()| fs::rename(&new, &path));
        written.map_err(|error| self.fault("write", &path, error))
    }

    /// Disk usage of a file of `len` bytes.
    fn disk_bytes(&self, len: u64) -> u64 {
        len.checked_next_multiple_of(self.block).unwrap_or(u64::MAX)
    }

    /// Returns the number of a key's namespace, which the write now holds, and the maximum size on disk of a blob in
    /// it.
    fn admit(&self, key: &Key, by: &WrittenBy) -> Result<(u16, u64), Error> {
        let mut state = self.state();
        let (number, needless) = state.number_for(self.home(key), by.token_by_name())?;
        state.namespaces.enter(number);
        let quota = state.lru.rule(number).quota.unwrap_or(u64::MAX);
        drop(state);
        if let Some(folder) = needless {
            scan::is_emptied(&self.dir.join("blobs").join(&*folder));
        }
        Ok((number, self.budget.min(MAX_ENTRY_BYTES).min(quota)))
    }
}

/// Applies the rules of namespaces and returns the ages that some have. Until the scan has found a namespace's blobs, its
/// whole quota counts as used.
fn govern(
    lru: &mut Lru,
    namespaces: &mut Namespaces,
    policies: &Policies,
    blobs: &Path,
) -> Vec<(u16, Duration)> {
    let names = policies.quotas.keys().chain(&policies.pinned);
    let names: std::collections::BTreeSet<&String> = names.chain(policies.ages.keys()).collect();
    let mut ages = Vec::new();
    for name in names {
        let rule = Rule {
            quota: policies.quotas.get(name).copied(),
            pinned: policies.pinned.contains(name),
        };
        let inner = key::namespace_of_shown(name);
        // No other namespaces exist yet, and the settings allow far fewer than the maximum.
        let Some(number) = namespaces.intern(inner) else {
            return ages;
        };
        lru.govern(number, rule);
        if let Some(seconds) = policies.ages.get(name) {
            ages.push((number, Duration::from_secs(*seconds)));
        }
        let is_new = matches!(
            blobs.join(&*namespaces.folder(number)).try_exists(),
            Ok(false)
        );
        if let Some(quota) = rule.quota.filter(|_| !is_new) {
            lru.reserve_unscanned_of(number, quota);
        }
    }
    ages
}

/// Locks the store's folder; the kernel releases the lock however its owner ends. The lock is on the folder itself,
/// because a file open for writing would prevent remounting the disk read-only.
fn lock(dir: &Path) -> Result<File, Error> {
    let file = File::open(dir).map_err(|error| described("open folder", dir, &error))?;
    for _ in 0..LOCK_TRIES {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(fs::TryLockError::WouldBlock) => std::thread::sleep(LOCK_PAUSE),
            Err(fs::TryLockError::Error(error)) => {
                // Some network file systems cannot lock folders, which is no reason to fail.
                tracing::warn!("cannot lock folder \"{}\": {error}", dir.display());
                return Ok(file);
            }
        }
    }
    Err(Error::InUse {
        dir: dir.to_owned(),
    })
}

fn digest_of(key: &Key) -> Digest {
    let hash = blake3::hash(key.as_str().as_bytes());
    let mut digest = Digest([0; 16]);
    digest.0.copy_from_slice(&hash.as_bytes()[..16]);
    digest
}

/// The only place in the store that reads the clock.
#[expect(
    clippy::disallowed_methods,
    reason = "the one place of the store that reads the clock"
)]
fn now() -> SystemTime {
    SystemTime::now()
}

fn micros(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |age| u64::try_from(age.as_micros()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests;
