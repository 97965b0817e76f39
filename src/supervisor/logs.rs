//! The log: all lines of all services on standard output, complete, tagged, and with secrets redacted.
//!
//! ```text
//! pipe of a service --.   the loop, a chunk at a time                    the thread (output.rs)
//! pipe of a service --+-> lines, no secret, tagged (format.rs) -> buffer -> write -> standard output
//! the supervisor    --'                                        bounded
//! ```
//!
//! Only the thread ever waits for the log's reader, so a reader that stops reading cannot block the loop. While the
//! buffer is full the loop stops reading the pipes, which slows the services down and loses nothing. If the reader
//! takes nothing for the stall limit, the loop reads on, drops and counts lines, and reports the number when the reader
//! continues. Each turn of the loop reads at most one chunk from each pipe, so that no service starves another.

mod format;
mod output;

pub use self::format::Level;

use self::format::Formatter;
use self::output::{Pending, Shared, write_out};
use crate::base::secret::Secret;
use crate::config::settings::LogFormat;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::SigSet;
use parking_lot::MutexGuard;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Bytes that may wait for the reader before the services are slowed down.
const CAPACITY: usize = 1 << 20;
/// Bytes that may wait beyond that: last lines of a service that ended, and the supervisor's own lines.
const LIMIT: usize = 4 * CAPACITY;
/// A longer line is split.
const LINE_LIMIT: usize = 1 << 20;
/// Bytes read from one pipe at a time.
const CHUNK: usize = 64 << 10;
/// The same for JSON, in which a chunk of empty lines would grow a hundredfold.
const CHUNK_JSON: usize = 16 << 10;
/// Bytes of output kept for each source, for its crash record.
const TAIL: usize = 4 << 10;
/// Maximum number of lines in a crash record.
const TAIL_LINES: usize = 20;
/// Requested capacity of a service's pipe.
const PIPE: i32 = 256 << 10;
/// How long shutdown waits for a reader that takes nothing.
const LAST_PATIENCE: Duration = Duration::from_secs(1);
/// The tag of the supervisor's own lines.
pub const OWN: &str = "dock";

/// How the loop treats the services' pipes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Room {
    /// Read them.
    Free,
    /// Do not read: the log's reader is slower than the services.
    Full { since: Instant },
    /// Read and discard: the log's reader has stopped.
    Standing,
}

/// The loop's side of the log.
pub struct Log {
    formatter: Formatter,
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
    wake: UnixStream,
    stall: Duration,
    room: Room,
    /// Bytes that the reader had taken when the loop last checked.
    taken: u64,
    dropped: u64,
    has_error_file: bool,
    stamp: String,
    head: Vec<u8>,
    scratch: Box<[u8]>,
}

impl Log {
    /// Starts the thread that writes to `out` and, if given, to the file for warnings and errors.
    ///
    /// # Errors
    /// The thread or the socket pair could not be created.
    pub fn start(
        out: File,
        format: LogFormat,
        secrets: &[Secret],
        stall: Duration,
        error_file: Option<File>,
    ) -> io::Result<Log> {
        let (wake, waker) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        waker.set_nonblocking(true)?;
        let shared = Arc::new(Shared::default());
        let has_error_file = error_file.is_some();
        let for_thread = Arc::clone(&shared);
        let writer = std::thread::Builder::new()
            .name("log".into())
            .stack_size(64 << 10)
            .spawn(move || {
                // All signals belong to the loop: none must wake this thread instead.
                let _ = SigSet::all().thread_block();
                write_out(&for_thread, out, error_file, &waker);
            })?;
        Ok(Log {
            formatter: Formatter::new(format, secrets),
            shared,
            writer: Some(writer),
            wake,
            stall,
            room: Room::Free,
            taken: 0,
            dropped: 0,
            has_error_file,
            stamp: String::new(),
            head: Vec::new(),
            scratch: vec![0; CHUNK].into_boxed_slice(),
        })
    }

    /// Becomes readable when there may be room again, or something to report.
    pub fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Whether the services' pipes should be read now. Must be called once per turn of the loop.
    pub fn has_room(&mut self, now: Instant) -> bool {
        let mut pending = self.shared.lock();
        if std::mem::take(&mut pending.woken) {
            let mut buffer = [0; 64];
            while matches!((&self.wake).read(&mut buffer), Ok(count) if count > 0) {}
        }
        let full = pending.used() >= CAPACITY;
        pending.wanted = full;
        let moved = std::mem::replace(&mut self.taken, pending.written) != pending.written;
        let fault = pending.error_file_fault.take();
        drop(pending);
        if let Some(cause) = fault {
            let text = format!(
                "cannot write to SCCACHE_ERROR_LOG: {cause}; from here on, only this log is complete"
            );
            self.say(Level::Warn, &text);
        }
        self.room = match self.room {
            _ if !full => Room::Free,
            Room::Full { since }
                if !moved && now.saturating_duration_since(since) >= self.stall =>
            {
                Room::Standing
            }
            Room::Free => Room::Full { since: now },
            Room::Full { .. } if moved => Room::Full { since: now },
            // A reader that took a little while lines were dropped must first make room.
            room => room,
        };
        if self.room == Room::Free {
            self.announce_drops();
        }
        !matches!(self.room, Room::Full { .. })
    }

    /// When [`Log::has_room`] may change its answer because of time alone.
    pub fn deadline(&self) -> Option<Instant> {
        match self.room {
            Room::Full { since } => Some(since + self.stall),
            Room::Free | Room::Standing => None,
        }
    }

    /// Logs a line of the supervisor itself.
    pub fn say(&mut self, level: Level, text: &str) {
        let mut page = self.page(OWN);
        for line in text.lines() {
            let tagged = match page.formatter.format {
                LogFormat::Text => format!("{} {line}", level.upper()),
                LogFormat::Json => line.to_owned(),
            };
            let clean = page.formatter.redact(tagged.as_bytes());
            page.print(Some(level), clean.as_deref().unwrap_or(tagged.as_bytes()));
        }
        page.publish();
    }

    /// Reads available output of this source if there is room. Returns false at end of file.
    pub fn read(&mut self, source: &mut Source) -> bool {
        if self.room != Room::Standing && self.shared.lock().used() >= CAPACITY {
            return true;
        }
        self.read_chunk(source)
    }

    fn read_chunk(&mut self, source: &mut Source) -> bool {
        let mut scratch = std::mem::take(&mut self.scratch);
        let size = match self.formatter.format {
            LogFormat::Text => CHUNK,
            LogFormat::Json => CHUNK_JSON,
        };
        let open = match source.pipe.read(&mut scratch[..size]) {
            Ok(0) => {
                self.flush(source);
                false
            }
            Ok(count) => {
                self.take(source, &scratch[..count]);
                true
            }
            Err(error) => {
                let again = matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                );
                if !again {
                    self.flush(source);
                }
                again
            }
        };
        self.scratch = scratch;
        open
    }

    /// The last lines that the source wrote, with secrets redacted.
    pub fn last_lines(&self, source: &Source) -> Vec<String> {
        let tail = &source.tail[source.tail.len().saturating_sub(TAIL)..];
        // If the first line is truncated at its start, it may contain an unrecognisable rest of a secret.
        let whole = match memchr::memchr(b'\n', tail) {
            Some(end) if source.bytes > tail.len() as u64 => &tail[end + 1..],
            None if source.bytes > tail.len() as u64 => &[],
            _ => tail,
        };
        let lines = whole
            .split(|byte| *byte == b'\n')
            .map(without_return)
            .filter(|line| !line.is_empty());
        let mut lines: Vec<String> = lines
            .map(|line| {
                let clean = self.formatter.redact_unfinished(line);
                String::from_utf8_lossy(clean.as_deref().unwrap_or(line)).into_owned()
            })
            .collect();
        lines.drain(..lines.len().saturating_sub(TAIL_LINES));
        lines
    }

    /// Changes the settings. Previous secrets stay redacted.
    pub fn set(&mut self, format: LogFormat, secrets: &[Secret], stall: Duration) {
        self.formatter.set(format, secrets);
        self.stall = stall;
    }

    /// Redacts another secret from now on.
    pub fn hide(&mut self, secret: &Secret) {
        self.formatter.also_hide(secret);
    }

    /// Reads the rest of a source's output and completes its last line. Waits for a slow reader, but not for one that
    /// has stopped.
    pub fn finish(&mut self, mut source: Source) {
        let mut left = source.waiting();
        while left > 0 {
            let patience = self.stall.min(LAST_PATIENCE);
            if self.room != Room::Standing
                && !self
                    .shared
                    .wait_while(patience, |pending| pending.used() >= CAPACITY)
            {
                self.room = Room::Standing;
            }
            let before = source.bytes;
            if !self.read_chunk(&mut source) || source.bytes == before {
                break;
            }
            left = left.saturating_sub(source.bytes - before);
        }
        self.flush(&mut source);
    }

    /// Reads the output that a source has written so far, without waiting.
    pub fn catch_up(&mut self, source: &mut Source) {
        // Limited, because a grandchild that left the process group could write forever.
        let until = source.bytes + source.waiting();
        while source.bytes < until {
            let before = source.bytes;
            if !self.read_chunk(source) || source.bytes == before {
                break;
            }
        }
    }

    fn take(&mut self, source: &mut Source, chunk: &[u8]) {
        source.bytes += chunk.len() as u64;
        source.keep_tail(chunk);
        let mut page = self.page(source.service);
        let mut rest = chunk;
        if !source.partial.is_empty() {
            let Some(end) = memchr::memchr(b'\n', rest) else {
                source.partial.extend_from_slice(rest);
                page.cut_if_long(&mut source.partial);
                return page.publish();
            };
            source.partial.extend_from_slice(&rest[..end]);
            rest = &rest[end + 1..];
            page.doubtful_line(&source.partial);
            source.forget_partial();
        }
        let whole = memchr::memrchr(b'\n', rest).map_or(0, |last| last + 1);
        let (lines, begun) = rest.split_at(whole);
        page.lines(lines);
        source.partial.extend_from_slice(begun);
        page.publish();
    }

    /// Prints an incomplete last line.
    fn flush(&mut self, source: &mut Source) {
        if !source.partial.is_empty() {
            let mut page = self.page(source.service);
            let line = without_return(&source.partial);
            let clean = page.formatter.redact_unfinished(line);
            let line = clean.as_deref().unwrap_or(line);
            page.clean_line(line);
            page.publish();
            source.forget_partial();
        }
    }

    /// Locks the shared buffer for lines of one service.
    fn page(&mut self, service: &'static str) -> Page<'_> {
        self.refresh_stamp();
        self.formatter.head(&mut self.head, &self.stamp, service);
        let limit = match self.room {
            Room::Standing if service != OWN => CAPACITY,
            _ => LIMIT,
        };
        Page {
            formatter: &self.formatter,
            shared: &self.shared,
            pending: self.shared.lock(),
            head: &self.head,
            limit,
            dropped: &mut self.dropped,
            has_error_file: self.has_error_file,
        }
    }

    fn announce_drops(&mut self) {
        let dropped = std::mem::take(&mut self.dropped);
        if dropped > 0 {
            self.say(
                Level::Warn,
                &format!("dropped {dropped} log lines: the reader had stopped reading"),
            );
        }
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "the stamp of log lines is wall-clock time and decides nothing"
    )]
    fn refresh_stamp(&mut self) {
        if self.formatter.format == LogFormat::Json {
            self.stamp =
                humantime::format_rfc3339_millis(SystemTime::now().max(UNIX_EPOCH)).to_string();
        }
    }

    /// Writes what is left; a reader that takes nothing for `patience` does not delay the end.
    pub fn close(mut self, patience: Duration) {
        self.announce_drops();
        let mut pending = self.shared.lock();
        pending.closing = true;
        self.shared.publish(pending);
        let drained = self
            .shared
            .wait_while(patience, |pending| pending.used() > 0);
        if let Some(writer) = self.writer.take().filter(|_| drained) {
            // Only the error file is left to write, so the thread is about to return.
            let _ = writer.join();
        }
    }
}

/// The shared buffer, locked for the lines of one chunk.
struct Page<'a> {
    formatter: &'a Formatter,
    shared: &'a Shared,
    pending: MutexGuard<'a, Pending>,
    head: &'a [u8],
    /// Lines beyond this many bytes are dropped.
    limit: usize,
    dropped: &'a mut u64,
    has_error_file: bool,
}

impl Page<'_> {
    /// Adds complete lines. They are examined one by one only if the chunk contains a secret.
    fn lines(&mut self, mut lines: &[u8]) {
        let doubtful = self.formatter.has_secret(lines);
        self.pending.text.reserve(lines.len());
        while let Some(end) = memchr::memchr(b'\n', lines) {
            let line = &lines[..end];
            lines = &lines[end + 1..];
            if doubtful {
                self.doubtful_line(line);
            } else {
                self.clean_line(line);
            }
        }
    }

    fn doubtful_line(&mut self, line: &[u8]) {
        let clean = self.formatter.redact(line);
        self.clean_line(clean.as_deref().unwrap_or(line));
    }

    fn clean_line(&mut self, line: &[u8]) {
        let line = without_return(line);
        let matters = self.has_error_file || self.formatter.format == LogFormat::Json;
        let level = if matters { Level::of_line(line) } else { None };
        self.print(level, line);
    }

    /// Prints the start of a line that is too long, but keeps enough of it that no secret is split.
    fn cut_if_long(&mut self, partial: &mut Vec<u8>) {
        if partial.len() < LINE_LIMIT {
            return;
        }
        if let Some(clean) = self.formatter.redact(partial) {
            *partial = clean;
        }
        let mut end = partial
            .len()
            .saturating_sub(self.formatter.longest_secret());
        // Do not split a character either, of which at most three bytes follow.
        for _ in 0..3 {
            if end > 0 && partial.get(end).is_some_and(|byte| byte & 0xC0 == 0x80) {
                end -= 1;
            }
        }
        self.print(Level::of_line(partial), &partial[..end]);
        partial.drain(..end);
    }

    fn print(&mut self, level: Option<Level>, line: &[u8]) {
        let pending = &mut *self.pending;
        if pending.used() >= self.limit {
            *self.dropped += 1;
            return;
        }
        self.formatter
            .line(&mut pending.text, self.head, level, line);
        if self.has_error_file
            && level.is_some_and(|level| level <= Level::Warn)
            && pending.errors.len() < CAPACITY
        {
            self.formatter
                .line(&mut pending.errors, self.head, level, line);
        }
    }

    fn publish(self) {
        self.shared.publish(self.pending);
    }
}

/// Removes the carriage return at the end of a line.
fn without_return(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\r").unwrap_or(line)
}

/// One service's output pipe, and its incomplete last line.
pub struct Source {
    pub service: &'static str,
    pub pipe: io::PipeReader,
    partial: Vec<u8>,
    bytes: u64,
    /// The most recent output, at most twice [`TAIL`].
    tail: Vec<u8>,
}

impl Source {
    /// `pipe` must be non-blocking.
    pub fn new(service: &'static str, pipe: io::PipeReader) -> Source {
        // With a larger pipe, a service wakes the loop less often. Unprivileged processes may be refused.
        let _ = fcntl(&pipe, FcntlArg::F_SETPIPE_SZ(PIPE));
        Source {
            service,
            pipe,
            partial: Vec::new(),
            bytes: 0,
            tail: Vec::new(),
        }
    }

    /// Number of bytes in the pipe.
    fn waiting(&self) -> u64 {
        rustix::io::ioctl_fionread(&self.pipe).unwrap_or(0)
    }

    /// Releases the memory of a long line.
    fn forget_partial(&mut self) {
        self.partial.clear();
        self.partial.shrink_to(TAIL);
    }

    fn keep_tail(&mut self, chunk: &[u8]) {
        let new = &chunk[chunk.len().saturating_sub(TAIL)..];
        if self.tail.len() + new.len() > 2 * TAIL {
            let kept = TAIL - new.len();
            self.tail
                .drain(..self.tail.len() - kept.min(self.tail.len()));
        }
        self.tail.extend_from_slice(new);
    }
}

#[cfg(test)]
mod tests;
