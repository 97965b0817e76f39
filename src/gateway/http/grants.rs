//! What a request's token lets it touch, in HTTP's terms.

use super::{Refusal, label};
use crate::contract::key::{Key, shown_namespace};
use crate::gateway::Gateway;
use crate::gateway::access::{Asked, Caller, Denied};
use crate::gateway::audit::Event;
use crate::gateway::database::Whose;
use crate::gateway::peer::Peer;
use crate::store;
use crate::store::WrittenBy;
use hyper::StatusCode;
use hyper::http::request::Parts;

/// Writes down what somebody whom we know may not do.
pub(super) fn note_refusal(
    gateway: &Gateway,
    peer: &Peer,
    caller: &Caller,
    parts: &Parts,
    refusal: &Refusal,
) {
    let is_known = caller.has_sent_a_token() && caller.name().is_some();
    if let Some(reason) = refusal
        .reason
        .filter(|_| is_known && !caller.is_anonymous())
    {
        let event = Event {
            event: if reason == "conflict" {
                reason
            } else {
                "refused"
            },
            by: &writer(caller).to_string(),
            key: parts.uri.path(),
            bytes: None,
            detail: &format!("{} {reason}: {}", label(&parts.method), refusal.message),
        };
        gateway.audit.note(peer, event);
    }
}

/// Who writes with this token.
pub(super) fn writer(caller: &Caller) -> WrittenBy {
    WrittenBy::new(store::Lane::Webdav, caller.name())
}

/// Checks that the caller may remove what must not be replaced: removed first, it could be.
pub(super) fn permit_removal(caller: &Caller, is_kept: bool) -> Result<(), Refusal> {
    if !is_kept || caller.may_replace() || !caller.is_restricted() {
        return Ok(());
    }
    caller.count(|uses| &uses.refusals, 1);
    let message = format!(
        "token {:?} may not remove results here: they are written once (SCCACHE_WRITE_ONCE)",
        caller.name().unwrap_or_default()
    );
    Err(Refusal::new(StatusCode::FORBIDDEN, "write_once", message))
}

/// The builds that a viewer sees: with a token of some namespaces only, those that were begun with it.
pub(super) fn whose(viewer: &Caller) -> Whose<'_> {
    match viewer.is_restricted() {
        true => Whose::Tokens(viewer.name().unwrap_or_default()),
        false => Whose::Anybodys,
    }
}

/// What the caller means by a path, if it may touch that.
pub(super) fn asked(caller: &Caller, path: &str) -> Result<Asked, Refusal> {
    let asked = caller.scope().asked(path);
    asked.map_err(|denied| refusal(caller, denied))
}

/// The same for a look-up.
pub(super) fn looked_up(caller: &Caller, path: &str) -> Result<Vec<Key>, Refusal> {
    let keys = caller.scope().looked_up(path);
    keys.map_err(|denied| refusal(caller, denied))
}

/// Where a caller that may write does.
pub(super) fn written(asked: &Asked) -> Result<&Key, Refusal> {
    let message = "this token writes nowhere";
    let nowhere = || Refusal::new(StatusCode::FORBIDDEN, "read_only", message);
    asked.write.as_ref().ok_or_else(nowhere)
}

fn refusal(caller: &Caller, denied: Denied) -> Refusal {
    match denied {
        Denied::Key(cause) => Refusal::new(StatusCode::BAD_REQUEST, "key", cause),
        Denied::Namespace(_) | Denied::OtherLayer { .. } => {
            caller.count(|uses| &uses.refusals, 1);
            let message = format!("token {:?} {denied}", caller.name().unwrap_or_default());
            Refusal::new(StatusCode::FORBIDDEN, "namespace", message)
        }
    }
}

/// Checks that the token may name this namespace, empty for the default one, and remove what is there.
pub(super) fn permit_namespace(caller: &Caller, namespace: &str) -> Result<(), Refusal> {
    if caller.scope().writes(namespace) {
        return Ok(());
    }
    let denied = Denied::Namespace(shown_namespace(namespace).to_owned());
    Err(refusal(caller, denied))
}

/// The check at a client's start stands at the root of its namespace, and is spelt as keys are.
pub(super) fn permit_check(caller: &Caller, path: &str) -> Result<(), Refusal> {
    Key::parse(path).map_err(|cause| refusal(caller, cause.into()))?;
    if !caller.is_restricted() {
        return Ok(());
    }
    let folders: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let folder = folders[..folders.len().saturating_sub(1)].join("/");
    let checked = caller.scope().check_namespace(&folder);
    checked.map_err(|denied| refusal(caller, denied))
}
