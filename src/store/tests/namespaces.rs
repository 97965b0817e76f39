//! Namespaces, their number, and purges.

use super::*;

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
