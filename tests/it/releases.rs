//! Upstream's release archives, from a local server with the same names and files.

use crate::docker::{PATIENCE, Ran, run};
use crate::harness::{Process, clean, sccache_bin, wait_for};
use crate::site::free_port;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const VERSION: &str = "0.19.0";
const PROGRAMS: [&str; 2] = ["sccache", "sccache-dist"];

fn machine() -> String {
    run(Command::new("uname").arg("-m"), PATIENCE).ok()
}

/// A server of archives as upstream packs them, made of the sccache that the tests use.
pub(crate) struct Releases {
    _server: Process,
    folder: tempfile::TempDir,
    port: u16,
}

impl Releases {
    pub(crate) fn serve() -> Releases {
        let (folder, port) = (tempfile::tempdir().unwrap(), free_port());
        let version = folder.path().join(format!("v{VERSION}"));
        fs::create_dir(&version).unwrap();
        let releases = Releases {
            _server: Process::start(
                clean("python3")
                    .args(["-m", "http.server", &port.to_string()])
                    .args(["--bind", "127.0.0.1", "--directory"])
                    .arg(folder.path()),
            ),
            folder,
            port,
        };
        releases.pack(&machine());
        wait_for("the server", PATIENCE, || {
            std::net::TcpStream::connect(("127.0.0.1", port)).ok()
        });
        releases
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn archive(&self, program: &str, machine: &str) -> PathBuf {
        let name = format!("{program}-v{VERSION}-{machine}-unknown-linux-musl");
        self.folder.path().join(format!("v{VERSION}/{name}.tar.gz"))
    }

    fn pack(&self, machine: &str) {
        for program in PROGRAMS {
            let archive = self.archive(program, machine);
            let name = archive.file_name().unwrap().to_str().unwrap();
            let inside = tempfile::tempdir().unwrap();
            let folder = inside.path().join(name.strip_suffix(".tar.gz").unwrap());
            fs::create_dir(&folder).unwrap();
            fs::copy(sccache_bin().with_file_name(program), folder.join(program)).unwrap();
            let mut tar = Command::new("tar");
            tar.args(["--create", "--use-compress-program=gzip -1", "--file"])
                .arg(&archive);
            run(tar.arg("--directory").arg(inside.path()).arg("."), PATIENCE).ok();
        }
    }

    /// As `SCCACHE_SHA256` wants them.
    pub(crate) fn sums(&self) -> String {
        let sums = PROGRAMS.map(|program| {
            let archive = self.archive(program, &machine());
            let text = run(Command::new("sha256sum").arg(archive), PATIENCE).ok();
            text.split_once(' ').unwrap().0.to_owned()
        });
        sums.join(" ")
    }

    fn get(&self, from: &str, sums: &str, out: &Path, prepare: impl FnOnce(&mut Command)) -> Ran {
        let binaries = Path::new(env!("CARGO_MANIFEST_DIR")).join("images/binaries.sh");
        let mut command = clean(binaries);
        command.arg("sccache").arg(out).env("SCCACHE_FROM", from);
        command
            .env("SCCACHE_RELEASES", self.url())
            .env("SCCACHE_SHA256", sums);
        prepare(&mut command);
        run(&mut command, PATIENCE)
    }
}

/// A folder for the PATH with one program, a script of `text`.
fn program(folder: &Path, name: &str, text: &str) -> String {
    let file = folder.join(name);
    fs::write(&file, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    format!("{}:{}", folder.display(), std::env::var("PATH").unwrap())
}

fn files(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap().map(Result::unwrap);
    let mut names: Vec<String> = entries
        .map(|it| it.file_name().into_string().unwrap())
        .collect();
    names.sort_unstable();
    names
}

#[test]
fn archives_are_taken_only_with_the_right_checksum() {
    let releases = Releases::serve();
    let out = tempfile::tempdir().unwrap();
    for from in ["release", "auto"] {
        releases
            .get(from, &releases.sums(), out.path(), |_| ())
            .ok();
        assert_eq!(files(out.path()), PROGRAMS);
        fs::remove_file(out.path().join("sccache")).unwrap();
        fs::remove_file(out.path().join("sccache-dist")).unwrap();
    }

    // Somebody has put another file in the place of one of them: nobody compiles instead, nobody runs it.
    let sums = releases.sums();
    let archive = releases.archive("sccache-dist", &machine());
    let mut bytes = fs::read(&archive).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&archive, bytes).unwrap();
    for from in ["release", "auto"] {
        let ran = releases.get(from, &sums, out.path(), |_| ());
        ran.refused(
            1,
            &[
                "sccache-dist-v0.19.0",
                "is not the one that is known",
                "hint: ",
            ],
        );
        assert!(!out.path().join("sccache-dist").exists());
        let _ = fs::remove_file(out.path().join("sccache"));
    }
    let ran = releases.get("release", "", out.path(), |_| ());
    ran.refused(
        1,
        &["there is no checksum of sccache-v0.19.0", "SCCACHE_SHA256"],
    );
    assert_eq!(files(out.path()), [""; 0]);
}

#[test]
fn each_kind_of_machine_has_its_archives() {
    let releases = Releases::serve();
    for machine in ["x86_64", "aarch64"] {
        releases.pack(machine);
        let folder = tempfile::tempdir().unwrap();
        let path = program(folder.path(), "uname", &format!("echo {machine}"));
        let out = tempfile::tempdir().unwrap();
        let sums = PROGRAMS.map(|it| {
            let text = run(
                Command::new("sha256sum").arg(releases.archive(it, machine)),
                PATIENCE,
            );
            text.ok().split_once(' ').unwrap().0.to_owned()
        });
        let other = if machine == "x86_64" {
            "aarch64"
        } else {
            "x86_64"
        };
        for program in PROGRAMS {
            let _ = fs::remove_file(releases.archive(program, other));
        }
        let ran = releases.get("release", &sums.join(" "), out.path(), |it| {
            it.env("PATH", path);
        });
        ran.ok();
        assert_eq!(files(out.path()), PROGRAMS, "{machine}");
    }
}

#[test]
fn auto_compiles_where_there_is_no_release_and_says_so() {
    let releases = Releases::serve();
    let sums = releases.sums();
    for program in PROGRAMS {
        fs::remove_file(releases.archive(program, &machine())).unwrap();
    }
    // As far as to cargo: it takes minutes, and scripts/test has done it once for this machine.
    let (folder, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = program(
        folder.path(),
        "cargo",
        "echo \"cargo was asked: $*\" >&2; exit 9",
    );
    let has_asked = "cargo was asked: install --locked --force --features all,dist-server";
    let ran = releases.get("auto", &sums, out.path(), |it| {
        it.env("PATH", &path);
    });
    ran.refused(
        9,
        &[
            "cannot fetch http://",
            "compiling sccache 0.19.0 instead",
            has_asked,
        ],
    );
    let ran = releases.get("auto", "", out.path(), |it| {
        it.env("PATH", &path);
    });
    ran.refused(9, &["has no checksum of its release", has_asked]);
    let ran = releases.get("release", &sums, out.path(), |it| {
        it.env("PATH", &path);
    });
    ran.refused(1, &["cannot take sccache from its release", "hint: "]);
    assert!(!ran.stderr.contains(has_asked), "{}", ran.stderr);
}
