//! Reads files named by settings. Only regular files are accepted, so that no read can block.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

/// Maximum file size in bytes; settings, secrets and certificates are far smaller.
const LONGEST: u64 = 1 << 20;

/// Opens a regular file for reading.
///
/// # Errors
/// It is not a regular file, or cannot be opened.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    // Without this flag, opening a FIFO blocks until another process writes to it.
    let flags = nix::libc::O_NONBLOCK | nix::libc::O_NOCTTY;
    let mut options = OpenOptions::new();
    let file = options.read(true).custom_flags(flags).open(path)?;
    check(&file)?;
    Ok(file)
}

/// Checks that an open file is a regular one.
///
/// # Errors
/// It is something else; the error says what.
pub(crate) fn check(file: &File) -> io::Result<()> {
    let kind = file.metadata()?.file_type();
    let what = match kind {
        kind if kind.is_file() => return Ok(()),
        kind if kind.is_dir() => "a folder",
        kind if kind.is_fifo() => "a FIFO (a named pipe)",
        kind if kind.is_socket() => "a socket",
        _ => "a device",
    };
    let text = format!("it is {what}, not a regular file");
    Err(io::Error::new(io::ErrorKind::InvalidInput, text))
}

/// Reads a regular file of at most 1 MiB.
///
/// # Errors
/// It is longer, not a regular file, or cannot be read.
pub(crate) fn read(path: &Path) -> io::Result<Vec<u8>> {
    bytes_of(open(path)?, LONGEST)
}

fn bytes_of(file: File, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        let text = format!("the file is longer than {} MiB", most >> 20);
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
    }
    Ok(bytes)
}

/// Reads a regular file of at most 1 MiB as text.
///
/// # Errors
/// It is longer, not a regular file, not UTF-8, or cannot be read.
pub(crate) fn read_to_string(path: &Path) -> io::Result<String> {
    text_of(open(path)?)
}

/// Reads a regular file of at most so many bytes as text.
///
/// # Errors
/// It is longer, not a regular file, not UTF-8, or cannot be read.
pub(crate) fn read_long_to_string(path: &Path, most: u64) -> io::Result<String> {
    in_utf8(bytes_of(open(path)?, most)?)
}

/// Reads an open file of at most 1 MiB as text.
///
/// # Errors
/// It is longer, not UTF-8, or cannot be read.
pub(crate) fn text_of(file: File) -> io::Result<String> {
    in_utf8(bytes_of(file, LONGEST)?)
}

fn in_utf8(bytes: Vec<u8>) -> io::Result<String> {
    let text = String::from_utf8(bytes);
    // The message is that of the standard library. The bytes may be a secret and are not shown.
    text.map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not valid UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::Mode;
    use std::fs;
    use std::os::unix::net::UnixListener;

    #[test]
    fn only_regular_files_are_read_and_nothing_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        nix::unistd::mkfifo(&at("fifo"), Mode::S_IRWXU).unwrap();
        let _socket = UnixListener::bind(at("socket")).unwrap();
        fs::write(at("long"), vec![b'x'; 1 + (1 << 20)]).unwrap();
        fs::write(at("odd"), b"\xff").unwrap();
        fs::write(at("text"), "words\n").unwrap();
        std::os::unix::fs::symlink("text", at("link")).unwrap();
        for (name, part) in [
            ("fifo", "a FIFO"),
            ("socket", ""),
            (".", "a folder"),
            ("/dev/zero", "a device"),
            ("long", "longer than 1 MiB"),
            ("odd", "not valid UTF-8"),
        ] {
            let error = read_to_string(&at(name)).unwrap_err().to_string();
            assert!(error.contains(part), "{name}: {error}");
        }
        for name in ["text", "link"] {
            assert_eq!(read_to_string(&at(name)).unwrap(), "words\n");
        }
    }
}
