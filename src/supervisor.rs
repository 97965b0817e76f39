//! `sccache-dock run`: keeps the services of a plan alive, as PID 1 or as any other process.
//!
//! There is one thread, one loop, and one place that waits. Signals, exits, readiness reports, control requests, log
//! pipes and deadlines become events of the pure [`machine`], whose actions are performed here.

pub mod children;
pub mod control;
mod crash;
pub mod exits;
pub mod logs;
pub mod machine;
pub mod peers;
pub mod probe;
mod reload;
mod start;
pub mod state_dir;
mod wait;

pub use self::start::Error;

use self::children::Children;
use self::control::Request;
use self::crash::Oom;
use self::exits::ServiceRecord;
use self::logs::{Level, Log, Source};
use self::machine::{Action, Event, Machine, Outcome, State};
use self::peers::Peers;
use self::probe::Notification;
use self::reload::Reload;
use self::start::{Addresses, ClientListeners, system};
use self::state_dir::{AsUser, Prepared};
use self::wait::PollResult;
use crate::base::listeners;
use crate::config::plan;
use crate::config::plan::{Facts, Planner};
use crate::config::settings::{Loaded, Settings};
use crate::contract::control::Response;
use crate::contract::paths;
use crate::contract::sccache::sccache_shutdown;
use crate::contract::service::{Exit, Id};
use crate::contract::service::{Plan, ReadyBy, StopBy};
use crate::exit;
use nix::sys::signal::Signal;
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;
use std::io::{self};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// How long clients wait for the gateway; during longer outages they are refused.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

type Signals = SignalDelivery<UnixStream, SignalOnly>;

/// Runs the services until told to stop; returns the exit code.
///
/// # Errors
/// The state folder, an address or a program cannot be used; nothing was started.
pub fn run(loaded: Loaded) -> Result<u8, Error> {
    run_plan(loaded, plan::plan)
}

/// Like [`run`], with another plan.
///
/// # Errors
/// The state folder, an address or a program cannot be used; nothing was started.
pub fn run_plan(loaded: Loaded, planner: Planner) -> Result<u8, Error> {
    // This comes first, because PID 1 ignores every signal without a handler.
    let signals = catch_signals().map_err(system("catch signals"))?;
    let Loaded {
        settings, warnings, ..
    } = loaded;
    let ground = start::prepare(settings, planner)?;
    let out = io::stdout().as_fd().try_clone_to_owned();
    let mut log = Log::start(
        out.map_err(system("use standard output"))?.into(),
        ground.settings.log_format,
        &ground.plan.secrets,
        ground.settings.log_stall,
        ground.error_log,
    )
    .map_err(system("start the log"))?;
    log.say(
        Level::Info,
        &format!(
            "sccache-dock {} in mode {} on {}, state in {}",
            env!("CARGO_PKG_VERSION"),
            ground.settings.mode.as_str(),
            ground.facts.listen,
            ground.settings.dir.display()
        ),
    );
    for warning in &warnings {
        log.say(Level::Warn, &warning.to_string());
    }
    for note in &ground.prepared.notes {
        log.say(Level::Info, note);
    }
    // Adopt the services' orphans, even if we are not PID 1.
    if let Err(error) = nix::sys::prctl::set_child_subreaper(true) {
        log.say(
            Level::Warn,
            &format!("cannot become the subreaper: {error}; orphans go to PID 1"),
        );
    }
    let rules = ground.plan.services.iter();
    let supervisor = Supervisor {
        machine: Machine::new(
            rules.map(|service| service.rules.clone()).collect(),
            ground.settings.stop_grace,
        ),
        runtimes: ground
            .plan
            .services
            .iter()
            .map(|_| Runtime::default())
            .collect(),
        planner,
        plan: ground.plan,
        settings: ground.settings,
        prepared: ground.prepared,
        facts: ground.facts,
        listeners: Some(ground.sockets.listeners),
        control: Peers::new(ground.sockets.control, control::LINE_LIMIT),
        notify: Peers::new(ground.sockets.notify, probe::NOTIFICATION_LIMIT),
        children: Children::default(),
        sources: Vec::new(),
        log,
        started: now(),
        orphans: 0,
        orphans_came: false,
        oom: Oom::now(),
        reload: None,
    };
    supervisor.supervise(signals)
}

#[expect(clippy::disallowed_methods, reason = "the loop's one clock")]
fn now() -> Instant {
    Instant::now()
}

fn catch_signals() -> io::Result<Signals> {
    let (read, write) = UnixStream::pair()?;
    SignalDelivery::with_pipe(
        read,
        write,
        SignalOnly,
        [SIGTERM, SIGINT, SIGQUIT, SIGCHLD, SIGHUP, SIGUSR1],
    )
}

/// What the loop keeps for one service besides its state.
#[derive(Default)]
struct Runtime {
    handover: Option<UnixStream>,
    spawned_at: Option<Instant>,
    /// The last lines before it closed its output.
    last_lines: Vec<String>,
    /// What is kept across processes.
    record: ServiceRecord,
    /// The connection over which it was asked to stop. It is kept until the answer arrives, because sccache drops a
    /// request whose connection closes; then it is closed, because sccache waits for all open connections.
    stop_request: Option<UnixStream>,
}

struct Supervisor {
    planner: Planner,
    plan: Plan,
    settings: Settings,
    prepared: Prepared,
    facts: Facts,
    listeners: Option<ClientListeners>,
    machine: Machine,
    children: Children,
    runtimes: Vec<Runtime>,
    sources: Vec<Source>,
    control: Peers,
    notify: Peers,
    log: Log,
    started: Instant,
    orphans: u64,
    /// More orphans are expected: the next wait collects them.
    orphans_came: bool,
    oom: Oom,
    reload: Option<Reload>,
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
            for id in turn.stop_answers {
                self.runtimes[id.0].stop_request = None;
            }
            outcome = outcome.or(self.take_notifications(now, turn.notify));
            outcome = outcome.or(self.take_reload(now, turn.reload));
            outcome = outcome.or(self.serve_control(now, turn.control));
            outcome = outcome.or(self.step(now, Event::Wake));
        }
        let outcome = outcome.unwrap_or(Outcome::Drained);
        Ok(self.finish(outcome))
    }

    fn take_signals(&mut self, now: Instant, signals: &mut Signals) -> Option<Outcome> {
        let mut outcome = None;
        for signal in signals.pending() {
            outcome = outcome.or(match signal {
                SIGCHLD => self.take_exits(now),
                SIGHUP => {
                    self.ask_reload(now, None);
                    None
                }
                SIGUSR1 => {
                    let report = self.report(now);
                    self.log.say(Level::Info, &report.to_string());
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

    fn take_handover(&mut self, now: Instant, id: Id) -> Option<Outcome> {
        let said = self.runtimes[id.0]
            .handover
            .as_ref()
            .map_or(Notification::Nothing, probe::handover);
        match said {
            Notification::Ready => self.ready(now, id),
            Notification::Of(byte) => self
                .service_by(ReadyBy::Gateway(byte))
                .and_then(|id| self.ready(now, id)),
            Notification::Gone => {
                self.runtimes[id.0].handover = None;
                None
            }
            Notification::Nothing | Notification::Failed(_) => None,
        }
    }

    fn take_notifications(&mut self, now: Instant, fired: bool) -> Option<Outcome> {
        if !fired && self.notify.deadline().is_none() {
            return None;
        }
        // Also if no service uses the socket: connections to it must not keep us awake.
        let heard = self.notify.hear(now, probe::notification);
        let id = self.service_by(ReadyBy::Notify)?;
        let mut outcome = None;
        for (_, said) in heard {
            match said {
                Notification::Ready => outcome = outcome.or(self.ready(now, id)),
                Notification::Failed(reason) => {
                    let name = self.plan.services[id.0].name;
                    let text = format!("{name} cannot start: {reason}");
                    self.log.say(Level::Error, &text);
                }
                Notification::Nothing | Notification::Gone | Notification::Of(_) => {}
            }
        }
        outcome
    }

    /// The service that reports readiness in this way.
    fn service_by(&self, ready_by: ReadyBy) -> Option<Id> {
        let mut services = self.plan.services.iter();
        let place = services.position(|service| service.ready_by == ready_by);
        place.map(Id)
    }

    /// Sends a byte to the gateway, if one runs.
    fn tell_gateway(&self, byte: u8) {
        let gateway = self.service_by(ReadyBy::Handover);
        if let Some(stream) = gateway.and_then(|id| self.runtimes[id.0].handover.as_ref()) {
            probe::tell(stream, byte);
        }
    }

    fn read_logs(&mut self, turn: &PollResult) {
        // Backwards, so that removals do not shift earlier positions.
        for index in turn.sources.iter().rev() {
            if !self.log.read(&mut self.sources[*index]) {
                let source = self.sources.remove(*index);
                let services = &self.plan.services;
                if let Some(place) = services.iter().position(|it| it.name == source.service) {
                    // Its output may end before its process does.
                    self.runtimes[place].last_lines = self.log.last_lines(&source);
                }
            }
        }
    }

    fn serve_control(&mut self, now: Instant, fired: bool) -> Option<Outcome> {
        if !fired && self.control.deadline().is_none() {
            return None;
        }
        let mut outcome = None;
        for (peer, request) in self.control.hear(now, Request::understand) {
            if request == Request::Reload {
                // The answer is sent when it is done.
                self.ask_reload(now, Some(peer));
                continue;
            }
            let (response, ended) = self.answer(now, request);
            response.send(peer);
            outcome = outcome.or(ended);
        }
        outcome
    }

    fn answer(&mut self, now: Instant, request: Request) -> (Response, Option<Outcome>) {
        let named = |service: &str| {
            let services = &self.plan.services;
            let place = services.iter().position(|known| known.name == service);
            place.map(Id).ok_or_else(|| {
                let names: Vec<&str> = services.iter().map(|known| known.name).collect();
                Response::Error(format!(
                    "no service \"{service}\"; there are {}",
                    names.join(", ")
                ))
            })
        };
        let (event, what) = match &request {
            Request::Status => return (Response::Status(self.report(now)), None),
            Request::Hide(secret) => {
                self.log.hide(secret);
                return (Response::Done, None);
            }
            Request::Garbage(message) => return (Response::Error(message.clone()), None),
            // Unreachable: a reload is answered when it is done.
            Request::Reload => return (Response::Done, None),
            Request::Restart(service) => (named(service).map(Event::Restart), service),
            Request::Stop(service) => (named(service).map(Event::Stop), service),
        };
        match event {
            Err(response) => (response, None),
            Ok(_) if self.machine.is_draining() => {
                (Response::Error("everything is stopping".into()), None)
            }
            Ok(event) => {
                let verb = if matches!(event, Event::Stop(_)) {
                    "stop"
                } else {
                    "restart"
                };
                self.log
                    .say(Level::Info, &format!("{verb} of {what} was asked for"));
                if let Event::Stop(id) = event {
                    self.close_listeners(id);
                }
                (Response::Done, self.step(now, event))
            }
        }
    }

    /// Feeds the machine and performs its actions, until there are none left.
    fn step(&mut self, now: Instant, event: Event) -> Option<Outcome> {
        let mut outcome = None;
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            for action in self.machine.step(now, event) {
                match action {
                    Action::Spawn(id) => match self.spawn(now, id) {
                        Ok(()) if self.plan.services[id.0].ready_by == ReadyBy::Spawn => {
                            events.push(Event::Ready(id));
                        }
                        Ok(()) => {}
                        Err(exit) => {
                            self.note_not_spawned(now, id, exit);
                            events.push(Event::Exited(id, exit));
                        }
                    },
                    Action::Terminate(id) => self.terminate(id),
                    Action::Kill(id) => {
                        let name = self.plan.services[id.0].name;
                        let why = match event {
                            Event::Kill => "killed",
                            _ => "did not stop in time: killed",
                        };
                        self.log.say(Level::Warn, &format!("{name} {why}"));
                        self.children.signal(id, Signal::SIGKILL);
                    }
                    Action::Finish(end) => outcome = Some(end),
                }
            }
        }
        self.close_listeners_for_a_long_pause(now);
        outcome
    }

    fn spawn(&mut self, now: Instant, id: Id) -> Result<(), Exit> {
        if self.hands_over(id) && self.listeners.is_none() {
            let listeners = ClientListeners::open(
                &self.settings,
                &self.prepared,
                Addresses::bound(&self.facts),
            );
            self.listeners = Some(listeners.map_err(|error| {
                self.log.say(Level::Error, &error.to_string());
                Exit::NotBound(error.errno() as i32)
            })?);
        }
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
        });
        let spawned = spawned.map_err(|errno| Exit::NotSpawned(errno as i32))?;
        if let Some(stream) = &spawned.handover {
            let listeners = self.listeners.iter();
            let fds: Vec<_> = listeners
                .flat_map(|listeners| {
                    let front = listeners.front.as_ref().map(AsFd::as_fd);
                    let client = listeners.client.as_ref().map(AsFd::as_fd);
                    std::iter::once(listeners.cache.as_fd())
                        .chain(front)
                        .chain(client)
                })
                .collect();
            if let Err(error) = listeners::send(stream, &fds) {
                // Without listeners the service will exit, and that exit is handled.
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
        let ready_by = service.ready_by;
        let runtime = &mut self.runtimes[id.0];
        runtime.handover = spawned.handover;
        runtime.spawned_at = Some(now);
        runtime.stop_request = None;
        runtime.last_lines.clear();
        self.announce_scheduler(ready_by);
        Ok(())
    }

    /// The gateway watches a scheduler from its start; a new gateway watches one that is already running.
    fn announce_scheduler(&self, spawned: ReadyBy) {
        let scheduler = self.service_by(ReadyBy::Gateway(plan::SCHEDULER_ANSWERS));
        let runs = scheduler.is_some_and(|id| self.children.pid(id).is_some());
        match spawned {
            ReadyBy::Gateway(plan::SCHEDULER_ANSWERS) | ReadyBy::Handover if runs => {
                self.tell_gateway(b'S');
            }
            ReadyBy::Gateway(_) | ReadyBy::Handover | ReadyBy::Notify | ReadyBy::Spawn => {}
        }
    }

    fn terminate(&mut self, id: Id) {
        if self.plan.services[id.0].ready_by == ReadyBy::Gateway(plan::BUILDER_REGISTERED) {
            // It gets no new jobs from here on; it finishes those it has.
            self.tell_gateway(b'L');
        }
        if self.machine.is_draining() && self.hands_over(id) {
            // New clients find no socket, instead of one at which nobody will answer, for which sccache would fail the
            // compile. Existing connections are served to the end.
            let _ = std::fs::remove_file(paths::client_socket(&self.settings.run_dir));
        }
        let asked = match &self.plan.services[id.0].stop_by {
            StopBy::Term => None,
            StopBy::SccacheShutdown(socket) => sccache_shutdown(socket).ok(),
        };
        if asked.is_none() {
            self.children.signal(id, Signal::SIGTERM);
        }
        self.runtimes[id.0].stop_request = asked;
        if self.machine.is_draining() {
            self.close_listeners(id);
        }
    }

    fn hands_over(&self, id: Id) -> bool {
        self.plan.services[id.0].ready_by == ReadyBy::Handover
    }

    /// Nobody will accept from here on: clients should be refused at once instead of waiting.
    fn close_listeners(&mut self, id: Id) {
        if self.hands_over(id) {
            self.listeners = None;
        }
    }

    /// During the first quick retries, clients wait in the kernel. During longer pauses they are refused and continue
    /// without the cache; the next spawn opens the listeners again.
    fn close_listeners_for_a_long_pause(&mut self, now: Instant) {
        for (index, service) in self.machine.services().iter().enumerate() {
            if let State::Backoff { retry_at } = service.state
                && self.plan.services[index].ready_by == ReadyBy::Handover
                && retry_at.saturating_duration_since(now) > LONGEST_WAIT
            {
                self.listeners = None;
            }
        }
    }

    /// Logs the last lines and returns the exit code.
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
            Outcome::Failed(id, why) => {
                self.log_failure(now(), id, why);
                let isolation = Some(Exit::Code(i32::from(exit::ISOLATION)));
                let builds =
                    self.service_by(ReadyBy::Gateway(plan::BUILDER_REGISTERED)) == Some(id);
                match builds && self.machine.services()[id.0].last_exit == isolation {
                    true => exit::ISOLATION,
                    false => exit::FAILED,
                }
            }
        };
        let run_dir = &self.settings.run_dir;
        let _user = AsUser::of(self.prepared.run_as);
        // Not the clients' socket: by now it may belong to a client's own daemon.
        for path in [
            paths::server_socket(run_dir),
            paths::notify_socket(run_dir),
            paths::jobs_socket(run_dir),
            paths::control_socket(run_dir),
        ] {
            // The next start would replace a left-over socket anyway; removing it only keeps the folder tidy.
            let _ = std::fs::remove_file(path);
        }
        self.log.close(Duration::from_secs(1));
        code
    }
}
