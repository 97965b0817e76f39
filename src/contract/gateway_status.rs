//! The JSON of `/api/status` and `/api/purge`, for the command line to write and read back.

use super::sent_home::SentHome;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// The gateway at one moment. All counters start at 0 with the gateway's process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
    /// The upstream, where there is one.
    #[serde(default)]
    pub upstream: Option<UpstreamStatus>,
    pub totals: Totals,
    /// Misses that would have been hits with a larger budget or quota.
    #[serde(default)]
    pub lost_hits: LostHits,
    #[serde(default)]
    pub integrity: Integrity,
    /// By name; the default namespace is called "default".
    pub namespaces: BTreeMap<String, NamespaceStatus>,
    /// "http" and "sccache" (sccache's own protocol).
    pub protocols: BTreeMap<String, ProtocolStatus>,
    /// Refused requests by reason.
    pub refusals: BTreeMap<String, u64>,
    #[serde(default)]
    pub tokens: TokensStatus,
    /// Missing where TLS is not set.
    #[serde(default)]
    pub tls: Option<TlsStatus>,
    /// Oldest first.
    pub recent_warnings: Vec<Warning>,
    /// In the modes that distribute.
    #[serde(default)]
    pub dist: Option<DistStatus>,
}

/// The front of the scheduler. Jobs are those that this gateway's process saw being assigned.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DistStatus {
    /// It answers.
    pub scheduler_up: bool,
    /// How often it stopped answering.
    pub scheduler_outages: u64,
    /// Heartbeats sent again, to a scheduler that was new.
    pub replayed_heartbeats: u64,
    /// By outcome: "assigned", "no_capacity", "busy" (a toolchain was on its way), "leaving", "silent", "failed".
    pub allocations: BTreeMap<String, u64>,
    /// By address.
    pub builders: Vec<BuilderStatus>,
    /// Of the builder in this container.
    pub local_jobs: LocalJobs,
}

/// One builder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuilderStatus {
    /// Where clients and the scheduler reach it.
    pub address: SocketAddr,
    /// It is in this container.
    pub local: bool,
    pub state: BuilderState,
    /// Cores that jobs may use.
    pub slots: u64,
    /// In flight.
    pub jobs: u64,
    /// Jobs that came to their end, however their compilers ended.
    pub done: u64,
    /// Jobs that were assigned and never came to their end.
    pub failed: u64,
    /// Since its last heartbeat or report.
    pub last_sign_seconds: u64,
}

/// What a builder is up to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BuilderState {
    /// It takes jobs.
    Ready,
    /// It receives or unpacks a toolchain; jobs for it wait or go elsewhere.
    Preparing,
    /// It is about to stop and gets no more jobs.
    Leaving,
    /// Its port takes connections and does not answer: it is paused, or its machine is overwhelmed. Clients whose
    /// jobs are there wait as long as sccache does, 20 minutes.
    Silent,
    /// There was no sign of it for a while.
    Lost,
}

/// Jobs as the shim around their processes reports them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct LocalJobs {
    pub running: u64,
    pub ended: u64,
    /// Of these, with an exit code other than 0: most are errors in the sources.
    pub nonzero: u64,
    pub cpu_seconds: f64,
    /// The largest that any job was.
    pub peak_rss_bytes: u64,
    /// Jobs that were ended because they went over a limit, by limit.
    pub limits: BTreeMap<String, u64>,
    /// Rust jobs that were ended so that their clients do them, by crate and reason.
    #[serde(default)]
    pub sent_home: Vec<SentHomeCount>,
}

/// How many jobs of one crate went home for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SentHomeCount {
    /// The last of them.
    #[serde(flatten)]
    pub home: SentHome,
    pub jobs: u64,
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
    /// While that is so: how many folders the start has looked into, of those that there can be.
    #[serde(default)]
    pub scan: Option<Progress>,
    pub evicted_entries: u64,
    pub evicted_bytes: u64,
    /// Corrupt blobs of all kinds, see `integrity`.
    pub broken_entries: u64,
    /// Blobs removed because nobody used them for too long.
    #[serde(default)]
    pub expired_entries: u64,
    #[serde(default)]
    pub expired_bytes: u64,
    /// Writes refused because only pinned blobs could have made room.
    #[serde(default)]
    pub pinned_refusals: u64,
    /// While one is under way: how many blobs it has looked at.
    #[serde(default)]
    pub purge: Option<Progress>,
    /// The last time that the file system refused something.
    pub fault: Option<String>,
}

/// Misses of blobs that were evicted before.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct LostHits {
    pub count: u64,
    /// Bytes on disk that the blobs took, each time.
    pub bytes: u64,
    /// Those that went because of their namespace's quota: no larger budget would have kept them.
    pub by_quota: u64,
    /// The smallest budget first.
    pub kept_by: Vec<KeptBy>,
}

/// What another budget would have done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KeptBy {
    pub budget_bytes: u64,
    /// Of the lost hits that did not go because of a quota, from 0 to 1.
    pub share: f64,
}

impl LostHits {
    /// The smallest budget that would have kept most of them, or the largest that was looked at.
    pub fn larger_budget(&self) -> Option<&KeptBy> {
        const MOST: f64 = 0.9;
        let enough = self.kept_by.iter().find(|one| one.share >= MOST);
        enough.or(self.kept_by.last())
    }
}

impl KeptBy {
    /// The share in percent, not rounded up to more than is true.
    pub fn whole_percent(&self) -> u64 {
        (self.share * 100.0).floor() as u64
    }
}

/// Checks of blobs. Corrupt ones are removed when they are found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Integrity {
    /// By kind: "trailer" (cut or changed at its end), "body" (disagrees with its checksum), "unreadable".
    pub corrupt: BTreeMap<String, u64>,
    /// In which every blob is to be checked once; missing when that is off.
    pub scrub_seconds: Option<u64>,
    /// Blobs checked by that schedule, and those of them that were corrupt.
    pub scrub_checked: u64,
    pub scrub_corrupt: u64,
    /// The end of the last pass over all blobs.
    pub scrub_last_full_unix_seconds: Option<u64>,
    /// How far the present pass has come, from 0 to 100.
    pub scrub_percent: u8,
    /// Blobs checked on suspicion.
    pub suspicions: u64,
}

/// How much of a long work is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    pub done: u64,
    pub total: u64,
}

/// What the start's scan has still to do, as `status`, the page and the health check say it; `None` when it is done.
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
    /// Its URL without what is secret.
    pub name: String,
    /// It answers reads and takes writes; else it is left alone for a while.
    pub available: bool,
    /// Blobs brought from it.
    pub hits: u64,
    /// Blobs that it did not have either.
    pub misses: u64,
    /// Requests that waited for a fetch which another had begun.
    pub shared_fetches: u64,
    /// Misses for which it was not asked because it was left alone.
    pub skipped_reads: u64,
    pub read_errors: u64,
    /// Blobs passed on to it.
    pub uploaded: u64,
    pub write_errors: u64,
    /// Blobs that are not passed on: the queue was full, they are gone, or it does not take them.
    pub dropped_writes: u64,
    /// Bytes of blobs brought.
    pub bytes_read: u64,
    /// Bytes of blobs passed on.
    pub bytes_written: u64,
    /// Blobs that wait to be passed on.
    pub queued: u64,
    pub last_error: Option<String>,
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
    /// Most bytes that it may take on disk.
    #[serde(default)]
    pub quota: Option<u64>,
    /// Writes to other namespaces do not evict from it.
    #[serde(default)]
    pub pinned: bool,
    /// Misses of blobs that were evicted before.
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
    /// Bytes of bodies.
    pub bytes_received: u64,
    /// Bytes of bodies.
    pub bytes_sent: u64,
    /// Open now.
    pub connections: u64,
}

/// The tokens in force.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokensStatus {
    /// "auth", "read", "anonymous" and the names of the tokens' file.
    pub by_name: BTreeMap<String, TokenStatus>,
    /// What is wrong with the tokens' file; those before stay in force.
    pub fault: Option<String>,
}

/// What was done with one token.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenStatus {
    pub requests: u64,
    pub hits: u64,
    pub misses: u64,
    /// Bytes of blobs.
    pub bytes_received: u64,
    /// Bytes of blobs.
    pub bytes_sent: u64,
    /// Requests that it does not allow.
    pub refusals: u64,
}

/// TLS on the cache port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TlsStatus {
    /// The end of the certificate in force; missing while there is none.
    pub not_after_unix_seconds: Option<u64>,
    /// What is wrong with certificate or key; those before stay in force.
    pub fault: Option<String>,
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
    /// Only keys that match: `*` is any text, `?` any character, `[ab]` one of these.
    #[serde(default)]
    pub pattern: Option<String>,
    /// Only blobs that came by this lane (`webdav`, `ipc`, `socket`, `upstream`), or that were written with the token of
    /// this name; `unknown` is for those of which nobody knows.
    #[serde(default)]
    pub written_by: Option<String>,
    /// Only blobs written then or later, in seconds since 1970.
    #[serde(default)]
    pub since_unix_seconds: Option<u64>,
    /// Remove nothing.
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

/// What was purged, or would have been.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PurgeAnswer {
    /// Blobs.
    pub entries: u64,
    /// Bytes on disk.
    pub bytes: u64,
}
