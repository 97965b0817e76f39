//! The connection of a client that speaks plain HTTP/1.1, as all of sccache's, ccache's and Bazel's do.
//!
//! hyper copies what it sends: of a long blob every byte twice. Here a blob's file goes to the socket by
//! `sendfile(2)`, and its head, or the whole of a short one, in one system call. What a request means is decided
//! in one place for both, `answer`.
//!
//! ```text
//! read -> head whole? -> plain? -+- yes -> answer -> head + body, or head and sendfile -> read
//!                                '- no --> hyper takes over, with all bytes from this request's first on
//! ```
//!
//! Plain is what can be framed in one way only: HTTP/1.1, at most one `Content-Length` of digits, no
//! `Transfer-Encoding`, no `Expect`, no `Upgrade`, none of `Connection`'s options but `close` and `keep-alive`, no part
//! of a blob, and nothing that browsers send: no page of the status and no `POST`. Anything else, and anything that is
//! malformed, is hyper's, for the rest of the connection; what could be framed in two ways is refused.
//! Heads are parsed by the parser that hyper uses, so that no two opinions on a head's end can differ.

use super::{Answer, LIMITS, answer};
use crate::base::time::unix_seconds;
use crate::base::timeout::within;
use crate::gateway::Gateway;
use crate::gateway::connection_limit;
use crate::gateway::disk::{Download, FilePart};
use crate::gateway::peer::Peer;
use crate::gateway::socket::{Socket, write_both};
use crate::gateway::upstream::cycle;
use bytes::{Buf, Bytes, BytesMut};
use http_body_util::{BodyExt, Either};
use hyper::body::{Body, Frame, SizeHint};
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Request, StatusCode};
use std::cell::Cell;
use std::future::poll_fn;
use std::io::{self, Write};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

/// Read at once of a head and what follows it, which is all of most requests, or of a body: what stays in a processor's
/// own memory until it is written.
const READ: usize = 64 << 10;
/// Headers of one request.
const HEADERS: usize = 64;
/// Most that one call of `sendfile` is to move: other connections wait meanwhile.
const TURN: usize = 1 << 20;

const AMBIGUOUS: &[u8] =
    b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";

/// How the service of a connection ended.
pub(super) enum Outcome {
    /// It is closed, or to be closed.
    Over,
    /// hyper is to go on with these bytes.
    NotPlain(BytesMut),
}

/// What a request's head says about its frame.
struct Frameable {
    parts: Parts,
    head_bytes: usize,
    body_bytes: u64,
    closes: bool,
}

enum Head {
    Partial,
    NotPlain,
    /// What would be its end depends on who reads it.
    Ambiguous,
    Plain(Box<Frameable>),
}

/// Serves plain requests until there is none any more. `buffer` holds what was read already.
pub(super) async fn converse<S: Socket>(
    gateway: &Arc<Gateway>,
    stream: &mut S,
    mut buffer: BytesMut,
    peer: &Peer,
    stopping: &watch::Receiver<bool>,
) -> Outcome {
    // Both wait for all requests in turn: to put a deadline off, or to go on waiting, takes no lock that others hold.
    let mut too_long = pin!(sleep(LIMITS.head));
    let mut waiting = stopping.clone();
    let mut stopped = pin!(waiting.wait_for(|stopping| *stopping));
    loop {
        too_long.as_mut().reset(Instant::now() + LIMITS.head);
        let head = loop {
            match parse(&buffer, gateway.config.anonymous_read) {
                Head::Plain(head) => break head,
                Head::NotPlain => return Outcome::NotPlain(buffer),
                Head::Ambiguous => {
                    let cause = "its length is given twice, or in a form of its own";
                    gateway.refusals.refuse("frame", peer, &"a request", &cause);
                    let _ = timeout(LIMITS.take, stream.write_all(AMBIGUOUS)).await;
                    return Outcome::Over;
                }
                Head::Partial if buffer.len() >= LIMITS.buffer => return Outcome::NotPlain(buffer),
                Head::Partial => {}
            }
            let more = tokio::select! {
                biased;
                more = fill(stream, &mut buffer) => more,
                _ = &mut stopped => return Outcome::Over,
                () = &mut too_long => return Outcome::Over,
            };
            // How a connection ends concerns nobody: each request was accounted for.
            if !matches!(more, Ok(1..)) {
                return Outcome::Over;
            }
        };
        let Frameable {
            parts,
            head_bytes,
            body_bytes,
            closes,
        } = *head;
        let _working = connection_limit::works();
        buffer.advance(head_bytes);
        let is_head = parts.method == hyper::Method::HEAD;
        let mut body = Incoming {
            stream,
            buffer: &mut buffer,
            rest: body_bytes,
        };
        let answer = answer(gateway, peer, parts, &mut body).await;
        // What is left of a body that nobody wanted cannot be told from a next request.
        let asked = answer.headers().contains_key(header::CONNECTION);
        let closes = closes || asked || body.rest > 0 || *stopping.borrow();
        if send(stream, answer, is_head, closes).await.is_err() || closes {
            let _ = timeout(LIMITS.take, stream.shutdown()).await;
            return Outcome::Over;
        }
        if buffer.is_empty() {
            give_back(std::mem::take(&mut buffer));
        }
    }
}

thread_local! {
    /// An idle connection holds no memory: what one has read into, the next one on this thread uses.
    static SPARE: Cell<BytesMut> = Cell::default();
}

fn make_room(buffer: &mut BytesMut) {
    if buffer.is_empty() && !buffer.try_reclaim(READ) {
        *buffer = SPARE.take();
    }
    buffer.reserve(READ);
}

fn give_back(mut buffer: BytesMut) {
    buffer.clear();
    // What has no memory of its own, or memory that is still in use, must not take a good one's place.
    if buffer.try_reclaim(READ) {
        SPARE.set(buffer);
    }
}

async fn fill<S: Socket>(stream: &mut S, buffer: &mut BytesMut) -> io::Result<usize> {
    poll_fn(|context| stream.poll_readable(context)).await?;
    make_room(buffer);
    stream.read_buf(buffer).await
}

/// Reads a head, if it is whole.
fn parse(bytes: &[u8], anyone_reads: bool) -> Head {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let head_bytes = match request.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Head::Partial,
        Err(_) => return Head::NotPlain,
    };
    if is_ambiguous(&request) {
        return Head::Ambiguous;
    }
    match frameable(&request, head_bytes, anyone_reads) {
        Some(head) => Head::Plain(Box::new(head)),
        None => Head::NotPlain,
    }
}

/// Whether two readers could see the end of the body in different places: a request could be hidden in it.
fn is_ambiguous(request: &httparse::Request<'_, '_>) -> bool {
    let values = |name: HeaderName| {
        let all = request.headers.iter();
        all.filter(move |field| field.name.eq_ignore_ascii_case(name.as_str()))
            .map(|field| field.value)
    };
    let lengths = values(header::CONTENT_LENGTH).count();
    let codings = values(header::TRANSFER_ENCODING).count();
    let is_number = |value: &[u8]| !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    lengths + codings > 1
        || !values(header::CONTENT_LENGTH).all(is_number)
        || !values(header::TRANSFER_ENCODING).all(|value| value.eq_ignore_ascii_case(b"chunked"))
}

fn frameable(
    request: &httparse::Request<'_, '_>,
    head_bytes: usize,
    anyone_reads: bool,
) -> Option<Frameable> {
    let path = request.path.filter(|path| path.starts_with('/'))?;
    let method = request.method?;
    // A page may be spelt in more ways than `is_page` knows, so that no change is asked for on this way.
    if request.version != Some(1) || is_page(path) || method == "POST" {
        return None;
    }
    let mut body_bytes = 0;
    let mut closes = false;
    let mut built = Request::builder().method(method).uri(path);
    for field in request.headers.iter() {
        let is = |name: HeaderName| field.name.eq_ignore_ascii_case(name.as_str());
        if is(header::CONTENT_LENGTH) {
            body_bytes = std::str::from_utf8(field.value).ok()?.parse().ok()?;
            // Whether a length was given at all matters to a PUT.
            built = built.header(header::CONTENT_LENGTH, body_bytes);
        } else if is(header::CONNECTION) {
            if field.value.eq_ignore_ascii_case(b"close") {
                closes = true;
            } else if !field.value.eq_ignore_ascii_case(b"keep-alive") {
                return None;
            }
        } else if is(header::TRANSFER_ENCODING)
            || is(header::EXPECT)
            || is(header::UPGRADE)
            || is(header::CONTENT_RANGE)
        {
            return None;
        } else if is(header::AUTHORIZATION)
            || (is(header::HOST) && anyone_reads)
            || is(cycle::HEADER)
        {
            // The other headers that matter.
            built = built.header(field.name, HeaderValue::from_bytes(field.value).ok()?);
        }
    }
    let (parts, ()) = built.body(()).ok()?.into_parts();
    Some(Frameable {
        parts,
        head_bytes,
        body_bytes,
        closes,
    })
}

/// What browsers ask for, where more than the token matters: cookies, host, origin.
fn is_page(path: &str) -> bool {
    let path = path.split('?').next().unwrap_or(path);
    path == "/" || path.starts_with("/api/")
}

/// The body of a plain request.
struct Incoming<'a, S> {
    stream: &'a mut S,
    buffer: &'a mut BytesMut,
    rest: u64,
}

impl<S: Socket> Body for Incoming<'_, S> {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = self.get_mut();
        if this.rest == 0 {
            return Poll::Ready(None);
        }
        let wanted = usize::try_from(this.rest).unwrap_or(usize::MAX);
        if this.buffer.is_empty() {
            if this.stream.poll_readable(context)?.is_pending() {
                give_back(std::mem::take(this.buffer));
                return Poll::Pending;
            }
            make_room(this.buffer);
            // Nothing is lost with this future: bytes are in the buffer as soon as they are read.
            let read = std::pin::pin!(this.stream.read_buf(this.buffer));
            match ready!(read.poll(context)) {
                Ok(0) => return Poll::Ready(Some(Err(io::ErrorKind::UnexpectedEof.into()))),
                Ok(_) => {}
                Err(cause) => return Poll::Ready(Some(Err(cause))),
            }
        }
        let piece = this.buffer.split_to(this.buffer.len().min(wanted)).freeze();
        this.rest -= piece.len() as u64;
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest)
    }
}

async fn send<S: Socket>(
    stream: &mut S,
    answer: Answer,
    is_head: bool,
    closes: bool,
) -> io::Result<()> {
    let (parts, body) = answer.into_parts();
    let mut head = Vec::with_capacity(256);
    write!(
        head,
        "HTTP/1.1 {} {}\r\n",
        parts.status.as_str(),
        parts.status.canonical_reason().unwrap_or("")
    )?;
    for (name, value) in &parts.headers {
        head.extend_from_slice(name.as_str().as_bytes());
        head.extend_from_slice(b": ");
        head.extend_from_slice(value.as_bytes());
        head.extend_from_slice(b"\r\n");
    }
    if !parts.headers.contains_key(header::CONTENT_LENGTH) && parts.status != StatusCode::NO_CONTENT
    {
        write!(head, "content-length: {}\r\n", body.size_hint().lower())?;
    }
    if closes && !parts.headers.contains_key(header::CONNECTION) {
        head.extend_from_slice(b"connection: close\r\n");
    }
    let date = SystemTime::UNIX_EPOCH + Duration::from_secs(unix_seconds());
    write!(head, "date: {}\r\n\r\n", httpdate::HttpDate::from(date))?;
    match body {
        _ if is_head => write_both(stream, &head, &[], LIMITS.take).await,
        Either::Left(full) => {
            let whole = full.collect().await.map(|whole| whole.to_bytes());
            write_both(stream, &head, &whole.unwrap_or_default(), LIMITS.take).await
        }
        Either::Right(download) => match download.file_part() {
            Ok(part) => {
                send_head(stream, &head).await?;
                send_file(stream, part).await
            }
            Err(download) => send_pieces(stream, head, download).await,
        },
    }
}

async fn send_head<S: Socket>(stream: &S, head: &[u8]) -> io::Result<()> {
    let mut sent = 0;
    while sent < head.len() {
        sent += within(LIMITS.take, stream.send_more(&head[sent..])).await??;
    }
    Ok(())
}

/// Sends what is in memory, or is read piece by piece, the first piece together with the head.
async fn send_pieces<S: Socket>(
    stream: &mut S,
    mut head: Vec<u8>,
    mut download: Download,
) -> io::Result<()> {
    let mut piece = download.next().await.transpose()?.unwrap_or_default();
    loop {
        write_both::<io::Error>(stream, &head, &piece, LIMITS.take).await?;
        head.clear();
        match download.next().await {
            Some(next) => piece = next?,
            None => return Ok(()),
        }
    }
}

/// Sends a file without a copy. An error cuts the connection: the client sees a broken answer, never a short one.
async fn send_file<S: Socket>(stream: &S, mut part: FilePart) -> io::Result<()> {
    while part.rest() > 0 {
        let resident = part.resident(TURN).await?;
        let sent = within(
            LIMITS.take,
            stream.send_file(part.file(), part.at(), resident),
        )
        .await??;
        if sent == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        part.advance(sent);
        if part.rest() > 0 {
            tokio::task::yield_now().await;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_a_piece_that_was_used_is_used_again() {
        let mut buffer = BytesMut::new();
        make_room(&mut buffer);
        buffer.resize(READ, 7);
        let place = buffer.as_ptr();
        let piece = buffer.split_to(READ).freeze();
        drop(piece);
        give_back(buffer);
        give_back(BytesMut::new());
        let mut buffer = BytesMut::new();
        make_room(&mut buffer);
        assert_eq!(buffer.as_ptr(), place);
        buffer.resize(READ, 8);
        let piece = buffer.split_to(READ).freeze();
        give_back(buffer);
        let mut buffer = BytesMut::new();
        make_room(&mut buffer);
        buffer.resize(READ, 9);
        assert!(piece.iter().all(|byte| *byte == 8), "it is still in use");
    }
}
