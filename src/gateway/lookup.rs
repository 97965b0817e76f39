//! Blobs by all the names that a client means: looked up in one namespace after the other, then in the upstream.
//!
//! The upstream knows a blob by the last name alone, that of the namespace which the client trusts most and which
//! others share. What is written to another one, such as a pull request's, stays here.

use super::Gateway;
use super::disk::{DiskError, Download};
use super::metrics::{Namespace, Protocol};
use super::upstream::{Found, Upstream};
use crate::contract::key::Key;
use crate::store;
use std::sync::Arc;

impl Gateway {
    /// A blob of our store or, where it is missing here, of the upstream; with the name by which it was found.
    ///
    /// # Errors
    /// It is missing under all of `keys`, or the store failed.
    pub(crate) async fn blob<'a>(&self, keys: &'a [Key]) -> Result<(&'a Key, Download), DiskError> {
        match self.disk.get_first(keys).await {
            Err(DiskError::Store(store::Error::Missing)) => {}
            Err(fault) => return Err(fault),
            Ok((key, blob)) => {
                if let Some(upstream) = &self.upstream {
                    upstream.used(key);
                }
                return Ok((key, blob));
            }
        }
        let missing = || DiskError::Store(store::Error::Missing);
        // It counts once, where it was last.
        let lost = keys.iter().find_map(|key| self.disk.note_miss(key));
        let (first, last) = keys.first().zip(keys.last()).ok_or_else(missing)?;
        self.journal.note_lost(first, lost);
        match self.upstream_of(last) {
            Some(upstream) if upstream.fetch(last).await == Found::Here => {
                Ok((last, self.disk.get(last).await?))
            }
            Some(_) | None => Err(missing()),
        }
    }

    /// Bytes of a blob that is here.
    ///
    /// # Errors
    /// It is missing under all of `keys`, or the store failed.
    pub(crate) async fn size_of(&self, keys: &[Key]) -> Result<u64, DiskError> {
        for key in keys {
            match self.disk.size(key).await {
                Err(DiskError::Store(store::Error::Missing)) => {}
                found => return found,
            }
        }
        Err(store::Error::Missing.into())
    }

    /// The upstream, if it has a place for this key.
    pub(super) fn upstream_of(&self, key: &Key) -> Option<&Arc<Upstream>> {
        self.upstream.as_ref().filter(|_| key.is_path())
    }

    /// Tells the upstream of a blob of so many bytes that a client has stored here. The client reads it by one of `names`.
    pub(crate) async fn pass_on(&self, key: &Key, names: &[Key], bytes: u64) {
        if names.last() == Some(key)
            && let Some(upstream) = self.upstream_of(key)
        {
            upstream.offer(key, bytes).await;
        }
    }

    /// Counts a blob that a client has asked for in vain.
    pub(crate) fn missed(&self, keys: &[Key], protocol: Protocol) {
        let name = keys.first().map_or("", Key::namespace);
        let name = self.disk.home(name);
        self.metrics.missed(protocol, name, self.disk.knows(name));
    }

    /// The counters of a key's namespace, or of the group that it is in.
    pub(crate) fn of_namespace(&self, key: &Key) -> Arc<Namespace> {
        self.metrics.namespace(self.disk.home(key.namespace()))
    }
}
