//! A base of Arch Linux from a signed mirror, by an ordinary user of Docker's group.
//!
//! No mirror of Arch Linux is asked. The real pacman, as Debian has it, installs packages that are made here: one with all
//! that a system needs, and the names that the base asks for.

use crate::bases::{Mirror, machine};
use crate::docker::{Container, LONG, PATIENCE, run};
use crate::site::{Site, skip};
use std::fs;
use std::os::unix::fs::MetadataExt;

/// Makes the mirror in /mirror of a container of Debian. `evil` has the signature of another package.
const MAKE: &str = r#"
export DEBIAN_FRONTEND=noninteractive GNUPGHOME=/tmp/gnupg
apt-get update --quiet=2
apt-get install --yes --quiet=2 --no-install-recommends pacman-package-manager gnupg zstd >/dev/null
(cd /tmp && apt-get download --quiet=2 makepkg && dpkg-deb --fsys-tarfile makepkg_*.deb | tar --extract --directory / ./usr/share/makepkg)
apt-get clean
rm -rf /var/lib/apt/lists/* /tmp/*.deb
mkdir -m 700 -p /tmp/gnupg
keys=/tmp/made/archlinux-keyring/usr/share/keyrings
mkdir -p "$keys" /tmp/empty
gpg --batch --quiet --passphrase '' --quick-gen-key mirror@localhost rsa2048 sign
gpg --batch --quiet --output "$keys/archlinux.gpg" --export
gpg --with-colons --fingerprint | awk -F : '/^fpr/ { print $10 ":4:"; exit }' >"$keys/archlinux-trusted"
: >"$keys/archlinux-revoked"
# NAME, REPOSITORY, what it needs; its files lie in /tmp/made, or are the whole system.
package() {
    file=/mirror/$2/os/$MACHINE/$1-1-1-any.pkg.tar.zst
    mkdir -p "${file%/*}" "/tmp/made/$1" "/tmp/db/$2/$1-1-1"
    info="pkgname = $1\npkgbase = $1\npkgver = 1-1\npkgdesc = $1\nurl = none\nbuilddate = 1\npackager = none\nsize = 1\narch = any\n"
    printf "$info${3:+depend = $3\n}" >"/tmp/made/$1/.PKGINFO"
    if [ "$1" = system ]; then
        tar --create --directory /tmp/made/system .PKGINFO --directory / $(cd / && ls -d bin etc lib* root sbin usr var)
    else
        (cd "/tmp/made/$1" && tar --create $(ls -A))
    fi | zstd -q -1 >"$file"
    gpg --batch --quiet --detach-sign "$file"
    {
        printf '%%FILENAME%%\n%s\n\n%%NAME%%\n%s\n\n%%VERSION%%\n1-1\n\n%%ARCH%%\nany\n\n' "${file##*/}" "$1"
        printf '%%CSIZE%%\n%s\n\n%%SHA256SUM%%\n%s\n\n' "$(stat -c %s "$file")" "$(sha256sum "$file" | cut -c 1-64)"
        [ -z "$3" ] || printf '%%DEPENDS%%\n%s\n\n' "$3"
    } >"/tmp/db/$2/$1-1-1/desc"
}
package system core ''
package bash core system
for name in coreutils shadow pacman archlinux-keyring bubblewrap ca-certificates; do package "$name" core bash; done
package good extra bash
package evil extra bash
cd "/mirror/extra/os/$MACHINE" && cp good-1-1-any.pkg.tar.zst.sig evil-1-1-any.pkg.tar.zst.sig
for db in core extra; do (cd "/tmp/db/$db" && tar --create --gzip --file "/mirror/$db/os/$MACHINE/$db.db" *); done
cp "$keys/archlinux.gpg" /mirror/ring.gpg
"#;

#[test]
fn base_of_arch_linux_holds_signed_packages_and_no_private_key() {
    let Some(site) = Site::open() else { return };
    if !nix::unistd::getuid().is_root() {
        return skip("only root can become another user").unwrap_or(());
    }
    let Some(debian) = site.base() else {
        return skip("no base image").unwrap_or(());
    };
    let docker = &site.docker;
    let maker = Container {
        docker,
        name: site.name("mirror"),
    };
    let machine = format!("MACHINE={}", machine());
    let mut make = docker.command();
    make.args(["run", "--network=host", "--name", &maker.name, "--env"])
        .args([&machine, debian, "sh", "-euc", MAKE]);
    run(&mut make, LONG).ok();
    let mirror = Mirror::serve();
    let folder = mirror.folder.path();
    let from = format!("{}:/mirror/.", maker.name);
    docker.ok(&["cp", &from, folder.to_str().unwrap()]);

    // The folder is the caller's, who is nobody in particular but may use Docker.
    let (user, group) = (1000, fs::metadata("/var/run/docker.sock").unwrap().gid());
    std::os::unix::fs::chown(folder, Some(user), Some(user)).unwrap();
    let before = [
        "setpriv".to_owned(),
        format!("--reuid={user}"),
        format!("--regid={user}"),
        format!("--groups={group}"),
        "sh".to_owned(),
    ];
    let image = site.image.replace(':', "-arch:");
    let mut command = mirror.bootstrap(&before, "archlinux", &folder.join("ring.gpg"));
    let ran = run(command.env("SCCACHE_BASE_IMAGE", &image), LONG);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);

    let inside = |text: &str| {
        let mut command = docker.command();
        command.args([
            "run",
            "--rm",
            "--network=host",
            &image,
            "bash",
            "-euc",
            text,
        ]);
        run(&mut command, PATIENCE * 3)
    };
    let ran = inside(
        "bwrap --version; cat /etc/pacman.conf; find / -xdev -path '*/private-keys*' -o -xdev -user 1000",
    );
    let text = ran.ok();
    assert!(
        text.contains("\nSigLevel = Required DatabaseOptional\n"),
        "{text}"
    );
    assert!(
        !text.contains("private-keys") && !text.contains("\n/"),
        "{text}"
    );

    // Who installs more makes a key first, and gets what the keyring of Arch Linux has signed, nothing else.
    let install = |name: &str| {
        let sync = format!("pacman --sync --refresh --noconfirm {name}");
        inside(&format!(
            "pacman-key --init; pacman-key --populate archlinux; {sync}"
        ))
    };
    install("good").ok();
    let refused = install("evil");
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(
        refused.stderr.contains("evil: signature from"),
        "{refused:?}"
    );
    docker.run(&["rmi", &image]);
}
