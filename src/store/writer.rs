//! Writes a blob: reservation, temporary file in the same folder, body and trailer, rename.

use super::lookup::Suspect;
use super::lru::{Digest, Item};
use super::trailer::{self, Trailer};
use super::written_by::WrittenBy;
use super::{Error, Inner, digest_of, micros, now};
use crate::contract::key::Key;
use std::fs::{self, File, OpenOptions};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use twox_hash::XxHash3_64;

/// Number of bytes reserved at a time for a body of unknown length.
const STEP_BYTES: u64 = 1024 * 1024;
/// Maximum number of bytes reserved before the body arrives: what is announced but never sent must not evict other
/// blobs.
const AHEAD_BYTES: u64 = 16 * 1024 * 1024;
/// How often a blob's two folders are created at most: the scan at start, which removes empty ones, passes each once.
const FOLDER_TRIES: u32 = 3;

/// A blob being written. Dropped without [`Writer::commit`], it leaves nothing behind.
pub struct Writer {
    // Drop order matters: the reservation may be released only after the file's blocks are free.
    file: File,
    temp: Temp,
    reservation: Reservation,
    key: Key,
    by: WrittenBy,
    digest: Digest,
    /// The blob's final path.
    path: PathBuf,
    namespace: u16,
    /// Maximum size on disk in bytes.
    limit: u64,
    announced: Option<u64>,
    hasher: XxHash3_64,
    received: u64,
    /// A write failed half-way, so the file differs from what was received.
    failed: bool,
}

/// Who created a temporary file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// A write in flight.
    ThisRun,
    /// A write that was interrupted and cannot continue.
    EarlierRun,
    Foreign,
}

/// Names for temporary files, which no other run of the store has used.
#[derive(Debug)]
pub(super) struct Names {
    run: String,
    next: AtomicU64,
}

impl Names {
    const START: &str = "new-";

    pub(super) fn new() -> Names {
        // The standard library's random number is enough: it must be different, not secret.
        let random = RandomState::new().hash_one(0);
        Names {
            run: format!("{}{random:016x}-", Names::START),
            next: AtomicU64::new(0),
        }
    }

    fn next(&self) -> String {
        format!("{}{}", self.run, self.next.fetch_add(1, Ordering::Relaxed))
    }

    pub(super) fn origin(&self, name: &str) -> Origin {
        let rest = name.strip_prefix(Names::START).unwrap_or_default();
        let (run, number) = rest.split_once('-').unwrap_or_default();
        let is_run = run.len() == 16 && run.bytes().all(|byte| byte.is_ascii_hexdigit());
        match is_run && number.parse::<u64>().is_ok() {
            true if name.starts_with(&self.run) => Origin::ThisRun,
            true => Origin::EarlierRun,
            false => Origin::Foreign,
        }
    }
}

/// A temporary file, removed on drop unless it was renamed.
#[derive(Debug)]
struct Temp {
    inner: Arc<Inner>,
    path: PathBuf,
    renamed: bool,
}

impl Drop for Temp {
    fn drop(&mut self) {
        if self.renamed {
            return;
        }
        if let Err(error) = fs::remove_file(&self.path) {
            self.inner
                .fault("remove unfinished blob", &self.path, error);
        }
    }
}

/// The namespace's number and the bytes of the budget held for one write; released on drop.
#[derive(Debug)]
struct Reservation {
    inner: Arc<Inner>,
    namespace: u16,
    bytes: u64,
    /// Already released.
    is_over: bool,
}

impl Reservation {
    /// Reserves no bytes yet, for a namespace that the write has entered.
    fn new(inner: &Arc<Inner>, namespace: u16) -> Reservation {
        Reservation {
            inner: Arc::clone(inner),
            namespace,
            bytes: 0,
            is_over: false,
        }
    }

    fn grow_to(&mut self, bytes: u64) -> Result<(), Error> {
        let more = bytes.saturating_sub(self.bytes);
        self.inner.reserve(self.namespace, more)?;
        self.bytes = self.bytes.max(bytes);
        Ok(())
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if !self.is_over {
            let mut state = self.inner.state();
            state.lru.release(self.namespace, self.bytes);
            state.namespaces.leave(self.namespace);
        }
    }
}

impl Writer {
    pub(super) fn open(
        inner: &Arc<Inner>,
        key: &Key,
        length: Option<u64>,
        by: WrittenBy,
    ) -> Result<Writer, Error> {
        let (namespace, limit) = inner.admit(key, &by)?;
        let mut reservation = Reservation::new(inner, namespace);
        let overhead = trailer::len(key.as_str(), &by);
        let least = inner.disk_bytes(length.unwrap_or(0).saturating_add(overhead));
        if least > limit {
            return Err(Error::TooLarge { size: least, limit });
        }
        let first = if length.is_some() {
            least.min(inner.disk_bytes(AHEAD_BYTES))
        } else {
            least.max(STEP_BYTES).min(limit)
        };
        match reservation.grow_to(first) {
            Err(Error::NoSpace | Error::Pinned) if first > least => reservation.grow_to(least)?,
            result => result?,
        }
        let digest = digest_of(key);
        let path = inner.path_of(key, &digest);
        let temp = path.with_file_name(inner.temps.next());
        let open = || OpenOptions::new().write(true).create_new(true).open(&temp);
        let create = || {
            for _ in 0..FOLDER_TRIES {
                match open() {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    result => return result,
                }
                // Folders are created only when found missing, which saves a check at each write.
                match temp.parent().map_or(Ok(()), fs::create_dir_all) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    made => made?,
                }
            }
            open()
        };
        let file = inner
            .with_room(0, create)
            .map_err(|error| inner.fault("create blob", &temp, error))?;
        Ok(Writer {
            file,
            temp: Temp {
                inner: Arc::clone(inner),
                path: temp,
                renamed: false,
            },
            reservation,
            key: key.clone(),
            by,
            digest,
            path,
            namespace,
            limit,
            announced: length,
            hasher: XxHash3_64::new(),
            received: 0,
            failed: false,
        })
    }

    /// Whether this many more bytes of the body, and the trailer, fit without an eviction.
    pub fn has_room_for(&self, more: usize) -> bool {
        let end = self.received.saturating_add(more as u64);
        let end = end.saturating_add(self.trailer_len());
        self.temp.inner.disk_bytes(end) <= self.reservation.bytes
    }

    fn trailer_len(&self) -> u64 {
        trailer::len(self.key.as_str(), &self.by)
    }

    /// Appends to the body.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.account_for(bytes)?;
        self.append(bytes)
    }

    /// Makes the blob visible. Returns whether it replaced an older one.
    pub fn commit(self) -> Result<bool, Error> {
        self.write_last(Vec::new())
    }

    /// Appends the last bytes of the body and makes the blob visible, with one system call less than in two steps.
    /// Spare capacity of [`super::TRAILER_ROOM`] in `bytes` saves a copy. Returns whether it replaced an older blob.
    pub fn write_last(self, bytes: Vec<u8>) -> Result<bool, Error> {
        self.seal(bytes)?.replace()
    }

    /// The same if there is no blob of this key; what is needed to go on if there is one.
    pub(super) fn write_last_if_new(self, bytes: Vec<u8>) -> Result<Option<Taken>, Error> {
        self.seal(bytes)?.publish_if_new()
    }

    /// Appends the last bytes of the body and the trailer.
    fn seal(mut self, mut bytes: Vec<u8>) -> Result<Taken, Error> {
        if self.failed {
            return Err(Error::Io(io::Error::other(
                "cannot commit blob: an earlier write failed",
            )));
        }
        self.account_for(&bytes)?;
        if let Some(announced) = self
            .announced
            .filter(|announced| *announced != self.received)
        {
            return Err(Error::WrongLength {
                announced,
                received: self.received,
            });
        }
        let written_micros = micros(now());
        let trailer = Trailer {
            written_micros,
            body_len: self.received,
            body_hash: self.hasher.finish(),
        };
        bytes.extend_from_slice(&trailer.encode(self.key.as_str(), &self.by));
        self.append(&bytes)?;
        Ok(Taken {
            writer: self,
            written_micros,
        })
    }

    /// Validates and counts bytes of the body that are about to be appended.
    fn account_for(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let received = self.received.saturating_add(bytes.len() as u64);
        if let Some(announced) = self.announced.filter(|announced| *announced < received) {
            self.failed = true;
            return Err(Error::WrongLength {
                announced,
                received,
            });
        }
        self.reserve_for(received)?;
        self.hasher.write(bytes);
        self.received = received;
        Ok(())
    }

    /// Renames the file and adds it to the index, as one step for all other threads that handle this key. Returns whether
    /// it replaced an older blob. With `only_new` it replaces none, and returns `None` if there is one.
    fn publish(&mut self, now_micros: u64, only_new: bool) -> io::Result<Option<bool>> {
        let (inner, path) = (&*self.temp.inner, &self.path);
        let _lock = inner.lock_key(&self.digest);
        if only_new && inner.state().may_have(&self.digest) && path.symlink_metadata().is_ok() {
            return Ok(None);
        }
        // Only during the scan can there be an older blob that the index does not know.
        let (unscanned, suspicious) = {
            let state = inner.state();
            (
                state.unscanned(&self.digest),
                state.is_suspicious(&self.digest, now_micros),
            )
        };
        let unknown = unscanned && path.symlink_metadata().is_ok();
        let replaced = suspicious.then(|| File::open(path).ok()).flatten();
        fs::rename(&self.temp.path, path)?;
        self.temp.renamed = true;
        let bytes = inner.disk_bytes(self.received + self.trailer_len());
        let item = Item {
            digest: self.digest,
            namespace: self.namespace,
        };
        if let Some(file) = replaced {
            inner.suspect(Suspect::Replaced(self.key.clone(), file));
        }
        let replaced = {
            let mut state = inner.state();
            state.ghosts.forget(&self.digest);
            state.namespaces.leave(self.namespace);
            self.reservation.is_over = true;
            let reserved = self.reservation.bytes;
            state.lru.commit(item, bytes, now_micros, reserved) || unknown
        };
        if replaced {
            inner.close(&self.digest);
        }
        Ok(Some(replaced))
    }

    fn reserve_for(&mut self, received: u64) -> Result<(), Error> {
        let inner = &*self.temp.inner;
        let need = inner.disk_bytes(received.saturating_add(self.trailer_len()));
        let limit = self.limit;
        if need > limit {
            self.failed = true;
            return Err(Error::TooLarge { size: need, limit });
        }
        if need > self.reservation.bytes {
            let most = self.announced.map_or(limit, |announced| {
                inner.disk_bytes(announced.saturating_add(self.trailer_len()))
            });
            let step = need.max(self.reservation.bytes + STEP_BYTES).min(most);
            match self.reservation.grow_to(step) {
                Err(Error::NoSpace | Error::Pinned) if step > need => {
                    self.reservation.grow_to(need)?
                }
                result => result?,
            }
        }
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let inner = &*self.temp.inner;
        let mut rest = bytes;
        while !rest.is_empty() {
            let write = || match self.file.write(rest) {
                Ok(0) => Err(io::ErrorKind::WriteZero.into()),
                result => result,
            };
            match inner.with_room(rest.len() as u64, write) {
                Ok(written) => rest = &rest[written..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.failed = true;
                    return Err(inner.fault("write blob", &self.temp.path, error));
                }
            }
        }
        Ok(())
    }
}

/// A blob that is written to its end and not visible yet. Dropped, it leaves nothing behind.
#[derive(Debug)]
pub(super) struct Taken {
    writer: Writer,
    written_micros: u64,
}

impl Taken {
    /// Makes it visible. Returns whether it replaced an older one.
    pub(super) fn replace(mut self) -> Result<bool, Error> {
        Ok(self.publish(false)?.unwrap_or(true))
    }

    /// The same if there is no blob of this key; itself if there is one.
    pub(super) fn publish_if_new(mut self) -> Result<Option<Taken>, Error> {
        Ok(match self.publish(true)? {
            Some(_) => None,
            None => Some(self),
        })
    }

    fn publish(&mut self, only_new: bool) -> Result<Option<bool>, Error> {
        let (writer, at) = (&mut self.writer, self.written_micros);
        let inner = Arc::clone(&writer.temp.inner);
        inner
            .with_room(0, || writer.publish(at, only_new))
            .map_err(|error| inner.fault("commit blob", &writer.path, error))
    }

    /// The body: the first so many bytes of the file.
    pub(super) fn body(&self) -> io::Result<(File, u64)> {
        let file = File::open(&self.writer.temp.path)?;
        Ok((file, self.writer.received))
    }
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Writer {
            key,
            announced,
            received,
            ..
        } = self;
        write!(
            f,
            "Writer {{ key: {key}, announced: {announced:?}, received: {received} }}"
        )
    }
}
