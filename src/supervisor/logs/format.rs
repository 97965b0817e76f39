//! Turns a service's line into what is printed, with tag or JSON object and level, and redacts secrets. Pure.

use crate::base::secret::Secret;
use crate::config::settings::LogFormat;
use memchr::memmem::Finder;
use std::ops::Range;

/// At the end of an unfinished text, a start of a secret is redacted from this many bytes on.
const HIDDEN_START: usize = 4;
/// Maximum number of redacted tokens that came from changed files: as many as four such files can contain.
const MOST_PASSING: usize = 1024;
/// A level is searched within this many bytes of a line.
const HEAD: usize = 48;

/// Severity of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl Level {
    pub(super) fn upper(self) -> &'static str {
        match self {
            Level::Error => "ERROR",
            Level::Warn => "WARN",
            Level::Info => "INFO",
            Level::Debug => "DEBUG",
            Level::Trace => "TRACE",
        }
    }

    /// The JSON value.
    fn json(level: Option<Level>) -> &'static str {
        match level {
            Some(Level::Error) => "\"error\"",
            Some(Level::Warn) => "\"warn\"",
            Some(Level::Info) => "\"info\"",
            Some(Level::Debug) => "\"debug\"",
            Some(Level::Trace) => "\"trace\"",
            None => "null",
        }
    }

    /// The first level that a service's line states near its start, as env_logger and tracing write it.
    pub(super) fn of_line(line: &[u8]) -> Option<Level> {
        let head = &line[..line.len().min(HEAD)];
        let after_gaps = memchr::memchr2_iter(b' ', b'[', head).map(|gap| gap + 1);
        [0].into_iter().chain(after_gaps).find_map(|start| {
            let level = match head.get(start)? {
                b'E' => Level::Error,
                b'W' => Level::Warn,
                b'I' => Level::Info,
                b'D' => Level::Debug,
                b'T' => Level::Trace,
                _ => return None,
            };
            let rest = head[start..].strip_prefix(level.upper().as_bytes())?;
            matches!(rest.first(), None | Some(b' ' | b']' | b':')).then_some(level)
        })
    }
}

/// Formats and redacts lines.
pub(super) struct Formatter {
    pub(super) format: LogFormat,
    secrets: Vec<Finder<'static>>,
    /// How many of the secrets, at the end of the list, came from [`Formatter::also_hide`].
    passing: usize,
}

impl Formatter {
    pub(super) fn new(format: LogFormat, secrets: &[Secret]) -> Formatter {
        let finder = |secret: &Secret| Finder::new(secret.reveal().as_bytes()).into_owned();
        Formatter {
            format,
            secrets: secrets
                .iter()
                .filter(|secret| !secret.reveal().is_empty())
                .map(finder)
                .collect(),
            passing: 0,
        }
    }

    /// Changes format and secrets. Previous secrets stay redacted.
    pub(super) fn set(&mut self, format: LogFormat, secrets: &[Secret]) {
        let before = std::mem::replace(self, Formatter::new(format, secrets));
        let fixed = before.secrets.len() - before.passing;
        for (place, finder) in before.secrets.into_iter().enumerate() {
            if self.place(finder.needle()).is_none() {
                self.secrets.push(finder);
                self.passing += usize::from(place >= fixed);
            }
        }
    }

    /// Redacts another secret from now on. If there are too many of these, the oldest is forgotten: it was replaced
    /// long ago.
    pub(super) fn also_hide(&mut self, secret: &Secret) {
        for finder in Formatter::new(self.format, std::slice::from_ref(secret)).secrets {
            let fixed = self.secrets.len() - self.passing;
            match self.place(finder.needle()) {
                Some(place) if place < fixed => return,
                Some(place) => drop(self.secrets.remove(place)),
                None if self.passing == MOST_PASSING => drop(self.secrets.remove(fixed)),
                None => self.passing += 1,
            }
            self.secrets.push(finder);
        }
    }

    fn place(&self, secret: &[u8]) -> Option<usize> {
        self.secrets.iter().position(|it| it.needle() == secret)
    }

    /// Writes the start of every line of a service, which is valid as long as the time stamp.
    pub(super) fn head(&self, into: &mut Vec<u8>, stamp: &str, service: &str) {
        into.clear();
        match self.format {
            LogFormat::Text => {
                into.extend_from_slice(service.as_bytes());
                into.resize(service.len().max(8) + 1, b' ');
            }
            LogFormat::Json => {
                into.extend_from_slice(b"{\"ts\":");
                json_string(into, stamp);
                into.extend_from_slice(b",\"service\":");
                json_string(into, service);
                into.extend_from_slice(b",\"level\":");
            }
        }
    }

    /// Writes one complete line, which contains no secrets.
    pub(super) fn line(&self, out: &mut Vec<u8>, head: &[u8], level: Option<Level>, line: &[u8]) {
        out.extend_from_slice(head);
        match self.format {
            LogFormat::Text => out.extend_from_slice(line),
            LogFormat::Json => {
                out.extend_from_slice(Level::json(level).as_bytes());
                out.extend_from_slice(b",\"message\":");
                if line
                    .iter()
                    .fold(true, |plain, byte| plain & is_plain(*byte))
                {
                    out.push(b'"');
                    out.extend_from_slice(line);
                    out.push(b'"');
                } else {
                    json_string(out, &String::from_utf8_lossy(line));
                }
                out.push(b'}');
            }
        }
        out.push(b'\n');
    }

    pub(super) fn longest_secret(&self) -> usize {
        let lengths = self.secrets.iter().map(|finder| finder.needle().len());
        lengths.max().unwrap_or(0)
    }

    /// Whether a text of any number of lines contains a secret.
    pub(super) fn has_secret(&self, text: &[u8]) -> bool {
        self.secrets
            .iter()
            .any(|finder| finder.find(text).is_some())
    }

    /// Returns the text with secrets redacted, or `None` if it contains none.
    pub(super) fn redact(&self, text: &[u8]) -> Option<Vec<u8>> {
        self.hide(text, self.whole_secrets(text))
    }

    /// Like [`Formatter::redact`], for a text that may be truncated: a start of a secret at its end is redacted too.
    pub(super) fn redact_unfinished(&self, text: &[u8]) -> Option<Vec<u8>> {
        let mut found = self.whole_secrets(text);
        for secret in self.secrets.iter().map(Finder::needle) {
            let longest = text.len().min(secret.len().saturating_sub(1));
            let start = (HIDDEN_START..=longest)
                .rev()
                .find(|count| text.ends_with(&secret[..*count]));
            found.extend(start.map(|count| text.len() - count..text.len()));
        }
        self.hide(text, found)
    }

    /// All positions of all secrets, including overlapping ones.
    fn whole_secrets(&self, text: &[u8]) -> Vec<Range<usize>> {
        let mut found = Vec::new();
        for finder in &self.secrets {
            let mut from = 0;
            while let Some(at) = finder.find(&text[from..]) {
                found.push(from + at..from + at + finder.needle().len());
                from += at + 1;
            }
        }
        found
    }

    fn hide(&self, text: &[u8], mut found: Vec<Range<usize>>) -> Option<Vec<u8>> {
        if found.is_empty() {
            return None;
        }
        found.sort_by_key(|range| range.start);
        let (mut clean, mut done) = (Vec::with_capacity(text.len()), 0);
        for range in found {
            // Only the first of overlapping positions is marked.
            if range.start >= done {
                clean.extend_from_slice(&text[done..range.start]);
                clean.extend_from_slice(b"***");
            }
            done = done.max(range.end);
        }
        clean.extend_from_slice(&text[done..]);
        Some(clean)
    }
}

/// Whether this byte needs no escaping in a JSON string. Nearly all lines consist of such bytes only.
fn is_plain(byte: u8) -> bool {
    (b' '..=b'~').contains(&byte) & (byte != b'"') & (byte != b'\\')
}

fn json_string(out: &mut Vec<u8>, text: &str) {
    // Writing a string to memory cannot fail.
    let _ = serde_json::to_writer(out, text);
}
