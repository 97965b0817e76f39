//! On real files; those that need a file system of their own mount a tmpfs, and say so when they may not.

mod locks;
mod open_files;
mod policies;
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
    let usage = store.usage();
    let (count, bytes) = files(dir);
    assert_eq!(
        (usage.entries, usage.bytes, usage.reserved_bytes),
        (count as u64, bytes, 0)
    );
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

#[test]
fn blob_larger_than_the_budget_evicts_nothing() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path(), 64 * KIB);
    put(&store, "small", b"x");
    assert!(matches!(
        store.put(&key("x"), Some(64 * KIB)),
        Err(Error::TooLarge { .. })
    ));
    assert!(matches!(
        store.put(&key("x"), Some(u64::MAX)),
        Err(Error::TooLarge { .. })
    ));
    assert_eq!(body(&store, "small"), Some(b"x".to_vec()));
    let mut writer = store.put(&key("x"), None).unwrap();
    let mut refused = false;
    for _ in 0..20 {
        refused |= matches!(writer.write(&[0; 4096]), Err(Error::TooLarge { .. }));
    }
    assert!(refused);
    drop(writer);
    assert_exact(&store, dir.path());
}

#[test]
fn least_recently_used_goes_first() {
    let dir = TempDir::new().unwrap();
    let block = open(dir.path(), MIB).inner.block;
    let store = open(dir.path(), 3 * block);
    for name in ["a", "b", "c"] {
        put(&store, name, name.as_bytes());
    }
    assert!(body(&store, "a").is_some());
    store.size(&key("b")).unwrap();
    put(&store, "d", b"d");
    let kept: Vec<&str> = ["a", "b", "c", "d"]
        .into_iter()
        .filter(|name| body(&store, name).is_some())
        .collect();
    assert_eq!(kept, ["a", "c", "d"], "asking for the size is no use");
    let usage = store.usage();
    assert_eq!((usage.evicted_entries, usage.evicted_bytes), (1, block));
    assert_exact(&store, dir.path());
}

#[test]
fn writes_that_hold_the_whole_budget_leave_no_space() {
    let dir = TempDir::new().unwrap();
    let block = open(dir.path(), MIB).inner.block;
    let store = open(dir.path(), 4 * block);
    put(&store, "a", b"a");
    let held = store.put(&key("b"), Some(2 * block)).unwrap();
    assert_eq!(body(&store, "a"), Some(b"a".to_vec()));
    assert!(matches!(
        store.put(&key("c"), Some(block)),
        Err(Error::NoSpace)
    ));
    assert_eq!(
        body(&store, "a"),
        Some(b"a".to_vec()),
        "nothing was evicted in vain, and reads go on"
    );
    drop(held);
    put(&store, "c", &sample("c", block as usize));
    assert_exact(&store, dir.path());
}

#[test]
fn half_written_blob_is_never_served() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path(), 64 * MIB);
    let bytes = sample("x", 100);
    put(&store, "len/0", &bytes);
    let whole = fs::metadata(file_of(&store, "len/0")).unwrap().len();
    let names: Vec<String> = (0..whole).map(|len| format!("len/{len}")).collect();
    let cut_all = |store: &Store| {
        for (len, name) in (0..).zip(&names) {
            put(store, name, &bytes[..]);
            let file = OpenOptions::new()
                .write(true)
                .open(file_of(store, name))
                .unwrap();
            file.set_len(len).unwrap();
        }
    };
    cut_all(&store);
    for name in &names {
        let resident = store.get_resident(&key(name));
        assert!(matches!(resident, Ok(None)), "{name} of {whole}");
        assert_eq!(body(&store, name), None, "{name} of {whole}");
        assert!(!file_of(&store, name).exists());
    }
    assert_eq!(store.usage().flaws.sum(), whole);
    assert_exact(&store, dir.path());
    cut_all(&store);
    drop(store);
    let store = open(dir.path(), 64 * MIB);
    for name in &names {
        assert!(
            matches!(store.size(&key(name)), Err(Error::Missing)),
            "{name} of {whole}"
        );
        assert_eq!(body(&store, name), None, "{name} of {whole}");
    }
    assert_exact(&store, dir.path());
}

#[test]
fn blob_in_memory_is_had_at_once_and_no_other() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path(), 64 * MIB);
    assert!(matches!(store.get_resident(&key("a")), Err(Error::Missing)));
    let long = sample("a", 300_000);
    put(&store, "a", &long);
    // tmpfs and overlay file systems of older kernels know no reads that never wait.
    if let Some(blob) = store.get_resident(&key("a")).unwrap() {
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
    assert!(matches!(store.get_resident(&key("a")), Ok(None)));
    assert_eq!(body(&store, "a"), Some(long));
    fs::remove_file(file_of(&store, "a")).unwrap();
    assert!(matches!(store.get_resident(&key("a")), Ok(None)));
    assert_eq!(body(&store, "a"), None);
    assert!(matches!(store.get_resident(&key("a")), Err(Error::Missing)));
}

#[test]
fn housekeeper_keeps_some_room_and_the_high_water_mark_ahead() {
    let dir = TempDir::new().unwrap();
    let budget = 32 * MIB;
    let store = open(dir.path(), budget);
    for n in 0..600 {
        put(&store, &format!("ns/{n}"), &sample("x", 100_000));
        let taken = store.inner.state().lru.taken();
        assert!(taken <= budget && taken <= eviction::read_high_water_mark(dir.path(), budget));
    }
    wait_until("room to be made", || {
        let usage = store.usage();
        usage.bytes + usage.reserved_bytes <= budget - budget / 128
    });
    assert!(
        store.usage().bytes > budget - budget / 16,
        "no more than some"
    );
    assert!(body(&store, "ns/599").is_some() && body(&store, "ns/0").is_none());
    assert_exact(&store, dir.path());
}

#[test]
fn changed_byte_is_never_served() {
    let dir = TempDir::new().unwrap();
    let mut store = open(dir.path(), 64 * MIB);
    let bytes = sample("x", 20);
    put(&store, "flip/0", &bytes);
    let file_len = fs::metadata(file_of(&store, "flip/0")).unwrap().len() as usize;
    let names: Vec<String> = (0..file_len).map(|at| format!("flip/{at:03}")).collect();
    store.delete(&key("flip/0")).unwrap();
    for name in &names {
        put(&store, name, &bytes);
    }
    // Whoever wrote the body itself trusts it; the next one to open the store does not.
    let paths: Vec<PathBuf> = names.iter().map(|name| file_of(&store, name)).collect();
    drop(store);
    for (at, path) in paths.iter().enumerate() {
        let mut content = fs::read(path).unwrap();
        content[at] ^= 0x20;
        fs::write(path, content).unwrap();
    }
    store = open(dir.path(), 64 * MIB);
    for name in &names {
        assert_eq!(body(&store, name), None, "{name}");
    }
    assert_eq!(store.usage().flaws.sum(), names.len() as u64);
    assert_exact(&store, dir.path());
}

#[test]
fn file_of_another_key_is_never_served() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path(), MIB);
    put(&store, "ns/a", b"of a");
    put(&store, "ns/b", b"of b");
    fs::copy(file_of(&store, "ns/a"), file_of(&store, "ns/b")).unwrap();
    assert_eq!(body(&store, "ns/b"), None);
    assert_eq!(body(&store, "ns/a"), Some(b"of a".to_vec()));
}

#[test]
fn stranger_in_a_blobs_place_is_a_miss_and_never_blocks() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path(), MIB);
    for name in ["link", "pipe", "folder"] {
        put(&store, name, b"x");
        fs::remove_file(file_of(&store, name)).unwrap();
    }
    std::os::unix::fs::symlink("/etc/hostname", file_of(&store, "link")).unwrap();
    nix::unistd::mkfifo(&file_of(&store, "pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs::create_dir(file_of(&store, "folder")).unwrap();
    assert_eq!(body(&store, "folder"), None);
    fs::remove_dir(file_of(&store, "folder")).unwrap();
    for name in ["link", "pipe", "folder"] {
        assert_eq!(body(&store, name), None, "{name}");
        put(&store, name, b"y");
        assert_eq!(body(&store, name), Some(b"y".to_vec()));
    }
    assert_exact(&store, dir.path());
}

#[test]
fn files_deleted_behind_our_back_are_misses() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path(), MIB);
    for name in ["a", "b", "team/c"] {
        put(&store, name, b"x");
    }
    fs::remove_file(file_of(&store, "a")).unwrap();
    assert_eq!(body(&store, "a"), None);
    fs::remove_file(file_of(&store, "b")).unwrap();
    assert!(matches!(store.delete(&key("b")), Err(Error::Missing)));
    fs::remove_dir_all(dir.path().join("blobs")).unwrap();
    assert!(matches!(store.size(&key("team/c")), Err(Error::Missing)));
    let usage = store.usage();
    assert_eq!(
        (usage.vanished_entries, usage.entries, usage.bytes),
        (3, 0, 0)
    );
    put(&store, "team/c", b"y");
    assert_eq!(body(&store, "team/c"), Some(b"y".to_vec()));
    assert_exact(&store, dir.path());
}

#[test]
fn folder_that_is_a_file_is_an_error_and_reads_go_on() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path(), MIB);
    put(&store, "team/a", b"a");
    fs::write(dir.path().join("blobs/other"), "").unwrap();
    let refused = store.put(&key("other/b"), Some(1));
    assert!(matches!(refused, Err(Error::Io(_))));
    let fault = store.usage().last_fault.unwrap();
    assert!(
        fault.message.starts_with("cannot create blob \""),
        "{}",
        fault.message
    );
    assert_eq!(body(&store, "team/a"), Some(b"a".to_vec()));
}

#[test]
fn write_whose_folder_vanishes_is_an_error_and_the_next_one_is_stored() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path(), MIB);
    let mut writer = store.put(&key("a"), Some(1)).unwrap();
    writer.write(b"a").unwrap();
    fs::remove_dir_all(dir.path().join("blobs")).unwrap();
    assert!(matches!(writer.commit(), Err(Error::Io(_))));
    assert_eq!(store.usage().reserved_bytes, 0);
    put(&store, "a", b"b");
    assert_eq!(body(&store, "a"), Some(b"b".to_vec()));
    assert_exact(&store, dir.path());
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

#[test]
fn foreign_files_are_left_alone() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path(), MIB);
    put(&store, "team/a", b"x");
    let folder = file_of(&store, "team/a").parent().unwrap().to_owned();
    drop(store);
    let blobs = dir.path().join("blobs");
    let strangers = [
        blobs.join("README"),
        blobs.join("lost+found/x"),
        blobs.join("team/zz/x"),
        folder.join("notes.txt"),
        folder.join("0123456789ABCDEF0123456789ABCDEF"),
    ];
    for file in &strangers {
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, "precious").unwrap();
    }
    let store = open(dir.path(), MIB);
    assert_eq!(body(&store, "team/a"), Some(b"x".to_vec()));
    store.purge(&Filter::default()).unwrap();
    let usage = store.usage();
    assert_eq!((usage.foreign_files, usage.entries), (5, 0));
    for file in &strangers {
        assert_eq!(fs::read_to_string(file).unwrap(), "precious");
    }
}

#[test]
fn temporary_files_of_a_crash_are_removed_by_the_next_start() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path(), MIB);
    put(&store, "a", b"x");
    let mut writer = store.put(&key("a"), Some(100_000)).unwrap();
    writer.write(&sample("x", 50_000)).unwrap();
    let folder = file_of(&store, "a").parent().unwrap().to_owned();
    let names = || -> Vec<_> {
        let entries = fs::read_dir(&folder).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    };
    let mut left = names();
    left.retain(|name| name.starts_with("new-"));
    assert_eq!(left.len(), 1);
    // As a crash leaves it: whole, and nobody's any more.
    let kept = dir.path().join("kept");
    fs::rename(folder.join(&left[0]), &kept).unwrap();
    drop((writer, store));
    fs::rename(&kept, folder.join(&left[0])).unwrap();
    let store = open(dir.path(), MIB);
    assert_eq!(names().len(), 1, "the blob");
    assert_eq!(store.usage().foreign_files, 0);
    assert_exact(&store, dir.path());
}

#[test]
fn folder_has_one_owner_at_a_time() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path(), MIB);
    let second = Store::open(Options {
        dir: dir.path().to_owned(),
        budget_bytes: MIB,
        policies: Policies::default(),
    });
    assert!(matches!(second, Err(Error::InUse { .. })));
    drop(store);
    open(dir.path(), MIB);
}

#[test]
fn restart_keeps_blobs_and_their_order() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path(), MIB);
    let block = store.inner.block;
    let names = ["d", "a", "e", "b", "c"];
    for (hours, name) in (1..).zip(names.iter().rev()) {
        put(&store, name, name.as_bytes());
        let used = now() - Duration::from_secs(3600 * hours);
        File::open(file_of(&store, name))
            .unwrap()
            .set_modified(used)
            .unwrap();
    }
    drop(store);
    // Used now, which has to reach the disk: "d" was the least recently used one.
    let store = open(dir.path(), MIB);
    assert_exact(&store, dir.path());
    assert!(body(&store, "d").is_some());
    drop(store);
    let store = open(dir.path(), 3 * block);
    let kept: Vec<&str> = names
        .into_iter()
        .filter(|name| body(&store, name).is_some())
        .collect();
    assert_eq!(kept, ["d", "b", "c"]);
    assert_exact(&store, dir.path());
}

#[test]
fn blob_used_before_the_clock_was_set_back_is_no_younger_than_others() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path(), MIB);
    put(&store, "a", b"a");
    let file = File::open(file_of(&store, "a")).unwrap();
    let later = now() + Duration::from_secs(1000 * 24 * 3600);
    file.set_times(std::fs::FileTimes::new().set_modified(later))
        .unwrap();
    drop(store);
    let store = open(dir.path(), MIB);
    put(&store, "b", b"b");
    let filter = Filter {
        older_than: Some(Duration::ZERO),
        ..Filter::default()
    };
    assert_eq!(store.purge(&filter).unwrap().entries, 2);
    assert_exact(&store, dir.path());
}

#[test]
fn time_of_writing_survives_use_and_restart() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path(), MIB);
    put(&store, "a", b"x");
    let written = store.get(&key("a")).unwrap().modified;
    File::open(file_of(&store, "a"))
        .unwrap()
        .set_modified(written - Duration::from_secs(5000))
        .unwrap();
    drop(store);
    let store = open(dir.path(), MIB);
    assert_eq!(store.get(&key("a")).unwrap().modified, written);
    assert_eq!(store.get(&key("a")).unwrap().modified, written);
}

#[test]
fn purge_takes_what_matches() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path(), MIB);
    let block = store.inner.block;
    for name in ["a", "team/a", "team/b", "other/a"] {
        put(&store, name, b"x");
    }
    let namespaces: Vec<(String, u64)> = store
        .usage()
        .namespaces
        .into_iter()
        .map(|n| (n.name, n.entries))
        .collect();
    assert_eq!(
        namespaces,
        [
            (String::new(), 1),
            ("other".to_owned(), 1),
            ("team".to_owned(), 2)
        ]
    );
    let old = now() - Duration::from_secs(3600);
    for name in ["team/a", "other/a"] {
        File::open(file_of(&store, name))
            .unwrap()
            .set_modified(old)
            .unwrap();
    }
    drop(store);
    let store = open(dir.path(), MIB);
    let filter = |minutes: Option<u64>, namespace: Option<&str>| Filter {
        older_than: minutes.map(|minutes| Duration::from_secs(60 * minutes)),
        namespace: namespace.map(str::to_owned),
        ..Filter::default()
    };
    let purge = |filter: &Filter| store.purge(filter).unwrap().entries;
    assert_eq!(purge(&filter(Some(30), Some("nobody"))), 0);
    assert_eq!(purge(&filter(Some(90), None)), 0);
    assert_eq!(
        store.purge(&filter(Some(30), Some("team"))).unwrap(),
        Purged {
            entries: 1,
            bytes: block
        }
    );
    assert_eq!(body(&store, "team/a"), None);
    assert_eq!(purge(&filter(Some(30), None)), 1);
    assert_eq!(purge(&filter(None, Some(""))), 1);
    assert_eq!(body(&store, "team/b"), Some(b"x".to_vec()));
    assert_eq!(purge(&Filter::default()), 1);
    assert_eq!(store.usage().evicted_entries, 0);
    assert_exact(&store, dir.path());
}

#[test]
fn namespaces_are_bounded_and_those_that_are_empty_make_room() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path(), 64 * MIB);
    for number in 0..MAX_NAMESPACES {
        put(&store, &format!("n{number}/x"), b"x");
    }
    let refused = |name: &str| {
        let put = store.put(&key(&format!("{name}/x")), Some(1));
        matches!(put, Err(Error::TooManyNamespaces { .. }))
    };
    assert!(refused("one-more"));
    assert_eq!(body(&store, "one-more/x"), None);
    assert!(!store.knows("one-more"));
    store.delete(&key("n7/x")).unwrap();
    let writer = store.put(&key("one-more/x"), Some(1)).unwrap();
    assert!(refused("n7"), "a write in flight holds its place");
    drop(writer);
    put(&store, "n7/x", b"y");
    assert!(refused("one-more"));
    assert_eq!(body(&store, "n7/x"), Some(b"y".to_vec()));
    let mut filter = Filter {
        namespace: Some("n8".to_owned()),
        ..Filter::default()
    };
    assert_eq!(store.purge(&filter).unwrap().entries, 1);
    put(&store, "one-more/x", b"z");
    filter.namespace = Some("one-more".to_owned());
    assert_eq!(store.purge(&filter).unwrap().entries, 1);
    assert!(!dir.path().join("blobs/n8").exists(), "nobody counts it");
    assert_exact(&store, dir.path());
}

#[test]
fn token_by_name_has_a_share_of_the_namespaces() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path(), 64 * MIB);
    let by = |token| WrittenBy::new(Lane::Webdav, Some(token));
    let write = |name: &str, token| {
        let mut writer = store.put_by(&key(&format!("{name}/x")), Some(1), by(token))?;
        writer.write(b"x")?;
        writer.commit()
    };
    for number in 0..names::MOST_OF_ONE {
        write(&format!("n{number}"), "greedy").unwrap();
    }
    assert!(matches!(
        write("one-more", "greedy"),
        Err(Error::TooManyOfOne { .. })
    ));
    write("n3", "greedy").unwrap();
    write("one-more", "modest").unwrap();
    write("one-more", "greedy").unwrap();
    for number in 0..2 * names::MOST_OF_ONE {
        write(&format!("own{number}"), "auth").unwrap();
    }
    store.delete(&key("n3/x")).unwrap();
    write("another", "greedy").unwrap();
    assert_exact(&store, dir.path());
}

#[test]
fn emptied_namespaces_make_room_for_others_at_the_next_start() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path(), 64 * MIB);
    for number in 0..MAX_NAMESPACES {
        put(&store, &format!("n{number}/x"), b"x");
    }
    let mut filter = Filter::default();
    for number in 1..MAX_NAMESPACES {
        filter.namespace = Some(format!("n{number}"));
        store.purge(&filter).unwrap();
    }
    drop(store);
    let store = open(dir.path(), 64 * MIB);
    put(&store, "one-more/x", b"x");
    assert_eq!(body(&store, "n0/x"), Some(b"x".to_vec()));
    let folders = fs::read_dir(dir.path().join("blobs")).unwrap();
    assert_eq!(folders.count(), 2);
    assert_exact(&store, dir.path());
}

#[test]
fn writes_go_on_while_the_scan_removes_empty_folders() {
    let dir = TempDir::new().unwrap();
    for round in 0..50 {
        for number in 0..64 {
            fs::create_dir_all(dir.path().join(format!("blobs/n{number}/00"))).unwrap();
        }
        let store = start(dir.path(), 64 * MIB);
        for number in (0..64).rev() {
            put(&store, &format!("n{number}/{round}"), b"x");
        }
        wait_until("the scan to end", || !store.usage().indexing);
        store.purge(&Filter::default()).unwrap();
        assert_exact(&store, dir.path());
    }
}

#[test]
fn concurrent_writers_of_one_key_leave_one_whole_blob() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path(), 64 * MIB);
    let bodies: Vec<Vec<u8>> = (0..8)
        .map(|n| sample(&n.to_string(), 1000 + 9000 * n))
        .collect();
    let replaced = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for bytes in &bodies {
            scope.spawn(|| {
                for _ in 0..50 {
                    if put(&store, "one", bytes) {
                        replaced.fetch_add(1, Ordering::Relaxed);
                    }
                    assert!(bodies.contains(&body(&store, "one").unwrap()));
                }
            });
        }
    });
    assert_eq!(replaced.into_inner(), 8 * 50 - 1);
    assert_exact(&store, dir.path());
}

#[test]
fn writers_and_deleters_of_one_key_leave_index_and_disk_in_agreement() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path(), MIB);
    let writers = AtomicUsize::new(3);
    let deleted = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            let (store, writers, deleted) = (&store, &writers, &deleted);
            scope.spawn(move || {
                for _ in 0..400 {
                    put(store, "one", b"x");
                }
                writers.fetch_sub(1, Ordering::Relaxed);
            });
            scope.spawn(move || {
                while writers.load(Ordering::Relaxed) > 0 {
                    let done = store.delete(&key("one")).is_ok();
                    deleted.fetch_add(usize::from(done), Ordering::Relaxed);
                }
            });
        }
    });
    assert!(deleted.into_inner() > 0);
    assert_exact(&store, dir.path());
    put(&store, "one", b"y");
    assert_eq!(body(&store, "one"), Some(b"y".to_vec()));
    assert_eq!(store.usage().vanished_entries, 0);
}

#[test]
fn readers_see_whole_blobs_while_writers_evict_and_delete() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path(), 2 * MIB);
    let names: Vec<String> = (0..40).map(|n| format!("ns{}/{n}", n % 3)).collect();
    let len = |n: usize| 1 + n * 7001;
    let hits = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for thread in 0..6 {
            let (store, names, hits) = (&store, &names, &hits);
            scope.spawn(move || {
                for round in 0..300 {
                    let n = (round * 7 + thread * 13) % names.len();
                    let name = &names[n];
                    match round % 3 {
                        0 => drop(put(store, name, &sample(name, len(n)))),
                        1 if thread == 0 => drop(store.delete(&key(name))),
                        _ => {
                            if let Some(bytes) = body(store, name) {
                                assert_eq!(bytes, sample(name, len(n)));
                                hits.fetch_add(1, Ordering::Relaxed);
                            }
                        }
                    }
                }
            });
        }
    });
    let usage = store.usage();
    assert!(usage.evicted_entries > 0 && hits.into_inner() > 0);
    assert_eq!((usage.flaws.sum(), usage.vanished_entries), (0, 0));
    assert_exact(&store, dir.path());
}

#[test]
fn requests_during_the_scan_are_served_and_counted_once() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path(), 512 * MIB);
    let names: Vec<String> = (0..3000).map(|n| format!("ns/{n}")).collect();
    for name in &names {
        put(&store, name, name.as_bytes());
    }
    drop(store);
    for _ in 0..5 {
        let store = start(dir.path(), 512 * MIB);
        assert!(
            store.usage().indexing,
            "the scan was over before the first request"
        );
        for (n, name) in names.iter().enumerate().rev() {
            match n % 4 {
                0 => assert!(put(&store, name, name.as_bytes())),
                1 => store.delete(&key(name)).unwrap(),
                _ => assert_eq!(body(&store, name).as_deref(), Some(name.as_bytes())),
            }
        }
        wait_until("the scan to end", || !store.usage().indexing);
        assert_exact(&store, dir.path());
        assert_eq!(store.usage().entries, 2250);
        for name in names.iter().skip(1).step_by(4) {
            assert_eq!(body(&store, name), None, "a deleted blob came back");
            put(&store, name, name.as_bytes());
        }
    }
}

#[test]
fn store_with_20_000_blobs_serves_at_once() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path(), 1024 * MIB);
    for n in 0..20_000 {
        put(&store, &format!("ns/{n}"), b"body");
    }
    drop(store);
    let begin = clock();
    let store = start(dir.path(), 1024 * MIB);
    assert_eq!(body(&store, "ns/12345"), Some(b"body".to_vec()));
    let served = begin.elapsed();
    wait_until("the scan to end", || !store.usage().indexing);
    let known = begin.elapsed();
    assert_exact(&store, dir.path());
    assert_eq!(store.usage().entries, 20_000);
    assert!(
        served < Duration::from_millis(500) && known < Duration::from_secs(20),
        "{served:?} {known:?}"
    );
    say(&format!(
        "20,000 blobs: first hit after {served:?}, all known after {known:?}"
    ));
}

#[test]
fn dropped_store_can_be_opened_again_during_its_scan() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path(), 64 * MIB);
    for n in 0..500 {
        put(&store, &format!("ns/{n}"), b"body");
    }
    drop(store);
    for _ in 0..20 {
        drop(start(dir.path(), 64 * MIB));
    }
    assert_eq!(open(dir.path(), 64 * MIB).usage().entries, 500);
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
fn budget_holds_at_every_moment() {
    let Some(disk) = Tmpfs::mount(64 * MIB) else {
        return;
    };
    let budget = 8 * MIB;
    let empty = disk.used();
    let store = open(disk.path(), budget);
    let done = AtomicBool::new(false);
    let (most, looks) = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..8)
            .map(|thread| {
                let store = &store;
                scope.spawn(move || {
                    let bytes = sample("x", 700_000);
                    let mut refused = 0;
                    for round in 0..120 {
                        let len = (thread * 65_537 + round * 104_729) % bytes.len();
                        let length = (round % 2 == 0).then_some(len as u64);
                        let name = key(&format!("ns/{}", (thread * 31 + round) % 50));
                        let written = store.put(&name, length).and_then(|mut writer| {
                            bytes[..len]
                                .chunks(30_000)
                                .try_for_each(|chunk| writer.write(chunk))?;
                            if round % 7 == 0 {
                                Ok(false)
                            } else {
                                writer.commit()
                            }
                        });
                        match written {
                            Ok(_) => {}
                            Err(Error::NoSpace) => refused += 1,
                            Err(error) => panic!("{error}"),
                        }
                    }
                    refused
                })
            })
            .collect();
        let watcher = scope.spawn(|| {
            let (mut most, mut looks) = (0, 0);
            while !done.load(Ordering::Relaxed) {
                most = most.max(disk.used() - empty);
                looks += 1;
                std::thread::yield_now();
            }
            (most, looks)
        });
        let refused: usize = writers
            .into_iter()
            .map(|writer| writer.join().unwrap())
            .sum();
        done.store(true, Ordering::Relaxed);
        assert_eq!(refused, 0, "the writers together need less than the budget");
        watcher.join().unwrap()
    });
    say(&format!(
        "at most {most} of {budget} bytes in {looks} looks"
    ));
    assert!(
        most <= budget && most > budget / 2,
        "{most} of {budget} in {looks} looks"
    );
    assert!(store.usage().evicted_entries > 0);
    assert_exact(&store, disk.path());
}

#[test]
fn budget_holds_while_a_full_store_is_scanned() {
    let Some(disk) = Tmpfs::mount(128 * MIB) else {
        return;
    };
    let (blobs, budget) = (8000, 32 * MIB);
    let empty = disk.used();
    let mut during = 0;
    for round in 0.. {
        assert!(round < 20, "no write came during a scan");
        let store = open(disk.path(), budget);
        store.purge(&Filter::default()).unwrap();
        for n in 0..=blobs {
            put(&store, &format!("old/{n}"), b"x");
        }
        drop(store);
        let store = start(disk.path(), budget);
        for n in 0..20 {
            put(&store, &format!("new/{n}"), &sample("x", 300_000));
            during += usize::from(store.usage().indexing);
            let used = disk.used() - empty;
            // The high-water mark's own file takes a block beside the budget.
            assert!(used <= budget + store.inner.block, "{used} of {budget}");
        }
        wait_until("the scan to end", || !store.usage().indexing);
        assert_exact(&store, disk.path());
        if during >= 5 {
            break;
        }
    }
    say(&format!("{during} writes came during a scan"));
}

#[test]
fn start_expects_the_worst_without_a_high_water_mark() {
    let dir = TempDir::new().unwrap();
    assert_eq!(
        eviction::read_high_water_mark(dir.path(), MIB),
        MIB,
        "no look at the blobs is no proof that there are none"
    );
    let store = open(dir.path(), MIB);
    let known = &store.inner.high_water_mark;
    assert_eq!(known.load(std::sync::atomic::Ordering::Acquire), 0);
    put(&store, "a", &sample("a", 100_000));
    drop(store);
    let high_water_mark = eviction::read_high_water_mark(dir.path(), MIB);
    assert!(
        (100_000..200_000).contains(&high_water_mark),
        "{high_water_mark}"
    );
    for torn in ["", "1234", "x\n"] {
        fs::write(dir.path().join("ceiling"), torn).unwrap();
        assert_eq!(
            eviction::read_high_water_mark(dir.path(), MIB),
            MIB,
            "{torn:?}"
        );
    }
    drop(open(dir.path(), MIB));
    assert!(
        eviction::read_high_water_mark(dir.path(), MIB) < 200_000,
        "the scan sets it anew"
    );
}

#[test]
fn full_disk_evicts_then_refuses_and_reads_go_on() {
    let Some(disk) = Tmpfs::mount(4 * MIB) else {
        return;
    };
    let store = open(disk.path(), 64 * MIB);
    // More than fits on the disk: the store makes room by evicting, though its budget is far away.
    for n in 0..40 {
        put(&store, &format!("ns/{n}"), &sample(&n.to_string(), 200_000));
    }
    let usage = store.usage();
    assert!(usage.evicted_entries >= 20, "{usage:?}");
    assert_eq!(body(&store, "ns/39"), Some(sample("39", 200_000)));
    assert_exact(&store, disk.path());
    // Somebody else's file takes all that is left, and more than eviction can give back.
    store.purge(&Filter::default()).unwrap();
    put(&store, "ns/kept", b"kept");
    let hog = disk.path().join("hog");
    let mut file = File::create(&hog).unwrap();
    while io::Write::write_all(&mut file, &[1; 4096]).is_ok() {}
    let mut writer = store.put(&key("ns/big"), Some(200_000)).unwrap();
    assert!(matches!(
        writer.write(&sample("big", 200_000)),
        Err(Error::NoSpace)
    ));
    assert!(matches!(writer.commit(), Err(Error::Io(_))));
    let usage = store.usage();
    assert_eq!(usage.reserved_bytes, 0);
    let fault = usage.last_fault.unwrap().message;
    assert!(fault.contains("No space left on device"), "{fault}");
    assert_eq!(body(&store, "ns/big"), None);
    // Emptied again, it recovers by itself.
    drop(file);
    fs::remove_file(&hog).unwrap();
    put(&store, "ns/big", &sample("big", 200_000));
    assert_eq!(body(&store, "ns/big"), Some(sample("big", 200_000)));
    assert_exact(&store, disk.path());
}

#[test]
fn read_only_disk_serves_and_refuses_writes() {
    let Some(disk) = Tmpfs::mount(4 * MIB) else {
        return;
    };
    let store = open(disk.path(), 64 * KIB);
    put(&store, "a", &sample("a", 30_000));
    put(&store, "b", &sample("b", 20_000));
    let writer = store.put(&key("c"), Some(0)).unwrap();
    drop(store.get(&key("a")).unwrap());
    drop(writer);
    disk.remount("ro");
    assert_eq!(body(&store, "a"), Some(sample("a", 30_000)));
    assert!(matches!(store.put(&key("c"), Some(5)), Err(Error::Io(_))));
    assert!(
        matches!(store.put(&key("c"), Some(60_000)), Err(Error::Io(_))),
        "what cannot be evicted stays"
    );
    assert!(matches!(store.delete(&key("a")), Err(Error::Io(_))));
    assert!(matches!(store.purge(&Filter::default()), Err(Error::Io(_))));
    assert_eq!(body(&store, "a"), Some(sample("a", 30_000)));
    assert_eq!(body(&store, "b"), Some(sample("b", 20_000)));
    assert_exact(&store, disk.path());
    disk.remount("rw");
    put(&store, "c", &sample("c", 60_000));
    assert_eq!(
        (body(&store, "a"), body(&store, "c")),
        (None, Some(sample("c", 60_000)))
    );
    assert_exact(&store, disk.path());
}

#[test]
fn start_on_a_read_only_disk_serves_what_is_whole() {
    let Some(disk) = Tmpfs::mount(4 * MIB) else {
        return;
    };
    let store = open(disk.path(), MIB);
    put(&store, "a", &sample("a", 30_000));
    put(&store, "b", &sample("b", 20_000));
    let file = OpenOptions::new().write(true).open(file_of(&store, "b"));
    file.unwrap().write_all_at(b"changed", 100).unwrap();
    // Left by a crash, which is how disks become read-only.
    let left = file_of(&store, "a").with_file_name("new-0123456789abcdef-0");
    fs::write(left, sample("x", 10_000)).unwrap();
    drop(store);
    disk.remount("ro");
    let store = open(disk.path(), MIB);
    assert_eq!(body(&store, "a"), Some(sample("a", 30_000)));
    for _ in 0..2 {
        assert_eq!(body(&store, "b"), None, "it cannot be removed");
    }
    assert!(matches!(store.put(&key("c"), Some(5)), Err(Error::Io(_))));
    disk.remount("rw");
    put(&store, "c", b"c");
    assert_eq!(body(&store, "b"), None);
    drop(store);
    assert_exact(&open(disk.path(), MIB), disk.path());
}

#[test]
fn evicted_blob_that_is_put_again_keeps_its_file() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path(), MIB);
    put(&store, "a", b"old");
    let victims = store
        .inner
        .state()
        .lru
        .mark_victims(1, Reach::Unpinned)
        .unwrap();
    assert_eq!(
        store.inner.state().lru.presence(&digest_of(&key("a"))),
        Presence::Doomed
    );
    assert_eq!(body(&store, "a"), None, "a marked blob is not served");
    assert!(matches!(store.delete(&key("a")), Err(Error::Missing)));
    put(&store, "a", b"new");
    store
        .inner
        .evict(&victims, eviction::EvictionReason::Age)
        .unwrap();
    assert_eq!(body(&store, "a"), Some(b"new".to_vec()));
    assert_exact(&store, dir.path());
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
