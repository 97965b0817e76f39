//! What a caller may see of the gateway's status.

use super::access::Caller;
use crate::contract::gateway_status::{
    LostHits, Progress, Status, StoreStatus, TokensStatus, Totals,
};
use crate::store;
use std::collections::BTreeMap;

/// What a token of some namespaces may see: these, itself, and the state of the store, which all share. No other
/// name, no address, no message that may hold one, and no sum over what others do.
pub(super) fn narrowed(status: Status, caller: &Caller) -> Status {
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
pub(super) fn without_grants(tokens: &mut TokensStatus) {
    for one in tokens.by_name.values_mut() {
        (one.proof, one.grants) = (String::new(), String::new());
    }
}

impl From<store::Progress> for Progress {
    fn from(store::Progress { done, total }: store::Progress) -> Progress {
        Progress { done, total }
    }
}
