//! The addresses of names by which clients call us. Each job asks, so the answers are kept for a moment.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;
use tokio::net::lookup_host;
use tokio::time::{Instant, timeout};

/// How long a name may take to be resolved.
const LOOK_UP: Duration = Duration::from_secs(2);
/// How long an answer is believed, also that there is none.
const KEPT: Duration = Duration::from_secs(30);
/// Most names that are kept; clients with a right token choose them.
const NAMES: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Names {
    // Held for a look-up in the table, never across I/O or an await.
    known: Mutex<HashMap<String, (Instant, Vec<IpAddr>)>>,
}

impl Names {
    /// Its addresses, none where nobody here knows it.
    pub(super) async fn addresses(&self, host: &str) -> Vec<IpAddr> {
        if let Some((since, found)) = self.known.lock().get(host)
            && since.elapsed() < KEPT
        {
            return found.clone();
        }
        let found = timeout(LOOK_UP, lookup_host((host, 0))).await;
        let found = found.ok().and_then(Result::ok).into_iter().flatten();
        let found: Vec<IpAddr> = found.map(|found| found.ip()).collect();
        let mut known = self.known.lock();
        if known.len() >= NAMES {
            known.retain(|_, (since, _)| since.elapsed() < KEPT);
        }
        if known.len() < NAMES {
            known.insert(host.to_owned(), (Instant::now(), found.clone()));
        }
        found
    }
}
