//! Who has logged in with a browser: cookies that stand for a token without holding it.
//!
//! A cookie is an end, a random number and a keyed hash over both. The key is made from the token that was given at the
//! login, from the cache's own and from a secret that is kept beside the blobs, so that a cookie outlives a restart of the
//! gateway but not its token, and tells nothing about either. Nothing is kept for a cookie that is good; those that were
//! given back before their end are remembered, and kept with the secret: whoever has lost the list has lost the secret too.
//! When the list is full there is a new secret, which ends all logins.
//!
//! A cookie opens the status, and nothing else: no blob is read and nothing is changed with it. A page of another site
//! that makes a browser send one gains nothing.

use crate::contract::paths;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use parking_lot::{Mutex, MutexGuard};
use subtle::ConstantTimeEq;

/// How long a cookie is good, in seconds.
pub(super) const LIFE: u64 = 12 * 3600;
/// Cookies that were given back and are remembered.
const ENDED: usize = 4096;
/// The file beside the blobs in which they are, with the secret.
pub(super) const FILE: &str = paths::LOGINS;
const NONCE: usize = 16;
/// End, random number, hash.
const LENGTH: usize = 8 + NONCE + 32;

/// What is needed to make and to check cookies.
#[derive(Debug)]
pub(super) struct Logins {
    /// Of the cache's own tokens.
    tokens: [u8; 32],
    kept: Mutex<Saved>,
}

/// What must outlive the process.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Saved {
    secret: [u8; 32],
    /// Ends and random numbers.
    ended: Vec<[u8; 8 + NONCE]>,
}

impl Saved {
    fn parse(text: &str) -> Option<Saved> {
        let mut lines = text.lines().map(|line| URL_SAFE_NO_PAD.decode(line).ok());
        let secret = lines.next()??.try_into().ok()?;
        let ended = lines.map(|line| line?.try_into().ok());
        Some(Saved {
            secret,
            ended: ended.collect::<Option<_>>()?,
        })
    }

    fn is_over(cookie: &[u8], now_unix: u64) -> bool {
        let mut end = [0; 8];
        end.copy_from_slice(&cookie[..8]);
        now_unix >= u64::from_be_bytes(end)
    }
}

impl Logins {
    /// `tokens` are the cache's own, as digests; `kept` is what [`Logins::text`] gave before; without it, or where it
    /// is broken, `secret` is used, which must be new each time.
    pub(super) fn new<'a>(
        tokens: impl Iterator<Item = &'a [u8; 32]>,
        kept: Option<&str>,
        secret: [u8; 32],
    ) -> Logins {
        let mut hasher = blake3::Hasher::new_derive_key("sccache-dock status page: the cache");
        for token in tokens {
            hasher.update(token);
        }
        let kept = kept.and_then(Saved::parse).unwrap_or(Saved {
            secret,
            ended: Vec::new(),
        });
        Logins {
            tokens: *hasher.finalize().as_bytes(),
            kept: Mutex::new(kept),
        }
    }

    /// What is to be kept; it holds the secret.
    pub(super) fn text(&self) -> String {
        let kept = self.kept();
        let ended = kept.ended.iter().map(|one| &one[..]);
        let lines = [&kept.secret[..]].into_iter().chain(ended);
        lines
            .map(|line| URL_SAFE_NO_PAD.encode(line) + "\n")
            .collect()
    }

    /// A cookie for whoever holds the token with this digest.
    pub(super) fn begin(&self, token: &[u8; 32], now_unix: u64, nonce: [u8; NONCE]) -> String {
        let mut cookie = [0; LENGTH];
        cookie[..8].copy_from_slice(&(now_unix + LIFE).to_be_bytes());
        cookie[8..8 + NONCE].copy_from_slice(&nonce);
        let secret = self.kept().secret;
        let hash = self.hash(&secret, token, &cookie[..8 + NONCE]);
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
        let Some(cookie) = parse(cookie).filter(|cookie| !Saved::is_over(cookie, now_unix)) else {
            return Vec::new();
        };
        let (text, hash) = cookie.split_at(8 + NONCE);
        let secret = {
            let kept = self.kept();
            if kept.ended.iter().any(|ended| ended == text) {
                return Vec::new();
            }
            kept.secret
        };
        tokens
            .map(|token| self.hash(&secret, &token, text).ct_eq(hash))
            .collect()
    }

    /// Ends a cookie; `secret` must be new each time.
    pub(super) fn end(&self, cookie: &[u8], now_unix: u64, secret: [u8; 32]) {
        let Some(cookie) = parse(cookie) else { return };
        let mut kept = self.kept();
        kept.ended.retain(|ended| !Saved::is_over(ended, now_unix));
        if kept.ended.len() == ENDED {
            *kept = Saved {
                secret,
                ended: Vec::new(),
            };
        }
        let mut ended = [0; 8 + NONCE];
        ended.copy_from_slice(&cookie[..8 + NONCE]);
        kept.ended.push(ended);
    }

    fn kept(&self) -> MutexGuard<'_, Saved> {
        self.kept.lock()
    }

    fn hash(&self, secret: &[u8; 32], token: &[u8; 32], text: &[u8]) -> [u8; 32] {
        let mut key = blake3::Hasher::new_derive_key("sccache-dock status page: a cookie");
        key.update(&self.tokens).update(secret).update(token);
        *blake3::keyed_hash(key.finalize().as_bytes(), text).as_bytes()
    }
}

fn parse(cookie: &[u8]) -> Option<[u8; LENGTH]> {
    URL_SAFE_NO_PAD.decode(cookie).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: [u8; 32] = [7; 32];

    /// With the cache's own token as is, and a secret.
    fn logins(token: u8) -> Logins {
        Logins::new([[token; 32]].iter(), None, [5; 32])
    }

    /// The same after a restart.
    fn restarted(logins: &Logins) -> Logins {
        Logins::new([[1; 32]].iter(), Some(&logins.text()), [6; 32])
    }

    fn good(logins: &Logins, cookie: &str, now: u64, token: [u8; 32]) -> bool {
        let found = logins.check(cookie.as_bytes(), now, [token].into_iter());
        found.into_iter().any(bool::from)
    }

    #[test]
    fn cookie_is_good_until_its_end_and_after_a_restart() {
        let before = logins(1);
        let cookie = before.begin(&TOKEN, 1000, [3; NONCE]);
        for logins in [restarted(&before), before] {
            assert!(good(&logins, &cookie, 1000, TOKEN));
            assert!(good(&logins, &cookie, 999 + LIFE, TOKEN));
            assert!(!good(&logins, &cookie, 1000 + LIFE, TOKEN));
        }
    }

    #[test]
    fn what_is_kept_is_read_again_whole_or_not_at_all() {
        let logins = logins(1);
        let cookie = logins.begin(&TOKEN, 1000, [3; NONCE]);
        logins.end(cookie.as_bytes(), 1000, [8; 32]);
        let text = logins.text();
        assert_eq!(restarted(&logins).text(), text);
        let longer = format!("{text}x\n");
        for broken in ["", "x", &text[1..], &text[..text.len() - 2], &longer] {
            let other = Logins::new([[1; 32]].iter(), Some(broken), [6; 32]);
            assert!(!good(&other, &cookie, 1000, TOKEN), "{broken}");
            assert_ne!(other.text(), text);
        }
    }

    #[test]
    fn cookie_dies_with_its_token_and_with_the_caches_own() {
        let cookie = logins(1).begin(&TOKEN, 1000, [3; NONCE]);
        assert!(!good(&logins(1), &cookie, 1000, [8; 32]));
        assert!(!good(&logins(2), &cookie, 1000, TOKEN));
    }

    #[test]
    fn cookie_that_was_given_back_is_no_longer_valid() {
        let logins = logins(1);
        let cookie = logins.begin(&TOKEN, 1000, [3; NONCE]);
        let other = logins.begin(&TOKEN, 1000, [4; NONCE]);
        logins.end(cookie.as_bytes(), 1000, [8; 32]);
        for logins in [&logins, &restarted(&logins)] {
            assert!(!good(logins, &cookie, 1000, TOKEN));
            assert!(good(logins, &other, 1000, TOKEN));
        }
        let give_back = |number: u64, now| {
            let mut nonce = [0; NONCE];
            nonce[..8].copy_from_slice(&number.to_be_bytes());
            let cookie = logins.begin(&TOKEN, now, nonce);
            logins.end(cookie.as_bytes(), now, [8; 32]);
        };
        for number in 0..ENDED as u64 {
            give_back(number, 1000);
            assert!(!good(&logins, &cookie, 1000, TOKEN));
        }
        assert!(!good(&logins, &other, 1000, TOKEN), "a new secret ends all");
        assert_eq!(logins.kept().ended.len(), 1);
        give_back(1, 1000 + LIFE);
        assert_eq!(
            logins.kept().ended.len(),
            1,
            "those that are over anyway go"
        );
    }

    #[test]
    fn cookie_with_any_bit_changed_is_refused() {
        let logins = logins(1);
        let cookie = logins.begin(&TOKEN, 1000, [3; NONCE]);
        let bytes = URL_SAFE_NO_PAD.decode(&cookie).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut forged = bytes.clone();
            forged[bit / 8] ^= 1 << (bit % 8);
            let forged = URL_SAFE_NO_PAD.encode(forged);
            assert!(!good(&logins, &forged, 1000, TOKEN), "bit {bit}");
        }
        for garbage in ["", "x", "%%%", &cookie[1..], &format!("{cookie}AAAA")] {
            assert!(!good(&logins, garbage, 1000, TOKEN), "{garbage:?}");
        }
    }
}
