//! What cannot work ends at once, with exit code 2 and a line that names the hint.

use crate::docker::{PATIENCE, run};
use crate::harness::now;
use crate::site::Site;

#[test]
fn persistent_mode_wants_a_real_mount() {
    let Some(site) = Site::open() else { return };
    for (what, flags) in [
        ("nothing", &[][..]),
        ("anonymous", &["--volume=/var/sccache"]),
        ("tmpfs", &["--tmpfs=/var/sccache"]),
    ] {
        let flags = [&["--env=MODE=persistent"], flags].concat();
        let (code, said) = site.container("lost", &flags).end();
        assert_eq!(code, "2", "{what}: {said}");
        for part in ["MODE=persistent needs a mount", "hint: add -v "] {
            assert!(said.contains(part), "{what}: {said}");
        }
    }
}

#[test]
fn folder_that_cannot_be_written_is_named_with_its_owner() {
    let Some(site) = Site::open() else { return };
    // Docker makes it, for root.
    let volume = site.name("unwritable");
    let mount = format!("--volume={volume}:/srv/cache");
    let flags = [
        &mount,
        "--env=SCCACHE_DIR=/srv/cache",
        "--env=MODE=persistent",
        "--user=12345:12345",
    ];
    let (code, said) = site.container("unwritable", &flags).end();
    assert_eq!(code, "2", "{said}");
    assert!(
        said.contains("hint: \"/srv/cache\" belongs to 0:0 and we run as 12345:12345"),
        "{said}"
    );
    site.docker.ok(&["volume", "rm", &volume]);
}

#[test]
fn wrong_setting_is_refused_by_the_program_and_the_script_passes_it_on() {
    let Some(site) = Site::open() else { return };
    let script = site.script("refused");
    let start = now();
    let mut command = script.command();
    command.args(["start", "ephemeral"]);
    let ran = run(command.env("SCCACHE_CACHE_SIZE", "plenty"), PATIENCE);
    ran.refused(2, &["SCCACHE_CACHE_SIZE=plenty", "hint: "]);
    assert!(start.elapsed() < PATIENCE / 2, "{:?}", start.elapsed());
    let left = site.docker.run(&["inspect", &script.container]);
    assert_ne!(left.code, Some(0), "a container that never ran is removed");
}
