//! The page's tables. On a narrow screen each row becomes a card, whose figures are named by `data-name`.

use super::Services;
use crate::base::human::{bytes, count, percent, span};
use crate::contract::control::ServiceReport;
use crate::contract::gateway_status::{BuilderState, DistStatus, NamespaceStatus, Status, Warning};
use maud::{Markup, html};
use std::time::{Duration, UNIX_EPOCH};

/// Rows that a table of names has at most: there may be hundreds, and those in use come first.
const ROWS: usize = 50;
/// Warnings that are shown at once.
const LATEST: usize = 8;

/// How a thing is doing: a word, and a sign that does not depend on colours.
fn state(class: &str, word: &str) -> Markup {
    html! { span class={ "state " (class) } { (word) } }
}

/// The day: `2026-11-29`.
pub(super) fn day(unix_seconds: u64) -> String {
    let time = UNIX_EPOCH + Duration::from_secs(unix_seconds);
    humantime::format_rfc3339_seconds(time).to_string()[..10].to_owned()
}

fn number(name: &str, value: &str) -> Markup {
    html! { td.number data-name=(name) { (value) } }
}

pub(super) fn services(services: &Services) -> Markup {
    html! {
        section.card aria-labelledby="services" {
            h2 #services { "Services" }
            @match services {
                Services::Unsupervised => p.empty { "This gateway runs without a supervisor." }
                Services::Silent => p.empty { "The supervisor does not answer." }
                Services::Known(report) => {
                    table.stack {
                        caption.quiet { "Services of the container" }
                        thead { tr {
                            th scope="col" { "Service" }
                            th scope="col" { "State" }
                            th.number scope="col" { "Restarts" }
                            th.number scope="col" { "Deaths in 1 h" }
                            th scope="col" { "Last crash" }
                        } }
                        tbody { @for service in &report.services { (row(service)) } }
                    }
                }
            }
        }
    }
}

fn row(service: &ServiceReport) -> Markup {
    let class = match service.state.as_str() {
        "ready" => "good",
        "backoff" | "killed" | "stopped" => "bad",
        _ => "doubtful",
    };
    html! {
        tr {
            th scope="row" { (service.name) }
            td.wide {
                (state(class, &service.state))
                @if let Some(seconds) = service.ready_seconds { " for " (span(seconds)) }
            }
            (number("Restarts", &count(u64::from(service.restarts))))
            (number("Deaths in 1 h", &count(service.deaths_last_hour as u64)))
            td.wide[service.last_crash.is_some()] data-name="Last crash" {
                @match &service.last_crash {
                    None => "none",
                    Some(crash) => {
                        (crash.exit)
                        @if let Some(cause) = &crash.cause { ": " (cause) }
                        ", after " (span(crash.lived_seconds))
                    }
                }
            }
        }
    }
}

/// A moment of the past.
fn when(at_unix: u64, now_unix: u64) -> Markup {
    let date = UNIX_EPOCH.checked_add(Duration::from_secs(at_unix));
    let date = date.unwrap_or(UNIX_EPOCH);
    let date = humantime::format_rfc3339_seconds(date).to_string();
    let ago = span(now_unix.saturating_sub(at_unix) as f64);
    html! { time datetime=(date) title=(date) { (ago) " ago" } }
}

/// How many rows are left out.
fn more(all: usize) -> Markup {
    html! {
        @if all > ROWS {
            p.empty { "and " (count((all - ROWS) as u64)) " more, in " a href="/api/status" { "/api/status" } }
        }
    }
}

/// What a namespace takes, and of how much where that is bounded.
fn size(namespace: &NamespaceStatus) -> String {
    let taken = bytes(namespace.bytes);
    match namespace.quota {
        Some(quota) => format!("{taken} of {}", bytes(quota)),
        None => taken,
    }
}

pub(super) fn namespaces(status: &Status, is_narrowed: bool) -> Markup {
    let mut rows: Vec<_> = status.namespaces.iter().collect();
    rows.sort_by_key(|(_, it)| std::cmp::Reverse((it.hits + it.misses + it.writes, it.bytes)));
    let any_lost = rows.iter().any(|(_, it)| it.lost_hits > 0);
    html! {
        section.card aria-labelledby="namespaces" {
            h2 #namespaces { "Namespaces" }
            @if rows.is_empty() {
                p.empty { @if is_narrowed { "Nothing of yours is here yet." } @else { "The cache is empty." } }
            } @else {
                table.stack {
                    caption.quiet { "Namespaces, the busiest first; counted since the start" }
                    thead { tr {
                        th scope="col" { "Namespace" }
                        th.number scope="col" { "Hit rate" }
                        th.number scope="col" { "Hits" }
                        th.number scope="col" { "Misses" }
                        th.number scope="col" { "Writes" }
                        th.number scope="col" { "Served" }
                        @if any_lost { th.number scope="col" { "Lost hits" } }
                        th.number scope="col" { "Size" }
                    } }
                    tbody {
                        @for (name, it) in rows.iter().take(ROWS) {
                            tr {
                                th scope="row" { (name) @if it.pinned { " (pinned)" } }
                                (number("Hit rate", &percent(it.hits, it.hits + it.misses)))
                                (number("Hits", &count(it.hits)))
                                (number("Misses", &count(it.misses)))
                                (number("Writes", &count(it.writes)))
                                (number("Served", &bytes(it.bytes_read)))
                                @if any_lost { (number("Lost hits", &count(it.lost_hits))) }
                                (number("Size", &size(it)))
                            }
                        }
                    }
                }
                (more(rows.len()))
            }
        }
    }
}

pub(super) fn tokens(status: &Status) -> Markup {
    let mut rows: Vec<_> = status.tokens.by_name.iter().collect();
    rows.sort_by_key(|(_, it)| std::cmp::Reverse(it.requests));
    let has_grants = rows.iter().any(|(_, it)| !it.grants.is_empty());
    html! {
        section.card aria-labelledby="tokens" {
            h2 #tokens { "Tokens" }
            table.stack {
                caption.quiet { "Tokens, the busiest first; counted since the start" }
                thead { tr {
                    th scope="col" { "Token" }
                    th.number scope="col" { "Requests" }
                    th.number scope="col" { "Hits" }
                    th.number scope="col" { "Misses" }
                    th.number scope="col" { "Refused" }
                    th.number scope="col" { "Served" }
                    th.number scope="col" { "Stored" }
                } }
                tbody {
                    @for (name, it) in rows.iter().take(ROWS) {
                        tr {
                            th scope="row" { (name) }
                            (number("Requests", &count(it.requests)))
                            (number("Hits", &count(it.hits)))
                            (number("Misses", &count(it.misses)))
                            (number("Refused", &count(it.refusals)))
                            (number("Served", &bytes(it.bytes_sent)))
                            (number("Stored", &bytes(it.bytes_received)))
                        }
                    }
                }
            }
            (more(rows.len()))
            @if has_grants { (grants(status)) }
        }
    }
}

/// What each may do, as it was understood.
fn grants(status: &Status) -> Markup {
    let rows = status.tokens.by_name.iter();
    let rows: Vec<_> = rows.filter(|(_, it)| !it.grants.is_empty()).collect();
    html! {
        details.grants {
            summary { "What each may do" }
            table.stack {
                caption.quiet { "Grants, as the server has understood them" }
                thead { tr {
                    th scope="col" { "Token" }
                    th scope="col" { "Known by" }
                    th scope="col" { "May" }
                } }
                tbody {
                    @for (name, it) in rows.iter().take(ROWS) {
                        tr {
                            th scope="row" { (name) }
                            td.wide data-name="Known by" { (it.proof) }
                            td.wide data-name="May" { (it.grants) }
                        }
                    }
                }
            }
            (more(rows.len()))
        }
    }
}

pub(super) fn builders(dist: &DistStatus) -> Markup {
    let there = dist.builders.iter();
    let there = there.filter(|one| one.state != BuilderState::Lost);
    let (slots, jobs) = there.fold((0, 0), |(slots, jobs), one| {
        (slots + one.slots, jobs + one.jobs)
    });
    let asked = dist.allocations.iter();
    let asked: Vec<String> = asked
        .map(|(outcome, times)| format!("{} {}", count(*times), outcome.replace('_', " ")))
        .collect();
    html! {
        section.card aria-labelledby="builders" {
            h2 #builders { "Builders" }
            p {
                "The scheduler "
                @if dist.scheduler_up { "answers" } @else { "does not answer" }
                "; " (count(jobs)) " jobs on " (count(slots)) " slots; asked for a builder: "
                @if asked.is_empty() { "not yet" } @else { (asked.join(", ")) }
                "."
            }
            @if let Some(relay) = &dist.relay {
                @let done = relay.jobs.get("done").copied().unwrap_or(0);
                @let home = relay.jobs.values().sum::<u64>().saturating_sub(done);
                p {
                    "The relay: " (count(relay.waiting)) " jobs wait, " (count(relay.running)) " run; " (count(done))
                    " done by builders, " (count(home)) " left to their clients."
                }
            }
            @if dist.builders.is_empty() {
                p.empty { "No builder has come yet." }
            } @else {
                table.stack {
                    caption.quiet { "Builders of the cluster" }
                    thead { tr {
                        th scope="col" { "Builder" }
                        th scope="col" { "State" }
                        th.number scope="col" { "Slots" }
                        th.number scope="col" { "Jobs" }
                        th.number scope="col" { "Done" }
                        th.number scope="col" { "Failed" }
                        th.number scope="col" { "Last sign" }
                    } }
                    tbody {
                        @for one in dist.builders.iter().take(ROWS) {
                            @let (class, word) = match one.state {
                                BuilderState::Ready => ("good", "ready"),
                                BuilderState::Preparing => ("doubtful", "preparing"),
                                BuilderState::Leaving => ("doubtful", "leaving"),
                                BuilderState::Silent => ("bad", "silent"),
                                BuilderState::Lost => ("bad", "lost"),
                            };
                            tr {
                                th scope="row" { (one.address) @if one.local { " (here)" } }
                                td.wide { (state(class, word)) }
                                (number("Slots", &count(one.slots)))
                                (number("Jobs", &count(one.jobs)))
                                (number("Done", &count(one.done)))
                                (number("Failed", &count(one.failed)))
                                (number("Last sign", &format!("{} ago", span(one.last_sign_seconds as f64))))
                            }
                        }
                    }
                }
                (more(dist.builders.len()))
            }
            @for (limit, times) in &dist.local_jobs.limits {
                p { (count(*times)) " jobs here went over their limit of " (limit) "." }
            }
            @for one in &dist.local_jobs.sent_home {
                p {
                    (count(one.jobs)) " jobs of " (one.home.crate_name) " went home: the last "
                    (one.home.to_string()) "."
                }
            }
        }
    }
}

fn warning_list<'a>(warnings: impl Iterator<Item = &'a Warning>, now_unix: u64) -> Markup {
    html! {
        ol.warnings {
            @for warning in warnings {
                li { (when(warning.at_unix_seconds, now_unix)) " " span { (warning.message) } }
            }
        }
    }
}

pub(super) fn warnings(warnings: &[Warning], now_unix: u64) -> Markup {
    html! {
        section.card aria-labelledby="warnings" {
            h2 #warnings { "Last warnings" }
            @if warnings.is_empty() {
                p.empty { "There were none since the start." }
            } @else {
                (warning_list(warnings.iter().rev().take(LATEST), now_unix))
                @if warnings.len() > LATEST {
                    details {
                        summary { "Earlier ones" }
                        (warning_list(warnings.iter().rev().skip(LATEST), now_unix))
                    }
                }
            }
        }
    }
}
