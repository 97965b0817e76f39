//! HTTP: WebDAV as sccache speaks it, and plain GET, HEAD, PUT, DELETE for ccache, Bazel and Gradle.
//!
//! What sccache's WebDAV client makes of each answer decides most of it: a directory always exists, so that
//! a put is two requests and not seven; a PUT is never answered 202, which counts as an error there;
//! `.sccache_check`, by which a client finds out whether it may write, never depends on the disk. The client
//! waits for every PUT without limit, so each ends in bounded time, if need be with 503.

mod answer;
mod builds;
mod front;
mod grants;
mod held;
mod inspect;
mod pages;
mod plain;
mod session;

use super::connection_limit;
use super::peer::Peer;
use crate::base::timeout::within;
use crate::contract::key::Key;
use crate::gateway::access::{Asked, Caller, Need, Verdict};
use crate::gateway::audit::Event;
use crate::gateway::body::{Piecewise, read_left_over, turn_away};
use crate::gateway::disk::DiskError;
use crate::gateway::http1::{self, Limits};
use crate::gateway::journal::Did;
use crate::gateway::metrics::Protocol;
use crate::gateway::once::NotStored;
use crate::gateway::socket::Socket;
use crate::gateway::tls::Presented;
use crate::gateway::{Gateway, bazel};
use crate::store;
use answer::{Answer, Refusal, empty, full, text};
use bytes::BytesMut;
use grants::{asked, looked_up, note_refusal, permit_check, permit_removal, writer, written};
use held::Held;
use http_body_util::{BodyExt, Either, Full};
use hyper::body::{Body, Incoming};
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::http::request::Parts;
use hyper::service::service_fn;
use hyper::{Method, Request, StatusCode};
use percent_encoding::percent_decode_str;
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::sync::watch;
use tokio::time::Instant;

const LIMITS: Limits = Limits {
    // Longer than clients keep an idle connection (90 s in sccache's), so that none sends a request into one that is being
    // closed.
    head: Duration::from_secs(120),
    // An answer holds memory that others wait for.
    take: Duration::from_secs(30),
    buffer: 64 << 10,
    half_close: true,
};
/// How long the body of a PUT may stand still.
const PROGRESS: Duration = Duration::from_secs(10);
/// How long a PUT may take altogether.
const WHOLE_PUT: Duration = Duration::from_secs(600);
/// The object by which sccache finds out at its start whether it may read and write.
const CHECK: &str = ".sccache_check";
const CHECK_BODY: &[u8] = b"Hello, World!";
/// Why a request is refused whose end is not certain.
const FRAME: &str = "frame";
const METHODS: &str = "OPTIONS, GET, HEAD, PUT, DELETE, PROPFIND, MKCOL";

/// Serves one connection until it closes, or until the request in flight is answered once we are stopping.
/// `first` was read already.
pub(crate) async fn converse<S: Socket>(
    gateway: &Arc<Gateway>,
    mut stream: S,
    first: &[u8],
    peer: Peer,
    stopping: watch::Receiver<bool>,
) {
    let buffer = BytesMut::from(first);
    let outcome = plain::converse(gateway, &mut stream, buffer, &peer, &stopping).await;
    let plain::Outcome::NotPlain(read) = outcome else {
        return;
    };
    let (reader, writer) = tokio::io::split(stream);
    let reader = io::Cursor::new(read.freeze()).chain(reader);
    let io = tokio::io::join(reader, writer);
    converse_by_hyper(gateway, io, peer, Wire::Plain, stopping).await;
}

/// What a request came over.
#[derive(Debug, Clone)]
pub(crate) enum Wire {
    /// HTTP as it is.
    Plain,
    /// HTTP inside TLS, with what the client has shown there.
    Tls(Option<Arc<Presented>>),
}

/// The same by hyper alone, which can speak over anything.
pub(crate) async fn converse_by_hyper<IO: AsyncRead + AsyncWrite + Send + 'static>(
    gateway: &Arc<Gateway>,
    io: IO,
    peer: Peer,
    wire: Wire,
    stopping: watch::Receiver<bool>,
) {
    let service = service_fn(|request: Request<Incoming>| {
        let (gateway, wire) = (Arc::clone(gateway), wire.clone());
        async move {
            let _working = connection_limit::works();
            let (mut parts, mut body) = request.into_parts();
            if let Wire::Tls(presented) = wire {
                parts.extensions.insert(front::OverTls);
                presented.map(|presented| parts.extensions.insert(presented));
            }
            let answer = answer(&gateway, &peer, parts, &mut body).await;
            Ok::<_, Infallible>(answer.map(|body| Held { body, _working }))
        }
    });
    let ended = http1::serve(io, service, LIMITS, stopping).await;
    // How a connection ends (reset, idle, cut by the client) concerns nobody: each request was accounted for. What was
    // no request was not.
    if let Err(cause) = ended
        && cause.is_parse()
    {
        gateway
            .refusals
            .refuse("malformed", &peer, &"a request", &cause);
    }
}

/// Tells a client of another machine that sends its token in clear to use TLS.
pub(crate) async fn refuse_plain<IO: AsyncRead + AsyncWrite + Unpin>(
    gateway: &Gateway,
    io: IO,
    peer: &Peer,
) {
    let cause = "it speaks HTTP without TLS, and what it sent could be read on its way: use https:// and, if that was \
                 a token, replace it";
    gateway
        .refusals
        .refuse("plain", peer, &"a connection", &cause);
    let body = "this cache speaks HTTPS: use https:// with the name in its certificate\n";
    turn_away(io, StatusCode::BAD_REQUEST, body).await;
}

async fn answer(
    gateway: &Arc<Gateway>,
    peer: &Peer,
    parts: Parts,
    body: &mut impl Piecewise,
) -> Answer {
    let (started, _in_flight) = (Instant::now(), gateway.metrics.in_flight());
    let authorization = parts.headers.get(header::AUTHORIZATION);
    let authorization = authorization.map(HeaderValue::as_bytes);
    let presented = parts.extensions.get::<Arc<Presented>>();
    let caller = gateway
        .identity
        .caller(authorization, presented.map(Arc::as_ref));
    let caller = match caller.is_anonymous() && !is_asked_by_name(gateway, &parts) {
        true => caller.misdirected(),
        false => caller,
    };
    caller.count(|uses| &uses.requests, 1);
    let outcome = route(gateway, peer, &caller, &parts, body).await;
    connection_limit::answered();
    let answer = outcome.unwrap_or_else(|refusal| {
        note_refusal(gateway, peer, &caller, &parts, &refusal);
        refused(gateway, peer, &parts, &refusal)
    });
    read_left_over(&parts, body).await;
    gateway.metrics.answered(
        Protocol::http,
        label(&parts.method),
        answer.status().as_str(),
        started.elapsed(),
    );
    if parts.method != Method::HEAD {
        gateway
            .metrics
            .sent(Protocol::http, answer.body().size_hint().lower());
    }
    answer
}

/// Whether a request is meant for us by all that it says; see `hosts.rs`.
fn is_asked_by_name(gateway: &Gateway, parts: &Parts) -> bool {
    let fields = parts.headers.get_all(header::HOST).into_iter();
    let fields = fields.map(|host| host.to_str().ok());
    let uri = parts.uri.authority().map(|host| Some(host.as_str()));
    let mut hosts = fields.chain(uri);
    front::is_tls(parts) || hosts.all(|host| host.is_some_and(|host| gateway.hosts.is_ours(host)))
}

fn refused(gateway: &Gateway, peer: &Peer, parts: &Parts, refusal: &Refusal) -> Answer {
    if let Some(reason) = refusal.reason {
        let what = format!("{} {:?}", label(&parts.method), parts.uri.path());
        gateway
            .refusals
            .refuse(reason, peer, &what, &refusal.message);
    }
    let mut answer = text(refusal.status, format!("{}\n", refusal.message));
    let headers = answer.headers_mut();
    match refusal.status {
        StatusCode::UNAUTHORIZED => {
            let challenge = HeaderValue::from_static("Bearer, Basic realm=\"sccache-dock\"");
            headers.insert(header::WWW_AUTHENTICATE, challenge);
            if parts.extensions.get::<Arc<Presented>>().is_some() {
                // The next connection may show another one, which has been renewed.
                headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
        }
        StatusCode::TOO_MANY_REQUESTS => {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        StatusCode::BAD_REQUEST if refusal.reason == Some(FRAME) => {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        StatusCode::METHOD_NOT_ALLOWED => {
            headers.insert(header::ALLOW, HeaderValue::from_static(METHODS));
        }
        _ => {}
    }
    answer
}

async fn route(
    gateway: &Arc<Gateway>,
    peer: &Peer,
    caller: &Caller,
    parts: &Parts,
    body: &mut impl Piecewise,
) -> Result<Answer, Refusal> {
    is_chunked_if_coded(&parts.headers)?;
    let path = percent_decode_str(parts.uri.path()).decode_utf8();
    let path =
        path.map_err(|_| Refusal::new(StatusCode::BAD_REQUEST, "key", "the path is not UTF-8"))?;
    let names: Vec<&str> = path.split('/').filter(|name| !name.is_empty()).collect();
    if let Some(page) = pages::find(&names, &parts.method) {
        return pages::answer(gateway, peer, caller, page, parts, body).await;
    }
    let permit = |need| permit(gateway, peer, caller, need);
    let asked = |path: &str| asked(caller, path);
    let is_check = names.last() == Some(&CHECK);
    if is_check {
        permit_check(caller, &path)?;
    }
    match parts.method.as_str() {
        "OPTIONS" => Ok(options()),
        "GET" | "HEAD" if is_check => permit(Need::Read).map(|()| check(&parts.method)),
        "GET" => {
            permit(Need::Read)?;
            let keys = looked_up(caller, &path)?;
            let found = get(gateway, caller, &keys).await;
            let did = match &found {
                Ok((key, answer)) => Some((*key, Did::Hit(answer.body().size_hint().lower()))),
                Err(refusal) if refusal.status == StatusCode::NOT_FOUND => {
                    keys.first().map(|key| (key, Did::Miss))
                }
                Err(_) => None,
            };
            if let Some((key, did)) = did {
                gateway.note(peer, caller.name(), key, did);
            }
            found.map(|(_, answer)| answer)
        }
        "HEAD" => {
            permit(Need::Read)?;
            Ok(head(gateway.size_of(&looked_up(caller, &path)?).await?))
        }
        "PUT" if is_check => permit(Need::Write).map(|()| empty(StatusCode::CREATED)),
        "PUT" => {
            permit(Need::Write)?;
            let asked = asked(&path)?;
            is_whole(&parts.headers)?;
            let answer = put(gateway, peer, caller, &asked, body).await;
            let did = match &answer {
                Ok((_, bytes)) => Some(Did::Write(*bytes)),
                Err(refusal) => refusal.reason.map(Did::Refused),
            };
            if let Some((did, key)) = did.zip(asked.write.as_ref()) {
                gateway.note(peer, caller.name(), key, did);
            }
            answer.map(|(answer, _)| answer)
        }
        "DELETE" if is_check => permit(Need::Write).map(|()| empty(StatusCode::NO_CONTENT)),
        "DELETE" => {
            permit(Need::Write)?;
            let asked = asked(&path)?;
            let key = written(&asked)?;
            permit_removal(caller, gateway.is_written_once(key))?;
            gateway.disk.delete(key).await?;
            let by = writer(caller).to_string();
            gateway.audit.note(peer, Event::of("delete", &by, key));
            Ok(empty(StatusCode::NO_CONTENT))
        }
        "PROPFIND" => {
            permit(Need::Read)?;
            properties(gateway, asked, &path, parts.uri.path(), is_check).await
        }
        "MKCOL" => permit(Need::Write).map(|()| empty(StatusCode::CREATED)),
        method => {
            let message = format!(
                "method {method} is not known for {:?} (peer={peer})",
                parts.uri.path()
            );
            Err(Refusal::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "method",
                message,
            ))
        }
    }
}

/// Refuses a body in a coding that nobody undoes here. Whoever passes such a request on may see its end elsewhere.
fn is_chunked_if_coded(headers: &HeaderMap) -> Result<(), Refusal> {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let is_chunked = |coding: &HeaderValue| coding.as_bytes().eq_ignore_ascii_case(b"chunked");
    if codings.next().is_none_or(is_chunked) && codings.next().is_none() {
        return Ok(());
    }
    let message = "the body is in a coding of its own: send it as it is, or in chunks";
    Err(Refusal::new(StatusCode::BAD_REQUEST, FRAME, message))
}

/// Checks what the request's token allows.
fn permit(gateway: &Gateway, peer: &Peer, caller: &Caller, need: Need) -> Result<(), Refusal> {
    match caller.may(need) {
        Verdict::Allowed => {
            if caller.is_anonymous() {
                connection_limit::admit_anonymous_reader();
            } else {
                connection_limit::recognized();
            }
            Ok(())
        }
        Verdict::Unauthorized => {
            gateway.refusals.unauthorized();
            if let Some(why) = caller.why_not_certified() {
                let message = format!("the client's certificate is not accepted: {why}");
                return Err(Refusal::new(StatusCode::UNAUTHORIZED, "auth", message));
            }
            if !caller.has_sent_a_token() {
                let message = "this needs a token: as bearer, or as password of any user";
                return Err(Refusal::new(StatusCode::UNAUTHORIZED, "auth", message));
            }
            if gateway.refusals.is_flood(peer) {
                let message = "too many wrong tokens came from this address; with the right one requests are \
                               served at any time: see what `sccache-dock client-env` prints now";
                let status = StatusCode::TOO_MANY_REQUESTS;
                return Err(Refusal::new(status, "auth_flood", message));
            }
            let message = "the token is not one of this cache's";
            Err(Refusal::new(StatusCode::UNAUTHORIZED, "auth", message))
        }
        Verdict::Misdirected => {
            let message = "anyone may read here, but not under this name, which a page of another site could have: \
                           name it in SCCACHE_HOSTS, ask by address, or send a token";
            Err(Refusal::new(
                StatusCode::MISDIRECTED_REQUEST,
                "host",
                message,
            ))
        }
        Verdict::Forbidden => {
            caller.count(|uses| &uses.refusals, 1);
            let message = format!(
                "token {:?} may only read",
                caller.name().unwrap_or_default()
            );
            Err(Refusal::new(StatusCode::FORBIDDEN, "read_only", message))
        }
    }
}

/// The blob, and the key by which it was found.
async fn get<'a>(
    gateway: &Gateway,
    caller: &Caller,
    keys: &'a [Key],
) -> Result<(&'a Key, Answer), Refusal> {
    match bazel::blob(gateway, keys).await {
        Ok((key, blob)) => {
            gateway.of_namespace(key).hit(blob.length);
            gateway.metrics.found(Protocol::http);
            caller.count(|uses| &uses.hits, 1);
            caller.count(|uses| &uses.sent_bytes, blob.length);
            let modified = HeaderValue::from_str(&httpdate::fmt_http_date(blob.modified)).ok();
            let mut answer = head(blob.length);
            if let Some(modified) = modified {
                answer.headers_mut().insert(header::LAST_MODIFIED, modified);
            }
            *answer.body_mut() = Either::Right(blob);
            Ok((key, answer))
        }
        Err(fault) => {
            if matches!(fault, DiskError::Store(store::Error::Missing)) {
                gateway.missed(keys, Protocol::http);
                caller.count(|uses| &uses.misses, 1);
            }
            Err(fault.into())
        }
    }
}

/// Refuses a PUT whose body cannot be the blob: a part of it, or what nobody knows the end of. A body without a length
/// is none at all, and would be stored as an empty blob.
fn is_whole(headers: &HeaderMap) -> Result<(), Refusal> {
    if headers.contains_key(header::CONTENT_RANGE) {
        let message = "a part of a blob cannot be stored: send the whole one";
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "part", message));
    }
    let framed = [header::CONTENT_LENGTH, header::TRANSFER_ENCODING];
    if !framed.iter().any(|name| headers.contains_key(name)) {
        let message = "the body has no length: send Content-Length, or chunks";
        return Err(Refusal::new(StatusCode::LENGTH_REQUIRED, "length", message));
    }
    Ok(())
}

async fn put(
    gateway: &Gateway,
    peer: &Peer,
    caller: &Caller,
    asked: &Asked,
    body: &mut impl Piecewise,
) -> Result<(Answer, u64), Refusal> {
    let key = written(asked)?;
    let by = writer(caller);
    let length = body.size_hint().exact();
    let mut upload = gateway.disk.put(key, length, by.clone()).await?;
    let deadline = Instant::now() + WHOLE_PUT;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let Ok(frame) = within(PROGRESS.min(left), body.frame()).await else {
            let message = format!(
                "the body stood still for {} s or took too long",
                PROGRESS.as_secs()
            );
            return Err(Refusal::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "slow_body",
                message,
            ));
        };
        match frame {
            None => break,
            Some(Ok(frame)) => {
                if let Some(piece) = frame.data_ref() {
                    upload.push(piece).await?;
                    gateway.metrics.received(Protocol::http, piece.len() as u64);
                }
            }
            Some(Err(cause)) => {
                let message = format!("the body ended early: {cause}");
                return Err(Refusal::new(StatusCode::BAD_REQUEST, "short_body", message));
            }
        }
    }
    let received = upload.received();
    let may_replace = caller.may_replace();
    let replaced = match gateway.finish(upload, key, &by, may_replace).await {
        Ok(replaced) => replaced,
        Err(NotStored::Disk(fault)) => return Err(fault.into()),
        Err(conflict @ NotStored::Conflict(_)) => {
            return Err(Refusal::new(StatusCode::CONFLICT, "conflict", conflict));
        }
    };
    gateway.pass_on(key, &asked.read, received).await;
    gateway.of_namespace(key).write(received);
    caller.count(|uses| &uses.received_bytes, received);
    let event = Event {
        bytes: Some(received),
        ..Event::of("write", by.as_str(), key)
    };
    gateway.audit.note(peer, event);
    let status = match replaced {
        true => StatusCode::NO_CONTENT,
        false => StatusCode::CREATED,
    };
    Ok((empty(status), received))
}

fn check(method: &Method) -> Answer {
    let mut answer = head(CHECK_BODY.len() as u64);
    if method == Method::GET {
        *answer.body_mut() = Either::Left(Full::from(CHECK_BODY));
    }
    answer
}

/// PROPFIND: a blob is a file, every other path an existing folder.
async fn properties(
    gateway: &Gateway,
    asked: impl Fn(&str) -> Result<Asked, Refusal>,
    path: &str,
    href: &str,
    is_check: bool,
) -> Result<Answer, Refusal> {
    let length = if is_check {
        Some(CHECK_BODY.len() as u64)
    } else if path.ends_with('/') {
        None
    } else {
        match gateway.size_of(&asked(path)?.read).await {
            Ok(length) => Some(length),
            Err(DiskError::Store(store::Error::Missing)) => None,
            Err(fault) => return Err(fault.into()),
        }
    };
    let kind = match length {
        Some(length) => {
            format!("<D:resourcetype/><D:getcontentlength>{length}</D:getcontentlength>")
        }
        None => "<D:resourcetype><D:collection/></D:resourcetype>".to_owned(),
    };
    let href = href
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;");
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"utf-8\"?>\n<D:multistatus xmlns:D=\"DAV:\"><D:response>\
         <D:href>{href}</D:href><D:propstat><D:prop>{kind}\
         <D:getlastmodified>Thu, 01 Jan 1970 00:00:00 GMT</D:getlastmodified></D:prop>\
         <D:status>HTTP/1.1 200 OK</D:status></D:propstat></D:response></D:multistatus>\n"
    );
    let mut answer = full(
        StatusCode::MULTI_STATUS,
        "application/xml; charset=utf-8",
        body,
    );
    answer
        .headers_mut()
        .insert("dav", HeaderValue::from_static("1"));
    Ok(answer)
}

fn options() -> Answer {
    let mut answer = empty(StatusCode::OK);
    answer
        .headers_mut()
        .insert(header::ALLOW, HeaderValue::from_static(METHODS));
    answer
        .headers_mut()
        .insert("dav", HeaderValue::from_static("1"));
    answer
}

/// 200 with the headers of a blob and, so far, no body.
fn head(length: u64) -> Answer {
    let mut answer = empty(StatusCode::OK);
    let headers = answer.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    answer
}

/// The method as a label: clients may invent others without end.
fn label(method: &Method) -> &'static str {
    const KNOWN: [&str; 8] = [
        "GET", "HEAD", "PUT", "DELETE", "PROPFIND", "MKCOL", "OPTIONS", "POST",
    ];
    KNOWN
        .into_iter()
        .find(|known| *known == method.as_str())
        .unwrap_or("other")
}
