//! `sccache-dock run`: PID 1, or any process, that keeps the services of a plan alive.
//!
//! One thread, one loop, one place that waits: signals, exits, readiness, control requests, log pipes and deadlines
//! become events of the pure [`machine`], whose actions are performed here.

pub mod children;
pub mod control;
pub mod logs;
pub mod machine;
pub mod probe;

use crate::cli::exit;
use crate::listeners;
use crate::plan::{self, Facts, Plan, StopBy, paths};
use crate::settings::{Loaded, Settings};
use crate::state::{self, Prepared};
use children::Children;
use control::{Control, Report, Request, Response, ServiceReport};
use logs::{Level, Log, Source};
use machine::{Action, Event, Exit, Id, Machine, Outcome, State};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::signal::Signal;
use probe::{Notify, Said};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

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

fn system(action: &'static str) -> impl Fn(io::Error) -> Error {
    move |cause| Error::System { action, cause }
}

type Signals = SignalDelivery<UnixStream, SignalOnly>;

/// Runs the services until they are told to stop; gives the exit code.
///
/// # Errors
/// The state folder, an address or a program cannot be used; nothing was started.
pub fn run(loaded: Loaded) -> Result<u8, Error> {
    let Loaded {
        settings, warnings, ..
    } = loaded;
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    let sccache = find_program(&settings.sccache)?;
    let settings = Settings {
        sccache,
        ..settings
    };
    let prepared = state::prepare(&settings)?;
    let sockets = Sockets::bind(&settings, &prepared)?;
    let facts = Facts {
        program: std::env::current_exe().map_err(system("find our own program"))?,
        listen: sockets
            .cache
            .local_addr()
            .map_err(system("read the address of the cache port"))?,
        auth_token: prepared.auth_token.clone(),
        path: std::env::var("PATH").unwrap_or_else(|_| "/usr/local/bin:/usr/bin:/bin".into()),
    };
    let plan = plan::plan(&settings, &facts)?;
    for file in &plan.files {
        state::write_private(&file.path, &file.text, prepared.run_as).map_err(|cause| {
            Error::Write {
                path: file.path.clone(),
                cause,
            }
        })?;
    }
    let error_log = settings
        .error_log
        .as_deref()
        .map(open_error_log)
        .transpose()?;
    let mut log = Log::start(
        settings.log_format,
        &plan.secrets,
        settings.log_stall,
        error_log,
    )
    .map_err(system("start the log"))?;
    log.say(
        Level::Info,
        &format!(
            "sccache-dock {} in mode {} on {}, state in {}",
            env!("CARGO_PKG_VERSION"),
            settings.mode.as_str(),
            facts.listen,
            settings.dir.display()
        ),
    );
    for warning in &warnings {
        log.say(Level::Warn, &warning.to_string());
    }
    for note in &prepared.notes {
        log.say(Level::Info, note);
    }
    // Orphans of the services come to us, whether or not we are PID 1.
    if let Err(error) = nix::sys::prctl::set_child_subreaper(true) {
        log.say(
            Level::Warn,
            &format!("cannot become the subreaper: {error}; orphans go to PID 1"),
        );
    }
    let signals = catch_signals().map_err(system("catch signals"))?;
    let machine = Machine::new(
        plan.services
            .iter()
            .map(|service| service.rules.clone())
            .collect(),
        settings.stop_grace,
    );
    let supervisor = Supervisor {
        runtimes: plan.services.iter().map(|_| Runtime::default()).collect(),
        machine,
        plan,
        settings,
        prepared,
        listen: facts.listen.to_string(),
        cache: Some(sockets.cache),
        client: sockets.client,
        control: Control::new(sockets.control),
        notify: Notify::new(sockets.notify),
        children: Children::default(),
        sources: Vec::new(),
        log,
        started: now(),
        orphans: 0,
    };
    supervisor.supervise(signals)
}

#[expect(clippy::disallowed_methods, reason = "the loop's one clock")]
fn now() -> Instant {
    Instant::now()
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

fn open_error_log(path: &Path) -> Result<std::fs::File, Error> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .map_err(|cause| Error::Write {
            path: path.to_owned(),
            cause,
        })
}

fn catch_signals() -> io::Result<Signals> {
    let (read, write) = UnixStream::pair()?;
    SignalDelivery::with_pipe(
        read,
        write,
        SignalOnly,
        [SIGTERM, SIGINT, SIGQUIT, SIGCHLD, SIGHUP],
    )
}

/// What is bound before anything starts, and held across restarts of the services.
struct Sockets {
    cache: TcpListener,
    client: Option<UnixListener>,
    control: UnixListener,
    notify: UnixListener,
}

impl Sockets {
    fn bind(settings: &Settings, prepared: &Prepared) -> Result<Sockets, Error> {
        let run_dir = &settings.run_dir;
        let private = |path: PathBuf| -> Result<UnixListener, Error> {
            let listener = listeners::bind_unix(&path, 0o600).map_err(listening)?;
            if let Some(owner) = prepared.run_as {
                std::os::unix::fs::chown(&path, Some(owner.uid), Some(owner.gid)).map_err(
                    |cause| Error::Write {
                        path: path.clone(),
                        cause,
                    },
                )?;
            }
            listener
                .set_nonblocking(true)
                .map_err(system("set up a socket"))?;
            Ok(listener)
        };
        let client = plan::client_socket(settings)
            .map(|path| listeners::bind_unix(&path, 0o666).map_err(listening))
            .transpose()?;
        Ok(Sockets {
            cache: listeners::bind_tcp(settings.listen).map_err(listening)?,
            client,
            control: private(paths::control_socket(run_dir))?,
            notify: private(paths::notify_socket(run_dir))?,
        })
    }
}

/// What the loop holds for one service beside its state.
#[derive(Default)]
struct Runtime {
    handover: Option<UnixStream>,
    spawned_at: Option<Instant>,
    /// Over which it was asked to stop: kept until it answers, because sccache drops a request whose connection
    /// closes, and closed then, because it waits for every connection that is open.
    farewell: Option<UnixStream>,
}

struct Supervisor {
    plan: Plan,
    settings: Settings,
    prepared: Prepared,
    listen: String,
    cache: Option<TcpListener>,
    client: Option<UnixListener>,
    machine: Machine,
    children: Children,
    runtimes: Vec<Runtime>,
    sources: Vec<Source>,
    control: Control,
    notify: Notify,
    log: Log,
    started: Instant,
    orphans: u64,
}

/// What one turn of waiting found.
#[derive(Default)]
struct Turn {
    signals: bool,
    control: bool,
    notify: bool,
    handovers: Vec<Id>,
    farewells: Vec<Id>,
    sources: Vec<usize>,
}

impl Supervisor {
    fn supervise(mut self, mut signals: Signals) -> Result<u8, Error> {
        let mut outcome = self.step(now(), Event::Wake);
        while outcome.is_none() {
            let turn = self.wait(&signals).map_err(system("wait for events"))?;
            let now = now();
            if turn.signals {
                outcome = outcome.or(self.take_signals(now, &mut signals));
            }
            self.read_logs(&turn);
            for id in turn.handovers {
                outcome = outcome.or(self.take_handover(now, id));
            }
            for id in turn.farewells {
                self.runtimes[id.0].farewell = None;
            }
            if turn.notify {
                outcome = outcome.or(self.take_notification(now));
            }
            outcome = outcome.or(self.serve_control(now, turn.control));
            outcome = outcome.or(self.step(now, Event::Wake));
        }
        let outcome = outcome.unwrap_or(Outcome::Drained);
        Ok(self.finish(outcome))
    }

    /// The only place that waits.
    fn wait(&mut self, signals: &Signals) -> io::Result<Turn> {
        let now = now();
        let has_room = self.log.has_room(now);
        let deadlines = [
            self.machine.deadline(),
            self.control.deadline(),
            self.log.deadline().filter(|_| !has_room),
        ];
        let timeout = deadlines
            .into_iter()
            .flatten()
            .min()
            .map_or(PollTimeout::NONE, |at| {
                // Rounded up: waking a moment early would spin until the deadline.
                let left = at.saturating_duration_since(now) + Duration::from_micros(999);
                PollTimeout::try_from(left.as_millis().min(60_000)).unwrap_or(PollTimeout::ZERO)
            });
        let input = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut fds: Vec<PollFd<'_>> = Vec::with_capacity(8 + self.sources.len());
        fds.push(input(signals.get_read().as_fd()));
        fds.push(input(self.log.wake_fd()));
        fds.push(input(self.control.listener.as_fd()));
        fds.push(input(self.notify.listener.as_fd()));
        let controls = fds.len();
        fds.extend(
            self.control
                .clients
                .iter()
                .map(|client| input(client.stream.as_fd())),
        );
        let notifies = fds.len();
        fds.extend(
            self.notify
                .connection
                .iter()
                .map(|stream| input(stream.as_fd())),
        );
        let handovers = fds.len();
        let have = |kept: fn(&Runtime) -> Option<&UnixStream>| -> Vec<(Id, &UnixStream)> {
            let runtimes = self.runtimes.iter().enumerate();
            runtimes
                .filter_map(|(index, runtime)| Some((Id(index), kept(runtime)?)))
                .collect()
        };
        let handing = have(|runtime| runtime.handover.as_ref());
        fds.extend(handing.iter().map(|(_, stream)| input(stream.as_fd())));
        let farewells = fds.len();
        let leaving = have(|runtime| runtime.farewell.as_ref());
        fds.extend(leaving.iter().map(|(_, stream)| input(stream.as_fd())));
        let sources = fds.len();
        if has_room {
            fds.extend(self.sources.iter().map(|source| input(source.pipe.as_fd())));
        }
        match nix::poll::poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let fired = |index: usize| fds.get(index).is_some_and(|fd| fd.any().unwrap_or(true));
        Ok(Turn {
            signals: fired(0),
            control: fired(2) || (controls..notifies).any(fired),
            notify: fired(3) || (notifies..handovers).any(fired),
            handovers: (0..handing.len())
                .filter(|i| fired(handovers + i))
                .map(|i| handing[i].0)
                .collect(),
            farewells: (0..leaving.len())
                .filter(|i| fired(farewells + i))
                .map(|i| leaving[i].0)
                .collect(),
            sources: (0..self.sources.len())
                .filter(|index| fired(sources + index))
                .collect(),
        })
    }

    fn take_signals(&mut self, now: Instant, signals: &mut Signals) -> Option<Outcome> {
        let mut outcome = None;
        for signal in signals.pending() {
            outcome = outcome.or(match signal {
                SIGCHLD => self.take_exits(now),
                SIGHUP => {
                    self.log.say(
                        Level::Info,
                        "SIGHUP has no effect: restart the container to change settings",
                    );
                    None
                }
                _ if self.machine.is_draining() => {
                    self.log
                        .say(Level::Warn, "second request to stop: killing what is left");
                    self.step(now, Event::Kill)
                }
                _ => {
                    self.log.say(Level::Info, "stopping");
                    self.step(now, Event::Drain)
                }
            });
        }
        outcome
    }

    fn take_exits(&mut self, now: Instant) -> Option<Outcome> {
        let (exits, orphans) = self.children.reap();
        self.orphans += orphans;
        let mut outcome = None;
        for (id, exit) in exits {
            let name = self.plan.services[id.0].name;
            let asked = matches!(
                self.machine.services()[id.0].state,
                State::Stopping { .. } | State::Killed { .. }
            );
            let level = if asked { Level::Info } else { Level::Warn };
            self.log.say(level, &format!("{name} exited: {exit}"));
            self.runtimes[id.0] = Runtime::default();
            if !self.plan.services[id.0].handover {
                self.notify.forget();
            }
            outcome = outcome.or(self.step(now, Event::Exited(id, exit)));
        }
        outcome
    }

    fn take_handover(&mut self, now: Instant, id: Id) -> Option<Outcome> {
        let said = self.runtimes[id.0]
            .handover
            .as_ref()
            .map_or(Said::Nothing, probe::handover);
        match said {
            Said::Ready => self.ready(now, id),
            Said::Gone => {
                self.runtimes[id.0].handover = None;
                None
            }
            Said::Nothing | Said::Failed(_) => None,
        }
    }

    fn take_notification(&mut self, now: Instant) -> Option<Outcome> {
        let index = self
            .plan
            .services
            .iter()
            .position(|service| !service.handover)?;
        match self.notify.read() {
            Said::Ready => self.ready(now, Id(index)),
            Said::Failed(reason) => {
                self.log.say(
                    Level::Error,
                    &format!("{} cannot start: {reason}", self.plan.services[index].name),
                );
                None
            }
            Said::Nothing | Said::Gone => None,
        }
    }

    fn ready(&mut self, now: Instant, id: Id) -> Option<Outcome> {
        let took = self.runtimes[id.0]
            .spawned_at
            .map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        self.log.say(
            Level::Info,
            &format!(
                "{} ready after {} ms",
                self.plan.services[id.0].name,
                took.as_millis()
            ),
        );
        self.step(now, Event::Ready(id))
    }

    fn read_logs(&mut self, turn: &Turn) {
        // From the end, so that removal keeps the earlier places.
        for index in turn.sources.iter().rev() {
            if !self.log.read(&mut self.sources[*index]) {
                self.sources.remove(*index);
            }
        }
    }

    fn serve_control(&mut self, now: Instant, fired: bool) -> Option<Outcome> {
        if !fired && self.control.clients.is_empty() {
            return None;
        }
        let report = self.report(now);
        let names: Vec<&str> = self
            .plan
            .services
            .iter()
            .map(|service| service.name)
            .collect();
        let mut restarts = Vec::new();
        self.control.accept(now);
        self.control.serve(now, |request| match request {
            Request::Status => Response::Status(report.clone()),
            Request::Restart(service) => match names.iter().position(|name| *name == service) {
                Some(index) => {
                    restarts.push(Id(index));
                    Response::Done
                }
                None => Response::Error(format!(
                    "no service \"{service}\"; there are {}",
                    names.join(", ")
                )),
            },
        });
        let mut outcome = None;
        for id in restarts {
            self.log.say(
                Level::Info,
                &format!("restart of {} was asked for", self.plan.services[id.0].name),
            );
            outcome = outcome.or(self.step(now, Event::Restart(id)));
        }
        outcome
    }

    fn report(&self, now: Instant) -> Report {
        let seconds = |since: Instant| now.saturating_duration_since(since).as_secs_f64();
        let service = |(index, service): (usize, &machine::Service)| ServiceReport {
            name: self.plan.services[index].name.to_owned(),
            state: service.state.name().to_owned(),
            pid: self.children.pid(Id(index)),
            ready_seconds: match service.state {
                State::Ready { since } => Some(seconds(since)),
                _ => None,
            },
            restarts: service.restarts,
            last_exit: service.last_exit.map(|exit| exit.to_string()),
        };
        Report {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            mode: self.settings.mode.as_str().to_owned(),
            listen: self.listen.clone(),
            uptime_seconds: seconds(self.started),
            stopping: self.machine.is_draining(),
            services: self
                .machine
                .services()
                .iter()
                .enumerate()
                .map(service)
                .collect(),
            orphans_reaped: self.orphans,
        }
    }

    /// Feeds the machine and performs its actions, until it wants nothing more.
    fn step(&mut self, now: Instant, event: Event) -> Option<Outcome> {
        let mut outcome = None;
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            for action in self.machine.step(now, event) {
                match action {
                    Action::Spawn(id) => {
                        if let Err(errno) = self.spawn(now, id) {
                            events.push(Event::Exited(id, Exit::NotSpawned(errno as i32)));
                        }
                    }
                    Action::Terminate(id) => self.terminate(id),
                    Action::Kill(id) => {
                        let name = self.plan.services[id.0].name;
                        self.log
                            .say(Level::Warn, &format!("{name} did not stop in time: killed"));
                        self.children.signal(id, Signal::SIGKILL);
                    }
                    Action::Finish(end) => outcome = Some(end),
                }
            }
        }
        outcome
    }

    fn spawn(&mut self, now: Instant, id: Id) -> Result<(), Errno> {
        let service = &self.plan.services[id.0];
        let spawned = self
            .children
            .spawn(id, service, &self.settings.dir, self.prepared.run_as);
        let spawned = spawned.inspect_err(|errno| {
            let text = format!(
                "cannot start {} ({}): {errno}",
                service.name,
                service.program.display()
            );
            self.log.say(Level::Error, &text);
        })?;
        if let Some(stream) = &spawned.handover {
            let mut fds: Vec<_> = self.cache.iter().map(AsFd::as_fd).collect();
            fds.extend(self.client.iter().map(AsFd::as_fd));
            if let Err(error) = listeners::send(stream, &fds) {
                // The service will end by itself, without listeners, and its exit is handled.
                self.log.say(
                    Level::Error,
                    &format!("cannot hand the listeners to {}: {error}", service.name),
                );
            }
        }
        self.log.say(
            Level::Info,
            &format!(
                "{} started, pid {}",
                service.name,
                self.children.pid(id).unwrap_or(0)
            ),
        );
        self.sources.push(Source::new(service.name, spawned.output));
        self.runtimes[id.0] = Runtime {
            handover: spawned.handover,
            spawned_at: Some(now),
            farewell: None,
        };
        Ok(())
    }

    fn terminate(&mut self, id: Id) {
        let asked = match &self.plan.services[id.0].stop_by {
            StopBy::Term => None,
            StopBy::SccacheShutdown(socket) => sccache_shutdown(socket).ok(),
        };
        if asked.is_none() {
            self.children.signal(id, Signal::SIGTERM);
        }
        self.runtimes[id.0].farewell = asked;
        if self.machine.is_draining() && self.plan.services[id.0].handover {
            // From here on nobody will accept: clients are to be refused at once, not to wait.
            self.cache = None;
            self.client = None;
        }
    }

    /// The last lines, then the exit code.
    fn finish(mut self, outcome: Outcome) -> u8 {
        // Processes that left their service's group have no owner any more.
        for source in std::mem::take(&mut self.sources) {
            self.log.finish(source);
        }
        let code = match outcome {
            Outcome::Drained => {
                self.log.say(Level::Info, "stopped");
                exit::OK
            }
            Outcome::Failed(id) => {
                let service = &self.machine.services()[id.0];
                let last = service
                    .last_exit
                    .map_or_else(String::new, |exit| format!(": {exit}"));
                let name = self.plan.services[id.0].name;
                self.log.say(
                    Level::Error,
                    &format!("{name} cannot run{last}; its last lines are above"),
                );
                exit::FAILED
            }
        };
        let run_dir = &self.settings.run_dir;
        for path in [
            paths::client_socket(run_dir),
            paths::server_socket(run_dir),
            paths::notify_socket(run_dir),
            paths::control_socket(run_dir),
        ] {
            // A left-over socket is replaced at the next start; removing it only keeps the folder clean.
            let _ = std::fs::remove_file(path);
        }
        self.log.close(Duration::from_secs(1));
        code
    }
}

/// Sends the `Shutdown` request (frame of four bytes, tag 3; sccache 0.19.0, `src/protocol.rs`) and waits for nothing.
/// The connection must stay open until the answer comes.
fn sccache_shutdown(socket: &Path) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_nonblocking(true)?;
    stream.write_all(&[0, 0, 0, 4, 3, 0, 0, 0])?;
    Ok(stream)
}
