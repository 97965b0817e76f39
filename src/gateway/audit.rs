//! The audit log: who has written, removed or been refused what, as lines of JSON in a file beside the blobs.
//!
//! Only callers that are known stand in it: of strangers there may be any number, and they would push the others out. A
//! thread of its own writes; what comes faster than it can write is counted and left out, and no request waits. The file
//! and the one before it are together no longer than was asked for.

use super::peer::Peer;
use crate::base::time::unix_seconds;
use crate::contract::key::Key;
use crate::contract::paths;
use serde::Serialize;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, SystemTime};
use tracing::warn;

/// The file beside the blobs; the one before it has `.1` behind its name.
pub(super) const FILE: &str = paths::AUDIT_LOG;
/// Lines that may wait.
const WAITING: usize = 4096;

/// Something that was done, or refused.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Event<'a> {
    /// `write`, `kept`, `conflict`, `delete`, `purge`, `refused`, `login`, `revoke`.
    pub(crate) event: &'static str,
    /// The lane and the token, session or user.
    pub(crate) by: &'a str,
    /// The blob, or the path that was refused.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub(crate) key: &'a str,
    /// Of the body, or how many blobs were purged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) bytes: Option<u64>,
    /// Why it was refused, or what else there is to say.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub(crate) detail: &'a str,
}

#[derive(Serialize)]
struct Line<'a> {
    time: String,
    /// The address, or the user of the socket.
    peer: String,
    #[serde(flatten)]
    event: Event<'a>,
}

impl<'a> Event<'a> {
    /// What somebody did to a blob.
    pub(crate) fn of(event: &'static str, by: &'a str, key: &'a Key) -> Event<'a> {
        Event {
            event,
            by,
            key: key.as_str(),
            ..Event::default()
        }
    }
}

/// Where events go.
#[derive(Debug, Default)]
pub(crate) struct Audit {
    lines: Option<SyncSender<String>>,
    dropped: AtomicU64,
}

impl Audit {
    /// Starts to write to the file at `path`, which takes `most` bytes together with the one before it.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub(crate) fn start(path: PathBuf, most: u64) -> io::Result<Audit> {
        let log = Log::open(path, most / 2)?;
        let (lines, waiting) = sync_channel(WAITING);
        std::thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || log.keep(&waiting))?;
        Ok(Audit {
            lines: Some(lines),
            dropped: AtomicU64::new(0),
        })
    }

    /// Notes an event; costs nothing where there is no log.
    pub(crate) fn note(&self, peer: &Peer, event: Event<'_>) {
        let Some(lines) = &self.lines else { return };
        let peer = peer.to_string();
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(unix_seconds());
        let time = humantime::format_rfc3339_seconds(now).to_string();
        let line = serde_json::to_string(&Line { time, peer, event });
        if line.is_err() || line.is_ok_and(|line| lines.try_send(line).is_err()) {
            self.dropped.fetch_add(1, Relaxed);
        }
    }

    /// Events that were left out.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }
}

/// The file.
struct Log {
    path: PathBuf,
    file: File,
    bytes: u64,
    most: u64,
}

impl Log {
    fn open(path: PathBuf, most: u64) -> io::Result<Log> {
        let file = append_to(&path)?;
        let bytes = file.metadata()?.len();
        Ok(Log {
            path,
            file,
            bytes,
            most,
        })
    }

    /// Until the gateway is gone.
    fn keep(mut self, waiting: &Receiver<String>) {
        while let Ok(first) = waiting.recv() {
            let mut text = String::new();
            for line in std::iter::once(first).chain(waiting.try_iter().take(WAITING)) {
                text.push_str(&line);
                text.push('\n');
            }
            if let Err(cause) = self.append(&text) {
                warn!("cannot write \"{}\": {cause}", self.path.display());
            }
        }
    }

    fn append(&mut self, text: &str) -> io::Result<()> {
        if self.bytes > 0 && self.bytes + text.len() as u64 > self.most {
            let before = self.path.with_file_name(paths::AUDIT_LOG_BEFORE);
            fs::rename(&self.path, before)?;
            self.file = append_to(&self.path)?;
            self.bytes = 0;
        }
        self.bytes += text.len() as u64;
        self.file.write_all(text.as_bytes())
    }
}

fn append_to(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.create(true).append(true).mode(0o600);
    options.custom_flags(nix::libc::O_NOFOLLOW).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_and_the_one_before_stay_within_their_size() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        let mut log = Log::open(path.clone(), 1000).unwrap();
        for number in 0..100 {
            log.append(&format!("{number:0>99}\n")).unwrap();
            let sum: u64 = fs::read_dir(folder.path())
                .unwrap()
                .map(|entry| entry.unwrap().metadata().unwrap().len())
                .sum();
            assert!(sum <= 2000, "{sum}");
        }
        let newest = fs::read_to_string(&path).unwrap();
        assert!(newest.ends_with("99\n"), "{newest}");
        assert_eq!(Log::open(path, 1000).unwrap().bytes, newest.len() as u64);
    }
}
