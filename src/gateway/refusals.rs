//! Refused requests and connections of both ports: counted, logged and, where a wrong token was sent, held against the peer.

use super::metrics::RefusalCounters;
use super::peer::Peer;
use super::warnings::{REFUSALS, Warnings};
use super::wrong_tokens::WrongTokens;
use std::fmt;

/// What both ports need to refuse.
#[derive(Debug)]
pub(crate) struct Refusals {
    counters: RefusalCounters,
    pub(super) warnings: Warnings,
    wrong_tokens: WrongTokens,
}

impl Refusals {
    pub(super) fn new(counters: RefusalCounters) -> Refusals {
        Refusals {
            counters,
            warnings: Warnings::default(),
            wrong_tokens: WrongTokens::default(),
        }
    }

    /// Counts and logs something that was refused, for a `reason` that is a label of the metric.
    pub(crate) fn refuse(
        &self,
        reason: &'static str,
        peer: &Peer,
        what: &dyn fmt::Display,
        cause: &dyn fmt::Display,
    ) {
        self.counters.refused(reason);
        self.warn(
            reason,
            &format!("refused {what} peer={peer} reason={reason}: {cause}"),
        );
    }

    /// Logs `message`, as long as few of its `kind` come.
    pub(crate) fn warn(&self, kind: &str, message: &str) {
        self.warnings.warn(REFUSALS, kind, message);
    }

    /// Counts a request without a valid token.
    pub(crate) fn unauthorized(&self) {
        self.counters.unauthorized();
    }

    /// A wrong token came from `peer`, to whichever port: whether it is one too many.
    pub(crate) fn is_flood(&self, peer: &Peer) -> bool {
        self.wrong_tokens.is_flood(peer)
    }
}
