//! Sessions by ID token: begun by whoever shows one that a rule fits, listed and ended by administrators.

use super::answer::json;
use super::grants::writer;
use super::{Answer, Refusal};
use crate::base::time::unix_seconds;
use crate::contract::gateway_status::{LoginAnswer, RevokeAnswer, RevokeRequest};
use crate::gateway::Gateway;
use crate::gateway::access::{Begun, Caller, NoSession};
use crate::gateway::audit::Event;
use crate::gateway::body::{Piecewise, short_body};
use crate::gateway::oidc::verify::Refused;
use crate::gateway::peer::Peer;
use hyper::StatusCode;
use std::sync::Arc;
use tokio::task::spawn_blocking;
use tracing::info;

/// Exchanges the ID token in the body for a session.
pub(super) async fn begin(
    gateway: &Arc<Gateway>,
    peer: &Peer,
    body: &mut impl Piecewise,
) -> Result<Answer, Refusal> {
    let bad = |cause: String| Refusal::new(StatusCode::BAD_REQUEST, "login", cause);
    let body = short_body(body).await.map_err(bad)?;
    let token = std::str::from_utf8(body.trim_ascii()).unwrap_or_default();
    let outcome = match gateway.identity.oidc.take(token).await {
        Ok(taken) => issue(gateway, taken),
        Err(refused) => Err(refused),
    };
    let answer = outcome.map_err(|refused| refusal(gateway, peer, &refused))?;
    info!(session = answer.name, grants = answer.grants, %peer, "a session has begun");
    let event = Event {
        event: "login",
        by: &answer.name,
        detail: &answer.grants,
        ..Event::default()
    };
    gateway.audit.note(peer, event);
    keep(gateway).await;
    json(&answer)
}

fn issue(gateway: &Gateway, taken: crate::gateway::oidc::Taken) -> Result<LoginAnswer, Refused> {
    let mut random = [0; 32];
    getrandom::fill(&mut random).map_err(|cause| Refused::Invalid(cause.to_string()))?;
    let grants = taken.grant.layers.describe();
    let name = match taken.grant.build.as_str() {
        "" => taken.rule.name.clone(),
        build => format!("{}:{build}", taken.rule.name),
    };
    let begun = Begun {
        rule: &taken.rule,
        layers: taken.grant.layers,
        build: taken.grant.build,
        subject: taken.subject,
        id_token: (taken.digest, taken.token_ends),
        ends: taken.ends,
    };
    let token = gateway.identity.access.issue(begun, unix_seconds(), random);
    let token = token.map_err(|none| match none {
        NoSession::Replayed => Refused::Replayed,
        NoSession::Revoked => Refused::Revoked,
        NoSession::Full => Refused::Full,
    })?;
    Ok(LoginAnswer {
        token: token.reveal().to_owned(),
        name,
        grants,
        ends_unix_seconds: taken.ends,
    })
}

fn refusal(gateway: &Gateway, peer: &Peer, refused: &Refused) -> Refusal {
    let message = format!("the ID token is not taken: {refused}");
    let (status, reason) = match refused {
        Refused::NoKeys(_) | Refused::Full => (StatusCode::SERVICE_UNAVAILABLE, "login"),
        Refused::NoRule(_) | Refused::Revoked => (StatusCode::FORBIDDEN, "login"),
        Refused::Malformed(_)
        | Refused::Issuer
        | Refused::UnknownKey
        | Refused::Invalid(_)
        | Refused::Replayed => {
            gateway.refusals.unauthorized();
            match gateway.refusals.is_flood(peer) {
                true => (StatusCode::TOO_MANY_REQUESTS, "auth_flood"),
                false => (StatusCode::UNAUTHORIZED, "login"),
            }
        }
    };
    Refusal::new(status, reason, message)
}

/// Ends sessions.
pub(super) async fn revoke(
    gateway: &Arc<Gateway>,
    peer: &Peer,
    caller: &Caller,
    body: &mut impl Piecewise,
) -> Result<Answer, Refusal> {
    for_administrators(caller)?;
    let bad = |cause: String| Refusal::new(StatusCode::BAD_REQUEST, "revoke", cause);
    let body = short_body(body).await.map_err(bad)?;
    let request: RevokeRequest = serde_json::from_slice(&body)
        .map_err(|cause| bad(format!("cannot understand the request: {cause}")))?;
    let sessions = gateway
        .identity
        .access
        .revoke(&request.name, unix_seconds());
    info!(sessions, name = request.name, "sessions ended by hand");
    let by = writer(caller).to_string();
    let event = Event {
        event: "revoke",
        by: &by,
        detail: &format!("{sessions} sessions of {:?}", request.name),
        ..Event::default()
    };
    gateway.audit.note(peer, event);
    keep(gateway).await;
    json(&RevokeAnswer { sessions })
}

/// Lists sessions.
pub(super) fn list(gateway: &Gateway, caller: &Caller) -> Result<Answer, Refusal> {
    for_administrators(caller)?;
    json(&gateway.identity.access.issued_sessions())
}

fn for_administrators(caller: &Caller) -> Result<(), Refusal> {
    if caller.is_restricted() {
        let message = "sessions are of all namespaces: use a token that is good for all";
        return Err(Refusal::new(StatusCode::FORBIDDEN, "namespace", message));
    }
    Ok(())
}

/// Writes sessions down before the answer, so that what was said to have begun or ended has.
async fn keep(gateway: &Arc<Gateway>) {
    let gateway = Arc::clone(gateway);
    // It ends with an error only when the runtime does.
    let _ = spawn_blocking(move || gateway.keep_sessions()).await;
}
