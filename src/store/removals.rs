//! Which blobs went lately, and why: for whoever keeps a longer account of it. Pure.

use super::lru::Digest;
use std::collections::VecDeque;

/// Most removals that are remembered until they are taken: 512 KiB.
const MOST: usize = 16 * 1024;

/// Why a blob went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RemovalCause {
    /// To make room in the budget.
    Budget,
    /// To make room in its namespace's quota.
    Quota,
    /// Nobody had used it for too long.
    Age,
    /// Somebody asked for it.
    Purge,
    /// It was damaged.
    Broken,
}

/// One blob that went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Removal {
    /// Its key, see [`super::Store::id`].
    pub id: [u8; 16],
    /// When, in seconds since 1970.
    pub unix_seconds: u64,
    /// Why.
    pub cause: RemovalCause,
}

/// The last ones, until they are taken.
#[derive(Debug, Default)]
pub(super) struct Removals(VecDeque<Removal>);

impl Removals {
    pub(super) fn push(&mut self, digest: &Digest, unix_seconds: u64, cause: RemovalCause) {
        if self.0.len() == MOST {
            self.0.pop_front();
        }
        self.0.push_back(Removal {
            id: digest.0,
            unix_seconds,
            cause,
        });
    }

    pub(super) fn take(&mut self) -> Vec<Removal> {
        std::mem::take(&mut self.0).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_are_forgotten_if_nobody_takes_them() {
        let mut removals = Removals::default();
        for number in 0..MOST as u64 + 2 {
            removals.push(&Digest([1; 16]), number, RemovalCause::Age);
        }
        let taken = removals.take();
        assert_eq!((taken.len(), taken[0].unix_seconds), (MOST, 2));
        assert_eq!(removals.take(), []);
    }
}
