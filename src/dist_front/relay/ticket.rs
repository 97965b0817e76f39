//! What a client gets for a job and brings back with it (`auth` of `AllocJobHttpResponse`). To the client, and to whoever
//! reads along, it says nothing: what it stands for is remembered here. It is good for its job, once, for as long as
//! sccache's client may take for one, and while that with which its client asked for it is. Pure: the time is an argument.
//!
//! The next gateway does not know the tickets of this one: the few clients that were about to send a job compile it.

use super::queue::{Tenant, Toolchain};
use crate::dist_front::auth::Shown;
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How long a ticket is good: sccache's client gives up a request after 20 minutes.
const VALID: Duration = Duration::from_secs(20 * 60);
/// Most tickets: clients with a right token ask for them, and need not use them. Of too many, the oldest goes.
const TICKETS: usize = 1 << 16;

/// Makes and checks tickets.
pub(super) struct Tickets {
    /// Known to nobody else, and to no other process.
    key: [u8; 32],
    // A plain mutex: held for a look-up.
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    by_job: HashMap<u64, Ticket>,
    /// In the order in which they end. Those that were used are still here.
    ends: VecDeque<(Instant, u64)>,
}

/// What a ticket stands for.
#[derive(Debug, Clone)]
pub(super) struct Ticket {
    pub(super) toolchain: Toolchain,
    pub(super) tenant: Tenant,
    /// With what its client has asked for it.
    pub(super) shown: Arc<Shown>,
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tickets").finish_non_exhaustive()
    }
}

impl Tickets {
    pub(super) fn new(key: [u8; 32]) -> Tickets {
        let open = Mutex::default();
        Tickets { key, open }
    }

    /// A number for a token, which does not tell the token.
    pub(super) fn number(&self, token: &[u8]) -> u64 {
        let hash = blake3::keyed_hash(&self.key, token);
        let (number, _) = hash
            .as_bytes()
            .split_first_chunk()
            .unwrap_or((&[0; 8], &[]));
        u64::from_le_bytes(*number)
    }

    /// The ticket of this job, which had none.
    pub(super) fn issue(&self, now: Instant, job: u64, ticket: Ticket) -> String {
        let mut open = self.open.lock();
        open.expire(now, TICKETS - 1);
        open.by_job.insert(job, ticket);
        open.ends.push_back((now + VALID, job));
        self.text(job).to_hex().to_string()
    }

    /// What the ticket of this job stands for, if this is it.
    pub(super) fn check(&self, now: Instant, job: u64, text: &str) -> Option<Ticket> {
        // The comparison of hashes takes the same time wherever they differ.
        if blake3::Hash::from_hex(text).ok()? != self.text(job) {
            return None;
        }
        let mut open = self.open.lock();
        open.expire(now, TICKETS);
        open.by_job.get(&job).cloned()
    }

    /// The same, and it is used up.
    pub(super) fn use_up(&self, now: Instant, job: u64, text: &str) -> Option<Ticket> {
        self.check(now, job, text)?;
        self.open.lock().by_job.remove(&job)
    }

    fn text(&self, job: u64) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(b"job").update(&job.to_le_bytes());
        hasher.finalize()
    }
}

impl Open {
    /// Forgets those that have ended, and the oldest beyond so many.
    fn expire(&mut self, now: Instant, most: usize) {
        while let Some((end, job)) = self.ends.front().copied()
            && (end <= now || self.by_job.len() > most)
        {
            self.ends.pop_front();
            self.by_job.remove(&job);
        }
        if self.ends.len() > 2 * TICKETS {
            self.ends.retain(|(_, job)| self.by_job.contains_key(job));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticket(address: &str) -> Ticket {
        Ticket {
            toolchain: "ab".repeat(32).into(),
            tenant: Tenant {
                token: 7,
                address: address.parse().unwrap(),
            },
            shown: Arc::default(),
        }
    }

    #[test]
    fn ticket_is_good_for_its_job_once_and_at_its_relay_only_and_says_nothing() {
        let (tickets, now) = (Tickets::new([1; 32]), Instant::now());
        let (first, second) = (ticket("10.0.0.9"), ticket("fd00::9"));
        let (one, two) = (Some(first.tenant), Some(second.tenant));
        let text = tickets.issue(now, 7, first);
        let other = tickets.issue(now, 8, second);
        assert!(text.bytes().all(|byte| byte.is_ascii_hexdigit()));
        assert!(!text.contains("abab"), "{text}");
        let tenant = |found: Option<Ticket>| found.map(|found| found.tenant);
        assert_eq!(tenant(tickets.check(now, 7, &text)), one);
        assert_eq!(tenant(tickets.check(now, 7, &other)), None);
        let successor = Tickets::new([2; 32]);
        assert_eq!(tenant(successor.check(now, 7, &text)), None);
        assert_eq!(tenant(tickets.use_up(now, 7, &other)), None);
        assert_eq!(tenant(tickets.use_up(now, 7, &text)), one);
        assert_eq!(tenant(tickets.use_up(now, 7, &text)), None, "twice");
        assert_eq!(tenant(tickets.check(now, 7, &text)), None);
        assert_eq!(tenant(tickets.use_up(now, 8, &other)), two);
        for text in ["", "/", "é", &"0".repeat(64), &"0".repeat(200)] {
            assert!(tickets.check(now, 9, text).is_none(), "{text}");
        }
    }

    #[test]
    fn ticket_ends_and_so_does_the_memory_of_those_that_nobody_uses() {
        let (tickets, now) = (Tickets::new([1; 32]), Instant::now());
        let text = tickets.issue(now, 0, ticket("10.0.0.9"));
        let last = now + VALID - Duration::from_millis(1);
        assert!(tickets.check(last, 0, &text).is_some());
        assert!(tickets.use_up(now + VALID, 0, &text).is_none());
        for job in 1..TICKETS as u64 + 10 {
            tickets.issue(last, job, ticket("10.0.0.9"));
        }
        assert_eq!(tickets.open.lock().by_job.len(), TICKETS);
        // Those that are used take no place of others.
        let (tickets, mut open) = (Tickets::new([1; 32]), Vec::new());
        for job in 0..4 * TICKETS as u64 {
            let text = tickets.issue(last, job, ticket("10.0.0.9"));
            match job % 1000 {
                0 => open.push((job, text)),
                _ => drop(tickets.use_up(last, job, &text)),
            }
        }
        let is_open = |(job, text): &(u64, String)| tickets.check(last, *job, text).is_some();
        assert!(open.iter().all(is_open));
        assert!(tickets.open.lock().ends.len() <= 2 * TICKETS + 1);
    }
}
