//! What is said while the start's scan is under way: here it stands still, before a disk that refuses to be written.

use crate::dock::{Dock, eventually};
use crate::harness::skip;
use crate::policies::{Disk, Frozen, run};
use std::fs;
use std::path::{Path, PathBuf};

/// A disk in the place of a folder, until this is dropped.
struct Mounted(PathBuf);

impl Mounted {
    fn new(disk: &Disk, folder: PathBuf) -> Mounted {
        let words = [Path::new("--bind"), &disk.mount, &folder].map(|word| word.to_str().unwrap());
        run("mount", &words).unwrap();
        Mounted(folder)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = run("umount", &["--lazy", self.0.to_str().unwrap()]);
    }
}

/// A dock whose cache is in `cache`.
fn dock_on(cache: &Path) -> Dock {
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(cache, dir.path().join("cache")).unwrap();
    let mut dock = Dock::launch_in(dir, &[]);
    dock.wait_ready();
    dock
}

fn get(dock: &Dock, path: &str) -> String {
    let listen = dock.status().unwrap()["listen"]
        .as_str()
        .unwrap()
        .to_owned();
    let answer = ureq::get(format!("http://{listen}{path}"))
        .header("Authorization", format!("Bearer {}", dock.token()))
        .header("Accept", "text/html, */*")
        .call();
    answer.unwrap().body_mut().read_to_string().unwrap()
}

fn said(dock: &Dock, command: &str) -> String {
    let output = dock.command(&[command]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn everyone_is_told_how_far_the_scan_is_and_served_meanwhile() {
    let disk = match Disk::new(64 << 20) {
        Ok(disk) => disk,
        Err(cause) => return skip(&format!("no disk of its own: {cause}")),
    };
    let cache = tempfile::tempdir().unwrap();
    let dock = dock_on(cache.path());
    for path in ["team/1", "stuck/1"] {
        let listen = dock.status().unwrap()["listen"]
            .as_str()
            .unwrap()
            .to_owned();
        let put = ureq::put(format!("http://{listen}/{path}"));
        let put = put.header("Authorization", format!("Bearer {}", dock.token()));
        assert_eq!(put.send("x").unwrap().status(), 201);
    }
    drop(dock);

    // A file that is too short to be a blob is removed by the scan, which has to wait for the disk to do that.
    let blobs = fs::read_dir(cache.path().join("blobs")).unwrap();
    let folder = blobs
        .map(|entry| entry.unwrap().path())
        .find(|path| path.ends_with("stuck"));
    let mounted = Mounted::new(&disk, folder.expect("a folder with the namespace's name"));
    let broken = mounted.0.join("ab").join(format!("ab{:030}", 0));
    fs::create_dir(broken.parent().unwrap()).unwrap();
    fs::write(&broken, "x").unwrap();
    let frozen = Frozen::new(&disk);
    let dock = dock_on(cache.path());

    let store = dock.status().unwrap()["cache"]["store"].clone();
    let done = store["scan"]["done"].as_u64().unwrap();
    assert_eq!(
        (&store["indexing"], &store["scan"]["total"]),
        (&true.into(), &512.into())
    );
    assert!(done <= 257, "{store:#}");
    let words = format!("still counting: {done} of 512 folders");
    assert_eq!(said(&dock, "healthcheck"), format!("healthy, {words}\n"));
    for text in [said(&dock, "status"), get(&dock, "/")] {
        assert!(text.contains(&words), "{text}");
    }
    let metrics = get(&dock, "/metrics");
    for (name, value) in [
        ("indexing", 1),
        ("scan_folders", 512),
        ("scanned_folders", done),
    ] {
        let line = format!("sccache_dock_store_{name} {value}");
        assert!(metrics.lines().any(|found| found == line), "no {line:?}");
    }

    drop(frozen);
    let store = eventually("the end of the scan", || {
        let store = dock.status()?["cache"]["store"].clone();
        (store["indexing"] == false).then_some(store)
    });
    assert!(store["scan"].is_null() && !broken.exists(), "{store:#}");
    assert_eq!(said(&dock, "healthcheck"), "healthy\n");
    assert!(!said(&dock, "status").contains("still counting"));
    drop(dock);
}
