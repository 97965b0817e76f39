//! A mount namespace in which folders are seen elsewhere, without root.
//!
//! ```text
//! all paths exist:   bind, bind
//! some are missing:  tmpfs on /tmp -> pivot_root -> every entry of the old / is bound into it -> bind, bind
//!                    -> let go of the old / -> read-only
//! ```
//! A missing path cannot be made in a root that belongs to somebody else, and should not be left behind in it. The new
//! root is read-only, so that a file written right below `/` is an error instead of gone.

use super::layout::Bind;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, symlink};
use std::path::{Path, PathBuf};

/// Every system has it, and nothing below it is needed while it is covered.
const STAGE: &str = "/tmp";
/// The old root's place in the new one, until all is taken from it.
const OLD: &str = "/.sccache-dock-old-root";
const NOTHING: Option<&str> = None;

/// What was being done when it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A user namespace.
    UserNamespace,
    /// This user in it.
    MapUser,
    /// A mount namespace.
    MountNamespace,
    /// The mounts must not spread.
    KeepMounts,
    /// A root in which a folder can be made.
    NewRoot,
    /// Showing a folder elsewhere.
    Bind,
    /// Going to the current folder's new place.
    Enter,
}

/// The step that the system refused, and what it said.
#[derive(Debug, thiserror::Error)]
#[error("{}{}: {cause}", step.words(), on.as_deref().map(|path| format!(" {}", path.display())).unwrap_or_default())]
pub struct Failure {
    /// What was being done.
    pub step: Step,
    /// To which folder, if to one.
    on: Option<PathBuf>,
    cause: io::Error,
}

impl Step {
    fn words(self) -> &'static str {
        match self {
            Step::UserNamespace => "make a user namespace",
            Step::MapUser => "map the user into the namespace",
            Step::MountNamespace => "make a mount namespace",
            Step::KeepMounts => "keep the mounts to the namespace",
            Step::NewRoot => "make a root for the command",
            Step::Bind => "bind",
            Step::Enter => "enter",
        }
    }
}

impl Failure {
    pub(super) fn new(step: Step, cause: impl Into<io::Error>) -> Failure {
        Failure {
            step,
            on: None,
            cause: cause.into(),
        }
    }

    fn at<E: Into<io::Error>>(step: Step) -> impl Fn(E) -> Failure {
        move |cause| Failure::new(step, cause)
    }

    fn on<E: Into<io::Error>>(step: Step, path: &Path) -> impl Fn(E) -> Failure {
        move |cause| Failure {
            on: Some(path.into()),
            ..Failure::new(step, cause)
        }
    }
}

/// Moves this process, which must have one thread only, to where the folders are seen at their new places, and into
/// `cwd`. The user and the group stay who they are.
///
/// # Errors
/// The step that the system refuses.
pub(super) fn enter(binds: &[Bind], cwd: &Path) -> Result<(), Failure> {
    unshare_mounts()?;
    let flags = MsFlags::MS_REC | MsFlags::MS_SLAVE;
    mount(NOTHING, "/", NOTHING, flags, NOTHING).map_err(Failure::at(Step::KeepMounts))?;
    // Before anything is covered.
    let sources: Vec<OwnedFd> = binds.iter().map(source).collect::<Result<_, _>>()?;
    let is_missing = |bind: &Bind| bind.to.symlink_metadata().is_err();
    // A target folder is found below the checkout as soon as that is there.
    let is_top = |bind: &Bind| !binds.iter().any(|other| lies_in(&bind.to, &other.to));
    let made_up: Vec<&Path> = binds
        .iter()
        .filter(|bind| is_top(bind) && is_missing(bind))
        .map(|bind| bind.to.as_path())
        .collect();
    if !made_up.is_empty() {
        new_root(&made_up)?;
    }
    for (bind, source) in binds.iter().zip(&sources) {
        let from = PathBuf::from(format!("/proc/self/fd/{}", source.as_raw_fd()));
        bind_all(&from, &bind.to).map_err(Failure::on(Step::Bind, &bind.from))?;
    }
    if !made_up.is_empty() {
        seal().map_err(Failure::at(Step::NewRoot))?;
    }
    std::env::set_current_dir(cwd).map_err(Failure::on(Step::Enter, cwd))
}

fn lies_in(path: &Path, folder: &Path) -> bool {
    path != folder && path.starts_with(folder)
}

/// Real root needs no user namespace, in which it could not give files to others.
fn unshare_mounts() -> Result<(), Failure> {
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    if uid.is_root() {
        match unshare(CloneFlags::CLONE_NEWNS) {
            Err(Errno::EPERM) => {}
            other => return other.map_err(Failure::at(Step::MountNamespace)),
        }
    }
    unshare(CloneFlags::CLONE_NEWUSER).map_err(Failure::at(Step::UserNamespace))?;
    unshare(CloneFlags::CLONE_NEWNS).map_err(Failure::at(Step::MountNamespace))?;
    fs::write("/proc/self/setgroups", "deny")
        .and_then(|()| fs::write("/proc/self/uid_map", format!("{uid} {uid} 1")))
        .and_then(|()| fs::write("/proc/self/gid_map", format!("{gid} {gid} 1")))
        .map_err(Failure::at(Step::MapUser))
}

/// Stays the same folder, whatever is mounted over its path.
fn source(bind: &Bind) -> Result<OwnedFd, Failure> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    open(&bind.from, flags, Mode::empty()).map_err(Failure::on(Step::Bind, &bind.from))
}

/// With all that is mounted below it: a part would show what those mounts hide, which is not allowed.
pub(super) fn bind_all(from: &Path, to: &Path) -> nix::Result<()> {
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(from), to, NOTHING, flags, NOTHING)
}

/// Puts a new root in the place of the old one, with the same entries and the folders `made_up`.
fn new_root(made_up: &[&Path]) -> Result<(), Failure> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let old = PathBuf::from(format!("{STAGE}{OLD}"));
    mount(Some("tmpfs"), STAGE, Some("tmpfs"), flags, Some("mode=755"))
        .map_err(Failure::at(Step::NewRoot))?;
    fs::create_dir(&old).map_err(Failure::at(Step::NewRoot))?;
    nix::unistd::pivot_root(STAGE, &old).map_err(Failure::at(Step::NewRoot))?;
    std::env::set_current_dir("/").map_err(Failure::at(Step::NewRoot))?;
    let entries = fs::read_dir(OLD).map_err(Failure::at(Step::NewRoot))?;
    for entry in entries.flatten() {
        take_over(&entry)?;
    }
    for path in made_up {
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(path)
            .map_err(Failure::on(Step::NewRoot, path))?;
    }
    Ok(())
}

/// One entry of the old root.
fn take_over(entry: &fs::DirEntry) -> Result<(), Failure> {
    let from = entry.path();
    let to = Path::new("/").join(entry.file_name());
    let failed = |cause: io::Error| Failure::on(Step::Bind, &to)(cause);
    // What is broken, such as the mount point of a dead file system, is of no use to the command either.
    let Ok(kind) = entry.metadata().map(|metadata| metadata.file_type()) else {
        return Ok(());
    };
    if kind.is_symlink() {
        return fs::read_link(&from)
            .and_then(|link| symlink(link, &to))
            .map_err(failed);
    }
    let made = match kind.is_dir() {
        true => fs::create_dir(&to),
        false => fs::write(&to, ""),
    };
    made.and_then(|()| Ok(bind_all(&from, &to)?))
        .map_err(failed)
}

/// Lets the old root go, and makes sure that nothing is written to the new one.
fn seal() -> io::Result<()> {
    umount2(OLD, MntFlags::MNT_DETACH)?;
    fs::remove_dir(OLD)?;
    let flags = MsFlags::MS_REMOUNT
        | MsFlags::MS_BIND
        | MsFlags::MS_RDONLY
        | MsFlags::MS_NOSUID
        | MsFlags::MS_NODEV;
    Ok(mount(NOTHING, "/", NOTHING, flags, NOTHING)?)
}
