//! A progress line on a terminal, which is erased when the work is done.
//!
//! It is written to standard error, so that piped output stays clean, and only if that is a terminal. It only requires
//! that a carriage return moves the cursor to the start of the line.

use super::human::{cut, width};
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

/// Progress is shown once an operation has taken this long.
pub(crate) const FIRST: Duration = Duration::from_secs(2);
/// Interval between updates.
pub(crate) const AGAIN: Duration = Duration::from_secs(1);

/// Width assumed if the terminal does not report one.
const USUAL_WIDTH: usize = 80;

/// The line. It is erased on drop.
pub(crate) struct Line {
    taken: usize,
}

impl Line {
    /// Returns `None` if standard error is not a terminal.
    pub(crate) fn open() -> Option<Line> {
        io::stderr().is_terminal().then_some(Line { taken: 0 })
    }

    /// Shows `text` instead of the previous one, truncated to the terminal's width.
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

/// Errors are ignored: if the terminal is gone, nobody is watching.
fn put(text: &str) {
    let mut out = io::stderr().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

fn columns() -> usize {
    let size = rustix::termios::tcgetwinsize(io::stderr());
    let columns = size.map_or(0, |size| usize::from(size.ws_col));
    if columns == 0 { USUAL_WIDTH } else { columns }
}

/// `text`, drawn over a line that occupies `taken` columns. The last column stays free, because a terminal may wrap
/// there.
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
