//! The one trap of a mount namespace: sccache's daemon compiles, and one outside sees other folders.
//!
//! A client that has its daemon compile for it would hand the path of one checkout to a daemon that sees another
//! there, or nothing. So the command gets an address of its own, where the first client starts a daemon in the
//! namespace, which sees what the command sees. A second process of ours outlives the command to end that daemon: the
//! command itself is the process that was started, and nobody waits above it.

use super::{config, enter};
use rustix::process::{PidfdFlags, getpid, pidfd_open};
use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::io::{self, Read as _};
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Sccache answers at once, on a machine that is not too busy.
const FAREWELL: Duration = Duration::from_secs(15);
const SOCKET: &str = "sccache.sock";

/// An address at which nobody listens.
#[derive(Debug)]
pub(crate) struct Own {
    socket: PathBuf,
    port: u16,
}

impl Own {
    /// Makes a folder for the socket, and starts the process that removes it when this one, by then the command, ends.
    pub(crate) fn prepare() -> io::Result<Own> {
        let folder = own_folder(std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from))?;
        // Sccache 0.10 and older know no sockets; there the daemon ends when it has been idle.
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
            .local_addr()?
            .port();
        let begun = watch(&folder, &pidfd_open(getpid(), PidfdFlags::empty())?);
        if begun.is_err() {
            let _ = fs::remove_dir(&folder);
        }
        begun.map(|()| Own {
            socket: folder.join(SOCKET),
            port,
        })
    }

    /// The folder, which only this user can enter.
    pub(super) fn folder(&self) -> &Path {
        self.socket.parent().unwrap_or(Path::new("/"))
    }

    /// What brings clients there.
    pub(crate) fn settings(&self) -> [(&'static str, OsString); 2] {
        [
            ("SCCACHE_SERVER_UDS", self.socket.clone().into_os_string()),
            ("SCCACHE_SERVER_PORT", self.port.to_string().into()),
        ]
    }

    /// Ends the daemon now, and not only with this process.
    pub(crate) fn end(&self) {
        // It ends with this process anyway.
        let _ = end(&self.socket);
    }

    /// Puts a copy of one of cargo's config files in its place, if its `text` names an address.
    pub(super) fn cover(&self, file: &Path, text: &str) -> io::Result<()> {
        let Some(text) = config::with_own(text, &self.settings()) else {
            return Ok(());
        };
        let name = blake3::hash(file.as_os_str().as_encoded_bytes()).to_hex();
        let copy = self.socket.with_file_name(format!("{}.toml", &name[..8]));
        // It may hold a token; the folder is private.
        fs::write(&copy, text)?;
        Ok(enter::bind_all(&copy, file)?)
    }
}

/// A new folder that only this user can enter, with a short name: the path of a socket has at most 107 bytes.
fn own_folder(runtime: Option<PathBuf>) -> io::Result<PathBuf> {
    let number = getrandom::u64().map_err(io::Error::other)?;
    let name = format!("sccache-dock-at-{number:016x}");
    let private = |folder: PathBuf| {
        let made = DirBuilder::new().mode(0o700).create(&folder);
        made.map(|()| folder)
    };
    let short = runtime.filter(|folder| folder.as_os_str().len() < 48 && folder.is_absolute());
    if let Some(runtime) = short
        && let Ok(folder) = private(runtime.join(&name))
    {
        return Ok(folder);
    }
    private(Path::new("/tmp").join(name))
}

/// Starts [`see_off`] as a process that is nobody's child, so that the command meets no child it does not know.
fn watch(folder: &Path, command: &OwnedFd) -> io::Result<()> {
    let parent = Command::new("/proc/self/exe")
        .arg("at-end")
        .arg(folder)
        .stdin(Stdio::from(command.try_clone()?))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    match parent.success() {
        true => Ok(()),
        false => Err(io::Error::other(format!("its watch ended: {parent}"))),
    }
}

/// Waits until the command, a pidfd on standard input, has ended; then ends the daemon in `folder` and removes that.
///
/// The first call only starts the second, which waits, and makes it an orphan.
///
/// # Errors
/// When it cannot be started.
pub fn see_off(folder: &Path, waits: bool) -> io::Result<()> {
    if !waits {
        // Not of the terminal's session: its signals are for the command.
        nix::unistd::setsid()?;
        let command = rustix::stdio::stdin().try_clone_to_owned()?;
        let mut orphan = Command::new("/proc/self/exe");
        orphan.arg("at-end").arg("--wait").arg(folder);
        return orphan.stdin(Stdio::from(command)).spawn().map(drop);
    }
    let stdin = rustix::stdio::stdin();
    let mut ended = [nix::poll::PollFd::new(stdin, nix::poll::PollFlags::POLLIN)];
    while nix::poll::poll(&mut ended, nix::poll::PollTimeout::NONE) == Err(nix::errno::Errno::EINTR)
    {
    }
    end(&folder.join(SOCKET))?;
    fs::remove_dir_all(folder)
}

fn end(socket: &Path) -> io::Result<()> {
    // There is none if the command compiled nothing.
    if let Ok(mut daemon) = crate::contract::sccache::sccache_shutdown(socket) {
        daemon.set_nonblocking(false)?;
        daemon.set_read_timeout(Some(FAREWELL))?;
        // It ends when it has answered and nobody is connected any more.
        let _ = daemon.read(&mut [0; 64]);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_without_a_daemon_are_told_apart() {
        for (value, expected) in [("1", true), ("TRUE", true), ("false", false), ("", false)] {
            let found = config::client_side_by(|_| Some(value.into()));
            assert_eq!(found, expected, "{value:?}");
        }
        assert!(!config::client_side_by(|_| None));
    }

    #[test]
    fn socket_fits_into_an_address_wherever_the_runtime_folder_is() {
        let long = tempfile::tempdir().unwrap();
        let deep = long.path().join("x".repeat(90));
        fs::create_dir(&deep).unwrap();
        for runtime in [
            None,
            Some(deep),
            Some(long.path().into()),
            Some("/no/such".into()),
        ] {
            let folder = own_folder(runtime).unwrap();
            let length = folder.join(SOCKET).as_os_str().len();
            assert!(length <= crate::client::SOCKET_PATH_MAX, "{folder:?}");
            fs::remove_dir(folder).unwrap();
        }
    }
}
