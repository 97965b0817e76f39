//! The paths that are no keys: liveness, readiness, metrics, status, purge and what the status page consists of.

use super::answer::{Answer, Refusal, broken, full, json, text};
use super::grants::{permit_namespace, permit_removal, writer};
use super::{builds, front, inspect, permit, session};
use crate::contract::gateway_status::{PurgeAnswer, PurgeRequest, scanning};
use crate::contract::key::namespace_of_shown;
use crate::gateway::Gateway;
use crate::gateway::access::{Caller, Need};
use crate::gateway::audit::Event;
use crate::gateway::body::{Piecewise, short_body};
use crate::gateway::peer::Peer;
use crate::gateway::upstream::cycle;
use crate::store::Filter;
use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::header::HeaderValue;
use hyper::http::request::Parts;
use hyper::{Method, StatusCode};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// A reserved path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Page {
    Front,
    Health,
    Ready,
    Metrics,
    Status,
    Purge,
    Blob,
    Access,
    Session,
    Sessions,
    Revoke,
    Style,
    Script,
    LogIn,
    LogOut,
    Builds,
    Build,
    Order,
}

impl Page {
    /// Asks for a change, if only of who is logged in.
    fn is_posted(self) -> bool {
        matches!(
            self,
            Page::Purge
                | Page::Blob
                | Page::Access
                | Page::Session
                | Page::Revoke
                | Page::LogIn
                | Page::LogOut
                | Page::Order
        )
    }

    /// Answers questions, and takes news.
    fn is_both(self) -> bool {
        self == Page::Builds
    }
}

/// The page at a path's `names`. WebDAV's folder requests may name any path, even these.
pub(super) fn find(names: &[&str], method: &Method) -> Option<Page> {
    let page = match names {
        [] if matches!(*method, Method::GET | Method::HEAD) => Page::Front,
        ["healthz"] => Page::Health,
        ["readyz"] => Page::Ready,
        ["metrics"] => Page::Metrics,
        ["api", "status"] => Page::Status,
        ["api", "purge"] => Page::Purge,
        ["api", "blob"] => Page::Blob,
        ["api", "access"] => Page::Access,
        ["api", "session"] => Page::Session,
        ["api", "sessions"] => Page::Sessions,
        ["api", "revoke"] => Page::Revoke,
        ["api", "page.css"] => Page::Style,
        ["api", "page.js"] => Page::Script,
        ["api", "login"] => Page::LogIn,
        ["api", "logout"] => Page::LogOut,
        ["api", "builds"] => Page::Builds,
        ["api", "builds", _] => Page::Build,
        ["api", "prefetch"] => Page::Order,
        _ => return None,
    };
    Some(page).filter(|_| !matches!(method.as_str(), "PROPFIND" | "MKCOL" | "OPTIONS"))
}

pub(super) async fn answer(
    gateway: &Arc<Gateway>,
    peer: &Peer,
    caller: &Caller,
    page: Page,
    parts: &Parts,
    body: &mut impl Piecewise,
) -> Result<Answer, Refusal> {
    let reads = matches!(parts.method, Method::GET | Method::HEAD);
    let is_posted = page.is_posted() || (page.is_both() && !reads);
    if reads == is_posted || (is_posted && parts.method != Method::POST) {
        let message = format!("{} does not take {}", parts.uri.path(), parts.method);
        return Err(Refusal::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method",
            message,
        ));
    }
    let permit = |need| permit(gateway, peer, caller, need);
    let answer = match page {
        Page::Front => front::page(gateway, peer, caller, parts).await?,
        Page::Style => front::style(),
        Page::Script => front::script(),
        Page::LogIn => front::log_in(gateway, peer, parts, body).await?,
        Page::LogOut => front::log_out(gateway, parts).await?,
        Page::Health => {
            let number = parts.headers.get(cycle::HEADER);
            if let (Some(upstream), Some(Ok(number))) =
                (&gateway.upstream, number.map(HeaderValue::to_str))
            {
                upstream.heard_number(number);
            }
            text(StatusCode::OK, "ok\n")
        }
        Page::Ready => match gateway.disk.check_writable().await {
            Ok(()) => text(StatusCode::OK, ready(gateway)),
            Err(cause) => text(
                StatusCode::SERVICE_UNAVAILABLE,
                format!("cannot write to the store: {cause}\n"),
            ),
        },
        Page::Metrics => {
            permit(Need::Read)?;
            // Every figure is there by namespace and token, and scrapers look at all or nothing.
            if caller.is_restricted() {
                let message = "metrics are of all namespaces: use a token that is good for all";
                return Err(Refusal::new(StatusCode::FORBIDDEN, "namespace", message));
            }
            let text = gateway.metrics.encode().map_err(broken)?;
            full(
                StatusCode::OK,
                "application/openmetrics-text; version=1.0.0; charset=utf-8",
                text,
            )
        }
        Page::Status => {
            let login = front::logged_in(gateway, caller, parts);
            let viewer = login.as_ref().unwrap_or(caller);
            super::permit(gateway, peer, viewer, Need::Read)?;
            json(&gateway.status(viewer))?
        }
        Page::Session => session::begin(gateway, peer, body).await?,
        Page::Sessions => {
            permit(Need::Write)?;
            session::list(gateway, caller)?
        }
        Page::Revoke => {
            permit(Need::Write)?;
            front::from_our_own_page(parts)?;
            session::revoke(gateway, peer, caller, body).await?
        }
        Page::Blob => {
            permit(Need::Write)?;
            inspect::blobs(gateway, caller, body).await?
        }
        Page::Access => {
            permit(Need::Write)?;
            inspect::access(gateway, caller, body).await?
        }
        Page::Builds if reads => builds::list(gateway, peer, caller, parts)?,
        Page::Builds => {
            permit(Need::Read)?;
            builds::take(gateway, peer, caller, body).await?
        }
        Page::Build => builds::show(gateway, peer, caller, parts)?,
        Page::Order => {
            permit(Need::Read)?;
            builds::prefetch(gateway, caller, body).await?
        }
        Page::Purge => {
            permit(Need::Write)?;
            front::from_our_own_page(parts)?;
            purge(gateway, peer, caller, body).await?
        }
    };
    Ok(if parts.method == Method::HEAD {
        without_body(answer)
    } else {
        answer
    })
}

/// Ready, and what is still to come: a start may look at millions of files.
fn ready(gateway: &Gateway) -> String {
    let rest = scanning(gateway.disk.scan().map(Into::into));
    let rest = rest.map(|rest| format!("{rest}\n"));
    format!("ready\n{}", rest.unwrap_or_default())
}

async fn purge(
    gateway: &Gateway,
    peer: &Peer,
    caller: &Caller,
    body: &mut impl Piecewise,
) -> Result<Answer, Refusal> {
    let bad = |cause: String| Refusal::new(StatusCode::BAD_REQUEST, "purge", cause);
    let body = short_body(body).await.map_err(bad)?;
    let text = String::from_utf8_lossy(body.trim_ascii()).into_owned();
    let request: PurgeRequest = match body.trim_ascii() {
        [] => PurgeRequest::default(),
        body => serde_json::from_slice(body)
            .map_err(|cause| bad(format!("cannot understand the request: {cause}")))?,
    };
    let pattern = request.pattern.map(|text| {
        glob::Pattern::new(&text)
            .map_err(|cause| bad(format!("{text:?} is not a pattern: {cause}")))
    });
    let filter = Filter {
        older_than: request.older_than_seconds.map(Duration::from_secs),
        namespace: request
            .namespace
            .map(|name| namespace_of_shown(&name).to_owned()),
        pattern: pattern.transpose()?,
        written_by: request.written_by,
        since: request
            .since_unix_seconds
            .map(|seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)),
        dry_run: request.dry_run,
    };
    match &filter.namespace {
        Some(namespace) => {
            permit_namespace(caller, namespace)?;
            permit_removal(caller, gateway.keeps_results_of(namespace))?;
        }
        // It would be all of them.
        None if caller.is_restricted() => {
            let message = "this token may purge its own namespaces only: name one";
            return Err(Refusal::new(StatusCode::FORBIDDEN, "namespace", message));
        }
        None => {}
    }
    let purged = gateway.disk.purge(filter.clone()).await?;
    tracing::info!(
        entries = purged.entries,
        bytes = purged.bytes,
        namespace = filter.namespace,
        pattern = filter.pattern.as_ref().map(|pattern| pattern.as_str()),
        written_by = filter.written_by,
        since = filter
            .since
            .map(|since| humantime::format_rfc3339_seconds(since).to_string()),
        unused_for = filter.older_than.map(|age| format!("{age:?}")),
        "{}",
        if filter.dry_run {
            "counted for a purge"
        } else {
            "purged"
        }
    );
    if !filter.dry_run {
        let by = writer(caller).to_string();
        let event = Event {
            event: "purge",
            by: &by,
            detail: &format!("{} blobs: {text}", purged.entries),
            bytes: Some(purged.bytes),
            ..Event::default()
        };
        gateway.audit.note(peer, event);
    }
    json(&PurgeAnswer {
        entries: purged.entries,
        bytes: purged.bytes,
    })
}

fn without_body(answer: Answer) -> Answer {
    let (parts, _) = answer.into_parts();
    Answer::from_parts(parts, Either::Left(Full::new(Bytes::new())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_exact_paths_are_reserved() {
        for (names, page) in [
            (&[][..], Some(Page::Front)),
            (&["healthz"], Some(Page::Health)),
            (&["api", "status"], Some(Page::Status)),
            (&["team", "healthz"], None),
            (&["api", "login"], Some(Page::LogIn)),
            (&["api", "x"], None),
            (&["metrics", "a"], None),
        ] {
            assert_eq!(find(names, &Method::GET), page, "{names:?}");
        }
        let propfind = Method::from_bytes(b"PROPFIND").unwrap();
        assert_eq!(find(&[], &propfind), None);
        assert_eq!(find(&["metrics"], &propfind), None);
        assert_eq!(find(&[], &Method::PUT), None);
    }
}
