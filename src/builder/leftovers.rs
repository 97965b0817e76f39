//! What an earlier run left in the builder's folder: `sccache-dist` counts no unpacked toolchain, so we do.

use std::fs;
use std::io;
use std::path::Path;
use tracing::{info, warn};

/// Removes unpacked toolchains and jobs, and says what there was. Packed toolchains stay.
pub(super) fn clean(dir: &Path) {
    let build = dir.join("build");
    let toolchains = entries(&build.join("toolchains"));
    let jobs = entries(&build.join("builds"));
    let trials = fs::read_dir(dir).into_iter().flatten().flatten();
    let trials = trials.filter(|entry| entry.file_name().to_string_lossy().starts_with("trial-"));
    let mut bytes = 0;
    for path in trials.map(|entry| entry.path()).chain([build]) {
        let size = size(&path);
        match fs::remove_dir_all(&path) {
            Ok(()) => bytes += size,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => warn!("cannot remove \"{}\": {error}", path.display()),
        }
    }
    if toolchains + jobs > 0 || bytes > 0 {
        info!(
            "removed {toolchains} unpacked toolchains and {jobs} jobs of an earlier run, {} MiB",
            bytes >> 20
        );
    }
}

/// Says how much the packed toolchains take.
pub(super) fn say_what_stays(dir: &Path) {
    let packed = size(&dir.join("cache"));
    info!("packed toolchains take {} MiB", packed >> 20);
}

fn entries(path: &Path) -> usize {
    fs::read_dir(path).map_or(0, Iterator::count)
}

/// Bytes of all files below a path, not through links.
fn size(path: &Path) -> u64 {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return 0;
    };
    if !metadata.is_dir() {
        return metadata.len();
    }
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.map(|entry| size(&entry.path())).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unpacked_goes_and_packed_stays() {
        let folder = tempfile::tempdir().unwrap();
        for path in [
            "build/toolchains/a/bin",
            "build/builds/a-1/work",
            "trial-7/lower",
            "cache/tc",
        ] {
            fs::create_dir_all(folder.path().join(path)).unwrap();
        }
        fs::write(folder.path().join("cache/tc/a"), "packed").unwrap();
        fs::write(folder.path().join("build/toolchains/a/bin/cc"), "cc").unwrap();
        assert_eq!(size(folder.path()), 8);
        clean(folder.path());
        assert_eq!(size(folder.path()), 6);
        assert!(!folder.path().join("build").exists() && !folder.path().join("trial-7").exists());
    }
}
