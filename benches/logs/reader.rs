//! The reader of the log: counts, and checks that every line is whole and in its child's order.

use crate::tools::Running;
use crate::{CHILDREN, FILL, LINE};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fmt;
use std::io::Read;
use std::os::fd::AsFd;
use std::time::Instant;

/// What came through.
#[derive(Default)]
pub(crate) struct Tally {
    expected: u64,
    pub(crate) whole: u64,
    torn: u64,
    disordered: u64,
    /// Lines that the tool says it dropped.
    pub(crate) announced: u64,
    next: [u64; CHILDREN],
}

impl Tally {
    pub(crate) fn faults(&self) -> u64 {
        self.torn + self.disordered + self.expected.saturating_sub(self.whole)
    }

    fn line(&mut self, line: &[u8]) {
        let Some(at) = line.iter().take(200).position(|byte| *byte == b'#') else {
            self.announced += announced(line);
            return;
        };
        let json = line.starts_with(b"{");
        let body = &line[at + 1..line.len() - if json { 2 } else { 0 }];
        let Some((child, place)) = parse(body) else {
            self.torn += 1;
            return;
        };
        let next = &mut self.next[child];
        self.disordered += u64::from(place < *next);
        *next = place + 1;
        self.whole += 1;
    }
}

/// `N:PPPPPPPP xxx.`, as a child wrote it.
fn parse(body: &[u8]) -> Option<(usize, u64)> {
    let fill = LINE - 3 - 11;
    let whole = body.len() == LINE - 2 && body[1] == b':' && body[11..].starts_with(&FILL[..fill]);
    if !whole || body[LINE - 3] != b'.' {
        return None;
    }
    let child = usize::from(body[0].wrapping_sub(b'0'));
    let place = body[2..10].iter().try_fold(0, |sum, byte| {
        byte.is_ascii_digit()
            .then(|| sum * 10 + u64::from(byte - b'0'))
    });
    Some((child, place?)).filter(|_| child < CHILDREN)
}

fn announced(line: &[u8]) -> u64 {
    let text = String::from_utf8_lossy(line);
    let count = text
        .split_once("dropped ")
        .and_then(|(_, rest)| rest.split_once(" log lines"));
    count.and_then(|(count, _)| count.parse().ok()).unwrap_or(0)
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lost = self.expected.saturating_sub(self.whole);
        if self.faults() == 0 {
            return f.write_str("all whole");
        }
        write!(
            f,
            "{lost} of {} missing, {} torn, {} out of order",
            self.expected, self.torn, self.disordered
        )
    }
}

/// Reads until all lines came, or until nothing more comes after the last child has ended.
pub(crate) fn drain(running: &Running, lines: u64) -> (Tally, Instant) {
    let mut tally = Tally {
        expected: lines * CHILDREN as u64,
        ..Tally::default()
    };
    let mut buffer = vec![0; 1 << 18];
    let (mut kept, mut last) = (0, Instant::now());
    while tally.whole + tally.announced < tally.expected {
        let ready = poll(
            &mut [PollFd::new(running.output.as_fd(), PollFlags::POLLIN)],
            PollTimeout::from(2000_u16),
        );
        match ready {
            Ok(0) if running.children_ended() => break,
            Ok(0) | Err(_) => continue,
            Ok(_) => {}
        }
        let count = (&running.output).read(&mut buffer[kept..]).unwrap();
        if count == 0 {
            break;
        }
        let mut rest = &buffer[..kept + count];
        while let Some(end) = memchr::memchr(b'\n', rest) {
            tally.line(&rest[..end]);
            rest = &rest[end + 1..];
        }
        let (from, left) = (kept + count - rest.len(), rest.len());
        buffer.copy_within(from..from + left, 0);
        kept = left;
        last = Instant::now();
    }
    (tally, last)
}
