//! One log: every line of every service on standard output, whole, tagged, without secrets.
//!
//! The loop reads the services' pipes into [`Log`], which formats whole lines into a bounded buffer; a thread of its
//! own writes the buffer out, so that a standing reader can never stop the loop. While the buffer is full the loop
//! stops reading, which slows the service that fills it; after the stall bound it reads on and drops, counted.

use crate::secret::Secret;
use crate::settings::LogFormat;
use memchr::memmem::Finder;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Bytes that may wait for the reader before the services are held back.
const CAPACITY: usize = 1 << 20;
/// A line longer than this is cut into several.
const LINE_LIMIT: usize = 1 << 20;
/// Bytes read from one pipe at a time, so that none starves another.
const CHUNK: usize = 64 << 10;
/// Of each source the log keeps so much, for the record of its death.
const TAIL: usize = 4 << 10;
/// Lines of that in a record.
const TAIL_LINES: usize = 20;
/// The supervisor's own tag.
pub const OWN: &str = "dock";

/// How much a line matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl Level {
    fn upper(self) -> &'static str {
        match self {
            Level::Error => "ERROR",
            Level::Warn => "WARN",
            Level::Info => "INFO",
            Level::Debug => "DEBUG",
            Level::Trace => "TRACE",
        }
    }

    /// The level that a service's line states near its beginning, in the manner of env_logger and tracing.
    fn of_line(line: &[u8]) -> Option<Level> {
        let head = &line[..line.len().min(48)];
        [
            Level::Error,
            Level::Warn,
            Level::Info,
            Level::Debug,
            Level::Trace,
        ]
        .into_iter()
        .find(|level| {
            let word = level.upper().as_bytes();
            let found = head.windows(word.len()).position(|window| window == word);
            found.is_some_and(|at| {
                let before = at == 0 || matches!(head[at - 1], b' ' | b'[');
                before && matches!(head.get(at + word.len()), None | Some(b' ' | b']' | b':'))
            })
        })
    }
}

/// Turns lines into what is printed; pure.
struct Formatter {
    format: LogFormat,
    secrets: Vec<Finder<'static>>,
}

impl Formatter {
    fn new(format: LogFormat, secrets: &[Secret]) -> Formatter {
        let finder = |secret: &Secret| Finder::new(secret.reveal().as_bytes()).into_owned();
        Formatter {
            format,
            secrets: secrets
                .iter()
                .filter(|s| !s.reveal().is_empty())
                .map(finder)
                .collect(),
        }
    }

    fn line(
        &self,
        out: &mut Vec<u8>,
        stamp: &str,
        service: &str,
        level: Option<Level>,
        line: &[u8],
    ) {
        let clean = self.redact(line);
        let line = clean.as_deref().unwrap_or(line);
        match self.format {
            LogFormat::Text => {
                out.extend_from_slice(service.as_bytes());
                out.resize(out.len() + 8_usize.saturating_sub(service.len()) + 1, b' ');
                out.extend_from_slice(line);
            }
            LogFormat::Json => {
                let level = level.map(|level| level.upper().to_ascii_lowercase());
                let message = String::from_utf8_lossy(line);
                let object = serde_json::json!({
                    "ts": stamp, "service": service, "level": level, "message": message,
                });
                out.extend_from_slice(object.to_string().as_bytes());
            }
        }
        out.push(b'\n');
    }

    fn longest_secret(&self) -> usize {
        let lengths = self.secrets.iter().map(|finder| finder.needle().len());
        lengths.max().unwrap_or(0)
    }

    fn redact(&self, line: &[u8]) -> Option<Vec<u8>> {
        let mut clean: Option<Vec<u8>> = None;
        for finder in &self.secrets {
            let text = clean.as_deref().unwrap_or(line);
            if finder.find(text).is_none() {
                continue;
            }
            let (mut rest, mut replaced) = (text, Vec::with_capacity(text.len()));
            while let Some(at) = finder.find(rest) {
                replaced.extend_from_slice(&rest[..at]);
                replaced.extend_from_slice(b"***");
                rest = &rest[at + finder.needle().len()..];
            }
            replaced.extend_from_slice(rest);
            clean = Some(replaced);
        }
        clean
    }
}

/// What the loop and the writing thread share.
struct Shared {
    state: Mutex<Pending>,
    changed: Condvar,
}

#[derive(Default)]
struct Pending {
    text: Vec<u8>,
    errors: Vec<u8>,
    /// Bytes that the thread is writing now.
    in_flight: usize,
    /// The loop waits for room and wants a byte on the wake socket.
    wanted: bool,
    closing: bool,
}

impl Shared {
    // A panic cannot happen while the lock is held: it only guards moves of buffers.
    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The log as the loop sees it.
pub struct Log {
    formatter: Formatter,
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
    wake: UnixStream,
    stall: Duration,
    full_since: Option<Instant>,
    dropped: u64,
    has_error_file: bool,
    stamp: String,
    scratch: Box<[u8]>,
}

impl Log {
    /// Starts the writing thread on `out` and, where given, the file for warnings and errors.
    ///
    /// # Errors
    /// No thread or socket pair could be made.
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
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let has_error_file = error_file.is_some();
        let for_thread = Arc::clone(&shared);
        let writer = std::thread::Builder::new()
            .name("log".into())
            .stack_size(64 << 10)
            .spawn(move || write_out(&for_thread, out, error_file, &waker))?;
        Ok(Log {
            formatter: Formatter::new(format, secrets),
            shared,
            writer: Some(writer),
            wake,
            stall,
            full_since: None,
            dropped: 0,
            has_error_file,
            stamp: String::new(),
            scratch: vec![0; CHUNK].into_boxed_slice(),
        })
    }

    /// Readable when there may be room again.
    pub fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Whether the services' pipes should be read now. Call once a turn of the loop.
    pub fn has_room(&mut self, now: Instant) -> bool {
        let mut buffer = [0; 64];
        while matches!((&self.wake).read(&mut buffer), Ok(count) if count > 0) {}
        let mut pending = self.shared.lock();
        if pending.text.len() + pending.in_flight < CAPACITY {
            drop(pending);
            self.full_since = None;
            if self.dropped > 0 {
                let dropped = std::mem::take(&mut self.dropped);
                self.say(
                    Level::Warn,
                    &format!("dropped {dropped} log lines: the reader stood still"),
                );
            }
            return true;
        }
        pending.wanted = true;
        drop(pending);
        let since = *self.full_since.get_or_insert(now);
        now.saturating_duration_since(since) >= self.stall
    }

    /// When [`Log::has_room`] can change its mind by time alone.
    pub fn deadline(&self) -> Option<Instant> {
        self.full_since.map(|since| since + self.stall)
    }

    /// A line of the supervisor itself.
    pub fn say(&mut self, level: Level, text: &str) {
        self.refresh_stamp();
        for line in text.lines() {
            let tagged = match self.formatter.format {
                LogFormat::Text => format!("{} {line}", level.upper()),
                LogFormat::Json => line.to_owned(),
            };
            self.push(OWN, Some(level), tagged.as_bytes());
        }
    }

    /// Reads what this source has. False when it is at its end.
    pub fn read(&mut self, source: &mut Source) -> bool {
        self.refresh_stamp();
        let mut scratch = std::mem::take(&mut self.scratch);
        let outcome = source.pipe.read(&mut scratch);
        let open = match outcome {
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

    /// What the source wrote last, secrets hidden.
    pub fn last_lines(&self, source: &Source) -> Vec<String> {
        let tail = &source.tail[source.tail.len().saturating_sub(TAIL)..];
        // A line that was cut at its beginning may hold the rest of a secret that nobody would recognise.
        let whole = match memchr::memchr(b'\n', tail) {
            Some(end) if source.bytes > tail.len() as u64 => &tail[end + 1..],
            None if source.bytes > tail.len() as u64 => &[],
            _ => tail,
        };
        let lines = whole
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty());
        let mut lines: Vec<String> = lines
            .map(|line| {
                let clean = self.formatter.redact(line);
                String::from_utf8_lossy(clean.as_deref().unwrap_or(line)).into_owned()
            })
            .collect();
        lines.drain(..lines.len().saturating_sub(TAIL_LINES));
        lines
    }

    /// Other settings from now on. Secrets of before stay hidden.
    pub fn set(&mut self, format: LogFormat, secrets: &[Secret], stall: Duration) {
        let known = std::mem::take(&mut self.formatter.secrets);
        self.formatter = Formatter::new(format, secrets);
        self.formatter.secrets.extend(known);
        self.stall = stall;
    }

    /// Reads all that is left of a source, waiting for nothing, and ends its last line.
    pub fn finish(&mut self, mut source: Source) {
        self.catch_up(&mut source);
        self.flush(&mut source);
    }

    /// Reads all that a source has by now, waiting for nothing.
    pub fn catch_up(&mut self, source: &mut Source) {
        // Bounded: a grandchild that left the group could write for ever.
        for _ in 0..1024 {
            let before = source.bytes;
            if !self.read(source) || source.bytes == before {
                break;
            }
        }
    }

    fn take(&mut self, source: &mut Source, chunk: &[u8]) {
        source.bytes += chunk.len() as u64;
        source.keep_tail(chunk);
        let mut rest = chunk;
        while let Some(at) = memchr::memchr(b'\n', rest) {
            if source.partial.is_empty() {
                self.line(source.service, &rest[..at]);
            } else {
                source.partial.extend_from_slice(&rest[..at]);
                self.flush(source);
            }
            rest = &rest[at + 1..];
        }
        source.partial.extend_from_slice(rest);
        if source.partial.len() >= LINE_LIMIT {
            self.cut(source);
        }
    }

    fn flush(&mut self, source: &mut Source) {
        if !source.partial.is_empty() {
            let mut partial = std::mem::take(&mut source.partial);
            self.line(source.service, &partial);
            partial.clear();
            source.partial = partial;
        }
    }

    /// Prints the beginning of a line that is too long, and keeps so much that no secret is cut in two.
    fn cut(&mut self, source: &mut Source) {
        let clean = self.formatter.redact(&source.partial);
        let clean = clean.unwrap_or_else(|| std::mem::take(&mut source.partial));
        let kept = self.formatter.longest_secret().min(clean.len());
        let (head, rest) = clean.split_at(clean.len() - kept);
        self.line(source.service, head);
        source.partial = rest.to_vec();
    }

    fn line(&mut self, service: &'static str, line: &[u8]) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        self.push(service, Level::of_line(line), line);
    }

    fn push(&mut self, service: &str, level: Option<Level>, line: &[u8]) {
        let mut pending = self.shared.lock();
        if pending.text.len() + pending.in_flight >= 2 * CAPACITY {
            self.dropped += 1;
            return;
        }
        self.formatter
            .line(&mut pending.text, &self.stamp, service, level, line);
        if self.has_error_file
            && level.is_some_and(|level| level <= Level::Warn)
            && pending.errors.len() < CAPACITY
        {
            self.formatter
                .line(&mut pending.errors, &self.stamp, service, level, line);
        }
        drop(pending);
        self.shared.changed.notify_all();
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

    /// Writes out what waits, for at most `patience`: a standing reader must not hold up the end.
    pub fn close(mut self, patience: Duration) {
        let mut pending = self.shared.lock();
        pending.closing = true;
        self.shared.changed.notify_all();
        let (pending, _) = self
            .shared
            .changed
            .wait_timeout_while(pending, patience, |pending| {
                !pending.text.is_empty() || pending.in_flight > 0
            })
            .unwrap_or_else(PoisonError::into_inner);
        let drained = pending.text.is_empty() && pending.in_flight == 0;
        drop(pending);
        if let Some(writer) = self.writer.take().filter(|_| drained) {
            // It has nothing left to write, so it is about to return.
            let _ = writer.join();
        }
    }
}

/// One service's output pipe, and the line that is not whole yet.
pub struct Source {
    pub service: &'static str,
    pub pipe: io::PipeReader,
    partial: Vec<u8>,
    bytes: u64,
    /// At most twice [`TAIL`] of what came last.
    tail: Vec<u8>,
}

impl Source {
    /// `pipe` must not block.
    pub fn new(service: &'static str, pipe: io::PipeReader) -> Source {
        Source {
            service,
            pipe,
            partial: Vec::new(),
            bytes: 0,
            tail: Vec::new(),
        }
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

fn write_out(shared: &Shared, mut out: File, mut error_file: Option<File>, waker: &UnixStream) {
    let (mut text, mut errors) = (Vec::new(), Vec::new());
    loop {
        let mut pending = shared.lock();
        while pending.text.is_empty() && pending.errors.is_empty() {
            if pending.closing {
                return;
            }
            pending = shared
                .changed
                .wait(pending)
                .unwrap_or_else(PoisonError::into_inner);
        }
        std::mem::swap(&mut pending.text, &mut text);
        std::mem::swap(&mut pending.errors, &mut errors);
        pending.in_flight = text.len();
        drop(pending);
        // Nobody is left to tell: standard output is the log. A closed one must not end the services.
        write_all(&mut out, &text);
        if let Some(file) = &mut error_file {
            let _ = file.write_all(&errors);
        }
        text.clear();
        errors.clear();
        let mut pending = shared.lock();
        pending.in_flight = 0;
        let wanted = std::mem::take(&mut pending.wanted);
        drop(pending);
        shared.changed.notify_all();
        if wanted {
            let _ = (&mut &*waker).write(b"w");
        }
    }
}

/// Writes everything, also to a standard output that somebody made non-blocking. Gives up when it is closed.
fn write_all(out: &mut File, mut text: &[u8]) {
    while !text.is_empty() {
        match out.write(text) {
            Ok(0) => return,
            Ok(count) => text = &text[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let mut fds = [PollFd::new(out.as_fd(), PollFlags::POLLOUT)];
                if poll(&mut fds, PollTimeout::NONE).is_err_and(|errno| errno != Errno::EINTR) {
                    return;
                }
            }
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nowhere() -> File {
        File::options().write(true).open("/dev/null").unwrap()
    }

    #[test]
    fn secret_across_the_cut_of_a_long_line_is_hidden() {
        let (pipe, _write) = io::pipe().unwrap();
        let secrets = [Secret::new("the-secret-token")];
        let mut log = Log::start(
            nowhere(),
            LogFormat::Text,
            &secrets,
            Duration::from_secs(1),
            None,
        )
        .unwrap();
        for before in LINE_LIMIT - 20..LINE_LIMIT + 2 {
            let mut source = Source::new("server", pipe.try_clone().unwrap());
            let mut line = vec![b'x'; before];
            line.extend_from_slice(b"the-secret-token");
            line.resize(LINE_LIMIT + 40, b'y');
            // The cut is decided at the end of a chunk.
            let (first, second) = line.split_at(LINE_LIMIT);
            let printed = |log: &Log| log.shared.lock().text.clone();
            log.shared.lock().text.clear();
            log.take(&mut source, first);
            let head = printed(&log);
            log.take(&mut source, second);
            log.take(&mut source, b"\n");
            let all = printed(&log);
            for text in [head, all] {
                let text = String::from_utf8_lossy(&text).into_owned();
                assert!(
                    !text.contains("secret") && !text.contains("token"),
                    "{before}"
                );
            }
        }
        log.close(Duration::from_secs(5));
    }

    #[test]
    fn everything_reaches_an_output_that_does_not_block() {
        let (mut read, write) = io::pipe().unwrap();
        let flags = nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK);
        nix::fcntl::fcntl(&write, flags).unwrap();
        let text = vec![b'x'; 1 << 20];
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            read.read_to_end(&mut all).map(|_| all.len())
        });
        let mut out = File::from(std::os::fd::OwnedFd::from(write));
        write_all(&mut out, &text);
        drop(out);
        assert_eq!(reader.join().unwrap().unwrap(), text.len());
    }

    fn formatted(format: LogFormat, secrets: &[&str], line: &[u8]) -> String {
        let secrets: Vec<Secret> = secrets.iter().map(|text| Secret::new(text)).collect();
        let mut out = Vec::new();
        Formatter::new(format, &secrets).line(&mut out, "T", "server", Level::of_line(line), line);
        String::from_utf8_lossy(&out).into_owned()
    }

    #[test]
    fn text_line_carries_its_service() {
        assert_eq!(
            formatted(LogFormat::Text, &[], b"hello"),
            "server   hello\n"
        );
    }

    #[test]
    fn json_line_carries_service_level_and_any_bytes() {
        let line = formatted(LogFormat::Json, &[], b"[T WARN sccache] \xff\"");
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["service"], "server");
        assert_eq!(value["level"], "warn");
        assert_eq!(value["message"], "[T WARN sccache] \u{fffd}\"");
    }

    #[test]
    fn every_secret_is_hidden_every_time() {
        let line = formatted(
            LogFormat::Text,
            &["token-one", "token-two"],
            b"token-one token-two token-one!",
        );
        assert_eq!(line, "server   *** *** ***!\n");
    }

    #[test]
    fn last_lines_are_whole_few_and_without_secrets() {
        let (pipe, mut write) = io::pipe().unwrap();
        let secrets = [Secret::new("the-token")];
        let log = Log::start(
            nowhere(),
            LogFormat::Text,
            &secrets,
            Duration::from_secs(1),
            None,
        )
        .unwrap();
        let mut source = Source::new("server", pipe);
        for number in 0..500 {
            writeln!(write, "line {number} with the-token").unwrap();
        }
        write!(write, "the end").unwrap();
        drop(write);
        let mut chunk = [0; 7];
        loop {
            let count = source.pipe.read(&mut chunk).unwrap();
            if count == 0 {
                break;
            }
            source.bytes += count as u64;
            source.keep_tail(&chunk[..count]);
        }
        let lines = log.last_lines(&source);
        assert_eq!(lines.len(), TAIL_LINES);
        assert!(
            lines.iter().all(|line| !line.contains("token")),
            "{lines:?}"
        );
        assert!(source.tail.len() <= 2 * TAIL);
        log.close(Duration::from_secs(1));
    }

    #[test]
    fn levels_are_read_from_the_head_of_a_line_only() {
        let cases: &[(&[u8], Option<Level>)] = &[
            (
                b"[2026-11-21T04:34:20Z DEBUG sccache::server] x",
                Some(Level::Debug),
            ),
            (b"WARN refused Shutdown peer=1.2.3.4", Some(Level::Warn)),
            (b"ERRORS everywhere", None),
            (b"nothing here", None),
        ];
        for (line, level) in cases {
            assert_eq!(
                Level::of_line(line),
                *level,
                "{}",
                String::from_utf8_lossy(line)
            );
        }
    }
}
