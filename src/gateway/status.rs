//! The JSON of `/api/status` and `/api/purge`, for the command line to write and read back.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The gateway at one moment. All counters start at 0 with the gateway's process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Of sccache-dock.
    pub version: String,
    /// Of the supervised sccache, such as "0.19.0": clients of the same version share.
    pub sccache_version: Option<String>,
    /// Since the gateway's process started.
    pub uptime_seconds: u64,
    /// The store takes writes, as far as is known without trying.
    pub ready: bool,
    pub store: StoreStatus,
    pub totals: Totals,
    /// By name; the default namespace is called "default".
    pub namespaces: BTreeMap<String, NamespaceStatus>,
    /// "http" and "sccache" (sccache's own protocol).
    pub protocols: BTreeMap<String, ProtocolStatus>,
    /// Refused requests by reason.
    pub refusals: BTreeMap<String, u64>,
    /// Oldest first.
    pub recent_warnings: Vec<Warning>,
}

/// The store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreStatus {
    /// On disk, in whole file-system blocks.
    pub bytes: u64,
    pub budget_bytes: u64,
    pub entries: u64,
    /// The index is not complete yet: `bytes` and `entries` still grow.
    pub indexing: bool,
    pub evicted_entries: u64,
    pub evicted_bytes: u64,
    /// Files removed because they were not whole.
    pub broken_entries: u64,
    /// The last time that the file system refused something.
    pub fault: Option<String>,
}

/// Sums over all namespaces.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    pub hits: u64,
    pub misses: u64,
    pub writes: u64,
    /// Bytes of hits.
    pub bytes_read: u64,
    /// Bytes of stored blobs.
    pub bytes_written: u64,
    /// Requests without a valid token.
    pub auth_failures: u64,
}

/// One namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceStatus {
    pub hits: u64,
    pub misses: u64,
    pub writes: u64,
    /// Bytes of hits.
    pub bytes_read: u64,
    /// Bytes of stored blobs.
    pub bytes_written: u64,
    /// In the store now.
    pub entries: u64,
    /// On disk now.
    pub bytes: u64,
}

/// One protocol.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProtocolStatus {
    pub requests: u64,
    /// Bytes of bodies.
    pub bytes_received: u64,
    /// Bytes of bodies.
    pub bytes_sent: u64,
    /// Open now.
    pub connections: u64,
}

/// A line of the log at level WARN.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warning {
    pub at_unix_seconds: u64,
    pub message: String,
}

/// What to purge; an empty object purges everything.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PurgeRequest {
    /// Only blobs that nobody used for this long.
    pub older_than_seconds: Option<u64>,
    /// Only this namespace; "default" is the default one.
    pub namespace: Option<String>,
}

/// What was purged.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PurgeAnswer {
    /// Blobs.
    pub entries: u64,
    /// Bytes on disk.
    pub bytes: u64,
}
