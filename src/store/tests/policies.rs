//! Quotas, pins, ages, lost hits, purges and checks, on real files.

use super::*;
use glob::Pattern;
use std::os::unix::fs::FileExt;

fn quotas(quotas: &[(&str, u64)]) -> Policies {
    let quotas = quotas
        .iter()
        .map(|(name, bytes)| ((*name).to_owned(), *bytes));
    Policies {
        quotas: quotas.collect(),
        ..Policies::default()
    }
}

fn pinned(mut policies: Policies, name: &str) -> Policies {
    policies.pinned.insert(name.to_owned());
    policies
}

/// Opens the store and waits for the end of its scan.
#[track_caller]
fn open_with(dir: &Path, budget_bytes: u64, policies: Policies) -> Store {
    let store = start_with(dir, budget_bytes, policies);
    wait_until("the scan to end", || !store.usage().indexing);
    store
}

fn block(dir: &Path) -> u64 {
    open(dir, MIB).inner.block
}

fn share(store: &Store, name: &str) -> NamespaceUsage {
    let namespaces = store.usage().namespaces;
    namespaces.into_iter().find(|one| one.name == name).unwrap()
}

/// Names of blobs that are there.
fn there<'a>(store: &Store, names: &[&'a str]) -> Vec<&'a str> {
    let names = names.iter().copied();
    names
        .filter(|name| store.size(&key(name)).is_ok())
        .collect()
}

/// Changes a byte of the blob's body.
fn rot(path: &Path) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(b"\xff", 3).unwrap();
}

#[test]
fn namespace_stays_within_its_quota_on_disk_while_many_write() {
    let Some(disk) = Tmpfs::mount(64 * MIB) else {
        return;
    };
    let quota = 2 * MIB;
    let store = open_with(disk.path(), 16 * MIB, quotas(&[("ci", quota)]));
    put(&store, "team/kept", b"x");
    let before = disk.used();
    let done = AtomicBool::new(false);
    let most = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut most = 0;
            while !done.load(Ordering::Relaxed) {
                most = most.max(disk.used() - before);
                std::thread::yield_now();
            }
            most
        });
        let writers: Vec<_> = (0..6)
            .map(|writer| {
                let store = &store;
                scope.spawn(move || {
                    for n in 0..150 {
                        let bytes = sample("x", 1000 + 7919 * n % 200_000);
                        put(store, &format!("ci/{writer}-{n}"), &bytes);
                    }
                })
            })
            .collect();
        for writer in writers {
            writer.join().unwrap();
        }
        done.store(true, Ordering::Relaxed);
        watcher.join().unwrap()
    });
    // Twice the file of the high-water mark, which is no blob.
    let most = most - most.min(2 * 4096);
    assert!(most <= quota && most > quota / 2, "{most} of {quota}");
    assert!(
        body(&store, "team/kept").is_some(),
        "quotas are the namespaces' own affair"
    );
    assert!(matches!(
        store.put(&key("ci/large"), Some(quota)),
        Err(Error::TooLarge { limit, .. }) if limit == quota
    ));
    assert_exact(&store, disk.path());
}

#[test]
fn lowered_quota_holds_from_the_start_and_takes_the_oldest() {
    let dir = TempDir::new().unwrap();
    let block = block(dir.path());
    let store = open(dir.path(), MIB);
    let names = ["ci/a", "ci/b", "ci/c", "ci/d"];
    for (hours, name) in (1..).zip(names.iter().rev()) {
        put(&store, name, b"x");
        let used = now() - Duration::from_secs(3600 * hours);
        let file = File::open(file_of(&store, name)).unwrap();
        file.set_modified(used).unwrap();
    }
    put(&store, "team/a", b"x");
    drop(store);
    let store = start_with(dir.path(), MIB, quotas(&[("ci", 2 * block)]));
    // During the scan it waits until there is room within the quota.
    put(&store, "ci/new", b"x");
    assert!(share(&store, "ci").bytes <= 4 * block);
    wait_until("the scan to end", || !store.usage().indexing);
    // The write and the end of the scan may both make room, and then there is more than either needs.
    assert!(share(&store, "ci").bytes <= 2 * block);
    assert!(body(&store, "ci/new").is_some() && body(&store, "team/a").is_some());
    assert_eq!(there(&store, &names[..3]), [""; 0], "the oldest go first");
    assert_exact(&store, dir.path());
}

#[test]
fn pinned_blobs_stay_whatever_others_write() {
    let dir = TempDir::new().unwrap();
    let block = block(dir.path());
    let policies = pinned(quotas(&[("release", 3 * block)]), "release");
    let store = open_with(dir.path(), 4 * block, policies);
    for name in ["release/a", "release/b", "release/c"] {
        put(&store, name, b"x");
    }
    for n in 0..20 {
        put(&store, &format!("ci/{n}"), b"x");
    }
    let release = ["release/a", "release/b", "release/c", "release/d"];
    assert_eq!(there(&store, &release), release[..3]);
    let refused = store.put(&key("ci/large"), Some(block));
    assert!(matches!(refused, Err(Error::Pinned)), "{refused:?}");
    assert_eq!(store.usage().pinned_refusals, 1);
    assert!(body(&store, "ci/19").is_some(), "nothing went in vain");
    // Its own writes go on, at the cost of its own oldest.
    put(&store, "release/d", b"x");
    assert_eq!(there(&store, &release), release[1..]);
    assert!(share(&store, "release").pinned);
    assert_exact(&store, dir.path());
}

#[test]
fn pinned_blobs_stay_when_the_disk_is_full() {
    let Some(disk) = Tmpfs::mount(2 * MIB) else {
        return;
    };
    let policies = pinned(Policies::default(), "release");
    let store = open_with(disk.path(), 64 * MIB, policies);
    let bytes = sample("x", 300_000);
    for n in 0..3 {
        put(&store, &format!("release/{n}"), &bytes);
    }
    for n in 0..20 {
        put(&store, &format!("ci/{n}"), &bytes);
    }
    assert_eq!(share(&store, "release").entries, 3);
    assert!(body(&store, "ci/19").is_some());
}

#[test]
fn old_blobs_go_by_themselves_and_are_no_lost_hits() {
    let dir = TempDir::new().unwrap();
    let policies = Policies {
        max_age: Some(Duration::from_secs(3600)),
        ..pinned(Policies::default(), "release")
    };
    let store = open_with(dir.path(), MIB, policies.clone());
    for (name, minutes) in [("ci/old", 90), ("ci/new", 30), ("release/old", 90)] {
        put(&store, name, b"x");
        let used = now() - Duration::from_secs(60 * minutes);
        let file = File::open(file_of(&store, name)).unwrap();
        file.set_modified(used).unwrap();
    }
    drop(store);
    let policies = Policies {
        max_age: Some(Duration::from_secs(3600)),
        ..policies
    };
    let store = start_with(dir.path(), MIB, policies);
    wait_until("the scan to end", || !store.usage().indexing);
    // The housekeeper looks at a 20th of the age at the latest; here it is woken.
    store.inner.expire();
    let names = ["ci/old", "ci/new", "release/old"];
    assert_eq!(there(&store, &names), names[1..]);
    assert_eq!(body(&store, "ci/old"), None);
    store.note_miss(&key("ci/old"));
    let usage = store.usage();
    assert_eq!((usage.expired_entries, usage.evicted_entries), (1, 0));
    assert_eq!(usage.lost_hits.count, 0);
    assert_exact(&store, dir.path());
}

#[test]
fn branches_expire_while_others_stay() {
    let dir = TempDir::new().unwrap();
    let policies = Policies {
        ages: [("pr/*".to_owned(), 1)].into(),
        ..Policies::default()
    };
    let store = open_with(dir.path(), MIB, policies);
    for name in ["pr/1", "pr/2", "main"] {
        let key = Key::in_layer(name, "x").unwrap();
        let mut writer = store.put(&key, Some(1)).unwrap();
        writer.write(b"x").unwrap();
        writer.commit().unwrap();
    }
    assert_eq!(store.usage().entries, 3);
    wait_until("the branches to go", || store.usage().expired_entries == 2);
    let names: Vec<String> = store
        .usage()
        .namespaces
        .into_iter()
        .map(|one| one.name)
        .collect();
    assert_eq!(names, ["main"]);
    assert_exact(&store, dir.path());
}

#[test]
fn housekeeper_removes_old_blobs_without_any_request() {
    let dir = TempDir::new().unwrap();
    let policies = Policies {
        max_age: Some(Duration::from_millis(1)),
        ..Policies::default()
    };
    let store = open_with(dir.path(), MIB, policies);
    put(&store, "ci/a", b"x");
    wait_until("it to go", || store.usage().expired_entries == 1);
    assert_eq!(body(&store, "ci/a"), None);
    assert_exact(&store, dir.path());
}

#[test]
fn lost_hits_name_the_budget_that_would_have_kept_them() {
    let dir = TempDir::new().unwrap();
    let block = block(dir.path());
    let policies = quotas(&[("small", block)]);
    let store = open_with(dir.path(), 8 * block, policies);
    for n in 0..12 {
        put(&store, &format!("ci/{n}"), b"x");
    }
    // As the gateway does for a client, and not for its own looks.
    let miss = |name: &str| {
        assert_eq!(body(&store, name), None);
        store.note_miss(&key(name));
    };
    miss("ci/never");
    assert_eq!(store.usage().lost_hits.count, 0, "it was never here");
    // 3 was evicted last: one block more would have kept it; 2 and then 1 take its place before it.
    miss("ci/3");
    miss("ci/1");
    let lost = store.usage().lost_hits;
    assert_eq!((lost.count, lost.bytes, lost.by_quota), (2, 2 * block, 0));
    let kept: Vec<(u64, f64)> = lost
        .kept_by()
        .iter()
        .map(|k| (k.budget_bytes / block, k.share))
        .collect();
    assert_eq!(kept[..4], [(9, 0.5), (10, 0.5), (12, 1.0), (16, 1.0)]);
    assert_eq!(share(&store, "ci").lost_hits, 2);
    put(&store, "ci/3", b"x");
    assert!(body(&store, "ci/3").is_some());
    put(&store, "small/a", b"x");
    put(&store, "small/b", b"x");
    miss("small/a");
    let lost = store.usage().lost_hits;
    assert_eq!((lost.count, lost.by_quota), (3, 1));
    assert_exact(&store, dir.path());
}

#[test]
fn purge_by_pattern_removes_only_what_matches() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path(), MIB);
    let block = store.inner.block;
    let names = ["cas/a1", "cas/a2", "cas/b1", "team/x/a1", "a1"];
    for name in names {
        put(&store, name, b"x");
    }
    let filter = |pattern: &str, namespace: Option<&str>, dry_run| Filter {
        pattern: Some(Pattern::new(pattern).unwrap()),
        namespace: namespace.map(str::to_owned),
        dry_run,
        ..Filter::default()
    };
    let all = Purged {
        entries: 2,
        bytes: 2 * block,
    };
    let dry = store.purge(&filter("cas/a?", None, true)).unwrap();
    assert_eq!(dry, all);
    assert_eq!(there(&store, &names), names, "a dry run removes nothing");
    assert_eq!(store.purge(&filter("*/a1", None, true)).unwrap().entries, 2);
    assert_eq!(store.purge(&filter("cas/a?", None, false)).unwrap(), all);
    assert_eq!(there(&store, &names), names[2..]);
    assert_eq!(
        store
            .purge(&filter("*", Some("cas"), false))
            .unwrap()
            .entries,
        1
    );
    assert_eq!(
        store.purge(&filter("nothing*", None, false)).unwrap(),
        Purged::default()
    );
    assert_eq!(there(&store, &names), names[3..]);
    assert_eq!(store.usage().purging, None);
    assert_exact(&store, dir.path());
}

#[test]
fn scrub_finds_what_is_corrupt_before_anyone_asks() {
    let dir = TempDir::new().unwrap();
    let policies = Policies {
        scrub: Some(Duration::from_millis(300)),
        ..Policies::default()
    };
    let store = open_with(dir.path(), 16 * MIB, policies.clone());
    let names: Vec<String> = (0..50).map(|n| format!("ns/{n}")).collect();
    for name in &names {
        put(&store, name, &sample(name, 5000));
        assert!(body(&store, name).is_some(), "it is trusted from now on");
    }
    rot(&file_of(&store, "ns/7"));
    let cut = file_of(&store, "ns/8");
    OpenOptions::new()
        .write(true)
        .open(&cut)
        .unwrap()
        .set_len(5010)
        .unwrap();
    fs::copy(file_of(&store, "ns/10"), file_of(&store, "ns/9")).unwrap();
    fs::remove_file(file_of(&store, "ns/11")).unwrap();
    wait_until("three to be found", || {
        let flaws = store.usage().flaws;
        flaws.body + flaws.trailer + flaws.unreadable == 3
    });
    let usage = store.usage();
    assert_eq!(usage.scrubbed.corrupt, 3);
    assert_eq!(
        (
            usage.flaws.body,
            usage.flaws.trailer,
            usage.flaws.unreadable
        ),
        (1, 2, 0)
    );
    wait_until("a whole pass", || {
        store.usage().scrubbed.last_full.is_some()
    });
    wait_until("one more", || store.usage().scrubbed.checked > 150);
    assert_eq!(store.usage().vanished_entries, 1);
    let left: Vec<&str> = names.iter().map(String::as_str).collect();
    assert_eq!(there(&store, &left).len(), 46);
    assert_eq!(store.usage().scrubbed.corrupt, 3, "the others are whole");
    drop(store);
    wait_until("the lock to be free", || {
        let text = fs::read_to_string(dir.path().join("scrub")).unwrap();
        text.split(' ').nth(1).unwrap() != "0\n"
    });
    let store = open_with(dir.path(), 16 * MIB, Policies::default());
    assert!(
        store.usage().scrubbed.last_full.is_some(),
        "it is remembered"
    );
    assert_exact(&store, dir.path());
}

#[test]
fn blob_that_is_put_again_after_a_hit_is_looked_at() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path(), MIB);
    let bytes = sample("x", 5000);
    for name in ["ns/rotten", "ns/fine", "ns/unused"] {
        put(&store, name, &bytes);
    }
    for name in ["ns/rotten", "ns/fine"] {
        assert!(body(&store, name).is_some());
    }
    rot(&file_of(&store, "ns/rotten"));
    rot(&file_of(&store, "ns/unused"));
    for name in ["ns/rotten", "ns/fine", "ns/unused"] {
        put(&store, name, &bytes);
    }
    wait_until("both to be looked at", || {
        store.usage().scrubbed.suspicions == 2
    });
    wait_until("the rotten one to be found", || {
        store.usage().flaws.body == 1
    });
    assert_eq!(body(&store, "ns/rotten"), Some(bytes));
    assert_eq!(store.usage().flaws.sum(), 1);
    assert_exact(&store, dir.path());
}

#[test]
fn doubt_that_is_raised_removes_a_corrupt_blob_and_no_other() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path(), MIB);
    for name in ["ns/rotten", "ns/fine"] {
        put(&store, name, &sample(name, 5000));
    }
    rot(&file_of(&store, "ns/rotten"));
    for name in ["ns/rotten", "ns/fine"] {
        store.report(&key(name)).raise();
    }
    wait_until("the rotten one to go", || store.usage().flaws.body == 1);
    wait_until("both to be looked at", || {
        store.usage().scrubbed.suspicions == 2
    });
    assert_eq!(there(&store, &["ns/rotten", "ns/fine"]), ["ns/fine"]);
    let cause = || io::Error::from_raw_os_error(nix::libc::EIO);
    assert!(matches!(
        store.distrust(&key("ns/rotten"), cause()),
        Error::Missing
    ));
    assert!(matches!(
        store.distrust(&key("ns/fine"), cause()),
        Error::Io(_)
    ));
    assert_exact(&store, dir.path());
}

#[test]
fn scrub_leaves_no_pages_behind_but_those_in_use() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path(), 16 * MIB);
    let in_memory = |name: &str| {
        let file = File::open(file_of(&store, name)).unwrap();
        page_cache::read(&file, &mut [0], 0).unwrap()
    };
    let names = ["ns/cold", "ns/warm", "ns/probe"];
    for name in names {
        put(&store, name, &sample(name, 400_000));
    }
    for name in ["ns/cold", "ns/probe"] {
        let file = File::open(file_of(&store, name)).unwrap();
        file.sync_all().unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    }
    // A look brings some of it into memory, so there is one for each question.
    if in_memory("ns/probe") || !in_memory("ns/warm") {
        say("skipped: this file system does not tell what is in memory");
        return;
    }
    for name in ["ns/cold", "ns/warm"] {
        let item = Item {
            digest: digest_of(&key(name)),
            namespace: 0,
        };
        store.inner.scrub(&item);
    }
    assert_eq!(store.usage().scrubbed.checked, 2);
    assert!(in_memory("ns/warm") && !in_memory("ns/cold"));
}
