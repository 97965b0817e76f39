//! Toolchains whose upload came to nothing: `sccache-dist` leaves what it had taken on the disk, counted by nobody until the
//! next start.

use crate::builder::toolchain::{self, REFUSED};
use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;
use tracing::warn;

/// How long after a look one that was still being written is looked at again.
const AGAIN: Duration = Duration::from_secs(2);
/// A file as it was found to be right.
type Known = HashMap<PathBuf, (u64, u64)>;

/// Looks whenever something large was sent, by a thread that sleeps meanwhile. The folder is that of packed toolchains, the
/// process the one that writes them.
pub(super) fn clean_up(toolchains: PathBuf, server: u32, uploaded: Receiver<()>) {
    std::thread::spawn(move || {
        let mut known = Known::new();
        while uploaded.recv().is_ok() {
            while look(&toolchains, server, &mut known) {
                match uploaded.recv_timeout(AGAIN) {
                    Ok(()) | Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        }
    });
}

/// Takes away what no archive of its name is; gives whether any is still being written.
fn look(toolchains: &Path, server: u32, known: &mut Known) -> bool {
    known.retain(|path, _| path.exists());
    let mut is_written = false;
    for path in archives(toolchains) {
        let Ok(metadata) = fs::metadata(&path) else {
            continue;
        };
        // Its times change with each use.
        let this = (metadata.ino(), metadata.len());
        if known.get(&path) == Some(&this) || metadata.len() <= REFUSED.len() as u64 {
            continue;
        }
        if has_open(server, &metadata) {
            is_written = true;
        } else if is_right(&path) {
            known.insert(path, this);
        } else if let Err(error) = fs::write(&path, REFUSED) {
            warn!("cannot remove what is left of an upload: {error}");
        } else {
            warn!(
                "the upload of a toolchain came to nothing: removed the {} MiB that are left of it",
                metadata.len() >> 20
            );
        }
    }
    is_written
}

/// `FIRST/SECOND/NAME`, by the first two digits of the name.
fn archives(toolchains: &Path) -> Vec<PathBuf> {
    let below = |folders: Vec<PathBuf>| -> Vec<PathBuf> {
        let entries = folders
            .iter()
            .filter_map(|folder| fs::read_dir(folder).ok());
        entries
            .flat_map(|entries| entries.flatten().map(|entry| entry.path()))
            .collect()
    };
    below(below(below(vec![toolchains.to_owned()])))
}

fn is_right(path: &Path) -> bool {
    let mut hasher = blake3::Hasher::new();
    let read = File::open(path).and_then(|file| hasher.update_reader(file).map(|_| ()));
    let name = path.file_name().and_then(|name| name.to_str());
    read.is_ok() && name == Some(&toolchain::called(&hasher.finalize()))
}

/// Whether a process has this file open.
fn has_open(pid: u32, file: &Metadata) -> bool {
    let open = fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten();
    open.flatten().any(|entry| {
        fs::metadata(entry.path())
            .is_ok_and(|open| (open.dev(), open.ino()) == (file.dev(), file.ino()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_of_an_upload_goes_unless_it_is_still_being_written() {
        let folder = tempfile::tempdir().unwrap();
        let put = |content: &str, name: &str| {
            let path = folder.path().join(&name[..1]).join(&name[1..2]).join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, content).unwrap();
            path
        };
        let name_of = |content: &str| toolchain::called(&blake3::hash(content.as_bytes()));
        let whole = put("a whole archive", &name_of("a whole archive"));
        let cut = put("the beginning", &name_of("the beginning and the end"));
        let mut known = Known::new();
        let open = File::open(&cut).unwrap();
        assert!(look(folder.path(), std::process::id(), &mut known));
        assert_eq!(fs::read_to_string(&cut).unwrap(), "the beginning");
        drop(open);
        assert!(!look(folder.path(), std::process::id(), &mut known));
        assert_eq!(fs::read_to_string(&cut).unwrap(), REFUSED);
        assert_eq!(fs::read_to_string(&whole).unwrap(), "a whole archive");
        assert_eq!(known.len(), 1);
    }
}
