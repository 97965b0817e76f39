//! What a start finds, and what the scan does meanwhile.

use super::*;

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
