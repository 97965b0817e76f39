//! Finds out from the mounts whether data in a folder outlives the container.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// Why data would not outlive the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Loss {
    /// It is on the container's own layer.
    OwnLayer,
    /// It is on an in-memory file system of this type.
    Memory(String),
    /// It is in an anonymous volume, which a new container would not get again.
    Anonymous,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Loss::OwnLayer => f.write_str("nothing is mounted there"),
            Loss::Memory(kind) => write!(f, "it lies in memory ({kind})"),
            Loss::Anonymous => f.write_str("the volume there is anonymous"),
        }
    }
}

/// Whether this process runs in a container. Machines created from a container image look the same.
pub fn in_container() -> bool {
    let marks = ["/.dockerenv", "/run/.containerenv"];
    marks.iter().any(|mark| Path::new(mark).exists())
}

/// Why data in `dir` would be lost with the container, or `None` if it would not.
pub fn lost(dir: &Path) -> Option<Loss> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let real = fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned());
    why_lost(&mounts, &real, in_container())
}

/// Like [`lost`], for the given text of `/proc/self/mountinfo` (proc(5)).
fn why_lost(mountinfo: &str, dir: &Path, in_container: bool) -> Option<Loss> {
    let mut layer = None;
    let (point, root, kind, source, device) = mountinfo
        .lines()
        .filter_map(|line| {
            let (fields, rest) = line.split_once(" - ")?;
            let mut fields = fields.split(' ').skip(2);
            let device = fields.next()?;
            let (root, point) = (fields.next()?, unescape(fields.next()?));
            let mut rest = rest.split(' ');
            let (kind, source) = (rest.next()?, rest.next()?);
            if point == Path::new("/") {
                layer = Some(device);
            }
            dir.starts_with(&point)
                .then_some((point, root, kind, source, device))
        })
        // Later lines are mounted over earlier ones.
        .max_by_key(|(point, ..)| point.as_os_str().len())?;
    if matches!(kind, "tmpfs" | "ramfs") {
        return Some(Loss::Memory(kind.to_owned()));
    }
    // A folder of a machine that is a container itself lies on an overlay too, but not on ours.
    if (kind.contains("overlay") || kind == "aufs") && layer == Some(device) {
        return Some(Loss::OwnLayer);
    }
    // With btrfs, zfs or devicemapper, Docker's container root is a real file system but still temporary. The marker
    // file alone is not sufficient, because machines created from a container image have it too.
    let of_image = root != "/" || source.contains("docker");
    if in_container && of_image && point == Path::new("/") {
        return Some(Loss::OwnLayer);
    }
    let volume = root
        .strip_suffix("/_data")
        .and_then(|path| path.rsplit('/').next())
        .unwrap_or_default();
    if volume.len() == 64 && volume.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Some(Loss::Anonymous);
    }
    None
}

/// Decodes the octal escapes of mountinfo: `\040` is a space.
fn unescape(text: &str) -> PathBuf {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        match rest
            .get(at + 1..at + 4)
            .and_then(|code| u8::from_str_radix(code, 8).ok())
        {
            Some(byte) => {
                out.push(char::from(byte));
                rest = &rest[at + 4..];
            }
            None => {
                out.push('\\');
                rest = &rest[at + 1..];
            }
        }
    }
    out.push_str(rest);
    PathBuf::from(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: &str = "700 600 0:50 / / rw,relatime master:1 - overlay overlay rw,lowerdir=/l\n";

    fn lost(mount: &str, dir: &str) -> Option<Loss> {
        why_lost(&format!("{ROOT}{mount}"), Path::new(dir), true)
    }

    #[test]
    fn bind_mounts_and_named_volumes_persist() {
        assert_eq!(
            lost(
                "701 700 8:1 /srv/cache /var/sccache rw - ext4 /dev/sda1 rw\n",
                "/var/sccache"
            ),
            None
        );
        let named =
            "701 700 8:1 /var/lib/docker/volumes/team/_data /var/sccache rw - ext4 /dev/sda1 rw\n";
        assert_eq!(lost(named, "/var/sccache"), None);
        let of_outer_container =
            "701 700 0:41 /home/me/cache /var/sccache rw - overlay overlay rw,lowerdir=/m\n";
        assert_eq!(lost(of_outer_container, "/var/sccache"), None);
        assert_eq!(
            lost(
                "701 700 8:1 /srv /data rw - ext4 /dev/sda1 rw\n",
                "/data/deep/sccache"
            ),
            None
        );
        assert_eq!(
            lost(
                "701 700 8:1 /srv /my\\040data rw - xfs /dev/sda1 rw\n",
                "/my data/x"
            ),
            None
        );
    }

    #[test]
    fn image_layer_memory_and_anonymous_volumes_do_not() {
        assert_eq!(lost("", "/var/sccache"), Some(Loss::OwnLayer));
        let fuse = "700 600 0:50 / / rw - fuse.fuse-overlayfs fuse-overlayfs rw\n";
        let found = why_lost(fuse, Path::new("/var/sccache"), true);
        assert_eq!(found, Some(Loss::OwnLayer));
        let memory = "701 700 0:9 / /var/sccache rw - tmpfs tmpfs rw\n";
        let found = lost(memory, "/var/sccache").unwrap();
        assert_eq!(found.to_string(), "it lies in memory (tmpfs)");
        let hash = "0123456789abcdef".repeat(4);
        let anonymous =
            format!("701 700 8:1 /d/volumes/{hash}/_data /var/sccache rw - ext4 /dev/sda1 rw\n");
        assert_eq!(lost(&anonymous, "/var/sccache"), Some(Loss::Anonymous));
        let btrfs = "700 600 0:50 /subvol / rw - btrfs /dev/sda rw\n";
        let found = why_lost(btrfs, Path::new("/var/sccache"), true);
        assert_eq!(found, Some(Loss::OwnLayer));
        let machine = "27 1 254:0 / / rw - ext4 /dev/vda rw\n";
        assert!(why_lost(machine, Path::new("/srv"), true).is_none());
        assert!(
            why_lost(btrfs, Path::new("/home/me/x"), false).is_none(),
            "outside a container the root persists"
        );
    }
}
