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

/// A blob as a client may use it: the result of an action is missing where one of its blobs is.
///
/// # Errors
/// As [`Gateway::blob`].
pub(crate) async fn blob(gateway: &Gateway, key: &Key) -> Result<Download, DiskError> {
    let found = gateway.blob(key).await?;
    match folder_of_action(key) {
        Some(folder) if !is_whole(gateway, key, folder).await? => Err(store::Error::Missing.into()),
        Some(_) | None => Ok(found),
    }
}

/// What stands before `ac/DIGEST`, if that is the end of the key.
fn folder_of_action(key: &Key) -> Option<&str> {
    let (folder, digest) = key.as_str().rsplit_once('/')?;
    let before = folder.strip_suffix("ac")?;
    let is_folder = before.is_empty() || before.ends_with('/');
    (is_folder && message::is_digest(digest)).then_some(before)
}

/// Whether all blobs of a result are here. What is no result, or too long, is not looked through.
async fn is_whole(gateway: &Gateway, key: &Key, folder: &str) -> Result<bool, DiskError> {
    let result = gateway.disk.read(key, LONGEST).await?;
    let Some(needs) = result.and_then(|result| message::of_result(&result)) else {
        return Ok(true);
    };
    let mut blobs = in_cas(folder, &needs.blobs);
    for tree in &in_cas(folder, &needs.trees) {
        match gateway.blob(tree).await {
            Err(DiskError::Store(store::Error::Missing)) => return Ok(false),
            there => drop(there?),
        }
        let files = gateway.disk.read(tree, LONGEST).await?;
        let files = files.and_then(|files| message::of_tree(&files));
        blobs.extend(in_cas(folder, &files.unwrap_or_default()));
    }
    are_here(gateway, blobs).await
}

fn in_cas(folder: &str, digests: &[String]) -> Vec<Key> {
    let keys = digests.iter();
    keys.filter_map(|digest| Key::parse(&format!("{folder}cas/{digest}")).ok())
        .collect()
}

async fn are_here(gateway: &Gateway, blobs: Vec<Key>) -> Result<bool, DiskError> {
    let missing = gateway.disk.use_all(blobs).await?;
    let Some(upstream) = &gateway.upstream else {
        for blob in &missing {
            gateway.disk.note_miss(blob);
        }
        return Ok(missing.is_empty());
    };
    let fetched = timeout(PATIENCE, fetch(upstream, missing)).await;
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
