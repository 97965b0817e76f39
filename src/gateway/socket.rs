//! What the gateway asks of a connection beyond reading and writing, for all kinds alike.

use crate::base::timeout::within;
use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, Interest, ReadBuf};
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

/// A connection on which what arrives is acknowledged at once.
///
/// sccache's client sends a frame in two writes, and `sccache-dist` TLS tickets and then its answer. Their kernels hold the
/// second write back until the first one is acknowledged (Nagle, RFC 896), which ours delays by 40 ms (RFC 1122, 4.2.3.2).
#[derive(Debug)]
pub(crate) struct Prompt<S>(pub(crate) S);

impl<S: Socket> AsyncRead for Prompt<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.0).poll_read(context, buffer);
        if matches!(read, Poll::Ready(Ok(()))) {
            self.acknowledge();
        }
        read
    }
}

impl<S: Socket> Prompt<S> {
    /// The kernel forgets it soon, and after each write delays acknowledgements again: hence at each read and write. A Unix
    /// socket has nothing to acknowledge.
    fn acknowledge(&self) {
        let _ = rustix::net::sockopt::set_tcp_quickack(&self.0, true);
    }
}

impl<S: Socket> AsyncWrite for Prompt<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.0).poll_write(context, bytes);
        if written.is_ready() {
            self.acknowledge();
        }
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.0).poll_write_vectored(context, pieces);
        if written.is_ready() {
            self.acknowledge();
        }
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
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
