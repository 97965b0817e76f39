//! What a request is answered with.

use crate::gateway::disk::{DiskError, Download};
use crate::store;
use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::header::{self, HeaderValue};
use hyper::{Response, StatusCode};
use serde::Serialize;

pub(super) type Answer = Response<Either<Full<Bytes>, Download>>;

/// Why a request was not done, in HTTP's terms.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    /// For metrics and the log; `None` for what is no fault of anybody, like a miss.
    pub(super) reason: Option<&'static str>,
    pub(super) message: String,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, reason: &'static str, message: impl ToString) -> Refusal {
        Refusal {
            status,
            reason: Some(reason),
            message: message.to_string(),
        }
    }
}

impl From<DiskError> for Refusal {
    fn from(fault: DiskError) -> Refusal {
        let (status, reason) = match &fault {
            DiskError::Store(store::Error::Missing) => (StatusCode::NOT_FOUND, None),
            DiskError::Store(store::Error::TooLarge { .. }) => {
                (StatusCode::PAYLOAD_TOO_LARGE, Some("too_large"))
            }
            DiskError::Store(store::Error::WrongLength { .. }) => {
                (StatusCode::BAD_REQUEST, Some("length"))
            }
            DiskError::Store(store::Error::NoSpace) => {
                (StatusCode::INSUFFICIENT_STORAGE, Some("full"))
            }
            DiskError::Store(store::Error::Pinned) => {
                (StatusCode::INSUFFICIENT_STORAGE, Some("pinned"))
            }
            DiskError::Store(
                store::Error::TooManyNamespaces { .. } | store::Error::TooManyOfOne { .. },
            ) => (StatusCode::INSUFFICIENT_STORAGE, Some("namespaces")),
            DiskError::Store(store::Error::InUse { .. } | store::Error::Io(_)) => {
                (StatusCode::SERVICE_UNAVAILABLE, Some("fault"))
            }
            DiskError::Overloaded => (StatusCode::SERVICE_UNAVAILABLE, Some("overload")),
            DiskError::Stalled => (StatusCode::SERVICE_UNAVAILABLE, Some("stalled")),
            DiskError::NotZip => (StatusCode::BAD_REQUEST, Some("zip")),
        };
        Refusal {
            status,
            reason,
            message: fault.to_string(),
        }
    }
}

pub(super) fn empty(status: StatusCode) -> Answer {
    let mut answer = Response::new(Either::Left(Full::default()));
    *answer.status_mut() = status;
    answer
}

pub(super) fn text(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    full(status, "text/plain; charset=utf-8", body)
}

pub(super) fn full(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Either::Left(Full::new(body.into())));
    *answer.status_mut() = status;
    answer
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}

pub(super) fn json(value: &impl Serialize) -> Result<Answer, Refusal> {
    let mut body = serde_json::to_vec(value).map_err(broken)?;
    body.push(b'\n');
    Ok(full(StatusCode::OK, "application/json", body))
}

pub(super) fn broken(cause: impl std::fmt::Display) -> Refusal {
    Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", cause)
}
