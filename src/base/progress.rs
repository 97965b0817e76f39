//! One line on a terminal that says how far a long work is, and goes when the work is done.
//!
//! It is for people who wait: on standard error, so that what is piped on stays clean, and on a terminal only. It needs
//! nothing of the terminal but that a carriage return goes back to the line's start.

use super::human::{cut, width};
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

/// Whoever waits longer wants to know for what.
pub(crate) const FIRST: Duration = Duration::from_secs(2);
/// So often is it said anew.
pub(crate) const AGAIN: Duration = Duration::from_secs(1);

/// A terminal that does not say how wide it is.
const USUAL_WIDTH: usize = 80;

/// The line. It is erased when this is dropped.
pub(crate) struct Line {
    taken: usize,
}

impl Line {
    /// None where standard error is no terminal.
    pub(crate) fn open() -> Option<Line> {
        io::stderr().is_terminal().then_some(Line { taken: 0 })
    }

    /// Shows `text` in the place of what was there, cut where the terminal ends.
    pub(crate) fn show(&mut self, text: &str) {
        let drawn = draw(text, columns(), self.taken);
        self.taken = width(text).min(columns().saturating_sub(1));
        put(&drawn);
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if self.taken > 0 {
            put(&format!("{}\r", draw("", columns(), self.taken)));
        }
    }
}

/// Nobody is left to tell when the terminal is gone.
fn put(text: &str) {
    let mut out = io::stderr().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

fn columns() -> usize {
    let size = rustix::termios::tcgetwinsize(io::stderr());
    let columns = size.map_or(0, |size| usize::from(size.ws_col));
    if columns == 0 { USUAL_WIDTH } else { columns }
}

/// `text` over a line that takes up `taken` columns. The last column stays free: a terminal may begin a new line there.
fn draw(text: &str, columns: usize, taken: usize) -> String {
    let room = columns.saturating_sub(1);
    let text = cut(text, room);
    let rest = taken.min(room).saturating_sub(width(&text));
    format!("\r{text}{}", " ".repeat(rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_covers_what_was_there_and_never_wraps() {
        assert_eq!(draw("packing", 80, 0), "\rpacking");
        assert_eq!(draw("sent", 80, 7), "\rsent   ");
        assert_eq!(draw("", 80, 4), "\r    ");
        assert_eq!(draw("packing rustc", 8, 0), "\rpackin…");
        for columns in 1..30 {
            let drawn = draw("looked at 3 of 日本 blobs", columns, 25);
            assert!(
                width(&drawn[1..]) < columns.max(1),
                "{drawn:?} of {columns}"
            );
        }
    }
}
