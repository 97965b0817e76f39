//! When an allocation may go to the scheduler, and which builder it may be stuck on there.

use super::Front;
use super::kept::{SILENCE, answers};
use super::ledger::Admission;
use super::routes::WAIT;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit};
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{info, warn};

/// After so long, the builders' ports are asked whether one of them stands still.
const DOUBT: Duration = Duration::from_millis(500);

/// What an allocation holds on its way.
pub(super) struct Pass {
    pub(super) thread: OwnedSemaphorePermit,
    pub(super) single: Option<OwnedMutexGuard<()>>,
}

impl Front {
    /// Waits until an allocation may be passed on; `None`: the client had better compile by itself.
    pub(super) async fn pass(&self, toolchain: &str) -> Option<Pass> {
        let deadline = Instant::now() + 2 * WAIT;
        let turn = Arc::clone(&self.allocations).acquire_owned();
        let turn = timeout_at(deadline, turn).await;
        let thread = turn.ok()?.ok()?;
        let mut single = None;
        loop {
            let changed = self.changed.notified();
            let admission = self.ledger().admit(Instant::now(), toolchain);
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
        Some(Pass { thread, single })
    }

    /// Ends when a builder stands still for which the scheduler may be waiting.
    pub(super) async fn silent_builder(self: &Arc<Front>) -> SocketAddr {
        loop {
            sleep(DOUBT).await;
            let quiet = self.ledger().quiet(Instant::now(), DOUBT);
            let asked = quiet
                .into_iter()
                .map(|builder| async move { (!answers(builder).await).then_some(builder) });
            let silent = futures_util::future::join_all(asked).await;
            let silent: Vec<SocketAddr> = silent.into_iter().flatten().collect();
            for builder in &silent {
                if self.ledger().silent(Instant::now(), builder) {
                    warn!(
                        "builder {builder} does not answer on its port: it gets no more jobs, and clients whose jobs \
                         it has may wait for 20 minutes, as sccache does (hint: is its container paused?)"
                    );
                    tokio::spawn(Arc::clone(self).watch(*builder));
                }
            }
            if let Some(first) = silent.first() {
                return *first;
            }
        }
    }

    /// Follows a silent builder until it answers, gives another sign, or is lost.
    async fn watch(self: Arc<Front>, builder: SocketAddr) {
        loop {
            sleep(SILENCE).await;
            if !self.ledger().is_silent(Instant::now(), &builder) {
                return;
            }
            if answers(builder).await {
                info!("builder {builder} answers again");
                self.ledger().awake(&builder);
                self.changed.notify_waiters();
                return;
            }
        }
    }
}
