//! Everything before the first process: folder, sockets, plan, files. All errors are found here, and end the run before
//! anything is started.

use super::state_dir;
use super::state_dir::{AsUser, Prepared, owner};
use crate::base::listeners;
use crate::base::secret::Secret;
use crate::config::plan;
use crate::config::plan::{DistFacts, Facts, Planner};
use crate::config::settings::{Mode, Settings};
use crate::contract::gateway_config::{ClientCertificate, TlsFiles};
use crate::contract::paths;
use crate::contract::service::CERTIFICATE_IS_GOOD;
use crate::contract::service::Plan;
use crate::contract::service::RunAs;
use crate::contract::tokens::{self, Named};

use nix::errno::Errno;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Why nothing was started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    State(#[from] state_dir::Error),
    #[error("{cause}\nhint: {hint}")]
    Listen {
        cause: io::Error,
        hint: &'static str,
    },
    #[error("cannot find \"{name}\": it is neither a file nor on PATH\nhint: {hint}")]
    NoProgram { name: String, hint: &'static str },
    #[error("cannot run \"{path}\" as root: it is on PATH, but another user could replace it\nhint: {hint}", path = path.display())]
    NotRoots { path: PathBuf, hint: &'static str },
    #[error(
        "cannot determine the address of this machine: {cause}\n\
         hint: set SCCACHE_PUBLIC_ADDR to the address at which clients reach it"
    )]
    NoAddress { cause: io::Error },
    #[error("cannot write \"{path}\": {cause}", path = path.display())]
    Write { path: PathBuf, cause: io::Error },
    #[error("{0}\nhint: {1}")]
    File(String, &'static str),
    #[error("cannot write the configuration of the services: {0}")]
    Plan(#[from] toml::ser::Error),
    #[error(
        "cannot work with {most} open files: sockets, pipes and starting services need up to {LEAST_FILES}\n\
         hint: raise the limit (ulimit -n 1024, docker run --ulimit nofile=1024)"
    )]
    Descriptors { most: u64 },
    #[error("cannot {action}: {cause}")]
    System {
        action: &'static str,
        cause: io::Error,
    },
}

impl Error {
    /// The system's error number, if a listener could not be opened.
    pub(super) fn errno(&self) -> Errno {
        match self {
            Error::Listen { cause, .. } => listeners::errno(cause),
            _ => Errno::EINVAL,
        }
    }
}

fn front_listening(cause: io::Error) -> Error {
    let hint = match cause.kind() {
        io::ErrorKind::AddrInUse => {
            "another scheduler may run on this machine: set SCCACHE_SCHEDULER_LISTEN to another port"
        }
        _ => "set SCCACHE_SCHEDULER_LISTEN to an address of this machine and a port above 1023",
    };
    Error::Listen { cause, hint }
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
        _ => "SCCACHE_RUN_DIR must be on a file system that supports Unix sockets",
    };
    Error::Listen { cause, hint }
}

pub(super) fn system(action: &'static str) -> impl Fn(io::Error) -> Error {
    move |cause| Error::System { action, cause }
}

/// Time limit for a left-over server to answer.
const LEFT_OVER_PATIENCE: Duration = Duration::from_secs(2);
/// Maximum length of the result of checking the certificate.
const LONGEST_ANSWER: u64 = 4 << 10;

/// Minimum number of open files for the supervisor and for each service.
const LEAST_FILES: u64 = 64;

/// Raises the limit on open files as far as needed and allowed. The services inherit it.
fn enough_descriptors() -> Result<(), Error> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let failed = |errno: Errno| system("read the limit on open files")(errno.into());
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(failed)?;
    if hard < LEAST_FILES {
        return Err(Error::Descriptors { most: hard });
    }
    if soft < LEAST_FILES {
        setrlimit(Resource::RLIMIT_NOFILE, LEAST_FILES, hard).map_err(failed)?;
    }
    Ok(())
}

/// What the loop needs from the start.
pub(super) struct StartFacts {
    pub(super) settings: Settings,
    pub(super) prepared: Prepared,
    pub(super) sockets: Sockets,
    pub(super) facts: Facts,
    pub(super) plan: Plan,
    pub(super) error_log: Option<File>,
}

/// Prepares the folder, binds the sockets, makes the plan and writes its files.
pub(super) fn prepare(settings: Settings, planner: Planner) -> Result<StartFacts, Error> {
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    enough_descriptors()?;
    let settings = resolved(settings)?;
    let ours = std::env::current_exe().map_err(system("find our own program"))?;
    let gateway = ours.with_file_name("sccache-dock-gateway");
    let named = check_files(&settings, &gateway)?;
    let prepared = state_dir::prepare(&settings)?;
    end_left_over_server(&paths::server_socket(&settings.run_dir));
    let sockets = Sockets::bind(&settings, &prepared)?;
    let front = sockets.listeners.front.as_ref();
    let front = front.map(TcpListener::local_addr).transpose();
    let dist = match front.map_err(system("read the address of the scheduler's port"))? {
        Some(front) => Some(dist_facts(&settings, &prepared, front)?),
        None => None,
    };
    let facts = Facts {
        program: ours.with_file_name("sccache-dock"),
        gateway,
        listen: sockets
            .listeners
            .cache
            .local_addr()
            .map_err(system("read the address of the cache port"))?,
        auth_token: prepared.auth_token.clone(),
        path: std::env::var("PATH").unwrap_or_else(|_| "/usr/local/bin:/usr/bin:/bin".into()),
        dist,
    };
    let mut plan = planner(&settings, &facts)?;
    plan.secrets.extend(named);
    have_programs(&plan)?;
    write_files(&plan, prepared.run_as)?;
    let error_log = settings.error_log.as_deref().map(open_error_log);
    Ok(StartFacts {
        error_log: error_log.transpose()?,
        settings,
        prepared,
        sockets,
        facts,
        plan,
    })
}

/// Outside a container, a supervisor that was killed leaves its sccache server running. We hold the folder's lock, so a
/// server that answers there has no supervisor any more.
fn end_left_over_server(socket: &Path) {
    let asked = crate::contract::sccache::sccache_shutdown(socket).and_then(|mut stream| {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(LEFT_OVER_PATIENCE))?;
        // The server handles the request only while the connection is open.
        stream.read_exact(&mut [0; 4])
    });
    // Usually there is no server; one that does not answer cannot be ended this way.
    drop(asked);
}

/// Checks the files that the gateway reads while it runs, and returns the tokens in them, which the log must redact.
pub(super) fn check_files(settings: &Settings, gateway: &Path) -> Result<Vec<Secret>, Error> {
    let mut tokens = Vec::new();
    if let Some(path) = &settings.tokens_file {
        let hint = "SCCACHE_TOKENS_FILE names a file of [[token]] tables with name, token, access and namespaces";
        tokens = tokens::read(path)
            .map_err(|cause| Error::File(cause, hint))?
            .tokens;
    }
    let set = [&settings.auth_token, &settings.read_token];
    if let Some(same) = tokens.iter().find(|one| {
        let is_same = |token: &Option<Secret>| token.is_some() && token.as_ref() == one.token();
        set.into_iter().any(is_same)
    }) {
        let message = format!(
            "cannot use the token \"{}\": another setting has the same token",
            same.name
        );
        return Err(Error::File(message, "give each name a token of its own"));
    }
    if let Some(files) = &settings.tls {
        let hint = "SCCACHE_TLS_CERT and SCCACHE_TLS_KEY name PEM files that belong together, SCCACHE_TLS_CLIENT_CA one with \
                    authorities";
        check_certificate(files, gateway).map_err(|cause| Error::File(cause, hint))?;
    }
    if let Some(ClientCertificate { cert, key }) = settings.client_certificate.clone() {
        let hint = "SCCACHE_TLS_CLIENT_CERT and SCCACHE_TLS_CLIENT_KEY name PEM files that belong together";
        let files = TlsFiles {
            cert,
            key,
            min_version: Default::default(),
            client_ca: None,
        };
        check_certificate(&files, gateway).map_err(|cause| Error::File(cause, hint))?;
    }
    Ok(tokens.iter().filter_map(Named::token).cloned().collect())
}

/// Lets the gateway's program check the certificate, so that PID 1 needs no TLS.
///
/// The process is not waited for: the loop reaps it like an orphan, even if this runs on another thread.
fn check_certificate(files: &TlsFiles, gateway: &Path) -> Result<(), String> {
    let failed = |cause: io::Error| format!("cannot run \"{}\": {cause}", gateway.display());
    let mut child = Command::new(gateway)
        .args([OsStr::new("--check-certificate"), files.cert.as_os_str()])
        .args([OsStr::new("--key"), files.key.as_os_str()])
        .args(
            files
                .client_ca
                .iter()
                .flat_map(|path| [OsStr::new("--client-ca"), path.as_os_str()]),
        )
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(failed)?;
    let mut said = String::new();
    if let Some(output) = child.stdout.take() {
        output
            .take(LONGEST_ANSWER)
            .read_to_string(&mut said)
            .map_err(failed)?;
    }
    match said.trim_end() {
        CERTIFICATE_IS_GOOD => Ok(()),
        "" => Err(format!(
            "\"{}\" ended before it had checked the certificate",
            gateway.display()
        )),
        fault => Err(fault.to_owned()),
    }
}

/// A program that is missing before the first start would still be missing at the second.
fn have_programs(plan: &Plan) -> Result<(), Error> {
    let mut programs = plan.services.iter().map(|service| &service.program);
    match programs.find(|program| !program.is_file()) {
        None => Ok(()),
        Some(missing) => Err(Error::NoProgram {
            name: missing.display().to_string(),
            hint: "the programs sccache-dock, sccache-dock-run and sccache-dock-gateway must be in one folder",
        }),
    }
}

/// The settings, with the programs resolved to paths.
pub(super) fn resolved(settings: Settings) -> Result<Settings, Error> {
    let sccache = find_program(
        &settings.sccache,
        "set SCCACHE_BINARY to the sccache to run",
    )?;
    let mut dist = settings.dist;
    if settings.mode.builds() {
        let is_searched = settings.sccache.components().count() == 1;
        dist.program = match beside(&sccache, &dist.program, is_searched) {
            Some(beside) => beside,
            None => find_program(
                &dist.program,
                "set SCCACHE_DIST_BINARY to the sccache-dist to run, or use a MODE without builders",
            )?,
        };
    }
    Ok(Settings {
        sccache,
        dist,
        ..settings
    })
}

/// Input of the plan for the scheduler and the builder.
fn dist_facts(
    settings: &Settings,
    prepared: &Prepared,
    front: SocketAddr,
) -> Result<DistFacts, Error> {
    let builder = loopback_address(BUILDER_PORT).map_err(system("find a free port"))?;
    Ok(DistFacts {
        front,
        scheduler: loopback_address(SCHEDULER_PORT).map_err(system("find a free port"))?,
        builder,
        scheduler_token: state_dir::new_token().map_err(system("generate a token"))?,
        builder_token: builder_token(settings, prepared.run_as)?,
        public_addr: public_addr(settings, builder)?,
        bwrap: bubblewrap()?,
        run_as: prepared.run_as,
    })
}

/// The same, after the settings have been re-read.
pub(super) fn renewed(
    settings: &Settings,
    run_as: Option<RunAs>,
    facts: &DistFacts,
) -> Result<DistFacts, Error> {
    Ok(DistFacts {
        builder_token: builder_token(settings, run_as)?,
        public_addr: public_addr(settings, facts.builder)?,
        bwrap: bubblewrap()?,
        ..facts.clone()
    })
}

fn builder_token(settings: &Settings, run_as: Option<RunAs>) -> Result<Secret, Error> {
    Ok(match &settings.dist.builder_token {
        Some(token) => token.clone(),
        None => state_dir::kept_server_token(&settings.dir, run_as)?,
    })
}

fn bubblewrap() -> Result<PathBuf, Error> {
    find_program(
        Path::new("bwrap"),
        "install bubblewrap, in which each job runs, or use a MODE without builders",
    )
}

/// A loopback address for a program of sccache-dist that only we connect to. It is a random one of 127.0.0.0/8, because
/// others on this machine's network (containers with `--network host`) may run the same program. Uses this port unless
/// it is taken.
fn loopback_address(port: u16) -> io::Result<SocketAddr> {
    let mut own = [0; 3];
    getrandom::fill(&mut own).map_err(io::Error::other)?;
    let ip = Ipv4Addr::new(127, own[0].max(1), own[1], own[2].clamp(1, 254));
    let any = SocketAddr::new(ip.into(), 0);
    let listener = TcpListener::bind((ip, port)).or_else(|_| TcpListener::bind(any))?;
    listener.local_addr()
}

const SCHEDULER_PORT: u16 = 10599;
const BUILDER_PORT: u16 = 10502;

fn public_addr(settings: &Settings, builder: SocketAddr) -> Result<SocketAddr, Error> {
    let own = settings.dist.builder_listen;
    if settings.dist.tunnelled {
        // A name, not a way: it has to differ from those of other machines.
        return Ok(SocketAddr::new(builder.ip(), own.port()));
    }
    let set = settings.dist.public_addr;
    let ip = match set {
        Some(set) => set.ip,
        None if own.ip().is_unspecified() => own_address()?,
        None => own.ip(),
    };
    let port = set.and_then(|set| set.port).unwrap_or(own.port());
    Ok(SocketAddr::new(ip, port))
}

/// The address with which this machine reaches others: that of the default route, or else the first that is not
/// loopback. Nothing is sent.
fn own_address() -> Result<IpAddr, Error> {
    const ELSEWHERE: (Ipv4Addr, u16) = (Ipv4Addr::new(192, 0, 2, 1), 9);
    let fail = |cause| Error::NoAddress { cause };
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).map_err(fail)?;
    let routed = socket
        .connect(ELSEWHERE)
        .and_then(|()| socket.local_addr())
        .map(|address| address.ip());
    let first = || -> io::Result<IpAddr> {
        let mut interfaces = nix::ifaddrs::getifaddrs()?;
        let found = interfaces.find_map(|interface| {
            let ip = interface.address?.as_sockaddr_in()?.ip();
            (!ip.is_loopback()).then_some(IpAddr::V4(ip))
        });
        found.ok_or_else(|| io::Error::other("no interface but loopback has one"))
    };
    routed.or_else(|_| first()).map_err(fail)
}

/// Writes the files that the services read at start.
pub(super) fn write_files(plan: &Plan, run_as: Option<RunAs>) -> Result<(), Error> {
    let files = plan.services.iter().flat_map(|service| &service.files);
    let files = files.map(|file| (&*file.path, &*file.text));
    state_dir::write_all_private(files, run_as)
        .map_err(|(path, cause)| Error::Write { path, cause })
}

fn is_program(path: &Path) -> bool {
    nix::unistd::access(path, nix::unistd::AccessFlags::X_OK).is_ok() && path.is_file()
}

/// The program of this name in the folder of sccache; if that was searched on PATH, root takes none that another user could
/// replace, as there.
fn beside(sccache: &Path, name: &Path, is_searched: bool) -> Option<PathBuf> {
    let beside = sccache.with_file_name(name);
    let is_named = name.components().count() == 1 && is_program(&beside);
    (is_named && (!is_searched || may_run(&beside))).then_some(beside)
}

fn may_run(path: &Path) -> bool {
    !owner::is_real_root() || owner::is_roots_program(path)
}

fn find_program(name: &Path, hint: &'static str) -> Result<PathBuf, Error> {
    let missing = || Error::NoProgram {
        name: name.display().to_string(),
        hint,
    };
    if name.components().count() > 1 {
        return if is_program(name) {
            Ok(name.to_owned())
        } else {
            Err(missing())
        };
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    // An empty part would be the folder that we are in.
    let folders = std::env::split_paths(&path).filter(|dir| dir.is_absolute());
    let mut found = folders
        .map(|dir| dir.join(name))
        .filter(|path| is_program(path))
        .peekable();
    let first = found.peek().cloned().ok_or_else(missing)?;
    match found.find(|path| may_run(path)) {
        Some(path) => Ok(path),
        None => Err(Error::NotRoots { path: first, hint }),
    }
}

fn open_error_log(path: &Path) -> Result<File, Error> {
    let opened = owner::open_to_append(path);
    opened.map_err(|cause| Error::Write {
        path: path.to_owned(),
        cause,
    })
}

/// The listeners for clients. They stay open across restarts of the gateway, so that no client is refused, and are
/// closed during longer outages, so that no client waits in vain.
pub(super) struct ClientListeners {
    pub(super) cache: TcpListener,
    /// The scheduler's, in the distributed modes.
    pub(super) front: Option<TcpListener>,
    pub(super) client: Option<UnixListener>,
}

/// The addresses of the listeners.
pub(super) struct Addresses {
    cache: SocketAddr,
    front: Option<SocketAddr>,
}

impl Addresses {
    fn set(settings: &Settings) -> Addresses {
        let front = settings.dist.scheduler_listen;
        Addresses {
            cache: settings.listen,
            front: match settings.mode {
                // Only the builder next to it uses it.
                Mode::Builder => Some(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), front.port())),
                mode => mode.schedules().then_some(front),
            },
        }
    }

    /// The actual addresses, once they are known.
    pub(super) fn bound(facts: &Facts) -> Addresses {
        Addresses {
            cache: facts.listen,
            front: facts.dist.as_ref().map(|dist| dist.front),
        }
    }
}

impl ClientListeners {
    pub(super) fn open(
        settings: &Settings,
        prepared: &Prepared,
        at: Addresses,
    ) -> Result<ClientListeners, Error> {
        let client = plan::client_socket(settings).map(|path| bind_unix(path, 0o666, prepared));
        let front = at.front.map(listeners::bind_tcp);
        Ok(ClientListeners {
            cache: listeners::bind_tcp(at.cache).map_err(listening)?,
            front: front.transpose().map_err(front_listening)?,
            client: client.transpose()?,
        })
    }
}

/// Sockets that are bound before anything starts.
pub(super) struct Sockets {
    pub(super) listeners: ClientListeners,
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
            listeners: ClientListeners::open(settings, prepared, Addresses::set(settings))?,
            control: private(paths::control_socket(run_dir))?,
            notify: private(paths::notify_socket(run_dir))?,
        })
    }
}

/// Creates a socket that belongs to the services' user from the beginning. Its folder belongs to that user too, so a
/// later chown by path could hit whatever they have put there.
fn bind_unix(path: PathBuf, mode: u32, prepared: &Prepared) -> Result<UnixListener, Error> {
    let _user = AsUser::of(prepared.run_as);
    listeners::bind_unix(&path, mode).map_err(listening)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, chown};

    #[test]
    fn root_takes_no_program_beside_that_another_user_could_replace() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("sccache-dist"), "#!/bin/sh\n").unwrap();
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(at("sccache-dist"), mode).unwrap();
        let found = |is_searched| {
            let name = Path::new("sccache-dist");
            beside(&at("sccache"), name, is_searched).is_some()
        };
        assert_eq!([true, false].map(found), [true, true]);
        assert!(beside(&at("sccache"), Path::new("none"), false).is_none());
        if owner::is_real_root() {
            chown(at("sccache-dist"), Some(12_345), None).unwrap();
            assert_eq!([true, false].map(found), [false, true]);
        }
    }
}
