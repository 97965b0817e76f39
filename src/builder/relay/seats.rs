//! Room for connections: a bounded number, of which those who have most give up the oldest.

use crate::gateway::crowd::owner;
use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// Most connections at one time; each takes two descriptors.
const SEATS: usize = 1024;
/// Descriptors for everything else.
const SPARE_FILES: usize = 64;

/// All seats.
#[derive(Debug)]
pub(super) struct Seats {
    // A plain mutex: held for a look-up, never across I/O or an await.
    taken: Arc<Mutex<Taken>>,
}

#[derive(Debug, Default)]
struct Taken {
    most: usize,
    next: u64,
    seats: HashMap<u64, Arc<Notify>>,
    /// By owner, oldest first.
    of_one: HashMap<IpAddr, BTreeSet<u64>>,
}

/// The seat of one connection, until it is dropped.
#[derive(Debug)]
pub(super) struct Seat {
    taken: Arc<Mutex<Taken>>,
    owner: IpAddr,
    number: u64,
    needed: Arc<Notify>,
}

impl Seats {
    /// As many as there are descriptors for.
    pub(super) fn new() -> Seats {
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
        Seats::of((files.saturating_sub(SPARE_FILES) / 2).clamp(16, SEATS))
    }

    fn of(most: usize) -> Seats {
        let taken = Taken {
            most,
            ..Taken::default()
        };
        Seats {
            taken: Arc::new(Mutex::new(taken)),
        }
    }

    /// A seat; where none is free, that of whoever has most, or none for them.
    pub(super) fn take(&self, peer: IpAddr) -> Option<Seat> {
        let owner = owner(peer);
        let mut taken = lock(&self.taken);
        if taken.seats.len() >= taken.most {
            let own = taken.of_one.get(&owner).map_or(0, BTreeSet::len);
            let (_, theirs) = taken.of_one.iter().max_by_key(|(_, theirs)| theirs.len())?;
            let oldest = *theirs.first()?;
            if theirs.len() <= own {
                return None;
            }
            taken.free(oldest);
        }
        let (number, needed) = (taken.next, Arc::new(Notify::new()));
        taken.next += 1;
        taken.seats.insert(number, Arc::clone(&needed));
        taken.of_one.entry(owner).or_default().insert(number);
        Some(Seat {
            taken: Arc::clone(&self.taken),
            owner,
            number,
            needed,
        })
    }
}

impl Taken {
    /// Tells its holder to go, and counts it no more.
    fn free(&mut self, number: u64) {
        if let Some(needed) = self.seats.remove(&number) {
            needed.notify_one();
        }
        self.of_one.retain(|_, seats| {
            seats.remove(&number);
            !seats.is_empty()
        });
    }
}

impl Seat {
    /// Waits until somebody else needs it.
    pub(super) async fn is_needed(&self) {
        self.needed.notified().await;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = lock(&self.taken);
        taken.seats.remove(&self.number);
        if let Some(seats) = taken.of_one.get_mut(&self.owner) {
            seats.remove(&self.number);
            if seats.is_empty() {
                taken.of_one.remove(&self.owner);
            }
        }
    }
}

fn lock(taken: &Mutex<Taken>) -> MutexGuard<'_, Taken> {
    taken.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[tokio::test]
    async fn newcomer_gets_the_oldest_seat_of_whoever_has_most() {
        let seats = Seats::of(3);
        let held: Vec<Seat> = ["2001:db8::1", "2001:db8::2", "10.0.0.1"]
            .map(|peer| seats.take(ip(peer)).unwrap())
            .into();
        // Of one network, which has two of three.
        assert!(seats.take(ip("2001:db8::3")).is_none());
        let newcomer = seats.take(ip("10.0.0.2")).unwrap();
        held[0].is_needed().await;
        drop(held);
        assert!(seats.take(ip("2001:db8::3")).is_some());
        drop(newcomer);
        let taken = lock(&seats.taken);
        assert!(taken.seats.is_empty() && taken.of_one.is_empty());
    }
}
