//! A blob on its way to a client: in memory, in pieces, or as a part of a file.

use super::{CALL, CHUNK, PIECE, PROBE};
use crate::store::{CorruptionReport, Unchecked, page_cache};
use bytes::Bytes;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::SystemTime;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::Receiver;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;

/// A body in memory with the permit to hold it.
pub(super) struct Held {
    pub(super) body: Vec<u8>,
    pub(super) _permit: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}

/// A blob on its way to a client. As an HTTP body it ends with an error if the disk fails in mid-blob, which
/// cuts the connection: the client sees a broken answer, never a short one.
#[derive(Debug)]
pub struct Download {
    /// Bytes of the body.
    pub length: u64,
    /// When the blob was written.
    pub modified: SystemTime,
    pub(super) state: State,
}

#[derive(Debug)]
pub(super) enum State {
    Whole(Option<Bytes>),
    /// Of no known length: several blobs, one after the other.
    Stream(Receiver<io::Result<Bytes>>),
    Pieces {
        file: Arc<File>,
        /// Kept until the last piece.
        unchecked: Option<Box<Unchecked>>,
        /// Raised when it cannot be read.
        report: CorruptionReport,
        /// What follows the body was just read without waiting for the disk.
        end_is_resident: bool,
        at: u64,
        read: Option<JoinHandle<io::Result<Bytes>>>,
        _permit: OwnedSemaphorePermit,
    },
}

impl Download {
    /// Pieces as they come.
    pub(crate) fn stream(pieces: Receiver<io::Result<Bytes>>) -> Download {
        Download {
            length: 0,
            modified: SystemTime::UNIX_EPOCH,
            state: State::Stream(pieces),
        }
    }

    /// The next piece; `None` after the last.
    pub async fn next(&mut self) -> Option<io::Result<Bytes>> {
        std::future::poll_fn(|context| self.poll_next(context)).await
    }

    /// The blob as a part of a file, where its body is neither in memory here nor still to be compared with its
    /// checksum. Such a part holds no memory that others could wait for, however slowly its client takes it.
    pub(crate) fn file_part(self) -> Result<FilePart, Download> {
        match self.state {
            State::Pieces {
                file,
                report,
                end_is_resident,
                at,
                unchecked: None,
                ..
            } => Ok(FilePart {
                file,
                report,
                end_is_resident,
                at,
                end: self.length,
            }),
            State::Whole(_) | State::Stream(_) | State::Pieces { .. } => Err(self),
        }
    }

    fn rest(&self) -> u64 {
        match &self.state {
            State::Whole(body) => body.as_ref().map_or(0, |body| body.len() as u64),
            State::Pieces { at, .. } => self.length - at,
            State::Stream(_) => 0,
        }
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        let (file, unchecked, report, at, read) = match &mut self.state {
            State::Whole(body) => {
                return Poll::Ready(body.take().filter(|body| !body.is_empty()).map(Ok));
            }
            State::Stream(pieces) => return pieces.poll_recv(context),
            State::Pieces {
                file,
                unchecked,
                report,
                at,
                read,
                ..
            } => (file, unchecked, report, at, read),
        };
        if *at == self.length {
            return Poll::Ready(None);
        }
        let piece = ready!(poll_piece(file, *at, self.length - *at, read, context));
        *at = match &piece {
            Ok(piece) => *at + piece.len() as u64,
            // Nothing more can come.
            Err(_) => {
                report.raise();
                self.length
            }
        };
        if let (Some(check), Ok(piece)) = (unchecked, &piece) {
            check.update(piece);
            if *at == self.length && !check.is_whole() {
                let cause = "the blob disagrees with its checksum";
                return Poll::Ready(Some(Err(io::Error::other(cause))));
            }
        }
        Poll::Ready(Some(piece))
    }
}

/// The next piece of a file, of which `rest` bytes are wanted from `at` on.
fn poll_piece(
    file: &Arc<File>,
    at: u64,
    rest: u64,
    read: &mut Option<JoinHandle<io::Result<Bytes>>>,
    context: &mut Context<'_>,
) -> Poll<io::Result<Bytes>> {
    let rest = usize::try_from(rest).unwrap_or(PIECE).min(PIECE);
    if read.is_none() {
        let mut piece = vec![0; rest];
        if page_cache::read(file, &mut piece, at).is_ok_and(|whole| whole) {
            return Poll::Ready(Ok(Bytes::from(piece)));
        }
    }
    let task = read.get_or_insert_with(|| {
        let file = Arc::clone(file);
        spawn_blocking(move || {
            let mut piece = vec![0; rest];
            file.read_exact_at(&mut piece, at)?;
            Ok(Bytes::from(piece))
        })
    });
    let piece = ready!(Pin::new(task).poll(context));
    *read = None;
    Poll::Ready(piece.map_err(io::Error::other).flatten())
}

/// What is to be sent of a file.
#[derive(Debug)]
pub(crate) struct FilePart {
    file: Arc<File>,
    report: CorruptionReport,
    end_is_resident: bool,
    at: u64,
    end: u64,
}

impl FilePart {
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    pub(crate) fn rest(&self) -> u64 {
        self.end - self.at
    }

    pub(crate) fn advance(&mut self, sent: usize) {
        self.at = self.end.min(self.at + sent as u64);
    }

    /// How many bytes, up to `most`, can be sent from here on without waiting for the disk: at least some, as
    /// those that are not in memory are fetched, where that may block.
    ///
    /// One page in [`PROBE`] bytes is looked at; the kernel reads and drops more than that at a time.
    pub(crate) async fn resident(&self, most: usize) -> io::Result<usize> {
        let rest = usize::try_from(self.rest()).unwrap_or(most).min(most);
        if self.end_is_resident && rest <= PROBE && rest as u64 == self.rest() {
            return Ok(rest);
        }
        let is_there = |at: &usize| {
            let probe = page_cache::read(&self.file, &mut [0], self.at + *at as u64);
            probe.is_ok_and(|whole| whole)
        };
        let absent = (0..rest).step_by(PROBE).find(|at| !is_there(at));
        match absent.unwrap_or(rest) {
            0 => {
                let (file, from, count) = (Arc::clone(&self.file), self.at, rest.min(CHUNK));
                let fetch = spawn_blocking(move || file.read_exact_at(&mut vec![0; count], from));
                let fetched = timeout(CALL, fetch).await?.map_err(io::Error::other)?;
                fetched.inspect_err(|_| self.report.raise())?;
                Ok(count)
            }
            resident => Ok(resident),
        }
    }
}

impl hyper::body::Body for Download {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<hyper::body::Frame<Bytes>>>> {
        let piece = ready!(self.get_mut().poll_next(context));
        Poll::Ready(piece.map(|piece| piece.map(hyper::body::Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        !matches!(self.state, State::Stream(_)) && self.rest() == 0
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        if let State::Stream(_) = self.state {
            return hyper::body::SizeHint::default();
        }
        hyper::body::SizeHint::with_exact(self.rest())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::key::Key;
    use crate::store::{Options, Store};
    use std::io::Write;
    use tokio::sync::Semaphore;

    #[tokio::test]
    async fn file_that_shrinks_in_mid_blob_is_an_error_not_an_end() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[1; PIECE + 10]).unwrap();
        let memory = Arc::new(Semaphore::new(1));
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(Options {
            dir: folder.path().to_owned(),
            budget_bytes: 1 << 20,
            policies: Default::default(),
        });
        let (store, key) = (store.unwrap(), Key::parse("cas/x").unwrap());
        let mut download = Download {
            length: 3 * PIECE as u64,
            modified: SystemTime::UNIX_EPOCH,
            state: State::Pieces {
                file: Arc::new(file),
                unchecked: None,
                report: store.report(&key),
                end_is_resident: false,
                at: 0,
                read: None,
                _permit: memory.acquire_owned().await.unwrap(),
            },
        };
        assert_eq!(download.next().await.unwrap().unwrap().len(), PIECE);
        assert!(download.next().await.unwrap().is_err());
        while store.usage().scrubbed.suspicions == 0 {
            tokio::task::yield_now().await;
        }
        assert!(download.next().await.is_none());
    }
}
