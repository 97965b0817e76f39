//! When an allocation may go to the scheduler, and which builder it may be stuck on there.

use super::Front;
use super::heartbeats::{SILENCE, answers};
use super::registry::Admission;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tracing::{info, warn};

/// After so long, the builders' ports are asked whether one of them stands still.
const DOUBT: Duration = Duration::from_millis(500);

/// One question to every quiet builder, for all allocations that wait.
#[derive(Debug, Clone)]
pub(super) struct Round {
    begun: Instant,
    /// The first builder that did not answer.
    silent: watch::Receiver<Poll<Option<SocketAddr>>>,
}

impl Round {
    /// Another one would find out no more: it is under way, or began a moment ago.
    fn is_good(&self, now: Instant) -> bool {
        let is_under_way = self.silent.borrow().is_pending() && self.silent.has_changed().is_ok();
        is_under_way || now < self.begun + DOUBT
    }
}

/// What an allocation holds on its way.
pub(super) struct AdmissionPermit {
    pub(super) thread: OwnedSemaphorePermit,
    pub(super) single: Option<OwnedMutexGuard<()>>,
}

impl Front {
    /// Waits until an allocation may be passed on; `None`: the client had better compile by itself.
    pub(super) async fn admit(&self, toolchain: &str) -> Option<AdmissionPermit> {
        let deadline = Instant::now() + 2 * WAIT;
        let turn = Arc::clone(&self.allocations).acquire_owned();
        let turn = timeout_at(deadline, turn).await;
        let thread = turn.ok()?.ok()?;
        let mut single = None;
        loop {
            let changed = self.changed.notified();
            let admission = self.registry().admit(Instant::now(), toolchain);
            match admission {
                Admission::Open => break,
                Admission::Single if single.is_some() => break,
                // Things may be otherwise when it is our turn: the next round looks.
                Admission::Single => {
                    let turn = Arc::clone(&self.single).lock_owned();
                    single = Some(timeout_at(deadline, turn).await.ok()?);
                }
                Admission::Hold(until) => {
                    single = None;
                    let _ = timeout_at(until.min(deadline), changed).await;
                    if Instant::now() >= deadline {
                        return None;
                    }
                }
                Admission::Busy => return None,
            }
        }
        Some(AdmissionPermit { thread, single })
    }

    /// Ends when a builder stands still for which the scheduler may be waiting.
    pub(super) async fn silent_builder(self: &Arc<Front>) -> SocketAddr {
        let mut next = Instant::now() + DOUBT;
        loop {
            sleep_until(next).await;
            let Round { begun, mut silent } = self.round();
            let found = silent.wait_for(Poll::is_ready).await;
            if let Ok(Poll::Ready(Some(builder))) = found.as_deref() {
                return *builder;
            }
            next = begun + DOUBT;
        }
    }

    /// The present round of questions. It goes on when those who wait for it have gone home.
    fn round(self: &Arc<Front>) -> Round {
        let mut last = self.round.lock();
        let now = Instant::now();
        if let Some(round) = last.as_ref().filter(|round| round.is_good(now)) {
            return round.clone();
        }
        let (say, silent) = watch::channel(Poll::Pending);
        let front = Arc::clone(self);
        tokio::spawn(async move {
            let _ = say.send(Poll::Ready(front.ask_quiet_builders().await));
        });
        last.insert(Round { begun: now, silent }).clone()
    }

    /// The first builder that stands still.
    async fn ask_quiet_builders(self: &Arc<Front>) -> Option<SocketAddr> {
        let quiet = self.registry().quiet(Instant::now(), DOUBT);
        let asked = quiet
            .into_iter()
            .map(|builder| (builder, self.port_of(builder)))
            .map(|(builder, port)| async move { (!answers(port).await).then_some(builder) });
        let silent = futures_util::future::join_all(asked).await;
        let silent: Vec<SocketAddr> = silent.into_iter().flatten().collect();
        for builder in &silent {
            if self.registry().silent(Instant::now(), builder) {
                warn!(
                    "builder {builder} does not answer on its port: it gets no more jobs, and clients whose jobs \
                     it has may wait for 20 minutes, as sccache does (hint: is its container paused?)"
                );
                tokio::spawn(Arc::clone(self).watch(*builder));
            }
        }
        silent.first().copied()
    }

    /// Follows a silent builder until it answers, gives another sign, or is lost.
    async fn watch(self: Arc<Front>, builder: SocketAddr) {
        loop {
            sleep(SILENCE).await;
            if !self.registry().is_silent(Instant::now(), &builder) {
                return;
            }
            if answers(self.port_of(builder)).await {
                info!("builder {builder} answers again");
                self.registry().awake(&builder);
                self.changed.notify_waiters();
                return;
            }
        }
    }
}

/// How long an allocation waits for a scheduler that has just gone, or for its turn.
pub(super) const WAIT: Duration = Duration::from_secs(2);
