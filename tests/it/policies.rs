//! Quotas, pins, ages, lost hits, purges and checks of a real gateway, up to a disk that cannot be read.

use crate::dock::Dock;
use crate::harness::{Answer, Gateway, WRITER, skip, wait_for};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

const CEILING: Duration = Duration::from_secs(30);

/// Puts blobs of 4 KiB and some, which take 8 KiB on disk, and gives the codes of the answers.
fn fill(gateway: &Gateway, namespace: &str, numbers: std::ops::Range<u32>) -> Vec<u16> {
    let put = |number| gateway.request("PUT", &format!("/{namespace}/{number}"), &[7; 4200]);
    numbers.map(|number| put(number).code).collect()
}

/// Announces a body that is refused before it is sent.
fn announce(gateway: &Gateway, path: &str, length: u32) -> Answer {
    let mut stream = gateway.connect();
    let head = format!(
        "PUT {path} HTTP/1.1\r\nAuthorization: Bearer {WRITER}\r\nContent-Length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    Answer::read(&mut stream)
}

fn code(gateway: &Gateway, path: &str) -> u16 {
    gateway.request("GET", path, b"").code
}

/// All files below a folder.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            found.extend(files(&entry.path()));
        } else {
            found.push(entry.path());
        }
    }
    found
}

fn disk_bytes(dir: &Path) -> u64 {
    let files = files(dir).into_iter();
    files
        .map(|file| fs::metadata(file).unwrap().blocks() * 512)
        .sum()
}

#[test]
fn quotas_and_pins_hold_for_every_client_and_are_shown() {
    let gateway = Gateway::start_with(|config| {
        config.budget_bytes = 1 << 20;
        config.policies.quotas = BTreeMap::from([
            ("ccache".to_owned(), 200 << 10),
            ("cas".to_owned(), 100 << 10),
            ("release".to_owned(), 512 << 10),
        ]);
        config.policies.pinned = ["release".to_owned()].into();
    });
    assert!(
        fill(&gateway, "release", 0..40)
            .iter()
            .all(|code| *code == 201)
    );
    // ccache's, Bazel's and Gradle's namespaces are like any other.
    let blobs = gateway.config.store_dir.join("blobs");
    for (namespace, quota) in [
        ("ccache", 200 << 10),
        ("cas", 100 << 10),
        ("gradle", 1 << 20),
    ] {
        let codes = fill(&gateway, namespace, 0..200);
        assert!(codes.iter().all(|code| *code == 201));
        let bytes = disk_bytes(&blobs.join(namespace));
        assert!(bytes <= quota && bytes > quota / 2, "{namespace}: {bytes}");
    }
    let status = gateway.status();
    let release = &status.namespaces["release"];
    assert_eq!(
        (release.entries, release.pinned, release.quota),
        (40, true, Some(512 << 10))
    );
    assert!(!status.namespaces["cas"].pinned && status.namespaces["gradle"].quota.is_none());
    assert!(disk_bytes(&blobs) <= 1 << 20);
    assert_eq!(code(&gateway, "/release/0"), 200);
    let large = gateway.request("PUT", "/cas/large", &[7; 150 << 10]);
    assert_eq!(large.code, 413, "{}", large.text());
    // What would take the place of pinned blobs is refused like a full cache, and counted.
    let refused = announce(&gateway, "/gradle/large", 900 << 10);
    assert_eq!(refused.code, 507);
    assert!(refused.text().contains("pinned"), "{}", refused.text());
    let status = gateway.status();
    assert_eq!(
        (status.store.pinned_refusals, status.refusals["pinned"]),
        (1, 1)
    );
    assert!(status.ready, "nothing is wrong with the disk");
    assert_eq!(gateway.request_as(None, "GET", "/readyz", b"").code, 200);
    let metrics = gateway.request("GET", "/metrics", b"").text();
    for line in [
        "sccache_dock_namespace_quota_bytes{namespace=\"cas\"} 102400",
        "sccache_dock_store_pinned_refusals_total 1",
        "sccache_dock_refusals_total{reason=\"pinned\"} 1",
    ] {
        assert!(
            metrics.lines().any(|found| found == line),
            "{line}\n{metrics}"
        );
    }
}

#[test]
fn lost_hits_are_counted_by_namespace_with_the_budget_that_helps() {
    let gateway = Gateway::start_with(|config| config.budget_bytes = 1 << 20);
    // 8 KiB each: 128 fit.
    fill(&gateway, "ci", 0..160);
    assert_eq!(code(&gateway, "/ci/159"), 200);
    for number in 0..32 {
        assert_eq!(code(&gateway, &format!("/ci/{number}")), 404);
    }
    assert_eq!(code(&gateway, "/ci/never"), 404);
    let status = gateway.status();
    assert_eq!(
        (status.lost_hits.count, status.lost_hits.bytes),
        (32, 32 * 8192)
    );
    assert_eq!(status.namespaces["ci"].lost_hits, 32);
    assert_eq!(status.namespaces["ci"].misses, 33);
    let kept = &status.lost_hits.kept_by;
    assert_eq!(kept[0].budget_bytes, (1 << 20) / 8 * 9);
    // All 160 together take 1.25 MiB.
    let enough = kept
        .iter()
        .find(|one| one.budget_bytes == (1 << 20) / 8 * 10)
        .unwrap();
    assert!(enough.share == 1.0 && kept[0].share < 1.0, "{kept:?}");
    let metrics = gateway.request("GET", "/metrics", b"").text();
    for line in [
        "sccache_dock_lost_hits_total{namespace=\"ci\"} 32",
        "sccache_dock_store_lost_hits_bytes_total 262144",
        "sccache_dock_lost_hits_kept_ratio{budget_bytes=\"1310720\"} 1.0",
    ] {
        assert!(
            metrics.lines().any(|found| found == line),
            "{line}\n{metrics}"
        );
    }
}

#[test]
fn unused_blobs_go_while_the_gateway_is_idle() {
    let gateway = Gateway::start_with(|config| {
        config.policies.max_age = Some(Duration::from_secs(1));
    });
    fill(&gateway, "ci", 0..10);
    let blobs = gateway.config.store_dir.join("blobs");
    wait_for("ten files to go", CEILING, || {
        files(&blobs).is_empty().then_some(())
    });
    let status = wait_for("them to be counted", CEILING, || {
        Some(gateway.status()).filter(|status| status.store.expired_entries == 10)
    });
    assert_eq!((status.store.entries, status.store.evicted_entries), (0, 0));
    assert_eq!(code(&gateway, "/ci/1"), 404);
    assert_eq!(
        gateway.status().lost_hits.count,
        0,
        "no budget would have kept it"
    );
}

#[test]
fn scrub_removes_a_corrupt_blob_before_anyone_asks_and_names_its_key_once() {
    let gateway = Gateway::start_with(|config| {
        config.policies.scrub = Some(Duration::from_secs(1));
    });
    fill(&gateway, "cas", 0..20);
    let file = files(&gateway.config.store_dir.join("blobs")).remove(0);
    let bytes = fs::read(&file).unwrap();
    let start = bytes
        .windows(4)
        .position(|window| window == b"cas/")
        .unwrap();
    let digits = bytes[start + 4..]
        .iter()
        .take_while(|byte| byte.is_ascii_digit())
        .count();
    // The number is followed by the time of writing, whose first byte may look like a digit.
    let numbers: Vec<String> = (1..=digits)
        .map(|digits| String::from_utf8(bytes[start + 4..start + 4 + digits].to_vec()).unwrap())
        .collect();
    OpenOptions::new()
        .write(true)
        .open(&file)
        .unwrap()
        .write_all_at(b"\0", 100)
        .unwrap();
    // The scrub counts what it has found, and the store what it has removed, one after the other.
    wait_for("the corrupt blob to be found and removed", CEILING, || {
        let integrity = gateway.status().integrity;
        (integrity.scrub_corrupt == 1 && integrity.corrupt["body"] == 1).then_some(())
    });
    assert!(!file.exists());
    let status = wait_for("a pass over all of them", CEILING, || {
        let status = gateway.status();
        (status.integrity.scrub_last_full_unix_seconds.is_some()
            && status.integrity.scrub_checked > 60)
            .then_some(status)
    });
    assert_eq!(
        (status.store.entries, status.integrity.scrub_corrupt),
        (19, 1)
    );
    let log = gateway.process.log();
    let lines: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("disagreed with its checksum"))
        .collect();
    assert_eq!(lines.len(), 1, "{log}");
    assert!(
        numbers
            .iter()
            .any(|number| lines[0].contains(&format!("cas/{number}"))),
        "{}",
        lines[0]
    );
    let metrics = gateway.request("GET", "/metrics", b"").text();
    for part in [
        "sccache_dock_store_corrupt_blobs_total{kind=\"body\"} 1",
        "sccache_dock_store_scrub_corrupt_entries_total 1",
        "sccache_dock_store_scrub_last_full_timestamp_seconds 1",
    ] {
        assert!(metrics.contains(part), "{part}\n{metrics}");
    }
}

#[test]
fn pass_of_the_scrub_goes_on_after_a_restart() {
    let mut gateway = Gateway::start_with(|config| {
        config.policies.scrub = Some(Duration::from_secs(20));
    });
    fill(&gateway, "cas", 0..3);
    let percent = |gateway: &Gateway| gateway.status().integrity.scrub_percent;
    wait_for("a part of the pass", CEILING, || {
        (percent(&gateway) >= 4).then_some(())
    });
    gateway.process.signal(Signal::SIGKILL);
    gateway.process.exit();
    gateway.restart();
    assert!(percent(&gateway) >= 4);
}

/// An ext4 of its own in a file that can be taken away from under it.
pub(crate) struct Disk {
    folder: tempfile::TempDir,
    pub(crate) mount: PathBuf,
    device: String,
}

impl Disk {
    pub(crate) fn new(bytes: u64) -> Result<Disk, String> {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        let mount = folder.path().join("mount");
        fs::create_dir(&mount).unwrap();
        fs::File::create(&image).unwrap().set_len(bytes).unwrap();
        // What the file system itself needs must stay readable, so it has no journal and few inodes at its start.
        run(
            "mkfs.ext4",
            &[
                "-q",
                "-b",
                "4096",
                "-N",
                "512",
                "-m",
                "0",
                "-O",
                "^has_journal",
                "-E",
                "lazy_itable_init=0",
                path(&image),
            ],
        )?;
        let device = run("losetup", &["--find", "--show", path(&image)])?
            .trim()
            .to_owned();
        let disk = Disk {
            folder,
            mount,
            device,
        };
        run("mount", &[&disk.device, path(&disk.mount)])?;
        Ok(disk)
    }

    fn image(&self) -> PathBuf {
        self.folder.path().join("image")
    }

    /// Where a file's first block is on the disk, in bytes.
    fn place_of(file: &Path) -> u64 {
        let text = run("filefrag", &["-v", "-b4096", path(file)]).unwrap();
        let extent = text
            .lines()
            .find(|line| line.trim_start().starts_with("0:"));
        let extent = extent.unwrap_or_else(|| panic!("{text}"));
        let block = extent.split(':').nth(2).unwrap().split('.').next().unwrap();
        block.trim().parse::<u64>().unwrap() * 4096
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = run("umount", &["--lazy", path(&self.mount)]);
        let _ = run("losetup", &["--detach", &self.device]);
    }
}

/// A file system to which nobody can write; whoever tries waits until this is dropped.
pub(crate) struct Frozen<'a>(&'a Disk);

impl Frozen<'_> {
    pub(crate) fn new(disk: &Disk) -> Frozen<'_> {
        run("fsfreeze", &["--freeze", path(&disk.mount)]).unwrap();
        Frozen(disk)
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        let _ = run("fsfreeze", &["--unfreeze", path(&self.0.mount)]);
    }
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// What a program prints, or why there is nothing.
pub(crate) fn run(program: &str, args: &[&str]) -> Result<String, String> {
    let mut command = Command::new(program);
    let output = command
        .args(args)
        .output()
        .map_err(|cause| format!("{program}: {cause}"))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(format!(
            "{program}: {}",
            String::from_utf8_lossy(&output.stderr)
        ))
    }
}

/// Lets the kernel forget what it has of a file in memory, so that it has to ask the disk.
fn forget(file: &Path) {
    let file = fs::File::open(file).unwrap();
    file.sync_all().unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
}

/// The blob's file, by the key at its end.
pub(crate) fn file_of(store: &Path, key: &str) -> PathBuf {
    let found = files(&store.join("blobs")).into_iter();
    let mut found = found.filter(|file| {
        // Others may be evicted meanwhile.
        let bytes = fs::read(file).unwrap_or_default();
        let Some((rest, fixed)) = bytes.split_last_chunk::<44>() else {
            return false;
        };
        // The key, then who has written it.
        let by = usize::from(u16::from_le_bytes([fixed[10], fixed[11]]));
        rest.len()
            .checked_sub(by)
            .is_some_and(|end| rest[..end].ends_with(key.as_bytes()))
    });
    found.next().unwrap_or_else(|| panic!("no file of {key}"))
}

#[test]
fn blob_that_the_disk_cannot_read_is_a_miss_once_removed_and_the_cache_recovers() {
    let disk = match Disk::new(64 << 20) {
        Ok(disk) => disk,
        Err(cause) => return skip(&format!("no disk of its own: {cause}")),
    };
    let gateway = Gateway::start_with(|config| {
        config.store_dir = disk.mount.join("cache");
        config.budget_bytes = 48 << 20;
    });
    let body =
        |seed: u8, len: usize| -> Vec<u8> { (0..len).map(|at| seed ^ (at % 251) as u8).collect() };
    let blobs = [
        ("small", 20_000),
        ("medium", 200_000),
        ("large", 3_000_000),
        ("later", 20_000),
    ];
    for (seed, (name, len)) in (0..).zip(blobs) {
        assert_eq!(
            gateway
                .request("PUT", &format!("/cas/{name}"), &body(seed, len))
                .code,
            201
        );
        assert_eq!(
            code(&gateway, &format!("/cas/{name}")),
            200,
            "it is trusted from now on"
        );
    }
    let store = &gateway.config.store_dir;
    let places: BTreeMap<&str, (PathBuf, u64)> = blobs
        .iter()
        .map(|(name, _)| {
            let file = file_of(store, &format!("cas/{name}"));
            forget(&file);
            let place = Disk::place_of(&file);
            (*name, (file, place))
        })
        .collect();
    // Behind the first of their blocks the disk ends.
    let cut = places.values().map(|(_, place)| *place).min().unwrap();
    let image = fs::read(disk.image()).unwrap();
    for (file, _) in places.values() {
        forget(file);
    }
    // The end of this one stays in memory, so that its answer begins.
    let large = &places["large"].0;
    let length = fs::metadata(large).unwrap().len();
    fs::File::open(large)
        .unwrap()
        .read_exact_at(&mut [0; 60], length - 60)
        .unwrap();
    let shorten = OpenOptions::new().write(true).open(disk.image()).unwrap();
    shorten.set_len(cut).unwrap();
    let direct = fs::read(&places["small"].0).unwrap_err();
    assert_eq!(
        direct.raw_os_error(),
        Some(nix::libc::EIO),
        "the fault is real"
    );
    assert_eq!(code(&gateway, "/cas/small"), 404);
    assert_eq!(code(&gateway, "/cas/medium"), 404);
    // The answer has begun when the disk fails: the client sees that it is short, once.
    let answer = gateway.request("GET", "/cas/large", b"");
    assert!(answer.code == 200 && answer.body.len() < 3_000_000);
    assert!(answer.head.contains("content-length: 3000000"));
    wait_for("the large one to be a miss", CEILING, || {
        (code(&gateway, "/cas/large") == 404).then_some(())
    });
    let status = gateway.status();
    assert_eq!(status.integrity.corrupt["unreadable"], 3, "{status:?}");
    assert!(status.integrity.suspicions > 0);
    for name in ["small", "medium", "large"] {
        assert!(!places[name].0.exists(), "{name}");
    }
    assert!(places["later"].0.exists(), "nobody has asked for it yet");
    // It is written beside the answers.
    let log = wait_for("the large one in the log", CEILING, || {
        let log = gateway.process.log();
        log.contains("\"cas/large\"").then_some(log)
    });
    for name in ["cas/small", "cas/medium", "cas/large"] {
        let told = log
            .lines()
            .filter(|line| line.contains("the disk cannot read") && line.contains(name));
        assert_eq!(told.count(), 1, "{name}: {log}");
    }
    let metrics = gateway.request("GET", "/metrics", b"").text();
    assert!(
        metrics.contains("store_corrupt_blobs_total{kind=\"unreadable\"} 3"),
        "{metrics}"
    );
    // The disk is whole again: so is the cache, without a restart.
    shorten
        .write_all_at(&image[usize::try_from(cut).unwrap()..], cut)
        .unwrap();
    assert_eq!(
        gateway.request("PUT", "/cas/small", &body(0, 20_000)).code,
        201
    );
    let answer = gateway.request("GET", "/cas/small", b"");
    assert!(answer.code == 200 && answer.body == body(0, 20_000));
    let later = gateway.request("GET", "/cas/later", b"");
    assert!(later.code == 200 && later.body == body(3, 20_000));
}

#[test]
fn cache_makes_room_on_a_disk_that_others_fill() {
    let disk = match Disk::new(1200 << 20) {
        Ok(disk) => disk,
        Err(cause) => return skip(&format!("no disk of its own: {cause}")),
    };
    let gateway = Gateway::start_with(|config| {
        config.store_dir = disk.mount.join("cache");
        config.budget_bytes = 512 << 20;
    });
    for number in 0..80 {
        let blob = vec![number; 1 << 20];
        let path = format!("/cas/{number}");
        assert_eq!(gateway.request("PUT", &path, &blob).code, 201);
    }
    let free = || {
        let found = nix::sys::statvfs::statvfs(&disk.mount).unwrap();
        found.blocks_available() * found.fragment_size()
    };
    // Somebody else leaves 3 MiB of the disk, of which a hundredth is 11 MiB or so.
    let hog = disk.mount.join("hog");
    let length = (free() - (3 << 20)).to_string();
    run("fallocate", &["--length", &length, path(&hog)]).unwrap();
    assert!(free() < 4 << 20);
    gateway.process.wait_for_line("is almost full: making room");
    wait_for("room on the disk", CEILING, || {
        (free() >= 10 << 20).then_some(())
    });
    let store = gateway.status().store;
    assert!((4..40).contains(&store.evicted_entries), "{store:?}");
    assert_eq!(code(&gateway, "/cas/0"), 404);
    assert_eq!(code(&gateway, "/cas/79"), 200);
}

#[test]
fn purge_command_counts_first_and_then_removes_what_matches() {
    let dock = Dock::start(&[
        ("SCCACHE_QUOTAS", "ci=2M,release=1M"),
        ("SCCACHE_PINNED", "release"),
        ("SCCACHE_MAX_AGE", "30d"),
        ("SCCACHE_SCRUB", "1d"),
    ]);
    let listen = dock.address();
    let token = dock.token();
    for key in ["ci/a1", "ci/a2", "ci/b1", "release/a1"] {
        let put = ureq::put(format!("http://{listen}/{key}"))
            .header("Authorization", format!("Bearer {token}"))
            .send(key);
        assert_eq!(put.unwrap().status(), 201);
    }
    let purge = |args: &[&str]| {
        let output = dock.command(&[&["purge"], args].concat());
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (
            output.status.code(),
            text(&output.stdout),
            text(&output.stderr),
        )
    };
    let counted = purge(&["--pattern", "*/a?", "--dry-run"]);
    assert_eq!(
        counted,
        (
            Some(0),
            "would purge 3 blobs, 12.0 KiB\n".into(),
            String::new()
        )
    );
    let counted = purge(&["--older-than", "1h", "--dry-run"]);
    assert_eq!(counted.1, "would purge 0 blobs, 0 B\n");
    let would = |args: &[&str]| purge(&[args, &["--dry-run"]].concat()).1;
    for (args, count) in [
        (&["--written-by", "auth"][..], 4),
        (&["--written-by", "webdav", "--since", "1h"], 4),
        (&["--written-by", "webdav", "--namespace", "ci"], 3),
        (&["--written-by", "socket"], 0),
        (&["--since", "2999-01-01"], 0),
        (&["--since", "2999-01-01T00:00:00Z"], 0),
        (&["--since", "2001-01-01 00:00:00"], 4),
    ] {
        let expected = format!("would purge {count} blobs, ");
        assert!(would(args).starts_with(&expected), "{args:?}");
    }
    for wrong in [["--since", "yesterday"], ["--written-by", ""]] {
        let (code, _, told) = purge(&wrong);
        assert!(code == Some(2) && told.contains(wrong[0]), "{told}");
    }
    let gone = purge(&["--namespace", "ci", "--pattern", "ci/a[12]"]);
    assert_eq!(gone.1, "purged 2 blobs, 8.0 KiB\n");
    let (code, _, told) = purge(&["--pattern", "ci/[a"]);
    assert!(code == Some(2) && told.contains("--pattern"), "{told}");
    let status: Value = dock.status().unwrap();
    let namespaces = &status["cache"]["namespaces"];
    assert_eq!(namespaces["ci"]["quota"], 2 << 20);
    assert_eq!(namespaces["ci"]["bytes"], 4096);
    assert_eq!(namespaces["release"]["pinned"], true);
    assert_eq!(status["cache"]["lost_hits"]["count"], 0);
    assert_eq!(status["cache"]["integrity"]["scrub_seconds"], 86_400);
    let table = String::from_utf8(dock.command(&["status"]).stdout).unwrap();
    assert!(
        table.contains("of 1.0 MiB, pinned") && table.contains("no corrupt blob found"),
        "{table}"
    );
    assert_eq!(
        purge(&[]).1,
        "purged 2 blobs, 8.0 KiB\n",
        "without an option all of them, pinned or not"
    );
}

#[test]
fn disk_that_hangs_holds_up_no_reader_and_is_used_again_when_it_answers() {
    let disk = match Disk::new(64 << 20) {
        Ok(disk) => disk,
        Err(cause) => return skip(&format!("no disk of its own: {cause}")),
    };
    let gateway = Gateway::start_with(|config| config.store_dir = disk.mount.join("cache"));
    let body = [7; 20_000];
    assert_eq!(gateway.request("PUT", "/cas/kept", &body).code, 201);
    let frozen = Frozen::new(&disk);
    let head = "Authorization: Bearer ".to_owned() + WRITER + "\r\nConnection: close\r\n";
    let writers = (0..40).map(|number| {
        let mut stream = gateway.connect();
        // Blobs that are written whole, and such as are written in pieces.
        let body = if number % 2 == 0 {
            &body[..]
        } else {
            &[7; 300_000]
        };
        let length = body.len();
        let head = format!("PUT /cas/{number} HTTP/1.1\r\n{head}Content-Length: {length}\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        // Not more than the kernel takes at once: of a long one nobody reads the end yet.
        stream.set_nonblocking(true).unwrap();
        let sent = stream.write(body).unwrap();
        stream.set_nonblocking(false).unwrap();
        (stream, body[sent..].to_vec())
    });
    let mut writers: Vec<_> = writers.collect();
    let metrics = || gateway.request("GET", "/metrics", b"").text();
    wait_for("all writers to wait for the disk", CEILING, || {
        // And the one who asks.
        metrics().contains("requests_in_flight 41").then_some(())
    });
    for _ in 0..200 {
        let answer = gateway.request("GET", "/cas/kept", b"");
        assert_eq!((answer.code, answer.body.len()), (200, 20_000));
    }
    drop(frozen);
    for (writer, rest) in &mut writers {
        // Refused, if it waited for too long, or stored.
        let _ = writer.write_all(rest);
        let answer = Answer::read(writer);
        assert!(matches!(answer.code, 201 | 503), "{answer:?}");
    }
    wait_for("writes to go on", CEILING, || {
        (gateway.request("PUT", "/cas/later", &body).code == 201).then_some(())
    });
    assert_eq!(code(&gateway, "/healthz"), 200);
}

#[test]
fn purge_that_takes_long_says_on_a_terminal_how_far_it_is() {
    let disk = match Disk::new(64 << 20) {
        Ok(disk) => disk,
        Err(cause) => return skip(&format!("no disk of its own: {cause}")),
    };
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(&disk.mount, dir.path().join("cache")).unwrap();
    let mut dock = Dock::launch_in(dir, &[]);
    dock.wait_ready();
    let listen = dock.address();
    for name in ["a", "b"] {
        let put = ureq::put(format!("http://{listen}/ci/{name}"))
            .header("Authorization", format!("Bearer {}", dock.token()))
            .send("x");
        assert_eq!(put.unwrap().status(), 201);
    }
    let frozen = Frozen::new(&disk);
    let command = format!(
        "SCCACHE_DIR={} {} purge",
        dock.dir.path().display(),
        crate::dock::program().display()
    );
    let said = tempfile::NamedTempFile::new().unwrap();
    // A terminal of its own.
    let mut purge = Command::new("script")
        .args([
            "--quiet",
            "--return",
            "--flush",
            "--command",
            &command,
            "/dev/null",
        ])
        .stdin(Stdio::null())
        .stdout(said.reopen().unwrap())
        .spawn()
        .unwrap();
    let told = || fs::read_to_string(said.path()).unwrap();
    wait_for("a word on the terminal", CEILING, || {
        told().contains("looked at 0 of 2 blobs").then_some(())
    });
    drop(frozen);
    let status = wait_for("the end", CEILING, || purge.try_wait().unwrap());
    assert!(
        status.success() && told().contains("purged 2 blobs"),
        "{}",
        told()
    );
}
