//! The scan at start: adds the files on disk to the index, by names and sizes only.

use super::eviction::HighWaterMark;
use super::lookup::Kind;
use super::lru::{Digest, Item, Sorting};
use super::writer::Origin;
use super::{Inner, Progress, micros, now, trailer};
use crate::contract::key;
use std::ffi::OsStr;
use std::fs::{self, DirEntry};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

/// Maximum number of folders of a namespace: one for each pair of digits with which names begin.
const FOLDERS: u64 = 256;

/// Starts the scan on its own thread, which ends early if the store is dropped.
pub(super) fn start(inner: &Arc<Inner>) -> io::Result<()> {
    let mut scan = Scan {
        inner: Arc::downgrade(inner),
        foreign: 0,
        example: None,
    };
    let blobs = inner.dir.join("blobs");
    std::thread::Builder::new()
        .name("scan".to_owned())
        .spawn(move || {
            if scan.namespaces(&blobs).is_some() {
                scan.finish();
            }
        })?;
    Ok(())
}

struct Scan {
    /// A weak reference, so that a store can be dropped and reopened at any time.
    inner: Weak<Inner>,
    foreign: u64,
    example: Option<PathBuf>,
}

/// Each step returns `None` if the store was dropped.
impl Scan {
    fn namespaces(&mut self, blobs: &Path) -> Option<()> {
        let mut entries = self.list(blobs)?;
        // Those with a quota come first: until they are known, nothing can be written to them.
        let governed = self.governed_folders()?;
        entries.sort_by_key(|entry| !governed.iter().any(|folder| *entry.file_name() == **folder));
        let total = entries.len() as u64 * FOLDERS;
        for (place, entry) in (0..).zip(entries) {
            let done = place * FOLDERS;
            self.inner.upgrade()?.state().scanned = Progress { done, total };
            let name = entry.file_name();
            let namespace = name
                .to_str()
                .and_then(key::namespace_of_folder)
                .filter(|_| is_dir(&entry));
            if namespace.is_some() && is_emptied(&entry.path()) {
                continue;
            }
            if let Some(namespace) = &namespace
                && !self.inner.upgrade()?.groups.has_place(namespace)
            {
                self.clear(namespace, &entry.path())?;
                continue;
            }
            let number = match namespace {
                Some(namespace) => self.inner.upgrade()?.state().namespaces.intern(&namespace),
                None => None,
            };
            match number {
                Some(number) => {
                    self.folders(&entry.path(), number)?;
                    self.settle(number)?;
                }
                None => self.foreign(&entry),
            }
        }
        Some(())
    }

    /// Removes a folder whose blobs nobody will look for here, since there are other groups now.
    fn clear(&self, namespace: &str, folder: &Path) -> Option<()> {
        let inner = self.inner.upgrade()?;
        match fs::remove_dir_all(folder) {
            Ok(()) => tracing::warn!(
                "removed the blobs of \"{namespace}\": SCCACHE_QUOTAS or SCCACHE_PINNED have other groups now"
            ),
            Err(error) => drop(inner.fault("remove folder", folder, error)),
        }
        Some(())
    }

    fn governed_folders(&self) -> Option<Vec<Arc<str>>> {
        let inner = self.inner.upgrade()?;
        let state = inner.state();
        let numbers = state.lru.governed().into_iter();
        Some(
            numbers
                .map(|number| state.namespaces.folder(number))
                .collect(),
        )
    }

    /// Records that all blobs of a namespace are known.
    fn settle(&self, namespace: u16) -> Option<()> {
        let inner = self.inner.upgrade()?;
        inner.state().lru.reserve_unscanned_of(namespace, 0);
        Some(())
    }

    fn folders(&mut self, folder: &Path, namespace: u16) -> Option<()> {
        for entry in self.list(folder)? {
            let name = entry.file_name();
            if is_hex(&name, 2) && is_dir(&entry) {
                self.files(&entry.path(), &name, namespace)?;
                self.inner.upgrade()?.state().scanned.done += 1;
            } else {
                self.foreign(&entry);
            }
        }
        Some(())
    }

    fn files(&mut self, folder: &Path, start: &OsStr, namespace: u16) -> Option<()> {
        for entry in self.list(folder)? {
            let name = entry.file_name();
            let number = name.to_str().filter(|name| {
                is_hex(OsStr::new(name), 32) && name.starts_with(&*start.to_string_lossy())
            });
            match number.and_then(|name| u128::from_str_radix(name, 16).ok()) {
                Some(number) if entry.file_type().is_ok_and(|kind| kind.is_file()) => {
                    let item = Item {
                        digest: Digest(number.to_be_bytes()),
                        namespace,
                    };
                    take_in(&*self.inner.upgrade()?, &entry, item);
                }
                _ => self.other(&entry)?,
            }
        }
        Some(())
    }

    /// Handles a file that is not a blob: a write in flight, the remains of one, or a foreign file.
    fn other(&mut self, entry: &DirEntry) -> Option<()> {
        let inner = self.inner.upgrade()?;
        let name = entry.file_name();
        match name
            .to_str()
            .map_or(Origin::Foreign, |name| inner.temps.origin(name))
        {
            Origin::ThisRun => {}
            Origin::EarlierRun => {
                if let Err(error) = fs::remove_file(entry.path()) {
                    inner.fault("remove unfinished blob", &entry.path(), error);
                }
            }
            Origin::Foreign => self.foreign(entry),
        }
        Some(())
    }

    /// A folder's entries. What cannot be read is recorded and skipped, because the rest is still useful.
    fn list(&self, folder: &Path) -> Option<Vec<DirEntry>> {
        let inner = self.inner.upgrade()?;
        let read = fs::read_dir(folder).and_then(|entries| entries.collect());
        Some(read.unwrap_or_else(|error| {
            inner.fault("list folder", folder, error);
            Vec::new()
        }))
    }

    fn foreign(&mut self, entry: &DirEntry) {
        self.foreign += 1;
        self.example.get_or_insert_with(|| entry.path());
    }

    /// Sorts the index and evicts what is over the budget.
    fn finish(self) -> Option<()> {
        let inner = self.inner.upgrade()?;
        if let Some(example) = &self.example {
            tracing::warn!(files = self.foreign, example = %example.display(), "left files alone that are not the store's");
        }
        inner.sort();
        {
            let mut state = inner.state();
            state.lru.reserve_unscanned(0);
            state.foreign_files = self.foreign;
            for number in state.lru.governed() {
                state.lru.reserve_unscanned_of(number, 0);
            }
        }
        inner.evict_overshoot();
        inner.keep_high_water_mark(HighWaterMark::Set);
        let (entries, bytes) = {
            let mut state = inner.state();
            state.indexing = false;
            state.scanned.done = state.scanned.total;
            (state.lru.count(), state.lru.used())
        };
        inner.changed.notify_all();
        tracing::info!(entries, bytes, "indexed the store");
        Some(())
    }
}

impl Inner {
    /// Sorts the index by time of use.
    fn sort(&self) {
        let mut sorting = Sorting::default();
        while sorting.collect(&self.state().lru) {
            self.let_others_in();
        }
        sorting.order();
        while sorting.place(&mut self.state().lru) {
            self.let_others_in();
        }
    }
}

/// Adds one file to the index, while holding the key's lock, so that it cannot be removed or replaced.
fn take_in(inner: &Inner, entry: &DirEntry, item: Item) {
    let _lock = inner.lock_key(&item.digest);
    let metadata = match entry.metadata() {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return,
        Err(error) => {
            inner.fault("stat blob", &entry.path(), error);
            return;
        }
    };
    if metadata.len() < trailer::MIN_FILE_BYTES {
        inner.remove_broken(&item.digest, &entry.path(), None, Kind::Trailer);
        return;
    }
    // A time in the future, from before the clock was set back, would keep the blob forever.
    let now = now();
    let used = metadata.modified().map_or(now, |used| used.min(now));
    inner
        .state()
        .lru
        .admit(item, inner.disk_bytes(metadata.len()), micros(used));
}

/// Removes a namespace's folder if it is empty: the number of namespaces is limited, and folders take uncounted space.
/// A write that finds its folder missing creates it again.
pub(super) fn is_emptied(folder: &Path) -> bool {
    let Ok(entries) = fs::read_dir(folder) else {
        return false;
    };
    for entry in entries.filter_map(Result::ok) {
        // Fails if the folder is not empty, which answers the question.
        if !is_hex(&entry.file_name(), 2) || fs::remove_dir(entry.path()).is_err() {
            return false;
        }
    }
    fs::remove_dir(folder).is_ok()
}

fn is_dir(entry: &DirEntry) -> bool {
    entry.file_type().is_ok_and(|kind| kind.is_dir())
}

fn is_hex(name: &OsStr, digits: usize) -> bool {
    let name = name.as_encoded_bytes();
    name.len() == digits
        && name
            .iter()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}
