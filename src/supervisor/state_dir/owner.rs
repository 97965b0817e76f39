//! Working as root in a folder of another user, who may put a link at any name in it at any moment.
//!
//! What can be done with that user's rights is done with them ([`AsUser`]), so that a link gives access to nothing new.
//! What needs root is done through open folders, moving from one to the next without following links ([`hand_over`]),
//! or where only root can have created anything ([`is_roots_alone`]).

use crate::base::regular_file;
use crate::contract::service::RunAs;
use nix::unistd::{setfsgid, setfsuid};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, fstat, openat};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};
use std::fs::{self, File, Metadata};
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path};

/// While this exists, the thread accesses files with this user's rights.
pub(crate) struct AsUser {
    before: Option<(nix::unistd::Uid, nix::unistd::Gid)>,
    /// Bound to its thread.
    _here: PhantomData<*const ()>,
}

impl AsUser {
    /// Does nothing if there is no user to switch to.
    pub(crate) fn of(user: Option<RunAs>) -> AsUser {
        let before = user.map(|user| {
            let group = setfsgid(nix::unistd::Gid::from_raw(user.gid));
            (setfsuid(nix::unistd::Uid::from_raw(user.uid)), group)
        });
        AsUser {
            before,
            _here: PhantomData,
        }
    }
}

impl Drop for AsUser {
    fn drop(&mut self) {
        if let Some((user, group)) = self.before {
            setfsuid(user);
            setfsgid(group);
        }
    }
}

/// Opens a folder named by the operator. A link there is followed only if it is ours, or if its owner also owns the
/// target.
pub(super) fn open_top(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::open(path, flags, Mode::empty())?;
    // Without a trailing slash, which would follow the link.
    let link = fs::symlink_metadata(path.components().as_path())?;
    let owner = fstat(&folder)?.st_uid;
    let is_trusted = [0, nix::unistd::geteuid().as_raw(), owner].contains(&link.uid());
    if link.is_symlink() && !is_trusted {
        let text = format!(
            "it is a link of user {}, to something they do not own",
            link.uid()
        );
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    Ok(folder)
}

/// Opens a folder in another one, which must not be a link; creates it for `user` if it is missing.
pub(super) fn open_below(
    folder: BorrowedFd<'_>,
    name: &Path,
    mode: u32,
    user: Option<RunAs>,
) -> io::Result<OwnedFd> {
    let made = match rustix::fs::mkdirat(folder, name, Mode::from_raw_mode(mode)) {
        Err(Errno::EXIST) => false,
        made => made.map(|()| true)?,
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let below = openat(folder, name, flags, Mode::empty()).map_err(|error| match error {
        Errno::LOOP | Errno::NOTDIR => not_a("folder"),
        error => error.into(),
    })?;
    if let Some(user) = user.filter(|_| made) {
        rustix::fs::fchown(&below, Some(uid(user)), Some(gid(user)))?;
    }
    Ok(below)
}

/// Opens a file in a folder for writing that only its owner can read; creates it if it is missing, and gives it to
/// `user`. Links and files with several names are refused, because they would be given away as well.
pub(super) fn private_file_in(
    folder: BorrowedFd<'_>,
    name: &Path,
    user: Option<RunAs>,
) -> io::Result<File> {
    let flags =
        OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    let file = openat(folder, name, flags, mode).map_err(|error| match error {
        Errno::LOOP => not_a("file"),
        error => error.into(),
    })?;
    let file = File::from(file);
    regular_file::check(&file)?;
    if fstat(&file)?.st_nlink > 1 {
        return Err(not_a("file"));
    }
    rustix::fs::fchmod(&file, mode)?;
    if let Some(user) = user {
        rustix::fs::fchown(&file, Some(uid(user)), Some(gid(user)))?;
    }
    Ok(file)
}

fn not_a(what: &str) -> io::Error {
    let text = format!("it is a link, or not a {what}");
    io::Error::new(io::ErrorKind::InvalidInput, text)
}

/// Gives the services' user what an earlier run as another user left at a name, and everything below it; otherwise the
/// services could neither read the token nor evict blobs. Anything but folders and files with a single name is left
/// alone, because no run leaves such things.
///
/// The top is changed last, so that its owner shows whether everything below is done.
pub(super) fn hand_over(folder: BorrowedFd<'_>, name: &Path, user: RunAs) -> io::Result<()> {
    let mut parts = name.components().map(|part| part.as_os_str()).peekable();
    let mut way: Option<OwnedFd> = None;
    while let Some(part) = parts.next() {
        let from = way.as_ref().map_or(folder, AsFd::as_fd);
        if parts.peek().is_none() {
            return give(from, part.as_bytes(), user, true);
        }
        match entry(from, part.as_bytes())? {
            Some((found, stat)) if is_folder(&stat) => way = Some(found),
            _ => return Ok(()),
        }
    }
    Ok(())
}

/// The same for this name alone.
pub(super) fn hand_over_one(folder: BorrowedFd<'_>, name: &Path, user: RunAs) -> io::Result<()> {
    give(folder, name.as_os_str().as_bytes(), user, false)
}

/// Opens whatever is at a name, even a link, without access to its content.
fn entry(folder: BorrowedFd<'_>, name: &[u8]) -> io::Result<Option<(OwnedFd, Stat)>> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match openat(folder, name, flags, Mode::empty()) {
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
        Ok(found) => {
            let stat = fstat(&found)?;
            Ok(Some((found, stat)))
        }
    }
}

fn give(folder: BorrowedFd<'_>, name: &[u8], user: RunAs, deeply: bool) -> io::Result<()> {
    let Some((found, stat)) = entry(folder, name)? else {
        return Ok(());
    };
    let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    let is_one = is_folder(&stat) || (is_file && stat.st_nlink == 1);
    if stat.st_uid == user.uid || !is_one {
        return Ok(());
    }
    if deeply && is_folder(&stat) {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = openat(&found, c".", flags, Mode::empty())?;
        for below in Dir::read_from(&open)? {
            let below = below?;
            let name = below.file_name().to_bytes();
            if !matches!(name, b"." | b"..") {
                give(open.as_fd(), name, user, true)?;
            }
        }
    }
    let (owner, group) = (Some(uid(user)), Some(gid(user)));
    // Applies to the file that was examined, whatever is at the name by now.
    rustix::fs::chownat(&found, c"", owner, group, AtFlags::EMPTY_PATH)?;
    Ok(())
}

fn is_folder(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

pub(super) fn uid(user: RunAs) -> Uid {
    Uid::from_raw(user.uid)
}

pub(super) fn gid(user: RunAs) -> Gid {
    Gid::from_raw(user.gid)
}

/// Whether only root can have put anything on the path to this folder, or in it.
pub(super) fn is_roots_alone(folder: &Path) -> bool {
    let shared = |found: &Metadata| {
        let mode = found.mode();
        let by_group = mode & 0o020 != 0 && found.gid() != 0;
        (by_group || mode & 0o002 != 0) && mode & 0o1000 == 0
    };
    let plain = folder
        .components()
        .all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    plain
        && folder.ancestors().all(|path| {
            let found = fs::symlink_metadata(path);
            found.is_ok_and(|found| found.uid() == 0 && (found.is_symlink() || !shared(&found)))
        })
}

/// Reads a file that contains a token. It must not be a link, and must belong to us, to root, or to the owner of its
/// folder.
pub(super) fn read_token(path: &Path) -> io::Result<String> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty()).map_err(|error| match error {
        Errno::LOOP => not_a("file"),
        error => error.into(),
    })?;
    let file = File::from(file);
    regular_file::check(&file)?;
    let owner = fs::metadata(path.parent().unwrap_or(path))?.uid();
    let found = file.metadata()?.uid();
    if ![0, nix::unistd::geteuid().as_raw(), owner].contains(&found) {
        let text = format!("it belongs to user {found}, its folder to user {owner}");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    regular_file::text_of(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{chown, symlink};
    use tempfile::TempDir;

    const ALICE: RunAs = RunAs {
        uid: 12345,
        gid: 12346,
    };

    /// In CI these tests must not pass by doing nothing.
    fn is_root() -> bool {
        let is_root = nix::unistd::geteuid().is_root();
        assert!(is_root || std::env::var_os("CI").is_none(), "only root can");
        is_root
    }

    fn owner(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().uid()
    }

    #[test]
    fn only_files_and_folders_of_one_name_are_handed_over() {
        if !is_root() {
            return;
        }
        let (folder, victim) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let at = |name: &str| folder.path().join(name);
        let secret = victim.path().join("secret");
        fs::write(&secret, "x").unwrap();
        fs::create_dir_all(at("cache/blobs/ab")).unwrap();
        fs::write(at("cache/blobs/ab/one"), "x").unwrap();
        fs::hard_link(&secret, at("cache/blobs/hard")).unwrap();
        symlink(&secret, at("cache/blobs/soft")).unwrap();
        symlink(victim.path(), at("cache/tmp")).unwrap();
        symlink(victim.path(), at("linked")).unwrap();
        let top = open_top(folder.path()).unwrap();
        for name in ["cache/blobs", "cache/tmp", "linked/secret", "none/at/all"] {
            hand_over(top.as_fd(), Path::new(name), ALICE).unwrap();
        }
        for (name, uid) in [
            ("cache", 0),
            ("cache/blobs", ALICE.uid),
            ("cache/blobs/ab", ALICE.uid),
            ("cache/blobs/ab/one", ALICE.uid),
            ("cache/blobs/hard", 0),
            ("cache/blobs/soft", 0),
            ("cache/tmp", 0),
        ] {
            assert_eq!(owner(&at(name)), uid, "{name}");
        }
        assert_eq!((owner(victim.path()), owner(&secret)), (0, 0));
        hand_over_one(top.as_fd(), Path::new("cache"), ALICE).unwrap();
        assert_eq!(owner(&at("cache")), ALICE.uid);
    }

    #[test]
    fn link_of_somebody_else_to_what_is_not_theirs_is_no_folder() {
        if !is_root() {
            return;
        }
        let (folder, target) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let link = folder.path().join("link");
        symlink(target.path(), &link).unwrap();
        assert!(open_top(&link).is_ok());
        std::os::unix::fs::lchown(&link, Some(ALICE.uid), None).unwrap();
        assert!(open_top(&link).is_err());
        assert!(open_top(&link.join("")).is_err());
        chown(target.path(), Some(ALICE.uid), None).unwrap();
        assert!(open_top(&link).is_ok());
        assert!(!is_roots_alone(target.path()));
        assert!(is_roots_alone(folder.path()));
        assert!(!is_roots_alone(&folder.path().join("../x")));
    }

    #[test]
    fn files_are_made_as_the_user_and_then_as_before() {
        if !is_root() {
            return;
        }
        let folder = TempDir::new().unwrap();
        chown(folder.path(), Some(ALICE.uid), Some(ALICE.gid)).unwrap();
        let root_only = TempDir::new().unwrap();
        {
            let _user = AsUser::of(Some(ALICE));
            let _again = AsUser::of(Some(ALICE));
            fs::write(folder.path().join("theirs"), "x").unwrap();
            assert!(fs::write(root_only.path().join("no"), "x").is_err());
        }
        fs::write(folder.path().join("ours"), "x").unwrap();
        assert_eq!(owner(&folder.path().join("theirs")), ALICE.uid);
        assert_eq!(owner(&folder.path().join("ours")), 0);
    }

    #[test]
    fn token_of_another_user_and_a_link_to_one_are_not_read() {
        let folder = TempDir::new().unwrap();
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        fs::write(&file, "token").unwrap();
        symlink(&file, &link).unwrap();
        assert_eq!(read_token(&file).unwrap(), "token");
        assert!(read_token(&link).is_err());
        if is_root() {
            chown(&file, Some(ALICE.uid), None).unwrap();
            assert!(read_token(&file).is_err());
            chown(folder.path(), Some(ALICE.uid), None).unwrap();
            assert_eq!(read_token(&file).unwrap(), "token");
        }
    }
}
