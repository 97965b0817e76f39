//! The file: opened or set aside, and how values are written in it.

use crate::gateway::history::Point;
use redb::{Database as File, DatabaseError};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tracing::warn;

/// Memory that it may take.
const CACHE_BYTES: usize = 4 << 20;
/// How long a gateway that is just ending may keep the file.
const TRIES: u32 = 50;
const PAUSE: Duration = Duration::from_millis(20);

/// Opens the file, and begins a new one beside one that cannot be read.
pub(super) fn open_file(path: &Path) -> Result<File, DatabaseError> {
    let open = || File::builder().set_cache_size(CACHE_BYTES).create(path);
    for _ in 0..TRIES {
        match open() {
            Err(DatabaseError::DatabaseAlreadyOpen) => std::thread::sleep(PAUSE),
            Err(cause) if is_broken(&cause) => {
                let aside = set_aside(path);
                warn!(
                    "cannot read \"{}\": {cause}; it is kept as \"{}\", and history begins anew",
                    path.display(),
                    aside.display()
                );
                return open();
            }
            opened => return opened,
        }
    }
    open()
}

pub(super) fn bytes_of(point: &Point) -> Vec<u8> {
    let Point {
        hits,
        misses,
        writes,
        bytes_read,
        bytes_written,
    } = point;
    let all = [hits, misses, writes, bytes_read, bytes_written];
    all.into_iter().flat_map(|it| it.to_le_bytes()).collect()
}

pub(super) fn point_of(bytes: &[u8]) -> Option<Point> {
    let mut numbers = bytes
        .chunks_exact(8)
        .filter_map(|it| it.try_into().ok().map(u64::from_le_bytes));
    Some(Point {
        hits: numbers.next()?,
        misses: numbers.next()?,
        writes: numbers.next()?,
        bytes_read: numbers.next()?,
        bytes_written: numbers.next()?,
    })
}

/// What cannot be encoded is nothing to be kept.
pub(super) fn encode(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

/// What a later version has written otherwise is not known.
pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    serde_json::from_slice(bytes).ok()
}

/// Whether another try with this file must fail too.
fn is_broken(error: &redb::DatabaseError) -> bool {
    use redb::{DatabaseError, StorageError};
    match error {
        DatabaseError::UpgradeRequired(_) | DatabaseError::RepairAborted => true,
        DatabaseError::Storage(StorageError::Corrupted(_)) => true,
        // What is no database at all.
        DatabaseError::Storage(StorageError::Io(cause)) => {
            cause.kind() == std::io::ErrorKind::InvalidData
        }
        _ => false,
    }
}

fn set_aside(path: &Path) -> PathBuf {
    let aside = path.with_extension("redb.broken");
    // Only the last one is kept. If it cannot be moved, the next try to open it says so.
    let _ = std::fs::rename(path, &aside);
    aside
}
