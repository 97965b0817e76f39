//! Re-reads the settings while the services run. This happens on a thread, because a file may be on a file system that
//! does not answer, and the loop must not wait.

use super::logs::Level;
use super::machine::{Event, Outcome};
use super::peers::Peer;
use super::state_dir;
use super::{Supervisor, probe, start};
use crate::base::regular_file;
use crate::config::plan;
use crate::config::plan::{Facts, Planner};
use crate::config::settings;
use crate::config::settings::Settings;
use crate::contract::control::{RELOAD_PATIENCE, Response};
use crate::contract::service::Id;
use crate::contract::service::Plan;
use crate::contract::service::REREAD;
use crate::contract::service::RunAs;
use nix::sys::signal::SigSet;
use parking_lot::{Mutex, MutexGuard};
use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

/// A running reload.
pub(super) struct Reload {
    /// Reaches end of file when the thread ends.
    pub(super) done: UnixStream,
    thread: JoinHandle<Result<Fresh, String>>,
    progress: Arc<Progress>,
    /// `None` once it has taken too long.
    pub(super) until: Option<Instant>,
    /// Its result will be discarded.
    given_up: bool,
    askers: Vec<Peer>,
    /// Requests that arrived since it began, perhaps because of a change that it has not seen.
    again: Option<Vec<Peer>>,
}

/// Input of a reload.
struct Known {
    settings: Settings,
    facts: Facts,
    run_as: Option<RunAs>,
    planner: Planner,
}

/// Result of a reload.
struct Fresh {
    settings: Settings,
    facts: Facts,
    plan: Plan,
}

/// What the loop can observe of the thread.
#[derive(Default)]
struct Progress(Mutex<Step>);

#[derive(Default)]
struct Step {
    /// What it is waiting for, if anything.
    at: String,
    /// The services' files are being replaced, so it is too late to give up.
    writes: bool,
    given_up: bool,
}

impl Progress {
    fn lock(&self) -> MutexGuard<'_, Step> {
        self.0.lock()
    }

    fn at(&self, what: &str) {
        what.clone_into(&mut self.lock().at);
    }

    fn begin_to_write(&self) -> Result<(), String> {
        let mut step = self.lock();
        if step.given_up {
            return Err("given up".into());
        }
        step.writes = true;
        "the files of the services".clone_into(&mut step.at);
        Ok(())
    }
}

impl Reload {
    fn begin(known: Known, until: Instant) -> io::Result<Reload> {
        let (done, end) = UnixStream::pair()?;
        let progress = Arc::<Progress>::default();
        let noted = Arc::clone(&progress);
        let thread = std::thread::Builder::new()
            .name("reload".into())
            .spawn(move || {
                // All signals belong to the loop: none must wake this thread instead.
                let _ = SigSet::all().thread_block();
                let read = read_again(known, &noted);
                drop(end);
                read
            })?;
        Ok(Reload {
            done,
            thread,
            progress,
            until: Some(until),
            given_up: false,
            askers: Vec::new(),
            again: None,
        })
    }

    /// The message for a reload that has taken too long.
    fn overdue(&mut self) -> String {
        let mut step = self.progress.lock();
        self.until = None;
        step.given_up = !step.writes;
        self.given_up = step.given_up;
        let (at, seconds) = (&step.at, RELOAD_PATIENCE.as_secs());
        match step.writes {
            true => format!(
                "writing {at} takes more than {seconds} s; the settings take effect when that is done"
            ),
            false => {
                format!("reading {at} takes more than {seconds} s: does its file system answer?")
            }
        }
    }
}

impl Supervisor {
    /// Starts re-reading the settings for `asker`. What they change is restarted once they have been read; on any error
    /// nothing changes.
    pub(super) fn ask_reload(&mut self, now: Instant, asker: Option<Peer>) {
        let asker = asker.into_iter();
        if self.machine.is_draining() {
            return self.refuse_reload("everything is stopping", asker.collect());
        }
        match &mut self.reload {
            None => self.begin_reload(now, asker.collect()),
            Some(it) if it.until.is_some() => it.again.get_or_insert_default().extend(asker),
            Some(it) => {
                let at = it.progress.lock().at.clone();
                let text = format!("the last reload is still waiting for {at}");
                self.refuse_reload(&text, asker.collect());
            }
        }
    }

    fn begin_reload(&mut self, now: Instant, askers: Vec<Peer>) {
        let known = Known {
            settings: self.settings.clone(),
            facts: self.facts.clone(),
            run_as: self.prepared.run_as,
            planner: self.planner,
        };
        match Reload::begin(known, now + RELOAD_PATIENCE) {
            Ok(reload) => self.reload = Some(Reload { askers, ..reload }),
            Err(cause) => self.refuse_reload(&format!("no thread for it: {cause}"), askers),
        }
    }

    fn refuse_reload(&mut self, why: &str, askers: Vec<Peer>) {
        let text = format!("cannot reload, keeping the previous settings: {why}");
        self.log.say(Level::Error, &text);
        let response = Response::Error(text);
        askers.into_iter().for_each(|peer| response.send(peer));
    }

    /// Handles the end of the running reload, if `ended`, or its timeout.
    pub(super) fn take_reload(&mut self, now: Instant, ended: bool) -> Option<Outcome> {
        let reload = self.reload.as_mut()?;
        if !ended {
            if reload.until.is_some_and(|until| now >= until) {
                let why = reload.overdue();
                let mut askers = std::mem::take(&mut reload.askers);
                askers.extend(reload.again.take().into_iter().flatten());
                self.refuse_reload(&why, askers);
            }
            return None;
        }
        let reload = self.reload.take()?;
        // It has nothing left to do but to return.
        let read = reload.thread.join();
        let read = read.unwrap_or_else(|_| Err("its thread has failed".into()));
        let mut outcome = None;
        match read {
            _ if reload.given_up => {}
            _ if self.machine.is_draining() => {
                self.refuse_reload("everything is stopping", reload.askers);
            }
            Err(why) => self.refuse_reload(&why, reload.askers),
            Ok(fresh) => {
                outcome = self.put_in_force(now, fresh);
                let askers = reload.askers.into_iter();
                askers.for_each(|peer| Response::Done.send(peer));
            }
        }
        match reload.again {
            Some(askers) if self.machine.is_draining() => {
                self.refuse_reload("everything is stopping", askers);
            }
            Some(askers) => self.begin_reload(now, askers),
            None => {}
        }
        outcome
    }

    fn put_in_force(&mut self, now: Instant, fresh: Fresh) -> Option<Outcome> {
        let Fresh {
            settings,
            facts,
            plan,
        } = fresh;
        let changed = plan.changed_since(&self.plan);
        self.log
            .set(settings.log_format, &plan.secrets, settings.log_stall);
        self.machine.set_grace(settings.stop_grace);
        (self.plan, self.facts, self.settings) = (plan, facts, settings);
        let names: Vec<&str> = changed
            .iter()
            .map(|id| self.plan.services[id.0].name)
            .collect();
        let what = match names.as_slice() {
            [] => "nothing changed".to_owned(),
            names => format!("restarting {}", names.join(", ")),
        };
        self.log
            .say(Level::Info, &format!("settings reloaded: {what}"));
        self.let_files_be_read(&changed);
        let mut outcome = None;
        for id in changed {
            outcome = outcome.or(self.step(now, Event::Restart(id)));
        }
        outcome
    }

    /// Tells services that keep running to reload their files. They notice most changes themselves.
    fn let_files_be_read(&self, restarting: &[Id]) {
        for (place, runtime) in self.runtimes.iter().enumerate() {
            if let Some(stream) = &runtime.handover
                && !restarting.contains(&Id(place))
            {
                probe::tell(stream, REREAD);
            }
        }
    }
}

/// Reads everything and writes the services' files. May block for as long as it takes.
fn read_again(known: Known, progress: &Progress) -> Result<Fresh, String> {
    let read = |path: &Path| {
        progress.at(&format!("\"{}\"", path.display()));
        regular_file::read_to_string(path)
    };
    let loaded = settings::load_by(&read).map_err(|problems| problems.to_string())?;
    progress.at("the programs of the services");
    let settings = start::resolved(loaded.settings).map_err(|error| error.to_string())?;
    let fixed = |settings: &Settings| {
        (
            settings.mode,
            settings.dir.clone(),
            settings.run_dir.clone(),
            settings.listen,
            settings.error_log.clone(),
            plan::client_socket(settings).is_some(),
            settings.dist.scheduler_listen,
        )
    };
    if fixed(&settings) != fixed(&known.settings) {
        return Err(
            "MODE, SCCACHE_DIR, SCCACHE_RUN_DIR, SCCACHE_LISTEN, SCCACHE_ERROR_LOG, \
                    SCCACHE_SCHEDULER_LISTEN and \"off\" of SCCACHE_IPC require a restart of the container"
                .into(),
        );
    }
    progress.at("the generated tokens");
    let auth_token = state_dir::auth_token(&settings).map_err(|error| error.to_string())?;
    let renew = |dist| start::renewed(&settings, known.run_as, dist);
    let dist = known.facts.dist.as_ref().map(renew).transpose();
    let facts = Facts {
        auth_token,
        dist: dist.map_err(|error| error.to_string())?,
        ..known.facts.clone()
    };
    progress.at("the files of SCCACHE_TOKENS_FILE, SCCACHE_TLS_CERT and SCCACHE_TLS_KEY");
    let named =
        start::check_files(&settings, &known.facts.gateway).map_err(|error| error.to_string())?;
    let mut plan = (known.planner)(&settings, &facts).map_err(|error| error.to_string())?;
    plan.secrets.extend(named);
    progress.begin_to_write()?;
    start::write_files(&plan, known.run_as).map_err(|error| error.to_string())?;
    Ok(Fresh {
        settings,
        facts,
        plan,
    })
}
