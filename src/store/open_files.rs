//! Files of blobs that were just asked for, kept open: what one client wants, its neighbours want in the same minute.
//!
//! Such a blob costs two looks, whether its file is still there and whether its end is in memory, instead of a look-up
//! of its path, a read and a check of its trailer, and a close. A file is kept until nobody has used it for [`REST`], its
//! blob goes or is replaced, or others take its place; the room of one that others have removed comes free by then.

use super::lru::Digest;
use super::{Blob, Store};
use lru::LruCache;
use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// How long a file is kept that nobody uses.
const REST: Duration = Duration::from_secs(30);
const GENERATIONS: usize = 64;

/// An open file of a blob that was found whole.
#[derive(Debug, Clone)]
pub(super) struct OpenFile {
    pub(super) file: Arc<File>,
    pub(super) file_len: u64,
    pub(super) body_len: u64,
    pub(super) written: SystemTime,
    pub(super) used_micros: u64,
}

impl OpenFile {
    /// Whether the file is still in its place, as it was when its time of use was written.
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

/// The leave to keep a file, given before it is opened; void once its blob goes or is replaced.
#[derive(Debug, Clone, Copy)]
pub(super) struct KeepToken(u32);

/// All that are open. What its methods return is to be closed without the lock that guards it.
#[derive(Debug)]
pub(super) struct KeptFiles {
    files: LruCache<Digest, OpenFile>,
    most: usize,
    /// By a byte of the digest, which some share, how often one was forgotten.
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

    /// The blob's file, or the leave to keep one.
    pub(super) fn find(&mut self, digest: &Digest, now_micros: u64) -> Result<OpenFile, KeepToken> {
        match self.files.get_mut(digest) {
            Some(kept) => {
                kept.used_micros = now_micros;
                Ok(kept.clone())
            }
            None => Err(KeepToken(*self.generation(digest))),
        }
    }

    /// Keeps the file of a blob that is live. Returns the one that has to go for it.
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

    /// To be called whenever a blob's file goes or is replaced.
    #[must_use]
    pub(super) fn forget(&mut self, digest: &Digest) -> Option<OpenFile> {
        let generation = self.generation(digest);
        *generation = generation.wrapping_add(1);
        self.files.pop(digest)
    }

    /// Those that nobody has used for a while.
    #[must_use]
    pub(super) fn forget_unused(&mut self, now_micros: u64) -> Vec<OpenFile> {
        let rest = u64::try_from(REST.as_micros()).unwrap_or(u64::MAX);
        let mut unused = Vec::new();
        while self
            .files
            .peek_lru()
            // A clock that was set back makes some of them look as if from the future: they are as well reopened.
            .is_some_and(|(_, kept)| kept.used_micros.abs_diff(now_micros) > rest)
        {
            unused.extend(self.files.pop_lru().map(|(_, kept)| kept));
        }
        unused
    }
}

impl Store {
    /// So many files of blobs may be open that nobody is reading: none, where nobody says.
    pub fn keep_files(&self, most: usize) {
        self.inner.state().kept.most = most;
    }
}

/// How much later than we think a file's time may be: the last bytes are written after the clock was read.
const SLACK_SECS: i64 = 2;

/// Whether somebody has written to a blob's file since we wrote it, or its time of use, at `used_secs`.
pub(super) fn was_changed(mtime_secs: i64, used_secs: u32) -> bool {
    mtime_secs > i64::from(used_secs) + SLACK_SECS
}
