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
    pub(super) used: SystemTime,
    pub(super) trailer: Trailer,
}

/// Why a blob's file cannot be served.
pub(super) enum Flaw {
    Missing,
    Broken(Kind),
    Io(io::Error),
}

impl From<io::Error> for Flaw {
    fn from(error: io::Error) -> Flaw {
        use nix::libc::{EBADMSG, EILSEQ, EIO, ENODATA, EUCLEAN};
        match error.raw_os_error() {
            // How file systems say that the disk, or what they had written to it, is damaged.
            Some(EIO | EUCLEAN | EBADMSG | ENODATA | EILSEQ) => Flaw::Broken(Kind::Unreadable),
            _ => Flaw::Io(error),
        }
    }
}

/// What is wrong with a corrupt blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The file was cut short, or its end was changed, or is another key's.
    Trailer,
    /// The body disagrees with its checksum.
    Body,
    /// The disk cannot read it.
    Unreadable,
}

/// How many corrupt blobs were found, by kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Flaws {
    /// The file was cut short, or its end was changed, or is another key's.
    pub trailer: u64,
    /// The body disagrees with its checksum.
    pub body: u64,
    /// The disk cannot read it.
    pub unreadable: u64,
}

impl Flaws {
    /// All kinds together.
    pub fn sum(&self) -> u64 {
        self.trailer + self.body + self.unreadable
    }

    pub(super) fn count(&mut self, kind: Kind) {
        *match kind {
            Kind::Trailer => &mut self.trailer,
            Kind::Body => &mut self.body,
            Kind::Unreadable => &mut self.unreadable,
        } += 1;
    }
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
                Err(Flaw::Missing | Flaw::Broken(_)) => {}
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
            Err(Flaw::Broken(kind)) => Err(self.remove_broken(digest, &path, Some(key), kind)),
            Err(Flaw::Io(error)) => Err(self.fault("read blob", &path, error)),
        }
    }

    /// Forgets a blob whose file is not there. The key's stripe is held.
    pub(super) fn vanished(&self, digest: &Digest) -> Error {
        {
            let mut state = self.state();
            if state.lru.presence(digest) == Presence::Live {
                state.lru.remove(digest);
                state.vanished_entries += 1;
            }
        }
        self.close(digest);
        Error::Missing
    }

    /// Removes a file of ours that is not whole. The key's stripe is held.
    pub(super) fn remove_broken(
        &self,
        digest: &Digest,
        path: &Path,
        key: Option<&Key>,
        kind: Kind,
    ) -> Error {
        if let Err(error) = fs::remove_file(path) {
            // It stays, counted, until it can be removed or replaced; it is a miss all the same.
            self.fault("remove broken blob", path, error);
            return Error::Missing;
        }
        warn_of(kind, path, key, "removed");
        {
            let mut state = self.state();
            state.flaws.count(kind);
            if state.lru.presence(digest) == Presence::Live {
                state.lru.remove(digest);
            }
        }
        self.close(digest);
        Error::Missing
    }
}

/// One line for each corrupt blob: it is gone with that, so there is no second one.
pub(super) fn warn_of(kind: Kind, path: &Path, key: Option<&Key>, done: &str) {
    let what = match kind {
        Kind::Trailer => "that was not whole",
        Kind::Body => "that disagreed with its checksum",
        Kind::Unreadable => "that the disk cannot read",
    };
    let key = key.map_or("unknown", Key::as_str);
    tracing::warn!(key, file = %path.display(), "{done} a blob {what}");
}

/// Opens a blob's file and reads its trailer.
fn open_blob(path: &Path, key: &Key, depth: Depth) -> Result<Opened, Flaw> {
    let (file, file_len, used) = open_file(path)?;
    let trailer = Trailer::read(&file, key.as_str(), file_len)?;
    let trailer = trailer.ok_or(Flaw::Broken(Kind::Trailer))?;
    if depth == Depth::Body && !trailer.body_is_whole(&file)? {
        return Err(Flaw::Broken(Kind::Body));
    }
    Ok(Opened {
        file,
        file_len,
        used,
        trailer,
    })
}

/// Opens a file in a blob's place: with its length and the time of its last use.
pub(super) fn open_file(path: &Path) -> Result<(File, u64, SystemTime), Flaw> {
    // Neither a link nor a pipe in a blob's place may lead elsewhere or block.
    let flags = nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK;
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) => {
            return Err(match error.raw_os_error() {
                Some(nix::libc::ENOENT) => Flaw::Missing,
                Some(nix::libc::ELOOP) => Flaw::Broken(Kind::Trailer),
                _ => error.into(),
            });
        }
    };
    let metadata = file.metadata()?;
    if metadata.is_dir() {
        // Not ours to remove.
        return Err(Flaw::Missing);
    }
    if !metadata.is_file() {
        return Err(Flaw::Broken(Kind::Trailer));
    }
    Ok((file, metadata.len(), metadata.modified()?))
}
