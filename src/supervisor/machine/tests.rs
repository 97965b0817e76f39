use super::*;
use proptest::prelude::*;

const GATEWAY: Id = Id(0);
const SERVER: Id = Id(1);
const GRACE: Duration = Duration::from_secs(8);

fn rules(depends_on: Vec<Id>) -> Rules {
    Rules {
        depends_on,
        ready_timeout: Duration::from_secs(20),
        grace: Duration::from_secs(4),
        fatal_codes: &[2],
    }
}

fn pair() -> Machine {
    Machine::new(vec![rules(vec![]), rules(vec![GATEWAY])], GRACE)
}

#[expect(
    clippy::disallowed_methods,
    reason = "an Instant cannot be made otherwise; the tests only add to it"
)]
fn epoch() -> Instant {
    Instant::now()
}

/// Both services ready at the returned time.
fn running() -> (Machine, Instant) {
    let (mut machine, now) = (pair(), epoch());
    assert_eq!(machine.step(now, Event::Wake), [Action::Spawn(GATEWAY)]);
    assert_eq!(
        machine.step(now, Event::Ready(GATEWAY)),
        [Action::Spawn(SERVER)]
    );
    assert_eq!(machine.step(now, Event::Ready(SERVER)), []);
    (machine, now)
}

const KILLED: Exit = Exit::Signal(9);

#[test]
fn exits_and_states_read_as_in_status() {
    let (mut machine, now) = running();
    let state = |machine: &Machine| machine.services()[SERVER.0].state.name();
    assert_eq!(state(&pair()), "waiting");
    assert_eq!(state(&machine), "ready");
    machine.step(now, Event::Exited(SERVER, KILLED));
    assert_eq!(state(&machine), "starting");
    machine.step(now, Event::Exited(SERVER, KILLED));
    assert_eq!(state(&machine), "backoff");
    machine.step(now, Event::Restart(SERVER));
    machine.step(now, Event::Stop(SERVER));
    assert_eq!(state(&machine), "stopping");
    machine.step(now + GRACE, Event::Wake);
    assert_eq!(state(&machine), "killed");
    machine.step(now + GRACE, Event::Exited(SERVER, KILLED));
    assert_eq!(state(&machine), "stopped");
    for (exit, text) in [
        (Exit::Code(3), "exit code 3"),
        (KILLED, "signal 9"),
        (Exit::OutOfMemory, "signal 9, out of memory"),
        (
            Exit::NotSpawned(2),
            "cannot start: No such file or directory (os error 2)",
        ),
    ] {
        assert_eq!(exit.to_string(), text);
    }
    assert_eq!(Verdict::NeverRan.to_string(), "never ran");
    assert_eq!(Verdict::RanAndDied.to_string(), "ran and died");
}

#[test]
fn dependent_starts_only_when_its_dependency_is_ready() {
    let (mut machine, now) = (pair(), epoch());
    machine.step(now, Event::Wake);
    assert_eq!(machine.services()[SERVER.0].state, State::Waiting);
    assert_eq!(
        machine.step(now, Event::Ready(GATEWAY)),
        [Action::Spawn(SERVER)]
    );
}

#[test]
fn first_restart_is_at_once_and_leaves_the_dependent_alone() {
    let (mut machine, now) = running();
    assert_eq!(
        machine.step(now, Event::Exited(GATEWAY, KILLED)),
        [Action::Spawn(GATEWAY)]
    );
    assert_eq!(machine.services()[GATEWAY.0].restarts, 1);
    assert!(matches!(
        machine.services()[SERVER.0].state,
        State::Ready { .. }
    ));
}

#[test]
fn backoff_doubles_up_to_its_bound_and_resets_after_a_minute() {
    let (mut machine, mut now) = running();
    let mut pauses = Vec::new();
    for _ in 0..10 {
        machine.step(now, Event::Exited(GATEWAY, KILLED));
        let retry = machine
            .deadline()
            .filter(|_| matches!(machine.services()[0].state, State::Backoff { .. }));
        pauses.push(retry.map_or(0, |at| (at - now).as_millis()));
        now = retry.unwrap_or(now);
        machine.step(now, Event::Wake);
        machine.step(now, Event::Ready(GATEWAY));
    }
    assert_eq!(
        pauses,
        [0, 250, 500, 1000, 2000, 4000, 8000, 16000, 30000, 30000]
    );
    now += RESET_AFTER;
    assert_eq!(
        machine.step(now, Event::Exited(GATEWAY, KILLED)),
        [Action::Spawn(GATEWAY)]
    );
}

#[test]
fn service_that_is_never_ready_ends_the_run() {
    let (mut machine, mut now) = (pair(), epoch());
    machine.step(now, Event::Wake);
    let mut last = Vec::new();
    for _ in 0..NEVER_READY_LIMIT {
        last = machine.step(now, Event::Exited(GATEWAY, Exit::Code(1)));
        now = machine.deadline().unwrap_or(now);
        if last.is_empty() {
            last = machine.step(now, Event::Wake);
        }
    }
    assert_eq!(
        last,
        [Action::Finish(Outcome::Failed(
            GATEWAY,
            StopReason::NeverReady
        ))]
    );
}

/// Lets the service die with `exit` at every try until `bound`; gives when the drain began, if it did.
fn fail_until(
    machine: &mut Machine,
    mut now: Instant,
    bound: Instant,
    id: Id,
    exit: Exit,
) -> Option<Instant> {
    while now < bound && !machine.is_draining() {
        machine.step(now, Event::Exited(id, exit));
        let due = machine.deadline().unwrap_or(now);
        if matches!(machine.services()[id.0].state, State::Backoff { .. }) {
            now = due;
            machine.step(now, Event::Wake);
        }
    }
    machine.is_draining().then_some(now)
}

#[test]
fn hopeless_storm_ends_the_run_but_not_before_half_an_hour() {
    for exit in [Exit::Code(1), Exit::Signal(11), Exit::OutOfMemory] {
        let (mut machine, now) = running();
        let end = fail_until(&mut machine, now, now + WINDOW, SERVER, exit);
        let took = end.expect("the budget is spent") - now;
        assert!(
            took > WINDOW / 2 && took < WINDOW,
            "{exit:?} after {took:?}"
        );
        assert_eq!(
            machine.step(now + took, Event::Exited(GATEWAY, Exit::Code(0))),
            [Action::Finish(Outcome::Failed(
                SERVER,
                StopReason::BudgetSpent(BUDGET)
            ))]
        );
    }
}

#[test]
fn what_others_do_to_a_service_does_not_spend_the_budget() {
    let in_use = Exit::NotBound(nix::errno::Errno::EADDRINUSE as i32);
    for exit in [KILLED, Exit::Signal(15), in_use] {
        let (mut machine, now) = running();
        let end = fail_until(&mut machine, now, now + 10 * WINDOW, SERVER, exit);
        assert_eq!(end, None, "{exit:?}");
    }
}

#[test]
fn death_after_a_minute_of_service_does_not_spend_the_budget() {
    let (mut machine, mut now) = running();
    for _ in 0..2 * BUDGET {
        now += RESET_AFTER;
        machine.step(now, Event::Exited(SERVER, Exit::Code(1)));
        machine.step(now, Event::Ready(SERVER));
    }
    assert!(!machine.is_draining());
    assert_eq!(machine.services()[SERVER.0].recent_deaths(now), 60);
}

/// One failure, and the next try at once: a requested restart cuts the backoff short.
fn fail(machine: &mut Machine, now: Instant, id: Id, exit: Exit) -> Vec<Action> {
    let actions = machine.step(now, Event::Exited(id, exit));
    if matches!(machine.services()[id.0].state, State::Backoff { .. }) {
        machine.step(now, Event::Restart(id));
    }
    actions
}

#[test]
fn budget_belongs_to_the_tree_and_the_worst_is_named() {
    let (mut machine, mut now) = running();
    let mut finish = Vec::new();
    for round in 0..2 * BUDGET {
        let id = if round % 4 == 0 { GATEWAY } else { SERVER };
        now += Duration::from_secs(1);
        finish = fail(&mut machine, now, id, Exit::Code(1));
        if machine.is_draining() {
            break;
        }
        machine.step(now, Event::Ready(id));
    }
    assert_eq!(finish, [Action::Terminate(GATEWAY)], "the other is drained");
    assert_eq!(
        machine.step(now, Event::Exited(GATEWAY, Exit::Code(0))),
        [Action::Finish(Outcome::Failed(
            SERVER,
            StopReason::BudgetSpent(75)
        ))]
    );
}

#[test]
fn memory_of_deaths_is_bounded() {
    let (mut machine, now) = running();
    for _ in 0..10 * BUDGET {
        fail(&mut machine, now, SERVER, KILLED);
    }
    assert_eq!(machine.services()[SERVER.0].recent_deaths(now), 2 * BUDGET);
}

#[test]
fn failures_older_than_the_window_are_forgotten() {
    let (mut machine, mut now) = running();
    for _ in 0..BUDGET - 1 {
        fail(&mut machine, now, SERVER, Exit::Code(1));
    }
    assert!(!machine.is_draining());
    now += WINDOW;
    fail(&mut machine, now, SERVER, Exit::Code(1));
    assert!(!machine.is_draining());
    assert_eq!(machine.services()[SERVER.0].recent_deaths(now), 1);
}

#[test]
fn trouble_says_whether_it_ever_ran_and_since_when_until_it_has_held() {
    let (mut machine, now) = (pair(), epoch());
    let trouble = |machine: &Machine, at| machine.services()[GATEWAY.0].trouble(at);
    machine.step(now, Event::Wake);
    assert_eq!(trouble(&machine, now), None);
    machine.step(now, Event::Exited(GATEWAY, Exit::Code(1)));
    let later = now + Duration::from_secs(1);
    machine.step(later, Event::Exited(GATEWAY, Exit::Code(1)));
    let mut expected = Trouble {
        verdict: Verdict::NeverRan,
        since: now,
        failures: 2,
    };
    assert_eq!(trouble(&machine, later), Some(expected));
    let up = machine.deadline().expect("it is in backoff");
    machine.step(up, Event::Wake);
    machine.step(up, Event::Ready(GATEWAY));
    expected.verdict = Verdict::RanAndDied;
    assert_eq!(trouble(&machine, up), Some(expected));
    let held = up + RESET_AFTER;
    assert_eq!(trouble(&machine, held), None);
    machine.step(held, Event::Restart(GATEWAY));
    assert_eq!(
        trouble(&machine, held),
        None,
        "a requested restart ends the row"
    );
}

#[test]
fn hung_start_is_a_failure_and_spends_the_budget() {
    let (mut machine, mut now) = running();
    for _ in 0..BUDGET {
        assert!(!machine.is_draining());
        machine.step(now, Event::Restart(SERVER));
        if let State::Stopping { .. } = machine.services()[SERVER.0].state {
            assert!(machine.is_asked_to_end(SERVER));
            machine.step(now, Event::Exited(SERVER, Exit::Code(0)));
        }
        now += Duration::from_secs(20);
        machine.step(now, Event::Wake);
        assert!(!machine.is_asked_to_end(SERVER), "it hangs");
        machine.step(now, Event::Exited(SERVER, Exit::Signal(15)));
    }
    assert!(machine.is_draining());
}

#[test]
fn missing_program_and_fatal_code_end_the_run_at_once() {
    for exit in [
        Exit::NotSpawned(nix::errno::Errno::ENOENT as i32),
        Exit::Code(2),
    ] {
        let (mut machine, now) = (pair(), epoch());
        machine.step(now, Event::Wake);
        assert_eq!(
            machine.step(now, Event::Exited(GATEWAY, exit)),
            [Action::Finish(Outcome::Failed(
                GATEWAY,
                StopReason::Hopeless
            ))]
        );
    }
}

#[test]
fn spawn_that_fails_for_want_of_memory_is_tried_again() {
    let (mut machine, now) = (pair(), epoch());
    machine.step(now, Event::Wake);
    let exit = Exit::NotSpawned(nix::errno::Errno::EAGAIN as i32);
    assert_eq!(
        machine.step(now, Event::Exited(GATEWAY, exit)),
        [Action::Spawn(GATEWAY)]
    );
}

#[test]
fn drain_stops_dependents_first_and_shares_the_grace() {
    let (mut machine, now) = running();
    assert_eq!(machine.step(now, Event::Drain), [Action::Terminate(SERVER)]);
    assert_eq!(machine.deadline(), Some(now + GRACE / 2));
    assert_eq!(
        machine.step(now, Event::Exited(SERVER, Exit::Code(0))),
        [Action::Terminate(GATEWAY)]
    );
    assert_eq!(machine.deadline(), Some(now + GRACE));
    assert_eq!(
        machine.step(now, Event::Exited(GATEWAY, Exit::Code(0))),
        [Action::Finish(Outcome::Drained)]
    );
}

#[test]
fn another_grace_holds_for_the_drains_after_it() {
    let (mut machine, now) = running();
    machine.set_grace(3 * GRACE);
    machine.step(now, Event::Drain);
    machine.step(now, Event::Exited(SERVER, Exit::Code(0)));
    assert_eq!(machine.deadline(), Some(now + 3 * GRACE));
}

#[test]
fn term_ignorer_is_killed_after_its_grace() {
    let (mut machine, now) = running();
    machine.step(now, Event::Drain);
    let then = now + GRACE / 2;
    assert_eq!(machine.step(then, Event::Wake), [Action::Kill(SERVER)]);
}

#[test]
fn second_request_kills_all_at_once() {
    let (mut machine, now) = running();
    machine.step(now, Event::Drain);
    assert_eq!(
        machine.step(now, Event::Kill),
        [Action::Kill(GATEWAY), Action::Kill(SERVER)]
    );
}

#[test]
fn hung_start_is_terminated_and_tried_again() {
    let (mut machine, now) = (pair(), epoch());
    machine.step(now, Event::Wake);
    let late = now + Duration::from_secs(20);
    assert_eq!(
        machine.step(late, Event::Wake),
        [Action::Terminate(GATEWAY)]
    );
    assert_eq!(
        machine.step(late, Event::Exited(GATEWAY, Exit::Signal(15))),
        [Action::Spawn(GATEWAY)]
    );
}

#[test]
fn requested_restart_is_no_failure() {
    let (mut machine, now) = running();
    assert_eq!(
        machine.step(now, Event::Restart(SERVER)),
        [Action::Terminate(SERVER)]
    );
    assert_eq!(
        machine.step(now, Event::Exited(SERVER, Exit::Code(0))),
        [Action::Spawn(SERVER)]
    );
    machine.step(now, Event::Ready(SERVER));
    assert_eq!(
        machine.step(now, Event::Exited(SERVER, KILLED)),
        [Action::Spawn(SERVER)],
        "the first failure"
    );
}

#[test]
fn stopped_service_stays_stopped_until_it_is_restarted() {
    let (mut machine, now) = running();
    assert_eq!(
        machine.step(now, Event::Stop(SERVER)),
        [Action::Terminate(SERVER)]
    );
    assert_eq!(machine.step(now, Event::Exited(SERVER, KILLED)), []);
    assert_eq!(machine.services()[SERVER.0].state, State::Stopped);
    assert_eq!(machine.deadline(), None, "nothing more is due");
    assert_eq!(
        machine.step(now, Event::Restart(SERVER)),
        [Action::Spawn(SERVER)]
    );
}

#[test]
fn stop_during_backoff_cancels_the_retry() {
    let (mut machine, now) = running();
    machine.step(now, Event::Exited(SERVER, KILLED));
    machine.step(now, Event::Exited(SERVER, KILLED));
    assert!(matches!(
        machine.services()[SERVER.0].state,
        State::Backoff { .. }
    ));
    assert_eq!(machine.step(now, Event::Stop(SERVER)), []);
    assert_eq!(machine.step(now + BACKOFF_MAX, Event::Wake), []);
}

/// What the real world would know: which processes live.
#[derive(Default)]
struct World {
    alive: [bool; 3],
    finished: bool,
}

impl World {
    fn perform(&mut self, machine: &Machine, now: Instant, actions: &[Action]) {
        for action in actions {
            assert!(!self.finished, "action {action:?} after the end");
            match *action {
                Action::Spawn(id) => {
                    assert!(!self.alive[id.0], "two live processes of {id:?}");
                    assert!(!machine.is_draining(), "spawn while draining");
                    self.alive[id.0] = true;
                }
                Action::Terminate(id) | Action::Kill(id) => {
                    assert!(self.alive[id.0], "signal to a dead {id:?}")
                }
                Action::Finish(_) => self.finished = true,
            }
        }
        if !self.finished {
            assert!(
                machine.deadline().is_none_or(|at| at > now),
                "deadline in the past: the loop would spin"
            );
        }
    }
}

fn schedule() -> impl Strategy<Value = Vec<(u8, u8, u16)>> {
    prop::collection::vec((0..12_u8, 0..3_u8, 0..9_000_u16), 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, ..ProptestConfig::default() })]
    #[test]
    fn any_schedule_keeps_one_process_a_service_and_ends_in_time(steps in schedule()) {
        let mut machine = Machine::new(vec![rules(vec![]), rules(vec![Id(0)]), rules(vec![Id(0), Id(1)])], GRACE);
        let (mut world, mut now) = (World::default(), epoch());
        let mut retry_at: [Option<Instant>; 3] = [None; 3];
        let first = machine.step(now, Event::Wake);
        world.perform(&machine, now, &first);
        for (kind, which, pause) in steps {
            now += Duration::from_millis(u64::from(pause));
            let id = Id(usize::from(which));
            let event = match kind {
                0..=2 if world.alive[id.0] => Event::Ready(id),
                3 | 4 if world.alive[id.0] => Event::Exited(id, KILLED),
                5 if world.alive[id.0] => Event::Exited(id, Exit::Code(1)),
                6 if pause % 2 == 0 => Event::Stop(id),
                6 => Event::Restart(id),
                7 if pause % 7 == 0 => Event::Drain,
                8 if pause % 31 == 0 => Event::Kill,
                _ => Event::Wake,
            };
            if let Event::Exited(id, _) = event {
                world.alive[id.0] = false;
            }
            let actions = machine.step(now, event);
            for action in &actions {
                if let Action::Spawn(id) = action {
                    let early = retry_at[id.0].filter(|at| now < *at && event != Event::Restart(*id));
                    prop_assert!(early.is_none(), "respawn before the backoff");
                }
            }
            for (slot, service) in retry_at.iter_mut().zip(machine.services()) {
                *slot = match service.state { State::Backoff { retry_at } => Some(retry_at), _ => None };
            }
            world.perform(&machine, now, &actions);
        }
        // Whatever happened: a drain of services that never exit by themselves ends within its bounds.
        let begin = now;
        let mut actions = machine.step(now, Event::Drain);
        world.perform(&machine, now, &actions);
        for _ in 0..20 {
            if world.finished { break; }
            for action in actions {
                if let Action::Kill(id) = action { world.alive[id.0] = false; }
            }
            let dead = (0..3).find(|i| !world.alive[*i] && matches!(machine.services()[*i].state, State::Killed { .. }));
            actions = match dead {
                Some(index) => machine.step(now, Event::Exited(Id(index), KILLED)),
                None => {
                    now = machine.deadline().expect("a drain that is not done has a deadline");
                    machine.step(now, Event::Wake)
                }
            };
            world.perform(&machine, now, &actions);
        }
        prop_assert!(world.finished, "the drain never ends: {machine:?}");
        prop_assert!(now - begin <= GRACE + Duration::from_secs(1));
    }
}
