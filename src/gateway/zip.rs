//! Is a body a whole ZIP archive? sccache's entries are: a cut one would be a broken hit for the whole team.
//!
//! Looks at the first and the last bytes only, so it costs nothing and works on a stream: the archive starts
//! with a local file header, ends with the end-of-central-directory record, and the record's offsets add up to
//! the length. No comment may follow, as sccache writes none. ZIP64 is understood.

/// The end-of-central-directory record without comment, its ZIP64 locator and the ZIP64 record before it.
const TAIL: usize = 22 + 20 + 56;

/// Bytes at the end of an archive in which its directory is looked for: sccache's have a handful of members.
pub const DIRECTORY: u64 = 16 << 10;

/// Names of the members, from the end of an archive; `None` if the directory is not whole in it, or no directory.
pub fn names(tail: &[u8]) -> Option<Vec<String>> {
    let end = tail.len().checked_sub(22)?;
    let record = &tail[end..];
    if !record.starts_with(b"PK\x05\x06") {
        return None;
    }
    let size = usize::try_from(number::<4>(record, 12)?).ok()?;
    let mut rest = &tail[end.checked_sub(size)?..end];
    let mut names = Vec::new();
    while rest.starts_with(b"PK\x01\x02") {
        let length = |at| usize::try_from(number::<2>(rest, at)?).ok();
        let (name, extra, comment) = (length(28)?, length(30)?, length(32)?);
        let text = rest.get(46..46 + name)?;
        names.push(String::from_utf8_lossy(text).into_owned());
        rest = rest.get(46 + name + extra + comment..)?;
    }
    Some(names)
}

/// Checks a body that arrives in pieces.
#[derive(Debug, Default)]
pub struct ZipCheck {
    head: Vec<u8>,
    tail: Vec<u8>,
    length: u64,
}

impl ZipCheck {
    /// Takes the next piece.
    pub fn update(&mut self, bytes: &[u8]) {
        let wanted = 4_usize.saturating_sub(self.head.len()).min(bytes.len());
        self.head.extend_from_slice(&bytes[..wanted]);
        self.length += bytes.len() as u64;
        if bytes.len() >= TAIL {
            self.tail.clear();
            self.tail.extend_from_slice(&bytes[bytes.len() - TAIL..]);
        } else {
            self.tail.extend_from_slice(bytes);
            let excess = self.tail.len().saturating_sub(TAIL);
            self.tail.drain(..excess);
        }
    }

    /// Was it all one whole archive?
    pub fn is_whole(&self) -> bool {
        self.head == b"PK\x03\x04" && self.directory_fits() == Some(true)
    }

    fn directory_fits(&self) -> Option<bool> {
        let end = self.tail.len().checked_sub(22)?;
        let record = &self.tail[end..];
        if !record.starts_with(b"PK\x05\x06") || number::<2>(record, 20)? != 0 {
            return Some(false);
        }
        let (size, offset) = (number::<4>(record, 12)?, number::<4>(record, 16)?);
        let entries = number::<2>(record, 10)?;
        let large = u64::from(u32::MAX);
        if size != large && offset != large && entries != u64::from(u16::MAX) {
            return Some(size + offset + 22 == self.length);
        }
        let locator = &self.tail[end.checked_sub(20)?..end];
        let record = &self.tail[end.checked_sub(76)?..end - 20];
        if !locator.starts_with(b"PK\x06\x07") || !record.starts_with(b"PK\x06\x06") {
            return Some(false);
        }
        let (size, offset) = (number::<8>(record, 40)?, number::<8>(record, 48)?);
        let start = size.checked_add(offset)?;
        Some(start.checked_add(TAIL as u64)? == self.length && number::<8>(locator, 8)? == start)
    }
}

/// The `N` bytes at `offset`, little-endian.
fn number<const N: usize>(bytes: &[u8], offset: usize) -> Option<u64> {
    let bytes = bytes.get(offset..offset + N)?;
    Some(
        bytes
            .iter()
            .rev()
            .fold(0, |sum, &byte| sum << 8 | u64::from(byte)),
    )
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::ops::Range;

    /// A ZIP with one member "obj" that holds `body`, stored.
    pub(crate) fn zip(body: &[u8]) -> Vec<u8> {
        let mut out = b"PK\x03\x04".to_vec();
        out.extend([0; 22]);
        out.extend([3, 0, 0, 0]);
        out.extend(b"obj");
        out.extend(body);
        let offset = u32::try_from(out.len()).unwrap();
        out.extend(b"PK\x01\x02");
        out.extend([0; 24]);
        out.extend([3, 0]);
        out.extend([0; 16]);
        out.extend(b"obj");
        let size = u32::try_from(out.len()).unwrap() - offset;
        out.extend(b"PK\x05\x06\0\0\0\0\x01\0\x01\0");
        out.extend(size.to_le_bytes());
        out.extend(offset.to_le_bytes());
        out.extend([0, 0]);
        out
    }

    fn whole(bytes: &[u8], piece: usize) -> bool {
        let mut check = ZipCheck::default();
        bytes.chunks(piece).for_each(|piece| check.update(piece));
        check.is_whole()
    }

    #[test]
    fn members_are_named_by_the_end_of_an_archive() {
        let archive = zip(&[7; 300]);
        assert_eq!(names(&archive), Some(vec!["obj".to_owned()]));
        assert_eq!(
            names(&archive[archive.len() - 71..]),
            Some(vec!["obj".to_owned()])
        );
        for cut in 1..71 {
            assert_eq!(names(&archive[archive.len() - cut..]), None, "{cut}");
        }
        assert_eq!(names(b""), None);
    }

    #[test]
    fn every_cut_is_seen() {
        let archive = zip(&[7; 300]);
        assert!(whole(&archive, 1000));
        for length in 0..archive.len() {
            assert!(!whole(&archive[..length], 1000), "cut at {length}");
        }
    }

    #[test]
    fn archive_with_a_byte_too_many_is_refused() {
        let mut archive = zip(b"body");
        archive.push(0);
        assert!(!whole(&archive, 10));
    }

    /// The same as ZIP64: `large` are the bytes of the last record that say so.
    fn zip64(body: &[u8], large: Range<usize>) -> Vec<u8> {
        let mut archive = zip(body);
        let end = archive.len() - 22;
        let field = |at: usize| u32::from_le_bytes(archive[at..at + 4].try_into().unwrap());
        let (size, offset) = (u64::from(field(end + 12)), u64::from(field(end + 16)));
        let mut record = b"PK\x06\x06".to_vec();
        record.extend([0; 36]);
        record.extend(size.to_le_bytes());
        record.extend(offset.to_le_bytes());
        record.extend(b"PK\x06\x07\0\0\0\0");
        record.extend((size + offset).to_le_bytes());
        record.extend([1, 0, 0, 0]);
        archive[end + large.start..end + large.end].fill(255);
        archive.splice(end..end, record);
        archive
    }

    #[test]
    fn zip64_archive_is_whole_whichever_field_says_so() {
        for large in [10..12, 12..16, 16..20] {
            let archive = zip64(&[7; 300], large.clone());
            assert!(whole(&archive, 1000), "{large:?}");
            assert!(!whole(&archive[1..], 1000), "{large:?}");
            let mut longer = b"PK\x03\x04".to_vec();
            longer.extend(&archive);
            assert!(!whole(&longer, 1000), "{large:?}: it begins elsewhere");
        }
    }

    #[test]
    fn every_field_of_the_end_is_looked_at() {
        let tail = |archive: &[u8], from_end: usize| {
            let mut archive = archive.to_vec();
            let at = archive.len() - from_end;
            archive[at] ^= 1;
            whole(&archive, 1000)
        };
        // Magic, size, offset and the length of a comment.
        for from_end in [22, 10, 6, 2] {
            assert!(!tail(&zip(b"body"), from_end), "{from_end}");
        }
        // Of ZIP64: the record's magic, its size and offset, the locator's magic and where it says the record is.
        for from_end in [98, 58, 50, 42, 34] {
            assert!(!tail(&zip64(b"body", 16..20), from_end), "{from_end}");
        }
        let mut archive = zip(b"body");
        archive[0] ^= 1;
        assert!(!whole(&archive, 1000), "the head's magic");
    }

    #[test]
    fn no_number_in_the_end_is_too_large() {
        let mut archive = zip64(b"body", 16..20);
        let record = archive.len() - 98;
        archive[record + 40..record + 56].fill(255);
        assert!(!whole(&archive, 1000));
        let start = u64::MAX - 50;
        archive[record + 40..record + 48].copy_from_slice(&start.to_le_bytes());
        archive[record + 48..record + 56].fill(0);
        assert!(!whole(&archive, 1000));
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(body in proptest::collection::vec(any::<u8>(), 0..400), piece in 1..300_usize, cut in 0..500_usize) {
            let archive = zip(&body);
            prop_assert!(whole(&archive, piece));
            let cut = cut.min(archive.len() - 1);
            prop_assert!(!whole(&archive[..cut], piece));
        }

        #[test]
        fn any_bytes_are_judged(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            whole(&bytes, 50);
            names(&bytes);
            let archive = [&bytes[..], &zip(&bytes)[bytes.len()..]].concat();
            names(&archive);
        }
    }
}
