//! What the gateway asks of a connection beyond reading and writing, for all kinds alike.

use crate::gateway::within::within;
use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, Interest};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::error::Elapsed;

/// A connected stream socket.
pub(crate) trait Socket:
    AsyncRead + AsyncWrite + AsFd + Unpin + Send + Sync + 'static
{
    /// Waits for bytes, so that the memory for them can be had afterwards.
    fn poll_readable(&self, context: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Does `work` when the socket takes bytes, again and again until that would not block.
    fn when_writable<T>(
        &self,
        work: impl FnMut() -> io::Result<T> + Send,
    ) -> impl Future<Output = io::Result<T>> + Send;

    /// Sends some of `bytes`, which more are to follow: they may wait for those.
    fn send_more(&self, bytes: &[u8]) -> impl Future<Output = io::Result<usize>> + Send {
        use rustix::net::SendFlags;
        self.when_writable(move || {
            let flags = SendFlags::MORE | SendFlags::NOSIGNAL;
            Ok(rustix::net::send(self, bytes, flags)?)
        })
    }

    /// Sends some of `count` bytes of `file`, from `offset` on, without a copy. Returns how many; 0 at its end.
    fn send_file(
        &self,
        file: &File,
        offset: u64,
        count: usize,
    ) -> impl Future<Output = io::Result<usize>> + Send {
        self.when_writable(move || {
            let mut offset = offset;
            Ok(rustix::fs::sendfile(self, file, Some(&mut offset), count)?)
        })
    }
}

impl Socket for TcpStream {
    fn poll_readable(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_read_ready(context)
    }

    async fn when_writable<T>(&self, work: impl FnMut() -> io::Result<T> + Send) -> io::Result<T> {
        self.async_io(Interest::WRITABLE, work).await
    }
}

impl Socket for UnixStream {
    fn poll_readable(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_read_ready(context)
    }

    async fn when_writable<T>(&self, work: impl FnMut() -> io::Result<T> + Send) -> io::Result<T> {
        self.async_io(Interest::WRITABLE, work).await
    }
}

/// Writes a head and what follows it, in one call where the socket takes both. It may stand still for `patience`.
pub(crate) async fn write_both<E: From<io::Error> + From<Elapsed>>(
    writer: &mut (impl AsyncWrite + Unpin),
    head: &[u8],
    body: &[u8],
    patience: Duration,
) -> Result<(), E> {
    let mut sent = 0;
    while sent < head.len() + body.len() {
        let pieces = [
            IoSlice::new(&head[sent.min(head.len())..]),
            IoSlice::new(&body[sent.saturating_sub(head.len())..]),
        ];
        sent += match within(patience, writer.write_vectored(&pieces)).await?? {
            0 => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
            count => count,
        };
    }
    Ok(())
}
