//! The status page: what the gateway and the supervisor know, as HTML that is whole without JavaScript. Pure.
//!
//! All text goes through maud, which escapes it. Style and script are files of their own, so that the page's policy can
//! forbid all inline ones; bars and plots are SVG, whose sizes need no style either.

mod builds;
mod connect;
mod plot;
mod tables;

pub use connect::{Snippet, snippets};

use crate::base::human::{bytes, count, percent, span};
use crate::contract::control::{Report, ServiceReport};
use crate::contract::gateway_status::{BuilderState, LostHits, Status, scanning};
use crate::explain::{render, report};
use crate::gateway::database::Lifetime;
use crate::gateway::history::{Point, Range};
use maud::{DOCTYPE, Markup, html};

/// The page's style.
pub const STYLE: &str = include_str!("page/page.css");
/// What refreshes the page.
pub const SCRIPT: &str = include_str!("page/page.js");
/// How often the page loads itself again where there is no JavaScript, in seconds.
const RELOAD: u32 = 10;

/// What the supervisor says of the services.
#[derive(Debug, Clone)]
pub enum Services {
    /// The gateway runs alone.
    Unsupervised,
    /// It does not answer.
    Silent,
    /// Its own words.
    Known(Report),
}

/// What happened lately.
#[derive(Debug, Clone)]
pub struct Traffic {
    /// What the plots show.
    pub range: Range,
    /// Oldest first, `None` before the start.
    pub points: Vec<Option<Point>>,
    /// The sum of the last ten minutes.
    pub recent: Point,
}

/// Everything that the page shows.
#[derive(Debug)]
pub struct View<'a> {
    /// Narrowed to what the viewer may see.
    pub status: &'a Status,
    /// All services of the container.
    pub services: Services,
    /// Missing for those who may not see all namespaces.
    pub traffic: Option<Traffic>,
    /// What was served since the first start; missing for the same, and where nothing can be kept.
    pub lifetime: Option<Lifetime>,
    /// The last builds that the viewer may see, the latest first; missing for those without a token.
    pub builds: Option<Vec<report::Report>>,
    /// The token's name.
    pub viewer: &'a str,
    /// The viewer has logged in and can log out.
    pub logged_in: bool,
    /// The namespaces that the viewer may see; `None` for all.
    pub namespaces: Option<&'a [String]>,
    /// As the browser named us.
    pub host: &'a str,
    /// What clients are to set.
    pub snippets: &'a [Snippet],
    /// The time.
    pub now_unix: u64,
    /// Of this answer only: what the policy lets through.
    pub nonce: &'a str,
}

/// The whole page.
pub fn status(view: &View<'_>) -> String {
    let attention = attention(view);
    let title = match attention.len() {
        0 => format!("{} – sccache-dock", view.host),
        troubles => format!("({troubles}) {} – sccache-dock", view.host),
    };
    let body = html! {
        a.skip href="#content" { "Skip to the content" }
        header {
            (mark())
            div.name {
                h1 { "sccache-dock" }
                p { (view.host) }
            }
            div.viewer {
                p #away.away role="status" {}
                button #pause type="button" hidden { "Stop refreshing" }
                @if view.logged_in {
                    form method="post" action="/api/logout" {
                        button type="submit" title={ "You see what the token " (view.viewer) " may see" } { "Log out" }
                    }
                }
            }
        }
        main #content data-live tabindex="-1" {
            (verdict(view, &attention))
            (figures(view))
            (traffic(view))
            @if let Some(builds) = &view.builds { (builds::section(builds, view.namespaces.is_some(), view.now_unix)) }
            (tables::services(&view.services))
            @if let Some(dist) = &view.status.dist { (tables::builders(dist)) }
            @if view.namespaces.is_none() { (tables::warnings(&view.status.recent_warnings, view.now_unix)) }
            (store(view))
            (tables::namespaces(view.status, view.namespaces.is_some()))
            (tables::tokens(view.status))
            (connect::section(view.snippets))
        }
        footer {
            p {
                "sccache-dock " (view.status.version)
                @if let Some(version) = &view.status.sccache_version { ", sccache " (version) }
                " · the same as JSON: " a href="/api/status" { "/api/status" }
            }
        }
    };
    document(&title, view.nonce, true, &body)
}

/// The page for whoever has to show a token first. `trouble` says why the last try failed.
pub fn login(host: &str, trouble: Option<&str>, nonce: &str) -> String {
    let body = html! {
        main.login #content {
            div.card {
                (mark())
                h1 { "sccache-dock" }
                p { "The state of the compiler cache at " strong { (host) } "." }
                form method="post" action="/api/login" {
                    label for="token" { "Token" }
                    input #token type="password" name="token" required autofocus autocomplete="current-password"
                        aria-invalid=[trouble.map(|_| "true")] aria-describedby=[trouble.map(|_| "trouble")];
                    @if let Some(trouble) = trouble {
                        p #trouble.trouble role="alert" { (trouble) }
                    }
                    button type="submit" { "Show the status" }
                }
                p.hint {
                    "Any token of this cache will do. " code { "sccache-dock client-env" }
                    " prints one in the container, as " code { "SCCACHE_WEBDAV_TOKEN" } "."
                }
            }
        }
    };
    let title = format!("Log in – {host} – sccache-dock");
    document(&title, nonce, false, &body)
}

/// A build.
pub fn build(build: &report::Report, nonce: &str) -> String {
    let body = html! {
        header {
            (mark())
            div.name { h1 { "sccache-dock" } p { a href="/" { "All builds" } } }
        }
        main #content { (render::body(build)) }
    };
    document("Build – sccache-dock", nonce, false, &body)
}

fn document(title: &str, nonce: &str, live: bool, body: &Markup) -> String {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                @if live {
                    noscript { meta http-equiv="refresh" content=(RELOAD); }
                }
                title { (title) }
                link rel="icon" href="data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 24 24'%3E%3Cpath fill='%230b7a75' d='M3 4h8v7H3zM13 4h8v7h-8zM3 13h18v7H3z'/%3E%3C/svg%3E";
                link rel="stylesheet" href={ "/api/page.css?" (digest(STYLE)) } nonce=(nonce);
                @if live {
                    script src={ "/api/page.js?" (digest(SCRIPT)) } nonce=(nonce) defer {}
                }
            }
            body { (body) }
        }
    }
    .into_string()
}

/// Names a file by what is in it, so that browsers may keep it.
fn digest(file: &str) -> String {
    let hash = blake3::hash(file.as_bytes());
    hash.to_hex()[..12].to_owned()
}

/// Containers on a quay.
fn mark() -> Markup {
    html! {
        svg.mark viewBox="0 0 24 24" width="32" height="32" aria-hidden="true" {
            path d="M3 4h8v7H3zM13 4h8v7h-8zM3 13h18v7H3z" {}
        }
    }
}

/// What somebody should look at.
fn attention(view: &View<'_>) -> Vec<String> {
    let status = view.status;
    let mut found = Vec::new();
    match &view.services {
        Services::Unsupervised => {}
        Services::Silent => {
            found.push("The supervisor does not answer: the services are not known.".into());
        }
        Services::Known(report) => found.extend(report.services.iter().filter_map(out_of_order)),
    }
    if !status.ready {
        let fault = status.store.fault.as_deref();
        let fault = fault.unwrap_or("the file system refuses it");
        found.push(format!("The store takes no writes: {fault}"));
    }
    found.extend(status.tokens.fault.clone());
    found.extend(status.tls.as_ref().and_then(|tls| tls.fault.clone()));
    if let Some(upstream) = status.upstream.as_ref().filter(|it| !it.available) {
        let cause = upstream
            .last_error
            .as_deref()
            .unwrap_or("it does not answer");
        found.push(format!("The upstream is left alone for a while: {cause}"));
    }
    if let Some(dist) = &status.dist {
        // The relay assigns jobs without it.
        if !dist.scheduler_up && dist.relay.is_none() {
            found.push("The scheduler does not answer: clients compile by themselves.".into());
        }
        let lost = dist.builders.iter();
        let lost = lost.filter(|one| one.state == BuilderState::Lost);
        found.extend(lost.map(|one| {
            let since = span(one.last_sign_seconds as f64);
            format!(
                "The builder {} is lost: no sign of it for {since}.",
                one.address
            )
        }));
    }
    found
}

/// What is wrong with a service, if anything is.
fn out_of_order(service: &ServiceReport) -> Option<String> {
    let (name, state) = (&service.name, &service.state);
    match (&service.trouble, state.as_str()) {
        (None, "ready") => None,
        (Some(trouble), "ready") => {
            Some(format!("The service {name} is ready again: it {trouble}."))
        }
        (Some(trouble), _) => Some(format!(
            "The service {name} is not ready ({state}): it {trouble}."
        )),
        (None, _) => Some(format!("The service {name} is not ready ({state}).")),
    }
}

fn verdict(view: &View<'_>, attention: &[String]) -> Markup {
    let status = view.status;
    let mode = match &view.services {
        Services::Known(report) => Some(report.mode.as_str()),
        Services::Unsupervised | Services::Silent => None,
    };
    html! {
        section.verdict.well[attention.is_empty()] aria-labelledby="verdict" {
            h2 #verdict {
                @if attention.is_empty() { "Everything is in order" }
                @else if attention.len() == 1 { "One thing needs attention" }
                @else { (attention.len()) " things need attention" }
            }
            @if !attention.is_empty() {
                ul { @for one in attention { li { (one) } } }
            }
            p {
                "Up for " (span(status.uptime_seconds as f64))
                @if let Some(mode) = mode { ", mode " (mode) }
                @if let Some(namespaces) = view.namespaces {
                    ". You see what the token " strong { (view.viewer) } " may see: "
                    @for (place, name) in namespaces.iter().enumerate() {
                        @if place > 0 { ", " }
                        (name)
                    }
                }
                ". "
                a href="#connect" { "Connect a client" }
            }
        }
    }
}

/// The four figures that people come for.
fn figures(view: &View<'_>) -> Markup {
    let store = &view.status.store;
    let (totals, since) = sums(view);
    let asked = totals.lookups();
    // As the plot counts them.
    let requests = asked + totals.writes;
    let lost = view.status.lost_hits.count;
    let recent = view.traffic.as_ref().map(|traffic| traffic.recent);
    let rate = match recent.filter(|recent| recent.lookups() > 0) {
        Some(recent) => (
            percent(recent.hits, recent.lookups()),
            "in the last 10 minutes",
        ),
        None => (percent(totals.hits, asked), since.as_str()),
    };
    html! {
        section aria-labelledby="glance" {
            h2.quiet #glance { "At a glance" }
            dl.figures {
                (figure("Hit rate", &rate.0, html! {
                    (rate.1)
                    @if rate.1 != since { br; (percent(totals.hits, asked)) " " (since) }
                }))
                (figure("Requests", &count(recent.map_or(requests, |recent| recent.lookups() + recent.writes)), html! {
                    @if recent.is_some() { "in the last 10 minutes" br; (count(requests)) " " (since) }
                    @else { (since) }
                }))
                (figure("Served", &bytes(totals.bytes_read), html! {
                    (since) br; (bytes(totals.bytes_written)) " stored"
                }))
                (figure("Room taken", &percent(store.bytes, store.budget_bytes), html! {
                    (plot::bar(store.bytes, store.budget_bytes))
                    (bytes(store.bytes)) " of " (bytes(store.budget_bytes)) br; (count(store.evicted_entries)) " evicted"
                    @if lost > 0 { ", " (count(lost)) " missed since" }
                }))
            }
        }
    }
}

/// What was served, and since when.
fn sums(view: &View<'_>) -> (Point, String) {
    if let Some(lifetime) = &view.lifetime {
        let since = tables::day(lifetime.since_unix_seconds);
        return (lifetime.sums, format!("since {since}"));
    }
    let totals = &view.status.totals;
    let sums = Point {
        hits: totals.hits,
        misses: totals.misses,
        writes: totals.writes,
        bytes_read: totals.bytes_read,
        bytes_written: totals.bytes_written,
    };
    (sums, "since the start".to_owned())
}

fn figure(name: &str, value: &str, more: Markup) -> Markup {
    html! {
        div {
            dt { (name) }
            dd { strong { (value) } span { (more) } }
        }
    }
}

fn traffic(view: &View<'_>) -> Markup {
    html! {
        section.card aria-labelledby="traffic" {
            h2 #traffic { "Over time" }
            @match &view.traffic {
                Some(traffic) => {
                    p.ranges {
                        @for range in Range::ALL {
                            a href=(link(range)) aria-current=[(range == traffic.range).then_some("page")] {
                                (plot::name(range))
                            }
                        }
                    }
                    (plot::plots(traffic.range, &traffic.points, view.now_unix))
                }
                None => p.empty { "Only tokens that are good for all namespaces see this." }
            }
        }
    }
}

/// Where a range is shown.
fn link(range: Range) -> &'static str {
    match range {
        Range::Minutes => "/",
        Range::Day => "/?range=day",
        Range::Quarter => "/?range=quarter",
    }
}

/// The range of a page's query.
pub fn range(query: Option<&str>) -> Range {
    match query {
        Some("range=day") => Range::Day,
        Some("range=quarter") => Range::Quarter,
        Some(_) | None => Range::Minutes,
    }
}

/// What was asked for again after it was evicted.
fn lost_hits(lost: &LostHits) -> Markup {
    html! {
        (count(lost.count))
        @if lost.bytes > 0 { ", " (bytes(lost.bytes)) }
        @if lost.by_quota > 0 { ", " (count(lost.by_quota)) " because of a quota" }
    }
}

fn store(view: &View<'_>) -> Markup {
    let store = &view.status.store;
    let lost = &view.status.lost_hits;
    let larger = lost.larger_budget().filter(|_| lost.count > 0);
    html! {
        section.card aria-labelledby="store" {
            h2 #store { "Store" }
            dl.facts {
                div { dt { "Taken" } dd { (bytes(store.bytes)) " of " (bytes(store.budget_bytes)) } }
                div {
                    dt { "Blobs" }
                    dd { (count(store.entries)) @if let Some(left) = scanning(store.scan) { ", " (left) } }
                }
                div { dt { "Evicted" } dd { (count(store.evicted_entries)) ", " (bytes(store.evicted_bytes)) } }
                div { dt { "Lost hits" } dd { (lost_hits(lost)) } }
                div { dt { "Broken files" } dd { (count(store.broken_entries)) } }
                @if store.expired_entries > 0 {
                    div { dt { "Too old" } dd { (count(store.expired_entries)) ", " (bytes(store.expired_bytes)) } }
                }
                @if store.pinned_refusals > 0 {
                    div { dt { "Refused for pins" } dd { (count(store.pinned_refusals)) } }
                }
                @if let Some(larger) = larger {
                    div.wide {
                        dt { "A larger budget" }
                        dd {
                            (bytes(larger.budget_bytes)) " would have kept "
                            (larger.whole_percent()) " % of the lost hits."
                        }
                    }
                }
                @if let Some(fault) = &store.fault {
                    div.wide { dt { "Last fault" } dd { (fault) } }
                }
                @if let Some(upstream) = &view.status.upstream {
                    div.wide {
                        dt { "Upstream" }
                        dd {
                            (upstream.name) ": " (count(upstream.hits)) " hits, " (count(upstream.misses)) " misses, "
                            (count(upstream.uploaded)) " passed on, " (count(upstream.queued)) " waiting"
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
