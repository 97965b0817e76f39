//! Whether this cache is its own upstream, by itself or by way of others: each would wait for the next one at every miss,
//! and pass every blob round and round.
//!
//! A cache sends a number of its own to its upstream, which sends it on to its own upstream, and so on. If the number comes
//! back, there is a cycle, and the upstream is not used until the number has stopped coming back.

use super::{Error, now, url};
use crate::contract::gateway_config::Upstream as Config;
use hyper::header::HeaderName;
use parking_lot::Mutex;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, Semaphore};
use tokio::time::{sleep, timeout};
use tracing::warn;

/// The header that carries a number, in hexadecimal digits, and how many caches it has come to: `9f0c2b7a11d3e455 2`.
pub(crate) const HEADER: HeaderName = HeaderName::from_static("sccache-dock-cycle");
/// How often the own number is sent, and how soon again.
const EVERY: Duration = Duration::from_secs(60);
const SOON: Duration = Duration::from_secs(1);
/// For how long a number that has come back counts.
const COUNTS: Duration = Duration::from_secs(150);
/// A number is sent on at most so often.
const HOPS: u32 = 8;
/// How long the upstream may take to answer.
const ANSWER: Duration = Duration::from_secs(5);
/// Numbers of others that are sent on at one time. More are dropped: they come again.
const AT_ONCE: usize = 4;

/// What one cache knows about the cycle that it may be in.
#[derive(Debug)]
pub(crate) struct Cycle {
    /// A page of the upstream that needs no token.
    page: String,
    name: String,
    client: reqwest::Client,
    own: u64,
    came_back: Mutex<Option<Instant>>,
    send_own: Notify,
    places: Arc<Semaphore>,
}

impl Cycle {
    /// For an upstream that may be another sccache-dock. Runs on tokio.
    ///
    /// # Errors
    /// There is no HTTP client.
    pub(super) fn watch(config: &Config) -> Result<Option<Arc<Cycle>>, Error> {
        let address = config.url.reveal();
        // Nobody has a build's own gateway as its upstream.
        if !address.starts_with("http") || config.ahead.is_some() {
            return Ok(None);
        }
        let cycle = Arc::new(Cycle {
            page: format!("{}/healthz", url::split_web(address).0),
            name: url::public_name(address),
            client: url::client(config)?,
            own: RandomState::new().hash_one(address),
            came_back: Mutex::default(),
            send_own: Notify::new(),
            places: Arc::new(Semaphore::new(AT_ONCE)),
        });
        tokio::spawn(Arc::clone(&cycle).send_now_and_then());
        Ok(Some(cycle))
    }

    async fn send_now_and_then(self: Arc<Cycle>) {
        loop {
            self.send(self.own, 1).await;
            sleep(SOON).await;
            let _ = timeout(EVERY, self.send_own.notified()).await;
        }
    }

    async fn send(&self, number: u64, hops: u32) {
        let request = self.client.get(&self.page);
        let request = request.header(HEADER, format!("{number:016x} {hops}"));
        // An upstream that is away or no cache at all makes no cycle.
        let _ = timeout(ANSWER, request.send()).await;
    }

    /// Another cache, or this one, has sent a number to this one.
    pub(crate) fn heard(self: &Arc<Cycle>, text: &str) {
        let Some((number, hops)) = parse(text) else {
            return;
        };
        if number == self.own {
            let before = self.came_back.lock().replace(now());
            if before.is_none_or(|before| before.elapsed() >= COUNTS) {
                warn!(
                    "this cache is its own upstream, by way of {}, which is not used any more (hint: remove \
                     SCCACHE_UPSTREAM from one of the caches in the cycle)",
                    self.name
                );
            }
            return;
        }
        // Somebody has this cache as an upstream: only now can there be a cycle.
        if self.came_back.lock().is_none() {
            self.send_own.notify_one();
        }
        if hops < HOPS
            && let Ok(place) = Arc::clone(&self.places).try_acquire_owned()
        {
            let cycle = Arc::clone(self);
            tokio::spawn(async move {
                cycle.send(number, hops + 1).await;
                drop(place);
            });
        }
    }

    /// Whether there is one.
    pub(super) fn is_closed(&self) -> bool {
        let came_back = *self.came_back.lock();
        came_back.is_some_and(|at| at.elapsed() < COUNTS)
    }
}

fn parse(text: &str) -> Option<(u64, u32)> {
    let (number, hops) = text.split_once(' ')?;
    Some((u64::from_str_radix(number, 16).ok()?, hops.parse().ok()?))
}
