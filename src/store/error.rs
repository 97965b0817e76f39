//! Why an operation of the store failed: for the caller, the log and the status.

use super::{Inner, now};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use thiserror::Error;

/// The same fault is logged once per this interval.
const LOG_PAUSE: Duration = Duration::from_secs(60);

/// Why an operation failed.
#[derive(Debug, Error)]
pub enum Error {
    /// There is no such blob.
    #[error("there is no such blob")]
    Missing,
    /// The blob alone would exceed the whole budget, or the whole quota of its namespace.
    #[error("the blob takes {size} bytes, more than the whole budget or quota of {limit}")]
    TooLarge {
        /// Bytes that the blob would take on disk, or a lower bound if its end is unknown.
        size: u64,
        /// The budget or quota in bytes.
        limit: u64,
    },
    /// The body was shorter or longer than announced.
    #[error("the body has {received} bytes, but {announced} were announced")]
    WrongLength {
        /// Bytes announced to `put`.
        announced: u64,
        /// Bytes received, or a lower bound.
        received: u64,
    },
    /// The disk is full, or writes in flight hold the whole budget or quota. Reads still work.
    #[error("there is no space for the blob")]
    NoSpace,
    /// The budget is full of pinned blobs. Reads still work.
    #[error("there is no space for the blob: what could make room for it is in pinned namespaces")]
    Pinned,
    /// There are too many namespaces.
    #[error("the store has {limit} namespaces already")]
    TooManyNamespaces {
        /// Maximum number of namespaces.
        limit: usize,
    },
    /// One token has created too many namespaces.
    #[error(
        "this token has made {limit} namespaces, as many as one may: purge some, or use another token"
    )]
    TooManyOfOne {
        /// Maximum number of namespaces per token.
        limit: usize,
    },
    /// Another process owns the folder.
    #[error("cannot open store \"{}\": another process is using it", dir.display())]
    InUse {
        /// The store's folder.
        dir: PathBuf,
    },
    /// The file system failed. Reads still work as far as possible.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// A file-system error.
#[derive(Debug, Clone)]
pub struct Fault {
    /// The error in the form `cannot <verb> <object>: <cause>`.
    pub message: String,
    /// Time of the error.
    pub at: SystemTime,
    /// Number of errors since the start.
    pub count: u64,
    logged_at: SystemTime,
}

impl Inner {
    /// Records a file-system error and returns the corresponding store error.
    pub(super) fn fault(&self, verb: &str, path: &Path, error: io::Error) -> Error {
        let message = format!("cannot {verb} \"{}\": {error}", path.display());
        let at = now();
        let mut state = self.state();
        let last = state.last_fault.as_ref();
        let count = last.map_or(1, |last| last.count + 1);
        let quiet = last.is_some_and(|last| {
            at.duration_since(last.logged_at)
                .is_ok_and(|age| age < LOG_PAUSE)
        });
        let logged_at = last.filter(|_| quiet).map_or(at, |last| last.logged_at);
        state.last_fault = Some(Fault {
            message: message.clone(),
            at,
            count,
            logged_at,
        });
        drop(state);
        if !quiet {
            tracing::warn!(count, "{message}");
        }
        if is_full(&error) {
            Error::NoSpace
        } else {
            Error::Io(io::Error::new(error.kind(), message))
        }
    }
}

pub(super) fn described(verb: &str, path: &Path, error: &io::Error) -> Error {
    Error::Io(io::Error::new(
        error.kind(),
        format!("cannot {verb} \"{}\": {error}", path.display()),
    ))
}

pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}
