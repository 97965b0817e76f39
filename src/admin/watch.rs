//! `status --watch`: the same again and again; in place on a terminal, one after the other elsewhere.

use super::table::table;
use super::{Error, cache_now, report};
use crate::base::terminal::{Screen, Tint};
use crate::config::settings::Installation;
use crate::exit;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGWINCH};
use signal_hook::low_level::pipe;
use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// A screen of its own, without a cursor; what was there before comes back with `LEAVE`.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";

/// Shows the status every `period` until a signal says stop. The exit code is 0: it was asked to end.
///
/// # Errors
/// No supervisor answers at the first time. Later ones are shown: it may come back.
pub fn watch(place: &Installation, period: Duration) -> Result<u8, Error> {
    let first = report(place)?;
    let (stop, mut told) = UnixStream::pair()?;
    told.set_nonblocking(true)?;
    for signal in [SIGINT, SIGTERM, SIGHUP, SIGQUIT] {
        pipe::register(signal, stop.try_clone()?)?;
    }
    let (resize, mut resized) = UnixStream::pair()?;
    resized.set_nonblocking(true)?;
    pipe::register(SIGWINCH, resize)?;
    let in_place = Screen::of_stdout().width.is_some();
    let mut out = Output::open(in_place)?;
    let mut shown = Some(first);
    loop {
        let screen = Screen::of_stdout();
        let text = match shown.take().map_or_else(|| report(place), Ok) {
            Ok(report) => {
                let cache = cache_now(place, &report);
                table(screen, &report, cache.as_ref())
            }
            Err(error) => said(screen, &error),
        };
        match out.show(screen, &text) {
            // Whoever read it has seen enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(exit::OK),
            shown => shown?,
        }
        let mut fds = [told.as_fd(), resized.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        let patience = PollTimeout::try_from(period).unwrap_or(PollTimeout::MAX);
        // An interrupted wait has a byte to read now.
        let _ = poll(&mut fds, patience);
        let mut bytes = [0; 64];
        if told.read(&mut bytes).is_ok() {
            return Ok(exit::OK);
        }
        let _ = resized.read(&mut bytes);
    }
}

fn said(screen: Screen, error: &Error) -> String {
    let mut text = String::new();
    screen.line(&mut text, Tint::Bad, "status", &error.to_string());
    text
}

/// Standard output; a terminal is put back as it was when this is dropped.
struct Output {
    in_place: bool,
    is_first: bool,
}

impl Output {
    fn open(in_place: bool) -> io::Result<Output> {
        let output = Output {
            in_place,
            is_first: true,
        };
        if in_place {
            io::stdout().write_all(ENTER.as_bytes())?;
        }
        Ok(output)
    }

    fn show(&mut self, screen: Screen, text: &str) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if self.in_place {
            out.write_all(frame(screen, text).as_bytes())?;
        } else {
            let gap = if self.is_first { "" } else { "\n" };
            out.write_all(format!("{gap}{text}").as_bytes())?;
        }
        self.is_first = false;
        out.flush()
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if self.in_place {
            // The terminal may be gone.
            let _ = io::stdout().write_all(LEAVE.as_bytes());
        }
        let _ = io::stdout().flush();
    }
}

/// Draws over what is there, line by line, so that nothing flickers; what does not fit below is counted.
fn frame(screen: Screen, text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let rows = screen.height.unwrap_or(usize::MAX).max(2);
    let mut frame = "\x1b[H".to_owned();
    let shown = match lines.len() > rows {
        true => rows - 1,
        false => lines.len(),
    };
    for (place, line) in lines[..shown].iter().enumerate() {
        let end = if place + 1 < rows { "\r\n" } else { "" };
        let _ = write!(frame, "{line}\x1b[K{end}");
    }
    if shown < lines.len() {
        let _ = write!(frame, "… {} more lines\x1b[K", lines.len() - shown);
    }
    frame.push_str("\x1b[J");
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frame_never_scrolls() {
        let screen = |height| Screen {
            width: Some(80),
            height: Some(height),
            has_colours: false,
        };
        let text = "a\nb\nc\nd\n";
        assert_eq!(
            frame(screen(3), text),
            "\x1b[Ha\x1b[K\r\nb\x1b[K\r\n… 2 more lines\x1b[K\x1b[J"
        );
        assert_eq!(frame(screen(4), text).matches("\r\n").count(), 3);
        assert_eq!(frame(screen(9), text).matches("\r\n").count(), 4);
    }
}
