//! The life cycle of the services as a pure state machine: no I/O, no clock, no pids.
//!
//! ```text
//!            dependencies ready        probe answers
//!  Waiting ---------------------> Starting ---------> Ready
//!     ^                              |  exit, or       | exit, restart
//!     | retry_at                     |  ready_by       | requested
//!     |                              v                 v
//!  Backoff <------- exit -------- Stopping ----> Killed (kill_at passed)
//!                                    |
//!                                    +-- exit while draining --> Stopped
//! ```
//!
//! The loop in `supervisor.rs` feeds [`Event`]s and performs [`Action`]s. Every live state has a deadline, so
//! [`Machine::deadline`] always says when to call again.

mod history;

pub use self::history::{
    BACKOFF_MAX, BACKOFF_MIN, BUDGET, NEVER_READY_LIMIT, RESET_AFTER, Trouble, Verdict, WINDOW,
};

use self::history::History;
use crate::contract::service::{Exit, Id, Rules};
use std::time::{Duration, Instant};

/// An input of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Time has passed, or this is the first call.
    Wake,
    /// The service reported that it is ready.
    Ready(Id),
    /// The service's process has ended.
    Exited(Id, Exit),
    /// Restart this service now, or start it after [`Event::Stop`].
    Restart(Id),
    /// Stop this service and keep it stopped.
    Stop(Id),
    /// Stop everything in order.
    Drain,
    /// Stop everything at once.
    Kill,
}

/// An action that the caller must perform.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Spawn(Id),
    /// Ask the service to stop.
    Terminate(Id),
    /// SIGKILL to its process group.
    Kill(Id),
    /// Everything has stopped: exit with this outcome.
    Finish(Outcome),
}

/// How the whole run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Stopped on request.
    Drained,
    /// This service cannot run; the others have been stopped.
    Failed(Id, StopReason),
}

/// Why a service is not tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// According to its exit, another try is pointless.
    Hopeless,
    /// It failed to become ready [`NEVER_READY_LIMIT`] times in a row.
    NeverReady,
    /// All services together have used up [`BUDGET`]; this one caused the most failures, this many.
    BudgetSpent(usize),
}

/// State of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Waits for its dependencies to become ready.
    Waiting,
    Starting {
        ready_by: Instant,
    },
    Ready {
        since: Instant,
    },
    Stopping {
        kill_at: Instant,
    },
    /// SIGKILL was sent; its exit is still to come.
    Killed {
        again_at: Instant,
    },
    Backoff {
        retry_at: Instant,
    },
    Stopped,
}

impl State {
    /// The state's name, as `status` shows it.
    pub fn name(&self) -> &'static str {
        match self {
            State::Waiting => "waiting",
            State::Starting { .. } => "starting",
            State::Ready { .. } => "ready",
            State::Stopping { .. } => "stopping",
            State::Killed { .. } => "killed",
            State::Backoff { .. } => "backoff",
            State::Stopped => "stopped",
        }
    }
}

/// Interval between two SIGKILLs to a process that does not end.
const KILL_AGAIN: Duration = Duration::from_secs(1);

/// State and history of one service.
#[derive(Debug, Clone)]
pub struct Service {
    rules: Rules,
    pub state: State,
    /// Number of spawns after the first.
    pub restarts: u32,
    pub last_exit: Option<Exit>,
    history: History,
    spawned: bool,
    was_ready: bool,
    then: Then,
}

impl Service {
    /// What is wrong with it, until it has been ready for [`RESET_AFTER`].
    pub fn trouble(&self, now: Instant) -> Option<Trouble> {
        let trouble = self.history.trouble(self.was_ready);
        trouble.filter(|_| !self.has_held(now))
    }

    /// Unrequested exits within [`WINDOW`].
    pub fn recent_deaths(&self, now: Instant) -> usize {
        self.history.recent(now)
    }

    fn has_held(&self, now: Instant) -> bool {
        matches!(self.state, State::Ready { since } if now.saturating_duration_since(since) >= RESET_AFTER)
    }
}

/// What follows the next exit of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    /// It is a failure: back off, or give up.
    Judge,
    /// It was requested: start again at once.
    Restart,
    /// It was requested: stay stopped.
    Hold,
}

/// All services, and whether they are being stopped.
#[derive(Debug, Clone)]
pub struct Machine {
    services: Vec<Service>,
    draining: Option<Drain>,
    grace: Duration,
    finished: bool,
}

#[derive(Debug, Clone, Copy)]
struct Drain {
    until: Instant,
    outcome: Outcome,
}

impl Machine {
    /// `grace` is the time limit for draining all services together.
    pub fn new(rules: Vec<Rules>, grace: Duration) -> Machine {
        let service = |rules| Service {
            rules,
            state: State::Waiting,
            restarts: 0,
            last_exit: None,
            history: History::default(),
            spawned: false,
            was_ready: false,
            then: Then::Judge,
        };
        Machine {
            services: rules.into_iter().map(service).collect(),
            draining: None,
            grace,
            finished: false,
        }
    }

    /// The services, in the order of the plan.
    pub fn services(&self) -> &[Service] {
        &self.services
    }

    /// Whether the services are being stopped.
    pub fn is_draining(&self) -> bool {
        self.draining.is_some()
    }

    /// Whether the next exit of this service was requested or is part of a drain. A start that hangs is ended by us,
    /// but still counts as a failure.
    pub fn is_asked_to_end(&self, id: Id) -> bool {
        self.draining.is_some() || self.services[id.0].then != Then::Judge
    }

    /// When [`Machine::step`] must be called again at the latest. Never in the past right after `step`.
    pub fn deadline(&self) -> Option<Instant> {
        let draining = self.draining.is_some();
        let due = |service: &Service| match service.state {
            // In a drain it waits for its dependents, which have deadlines of their own.
            State::Starting { ready_by } => (!draining).then_some(ready_by),
            State::Stopping { kill_at } => Some(kill_at),
            State::Killed { again_at } => Some(again_at),
            State::Backoff { retry_at } => Some(retry_at),
            State::Waiting | State::Ready { .. } | State::Stopped => None,
        };
        self.services.iter().filter_map(due).min()
    }

    /// Processes one event and returns the actions to perform, in order.
    pub fn step(&mut self, now: Instant, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.finished {
            return actions;
        }
        match event {
            Event::Wake => {}
            Event::Ready(id) => self.ready(now, id),
            Event::Exited(id, exit) => self.exited(now, id, exit),
            Event::Restart(id) => self.ask(now, id, Then::Restart, &mut actions),
            Event::Stop(id) => self.ask(now, id, Then::Hold, &mut actions),
            Event::Drain => self.drain(now, Outcome::Drained),
            Event::Kill => self.kill_all(now, &mut actions),
        }
        // Repeated until nothing changes, so that the order of services in the plan does not matter.
        loop {
            let before = actions.len();
            let states: Vec<State> = self.services.iter().map(|service| service.state).collect();
            for index in 0..self.services.len() {
                self.advance(now, Id(index), &mut actions);
            }
            let settled = self
                .services
                .iter()
                .zip(&states)
                .all(|(service, state)| service.state == *state);
            if settled && actions.len() == before {
                break;
            }
        }
        if let Some(drain) = self.draining
            && self
                .services
                .iter()
                .all(|service| service.state == State::Stopped)
        {
            self.finished = true;
            actions.push(Action::Finish(drain.outcome));
        }
        actions
    }

    fn ready(&mut self, now: Instant, id: Id) {
        let service = &mut self.services[id.0];
        match service.state {
            State::Starting { .. } => {
                service.state = State::Ready { since: now };
                service.was_ready = true;
            }
            // A late report of a service that is already being stopped, or a repeated one.
            State::Waiting
            | State::Ready { .. }
            | State::Stopping { .. }
            | State::Killed { .. }
            | State::Backoff { .. }
            | State::Stopped => {}
        }
    }

    fn exited(&mut self, now: Instant, id: Id, exit: Exit) {
        let draining = self.draining.is_some();
        let service = &mut self.services[id.0];
        match service.state {
            // There is no known process that could have exited.
            State::Waiting | State::Backoff { .. } | State::Stopped => return,
            State::Starting { .. }
            | State::Ready { .. }
            | State::Stopping { .. }
            | State::Killed { .. } => {}
        }
        service.last_exit = Some(exit);
        if draining {
            service.state = State::Stopped;
            return;
        }
        match std::mem::replace(&mut service.then, Then::Judge) {
            Then::Restart => service.state = State::Waiting,
            Then::Hold => service.state = State::Stopped,
            Then::Judge => self.judge(now, id, exit),
        }
    }

    /// Handles an unrequested exit: try again now or later, or give up.
    fn judge(&mut self, now: Instant, id: Id, exit: Exit) {
        let service = &mut self.services[id.0];
        let held = service.has_held(now);
        if held {
            service.history.start_over();
        }
        // We send signals ourselves if its start hangs.
        let hung = matches!(service.state, State::Stopping { .. } | State::Killed { .. });
        let counts = !held && (hung || !history::is_from_outside(exit));
        service.history.add(now, counts);
        let why = if history::is_hopeless(exit, &service.rules) {
            Some(StopReason::Hopeless)
        } else if !service.was_ready && service.history.failures() >= NEVER_READY_LIMIT {
            Some(StopReason::NeverReady)
        } else {
            None
        };
        if let Some(why) = why {
            service.state = State::Stopped;
            return self.drain(now, Outcome::Failed(id, why));
        }
        service.state = State::Backoff {
            retry_at: now + history::backoff(service.history.failures()),
        };
        let spent = self.services.iter().map(|it| it.history.spent(now));
        if spent.clone().sum::<usize>() >= BUDGET {
            let most = spent.enumerate().max_by_key(|(_, count)| *count);
            let (culprit, count) = most.unwrap_or((id.0, 0));
            self.drain(
                now,
                Outcome::Failed(Id(culprit), StopReason::BudgetSpent(count)),
            );
        }
    }

    /// Handles a restart or a stop requested by the operator.
    fn ask(&mut self, now: Instant, id: Id, then: Then, actions: &mut Vec<Action>) {
        if self.draining.is_some() {
            return;
        }
        let service = &mut self.services[id.0];
        if service.has_held(now) {
            service.history.start_over();
        }
        match service.state {
            State::Starting { .. } | State::Ready { .. } => {
                service.then = then;
                service.state = State::Stopping {
                    kill_at: now + service.rules.grace,
                };
                actions.push(Action::Terminate(id));
            }
            State::Stopping { .. } | State::Killed { .. } => service.then = then,
            State::Waiting | State::Backoff { .. } | State::Stopped => {
                service.state = match then {
                    Then::Hold => State::Stopped,
                    Then::Restart | Then::Judge => State::Waiting,
                };
            }
        }
    }

    /// Changes the time limit of a drain that has not begun.
    pub fn set_grace(&mut self, grace: Duration) {
        self.grace = grace;
    }

    fn drain(&mut self, now: Instant, outcome: Outcome) {
        if self.draining.is_none() {
            self.draining = Some(Drain {
                until: now + self.grace,
                outcome,
            });
        }
    }

    fn kill_all(&mut self, now: Instant, actions: &mut Vec<Action>) {
        self.drain(now, Outcome::Drained);
        for (index, service) in self.services.iter_mut().enumerate() {
            match service.state {
                State::Starting { .. } | State::Ready { .. } | State::Stopping { .. } => {
                    service.state = State::Killed {
                        again_at: now + KILL_AGAIN,
                    };
                    actions.push(Action::Kill(Id(index)));
                }
                State::Waiting | State::Killed { .. } | State::Backoff { .. } | State::Stopped => {}
            }
        }
    }

    /// Advances one service as far as time and the other services allow.
    fn advance(&mut self, now: Instant, id: Id, actions: &mut Vec<Action>) {
        let draining = self.draining;
        match self.services[id.0].state {
            State::Waiting | State::Backoff { .. } if draining.is_some() => {
                self.services[id.0].state = State::Stopped;
            }
            State::Waiting => {
                if self.dependencies_ready(id) {
                    let service = &mut self.services[id.0];
                    if std::mem::replace(&mut service.spawned, true) {
                        service.restarts = service.restarts.saturating_add(1);
                    }
                    service.state = State::Starting {
                        ready_by: now + service.rules.ready_timeout,
                    };
                    actions.push(Action::Spawn(id));
                }
            }
            State::Backoff { retry_at } => {
                if now >= retry_at {
                    self.services[id.0].state = State::Waiting;
                }
            }
            State::Starting { .. } | State::Ready { .. } if draining.is_some() => {
                if let Some(drain) = draining.filter(|_| self.dependents_stopped(id)) {
                    let left = drain.until.saturating_duration_since(now);
                    let stages = u32::try_from(self.depth(id)).unwrap_or(1).max(1);
                    self.services[id.0].state = State::Stopping {
                        kill_at: now + left / stages,
                    };
                    actions.push(Action::Terminate(id));
                }
            }
            State::Starting { ready_by } => {
                if now >= ready_by {
                    let service = &mut self.services[id.0];
                    service.state = State::Stopping {
                        kill_at: now + service.rules.grace,
                    };
                    actions.push(Action::Terminate(id));
                }
            }
            State::Stopping { kill_at } => {
                if now >= kill_at {
                    self.services[id.0].state = State::Killed {
                        again_at: now + KILL_AGAIN,
                    };
                    actions.push(Action::Kill(id));
                }
            }
            State::Killed { again_at } => {
                if now >= again_at {
                    if draining.is_some() {
                        // Stuck in the kernel: nothing more can be done, and the container must end.
                        self.services[id.0].state = State::Stopped;
                    } else {
                        self.services[id.0].state = State::Killed {
                            again_at: now + KILL_AGAIN,
                        };
                        actions.push(Action::Kill(id));
                    }
                }
            }
            State::Ready { .. } | State::Stopped => {}
        }
    }

    fn dependencies_ready(&self, id: Id) -> bool {
        let dependencies = &self.services[id.0].rules.depends_on;
        dependencies
            .iter()
            .all(|dependency| matches!(self.services[dependency.0].state, State::Ready { .. }))
    }

    fn dependents_stopped(&self, id: Id) -> bool {
        let depends = |service: &&Service| service.rules.depends_on.contains(&id);
        self.services
            .iter()
            .filter(depends)
            .all(|service| service.state == State::Stopped)
    }

    /// Number of drain stages left when this service stops, including its own.
    fn depth(&self, id: Id) -> usize {
        let below = self.services[id.0]
            .rules
            .depends_on
            .iter()
            .map(|dependency| self.depth(*dependency));
        1 + below.max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests;
