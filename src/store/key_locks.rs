//! One lock a key: what one thread does to a key's file, however long the disk takes for it, holds up nobody who wants
//! another key.

use super::lru::Digest;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Each has the locks of a part of the keys; more of them only make it rarer that two threads wait for a look at them.
const STRIPES: usize = 64;

/// The locks of all keys.
#[derive(Debug)]
pub(super) struct KeyLocks {
    stripes: [Stripe; STRIPES],
}

#[derive(Debug, Default)]
struct Stripe {
    /// As many as threads are at work here.
    locked: Mutex<Vec<Digest>>,
    unlocked: Condvar,
}

/// A key's lock; given back when dropped.
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
        let taken = stripe
            .unlocked
            .wait_while(stripe.locked(), |locked| locked.contains(digest));
        let mut locked = taken.unwrap_or_else(PoisonError::into_inner);
        locked.push(*digest);
        KeyLock {
            stripe,
            digest: *digest,
        }
    }
}

impl Stripe {
    fn locked(&self) -> MutexGuard<'_, Vec<Digest>> {
        self.locked.lock().unwrap_or_else(PoisonError::into_inner)
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
