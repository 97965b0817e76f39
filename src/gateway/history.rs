//! What was asked of the cache lately: sums over short times, in rings of a fixed length. Pure: the time is an
//! argument.
//!
//! Three rings, of the last ten minutes, the last day and the last ninety days, take 150 KiB together whatever happens.
//! The two long ones go on where the last gateway's ended, see `database.rs`.

use crate::contract::gateway_status::Totals;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::time::Duration;

/// What happened in one stretch of time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Point {
    /// Blobs found.
    pub hits: u64,
    /// Blobs asked for that were not there.
    pub misses: u64,
    /// Blobs stored.
    pub writes: u64,
    /// Bytes of hits.
    pub bytes_read: u64,
    /// Bytes of stored blobs.
    pub bytes_written: u64,
}

impl Point {
    /// Blobs asked for.
    pub fn lookups(&self) -> u64 {
        self.hits + self.misses
    }

    pub(super) fn add(&mut self, more: Point) {
        self.hits += more.hits;
        self.misses += more.misses;
        self.writes += more.writes;
        self.bytes_read += more.bytes_read;
        self.bytes_written += more.bytes_written;
    }
}

impl FromIterator<Point> for Point {
    fn from_iter<I: IntoIterator<Item = Point>>(points: I) -> Point {
        points.into_iter().fold(Point::default(), |mut sum, point| {
            sum.add(point);
            sum
        })
    }
}

/// How far back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Range {
    /// Ten minutes.
    Minutes,
    /// A day.
    Day,
    /// Ninety days.
    Quarter,
}

impl Range {
    /// All there are, the shortest first.
    pub const ALL: [Range; 3] = [Range::Minutes, Range::Day, Range::Quarter];

    /// Length of the stretches that are kept, and how many of them.
    fn kept(self) -> (u64, usize) {
        match self {
            Range::Minutes => (5, 120),
            Range::Day => (60, 1440),
            Range::Quarter => (3600, 90 * 24),
        }
    }

    /// How many stretches are kept.
    pub(super) fn stretches(self) -> usize {
        self.kept().1
    }

    /// How many kept stretches make one that is shown.
    fn shown(self) -> usize {
        match self {
            Range::Minutes => 1,
            Range::Day => 10,
            Range::Quarter => 12,
        }
    }

    /// Length of the stretches that are shown.
    pub fn step(self) -> Duration {
        Duration::from_secs(self.kept().0 * self.shown() as u64)
    }
}

/// The last stretches of one length, oldest first.
#[derive(Debug)]
struct Ring {
    range: Range,
    points: VecDeque<Point>,
    /// Number of the last one since the beginning of time; of no matter what while there are none.
    newest: u64,
}

impl Ring {
    fn new(range: Range) -> Ring {
        Ring {
            range,
            points: VecDeque::new(),
            newest: 0,
        }
    }

    fn add(&mut self, at: Duration, point: Point) {
        let (seconds, _) = self.range.kept();
        self.add_to(at.as_secs() / seconds, point);
    }

    fn add_to(&mut self, now: u64, point: Point) {
        let most = self.range.stretches();
        if self.points.is_empty() {
            self.newest = now;
            self.points.push_back(Point::default());
        }
        // After a long pause (a machine that slept) all of them are empty.
        let passed = now.saturating_sub(self.newest).min(most as u64);
        for _ in 0..passed {
            if self.points.len() == most {
                self.points.pop_front();
            }
            self.points.push_back(Point::default());
        }
        self.newest = self.newest.max(now);
        if let Some(last) = self.points.back_mut() {
            last.add(point);
        }
    }

    /// Those from a number on, with their numbers.
    fn since(&self, number: u64) -> Vec<(u64, Point)> {
        let oldest = self.newest + 1 - (self.points.len() as u64).min(self.newest + 1);
        let numbered = self.points.iter().enumerate();
        let numbered = numbered.map(|(place, point)| (oldest + place as u64, *point));
        numbered.filter(|(at, _)| *at >= number).collect()
    }
}

/// All rings, filled from counters that only grow.
#[derive(Debug)]
pub struct History {
    last: Totals,
    minutes: Ring,
    day: Ring,
    quarter: Ring,
}

impl Default for History {
    fn default() -> History {
        History {
            last: Totals::default(),
            minutes: Ring::new(Range::Minutes),
            day: Ring::new(Range::Day),
            quarter: Ring::new(Range::Quarter),
        }
    }
}

impl History {
    /// Takes over what an earlier gateway has seen, before anything else: stretches by their numbers, the oldest first.
    pub fn restore(&mut self, range: Range, points: &[(u64, Point)]) {
        for (number, point) in points {
            self.ring(range).add_to(*number, *point);
        }
    }

    fn ring(&mut self, range: Range) -> &mut Ring {
        match range {
            Range::Minutes => &mut self.minutes,
            Range::Day => &mut self.day,
            Range::Quarter => &mut self.quarter,
        }
    }

    /// Stretches of a range from a number on, with their numbers.
    pub fn since(&mut self, range: Range, number: u64) -> Vec<(u64, Point)> {
        self.ring(range).since(number)
    }

    /// Takes note of the counters at a time since 1970.
    pub fn record(&mut self, at: Duration, totals: &Totals) {
        let grown = |of: fn(&Totals) -> u64| of(totals).saturating_sub(of(&self.last));
        let point = Point {
            hits: grown(|it| it.hits),
            misses: grown(|it| it.misses),
            writes: grown(|it| it.writes),
            bytes_read: grown(|it| it.bytes_read),
            bytes_written: grown(|it| it.bytes_written),
        };
        self.last = totals.clone();
        self.minutes.add(at, point);
        self.day.add(at, point);
        self.quarter.add(at, point);
    }

    /// What happened, oldest first: always as many stretches as the range has, `None` before the start.
    pub fn points(&self, range: Range) -> Vec<Option<Point>> {
        let ring = match range {
            Range::Minutes => &self.minutes,
            Range::Day => &self.day,
            Range::Quarter => &self.quarter,
        };
        let (_, most) = range.kept();
        let before = std::iter::repeat_n(None, most - ring.points.len());
        let all: Vec<_> = before
            .chain(ring.points.iter().copied().map(Some))
            .collect();
        let shown = all.chunks(range.shown());
        shown
            .map(|chunk| {
                let known = chunk.iter().any(Option::is_some);
                known.then(|| chunk.iter().copied().flatten().collect())
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals(hits: u64) -> Totals {
        Totals {
            hits,
            misses: hits * 2,
            writes: hits * 3,
            bytes_read: hits * 5,
            bytes_written: hits * 7,
            ..Totals::default()
        }
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn counters_become_what_happened_in_each_stretch() {
        let mut history = History::default();
        for (seconds, hits) in [(0, 1), (4, 3), (5, 10), (20, 11)] {
            history.record(at(seconds), &totals(hits));
        }
        let points = history.points(Range::Minutes);
        assert_eq!(points.len(), 120);
        assert_eq!(points[..115], [None; 115]);
        let hits: Vec<u64> = points.iter().flatten().map(|point| point.hits).collect();
        assert_eq!(hits, [3, 7, 0, 0, 1]);
        let day = history.points(Range::Day);
        assert_eq!((day.len(), day.iter().flatten().count()), (144, 1));
        let all = Point {
            hits: 11,
            misses: 22,
            writes: 33,
            bytes_read: 55,
            bytes_written: 77,
        };
        assert_eq!(day[143], Some(all));
        assert_eq!(points.into_iter().flatten().collect::<Point>(), all);
        assert_eq!(all.lookups(), 33);
    }

    #[test]
    fn a_day_is_shown_in_stretches_of_ten_minutes() {
        assert_eq!(Range::ALL.map(Range::step), [at(5), at(600), at(12 * 3600)]);
        let mut history = History::default();
        for minute in 0..1440 {
            history.record(at(minute * 60), &totals(minute + 1));
        }
        let points = history.points(Range::Day);
        let hits: Vec<Option<u64>> = points.iter().map(|it| it.map(|it| it.hits)).collect();
        assert_eq!(hits, [Some(10); 144]);
    }

    #[test]
    fn next_gateway_goes_on_where_the_last_one_ended() {
        let mut first = History::default();
        first.record(at(3600 * 1000), &totals(5));
        first.record(at(3600 * 1001 + 59), &totals(7));
        let kept = first.since(Range::Quarter, 0);
        let hits: Vec<_> = kept.iter().map(|(at, point)| (*at, point.hits)).collect();
        assert_eq!(hits, [(1000, 5), (1001, 2)]);
        assert_eq!(first.since(Range::Day, 60 * 1001)[0].1.hits, 2);
        let mut second = History::default();
        second.restore(Range::Quarter, &kept);
        second.record(at(3600 * 1001 + 70), &totals(1));
        second.record(at(3600 * 1004), &totals(4));
        let hits: Vec<_> = second
            .since(Range::Quarter, 0)
            .iter()
            .map(|(_, point)| point.hits)
            .collect();
        assert_eq!(hits, [5, 3, 0, 0, 3]);
        assert_eq!(second.points(Range::Quarter).iter().flatten().count(), 1);
    }

    #[test]
    fn years_take_no_more_memory() {
        let mut history = History::default();
        for minute in 0..20_000 {
            history.record(at(minute * 60), &totals(minute));
        }
        history.record(at(1 << 40), &totals(30_000));
        assert_eq!(history.minutes.points.len(), 120);
        assert_eq!(history.day.points.len(), 1440);
        let points = history.points(Range::Day);
        assert!(points.iter().all(Option::is_some));
        let sum: Point = points.into_iter().flatten().collect();
        assert_eq!(sum.hits, 10_001, "only the last stretch is not empty");
    }

    #[test]
    fn clock_that_stands_still_or_counters_that_fall_do_no_harm() {
        let mut history = History::default();
        history.record(at(100), &totals(5));
        history.record(at(90), &totals(4));
        let sum: Point = history
            .points(Range::Minutes)
            .into_iter()
            .flatten()
            .collect();
        assert_eq!(sum.hits, 5);
    }
}
