//! Verifies blobs in the background: all of them on a schedule, and single ones on suspicion.
//!
//! One thread does both. On schedule it goes through the blobs by the first byte of their digests, in 256 parts of
//! equal time. The file `scrub` records the current part, at which a restart continues. The thread sleeps after each
//! piece that it reads and drops it from the page cache again, so that it neither delays requests nor displaces what
//! they use.
//!
//! A blob is suspicious if it could not be sent completely, or if a client stores it again soon after receiving it,
//! perhaps because it was unusable.

use super::lookup::{Flaw, Kind, is_in_place, open_file, warn_of};
use super::lru::{Digest, Item, Presence};
use super::trailer::{Trailer, Whole};
use super::{Error, Inner, State, Store, digest_of, micros, now, page_cache};
use crate::contract::key::Key;
use crate::store::lookup::Suspect;
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Weak};
use std::thread::sleep;
use std::time::{Duration, SystemTime};

/// Maximum length of the queue of suspects; further ones are ignored.
pub(super) const MOST_SUSPECTS: usize = 64;
/// Maximum number of bytes read per second, even if the schedule slips.
const BYTES_PER_SECOND: u64 = 32 << 20;
/// A blob stored again within this time after a hit is suspicious.
const SOON_MICROS: u64 = 60 * 1_000_000;
const PARTS: u32 = 256;
/// Number of index slots examined at a time.
pub(super) const SLOTS: usize = 1 << 14;
/// Interval of checks whether the scan at start has ended.
const SCAN_PAUSE: Duration = Duration::from_millis(200);

/// Results of the verifications since the start; only the time of the last full pass is older.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Scrubbed {
    /// Period in which every blob is verified once; `None` if the schedule is off.
    pub period: Option<Duration>,
    /// Blobs verified on schedule.
    pub checked: u64,
    /// Corrupt blobs among those.
    pub corrupt: u64,
    /// Blobs verified on suspicion.
    pub suspicions: u64,
    /// End of the last complete pass.
    pub last_full: Option<SystemTime>,
    /// Finished parts of the current pass, of 256.
    pub part: u8,
}

/// Allows the sender of a blob to report it as corrupt.
#[derive(Debug, Clone)]
pub struct CorruptionReport {
    store: Store,
    key: Key,
}

impl CorruptionReport {
    /// Reports that the blob could not be read completely.
    pub fn raise(&self) {
        self.store.inner.suspect(Suspect::Key(self.key.clone()));
    }
}

impl Store {
    /// Returns a report for this blob, to be raised if sending fails.
    pub fn report(&self, key: &Key) -> CorruptionReport {
        CorruptionReport {
            store: self.clone(),
            key: key.clone(),
        }
    }

    /// Verifies a blob at once that could not be read because of `cause`, and removes it if it is corrupt. Returns the
    /// error to answer: [`Error::Missing`] if it was removed.
    pub fn distrust(&self, key: &Key, cause: io::Error) -> Error {
        let digest = digest_of(key);
        match self.inner.verify(key, &digest) {
            Ok(()) => self
                .inner
                .fault("read blob", &self.inner.path_of(key, &digest), cause),
            Err(error) => error,
        }
    }
}

/// Starts the thread, which ends when the store is dropped.
pub(super) fn start(
    inner: &Arc<Inner>,
    period: Option<Duration>,
    suspects: Receiver<Suspect>,
) -> io::Result<()> {
    let (part, last_full) = read_progress(&inner.dir.join("scrub"));
    {
        let mut state = inner.state();
        state.scrubbed.period = period;
        (state.scrubbed.part, state.scrubbed.last_full) = (part, last_full);
    }
    let scrub = Scrub {
        // A weak reference, so that a store can be dropped and reopened at any time.
        inner: Arc::downgrade(inner),
        suspects,
    };
    std::thread::Builder::new()
        .name("scrub".to_owned())
        .spawn(move || match period {
            Some(period) => scrub.keep_to(period),
            None => scrub.wait_for_suspects(),
        })
        .map(drop)
}

struct Scrub {
    inner: Weak<Inner>,
    suspects: Receiver<Suspect>,
}

/// Each step returns `None` if the store was dropped.
impl Scrub {
    fn wait_for_suspects(self) -> Option<()> {
        loop {
            let suspect = self.suspects.recv().ok()?;
            self.inner.upgrade()?.look_at(suspect);
        }
    }

    fn keep_to(self, period: Duration) -> Option<()> {
        // A tenth of the period is left for delays.
        let time = period.mul_f64(0.9) / PARTS;
        while self.inner.upgrade()?.state().indexing {
            self.rest(SCAN_PAUSE)?;
        }
        loop {
            let items = self.items()?;
            let count = u32::try_from(items.len().max(1)).unwrap_or(u32::MAX);
            let pause = time / count;
            if items.is_empty() {
                self.rest(pause)?;
            }
            for item in items {
                let begun = now();
                self.inner.upgrade()?.scrub(&item);
                let took = now().duration_since(begun).unwrap_or_default();
                self.rest(pause.saturating_sub(took))?;
            }
            self.inner.upgrade()?.end_part();
        }
    }

    /// The blobs of the current part.
    fn items(&self) -> Option<Vec<Item>> {
        let mut items = Vec::new();
        for slots in (0..).map(|chunk| chunk * SLOTS..(chunk + 1) * SLOTS) {
            let inner = self.inner.upgrade()?;
            let state = inner.state();
            let part = state.scrubbed.part;
            match state.lru.live_in(slots) {
                Some(found) => items.extend(
                    found
                        .map(|found| found.item)
                        .filter(|item| item.digest.0[0] == part),
                ),
                None => break,
            }
            drop(state);
            inner.let_others_in();
        }
        Some(items)
    }

    /// Waits for `pause` or for the next suspect.
    fn rest(&self, pause: Duration) -> Option<()> {
        match self.suspects.recv_timeout(pause) {
            Ok(suspect) => {
                self.inner.upgrade()?.look_at(suspect);
                Some(())
            }
            Err(RecvTimeoutError::Timeout) => Some(()),
            Err(RecvTimeoutError::Disconnected) => None,
        }
    }
}

impl State {
    /// Whether storing this blob is suspicious because a client was just served it.
    pub(super) fn is_suspicious(&self, digest: &Digest, now: u64) -> bool {
        self.lru
            .was_hit_since(digest, now.saturating_sub(SOON_MICROS))
    }
}

impl Inner {
    /// Queues a blob for verification, unless the queue is full.
    pub(super) fn suspect(&self, suspect: Suspect) {
        // Full: this is only a hint, and the schedule finds the blob too. Disconnected: the thread cannot have ended.
        let _ = self.scrubber.try_send(suspect);
    }

    fn look_at(&self, suspect: Suspect) {
        self.state().scrubbed.suspicions += 1;
        match suspect {
            // `verify` handles whatever it finds.
            Suspect::Key(key) => drop(self.verify(&key, &digest_of(&key))),
            Suspect::Replaced(key, file) => {
                let trailer = file
                    .metadata()
                    .and_then(|found| Trailer::read(&file, key.as_str(), found.len()));
                let found = trailer
                    .map_err(Flaw::from)
                    .and_then(|trailer| check(&file, &trailer.ok_or(Flaw::Broken(Kind::Trailer))?));
                if let Err(Flaw::Broken(kind)) = found {
                    let path = self.path_of(&key, &digest_of(&key));
                    warn_of(kind, &path, Some(&key), "a client has replaced");
                    self.state().flaws.count(kind);
                }
            }
        }
    }

    /// Verifies one blob on schedule.
    pub(super) fn scrub(&self, item: &Item) {
        let path = self.path_of_item(item);
        let (file, found) = match open_own(&path, &item.digest) {
            Ok((file, trailer)) => {
                let found = check_and_forget(&file, &trailer);
                (Some(file), found)
            }
            Err(flaw) => (None, Err(flaw)),
        };
        {
            let mut state = self.state();
            state.scrubbed.checked += 1;
            if found.is_ok() {
                state.lru.mark_checked(&item.digest);
                return;
            }
        }
        // Checked again with the lock, under which it cannot be added or removed. The body, which may be long, is not.
        let _lock = self.lock_key(&item.digest);
        if self.state().lru.presence(&item.digest) != Presence::Live {
            return;
        }
        let flaw = match (open_own(&path, &item.digest), found) {
            (Err(flaw), _) => flaw,
            (Ok(_), Err(flaw)) if file.is_some_and(|file| is_in_place(&file, &path)) => flaw,
            // It has been replaced.
            (Ok(_), _) => return,
        };
        let key = end_of(&path).and_then(|end| Key::from_canonical(&end.key).ok());
        match flaw {
            Flaw::Missing => drop(self.vanished(&item.digest)),
            Flaw::Broken(kind) => {
                self.state().scrubbed.corrupt += 1;
                self.remove_broken(&item.digest, &path, key.as_ref(), kind);
            }
            Flaw::Io(error) => drop(self.fault("read blob", &path, error)),
        }
    }

    fn end_part(&self) {
        let (part, last_full) = {
            let scrubbed = &mut self.state().scrubbed;
            scrubbed.part = scrubbed.part.wrapping_add(1);
            if scrubbed.part == 0 {
                scrubbed.last_full = Some(now());
            }
            (scrubbed.part, scrubbed.last_full)
        };
        let seconds = last_full.map_or(0, |at| micros(at) / 1_000_000);
        // A failure is recorded, and costs the next start a part of the pass.
        let _ = self.note_in_file("scrub", &format!("{part} {seconds}\n"));
    }
}

/// The next part and the end of the last full pass; the beginning if the file cannot be read.
fn read_progress(path: &Path) -> (u8, Option<SystemTime>) {
    let text = fs::read_to_string(path).unwrap_or_default();
    let read = text
        .strip_suffix('\n')
        .and_then(|line| line.split_once(' '));
    let Some((Ok(part), Ok(seconds))) = read.map(|(part, seconds)| (part.parse(), seconds.parse()))
    else {
        return (0, None);
    };
    let at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
    (part, at.filter(|_| seconds > 0))
}

/// The trailer of a blob's file, if it is valid.
pub(super) fn end_of(path: &Path) -> Option<Whole> {
    let (file, len, _) = open_file(path).ok()?;
    Trailer::read_any(&file, len).ok()?
}

/// Opens the file of a blob whose key has this digest, and reads its trailer.
fn open_own(path: &Path, digest: &Digest) -> Result<(File, Trailer), Flaw> {
    let (file, len, _) = open_file(path)?;
    let read = Trailer::read_any(&file, len)?;
    let own =
        read.filter(|it| Key::from_canonical(&it.key).is_ok_and(|key| digest_of(&key) == *digest));
    let own = own.ok_or(Flaw::Broken(Kind::Trailer))?;
    Ok((file, own.trailer))
}

/// Verifies a body's checksum, and leaves no more of the file in the page cache than before.
fn check_and_forget(file: &File, trailer: &Trailer) -> Result<(), Flaw> {
    let is_in_use = page_cache::read(file, &mut [0], 0).unwrap_or(false);
    let found = check(file, trailer);
    if !is_in_use {
        // File systems without support for it may keep the pages.
        let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed);
    }
    found
}

/// Verifies a body's checksum at limited speed.
fn check(file: &File, trailer: &Trailer) -> Result<(), Flaw> {
    let pace = |read| sleep(Duration::from_secs(read as u64) / BYTES_PER_SECOND as u32);
    if trailer.body_is_whole_at_pace(file, pace)? {
        Ok(())
    } else {
        Err(Flaw::Broken(Kind::Body))
    }
}
