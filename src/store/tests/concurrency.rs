//! Readers and writers at the same time.

use super::*;

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
