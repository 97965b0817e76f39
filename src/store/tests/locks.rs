//! Nobody waits for what is done to another blob, nor for a look at all of them.

use super::*;
use crate::gateway::disk::Disk;
use crate::store::WrittenBy;
use crate::store::trailer::Trailer;

/// Makes a blob whose body is a hole of so many bytes, which disagrees with its checksum.
fn rotten(store: &Store, name: &str, len: u64) {
    put(store, name, b"x");
    let file = OpenOptions::new().write(true).open(file_of(store, name));
    let file = file.unwrap();
    let trailer = Trailer {
        written_micros: 1,
        body_len: len,
        body_hash: 1,
    };
    file.set_len(0).unwrap();
    file.write_all_at(&trailer.encode(name, &WrittenBy::default()), len)
        .unwrap();
}

/// The name of a blob whose files were once ordered together with those of `name`.
fn neighbour(name: &str) -> String {
    let last = digest_of(&key(name)).0[15];
    (0..)
        .map(|number| format!("ns/other-{number}"))
        .find(|other| digest_of(&key(other)).0[15] == last)
        .unwrap()
}

fn read_all(runtime: &tokio::runtime::Runtime, disk: &Disk, name: &str) -> (u64, bool) {
    runtime.block_on(async {
        let mut download = disk.get(&key(name)).await.unwrap();
        let mut read = 0;
        while let Some(piece) = download.next().await {
            match piece {
                Ok(piece) => read += piece.len() as u64,
                Err(_) => return (read, false),
            }
        }
        (read, true)
    })
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

#[test]
fn blob_of_gigabytes_is_served_at_once_after_a_restart() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path(), 16 * 1024 * MIB);
    rotten(&store, "ns/long", 8 * 1024 * MIB);
    drop(store);
    let disk = Disk::new(open(dir.path(), 16 * 1024 * MIB));
    let first = runtime().block_on(async {
        let mut download = disk.get(&key("ns/long")).await.unwrap();
        assert_eq!(download.length, 8 * 1024 * MIB);
        download.next().await.unwrap().unwrap()
    });
    assert!(first.iter().all(|byte| *byte == 0) && !first.is_empty());
}

#[test]
fn long_blob_is_checked_while_it_is_served_and_never_sent_whole_if_it_is_wrong() {
    const LEN: usize = 17 * MIB as usize;
    let (dir, runtime) = (TempDir::new().unwrap(), runtime());
    let store = open(dir.path(), 64 * MIB);
    for name in ["ns/good", "ns/bad"] {
        put(&store, name, &sample(name, LEN));
    }
    let good = file_of(&store, "ns/good");
    let bad = OpenOptions::new()
        .write(true)
        .open(file_of(&store, "ns/bad"));
    let bad = bad.unwrap();
    drop(store);
    bad.write_all_at(b"?", MIB).unwrap();
    let store = open(dir.path(), 64 * MIB);
    let disk = Disk::new(store.clone());
    assert_eq!(read_all(&runtime, &disk, "ns/good"), (LEN as u64, true));
    assert!(
        store.get(&key("ns/good")).unwrap().unchecked.is_none(),
        "once is enough"
    );
    assert!(good.exists());
    let (read, whole) = read_all(&runtime, &disk, "ns/bad");
    assert!(!whole && read < LEN as u64, "{read} bytes of {LEN}");
    wait_until("it to be removed", || store.usage().flaws.body == 1);
    assert_eq!(body(&store, "ns/bad"), None);
    assert_exact(&store, dir.path());
}

#[test]
fn nobody_waits_while_a_long_body_is_read() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path(), 128 * 1024 * MIB);
    rotten(&store, "ns/long", 64 * 1024 * MIB);
    let other = neighbour("ns/long");
    store.report(&key("ns/long")).raise();
    wait_until("it to be looked at", || {
        store.usage().scrubbed.suspicions == 1
    });
    for name in [&*other, "ns/long"] {
        put(&store, name, b"new");
        assert_eq!(body(&store, name).as_deref(), Some(&b"new"[..]));
    }
    store.delete(&key(&other)).unwrap();
    assert_eq!(store.usage().flaws.sum(), 0, "it is still being read");
}

#[test]
fn blob_that_is_put_while_the_one_before_is_found_broken_stays() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path(), 1024 * MIB);
    for name in ["ns/long", "ns/short"] {
        rotten(&store, name, if name == "ns/long" { 128 * MIB } else { 1 });
        store.report(&key(name)).raise();
    }
    wait_until("it to be looked at", || {
        store.usage().scrubbed.suspicions == 1
    });
    put(&store, "ns/long", b"new");
    // One after the other.
    wait_until("the next to be found", || {
        !file_of(&store, "ns/short").exists()
    });
    assert_eq!(body(&store, "ns/long").as_deref(), Some(&b"new"[..]));
    assert_exact(&store, dir.path());
}

#[test]
fn lock_of_a_key_holds_up_those_of_the_key_only() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path(), MIB);
    let (name, other) = ("ns/held", neighbour("ns/held"));
    let held = store.inner.lock_key(&digest_of(&key(name)));
    put(&store, &other, b"x");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| {
            let _lock = store.inner.lock_key(&digest_of(&key(name)));
            assert!(done.load(Ordering::SeqCst), "two have the same lock");
        });
        std::thread::sleep(Duration::from_millis(50));
        done.store(true, Ordering::SeqCst);
        drop(held);
        waits.join().unwrap();
    });
}
