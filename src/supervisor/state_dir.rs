//! The state folder: its location, its owner, and what must be in it before anything starts.

pub(super) mod owner;

pub(crate) use self::owner::AsUser;
use crate::base::mount::{self, Loss};
use crate::base::private_file;
use crate::base::secret::Secret;
use crate::config::settings::{Installation, Mode, Settings};
use crate::contract::paths;
use crate::contract::service::RunAs;
use nix::fcntl::{Flock, FlockArg};
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// The user that the images provide.
const IMAGE_USER: &str = "sccache";

/// Why nothing can start in this state folder.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {action} \"{path}\": {cause}\nhint: {hint}", path = path.display())]
    Folder {
        action: &'static str,
        path: PathBuf,
        cause: io::Error,
        hint: String,
    },
    #[error(
        "MODE={mode} needs a mount at \"{dir}\", but {found}: the cache would be lost with the container\n\
         hint: add -v /absolute/path:{dir} or -v a-name:{dir} to docker run, or use MODE={instead}",
        mode = mode.as_str(), instead = mode.as_str().replace("persistent", "ephemeral"), dir = dir.display()
    )]
    NotPersistent {
        mode: Mode,
        dir: PathBuf,
        found: Loss,
    },
    #[error(
        "cannot use \"{dir}\": another sccache-dock uses this folder\n\
         hint: stop it, or give this one a folder of its own with SCCACHE_DIR",
        dir = dir.display()
    )]
    Taken { dir: PathBuf },
    #[error("cannot use the token in \"{path}\": {why}\nhint: remove the file to have a new one generated", path = path.display())]
    Token { path: PathBuf, why: &'static str },
}

/// A state folder that is locked and ready.
pub struct Prepared {
    /// The user that the services run as, if different from the current one.
    pub run_as: Option<RunAs>,
    pub auth_token: Secret,
    /// Released when the process ends.
    pub lock: Flock<File>,
    /// Notes for the operator.
    pub notes: Vec<String>,
}

/// Checks the mount, creates the folders, takes the lock, and reads or generates the token.
///
/// # Errors
/// The folder cannot be used; nothing was started.
pub fn prepare(settings: &Settings) -> Result<Prepared, Error> {
    let dir = &settings.dir;
    let fail = |action, path: &Path, cause: io::Error| Error::Folder {
        action,
        path: path.to_owned(),
        hint: folder_hint(path, &cause),
        cause,
    };
    make_folder(dir, 0o755, None)?;
    if settings.mode.persists() {
        check_persistent(dir, settings.mode)?;
    }
    let top = owner::open_top(dir).map_err(|cause| fail("examine the folder", dir, cause))?;
    let top = File::from(top);
    let mut notes = Vec::new();
    let found = top.metadata();
    let found = found.map_err(|cause| fail("examine the folder", dir, cause))?;
    let run_as = identity((found.uid(), found.gid()), &mut notes);
    let lock = lock(&top, dir, run_as)?;
    if let Some(user) = run_as {
        hand_over_all(&top, settings, user)?;
    }
    let scratch = paths::scratch(dir);
    {
        let _user = AsUser::of(run_as);
        // What a killed run left there would accumulate in a persistent folder.
        match fs::remove_dir_all(&scratch) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                notes.push(format!("cannot empty \"{}\": {error}", scratch.display()));
            }
            Ok(()) | Err(_) => {}
        }
    }
    let builder = settings.mode.builds().then(|| paths::builder(dir));
    for (path, mode) in [
        (paths::cache(dir), 0o755),
        (scratch, 0o700),
        (settings.run_dir.clone(), 0o755),
    ]
    .into_iter()
    .chain(builder.map(|path| (path, 0o755)))
    {
        if let (Some(name), Some(_)) = (name_in(dir, &path), run_as) {
            // The parent folder may be root's. If something is in the way, such as a link, the next step reports it.
            let _ = owner::open_below(top.as_fd(), &name, mode, run_as);
        }
        make_folder(&path, mode, run_as)?;
    }
    let auth_token = match &settings.auth_token {
        Some(token) => token.clone(),
        None => kept_token(paths::auth_token(dir), run_as)?,
    };
    Ok(Prepared {
        run_as,
        auth_token,
        lock,
        notes,
    })
}

/// The clients' token: the configured one, or the generated one.
///
/// # Errors
/// No token is set and none has been generated, or the file cannot be read by this user.
pub fn auth_token(settings: &Settings) -> Result<Secret, Error> {
    auth_token_at(&settings.installation())
}

/// Like [`auth_token`], for a running sccache-dock.
///
/// # Errors
/// As [`auth_token`].
pub fn auth_token_at(place: &Installation) -> Result<Secret, Error> {
    if let Some(token) = &place.auth_token {
        return Ok(token.clone());
    }
    let path = paths::auth_token(&place.dir);
    match owner::read_token(&path) {
        Ok(text) => checked_token(&path, &text),
        Err(cause) => Err(Error::Folder {
            action: "read the token",
            path,
            cause,
            hint: "it is generated by the first start; run this as the user of the container, or as root".into(),
        }),
    }
}

fn make_folder(path: &Path, mode: u32, owner: Option<RunAs>) -> Result<(), Error> {
    let fail = |(action, cause): (_, io::Error)| Error::Folder {
        action,
        path: path.to_owned(),
        hint: folder_hint(path, &cause),
        cause,
    };
    let made = {
        let _user = AsUser::of(owner);
        try_to_make(path, mode)
    };
    match (made, owner) {
        // Its parent is root's: nobody else can have put a link there.
        (Err((_, cause)), Some(RunAs { uid, gid }))
            if cause.kind() == io::ErrorKind::PermissionDenied
                && path.parent().is_some_and(owner::is_roots_alone) =>
        {
            let made = create(path, mode).and_then(|()| {
                std::os::unix::fs::lchown(path, Some(uid), Some(gid))
                    .map_err(|cause| ("change the owner of the folder", cause))
            });
            made.map_err(fail)?;
            let _user = AsUser::of(owner);
            try_to_make(path, mode).map_err(fail)
        }
        (made, _) => made.map_err(fail),
    }
}

fn create(path: &Path, mode: u32) -> Result<(), (&'static str, io::Error)> {
    let made = DirBuilder::new().recursive(true).mode(mode).create(path);
    made.map_err(|cause| ("create the folder", cause))
}

/// Creates a folder and writes to it. A real write reveals more than permission bits: read-only mounts, user
/// namespaces, ACLs.
fn try_to_make(path: &Path, mode: u32) -> Result<(), (&'static str, io::Error)> {
    create(path, mode)?;
    let probe = path.join(".sccache-dock-probe");
    // Left over from a crash. The next step reports any other problem.
    let _ = fs::remove_file(&probe);
    File::create_new(&probe)
        .and_then(|mut file| file.write_all(b"probe"))
        .and_then(|()| fs::remove_file(&probe))
        .map_err(|cause| ("write to the folder", cause))
}

/// Gives the services' user what a builder under real root has left in its folder, which they could not evict. The user may put
/// links there meanwhile.
///
/// # Errors
/// The owner cannot be changed.
pub fn hand_over(folder: &Path, user: RunAs) -> io::Result<()> {
    let no_name = || io::Error::from(io::ErrorKind::InvalidInput);
    let (above, name) = folder
        .parent()
        .zip(folder.file_name())
        .ok_or_else(no_name)?;
    owner::hand_over_whole(owner::open_top(above)?.as_fd(), Path::new(name), user)
}

/// Gives the services' user the files of an earlier run as another user; otherwise the services could neither read the
/// token nor evict blobs.
fn hand_over_all(top: &File, settings: &Settings, user: RunAs) -> Result<(), Error> {
    let dir = &settings.dir;
    let fail = |path: PathBuf, cause: io::Error| Error::Folder {
        action: "change the owner of",
        hint: folder_hint(&path, &cause),
        path,
        cause,
    };
    let below = |path: &Path| path.strip_prefix(dir).map(Path::to_owned).ok();
    let cache = paths::cache(dir);
    let whole = paths::IN_CACHE.map(|name| cache.join(name));
    let whole = whole
        .into_iter()
        .chain([paths::scratch(dir), paths::state(dir)]);
    for path in whole {
        let Some(name) = below(&path) else { continue };
        owner::hand_over(top.as_fd(), &name, user).map_err(|cause| fail(path, cause))?;
    }
    for path in [cache, settings.run_dir.clone(), paths::builder(dir)] {
        let Some(name) = name_in(dir, &path) else {
            continue;
        };
        owner::hand_over_one(top.as_fd(), &name, user).map_err(|cause| fail(path, cause))?;
    }
    let open = || {
        let found = top.metadata()?;
        if found.uid() != user.uid && found.mode() & 0o001 == 0 {
            std::os::unix::fs::fchown(top, Some(user.uid), Some(user.gid))?;
        }
        Ok(())
    };
    open().map_err(|cause: io::Error| Error::Folder {
        action: "change the owner of the folder",
        path: dir.to_owned(),
        hint: folder_hint(dir, &cause),
        cause,
    })
}

/// The file name of a path directly in `dir`.
fn name_in(dir: &Path, path: &Path) -> Option<PathBuf> {
    let name = path.strip_prefix(dir).ok()?;
    (name.components().count() == 1).then(|| name.to_owned())
}

fn folder_hint(path: &Path, cause: &io::Error) -> String {
    match cause.kind() {
        _ if path.is_symlink() => {
            "remove the link, or let it point to something of the same user; what belongs to others is not touched".into()
        }
        io::ErrorKind::PermissionDenied => {
            let mut nearest = path;
            while let Some(parent) = nearest.parent().filter(|_| !nearest.exists()) {
                nearest = parent;
            }
            match fs::metadata(nearest) {
                Ok(metadata) => format!(
                    "\"{}\" belongs to {}:{} and we run as {}:{}; run the container with --user {}:{}",
                    nearest.display(),
                    metadata.uid(),
                    metadata.gid(),
                    nix::unistd::geteuid(),
                    nix::unistd::getegid(),
                    metadata.uid(),
                    metadata.gid()
                ),
                Err(_) => "let the user of the container write there, or set SCCACHE_DIR".into(),
            }
        }
        io::ErrorKind::ReadOnlyFilesystem => "mount a volume there: -v a-name:/var/sccache".into(),
        io::ErrorKind::InvalidInput => "remove what is there".into(),
        io::ErrorKind::StorageFull => "free some space there".into(),
        _ => "set SCCACHE_DIR to a writable folder".into(),
    }
}

/// If run as root, services run as the owner of the folder; a folder owned by root is given to the image's user.
fn identity((uid, gid): (u32, u32), notes: &mut Vec<String>) -> Option<RunAs> {
    if !nix::unistd::geteuid().is_root() {
        return None;
    }
    let wanted = if uid != 0 {
        Some(RunAs { uid, gid })
    } else {
        image_user(&fs::read_to_string("/etc/passwd").unwrap_or_default())
    };
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    match wanted {
        Some(_) if !can_step_down(&status) => {
            notes.push(
                "services run as root without capabilities: setuid is not allowed here".into(),
            );
            None
        }
        None => {
            notes.push(format!(
                "services run as root: there is no user \"{IMAGE_USER}\" and the folder is root's"
            ));
            None
        }
        found => found,
    }
}

/// getpwnam is not used: it would load the distribution's name services into PID 1, for a user that the image created.
fn image_user(passwd: &str) -> Option<RunAs> {
    let mut users = passwd.lines().map(|line| line.split(':'));
    let mut fields =
        users.find_map(|mut fields| (fields.next()? == IMAGE_USER).then_some(fields))?;
    Some(RunAs {
        uid: fields.nth(1)?.parse().ok()?,
        gid: fields.next()?.parse().ok()?,
    })
}

/// Whether CAP_CHOWN, CAP_SETGID and CAP_SETUID are all effective.
fn can_step_down(status: &str) -> bool {
    const NEEDED: u64 = 1 | 1 << 6 | 1 << 7;
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .is_some_and(|bits| bits & NEEDED == NEEDED)
}

/// Creates the state folder and locks it.
fn lock(top: &File, dir: &Path, user: Option<RunAs>) -> Result<Flock<File>, Error> {
    let fail = |action, path: PathBuf, cause: io::Error| Error::Folder {
        action,
        hint: folder_hint(&path, &cause),
        path,
        cause,
    };
    let (state, path) = (paths::state(dir), paths::lock(dir));
    let name = |path: &Path| path.file_name().map(PathBuf::from).unwrap_or_default();
    let folder = owner::open_below(top.as_fd(), &name(&state), 0o700, user)
        .map_err(|cause| fail("open the folder", state, cause))?;
    let file = owner::private_file_in(folder.as_fd(), &name(&path), user)
        .map_err(|cause| fail("open", path, cause))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| Error::Taken {
        dir: dir.to_owned(),
    })
}

/// Writes files of mode 0600 for the services' user. None is renamed into place before all have been written.
///
/// # Errors
/// The path of the file that cannot be written or renamed, and the cause.
pub fn write_all_private<'a>(
    files: impl Iterator<Item = (&'a Path, &'a str)>,
    owner: Option<RunAs>,
) -> Result<(), (PathBuf, io::Error)> {
    let _user = AsUser::of(owner);
    private_file::write_all(files)
}

/// The generated token of the builders, for use if none is set.
///
/// # Errors
/// It cannot be read or written.
pub fn kept_server_token(dir: &Path, owner: Option<RunAs>) -> Result<Secret, Error> {
    kept_token(paths::builder_token(dir), owner)
}

/// Generates a random token.
///
/// # Errors
/// The system provides no randomness.
pub fn new_token() -> io::Result<Secret> {
    let mut bytes = [0_u8; 32];
    getrandom::fill(&mut bytes)?;
    let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Secret::new(&text))
}

fn kept_token(path: PathBuf, owner: Option<RunAs>) -> Result<Secret, Error> {
    let fail = |action, cause: io::Error| Error::Folder {
        action,
        path: path.clone(),
        hint: folder_hint(&path, &cause),
        cause,
    };
    let _user = AsUser::of(owner);
    match owner::read_token(&path) {
        Ok(text) => checked_token(&path, &text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let token = new_token().map_err(|cause| fail("generate the token", cause))?;
            private_file::write(&path, &format!("{}\n", token.reveal()))
                .map_err(|cause| fail("write the token", cause))?;
            Ok(token)
        }
        Err(cause) => Err(fail("read the token", cause)),
    }
}

fn checked_token(path: &Path, text: &str) -> Result<Secret, Error> {
    let token = Secret::new(text);
    let why = match token.reveal() {
        short if short.len() < 8 => "it is shorter than 8 characters",
        _ if !token.is_portable() => "it has characters other than letters, digits and -._+/=",
        _ => return Ok(token),
    };
    Err(Error::Token {
        path: path.to_owned(),
        why,
    })
}

fn check_persistent(dir: &Path, mode: Mode) -> Result<(), Error> {
    match mount::lost(dir) {
        Some(found) => Err(Error::NotPersistent {
            mode,
            dir: dir.to_owned(),
            found,
        }),
        None => Ok(()),
    }
}

/// Checks that the state folder exists or can be created, and is writable.
///
/// # Errors
/// It is not; the error says how to fix it.
pub fn try_folder(dir: &Path) -> Result<(), Error> {
    make_folder(dir, 0o755, None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn user_of_the_image_is_known_by_its_whole_name() {
        let find = |text: &str| image_user(text).map(|user| (user.uid, user.gid));
        let root = "root:x:0:0:root:/root:/bin/sh\n";
        assert_eq!(find(&format!("{root}sccache2:x:1:1::/:/\n")), None);
        let found = find(&format!("{root}sccache:x:10426:10427::/:/\n"));
        assert_eq!(found, Some((10426, 10427)));
    }

    #[test]
    fn scratch_space_is_emptied_and_the_token_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let environment = [("SCCACHE_DIR", folder.path().to_str().unwrap())];
        let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let read = |_: &Path| Err(io::ErrorKind::NotFound.into());
        let settings = crate::config::settings::check(&environment.into(), &read)
            .unwrap()
            .settings;
        let token = prepare(&settings).unwrap().auth_token;
        let left_over = paths::scratch(folder.path()).join("sccacheXYZ/deep");
        fs::create_dir_all(&left_over).unwrap();
        assert_eq!(prepare(&settings).unwrap().auth_token, token);
        assert!(!left_over.exists() && paths::scratch(folder.path()).is_dir());
    }

    #[test]
    fn of_several_files_all_are_replaced_or_none() {
        let folder = tempfile::tempdir().unwrap();
        let [first, second] = ["a.toml", "b.toml"].map(|name| folder.path().join(name));
        let write = |text: &str| {
            let files = [(&*first, text), (&*second, text)];
            write_all_private(files.into_iter(), None)
        };
        let read = || [&first, &second].map(|path| fs::read_to_string(path).unwrap());
        write("old").unwrap();
        let in_the_way = folder.path().join("b.toml.new");
        fs::create_dir(&in_the_way).unwrap();
        assert_eq!(write("new").unwrap_err().0, second);
        assert_eq!(read(), ["old", "old"]);
        fs::remove_dir(&in_the_way).unwrap();
        write("new").unwrap();
        assert_eq!(read(), ["new", "new"]);
    }

    #[test]
    fn link_in_the_place_of_a_private_file_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("target");
        fs::write(&target, "theirs").unwrap();
        for name in [".sccache-dock-probe", "lock"] {
            std::os::unix::fs::symlink(&target, folder.path().join(name)).unwrap();
        }
        make_folder(folder.path(), 0o755, None).unwrap();
        assert!(private_file::open(&folder.path().join("lock")).is_err());
        fs::create_dir(paths::state(folder.path())).unwrap();
        std::os::unix::fs::symlink(&target, paths::lock(folder.path())).unwrap();
        let top = File::open(folder.path()).unwrap();
        assert!(lock(&top, folder.path(), None).is_err());
        assert_eq!(fs::read_to_string(&target).unwrap(), "theirs");
        let mode = fs::metadata(&target).unwrap().permissions().mode();
        assert_ne!(mode & 0o777, 0o600);
    }

    #[test]
    fn stepping_down_needs_all_three_capabilities() {
        assert!(can_step_down("Name:\tx\nCapEff:\t00000000a80425fb\n"));
        assert!(!can_step_down("CapEff:\t0000000000000000\n"));
        assert!(!can_step_down("CapEff:\t0000000000000080\n"));
        assert!(!can_step_down(""));
    }

    #[test]
    fn generated_token_is_kept_private_and_the_same_next_time() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("state")).unwrap();
        let first = kept_token(paths::auth_token(dir.path()), None).unwrap();
        let mode = fs::metadata(paths::auth_token(dir.path()))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(first.reveal().len(), 64);
        assert_eq!(
            kept_token(paths::auth_token(dir.path()), None).unwrap(),
            first
        );
    }

    #[test]
    fn damaged_token_file_is_refused_with_the_hint() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("state")).unwrap();
        fs::write(paths::auth_token(dir.path()), "short\n").unwrap();
        let text = kept_token(paths::auth_token(dir.path()), None)
            .unwrap_err()
            .to_string();
        assert!(
            text.contains("shorter than 8") && text.contains("hint: remove the file"),
            "{text}"
        );
    }

    #[test]
    fn second_supervisor_on_one_folder_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let top = File::open(dir.path()).unwrap();
        let _held = lock(&top, dir.path(), None).unwrap();
        let second = lock(&top, dir.path(), None);
        assert!(matches!(second, Err(Error::Taken { .. })));
    }
}
