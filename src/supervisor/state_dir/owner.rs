//! Working as root in a folder of another user, who may put a link at any name in it at any moment.
//!
//! What can be done with that user's rights is done with them ([`AsUser`]), so that a link gives access to nothing new.
//! What needs root is done through open folders, moving from one to the next without following links ([`hand_over`]),
//! or where only root can have created anything ([`is_roots_alone`]).

use crate::base::regular_file;
use crate::contract::service::RunAs;
use nix::unistd::{setfsgid, setfsuid};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, openat};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};
use std::fs::{self, File, Metadata};
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
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
            return give(from, part.as_bytes(), user, Depth::Unfinished);
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
    give(folder, name.as_os_str().as_bytes(), user, Depth::One)
}

/// The same as [`hand_over`] for a name in this folder, and for what lies in folders that are the user's already.
pub(super) fn hand_over_whole(folder: BorrowedFd<'_>, name: &Path, user: RunAs) -> io::Result<()> {
    give(folder, name.as_os_str().as_bytes(), user, Depth::Whole)
}

/// What is given away with a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Depth {
    One,
    /// What is below folders that are not the user's yet.
    Unfinished,
    Whole,
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

fn give(folder: BorrowedFd<'_>, name: &[u8], user: RunAs, depth: Depth) -> io::Result<()> {
    let Some((found, stat)) = entry(folder, name)? else {
        return Ok(());
    };
    let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    let is_one = is_folder(&stat) || (is_file && stat.st_nlink == 1);
    let is_done = stat.st_uid == user.uid;
    if (is_done && depth != Depth::Whole) || !is_one {
        return Ok(());
    }
    if depth != Depth::One && is_folder(&stat) {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = openat(&found, c".", flags, Mode::empty())?;
        for below in Dir::read_from(&open)? {
            let below = below?;
            let name = below.file_name().to_bytes();
            if !matches!(name, b"." | b"..") {
                give(open.as_fd(), name, user, depth)?;
            }
        }
    }
    if is_done {
        return Ok(());
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
    let plain = folder
        .components()
        .all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    plain && folder.ancestors().all(|path| is_roots(path, 1))
}

/// Whether only root, or a group below this one, can put something else in the place of what is at this path.
fn is_roots(path: &Path, first_other_group: u32) -> bool {
    let found = fs::symlink_metadata(path);
    found.is_ok_and(|found| {
        let mode = found.mode();
        let by_group = mode & 0o020 != 0 && found.gid() >= first_other_group;
        let is_shared = (by_group || mode & 0o002 != 0) && mode & 0o1000 == 0;
        found.uid() == 0 && (found.is_symlink() || !is_shared)
    })
}

/// Whether we are root, and not of a user namespace in which others' files may seem to be nobody's.
pub(in crate::supervisor) fn is_real_root() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let is_whole = map.split_ascii_whitespace().eq(["0", "0", "4294967295"]);
    nix::unistd::geteuid().is_root() && is_whole
}

/// Whether only root, or a group of the system such as Debian's `staff`, can put another program in the place of this one.
pub(in crate::supervisor) fn is_roots_program(path: &Path) -> bool {
    const SYSTEM_GROUPS: u32 = 100;
    let target = fs::canonicalize(path);
    target.is_ok_and(|target| {
        let mut way = path.ancestors().chain(target.ancestors());
        way.all(|path| is_roots(path, SYSTEM_GROUPS))
    })
}

/// Opens a log for appending, or creates it. Where another user could put a link on the way to it, root does so with the rights
/// of that user, and follows no link.
pub(in crate::supervisor) fn open_to_append(path: &Path) -> io::Result<File> {
    let mut options = fs::OpenOptions::new();
    options.append(true).create(true);
    let way = path.ancestors().skip(1).enumerate();
    let way = way.filter_map(|(above, folder)| Some((above, fs::symlink_metadata(folder).ok()?)));
    // With the sticky bit, others can put something new there, but not in the place of what is root's.
    let is_shared = |above: usize, found: &Metadata| {
        let is_sticky = found.mode() & 0o1000 != 0;
        !found.is_symlink() && found.mode() & 0o002 != 0 && (above == 0 || !is_sticky)
    };
    let mut others = way.filter(|(above, found)| found.uid() != 0 || is_shared(*above, found));
    let others = others.next().filter(|_| nix::unistd::geteuid().is_root());
    let Some((_, other)) = others else {
        return options.open(path);
    };
    let user = RunAs {
        uid: other.uid(),
        gid: other.gid(),
    };
    let opened = {
        let _user = AsUser::of(Some(user));
        options
            .custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK)
            .open(path)
    };
    match opened {
        Ok(file) => one_of_one_name(file),
        Err(cause) if cause.raw_os_error() == Some(nix::libc::ELOOP) => Err(not_a("file")),
        Err(cause) if cause.kind() == io::ErrorKind::PermissionDenied => {
            take_over(path, user).map_err(|_| cause)
        }
        Err(cause) => Err(cause),
    }
}

/// Opens a log that an earlier run has left as root's in the folder of this user, and gives it to them. Nobody can have put a
/// file of root's there from elsewhere: no part of the path is a link, and the file has no other name.
fn take_over(path: &Path, user: RunAs) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let no_links = ResolveFlags::NO_SYMLINKS;
    let file = rustix::fs::openat2(rustix::fs::CWD, path, flags, Mode::empty(), no_links)?;
    let file = one_of_one_name(file.into())?;
    if fstat(&file)?.st_uid != 0 {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    rustix::fs::fchown(&file, Some(uid(user)), Some(gid(user)))?;
    Ok(file)
}

fn one_of_one_name(file: File) -> io::Result<File> {
    regular_file::check(&file)?;
    match file.metadata()?.nlink() {
        0 | 1 => Ok(file),
        _ => Err(not_a("file")),
    }
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
    use std::os::unix::fs::{PermissionsExt, chown, symlink};
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
        // What root has added since to what is hers.
        for name in ["cache/blobs/ab/two", "cache/blobs/new"] {
            fs::write(at(name), "x").unwrap();
        }
        hand_over(top.as_fd(), Path::new("cache"), ALICE).unwrap();
        assert_eq!(owner(&at("cache/blobs/new")), 0);
        hand_over_whole(top.as_fd(), Path::new("cache"), ALICE).unwrap();
        for name in ["cache/blobs/ab/two", "cache/blobs/new"] {
            assert_eq!(owner(&at(name)), ALICE.uid, "{name}");
        }
        for name in ["cache/blobs/hard", "cache/blobs/soft", "cache/tmp"] {
            assert_eq!(owner(&at(name)), 0, "{name}");
        }
        assert_eq!((owner(victim.path()), owner(&secret)), (0, 0));
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
    fn programs_that_others_can_replace_are_not_roots() {
        if !is_root() {
            return;
        }
        let folder = TempDir::new().unwrap();
        let at = |name: &str| folder.path().join(name);
        let program = at("bin/program");
        fs::create_dir(at("bin")).unwrap();
        fs::create_dir(at("links")).unwrap();
        fs::write(&program, "").unwrap();
        symlink(&program, at("links/program")).unwrap();
        let are_roots = || ["bin", "links"].map(|name| is_roots_program(&at(name).join("program")));
        assert_eq!(are_roots(), [true, true]);
        assert!(is_roots_program(Path::new("/bin/sh")));
        for (path, expected) in [
            ("bin/program", [false, false]),
            ("bin", [false, false]),
            ("links", [true, false]),
            ("", [false, false]),
        ] {
            chown(at(path), Some(ALICE.uid), None).unwrap();
            assert_eq!(are_roots(), expected, "{path}");
            chown(at(path), Some(0), None).unwrap();
        }
        let everybodys = |mode| fs::Permissions::from_mode(mode);
        fs::set_permissions(at("bin"), everybodys(0o777)).unwrap();
        assert_eq!(are_roots(), [false, false]);
        fs::set_permissions(at("bin"), everybodys(0o1777)).unwrap();
        assert_eq!(are_roots(), [true, true]);
    }

    #[test]
    fn log_in_the_folder_of_another_user_is_theirs_and_no_link() {
        if !is_root() {
            return;
        }
        let (folder, victim) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        for folder in [&folder, &victim] {
            fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        }
        let at = |name: &str| folder.path().join(name);
        chown(folder.path(), Some(ALICE.uid), Some(ALICE.gid)).unwrap();
        open_to_append(&at("log")).unwrap();
        assert_eq!(owner(&at("log")), ALICE.uid);
        // What an earlier version has left.
        fs::write(at("old"), "x").unwrap();
        open_to_append(&at("old")).unwrap();
        assert_eq!(owner(&at("old")), ALICE.uid);
        let secret = victim.path().join("secret");
        fs::write(&secret, "x").unwrap();
        symlink(&secret, at("link")).unwrap();
        symlink(victim.path().join("none"), at("new")).unwrap();
        symlink(victim.path(), at("folder")).unwrap();
        fs::hard_link(&secret, at("hard")).unwrap();
        for name in ["link", "new", "hard", "folder/none", "folder/secret"] {
            assert!(open_to_append(&at(name)).is_err(), "{name}");
        }
        assert!(!victim.path().join("none").exists());
        assert_eq!(owner(&secret), 0);
        // A folder of root's own may have links, such as /dev/stderr.
        symlink(&secret, victim.path().join("own")).unwrap();
        assert!(open_to_append(&victim.path().join("own")).is_ok());
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
