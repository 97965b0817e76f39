//! The last report of a checkout, which `explain` shows.

use crate::explain::report::Report;
use serde::{Deserialize, Serialize};
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// A report, and the source files of its compiles.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Saved {
    pub(crate) report: Report,
    pub(crate) files: Vec<Vec<String>>,
}

/// Our folder for what can be made anew.
pub(crate) fn folder() -> PathBuf {
    let set = |name| {
        let value = std::env::var_os(name).filter(|value| !value.is_empty());
        value.map(PathBuf::from).filter(|path| path.is_absolute())
    };
    let cache = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")));
    cache.map_or_else(
        || std::env::temp_dir().join(format!("sccache-dock-{}", nix::unistd::getuid())),
        |cache| cache.join("sccache-dock"),
    )
}

fn file(root: &Path) -> PathBuf {
    let name = blake3::hash(root.as_os_str().as_encoded_bytes()).to_hex();
    folder()
        .join("builds")
        .join(format!("{}.json", &name[..16]))
}

impl Saved {
    /// Keeps it as the last one of the checkout at `root`.
    pub(super) fn write(&self, root: &Path) -> io::Result<()> {
        let path = file(root);
        let folder = path.parent().unwrap_or(root);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)?;
        let new = path.with_extension(format!("{}", std::process::id()));
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        options.open(&new)?.write_all(&serde_json::to_vec(self)?)?;
        fs::rename(new, path)
    }

    /// The last one of the checkout at `root`.
    pub(crate) fn read(root: &Path) -> Option<Saved> {
        serde_json::from_slice(&fs::read(file(root)).ok()?).ok()
    }
}
