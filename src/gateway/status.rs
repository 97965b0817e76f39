//! The gateway's status, and what a caller may see of it.

use super::Gateway;
use super::access::Caller;
use crate::contract::gateway_status::{
    Integrity, LostHits, Progress, Status, StoreStatus, TlsStatus, TokensStatus, Totals,
};
use crate::store;
use std::collections::BTreeMap;

impl Gateway {
    /// The answer of `/api/status`, as far as `caller` may see it.
    pub(crate) fn status(&self, caller: &Caller) -> Status {
        let mut status = self.whole_status();
        if caller.is_restricted() {
            return narrowed(status, caller);
        }
        if caller.is_anonymous() {
            without_grants(&mut status.tokens);
        }
        status
    }

    fn whole_status(&self) -> Status {
        let usage = self.disk.usage();
        let fault = self.disk.write_fault();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            sccache_version: self.sccache_version.get().cloned(),
            uptime_seconds: self.started.elapsed().as_secs(),
            ready: fault.is_none(),
            upstream: self.upstream.as_ref().map(|upstream| upstream.status()),
            totals: self.metrics.totals(),
            lost_hits: LostHits::new(&usage),
            integrity: Integrity::new(&usage),
            namespaces: self.metrics.namespaces(&usage),
            protocols: self.metrics.protocols(),
            refusals: self.metrics.refusals(),
            tokens: TokensStatus::new(&self.identity.access, self.files.faults().tokens),
            tls: self.identity.tls.as_ref().map(|tls| TlsStatus {
                not_after_unix_seconds: tls.not_after(),
                fault: self.files.faults().tls,
            }),
            recent_warnings: self.refusals.warnings.recent(),
            dist: self.cluster.as_ref().map(|status| status()),
            store: StoreStatus {
                bytes: usage.bytes,
                budget_bytes: usage.budget_bytes,
                entries: usage.entries,
                indexing: usage.indexing,
                scan: usage.indexing.then(|| usage.scanned.into()),
                evicted_entries: usage.evicted_entries,
                evicted_bytes: usage.evicted_bytes,
                broken_entries: usage.flaws.sum(),
                expired_entries: usage.expired_entries,
                expired_bytes: usage.expired_bytes,
                pinned_refusals: usage.pinned_refusals,
                purge: usage.purging.map(Into::into),
                fault: fault.or(usage.last_fault.map(|fault| fault.message)),
            },
        }
    }
}

/// What a token of some namespaces may see: these, itself, and the state of the store, which all share. No other
/// name, no address, no message that may hold one, and no sum over what others do.
fn narrowed(status: Status, caller: &Caller) -> Status {
    let mut namespaces = status.namespaces;
    namespaces.retain(|name, _| caller.scope().reads(name));
    let mut by_name = status.tokens.by_name;
    by_name.retain(|name, _| caller.name() == Some(name));
    let totals = namespaces
        .values()
        .fold(Totals::default(), |sum, one| Totals {
            hits: sum.hits + one.hits,
            misses: sum.misses + one.misses,
            writes: sum.writes + one.writes,
            bytes_read: sum.bytes_read + one.bytes_read,
            bytes_written: sum.bytes_written + one.bytes_written,
            auth_failures: 0,
        });
    let fault = status.store.fault;
    // Every field by its name, so that a new one is thought about.
    Status {
        version: status.version,
        sccache_version: status.sccache_version,
        uptime_seconds: status.uptime_seconds,
        ready: status.ready,
        store: StoreStatus {
            fault: fault.map(|_| "the file system refused something".into()),
            ..status.store
        },
        upstream: None,
        totals,
        lost_hits: LostHits {
            count: namespaces.values().map(|one| one.lost_hits).sum(),
            ..LostHits::default()
        },
        integrity: status.integrity,
        namespaces,
        protocols: BTreeMap::new(),
        refusals: BTreeMap::new(),
        tokens: TokensStatus {
            by_name,
            fault: None,
        },
        tls: None,
        recent_warnings: Vec::new(),
        dist: None,
    }
}

/// Strangers learn who reads here, and not what each may do.
fn without_grants(tokens: &mut TokensStatus) {
    for one in tokens.by_name.values_mut() {
        (one.proof, one.grants) = (String::new(), String::new());
    }
}

impl From<store::Progress> for Progress {
    fn from(store::Progress { done, total }: store::Progress) -> Progress {
        Progress { done, total }
    }
}
