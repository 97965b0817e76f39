//! Results of actions, as Bazel keeps them under `ac/`: each names blobs under `cas/`, without which it is worth nothing.
//!
//! Bazel takes a result that it was given for whole, and from version 7 on a build fails where one of its blobs is gone.
//! So a result is served only while all its blobs are here. With it they count as used, so that they outlive it.

mod message;

use super::Gateway;
use super::disk::{DiskError, Download};
use super::upstream::{Found, Upstream};
use crate::contract::key::Key;
use crate::store;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Longest result, and longest list of the files in a folder, that is looked through.
const LONGEST: u64 = 4 << 20;
/// Blobs of one result that are asked of the upstream at one time.
const FETCHES: usize = 8;
/// How long the upstream may take for all of them; what has come by then is here the next time.
const PATIENCE: Duration = Duration::from_secs(20);

/// A blob as a client may use it: the result of an action is missing where one of its blobs is. Each may be under any of
/// the client's names.
///
/// # Errors
/// As [`Gateway::blob`].
pub(crate) async fn blob<'a>(
    gateway: &Gateway,
    mut keys: &'a [Key],
) -> Result<(&'a Key, Download), DiskError> {
    let names = keys;
    loop {
        let (key, found) = gateway.blob(keys).await?;
        match action(key) {
            Some(end) if !is_whole(gateway, names, key, end).await? => {
                // One that is of no use hides none behind it.
                let place = keys.iter().position(|one| one == key);
                keys = &keys[place.map_or(keys.len(), |place| place + 1)..];
            }
            Some(_) | None => return Ok((key, found)),
        }
    }
}

/// The end `ac/DIGEST` of a key, if it has one.
fn action(key: &Key) -> Option<&str> {
    let text = key.as_str();
    let (folder, digest) = text.rsplit_once('/')?;
    let before = folder.strip_suffix("ac")?;
    let is_folder = before.is_empty() || before.ends_with('/');
    (is_folder && message::is_digest(digest)).then(|| &text[before.len()..])
}

/// Whether all blobs of a result are here. What is no result, or too long, is not looked through.
async fn is_whole(
    gateway: &Gateway,
    names: &[Key],
    key: &Key,
    end: &str,
) -> Result<bool, DiskError> {
    let result = gateway.disk.read(key, LONGEST).await?;
    let Some(needs) = result.and_then(|result| message::of_result(&result)) else {
        return Ok(true);
    };
    let mut blobs = in_cas(names, end, &needs.blobs);
    for tree in &in_cas(names, end, &needs.trees) {
        let found = match gateway.blob(tree).await {
            Err(DiskError::Store(store::Error::Missing)) => return Ok(false),
            there => there?.0,
        };
        let files = gateway.disk.read(found, LONGEST).await?;
        let files = files.and_then(|files| message::of_tree(&files));
        blobs.extend(in_cas(names, end, &files.unwrap_or_default()));
    }
    are_here(gateway, blobs).await
}

/// For each of the digests, where its blob may be; `end` is the end of all `names`.
fn in_cas(names: &[Key], end: &str, digests: &[String]) -> Vec<Vec<Key>> {
    let digests = digests.iter().map(|digest| format!("cas/{digest}"));
    let places = digests.map(|blob| {
        let names = names.iter();
        names.filter_map(|name| name.beside(end, &blob)).collect()
    });
    places.collect()
}

/// Whether each blob is in one of its places.
async fn are_here(gateway: &Gateway, mut blobs: Vec<Vec<Key>>) -> Result<bool, DiskError> {
    let mut last: Vec<Key> = Vec::new();
    blobs.retain(|places| !places.is_empty());
    while !blobs.is_empty() {
        // The next place of each that has not been found.
        let places = blobs.iter_mut();
        let asked: Vec<Key> = places.map(|places| places.remove(0)).collect();
        let missing = gateway.disk.use_all(asked.clone()).await?;
        let missing: HashSet<Key> = missing.into_iter().collect();
        let mut next = Vec::new();
        for (key, places) in asked.into_iter().zip(blobs) {
            match (missing.contains(&key), places.is_empty()) {
                (false, _) => {}
                (true, true) => last.push(key),
                (true, false) => next.push(places),
            }
        }
        blobs = next;
    }
    let Some(upstream) = &gateway.upstream else {
        for blob in &last {
            gateway.disk.note_miss(blob);
        }
        return Ok(last.is_empty());
    };
    if !last.iter().all(Key::is_path) {
        return Ok(false);
    }
    let fetched = timeout(PATIENCE, fetch(upstream, last)).await;
    Ok(fetched.unwrap_or(false))
}

/// Brings all of these here, if the upstream has them.
async fn fetch(upstream: &Arc<Upstream>, missing: Vec<Key>) -> bool {
    let mut missing = missing.into_iter();
    let mut fetches = JoinSet::new();
    loop {
        while fetches.len() < FETCHES
            && let Some(blob) = missing.next()
        {
            let upstream = Arc::clone(upstream);
            fetches.spawn(async move { upstream.fetch(&blob).await });
        }
        match fetches.join_next().await {
            Some(Ok(Found::Here)) => {}
            Some(Ok(Found::Nowhere) | Err(_)) => return false,
            None => return true,
        }
    }
}
