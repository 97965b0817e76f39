//! What is still to be passed on to the upstream, kept in a file so that a restart forgets none of it.
//!
//! The file holds one key a line, in order, appended before a key counts as queued. It is written anew when most of
//! it is done, and emptied when all is. A key that stands there though it was passed on (the end came in between) is
//! passed on again, which does no harm. On a disk that takes no writes the queue lives in memory until it does.

use crate::contract::key::Key;
use std::collections::{HashSet, VecDeque};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Lines of the file that may be done already before it is written anew.
const STALE: usize = 4096;

/// Keys in the order in which they came, each once.
#[derive(Debug)]
pub struct Queue {
    path: PathBuf,
    /// `None` while it cannot be written: it is written anew with the next key.
    file: Option<File>,
    /// Lines in the file.
    lines: usize,
    waiting: VecDeque<Key>,
    /// Few at a time.
    on_their_way: Vec<Key>,
    known: HashSet<Key>,
    limit: usize,
}

impl Queue {
    /// Opens the file and takes up what it holds; lines that are no keys (a torn last one) are left out.
    ///
    /// # Errors
    /// The file cannot be read, or not be written for another reason than the disk's.
    pub fn open(path: &Path, limit: usize) -> io::Result<Queue> {
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        let mut queue = Queue {
            path: path.to_owned(),
            file: None,
            lines: 0,
            waiting: VecDeque::new(),
            on_their_way: Vec::new(),
            known: HashSet::new(),
            limit,
        };
        // The last line is whole only with its end.
        let whole = memchr::memrchr(b'\n', &text).map_or(0, |end| end + 1);
        for line in String::from_utf8_lossy(&text[..whole]).lines() {
            if let Ok(key) = Key::from_canonical(line)
                && queue.waiting.len() < limit
                && queue.known.insert(key.clone())
            {
                queue.waiting.push_back(key);
            }
        }
        match queue.rewrite() {
            Err(error) if !is_the_disks(&error) => Err(error),
            Ok(()) | Err(_) => Ok(queue),
        }
    }

    /// Keys that wait or are on their way.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Whether nothing waits and nothing is on its way.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// Whether [`Queue::take`] has something to give.
    pub fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Adds keys; gives how many found no room.
    ///
    /// # Errors
    /// The file cannot be written; the keys are queued all the same, for as long as we live.
    pub fn add(&mut self, keys: impl IntoIterator<Item = Key>) -> (u64, io::Result<()>) {
        let (mut lost, mut text) = (0, String::new());
        for key in keys {
            if self.known.contains(&key) {
                // The one that waits will carry the newest bytes; one on its way may carry older ones of the same
                // key, which for a cache is as good.
                continue;
            }
            if self.known.len() >= self.limit {
                lost += 1;
                continue;
            }
            text.push_str(key.as_str());
            text.push('\n');
            self.known.insert(key.clone());
            self.waiting.push_back(key);
            self.lines += 1;
        }
        (lost, self.append(&text))
    }

    fn append(&mut self, text: &str) -> io::Result<()> {
        match &mut self.file {
            Some(file) => {
                let written = file.write_all(text.as_bytes());
                if written.is_err() {
                    // It may end in half a key, to which the next one must not be added.
                    self.file = None;
                }
                written
            }
            None => self.rewrite(),
        }
    }

    /// The next key to pass on. It stays in the file until [`Queue::done`].
    pub fn take(&mut self) -> Option<Key> {
        let key = self.waiting.pop_front()?;
        self.on_their_way.push(key.clone());
        Some(key)
    }

    /// Puts a key back that could not be passed on, at the end: it may be this one that nobody wants.
    pub fn put_back(&mut self, key: Key) {
        self.on_their_way.retain(|other| *other != key);
        self.waiting.push_back(key);
    }

    /// Forgets a key that was passed on, or that there is no use in passing on.
    ///
    /// # Errors
    /// The file cannot be written anew; it then holds more than it must.
    pub fn done(&mut self, key: &Key) -> io::Result<()> {
        self.known.remove(key);
        self.on_their_way.retain(|other| other != key);
        if self.known.is_empty()
            && let Some(file) = &self.file
        {
            self.lines = 0;
            return file.set_len(0);
        }
        if self.lines - self.known.len().min(self.lines) > STALE.max(self.known.len()) {
            return self.rewrite();
        }
        Ok(())
    }

    fn rewrite(&mut self) -> io::Result<()> {
        let mut text = String::new();
        for key in self.on_their_way.iter().chain(&self.waiting) {
            text.push_str(key.as_str());
            text.push('\n');
        }
        let new = self.path.with_extension("new");
        std::fs::write(&new, &text)?;
        std::fs::rename(&new, &self.path)?;
        self.file = Some(OpenOptions::new().append(true).open(&self.path)?);
        self.lines = self.known.len();
        Ok(())
    }
}

/// Whether the disk is full or read-only, which passes.
fn is_the_disks(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::ReadOnlyFilesystem
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        Key::parse(name).unwrap()
    }

    fn drained(queue: &mut Queue) -> Vec<String> {
        std::iter::from_fn(|| queue.take().map(|key| key.to_string())).collect()
    }

    #[test]
    fn restart_forgets_nothing_that_was_not_done() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("queue");
        let mut queue = Queue::open(&path, 10).unwrap();
        queue.add(["a", "b", "c", "b"].map(key)).1.unwrap();
        let first = queue.take().unwrap();
        queue.done(&first).unwrap();
        let _on_its_way = queue.take().unwrap();
        drop(queue);
        let mut queue = Queue::open(&path, 10).unwrap();
        // The file was not written anew for one line: "a" comes again.
        assert_eq!(drained(&mut queue), ["a", "b", "c"]);
        for name in ["a", "b", "c"] {
            queue.done(&key(name)).unwrap();
        }
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 0);
    }

    #[test]
    fn what_finds_no_room_is_counted() {
        let folder = tempfile::tempdir().unwrap();
        let mut queue = Queue::open(&folder.path().join("queue"), 2).unwrap();
        assert_eq!(queue.add(["a", "b", "c", "d"].map(key)).0, 2);
        assert_eq!(queue.len(), 2);
    }

    #[test]
    fn torn_last_line_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("queue");
        std::fs::write(&path, "whole/one\n../..\nwhole/tw").unwrap();
        let mut queue = Queue::open(&path, 10).unwrap();
        assert_eq!(drained(&mut queue), ["whole/one"]);
    }

    #[test]
    fn full_disk_is_no_reason_to_end_and_is_made_good() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("queue");
        std::fs::write(&path, "whole/one\n").unwrap();
        // What is written to this device finds no space, as on a full disk.
        let new = path.with_extension("new");
        std::os::unix::fs::symlink("/dev/full", &new).unwrap();
        let mut queue = Queue::open(&path, 10).unwrap();
        let (lost, outcome) = queue.add([key("two")]);
        assert_eq!(lost, 0);
        assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::StorageFull);
        std::fs::remove_file(&new).unwrap();
        queue.add([key("three")]).1.unwrap();
        let mut queue = Queue::open(&path, 10).unwrap();
        assert_eq!(drained(&mut queue), ["whole/one", "two", "three"]);
    }

    #[test]
    fn file_does_not_grow_without_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("queue");
        let mut queue = Queue::open(&path, 10).unwrap();
        queue.add([key("stays")]).1.unwrap();
        let stays = queue.take().unwrap();
        for turn in 0..3 * STALE {
            let name = format!("key/{turn}");
            queue.add([key(&name)]).1.unwrap();
            let taken = queue.take().unwrap();
            queue.done(&taken).unwrap();
        }
        assert!(std::fs::metadata(&path).unwrap().len() < 20 * STALE as u64);
        queue.put_back(stays);
        drop(queue);
        let mut queue = Queue::open(&path, 10).unwrap();
        assert_eq!(queue.take(), Some(key("stays")));
    }
}
