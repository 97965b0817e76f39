//! Everything before the first process: folder, sockets, plan, files. Whatever is wrong is found here, and ends the
//! run before anything was started.

use crate::listeners;
use crate::plan::{self, Facts, Plan, paths};
use crate::settings::Settings;
use crate::state::{self, Prepared};
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why nothing was started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    State(#[from] state::Error),
    #[error("{cause}\nhint: {hint}")]
    Listen {
        cause: io::Error,
        hint: &'static str,
    },
    #[error(
        "cannot find \"{name}\": it is neither a file nor on PATH\nhint: set SCCACHE_BINARY to the sccache to run"
    )]
    NoSccache { name: String },
    #[error("cannot write \"{path}\": {cause}", path = path.display())]
    Write { path: PathBuf, cause: io::Error },
    #[error("cannot write the gateway's configuration: {0}")]
    Plan(#[from] toml::ser::Error),
    #[error("cannot {action}: {cause}")]
    System {
        action: &'static str,
        cause: io::Error,
    },
}

fn listening(cause: io::Error) -> Error {
    let hint = match cause.kind() {
        io::ErrorKind::AddrInUse => {
            "4226 is also the port of sccache's own server: \"sccache --stop-server\" ends one; \
             or set SCCACHE_LISTEN to another port"
        }
        io::ErrorKind::InvalidInput => "set SCCACHE_RUN_DIR to a folder with a shorter path",
        io::ErrorKind::PermissionDenied => {
            "ports below 1024 need root: set SCCACHE_LISTEN to a higher one"
        }
        io::ErrorKind::AddrNotAvailable => {
            "no interface has this address: set SCCACHE_LISTEN to 0.0.0.0:4226"
        }
        _ => "SCCACHE_RUN_DIR must lie on a file system that holds Unix sockets",
    };
    Error::Listen { cause, hint }
}

pub(super) fn system(action: &'static str) -> impl Fn(io::Error) -> Error {
    move |cause| Error::System { action, cause }
}

/// How long a server without a supervisor may take to answer.
const LEFT_OVER_PATIENCE: Duration = Duration::from_secs(2);

/// What the loop stands on.
pub(super) struct Ground {
    pub(super) settings: Settings,
    pub(super) prepared: Prepared,
    pub(super) sockets: Sockets,
    pub(super) facts: Facts,
    pub(super) plan: Plan,
    pub(super) error_log: Option<File>,
}

/// Prepares the folder, binds the sockets, makes the plan and writes its files.
pub(super) fn lay_ground(settings: Settings) -> Result<Ground, Error> {
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    let settings = resolved(settings)?;
    let prepared = state::prepare(&settings)?;
    end_left_over_server(&paths::server_socket(&settings.run_dir));
    let sockets = Sockets::bind(&settings, &prepared)?;
    let facts = Facts {
        program: std::env::current_exe().map_err(system("find our own program"))?,
        listen: sockets
            .doors
            .cache
            .local_addr()
            .map_err(system("read the address of the cache port"))?,
        auth_token: prepared.auth_token.clone(),
        path: std::env::var("PATH").unwrap_or_else(|_| "/usr/local/bin:/usr/bin:/bin".into()),
    };
    let plan = plan::plan(&settings, &facts)?;
    write_files(&plan, &prepared)?;
    let error_log = settings.error_log.as_deref().map(open_error_log);
    Ok(Ground {
        error_log: error_log.transpose()?,
        settings,
        prepared,
        sockets,
        facts,
        plan,
    })
}

/// A supervisor that was killed outside a container leaves its sccache server behind, which would run for ever. The
/// folder's lock is ours, so whoever answers there has no supervisor any more.
fn end_left_over_server(socket: &Path) {
    let asked = super::sccache_shutdown(socket).and_then(|mut stream| {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(LEFT_OVER_PATIENCE))?;
        // It hears the request only while the connection is open.
        stream.read_exact(&mut [0; 4])
    });
    // Nobody there is the rule; one that does not answer cannot be ended by asking.
    drop(asked);
}

/// The settings with the program that `server` runs as a path.
pub(super) fn resolved(settings: Settings) -> Result<Settings, Error> {
    let sccache = find_program(&settings.sccache)?;
    Ok(Settings {
        sccache,
        ..settings
    })
}

/// Writes what the services read at their start.
pub(super) fn write_files(plan: &Plan, prepared: &Prepared) -> Result<(), Error> {
    for file in plan.services.iter().flat_map(|service| &service.files) {
        state::write_private(&file.path, &file.text, prepared.run_as).map_err(|cause| {
            Error::Write {
                path: file.path.clone(),
                cause,
            }
        })?;
    }
    Ok(())
}

fn find_program(name: &Path) -> Result<PathBuf, Error> {
    let usable = |path: &Path| {
        nix::unistd::access(path, nix::unistd::AccessFlags::X_OK).is_ok() && path.is_file()
    };
    let missing = || Error::NoSccache {
        name: name.display().to_string(),
    };
    if name.components().count() > 1 {
        return if usable(name) {
            Ok(name.to_owned())
        } else {
            Err(missing())
        };
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|path| usable(path))
        .ok_or_else(missing)
}

fn open_error_log(path: &Path) -> Result<File, Error> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .map_err(|cause| Error::Write {
            path: path.to_owned(),
            cause,
        })
}

/// Where clients connect. Held across restarts of the gateway, so that none is refused; closed while nobody will accept
/// for longer, so that none waits in vain.
pub(super) struct Doors {
    pub(super) cache: TcpListener,
    pub(super) client: Option<UnixListener>,
}

impl Doors {
    pub(super) fn open(
        settings: &Settings,
        prepared: &Prepared,
        listen: SocketAddr,
    ) -> Result<Doors, Error> {
        let client = plan::client_socket(settings).map(|path| bind_unix(path, 0o666, prepared));
        Ok(Doors {
            cache: listeners::bind_tcp(listen).map_err(listening)?,
            client: client.transpose()?,
        })
    }
}

/// What is bound before anything starts.
pub(super) struct Sockets {
    pub(super) doors: Doors,
    pub(super) control: UnixListener,
    pub(super) notify: UnixListener,
}

impl Sockets {
    fn bind(settings: &Settings, prepared: &Prepared) -> Result<Sockets, Error> {
        let run_dir = &settings.run_dir;
        let private = |path: PathBuf| -> Result<UnixListener, Error> {
            let listener = bind_unix(path, 0o600, prepared)?;
            listener
                .set_nonblocking(true)
                .map_err(system("set up a socket"))?;
            Ok(listener)
        };
        Ok(Sockets {
            doors: Doors::open(settings, prepared, settings.listen)?,
            control: private(paths::control_socket(run_dir))?,
            notify: private(paths::notify_socket(run_dir))?,
        })
    }
}

/// A socket that belongs to the services' user.
fn bind_unix(path: PathBuf, mode: u32, prepared: &Prepared) -> Result<UnixListener, Error> {
    let listener = listeners::bind_unix(&path, mode).map_err(listening)?;
    if let Some(owner) = prepared.run_as {
        std::os::unix::fs::chown(&path, Some(owner.uid), Some(owner.gid))
            .map_err(|cause| Error::Write { path, cause })?;
    }
    Ok(listener)
}
