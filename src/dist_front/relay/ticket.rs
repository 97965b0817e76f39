//! What a client gets for a job and brings back with it (`auth` of `AllocJobHttpResponse`). To the client, and to whoever
//! reads along, it says nothing: what it stands for is remembered here. It is valid for its job only, once, for as long as
//! sccache's client may take for a job, and while the token or certificate with which its client asked for it is valid.
//! Pure: the time is an argument.
//!
//! The next gateway does not know the tickets of this one: the few clients that were about to send a job compile it.

use super::queue::{Tenant, Toolchain};
use crate::dist_front::auth::Shown;
use parking_lot::Mutex;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How long a ticket is valid: sccache's client gives up a request after 20 minutes.
const VALID: Duration = Duration::from_secs(20 * 60);
/// There may be this many times as many tickets as jobs, because clients may ask for tickets and not use them. Above that
/// the oldest ones go; one client has at most half of them.
const TICKETS: usize = 4;

/// Makes and checks tickets.
pub(super) struct Tickets {
    /// Known to nobody else, and to no other process.
    key: [u8; 32],
    most: usize,
    // A plain mutex: held for a look-up.
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    by_job: HashMap<u64, Ticket>,
    by_tenant: HashMap<Tenant, OfTenant>,
    /// In the order in which they end. Those that were used are still here.
    ends: VecDeque<(Instant, u64)>,
}

/// The tickets of a client, which has shown the same for all of them.
struct OfTenant {
    shown: Arc<Shown>,
    /// The oldest first.
    jobs: VecDeque<u64>,
}

/// What a ticket stands for.
#[derive(Debug, Clone)]
pub(super) struct Ticket {
    pub(super) toolchain: Toolchain,
    pub(super) tenant: Tenant,
    /// The token or certificate with which its client asked for it.
    pub(super) shown: Arc<Shown>,
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tickets").finish_non_exhaustive()
    }
}

impl Tickets {
    /// With a key of this process, for as many jobs.
    pub(super) fn new(key: [u8; 32], jobs: usize) -> Tickets {
        Tickets {
            key,
            most: jobs.saturating_mul(TICKETS),
            open: Mutex::default(),
        }
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
    pub(super) fn issue(&self, now: Instant, job: u64, mut ticket: Ticket) -> String {
        let mut open = self.open.lock();
        open.make_room(now, ticket.tenant, self.most);
        let held = open.by_tenant.entry(ticket.tenant);
        let held = held.or_insert_with(|| OfTenant {
            shown: Arc::clone(&ticket.shown),
            jobs: VecDeque::new(),
        });
        held.jobs.push_back(job);
        ticket.shown = Arc::clone(&held.shown);
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
        open.expire(now);
        open.by_job.get(&job).cloned()
    }

    /// Like [`Tickets::check`], but uses the ticket up.
    pub(super) fn use_up(&self, now: Instant, job: u64, text: &str) -> Option<Ticket> {
        self.check(now, job, text)?;
        self.open.lock().forget(job)
    }

    fn text(&self, job: u64) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(b"job").update(&job.to_le_bytes());
        hasher.finalize()
    }
}

impl Open {
    /// Forgets those that have ended.
    fn expire(&mut self, now: Instant) {
        while let Some((end, job)) = self.ends.front().copied()
            && (end <= now || !self.by_job.contains_key(&job))
        {
            self.ends.pop_front();
            self.forget(job);
        }
    }

    /// Lets there be fewer than so many of all clients, and of this one fewer than half of that.
    fn make_room(&mut self, now: Instant, tenant: Tenant, most: usize) {
        self.expire(now);
        let held = self.by_tenant.get(&tenant);
        let held = held.filter(|held| held.jobs.len() >= most / 2);
        if let Some(oldest) = held.and_then(|held| held.jobs.front()).copied() {
            self.forget(oldest);
        }
        while self.by_job.len() >= most
            && let Some((_, job)) = self.ends.pop_front()
        {
            self.forget(job);
        }
        if self.ends.len() > 2 * most {
            self.ends.retain(|(_, job)| self.by_job.contains_key(job));
        }
    }

    fn forget(&mut self, job: u64) -> Option<Ticket> {
        let ticket = self.by_job.remove(&job)?;
        if let Entry::Occupied(mut held) = self.by_tenant.entry(ticket.tenant) {
            held.get_mut().jobs.retain(|one| *one != job);
            if held.get().jobs.is_empty() {
                held.remove();
            }
        }
        Some(ticket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const JOBS: usize = 1000;
    const MOST: u64 = (JOBS * TICKETS) as u64;

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
        let (tickets, now) = (Tickets::new([1; 32], JOBS), Instant::now());
        let (first, second) = (ticket("10.0.0.9"), ticket("fd00::9"));
        let (one, two) = (Some(first.tenant), Some(second.tenant));
        let text = tickets.issue(now, 7, first);
        let other = tickets.issue(now, 8, second);
        assert!(text.bytes().all(|byte| byte.is_ascii_hexdigit()));
        assert!(!text.contains("abab"), "{text}");
        let tenant = |found: Option<Ticket>| found.map(|found| found.tenant);
        assert_eq!(tenant(tickets.check(now, 7, &text)), one);
        assert_eq!(tenant(tickets.check(now, 7, &other)), None);
        let successor = Tickets::new([2; 32], JOBS);
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
        let (tickets, now) = (Tickets::new([1; 32], JOBS), Instant::now());
        let text = tickets.issue(now, 0, ticket("10.0.0.9"));
        let last = now + VALID - Duration::from_millis(1);
        assert!(tickets.check(last, 0, &text).is_some());
        assert!(tickets.use_up(now + VALID, 0, &text).is_none());
        for job in 1..MOST + 10 {
            let whose = if job % 2 == 0 { "10.0.0.8" } else { "10.0.0.9" };
            tickets.issue(last, job, ticket(whose));
        }
        assert_eq!(tickets.open.lock().by_job.len() as u64, MOST);
        // Those that are used take no place of others.
        let (tickets, mut open) = (Tickets::new([1; 32], JOBS), Vec::new());
        for job in 0..4 * MOST {
            let text = tickets.issue(last, job, ticket("10.0.0.9"));
            match job % 1000 {
                0 => open.push((job, text)),
                _ => drop(tickets.use_up(last, job, &text)),
            }
        }
        let is_open = |(job, text): &(u64, String)| tickets.check(last, *job, text).is_some();
        assert!(open.iter().all(is_open));
        let used_up = |(job, text): &(u64, String)| tickets.use_up(last, *job, text).is_some();
        assert!(open.iter().all(used_up));
        assert!(tickets.open.lock().ends.len() as u64 <= 2 * MOST + 1);
        assert!(tickets.open.lock().by_tenant.is_empty());
    }

    #[test]
    fn client_that_uses_none_of_its_tickets_takes_half_of_them_and_one_token() {
        let (tickets, now) = (Tickets::new([1; 32], JOBS), Instant::now());
        let texts = [(0, "10.0.0.8"), (1, "10.0.0.9")];
        let texts = texts.map(|(job, whose)| tickets.issue(now, job, ticket(whose)));
        for job in 2..2 * MOST {
            let one = Ticket {
                shown: Arc::default(),
                ..ticket("10.0.0.9")
            };
            tickets.issue(now, job, one);
        }
        let others = tickets.check(now, 0, &texts[0]);
        assert!(others.is_some(), "that of another client stays");
        assert!(tickets.check(now, 1, &texts[1]).is_none());
        let open = tickets.open.lock();
        assert_eq!(open.by_job.len() as u64, MOST / 2 + 1);
        let kept: Vec<_> = open.by_job.values().map(|one| &one.shown).collect();
        let different = kept.iter().filter(|one| !Arc::ptr_eq(one, kept[0]));
        assert!([1, kept.len() - 1].contains(&different.count()));
    }
}
