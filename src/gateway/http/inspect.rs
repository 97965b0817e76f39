//! Questions of administrators: which blobs an entry has and who has written them, and who may do what with it.

use super::answer::{Answer, Refusal, json};
use crate::contract::gateway_status::{BlobFacts, BlobRequest};
use crate::contract::key::{Key, shown_namespace};
use crate::gateway::Gateway;
use crate::gateway::access::Caller;
use crate::gateway::access::explain::explain;
use crate::gateway::body::{Piecewise, short_body};
use crate::gateway::disk::DiskError;
use crate::store::{Error, Facts};
use hyper::StatusCode;
use std::time::SystemTime;

/// The blobs of an entry.
pub(super) async fn blobs(
    gateway: &Gateway,
    caller: &Caller,
    body: &mut impl Piecewise,
) -> Result<Answer, Refusal> {
    let (_, path) = question(caller, body).await?;
    let found = gateway.disk.find(path).await?;
    json(&found.iter().map(facts).collect::<Vec<_>>())
}

/// What a token, or a local user, may do with an entry.
pub(super) async fn access(
    gateway: &Gateway,
    caller: &Caller,
    body: &mut impl Piecewise,
) -> Result<Answer, Refusal> {
    let (name, path) = question(caller, body).await?;
    let who = match name.split_once(':') {
        _ if name == "local" => Some(gateway.identity.access.local_caller(None, &name)),
        Some(("local", uid)) => {
            let uid = uid.parse().map_err(|_| bad("this is no user"))?;
            Some(gateway.identity.access.local_caller(Some(uid), &name))
        }
        _ => gateway.identity.access.named(&name),
    };
    let Some(who) = who else {
        let message = format!("there is no token {name:?}");
        return Err(Refusal::new(StatusCode::NOT_FOUND, "question", message));
    };
    let (mut answer, keys) = explain(&who, &path);
    for key in &keys {
        answer.found.push(match gateway.disk.facts(key).await {
            Ok(found) => facts(&found),
            Err(DiskError::Store(Error::Missing)) => BlobFacts {
                key: key.to_string(),
                namespace: shown_namespace(key.namespace()).to_owned(),
                bytes: None,
                written_unix_seconds: 0,
                written_by: String::new(),
            },
            Err(fault) => return Err(fault.into()),
        });
    }
    json(&answer)
}

/// Who the question is about, if anybody, and the path of the entry.
async fn question(caller: &Caller, body: &mut impl Piecewise) -> Result<(String, String), Refusal> {
    // It would see the names of others.
    if caller.is_restricted() {
        let message = "this tells of all namespaces: use a token that is good for all";
        return Err(Refusal::new(StatusCode::FORBIDDEN, "namespace", message));
    }
    let body = short_body(body).await.map_err(|cause| bad(&cause))?;
    let request: BlobRequest = serde_json::from_slice(&body)
        .map_err(|cause| bad(&format!("cannot understand the request: {cause}")))?;
    let path = match Key::for_sccache(&request.key) {
        Ok(key) => key.as_str().to_owned(),
        Err(_) => request.key,
    };
    Ok((request.caller.unwrap_or_default(), path))
}

fn bad(cause: &str) -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, "question", cause)
}

fn facts(found: &Facts) -> BlobFacts {
    let since = found.written.duration_since(SystemTime::UNIX_EPOCH);
    BlobFacts {
        key: found.key.to_string(),
        namespace: shown_namespace(found.key.namespace()).to_owned(),
        bytes: Some(found.bytes),
        written_unix_seconds: since.map_or(0, |since| since.as_secs()),
        written_by: found.by.to_string(),
    }
}
