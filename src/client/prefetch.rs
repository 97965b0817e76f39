//! `prefetch`: brings to a fresh machine what its build will ask for, in one stream, before it asks.
//!
//! The gateway remembers in which order the last build of the same job asked for which entries. They are put where
//! sccache's level on disk has them, `a/b/KEY`, before its daemon looks there: it does so once, at its first look-up.
//!
//! Source: `src/cache/disk.rs` and `src/lru_disk_cache/mod.rs` of sccache 0.19.0.

use super::at;
use super::cargo_config;
use super::remote::{self, Remote};
use super::whence::Whence;
use crate::base::human::{bytes, count};
use crate::exit;
use crate::explain::protocol::{Labels, Prefetch, Prefetched};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io::{self, BufWriter, Read, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What sccache itself calls files that it has not finished, and removes.
const UNFINISHED: &str = ".sccachetmp";
/// Digits of a key.
const DIGITS: usize = 64;
/// Most bytes to bring, if nobody says otherwise.
pub(crate) const MAX_BYTES: u64 = 2 << 30;
/// Bytes read at a time from the network.
const BUFFER: usize = 256 << 10;

/// Arguments of `prefetch`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub whence: Whence,
    /// Maximum bytes to download: 500M, 2G
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "2G")]
    pub max_size: u64,
    /// URL at which this client reaches the gateway [default: SCCACHE_WEBDAV_ENDPOINT]
    #[arg(long, value_name = "URL")]
    pub endpoint: Option<String>,
}

fn size(text: &str) -> Result<u64, String> {
    let (digits, unit) = match text.trim().to_ascii_uppercase() {
        text if text.ends_with('K') => (text, 10),
        text if text.ends_with('M') => (text, 20),
        text if text.ends_with('G') => (text, 30),
        text => (text, 0),
    };
    let number: Result<u64, _> = digits.trim_end_matches(['K', 'M', 'G']).parse();
    let bytes = number.ok().and_then(|it| it.checked_mul(1 << unit));
    bytes.ok_or_else(|| "write it as 500M or 2G".to_owned())
}

/// Why nothing was brought.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no place for it.
    #[error(
        "cannot prefetch: this client has no level on disk, neither SCCACHE_DIR nor a chain that begins with disk\n\
         hint: eval the output of sccache-dock client-env without --no-disk in this shell"
    )]
    NoDisk,
    /// It would not be looked at.
    #[error(
        "cannot prefetch: sccache's daemon runs already at {0}, and it looks at its disk only once\n\
         hint: sccache --stop-server, then prefetch, then build"
    )]
    Running(String),
    /// The gateway.
    #[error("{0}")]
    Remote(String),
    /// The stream ended early.
    #[error(
        "cannot read from the cache: {0}\nhint: what has come is used; the build asks for the rest"
    )]
    Stream(io::Error),
    /// The client's folder.
    #[error("cannot write to \"{}\": {cause}\nhint: see whether its disk is full", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
}

/// What was brought.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Brought {
    labels: Labels,
    entries: Vec<Entry>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    /// As the gateway names it.
    key: String,
    bytes: u64,
    /// Of its file, in nanoseconds; sccache sets another time when it uses it.
    modified: i64,
}

/// Brings what there is, and says how much it was.
///
/// # Errors
/// There is no place for it, or no gateway.
pub fn run(args: &Args) -> Result<u8, Error> {
    let (environment, root) = surroundings();
    let labels = args.whence.labels(&environment, &root);
    let said = fetch(
        &environment,
        &labels,
        args.max_size,
        args.endpoint.as_deref(),
    )?;
    // Whoever has closed it does not want it.
    let _ = writeln!(io::stdout(), "{said}");
    Ok(exit::OK)
}

/// What cargo's compilers would see here, and the checkout.
fn surroundings() -> (BTreeMap<String, String>, PathBuf) {
    let environment = super::environment();
    let cwd = std::env::current_dir().unwrap_or_default();
    let home = cargo_config::home(&environment);
    let config = cargo_config::Config::load(&cwd, home.as_deref());
    let root = at::checkout_around(&cwd).unwrap_or(cwd);
    (config.over(&environment), root)
}

/// Brings what there is for a build with these labels; says how much it was.
#[expect(
    clippy::disallowed_methods,
    reason = "a command of its own, which says how long it took"
)]
pub(crate) fn fetch(
    environment: &BTreeMap<String, String>,
    labels: &Labels,
    max_bytes: u64,
    endpoint: Option<&str>,
) -> Result<String, Error> {
    let folder = folder(environment).ok_or(Error::NoDisk)?;
    if let Some(address) = running(environment) {
        return Err(Error::Running(address));
    }
    let begin = Instant::now();
    let failed = |cause: remote::Error| Error::Remote(cause.to_string());
    let remote = remote::find(environment, endpoint).map_err(failed)?;
    let brought = bring(&remote, &folder, labels, max_bytes)?;
    let sum: u64 = brought.entries.iter().map(|it| it.bytes).sum();
    let number = brought.entries.len() as u64;
    // Without it, nobody says which of them were used.
    let _ = remember(&folder, &brought);
    Ok(match number {
        0 => "nothing to prefetch: no build of this job has asked for anything yet that is still there".to_owned(),
        _ => format!(
            "prefetched {} entries, {}, in {:.1} s",
            count(number),
            bytes(sum),
            begin.elapsed().as_secs_f64()
        ),
    })
}

/// Where this client's level on disk is.
fn folder(environment: &BTreeMap<String, String>) -> Option<PathBuf> {
    let set = |name: &str| environment.get(name).filter(|it| !it.is_empty());
    let first = set("SCCACHE_MULTILEVEL_CHAIN").and_then(|it| it.split(',').next());
    let folder = set("SCCACHE_DIR").map(PathBuf::from)?;
    (first.map(str::trim) == Some("disk")).then_some(folder)
}

/// Where the client's daemon answers, if it does.
fn running(environment: &BTreeMap<String, String>) -> Option<String> {
    let socket = environment
        .get("SCCACHE_SERVER_UDS")
        .filter(|it| !it.is_empty())?;
    let answers = UnixStream::connect(socket).is_ok();
    answers.then(|| socket.clone())
}

fn bring(
    remote: &Remote,
    folder: &Path,
    labels: &Labels,
    max_bytes: u64,
) -> Result<Brought, Error> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|cause| Error::Write {
            path: folder.to_owned(),
            cause,
        })?;
    let room = nix::sys::statvfs::statvfs(folder);
    let room = room.map_or(u64::MAX, |it| {
        it.blocks_available() * it.fragment_size() / 2
    });
    let request = Prefetch {
        labels: labels.clone(),
        max_bytes: max_bytes.min(room),
        listed: false,
    };
    let body = remote.without_limit().send("/api/prefetch", &request);
    let body = body.map_err(|cause| Error::Remote(cause.to_string()))?;
    let mut stream = io::BufReader::with_capacity(BUFFER, body.into_reader());
    let mut brought = Brought {
        labels: labels.clone(),
        entries: Vec::new(),
    };
    while let Some((key, length)) = head(&mut stream).map_err(Error::Stream)? {
        let mut body = (&mut stream).take(length);
        match place(folder, &key) {
            Some(path) if !path.exists() => {
                let modified = write(&path, &mut body, length)?;
                brought.entries.push(Entry {
                    key,
                    bytes: length,
                    modified,
                });
            }
            // It is there already, or its name is none of sccache's.
            Some(_) | None => drop(io::copy(&mut body, &mut io::sink()).map_err(Error::Stream)?),
        }
    }
    Ok(brought)
}

/// The key and the length of the next entry; `None` at the end.
fn head(stream: &mut impl Read) -> io::Result<Option<(String, u64)>> {
    let mut length = [0; 2];
    match stream.read(&mut length[..1])? {
        0 => return Ok(None),
        _ => stream.read_exact(&mut length[1..])?,
    }
    let mut key = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut key)?;
    let mut bytes = [0; 8];
    stream.read_exact(&mut bytes)?;
    let key = String::from_utf8(key).map_err(io::Error::other)?;
    Ok(Some((key, u64::from_be_bytes(bytes))))
}

/// Where sccache has the entry of a key.
fn place(folder: &Path, key: &str) -> Option<PathBuf> {
    let digits = key.rsplit('/').next()?;
    let is_key = digits.len() == DIGITS
        && digits
            .bytes()
            .all(|it| matches!(it, b'0'..=b'9' | b'a'..=b'f'));
    is_key.then(|| folder.join(&digits[..1]).join(&digits[1..2]).join(digits))
}

/// Writes an entry whole or not at all; gives the time of its file.
fn write(path: &Path, body: &mut impl Read, length: u64) -> Result<i64, Error> {
    let failed = |cause| Error::Write {
        path: path.to_owned(),
        cause,
    };
    let folder = path.parent().unwrap_or(path);
    fs::create_dir_all(folder).map_err(failed)?;
    let name = format!("{UNFINISHED}-dock-{}", std::process::id());
    let new = folder.join(name);
    let mut file = BufWriter::new(File::create(&new).map_err(failed)?);
    let mut rest = length;
    let mut piece = vec![0; BUFFER.min(usize::try_from(length).unwrap_or(BUFFER)).max(1)];
    let outcome = loop {
        if rest == 0 {
            break Ok(());
        }
        match body.read(&mut piece) {
            Ok(0) => break Err(Error::Stream(io::ErrorKind::UnexpectedEof.into())),
            Ok(read) => {
                rest -= read as u64;
                if let Err(cause) = file.write_all(&piece[..read]) {
                    break Err(failed(cause));
                }
            }
            Err(cause) => break Err(Error::Stream(cause)),
        }
    };
    let outcome = outcome.and_then(|()| {
        file.flush().map_err(failed)?;
        fs::rename(&new, path).map_err(failed)?;
        modified(path).map_err(failed)
    });
    if outcome.is_err() {
        let _ = fs::remove_file(&new);
    }
    outcome
}

fn modified(path: &Path) -> io::Result<i64> {
    let metadata = fs::metadata(path)?;
    Ok(metadata.mtime().saturating_mul(1_000_000_000) + metadata.mtime_nsec())
}

fn file(folder: &Path) -> PathBuf {
    let name = blake3::hash(folder.as_os_str().as_encoded_bytes()).to_hex();
    let ours = super::build::folder().join("prefetched");
    ours.join(format!("{}.json", &name[..16]))
}

fn remember(folder: &Path, brought: &Brought) -> io::Result<()> {
    let path = file(folder);
    let ours = path.parent().unwrap_or(folder);
    DirBuilder::new().recursive(true).mode(0o700).create(ours)?;
    fs::write(path, serde_json::to_vec(brought)?)
}

/// Which of the entries that were brought for this build it has used. To be asked once.
pub(crate) fn used(environment: &BTreeMap<String, String>, labels: &Labels) -> Option<Prefetched> {
    let folder = folder(environment)?;
    let path = file(&folder);
    let brought: Brought = serde_json::from_slice(&fs::read(&path).ok()?).ok()?;
    if brought.labels != *labels {
        return None;
    }
    let _ = fs::remove_file(path);
    let mut found = Prefetched::default();
    for entry in brought.entries {
        let place = place(&folder, &entry.key);
        let now = place.and_then(|path| modified(&path).ok());
        found.bytes += entry.bytes;
        match now {
            Some(now) if now != entry.modified => found.used.push(entry.key),
            Some(_) | None => found.unused.push(entry.key),
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        assert_eq!(size("500M"), Ok(500 << 20));
        assert_eq!(size("2g"), Ok(2 << 30));
        assert_eq!(size("17"), Ok(17));
        for wrong in ["", "x", "2GB", "99999999999G", "-1"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn entries_are_placed_where_sccache_has_them() {
        let digits = "ab".repeat(32);
        let at = |key: &str| place(Path::new("/c"), key);
        let expected = Some(PathBuf::from(format!("/c/a/b/{digits}")));
        assert_eq!(at(&format!("a/b/a/{digits}")), expected);
        assert_eq!(at(&format!("team/x/a/b/a/{digits}")), expected);
        for key in ["", "cas/x", "../../etc/passwd", &digits.to_uppercase()] {
            assert_eq!(at(key), None, "{key}");
        }
    }

    #[test]
    fn stream_is_taken_apart_and_an_early_end_is_noticed() {
        let mut stream = [&3_u16.to_be_bytes()[..], b"key", &5_u64.to_be_bytes()].concat();
        stream.extend(b"hello");
        let mut all = &stream[..];
        assert_eq!(head(&mut all).unwrap(), Some(("key".to_owned(), 5)));
        assert_eq!(all, b"hello");
        assert_eq!(head(&mut &b""[..]).unwrap(), None);
        for cut in 1..13 {
            assert!(head(&mut &stream[..cut]).is_err(), "{cut}");
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b/x");
        assert!(write(&path, &mut &b"hel"[..], 5).is_err());
        assert!(!path.exists());
        assert_eq!(fs::read_dir(folder.path().join("a/b")).unwrap().count(), 0);
        write(&path, &mut &b"hello"[..], 5).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"hello");
    }

    #[test]
    fn only_a_chain_that_begins_with_the_disk_has_a_place() {
        let at = |chain: &str| {
            let pairs = [("SCCACHE_DIR", "/c"), ("SCCACHE_MULTILEVEL_CHAIN", chain)];
            let environment = pairs.map(|(name, value)| (name.to_owned(), value.to_owned()));
            folder(&environment.into())
        };
        assert_eq!(at("disk,webdav"), Some("/c".into()));
        assert_eq!(at("webdav"), None);
        assert_eq!(at(""), None);
        assert_eq!(folder(&BTreeMap::new()), None);
    }
}
