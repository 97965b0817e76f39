//! What a client and the gateway tell each other of a build: the JSON of `/api/builds`.

use super::print::Print;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// A client that builds says so as often as that.
pub const BEAT: Duration = Duration::from_secs(30);
/// Longest body of the request that ends a build, in bytes.
pub const LONGEST_BUILD: usize = 16 << 20;
/// Most compiles of one build that are explained.
pub const MOST_UNITS: usize = 20_000;

/// Where a build belongs: asked for by these is what is shown together.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct Labels {
    /// Name of the job.
    pub job: Option<String>,
    /// The repository, such as `team/project`.
    pub repository: Option<String>,
    /// The branch.
    pub branch: Option<String>,
}

/// A request to `POST /api/builds`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// A build begins.
    Begin(Labels),
    /// The build with this id goes on.
    Beat(String),
    /// A build has ended.
    End(Box<End>),
}

/// A request to `POST /api/prefetch`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prefetch {
    pub labels: Labels,
    /// Most bytes of all entries together.
    pub max_bytes: u64,
    /// Whether the answer begins with a list: an entry without a name, whose body has the names of all that follow, one a
    /// line. Some of them may be left out.
    #[serde(default)]
    pub listed: bool,
}

/// The answer to the begin of a build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begun {
    /// Its id.
    pub build: String,
    /// Key of hashes of values, 64 hexadecimal digits: the same for all builds of this cache.
    pub key: String,
    /// Whether it may store results.
    #[serde(default = "yes")]
    pub writes: bool,
}

fn yes() -> bool {
    true
}

/// What a build's own gateway says at its end, on standard output.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Served {
    /// What became of the entries that came ahead; `None` where none came.
    pub prefetched: Option<Prefetched>,
    /// Results that the cache does not have now.
    pub unsent: u64,
    /// The last reason for that.
    pub cause: Option<String>,
}

/// A build that has ended.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct End {
    /// Its id.
    pub build: String,
    pub labels: Labels,
    /// The command, without its arguments.
    pub command: String,
    /// The command's exit code.
    pub exit: i32,
    /// From its begin to its end.
    pub wall_ms: u64,
    /// Its compiles; empty without a recorder.
    pub units: Vec<Unit>,
    /// What the client's own daemon counted meanwhile, where it has one.
    pub daemon: Option<Daemon>,
    /// Of what was fetched before the build: the keys that it used, and those that it did not.
    pub prefetched: Option<Prefetched>,
    /// Why the cache could not be asked, if it could not.
    pub away: Option<String>,
}

/// What became of prefetched entries.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Prefetched {
    /// Keys as the gateway named them, in its order.
    pub used: Vec<String>,
    /// When each of them was asked for, in milliseconds since the build began; empty where nobody knows.
    pub used_ms: Vec<u64>,
    /// Keys as the gateway named them, in its order.
    pub unused: Vec<String>,
    /// Bytes of all of them.
    pub bytes: u64,
}

/// One compile, as a recorder saw it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Unit {
    /// The crate, or the source file of C.
    pub name: String,
    /// The package that it belongs to.
    pub package: String,
    /// The package's version.
    pub version: String,
    /// Kind of crate, or `c`.
    pub kind: String,
    /// By which the cache's entry is known: the file name of its outputs, without `lib` and extension.
    pub output: String,
    /// From the begin of the build to the begin of the compile.
    pub start_ms: u64,
    pub took_ms: u64,
    /// The compiler's exit code; missing where a signal ended it.
    pub exit: Option<i32>,
    /// Why sccache does not cache it, in its own words.
    pub not_cached: Option<String>,
    /// Outputs of its dependencies by their names, where the build has several of one name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub needs: BTreeMap<String, Vec<String>>,
    /// The parts of its key.
    pub print: Print,
}

impl Unit {
    /// What earlier compiles of the same thing have in common with it.
    pub fn identity(&self) -> String {
        let Unit {
            package,
            name,
            kind,
            version,
            ..
        } = self;
        // What comes from a registry has other sources in each version; what is being worked on keeps its name.
        let of_registry = self.print.sources.is_empty() && kind != "c";
        let version = if of_registry { version } else { "" };
        format!("{package}\0{version}\0{name}\0{kind}")
    }
}

/// What sccache's daemon counted between the begin and the end of a build.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Daemon {
    pub hits: u64,
    pub misses: u64,
    /// Look-ups that failed.
    pub errors: u64,
    /// Look-ups that took longer than a minute.
    pub timeouts: u64,
    /// Results that could not be stored.
    pub write_errors: u64,
    /// Compiles on builders.
    pub distributed: u64,
    /// Compiles that builders should have done, and this machine did.
    pub dist_errors: u64,
    /// By sccache's own words.
    pub not_cached: BTreeMap<String, u64>,
    /// By level, the nearest first; empty with one level.
    pub levels: Vec<Level>,
}

impl Daemon {
    /// Hits of the client's own disk, where that is a level of its own.
    pub fn own_hits(&self) -> u64 {
        let first = self.levels.first();
        let disk = first.filter(|level| level.name.to_lowercase().contains("disk"));
        disk.map_or(0, |level| level.hits)
    }
}

/// One level of a chain of caches.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Level {
    pub name: String,
    pub hits: u64,
}
