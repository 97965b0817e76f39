//! Results that must not change, and who may change them.

use super::{MAIN, PR42, TOKENS, asked, at, entry, found};
use crate::attacks::peer::{OwnProtocol, archive};
use crate::harness::{Gateway, WRITER};
use nix::sys::signal::Signal;
use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use std::io::{Cursor, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use zip::write::SimpleFileOptions;

const MENDER: &str = "token-of-who-mends";

/// An entry as sccache writes it: its members in this order, with a mode and a level of the writer's own.
pub(super) fn result(members: &[(&str, &[u8])], mode: u32) -> Vec<u8> {
    let mut archive = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, body) in members {
        let options = SimpleFileOptions::default()
            .compression_method(zip::CompressionMethod::Stored)
            .unix_permissions(mode);
        archive.start_file(*name, options).unwrap();
        let level = match mode {
            0o600 => CompressionLevel::Uncompressed,
            _ => CompressionLevel::Fastest,
        };
        archive.write_all(&compress_to_vec(*body, level)).unwrap();
    }
    archive.finish().unwrap().into_inner()
}

fn gateway() -> (tempfile::TempDir, Gateway) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tokens.toml");
    let mender = format!(
        "[[token]]\nname = \"mender\"\ntoken = \"{MENDER}\"\nread = [\"main\"]\nwrite = \"main\"\nreplace = true\n"
    );
    // The socket's users write main too, whoever they are.
    let local = "[[local]]\nread = [\"main\"]\nwrite = \"main\"\n";
    let tokens = TOKENS.split("[[local]]").next().unwrap();
    std::fs::write(&file, format!("{tokens}{mender}{local}")).unwrap();
    let gateway = Gateway::start_with(|config| {
        config.tokens_file = Some(file);
        config.policies.write_once = ["main".to_owned()].into();
        config.policies.audit_bytes = Some(1 << 20);
    });
    gateway.process.wait_for_line("named tokens in force");
    (folder, gateway)
}

fn rewrites(gateway: &Gateway) -> [u64; 3] {
    let text = gateway.request("GET", "/metrics", b"").text();
    ["same", "different", "replaced"].map(|outcome| {
        let name = format!("sccache_dock_rewrites_total{{outcome=\"{outcome}\"}} ");
        let line = text.lines().find_map(|line| line.strip_prefix(&name));
        line.unwrap_or_else(|| panic!("no {name}")).parse().unwrap()
    })
}

#[test]
fn same_result_is_kept_and_another_one_is_refused_and_told() {
    let (_folder, gateway) = gateway();
    let path = format!("/{}", entry(1));
    let put = |token, body: &[u8]| asked(&gateway, token, "PUT", &path, body).code;
    // Longer than what is held in memory, so that both ways of writing are gone.
    for (number, size) in [(1, 4_000), (2, 700_000)] {
        let path = format!("/{}", entry(number));
        let put = |token, body: &[u8]| asked(&gateway, token, "PUT", &path, body).code;
        let rlib: Vec<u8> = (0..size)
            .map(|at: u32| (at.wrapping_mul(2_654_435_761) >> 24) as u8)
            .collect();
        let first = result(
            &[("a.rlib", &rlib), ("a.rmeta", b"meta"), ("stderr", b"one")],
            0o644,
        );
        let again = result(
            &[
                ("stderr", b"other"),
                ("a.rmeta", b"meta"),
                ("a.rlib", &rlib),
            ],
            0o600,
        );
        let evil = result(&[("a.rlib", b"evil"), ("a.rmeta", b"meta")], 0o644);
        assert_eq!(put(MAIN, &first), 201);
        assert_eq!(put(MAIN, &again), 204, "answered as stored");
        assert_eq!(
            found(&gateway, MAIN, &path),
            Some(first.clone()),
            "the first one stays"
        );
        assert_eq!(put(MAIN, &evil), 409);
        assert_eq!(
            put(MAIN, &archive(b"no frame")),
            409,
            "what nobody could use"
        );
        assert_eq!(found(&gateway, MAIN, &path), Some(first));
    }
    assert_eq!(rewrites(&gateway), [2, 4, 0]);
    let alert = gateway.process.wait_for_line("two results of one compile");
    for word in [&entry(1), "webdav main", "are kept"] {
        assert!(alert.contains(word), "{alert}");
    }
    // Elsewhere the last one wins, as ever.
    assert_eq!(put(PR42, &result(&[("a.rlib", b"1")], 0o644)), 201);
    assert_eq!(put(PR42, &result(&[("a.rlib", b"2")], 0o644)), 204);
    // Removed first, it could be replaced: only who may replace removes.
    let purge = b"{\"namespace\":\"main\"}";
    assert_eq!(asked(&gateway, MAIN, "DELETE", &path, b"").code, 403);
    assert_eq!(asked(&gateway, MAIN, "POST", "/api/purge", purge).code, 403);
    assert_eq!(
        asked(&gateway, PR42, "DELETE", &path, b"").code,
        204,
        "its own"
    );
    // Who may replace does.
    let mended = result(&[("a.rlib", b"mended")], 0o644);
    assert_eq!(put(MENDER, &mended), 204);
    assert_eq!(at(&gateway, "main", &entry(1)), Some(mended));
    let audit = std::fs::read_to_string(gateway.config.store_dir.join("audit.jsonl")).unwrap();
    let events: Vec<serde_json::Value> = audit
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let conflicts = events.iter().filter(|event| event["event"] == "conflict");
    assert_eq!(conflicts.count(), 4);
    let by_mender = events
        .iter()
        .find(|event| event["by"] == "webdav mender")
        .unwrap();
    assert_eq!(by_mender["event"], "write");
    assert!(by_mender["time"].as_str().unwrap().ends_with('Z'));
}

/// A client that cannot use what it got compiles, and sends the result again: that is how a broken entry is mended.
#[test]
fn broken_entry_is_replaced_by_anyone_who_may_write() {
    let (_folder, mut gateway) = gateway();
    let good = result(&[("a.rlib", b"good")], 0o644);
    // One whose archive is whole and whose content is not, and one that the disk has damaged.
    let path = |number| format!("/{}", entry(number));
    assert_eq!(
        asked(&gateway, MAIN, "PUT", &path(1), &archive(b"no frame")).code,
        201
    );
    assert_eq!(asked(&gateway, MAIN, "PUT", &path(2), &good).code, 201);
    gateway.process.signal(Signal::SIGTERM);
    gateway.process.exit();
    damage(&gateway.config.store_dir.join("blobs/main"));
    gateway.restart();
    gateway.process.wait_for_line("named tokens in force");
    for number in [1, 2] {
        let code = asked(&gateway, MAIN, "PUT", &path(number), &good).code;
        assert!([201, 204].contains(&code), "{number}: {code}");
        assert_eq!(
            found(&gateway, MAIN, &path(number)),
            Some(good.clone()),
            "{number}"
        );
    }
    let [same, different, replaced] = rewrites(&gateway);
    assert_eq!((same, different), (0, 0));
    assert!(replaced >= 1, "{replaced}");
}

/// Changes a byte of each body that says "good".
fn damage(folder: &std::path::Path) {
    let mut folders: Vec<PathBuf> = vec![folder.to_owned()];
    let mut damaged = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let mut bytes = std::fs::read(&path).unwrap();
            if let Some(at) = bytes.windows(4).position(|window| window == b"good") {
                bytes[at] = b'G';
                std::fs::write(&path, bytes).unwrap();
                damaged += 1;
            }
        }
    }
    assert_eq!(damaged, 1);
}

#[test]
fn own_protocol_writes_once_too() {
    let (_folder, gateway) = gateway();
    let mut socket = OwnProtocol(UnixStream::connect(&gateway.config.socket).unwrap());
    let key = super::digits(5);
    let (one, other) = (
        result(&[("a.o", b"1")], 0o644),
        result(&[("a.o", b"2")], 0o644),
    );
    assert!(socket.put(&key, &one).unwrap());
    assert!(socket.put(&key, &one).unwrap());
    assert!(!socket.put(&key, &other).unwrap());
    assert_eq!(socket.get(&key).unwrap(), Some(one));
    assert_eq!(rewrites(&gateway), [1, 1, 0]);
}

/// Twenty writers of two results at one moment: one of the two is there, and stays.
#[test]
fn first_of_many_at_once_stays() {
    let (_folder, gateway) = gateway();
    let results = [b"1", b"2"].map(|body| result(&[("a.o", &body[..])], 0o644));
    for number in 0..10 {
        let path = format!("/{}", entry(number));
        let codes: Vec<(usize, u16)> = std::thread::scope(|scope| {
            let (gateway, path, results) = (&gateway, &path, &results);
            let writers: Vec<_> = (0..20)
                .map(|writer| {
                    let which = writer % 2;
                    scope.spawn(move || {
                        (
                            which,
                            asked(
                                gateway,
                                WRITER,
                                "PUT",
                                &format!("/main{path}"),
                                &results[which],
                            )
                            .code,
                        )
                    })
                })
                .collect();
            writers
                .into_iter()
                .map(|writer| writer.join().unwrap())
                .collect()
        });
        let there = found(&gateway, MAIN, &path).unwrap();
        let winner = results.iter().position(|result| *result == there).unwrap();
        for (which, code) in codes {
            let expected = which == winner;
            assert_eq!([201, 204].contains(&code), expected, "{number}: {code}");
        }
    }
}
