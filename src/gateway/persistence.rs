//! What outlives a gateway: totals and their history, the removals that builds are explained by, logins and sessions.

use super::access::{Access, LONGEST_TEXT};
use super::history::{Point, Range};
use super::page::Traffic;
use super::warnings::ADVICE;
use super::{Gateway, logins};
use crate::base::time::unix_seconds;
use crate::base::{private_file, regular_file};
use crate::contract::gateway_status::Totals;
use crate::contract::paths;
use crate::explain::protocol::Served;
use crate::explain::report::Report;
use crate::gateway::database::{Lifetime, Whose};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::warn;

/// Builds that the page looks at.
const BUILDS_SHOWN: usize = 200;
/// How often what outlives the gateway is written.
const KEEP: Duration = Duration::from_secs(60);

impl Gateway {
    /// What was served since the first start; nothing where nothing can be kept.
    pub(crate) fn lifetime(&self) -> Option<Lifetime> {
        self.journal.database()?;
        Some(self.journal.lifetime(&self.metrics.totals()))
    }

    /// The last builds, the latest first; nothing where nothing can be kept.
    pub(crate) fn builds(&self, whose: Whose<'_>) -> Option<Vec<Report>> {
        let database = self.journal.database()?;
        database.builds(whose, BUILDS_SHOWN).ok()
    }

    /// Writes the last of what outlives us: for a build's own gateway, what waits for the upstream.
    pub(crate) async fn end(self: &Arc<Gateway>) -> Option<Served> {
        let served = match &self.upstream {
            Some(upstream) => upstream.say_farewell().await,
            None => None,
        };
        if served.is_none() {
            self.record();
            self.keep_history(&mut Totals::default()).await;
        }
        served
    }

    fn record(&self) {
        let totals = self.metrics.totals();
        let mut history = self.history.lock();
        history.record(since_1970(), &totals);
    }

    /// Writes what has happened since the last time, if anything has.
    pub(crate) async fn keep_history(self: &Arc<Gateway>, known: &mut Totals) {
        let totals = self.metrics.totals();
        if totals == *known {
            return;
        }
        *known = totals.clone();
        let gateway = Arc::clone(self);
        let written = spawn_blocking(move || {
            let Some(database) = gateway.journal.database() else {
                return Ok(());
            };
            let removals = gateway.disk.take_removals();
            database.note_removals(&removals, gateway.config.budget_bytes)?;
            let stretches = {
                let mut history = gateway.history.lock();
                [Range::Day, Range::Quarter].map(|range| {
                    // What was written before may have grown since.
                    let newest = history.since(range, 0).last().map_or(0, |(at, _)| *at);
                    (range, history.since(range, newest.saturating_sub(3)))
                })
            };
            let lifetime = gateway.journal.lifetime(&totals);
            database.write_points(&stretches, &lifetime)
        });
        match written.await {
            Ok(Ok(())) => {}
            Ok(Err(cause)) => self.refusals.warnings.warn(
                ADVICE,
                "history",
                &format!("cannot write history: {cause}; plots may have gaps after a restart"),
            ),
            Err(cause) => warn!("cannot write history: {cause}"),
        }
    }

    /// What was asked of the cache lately.
    pub(crate) fn traffic(&self, range: Range) -> Traffic {
        let totals = self.metrics.totals();
        let mut history = self.history.lock();
        history.record(since_1970(), &totals);
        let lately = history.points(Range::Minutes).into_iter();
        Traffic {
            range,
            recent: lately.flatten().collect::<Point>(),
            points: history.points(range),
        }
    }

    /// Writes down what outlives us of the logins. Blocks.
    pub(crate) fn keep_logins(&self) {
        let _one = self.logins.lock();
        let path = self.config.store_dir.join(logins::FILE);
        if let Err(cause) = private_file::write(&path, &self.identity.access.logins()) {
            warn!(
                "cannot write \"{}\": {cause}; log-outs from the status page are forgotten with this gateway",
                path.display()
            );
        }
    }

    /// Writes down what outlives us of the sessions by ID token. Blocks. Many that begin at once are written once.
    pub(crate) fn keep_sessions(&self) {
        let wanted = self.identity.access.issued_changes();
        let mut written = self.sessions.lock();
        if *written >= wanted {
            return;
        }
        let path = self.config.store_dir.join(paths::SESSIONS);
        let (text, changes) = self.identity.access.issued_text();
        match private_file::write(&path, &text) {
            Ok(()) => *written = changes,
            Err(cause) => warn!(
                "cannot write \"{}\": {cause}; sessions by ID token end with this gateway, and the end of others is forgotten",
                path.display()
            ),
        }
    }
}

/// Takes up the sessions that the last gateway has written down.
pub(super) fn take_up_sessions(access: &Access, store_dir: &Path) {
    let path = store_dir.join(paths::SESSIONS);
    let found = match regular_file::read_long_to_string(&path, LONGEST_TEXT) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return,
        Err(cause) => Err(cause.to_string()),
        Ok(text) => access.take_up(&text, unix_seconds()),
    };
    if let Err(cause) = found {
        warn!(
            "cannot use the sessions in \"{}\": {cause}; those by ID token have ended, and which tokens were exchanged before is \
             forgotten",
            path.display()
        );
    }
}

/// Fills the history for as long as the gateway lives.
pub(super) fn remember(gateway: &Arc<Gateway>) {
    let gateway = Arc::downgrade(gateway);
    tokio::spawn(async move {
        let mut tick = interval(Range::Minutes.step());
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut kept = Instant::now();
        let mut known = Totals::default();
        loop {
            tick.tick().await;
            let Some(gateway) = gateway.upgrade() else {
                return;
            };
            gateway.record();
            if kept.elapsed() >= KEEP {
                kept = Instant::now();
                gateway.journal.tidy();
                gateway.keep_history(&mut known).await;
            }
        }
    });
}

fn since_1970() -> Duration {
    Duration::from_secs(unix_seconds())
}
