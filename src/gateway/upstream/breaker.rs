//! Leaves an upstream alone that does not answer. Pure: time is an argument.

use std::time::{Duration, Instant};

/// So many failures in a row open the breaker.
const FAILURES: u32 = 3;
/// How long it stays open the first time; twice as long each time after that.
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// Whether the upstream is worth asking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It answers.
    Closed { failures: u32 },
    /// It is left alone until then; after that one request finds out.
    Open { until: Instant, pause: Duration },
    /// That one request is on its way.
    Probing { pause: Duration },
}

/// Counts failures in a row.
#[derive(Debug)]
pub struct Breaker {
    state: State,
}

impl Default for Breaker {
    fn default() -> Breaker {
        Breaker {
            state: State::Closed { failures: 0 },
        }
    }
}

impl Breaker {
    /// Whether a request may go out now. Whoever gets `true` must say how it went, or that it was not sent.
    pub fn admits(&mut self, now: Instant) -> bool {
        match self.state {
            State::Closed { .. } => true,
            State::Open { until, pause } if now >= until => {
                self.state = State::Probing { pause };
                true
            }
            State::Open { .. } | State::Probing { .. } => false,
        }
    }

    /// A request was answered. True when the upstream was given up before.
    pub fn succeeded(&mut self) -> bool {
        let before = std::mem::replace(&mut self.state, State::Closed { failures: 0 });
        !matches!(before, State::Closed { .. })
    }

    /// A request failed. True when that opens the breaker for the first time.
    pub fn failed(&mut self, now: Instant) -> bool {
        let pause = match self.state {
            State::Closed { failures } if failures + 1 < FAILURES => {
                self.state = State::Closed {
                    failures: failures + 1,
                };
                return false;
            }
            State::Closed { .. } => PAUSE_MIN,
            State::Probing { pause } => (2 * pause).min(PAUSE_MAX),
            // A request that went out before the others failed.
            State::Open { .. } => return false,
        };
        let first = matches!(self.state, State::Closed { .. });
        self.state = State::Open {
            until: now + pause,
            pause,
        };
        first
    }

    /// A request that was admitted was not sent: the next one finds out instead.
    pub fn unsent(&mut self, now: Instant) {
        if let State::Probing { pause } = self.state {
            self.state = State::Open { until: now, pause };
        }
    }

    /// Whether requests are held back.
    pub fn is_open(&self) -> bool {
        !matches!(self.state, State::Closed { .. })
    }

    /// When the next request may go out, while none may.
    pub fn retry_at(&self, now: Instant) -> Instant {
        match self.state {
            State::Closed { .. } => now,
            State::Open { until, .. } => until,
            State::Probing { pause } => now + pause,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(base: Instant, seconds: u64) -> Instant {
        base + Duration::from_secs(seconds)
    }

    #[expect(clippy::disallowed_methods, reason = "any instant will do")]
    fn base() -> Instant {
        Instant::now()
    }

    #[test]
    fn opens_after_failures_in_a_row_only() {
        let (mut breaker, now) = (Breaker::default(), base());
        assert!(!breaker.failed(now));
        assert!(!breaker.failed(now));
        assert!(!breaker.succeeded());
        assert!(!breaker.failed(now));
        assert!(!breaker.failed(now));
        assert!(breaker.failed(now));
        assert!(!breaker.admits(now));
    }

    #[test]
    fn one_request_probes_and_pauses_double_up_to_a_bound() {
        let (mut breaker, start) = (Breaker::default(), base());
        for _ in 0..FAILURES {
            breaker.failed(start);
        }
        let (mut now, mut pauses) = (start, Vec::new());
        for _ in 0..8 {
            let next = breaker.retry_at(now);
            pauses.push((next - now).as_secs());
            now = next;
            assert!(breaker.admits(now));
            assert!(!breaker.admits(now), "one probe at a time");
            assert!(!breaker.failed(now), "it is not news");
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
        now = breaker.retry_at(now);
        assert!(breaker.admits(now));
        assert!(breaker.succeeded());
        assert!(breaker.admits(at(now, 0)));
        assert!(!breaker.is_open());
    }

    #[test]
    fn request_that_was_not_sent_leaves_the_question_to_the_next() {
        let (mut breaker, now) = (Breaker::default(), base());
        breaker.unsent(now);
        assert!(!breaker.is_open());
        for _ in 0..FAILURES {
            breaker.failed(now);
        }
        breaker.unsent(now);
        assert!(!breaker.admits(now), "it was not this one that found out");
        assert!(breaker.admits(at(now, 1)));
        breaker.unsent(at(now, 1));
        assert!(breaker.is_open() && breaker.admits(at(now, 1)));
        breaker.failed(at(now, 1));
        assert_eq!(
            breaker.retry_at(now),
            at(now, 3),
            "the pause doubles all the same"
        );
    }

    #[test]
    fn late_failure_does_not_prolong_the_pause() {
        let (mut breaker, now) = (Breaker::default(), base());
        for _ in 0..FAILURES {
            breaker.failed(now);
        }
        assert!(!breaker.failed(at(now, 100)));
        assert_eq!(breaker.retry_at(now), at(now, 1));
    }
}
