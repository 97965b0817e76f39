//! Room for connections: a bounded number, of which those who have most give up the oldest.

use crate::gateway::connection_limit::owner;
use parking_lot::{Mutex, MutexGuard};
use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use tokio::sync::Notify;

/// Most connections at one time. Each takes two descriptors here, and a thread of `sccache-dist` from its handshake on.
const SEATS: usize = 512;
/// Descriptors for everything else.
const SPARE_FILES: usize = 64;

/// All permits.
#[derive(Debug)]
pub(super) struct ConnectionPermits {
    // A plain mutex: held for a look-up, never across I/O or an await.
    taken: Arc<Mutex<Taken>>,
}

#[derive(Debug, Default)]
struct Taken {
    most: usize,
    next: u64,
    holders: HashMap<u64, Holder>,
    /// The permits of each owner, those without a good token before others, the oldest first.
    of_one: HashMap<IpAddr, BTreeSet<(bool, u64)>>,
}

#[derive(Debug)]
struct Holder {
    owner: IpAddr,
    /// It has come as far as a request.
    keeps: bool,
    needed: Arc<Notify>,
}

/// The permit of one connection, until it is dropped.
#[derive(Debug)]
pub(super) struct ConnectionPermit {
    taken: Arc<Mutex<Taken>>,
    number: u64,
    needed: Arc<Notify>,
}

impl ConnectionPermits {
    /// As many as there are descriptors for.
    pub(super) fn new() -> ConnectionPermits {
        use nix::sys::resource::{Resource, getrlimit, setrlimit};
        let wanted = 2 * SEATS + SPARE_FILES;
        let files = match getrlimit(Resource::RLIMIT_NOFILE) {
            Ok((soft, hard)) => {
                let more = (wanted as u64).min(hard).max(soft);
                let raised = setrlimit(Resource::RLIMIT_NOFILE, more, hard).is_ok();
                usize::try_from(if raised { more } else { soft }).unwrap_or(usize::MAX)
            }
            Err(_) => wanted,
        };
        ConnectionPermits::of((files.saturating_sub(SPARE_FILES) / 2).clamp(16, SEATS))
    }

    fn of(most: usize) -> ConnectionPermits {
        let taken = Taken {
            most,
            ..Taken::default()
        };
        ConnectionPermits {
            taken: Arc::new(Mutex::new(taken)),
        }
    }

    /// A permit. Where none is free, that of whoever has most; who has most gives up one without a request, or gets none.
    pub(super) fn take(&self, peer: IpAddr) -> Option<ConnectionPermit> {
        let owner = owner(peer);
        let mut taken = lock(&self.taken);
        if taken.holders.len() >= taken.most {
            let number = taken.victim(owner)?;
            taken.free(number)?.needed.notify_one();
        }
        let (number, needed) = (taken.next, Arc::new(Notify::new()));
        taken.next += 1;
        let holder = Holder {
            owner,
            keeps: false,
            needed: Arc::clone(&needed),
        };
        taken.enter(number, holder);
        Some(ConnectionPermit {
            taken: Arc::clone(&self.taken),
            number,
            needed,
        })
    }
}

impl Taken {
    /// Whose permit goes for one more of `owner`.
    fn victim(&self, owner: IpAddr) -> Option<u64> {
        let own = self.of_one.get(&owner);
        let most = self.of_one.values().max_by_key(|theirs| theirs.len())?;
        let oldest = match own {
            Some(own) if own.len() >= most.len() => own.first().filter(|(keeps, _)| !keeps),
            Some(_) | None => most.first(),
        };
        oldest.map(|(_, number)| *number)
    }

    fn enter(&mut self, number: u64, holder: Holder) {
        let permits = self.of_one.entry(holder.owner).or_default();
        permits.insert((holder.keeps, number));
        self.holders.insert(number, holder);
    }

    fn free(&mut self, number: u64) -> Option<Holder> {
        let holder = self.holders.remove(&number)?;
        if let Some(permits) = self.of_one.get_mut(&holder.owner) {
            permits.remove(&(holder.keeps, number));
            if permits.is_empty() {
                self.of_one.remove(&holder.owner);
            }
        }
        Some(holder)
    }
}

impl ConnectionPermit {
    /// It has come as far as a request: others of the same owner go before it.
    pub(super) fn keep(&self) {
        let mut taken = lock(&self.taken);
        if let Some(holder) = taken.free(self.number) {
            let keeps = true;
            taken.enter(self.number, Holder { keeps, ..holder });
        }
    }

    /// Waits until somebody else needs it.
    pub(super) async fn is_needed(&self) {
        self.needed.notified().await;
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        lock(&self.taken).free(self.number);
    }
}

fn lock(taken: &Mutex<Taken>) -> MutexGuard<'_, Taken> {
    taken.lock()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[tokio::test]
    async fn newcomer_gets_the_oldest_seat_of_whoever_has_most() {
        let permits = ConnectionPermits::of(3);
        let held: Vec<ConnectionPermit> = ["2001:db8::1", "2001:db8::2", "10.0.0.1"]
            .map(|peer| permits.take(ip(peer)).unwrap())
            .into();
        let newcomer = permits.take(ip("10.0.0.2")).unwrap();
        held[0].is_needed().await;
        drop(held);
        drop(newcomer);
        let taken = lock(&permits.taken);
        assert!(taken.holders.is_empty() && taken.of_one.is_empty());
    }

    #[tokio::test]
    async fn requests_stay_when_their_owner_comes_with_more() {
        let permits = ConnectionPermits::of(2);
        let (request, idle) = (permits.take(ip("10.0.0.1")), permits.take(ip("10.0.0.1")));
        let (request, idle) = (request.unwrap(), idle.unwrap());
        request.keep();
        let other = permits.take(ip("10.0.0.1")).unwrap();
        idle.is_needed().await;
        other.keep();
        assert!(permits.take(ip("10.0.0.1")).is_none());
        // Somebody else gets in all the same.
        permits.take(ip("10.0.0.2")).unwrap();
        request.is_needed().await;
    }
}
