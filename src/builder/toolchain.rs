//! That a job's toolchain is the one it is called after: `sccache-dist` looks when it takes an archive, and keeps and runs
//! what it has found to be another all the same.
//!
//! A toolchain's name is the hash of its archive. The first job of an unpacked one compares them; what was unpacked from
//! something else goes, and so does the archive, in such a way that `sccache-dist` asks the next client for it.

use crate::builder::folder::Folder;
use nix::fcntl::{Flock, FlockArg};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What stands in place of an archive that is refused: something that does not unpack.
pub(super) const REFUSED: &str = "refused";

/// Why a job is not run.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error(
        "somebody sent another archive under the name of toolchain {0:.8}: the next client sends the right one"
    )]
    Archive(String),
    #[error("toolchain {0:.8} was unpacked from an archive that is gone: it is unpacked anew")]
    Unpacked(String),
}

/// Where `sccache-dist` has a toolchain.
struct UnpackedAt {
    name: String,
    packed: PathBuf,
    unpacked: PathBuf,
    /// Says which folder was found to be right, and is locked meanwhile.
    checked: PathBuf,
}

/// Refuses the toolchain of a job, unless its archive is what its name says.
///
/// # Errors
/// It is not, or it cannot be read.
pub(super) fn check(folder: &Folder) -> io::Result<()> {
    match UnpackedAt::of(folder) {
        Some(place) => place.check(),
        None => Err(io::Error::other("the job's toolchain has no name")),
    }
}

/// The archive of one of the unpacked toolchains in `DIR/build/toolchains`.
pub(super) fn packed(toolchains: &Path, name: &str) -> Option<PathBuf> {
    let (first, second) = (name.get(0..1)?, name.get(1..2)?);
    let dir = toolchains.parent()?.parent()?;
    Some(dir.join("cache/tc").join(first).join(second).join(name))
}

impl UnpackedAt {
    /// `DIR/build/builds/NAME-NUMBER` is a job's folder.
    fn of(folder: &Folder) -> Option<UnpackedAt> {
        let (name, _) = folder.name()?.rsplit_once('-')?;
        let build = folder.path().parent()?.parent()?;
        let toolchains = build.join("toolchains");
        Some(UnpackedAt {
            name: name.to_owned(),
            packed: packed(&toolchains, name)?,
            unpacked: toolchains.join(name),
            checked: build.join(format!("checked-{name}")),
        })
    }

    fn check(&self) -> io::Result<()> {
        let unpacked = fs::metadata(&self.unpacked)?;
        // One job reads it, the others wait for that.
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(false);
        let checked = Flock::lock(options.open(&self.checked)?, FlockArg::LockExclusive);
        let mut checked = checked.map_err(|(_, error)| error)?;
        let this = format!("{} {:?}", unpacked.ino(), changed(&unpacked));
        let mut before = String::new();
        checked.read_to_string(&mut before)?;
        if before == this {
            return Ok(());
        }
        match self.compare(changed(&unpacked)) {
            Ok(()) => {
                checked.set_len(0)?;
                checked.rewind()?;
                checked.write_all(this.as_bytes())
            }
            Err(refused) => {
                fs::remove_dir_all(&self.unpacked)?;
                if matches!(refused, Refused::Archive(_)) {
                    // `sccache-dist` strikes off what it cannot unpack, and nothing else.
                    fs::write(&self.packed, REFUSED)?;
                }
                Err(io::Error::other(refused))
            }
        }
    }

    /// Compares the archive with its name, and with what was unpacked at a time.
    fn compare(&self, unpacked: (i64, i64)) -> Result<(), Refused> {
        let file = File::open(&self.packed).map_err(|_| Refused::Unpacked(self.name.clone()))?;
        // `sccache-dist` marks the archive as used when it opens it to unpack, and whenever one was taken.
        let is_older = file
            .metadata()
            .is_ok_and(|packed| changed(&packed) <= unpacked);
        let mut hasher = blake3::Hasher::new();
        let read = hasher.update_reader(file).map(|_| ());
        match read {
            Ok(()) if called(&hasher.finalize()) != self.name => {
                Err(Refused::Archive(self.name.clone()))
            }
            Ok(()) if is_older => Ok(()),
            Ok(()) | Err(_) => Err(Refused::Unpacked(self.name.clone())),
        }
    }
}

/// When an inode changed last; nobody can set that.
fn changed(metadata: &fs::Metadata) -> (i64, i64) {
    (metadata.ctime(), metadata.ctime_nsec())
}

/// The name that sccache makes of a hash: the digits of each byte the other way round.
pub(super) fn called(hash: &blake3::Hash) -> String {
    let bytes = hash.as_bytes().iter();
    bytes
        .map(|byte| format!("{:02x}", byte.rotate_left(4)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A builder's folder with a job of the toolchain of this archive.
    struct Scene {
        dir: tempfile::TempDir,
        place: UnpackedAt,
    }

    impl Scene {
        fn new(archive: &str) -> Scene {
            let dir = tempfile::tempdir().unwrap();
            let name = called(&blake3::hash(archive.as_bytes()));
            let job = dir.path().join(format!("build/builds/{name}-1"));
            fs::create_dir_all(&job).unwrap();
            let place = UnpackedAt::of(&Folder::at(&job)).unwrap();
            fs::create_dir_all(place.packed.parent().unwrap()).unwrap();
            Scene { dir, place }
        }

        /// What `sccache-dist` does with an archive that it was given.
        fn take(&self, archive: &str) {
            self.later();
            fs::write(&self.place.packed, archive).unwrap();
        }

        fn unpack(&self) {
            self.later();
            fs::create_dir_all(self.place.unpacked.join("usr")).unwrap();
        }

        /// Waits until the clock of the file system has gone on.
        fn later(&self) {
            let file = self.dir.path().join("clock");
            let time = || {
                fs::write(&file, "").unwrap();
                changed(&fs::metadata(&file).unwrap())
            };
            let before = time();
            while time() == before {}
        }
    }

    #[test]
    fn right_toolchain_is_read_once() {
        let scene = Scene::new("archive");
        scene.take("archive");
        scene.unpack();
        scene.place.check().unwrap();
        // As after an eviction: what is unpacked was found to be right.
        fs::remove_file(&scene.place.packed).unwrap();
        scene.place.check().unwrap();
    }

    #[test]
    fn other_archive_is_refused_and_made_useless() {
        let scene = Scene::new("archive");
        scene.take("poison");
        scene.unpack();
        let refused = scene.place.check().unwrap_err().to_string();
        assert!(refused.contains("another archive"), "{refused}");
        assert!(!scene.place.unpacked.exists());
        assert_eq!(fs::read(&scene.place.packed).unwrap(), b"refused");
        scene.take("archive");
        scene.unpack();
        scene.place.check().unwrap();
    }

    #[test]
    fn right_archive_that_came_after_the_unpacking_helps_nobody() {
        let scene = Scene::new("archive");
        scene.take("poison");
        scene.unpack();
        fs::remove_file(&scene.place.packed).unwrap();
        scene.take("archive");
        assert!(scene.place.check().is_err());
        assert!(!scene.place.unpacked.exists());
        assert_eq!(fs::read(&scene.place.packed).unwrap(), b"archive");
        scene.unpack();
        scene.place.check().unwrap();
        // Unpacked anew after that, it is looked at anew.
        fs::remove_dir_all(&scene.place.unpacked).unwrap();
        scene.take("poison");
        scene.unpack();
        assert!(scene.place.check().is_err());
    }
}
