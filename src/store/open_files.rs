//! Keeps files of recently requested blobs open, because clients often request the same blob within a minute.
//!
//! Serving such a blob takes two checks, whether its file is still there and whether its end is in memory. Otherwise it
//! takes a path lookup, reading and verifying the trailer, and closing the file. A file stays open until it has been
//! unused for [`REST`], its blob is removed or replaced, or its place is needed. Space of files removed by other
//! programs is freed by then, too.

use super::lru::Digest;
use super::{Blob, Store};
use lru::LruCache;
use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// How long an unused file is kept open.
const REST: Duration = Duration::from_secs(30);
const GENERATIONS: usize = 64;

/// An open file of a blob that was found intact.
#[derive(Debug, Clone)]
pub(super) struct OpenFile {
    pub(super) file: Arc<File>,
    pub(super) file_len: u64,
    pub(super) body_len: u64,
    pub(super) written: SystemTime,
    pub(super) used_micros: u64,
}

impl OpenFile {
    /// Whether the file is still in place, unchanged since its time of use was written.
    pub(super) fn is_there(&self, used_secs: u32) -> bool {
        let found = rustix::fs::fstat(&*self.file);
        found.is_ok_and(|found| {
            found.st_nlink > 0
                && u64::try_from(found.st_size) == Ok(self.file_len)
                && !was_changed(found.st_mtime, used_secs)
        })
    }

    pub(super) fn blob(self) -> Blob {
        Blob {
            file: self.file,
            len: self.body_len,
            modified: self.written,
            unchecked: None,
        }
    }
}

/// Permission to keep a file open, obtained before opening it; void once the blob is removed or replaced.
#[derive(Debug, Clone, Copy)]
pub(super) struct KeepToken(u32);

/// All open files. The caller must close what the methods return after releasing the lock.
#[derive(Debug)]
pub(super) struct KeptFiles {
    files: LruCache<Digest, OpenFile>,
    most: usize,
    /// Number of removals, by one byte of the digest.
    generations: [u32; GENERATIONS],
}

impl KeptFiles {
    pub(super) fn new() -> KeptFiles {
        KeptFiles {
            files: LruCache::unbounded(),
            most: 0,
            generations: [0; GENERATIONS],
        }
    }

    fn generation(&mut self, digest: &Digest) -> &mut u32 {
        &mut self.generations[usize::from(digest.0[14]) % GENERATIONS]
    }

    /// The blob's file, or the permission to keep one.
    pub(super) fn find(&mut self, digest: &Digest, now_micros: u64) -> Result<OpenFile, KeepToken> {
        match self.files.get_mut(digest) {
            Some(kept) => {
                kept.used_micros = now_micros;
                Ok(kept.clone())
            }
            None => Err(KeepToken(*self.generation(digest))),
        }
    }

    /// Keeps the file of a live blob open. Returns the file that must be closed in exchange.
    #[must_use]
    pub(super) fn keep(
        &mut self,
        digest: &Digest,
        kept: OpenFile,
        leave: KeepToken,
    ) -> Option<OpenFile> {
        if *self.generation(digest) != leave.0 {
            return Some(kept);
        }
        let before = self.files.push(*digest, kept);
        let oldest = if self.files.len() > self.most {
            self.files.pop_lru()
        } else {
            None
        };
        before.or(oldest).map(|(_, other)| other)
    }

    /// Must be called whenever a blob's file is removed or replaced.
    #[must_use]
    pub(super) fn forget(&mut self, digest: &Digest) -> Option<OpenFile> {
        let generation = self.generation(digest);
        *generation = generation.wrapping_add(1);
        self.files.pop(digest)
    }

    /// Removes and returns the files that have not been used for a while.
    #[must_use]
    pub(super) fn forget_unused(&mut self, now_micros: u64) -> Vec<OpenFile> {
        let rest = u64::try_from(REST.as_micros()).unwrap_or(u64::MAX);
        let mut unused = Vec::new();
        while self
            .files
            .peek_lru()
            // If the clock was set back, some times of use are in the future: reopening those files is harmless.
            .is_some_and(|(_, kept)| kept.used_micros.abs_diff(now_micros) > rest)
        {
            unused.extend(self.files.pop_lru().map(|(_, kept)| kept));
        }
        unused
    }
}

impl Store {
    /// Sets how many unused blob files may stay open; 0 unless this is called.
    pub fn keep_files(&self, most: usize) {
        self.inner.state().kept.most = most;
    }
}

/// How much a file's time may exceed ours: its last bytes are written after the clock was read.
const SLACK_SECS: i64 = 2;

/// Whether another program has written to a blob's file since we wrote it, or its time of use, at `used_secs`.
pub(super) fn was_changed(mtime_secs: i64, used_secs: u32) -> bool {
    mtime_secs > i64::from(used_secs) + SLACK_SECS
}
