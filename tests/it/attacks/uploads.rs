//! What clients send to a builder, in sizes that no client sends, at the real sccache-dist: on its own port and by the relay.

use super::outputs::{build, pack, set_up};
use super::toolchains::{Attacker, name};
use crate::distributed::{Farm, distributed};
use crate::dock::eventually;
use flate2::{Compress, Compression, FlushCompress};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

const RELAYED: [(&str, &[(&str, &str)]); 2] = [
    ("stock", &[("SCCACHE_RELAY", "off")]),
    ("relay", &[("SCCACHE_RELAY", "on")]),
];

/// The head of a file in an archive.
fn head(name: &str, length: u64) -> Vec<u8> {
    let mut head = vec![0; 512];
    let mut put =
        |at: usize, text: &str| head[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, "0000644");
    put(124, &format!("{length:011o}"));
    put(148, "        ");
    put(156, "0");
    put(257, "ustar");
    put(263, "00");
    let sum: u32 = head.iter().map(|byte| u32::from(*byte)).sum();
    head[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    head
}

/// Compressed for itself, so that it can stand anywhere and as often as one likes.
fn packed(bytes: &[u8]) -> Vec<u8> {
    let mut packed = Vec::with_capacity(bytes.len() + 1024);
    let mut compress = Compress::new(Compression::best(), false);
    let done = compress.compress_vec(bytes, &mut packed, FlushCompress::Full);
    done.unwrap();
    packed
}

/// An archive of so many files of so many MiB of zeros.
fn bomb(files: usize, mib: usize) -> Vec<u8> {
    let zeros = packed(&vec![0; 1 << 20]);
    let mut bomb = vec![0x78, 0x01];
    for number in 0..files {
        bomb.extend(packed(&head(
            &format!("zeros-{number}"),
            (mib as u64) << 20,
        )));
        bomb.extend(zeros.repeat(mib));
    }
    bomb
}

/// MiB below a folder.
fn mib(folder: &Path) -> u64 {
    let output = std::process::Command::new("du")
        .arg("-sm")
        .arg(folder)
        .output();
    let said = String::from_utf8(output.unwrap().stdout).unwrap();
    said.split('\t').next().unwrap().parse().unwrap_or(0)
}

/// The most that lay below a folder while something was done, in MiB.
fn most_during(folder: &Path, work: impl FnOnce()) -> u64 {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut most = 0;
            while !over.load(Relaxed) {
                most = most.max(mib(folder));
                std::thread::sleep(Duration::from_millis(20));
            }
            most
        });
        work();
        over.store(true, Relaxed);
        watch.join().unwrap()
    })
}

fn status(farm: &Farm, path: &[&str]) -> u64 {
    let status = farm.dock.status().unwrap();
    let found = path
        .iter()
        .fold(&status["cache"]["dist"], |at, name| &at[*name]);
    found.as_u64().unwrap_or(0)
}

#[test]
fn inputs_that_unpack_to_too_much_are_refused_and_take_no_disk() {
    for (path, settings) in RELAYED {
        // No single file is larger than the largest of these.
        let bounds = [
            ("SCCACHE_JOB_DISK", "64M"),
            ("SCCACHE_TOOLCHAIN_SIZE", "64M"),
            ("SCCACHE_TOOLCHAIN_CACHE_SIZE", "64M"),
        ];
        let Some(farm) = Farm::start_with(&[&bounds[..], settings].concat()) else {
            return;
        };
        pack(&farm.client, "cc.tar.gz", "an object");
        set_up(&farm.client, "cc.tar.gz");
        build(&farm, "well");
        assert_eq!(
            distributed(&farm.statistics()),
            (1, 0),
            "{path}: {}",
            farm.dock.log()
        );
        let archive = std::fs::read(farm.client.work().join("cc.tar.gz")).unwrap();
        let attacker = Attacker { farm: &farm };
        let builds = farm.dock.dir.path().join("builder/build/builds");
        // Eight GiB in small files, and in one.
        for (files, size, limits) in [(8 << 10, 1, 1), (1, 8 << 10, 0)] {
            let job = attacker.allocate(&name(&archive));
            let (bomb, before) = (
                bomb(files, size),
                status(&farm, &["local_jobs", "limits", "disk"]),
            );
            let most = most_during(&builds, || {
                assert!(attacker.run(&job, &bomb).is_none(), "{path}: it ran");
            });
            println!("{path}, {files} files of {size} MiB: {most} MiB at most");
            assert!(most < 2 << 10, "{path}: {most} MiB");
            let counted = status(&farm, &["local_jobs", "limits", "disk"]) - before;
            assert_eq!(counted, limits, "{path}, {files} files");
            eventually("nothing is left", || (mib(&builds) < 2).then_some(()));
        }
        farm.dock
            .wait_log("a job was refused: its inputs unpack to more than 64 MiB");
        if path == "relay" {
            // Not once more on the same builder, which is not at fault.
            assert_eq!(
                status(&farm, &["relay", "jobs", "too_large"]),
                2,
                "{}",
                farm.dock.log()
            );
        }
        build(&farm, "again");
        assert_eq!(
            distributed(&farm.statistics()),
            (2, 0),
            "{path}: {}",
            farm.dock.log()
        );
    }
}

#[test]
fn client_with_more_inputs_than_a_job_may_have_compiles_by_itself() {
    let Some(farm) = Farm::start_with(&[("SCCACHE_JOB_DISK", "64M"), ("SCCACHE_RELAY", "off")])
    else {
        return;
    };
    farm.write(
        "a.c",
        &format!("char all[] = \"{}\";\n", "x".repeat(72 << 20)),
    );
    let built = farm.client("sccache cc -c a.c -o a.o");
    assert_eq!(built.code, Some(0), "{}", built.output);
    assert_eq!(
        distributed(&farm.statistics()),
        (0, 1),
        "{}",
        farm.dock.log()
    );
    assert_eq!(status(&farm, &["local_jobs", "limits", "disk"]), 1);
}

/// Toolchains of 64 MiB that are none, where there is room for 8.
fn archive() -> Vec<u8> {
    let mut archive = vec![0_u8; 64 << 20];
    archive[..8].copy_from_slice(b"no gzip!");
    archive
}

const SMALL: (&str, &str) = ("SCCACHE_TOOLCHAIN_CACHE_SIZE", "8M");

#[test]
fn upload_larger_than_the_cache_of_toolchains_is_cut_off_and_leaves_nothing() {
    for (path, settings) in RELAYED {
        let Some(farm) = Farm::start_with(&[&[SMALL], settings].concat()) else {
            return;
        };
        let (attacker, archive) = (Attacker { farm: &farm }, archive());
        let job = attacker.allocate(&name(&archive));
        assert!(job.needs_toolchain);
        let dir = farm.dock.dir.path().to_owned();
        let most = most_during(&dir, || {
            let answer = attacker.send(&job, &archive);
            assert!(
                answer.is_none_or(|answer| answer == [2, 0, 0, 0]),
                "{path}: taken"
            );
        });
        println!("{path}: {most} MiB at most");
        assert!(most < 20, "{path}: {most} MiB");
        farm.dock.wait_log(match path {
            "relay" => "it has more than 8 MiB",
            _ => "a request of more than 8 MiB was cut off",
        });
        eventually("nothing is left", || {
            (mib(&dir.join("builder")) < 2).then_some(())
        });
    }
}

#[test]
fn upload_that_comes_to_nothing_leaves_nothing() {
    let Some(farm) = Farm::start_with(&[SMALL, ("SCCACHE_RELAY", "off")]) else {
        return;
    };
    let (attacker, archive) = (Attacker { farm: &farm }, archive());
    let job = attacker.allocate(&name(&archive));
    let answer = attacker.send(&job, &archive[..6 << 20]);
    assert_eq!(answer.unwrap(), [2, 0, 0, 0], "it is not whole");
    farm.dock
        .wait_log("the upload of a toolchain came to nothing: removed the 6 MiB");
    assert!(mib(&farm.dock.dir.path().join("builder")) < 2);
}

#[test]
fn client_whose_compiler_is_larger_than_the_cache_of_toolchains_compiles_by_itself() {
    for (path, settings) in RELAYED {
        let Some(farm) = Farm::start_with(&[&[SMALL], settings].concat()) else {
            return;
        };
        farm.write("a.c", "int main(void) { return 0; }\n");
        let built = farm.client("sccache cc -c a.c -o a.o");
        assert_eq!(built.code, Some(0), "{path}: {}", built.output);
        assert_eq!(
            distributed(&farm.statistics()),
            (0, 1),
            "{path}: {}",
            farm.dock.log()
        );
        let said = farm.dock.wait_log(" 8 MiB");
        println!("{path}: {said}");
    }
}
