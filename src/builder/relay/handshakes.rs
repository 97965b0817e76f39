//! Who may shake hands next: one at a time, those who have done it well before strangers, of several the one whose last
//! turn is longest ago, and those who have wasted theirs after a pause that grows.

use crate::gateway::connection_limit::owner;
use parking_lot::{Mutex, MutexGuard};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep_until};

/// The first pause after a wasted turn; each further one is twice as long.
pub(super) const PAUSE: Duration = Duration::from_secs(2);
/// How many times the first one the longest is.
const LONGEST: u32 = 64;
/// How long a peer is remembered.
const REMEMBERED: Duration = Duration::from_secs(3600);
/// Most peers that are remembered.
const PEERS: usize = 4096;

/// Whose turn it is, and what is known of peers.
#[derive(Debug)]
pub(super) struct HandshakeQueue {
    pause: Duration,
    // A plain mutex: held for a look-up, never across an await.
    queue: Mutex<Queue>,
    /// Somebody has queued up.
    came: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    is_taken: bool,
    /// In the order in which they came.
    waiting: Vec<Waiting>,
    peers: HashMap<IpAddr, Peer>,
}

#[derive(Debug, Clone, Copy)]
struct Peer {
    last: Instant,
    /// The pause after its next wasted turn; `None`: its last turn was good.
    pause: Option<Duration>,
    not_before: Instant,
}

/// A peer in the queue, and how it is handed its turn.
#[derive(Debug)]
struct Waiting {
    peer: IpAddr,
    hand: oneshot::Sender<HandshakePermit>,
}

/// The turn of one peer, until it is dropped.
#[derive(Debug)]
pub(super) struct HandshakePermit {
    turns: Arc<HandshakeQueue>,
    peer: IpAddr,
}

impl HandshakeQueue {
    /// With the first pause after a wasted turn.
    pub(super) fn new(pause: Duration) -> Arc<HandshakeQueue> {
        let (queue, came) = (Mutex::default(), Notify::new());
        Arc::new(HandshakeQueue { pause, queue, came })
    }

    /// Waits for the turn of `peer`.
    pub(super) async fn mine(self: &Arc<HandshakeQueue>, peer: IpAddr) -> HandshakePermit {
        let peer = owner(peer);
        loop {
            let turn = self.next(peer).await;
            let not_before = self.lock().peers.get(&peer).map(|peer| peer.not_before);
            match not_before.filter(|not_before| *not_before > Instant::now()) {
                None => return turn,
                Some(not_before) => {
                    drop(turn);
                    sleep_until(not_before).await;
                }
            }
        }
    }

    async fn next(self: &Arc<HandshakeQueue>, peer: IpAddr) -> HandshakePermit {
        loop {
            let mine = {
                let mut queue = self.lock();
                if !queue.is_taken {
                    queue.is_taken = true;
                    let turns = Arc::clone(self);
                    return HandshakePermit { turns, peer };
                }
                let (hand, mine) = oneshot::channel();
                queue.waiting.push(Waiting { peer, hand });
                self.came.notify_waiters();
                mine
            };
            if let Ok(turn) = mine.await {
                return turn;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock()
    }
}

impl Queue {
    fn next(&mut self) -> Option<Waiting> {
        // Some have left meanwhile.
        self.waiting.retain(|waiting| !waiting.hand.is_closed());
        let rank = |waiting: &Waiting| match self.peers.get(&waiting.peer) {
            Some(Peer {
                pause: None, last, ..
            }) => (0, Some(*last)),
            stranger => (1, stranger.map(|peer| peer.last)),
        };
        let places = self.waiting.iter().enumerate();
        let (first, _) = places.min_by_key(|(_, waiting)| rank(waiting))?;
        Some(self.waiting.remove(first))
    }
}

impl HandshakePermit {
    /// Ends when somebody waits for the next turn.
    pub(super) async fn is_wanted(&self) {
        loop {
            let came = self.turns.came.notified();
            let waits = |waiting: &Waiting| !waiting.hand.is_closed();
            if self.turns.lock().waiting.iter().any(waits) {
                return;
            }
            came.await;
        }
    }

    /// The handshake came to its end, quickly.
    pub(super) fn used(&self) {
        let now = Instant::now();
        self.remember(Peer {
            last: now,
            pause: None,
            not_before: now,
        });
    }

    /// It took too long. True where that is news of this peer.
    pub(super) fn wasted(&self) -> bool {
        let now = Instant::now();
        let before = self.turns.lock().peers.get(&self.peer).copied();
        let first = self.turns.pause;
        let pause = before.and_then(|before| before.pause).unwrap_or(first);
        self.remember(Peer {
            last: now,
            pause: Some((2 * pause).min(LONGEST * first)),
            not_before: now + pause,
        });
        before.is_none_or(|before| before.pause.is_none())
    }

    fn remember(&self, peer: Peer) {
        let mut queue = self.turns.lock();
        let peers = &mut queue.peers;
        if peers.len() >= PEERS && !peers.contains_key(&self.peer) {
            peers.retain(|_, known| peer.last.duration_since(known.last) < REMEMBERED);
        }
        if peers.len() >= PEERS && !peers.contains_key(&self.peer) {
            let oldest = peers.iter().min_by_key(|(_, known)| known.last);
            if let Some(oldest) = oldest.map(|(ip, _)| *ip) {
                peers.remove(&oldest);
            }
        }
        peers.insert(self.peer, peer);
    }
}

impl Drop for HandshakePermit {
    fn drop(&mut self) {
        let next = {
            let mut queue = self.turns.lock();
            let next = queue.next();
            queue.is_taken = next.is_some();
            next
        };
        if let Some(Waiting { peer, hand }) = next {
            let turns = Arc::clone(&self.turns);
            // Dropped by whoever has left in this moment, it goes on to the next.
            let _ = hand.send(HandshakePermit { turns, peer });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;
    use tokio::sync::mpsc::unbounded_channel;

    const GOOD: [u8; 4] = [10, 0, 0, 1];
    const BAD: [u8; 4] = [10, 0, 0, 2];

    #[tokio::test]
    async fn wasted_turns_cost_a_pause_that_grows() {
        let pause = Duration::from_millis(20);
        let turns = HandshakeQueue::new(pause);
        // A pause counts from the turn that was wasted.
        let mut start = Instant::now();
        for times in [0, 1, 2, 4] {
            let turn = turns.mine(BAD.into()).await;
            assert!(start.elapsed() >= times * pause);
            start = Instant::now();
            assert_eq!(turn.wasted(), times == 0);
        }
        turns.mine(BAD.into()).await.used();
        let at_once = turns.mine(BAD.into()).now_or_never();
        assert!(at_once.unwrap().wasted());
    }

    #[tokio::test]
    async fn good_peers_come_first_and_take_turns() {
        const OTHER: [u8; 4] = [10, 0, 0, 3];
        let turns = HandshakeQueue::new(Duration::from_millis(20));
        turns.mine(BAD.into()).await.wasted();
        turns.mine(OTHER.into()).await.used();
        let held = turns.mine(GOOD.into()).await;
        held.used();
        let (say, mut said) = unbounded_channel();
        let came = [
            ("bad", BAD),
            ("stranger", [10, 0, 0, 4]),
            ("good", GOOD),
            ("good again", GOOD),
            ("other", OTHER),
        ];
        for (name, ip) in came {
            let (turns, say) = (Arc::clone(&turns), say.clone());
            tokio::spawn(async move {
                let turn = turns.mine(ip.into()).await;
                say.send(name).unwrap();
                turn.used();
            });
            // It queues up.
            tokio::task::yield_now().await;
        }
        drop(held);
        for expected in ["other", "good", "good again", "stranger", "bad"] {
            assert_eq!(said.recv().await, Some(expected));
        }
    }

    #[tokio::test]
    async fn turn_is_wanted_as_soon_as_somebody_waits() {
        let turns = HandshakeQueue::new(PAUSE);
        let turn = turns.mine(BAD.into()).await;
        let gone = tokio::time::timeout(Duration::from_millis(10), turns.mine(GOOD.into())).await;
        let wanted = tokio::time::timeout(Duration::from_millis(10), turn.is_wanted()).await;
        assert!(gone.is_err() && wanted.is_err());
        let (waiting, ()) = tokio::join!(turns.mine(GOOD.into()), async move {
            turn.is_wanted().await;
            drop(turn);
        });
        drop(waiting);
    }

    #[tokio::test]
    async fn who_leaves_the_queue_holds_nobody_up() {
        let turns = HandshakeQueue::new(PAUSE);
        let held = turns.mine(GOOD.into()).await;
        let left = tokio::time::timeout(Duration::from_millis(10), turns.mine(BAD.into())).await;
        assert!(left.is_err());
        drop(held);
        turns.mine(BAD.into()).await;
    }
}
