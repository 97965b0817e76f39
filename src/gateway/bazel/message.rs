//! The messages of the Remote Execution API that name blobs, as far as they do: Protocol Buffers by hand. Pure.

/// Digits of a digest by SHA-256 or BLAKE3, in hexadecimal.
const DIGITS: usize = 64;

/// The digests of what the result of an action needs.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Needs {
    /// Files, and what was printed.
    pub(super) blobs: Vec<String>,
    /// Folders: each is a list of files, see [`of_tree`].
    pub(super) trees: Vec<String>,
}

/// Whether this is a digest as keys have it.
pub(super) fn is_digest(text: &str) -> bool {
    let is_lower_hex = |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    text.len() == DIGITS && text.bytes().all(is_lower_hex)
}

/// What an `ActionResult` needs; nothing if it is none.
pub(super) fn of_result(message: &[u8]) -> Option<Needs> {
    let mut needs = Needs::default();
    for field in Fields(message) {
        match field? {
            // output_files: digest, and contents for what has come with the result itself
            (2, Value::Bytes(file)) if bytes_of(file, 5)?.is_none_or(<[u8]>::is_empty) => {
                needs.blobs.extend(digest_in(file, 2)?);
            }
            // output_directories: tree_digest
            (3, Value::Bytes(folder)) => needs.trees.extend(digest_in(folder, 2)?),
            // stdout_digest, stderr_digest
            (6 | 8, Value::Bytes(printed)) => needs.blobs.extend(digest(printed)?),
            _ => {}
        }
    }
    Some(needs)
}

/// The files in a `Tree`; nothing if it is none.
pub(super) fn of_tree(message: &[u8]) -> Option<Vec<String>> {
    let mut files = Vec::new();
    for field in Fields(message) {
        // root, children
        let (1 | 2, Value::Bytes(folder)) = field? else {
            continue;
        };
        for field in Fields(folder) {
            // files: digest
            if let (1, Value::Bytes(file)) = field? {
                files.extend(digest_in(file, 2)?);
            }
        }
    }
    Some(files)
}

/// The digest in a field of `message`, unless it is that of nothing.
fn digest_in(message: &[u8], field: u64) -> Option<Option<String>> {
    match bytes_of(message, field)? {
        Some(found) => digest(found),
        None => Some(None),
    }
}

/// A `Digest`'s hash. No client stores or asks for what has no bytes.
fn digest(message: &[u8]) -> Option<Option<String>> {
    let (mut hash, mut size) = ("", 0);
    for field in Fields(message) {
        match field? {
            (1, Value::Bytes(text)) => hash = std::str::from_utf8(text).ok()?,
            (2, Value::Number(bytes)) => size = bytes,
            _ => {}
        }
    }
    match (size, is_digest(hash)) {
        (0, _) => Some(None),
        (_, true) => Some(Some(hash.to_owned())),
        (_, false) => None,
    }
}

/// The last field of this number, as the format wants it.
fn bytes_of(message: &[u8], number: u64) -> Option<Option<&[u8]>> {
    let mut found = None;
    for field in Fields(message) {
        if let (this, Value::Bytes(bytes)) = field?
            && this == number
        {
            found = Some(bytes);
        }
    }
    Some(found)
}

enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Fixed,
}

/// The fields of a message; `None` among them is the end of what can be read.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, count: u64) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(usize::try_from(count).ok()?)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<u64> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = *self.take(1)?.first()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(number);
            }
        }
        None
    }

    fn field(&mut self) -> Option<(u64, Value<'a>)> {
        let tag = self.number()?;
        let value = match tag & 7 {
            0 => Value::Number(self.number()?),
            1 => self.take(8).map(|_| Value::Fixed)?,
            2 => {
                let length = self.number()?;
                Value::Bytes(self.take(length)?)
            }
            5 => self.take(4).map(|_| Value::Fixed)?,
            _ => return None,
        };
        (tag >> 3 > 0).then_some((tag >> 3, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Option<(u64, Value<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn number(mut number: u64) -> Vec<u8> {
        let mut out = Vec::new();
        while number >= 0x80 {
            out.push((number & 0x7f) as u8 | 0x80);
            number >>= 7;
        }
        out.push(number as u8);
        out
    }

    fn field(at: u64, content: &[u8]) -> Vec<u8> {
        [&number(at << 3 | 2), &number(content.len() as u64), content].concat()
    }

    fn digest(letter: char, size: u64) -> Vec<u8> {
        let hash = field(1, hash(letter).as_bytes());
        [hash, number(2 << 3), number(size)].concat()
    }

    fn hash(letter: char) -> String {
        letter.to_string().repeat(DIGITS)
    }

    #[test]
    fn result_needs_its_files_folders_and_what_was_printed() {
        let file = |letter, size| {
            let path = field(1, b"bazel-out/it");
            field(2, &[path, field(2, &digest(letter, size))].concat())
        };
        let message = [
            file('a', 300),
            file('b', 0),
            field(
                3,
                &[field(1, b"folder"), field(2, &digest('c', 1))].concat(),
            ),
            number(4 << 3),
            number(1 << 40),
            field(5, b"printed"),
            field(6, &digest('d', 7)),
            field(8, &digest('e', 7)),
            field(12, b"a link"),
            [number(99 << 3 | 1), vec![0; 8]].concat(),
            [number(98 << 3 | 5), vec![0; 4]].concat(),
        ];
        let needs = of_result(&message.concat()).unwrap();
        assert_eq!(needs.blobs, ['a', 'd', 'e'].map(hash));
        assert_eq!(needs.trees, ['c'].map(hash));
        assert_eq!(of_result(&[]), Some(Needs::default()));
        let inline = field(2, &[field(2, &digest('a', 1)), field(5, b"x")].concat());
        assert_eq!(of_result(&inline), Some(Needs::default()));
    }

    #[test]
    fn tree_has_the_files_of_all_its_folders() {
        let file = |letter| {
            field(
                1,
                &[field(1, b"name"), field(2, &digest(letter, 1))].concat(),
            )
        };
        let below = field(2, &[field(1, b"below"), field(2, &digest('f', 9))].concat());
        let root = field(1, &[file('a'), below].concat());
        let tree = [root, field(2, &file('b')), field(2, &file('c'))].concat();
        assert_eq!(of_tree(&tree).unwrap(), ['a', 'b', 'c'].map(hash));
    }

    #[test]
    fn what_is_no_result_needs_nothing() {
        for other in [
            &b"/ac/is any text"[..],
            &field(2, b"\xff"),
            &field(
                6,
                &[field(1, b"../../short"), number(16), number(5)].concat(),
            ),
            &number(u64::MAX),
            &[
                0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01,
            ],
        ] {
            assert_eq!(of_result(other), None, "{other:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_to_an_end(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = (of_result(&bytes), of_tree(&bytes));
        }
    }
}
