//! Why a caller may do what it may: the grants as they were understood, in words. Pure.

use super::{Caller, Denied, Need, Scope, Verdict};
use crate::contract::gateway_status::AccessAnswer;
use crate::contract::key::{Key, shown_namespace};

/// What `caller` may do with the blob that a path means, and the keys where it is looked up.
pub fn explain(caller: &Caller, path: &str) -> (AccessAnswer, Vec<Key>) {
    let writes = caller.may(Need::Write) == Verdict::Allowed;
    let asked = caller.scope().asked(path);
    let name = caller.name().unwrap_or_default();
    let is_below = matches!(caller.scope(), Scope::Layers(_));
    let (read, write, keys) = match &asked {
        Err(denied) => (refused(name, denied), refused(name, denied), Vec::new()),
        Ok(asked) => {
            let read = match asked.read.len() {
                1 => "allowed".to_owned(),
                count => format!("allowed: the first of {count} namespaces that has it"),
            };
            let write = match (&asked.write, writes) {
                (Some(key), true) => {
                    let namespace = shown_namespace(key.namespace());
                    let whose = if is_below {
                        "the token's"
                    } else {
                        "the path's"
                    };
                    format!("allowed: {whose} namespace, {namespace:?}, and no other")
                }
                (None, _) | (_, false) => format!("denied: token {name:?} may only read"),
            };
            (read, write, asked.read.clone())
        }
    };
    let answer = AccessAnswer {
        name: name.to_owned(),
        grants: caller.scope().describe(writes),
        read,
        write,
        replaces: caller.may_replace(),
        distributes: caller.distributes() || (writes && !caller.is_restricted()),
        found: Vec::new(),
    };
    (answer, keys)
}

fn refused(name: &str, denied: &Denied) -> String {
    match denied {
        Denied::Key(_) => format!("denied: {denied}"),
        Denied::Namespace(_) | Denied::OtherLayer { .. } => {
            format!("denied: token {name:?} {denied}")
        }
    }
}
