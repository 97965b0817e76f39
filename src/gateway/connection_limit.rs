//! Which connections may stay: those that have not shown that they may be here take up room.
//!
//! A connection is *unauthenticated* until one of its requests was allowed. Such connections have [`STAY`] to get there, whatever
//! they do meanwhile: send nothing, send a head letter by letter, shake hands for TLS. There is room for a bounded
//! number of them, by peer and in all; when it is full the oldest one goes, not the newest: a healthy client behind
//! the same address shows its token with its first bytes and is authenticated.
//!
//! Where anyone may read, whoever does so without a token is an *anonymous reader*: for as long as there is room, and beside any number
//! of others of the same address.
//!
//! An authenticated connection may stay as long as there is room. Once every place is taken, one of those that wait for
//! nothing goes for each that comes: of the peer that has the most of them, the one that has been idle for longest.

use super::peer::Peer;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

/// How long a connection may stay unauthenticated.
const STAY: Duration = Duration::from_secs(10);
/// Most unauthenticated connections of one peer.
const UNAUTHENTICATED_PER_PEER: usize = 256;
/// How long a connection must have been idle before it goes for another one.
const IDLE: Duration = Duration::from_secs(1);
tokio::task_local! {
    /// The connection that the running task serves: all layers of all protocols are above it, and one of them
    /// finds out that it is allowed.
    static CONNECTION: Arc<Connection>;
}

/// How the stay of a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// By itself.
    Over,
    /// It stayed unauthenticated for too long and had no request answered.
    Slow,
    /// It was the oldest of too many unauthenticated connections.
    Crowded,
    /// It was idle while others had no place.
    Idle,
}

/// What is kept of one open connection.
#[derive(Debug)]
struct Connection {
    limiter: Arc<Mutex<Unauthenticated>>,
    number: u64,
    /// It counts among the unauthenticated connections, anonymous readers included.
    is_unauthenticated: AtomicBool,
    is_anonymous_reader: AtomicBool,
    is_known: AtomicBool,
    answers: AtomicU32,
    /// Whose it is: what [`network`] says, or the user of this machine's socket.
    owner: (Option<IpAddr>, u32),
    /// Since when it waits for a request, in milliseconds after [`ConnectionLimiter::start`]; [`BUSY`] while one is served.
    idle_since: AtomicU64,
    start: Instant,
    has_to_go: Notify,
}

/// See [`Connection::idle_since`].
const BUSY: u64 = u64::MAX;

impl Connection {
    /// Lets it stay until there is no room at all.
    fn recognize(self: &Arc<Connection>) {
        if self.is_unauthenticated.swap(false, Relaxed) {
            self.is_known.store(true, Relaxed);
            let mut limiter = self.limiter.lock();
            limiter.remove(self.number);
            limiter.known.insert(self.number, Arc::clone(self));
        }
    }

    fn why_it_goes(&self) -> End {
        match self.is_known.load(Relaxed) {
            true => End::Idle,
            false => End::Crowded,
        }
    }

    fn wait(&self) {
        let millis = self.start.elapsed().as_millis();
        let millis = u64::try_from(millis).unwrap_or(BUSY);
        self.idle_since.store(millis, Relaxed);
    }

    /// Takes it off all lists.
    fn leave(&self) {
        self.is_unauthenticated.store(false, Relaxed);
        let mut limiter = self.limiter.lock();
        limiter.remove(self.number);
        limiter.known.remove(&self.number);
    }

    /// Lets it stay as long as there is room.
    fn admit_anonymous(&self) {
        if !self.is_anonymous_reader.swap(true, Relaxed) {
            let mut limiter = self.limiter.lock();
            limiter.leave_peers(self.number);
        }
    }

    /// Whether it may take longer than [`STAY`].
    fn may_stay(&self) -> bool {
        !self.is_unauthenticated.load(Relaxed) || self.is_anonymous_reader.load(Relaxed)
    }
}

/// The connection that the running task serves had a request allowed.
pub(crate) fn recognized() {
    // Connections of other listeners are in no limiter.
    let _ = CONNECTION.try_with(Connection::recognize);
}

/// The connection that the running task serves had a request allowed that needs no token here.
pub(crate) fn admit_anonymous_reader() {
    let _ = CONNECTION.try_with(|connection| connection.admit_anonymous());
}

/// A request is being served on the connection of the running task until this is dropped.
#[derive(Debug)]
pub(crate) struct Working(());

impl Drop for Working {
    fn drop(&mut self) {
        let _ = CONNECTION.try_with(|connection| connection.wait());
    }
}

/// The connection that the running task serves has a request.
pub(crate) fn works() -> Working {
    let _ = CONNECTION.try_with(|connection| connection.idle_since.store(BUSY, Relaxed));
    Working(())
}

/// The connection that the running task serves had a request answered.
pub(crate) fn answered() {
    let _ = CONNECTION.try_with(|connection| connection.answers.fetch_add(1, Relaxed));
}

/// All unauthenticated connections, and what is known of peers.
#[derive(Debug)]
pub(crate) struct ConnectionLimiter {
    // A plain mutex: held for a look-up, never across I/O or an await.
    unauthenticated: Arc<Mutex<Unauthenticated>>,
    start: Instant,
}

impl ConnectionLimiter {
    /// For as many connections as there are `slots`.
    pub(crate) fn new(slots: usize) -> ConnectionLimiter {
        ConnectionLimiter {
            unauthenticated: Arc::new(Mutex::new(Unauthenticated {
                next: 0,
                by_age: BTreeMap::new(),
                by_peer: HashMap::new(),
                known: BTreeMap::new(),
                most: (slots / 4 * 3).max(1),
                most_by_peer: UNAUTHENTICATED_PER_PEER.min(slots / 2).max(1),
            })),
            start: Instant::now(),
        }
    }

    /// Every place is taken: lets an idle connection go, if there is one.
    pub(crate) fn make_room(&self) {
        if let Some(idle) = self.start.elapsed().checked_sub(IDLE) {
            self.make_room_of(u64::try_from(idle.as_millis()).unwrap_or(BUSY - 1));
        }
    }

    /// The same among those that are idle since `idle` milliseconds after the start, or longer.
    fn make_room_of(&self, idle: u64) {
        let unauthenticated = self.unauthenticated.lock();
        let unauthenticated = unauthenticated;
        let mut by_owner = HashMap::<_, (usize, u64, &Arc<Connection>)>::new();
        for connection in unauthenticated.known.values() {
            let since = connection.idle_since.load(Relaxed);
            if since <= idle {
                let found = by_owner
                    .entry(connection.owner)
                    .or_insert((0, since, connection));
                found.0 += 1;
                if since < found.1 {
                    (found.1, found.2) = (since, connection);
                }
            }
        }
        if let Some((_, _, oldest)) = by_owner.into_values().max_by_key(|(count, ..)| *count) {
            oldest.has_to_go.notify_one();
        }
    }

    /// Serves a connection by `conversation`, as long as it may stay.
    pub(crate) async fn attend(&self, peer: &Peer, conversation: impl Future<Output = ()>) -> End {
        let connection = self.enter(peer);
        let leaves = async {
            tokio::select! {
                () = connection.has_to_go.notified() => return connection.why_it_goes(),
                () = sleep(STAY) => {}
            }
            if connection.may_stay() {
                connection.has_to_go.notified().await;
                return connection.why_it_goes();
            }
            if connection.answers.load(Relaxed) > 0 {
                End::Over
            } else {
                End::Slow
            }
        };
        let end = tokio::select! {
            biased;
            () = CONNECTION.scope(Arc::clone(&connection), conversation) => End::Over,
            end = leaves => end,
        };
        connection.leave();
        end
    }

    fn enter(&self, peer: &Peer) -> Arc<Connection> {
        let mut unauthenticated = self.unauthenticated.lock();
        let connection = Arc::new(Connection {
            limiter: Arc::clone(&self.unauthenticated),
            number: unauthenticated.next,
            is_unauthenticated: AtomicBool::new(true),
            is_anonymous_reader: AtomicBool::new(false),
            is_known: AtomicBool::new(false),
            answers: AtomicU32::new(0),
            owner: (network(peer), user(peer)),
            idle_since: AtomicU64::new(BUSY),
            start: self.start,
            has_to_go: Notify::new(),
        });
        connection.wait();
        unauthenticated.next += 1;
        if let Some(oldest) = unauthenticated.enter(network(peer), &connection) {
            oldest.is_unauthenticated.store(false, Relaxed);
            oldest.has_to_go.notify_one();
        }
        connection
    }
}

/// Whose connection it is. `None` for this machine's own socket.
pub(super) fn network(peer: &Peer) -> Option<IpAddr> {
    match peer {
        Peer::Unix { .. } => None,
        Peer::Tcp { address, .. } => Some(owner(address.ip())),
    }
}

/// What one owner has: an IPv4 address, or an IPv6 network.
pub(crate) fn owner(ip: IpAddr) -> IpAddr {
    const SUBNET: u128 = !0 << 64;
    match ip.to_canonical() {
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() & SUBNET)),
        ip => ip,
    }
}

fn user(peer: &Peer) -> u32 {
    match peer {
        Peer::Unix { uid, .. } => *uid,
        Peer::Tcp { .. } => 0,
    }
}

/// The unauthenticated connections, oldest first, and those of each peer; and all others.
#[derive(Debug)]
struct Unauthenticated {
    next: u64,
    by_age: BTreeMap<u64, (Option<IpAddr>, Arc<Connection>)>,
    by_peer: HashMap<Option<IpAddr>, BTreeSet<u64>>,
    known: BTreeMap<u64, Arc<Connection>>,
    most: usize,
    most_by_peer: usize,
}

impl Unauthenticated {
    /// Adds one; the one that has to go for it.
    fn enter(
        &mut self,
        peer: Option<IpAddr>,
        connection: &Arc<Connection>,
    ) -> Option<Arc<Connection>> {
        let beside = self.by_peer.get(&peer).map_or(0, BTreeSet::len);
        let oldest = if beside >= self.most_by_peer {
            self.by_peer
                .get(&peer)
                .and_then(|beside| beside.first().copied())
        } else if self.by_age.len() >= self.most {
            self.by_age.first_key_value().map(|(number, _)| *number)
        } else {
            None
        };
        self.by_age
            .insert(connection.number, (peer, Arc::clone(connection)));
        self.by_peer
            .entry(peer)
            .or_default()
            .insert(connection.number);
        oldest.and_then(|number| self.remove(number))
    }

    fn remove(&mut self, number: u64) -> Option<Arc<Connection>> {
        self.leave_peers(number);
        self.by_age
            .remove(&number)
            .map(|(_, connection)| connection)
    }

    /// Counts one no more among those of its peer.
    fn leave_peers(&mut self, number: u64) {
        let Some((peer, _)) = self.by_age.get(&number) else {
            return;
        };
        if let Some(beside) = self.by_peer.get_mut(peer) {
            beside.remove(&number);
            if beside.is_empty() {
                self.by_peer.remove(peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(address: &str) -> Peer {
        Peer::Tcp {
            address: address.parse().unwrap(),
            local: "127.0.0.1".parse().unwrap(),
        }
    }

    #[test]
    fn oldest_unauthenticated_of_the_same_peer_goes_first() {
        let limiter = ConnectionLimiter::new(8);
        let (loud, quiet) = (peer("10.0.0.1:1"), peer("10.0.0.2:1"));
        let quiet = limiter.enter(&quiet);
        let first: Vec<_> = (0..4).map(|_| limiter.enter(&loud)).collect();
        assert!(
            first
                .iter()
                .all(|connection| connection.is_unauthenticated.load(Relaxed))
        );
        first[1].recognize();
        limiter.enter(&loud);
        assert!(
            first[0].is_unauthenticated.load(Relaxed),
            "one was recognized, so there is room"
        );
        limiter.enter(&loud);
        assert!(!first[0].is_unauthenticated.load(Relaxed));
        assert!(quiet.is_unauthenticated.load(Relaxed));
        assert!(first[2].is_unauthenticated.load(Relaxed));
    }

    #[test]
    fn readers_without_a_token_make_room_only_when_all_is_full() {
        let limiter = ConnectionLimiter::new(8);
        let readers: Vec<_> = (0..6)
            .map(|_| {
                let reader = limiter.enter(&peer("10.0.0.1:1"));
                reader.admit_anonymous();
                reader
            })
            .collect();
        assert!(
            readers
                .iter()
                .all(|reader| reader.is_unauthenticated.load(Relaxed))
        );
        readers[0].recognize();
        limiter.enter(&peer("10.0.0.1:1"));
        assert!(
            readers[1].is_unauthenticated.load(Relaxed),
            "there was one place"
        );
        limiter.enter(&peer("10.0.0.2:1"));
        assert!(
            !readers[1].is_unauthenticated.load(Relaxed),
            "the oldest goes"
        );
        assert!(readers[2].is_unauthenticated.load(Relaxed));
        readers[2].recognize();
        assert_eq!(limiter.unauthenticated.lock().by_age.len(), 5);
    }

    #[test]
    fn idle_connection_of_the_peer_that_has_most_goes_when_there_is_no_room() {
        use futures_util::FutureExt;
        let limiter = ConnectionLimiter::new(8);
        let enter = |address: &str, since| {
            let connection = limiter.enter(&peer(address));
            connection.recognize();
            connection.idle_since.store(since, Relaxed);
            connection
        };
        let goes =
            |connection: &Arc<Connection>| connection.has_to_go.notified().now_or_never().is_some();
        let quiet = enter("10.0.0.2:1", 10);
        let loud = [BUSY, 20, 30].map(|since| enter("10.0.0.1:1", since));
        limiter.make_room_of(9);
        assert!(!goes(&quiet), "nobody is idle for long enough");
        limiter.make_room_of(10);
        assert!(goes(&quiet), "no other one is");
        limiter.make_room_of(30);
        assert!(goes(&loud[1]) && !goes(&loud[2]) && !goes(&quiet));
        loud[1].leave();
        quiet.leave();
        limiter.make_room_of(30);
        assert!(goes(&loud[2]) && !goes(&loud[0]), "one is at work");
    }

    #[test]
    fn unauthenticated_of_ever_new_peers_are_bounded() {
        let limiter = ConnectionLimiter::new(8);
        for number in 0..100 {
            limiter.enter(&peer(&format!("10.0.0.{number}:1")));
        }
        let unauthenticated = limiter.unauthenticated.lock();
        assert_eq!(
            (unauthenticated.by_age.len(), unauthenticated.by_peer.len()),
            (6, 6)
        );
    }

    #[test]
    fn network_of_an_owner_counts_as_one_peer() {
        assert_eq!(
            network(&peer("[2001:db8::1]:1")),
            network(&peer("[2001:db8::2]:1"))
        );
        assert_eq!(
            network(&peer("[::ffff:10.0.0.1]:1")),
            network(&peer("10.0.0.1:9"))
        );
        assert_ne!(network(&peer("10.0.0.2:1")), network(&peer("10.0.0.1:1")));
    }
}
