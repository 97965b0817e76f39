//! What a job writes where the builder's folder is in memory: a tmpfs of its own, which the kernel keeps within a bound.
//!
//! On a disk the kernel tells what a process has written. Of a tmpfs it does not, and what lies in a file that was removed
//! since, or in pages that no process maps any more, is in no count. So the job's root gets one more overlay, whose upper
//! layer is a tmpfs with a size. It lies over the first, where `sccache-dist` looks for outputs, and goes with the job's
//! mount namespace.

use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use nix::sys::statvfs::statvfs;
use std::io;
use std::path::{Path, PathBuf};

/// Files beside those of the job, of the overlay itself.
const SPARE_FILES: u64 = 16;
/// More than any machine has.
const MOST: u64 = 1 << 44;

/// A mounted tmpfs with the overlay's layer and what the job shares by name.
#[derive(Debug)]
pub(super) struct Scratch(PathBuf);

impl Scratch {
    /// Whether files in this folder lie in memory.
    pub(super) fn is_needed(folder: &Path) -> bool {
        statfs(folder).is_ok_and(|found| found.filesystem_type() == TMPFS_MAGIC)
    }

    /// Mounts a tmpfs of so many bytes and files at `path`, and with it an overlay over the job's root `target`.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) fn mount(
        path: PathBuf,
        target: &Path,
        bytes: u64,
        files: u64,
    ) -> io::Result<Scratch> {
        std::fs::create_dir(&path)?;
        let files = files + SPARE_FILES;
        let options = format!("size={},nr_inodes={files},mode=0755", bytes.min(MOST));
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(
            Some("tmpfs"),
            &path,
            Some("tmpfs"),
            flags,
            Some(options.as_str()),
        )?;
        let scratch = Scratch(path);
        let [upper, work, shm] = [scratch.upper(), scratch.0.join("work"), scratch.shm()];
        for folder in [&upper, &work, &shm] {
            std::fs::create_dir(folder)?;
        }
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            target.display(),
            upper.display(),
            work.display()
        );
        mount(
            Some("overlay"),
            target,
            Some("overlay"),
            MsFlags::empty(),
            Some(options.as_str()),
        )?;
        Ok(scratch)
    }

    /// What the job has written.
    pub(super) fn upper(&self) -> PathBuf {
        self.0.join("upper")
    }

    /// What it shares by name.
    pub(super) fn shm(&self) -> PathBuf {
        self.0.join("shm")
    }

    /// Bytes that it takes, of files without a name too.
    pub(super) fn bytes(&self) -> u64 {
        let found = statvfs(&self.0);
        found.map_or(0, |found| {
            (found.blocks() - found.blocks_free()) * found.fragment_size()
        })
    }

    /// Whether nothing more goes in.
    pub(super) fn is_full(&self) -> bool {
        statvfs(&self.0).is_ok_and(|found| found.blocks_free() == 0 || found.files_free() == 0)
    }
}
