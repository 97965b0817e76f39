//! HTTP/1.1 on one connection, for both ports.

use hyper::body::{Body, Incoming};
use hyper::service::Service;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::error::Error;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio_io_timeout::TimeoutStream;

/// What a peer may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// How long a request's head may take, and a connection stay idle.
    pub(crate) head: Duration,
    /// How long the peer may leave an answer standing.
    pub(crate) take: Duration,
    /// Bytes of the read and of the write buffer.
    pub(crate) buffer: usize,
    /// Whether a peer that has sent its last byte still waits for an answer. Otherwise it has gone, and its request ends.
    pub(crate) half_close: bool,
}

/// Answers requests by `service` until the connection closes, or until the request in flight is answered once we are stopping.
///
/// # Errors
/// The connection did not end as HTTP does.
pub(crate) async fn serve<IO, S, B>(
    io: IO,
    service: S,
    limits: Limits,
    mut stopping: watch::Receiver<bool>,
) -> hyper::Result<()>
where
    IO: AsyncRead + AsyncWrite + Send + 'static,
    S: Service<Request<Incoming>, Response = Response<B>>,
    S::Error: Into<Box<dyn Error + Send + Sync>>,
    B: Body + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let mut io = Box::pin(TimeoutStream::new(io));
    io.as_mut().set_write_timeout_pinned(Some(limits.take));
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_buf_size(limits.buffer)
        .half_close(limits.half_close)
        .serve_connection(TokioIo::new(io), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return ended,
        _ = stopping.wait_for(|stopping| *stopping) => {}
    }
    connection.as_mut().graceful_shutdown();
    connection.await
}
