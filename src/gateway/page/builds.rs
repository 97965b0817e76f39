//! Builds on the page: one row for each job of a branch, with its last build and how it went before.

use super::plot;
use crate::base::human::{bytes, percent, span};
use crate::explain::report::Report;
use maud::{Markup, html};

/// Jobs that are shown.
const ROWS: usize = 20;
/// Builds of one job that its lines show.
const BEFORE: usize = 40;

/// `builds` are the latest first: all, or those `of_one_token`.
pub(super) fn section(builds: &[Report], of_one_token: bool, now_unix: u64) -> Markup {
    html! {
        section.card aria-labelledby="builds" {
            h2 #builds { "Builds" }
            @if builds.is_empty() {
                p.empty {
                    "Nobody has run " code { "sccache-dock build -- COMMAND" }
                    @if of_one_token { " with this token" }
                    " yet."
                }
            } @else {
                table.stack {
                    caption.quiet { "The last build of each job and branch, the latest first; lines go back over its last " (BEFORE) }
                    thead { tr {
                        th scope="col" { "Build" }
                        th.number scope="col" { "Hit rate" }
                        th scope="col" { "Rates" }
                        th.number scope="col" { "Saved" }
                        th scope="col" { "Savings" }
                        th.number scope="col" { "Took" }
                        th.number scope="col" { "Read" }
                        th.number scope="col" { "Ago" }
                    } }
                    tbody {
                        @for job in jobs(builds) { (row(&job, now_unix)) }
                    }
                }
            }
        }
    }
}

/// Builds with the same labels, the latest first; the job with the latest build first.
fn jobs(builds: &[Report]) -> Vec<Vec<&Report>> {
    let mut jobs: Vec<Vec<&Report>> = Vec::new();
    for build in builds {
        match jobs.iter().position(|job| job[0].labels == build.labels) {
            Some(place) if jobs[place].len() < BEFORE => jobs[place].push(build),
            None if jobs.len() < ROWS => jobs.push(vec![build]),
            Some(_) | None => {}
        }
    }
    jobs
}

fn row(job: &[&Report], now_unix: u64) -> Markup {
    let Some(last) = job.first() else {
        return html! {};
    };
    let labels = &last.labels;
    let name = [&labels.repository, &labels.branch, &labels.job];
    let name: Vec<&str> = name.into_iter().flatten().map(String::as_str).collect();
    let name = match name.is_empty() {
        true => last.command.clone(),
        false => name.join(", "),
    };
    let sums = &last.sums;
    let hits = sums.hits + sums.own_disk;
    let oldest_first = || job.iter().rev();
    // A build that compiled nothing has no hit rate.
    let rates: Vec<f64> = oldest_first().filter_map(|it| it.hit_percent()).collect();
    let savings: Vec<f64> = oldest_first().map(|it| it.sums.saved_ms as f64).collect();
    let most = savings.iter().copied().fold(1.0, f64::max);
    html! {
        tr {
            th scope="row" { a href={ "/api/builds/" (last.build) } { (name) } }
            td.number data-name="Hit rate" { (percent(hits, hits + sums.misses)) }
            td data-name="Rates" { (plot::line("Hit rates of its last builds", &rates, 100.0)) }
            td.number data-name="Saved" { (span(sums.saved_ms as f64 / 1000.0)) }
            td data-name="Savings" { (plot::line("Time saved in its last builds", &savings, most)) }
            td.number data-name="Took" { (span(last.wall_ms as f64 / 1000.0)) }
            td.number data-name="Read" { (bytes(last.wire.read_bytes)) }
            td.number data-name="Ago" { (span(now_unix.saturating_sub(last.ended_unix_seconds) as f64)) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builds_of_one_job_are_one_row() {
        let build = |id: &str, branch: &str| {
            let mut build = Report {
                build: id.into(),
                ..Report::default()
            };
            build.labels.branch = Some(branch.into());
            build
        };
        let builds = [build("3", "main"), build("2", "x"), build("1", "main")];
        let ids: Vec<Vec<&str>> = jobs(&builds)
            .iter()
            .map(|job| job.iter().map(|it| it.build.as_str()).collect())
            .collect();
        assert_eq!(ids, [vec!["3", "1"], vec!["2"]]);
        let html = section(&builds, false, 10).into_string();
        assert_eq!(html.matches("<tr>").count(), 3);
        assert!(html.contains("href=\"/api/builds/3\""));
        let mut one = builds.clone();
        one[2].sums.hits = 1;
        let html = section(&one, false, 10).into_string();
        assert!(
            html.contains("<path class=\"rate\" d=\"M0 0h1\">"),
            "{html}"
        );
        let none = section(&[], false, 10).into_string();
        assert!(none.contains("sccache-dock build"));
    }
}
