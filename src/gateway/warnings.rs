//! What operators must hear: every refusal is a log line, yet a flood of them cannot fill the log.
//!
//! Lines of one kind are let through up to a number per window; the rest are counted, and the count is
//! logged when the window has passed. The last lines are kept for the status.

use crate::base::time::unix_seconds;
use crate::contract::gateway_status::Warning;
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::time::Duration;
use tokio::time::Instant;
use tracing::warn;

/// Kinds that are told apart at one time; a flood of ever new ones shares the last.
const KINDS: usize = 1024;
/// Lines kept for the status.
const RECENT: usize = 20;

/// How often lines of one kind may come.
#[derive(Debug, Clone, Copy)]
pub struct Rate {
    /// Lines per window.
    pub lines: u32,
    /// The window.
    pub window: Duration,
}

/// For refused requests, by reason.
pub const REFUSALS: Rate = Rate {
    lines: 10,
    window: Duration::from_secs(10),
};
/// For advice, by peer.
pub const ADVICE: Rate = Rate {
    lines: 1,
    window: Duration::from_secs(60),
};

/// Lets lines through or counts them. Pure: the time is an argument.
#[derive(Debug, Default)]
struct Limiter {
    kinds: HashMap<String, Window>,
}

#[derive(Debug)]
struct Window {
    ends: Instant,
    left: u32,
    suppressed: u64,
}

impl Limiter {
    fn admits(&mut self, now: Instant, kind: &str, rate: Rate) -> bool {
        let full = self.kinds.len() >= KINDS && !self.kinds.contains_key(kind);
        let kind = if full { "other" } else { kind };
        let window = self.kinds.entry(kind.to_owned()).or_insert(Window {
            ends: now + rate.window,
            left: rate.lines,
            suppressed: 0,
        });
        if window.left == 0 {
            window.suppressed += 1;
            return false;
        }
        window.left -= 1;
        true
    }

    /// Forgets windows that are over; the kinds of which lines were suppressed, and how many.
    fn expire(&mut self, now: Instant) -> Vec<(String, u64)> {
        let over = self.kinds.extract_if(|_, window| window.ends <= now);
        over.filter(|(_, window)| window.suppressed > 0)
            .map(|(kind, window)| (kind, window.suppressed))
            .collect()
    }
}

/// The gateway's warnings.
#[derive(Debug, Default)]
pub struct Warnings {
    // Plain mutexes: held for a look-up, never across I/O or an await.
    limiter: Mutex<Limiter>,
    recent: Mutex<VecDeque<Warning>>,
}

impl Warnings {
    /// Logs `message` unless too many lines of its `kind` came lately.
    pub fn warn(&self, rate: Rate, kind: &str, message: &str) {
        let now = Instant::now();
        self.expire(now);
        let admitted = self.limiter.lock().admits(now, kind, rate);
        if admitted {
            self.log(message);
        }
    }

    /// Logs what was suppressed in windows that have passed. To be called every few seconds.
    pub fn tick(&self) {
        self.expire(Instant::now());
    }

    /// The last lines, oldest first.
    pub fn recent(&self) -> Vec<Warning> {
        self.recent.lock().iter().cloned().collect()
    }

    fn expire(&self, now: Instant) {
        let over = self.limiter.lock().expire(now);
        for (kind, count) in over {
            self.log(&format!(
                "{count} more warnings of this kind were not logged: {kind}"
            ));
        }
    }

    fn log(&self, message: &str) {
        warn!("{message}");
        let mut recent = self.recent.lock();
        if recent.len() == RECENT {
            recent.pop_front();
        }
        recent.push_back(Warning {
            at_unix_seconds: unix_seconds(),
            message: message.to_owned(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flood_is_counted_not_logged() {
        let (mut limiter, start) = (Limiter::default(), Instant::now());
        let rate = Rate {
            lines: 2,
            window: Duration::from_secs(10),
        };
        let admitted = (0..100)
            .filter(|_| limiter.admits(start, "a", rate))
            .count();
        assert_eq!(admitted, 2);
        assert!(limiter.admits(start, "b", rate), "kinds are independent");
        assert_eq!(limiter.expire(start + Duration::from_secs(9)), []);
        assert_eq!(
            limiter.expire(start + Duration::from_secs(10)),
            [("a".to_owned(), 98)]
        );
        assert!(limiter.admits(start + Duration::from_secs(11), "a", rate));
    }

    #[test]
    fn ever_new_kinds_take_no_more_memory() {
        let (mut limiter, start) = (Limiter::default(), Instant::now());
        for kind in 0..5000 {
            limiter.admits(start, &kind.to_string(), ADVICE);
        }
        assert_eq!(limiter.kinds.len(), KINDS + 1);
    }

    #[test]
    fn recent_warnings_are_the_last_ones() {
        let warnings = Warnings::default();
        for number in 0..30 {
            warnings.warn(ADVICE, &number.to_string(), &format!("w{number}"));
        }
        let recent = warnings.recent();
        assert_eq!(recent.len(), RECENT);
        assert_eq!(recent.last().unwrap().message, "w29");
    }
}
