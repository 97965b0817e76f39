//! What the shim around the local builder's jobs reports: one JSON object a datagram.

use super::Front;
use crate::contract::gateway_status::{LocalJobs, SentHomeCount};
use crate::contract::sent_home::SentHome;
use parking_lot::Mutex;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use tokio::net::UnixDatagram;
use tracing::warn;

/// Longest datagram.
const DATAGRAM: usize = 4 << 10;
/// Most limits that are told apart.
const LIMITS: usize = 16;

/// Most crates that are told apart among those that went home.
const CRATES: usize = 64;
/// Those beyond.
const OTHERS: &str = "(others)";

/// A datagram. Later shims may say more.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
enum Report {
    Refused {
        why: String,
        #[serde(default)]
        limit: Option<String>,
    },
    Started {},
    Ended {
        exit: i32,
        #[serde(default)]
        cpu_seconds: f64,
        #[serde(default)]
        peak_rss_bytes: u64,
        #[serde(default)]
        limit: Option<String>,
        #[serde(default)]
        home: Option<SentHome>,
    },
}

/// The sums.
#[derive(Debug, Default)]
pub(super) struct Reports {
    jobs: Mutex<LocalJobs>,
}

impl Reports {
    /// The sums so far.
    pub(super) fn jobs(&self) -> LocalJobs {
        let jobs = self.jobs.lock();
        jobs.clone()
    }

    fn take(&self, report: &Report) {
        let mut jobs = self.jobs.lock();
        match report {
            Report::Refused { why, limit } => {
                warn!("a job was refused: {why}");
                count_limit(&mut jobs.limits, limit.as_ref());
            }
            Report::Started {} => jobs.running += 1,
            Report::Ended {
                exit,
                cpu_seconds,
                peak_rss_bytes,
                limit,
                home,
            } => {
                // Those that started before this process did only end here.
                jobs.running = jobs.running.saturating_sub(1);
                jobs.ended += 1;
                jobs.nonzero += u64::from(*exit != 0);
                jobs.cpu_seconds += cpu_seconds.max(0.0);
                jobs.peak_rss_bytes = jobs.peak_rss_bytes.max(*peak_rss_bytes);
                count_limit(&mut jobs.limits, limit.as_ref());
                if let Some(home) = home {
                    count(&mut jobs.sent_home, home);
                }
            }
        }
    }
}

fn count_limit(limits: &mut BTreeMap<String, u64>, limit: Option<&String>) {
    if let Some(limit) = limit
        && (limits.len() < LIMITS || limits.contains_key(limit))
    {
        *limits.entry(limit.clone()).or_default() += 1;
    }
}

fn count(counts: &mut Vec<SentHomeCount>, home: &SentHome) {
    let known = |counts: &[SentHomeCount], crate_name: &str| {
        let same = |one: &SentHomeCount| {
            one.home.crate_name == crate_name && one.home.reason == home.reason
        };
        counts.iter().position(same)
    };
    let mut home = home.clone();
    let mut at = known(counts, &home.crate_name);
    if at.is_none() && counts.len() >= CRATES {
        home.crate_name = OTHERS.into();
        at = known(counts, OTHERS);
    }
    match at {
        Some(at) => {
            counts[at].jobs += 1;
            // The last one.
            counts[at].home = home;
        }
        None => counts.push(SentHomeCount { home, jobs: 1 }),
    }
}

/// Takes reports for ever. Without the socket there are none, and everything else goes on.
pub(super) async fn listen(front: &Front) {
    let path = &front.config.jobs_socket;
    let socket = match bind(path) {
        Ok(socket) => socket,
        Err(cause) => {
            warn!(
                "cannot listen for reports of jobs on \"{}\": {cause}",
                path.display()
            );
            return std::future::pending().await;
        }
    };
    let mut datagram = vec![0; DATAGRAM];
    loop {
        let Ok(length) = socket.recv(&mut datagram).await else {
            continue;
        };
        match serde_json::from_slice(&datagram[..length]) {
            Ok(report) => {
                front.reports.take(&report);
                if report == (Report::Started {})
                    && let Some(builder) = front.config.local_builder
                {
                    front.registry().runs(&builder);
                    front.changed.notify_waiters();
                }
            }
            Err(cause) => warn!("cannot understand a report of a job: {cause}"),
        }
    }
}

/// In place of the socket of a process before us; only our own user may write to it.
fn bind(path: &Path) -> io::Result<UnixDatagram> {
    match std::fs::remove_file(path) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => return Err(cause),
        Ok(()) | Err(_) => {}
    }
    let socket = UnixDatagram::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_add_up() {
        let reports = Reports::default();
        for text in [
            r#"{"event":"started","job":"7"}"#,
            r#"{"event":"started","job":"8"}"#,
            r#"{"event":"ended","job":"7","exit":0,"seconds":1.2,"cpu_seconds":1.0,"peak_rss_bytes":5,"limit":null}"#,
            r#"{"event":"ended","job":"8","exit":137,"seconds":1,"cpu_seconds":0.5,"peak_rss_bytes":9,"limit":"memory"}"#,
            r#"{"event":"ended","job":"0","exit":1}"#,
        ] {
            reports.take(&serde_json::from_str(text).unwrap());
        }
        let jobs = reports.jobs();
        assert_eq!((jobs.running, jobs.ended, jobs.nonzero), (0, 3, 2));
        assert_eq!((jobs.cpu_seconds, jobs.peak_rss_bytes), (1.5, 9));
        assert_eq!(jobs.limits["memory"], 1);
        assert!(jobs.sent_home.is_empty());
    }

    #[test]
    fn jobs_that_went_home_are_counted_by_crate_and_reason_within_bounds() {
        let reports = Reports::default();
        let went = |name: &str, reason: &str, what: &str| {
            let text = format!(
                r#"{{"event":"ended","job":"7","exit":137,"home":{{"crate":"{name}","reason":"{reason}","what":"{what}"}}}}"#
            );
            reports.take(&serde_json::from_str(&text).unwrap());
        };
        went("a", "file", "/old");
        went("a", "folder", "/x");
        went("a", "file", "/new");
        let counts = reports.jobs().sent_home;
        let shown: Vec<_> = counts
            .iter()
            .map(|one| format!("{} {} {}", one.jobs, one.home.crate_name, one.home))
            .collect();
        assert_eq!(shown, ["2 a looked for /new", "1 a listed /x"]);
        for number in 0..1000 {
            went(&format!("b{number}"), "program", "git");
        }
        let counts = reports.jobs().sent_home;
        assert_eq!(counts.len(), CRATES + 1);
        let last = counts.last().unwrap();
        assert_eq!((last.home.crate_name.as_str(), last.jobs), (OTHERS, 938));
    }
}
