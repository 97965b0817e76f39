//! `sessions`: who has logged in by an ID token, and the end of that.

use super::{Error, PATIENCE, agent, endpoint, machine, report};
use crate::config::settings::Settings;
use crate::contract::gateway_status::{RevokeAnswer, RevokeRequest, SessionStatus};
use crate::exit;
use crate::supervisor::state_dir;
use serde::Serialize;
use std::io::{self, Write};
use std::time::{Duration, SystemTime};

/// Prints all sessions, or ends those of `revoked`: a build, a rule, or both as `RULE:BUILD`.
///
/// # Errors
/// No supervisor or gateway answers.
pub fn run(settings: &Settings, revoked: Option<&str>, json: bool) -> Result<u8, Error> {
    let endpoint = endpoint(&report(&settings.installation())?);
    let fail = |cause: String| Error::Gateway {
        endpoint: endpoint.clone(),
        cause,
    };
    let token = state_dir::auth_token(settings)?;
    let bearer = format!("Bearer {}", token.reveal());
    let Some(name) = revoked else {
        let answer = agent(PATIENCE)
            .get(format!("{endpoint}/api/sessions"))
            .header("Authorization", bearer)
            .call()
            .and_then(|mut answer| answer.body_mut().read_to_string())
            .map_err(|error| fail(error.to_string()))?;
        let sessions: Vec<SessionStatus> =
            serde_json::from_str(&answer).map_err(|error| fail(error.to_string()))?;
        if json {
            machine::print(Sessions { sessions })?;
            return Ok(exit::OK);
        }
        let mut out = io::stdout().lock();
        for one in sessions {
            let at = |seconds| {
                humantime::format_rfc3339_seconds(
                    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds),
                )
            };
            writeln!(
                out,
                "{}: {}, since {}, until {} ({})",
                one.name,
                one.grants,
                at(one.began_unix_seconds),
                at(one.ends_unix_seconds),
                one.subject
            )?;
        }
        return Ok(exit::OK);
    };
    let request = RevokeRequest {
        name: name.to_owned(),
    };
    let answer = agent(PATIENCE)
        .post(format!("{endpoint}/api/revoke"))
        .header("Authorization", bearer)
        .content_type("application/json")
        .send(serde_json::to_string(&request).map_err(io::Error::from)?)
        .and_then(|mut answer| answer.body_mut().read_to_string())
        .map_err(|error| fail(error.to_string()))?;
    let answer: RevokeAnswer =
        serde_json::from_str(&answer).map_err(|error| fail(error.to_string()))?;
    match json {
        true => machine::print(Ended {
            ended: answer.sessions,
        })?,
        false => writeln!(io::stdout(), "ended {} sessions", answer.sessions)?,
    }
    Ok(exit::OK)
}

/// What `sessions --json` prints.
#[derive(Debug, Serialize)]
struct Sessions {
    sessions: Vec<SessionStatus>,
}

/// What `sessions --revoke NAME --json` prints.
#[derive(Debug, Serialize)]
struct Ended {
    ended: usize,
}
