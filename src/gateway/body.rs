//! Bodies of requests: read whole where they are short, and to their end where they are refused.

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::StatusCode;
use hyper::body::Body;
use hyper::header;
use hyper::http::request::Parts;
use std::error::Error;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

/// Longest body of a request that is no blob.
const SHORT_BODY: usize = 64 << 10;
/// How long that body may take.
const SHORT_BODY_TIME: Duration = Duration::from_secs(10);
/// Bytes of a refused request's body that are read.
const LEFT_OVER: usize = 1 << 20;
/// How long that may take.
const LEFT_OVER_TIME: Duration = Duration::from_secs(2);

/// A request's body.
pub(crate) trait Piecewise:
    Body<Data = Bytes, Error: Error + Send + Sync + 'static> + Unpin
{
}

impl<B: Body<Data = Bytes, Error: Error + Send + Sync + 'static> + Unpin> Piecewise for B {}

/// The whole body of a request that is no blob, or what is wrong with it.
pub(crate) async fn short_body(body: &mut impl Piecewise) -> Result<Bytes, String> {
    whole_body(body, SHORT_BODY, SHORT_BODY_TIME).await
}

/// The whole body of a request, if it is not longer and does not take longer.
pub(crate) async fn whole_body(
    body: &mut impl Piecewise,
    most: usize,
    time: Duration,
) -> Result<Bytes, String> {
    let whole = Limited::new(body, most).collect();
    match timeout(time, whole).await {
        Ok(Ok(whole)) => Ok(whole.to_bytes()),
        Ok(Err(cause)) => Err(cause.to_string()),
        Err(_) => Err("the body took too long".to_owned()),
    }
}

/// Answers a peer with whose bytes there is nothing to be done, by hand, and closes the connection.
pub(crate) async fn turn_away<IO: AsyncRead + AsyncWrite + Unpin>(
    mut io: IO,
    status: StatusCode,
    text: &str,
) {
    let answer = format!(
        "HTTP/1.1 {status}\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n{text}",
        text.len()
    );
    let farewell = async {
        io.write_all(answer.as_bytes()).await?;
        io.shutdown().await?;
        // A close with bytes unread would be a reset, which takes the answer with it.
        tokio::io::copy(&mut io.take(LEFT_OVER as u64), &mut tokio::io::sink()).await
    };
    let _ = timeout(LEFT_OVER_TIME, farewell).await;
}

/// Reads what is left of a refused request's body, so that the peer sees the answer instead of a reset.
pub(crate) async fn read_left_over(parts: &Parts, body: impl Piecewise) {
    if !body.is_end_stream() && !parts.headers.contains_key(header::EXPECT) {
        let _ = timeout(LEFT_OVER_TIME, Limited::new(body, LEFT_OVER).collect()).await;
    }
}
