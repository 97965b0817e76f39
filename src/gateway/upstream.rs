//! The upstream: another store that this one asks on a miss and passes its writes on to.
//!
//! Reads go through: one fetch for all that wait for the same key, the blob is stored here and served from here.
//! Nobody waits longer than [`PATIENCE`]; the fetch goes on without them. Writes follow behind: a queue in a file,
//! a few uploads at a time. An upstream that fails is left alone for a while ([`breaker`]); until it answers again
//! this cache works as if it had none. Reads and writes have a breaker each: one that is full, or takes our token for
//! reading only, is still worth asking.
//!
//! A gateway that serves one build takes what the build needs ahead of its requests ([`ahead`]), holds back writes while
//! too many bytes wait, and ends when all is passed on.

mod ahead;
pub mod breaker;
pub(crate) mod cycle;
mod metrics;
pub mod queue;
mod uploads;
mod url;

use crate::config::variables::PROXIES;
use crate::contract::gateway_config::Upstream as Config;
use crate::contract::gateway_status::UpstreamStatus;
use crate::contract::key::Key;
use crate::gateway::disk::{Disk, DiskError};
use crate::store;
use crate::store::WrittenBy;
use ahead::Ahead;
use breaker::Breaker;
use cycle::Cycle;
use futures_util::TryStreamExt;
pub(crate) use metrics::Scrape;
use opendal::{ErrorKind, Operator};
use parking_lot::{Mutex, MutexGuard};
use queue::Queue;
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::timeout;
use tracing::{info, warn};
pub use url::operator;
use url::public_name;

/// How long a request waits for a fetch; its client compiles instead.
const PATIENCE: Duration = Duration::from_secs(5);
/// The same where we stand in the upstream's place: somewhat less than sccache would wait for it.
const PATIENCE_AHEAD: Duration = Duration::from_secs(50);
/// Unit in which bytes that wait to be passed on are counted.
const UNIT: u64 = 1 << 10;
/// How long a fetch or an upload may take.
const WHOLE: Duration = Duration::from_secs(120);
/// Fetches at one time.
const FETCHES: usize = 32;
/// Uploads at one time.
const UPLOADS: usize = 4;
/// Keys that may wait to be passed on.
const QUEUE: usize = 100_000;
/// Keys between a write and the queue's file.
const OFFERS: usize = 4096;
/// Which variables decide about a proxy on the way; their values may hold a password.
fn by_proxies(url: &str) -> String {
    let set = |name: &&str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let names: Vec<&str> = PROXIES.into_iter().filter(set).collect();
    match (names.is_empty(), url.starts_with("redis")) {
        (true, _) => String::new(),
        (false, false) => format!("; by {}", names.join(", ")),
        (false, true) => format!("; Redis goes by no proxy, so not by {}", names.join(", ")),
    }
}

/// Why an upstream cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The URL is not one that OpenDAL takes.
    #[error("cannot use the upstream: {0}")]
    Url(opendal::Error),
    /// No HTTP client: the certificates of the system cannot be read.
    #[error("cannot start a client for the upstream: {0}")]
    Client(reqwest::Error),
    /// The same, where a certificate is to be presented.
    #[error("cannot start a client for the upstream: {0}")]
    Tls(String),
    /// The queue's file.
    #[error("cannot open the upstream's queue \"{}\": {cause}", path.display())]
    Queue {
        /// The file.
        path: std::path::PathBuf,
        /// What the system says.
        cause: io::Error,
    },
}

/// What a fetch found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// It is in our store now.
    Here,
    /// The upstream does not have it either, or did not say in time.
    Nowhere,
}

#[derive(Debug, Default)]
struct Counts {
    hits: AtomicU64,
    misses: AtomicU64,
    shared: AtomicU64,
    skipped: AtomicU64,
    read_errors: AtomicU64,
    uploaded: AtomicU64,
    write_errors: AtomicU64,
    dropped: AtomicU64,
    bytes_read: AtomicU64,
    bytes_written: AtomicU64,
}

/// The upstream of one gateway.
#[derive(Debug)]
pub struct Upstream {
    operator: Operator,
    disk: Disk,
    /// How the log and the status name it, without what is secret.
    name: String,
    reads: Mutex<Breaker>,
    writes: Mutex<Breaker>,
    flights: Mutex<HashMap<Key, watch::Receiver<Option<Found>>>>,
    fetches: Semaphore,
    queue: Mutex<Queue>,
    queued: Notify,
    /// How often those that wait were tried.
    tries: Mutex<HashMap<Key, u32>>,
    offers: mpsc::Sender<Key>,
    counts: Counts,
    last_error: Mutex<Option<String>>,
    of_build: Option<OfBuild>,
    cycle: Option<Arc<Cycle>>,
}

/// What only the gateway of one build has.
#[derive(Debug)]
struct OfBuild {
    ahead: Arc<Ahead>,
    room: Arc<Semaphore>,
    most: u64,
    /// The share of each blob that is to be passed on.
    unsent: Mutex<HashMap<Key, OwnedSemaphorePermit>>,
    farewell: Duration,
}

// Plain mutexes: held for a look-up, never across an await. Only that of the queue is held while its file is written,
// by threads that may block.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock()
}

#[expect(clippy::disallowed_methods, reason = "the breaker's clock")]
fn now() -> Instant {
    Instant::now()
}

impl Upstream {
    /// Connects a store to its upstream and starts to pass on what the last run left. Runs on tokio.
    ///
    /// # Errors
    /// The URL or the queue's file cannot be used.
    pub fn start(config: &Config, disk: Disk) -> Result<Arc<Upstream>, Error> {
        let operator = operator(config)?;
        let queue = Queue::open(&config.queue, QUEUE).map_err(|cause| Error::Queue {
            path: config.queue.clone(),
            cause,
        })?;
        let (offers, taken) = mpsc::channel(OFFERS);
        let of_build = config.ahead.as_ref().map(|of_build| {
            let most = of_build
                .unsent_bytes
                .div_ceil(UNIT)
                .min(u64::from(u32::MAX));
            Ok(OfBuild {
                ahead: Ahead::start(of_build, config, disk.clone())?,
                room: Arc::new(Semaphore::new(usize::try_from(most).unwrap_or(usize::MAX))),
                most,
                unsent: Mutex::default(),
                farewell: of_build.farewell,
            })
        });
        let of_build = of_build.transpose()?;
        let upstream = Arc::new(Upstream {
            cycle: Cycle::watch(config)?,
            of_build,
            operator,
            disk,
            name: public_name(config.url.reveal()),
            reads: Mutex::default(),
            writes: Mutex::default(),
            flights: Mutex::default(),
            fetches: Semaphore::new(FETCHES),
            queue: Mutex::new(queue),
            queued: Notify::new(),
            tries: Mutex::default(),
            offers,
            counts: Counts::default(),
            last_error: Mutex::default(),
        });
        info!(
            "upstream {} with {} blobs to pass on{}",
            upstream.name,
            lock(&upstream.queue).len(),
            by_proxies(config.url.reveal())
        );
        tokio::spawn(Arc::clone(&upstream).keep_queue(taken));
        for _ in 0..UPLOADS {
            tokio::spawn(Arc::clone(&upstream).upload_queued());
        }
        Ok(upstream)
    }

    /// Brings a blob that our store misses from the upstream, if it has it. One fetch for all who ask at a time.
    pub async fn fetch(self: &Arc<Self>, key: &Key) -> Found {
        let ahead = self.of_build.as_ref().map(|it| &it.ahead);
        if let Some(ahead) = ahead
            && ahead.brings(key).await
        {
            return Found::Here;
        }
        if self.is_in_cycle() {
            self.counts.skipped.fetch_add(1, Relaxed);
            return Found::Nowhere;
        }
        let mut landed = {
            let mut flights = lock(&self.flights);
            if let Some(landed) = flights.get(key) {
                self.counts.shared.fetch_add(1, Relaxed);
                landed.clone()
            } else {
                if !lock(&self.reads).admits(now()) {
                    self.counts.skipped.fetch_add(1, Relaxed);
                    return Found::Nowhere;
                }
                let (land, landed) = watch::channel(None);
                flights.insert(key.clone(), landed.clone());
                // On a task of its own: whoever asked first may go away.
                let (upstream, key) = (Arc::clone(self), key.clone());
                tokio::spawn(async move {
                    let found = upstream.bring(&key).await;
                    lock(&upstream.flights).remove(&key);
                    land.send_replace(Some(found));
                });
                landed
            }
        };
        let patience = ahead.map_or(PATIENCE, |_| PATIENCE_AHEAD);
        let landing = timeout(patience, landed.wait_for(Option::is_some)).await;
        match landing {
            Ok(Ok(found)) => (*found).unwrap_or(Found::Nowhere),
            Ok(Err(_)) | Err(_) => Found::Nowhere,
        }
    }

    /// A client was given a blob that is here.
    pub(super) fn used(&self, key: &Key) {
        if let Some(of_build) = &self.of_build {
            of_build.ahead.asked(key);
        }
    }

    /// Figures for status and metrics.
    pub fn status(&self) -> UpstreamStatus {
        let count = |counter: &AtomicU64| counter.load(Relaxed);
        UpstreamStatus {
            name: self.name.clone(),
            available: self.is_available() && !self.is_in_cycle(),
            hits: count(&self.counts.hits),
            misses: count(&self.counts.misses),
            shared_fetches: count(&self.counts.shared),
            skipped_reads: count(&self.counts.skipped),
            read_errors: count(&self.counts.read_errors),
            uploaded: count(&self.counts.uploaded),
            write_errors: count(&self.counts.write_errors),
            dropped_writes: count(&self.counts.dropped),
            bytes_read: count(&self.counts.bytes_read),
            bytes_written: count(&self.counts.bytes_written),
            queued: lock(&self.queue).len() as u64,
            last_error: match self.is_in_cycle() {
                true => Some("this cache is its own upstream".to_owned()),
                false => lock(&self.last_error).clone(),
            },
        }
    }

    async fn bring(&self, key: &Key) -> Found {
        let Ok(_slot) = self.fetches.acquire().await else {
            return Found::Nowhere;
        };
        let outcome = match timeout(WHOLE, self.copy_here(key)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Trouble::Upstream("it did not answer in time".into())),
        };
        match outcome {
            Ok(Some(bytes)) => {
                self.heard(Way::Read);
                self.counts.hits.fetch_add(1, Relaxed);
                self.counts.bytes_read.fetch_add(bytes, Relaxed);
                Found::Here
            }
            Ok(None) => {
                self.heard(Way::Read);
                self.counts.misses.fetch_add(1, Relaxed);
                Found::Nowhere
            }
            Err(Trouble::Upstream(cause)) => {
                self.counts.read_errors.fetch_add(1, Relaxed);
                self.broke(Way::Read, &format!("cannot read {key}: {cause}"));
                Found::Nowhere
            }
            Err(Trouble::Here(fault)) => {
                // The upstream did its part.
                self.heard(Way::Read);
                self.counts.read_errors.fetch_add(1, Relaxed);
                warn!("cannot keep {key} of the upstream: {fault}");
                Found::Nowhere
            }
        }
    }

    /// Bytes of the blob, which is in our store then; `None` where the upstream has none.
    async fn copy_here(&self, key: &Key) -> Result<Option<u64>, Trouble> {
        let reader = self.operator.reader(key.as_str()).await?;
        let mut pieces = match reader.into_bytes_stream(..).await {
            Ok(pieces) => pieces,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let mut upload = None;
        loop {
            // The answer's head comes with the first piece.
            let piece = match pieces.try_next().await {
                Ok(piece) => piece,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(Trouble::Upstream(error.to_string())),
            };
            let upload = match &mut upload {
                Some(upload) => upload,
                None => {
                    let by = WrittenBy::new(store::Lane::Upstream, None);
                    upload.insert(self.disk.put(key, None, by).await?)
                }
            };
            match piece {
                Some(piece) => upload.push(&piece).await?,
                None => break,
            }
        }
        let Some(upload) = upload else {
            return Ok(None);
        };
        let bytes = upload.received();
        upload.finish().await?;
        Ok(Some(bytes))
    }

    fn is_in_cycle(&self) -> bool {
        self.cycle.as_ref().is_some_and(|it| it.is_closed())
    }

    /// A request carried the number of a cache, see [`cycle`].
    pub(super) fn heard_number(&self, number: &str) {
        if let Some(cycle) = &self.cycle {
            cycle.heard(number);
        }
    }

    fn is_available(&self) -> bool {
        !self.breaker(Way::Read).is_open() && !self.breaker(Way::Write).is_open()
    }

    fn breaker(&self, way: Way) -> MutexGuard<'_, Breaker> {
        lock(match way {
            Way::Read => &self.reads,
            Way::Write => &self.writes,
        })
    }

    fn heard(&self, way: Way) {
        if !self.breaker(way).succeeded() {
            return;
        }
        if self.is_available() {
            *lock(&self.last_error) = None;
        }
        match way {
            Way::Read => info!("upstream {} answers again", self.name),
            Way::Write => {
                info!("upstream {} takes blobs again", self.name);
                self.queued.notify_waiters();
            }
        }
    }

    fn broke(&self, way: Way, cause: &str) {
        *lock(&self.last_error) = Some(cause.to_owned());
        if !self.breaker(way).failed(now()) {
            return;
        }
        let name = &self.name;
        match way {
            Way::Read => warn!(
                "upstream {name} is left alone for a while: {cause}; the cache goes on without it"
            ),
            Way::Write => warn!("upstream {name} takes no blobs: {cause}; they wait for it"),
        }
    }
}

/// Where a blob was to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// From the upstream.
    Read,
    /// To the upstream.
    Write,
}

/// Whose fault it is that a blob did not move.
#[derive(Debug)]
enum Trouble {
    Upstream(String),
    Here(DiskError),
}

impl From<opendal::Error> for Trouble {
    fn from(error: opendal::Error) -> Trouble {
        Trouble::Upstream(error.to_string())
    }
}

impl From<DiskError> for Trouble {
    fn from(fault: DiskError) -> Trouble {
        Trouble::Here(fault)
    }
}
