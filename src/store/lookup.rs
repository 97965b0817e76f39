//! Opens and validates a blob's file, or removes it, and keeps index and disk consistent.

use super::lru::{Digest, Item, Presence};
use super::trailer::Trailer;
use super::{Error, Inner, RemovalCause, State, Store, digest_of, micros, now};
use crate::contract::key::Key;
use std::fs::{self, File, FileTimes, OpenOptions};
use std::hash::Hasher;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::SystemTime;
use twox_hash::XxHash3_64;

/// A blob's file with its trailer.
pub(super) struct Opened {
    pub(super) file: File,
    file_len: u64,
    pub(super) used: SystemTime,
    pub(super) trailer: Trailer,
}

/// Why a blob's file cannot be served.
pub(super) enum Flaw {
    Missing,
    Broken(Kind),
    Io(io::Error),
}

impl From<io::Error> for Flaw {
    fn from(error: io::Error) -> Flaw {
        use nix::libc::{EBADMSG, EILSEQ, EIO, ENODATA, EUCLEAN};
        match error.raw_os_error() {
            // Errors by which file systems report that the disk or the data on it is damaged.
            Some(EIO | EUCLEAN | EBADMSG | ENODATA | EILSEQ) => Flaw::Broken(Kind::Unreadable),
            _ => Flaw::Io(error),
        }
    }
}

/// What is wrong with a corrupt blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The file is truncated, or its end was changed or belongs to another key.
    Trailer,
    /// The body does not match its checksum.
    Body,
    /// The disk cannot read it.
    Unreadable,
}

/// Number of corrupt blobs found, by kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Flaws {
    /// The file is truncated, or its end was changed or belongs to another key.
    pub trailer: u64,
    /// The body does not match its checksum.
    pub body: u64,
    /// The disk cannot read it.
    pub unreadable: u64,
}

impl Flaws {
    /// Sum of all kinds.
    pub fn sum(&self) -> u64 {
        self.trailer + self.body + self.unreadable
    }

    pub(super) fn count(&mut self, kind: Kind) {
        *match kind {
            Kind::Trailer => &mut self.trailer,
            Kind::Body => &mut self.body,
            Kind::Unreadable => &mut self.unreadable,
        } += 1;
    }
}

/// Verifies a blob's body while it is read from beginning to end.
pub struct Unchecked {
    store: Store,
    key: Key,
    hasher: XxHash3_64,
    expected: u64,
}

impl Unchecked {
    pub(super) fn new(store: &Store, key: &Key, trailer: &Trailer) -> Box<Unchecked> {
        // Boxed because it is large.
        Box::new(Unchecked {
            store: store.clone(),
            key: key.clone(),
            hasher: XxHash3_64::new(),
            expected: trailer.body_hash,
        })
    }

    /// Adds the next piece of the body.
    pub fn update(&mut self, piece: &[u8]) {
        self.hasher.write(piece);
    }

    /// After the last piece: whether the body matches its checksum. If not, the blob is removed soon.
    pub fn is_whole(&self) -> bool {
        let is_whole = self.hasher.finish() == self.expected;
        let inner = &self.store.inner;
        if is_whole {
            inner.state().lru.mark_checked(&digest_of(&self.key));
        } else {
            inner.suspect(Suspect::Key(self.key.clone()));
        }
        is_whole
    }
}

impl std::fmt::Debug for Unchecked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Unchecked({})", self.key)
    }
}

impl Store {
    /// Returns the length of a blob's body; does not count as use.
    pub fn size(&self, key: &Key) -> Result<u64, Error> {
        Ok(self.look(key, &digest_of(key))?.trailer.body_len)
    }

    /// Marks all these blobs as used and returns the missing ones. Reads no bodies.
    pub fn use_all(&self, keys: Vec<Key>) -> Result<Vec<Key>, Error> {
        let mut missing = Vec::new();
        for key in keys {
            let (digest, now) = (digest_of(&key), now());
            let touch_only = |state: &mut State| state.lru.touch_only(&digest, micros(now));
            if touch_only(&mut self.inner.state()).is_some() {
                continue;
            }
            match self.look(&key, &digest) {
                Ok(opened) => {
                    let touched = self.inner.state().lru.touch(&digest, micros(now));
                    if touched.is_some_and(|touched| touched.persist) {
                        self.inner.note_use(&key, &digest, &opened.file, now);
                    }
                }
                Err(Error::Missing) => missing.push(key),
                Err(error) => return Err(error),
            }
        }
        Ok(missing)
    }

    pub(super) fn look(&self, key: &Key, digest: &Digest) -> Result<Opened, Error> {
        let (may_have, presence) = {
            let state = self.inner.state();
            (state.may_have(digest), state.lru.presence(digest))
        };
        if !may_have {
            return Err(Error::Missing);
        }
        self.inner.find(key, digest, presence == Presence::Live)
    }
}

impl Inner {
    /// Writes the time of use to disk, from which a restart recovers the order of use.
    pub(super) fn note_use(&self, key: &Key, digest: &Digest, file: &File, now: SystemTime) {
        if let Err(error) = file.set_times(FileTimes::new().set_modified(now)) {
            self.fault("note the use of blob", &self.path_of(key, digest), error);
        }
    }

    /// Opens the file of a blob that the index has or, during the scan, may not have yet.
    pub(super) fn find(&self, key: &Key, digest: &Digest, indexed: bool) -> Result<Opened, Error> {
        if indexed {
            let path = self.path_of(key, digest);
            match open_blob(&path, key) {
                Ok(opened) => return Ok(opened),
                Err(Flaw::Io(error)) => return Err(self.fault("read blob", &path, error)),
                Err(Flaw::Missing | Flaw::Broken(_)) => {}
            }
        }
        self.examine(key, digest)
    }

    /// Examines the file again while holding the key's lock, so that no other thread is storing or removing it, and
    /// makes index and disk consistent.
    fn examine(&self, key: &Key, digest: &Digest) -> Result<Opened, Error> {
        let path = self.path_of(key, digest);
        let _lock = self.lock_key(digest);
        match open_blob(&path, key) {
            Ok(opened) => {
                let mut state = self.state();
                if state.unscanned(digest) {
                    let namespace = state
                        .namespaces
                        .intern(self.home(key))
                        .ok_or(Error::Missing)?;
                    let item = Item {
                        digest: *digest,
                        namespace,
                    };
                    state
                        .lru
                        .admit(item, self.disk_bytes(opened.file_len), micros(opened.used));
                }
                // Marked for eviction meanwhile, or put there by another program: not ours to serve.
                if state.lru.presence(digest) == Presence::Live {
                    Ok(opened)
                } else {
                    Err(Error::Missing)
                }
            }
            Err(Flaw::Missing) => Err(self.vanished(digest)),
            Err(Flaw::Broken(kind)) => Err(self.remove_broken(digest, &path, Some(key), kind)),
            Err(Flaw::Io(error)) => Err(self.fault("read blob", &path, error)),
        }
    }

    /// Compares a blob's body with its checksum and removes the blob if they differ. Reads without a lock, because an
    /// open file's content does not change.
    pub(super) fn check_body(
        &self,
        key: &Key,
        digest: &Digest,
        opened: &Opened,
    ) -> Result<(), Error> {
        let flaw = match opened.trailer.body_is_whole(&opened.file) {
            Ok(true) => {
                self.state().lru.mark_checked(digest);
                return Ok(());
            }
            Ok(false) => Flaw::Broken(Kind::Body),
            Err(error) => error.into(),
        };
        let path = self.path_of(key, digest);
        Err(match flaw {
            Flaw::Broken(kind) => {
                let _lock = self.lock_key(digest);
                if is_in_place(&opened.file, &path) {
                    self.remove_broken(digest, &path, Some(key), kind)
                } else {
                    Error::Missing
                }
            }
            Flaw::Io(error) => self.fault("read blob", &path, error),
            Flaw::Missing => Error::Missing,
        })
    }

    /// The same for the file that is there now.
    pub(super) fn verify(&self, key: &Key, digest: &Digest) -> Result<(), Error> {
        let opened = self.examine(key, digest)?;
        self.check_body(key, digest, &opened)
    }

    /// Forgets a blob whose file is gone. The caller holds the key's lock.
    pub(super) fn vanished(&self, digest: &Digest) -> Error {
        {
            let mut state = self.state();
            if state.lru.presence(digest) == Presence::Live {
                state.lru.remove(digest);
                state.vanished_entries += 1;
            }
        }
        self.close(digest);
        Error::Missing
    }

    /// Removes a damaged file of the store. The caller holds the key's lock.
    pub(super) fn remove_broken(
        &self,
        digest: &Digest,
        path: &Path,
        key: Option<&Key>,
        kind: Kind,
    ) -> Error {
        if let Err(error) = fs::remove_file(path) {
            // The entry stays, and is counted, until it can be removed or replaced; reads of it are misses.
            self.fault("remove broken blob", path, error);
            return Error::Missing;
        }
        warn_of(kind, path, key, "removed");
        {
            let mut state = self.state();
            state.flaws.count(kind);
            if state.lru.presence(digest) == Presence::Live {
                state.lru.remove(digest);
                let at = micros(now()) / 1_000_000;
                state.removals.push(digest, at, RemovalCause::Broken);
            }
        }
        self.close(digest);
        Error::Missing
    }
}

/// Logs one line per corrupt blob. The blob is removed, so the line is not repeated.
pub(super) fn warn_of(kind: Kind, path: &Path, key: Option<&Key>, done: &str) {
    let what = match kind {
        Kind::Trailer => "that was not whole",
        Kind::Body => "that disagreed with its checksum",
        Kind::Unreadable => "that the disk cannot read",
    };
    let key = key.map_or("unknown", Key::as_str);
    tracing::warn!(key, file = %path.display(), "{done} a blob {what}");
}

/// Opens a blob's file and reads its trailer.
fn open_blob(path: &Path, key: &Key) -> Result<Opened, Flaw> {
    let (file, file_len, used) = open_file(path)?;
    let trailer = Trailer::read(&file, key.as_str(), file_len)?;
    let trailer = trailer.ok_or(Flaw::Broken(Kind::Trailer))?;
    Ok(Opened {
        file,
        file_len,
        used,
        trailer,
    })
}

/// Whether the open file is still the one at `path`.
pub(super) fn is_in_place(file: &File, path: &Path) -> bool {
    let (Ok(there), Ok(ours)) = (path.symlink_metadata(), file.metadata()) else {
        return false;
    };
    (there.dev(), there.ino()) == (ours.dev(), ours.ino())
}

/// Opens a file that may be a blob, and returns its length and the time of its last use.
pub(super) fn open_file(path: &Path) -> Result<(File, u64, SystemTime), Flaw> {
    // A link must not lead elsewhere, and a pipe must not block.
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) => {
            return Err(match error.raw_os_error() {
                Some(nix::libc::ENOENT) => Flaw::Missing,
                Some(nix::libc::ELOOP) => Flaw::Broken(Kind::Trailer),
                _ => error.into(),
            });
        }
    };
    let metadata = file.metadata()?;
    if metadata.is_dir() {
        // It is not a file of the store, so it is not removed.
        return Err(Flaw::Missing);
    }
    if !metadata.is_file() {
        return Err(Flaw::Broken(Kind::Trailer));
    }
    Ok((file, metadata.len(), metadata.modified()?))
}

/// A blob to verify.
#[derive(Debug)]
pub(super) enum Suspect {
    /// The blob of this key.
    Key(Key),
    /// The file that this key had before it was stored again.
    Replaced(Key, File),
}
