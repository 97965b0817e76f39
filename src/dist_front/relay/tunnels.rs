//! Connections that builders have opened to us, each for one conversation with the builder that opened it.

use crate::dist_front::upstream::Stream;
use parking_lot::{Mutex, MutexGuard};
use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Waker};
use std::time::Duration;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

/// Most of one builder that wait.
const WAITING: usize = 64;
/// How long to wait for the next one of a builder that has had some.
const PATIENCE: Duration = Duration::from_secs(3);

/// A connection to a builder, however it was made.
pub(super) type Way = Box<dyn Stream>;

/// By builder.
#[derive(Default)]
pub(super) struct Tunnels {
    // Held for a look-up, never across I/O or an await.
    waiting: Mutex<HashMap<SocketAddr, VecDeque<Way>>>,
    came: Notify,
}

impl std::fmt::Debug for Tunnels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tunnels").finish_non_exhaustive()
    }
}

impl Tunnels {
    fn waiting(&self) -> MutexGuard<'_, HashMap<SocketAddr, VecDeque<Way>>> {
        self.waiting.lock()
    }

    /// A builder has opened one; of too many the oldest goes.
    pub(super) fn add(&self, builder: SocketAddr, way: Way) {
        {
            let mut waiting = self.waiting();
            let ways = waiting.entry(builder).or_default();
            ways.push_back(way);
            if ways.len() > WAITING {
                ways.pop_front();
            }
        }
        self.came.notify_waiters();
    }

    /// Whether the builder comes to us, and not we to it.
    pub(super) fn has(&self, builder: &SocketAddr) -> bool {
        self.waiting().contains_key(builder)
    }

    /// Lets go of those that were closed, and of builders that are not known any more.
    pub(super) fn prune(&self, is_known: impl Fn(&SocketAddr) -> bool) {
        self.waiting().retain(|builder, ways| {
            ways.retain_mut(is_open);
            !ways.is_empty() || is_known(builder)
        });
    }

    /// The next one of a builder that is still open.
    pub(super) async fn take(&self, builder: &SocketAddr) -> Option<Way> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let came = self.came.notified();
            let next = {
                let mut waiting = self.waiting();
                waiting.get_mut(builder).and_then(VecDeque::pop_front)
            };
            match next {
                Some(mut way) => {
                    if is_open(&mut way) {
                        return Some(way);
                    }
                }
                None => timeout_at(deadline, came).await.ok()?,
            }
        }
    }
}

/// A builder says nothing first: what can be read is its end.
fn is_open(way: &mut Way) -> bool {
    let mut context = Context::from_waker(Waker::noop());
    let mut byte = [0];
    let mut buffer = ReadBuf::new(&mut byte);
    let read = Pin::new(&mut *way).poll_read(&mut context, &mut buffer);
    read.is_pending()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn closed_ones_are_passed_over_and_the_next_is_waited_for() {
        let (tunnels, builder) = (
            Tunnels::default(),
            SocketAddr::from(([127, 7, 7, 7], 10501)),
        );
        assert!(!tunnels.has(&builder));
        let (near, far) = tokio::io::duplex(16);
        tunnels.add(builder, Box::new(near));
        drop(far);
        let (near, _open) = tokio::io::duplex(16);
        tunnels.add(builder, Box::new(near));
        assert!(tunnels.take(&builder).await.is_some());
        assert!(tunnels.has(&builder));
        let (near, _later) = tokio::io::duplex(16);
        let came = async {
            tokio::task::yield_now().await;
            tunnels.add(builder, Box::new(near));
        };
        let (taken, ()) = tokio::join!(tunnels.take(&builder), came);
        assert!(taken.is_some());
        let (near, far) = tokio::io::duplex(16);
        tunnels.add(builder, Box::new(near));
        drop(far);
        tunnels.prune(|_| true);
        assert!(tunnels.has(&builder));
        assert!(tunnels.take(&builder).await.is_none());
        tunnels.prune(|_| false);
        assert!(!tunnels.has(&builder));
    }
}
