//! One request on the scheduler's port, and what it is answered with.

use super::relay::Outgoing;
use super::upstream::UpstreamError;
use super::{Front, wire};
use crate::gateway::http::Wire;
use crate::gateway::peer::Peer;
use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Response, StatusCode};
use std::sync::Arc;

/// Ours: a builder's machine opens a connection to the builder.
pub(super) const TUNNEL: &str = "/api/v1/dock/tunnel";

pub(super) const OCTETS: HeaderValue = HeaderValue::from_static("application/octet-stream");
pub(super) const JSON: HeaderValue = HeaderValue::from_static("application/json");
pub(super) const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

pub(super) type Answer = Response<AnswerBody>;
/// What a connection sends.
pub(super) type AnswerBody = Either<Full<Bytes>, Outgoing>;

/// Why a request was not done.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    reason: &'static str,
    message: String,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, reason: &'static str, message: impl ToString) -> Refusal {
        Refusal {
            status,
            reason,
            message: message.to_string(),
        }
    }

    /// What may be otherwise the next time: clients compile by themselves.
    pub(super) fn passing(reason: &'static str, message: impl ToString) -> Refusal {
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, reason, message)
    }
}

impl From<UpstreamError> for Refusal {
    fn from(fault: UpstreamError) -> Refusal {
        Refusal::passing("dist_scheduler", fault)
    }
}

/// One request and what it is about.
pub(super) struct Exchange<'a> {
    pub(super) front: &'a Arc<Front>,
    pub(super) peer: &'a Peer,
    /// What it came by.
    pub(super) wire: &'a Wire,
    pub(super) parts: &'a Parts,
}

impl Exchange<'_> {
    pub(super) fn refused(&self, refusal: &Refusal) -> Answer {
        let what = format!("{} {:?}", self.parts.method, self.parts.uri.path());
        self.front
            .refusals
            .refuse(refusal.reason, self.peer, &what, &refusal.message);
        let mut answer = reply(TEXT, format!("{}\n", refusal.message));
        *answer.status_mut() = refusal.status;
        if refusal.reason == "auth_flood" {
            let close = HeaderValue::from_static("close");
            answer.headers_mut().insert(header::CONNECTION, close);
        }
        if refusal.status == StatusCode::UNAUTHORIZED {
            let challenge = HeaderValue::from_static("Bearer");
            answer
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, challenge);
        }
        answer
    }

    /// The scheduler's own words for it: the client compiles by itself.
    pub(super) fn no_capacity(&self, outcome: &'static str, message: &str) -> Answer {
        self.front.metrics.allocation(outcome);
        reply(OCTETS, wire::no_capacity(message))
    }
}

/// The text after `Bearer`.
pub(super) fn credentials(headers: &HeaderMap) -> Option<&str> {
    let text = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, rest) = text.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| rest.trim())
}

pub(super) fn reply(kind: HeaderValue, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Either::Left(Full::new(body.into())));
    answer.headers_mut().insert(header::CONTENT_TYPE, kind);
    answer
}

/// What the scheduler said.
pub(super) fn passed_on(answer: Response<Bytes>) -> Answer {
    let (parts, body) = answer.into_parts();
    let kind = parts.headers.get(header::CONTENT_TYPE);
    let mut answer = reply(kind.cloned().unwrap_or(OCTETS), body);
    *answer.status_mut() = parts.status;
    answer
}
