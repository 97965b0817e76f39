//! Who has written a blob: kept in its file, found again after a restart, and asked for by a purge.

use super::*;
use crate::store::{Lane, WrittenBy};

#[track_caller]
fn put_by(store: &Store, name: &str, body: &[u8], by: WrittenBy) {
    let mut writer = store
        .put_by(&key(name), Some(body.len() as u64), by)
        .unwrap();
    writer.write(body).unwrap();
    writer.commit().unwrap();
}

fn purge(store: &Store, by: &str, since: Option<SystemTime>) -> u64 {
    let filter = Filter {
        written_by: Some(by.to_owned()),
        since,
        ..Filter::default()
    };
    store.purge(&filter).unwrap().entries
}

#[test]
fn blobs_of_before_are_unknown_and_those_of_one_writer_go_alone() {
    let folder = tempfile::tempdir().unwrap();
    let ci = || WrittenBy::new(Lane::Webdav, Some("ci"));
    let store = open(folder.path(), MIB);
    // Without a writer the file is, byte for byte, what it was before there were any.
    put(&store, "team/old", b"old");
    put_by(&store, "team/ci", b"ci", ci());
    put_by(
        &store,
        "team/socket",
        b"socket",
        WrittenBy::new(Lane::Socket, Some("uid=1")),
    );
    put_by(&store, "team/replaced", b"first", ci());
    put_by(
        &store,
        "team/replaced",
        b"second",
        WrittenBy::new(Lane::Ipc, None),
    );
    let used = store.usage().bytes;
    drop(store);

    let store = open(folder.path(), MIB);
    assert_eq!(store.usage().bytes, used);
    for (name, expected) in [("old", "old"), ("ci", "ci"), ("replaced", "second")] {
        let found = body(&store, &format!("team/{name}")).unwrap();
        assert_eq!(found, expected.as_bytes());
    }
    let later = super::super::now() + Duration::from_secs(60);
    assert_eq!(purge(&store, "ci", Some(later)), 0);
    assert_eq!(purge(&store, "ci", Some(SystemTime::UNIX_EPOCH)), 1);
    assert_eq!(purge(&store, "socket", None), 1);
    assert_eq!(purge(&store, "unknown", None), 1);
    assert!(body(&store, "team/old").is_none() && body(&store, "team/ci").is_none());
    assert_eq!(
        body(&store, "team/replaced").as_deref(),
        Some(&b"second"[..])
    );
    assert_eq!(purge(&store, "webdav", None), 0);
}

/// The trailer makes some files a block longer, and the sums must know it.
#[test]
fn room_is_counted_with_the_writers_name() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), 4 * MIB);
    let by = WrittenBy::new(Lane::Webdav, Some(&"n".repeat(64)));
    for size in 3900..4100 {
        put_by(&store, &format!("team/{size}"), &vec![1; size], by.clone());
    }
    let used = store.usage().bytes;
    drop(store);
    assert_eq!(open(folder.path(), 4 * MIB).usage().bytes, used);
}
