//! The namespaces in the store, each with a number that its entries carry. Their number is limited, as is the part that
//! one token may create; an empty namespace gives up its number as soon as another needs it.

use super::{Error, MAX_NAMESPACES, State};
use crate::contract::key;
use std::collections::HashMap;
use std::sync::Arc;

/// Maximum number of namespaces created by one named token.
pub(super) const MOST_OF_ONE: usize = MAX_NAMESPACES / 8;

/// The namespaces seen so far.
#[derive(Debug, Default)]
pub(super) struct Namespaces {
    all: Vec<Namespace>,
    numbers: HashMap<String, u16>,
}

#[derive(Debug)]
struct Namespace {
    name: Arc<str>,
    folder: Arc<str>,
    /// The token that created it since the start.
    maker: Option<Arc<str>>,
    /// Writes in flight.
    writers: u32,
}

impl Namespaces {
    pub(super) fn number(&self, name: &str) -> Option<u16> {
        self.numbers.get(name).copied()
    }

    /// Returns the number of a namespace that is needed for a reason other than a write.
    pub(super) fn intern(&mut self, name: &str) -> Option<u16> {
        let known = self.number(name);
        known.or_else(|| self.add(name, None))
    }

    fn add(&mut self, name: &str, maker: Option<&str>) -> Option<u16> {
        let number = u16::try_from(self.all.len())
            .ok()
            .filter(|number| usize::from(*number) < MAX_NAMESPACES)?;
        self.all.push(Namespace::new(name, maker));
        self.numbers.insert(name.to_owned(), number);
        Some(number)
    }

    /// Gives the number of an empty namespace to another one. Returns the folder that is no longer needed.
    fn replace(&mut self, number: u16, name: &str, maker: Option<&str>) -> Arc<str> {
        let place = &mut self.all[usize::from(number)];
        let before = std::mem::replace(place, Namespace::new(name, maker));
        self.numbers.remove(&*before.name);
        self.numbers.insert(name.to_owned(), number);
        before.folder
    }

    pub(super) fn folder(&self, number: u16) -> Arc<str> {
        Arc::clone(&self.all[usize::from(number)].folder)
    }

    /// Records the start of a write.
    pub(super) fn enter(&mut self, number: u16) {
        self.all[usize::from(number)].writers += 1;
    }

    /// Records the end of a write.
    pub(super) fn leave(&mut self, number: u16) {
        self.all[usize::from(number)].writers -= 1;
    }

    /// All namespaces with their numbers.
    pub(super) fn numbered(&self) -> impl Iterator<Item = (u16, &Arc<str>)> {
        (0..).zip(self.all.iter().map(|one| &one.name))
    }

    fn made_by(&self, maker: &str) -> usize {
        let makers = self.all.iter().filter_map(|one| one.maker.as_deref());
        makers.filter(|one| *one == maker).count()
    }
}

impl Namespace {
    fn new(name: &str, maker: Option<&str>) -> Namespace {
        Namespace {
            name: name.into(),
            folder: key::folder_name(name).into(),
            maker: maker.map(Into::into),
            writers: 0,
        }
    }
}

impl State {
    /// The number of the namespace to which `maker`, a token with a limit, is about to write. If another namespace gave
    /// up this number, its folder is returned too; the caller may remove it if it is empty.
    pub(super) fn number_for(
        &mut self,
        name: &str,
        maker: Option<&str>,
    ) -> Result<(u16, Option<Arc<str>>), Error> {
        let names = &mut self.namespaces;
        if let Some(number) = names.number(name) {
            return Ok((number, None));
        }
        let share_is_used_up = maker.is_some_and(|maker| names.made_by(maker) >= MOST_OF_ONE);
        if !share_is_used_up && let Some(number) = names.add(name, maker) {
            return Ok((number, None));
        }
        let free = (0..).zip(&self.namespaces.all).find(|(number, one)| {
            let is_its_own = one.maker.as_deref() == maker;
            (is_its_own || !share_is_used_up) && one.writers == 0 && self.is_empty(*number)
        });
        let Some((number, _)) = free else {
            return Err(match share_is_used_up {
                true => Error::TooManyOfOne { limit: MOST_OF_ONE },
                false => Error::TooManyNamespaces {
                    limit: MAX_NAMESPACES,
                },
            });
        };
        if let Some(lost_hits) = self.lost_hits.get_mut(usize::from(number)) {
            *lost_hits = 0;
        }
        Ok((number, Some(self.namespaces.replace(number, name, maker))))
    }

    /// Whether the number is unused. The scan of the disk and iterations over the index hold numbers while they run.
    fn is_empty(&self, number: u16) -> bool {
        !self.indexing && self.purging.now().is_none() && self.lru.is_empty(number)
    }
}
