//! The recorder: stands before sccache, writes down what is compiled, and becomes sccache.
//!
//! Nobody stands in between afterwards, so that signals, exit codes and what is printed are the compiler's own. When a
//! compile has ended is told later by the times of its outputs.
//!
//! Its name is that of what it stands before: the crate `cc` has C compiled through `RUSTC_WRAPPER` only where it is
//! called `sccache`. Its path is always the same, because cargo asks a wrapper that it does not know for the compiler's
//! version once more.

use super::Error;
use crate::explain::arguments;
use crate::explain::print::{Hasher, Held, Places, Print, is_in_keys, is_in_keys_of_c};
use crate::explain::protocol::Unit;
use serde::{Deserialize, Serialize};
use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

/// The recorder's path, by which this program knows that it is called as one.
const RECORDER: &str = "SCCACHE_DOCK_RECORDER";
/// The wrapper that the recorder replaces. Where one recorded command runs inside another, there is a line for each, the
/// inner one first.
const WRAPPED: &str = "SCCACHE_DOCK_RECORDED";
/// The folders of the records, a line for each command in the same order.
const FOLDER: &str = "SCCACHE_DOCK_RECORDS";
const SETUP: &str = "setup.json";
pub(super) const RECORDS: &str = "records.jsonl";
/// Mode of what is written: nobody else reads it.
const PRIVATE: u32 = 0o600;

/// What a recorder has to know.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Setup {
    /// Key of hashes, in hexadecimal digits; empty for none that lasts.
    pub(super) key: String,
    #[serde(with = "places")]
    pub(super) places: Places,
}

mod places {
    use super::Places;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(places: &Places, to: S) -> Result<S::Ok, S::Error> {
        (&places.root, &places.cargo_home).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Places, D::Error> {
        let (root, cargo_home) = Deserialize::deserialize(from)?;
        Ok(Places { root, cargo_home })
    }
}

/// A compile as it begins.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Record {
    pub(super) unit: Unit,
    /// In microseconds since 1970.
    pub(super) start_micros: u64,
    /// The compiler as it was called, and which one a proxy would choose.
    pub(super) compiler: String,
    pub(super) toolchain: Option<String>,
    /// Absolute from here on.
    pub(super) cwd: PathBuf,
    pub(super) source: PathBuf,
    pub(super) externs: Vec<PathBuf>,
    /// Of C: where headers are looked for, and those that the command line names.
    pub(super) folders: Vec<PathBuf>,
    pub(super) included: Vec<PathBuf>,
    /// Where rustc writes which files it has read.
    pub(super) dep_info: Option<PathBuf>,
    /// Any of these tells the end.
    pub(super) outputs: Vec<PathBuf>,
}

/// The folder of one build's records, which goes with the value.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    recorder: PathBuf,
    wrapped: OsString,
}

impl Folder {
    /// Makes it, and the recorder that stands before `wrapped`, where there is none yet.
    pub(super) fn prepare(setup: &Setup, wrapped: &str) -> Result<Folder, Error> {
        let base = super::saved::folder();
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |cause| Error::Folder { path, cause }
        };
        let record = base.join("record");
        let private = |path: &Path| DirBuilder::new().recursive(true).mode(0o700).create(path);
        private(&record).map_err(failed(&record))?;
        let name = Path::new(wrapped).file_name();
        let recorder = record.join(name.unwrap_or("sccache".as_ref()));
        link(&recorder).map_err(failed(&recorder))?;
        let number = getrandom::u64().unwrap_or_default();
        let path = record.join(format!("{number:016x}"));
        private(&path).map_err(failed(&path))?;
        let folder = Folder {
            path,
            recorder,
            wrapped: wrapped.into(),
        };
        let text = serde_json::to_vec(setup).unwrap_or_default();
        let file = folder.path.join(SETUP);
        write_new(&file, &text).map_err(failed(&file))?;
        Ok(folder)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What makes cargo use the recorder.
    pub(super) fn variables(&self) -> [(&'static str, OsString); 4] {
        let recorder = self.recorder.clone().into_os_string();
        [
            ("RUSTC_WRAPPER", recorder.clone()),
            (RECORDER, recorder),
            (WRAPPED, with_outer(self.wrapped.clone(), WRAPPED)),
            (
                FOLDER,
                with_outer(self.path.clone().into_os_string(), FOLDER),
            ),
        ]
    }
}

/// `first`, then the lines that an enclosing command has put into this variable.
fn with_outer(mut first: OsString, name: &str) -> OsString {
    if let Some(rest) = std::env::var_os(name) {
        first.push("\n");
        first.push(rest);
    }
    first
}

/// The first line of a variable, and the others.
fn lines(name: &str) -> Option<(OsString, Option<OsString>)> {
    let value = std::env::var_os(name)?;
    let mut lines = value.as_bytes().splitn(2, |byte| *byte == b'\n');
    let mut line = || Some(OsStr::from_bytes(lines.next()?).to_owned());
    Some((line()?, line()))
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What stays in a folder of caches harms nobody.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Makes the link to this program, or leaves it.
fn link(recorder: &Path) -> io::Result<()> {
    let program = std::env::current_exe()?;
    if fs::read_link(recorder).is_ok_and(|it| it == program) {
        return Ok(());
    }
    // Another build may do the same at this time.
    let new = recorder.with_extension(format!("{}", std::process::id()));
    symlink(program, &new)?;
    fs::rename(new, recorder)
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(PRIVATE)
        .open(path)?;
    file.write_all(bytes)
}

/// What the recorders of this folder know.
pub(super) fn setup(folder: &Path) -> Setup {
    let text = fs::read(folder.join(SETUP)).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or(Setup {
        key: String::new(),
        places: Places::default(),
    })
}

/// The wrapper to become, if this program was called as the recorder.
pub fn recorded() -> Option<OsString> {
    let called = std::env::args_os().next()?;
    let recorder = std::env::var_os(RECORDER)?;
    let (wrapped, _) = lines(WRAPPED)?;
    (called == recorder).then_some(wrapped)
}

/// Writes a record and becomes `wrapped` with this program's arguments; gives why it could not.
pub fn record(wrapped: &OsStr) -> io::Error {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    // A build does not fail for what is only written down.
    let _ = write(&arguments);
    let mut command = Command::new(wrapped);
    // What comes next may be the recorder of the command around this one, which has the same name.
    for name in [WRAPPED, FOLDER] {
        if let Some((_, Some(others))) = lines(name) {
            command.env(name, others);
        }
    }
    command.args(arguments).exec()
}

fn write(arguments: &[OsString]) -> Option<()> {
    let folder = PathBuf::from(lines(FOLDER)?.0);
    let setup = fs::read(folder.join(SETUP)).ok()?;
    let setup: Setup = serde_json::from_slice(&setup).ok()?;
    let words: Option<Vec<String>> = arguments
        .iter()
        .map(|word| word.to_str().map(str::to_owned))
        .collect();
    let variables: Vec<_> = crate::client::environment().into_iter().collect();
    let cwd = std::env::current_dir().ok()?;
    let mut record = read(&words?, &variables, &cwd, &setup)?;
    record.start_micros = micros();
    let mut line = serde_json::to_vec(&record).ok()?;
    line.push(b'\n');
    let mut options = OpenOptions::new();
    let file = options.append(true).create(true).mode(PRIVATE);
    // One write: those of others do not come in between.
    file.open(folder.join(RECORDS)).ok()?.write_all(&line).ok()
}

#[expect(
    clippy::disallowed_methods,
    reason = "compared with the times of files"
)]
fn micros() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |it| u64::try_from(it.as_micros()).unwrap_or(u64::MAX))
}

/// What is compiled; `None` for what is no compile. Pure.
fn read(
    words: &[String],
    variables: &[(String, String)],
    cwd: &Path,
    setup: &Setup,
) -> Option<Record> {
    let (compiler, rest) = words.split_first()?;
    let name = Path::new(compiler).file_stem()?.to_str()?;
    let variable = |wanted: &str| {
        let found = variables.iter().find(|(name, _)| name == wanted);
        found.map(|(_, value)| value.clone())
    };
    let mut hasher = Hasher::new(key(&setup.key));
    let all = variables.iter();
    hasher.hide(all.map(|(name, value)| (name.as_str(), value.as_str())));
    let mut held = Held::default();
    let mut record = Record {
        compiler: compiler.clone(),
        toolchain: variable("RUSTUP_TOOLCHAIN"),
        cwd: cwd.to_owned(),
        ..Record::default()
    };
    // First the paths: a part of one may look like what is to be hidden.
    let short = |words: &[String], held: &mut Held| -> Vec<String> {
        let words = words.iter().map(|word| setup.places.shorten(word, held));
        hasher.shown_words(&words.collect::<Vec<_>>())
    };
    let mut print = Print::default();
    if name == "rustc" || name == "clippy-driver" {
        let found = arguments::rust(rest)?;
        let folder = cwd.join(&found.out_dir);
        let output = found.output();
        // Probes of build scripts write where they write, and are no part of the build.
        if found.out_dir.is_empty() || variable("OUT_DIR").is_some_and(|it| folder.starts_with(it))
        {
            return None;
        }
        print.flags = short(&found.flags, &mut held);
        print.features = short(&found.features, &mut held);
        let in_key = variables.iter().filter(|(name, _)| is_in_keys(name));
        for (name, value) in in_key {
            // Where it lies is told by itself.
            if name == "CARGO_HOME" {
                held.cargo_home = true;
                continue;
            }
            let short = setup.places.shorten(value, &mut held);
            print
                .variables
                .insert(name.clone(), hasher.value(name, &short));
        }
        setup.places.shorten(&cwd.display().to_string(), &mut held);
        let files = [
            ("lib", "rlib"),
            ("lib", "rmeta"),
            ("", ""),
            ("lib", "so"),
            ("lib", "a"),
        ];
        record.outputs = files
            .iter()
            .map(|(before, end)| {
                folder
                    .join(format!("{before}{output}"))
                    .with_added_extension(end)
            })
            .collect();
        record.dep_info = Some(folder.join(format!("{output}.d")));
        record.source = cwd.join(&found.source);
        record.externs = found.externs.iter().map(|it| cwd.join(it)).collect();
        record.unit = Unit {
            name: found.crate_name,
            kind: match found.crate_types.join(",") {
                kind if kind.is_empty() => "test".to_owned(),
                kind => kind,
            },
            output,
            not_cached: found.not_cached,
            ..Unit::default()
        };
    } else {
        let found = arguments::c(rest)?;
        let place = rest
            .iter()
            .position(|word| word == "-o")
            .and_then(|at| rest.get(at + 1));
        let object = match place {
            Some(path) => cwd.join(path),
            None => cwd.join(Path::new(&found.source).with_extension("o").file_name()?),
        };
        print.flags = short(&found.flags, &mut held);
        let in_key = variables.iter().filter(|(name, _)| is_in_keys_of_c(name));
        for (name, value) in in_key {
            let value = hasher.value(name, &setup.places.shorten(value, &mut held));
            print.variables.insert(name.clone(), value);
        }
        record.source = cwd.join(&found.source);
        record.folders = found.folders.iter().map(|it| cwd.join(it)).collect();
        record.included = found.included.iter().map(|it| cwd.join(it)).collect();
        record.unit = Unit {
            name: hasher.shown(&setup.places.shorten(&found.source, &mut held)),
            kind: "c".to_owned(),
            output: object.file_name()?.to_string_lossy().into_owned(),
            not_cached: found.not_cached,
            ..Unit::default()
        };
        record.outputs = vec![object];
    }
    print.root = held.root.then(|| setup.places.root.clone());
    print.cargo_home = held.cargo_home.then(|| setup.places.cargo_home.clone());
    record.unit.package = variable("CARGO_PKG_NAME").unwrap_or_default();
    record.unit.version = variable("CARGO_PKG_VERSION").unwrap_or_default();
    record.unit.print = print;
    Some(record)
}

/// A key of hexadecimal digits; another one, that is the same for all of this program's processes, where it is none.
pub(super) fn key(digits: &str) -> [u8; 32] {
    let pairs = digits.as_bytes().chunks_exact(2);
    let bytes =
        pairs.filter_map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok());
    let bytes: Vec<u8> = bytes.collect();
    bytes.try_into().unwrap_or([0; 32])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::explain::print::Value;

    fn setup() -> Setup {
        Setup {
            key: "07".repeat(32),
            places: Places {
                root: "/home/me/project".into(),
                cargo_home: "/home/me/.cargo".into(),
            },
        }
    }

    fn variables(more: &[(&str, &str)]) -> Vec<(String, String)> {
        let fixed = [
            ("CARGO_PKG_NAME", "serde"),
            ("CARGO_PKG_VERSION", "1.0.0"),
            (
                "CARGO_MANIFEST_DIR",
                "/home/me/.cargo/registry/src/x/serde-1.0.0",
            ),
            ("CARGO_REGISTRY_TOKEN", "hunter2hunter2"),
            ("CARGO_HOME", "/home/me/.cargo"),
            ("PATH", "/usr/bin"),
        ];
        let all = fixed.iter().chain(more);
        all.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    fn record(line: &str, more: &[(&str, &str)]) -> Option<Record> {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let cwd = Path::new("/home/me/.cargo/registry/src/x/serde-1.0.0");
        read(&words, &variables(more), cwd, &setup())
    }

    const LINE: &str = "rustc --crate-name serde --crate-type lib --emit=dep-info,link -C extra-filename=-01 \
                        --out-dir /home/me/project/target/debug/deps --extern x=/home/me/project/target/libx.rmeta \
                        /home/me/.cargo/registry/src/x/serde-1.0.0/src/lib.rs --cfg token=\"hunter2hunter2\"";

    #[test]
    fn compile_is_recorded_with_its_parts_and_without_secrets() {
        let record = record(LINE, &[]).unwrap();
        assert_eq!(record.unit.output, "serde-01");
        assert_eq!(record.unit.package, "serde");
        let print = &record.unit.print;
        let manifest = Value::Plain("$CARGO_HOME/registry/src/x/serde-1.0.0".into());
        assert_eq!(print.variables["CARGO_MANIFEST_DIR"], manifest);
        assert!(
            print
                .flags
                .contains(&"$CARGO_HOME/registry/src/x/serde-1.0.0/src/lib.rs".to_owned())
        );
        assert_eq!(print.cargo_home.as_deref(), Some("/home/me/.cargo"));
        assert_eq!(
            print.root, None,
            "the key of a registry's crate does not hold it"
        );
        assert!(!print.variables.contains_key("PATH"));
        let text = serde_json::to_string(&record).unwrap();
        assert!(!text.contains("hunter2"), "{text}");
        let deps = Path::new("/home/me/project/target/debug/deps");
        assert_eq!(record.dep_info, Some(deps.join("serde-01.d")));
        assert_eq!(record.outputs[0], deps.join("libserde-01.rlib"));
        assert_eq!(record.outputs[2], deps.join("serde-01"));
    }

    #[test]
    fn two_checkouts_have_one_print_but_for_their_paths() {
        let in_other = |text: &str| text.replace("/home/me/project", "/home/you/other");
        let one = record(LINE, &[("CARGO_TARGET_DIR", "/home/me/project/target")]).unwrap();
        let mut other = setup();
        other.places.root = in_other(&other.places.root);
        let words: Vec<String> = in_other(LINE).split(' ').map(str::to_owned).collect();
        let variables = variables(&[("CARGO_TARGET_DIR", "/home/you/other/target")]);
        let two = read(&words, &variables, &one.cwd, &other).unwrap();
        let (one, mut two) = (one.unit.print, two.unit.print);
        assert_ne!(one, two);
        two.root.clone_from(&one.root);
        assert_eq!(one, two);
    }

    #[test]
    fn probes_and_questions_are_not_recorded() {
        assert!(record("rustc -vV", &[]).is_none());
        let probe =
            "rustc --crate-name probe0 --crate-type lib --emit=metadata --out-dir /t/out x.rs";
        assert!(record(probe, &[("OUT_DIR", "/t/out")]).is_none());
        assert!(record("gcc -E x.c", &[]).is_none());
        let c = record(
            "gcc -O2 -c src/x.c -o /t/out/12-x.o",
            &[("OUT_DIR", "/t/out")],
        )
        .unwrap();
        assert_eq!(
            (c.unit.kind.as_str(), c.unit.output.as_str()),
            ("c", "12-x.o")
        );
        let test = "clippy-driver rustc --crate-name x --emit=link --test --out-dir o x.rs";
        assert_eq!(record(test, &[]).unwrap().unit.kind, "test");
    }

    #[test]
    fn keys_are_read_back() {
        assert_eq!(key(&"07".repeat(32)), [7; 32]);
        assert_eq!(key(""), [0; 32]);
    }
}
