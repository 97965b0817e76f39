//! What an entry of sccache's holds: a digest of the files that a compile has made, as a client would get them.
//!
//! Two entries of one key are hardly ever the same bytes, even where both compiles made the same: the members of the ZIP
//! archive come in the order of a hash map, with the writer's umask, compressed at the writer's level. What is compared
//! is which members there are and what they hold, decompressed. Not `stdout` and `stderr`, in which the writer's folders
//! stand, nor `d`, for the same reason.

use super::{Error, Store};
use crate::contract::key::Key;
use std::fmt;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use zip::ZipArchive;

/// Members that may differ.
const VARYING: [&str; 3] = ["stdout", "stderr", "d"];
/// Members of an entry; a compile has a few.
const MOST_MEMBERS: usize = 256;
/// Most bytes that an entry may hold, decompressed: more is nobody's result.
const MOST_BYTES: u64 = 4 << 30;
/// Memory that a frame may want to be decompressed; what sccache writes wants 8 MiB.
const WINDOW: u64 = 128 << 20;

/// A digest of the outputs in an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutputsDigest([u8; 32]);

impl fmt::Display for OutputsDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Enough to tell two apart and to find one again.
        f.write_str(&blake3::Hash::from_bytes(self.0).to_hex()[..16])
    }
}

/// The digest of the outputs in the first `len` bytes of a file.
///
/// # Errors
/// They cannot be read, or are not what sccache could use.
pub(super) fn digest(file: &File, len: u64) -> io::Result<OutputsDigest> {
    let body = Body { file, at: 0, len };
    let mut archive = ZipArchive::new(BufReader::new(body)).map_err(io::Error::other)?;
    if archive.len() > MOST_MEMBERS {
        return Err(io::Error::other("it has too many members"));
    }
    let mut members = Vec::new();
    let mut left = MOST_BYTES;
    for index in 0..archive.len() {
        let mut member = archive.by_index(index).map_err(io::Error::other)?;
        let name = member.name().map_err(io::Error::other)?.into_owned();
        if VARYING.contains(&name.as_str()) {
            continue;
        }
        let mut hasher = blake3::Hasher::new();
        decompress(&mut member, &mut hasher, &mut left)?;
        members.push((name, *hasher.finalize().as_bytes()));
    }
    members.sort_unstable();
    let mut hasher = blake3::Hasher::new();
    for (name, digest) in &members {
        hasher.update(&(name.len() as u64).to_le_bytes());
        hasher.update(name.as_bytes()).update(digest);
    }
    Ok(OutputsDigest(*hasher.finalize().as_bytes()))
}

/// Hashes what all frames of `source` hold, which may be `left` bytes.
fn decompress(
    source: &mut impl Read,
    hasher: &mut blake3::Hasher,
    left: &mut u64,
) -> io::Result<()> {
    let mut source = BufReader::new(source);
    let mut is_empty = true;
    while !io::BufRead::fill_buf(&mut source)?.is_empty() {
        is_empty = false;
        let frame =
            ruzstd::decoding::StreamingDecoder::new_with_max_window_size(&mut source, WINDOW);
        let mut frame = frame.map_err(io::Error::other)?.take(*left + 1);
        let mut piece = vec![0; 128 << 10];
        loop {
            let read = frame.read(&mut piece)?;
            if read == 0 {
                break;
            }
            *left = left
                .checked_sub(read as u64)
                .ok_or_else(|| io::Error::other("it holds too much"))?;
            hasher.update(&piece[..read]);
        }
    }
    match is_empty {
        // Even an empty file is a frame.
        true => Err(io::ErrorKind::UnexpectedEof.into()),
        false => Ok(()),
    }
}

/// The beginning of a file, read by position: others read it too.
struct Body<'a> {
    file: &'a File,
    at: u64,
    len: u64,
}

impl Read for Body<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.len.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let most = left.min(into.len());
        let read = self.file.read_at(&mut into[..most], self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

impl Seek for Body<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.len.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

impl Store {
    /// The digest of the outputs in a blob that is here and whole; `None` where they cannot be made out.
    pub(super) fn outputs(&self, key: &Key) -> Result<Option<OutputsDigest>, Error> {
        let mut blob = self.get(key)?;
        if let Some(mut unchecked) = blob.unchecked.take() {
            let mut body = Body {
                file: &blob.file,
                at: 0,
                len: blob.len,
            };
            let mut piece = vec![0; 128 << 10];
            loop {
                match body.read(&mut piece)? {
                    0 => break,
                    read => unchecked.update(&piece[..read]),
                }
            }
            if !unchecked.is_whole() {
                return Ok(None);
            }
        }
        Ok(digest(&blob.file, blob.len).ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};
    use std::io::Write;
    use zip::write::SimpleFileOptions;

    /// An entry as sccache writes it.
    fn entry(members: &[(&str, &[u8])], level: CompressionLevel, mode: u32) -> Vec<u8> {
        let mut archive = zip::ZipWriter::new(io::Cursor::new(Vec::new()));
        for (name, body) in members {
            let options = SimpleFileOptions::default()
                .compression_method(zip::CompressionMethod::Stored)
                .unix_permissions(mode);
            archive.start_file(*name, options).unwrap();
            archive.write_all(&compress_to_vec(*body, level)).unwrap();
        }
        archive.finish().unwrap().into_inner()
    }

    fn of(bytes: &[u8]) -> Option<OutputsDigest> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.write_all(b"trailer").unwrap();
        digest(&file, bytes.len() as u64).ok()
    }

    #[test]
    fn same_outputs_have_one_digest_however_they_are_packed() {
        let (rlib, rmeta): (&[u8], &[u8]) = (&[7; 300_000], b"meta");
        let fast = CompressionLevel::Fastest;
        let one = entry(
            &[("a.rlib", rlib), ("a.rmeta", rmeta), ("stderr", b"x")],
            fast,
            0o644,
        );
        let plain = CompressionLevel::Uncompressed;
        let other = entry(
            &[
                ("stdout", b"y"),
                ("a.rmeta", rmeta),
                ("a.rlib", rlib),
                ("d", b"z"),
            ],
            plain,
            0o600,
        );
        assert_ne!(one, other);
        assert!(of(&one).is_some());
        assert_eq!(of(&one), of(&other));
        for different in [
            entry(&[("a.rlib", rlib)], fast, 0o644),
            entry(&[("a.rlib", rlib), ("a.rmeta", b"mEta")], fast, 0o644),
            entry(&[("a.rmeta", rlib), ("a.rlib", rmeta)], fast, 0o644),
            entry(
                &[("a.rlib", rlib), ("a.rmeta", rmeta), ("b", b"")],
                fast,
                0o644,
            ),
        ] {
            assert!(of(&different).is_some());
            assert_ne!(of(&one), of(&different));
        }
    }

    #[test]
    fn what_no_client_could_use_has_none() {
        let whole = entry(&[("a.rlib", &[7; 1000])], CompressionLevel::Fastest, 0o644);
        assert_eq!(of(b""), None);
        assert_eq!(of(&whole[1..]), None);
        assert_eq!(of(&whole[..whole.len() - 1]), None);
        let mut damaged = whole.clone();
        let frame = damaged
            .windows(4)
            .position(|four| four == [0x28, 0xb5, 0x2f, 0xfd]);
        damaged[frame.unwrap() + 8] ^= 0xff;
        assert_eq!(of(&damaged), None);
        // Whole as an archive, but not what is in it.
        for body in [&b"no frame"[..], b""] {
            let mut archive = zip::ZipWriter::new(io::Cursor::new(Vec::new()));
            let options = SimpleFileOptions::default();
            let options = options.compression_method(zip::CompressionMethod::Stored);
            archive.start_file("a.rlib", options).unwrap();
            archive.write_all(body).unwrap();
            assert_eq!(of(&archive.finish().unwrap().into_inner()), None);
        }
    }
}
