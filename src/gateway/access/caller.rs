//! Who sends a request, as far as its token tells. Pure.

use super::{Entry, Need, Scope, Uses, Verdict};
use crate::contract::tokens::Grant;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Who sends a request, as far as its token tells.
#[derive(Debug, Clone)]
pub struct Caller {
    pub(super) entry: Option<Arc<Entry>>,
    pub(super) has_sent_a_token: bool,
    pub(super) is_misdirected: bool,
    /// Why the certificate that was presented is not accepted.
    pub(super) not_certified: Option<Arc<str>>,
}

impl Caller {
    /// The same, who has asked under a name that is not ours: without a token nobody may read there.
    pub fn misdirected(self) -> Caller {
        let is_misdirected = self.is_anonymous();
        Caller {
            is_misdirected,
            ..self
        }
    }

    /// The same, who has presented a certificate that is not accepted.
    pub fn not_certified(self, why: &str) -> Caller {
        Caller {
            not_certified: Some(why.into()),
            ..self
        }
    }

    /// Why the certificate that was presented, without a token, is not accepted.
    pub fn why_not_certified(&self) -> Option<&str> {
        self.not_certified.as_deref()
    }

    /// What the token allows, wherever.
    pub fn may(&self, need: Need) -> Verdict {
        match (&self.entry, need) {
            (None, _) => Verdict::Unauthorized,
            (Some(_), Need::Read) if self.is_misdirected => Verdict::Misdirected,
            (Some(entry), Need::Write | Need::Build) if entry.digest.is_none() => {
                Verdict::Unauthorized
            }
            (Some(entry), need) => match (entry.grant, need) {
                (Grant::Read | Grant::Write, Need::Read)
                | (Grant::Write, Need::Write)
                | (Grant::Build, Need::Build) => Verdict::Allowed,
                (Grant::Read, Need::Write | Need::Build)
                | (Grant::Write, Need::Build)
                | (Grant::Build, Need::Read | Need::Write) => Verdict::Forbidden,
            },
        }
    }

    /// Where the token is good; nowhere for a stranger.
    pub fn scope(&self) -> &Scope {
        static NOWHERE: Scope = Scope::Below(Vec::new());
        self.entry.as_ref().map_or(&NOWHERE, |entry| &entry.scope)
    }

    /// Whether entries that must not change may be replaced with it.
    pub fn may_replace(&self) -> bool {
        self.entry.as_ref().is_some_and(|entry| entry.replace)
    }

    /// Whether it may have jobs done by the cluster, where no namespace is asked for: a token of some namespaces only must
    /// say so.
    pub fn may_distribute(&self) -> Verdict {
        match self {
            caller if caller.distributes() => Verdict::Allowed,
            caller if caller.is_restricted() => Verdict::Forbidden,
            caller => caller.may(Need::Write),
        }
    }

    pub(super) fn distributes(&self) -> bool {
        self.entry.as_ref().is_some_and(|entry| entry.distribute)
    }

    /// Whether it is one of those who may read without a token.
    pub fn is_anonymous(&self) -> bool {
        self.entry
            .as_ref()
            .is_some_and(|entry| entry.digest.is_none())
    }

    /// Whether the token is good for some namespaces only.
    pub fn is_restricted(&self) -> bool {
        let entry = self.entry.as_ref();
        entry.is_some_and(|entry| entry.scope != Scope::All)
    }

    /// Whether a token came, right or wrong.
    pub fn has_sent_a_token(&self) -> bool {
        self.has_sent_a_token
    }

    /// The token's name; `None` without a token.
    pub fn name(&self) -> Option<&str> {
        self.entry.as_ref().map(|entry| entry.name.as_str())
    }

    /// Adds `count` to one of the token's figures.
    pub fn count(&self, figure: impl FnOnce(&Uses) -> &AtomicU64, count: u64) {
        if let Some(entry) = &self.entry {
            figure(&entry.uses).fetch_add(count, Relaxed);
        }
    }
}
