//! After a build: the records, completed by what its files say.

use super::daemon::Sccache;
use super::headers::Headers;
use super::record::{RECORDS, Record};
use crate::explain::print::{Hasher, Held, Places, Value, digest};
use crate::explain::protocol::Unit;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::SystemTime;

/// Times of files are coarser than the clock, and behind it.
const COARSE_MICROS: u64 = 20_000;
/// Longest file that is hashed.
const LONGEST: u64 = 1 << 30;
/// Source files of one crate that are looked at.
const SOURCES: usize = 2000;

/// The compiles of a build.
#[derive(Debug, Default)]
pub(super) struct Collected {
    pub(super) units: Vec<Unit>,
    /// Source files of each, by which somebody may ask.
    pub(super) files: Vec<Vec<String>>,
}

/// Reads the records in `folder` of a build that began at a time in an environment.
pub(super) fn collect(
    folder: &Path,
    began: SystemTime,
    sccache: &Sccache,
    environment: &BTreeMap<String, String>,
) -> Collected {
    let text = fs::read_to_string(folder.join(RECORDS)).unwrap_or_default();
    let setup = super::record::setup(folder);
    let records = text
        .lines()
        .filter_map(|line| serde_json::from_str::<Record>(line).ok());
    let began = micros(began);
    let mut hasher = Hasher::new(super::record::key(&setup.key));
    let all = environment.iter();
    hasher.hide(all.map(|(name, value)| (name.as_str(), value.as_str())));
    let mut known = Known {
        hasher,
        places: setup.places,
        files: BTreeMap::new(),
        headers: Headers::default(),
        compilers: BTreeMap::new(),
    };
    let version = sccache.version();
    let mut collected = Collected::default();
    for record in records {
        let (mut unit, files) = known.complete(record, began);
        unit.print.sccache.clone_from(&version);
        collected.units.push(unit);
        collected.files.push(files);
    }
    let mut number: BTreeMap<String, usize> = BTreeMap::new();
    for unit in &collected.units {
        *number.entry(unit.name.clone()).or_default() += 1;
    }
    for unit in &mut collected.units {
        unit.needs
            .retain(|name, _| number.get(name).is_some_and(|number| *number > 1));
    }
    collected
}

fn micros(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |it| u64::try_from(it.as_micros()).unwrap_or(u64::MAX))
}

/// What was found out already.
struct Known {
    hasher: Hasher,
    places: Places,
    files: BTreeMap<PathBuf, Option<String>>,
    headers: Headers,
    compilers: BTreeMap<(String, Option<String>), String>,
}

impl Known {
    fn complete(&mut self, record: Record, began: u64) -> (Unit, Vec<String>) {
        let mut unit = record.unit.clone();
        let start = record.start_micros;
        let times = record.outputs.iter().filter_map(|path| written(path));
        let times = times.filter(|(time, _)| *time + COARSE_MICROS >= start);
        let end = times.max_by_key(|(time, is_exact)| (*is_exact, *time));
        let end = end.map(|(time, _)| time);
        unit.start_ms = start.saturating_sub(began) / 1000;
        unit.took_ms = end.map_or(0, |end| end.saturating_sub(start) / 1000);
        // No output of this compile: it failed.
        unit.exit = Some(i32::from(end.is_none()));
        unit.print.compiler = self.compiler(&record);
        let mut by_name: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for path in &record.externs {
            let stem = path.file_stem().unwrap_or_default().to_string_lossy();
            let stem = stem.strip_prefix("lib").unwrap_or(&stem);
            // The hash in its name says what is in the key anyway.
            let name = stem.rsplit_once('-').map_or(stem, |(name, _)| name);
            let outputs = unit.needs.entry(name.to_owned()).or_default();
            outputs.push(stem.to_owned());
            if let Some(digest) = self.file(path) {
                by_name.entry(name.to_owned()).or_default().push(digest);
            }
        }
        let digests = by_name.into_iter().map(|(name, mut digests)| {
            digests.sort();
            (name, digests.join("+"))
        });
        unit.print.dependencies = digests.collect();
        let mut held = Held {
            root: unit.print.root.is_some(),
            cargo_home: unit.print.cargo_home.is_some(),
        };
        let dep_info = record
            .dep_info
            .as_ref()
            .and_then(|path| fs::read_to_string(path).ok());
        let dep_info = dep_info.unwrap_or_default();
        let mut sources: Vec<PathBuf> = sources(&dep_info).map(|it| record.cwd.join(it)).collect();
        if sources.is_empty() {
            sources.push(record.source.clone());
        }
        if unit.kind == "c" {
            sources.extend(record.included.iter().cloned());
            let headers = self.headers.of(&sources, &record.folders);
            sources.extend(headers);
        }
        sources.sort();
        let mut files = Vec::new();
        for path in sources.into_iter().take(SOURCES) {
            let name = path.display().to_string();
            files.push(name.clone());
            let is_of_registry =
                !self.places.cargo_home.is_empty() && path.starts_with(&self.places.cargo_home);
            if is_of_registry && unit.kind != "c" {
                continue;
            }
            if let Some(digest) = self.file(&path) {
                // Where it lies is no part of the key.
                let name = self.places.shorten(&name, &mut Held::default());
                unit.print
                    .sources
                    .insert(generated(&name).to_owned(), digest);
            }
        }
        for (name, value) in env_deps(&dep_info) {
            let value = value.unwrap_or("unset");
            let short = self.places.shorten(value, &mut held);
            let value = match self.hasher.value(name, &short) {
                Value::Plain(text) => Value::Plain(generated(&text).to_owned()),
                hash => hash,
            };
            let name = format!("{name} (read by env!)");
            unit.print.variables.insert(name, value);
        }
        if held.root {
            unit.print.root = Some(self.places.root.clone());
        }
        if held.cargo_home {
            unit.print.cargo_home = Some(self.places.cargo_home.clone());
        }
        (unit, files)
    }

    /// The digest of a file's content.
    fn file(&mut self, path: &Path) -> Option<String> {
        if let Some(known) = self.files.get(path) {
            return known.clone();
        }
        let is_short = fs::metadata(path).is_ok_and(|it| it.is_file() && it.len() <= LONGEST);
        let found = is_short.then(|| fs::read(path).ok()).flatten();
        let found = found.map(|bytes| digest(&bytes));
        self.files.insert(path.to_owned(), found.clone());
        found
    }

    /// What the compiler says of itself, in a line.
    fn compiler(&mut self, record: &Record) -> String {
        let asked = (record.compiler.clone(), record.toolchain.clone());
        if let Some(known) = self.compilers.get(&asked) {
            return known.clone();
        }
        let rust = record.unit.kind != "c";
        let mut command = Command::new(&record.compiler);
        command
            .arg(if rust { "-vV" } else { "--version" })
            .current_dir(&record.cwd)
            .stdin(Stdio::null())
            .stderr(Stdio::null());
        if let Some(toolchain) = &record.toolchain {
            command.env("RUSTUP_TOOLCHAIN", toolchain);
        }
        let said = command
            .output()
            .map(|it| String::from_utf8_lossy(&it.stdout).into_owned());
        let said = said.unwrap_or_default();
        let line = said.lines().next().unwrap_or_default();
        let host = said.lines().find_map(|line| line.strip_prefix("host: "));
        let line = match host {
            Some(host) => format!("{line}, {host}"),
            None => line.to_owned(),
        };
        // What it says of itself is no part of the keys of C, its bytes are.
        let bytes = (!rust).then(|| self.file(&program(record)?)).flatten();
        let line = match bytes {
            Some(digest) => format!("{line}, {digest}"),
            None => line,
        };
        self.compilers.insert(asked, line.clone());
        line
    }
}

/// The compiler that was called.
fn program(record: &Record) -> Option<PathBuf> {
    if record.compiler.contains('/') {
        return Some(record.cwd.join(&record.compiler));
    }
    let path = std::env::var_os("PATH")?;
    let mut programs = std::env::split_paths(&path).map(|it| it.join(&record.compiler));
    programs.find(|it| it.is_file())
}

/// When a compile's output was written, and whether that is exact. Cargo sets the time of metadata back to the begin of
/// the compile, and does so when it has ended.
fn written(path: &Path) -> Option<(u64, bool)> {
    let metadata = fs::metadata(path).ok()?;
    if path.extension().is_some_and(|end| end == "rmeta") {
        let (seconds, nanos) = (metadata.ctime(), metadata.ctime_nsec());
        let changed = seconds.checked_mul(1_000_000)?.checked_add(nanos / 1000)?;
        return Some((u64::try_from(changed).ok()?, false));
    }
    Some((micros(metadata.modified().ok()?), true))
}

/// The files of dependency information.
fn sources(text: &str) -> impl Iterator<Item = String> {
    // Each has a rule of its own, without prerequisites.
    let rules = text.lines().filter(|line| !line.starts_with('#'));
    rules.filter_map(|line| Some(line.strip_suffix(':')?.replace("\\ ", " ")))
}

/// Variables that the sources read.
fn env_deps(text: &str) -> impl Iterator<Item = (&str, Option<&str>)> {
    let lines = text
        .lines()
        .filter_map(|line| line.strip_prefix("# env-dep:"));
    lines.map(|line| match line.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (line, None),
    })
}

/// The path of a generated file without the folder of its build script, whose name changes with the compiler.
fn generated(path: &str) -> &str {
    path.rsplit_once("/out/").map_or(path, |(_, rest)| rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependency_information_is_read() {
        let text = "/t/libx.rlib: src/lib.rs src/a\\ b.rs\n\n/t/x.d: src/lib.rs\n\nsrc/lib.rs:\nsrc/a\\ b.rs:\n\n\
                    # env-dep:OUT_DIR=/t/out\n# env-dep:NOT_SET\n";
        assert_eq!(
            sources(text).collect::<Vec<_>>(),
            ["src/lib.rs", "src/a b.rs"]
        );
        let found: Vec<_> = env_deps(text).collect();
        assert_eq!(found, [("OUT_DIR", Some("/t/out")), ("NOT_SET", None)]);
        assert_eq!(
            generated("$ROOT/target/debug/build/x-01/out/gen.rs"),
            "gen.rs"
        );
        assert_eq!(generated("$ROOT/src/lib.rs"), "$ROOT/src/lib.rs");
    }
}
