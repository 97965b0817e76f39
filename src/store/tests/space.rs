//! The budget holds, and what is evicted for it, also where the disk is full or read-only.

use super::*;

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
