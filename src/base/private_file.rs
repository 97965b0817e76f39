//! Files of mode 0600 that are written completely or not at all.

use super::regular_file;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Opens a file that only its owner can read for writing, creating it if necessary. It is not truncated.
///
/// # Errors
/// It is a link or not a regular file, or the system refuses.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        // A link must not make us write to a different file, nor a FIFO make us block.
        .custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK)
        .open(path)
        .map_err(|cause| match cause.raw_os_error() {
            Some(nix::libc::ELOOP) => {
                let text = format!("\"{}\" is a link", path.display());
                io::Error::new(io::ErrorKind::InvalidInput, text)
            }
            _ => cause,
        })?;
    regular_file::check(&file)?;
    file.set_permissions(fs::Permissions::from_mode(0o600))?;
    Ok(file)
}

/// Writes a file, completely or not at all.
///
/// # Errors
/// The file cannot be written or renamed.
pub(crate) fn write(path: &Path, text: &str) -> io::Result<()> {
    fs::rename(write_beside(path, text)?, path)
}

/// Writes several files completely. None is renamed into place before all have been written.
///
/// # Errors
/// The path of the file that cannot be written or renamed, and the cause.
pub(crate) fn write_all<'a>(
    files: impl Iterator<Item = (&'a Path, &'a str)>,
) -> Result<(), (PathBuf, io::Error)> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        |cause| (path, cause)
    };
    let written = files
        .map(|(path, text)| {
            let beside = write_beside(path, text).map_err(failed(path))?;
            Ok((beside, path))
        })
        .collect::<Result<Vec<_>, _>>()?;
    for (beside, path) in written {
        fs::rename(beside, path).map_err(failed(path))?;
    }
    Ok(())
}

fn write_beside(path: &Path, text: &str) -> io::Result<PathBuf> {
    let beside = path.with_added_extension("new");
    let mut file = open(&beside)?;
    file.set_len(0)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    Ok(beside)
}
