//! Bodies that are kept until their job is over: the beginning in memory, the rest in a file that has no name.

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Body, Frame};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

/// Bytes of a body that are kept in memory.
const MEMORY: usize = 256 << 10;
/// Bytes that are read from the file, or written to it, at a time.
const PIECE: usize = 256 << 10;
/// How long the next bytes may take to come.
const PAUSE: Duration = Duration::from_secs(30);

/// A body of unknown kind on its way out.
pub(in crate::dist_front) type Outgoing =
    http_body_util::combinators::UnsyncBoxBody<Bytes, io::Error>;

/// Why a body could not be kept.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("it has more than {} MiB", .0 >> 20)]
    TooLarge(u64),
    #[error("nothing came for {} s", PAUSE.as_secs())]
    Slow,
    #[error("the connection ended: {0}")]
    Cut(String),
    #[error("it cannot be kept: {0} (hint: is there room on the disk of SCCACHE_DIR?)")]
    Disk(io::Error),
}

/// A body that is here as a whole.
#[derive(Debug)]
pub(super) struct Spool {
    /// The first bytes, at most [`MEMORY`].
    pub(super) head: Bytes,
    rest: Option<File>,
    pub(super) length: u64,
}

impl Spool {
    /// Takes a whole body of at most `most` bytes, with its file in `dir`.
    ///
    /// # Errors
    /// It does not come, or is too large, or there is no room for it.
    pub(super) async fn fill<B>(dir: &Path, body: &mut B, most: u64) -> Result<Spool, Fault>
    where
        B: Body<Data = Bytes> + Unpin,
        B::Error: std::fmt::Display,
    {
        let mut spool = Spool {
            head: Bytes::new(),
            rest: None,
            length: 0,
        };
        // Thousands of jobs may wait: none of them takes more than it has.
        let told = usize::try_from(body.size_hint().lower()).unwrap_or(MEMORY);
        let mut head = Vec::with_capacity(told.min(MEMORY));
        // What is not yet in the file.
        let mut pending = Vec::new();
        loop {
            let frame = timeout(PAUSE, body.frame())
                .await
                .map_err(|_| Fault::Slow)?;
            let Some(frame) = frame else { break };
            let frame = frame.map_err(|cause| Fault::Cut(cause.to_string()))?;
            let Ok(data) = frame.into_data() else {
                continue;
            };
            spool.length += data.len() as u64;
            if spool.length > most {
                return Err(Fault::TooLarge(most));
            }
            let (near, far) = data.split_at(data.len().min(MEMORY - head.len()));
            head.extend_from_slice(near);
            pending.extend_from_slice(far);
            if pending.len() >= PIECE {
                pending = spool.write(dir, pending).await.map_err(Fault::Disk)?;
            }
        }
        if !pending.is_empty() {
            spool.write(dir, pending).await.map_err(Fault::Disk)?;
        }
        spool.head = head.into();
        Ok(spool)
    }

    /// Appends to the file; gives the buffer back, empty.
    async fn write(&mut self, dir: &Path, mut bytes: Vec<u8>) -> io::Result<Vec<u8>> {
        let (rest, dir) = (self.rest.take(), dir.to_owned());
        let written = spawn_blocking(move || {
            let mut file = match rest {
                Some(file) => file,
                None => temporary(&dir)?,
            };
            file.write_all(&bytes)?;
            bytes.clear();
            io::Result::Ok((file, bytes))
        });
        let (file, bytes) = written.await.map_err(io::Error::other)??;
        self.rest = Some(file);
        Ok(bytes)
    }

    /// The body, from its beginning.
    pub(super) fn outgoing(self: &Arc<Spool>) -> Outgoing {
        let pieces = stream::unfold((Arc::clone(self), 0), |(spool, at)| async move {
            if at >= spool.length {
                return None;
            }
            let piece = spool.piece(at).await;
            let next = match &piece {
                Ok(piece) => at + piece.len() as u64,
                Err(_) => spool.length,
            };
            Some((piece.map(Frame::data), (spool, next)))
        });
        StreamBody::new(pieces).boxed_unsync()
    }

    async fn piece(self: &Arc<Spool>, at: u64) -> io::Result<Bytes> {
        let memory = self.head.len() as u64;
        if at < memory {
            let at = usize::try_from(at).unwrap_or(usize::MAX);
            return Ok(self.head.slice(at..));
        }
        let spool = Arc::clone(self);
        let read = spawn_blocking(move || {
            let left = usize::try_from(spool.length - at).unwrap_or(PIECE);
            let mut piece = vec![0; left.min(PIECE)];
            let file = spool.rest.as_ref().ok_or(io::ErrorKind::UnexpectedEof)?;
            file.read_exact_at(&mut piece, at - memory)?;
            Ok(piece.into())
        });
        read.await.map_err(io::Error::other)?
    }
}

/// The same, after its folder was made, if that was not possible at the start.
fn temporary(dir: &Path) -> io::Result<File> {
    match tempfile(dir) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
            std::fs::create_dir_all(dir)?;
            tempfile(dir)
        }
        made => made,
    }
}

/// A file that is gone when it is closed, whoever closes it.
fn tempfile(dir: &Path) -> io::Result<File> {
    let mut random = [0; 16];
    getrandom::fill(&mut random)?;
    let path = dir.join(format!("job-{:032x}", u128::from_ne_bytes(random)));
    let mut options = File::options();
    let file = options
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::Full;

    async fn spooled(dir: &Path, body: &[u8], most: u64) -> Result<Arc<Spool>, Fault> {
        let mut body = Full::new(Bytes::copy_from_slice(body));
        Spool::fill(dir, &mut body, most).await.map(Arc::new)
    }

    #[tokio::test]
    async fn body_of_any_length_comes_out_as_it_went_in_more_than_once() {
        let dir = tempfile::tempdir().unwrap();
        for length in [0, 1, MEMORY, MEMORY + 1, MEMORY + 3 * PIECE + 7] {
            let body: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
            let spool = spooled(dir.path(), &body, 1 << 30).await.unwrap();
            for _ in 0..2 {
                let out = spool.outgoing().collect().await.unwrap().to_bytes();
                assert!(out == body, "{length}");
            }
            let left = std::fs::read_dir(dir.path()).unwrap().count();
            assert_eq!(left, 0, "the file has no name");
        }
    }

    #[tokio::test]
    async fn too_large_a_body_and_a_folder_that_cannot_be_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let large = spooled(dir.path(), &[0; 11], 10).await;
        assert!(matches!(large, Err(Fault::TooLarge(10))), "{large:?}");
        // What could not be made at the start is made when there is room.
        let gone = dir.path().join("gone");
        let kept = spooled(&gone, &vec![0; MEMORY + 1], 1 << 30).await;
        assert_eq!(kept.unwrap().length, MEMORY as u64 + 1);
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let lost = spooled(&file.join("gone"), &vec![0; MEMORY + 1], 1 << 30).await;
        assert!(matches!(lost, Err(Fault::Disk(_))), "{lost:?}");
    }
}
