//! Files that are not what they should be.

use super::*;

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
        let resident = resident(&store, name);
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
