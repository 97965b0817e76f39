//! How each process of a service started and ended, and what `status` reports about it.

use super::Supervisor;
use super::logs::Level;
use super::machine;
use super::machine::{Event, Outcome, State, StopReason, WINDOW};
use crate::contract::control::Crash;
use crate::contract::control::{Report, ServiceReport, TroubleReport};
use crate::contract::service::ReadyBy;
use crate::contract::service::{Exit, Id};
use std::time::{Duration, Instant};

/// What is remembered about a service across its processes.
#[derive(Debug, Default)]
pub(super) struct ServiceRecord {
    /// The last unrequested exit.
    crash: Option<Crash>,
    /// When the last process ended, until its successor is ready.
    ended_at: Option<Instant>,
    /// Duration of the last start, from spawn to ready.
    ready_after: Option<Duration>,
    /// Duration of the last outage, from the end of a process until its successor was ready.
    away_for: Option<Duration>,
}

impl Supervisor {
    pub(super) fn take_exits(&mut self, now: Instant) -> Option<Outcome> {
        let (exits, orphans) = self.children.reap();
        self.orphans += orphans;
        self.orphans_came = orphans > 0;
        let mut outcome = None;
        for ended in exits {
            let id = ended.id;
            let oom = self.oom.has_moved();
            let exit = match ended.exit {
                Exit::Signal(nix::libc::SIGKILL) if oom => Exit::OutOfMemory,
                exit => exit,
            };
            let last_lines = self.last_lines(id);
            let runtime = std::mem::take(&mut self.runtimes[id.0]);
            self.runtimes[id.0].record = runtime.record;
            if self.machine.is_asked_to_end(id) {
                let name = self.plan.services[id.0].name;
                self.log.say(Level::Info, &format!("{name} exited: {exit}"));
            } else {
                let lived = runtime
                    .spawned_at
                    .map(|at| now.saturating_duration_since(at));
                let lived = lived.unwrap_or_default();
                // We ended a start that hung.
                let hung = matches!(
                    self.machine.services()[id.0].state,
                    State::Stopping { .. } | State::Killed { .. }
                );
                self.note(id, Crash::new(exit, hung, lived, ended.cpu, last_lines));
            }
            self.runtimes[id.0].record.ended_at = Some(now);
            if self.plan.services[id.0].ready_by == ReadyBy::Notify {
                self.notify.forget();
            }
            outcome = outcome.or(self.step(now, Event::Exited(id, exit)));
        }
        outcome
    }

    /// A failed spawn counts as an exit.
    pub(super) fn note_not_spawned(&mut self, now: Instant, id: Id, exit: Exit) {
        let (none, lines) = (Duration::ZERO, Vec::new());
        self.runtimes[id.0].record.crash = Some(Crash::new(exit, false, none, none, lines));
        self.runtimes[id.0].record.ended_at.get_or_insert(now);
    }

    fn note(&mut self, id: Id, crash: Crash) {
        let name = self.plan.services[id.0].name;
        let cause = crash.cause.as_ref().map(|cause| format!(": {cause}"));
        let text = format!(
            "{name} exited after {:.1} s: {}{}",
            crash.lived_seconds,
            crash.exit,
            cause.unwrap_or_default()
        );
        self.log.say(Level::Warn, &text);
        self.runtimes[id.0].record.crash = Some(crash);
    }

    /// The last lines that the service wrote, including those still in its pipe.
    fn last_lines(&mut self, id: Id) -> Vec<String> {
        let name = self.plan.services[id.0].name;
        let mut sources = self.sources.iter_mut();
        match sources.rfind(|source| source.service == name) {
            Some(source) => {
                self.log.catch_up(source);
                self.log.last_lines(source)
            }
            None => std::mem::take(&mut self.runtimes[id.0].last_lines),
        }
    }

    pub(super) fn ready(&mut self, now: Instant, id: Id) -> Option<Outcome> {
        if !matches!(self.machine.services()[id.0].state, State::Starting { .. }) {
            // The gateway reports this again after each of its own starts.
            return None;
        }
        let runtime = &mut self.runtimes[id.0];
        let since = |at: Option<Instant>| at.map(|at| now.saturating_duration_since(at));
        let took = since(runtime.spawned_at);
        runtime.record.ready_after = took;
        if let Some(away) = since(runtime.record.ended_at.take()) {
            runtime.record.away_for = Some(away);
        }
        let took = took.unwrap_or_default().as_millis();
        let name = self.plan.services[id.0].name;
        let text = format!("{name} ready after {took} ms");
        self.log.say(Level::Info, &text);
        self.step(now, Event::Ready(id))
    }

    pub(super) fn report(&self, now: Instant) -> Report {
        let seconds = |since: Instant| now.saturating_duration_since(since).as_secs_f64();
        let service = |(index, service): (usize, &machine::Service)| {
            let record = &self.runtimes[index].record;
            ServiceReport {
                name: self.plan.services[index].name.to_owned(),
                state: service.state.name().to_owned(),
                pid: self.children.pid(Id(index)),
                ready_seconds: match service.state {
                    State::Ready { since } => Some(seconds(since)),
                    _ => None,
                },
                restarts: service.restarts,
                deaths_last_hour: service.recent_deaths(now),
                trouble: service.trouble(now).map(|trouble| TroubleReport {
                    verdict: trouble.verdict.to_string(),
                    since_seconds: seconds(trouble.since),
                    failures: trouble.failures,
                }),
                time_to_ready_seconds: record.ready_after.map(|span| span.as_secs_f64()),
                away_seconds: record.away_for.map(|span| span.as_secs_f64()),
                last_exit: service.last_exit.map(|exit| exit.to_string()),
                last_crash: record.crash.clone(),
            }
        };
        let services = self.machine.services().iter().enumerate();
        Report {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            mode: self.settings.mode.as_str().to_owned(),
            listen: self.facts.listen.to_string(),
            uptime_seconds: seconds(self.started),
            stopping: self.machine.is_draining(),
            services: services.map(service).collect(),
            orphans_reaped: self.orphans,
        }
    }

    /// Logs why the run failed: which service, in what way, how often, and since when.
    pub(super) fn log_failure(&mut self, now: Instant, id: Id, why: StopReason) {
        let service = &self.machine.services()[id.0];
        let name = self.plan.services[id.0].name;
        let exit = service.last_exit.map(|exit| format!(": {exit}"));
        let verdict = service.trouble(now).map(|trouble| {
            let since = now.saturating_duration_since(trouble.since).as_secs();
            let (verdict, times) = (trouble.verdict, trouble.failures);
            format!(" ({verdict}, {times} failures in {since} s)")
        });
        let (exit, verdict) = (exit.unwrap_or_default(), verdict.unwrap_or_default());
        let text = match why {
            StopReason::Hopeless | StopReason::NeverReady => {
                format!("{name} cannot run{exit}{verdict}; its last lines are above")
            }
            StopReason::BudgetSpent(count) => format!(
                "giving up: {name} failed {count} times within {} minutes{exit}{verdict}; its last lines:",
                WINDOW.as_secs() / 60
            ),
        };
        self.log.say(Level::Error, &text);
        let crash = self.runtimes[id.0].record.crash.take();
        if let (StopReason::BudgetSpent(_), Some(crash)) = (why, crash) {
            for line in crash.last_lines {
                self.log.say(Level::Error, &format!("{name}: {line}"));
            }
        }
    }
}
