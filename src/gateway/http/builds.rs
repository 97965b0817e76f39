//! `/api/builds`: builds are begun, ended and shown; `/api/prefetch`: what a build will ask for, in one answer.

use super::answer::{broken, json};
use super::front;
use super::grants::whose;
use super::{Answer, Refusal, full, permit};
use crate::contract::key::{Key, shown_namespace};
use crate::explain::protocol::{End, LONGEST_BUILD, Prefetch, Request};
use crate::explain::report::Report;
use crate::gateway::Gateway;
use crate::gateway::access::{Caller, Need, Scope, Verdict};
use crate::gateway::body::{Piecewise, short_body, whole_body};
use crate::gateway::database::Partition;
use crate::gateway::disk::Download;
use crate::gateway::journal::{Memory, Sender};
use crate::gateway::metrics::Protocol;
use crate::gateway::peer::Peer;
use bytes::Bytes;
use http_body_util::Either;
use hyper::http::request::Parts;
use hyper::{StatusCode, header};
use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

/// How long the end of a build may take to come in.
const TIME: Duration = Duration::from_secs(60);
/// Pieces of prefetched entries that wait to be sent.
const PIECES: usize = 4;
/// A body that needs no turn, in bytes.
const SHORT: u64 = 64 << 10;
/// Builds that are listed.
const LISTED: usize = 200;

/// Whose builds remember what a build of this caller was like: those that write to the same namespace. Who writes nothing
/// has its memory apart, in which it can change nothing that others go by.
fn own_partition(gateway: &Gateway, caller: &Caller) -> Partition {
    let written = match caller.scope() {
        Scope::Layers(layers) => layers.write.as_deref(),
        Scope::All | Scope::Below(_) => None,
    };
    if let (Scope::Layers(layers), Some(written)) = (caller.scope(), written) {
        return Partition {
            name: shown_namespace(written).to_owned(),
            is_guest: layers.is_branch() || gateway.disk.home(written) != written,
        };
    }
    let names = names(caller);
    match caller.may(Need::Write) {
        Verdict::Allowed => Partition {
            name: names,
            is_guest: false,
        },
        Verdict::Unauthorized | Verdict::Forbidden | Verdict::Misdirected => Partition {
            name: format!("read:{names}"),
            is_guest: true,
        },
    }
}

/// No namespace's name has the line's end in it.
fn names(caller: &Caller) -> String {
    let names = caller.scope().names().map(|names| names.join("\n"));
    names.unwrap_or_default()
}

/// Whose builds it is compared with besides: where the path chooses the namespace, readers learn from writers.
fn other_partitions(caller: &Caller) -> Vec<Partition> {
    let is_reader = caller.may(Need::Write) != Verdict::Allowed;
    match caller.scope() {
        Scope::Layers(_) => Vec::new(),
        Scope::All | Scope::Below(_) if is_reader => vec![Partition {
            name: names(caller),
            is_guest: false,
        }],
        Scope::All | Scope::Below(_) => Vec::new(),
    }
}

/// Whose builds tell what a build of this caller will ask for: its own, then those of each layer that it reads. What they
/// tell are names of entries, of which it gets those that it may read.
fn orders(gateway: &Gateway, caller: &Caller) -> Vec<Partition> {
    let own = own_partition(gateway, caller);
    let layers = match caller.scope() {
        Scope::Layers(_) => caller.scope().names().unwrap_or_default(),
        Scope::All | Scope::Below(_) => Vec::new(),
    };
    let layers = layers.into_iter().flat_map(|name| {
        [false, true].map(|is_guest| Partition {
            name: name.clone(),
            is_guest,
        })
    });
    let others = other_partitions(caller);
    std::iter::once(own).chain(others).chain(layers).collect()
}

/// Where this caller finds what a build asked for by this key; `None` where it may not look.
fn places(caller: &Caller, key: &str) -> Option<Vec<Key>> {
    let key = Key::from_canonical(key).ok()?;
    let path = match caller.scope() {
        Scope::All | Scope::Below(_) => key.as_str(),
        Scope::Layers(_) => {
            let rest = key.as_str().strip_prefix(key.namespace())?;
            rest.trim_start_matches('/')
        }
    };
    Some(caller.scope().asked(path).ok()?.read)
}

fn sender(peer: &Peer, caller: &Caller) -> Sender {
    Sender {
        origin: peer.origin(),
        token: caller.name().map(str::to_owned),
    }
}

/// The begin or the end of a build.
pub(super) async fn take(
    gateway: &Arc<Gateway>,
    peer: &Peer,
    caller: &Caller,
    body: &mut impl Piecewise,
) -> Result<Answer, Refusal> {
    let bad = |cause: String| Refusal::new(StatusCode::BAD_REQUEST, "build", cause);
    if caller.is_anonymous() {
        let message = "builds are explained to whoever shows a token";
        return Err(Refusal::new(StatusCode::FORBIDDEN, "read_only", message));
    }
    let length = body.size_hint().upper().unwrap_or(u64::MAX);
    let turn = match length <= SHORT {
        true => None,
        false => Some(gateway.ends.acquire().await.map_err(broken)?),
    };
    let body = whole_body(body, LONGEST_BUILD, TIME).await.map_err(bad)?;
    let request: Request = serde_json::from_slice(&body)
        .map_err(|cause| bad(format!("cannot understand the request: {cause}")))?;
    drop(body);
    let sender = sender(peer, caller);
    match request {
        Request::Begin(_) => {
            let writes = caller.may(Need::Write) == Verdict::Allowed;
            json(&gateway.journal.begin(sender, writes))
        }
        Request::Beat(build) => {
            gateway.journal.beat(&build, &sender);
            json(&())
        }
        Request::End(end) => {
            let report = end_of(gateway, &sender, caller, *end).await?;
            drop(turn);
            json(&report)
        }
    }
}

async fn end_of(
    gateway: &Arc<Gateway>,
    sender: &Sender,
    caller: &Caller,
    end: End,
) -> Result<Report, Refusal> {
    if end.build.is_empty() || end.build.len() > 64 || !end.build.is_ascii() {
        let message = "the build has no id of this cache's";
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "build", message));
    }
    let taken = gateway.journal.take(&end.build, sender, caller.scope());
    let names = gateway.disk.member_names(taken.keys()).await?;
    let removals = gateway.disk.take_removals();
    let memory = Memory {
        own: own_partition(gateway, caller),
        others: other_partitions(caller),
        lists: orders(gateway, caller),
    };
    let gateway = Arc::clone(gateway);
    let explained = spawn_blocking(move || {
        let journal = &gateway.journal;
        journal.explain(&memory, end, taken, &names, &removals)
    });
    explained.await.map_err(broken)
}

/// The caller, or whoever has logged in with this browser, if they may see builds.
fn viewer(
    gateway: &Gateway,
    peer: &Peer,
    caller: &Caller,
    parts: &Parts,
) -> Result<Caller, Refusal> {
    let login = front::logged_in(gateway, caller, parts);
    let viewer = login.unwrap_or_else(|| caller.clone());
    permit(gateway, peer, &viewer, Need::Read)?;
    if viewer.is_anonymous() {
        let message = "builds are shown to whoever shows a token";
        return Err(Refusal::new(StatusCode::FORBIDDEN, "namespace", message));
    }
    Ok(viewer)
}

/// The last builds, the latest first.
pub(super) fn list(
    gateway: &Gateway,
    peer: &Peer,
    caller: &Caller,
    parts: &Parts,
) -> Result<Answer, Refusal> {
    let viewer = viewer(gateway, peer, caller, parts)?;
    let database = gateway.journal.database();
    let builds = database.map(|it| it.builds(whose(&viewer), LISTED));
    json(&builds.transpose().map_err(broken)?.unwrap_or_default())
}

/// One build: as a page for browsers, as JSON for all others.
pub(super) fn show(
    gateway: &Gateway,
    peer: &Peer,
    caller: &Caller,
    parts: &Parts,
) -> Result<Answer, Refusal> {
    let viewer = viewer(gateway, peer, caller, parts)?;
    let id = parts.uri.path().rsplit('/').next().unwrap_or_default();
    let database = gateway.journal.database();
    let build = database.map(|it| it.build(whose(&viewer), id));
    let Some(report) = build.transpose().map_err(broken)?.flatten() else {
        return Err(Refusal {
            status: StatusCode::NOT_FOUND,
            reason: None,
            message: "there is no such build, or it was too long ago".to_owned(),
        });
    };
    let accept = parts.headers.get(header::ACCEPT);
    let is_browser = accept.is_some_and(|it| it.to_str().is_ok_and(|it| it.contains("text/html")));
    match is_browser {
        true => front::build(&report),
        false => json(&report),
    }
}

/// The entries that builds with these labels ask for, in their order: for each the length of its key (two
/// bytes), the key, the length of its body (eight bytes) and the body, until the body of the answer ends. Numbers are
/// big-endian. Where a list is wanted, it comes first, in the form of an entry without a name.
pub(super) async fn prefetch(
    gateway: &Arc<Gateway>,
    caller: &Caller,
    body: &mut impl Piecewise,
) -> Result<Answer, Refusal> {
    let bad = |cause: String| Refusal::new(StatusCode::BAD_REQUEST, "prefetch", cause);
    let body = short_body(body).await.map_err(bad)?;
    let wanted: Prefetch = serde_json::from_slice(&body)
        .map_err(|cause| bad(format!("cannot understand the request: {cause}")))?;
    let (owned, partitions) = (Arc::clone(gateway), orders(gateway, caller));
    let order = spawn_blocking(move || {
        let Some(database) = owned.journal.database() else {
            return Ok(None);
        };
        let mut orders = partitions.iter();
        let found = orders.find_map(|one| database.order(one, &wanted.labels).transpose());
        found.transpose()
    });
    let order = order.await.map_err(broken)?.map_err(broken)?;
    let keys = order.map(|order| order.keys).unwrap_or_default();
    let places = keys.iter().filter_map(|key| places(caller, key));
    let mut seen = HashSet::new();
    // One that builds have found in several layers is sent once.
    let keys: Vec<Vec<Key>> = places.filter(|them| seen.insert(them.clone())).collect();
    let (pieces, receiver) = mpsc::channel(PIECES);
    if wanted.listed {
        // Those of all places: which of them it is turns out when it is sent.
        let names: Vec<&str> = keys.iter().flatten().map(Key::as_str).collect();
        let list = names.join("\n");
        let head = head_of("", list.len() as u64).unwrap_or_default();
        // The channel is empty.
        let _ = pieces.try_send(Ok([head, list.into_bytes()].concat().into()));
    }
    tokio::spawn(send(Arc::clone(gateway), keys, wanted.max_bytes, pieces));
    let mut answer = full(StatusCode::OK, "application/octet-stream", "");
    *answer.body_mut() = Either::Right(Download::stream(receiver));
    Ok(answer)
}

/// What stands before the body of an entry.
fn head_of(name: &str, length: u64) -> Option<Vec<u8>> {
    let name_length = u16::try_from(name.len()).ok()?.to_be_bytes();
    Some([&name_length[..], name.as_bytes(), &length.to_be_bytes()].concat())
}

async fn first_of(gateway: &Gateway, places: Vec<Key>) -> Option<(Key, Download)> {
    for key in places {
        if let Ok(blob) = gateway.disk.get(&key).await {
            return Some((key, blob));
        }
    }
    None
}

/// Sends entries until there is none left, no room, or nobody who takes them.
async fn send(
    gateway: Arc<Gateway>,
    keys: Vec<Vec<Key>>,
    mut room: u64,
    pieces: mpsc::Sender<io::Result<Bytes>>,
) {
    for places in keys {
        let Some((key, mut blob)) = first_of(&gateway, places).await else {
            continue;
        };
        let length = blob.length;
        let Some(head) = head_of(key.as_str(), length).filter(|_| length <= room) else {
            continue;
        };
        room -= length;
        if pieces.send(Ok(head.into())).await.is_err() {
            return;
        }
        gateway.metrics.sent(Protocol::http, length);
        while let Some(piece) = blob.next().await {
            let is_last = piece.is_err();
            if pieces.send(piece).await.is_err() || is_last {
                return;
            }
        }
    }
}
