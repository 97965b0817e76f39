//! A report as text, Markdown, HTML and as a trace for Perfetto. Pure.

use super::report::{Outcome, Report, Row};
use crate::base::human::{bytes, count, span};
use maud::{Markup, html};
use serde_json::{Value, json};
use std::fmt::Write as _;

/// Compiles that were no hits, as many as are shown of them.
const SLOWEST: usize = 10;

/// Number of the schema of its JSON.
const SCHEMA: u32 = 1;

/// Seconds with one digit, or more where there are many.
fn seconds(ms: u64) -> String {
    match ms {
        0..60_000 => format!("{}.{} s", ms / 1000, ms % 1000 / 100),
        _ => span(ms as f64 / 1000.0),
    }
}

/// Why it was no hit.
fn why(row: &Row) -> String {
    let reason = row.why.as_ref().map(|it| it.text()).unwrap_or_default();
    let probably = if row.probably { "probably: " } else { "" };
    let also = match row.also.len() {
        0 => String::new(),
        _ => {
            let labels: Vec<&str> = row.also.iter().map(|it| it.label()).collect();
            format!(" (differs too: {})", labels.join(", "))
        }
    };
    format!("{probably}{reason}{also}")
}

/// What is said first, name and value.
fn figures(report: &Report) -> Vec<(&'static str, String)> {
    let sums = &report.sums;
    let mut figures = Vec::new();
    if !report.rows.is_empty() || sums.hits + sums.misses + sums.own_disk > 0 {
        let rate = match report.hit_percent() {
            Some(percent) => format!("{percent:.1} %"),
            None => "-".to_owned(),
        };
        let own = match sums.own_disk {
            0 => String::new(),
            own => format!(", {} on its own disk", count(own)),
        };
        let rest = [(sums.not_cached, "not cacheable"), (sums.failed, "failed")]
            .into_iter()
            .filter(|(number, _)| *number > 0)
            .map(|(number, what)| format!(", {} {what}", count(number)));
        figures.push((
            "Hits",
            format!(
                "{rate}: {} from the cache{own}; {} misses{}",
                count(sums.hits),
                count(sums.misses),
                rest.collect::<String>()
            ),
        ));
        let untimed = match sums.untimed {
            0 => String::new(),
            untimed => format!(", and {} hits of unknown compile time", count(untimed)),
        };
        figures.push((
            "Compile time saved",
            format!("{}{untimed}", seconds(sums.saved_ms)),
        ));
    }
    let wire = &report.wire;
    figures.push((
        "Over the network",
        format!(
            "{} read in {} hits, {} written in {}",
            bytes(wire.read_bytes),
            count(wire.hits),
            bytes(wire.written_bytes),
            count(wire.writes)
        ),
    ));
    if report.shared > 0 {
        figures.push((
            "At the same time",
            format!(
                "{} with the same token on this machine; what went over the network may be in part theirs",
                match report.shared {
                    1 => "another build".to_owned(),
                    more => format!("{} other builds", count(more)),
                }
            ),
        ));
    }
    if let Some((all, used, size)) = report.prefetched {
        figures.push((
            "Prefetched",
            format!(
                "{}, {} of {} entries were used",
                bytes(size),
                count(used),
                count(all)
            ),
        ));
    }
    if let Some(daemon) = &report.daemon {
        if daemon.distributed + daemon.dist_errors > 0 {
            figures.push((
                "Cluster",
                format!(
                    "{} of {} misses compiled on builders, {} came back",
                    count(daemon.distributed),
                    count(daemon.misses),
                    count(daemon.dist_errors)
                ),
            ));
        }
        let troubles = [
            (daemon.errors, "look-ups failed"),
            (daemon.timeouts, "look-ups took over a minute"),
            (daemon.write_errors, "results could not be stored"),
        ];
        let troubles: Vec<String> = troubles
            .into_iter()
            .filter(|(number, _)| *number > 0)
            .map(|(number, what)| format!("{} {what}", count(number)))
            .collect();
        if !troubles.is_empty() {
            figures.push(("Trouble", troubles.join(", ")));
        }
    }
    for (cause, number) in &wire.refused {
        figures.push(("Refused", format!("{} writes: {cause}", count(*number))));
    }
    figures
}

/// What it was, in a line.
fn title(report: &Report) -> String {
    let labels = &report.labels;
    let place = [&labels.repository, &labels.branch, &labels.job];
    let place: Vec<&str> = place.into_iter().flatten().map(String::as_str).collect();
    let place = match place.is_empty() {
        true => String::new(),
        false => format!(" of {}", place.join(", ")),
    };
    let failed = match report.exit {
        0 => String::new(),
        code => format!(", exit code {code}"),
    };
    format!(
        "{}{place}: {}{failed}",
        report.command,
        seconds(report.wall_ms)
    )
}

/// For a terminal or a log.
pub fn text(report: &Report) -> String {
    let mut out = format!("{}\n", title(report));
    for (name, value) in figures(report) {
        let _ = writeln!(out, "  {name:<20} {value}");
    }
    let slowest = report.slowest();
    if !slowest.is_empty() {
        let _ = writeln!(out, "Slowest of {} that were no hits:", slowest.len());
        for row in slowest.into_iter().take(SLOWEST) {
            let _ = writeln!(
                out,
                "  {:>8}  {:<28} {}",
                seconds(row.took_ms),
                row.full_name(),
                why(row)
            );
        }
    }
    if report.rows.is_empty() {
        let _ = writeln!(out, "No compile was recorded.");
    }
    out
}

/// One line for each compile of this name, or of all without one.
pub fn rows(report: &Report, wanted: Option<&str>) -> String {
    let mut out = String::new();
    for row in report.rows.iter().filter(|row| is_wanted(row, wanted)) {
        let detail = match row.outcome {
            Outcome::Hit | Outcome::OwnDisk if row.saved_ms > 0 => {
                format!("saved {}", seconds(row.saved_ms))
            }
            Outcome::Hit | Outcome::OwnDisk => String::new(),
            Outcome::Miss | Outcome::NotCached | Outcome::Failed => why(row),
        };
        let probably = if row.probably && row.outcome.is_hit() {
            "probably a "
        } else {
            ""
        };
        let outcome = row.outcome.text();
        let line = format!("{} ({}): {probably}{outcome}", row.full_name(), row.kind);
        let _ = match detail.is_empty() {
            true => writeln!(out, "{line}"),
            false => writeln!(out, "{line}: {detail}"),
        };
    }
    out
}

/// All compiles that could have been hits and were none.
pub fn misses(report: &Report) -> String {
    let misses = report
        .rows
        .iter()
        .filter(|row| row.outcome == Outcome::Miss);
    let lines = misses.map(|row| format!("{}: {}\n", row.full_name(), why(row)));
    let lines: String = lines.collect();
    match lines.is_empty() {
        true => lines,
        false => format!("All misses:\n{lines}"),
    }
}

/// Whether a compile is meant by a crate's name, or by a file's.
pub fn is_wanted(row: &Row, wanted: Option<&str>) -> bool {
    let Some(wanted) = wanted else {
        return true;
    };
    // As cargo names packages: `serde@1.0.0`.
    let (wanted, version) = match wanted.split_once('@') {
        Some((name, version)) => (name, Some(version)),
        None => (wanted, None),
    };
    if version.is_some_and(|version| version != row.version) {
        return false;
    }
    let plain = |name: &str| name.replace('-', "_");
    let file = wanted.rsplit('/').next().unwrap_or(wanted);
    plain(&row.name) == plain(wanted) || row.name.rsplit('/').next() == Some(file)
}

/// Text that means nothing in Markdown.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for one in text.chars() {
        match one {
            '|' | '*' | '_' | '`' | '[' | ']' | '\\' | '#' | '~' => {
                out.push('\\');
                out.push(one);
            }
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '\n' | '\r' => out.push(' '),
            // Names somebody, who would be told of it.
            '@' => out.push_str("&#64;"),
            _ => out.push(one),
        }
    }
    out
}

/// For a pull request's comment or `$GITHUB_STEP_SUMMARY`.
pub fn markdown(report: &Report) -> String {
    let mut out = format!("### {}\n\n| | |\n| --- | --- |\n", escaped(&title(report)));
    for (name, value) in figures(report) {
        let _ = writeln!(out, "| {name} | {} |", escaped(&value));
    }
    let slowest = report.slowest();
    if !slowest.is_empty() {
        let _ = write!(
            out,
            "\n<details><summary>Slowest of {} that were no hits</summary>\n\n| time | crate | why |\n| ---: | --- | --- |\n",
            slowest.len()
        );
        for row in slowest.into_iter().take(SLOWEST) {
            let _ = writeln!(
                out,
                "| {} | {} | {} |",
                seconds(row.took_ms),
                escaped(&row.full_name()),
                escaped(&why(row))
            );
        }
        out.push_str("\n</details>\n");
    }
    out
}

/// What stands on a page of its own.
pub fn body(report: &Report) -> Markup {
    html! {
        section.card aria-labelledby="build" {
            h2 #build { (title(report)) }
            dl.facts {
                @for (name, value) in figures(report) {
                    div.wide { dt { (name) } dd { (value) } }
                }
            }
        }
        section.card aria-labelledby="compiles" {
            h2 #compiles { "Compiles" }
            @if report.rows.is_empty() {
                p.empty { "No compile was recorded." }
            } @else {
                table.stack {
                    thead { tr {
                        th scope="col" { "Crate" }
                        th scope="col" { "Kind" }
                        th.number scope="col" { "Time" }
                        th scope="col" { "Outcome" }
                        th scope="col" { "Why" }
                    } }
                    tbody {
                        @for row in slowest_first(report) {
                            tr {
                                th scope="row" { (row.full_name()) }
                                td data-name="Kind" { (row.kind) }
                                td.number data-name="Time" { (seconds(row.took_ms)) }
                                td data-name="Outcome" { (row.outcome.text()) }
                                td data-name="Why" { (why(row)) }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn slowest_first(report: &Report) -> Vec<&Row> {
    let mut rows: Vec<&Row> = report.rows.iter().collect();
    rows.sort_by_key(|row| std::cmp::Reverse(row.took_ms));
    rows
}

/// A page that needs nothing else.
pub fn page(report: &Report) -> String {
    html! {
        (maud::DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title(report)) }
                style { "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem}table{border-collapse:collapse;width:100%}td,th{border-bottom:1px solid #8884;padding:.3rem .6rem;text-align:left;vertical-align:top}.number{text-align:right}dt{font-weight:600}" }
            }
            body { (body(report)) }
        }
    }
    .into_string()
}

/// For <https://ui.perfetto.dev>: compiles on as many tracks as were busy at a time.
///
/// Source: "Trace Event Format", complete events.
pub fn trace(report: &Report) -> String {
    let mut rows: Vec<&Row> = report.rows.iter().collect();
    rows.sort_by_key(|row| row.start_ms);
    let mut tracks: Vec<u64> = Vec::new();
    let mut events: Vec<Value> = Vec::new();
    for row in rows {
        let free = tracks.iter().position(|end| *end <= row.start_ms);
        let track = free.unwrap_or_else(|| {
            tracks.push(0);
            tracks.len() - 1
        });
        tracks[track] = row.start_ms + row.took_ms;
        events.push(json!({
            "ph": "X",
            "name": row.full_name(),
            "cat": row.outcome.text(),
            "pid": 1,
            "tid": track + 1,
            "ts": row.start_ms * 1000,
            "dur": row.took_ms * 1000,
            "args": {
                "kind": row.kind,
                "outcome": row.outcome,
                "why": why(row),
                "bytes": row.bytes,
                "saved_ms": row.saved_ms,
            },
        }));
    }
    let name = json!({
        "ph": "M", "name": "process_name", "pid": 1, "args": { "name": title(report) },
    });
    events.insert(0, name);
    let trace = json!({ "displayTimeUnit": "ms", "traceEvents": events });
    format!("{trace}\n")
}

/// For programs: `docs/schemas/explain.json`.
pub fn json(report: &Report) -> String {
    let mut value = serde_json::to_value(report).unwrap_or_default();
    value["schema"] = SCHEMA.into();
    format!("{value:#}\n")
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::report;
    use super::*;

    #[test]
    fn text_has_the_figures_and_the_slowest_misses_with_reasons() {
        let text = text(&report());
        let expected = "\
cargo: 2.0 s
  Hits                 66.7 %: 1 from the cache, 1 on its own disk; 1 misses, 1 not cacheable, 1 failed
  Compile time saved   1.0 s
  Over the network     10 B read in 1 hits, 10 B written in 1
Slowest of 3 that were no hits:
     0.4 s  miss 1.0.0                   never built anywhere
     0.3 s  program 1.0.0                not cacheable (crate-type, bin): what is linked is never cached; the libraries in it are
     0.0 s  broken 1.0.0                 the compiler found errors
";
        assert_eq!(text, expected);
        let one = rows(&report(), Some("miss"));
        assert_eq!(one, "miss 1.0.0 (lib): miss: never built anywhere\n");
        assert_eq!(
            rows(&report(), Some("hit")),
            "hit 1.0.0 (lib): hit: saved 0.5 s\n"
        );
        assert_eq!(rows(&report(), Some("miss@1.0.0")), one);
        assert_eq!(rows(&report(), Some("miss@2.0.0")), "");
        assert_eq!(rows(&report(), None).lines().count(), 5);
    }

    #[test]
    fn names_mean_nothing_in_markdown_and_html() {
        let mut report = report();
        report.rows[1].name = "a|b<script>@team`".into();
        report.labels.branch = Some("<img>|x".into());
        let markdown = markdown(&report);
        assert!(
            markdown.contains("a\\|b&lt;script&gt;&#64;team\\`"),
            "{markdown}"
        );
        assert!(!markdown.contains("<img>"), "{markdown}");
        let page = page(&report);
        assert!(
            !page.contains("<script>") && !page.contains("<img>"),
            "{page}"
        );
        assert!(page.contains("never built anywhere"));
    }

    #[test]
    fn compiles_at_one_time_are_on_tracks_of_their_own() {
        let mut report = report();
        for (row, start) in report.rows.iter_mut().zip([0, 0, 2, 400, 401]) {
            row.start_ms = start;
        }
        let trace: Value = serde_json::from_str(&trace(&report)).unwrap();
        let events = trace["traceEvents"].as_array().unwrap();
        let tracks: Vec<_> = events[1..]
            .iter()
            .map(|it| it["tid"].as_u64().unwrap())
            .collect();
        assert_eq!(tracks, [1, 2, 3, 1, 2]);
        assert_eq!(events[2]["dur"], 400_000);
        assert_eq!(events[2]["args"]["why"], "never built anywhere");
    }
}
