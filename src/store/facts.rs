//! What is known of a blob without reading it: where it is, and who has written it when.

use super::scrub::{SLOTS, end_of};
use super::{Error, Store, WrittenBy, digest_of};
use crate::contract::key::Key;
use std::time::{Duration, SystemTime};

/// Most blobs that one question finds.
const MOST: usize = 1000;

/// A blob's own account of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Its key.
    pub key: Key,
    /// Bytes of its body.
    pub bytes: u64,
    /// When it was written.
    pub written: SystemTime,
    /// By whom.
    pub by: WrittenBy,
}

impl Store {
    /// What is known of one blob.
    ///
    /// # Errors
    /// It is missing, or cannot be read.
    pub fn facts(&self, key: &Key) -> Result<Facts, Error> {
        self.size(key)?;
        let path = self.inner.path_of(key, &digest_of(key));
        let end = end_of(&path).ok_or(Error::Missing)?;
        Ok(Facts {
            key: key.clone(),
            bytes: end.trailer.body_len,
            written: SystemTime::UNIX_EPOCH + Duration::from_micros(end.trailer.written_micros),
            by: end.by,
        })
    }

    /// The blobs of this entry in all namespaces, by key. Of groups each blob is looked at, because they keep no list
    /// of their members.
    ///
    /// # Errors
    /// One cannot be read.
    pub fn find(&self, entry: &str) -> Result<Vec<Facts>, Error> {
        let (names, groups) = {
            let state = self.inner.state();
            let all = state.namespaces.numbered();
            let all = all.map(|(number, name)| (number, name.to_string()));
            all.partition::<Vec<_>, _>(|(_, name)| !self.inner.groups.is_one(name))
        };
        let mut keys: Vec<Key> = Key::from_canonical(entry).into_iter().collect();
        let in_layer = |(_, name): &(u16, String)| Key::in_layer(name, entry).ok();
        keys.extend(names.iter().filter_map(in_layer));
        for (number, _) in groups {
            let slots = (0..).map(|chunk| chunk * SLOTS..(chunk + 1) * SLOTS);
            for found in slots.map_while(|slots| self.inner.live_in(slots, Some(number))) {
                let paths = found
                    .iter()
                    .map(|found| self.inner.path_of_item(&found.item));
                let found = paths.filter_map(|path| Key::from_canonical(&end_of(&path)?.key).ok());
                keys.extend(
                    found.filter(|key| Key::in_layer(key.namespace(), entry).as_ref() == Ok(key)),
                );
                self.inner.let_others_in();
            }
        }
        keys.sort_by(|one, other| one.as_str().cmp(other.as_str()));
        keys.dedup();
        let mut all = Vec::new();
        for key in keys.iter().take(MOST) {
            match self.facts(key) {
                Ok(facts) => all.push(facts),
                Err(Error::Missing) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(all)
    }
}
