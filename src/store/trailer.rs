//! The trailer that follows the body in a blob's file, and proves that the file is complete. Pure except for reading.
//!
//! ```text
//! offset 0  len                                                                                          end
//!   | body   | key | written by | written µs u64 | key length u16 | length of "written by" u16 | len u64
//!            | xxh3 u64 | magic | xxh3 u64 |
//! ```
//!
//! "Written by" is the text of a [`WrittenBy`]; blobs from before it existed have a length of 0 there. Numbers are
//! little-endian. The first checksum covers the body, the last one the trailer before it. The body comes first so that
//! a file can be sent as it is; the trailer comes last so that a file truncated anywhere has none.

use super::written_by::{self, WrittenBy};
use crate::contract::key::MAX_KEY_BYTES;
use std::fs::File;
use std::hash::Hasher;
use std::io;
use std::os::unix::fs::FileExt;
use twox_hash::XxHash3_64;

const MAGIC: &[u8; 8] = b"sccdock1";
const FIXED_BYTES: usize = 44;
const CHUNK_BYTES: usize = 128 * 1024;

/// Maximum length of a trailer in bytes.
pub(crate) const MOST_BYTES: usize = FIXED_BYTES + MAX_KEY_BYTES + written_by::MOST_BYTES;

/// Minimum length of a blob's file in bytes.
pub(super) const MIN_FILE_BYTES: u64 = FIXED_BYTES as u64 + 1;

/// The content of a trailer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Trailer {
    pub(super) written_micros: u64,
    pub(super) body_len: u64,
    pub(super) body_hash: u64,
}

/// Length of the trailer for `key`, in bytes.
pub(super) fn len(key: &str, by: &WrittenBy) -> u64 {
    (FIXED_BYTES + key.len() + by.as_str().len()) as u64
}

/// Maximum length of a trailer for `key`, in bytes.
pub(super) fn most(key: &str) -> u64 {
    (FIXED_BYTES + key.len() + written_by::MOST_BYTES) as u64
}

/// Earliest position at which the trailer for `key` may begin in a file of `file_len` bytes; `None` if the file is too
/// short.
pub(super) fn earliest(key: &str, file_len: u64) -> Option<u64> {
    let least = (FIXED_BYTES + key.len()) as u64;
    (file_len >= least).then(|| file_len.saturating_sub(most(key)))
}

/// A trailer read without knowing its key.
pub(super) struct Whole {
    pub(super) key: String,
    pub(super) by: WrittenBy,
    pub(super) trailer: Trailer,
}

impl Trailer {
    /// Encodes the trailer.
    pub(super) fn encode(&self, key: &str, by: &WrittenBy) -> Vec<u8> {
        let by = by.as_str();
        let mut bytes = Vec::with_capacity(FIXED_BYTES + key.len() + by.len());
        bytes.extend_from_slice(key.as_bytes());
        bytes.extend_from_slice(by.as_bytes());
        bytes.extend_from_slice(&self.written_micros.to_le_bytes());
        for text in [key, by] {
            bytes.extend_from_slice(&u16::try_from(text.len()).unwrap_or(u16::MAX).to_le_bytes());
        }
        bytes.extend_from_slice(&self.body_len.to_le_bytes());
        bytes.extend_from_slice(&self.body_hash.to_le_bytes());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&XxHash3_64::oneshot(&bytes).to_le_bytes());
        bytes
    }

    /// Decodes the trailer of `key` from `bytes`, the end of a file of `file_len` bytes. Returns `None` if it is not
    /// valid or belongs to another key.
    pub(super) fn decode(bytes: &[u8], key: &str, file_len: u64) -> Option<Trailer> {
        let rest: &[u8; FIXED_BYTES] = bytes.last_chunk()?;
        let [key_len, by_len] = lengths(rest);
        let own_len = FIXED_BYTES + key.len() + by_len;
        let bytes = &bytes[bytes.len().checked_sub(own_len)?..];
        let number = |at: usize| rest[at..at + 8].try_into().map(u64::from_le_bytes).ok();
        let trailer = Trailer {
            written_micros: number(0)?,
            body_len: number(12)?,
            body_hash: number(20)?,
        };
        let whole = bytes.starts_with(key.as_bytes())
            && key_len == key.len()
            && trailer.body_len.checked_add(own_len as u64) == Some(file_len)
            && rest[28..36] == MAGIC[..]
            && number(36)? == XxHash3_64::oneshot(&bytes[..bytes.len() - 8]);
        whole.then_some(trailer)
    }

    /// Reads the trailer for `key` from a file of `file_len` bytes.
    pub(super) fn read(file: &File, key: &str, file_len: u64) -> io::Result<Option<Trailer>> {
        let Some(start) = earliest(key, file_len) else {
            return Ok(None);
        };
        let mut bytes = vec![0; usize::try_from(file_len - start).unwrap_or(MOST_BYTES)];
        match file.read_exact_at(&mut bytes, start) {
            Ok(()) => Ok(Trailer::decode(&bytes, key, file_len)),
            // Truncated since its length was read.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Reads the trailer of a file of `file_len` bytes without knowing its key.
    pub(super) fn read_any(file: &File, file_len: u64) -> io::Result<Option<Whole>> {
        let Some(start) = file_len.checked_sub(FIXED_BYTES as u64) else {
            return Ok(None);
        };
        let mut fixed = [0; FIXED_BYTES];
        let mut texts = Vec::new();
        let read = file.read_exact_at(&mut fixed, start).and_then(|()| {
            let [key, by] = lengths(&fixed);
            let both = key + by;
            if key <= MAX_KEY_BYTES && by <= written_by::MOST_BYTES && both as u64 <= start {
                texts.resize(both, 0);
                file.read_exact_at(&mut texts, start - both as u64)?;
            }
            Ok(())
        });
        match read {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        }
        let Ok(text) = str::from_utf8(&texts) else {
            return Ok(None);
        };
        let Some((key, by)) = text.split_at_checked(lengths(&fixed)[0]) else {
            return Ok(None);
        };
        let bytes = [text.as_bytes(), &fixed].concat();
        Ok(Trailer::decode(&bytes, key, file_len).map(|trailer| Whole {
            key: key.to_owned(),
            by: WrittenBy::decode(by),
            trailer,
        }))
    }

    /// Reads the whole body and compares it with its checksum.
    pub(super) fn body_is_whole(&self, file: &File) -> io::Result<bool> {
        self.body_is_whole_at_pace(file, |_| {})
    }

    /// The same, calling `pace` with each number of bytes read.
    pub(super) fn body_is_whole_at_pace(
        &self,
        file: &File,
        pace: impl Fn(usize),
    ) -> io::Result<bool> {
        let mut hasher = XxHash3_64::new();
        let mut chunk = vec![0; CHUNK_BYTES];
        let mut at = 0;
        while at < self.body_len {
            let want = usize::try_from(self.body_len - at)
                .map_or(CHUNK_BYTES, |left| left.min(CHUNK_BYTES));
            match file.read_at(&mut chunk[..want], at) {
                Ok(0) => return Ok(false),
                Ok(read) => {
                    hasher.write(&chunk[..read]);
                    at += read as u64;
                    pace(read);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(hasher.finish() == self.body_hash)
    }
}

/// Lengths of the key and of the text that names the writer.
fn lengths(fixed: &[u8; FIXED_BYTES]) -> [usize; 2] {
    [8, 10].map(|at| usize::from(u16::from_le_bytes([fixed[at], fixed[at + 1]])))
}

#[cfg(test)]
mod tests {
    use super::super::written_by::Lane;
    use super::*;
    use std::io::Write;

    /// The expected numbers are those of the reference implementation: caches outlive releases.
    #[test]
    fn layout_and_checksums_stay_as_they_are() {
        let trailer = Trailer {
            written_micros: 1,
            body_len: 3,
            body_hash: XxHash3_64::oneshot(b"abc"),
        };
        let bytes = trailer.encode("k", &WrittenBy::default());
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            hex,
            "6b010000000000000001000000030000000000000050392f89945faf78736363646f636b312eff38af396258aa"
        );
        assert_eq!(Trailer::decode(&bytes, "k", 48), Some(trailer));
        let by = WrittenBy::new(Lane::Webdav, Some("ci"));
        let bytes = trailer.encode("k", &by);
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            hex,
            "6b7765626461762063690100000000000000010009000300000000000000\
             50392f89945faf78736363646f636b315eaf3f7dbb09fa74"
        );
        assert_eq!(Trailer::decode(&bytes, "k", 57), Some(trailer));
        let long = [b"bc", &*bytes].concat();
        assert_eq!(
            Trailer::decode(&long, "k", 57),
            Some(trailer),
            "and more before it"
        );
        for wrong in [
            Trailer::decode(&bytes, "k", 56),
            Trailer::decode(&bytes, "kw", 57),
        ] {
            assert_eq!(wrong, None);
        }
        let body: Vec<u8> = (0..100_000_u32).map(|at| (at % 251) as u8).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&body).unwrap();
        let long = Trailer {
            body_len: 100_000,
            body_hash: 0x42c2_3aee_ad96_750d,
            ..trailer
        };
        assert!(long.body_is_whole(&file).unwrap());
    }
}
