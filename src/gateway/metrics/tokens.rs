//! Usage of each token, for `/metrics` and the status.

use super::{SampleOf, encode_each};
use crate::contract::gateway_status::{TokenStatus, TokensStatus};
use crate::gateway::access::{Access, Uses};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

impl From<&Uses> for TokenStatus {
    fn from(uses: &Uses) -> TokenStatus {
        TokenStatus {
            requests: uses.requests.load(Relaxed),
            hits: uses.hits.load(Relaxed),
            misses: uses.misses.load(Relaxed),
            bytes_received: uses.received_bytes.load(Relaxed),
            bytes_sent: uses.sent_bytes.load(Relaxed),
            refusals: uses.refusals.load(Relaxed),
            ..TokenStatus::default()
        }
    }
}

impl TokensStatus {
    /// Usage of all valid tokens, and the error in their file, if any.
    pub fn new(access: &Access, fault: Option<String>) -> TokensStatus {
        let mut granted = access.granted();
        let uses = access.uses().into_iter();
        let by_name = uses.map(|(name, uses)| {
            let granted = granted.remove(&name).unwrap_or_default();
            let status = TokenStatus {
                proof: granted.proof,
                grants: granted.grants,
                ..TokenStatus::from(&*uses)
            };
            (name, status)
        });
        TokensStatus {
            by_name: by_name.collect(),
            fault,
        }
    }
}

/// Read at each scrape: a removed token has no series.
#[derive(Debug)]
pub(super) struct Tokens(pub(super) Arc<Access>);

impl Collector for Tokens {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let figures: [SampleOf<'_, TokenStatus>; 6] = [
            ("token_requests", "Requests with a token", None, |one| {
                one.requests
            }),
            ("token_hits", "Blobs found, by token", None, |one| one.hits),
            ("token_misses", "Blobs not found, by token", None, |one| {
                one.misses
            }),
            (
                "token_received",
                "Bytes of blobs received, by token",
                Some(&Unit::Bytes),
                |one| one.bytes_received,
            ),
            (
                "token_sent",
                "Bytes of blobs sent, by token",
                Some(&Unit::Bytes),
                |one| one.bytes_sent,
            ),
            (
                "token_refusals",
                "Requests refused because the token does not allow them",
                None,
                |one| one.refusals,
            ),
        ];
        let uses = self.0.uses().into_iter();
        let tokens: Vec<_> = uses
            .map(|(name, uses)| (name, TokenStatus::from(&*uses)))
            .collect();
        encode_each(
            &mut encoder,
            MetricType::Counter,
            "token",
            &tokens,
            &figures,
        )
    }
}
