//! What `images/bootstrap.sh` refuses to put into a base image: mirrors that serve other files than their keyring signed.
//!
//! The mirrors are local ones, with keys of the test's own. What a right one becomes is seen where images are made.

use crate::docker::{PATIENCE, Ran, run};
use crate::harness::{Process, clean, wait_for};
use crate::site::free_port;
use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A key that signs what a mirror has.
struct Key {
    home: tempfile::TempDir,
}

impl Key {
    fn make() -> Key {
        let home = tempfile::tempdir().unwrap();
        let key = Key { home };
        key.gpg(&["--quick-gen-key", "mirror@localhost", "rsa2048", "sign"]);
        key.gpg(&["--output", key.ring().to_str().unwrap(), "--export"]);
        key
    }

    fn gpg(&self, args: &[&str]) {
        let mut command = clean("gpg");
        command.env("GNUPGHOME", self.home.path()).args([
            "--batch",
            "--quiet",
            "--yes",
            "--pinentry-mode=loopback",
            "--passphrase=",
        ]);
        run(command.args(args), PATIENCE).ok();
    }

    /// The keyring of whoever trusts it.
    fn ring(&self) -> PathBuf {
        self.home.path().join("ring.gpg")
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        // The agent would go on for a minute without its folder.
        let mut stop = Command::new("gpgconf");
        let _ = stop
            .env("GNUPGHOME", self.home.path())
            .args(["--kill", "all"])
            .status();
    }
}

/// A mirror at a port of this machine.
pub(crate) struct Mirror {
    _server: Process,
    pub(crate) folder: tempfile::TempDir,
    port: u16,
}

impl Mirror {
    pub(crate) fn serve() -> Mirror {
        let (folder, port) = (tempfile::tempdir().unwrap(), free_port());
        let mut server = clean("python3");
        server
            .args(["-m", "http.server", &port.to_string()])
            .args(["--bind", "127.0.0.1", "--directory"])
            .arg(folder.path());
        let mirror = Mirror {
            _server: Process::start(&mut server),
            folder,
            port,
        };
        wait_for("the mirror", PATIENCE, || {
            TcpStream::connect(("127.0.0.1", port)).ok()
        });
        mirror
    }

    fn write(&self, path: &str, bytes: &[u8]) -> PathBuf {
        let file = self.folder.path().join(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, bytes).unwrap();
        file
    }

    /// `images/bootstrap.sh` for a base of `distro` from this mirror and by somebody who trusts `ring`, as the last words of
    /// a command that begins with `before`.
    pub(crate) fn bootstrap(&self, before: &[String], distro: &str, ring: &Path) -> Command {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("images/bootstrap.sh");
        let mut command = clean(before.first().map_or("sh", String::as_str));
        command
            .args(before.iter().skip(1))
            .arg(script)
            .args([distro, "test", &format!("http://127.0.0.1:{}", self.port)])
            .env("SCCACHE_BASE_KEYRING", ring)
            .env("TMPDIR", self.folder.path());
        command
    }

    /// What comes of a base that is refused.
    fn base(&self, distro: &str, ring: &Path) -> Ran {
        let mut command = self.bootstrap(&[], distro, ring);
        command.env("SCCACHE_BASE_IMAGE", "sccache-dock-it-refused");
        let ran = run(&mut command, PATIENCE);
        let left = fs::read_dir(self.folder.path()).unwrap();
        let left: Vec<_> = left
            .filter_map(|it| it.unwrap().file_name().into_string().ok())
            .filter(|it| it.starts_with("sccache-dock-base"))
            .collect();
        assert_eq!(left, [""; 0], "the folder of its work is left");
        ran
    }
}

fn sha256(bytes: &[u8]) -> String {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), bytes).unwrap();
    let text = run(Command::new("sha256sum").arg(file.path()), PATIENCE).ok();
    text.split_once(' ').unwrap().0.to_owned()
}

pub(crate) fn machine() -> String {
    run(Command::new("uname").arg("-m"), PATIENCE).ok()
}

/// The index of a mirror of .deb packages, which has a package that is named with the SHA-256 of `package`.
fn index_of_debs(mirror: &Mirror, key: &Key, package: &[u8]) {
    let arch = if machine() == "aarch64" {
        "arm64"
    } else {
        "amd64"
    };
    let sum = sha256(package);
    let packages = format!("Package: apt\nFilename: pool/apt.deb\nSHA256: {sum}\n\n");
    let plain = mirror.write("Packages", packages.as_bytes());
    run(
        Command::new("gzip").args(["--keep", "--force"]).arg(&plain),
        PATIENCE,
    )
    .ok();
    let gz = fs::read(plain.with_extension("gz")).unwrap();
    let path = format!("main/binary-{arch}/Packages.gz");
    mirror.write(&format!("dists/test/{path}"), &gz);
    let release = format!(
        "Suite: test\nSHA256:\n {} {} {path}\n",
        sha256(&gz),
        gz.len()
    );
    let release = mirror.write("dists/test/Release", release.as_bytes());
    let signed = release.with_file_name("InRelease");
    key.gpg(&[
        "--output",
        signed.to_str().unwrap(),
        "--clear-sign",
        release.to_str().unwrap(),
    ]);
}

#[test]
fn debs_are_those_that_the_keyring_of_the_distribution_signed() {
    let (mirror, key, other) = (Mirror::serve(), Key::make(), Key::make());
    index_of_debs(&mirror, &key, b"a package");
    mirror.write("pool/apt.deb", b"another package");
    let (ring, hint) = (key.ring(), "hint: ");

    // Each is found out only after all before it were found right.
    let ran = mirror.base("debian", &ring);
    ran.refused(1, &["apt.deb is not what its index names", hint]);
    let index = format!("http://127.0.0.1:{}/dists/test/InRelease", mirror.port);
    let ran = mirror.base("debian", &other.ring());
    ran.refused(1, &[&format!("the signature of {index}"), hint]);
    let ran = mirror.base("ubuntu", &ring.with_extension("none"));
    ran.refused(
        1,
        &["there is no keyring of ubuntu", "SCCACHE_BASE_KEYRING"],
    );

    // A signed index of which one list was changed since.
    let arch = if machine() == "aarch64" {
        "arm64"
    } else {
        "amd64"
    };
    mirror.write(
        &format!("dists/test/main/binary-{arch}/Packages.gz"),
        b"other",
    );
    let ran = mirror.base("debian", &ring);
    ran.refused(1, &["Packages.gz is not what its index names", hint]);
}

#[test]
fn packages_of_arch_linux_are_those_that_its_keyring_signed() {
    let (mirror, key, other) = (Mirror::serve(), Key::make(), Key::make());
    let folder = format!("core/os/{}", machine());
    let package = b"a package";
    let names = ["bash", "coreutils", "pacman", "archlinux-keyring"];
    for name in names {
        let file = format!("{name}-1-1-any.pkg.tar.zst");
        let desc = format!(
            "%FILENAME%\n{file}\n\n%NAME%\n{name}\n\n%SHA256SUM%\n{}\n",
            sha256(package)
        );
        mirror.write(&format!("db/{name}-1-1/desc"), desc.as_bytes());
        let file = mirror.write(&format!("{folder}/{file}"), package);
        other.gpg(&["--detach-sign", file.to_str().unwrap()]);
    }
    let mut tar = Command::new("tar");
    tar.args(["--create", "--gzip", "--file"])
        .arg(mirror.folder.path().join(&folder).join("core.db"))
        .arg("--directory")
        .arg(mirror.folder.path().join("db"));
    run(tar.arg("."), PATIENCE).ok();

    let ran = mirror.base("archlinux", &key.ring());
    ran.refused(1, &["the signature of bash-1-1-any.pkg.tar.zst", "hint: "]);
    mirror.write(&format!("{folder}/bash-1-1-any.pkg.tar.zst"), b"another");
    let ran = mirror.base("archlinux", &key.ring());
    ran.refused(1, &["bash-1-1-any.pkg.tar.zst is not what its index names"]);
}
