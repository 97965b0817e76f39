//! One lock per key: while one thread works on a key's file, however slow the disk is, threads that want other keys do
//! not wait.

use super::lru::Digest;
use parking_lot::{Condvar, Mutex, MutexGuard};

/// Number of groups of keys; more of them only make contention on the list of locks rarer.
const STRIPES: usize = 64;

/// The locks of all keys.
#[derive(Debug)]
pub(super) struct KeyLocks {
    stripes: [Stripe; STRIPES],
}

#[derive(Debug, Default)]
struct Stripe {
    /// The locked keys, at most one per working thread.
    locked: Mutex<Vec<Digest>>,
    unlocked: Condvar,
}

/// A key's lock, released on drop.
#[derive(Debug)]
pub(super) struct KeyLock<'a> {
    stripe: &'a Stripe,
    digest: Digest,
}

impl KeyLocks {
    pub(super) fn new() -> KeyLocks {
        KeyLocks {
            stripes: std::array::from_fn(|_| Stripe::default()),
        }
    }

    pub(super) fn lock(&self, digest: &Digest) -> KeyLock<'_> {
        let stripe = &self.stripes[usize::from(digest.0[15]) % STRIPES];
        let mut locked = stripe.locked();
        stripe
            .unlocked
            .wait_while(&mut locked, |locked| locked.contains(digest));
        locked.push(*digest);
        KeyLock {
            stripe,
            digest: *digest,
        }
    }
}

impl Stripe {
    fn locked(&self) -> MutexGuard<'_, Vec<Digest>> {
        self.locked.lock()
    }
}

impl Drop for KeyLock<'_> {
    fn drop(&mut self) {
        let mut locked = self.stripe.locked();
        locked.retain(|digest| *digest != self.digest);
        drop(locked);
        self.stripe.unlocked.notify_all();
    }
}
