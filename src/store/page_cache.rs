//! Opens and reads blobs that are in the page cache without ever waiting for the disk, so that a thread that serves
//! connections may do it.
//!
//! This costs a few system calls. Handing a blob to a thread that may block costs two more task switches, half the time
//! of a short GET. With `RESOLVE_CACHED` a path lookup fails instead of blocking, with `RWF_NOWAIT` a read does. Any
//! obstacle returns `None`, and the slow path takes over: not in memory, not yet indexed, something to verify or
//! record, or a file system without these flags.

use super::lru::{Digest, Presence};
use super::open_files::{KeepToken, OpenFile};
use super::trailer::{self, Trailer};
use super::{Blob, Error, Store, digest_of, micros, now};
use crate::contract::key::Key;
use crate::store::open_files::was_changed;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::{Errno, ReadWriteFlags};
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Keys that are looked up at one time: as many as a client may have layers.
const AT_ONCE: usize = 8;

impl Store {
    /// The place of the first of these keys whose blob may be there. Opens that blob and marks it as used if that is
    /// possible at once. Returns [`Error::Missing`] if all are missing.
    pub fn get_resident(&self, keys: &[Key]) -> Result<(usize, Option<Blob>), Error> {
        for (number, some) in keys.chunks(AT_ONCE).enumerate() {
            let mut digests = [Digest([0; 16]); AT_ONCE];
            for (digest, key) in digests.iter_mut().zip(some) {
                *digest = digest_of(key);
            }
            match self.first_resident(&digests, some) {
                Err(Error::Missing) => {}
                found => return found.map(|(place, blob)| (number * AT_ONCE + place, blob)),
            }
        }
        Err(Error::Missing)
    }

    /// The same for a few keys, under one lock.
    fn first_resident(
        &self,
        digests: &[Digest],
        keys: &[Key],
    ) -> Result<(usize, Option<Blob>), Error> {
        let mut pairs = digests.iter().zip(keys).enumerate();
        let (place, key, digest, found, moments) = {
            let mut state = self.inner.state();
            // Whoever reads through layers is told by most of them that they have nothing.
            let first = pairs.find(|(_, (digest, _))| state.may_have(digest));
            let (place, (digest, key)) = first.ok_or(Error::Missing)?;
            let now = micros(now());
            let Some(used_secs) = state.lru.touch_only(digest, now) else {
                return Ok((place, None));
            };
            let found = state.kept.find(digest, now);
            (place, key, digest, found, (used_secs, now))
        };
        let blob = self.open_resident(key, digest, found, moments);
        blob.map(|blob| (place, blob))
    }

    /// `found` is the file if it is open, else the permission to keep it open; `moments` are when the blob was used last and
    /// now.
    fn open_resident(
        &self,
        key: &Key,
        digest: &Digest,
        found: Result<OpenFile, KeepToken>,
        (used_secs, now): (u32, u64),
    ) -> Result<Option<Blob>, Error> {
        let inner = &*self.inner;
        let leave = match found {
            Ok(kept) if kept.is_there(used_secs) => {
                // A blob that cannot be read from disk must be a miss, not a truncated response.
                let end = kept.file_len.saturating_sub(1);
                let is_resident = read(&kept.file, &mut [0], end).is_ok_and(|whole| whole);
                return Ok(is_resident.then(|| kept.blob()));
            }
            // Opening it again finds out what happened to it.
            Ok(kept) => {
                drop(kept);
                inner.close(digest);
                None
            }
            Err(leave) => Some(leave),
        };
        let path = inner.path_of(key, digest);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = rustix::fs::openat2(
            rustix::fs::CWD,
            &path,
            flags,
            Mode::empty(),
            ResolveFlags::CACHED,
        );
        let Ok(file) = opened.map(File::from) else {
            return Ok(None);
        };
        let Ok(found) = rustix::fs::fstat(&file) else {
            return Ok(None);
        };
        if was_changed(found.st_mtime, used_secs) {
            inner.state().lru.report(digest);
            return Ok(None);
        }
        let Some((trailer, file_len)) = trailer_of(&file, &found, key) else {
            return Ok(None);
        };
        let kept = OpenFile {
            file: Arc::new(file),
            file_len,
            body_len: trailer.body_len,
            written: SystemTime::UNIX_EPOCH + Duration::from_micros(trailer.written_micros),
            used_micros: now,
        };
        let over = {
            let mut state = inner.state();
            // Marked for eviction meanwhile, or put there by another program: not ours to serve.
            if state.lru.presence(digest) != Presence::Live {
                return Ok(None);
            }
            leave.and_then(|leave| state.kept.keep(digest, kept.clone(), leave))
        };
        drop(over);
        Ok(Some(kept.blob()))
    }
}

/// Returns the trailer of a blob's file, and the length of the whole file.
fn trailer_of(file: &File, found: &Stat, key: &Key) -> Option<(Trailer, u64)> {
    if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile {
        return None;
    }
    let length = u64::try_from(found.st_size).ok()?;
    let start = trailer::earliest(key.as_str(), length)?;
    let mut bytes = [0; trailer::MOST_BYTES];
    let bytes = bytes.get_mut(..usize::try_from(length - start).ok()?)?;
    read(file, bytes, start).ok().filter(|whole| *whole)?;
    let trailer = Trailer::decode(bytes, key.as_str(), length)?;
    Some((trailer, length))
}

/// Fills `bytes` from the page cache. Returns `false` if not all of it is cached.
pub fn read(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<bool> {
    let mut done = 0;
    while done < bytes.len() {
        let rest = &mut [IoSliceMut::new(&mut bytes[done..])];
        match rustix::io::preadv2(file, rest, offset + done as u64, ReadWriteFlags::NOWAIT) {
            // End of file: the slow path finds out why.
            Ok(0) => return Ok(false),
            Ok(read) => done += read,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(true)
}
