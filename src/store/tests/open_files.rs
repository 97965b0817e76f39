//! Files that are kept open, on a file system of which the kernel says what it has in memory.

use super::*;

#[test]
fn blob_that_others_change_in_its_place_is_compared_with_its_checksum() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path(), 64 * MIB);
    for kept_files in [0, 2] {
        store.keep_files(kept_files);
        for name in ["changed", "touched"] {
            put(&store, name, &[7; 5000]);
            if quick(&store, name).is_none() {
                return say("this file system has no reads that never wait");
            }
            let file = OpenOptions::new().write(true).open(file_of(&store, name));
            let file = file.unwrap();
            if name == "changed" {
                file.write_all_at(b"8", 100).unwrap();
            }
            // As if that was some seconds later.
            file.set_modified(now() + Duration::from_secs(9)).unwrap();
            assert_eq!(quick(&store, name), None);
        }
        assert_eq!(body(&store, "changed"), None);
        assert!(!file_of(&store, "changed").exists());
        assert_eq!(body(&store, "touched"), Some(vec![7; 5000]));
        assert_eq!(
            quick(&store, "touched"),
            Some(vec![7; 5000]),
            "trusted again"
        );
    }
    assert_eq!(store.usage().flaws.body, 2);
    assert_exact(&store, dir.path());
}

/// What the quick way gives; nothing where it does not have the blob.
#[track_caller]
fn quick(store: &Store, name: &str) -> Option<Vec<u8>> {
    let blob = resident(store, name).ok().flatten()?;
    let mut bytes = vec![0; usize::try_from(blob.len).unwrap()];
    assert!(page_cache::read(&blob.file, &mut bytes, 0).unwrap());
    Some(bytes)
}

fn kept(store: &Store, name: &str) -> bool {
    let digest = digest_of(&key(name));
    store
        .inner
        .state()
        .kept
        .find(&digest, micros(now()))
        .is_ok()
}

/// A store that keeps two files open. `None` where nothing is known to be in memory.
fn keeping_two(dir: &Path) -> Option<Store> {
    let store = open(dir, 64 * MIB);
    store.keep_files(2);
    for name in ["a", "b", "c"] {
        put(&store, name, name.as_bytes());
    }
    if quick(&store, "a").is_none() {
        say("this file system has no reads that never wait");
        return None;
    }
    Some(store)
}

/// Descriptors of ours that hold removed files of `dir`.
fn held(dir: &Path) -> usize {
    let all = fs::read_dir("/proc/self/fd").unwrap().map(Result::unwrap);
    let paths = all.filter_map(|entry| fs::read_link(entry.path()).ok());
    let removed = paths
        .filter(|path| path.starts_with(dir) && path.to_string_lossy().ends_with(" (deleted)"));
    removed.count()
}

#[test]
fn files_just_used_are_open_and_no_more_than_allowed() {
    let dir = TempDir::new().unwrap();
    let Some(store) = keeping_two(dir.path()) else {
        return;
    };
    for name in ["a", "b", "a", "c"] {
        assert_eq!(quick(&store, name), Some(name.as_bytes().to_vec()));
        assert!(kept(&store, name));
    }
    assert!(
        kept(&store, "a") && !kept(&store, "b"),
        "the one not used for longest is closed"
    );
    let later = micros(now()) + 60_000_000;
    assert_eq!(store.inner.state().kept.forget_unused(later).len(), 2);
    assert_eq!(quick(&store, "a"), Some(b"a".to_vec()));
}

#[test]
fn new_blob_takes_the_place_of_an_open_one() {
    let dir = TempDir::new().unwrap();
    let Some(store) = keeping_two(dir.path()) else {
        return;
    };
    assert!(kept(&store, "a"));
    assert!(put(&store, "a", b"new"));
    assert_eq!(quick(&store, "a"), Some(b"new".to_vec()));
    // A blob that is put again so soon is suspected, and looked at.
    wait_until("the old file to be closed", || held(dir.path()) == 0);
}

#[test]
fn file_opened_before_its_blob_was_replaced_is_not_kept() {
    let dir = TempDir::new().unwrap();
    let Some(store) = keeping_two(dir.path()) else {
        return;
    };
    let digest = digest_of(&key("a"));
    let old = store.inner.state().kept.find(&digest, 1).unwrap();
    store.inner.close(&digest);
    let leave = store.inner.state().kept.find(&digest, 1).unwrap_err();
    assert!(put(&store, "a", b"new"));
    assert!(store.inner.state().kept.keep(&digest, old, leave).is_some());
    assert_eq!(quick(&store, "a"), Some(b"new".to_vec()));
}

#[test]
fn blob_that_goes_leaves_no_open_file() {
    let dir = TempDir::new().unwrap();
    let Some(store) = keeping_two(dir.path()) else {
        return;
    };
    let open = |name: &str| {
        put(&store, name, b"x");
        assert_eq!(quick(&store, name), Some(b"x".to_vec()));
    };
    open("deleted");
    store.delete(&key("deleted")).unwrap();
    assert_eq!((quick(&store, "deleted"), held(dir.path())), (None, 0));
    open("purged");
    store.purge(&Filter::default()).unwrap();
    assert_eq!((quick(&store, "purged"), held(dir.path())), (None, 0));
    open("evicted");
    let victims = store.inner.state().lru.mark_victims(1, Reach::All).unwrap();
    store
        .inner
        .evict(&victims, crate::store::eviction::EvictionReason::Age)
        .unwrap();
    assert_eq!((quick(&store, "evicted"), held(dir.path())), (None, 0));
    assert_exact(&store, dir.path());
}

#[test]
fn open_file_that_others_remove_or_cut_is_a_miss() {
    let dir = TempDir::new().unwrap();
    let Some(store) = keeping_two(dir.path()) else {
        return;
    };
    assert!(quick(&store, "a").is_some() && quick(&store, "b").is_some());
    fs::remove_file(file_of(&store, "a")).unwrap();
    let file = OpenOptions::new().write(true).open(file_of(&store, "b"));
    file.unwrap().set_len(1).unwrap();
    for name in ["a", "b"] {
        assert!(matches!(resident(&store, name), Ok(None)), "{name}");
        assert_eq!(body(&store, name), None);
    }
    assert_eq!(held(dir.path()), 0);
    let usage = store.usage();
    assert_eq!((usage.vanished_entries, usage.flaws.trailer), (1, 1));
    assert_exact(&store, dir.path());
}
