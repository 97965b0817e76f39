//! Plots: SVG without text, which the browser stretches to any width; words and figures stand beside as HTML.

use crate::base::human::{bytes, count, percent};
use crate::gateway::history::{Point, Range};
use maud::{Markup, html};
use std::fmt::Write as _;

/// Height of a plot in its own units.
const HEIGHT: u64 = 100;
/// Rows of the table that says the same.
const ROWS: usize = 12;

/// The range's name.
pub(super) fn name(range: Range) -> &'static str {
    match range {
        Range::Minutes => "10 minutes",
        Range::Day => "24 hours",
        Range::Quarter => "90 days",
    }
}

/// How much of `whole` is taken.
pub(super) fn bar(part: u64, whole: u64) -> Markup {
    let share = (part as f64 * 100.0 / whole.max(1) as f64).clamp(0.0, 100.0);
    html! {
        svg.bar width="100%" height="8" aria-hidden="true" {
            rect.ground width="100%" height="8" rx="4" {}
            rect.taken width={ (format!("{share:.1}")) "%" } height="8" rx="4" {}
        }
    }
}

/// A small line, the oldest value first; `top` is its upper edge.
pub(super) fn line(said: &str, values: &[f64], top: f64) -> Markup {
    let mut path = String::new();
    for (place, value) in values.iter().enumerate() {
        let y = HEIGHT as f64 * (1.0 - (value / top).clamp(0.0, 1.0));
        let _ = match place {
            0 => write!(path, "M0 {y:.0}h1"),
            _ => write!(path, "V{y:.0}h1"),
        };
    }
    let width = values.len().max(1);
    html! {
        svg.plot viewBox={ "0 -5 " (width) " " (HEIGHT + 10) } width="120" height="24" preserveAspectRatio="none" role="img" aria-label=(said) {
            path.rate d=(path) {}
        }
    }
}

/// Hit rate, requests and bytes, and a table of the same.
pub(super) fn plots(range: Range, points: &[Option<Point>], now_unix: u64) -> Markup {
    let sum: Point = points.iter().copied().flatten().collect();
    let span = name(range);
    if sum == Point::default() {
        return html! {
            p.empty { "Nothing was asked of the cache in the last " (span) "." }
        };
    }
    let most = |of: fn(&Point) -> u64| points.iter().flatten().map(of).max().unwrap_or(0);
    let requests = round_up(most(|it| it.lookups() + it.writes), 10);
    let traffic = round_up(most(|it| it.bytes_read + it.bytes_written), 1024);
    let step = match range {
        Range::Minutes => "5 seconds",
        Range::Day => "10 minutes",
        Range::Quarter => "12 hours",
    };
    let rates = points.iter().flatten().filter(|it| it.lookups() > 0);
    let lowest = rates.map(|it| it.hits * 1000 / it.lookups()).min();
    let lowest = percent(lowest.unwrap_or(0), 1000);
    let (read, written) = (bytes(sum.bytes_read), bytes(sum.bytes_written));
    html! {
        div.plots {
            (frame(Frame {
                title: "Hit rate",
                legend: &[],
                top: "100 %",
                said: &format!("Hit rate over the last {span}: {} altogether, {lowest} at its lowest.", percent(sum.hits, sum.lookups())),
                span,
            }, points.len(), html! { path.rate d=(rate_line(points)) {} }))
            (frame(Frame {
                title: "Requests",
                legend: &[("hits", "hits"), ("misses", "misses"), ("writes", "writes")],
                top: &format!("{} in {step}", count(requests)),
                said: &format!("Requests over the last {span}: {} hits, {} misses, {} writes.", count(sum.hits), count(sum.misses), count(sum.writes)),
                span,
            }, points.len(), html! {
                path.writes d=(area(points, requests, |it| it.lookups() + it.writes)) {}
                path.misses d=(area(points, requests, Point::lookups)) {}
                path.hits d=(area(points, requests, |it| it.hits)) {}
            }))
            (frame(Frame {
                title: "Bytes",
                legend: &[("hits", "served"), ("writes", "stored")],
                top: &format!("{} in {step}", bytes(traffic)),
                said: &format!("Bytes over the last {span}: {read} served, {written} stored."),
                span,
            }, points.len(), html! {
                path.writes d=(area(points, traffic, |it| it.bytes_read + it.bytes_written)) {}
                path.hits d=(area(points, traffic, |it| it.bytes_read)) {}
            }))
        }
        (table(range, points, now_unix))
    }
}

struct Frame<'a> {
    title: &'a str,
    /// Class and name.
    legend: &'a [(&'a str, &'a str)],
    /// What the upper edge stands for.
    top: &'a str,
    /// The plot in a sentence.
    said: &'a str,
    span: &'a str,
}

fn frame(frame: Frame<'_>, width: usize, marks: Markup) -> Markup {
    html! {
        figure {
            figcaption {
                h3 { (frame.title) }
                @for (class, name) in frame.legend {
                    span class={ "key " (class) } { (name) }
                }
            }
            p.scale aria-hidden="true" { (frame.top) }
            svg.plot viewBox={ "0 0 " (width) " " (HEIGHT) } preserveAspectRatio="none" role="img" aria-label=(frame.said) {
                path.grid d={ "M0 0H" (width) "M0 50H" (width) "M0 100H" (width) } {}
                (marks)
            }
            p.times aria-hidden="true" { span { (frame.span) " ago" } span { "now" } }
        }
    }
}

/// The area below a figure, in steps.
fn area(points: &[Option<Point>], top: u64, of: impl Fn(&Point) -> u64) -> String {
    let mut path = format!("M0 {HEIGHT}");
    let mut before = HEIGHT;
    for (place, point) in points.iter().enumerate() {
        let value = point.as_ref().map_or(0, &of);
        // Whatever happened must be seen.
        let at_least = u64::from(value > 0);
        let height = (value * HEIGHT / top.max(1)).clamp(at_least, HEIGHT);
        let y = HEIGHT - height;
        if y != before {
            let _ = write!(path, "H{place}V{y}");
            before = y;
        }
    }
    let _ = write!(path, "H{}V{HEIGHT}z", points.len());
    path
}

/// The hit rate, in steps; no line where nothing was asked for.
fn rate_line(points: &[Option<Point>]) -> String {
    let mut path = String::new();
    let mut pen_down = false;
    for (place, point) in points.iter().enumerate() {
        let Some(point) = point.filter(|point| point.lookups() > 0) else {
            pen_down = false;
            continue;
        };
        let y = HEIGHT - point.hits * HEIGHT / point.lookups();
        let _ = match pen_down {
            true => write!(path, "V{y}h1"),
            false => write!(path, "M{place} {y}h1"),
        };
        pen_down = true;
    }
    path
}

/// The next of 1, 2, 5, 10, 20, ... times a power of `base`.
fn round_up(value: u64, base: u64) -> u64 {
    let mut unit: u64 = 1;
    loop {
        let steps = [1, 2, 5, 10, 20, 50, 100, 200, 500];
        let steps = steps.into_iter().take_while(|step| *step < base);
        for step in steps {
            if let Some(top) = unit.checked_mul(step).filter(|top| *top >= value) {
                return top;
            }
        }
        match unit.checked_mul(base) {
            Some(next) => unit = next,
            None => return value,
        }
    }
}

fn table(range: Range, points: &[Option<Point>], now_unix: u64) -> Markup {
    let chunk = points.len().div_ceil(ROWS);
    let seconds = chunk as u64 * range.step().as_secs();
    let rows = points.chunks(chunk).enumerate().rev();
    html! {
        details {
            summary { "The same as a table" }
            table.stack {
                caption.quiet { "Requests and bytes of the last " (name(range)) ", the latest first" }
                thead { tr {
                    th scope="col" { "From (UTC)" }
                    th.number scope="col" { "Hit rate" }
                    th.number scope="col" { "Hits" }
                    th.number scope="col" { "Misses" }
                    th.number scope="col" { "Writes" }
                    th.number scope="col" { "Served" }
                    th.number scope="col" { "Stored" }
                } }
                tbody {
                    @for (place, chunk) in rows {
                        @let sum: Point = chunk.iter().copied().flatten().collect();
                        @let ago = (points.len().div_ceil(chunk.len()) - place) as u64 * seconds;
                        tr {
                            th scope="row" { (clock(range, now_unix.saturating_sub(ago))) }
                            td.number data-name="Hit rate" { (percent(sum.hits, sum.lookups())) }
                            td.number data-name="Hits" { (count(sum.hits)) }
                            td.number data-name="Misses" { (count(sum.misses)) }
                            td.number data-name="Writes" { (count(sum.writes)) }
                            td.number data-name="Served" { (bytes(sum.bytes_read)) }
                            td.number data-name="Stored" { (bytes(sum.bytes_written)) }
                        }
                    }
                }
            }
        }
    }
}

/// The time of day, `13:05`; of what goes far back, the day.
fn clock(range: Range, unix_seconds: u64) -> String {
    if range == Range::Quarter {
        return super::tables::day(unix_seconds);
    }
    let minutes = unix_seconds / 60 % (24 * 60);
    format!("{:02}:{:02}", minutes / 60, minutes % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(hits: u64, misses: u64) -> Option<Point> {
        Some(Point {
            hits,
            misses,
            ..Point::default()
        })
    }

    #[test]
    fn area_has_steps_where_the_figure_changes() {
        let points = [None, point(5, 0), point(5, 0), point(10, 0), point(0, 0)];
        assert_eq!(
            area(&points, 10, |it| it.hits),
            "M0 100H1V50H3V0H4V100H5V100z"
        );
        assert_eq!(
            area(&[point(1, 0)], 1_000_000, |it| it.hits),
            "M0 100H0V99H1V100z",
            "one request in a flood is seen"
        );
    }

    #[test]
    fn hit_rate_has_gaps_where_nothing_was_asked_for() {
        let points = [point(1, 1), point(1, 0), point(0, 0), None, point(0, 4)];
        assert_eq!(rate_line(&points), "M0 50h1V0h1M4 100h1");
    }

    #[test]
    fn scales_end_at_round_figures() {
        for (value, top) in [(0, 1), (3, 5), (10, 10), (11, 20), (501, 1000)] {
            assert_eq!(round_up(value, 10), top, "{value}");
        }
        for (value, top) in [(3000, 5 << 10), (501 << 10, 1 << 20)] {
            assert_eq!(round_up(value, 1024), top, "{value}");
        }
        assert_eq!(round_up(u64::MAX, 10), u64::MAX);
    }
}
