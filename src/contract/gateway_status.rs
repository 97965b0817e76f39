//! The JSON of `/api/status` and `/api/purge`, written by the gateway and read by the command line.

use super::sent_home::SentHome;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// State of the gateway at one moment. All counters start at 0 with the gateway's process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Version of sccache-dock.
    pub version: String,
    /// Version of the supervised sccache, such as "0.19.0": clients of the same version share.
    pub sccache_version: Option<String>,
    /// Seconds since the gateway's process started.
    pub uptime_seconds: u64,
    /// Whether the store accepts writes, as far as is known without trying.
    pub ready: bool,
    pub store: StoreStatus,
    /// The upstream, if there is one.
    #[serde(default)]
    pub upstream: Option<UpstreamStatus>,
    pub totals: Totals,
    /// Misses that would have been hits with a larger budget or quota.
    #[serde(default)]
    pub lost_hits: LostHits,
    #[serde(default)]
    pub integrity: Integrity,
    /// By name; the namespace without a prefix is called "default".
    pub namespaces: BTreeMap<String, NamespaceStatus>,
    /// "http" and "sccache" (sccache's own protocol).
    pub protocols: BTreeMap<String, ProtocolStatus>,
    /// Refused requests by reason.
    pub refusals: BTreeMap<String, u64>,
    #[serde(default)]
    pub tokens: TokensStatus,
    /// Missing if TLS is off.
    #[serde(default)]
    pub tls: Option<TlsStatus>,
    /// Oldest first.
    pub recent_warnings: Vec<Warning>,
    /// Present in the distributed modes.
    #[serde(default)]
    pub dist: Option<DistStatus>,
}

/// The scheduler's reverse proxy. Jobs are those whose assignment this gateway process has seen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DistStatus {
    /// Whether the scheduler answers.
    pub scheduler_up: bool,
    /// How often it stopped answering.
    pub scheduler_outages: u64,
    /// Heartbeats replayed to a new scheduler.
    pub replayed_heartbeats: u64,
    /// By outcome: "assigned", "no_capacity", "busy" (a toolchain is being sent), "leaving", "silent", "failed".
    pub allocations: BTreeMap<String, u64>,
    /// Sorted by address.
    pub builders: Vec<BuilderStatus>,
    /// Jobs of the builder in this container.
    pub local_jobs: LocalJobs,
    /// The relay, where it is on.
    #[serde(default)]
    pub relay: Option<RelayStatus>,
}

/// The relay: jobs that clients wait for, and the slots that they wait for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayStatus {
    /// Jobs that wait for a slot.
    pub waiting: u64,
    /// Jobs that run.
    pub running: u64,
    /// Of their bodies.
    pub bytes: u64,
    /// Of all builders that take jobs.
    pub slots: u64,
    /// Those that have a job.
    pub slots_used: u64,
    /// How long the first of those that wait has waited.
    pub oldest_seconds: u64,
    /// Jobs by outcome: "done", and why others were left to their clients.
    pub jobs: BTreeMap<String, u64>,
    /// Attempts on builders by outcome.
    pub attempts: BTreeMap<String, u64>,
}

/// One builder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuilderStatus {
    /// Address at which clients and the scheduler reach it.
    pub address: SocketAddr,
    /// Whether it is in this container.
    pub local: bool,
    /// The name of the token with which it has joined, in the file of tokens.
    #[serde(default)]
    pub token: Option<String>,
    /// The version of its machine's sccache-dock; stock builders tell none.
    #[serde(default)]
    pub version: Option<String>,
    pub state: BuilderState,
    /// Number of cores that jobs may use.
    pub slots: u64,
    /// Jobs in flight.
    pub jobs: u64,
    /// Jobs that completed, whatever their compiler's exit code.
    pub done: u64,
    /// Jobs that were assigned but never completed.
    pub failed: u64,
    /// Seconds since its last heartbeat or report.
    pub last_sign_seconds: u64,
}

/// State of a builder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BuilderState {
    /// It accepts jobs.
    Ready,
    /// It is receiving or unpacking a toolchain; its jobs wait or go elsewhere.
    Preparing,
    /// It is about to stop and gets no new jobs.
    Leaving,
    /// Its port accepts connections but does not answer: it is paused, or its machine is overloaded. Clients with jobs
    /// there wait for sccache's own timeout of 20 minutes.
    Silent,
    /// It has sent nothing for a while.
    Lost,
}

/// Jobs as reported by the shim around their processes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct LocalJobs {
    pub running: u64,
    pub ended: u64,
    /// Of these, jobs with an exit code other than 0, mostly because of errors in the sources.
    pub nonzero: u64,
    pub cpu_seconds: f64,
    /// The largest value of any job.
    pub peak_rss_bytes: u64,
    /// Jobs ended because they exceeded a limit, by limit.
    pub limits: BTreeMap<String, u64>,
    /// Rust jobs ended so that their clients compile them, by crate and reason.
    #[serde(default)]
    pub sent_home: Vec<SentHomeCount>,
}

/// Number of jobs of one crate that were sent back for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SentHomeCount {
    /// The most recent of them.
    #[serde(flatten)]
    pub home: SentHome,
    pub jobs: u64,
}

/// The store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreStatus {
    /// Disk usage in whole file-system blocks.
    pub bytes: u64,
    pub budget_bytes: u64,
    pub entries: u64,
    /// Whether the index is incomplete, so that `bytes` and `entries` still grow.
    pub indexing: bool,
    /// During indexing: how many of the possible folders have been scanned.
    #[serde(default)]
    pub scan: Option<Progress>,
    pub evicted_entries: u64,
    pub evicted_bytes: u64,
    /// Corrupt blobs of all kinds; see `integrity`.
    pub broken_entries: u64,
    /// Blobs removed because of their age.
    #[serde(default)]
    pub expired_entries: u64,
    #[serde(default)]
    pub expired_bytes: u64,
    /// Writes refused because only pinned blobs could have been evicted.
    #[serde(default)]
    pub pinned_refusals: u64,
    /// During a purge: how many blobs have been examined.
    #[serde(default)]
    pub purge: Option<Progress>,
    /// The most recent file-system error.
    pub fault: Option<String>,
}

/// Misses of blobs that had been evicted.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct LostHits {
    pub count: u64,
    /// Disk usage of the missed blobs, counted at each miss.
    pub bytes: u64,
    /// Misses of blobs evicted because of their namespace's quota; no larger budget would have kept them.
    pub by_quota: u64,
    /// Sorted by budget, smallest first.
    pub kept_by: Vec<KeptBy>,
}

/// The effect that another budget would have had.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KeptBy {
    pub budget_bytes: u64,
    /// Share of the lost hits that it would have kept, from 0 to 1; those lost to a quota are not counted.
    pub share: f64,
}

impl LostHits {
    /// The smallest budget that would have kept most of the lost hits, or the largest that was considered.
    pub fn larger_budget(&self) -> Option<&KeptBy> {
        const MOST: f64 = 0.9;
        let enough = self.kept_by.iter().find(|one| one.share >= MOST);
        enough.or(self.kept_by.last())
    }
}

impl KeptBy {
    /// The share in percent, rounded down.
    pub fn whole_percent(&self) -> u64 {
        (self.share * 100.0).floor() as u64
    }
}

/// Verification of blobs. Corrupt ones are removed when they are found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Integrity {
    /// By kind: "trailer" (truncated or changed at the end), "body" (does not match its checksum), "unreadable".
    pub corrupt: BTreeMap<String, u64>,
    /// Period in which every blob is verified once; missing if the scrub is off.
    pub scrub_seconds: Option<u64>,
    /// Blobs verified by the scrub, and how many of them were corrupt.
    pub scrub_checked: u64,
    pub scrub_corrupt: u64,
    /// End of the last complete scrub.
    pub scrub_last_full_unix_seconds: Option<u64>,
    /// Progress of the current scrub, from 0 to 100.
    pub scrub_percent: u8,
    /// Blobs verified on suspicion.
    pub suspicions: u64,
}

/// Progress of a long operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    pub done: u64,
    pub total: u64,
}

/// Progress of the scan at start, as `status`, the page and the health check show it; `None` when it is done.
pub fn scanning(scan: Option<Progress>) -> Option<String> {
    let Progress { done, total } = scan?;
    Some(match total {
        0 => "still counting".to_owned(),
        _ => format!("still counting: {done} of {total} folders"),
    })
}

/// The upstream.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpstreamStatus {
    /// Its URL without credentials.
    pub name: String,
    /// Whether it is used; after failures it is not contacted for a while.
    pub available: bool,
    /// Blobs fetched from it.
    pub hits: u64,
    /// Blobs that it did not have.
    pub misses: u64,
    /// Requests that waited for a fetch started by another request.
    pub shared_fetches: u64,
    /// Misses that were not looked up because it was unavailable.
    pub skipped_reads: u64,
    pub read_errors: u64,
    /// Blobs uploaded to it.
    pub uploaded: u64,
    pub write_errors: u64,
    /// Blobs not uploaded because the queue was full, the blob was gone, or the upstream refused it.
    pub dropped_writes: u64,
    /// Bytes of fetched blobs.
    pub bytes_read: u64,
    /// Bytes of uploaded blobs.
    pub bytes_written: u64,
    /// Blobs waiting to be uploaded.
    pub queued: u64,
    pub last_error: Option<String>,
}

/// Totals over all namespaces.
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
    /// Blobs currently in the store.
    pub entries: u64,
    /// Current disk usage.
    pub bytes: u64,
    /// Maximum disk usage.
    #[serde(default)]
    pub quota: Option<u64>,
    /// Whether writes to other namespaces cannot evict its blobs.
    #[serde(default)]
    pub pinned: bool,
    /// Misses of blobs that had been evicted.
    #[serde(default)]
    pub lost_hits: u64,
}

/// One protocol.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProtocolStatus {
    pub requests: u64,
    #[serde(default)]
    pub hits: u64,
    #[serde(default)]
    pub misses: u64,
    /// Bytes of request bodies.
    pub bytes_received: u64,
    /// Bytes of response bodies.
    pub bytes_sent: u64,
    /// Currently open connections.
    pub connections: u64,
}

/// The valid tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokensStatus {
    /// "auth", "read", "anonymous" and the names in the tokens file.
    pub by_name: BTreeMap<String, TokenStatus>,
    /// What is wrong with the tokens file; the previous tokens stay valid.
    pub fault: Option<String>,
}

/// Usage of one token.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenStatus {
    pub requests: u64,
    pub hits: u64,
    pub misses: u64,
    /// Bytes of blobs received.
    pub bytes_received: u64,
    /// Bytes of blobs sent.
    pub bytes_sent: u64,
    /// Requests refused because the token does not allow them.
    pub refusals: u64,
    /// How its holder is known: `a token`, `the certificate NAME`, `an ID token of ISSUER with CLAIMS`; empty for those who
    /// may not know.
    #[serde(default)]
    pub proof: String,
    /// What it allows, as the server has understood it: `reads pr/42, main; writes pr/42`; empty for the same.
    #[serde(default)]
    pub grants: String,
}

/// TLS on the cache port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TlsStatus {
    /// Expiry of the current certificate; missing if there is none.
    pub not_after_unix_seconds: Option<u64>,
    /// What is wrong with the certificate or key files; the previous ones stay in use.
    pub fault: Option<String>,
}

/// A log line at level WARN.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warning {
    pub at_unix_seconds: u64,
    pub message: String,
}

/// Selects the blobs to purge; an empty object selects all.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PurgeRequest {
    /// Only blobs not used for this long.
    pub older_than_seconds: Option<u64>,
    /// Only this namespace; "default" is the one without a prefix.
    pub namespace: Option<String>,
    /// Only keys that match: `*` is any text, `?` any character, `[ab]` one of these.
    #[serde(default)]
    pub pattern: Option<String>,
    /// Only blobs written by this lane (`webdav`, `ipc`, `socket`, `upstream`), or with the token of this name;
    /// `unknown` selects blobs without a recorded writer.
    #[serde(default)]
    pub written_by: Option<String>,
    /// Only blobs written at or after this Unix time.
    #[serde(default)]
    pub since_unix_seconds: Option<u64>,
    /// Only count, remove nothing.
    #[serde(default)]
    pub dry_run: bool,
}

/// Whose access to which blob is to be explained, or which blob is to be shown in all namespaces.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlobRequest {
    /// The 64 digits of an entry of sccache's, or a path.
    pub key: String,
    /// The name of a token; `local`, or `local:UID` for a user of the socket.
    #[serde(default, rename = "as")]
    pub caller: Option<String>,
}

/// What somebody may do with a blob.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessAnswer {
    /// Who.
    pub name: String,
    /// What this token may do at all.
    pub grants: String,
    /// Whether it may be read, and why.
    pub read: String,
    /// Whether it may be written or removed, and why.
    pub write: String,
    /// Whether results that are written once may be replaced.
    pub replaces: bool,
    /// Whether it is good for the scheduler.
    pub distributes: bool,
    /// Where it would be found, in the order in which it is looked for.
    pub found: Vec<BlobFacts>,
}

/// A blob of the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobFacts {
    /// Its key.
    pub key: String,
    /// Its namespace, by the name that people call it by.
    pub namespace: String,
    /// Bytes of its body; missing where there is no such blob.
    pub bytes: Option<u64>,
    /// When it was written.
    pub written_unix_seconds: u64,
    /// The lane, and the token, session or user.
    pub written_by: String,
}

/// A session that an ID token was exchanged for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionStatus {
    /// The rule, and the build behind a colon where there is one.
    pub name: String,
    /// The claim `sub`.
    pub subject: String,
    /// What its holder reads and writes.
    pub grants: String,
    /// When it began.
    pub began_unix_seconds: u64,
    /// When it ends.
    pub ends_unix_seconds: u64,
}

/// The answer to an ID token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoginAnswer {
    /// A token like any other, for as long as the session lasts.
    pub token: String,
    /// The rule, and the build behind a colon where there is one.
    pub name: String,
    /// What its holder reads and writes.
    pub grants: String,
    /// When it ends.
    pub ends_unix_seconds: u64,
}

/// Which sessions to end.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RevokeRequest {
    /// A build, a rule, or both as `RULE:BUILD`.
    pub name: String,
}

/// How many sessions have ended.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevokeAnswer {
    /// Sessions.
    pub sessions: usize,
}

/// What was purged, or would have been in a dry run.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PurgeAnswer {
    /// Number of blobs.
    pub entries: u64,
    /// Bytes on disk.
    pub bytes: u64,
}
