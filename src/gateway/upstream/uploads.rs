//! Writes follow behind: a queue in a file, a few uploads at a time.

use super::breaker::Breaker;
use super::{OfBuild, Trouble, UNIT, Upstream, WHOLE, Way, lock, now};
use crate::contract::key::Key;
use crate::explain::protocol::Served;
use crate::gateway::disk::DiskError;
use crate::store;
use bytes::Bytes;
use opendal::Buffer;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::{interval, sleep, sleep_until, timeout};
use tracing::warn;

/// How long a write waits for room among those that are not passed on yet.
const ROOM: Duration = Duration::from_secs(10);
/// How long the end waits for an upstream that does not answer.
const SILENT: Duration = Duration::from_secs(5);
/// Between two looks at what is not passed on yet.
const LOOK: Duration = Duration::from_millis(10);
/// A larger blob is not passed on: it would be held in memory whole.
const LARGEST: u64 = 256 << 20;
/// So often an upload of one key is tried while the upstream answers others.
const TRIES: u32 = 3;

impl Upstream {
    /// Queues a blob of so many bytes that was just written here. Waits for nothing but, in the gateway of one build, for
    /// room.
    pub async fn offer(&self, key: &Key, bytes: u64) {
        if self.is_in_cycle() {
            self.counts.dropped.fetch_add(1, Relaxed);
            return;
        }
        if let Some(of_build) = &self.of_build {
            let is_away = self.breaker(Way::Write).is_open();
            match of_build.room_for(bytes, is_away).await {
                Some(share) => drop(lock(&of_build.unsent).insert(key.clone(), share)),
                None => {
                    self.counts.dropped.fetch_add(1, Relaxed);
                    return;
                }
            }
        }
        if self.offers.try_send(key.clone()).is_err() {
            self.forget(key);
            self.counts.dropped.fetch_add(1, Relaxed);
        }
    }

    fn forget(&self, key: &Key) {
        if let Some(of_build) = &self.of_build {
            lock(&of_build.unsent).remove(key);
        }
    }

    /// The end of a build's gateway: passes on what waits, until it takes too long, the upstream does not answer, or a
    /// signal wants it to end. Nothing where this is no build's.
    pub(in crate::gateway) async fn say_farewell(&self) -> Option<Served> {
        let of_build = self.of_build.as_ref()?;
        let prefetched = of_build.ahead.end();
        let mut term = signal(SignalKind::terminate()).ok()?;
        // It may have come back since it was asked last.
        *self.breaker(Way::Write) = Breaker::default();
        self.queued.notify_waiters();
        let too_long = sleep(of_build.farewell);
        let passed_on = async {
            let mut look = interval(LOOK);
            let mut silent = now();
            while !lock(&of_build.unsent).is_empty() {
                look.tick().await;
                if !self.breaker(Way::Write).is_open() {
                    silent = now();
                } else if silent.elapsed() > SILENT {
                    return;
                }
            }
        };
        tokio::select! {
            () = passed_on => {}
            () = too_long => {}
            _ = term.recv() => {}
        }
        let unsent = lock(&of_build.unsent).len() as u64 + self.counts.dropped.load(Relaxed);
        Some(Served {
            prefetched,
            unsent,
            cause: lock(&self.last_error).clone().filter(|_| unsent > 0),
        })
    }

    /// Moves offers into the queue, many at a time.
    pub(super) async fn keep_queue(self: Arc<Self>, mut offers: mpsc::Receiver<Key>) {
        let mut batch = Vec::new();
        while offers.recv_many(&mut batch, 1024).await > 0 {
            let upstream = Arc::clone(&self);
            let keys = std::mem::take(&mut batch);
            let added = tokio::task::spawn_blocking(move || lock(&upstream.queue).add(keys)).await;
            if let Ok((lost, outcome)) = added {
                self.counts.dropped.fetch_add(lost, Relaxed);
                if let Err(cause) = outcome {
                    warn!("cannot write the upstream's queue: {cause}; a restart would forget it");
                }
            }
            self.queued.notify_waiters();
        }
    }

    /// One of the uploads at a time.
    pub(super) async fn upload_queued(self: Arc<Self>) {
        loop {
            // Asked for before the look, so that no key slips in between.
            let more = self.queued.notified();
            let next = {
                let moment = now();
                let mut breaker = lock(&self.writes);
                let mut queue = lock(&self.queue);
                if queue.has_waiting() && !breaker.admits(moment) {
                    Err(breaker.retry_at(moment))
                } else {
                    Ok(queue.take())
                }
            };
            let key = match next {
                Ok(Some(key)) => key,
                Ok(None) => {
                    more.await;
                    continue;
                }
                Err(at) => {
                    tokio::select! {
                        () = sleep_until(at.into()) => {}
                        () = more => {}
                    }
                    continue;
                }
            };
            let outcome = match timeout(WHOLE, self.copy_there(&key)).await {
                Ok(outcome) => outcome,
                Err(_) => Err(Trouble::Upstream("it did not answer in time".into())),
            };
            match outcome {
                Ok(bytes) => {
                    self.heard(Way::Write);
                    self.counts
                        .uploaded
                        .fetch_add(u64::from(bytes > 0), Relaxed);
                    self.counts.bytes_written.fetch_add(bytes, Relaxed);
                    self.done(key).await;
                }
                Err(Trouble::Here(fault)) => {
                    lock(&self.writes).unsent(now());
                    self.counts.dropped.fetch_add(1, Relaxed);
                    if !matches!(fault, DiskError::Store(store::Error::Missing)) {
                        warn!("cannot pass {key} on to the upstream: {fault}");
                    }
                    self.done(key).await;
                }
                Err(Trouble::Upstream(cause)) => {
                    self.counts.write_errors.fetch_add(1, Relaxed);
                    self.broke(Way::Write, &format!("cannot write {key}: {cause}"));
                    let tried = {
                        let mut tries = lock(&self.tries);
                        let tried = tries.entry(key.clone()).or_default();
                        *tried += 1;
                        *tried
                    };
                    // While others pass, it is this one that the upstream does not want.
                    if tried >= TRIES && !lock(&self.writes).is_open() {
                        self.counts.dropped.fetch_add(1, Relaxed);
                        self.done(key).await;
                    } else {
                        lock(&self.queue).put_back(key);
                    }
                }
            }
        }
    }

    /// Forgets a key of the queue, whose file may be written anew for it.
    async fn done(self: &Arc<Self>, key: Key) {
        lock(&self.tries).remove(&key);
        self.forget(&key);
        let upstream = Arc::clone(self);
        let written = tokio::task::spawn_blocking(move || lock(&upstream.queue).done(&key)).await;
        if let Ok(Err(cause)) = written {
            warn!("cannot write the upstream's queue: {cause}");
        }
    }

    /// Bytes that were passed on.
    async fn copy_there(&self, key: &Key) -> Result<u64, Trouble> {
        let mut blob = self.disk.get(key).await?;
        if blob.length > LARGEST {
            return Err(Trouble::Here(DiskError::Store(store::Error::TooLarge {
                size: blob.length,
                limit: LARGEST,
            })));
        }
        let mut pieces: Vec<Bytes> = Vec::new();
        while let Some(piece) = blob.next().await {
            let piece = piece.map_err(|cause| DiskError::Store(store::Error::Io(cause)))?;
            pieces.push(piece);
        }
        let length = blob.length;
        self.operator
            .write(key.as_str(), Buffer::from(pieces))
            .await?;
        Ok(length)
    }
}

impl OfBuild {
    /// The share of a blob of so many bytes.
    async fn room_for(&self, bytes: u64, is_away: bool) -> Option<OwnedSemaphorePermit> {
        // What is larger than all there is goes alone.
        let share = u32::try_from(bytes.div_ceil(UNIT).clamp(1, self.most.max(1))).ok()?;
        let room = Arc::clone(&self.room);
        let patience = if is_away { Duration::ZERO } else { ROOM };
        timeout(patience, room.acquire_many_owned(share))
            .await
            .ok()?
            .ok()
    }
}
