//! Who has logged in with a browser: cookies that stand for a token without holding it.
//!
//! A cookie is an end, a random number and a keyed hash over both. The key is made from the token that was given at the
//! login and from the cache's own, so that a cookie outlives a restart of the gateway but not its token, and tells
//! nothing about either: without the cache's own token nobody can try tokens against it. Nothing is kept for a cookie
//! that is good; those that were given back before their end are remembered, up to a bound.
//!
//! A cookie opens the status, and nothing else: no blob is read and nothing is changed with it. A page of another site
//! that makes a browser send one gains nothing.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use subtle::ConstantTimeEq;

/// How long a cookie is good, in seconds.
pub(super) const LIFE: u64 = 12 * 3600;
/// Cookies that were given back and are remembered.
const ENDED: usize = 4096;
const NONCE: usize = 16;
/// End, random number, hash.
const LENGTH: usize = 8 + NONCE + 32;

/// What is needed to make and to check cookies.
#[derive(Debug)]
pub(super) struct Sessions {
    secret: [u8; 32],
    ended: Mutex<VecDeque<[u8; NONCE]>>,
}

impl Sessions {
    /// `secrets` are the cache's own, as digests.
    pub(super) fn new<'a>(secrets: impl Iterator<Item = &'a [u8; 32]>) -> Sessions {
        let mut hasher = blake3::Hasher::new_derive_key("sccache-dock status page: the cache");
        for secret in secrets {
            hasher.update(secret);
        }
        Sessions {
            secret: *hasher.finalize().as_bytes(),
            ended: Mutex::default(),
        }
    }

    /// A cookie for whoever holds the token with this digest.
    pub(super) fn begin(&self, token: &[u8; 32], now_unix: u64, nonce: [u8; NONCE]) -> String {
        let mut cookie = [0; LENGTH];
        cookie[..8].copy_from_slice(&(now_unix + LIFE).to_be_bytes());
        cookie[8..8 + NONCE].copy_from_slice(&nonce);
        let hash = self.hash(token, &cookie[..8 + NONCE]);
        cookie[8 + NONCE..].copy_from_slice(&hash);
        URL_SAFE_NO_PAD.encode(cookie)
    }

    /// Whether `cookie` is good for each of `tokens`, all of which are tried, whatever the first ones give.
    pub(super) fn check(
        &self,
        cookie: &[u8],
        now_unix: u64,
        tokens: impl Iterator<Item = [u8; 32]>,
    ) -> Vec<subtle::Choice> {
        let Some(cookie) = parse(cookie).filter(|cookie| self.is_in_time(cookie, now_unix)) else {
            return Vec::new();
        };
        let (text, hash) = cookie.split_at(8 + NONCE);
        tokens
            .map(|token| self.hash(&token, text).ct_eq(hash))
            .collect()
    }

    /// Lets a cookie be good no more.
    pub(super) fn end(&self, cookie: &[u8]) {
        let Some(cookie) = parse(cookie) else { return };
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        if ended.len() == ENDED {
            ended.pop_front();
        }
        ended.push_back(nonce(&cookie));
    }

    fn is_in_time(&self, cookie: &[u8; LENGTH], now_unix: u64) -> bool {
        let mut end = [0; 8];
        end.copy_from_slice(&cookie[..8]);
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        now_unix < u64::from_be_bytes(end) && !ended.contains(&nonce(cookie))
    }

    fn hash(&self, token: &[u8; 32], text: &[u8]) -> [u8; 32] {
        let mut key = blake3::Hasher::new_derive_key("sccache-dock status page: a cookie");
        key.update(&self.secret).update(token);
        *blake3::keyed_hash(key.finalize().as_bytes(), text).as_bytes()
    }
}

fn parse(cookie: &[u8]) -> Option<[u8; LENGTH]> {
    URL_SAFE_NO_PAD.decode(cookie).ok()?.try_into().ok()
}

fn nonce(cookie: &[u8; LENGTH]) -> [u8; NONCE] {
    let mut nonce = [0; NONCE];
    nonce.copy_from_slice(&cookie[8..8 + NONCE]);
    nonce
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: [u8; 32] = [7; 32];

    fn sessions(secret: u8) -> Sessions {
        Sessions::new([[secret; 32]].iter())
    }

    fn good(sessions: &Sessions, cookie: &str, now: u64, token: [u8; 32]) -> bool {
        let found = sessions.check(cookie.as_bytes(), now, [token].into_iter());
        found.into_iter().any(bool::from)
    }

    #[test]
    fn cookie_is_good_until_its_end_and_after_a_restart() {
        let cookie = sessions(1).begin(&TOKEN, 1000, [3; NONCE]);
        assert!(good(&sessions(1), &cookie, 1000, TOKEN));
        assert!(good(&sessions(1), &cookie, 999 + LIFE, TOKEN));
        assert!(!good(&sessions(1), &cookie, 1000 + LIFE, TOKEN));
    }

    #[test]
    fn cookie_dies_with_its_token_and_with_the_caches_own() {
        let cookie = sessions(1).begin(&TOKEN, 1000, [3; NONCE]);
        assert!(!good(&sessions(1), &cookie, 1000, [8; 32]));
        assert!(!good(&sessions(2), &cookie, 1000, TOKEN));
    }

    #[test]
    fn cookie_that_was_given_back_is_good_no_more() {
        let sessions = sessions(1);
        let cookie = sessions.begin(&TOKEN, 1000, [3; NONCE]);
        let other = sessions.begin(&TOKEN, 1000, [4; NONCE]);
        sessions.end(cookie.as_bytes());
        assert!(!good(&sessions, &cookie, 1000, TOKEN));
        assert!(good(&sessions, &other, 1000, TOKEN));
        for number in 0_u64..10_000 {
            let mut nonce = [0; NONCE];
            nonce[..8].copy_from_slice(&number.to_be_bytes());
            sessions.end(sessions.begin(&TOKEN, 1000, nonce).as_bytes());
        }
        assert_eq!(sessions.ended.lock().unwrap().len(), ENDED);
    }

    #[test]
    fn cookie_with_any_bit_changed_is_refused() {
        let sessions = sessions(1);
        let cookie = sessions.begin(&TOKEN, 1000, [3; NONCE]);
        let bytes = URL_SAFE_NO_PAD.decode(&cookie).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut forged = bytes.clone();
            forged[bit / 8] ^= 1 << (bit % 8);
            let forged = URL_SAFE_NO_PAD.encode(forged);
            assert!(!good(&sessions, &forged, 1000, TOKEN), "bit {bit}");
        }
        for garbage in ["", "x", "%%%", &cookie[1..], &format!("{cookie}AAAA")] {
            assert!(!good(&sessions, garbage, 1000, TOKEN), "{garbage:?}");
        }
    }
}
