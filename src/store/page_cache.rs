//! Blobs that the kernel has in memory: opened and read without ever waiting for the disk, so that a thread that
//! serves others may do it.
//!
//! A blob from here costs a few system calls; one that goes the way over a thread that may block costs two task
//! switches more, which is half of the time of a short GET. `RESOLVE_CACHED` lets the look-up of a path fail
//! instead of wait, `RWF_NOWAIT` a read. Whatever is in the way (not in memory, not indexed yet, something to
//! check or to note, a file system that knows neither flag) ends in `None`, and the long way does the rest.

use super::lru::Presence;
use super::open_files::OpenFile;
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

impl Store {
    /// Opens a blob and marks it as used, if that can be done at once. [`Error::Missing`] on a miss.
    pub fn get_resident(&self, key: &Key) -> Result<Option<Blob>, Error> {
        let inner = &*self.inner;
        let (digest, now) = (digest_of(key), micros(now()));
        let (found, used_secs) = {
            let mut state = inner.state();
            if !state.may_have(&digest) {
                return Err(Error::Missing);
            }
            let Some(used_secs) = state.lru.touch_only(&digest, now) else {
                return Ok(None);
            };
            (state.kept.find(&digest, now), used_secs)
        };
        let leave = match found {
            Ok(kept) if kept.is_there(used_secs) => {
                // A blob that the disk cannot read is to be a miss, and not an answer that breaks off.
                let end = kept.file_len.saturating_sub(1);
                let is_resident = read(&kept.file, &mut [0], end).is_ok_and(|whole| whole);
                return Ok(is_resident.then(|| kept.blob()));
            }
            // What has become of it is found out by opening it anew.
            Ok(kept) => {
                drop(kept);
                inner.close(&digest);
                None
            }
            Err(leave) => Some(leave),
        };
        let path = inner.path_of(key, &digest);
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
            inner.state().lru.report(&digest);
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
            // Doomed meanwhile, or put there by somebody else: not ours to serve.
            if state.lru.presence(&digest) != Presence::Live {
                return Ok(None);
            }
            leave.and_then(|leave| state.kept.keep(&digest, kept.clone(), leave))
        };
        drop(over);
        Ok(Some(kept.blob()))
    }
}

/// The trailer of a blob's file, and the bytes of the whole file.
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

/// Fills `bytes` from what the kernel has of `file` in memory. `false` when that is not all of it.
pub fn read(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<bool> {
    let mut done = 0;
    while done < bytes.len() {
        let rest = &mut [IoSliceMut::new(&mut bytes[done..])];
        match rustix::io::preadv2(file, rest, offset + done as u64, ReadWriteFlags::NOWAIT) {
            // The end of the file: the long way finds out how that came.
            Ok(0) => return Ok(false),
            Ok(read) => done += read,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(true)
}
