//! On real files; those that need a file system of their own mount a tmpfs, and say so when they may not.

mod concurrency;
mod disorder;
mod locks;
mod namespaces;
mod open_files;
mod policies;
mod restarts;
mod space;
mod written_by;

use super::lru::{Presence, Reach};
use super::*;
use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;
use tempfile::TempDir;

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

#[expect(
    clippy::disallowed_methods,
    reason = "tests bound their waiting by the real clock"
)]
fn clock() -> Instant {
    Instant::now()
}

#[track_caller]
fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = clock();
    while !condition() {
        assert!(
            start.elapsed() < Duration::from_secs(30),
            "waited in vain: {what}"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn start(dir: &Path, budget_bytes: u64) -> Store {
    start_with(dir, budget_bytes, Policies::default())
}

fn start_with(dir: &Path, budget_bytes: u64, policies: Policies) -> Store {
    Store::open(Options {
        dir: dir.to_owned(),
        budget_bytes,
        policies,
    })
    .unwrap()
}

/// Opens the store and waits for the end of its scan.
#[track_caller]
fn open(dir: &Path, budget_bytes: u64) -> Store {
    let store = start(dir, budget_bytes);
    wait_until("the scan to end", || !store.usage().indexing);
    store
}

fn key(text: &str) -> Key {
    Key::parse(text).unwrap()
}

#[track_caller]
fn put(store: &Store, name: &str, body: &[u8]) -> bool {
    let mut writer = store.put(&key(name), Some(body.len() as u64)).unwrap();
    writer.write(body).unwrap();
    writer.commit().unwrap()
}

/// The body, or nothing on a miss; any other error fails the test.
#[track_caller]
fn body(store: &Store, name: &str) -> Option<Vec<u8>> {
    match store.get(&key(name)) {
        Ok(blob) => {
            let mut bytes = vec![0; usize::try_from(blob.len).unwrap()];
            blob.file.read_exact_at(&mut bytes, 0).unwrap();
            Some(bytes)
        }
        Err(Error::Missing) => None,
        Err(error) => panic!("{name}: {error}"),
    }
}

fn file_of(store: &Store, name: &str) -> PathBuf {
    store.inner.path_of(&key(name), &digest_of(&key(name)))
}

/// The files below `dir` and the bytes on disk that they take, as `du` counts.
fn files(dir: &Path) -> (usize, u64) {
    let (mut count, mut bytes) = (0, 0);
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let metadata = entry.metadata().unwrap();
        if metadata.is_dir() {
            let (below_count, below_bytes) = files(&entry.path());
            count += below_count;
            bytes += below_bytes;
        } else if entry.file_name() != "ceiling" && entry.file_name() != "scrub" {
            count += 1;
            bytes += metadata.blocks() * 512;
        }
    }
    (count, bytes)
}

/// The index agrees with the disk to the byte, and nothing is under way.
#[track_caller]
fn assert_exact(store: &Store, dir: &Path) {
    let both = || {
        let usage = store.usage();
        let (count, bytes) = files(dir);
        let indexed = (usage.entries, usage.bytes, usage.reserved_bytes);
        (indexed, (count as u64, bytes, 0))
    };
    // The housekeeper may just be replacing the file of its mark.
    let start = clock();
    while both().0 != both().1 && start.elapsed() < Duration::from_secs(2) {
        std::thread::sleep(Duration::from_millis(2));
    }
    let (indexed, on_disk) = both();
    assert_eq!(indexed, on_disk);
    let usage = store.usage();
    assert!(usage.bytes <= usage.budget_bytes);
    let sums = usage
        .namespaces
        .iter()
        .fold((0, 0), |sums, n| (sums.0 + n.entries, sums.1 + n.bytes));
    assert_eq!(sums, (usage.entries, usage.bytes));
}

/// A body that differs for every name, so that a mix-up is seen.
fn sample(name: &str, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new()
        .update(name.as_bytes())
        .finalize_xof()
        .fill(&mut bytes);
    bytes
}

#[test]
fn blob_comes_back_as_it_was_put() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path(), 64 * MIB);
    for (name, len) in [
        ("empty", 0),
        ("one", 1),
        ("block", 4096),
        ("team/big", 3 * MIB as usize + 7),
    ] {
        let bytes = sample(name, len);
        assert_eq!(body(&store, name), None);
        assert!(!put(&store, name, &bytes));
        assert_eq!(body(&store, name).as_ref(), Some(&bytes));
        assert_eq!(store.size(&key(name)).unwrap(), len as u64);
        assert!(put(&store, name, &bytes), "it replaces the older blob");
    }
    let age = now()
        .duration_since(store.get(&key("one")).unwrap().modified)
        .unwrap();
    assert!(age < Duration::from_secs(60));
    assert_exact(&store, dir.path());
}

#[test]
fn body_of_unknown_length_is_stored() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path(), 16 * MIB);
    let bytes = sample("x", 5 * MIB as usize);
    let mut writer = store.put(&key("x"), None).unwrap();
    for chunk in bytes.chunks(10_000) {
        writer.write(chunk).unwrap();
    }
    assert!(store.usage().reserved_bytes >= 5 * MIB);
    writer.commit().unwrap();
    assert_eq!(body(&store, "x"), Some(bytes));
    assert_exact(&store, dir.path());
}

#[test]
fn blob_is_invisible_until_commit_and_gone_without_it() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path(), MIB);
    let mut writer = store.put(&key("x"), Some(10)).unwrap();
    writer.write(b"01234").unwrap();
    assert_eq!(body(&store, "x"), None);
    assert!(store.usage().reserved_bytes > 0);
    drop(writer);
    assert_eq!(body(&store, "x"), None);
    assert_eq!(files(dir.path()), (0, 0));
    assert_exact(&store, dir.path());
}

#[test]
fn lying_length_is_refused() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path(), MIB);
    let mut writer = store.put(&key("x"), Some(10)).unwrap();
    writer.write(b"012345678").unwrap();
    assert!(matches!(
        writer.commit(),
        Err(Error::WrongLength {
            announced: 10,
            received: 9
        })
    ));
    let mut writer = store.put(&key("x"), Some(10)).unwrap();
    writer.write(b"0123456789").unwrap();
    assert!(matches!(
        writer.write(b"x"),
        Err(Error::WrongLength {
            announced: 10,
            received: 11
        })
    ));
    assert!(
        writer.commit().is_err(),
        "a writer that failed stays failed"
    );
    assert_eq!(body(&store, "x"), None);
    assert_exact(&store, dir.path());
}

/// What is had at once of one blob.
fn resident(store: &Store, name: &str) -> Result<Option<Blob>, Error> {
    let found = store.get_resident(&[key(name)]);
    found.map(|(place, blob)| {
        assert_eq!(place, 0);
        blob
    })
}

#[test]
fn first_key_that_is_there_is_found_among_any_number() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path(), 64 * MIB);
    put(&store, "k/11", &sample("k/11", 100));
    put(&store, "k/19", &sample("k/19", 100));
    let keys: Vec<Key> = (0..20).map(|number| key(&format!("k/{number}"))).collect();
    for (range, place) in [(0..20, 11), (11..20, 0), (10..12, 1), (12..20, 7)] {
        let found = store.get_resident(&keys[range.clone()]).unwrap();
        assert_eq!(found.0, place, "{range:?}");
    }
    for keys in [&keys[..11], &keys[12..19], &[]] {
        assert!(matches!(store.get_resident(keys), Err(Error::Missing)));
    }
}

#[test]
fn blob_in_memory_is_had_at_once_and_no_other() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path(), 64 * MIB);
    assert!(matches!(resident(&store, "a"), Err(Error::Missing)));
    let long = sample("a", 300_000);
    put(&store, "a", &long);
    // tmpfs and overlay file systems of older kernels know no reads that never wait.
    if let Some(blob) = resident(&store, "a").unwrap() {
        assert_eq!(blob.len, 300_000);
        let mut found = vec![0; long.len()];
        assert!(page_cache::read(&blob.file, &mut found, 0).unwrap());
        assert!(found == long);
        let beyond = &mut [0; 1000];
        assert!(!page_cache::read(&blob.file, beyond, 300_000).unwrap());
    } else {
        say("this file system has no reads that never wait");
    }
    // A start has compared no checksum yet: the long way does, once.
    drop(store);
    let store = open(dir.path(), 64 * MIB);
    assert!(matches!(resident(&store, "a"), Ok(None)));
    assert_eq!(body(&store, "a"), Some(long));
    fs::remove_file(file_of(&store, "a")).unwrap();
    assert!(matches!(resident(&store, "a"), Ok(None)));
    assert_eq!(body(&store, "a"), None);
    assert!(matches!(resident(&store, "a"), Err(Error::Missing)));
}

#[test]
fn deleted_blob_is_gone() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path(), MIB);
    put(&store, "a", b"x");
    store.delete(&key("a")).unwrap();
    assert_eq!(body(&store, "a"), None);
    assert!(matches!(store.delete(&key("a")), Err(Error::Missing)));
    assert_exact(&store, dir.path());
}

/// A tmpfs of its own; unmounted when dropped.
struct Tmpfs {
    dir: TempDir,
}

impl Tmpfs {
    /// `None`, and a line on the test's output, where mounting is not allowed.
    fn mount(size: u64) -> Option<Tmpfs> {
        let dir = TempDir::new().unwrap();
        let mount = |target: &Path| {
            Command::new("mount")
                .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
                .arg(target)
                .output()
        };
        match mount(dir.path()) {
            Ok(output) if output.status.success() => Some(Tmpfs { dir }),
            _ => {
                say("skipped: this test needs the right to mount a tmpfs");
                None
            }
        }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn remount(&self, option: &str) {
        let output = Command::new("mount")
            .args(["-o", &format!("remount,{option}")])
            .arg(self.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    /// Bytes in use, by one look at the whole file system.
    fn used(&self) -> u64 {
        let stat = nix::sys::statvfs::statvfs(self.path()).unwrap();
        (stat.blocks() - stat.blocks_free()) * stat.fragment_size()
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount")
            .arg("--lazy")
            .arg(self.path())
            .output();
    }
}

#[expect(
    clippy::print_stdout,
    reason = "a test says what it measured or why it was skipped"
)]
fn say(line: &str) {
    println!("{line}");
}

#[test]
fn names_on_disk_are_stable() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path(), MIB);
    let digits = format!("abc{}", "0".repeat(61));
    let below = |name: &str| {
        file_of(&store, name)
            .strip_prefix(dir.path())
            .unwrap()
            .to_owned()
    };
    let name = blake3::hash(format!("a/b/c/{digits}").as_bytes()).to_hex();
    assert_eq!(
        below(&format!("/a/b/c/{digits}")),
        Path::new("blobs/@default")
            .join(&name[..2])
            .join(&name[..32])
    );
    let folders: BTreeSet<PathBuf> = ["team/x", "x y/z"]
        .iter()
        .map(|name| below(name).iter().nth(1).unwrap().into())
        .collect();
    assert_eq!(folders, ["team", "x%20y"].map(PathBuf::from).into());
}
