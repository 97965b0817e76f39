//! A blob's file: opened, found whole, or removed; index and disk brought into agreement.

use super::trailer::Trailer;
use super::{Error, Inner, micros};
use crate::gateway::key::Key;
use crate::gateway::lru::{Digest, Item, Presence};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::SystemTime;

/// A blob's file with its trailer.
pub(super) struct Opened {
    pub(super) file: File,
    file_len: u64,
    used: SystemTime,
    pub(super) trailer: Trailer,
}

/// Why a blob's file cannot be served.
enum Flaw {
    Missing,
    Broken,
    Io(io::Error),
}

/// How much of a file is read to find it whole.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Depth {
    Trailer,
    Body,
}

impl Inner {
    /// Opens a blob's file, of which the index knows or, while the scan is going on, may not know yet.
    pub(super) fn find(&self, key: &Key, digest: &Digest, indexed: bool) -> Result<Opened, Error> {
        if indexed {
            let path = self.path_of(key, digest);
            match open_blob(&path, key, Depth::Trailer) {
                Ok(opened) => return Ok(opened),
                Err(Flaw::Io(error)) => return Err(self.fault("read blob", &path, error)),
                Err(Flaw::Missing | Flaw::Broken) => {}
            }
        }
        self.examine(key, digest, Depth::Trailer)
    }

    /// Looks again with the key's stripe held, so that what is seen cannot be a blob on its way in or out, and
    /// brings index and disk into agreement.
    pub(super) fn examine(
        &self,
        key: &Key,
        digest: &Digest,
        depth: Depth,
    ) -> Result<Opened, Error> {
        let path = self.path_of(key, digest);
        let _stripe = self.stripe(digest);
        match open_blob(&path, key, depth) {
            Ok(opened) => {
                let mut state = self.state();
                if state.unscanned(digest) {
                    let namespace = state
                        .namespaces
                        .intern(key.namespace())
                        .ok_or(Error::Missing)?;
                    let item = Item {
                        digest: *digest,
                        namespace,
                    };
                    state
                        .lru
                        .admit(item, self.disk_bytes(opened.file_len), micros(opened.used));
                }
                // Doomed meanwhile, or put there by somebody else: not ours to serve.
                if state.lru.presence(digest) == Presence::Live {
                    Ok(opened)
                } else {
                    Err(Error::Missing)
                }
            }
            Err(Flaw::Missing) => Err(self.vanished(digest)),
            Err(Flaw::Broken) => Err(self.remove_broken(digest, &path)),
            Err(Flaw::Io(error)) => Err(self.fault("read blob", &path, error)),
        }
    }

    /// Forgets a blob whose file is not there. The key's stripe is held.
    pub(super) fn vanished(&self, digest: &Digest) -> Error {
        let mut state = self.state();
        if state.lru.presence(digest) == Presence::Live {
            state.lru.remove(digest);
            state.vanished_entries += 1;
        }
        Error::Missing
    }

    /// Removes a file of ours that is not whole. The key's stripe is held.
    pub(super) fn remove_broken(&self, digest: &Digest, path: &Path) -> Error {
        if let Err(error) = fs::remove_file(path) {
            return self.fault("remove broken blob", path, error);
        }
        tracing::warn!(file = %path.display(), "removed a blob that was not whole");
        let mut state = self.state();
        state.broken_entries += 1;
        if state.lru.presence(digest) == Presence::Live {
            state.lru.remove(digest);
        }
        Error::Missing
    }
}

/// Opens a blob's file and reads its trailer.
fn open_blob(path: &Path, key: &Key, depth: Depth) -> Result<Opened, Flaw> {
    // Neither a link nor a pipe in a blob's place may lead elsewhere or block.
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) => {
            return Err(match error.raw_os_error() {
                Some(nix::libc::ENOENT) => Flaw::Missing,
                Some(nix::libc::ELOOP) => Flaw::Broken,
                _ => Flaw::Io(error),
            });
        }
    };
    let metadata = file.metadata().map_err(Flaw::Io)?;
    if metadata.is_dir() {
        // Not ours to remove.
        return Err(Flaw::Missing);
    }
    if !metadata.is_file() {
        return Err(Flaw::Broken);
    }
    let trailer = Trailer::read(&file, key.as_str(), metadata.len())
        .map_err(Flaw::Io)?
        .ok_or(Flaw::Broken)?;
    if depth == Depth::Body && !trailer.body_is_whole(&file).map_err(Flaw::Io)? {
        return Err(Flaw::Broken);
    }
    let used = metadata.modified().map_err(Flaw::Io)?;
    Ok(Opened {
        file,
        file_len: metadata.len(),
        used,
        trailer,
    })
}
