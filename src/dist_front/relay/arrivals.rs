//! Whether clients' jobs arrive at the relay's address that the clients were given. Pure: the time is an argument.
//!
//! A client that cannot reach that address waits some seconds for each job before it compiles it locally, and reports
//! nothing. So if none of a client's jobs ever arrives, they are refused at once, except one now and then, and the operator
//! is told.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;
use tokio::time::Instant;

/// A client is refused after this many jobs, and this long, without an arrival: a slow one may pack many before it sends the
/// first.
const JOBS: u32 = 8;
const PATIENCE: Duration = Duration::from_secs(120);
/// How often one of its jobs is let in all the same.
const AGAIN: Duration = Duration::from_secs(60);
/// How long a client is remembered, and how many are.
const MEMORY: Duration = Duration::from_secs(3600);
const CLIENTS: usize = 4096;

#[derive(Debug)]
struct Client {
    has_arrived: bool,
    /// Jobs that were let in, the first and the last of them.
    jobs: u32,
    first: Instant,
    last: Instant,
    told: bool,
}

/// What to do with a client's next job.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    LetIn,
    /// It would not arrive.
    TurnAway {
        /// The first of this client.
        is_news: bool,
    },
}

/// All clients, by address.
#[derive(Debug, Default)]
pub(super) struct Arrivals {
    clients: HashMap<IpAddr, Client>,
}

impl Arrivals {
    /// A client wants to send a job.
    pub(super) fn next(&mut self, now: Instant, address: IpAddr) -> Next {
        if self.clients.len() >= CLIENTS && !self.clients.contains_key(&address) {
            let is_fresh = |client: &Client| now.duration_since(client.last) < MEMORY;
            self.clients.retain(|_, client| is_fresh(client));
            if self.clients.len() >= CLIENTS {
                return Next::LetIn;
            }
        }
        let client = self.clients.entry(address).or_insert(Client {
            has_arrived: false,
            jobs: 0,
            first: now,
            last: now,
            told: false,
        });
        let stays_away = !client.has_arrived
            && client.jobs >= JOBS
            && now.duration_since(client.first) >= PATIENCE
            && now.duration_since(client.last) < AGAIN;
        if stays_away {
            let is_news = !std::mem::replace(&mut client.told, true);
            return Next::TurnAway { is_news };
        }
        client.jobs = client.jobs.saturating_add(1);
        client.last = now;
        Next::LetIn
    }

    /// A job of this client has arrived.
    pub(super) fn arrived(&mut self, now: Instant, address: IpAddr) {
        if let Some(client) = self.clients.get_mut(&address) {
            client.has_arrived = true;
            client.last = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEAK: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 9));
    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn client_that_never_comes_is_turned_away_and_tried_again() {
        let (mut arrivals, start) = (Arrivals::default(), Instant::now());
        let at = |seconds: u32| start + SECOND * seconds;
        for job in 0..12 {
            assert_eq!(arrivals.next(at(job * 10), WEAK), Next::LetIn, "{job}");
        }
        let away = |is_news| Next::TurnAway { is_news };
        assert_eq!(arrivals.next(at(121), WEAK), away(true));
        assert_eq!(arrivals.next(at(122), WEAK), away(false));
        let other = IpAddr::from([10, 0, 0, 10]);
        assert_eq!(arrivals.next(at(122), other), Next::LetIn);
        assert_eq!(arrivals.next(at(181), WEAK), Next::LetIn, "one tries");
        assert_eq!(arrivals.next(at(182), WEAK), away(false));
        arrivals.arrived(at(183), WEAK);
        for job in 184..400 {
            assert_eq!(arrivals.next(at(job), WEAK), Next::LetIn);
        }
    }

    #[test]
    fn client_that_takes_its_time_or_has_few_jobs_is_let_in() {
        let (mut arrivals, start) = (Arrivals::default(), Instant::now());
        for _ in 0..1000 {
            assert_eq!(arrivals.next(start + SECOND * 119, WEAK), Next::LetIn);
        }
        let few = IpAddr::from([10, 0, 0, 11]);
        for job in 0..JOBS {
            assert_eq!(arrivals.next(start + PATIENCE * job, few), Next::LetIn);
        }
    }

    #[test]
    fn memory_of_clients_is_bounded_and_those_of_long_ago_make_room() {
        let (mut arrivals, start) = (Arrivals::default(), Instant::now());
        for number in 0..5000_u32 {
            let address = IpAddr::V4(number.into());
            assert_eq!(arrivals.next(start, address), Next::LetIn);
        }
        assert_eq!(arrivals.clients.len(), CLIENTS);
        arrivals.next(start + MEMORY, WEAK);
        assert_eq!(arrivals.clients.len(), 1);
    }
}
