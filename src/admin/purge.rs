//! `purge`: asks the gateway to remove blobs, and shows its progress.

use super::{Error, agent, bytes, cache_status, endpoint, machine, report};
use crate::base::progress;
use crate::base::progress::Line;
use crate::config::settings::{Installation, Settings};
use crate::contract::control::Report;
use crate::contract::gateway_status::{PurgeAnswer, PurgeRequest};
use crate::exit;
use crate::supervisor::state_dir;
use std::io::{self, Write};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, SystemTime};

/// Time limit; a purge of a million blobs takes minutes.
const PURGE_PATIENCE: Duration = Duration::from_secs(600);

/// Selects blobs: those that match all given options.
#[derive(Debug, Default, clap::Args)]
pub struct Args {
    /// Only blobs not used for this long: 30d, 12h
    #[arg(long, value_name = "AGE", value_parser = humantime::parse_duration)]
    older_than: Option<Duration>,
    /// Only blobs in this namespace
    #[arg(long)]
    namespace: Option<String>,
    /// Only blobs whose keys match this glob: *, ?, [ab]
    #[arg(long, value_parser = pattern)]
    pattern: Option<String>,
    /// Only blobs written by this lane (webdav, ipc, socket, upstream) or with the token of this name
    #[arg(long, value_name = "LANE|TOKEN", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    written_by: Option<String>,
    /// Only blobs written since this time: 2026-11-29T03:00:00Z, 2026-11-29, or 2h for two hours ago
    #[arg(long, value_name = "TIME", value_parser = since)]
    since: Option<SystemTime>,
    /// Only print how much would be removed
    #[arg(long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn pattern(text: &str) -> Result<String, glob::PatternError> {
    glob::Pattern::new(text).map(|_| text.to_owned())
}

/// A time in UTC, or a duration before now.
fn since(text: &str) -> Result<SystemTime, String> {
    if let Ok(age) = humantime::parse_duration(text) {
        return now()
            .checked_sub(age)
            .ok_or_else(|| "that is too long ago".to_owned());
    }
    // The time of day may be omitted, and a space may separate it from the date.
    let whole = match text.len() {
        10 => format!("{text}T00:00:00Z"),
        _ => text.to_owned(),
    };
    humantime::parse_rfc3339_weak(&whole).map_err(|_| {
        "it is neither a time in UTC, such as 2026-11-29T03:00:00Z, nor a duration, such as 2h"
            .to_owned()
    })
}

#[expect(
    clippy::disallowed_methods,
    reason = "a span on the command line is before now"
)]
fn now() -> SystemTime {
    SystemTime::now()
}

/// Removes blobs: all, or those that the arguments choose.
///
/// # Errors
/// No supervisor or gateway answers.
pub fn run(settings: &Settings, args: &Args) -> Result<u8, Error> {
    let place = settings.installation();
    let report = report(&place)?;
    let endpoint = endpoint(&report);
    let fail = |cause: String| Error::Gateway {
        endpoint: endpoint.clone(),
        cause,
    };
    let token = state_dir::auth_token(settings)?;
    let request = PurgeRequest {
        // Rounded up: half a second must not become none, which matches everything.
        older_than_seconds: args
            .older_than
            .map(|age| age.as_secs() + u64::from(age.subsec_nanos() > 0)),
        namespace: args.namespace.clone(),
        pattern: args.pattern.clone(),
        written_by: args.written_by.clone(),
        since_unix_seconds: args.since.map(|since| {
            since
                .duration_since(SystemTime::UNIX_EPOCH)
                .map_or(0, |age| age.as_secs())
        }),
        dry_run: args.dry_run,
    };
    let body = serde_json::to_string(&request).map_err(io::Error::from)?;
    let text = with_progress(&place, &report, || {
        agent(PURGE_PATIENCE)
            .post(format!("{endpoint}/api/purge"))
            .header("Authorization", format!("Bearer {}", token.reveal()))
            .content_type("application/json")
            .send(body)
            .and_then(|mut response| response.body_mut().read_to_string())
    });
    let text = text.map_err(|error| fail(error.to_string()))?;
    let purged: PurgeAnswer =
        serde_json::from_str(&text).map_err(|error| fail(error.to_string()))?;
    if args.json {
        machine::print(machine::Purged {
            entries: purged.entries,
            bytes: purged.bytes,
            dry_run: args.dry_run,
        })?;
        return Ok(exit::OK);
    }
    let done = if args.dry_run {
        "would purge"
    } else {
        "purged"
    };
    writeln!(
        io::stdout(),
        "{done} {} blobs, {}",
        purged.entries,
        bytes(purged.bytes)
    )?;
    Ok(exit::OK)
}

/// Does `work`, and says on a terminal how far the gateway is when that takes long.
fn with_progress<T>(place: &Installation, report: &Report, work: impl FnOnce() -> T) -> T {
    let Some(mut line) = Line::open() else {
        return work();
    };
    let (done, wait) = channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut pause = progress::FIRST;
            while wait.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                pause = progress::AGAIN;
                let status = cache_status(place, report).ok();
                if let Some(at) = status.and_then(|status| status.store.purge) {
                    line.show(&format!("looked at {} of {} blobs", at.done, at.total));
                }
            }
        });
        let outcome = work();
        drop(done);
        outcome
    })
}
