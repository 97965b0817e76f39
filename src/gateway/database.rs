//! What outlives the gateway: traffic by the minute and by the hour, builds, and what is known of compiles. One file,
//! in redb: a crash loses the last transaction at most, never the file.
//!
//! ```text
//! minutes, hours    time -> what was asked of the cache
//! builds, details   id -> a build's report, without and with its compiles
//! prints            fingerprint's id -> fingerprint, what became of it
//! identities        what is compiled -> ids of its fingerprints, the latest first
//! ages              time of last use, id -> nothing: the oldest fingerprints go first
//! results           key's id -> fingerprint's id, fate
//! orders            repository, job, branch -> keys in the order in which builds ask for them
//! ```
//!
//! Builds of guests (see [`Partition`]) have tables of their own: whatever they report, and however often, nothing of the
//! others' goes for it. Everything is bounded. Calls block: they belong on a thread that may.

mod file;
mod orders;
mod whose;

use self::file::{bytes_of, decode, encode, open_file, point_of};
pub use self::orders::{Asked, Order};
pub use self::whose::Whose;
use crate::contract::paths;
use crate::explain::decide::{Earlier, Fate};
use crate::explain::print::Print;
use crate::explain::report::Report;
use crate::gateway::history::{Point, Range};
use crate::store::{Removal, RemovalCause};
use redb::{
    Database as File, ReadableDatabase, ReadableTable, ReadableTableMetadata, Table,
    TableDefinition, WriteTransaction,
};
use serde::{Deserialize, Serialize};
use std::path::Path;

type Id = [u8; 16];

const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const MINUTES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("minutes");
const HOURS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("hours");
const RESULTS: TableDefinition<'_, &Id, &[u8]> = TableDefinition::new("results");

/// What is known of builds.
struct Tables {
    builds: TableDefinition<'static, &'static str, &'static [u8]>,
    details: TableDefinition<'static, &'static str, &'static [u8]>,
    prints: TableDefinition<'static, &'static Id, &'static [u8]>,
    identities: TableDefinition<'static, &'static Id, &'static [u8]>,
    ages: TableDefinition<'static, (u64, &'static Id), ()>,
    orders: TableDefinition<'static, &'static str, &'static [u8]>,
}

const OWNERS: Tables = Tables {
    builds: TableDefinition::new("builds"),
    details: TableDefinition::new("details"),
    prints: TableDefinition::new("prints"),
    identities: TableDefinition::new("identities"),
    ages: TableDefinition::new("ages"),
    orders: TableDefinition::new("orders"),
};

const GUESTS: Tables = Tables {
    builds: TableDefinition::new("guests_builds"),
    details: TableDefinition::new("guests_details"),
    prints: TableDefinition::new("guests_prints"),
    identities: TableDefinition::new("guests_identities"),
    ages: TableDefinition::new("guests_ages"),
    orders: TableDefinition::new("guests_orders"),
};

/// Whose builds remember something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// What tells it from others.
    pub name: String,
    /// They write only to a branch, such as a pull request's, or nothing at all.
    pub is_guest: bool,
}

impl Partition {
    fn tables(&self) -> &'static Tables {
        match self.is_guest {
            true => &GUESTS,
            false => &OWNERS,
        }
    }
}

/// Name of the file, in the store's folder.
pub const FILE: &str = paths::HISTORY;
/// Fingerprints of one thing.
const VARIANTS: usize = 12;
/// Builds that are listed, and those of them whose compiles are kept.
const BUILDS_KEPT: u64 = 2000;
const DETAILS_KEPT: u64 = 100;
/// Longest text of a build's compiles.
const LONGEST_DETAIL: usize = 4 << 20;
/// Longest fingerprint, as text.
const LONGEST_PRINT: usize = 64 << 10;
/// One fingerprint for so many bytes of the budget, within bounds: about a 250th of it, on disk.
const BUDGET_PER_PRINT: u64 = 1 << 20;
const PRINTS_KEPT: (u64, u64) = (4000, 100_000);

/// Why it cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Error(#[from] redb::Error);

macro_rules! from_redb {
    ($($error:ident),*) => {$(
        impl From<redb::$error> for Error {
            fn from(error: redb::$error) -> Error {
                Error(error.into())
            }
        }
    )*};
}
from_redb!(
    DatabaseError,
    TransactionError,
    TableError,
    StorageError,
    CommitError
);

type Result<T> = std::result::Result<T, Error>;

/// The file.
#[derive(Debug)]
pub struct Database {
    file: File,
    prints: u64,
}

/// A fingerprint and what is known of its result.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Known {
    print: Print,
    identity: Id,
    seen: u64,
    #[serde(default)]
    compile_ms: Option<u64>,
    /// The key's id.
    #[serde(default)]
    result: Option<Id>,
    /// Why it was not stored.
    #[serde(default)]
    refused: Option<String>,
}

/// What is known of a key.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Stored {
    print: Id,
    compile_ms: Option<u64>,
    #[serde(default)]
    fate: Fate,
}

/// One compile, to be remembered.
#[derive(Debug, Clone, Default)]
pub struct Learned {
    /// What is compiled.
    pub identity: String,
    pub print: Print,
    /// The key's id, if it is known.
    pub result: Option<Id>,
    /// How long it took, where it was compiled.
    pub compile_ms: Option<u64>,
    /// Why it was not stored.
    pub refused: Option<String>,
    /// The key is in a namespace to which the build writes.
    pub is_own: bool,
}

impl Database {
    /// Opens the file in the store's folder, and begins a new one beside one that cannot be read.
    pub fn open(folder: &Path, budget: u64) -> Result<Database> {
        let file = open_file(&folder.join(FILE))?;
        if file.begin_read()?.open_table(GUESTS.orders).is_err() {
            let write = file.begin_write()?;
            write.open_table(META)?;
            write.open_table(MINUTES)?;
            write.open_table(HOURS)?;
            write.open_table(RESULTS)?;
            for tables in [&OWNERS, &GUESTS] {
                write.open_table(tables.builds)?;
                write.open_table(tables.details)?;
                write.open_table(tables.prints)?;
                write.open_table(tables.identities)?;
                write.open_table(tables.ages)?;
                write.open_table(tables.orders)?;
            }
            write.commit()?;
        }
        let (least, most) = PRINTS_KEPT;
        Ok(Database {
            file,
            prints: (budget / BUDGET_PER_PRINT).clamp(least, most),
        })
    }

    /// Begins a transaction after which a crash costs the next start no look at the whole file.
    fn begin_write(&self) -> Result<WriteTransaction> {
        let mut write = self.file.begin_write()?;
        write.set_quick_repair(true);
        Ok(write)
    }

    /// A value that is made once: 32 random bytes.
    pub fn secret(&self) -> Result<[u8; 32]> {
        const NAME: &str = "key";
        let read = self.file.begin_read()?;
        let found = read.open_table(META)?.get(NAME)?;
        if let Some(key) = found.and_then(|key| key.value().try_into().ok()) {
            return Ok(key);
        }
        let mut key = [0; 32];
        getrandom::fill(&mut key).map_err(|cause| redb::Error::Io(std::io::Error::other(cause)))?;
        let write = self.begin_write()?;
        write.open_table(META)?.insert(NAME, key.as_slice())?;
        write.commit()?;
        Ok(key)
    }

    /// What was asked of the cache, by stretches of a range, the oldest first.
    pub fn points(&self, range: Range) -> Result<Vec<(u64, Point)>> {
        let read = self.file.begin_read()?;
        let table = read.open_table(table_of(range))?;
        let mut points = Vec::new();
        for row in table.iter()? {
            let (at, point) = row?;
            points.extend(point_of(point.value()).map(|point| (at.value(), point)));
        }
        Ok(points)
    }

    /// Writes stretches of both ranges, forgets what is older than they reach, and keeps the sums since the first start.
    pub fn write_points(
        &self,
        stretches: &[(Range, Vec<(u64, Point)>)],
        sums: &Lifetime,
    ) -> Result<()> {
        let write = self.begin_write()?;
        for (range, points) in stretches {
            let mut table = write.open_table(table_of(*range))?;
            for (at, point) in points {
                table.insert(at, bytes_of(point).as_slice())?;
            }
            let newest = points.last().map_or(0, |(at, _)| *at);
            let oldest = newest.saturating_sub(range.stretches() as u64);
            table.retain_in(..oldest, |_, _| false)?;
        }
        let sums = encode(sums);
        write
            .open_table(META)?
            .insert("lifetime", sums.as_slice())?;
        write.commit()?;
        Ok(())
    }

    /// The sums since the first start.
    pub fn lifetime(&self) -> Result<Option<Lifetime>> {
        let read = self.file.begin_read()?;
        let found = read.open_table(META)?.get("lifetime")?;
        Ok(found.and_then(|sums| decode(sums.value())))
    }

    /// Earlier compiles of the same thing, and how long the one with this fingerprint takes.
    pub fn earlier(
        &self,
        partition: &Partition,
        identity: &str,
        print: &Print,
    ) -> Result<(Vec<Earlier>, Option<u64>)> {
        let (read, tables) = (self.file.begin_read()?, partition.tables());
        let (prints, results) = (read.open_table(tables.prints)?, read.open_table(RESULTS)?);
        let ids = read.open_table(tables.identities)?.get(&id_of(identity))?;
        let ids = ids.map(|ids| ids.value().to_vec()).unwrap_or_default();
        let mut earlier = Vec::new();
        let mut took = None;
        let own = print.id(identity);
        for id in ids.chunks_exact(16).filter_map(|id| Id::try_from(id).ok()) {
            let known = prints.get(&id)?;
            let Some(known) = known.and_then(|known| decode::<Known>(known.value())) else {
                continue;
            };
            let stored = match known.result {
                Some(result) => results.get(&result)?.and_then(|it| decode(it.value())),
                None => None,
            };
            let fate = match (stored, known.refused) {
                (Some(Stored { fate, .. }), _) => fate,
                (None, Some(cause)) => Fate::NotStored { cause },
                (None, None) => Fate::Unknown,
            };
            if id == own {
                took = known.compile_ms;
            }
            earlier.push(Earlier {
                print: known.print,
                unix_seconds: known.seen,
                fate,
            });
        }
        Ok((earlier, took))
    }

    /// How long a key's compile takes, and which fingerprint it has.
    pub fn result(&self, key: &Id) -> Result<Option<(Option<u64>, Id)>> {
        let read = self.file.begin_read()?;
        let found = read.open_table(RESULTS)?.get(key)?;
        let found = found.and_then(|found| decode::<Stored>(found.value()));
        Ok(found.map(|found| (found.compile_ms, found.print)))
    }

    /// Notes what became of blobs, as far as their keys are known.
    pub fn note_removals(&self, removals: &[Removal], budget: u64) -> Result<()> {
        if removals.is_empty() {
            return Ok(());
        }
        let write = self.begin_write()?;
        {
            let mut results = write.open_table(RESULTS)?;
            for removal in removals {
                let found = results.get(&removal.id)?;
                let Some(mut stored) = found.and_then(|found| decode::<Stored>(found.value()))
                else {
                    continue;
                };
                let at = removal.unix_seconds;
                stored.fate = match removal.cause {
                    RemovalCause::Budget => Fate::Evicted { at, budget },
                    RemovalCause::Quota => Fate::Quota { at },
                    RemovalCause::Age => Fate::Age { at },
                    RemovalCause::Purge => Fate::Purged { at },
                    RemovalCause::Broken => Fate::Broken { at },
                };
                results.insert(&removal.id, encode(&stored).as_slice())?;
            }
        }
        write.commit()?;
        Ok(())
    }

    /// Remembers the compiles of a build, its report, and the keys that it asked for.
    pub fn learn(
        &self,
        partition: &Partition,
        learned: Vec<Learned>,
        report: &Report,
        asked: Option<Asked<'_>>,
    ) -> Result<()> {
        let (write, tables) = (self.begin_write()?, partition.tables());
        {
            let mut prints = write.open_table(tables.prints)?;
            let mut identities = write.open_table(tables.identities)?;
            let mut ages = write.open_table(tables.ages)?;
            let mut results = write.open_table(RESULTS)?;
            for one in learned {
                let (id, identity) = (one.print.id(&one.identity), id_of(&one.identity));
                let before = prints.get(&id)?.and_then(|it| decode::<Known>(it.value()));
                let mut known = before.unwrap_or_default();
                ages.remove((known.seen, &id))?;
                known.print = one.print;
                (known.identity, known.seen) = (identity, report.ended_unix_seconds);
                known.compile_ms = one.compile_ms.or(known.compile_ms);
                if let Some(result) = one.result {
                    if let Some(old) = known.result.filter(|old| *old != result) {
                        forget(&mut results, &old, &id)?;
                    }
                    let before = results.get(&result)?;
                    let before = before.and_then(|it| decode::<Stored>(it.value()));
                    // What is another's to write is another's to know.
                    if one.is_own || before.is_none() {
                        let took = before.and_then(|it| it.compile_ms);
                        let stored = Stored {
                            print: id,
                            compile_ms: known.compile_ms.or(took),
                            fate: Fate::Unknown,
                        };
                        results.insert(&result, encode(&stored).as_slice())?;
                    }
                    (known.result, known.refused) = (Some(result), None);
                } else if one.refused.is_some() {
                    known.refused = one.refused;
                }
                let text = encode(&known);
                if text.len() > LONGEST_PRINT {
                    continue;
                }
                prints.insert(&id, text.as_slice())?;
                ages.insert((known.seen, &id), ())?;
                let ids = identities.get(&identity)?;
                let ids = ids.map(|ids| ids.value().to_vec()).unwrap_or_default();
                let others = ids.chunks_exact(16).filter(|other| *other != id);
                let mut ids = id.to_vec();
                ids.extend(others.take(VARIANTS - 1).flatten());
                identities.insert(&identity, ids.as_slice())?;
            }
            while ages.len()? > self.prints {
                let Some(oldest) = ages.pop_first()?.map(|(oldest, _)| *oldest.value().1) else {
                    break;
                };
                let gone = prints
                    .remove(&oldest)?
                    .and_then(|it| decode::<Known>(it.value()));
                let Some(gone) = gone else { continue };
                if let Some(result) = gone.result {
                    forget(&mut results, &result, &oldest)?;
                }
                let ids = identities.get(&gone.identity)?;
                let ids = ids.map(|ids| ids.value().to_vec()).unwrap_or_default();
                let left = ids.chunks_exact(16).filter(|other| **other != oldest);
                let left: Vec<u8> = left.flatten().copied().collect();
                match left.is_empty() {
                    true => drop(identities.remove(&gone.identity)?),
                    false => drop(identities.insert(&gone.identity, left.as_slice())?),
                }
            }
        }
        {
            let mut builds = write.open_table(tables.builds)?;
            builds.insert(&*report.build, encode(&report.head()).as_slice())?;
            // Their ids are in the order of time.
            while builds.len()? > BUILDS_KEPT {
                builds.pop_first()?;
            }
            let mut details = write.open_table(tables.details)?;
            let text = encode(report);
            if text.len() <= LONGEST_DETAIL {
                details.insert(&*report.build, text.as_slice())?;
            }
            while details.len()? > DETAILS_KEPT {
                details.pop_first()?;
            }
        }
        if let Some(asked) = asked {
            orders::write(&write, partition, &asked, report.ended_unix_seconds)?;
        }
        write.commit()?;
        Ok(())
    }

    /// The last builds, the latest first, without their compiles.
    pub fn builds(&self, whose: Whose<'_>, most: usize) -> Result<Vec<Report>> {
        let read = self.file.begin_read()?;
        let mut found = Vec::<Report>::new();
        for tables in [&OWNERS, &GUESTS] {
            let mut of_table = 0;
            for row in read.open_table(tables.builds)?.iter()?.rev() {
                if of_table == most {
                    break;
                }
                let report = decode::<Report>(row?.1.value()).filter(|it| whose.has(it));
                of_table += usize::from(report.is_some());
                found.extend(report);
            }
        }
        // Their ids are in the order of time.
        found.sort_by(|one, other| other.build.cmp(&one.build));
        found.truncate(most);
        Ok(found)
    }

    /// One build, with its compiles if they are still kept.
    pub fn build(&self, whose: Whose<'_>, id: &str) -> Result<Option<Report>> {
        let read = self.file.begin_read()?;
        for tables in [&OWNERS, &GUESTS] {
            let found = match read.open_table(tables.details)?.get(id)? {
                Some(found) => Some(found),
                None => read.open_table(tables.builds)?.get(id)?,
            };
            if let Some(found) = found {
                return Ok(decode(found.value()).filter(|it| whose.has(it)));
            }
        }
        Ok(None)
    }
}

/// Sums since the file was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lifetime {
    /// Since when.
    pub since_unix_seconds: u64,
    #[serde(flatten)]
    pub sums: Point,
}

/// Forgets a result that is known by this fingerprint.
fn forget(
    results: &mut Table<'_, &'static Id, &'static [u8]>,
    result: &Id,
    print: &Id,
) -> Result<()> {
    let stored = results.get(result)?;
    let stored = stored.and_then(|it| decode::<Stored>(it.value()));
    if stored.is_some_and(|stored| stored.print == *print) {
        results.remove(result)?;
    }
    Ok(())
}

fn id_of(identity: &str) -> Id {
    let mut id = [0; 16];
    id.copy_from_slice(&blake3::hash(identity.as_bytes()).as_bytes()[..16]);
    id
}

fn table_of(range: Range) -> TableDefinition<'static, u64, &'static [u8]> {
    match range {
        Range::Minutes | Range::Day => MINUTES,
        Range::Quarter => HOURS,
    }
}

#[cfg(test)]
mod tests;
