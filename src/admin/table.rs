//! The answer of `status` as text. Pure.

use super::{Error, policies};
use crate::base::human::{bytes, percent, span};
use crate::base::terminal::{Cell, Column, Screen, Side, Tint};
use crate::contract::control::{Health, Report, ServiceReport};
use crate::contract::gateway_status::{BuilderState, DistStatus, Status as CacheStatus, scanning};
use crate::contract::sccache::Version;
use std::fmt::Write as _;

const fn text(title: &'static str, least: usize, rank: u8, may_be_cut: bool) -> Column {
    Column {
        title,
        side: Side::Left,
        least,
        rank,
        may_be_cut,
    }
}

const fn number(title: &'static str, least: usize, rank: u8) -> Column {
    Column {
        title,
        side: Side::Right,
        least,
        rank,
        may_be_cut: false,
    }
}

/// All that is known, or why it is not.
pub(super) fn table(
    screen: Screen,
    report: &Report,
    cache: Result<&CacheStatus, &Error>,
) -> String {
    let mut out = String::new();
    let health = match report.health() {
        Health::Starting => ", starting",
        Health::Stopping => ", stopping",
        Health::Ready | Health::Failing => "",
    };
    let heading = format!(
        "sccache-dock {}  mode {}  on {}  up {}{health}",
        report.version,
        report.mode,
        report.listen,
        span(report.uptime_seconds)
    );
    screen.heading(&mut out, &heading);
    out.push('\n');
    services(screen, &mut out, &report.services);
    match cache {
        Ok(cache) => {
            store(screen, &mut out, cache);
            if let Some(dist) = &cache.dist {
                builders(screen, &mut out, dist);
            }
            tokens(screen, &mut out, cache);
        }
        Err(error) => {
            out.push('\n');
            let tint = match report.health() {
                Health::Starting => Tint::Doubtful,
                Health::Ready | Health::Stopping | Health::Failing => Tint::Bad,
            };
            screen.line(&mut out, tint, "cache", &error.to_string());
        }
    }
    out
}

fn services(screen: Screen, out: &mut String, services: &[ServiceReport]) {
    const COLUMNS: [Column; 6] = [
        text("SERVICE", 10, 0, false),
        text("STATE", 9, 0, false),
        number("PID", 7, 5),
        number("READY", 9, 3),
        number("RESTARTS", 8, 4),
        text("LAST EXIT", 9, 2, true),
    ];
    let rows: Vec<Vec<Cell>> = services
        .iter()
        .map(|service| {
            let (pid, ready) = (service.pid, service.ready_seconds);
            let pid = pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
            vec![
                (Tint::Plain, service.name.clone()),
                (tint(&service.state), service.state.clone()),
                (Tint::Plain, pid),
                (Tint::Plain, ready.map_or_else(|| "-".to_owned(), span)),
                (Tint::Plain, service.restarts.to_string()),
                (Tint::Plain, last_exit(service)),
            ]
        })
        .collect();
    screen.table(out, &COLUMNS, &rows);
}

/// Of a service's state.
fn tint(state: &str) -> Tint {
    match state {
        "ready" => Tint::Good,
        "backoff" | "killed" | "stopped" => Tint::Bad,
        _ => Tint::Doubtful,
    }
}

/// How it ended last, what stands behind that, and how long it has been failing.
fn last_exit(service: &ServiceReport) -> String {
    let mut text = service.last_exit.clone().unwrap_or_else(|| "-".to_owned());
    if let Some(crash) = &service.last_crash
        && service.last_exit.as_ref() == Some(&crash.exit)
        && let Some(cause) = &crash.cause
    {
        let _ = write!(text, ": {cause}");
    }
    if let Some(trouble) = &service.trouble {
        let _ = write!(text, " ({trouble})");
    }
    text
}

fn store(screen: Screen, out: &mut String, cache: &CacheStatus) {
    let store = &cache.store;
    let rest = scanning(store.scan).map(|rest| format!(" ({rest})"));
    let rest = rest.unwrap_or_default();
    let taken = format!(
        "{} of {} ({}) in {} blobs{rest}; {} evicted ({})",
        bytes(store.bytes),
        bytes(store.budget_bytes),
        percent(store.bytes, store.budget_bytes.max(1)),
        store.entries,
        store.evicted_entries,
        bytes(store.evicted_bytes)
    );
    out.push('\n');
    screen.line(out, Tint::Plain, "cache", &taken);
    if let Some(fault) = &store.fault {
        screen.line(out, Tint::Bad, "fault", fault);
    }
    for (name, text) in policies::lines(cache) {
        screen.line(out, Tint::Plain, name, &text);
    }
    if let Some(upstream) = &cache.upstream {
        let state = match (upstream.available, &upstream.last_error) {
            (true, _) => "answers".to_owned(),
            (false, Some(error)) => format!("is left alone: {error}"),
            (false, None) => "is left alone".to_owned(),
        };
        let text = format!(
            "{} {state}; {} hits, {} misses, {} passed on, {} waiting",
            upstream.name, upstream.hits, upstream.misses, upstream.uploaded, upstream.queued
        );
        let tint = match upstream.available {
            true => Tint::Plain,
            false => Tint::Doubtful,
        };
        screen.line(out, tint, "upstream", &text);
    }
    let sccache = cache.sccache_version.as_deref().and_then(Version::parse);
    if let Some(untested) = sccache.and_then(Version::untested_in_container) {
        screen.line(out, Tint::Doubtful, "sccache", &untested);
    }
    let tls = cache.tls.as_ref().and_then(|tls| tls.fault.as_ref());
    for fault in cache.tokens.fault.iter().chain(tls) {
        screen.line(out, Tint::Bad, "fault", fault);
    }
    namespaces(screen, out, cache);
}

fn namespaces(screen: Screen, out: &mut String, cache: &CacheStatus) {
    const COLUMNS: [Column; 8] = [
        text("NAMESPACE", 20, 0, true),
        number("HITS", 9, 3),
        number("MISSES", 9, 4),
        number("RATE", 7, 1),
        number("WRITES", 9, 6),
        number("READ", 10, 5),
        number("SIZE", 10, 2),
        text("RULES", 5, 2, true),
    ];
    let rows = cache.namespaces.iter();
    let rows: Vec<Vec<Cell>> = rows
        .map(|(name, it)| {
            plain([
                name.clone(),
                it.hits.to_string(),
                it.misses.to_string(),
                percent(it.hits, it.hits + it.misses),
                it.writes.to_string(),
                bytes(it.bytes_read),
                bytes(it.bytes),
                policies::of_namespace(it),
            ])
        })
        .collect();
    out.push('\n');
    let ruled = cache.namespaces.values();
    let ruled = ruled
        .map(policies::of_namespace)
        .any(|rules| !rules.is_empty());
    let columns = if ruled { &COLUMNS[..] } else { &COLUMNS[..7] };
    screen.table(out, columns, &rows);
}

fn tokens(screen: Screen, out: &mut String, cache: &CacheStatus) {
    const COLUMNS: [Column; 7] = [
        text("TOKEN", 20, 0, true),
        number("REQUESTS", 9, 1),
        number("HITS", 9, 3),
        number("MISSES", 9, 4),
        number("REFUSED", 9, 2),
        number("READ", 10, 5),
        number("WRITTEN", 10, 6),
    ];
    let rows = cache.tokens.by_name.iter();
    let rows: Vec<Vec<Cell>> = rows
        .map(|(name, it)| {
            plain([
                name.clone(),
                it.requests.to_string(),
                it.hits.to_string(),
                it.misses.to_string(),
                it.refusals.to_string(),
                bytes(it.bytes_sent),
                bytes(it.bytes_received),
            ])
        })
        .collect();
    out.push('\n');
    screen.table(out, &COLUMNS, &rows);
}

fn builders(screen: Screen, out: &mut String, dist: &DistStatus) {
    const COLUMNS: [Column; 7] = [
        text("BUILDER", 24, 0, true),
        text("STATE", 9, 0, false),
        number("SLOTS", 5, 2),
        number("JOBS", 5, 1),
        number("DONE", 8, 5),
        number("FAILED", 7, 3),
        number("LAST SIGN", 9, 4),
    ];
    let scheduler = match dist.scheduler_up {
        true => (Tint::Plain, "answers"),
        false => (Tint::Bad, "does not answer"),
    };
    let there = dist.builders.iter();
    let there = there.filter(|one| one.state != BuilderState::Lost);
    let (slots, jobs) = there.fold((0, 0), |(slots, jobs), one| {
        (slots + one.slots, jobs + one.jobs)
    });
    let asked = dist.allocations.iter();
    let asked: Vec<String> = asked
        .map(|(outcome, count)| format!("{count} {}", outcome.replace('_', " ")))
        .collect();
    let asked = if asked.is_empty() {
        "none yet".to_owned()
    } else {
        asked.join(", ")
    };
    let said = format!(
        "{}; {jobs} jobs on {slots} slots; asked for a builder: {asked}",
        scheduler.1
    );
    out.push('\n');
    screen.line(out, scheduler.0, "scheduler", &said);
    if let Some(relay) = &dist.relay {
        let done = relay.jobs.get("done").copied().unwrap_or(0);
        let home = relay.jobs.values().sum::<u64>() - done;
        let text = format!(
            "{} jobs wait, {} run; {done} done by builders, {home} left to their clients",
            relay.waiting, relay.running
        );
        screen.line(out, Tint::Plain, "relay", &text);
    }
    out.push('\n');
    let rows: Vec<Vec<Cell>> = dist
        .builders
        .iter()
        .map(|builder| {
            let mark = if builder.local { " (here)" } else { "" };
            let (tint, state) = match builder.state {
                BuilderState::Ready => (Tint::Good, "ready"),
                BuilderState::Preparing => (Tint::Doubtful, "preparing"),
                BuilderState::Leaving => (Tint::Doubtful, "leaving"),
                BuilderState::Silent => (Tint::Bad, "silent"),
                BuilderState::Lost => (Tint::Bad, "lost"),
            };
            let mut row = plain([
                match &builder.token {
                    Some(token) => format!("{} ({token})", builder.address),
                    None => format!("{}{mark}", builder.address),
                },
                state.to_owned(),
                builder.slots.to_string(),
                builder.jobs.to_string(),
                builder.done.to_string(),
                builder.failed.to_string(),
                span(builder.last_sign_seconds as f64),
            ]);
            row[1].0 = tint;
            row
        })
        .collect();
    screen.table(out, &COLUMNS, &rows);
    for (limit, count) in &dist.local_jobs.limits {
        let text = format!("{count} jobs here went over their limit of {limit}");
        screen.line(out, Tint::Doubtful, "limit", &text);
    }
    for one in &dist.local_jobs.sent_home {
        let (name, jobs) = (&one.home.crate_name, one.jobs);
        let text = format!("{jobs} jobs of {name} went home: the last {}", one.home);
        screen.line(out, Tint::Doubtful, "home", &text);
    }
}

fn plain<const COUNT: usize>(texts: [String; COUNT]) -> Vec<Cell> {
    texts.map(|text| (Tint::Plain, text)).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::terminal::PIPE;
    use crate::contract::gateway_status::BuilderStatus;
    use std::net::SocketAddr;

    #[test]
    fn builders_are_a_table() {
        let builder = |state, port| BuilderStatus {
            token: None,
            version: None,
            address: SocketAddr::from(([10, 0, 0, 7], port)),
            local: port == 10501,
            state,
            slots: 8,
            jobs: 3,
            done: 40,
            failed: 1,
            last_sign_seconds: 12,
        };
        let dist = DistStatus {
            relay: None,
            scheduler_up: true,
            scheduler_outages: 0,
            replayed_heartbeats: 0,
            allocations: [("assigned".to_owned(), 44), ("no_capacity".to_owned(), 2)].into(),
            builders: vec![
                builder(BuilderState::Ready, 10501),
                builder(BuilderState::Lost, 10502),
            ],
            local_jobs: Default::default(),
        };
        let mut text = String::new();
        builders(PIPE, &mut text, &dist);
        let expected = "\n\
            scheduler  answers; 3 jobs on 8 slots; asked for a builder: 44 assigned, 2 no capacity\n\
            \n\
            BUILDER                  STATE     SLOTS  JOBS     DONE  FAILED LAST SIGN\n\
            10.0.0.7:10501 (here)    ready         8     3       40       1       12s\n\
            10.0.0.7:10502           lost          8     3       40       1       12s\n";
        assert_eq!(text, expected);
    }
}
