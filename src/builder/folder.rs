//! The folder of a job on the disk, and what the job leaves in it.
//!
//! `sccache-dist` makes one for each, `builds/TOOLCHAIN-NUMBER`, with an overlay: `upper` takes what is written, `target`
//! is where it is mounted and what the job sees as `/`. When the job has ended, `sccache-dist` opens its outputs there,
//! whatever they are by then: a FIFO would hold it for ever.

use crate::builder::scratch::Scratch;
use nix::mount::{MntFlags, umount2};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, openat, statat};
use rustix::io::Errno;
use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

/// Files, folders and links that no job needs more of.
pub(super) const FILES: u64 = 100_000;
/// Where a job's own tmpfs is mounted.
const OWN: &str = "own";
/// What it shares by name.
const SHM: &str = "shm";
/// No sources lie deeper.
const DEPTH: usize = 128;

/// Where `sccache-dist` has put a job.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    /// Where the job writes instead, if the folder is in memory.
    scratch: Option<Scratch>,
}

/// What lies in a job's folder: its inputs, and what it has written.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Content {
    /// Bytes on the disk, holes not counted.
    pub(super) bytes: u64,
    /// Files, folders and links.
    pub(super) files: u64,
    /// There is a FIFO, a socket or a device, or what cannot be looked into.
    pub(super) is_strange: bool,
}

impl Folder {
    /// The folder of the job that bubblewrap is called for with these arguments; `None` where they are not
    /// `sccache-dist`'s.
    pub(super) fn of(arguments: &[OsString]) -> Option<Folder> {
        let bound = arguments.windows(3);
        let mut bound = bound.filter(|three| three[0] == "--bind" && three[2] == "/");
        let target = Path::new(&bound.next()?[1]);
        let folder = target.parent()?;
        let is_a_job = target.file_name()? == "target" && folder.parent()?.ends_with("builds");
        is_a_job.then(|| Folder {
            path: folder.into(),
            scratch: None,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Lets the kernel hold the job to so many bytes, if its folder is in memory.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) fn bound(&mut self, bytes: u64) -> io::Result<()> {
        if Scratch::is_needed(&self.path) {
            let (own, target) = (self.path.join(OWN), self.path.join("target"));
            self.scratch = Some(Scratch::mount(own, &target, bytes, FILES)?);
        }
        Ok(())
    }

    /// Bytes of memory that the job's files take.
    pub(super) fn memory_bytes(&self) -> u64 {
        self.scratch.as_ref().map_or(0, Scratch::bytes)
    }

    /// Whether the kernel has held the job to its bound.
    pub(super) fn is_full(&self) -> bool {
        self.scratch.as_ref().is_some_and(Scratch::is_full)
    }

    /// Whether the job in this folder has all its inputs: we have been called for it.
    pub(super) fn is_unpacked(path: &Path) -> bool {
        [OWN, SHM].iter().any(|name| path.join(name).exists())
    }

    /// Its name: the hash of the toolchain, and a number.
    pub(super) fn name(&self) -> Option<&str> {
        self.path.file_name()?.to_str()
    }

    /// A folder for what programs share by name, as they do in memory elsewhere; counted with the rest.
    ///
    /// # Errors
    /// It cannot be made.
    pub(super) fn shm(&self) -> io::Result<PathBuf> {
        if let Some(scratch) = &self.scratch {
            return Ok(scratch.shm());
        }
        let shm = self.path.join(SHM);
        std::fs::create_dir(&shm)?;
        Ok(shm)
    }

    /// What lies there by now, at least.
    pub(super) fn content(&self, enough: u64) -> Content {
        let inputs = self.path.join("upper");
        let written = match &self.scratch {
            Some(scratch) => vec![scratch.upper(), scratch.shm()],
            None => vec![self.path.join(SHM)],
        };
        Content::of([inputs].into_iter().chain(written), enough)
    }

    /// Leaves `sccache-dist` nothing to open: it finds the empty folder that the job was mounted on.
    ///
    /// # Errors
    /// The overlay is not ours to take away.
    pub(super) fn withhold(&self) -> nix::Result<()> {
        let mounts = 1 + usize::from(self.scratch.is_some());
        let target = self.path.join("target");
        (0..mounts).try_for_each(|_| umount2(&target, MntFlags::MNT_DETACH))
    }
}

impl Content {
    /// Goes through what lies in these folders, and stops at more than `enough` bytes or [`FILES`]. Others may still be at
    /// work there: no link is followed.
    pub(super) fn of(folders: impl IntoIterator<Item = impl AsRef<Path>>, enough: u64) -> Content {
        let (mut content, mut open) = (Content::default(), Vec::new());
        for path in folders {
            match folder(CWD, path.as_ref()) {
                Ok(folder) => open.push(folder),
                Err(_) => content.is_strange = true,
            }
        }
        loop {
            let depth = open.len();
            let Some(current) = open.last_mut() else {
                return content;
            };
            if content.bytes > enough || content.files > FILES {
                return content;
            }
            let Some(entry) = current.next() else {
                open.pop();
                continue;
            };
            let Ok(entry) = entry else {
                content.is_strange = true;
                return content;
            };
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let parent = current.fd();
            match parent.and_then(|parent| content.add(parent, name, depth)) {
                Ok(Some(below)) => open.push(below),
                // It was changed since.
                Ok(None) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(_) => content.is_strange = true,
            }
        }
    }

    /// Counts an entry of an open folder; gives it where it is a folder.
    fn add<Fd: AsFd>(
        &mut self,
        parent: Fd,
        name: &std::ffi::CStr,
        depth: usize,
    ) -> rustix::io::Result<Option<Dir>> {
        let found = statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
        self.files += 1;
        self.bytes += u64::try_from(found.st_blocks).unwrap_or(0) * 512;
        match FileType::from_raw_mode(found.st_mode) {
            FileType::Directory if depth < DEPTH => return folder(parent, name).map(Some),
            FileType::RegularFile | FileType::Symlink => {}
            // How an overlay says that something was removed.
            FileType::CharacterDevice if found.st_rdev == 0 => {}
            _ => self.is_strange = true,
        }
        Ok(None)
    }
}

fn folder<Fd: AsFd, P: rustix::path::Arg>(parent: Fd, name: P) -> rustix::io::Result<Dir> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Dir::new(openat(parent, name, flags, Mode::empty())?)
}

#[cfg(test)]
impl Folder {
    pub(super) fn at(path: &Path) -> Folder {
        Folder {
            path: path.into(),
            scratch: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn words(text: &str) -> Vec<OsString> {
        text.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn folder_is_found_in_the_arguments_of_sccache_dist() {
        let call = "--unshare-net --bind /b/builds/0123-17/target / --proc /proc -- cc";
        let folder = Folder::of(&words(call)).unwrap();
        assert_eq!(folder.name(), Some("0123-17"));
        let trial = "--bind /b/trial-7/target / -- cc";
        for other in ["--version", "--bind / / -- cc", trial] {
            assert!(Folder::of(&words(other)).is_none(), "{other}");
        }
    }

    #[test]
    fn content_is_counted_without_following_links() {
        let job = tempfile::tempdir().unwrap();
        let upper = job.path().join("upper");
        fs::create_dir_all(upper.join("a/b")).unwrap();
        fs::write(upper.join("a/b/c"), [1; 10_000]).unwrap();
        std::os::unix::fs::symlink("/usr", upper.join("a/usr")).unwrap();
        let folder = Folder::at(job.path());
        fs::write(folder.shm().unwrap().join("shared"), "").unwrap();
        let content = folder.content(u64::MAX);
        assert_eq!((content.files, content.is_strange), (5, false));
        assert!(content.bytes >= 10_000, "{content:?}");
        assert!(folder.content(1).files < 5);
        nix::unistd::mkfifo(&upper.join("a/b/fifo"), nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert!(folder.content(u64::MAX).is_strange);
    }

    #[test]
    fn folders_in_folders_come_to_an_end() {
        let job = tempfile::tempdir().unwrap();
        let deep = (0..DEPTH).fold(job.path().join("upper"), |path, _| path.join("d"));
        fs::create_dir_all(&deep).unwrap();
        let folder = Folder::at(job.path());
        folder.shm().unwrap();
        assert!(folder.content(u64::MAX).is_strange);
    }
}
