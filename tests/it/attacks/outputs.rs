//! Jobs whose compiler is the attacker's, by the real sccache and sccache-dist.

use super::jobs::compile;
use crate::distributed::{Farm, distributed, is_possible};
use crate::harness::now;
use crate::machine::Machine;
use std::process::Command;
use std::time::Duration;

/// Makes an archive of a folder with the attacker's compiler alone; its objects hold `object`.
pub(super) fn pack(client: &Machine, archive: &str, object: &str) {
    let root = client.work().join(format!("{archive}-root"));
    std::fs::create_dir_all(root.join("usr/bin")).unwrap();
    let object = format!("-DOBJECT=\"{object}\"");
    compile(&["-static", &object], "compiler", &root.join("usr/bin/cc"));
    let packed = Command::new("tar")
        .arg("-C")
        .arg(root)
        .arg("-czf")
        .arg(client.work().join(archive))
        .arg("usr")
        .status();
    assert!(packed.unwrap().success());
}

/// Lets `own/cc`, which is the machine's for whoever compiles here, be this archive for builders.
pub(super) fn set_up(client: &Machine, archive: &str) {
    client.write("own/cc", "#!/bin/sh\nexec /usr/bin/cc \"$@\"\n");
    assert_eq!(client.sh("chmod +x own/cc").code, Some(0));
    let work = client.work();
    let file = work.join("dist.toml");
    let conf = std::fs::read_to_string(&file).unwrap();
    let toolchain = format!(
        "[[dist.toolchains]]\ntype = \"path_override\"\ncompiler_executable = \"{0}/own/cc\"\n\
         archive = \"{0}/{archive}\"\narchive_compiler_executable = \"/usr/bin/cc\"\n",
        work.display()
    );
    std::fs::write(file, conf + &toolchain).unwrap();
}

/// Compiles a file that says this word; gives how long it took.
pub(super) fn build(farm: &Farm, word: &str) -> Duration {
    farm.client
        .write(&format!("{word}.c"), &format!("int {word};\n"));
    let start = now();
    let script = format!("sccache $PWD/own/cc -c {word}.c -o {word}.o");
    let built = farm.client(&script);
    assert_eq!(built.code, Some(0), "{word}: {}", built.output);
    start.elapsed()
}

#[test]
fn job_that_leaves_or_takes_what_no_compiler_does_is_ended_and_its_slot_is_free() {
    let Some(farm) = Farm::start_with(&[("SCCACHE_JOB_DISK", "64M")]) else {
        return;
    };
    pack(&farm.client, "cc.tar.gz", "an object");
    set_up(&farm.client, "cc.tar.gz");
    build(&farm, "act_well");
    assert_eq!(
        distributed(&farm.statistics()),
        (1, 0),
        "it is no attack by itself"
    );
    let mut errors = 0;
    for (word, limit) in [
        ("act_fifo", "files"),
        ("act_link", "files"),
        ("act_socket", "files"),
        ("act_large", ""),
        ("act_talk", "output"),
        ("act_fill", "disk"),
        ("act_hide", "disk"),
        ("act_shm", "disk"),
        ("act_reserve", ""),
        ("act_stow", "disk"),
        ("act_map", "disk"),
    ] {
        let before = limits(&farm, limit);
        let took = build(&farm, word);
        errors += 1;
        println!("{word}: {took:.2?}");
        assert_eq!(distributed(&farm.statistics()), (errors, errors), "{word}");
        if !limit.is_empty() {
            assert_eq!(limits(&farm, limit), before + 1, "{word}: {limit}");
        }
        build(&farm, &format!("well_{errors}"));
        assert_eq!(
            distributed(&farm.statistics()),
            (errors + 1, errors),
            "{word}"
        );
    }
}

/// Where files are memory, nobody tells what a process has written: the kernel itself keeps a job within its bound.
#[test]
fn job_whose_files_are_memory_has_no_more_of_it_than_any_other() {
    if !is_possible() {
        return;
    }
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let Some(farm) = Farm::start_in(
        dir,
        &[("SCCACHE_JOB_DISK", "64M"), ("SCCACHE_RELAY", "off")],
    ) else {
        return;
    };
    pack(&farm.client, "cc.tar.gz", "an object");
    set_up(&farm.client, "cc.tar.gz");
    build(&farm, "act_well");
    assert_eq!(
        distributed(&farm.statistics()),
        (1, 0),
        "{}",
        farm.dock.log()
    );
    let object = farm.client.work().join("act_well.o");
    assert_eq!(std::fs::read(object).unwrap(), b"an object");
    // The job's own tmpfs is seen from nowhere else; other tests have some of it too.
    let used = || {
        let memory = std::fs::read_to_string("/proc/meminfo").unwrap();
        let line = memory.lines().find_map(|line| line.strip_prefix("Shmem:"));
        let kib = line.unwrap().trim().strip_suffix(" kB").unwrap();
        kib.parse::<u64>().unwrap() >> 10
    };
    let mut errors = 0;
    for word in [
        "act_stow", "act_map", "act_hide", "act_fill", "act_shm", "act_fifo",
    ] {
        let (before, over) = (used(), std::sync::atomic::AtomicBool::new(false));
        let most = std::thread::scope(|scope| {
            let watch = scope.spawn(|| {
                let mut most = 0;
                while !over.load(std::sync::atomic::Ordering::Relaxed) {
                    most = most.max(used());
                    std::thread::sleep(Duration::from_millis(10));
                }
                most
            });
            build(&farm, word);
            over.store(true, std::sync::atomic::Ordering::Relaxed);
            watch.join().unwrap()
        });
        errors += 1;
        println!("{word}: {} MiB", most.saturating_sub(before));
        assert_eq!(distributed(&farm.statistics()), (1, errors), "{word}");
        assert!(most < before + 800, "{word}: {before} MiB, then {most}");
    }
    // Of those whose files have a name in the end.
    assert!(limits(&farm, "disk") > 0, "{}", farm.dock.log());
    build(&farm, "well_again");
    assert_eq!(distributed(&farm.statistics()), (2, errors));
}

/// Jobs that went over this limit.
fn limits(farm: &Farm, name: &str) -> u64 {
    let status = farm.dock.status().unwrap();
    let found = status["cache"]["dist"]["local_jobs"]["limits"][name].as_u64();
    found.unwrap_or(0)
}
