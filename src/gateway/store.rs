//! The blob store.

use super::key::Key;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};
use thiserror::Error;

/// Where the store is and how much it may take.
#[derive(Debug, Clone)]
pub struct Options {
    /// The store's own folder; made when missing.
    pub dir: PathBuf,
    /// Most bytes that blobs and writes in flight may take on disk, in whole file-system blocks.
    pub budget_bytes: u64,
}

/// Why the store could not do what was asked.
#[derive(Debug, Error)]
pub enum Error {
    /// There is no such blob.
    #[error("there is no such blob")]
    Missing,
    /// The blob alone would take more than the whole budget.
    #[error("the blob takes {size} bytes, more than the store's whole budget of {limit}")]
    TooLarge {
        /// Bytes that the blob would take on disk (at least; the end of it may not have been seen).
        size: u64,
        /// The budget in bytes.
        limit: u64,
    },
    /// The body was shorter or longer than announced.
    #[error("the body has {received} bytes, but {announced} were announced")]
    WrongLength {
        /// Bytes that the caller of `put` promised.
        announced: u64,
        /// Bytes that came (at least).
        received: u64,
    },
    /// The disk is full, or writes in flight hold the whole budget. Reads go on.
    #[error("there is no space for the blob")]
    NoSpace,
    /// More namespaces than the store keeps account of.
    #[error("the store has {limit} namespaces already")]
    TooManyNamespaces {
        /// The most namespaces there may be.
        limit: usize,
    },
    /// Another process owns the folder.
    #[error("cannot open store \"{}\": another process is using it", dir.display())]
    InUse {
        /// The store's folder.
        dir: PathBuf,
    },
    /// The file system failed. Reads go on where they can.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// The store. Cheap to clone; every clone is the same store. All calls block: call them from a thread that may.
#[derive(Debug, Clone)]
pub struct Store {}

/// A blob, open for reading: its body is the first `len` bytes of `file`, which stands at offset 0.
#[derive(Debug)]
pub struct Blob {
    /// The file. It stays readable when the blob is evicted or replaced meanwhile.
    pub file: std::fs::File,
    /// Bytes of the body.
    pub len: u64,
    /// When the blob was written.
    pub modified: SystemTime,
}

/// A blob being written. Dropped without [`Writer::commit`], it leaves nothing behind.
#[derive(Debug)]
pub struct Writer {}

/// What to purge; everything when both are `None`.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only blobs that nobody used for at least this long.
    pub older_than: Option<Duration>,
    /// Only this namespace; empty is the default one.
    pub namespace: Option<String>,
}

/// What a purge removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Purged {
    /// Blobs.
    pub entries: u64,
    /// Bytes on disk.
    pub bytes: u64,
}

/// The store at one moment.
#[derive(Debug, Clone)]
pub struct Usage {
    /// Bytes on disk of all indexed blobs.
    pub bytes: u64,
    /// Bytes held for writes in flight; `bytes + reserved_bytes` stays within the budget.
    pub reserved_bytes: u64,
    /// The budget.
    pub budget_bytes: u64,
    /// Indexed blobs.
    pub entries: u64,
    /// The start's scan has not ended: `bytes` and `entries` still grow.
    pub indexing: bool,
    /// Blobs evicted since the start.
    pub evicted_entries: u64,
    /// Their bytes on disk.
    pub evicted_bytes: u64,
    /// Files removed since the start because they were not whole.
    pub broken_entries: u64,
    /// Blobs whose files vanished behind our back.
    pub vanished_entries: u64,
    /// Files in the store's folders that are not ours; they are left alone and not counted in `bytes`.
    pub foreign_files: u64,
    /// Namespaces that hold blobs, by name.
    pub namespaces: Vec<NamespaceUsage>,
    /// The last time that the file system refused something.
    pub last_fault: Option<Fault>,
}

/// One namespace's share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamespaceUsage {
    /// Its name; empty for the default one.
    pub name: String,
    /// Bytes on disk.
    pub bytes: u64,
    /// Blobs.
    pub entries: u64,
}

/// The file system refused something.
#[derive(Debug, Clone)]
pub struct Fault {
    /// What, in the form `cannot <verb> <object>: <cause>`.
    pub message: String,
    /// When.
    pub at: SystemTime,
    /// How many there were since the start.
    pub count: u64,
}

impl Store {
    /// Opens or makes the store, removes left-over temporary files and starts to index what is there on a
    /// thread of its own. Serves at once.
    pub fn open(_options: Options) -> Result<Store, Error> {
        todo!()
    }

    /// Opens a blob and marks it as used. [`Error::Missing`] on a miss.
    pub fn get(&self, _key: &Key) -> Result<Blob, Error> {
        todo!()
    }

    /// Bytes of a blob's body; does not count as use.
    pub fn size(&self, _key: &Key) -> Result<u64, Error> {
        todo!()
    }

    /// Reserves room for a blob, evicting others as needed, and opens it for writing. `length` is its body's
    /// bytes where they are known beforehand; `commit` refuses any other number.
    pub fn put(&self, _key: &Key, _length: Option<u64>) -> Result<Writer, Error> {
        todo!()
    }

    /// Removes a blob.
    pub fn delete(&self, _key: &Key) -> Result<(), Error> {
        todo!()
    }

    /// Removes all blobs that match. Waits for the end of the start's scan.
    pub fn purge(&self, _filter: &Filter) -> Result<Purged, Error> {
        todo!()
    }

    /// Figures for status and metrics.
    pub fn usage(&self) -> Usage {
        todo!()
    }
}

impl Writer {
    /// Appends to the body.
    pub fn write(&mut self, _bytes: &[u8]) -> Result<(), Error> {
        todo!()
    }

    /// Makes the blob visible. Returns whether it replaced an older one.
    pub fn commit(self) -> Result<bool, Error> {
        todo!()
    }
}
