//! `blob` and `access`: which blobs an entry has, who has written them, and who may do what with them.

use super::{Error, agent, bytes, endpoint, machine, report};
use crate::config::settings::Settings;
use crate::contract::gateway_status::{AccessAnswer, BlobFacts, BlobRequest};
use crate::exit;
use crate::supervisor::state_dir;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{self, Write};
use std::time::{Duration, SystemTime};

/// Of groups of namespaces each blob is looked at.
const PATIENCE: Duration = Duration::from_secs(600);

/// Prints the blobs of `key`, 64 digits or a path, in all namespaces.
///
/// # Errors
/// No supervisor or gateway answers.
pub fn blob(settings: &Settings, key: &str, json: bool) -> Result<u8, Error> {
    let found: Vec<BlobFacts> = ask(settings, "blob", key, None)?;
    let code = if found.is_empty() {
        exit::FAILED
    } else {
        exit::OK
    };
    if json {
        machine::print(Blobs { blobs: found })?;
        return Ok(code);
    }
    let mut out = io::stdout().lock();
    for one in &found {
        writeln!(out, "{}", line(one))?;
    }
    if found.is_empty() {
        writeln!(out, "there is no such blob in any namespace")?;
    }
    Ok(code)
}

/// What `blob --json` prints.
#[derive(Debug, Serialize)]
struct Blobs {
    blobs: Vec<BlobFacts>,
}

/// Prints what the token `name` may do with `key`, and why.
///
/// # Errors
/// No supervisor or gateway answers, or there is no such token.
pub fn access(settings: &Settings, name: &str, key: &str, json: bool) -> Result<u8, Error> {
    let answer: AccessAnswer = ask(settings, "access", key, Some(name))?;
    if json {
        machine::print(answer)?;
        return Ok(exit::OK);
    }
    let mut out = io::stdout().lock();
    writeln!(out, "{}: {}", answer.name, answer.grants)?;
    writeln!(out, "read    {}", answer.read)?;
    for one in &answer.found {
        writeln!(out, "        {}", line(one))?;
    }
    writeln!(out, "write   {}", answer.write)?;
    let yes = |flag: bool| if flag { "allowed" } else { "denied" };
    writeln!(out, "replace {}", yes(answer.replaces))?;
    writeln!(out, "build   {} on the cluster", yes(answer.distributes))?;
    Ok(exit::OK)
}

fn line(blob: &BlobFacts) -> String {
    match blob.bytes {
        None => format!("{}: not here ({})", blob.namespace, blob.key),
        Some(size) => {
            let at = SystemTime::UNIX_EPOCH + Duration::from_secs(blob.written_unix_seconds);
            format!(
                "{}: {}, written {} by {} ({})",
                blob.namespace,
                bytes(size),
                humantime::format_rfc3339_seconds(at),
                blob.written_by,
                blob.key
            )
        }
    }
}

fn ask<T: DeserializeOwned>(
    settings: &Settings,
    page: &str,
    key: &str,
    name: Option<&str>,
) -> Result<T, Error> {
    let endpoint = endpoint(&report(&settings.installation())?);
    let fail = |cause: String| Error::Gateway {
        endpoint: endpoint.clone(),
        cause,
    };
    let request = BlobRequest {
        key: key.to_owned(),
        caller: name.map(str::to_owned),
    };
    let body = serde_json::to_string(&request).map_err(io::Error::from)?;
    let token = state_dir::auth_token(settings)?;
    let text = agent(PATIENCE)
        .post(format!("{endpoint}/api/{page}"))
        .header("Authorization", format!("Bearer {}", token.reveal()))
        .content_type("application/json")
        .send(body)
        .and_then(|mut response| response.body_mut().read_to_string());
    let text = match text {
        Err(ureq::Error::StatusCode(404)) => {
            let cause = format!("there is no token {:?}", name.unwrap_or_default());
            return Err(fail(cause));
        }
        text => text.map_err(|error| fail(error.to_string()))?,
    };
    serde_json::from_str(&text).map_err(|error| fail(error.to_string()))
}
