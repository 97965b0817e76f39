//! Peers that send wrong tokens: a wrong token is answered with 401 until its peer has sent too many, then with 429 and a
//! closed connection. The right token is served at any time, from any address: one machine with an old token must not hurt
//! its neighbours.

use super::connection_limit::network;
use super::peer::Peer;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;
use tokio::time::Instant;

/// Wrong tokens that a peer may send at once.
const FAILURES: u32 = 30;
/// How long it takes until it may send one more.
const FORGIVEN: Duration = Duration::from_secs(1);
/// Peers whose wrong tokens are counted one by one; ever new ones share one account.
const PEERS: usize = 4096;

/// The wrong tokens of all peers.
#[derive(Debug, Default)]
pub(super) struct WrongTokens {
    // A plain mutex: held for a look-up, never across I/O or an await.
    failures: Mutex<Failures>,
}

impl WrongTokens {
    /// A wrong token came from `peer`: whether it is one too many.
    pub(super) fn is_flood(&self, peer: &Peer) -> bool {
        let Some(network) = network(peer) else {
            return false;
        };
        let mut failures = self.failures.lock();
        failures.is_too_many(network, Instant::now())
    }
}

/// Wrong tokens by peer. Pure: the time is an argument.
#[derive(Debug, Default)]
struct Failures {
    /// When each peer's account is empty again.
    accounts: HashMap<IpAddr, Instant>,
    /// The same for all that have none of their own.
    others: Option<Instant>,
}

impl Failures {
    fn is_too_many(&mut self, peer: IpAddr, now: Instant) -> bool {
        if self.accounts.len() >= PEERS && !self.accounts.contains_key(&peer) {
            self.accounts.retain(|_, empty| *empty > now);
        }
        let full = self.accounts.len() >= PEERS && !self.accounts.contains_key(&peer);
        let empty = if full {
            self.others.get_or_insert(now)
        } else {
            self.accounts.entry(peer).or_insert(now)
        };
        let debt = empty.saturating_duration_since(now) + FORGIVEN;
        if debt > FORGIVEN * FAILURES {
            return true;
        }
        *empty = now + debt;
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_tokens_are_too_many_until_time_has_passed() {
        let (mut failures, start) = (Failures::default(), Instant::now());
        let (loud, quiet) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let allowed = (0..1000)
            .filter(|_| !failures.is_too_many(loud, start))
            .count();
        assert_eq!(allowed, FAILURES as usize);
        assert!(!failures.is_too_many(quiet, start));
        let later = start + 5 * FORGIVEN;
        let allowed = (0..1000)
            .filter(|_| !failures.is_too_many(loud, later))
            .count();
        assert_eq!(allowed, 5);
    }

    #[test]
    fn ever_new_peers_take_no_more_memory() {
        let (mut failures, start) = (Failures::default(), Instant::now());
        for number in 0..20_000 {
            failures.is_too_many(IpAddr::V4(number.into()), start);
        }
        assert_eq!(failures.accounts.len(), PEERS);
        let newcomer = IpAddr::V4(30_000.into());
        assert!(
            failures.is_too_many(newcomer, start),
            "newcomers share an account"
        );
        assert!(!failures.is_too_many(newcomer, start + 60 * FORGIVEN));
        assert_eq!(
            failures.accounts.len(),
            1,
            "accounts that are empty are closed"
        );
    }
}
