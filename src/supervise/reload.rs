//! Settings read again while the services run.

use super::logs::Level;
use super::machine::{Event, Id, Outcome};
use super::{Supervisor, probe, start};
use crate::gateway::REREAD;
use crate::plan::{self, Facts};
use crate::settings::{self, Settings};
use crate::state;
use std::time::Instant;

impl Supervisor {
    /// Reads the settings again and restarts what they change. On any error everything stays as it is.
    pub(super) fn reload(&mut self, now: Instant) -> Result<Option<Outcome>, String> {
        match self.replan() {
            Ok(changed) => {
                let names: Vec<&str> = changed
                    .iter()
                    .map(|id| self.plan.services[id.0].name)
                    .collect();
                let what = match names.as_slice() {
                    [] => "nothing changed".to_owned(),
                    names => format!("restarting {}", names.join(", ")),
                };
                self.log
                    .say(Level::Info, &format!("settings read again: {what}"));
                self.let_files_be_read(&changed);
                let mut outcome = None;
                for id in changed {
                    outcome = outcome.or(self.step(now, Event::Restart(id)));
                }
                Ok(outcome)
            }
            Err(message) => {
                let text = format!("cannot reload, going on as before: {message}");
                self.log.say(Level::Error, &text);
                Err(text)
            }
        }
    }

    /// Asks services that go on running to read their files again. They see most changes by themselves.
    fn let_files_be_read(&self, restarting: &[Id]) {
        for (place, runtime) in self.runtimes.iter().enumerate() {
            if let Some(stream) = &runtime.handover
                && !restarting.contains(&Id(place))
            {
                probe::tell(stream, REREAD);
            }
        }
    }

    fn replan(&mut self) -> Result<Vec<Id>, String> {
        if self.machine.is_draining() {
            return Err("everything is stopping".into());
        }
        let loaded = settings::load().map_err(|problems| problems.to_string())?;
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
        if fixed(&settings) != fixed(&self.settings) {
            return Err("MODE, SCCACHE_DIR, SCCACHE_RUN_DIR, SCCACHE_LISTEN, SCCACHE_ERROR_LOG, \
                        SCCACHE_SCHEDULER_LISTEN and \"off\" of SCCACHE_IPC take a restart of the container"
                .into());
        }
        let auth_token = state::auth_token(&settings).map_err(|error| error.to_string())?;
        let renew = |dist| start::renewed(&settings, &self.prepared, dist);
        let dist = self.facts.dist.as_ref().map(renew).transpose();
        let facts = Facts {
            auth_token,
            dist: dist.map_err(|error| error.to_string())?,
            ..self.facts.clone()
        };
        let named = start::check_files(&settings).map_err(|error| error.to_string())?;
        let mut plan = (self.planner)(&settings, &facts).map_err(|error| error.to_string())?;
        plan.secrets.extend(named);
        start::write_files(&plan, &self.prepared).map_err(|error| error.to_string())?;
        let changed = plan.changed_since(&self.plan);
        self.log
            .set(settings.log_format, &plan.secrets, settings.log_stall);
        self.machine.set_grace(settings.stop_grace);
        (self.plan, self.facts, self.settings) = (plan, facts, settings);
        Ok(changed)
    }
}
