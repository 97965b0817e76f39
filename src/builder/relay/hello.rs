//! What a peer of TLS has sent so far, as far as it can be read without a key (RFC 8446, 4.1.2 and 5.1). Pure.

use std::io;

/// Head of a record: its kind, two bytes of version, its length.
const HEAD: usize = 5;
const HANDSHAKE: u8 = 22;
const ENCRYPTED: u8 = 23;
/// Kinds of records: change_cipher_spec, alert, handshake, application_data.
const KINDS: std::ops::RangeInclusive<u8> = 20..=ENCRYPTED;
/// Longest record: 16 KiB and what encryption adds.
const LONGEST: usize = (16 << 10) + 256;
/// Kind of the first message.
const CLIENT_HELLO: u8 = 1;
/// The extension with which a peer sends data before the handshake is over; a server that wants none skips what it cannot
/// read, so that nobody else can tell when the handshake ends.
const EARLY_DATA: u16 = 42;
/// Most bytes of a peer that are held: a record and the beginning of the next.
const MOST: usize = 2 * LONGEST;

/// Bytes of a peer that were not passed on yet.
#[derive(Debug, Default)]
pub(super) struct Records {
    bytes: Vec<u8>,
}

impl Records {
    /// Takes up what has arrived.
    ///
    /// # Errors
    /// It is more than TLS has use for.
    pub(super) fn add(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.bytes.len() + bytes.len() > MOST {
            return Err(strange("too much at once"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether the whole ClientHello is there.
    ///
    /// # Errors
    /// It is none, or one that announces early data.
    pub(super) fn has_hello(&self) -> io::Result<bool> {
        let mut message = Vec::new();
        for record in self.whole() {
            let (kind, payload) = record?;
            if kind != HANDSHAKE {
                return Err(strange("no handshake"));
            }
            message.extend_from_slice(payload);
        }
        let Some((head, rest)) = message.split_first_chunk::<4>() else {
            return Ok(false);
        };
        let [kind, length @ ..] = *head;
        if kind != CLIENT_HELLO {
            return Err(strange("no ClientHello"));
        }
        let [high, middle, low] = length.map(usize::from);
        let Some(body) = rest.get(..high << 16 | middle << 8 | low) else {
            return Ok(false);
        };
        match has_early_data(body) {
            Some(false) => Ok(true),
            Some(true) => Err(strange("early data")),
            None => Err(strange("a ClientHello without sense")),
        }
    }

    /// How many whole encrypted records are there.
    ///
    /// # Errors
    /// It is no TLS.
    pub(super) fn encrypted(&self) -> io::Result<usize> {
        let mut count = 0;
        for record in self.whole() {
            count += usize::from(record?.0 == ENCRYPTED);
        }
        Ok(count)
    }

    /// Takes all whole records away.
    ///
    /// # Errors
    /// It is no TLS.
    pub(super) fn take_whole(&mut self) -> io::Result<Vec<u8>> {
        let mut length = 0;
        for record in self.whole() {
            length += HEAD + record?.1.len();
        }
        let rest = self.bytes.split_off(length);
        Ok(std::mem::replace(&mut self.bytes, rest))
    }

    /// What is left.
    pub(super) fn rest(self) -> Vec<u8> {
        self.bytes
    }

    /// Kind and content of each whole record, in order.
    fn whole(&self) -> impl Iterator<Item = io::Result<(u8, &[u8])>> {
        let mut left = self.bytes.as_slice();
        std::iter::from_fn(move || {
            let (head, rest) = left.split_first_chunk::<HEAD>()?;
            let [kind, major, _, high, low] = *head;
            let length = usize::from(high) << 8 | usize::from(low);
            if !KINDS.contains(&kind) || major != 3 || length > LONGEST {
                left = &[];
                return Some(Err(strange("no TLS")));
            }
            let (payload, rest) = rest.split_at_checked(length)?;
            left = rest;
            Some(Ok((kind, payload)))
        })
    }
}

fn strange(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Looks through the extensions of a ClientHello; `None` where it has no sense.
fn has_early_data(body: &[u8]) -> Option<bool> {
    // Version and random, then session, ciphers and compression, each with its length.
    let (_, body) = body.split_at_checked(2 + 32)?;
    let (_, body) = sized::<1>(body)?;
    let (_, body) = sized::<2>(body)?;
    let (_, body) = sized::<1>(body)?;
    // One of TLS 1.2 may end here (RFC 5246, 7.4.1.2).
    if body.is_empty() {
        return Some(false);
    }
    let (mut extensions, _) = sized::<2>(body)?;
    while !extensions.is_empty() {
        let (kind, rest) = extensions.split_first_chunk::<2>()?;
        if u16::from_be_bytes(*kind) == EARLY_DATA {
            return Some(true);
        }
        (_, extensions) = sized::<2>(rest)?;
    }
    Some(false)
}

/// Bytes behind a length of `N` bytes, and the rest.
fn sized<const N: usize>(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<N>()?;
    let length = length
        .iter()
        .fold(0, |length, byte| length << 8 | usize::from(*byte));
    rest.split_at_checked(length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn hello_may_end_before_its_extensions() {
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend([0, 0, 2, 0, 0x9c, 1, 0]);
        assert_eq!(has_early_data(&body), Some(false));
        body.push(0);
        assert_eq!(has_early_data(&body), None);
    }

    /// A ClientHello with these extensions, in one record.
    fn hello(extensions: &[(u16, &[u8])]) -> Vec<u8> {
        let mut listed = Vec::new();
        for (kind, content) in extensions {
            listed.extend(kind.to_be_bytes());
            listed.extend((content.len() as u16).to_be_bytes());
            listed.extend(*content);
        }
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend([0, 0, 2, 0x13, 1, 1, 0]);
        body.extend((listed.len() as u16).to_be_bytes());
        body.extend(listed);
        let mut record = vec![HANDSHAKE, 3, 1];
        record.extend((body.len() as u16 + 4).to_be_bytes());
        record.extend([CLIENT_HELLO, 0]);
        record.extend((body.len() as u16).to_be_bytes());
        record.extend(body);
        record
    }

    fn has_hello(bytes: &[u8]) -> io::Result<bool> {
        let mut records = Records::default();
        records.add(bytes)?;
        records.has_hello()
    }

    #[test]
    fn hello_is_there_with_its_last_byte() {
        let hello = hello(&[(43, &[2, 3, 4]), (0, b"name")]);
        for arrived in 0..hello.len() {
            assert!(!has_hello(&hello[..arrived]).unwrap(), "{arrived}");
        }
        assert!(has_hello(&hello).unwrap());
        // In two records.
        let (first, second) = hello[HEAD..].split_at(10);
        let record = |part: &[u8]| [&[HANDSHAKE, 3, 1, 0, part.len() as u8], part].concat();
        assert!(!has_hello(&record(first)).unwrap());
        assert!(has_hello(&[record(first), record(second)].concat()).unwrap());
    }

    #[test]
    fn what_is_no_hello_is_refused() {
        let early = hello(&[(43, &[2, 3, 4]), (42, &[])]);
        let mut other = hello(&[]);
        other[HEAD] = 2;
        let cut = [&hello(&[])[..HEAD + 1], &[0; 200]].concat();
        for bytes in [
            &early[..],
            &other,
            &cut,
            b"GET / HTTP/1.1\r\n",
            &[23, 3, 3, 0, 1, 7],
        ] {
            assert!(has_hello(bytes).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn whole_records_are_taken_and_the_rest_is_kept() {
        let mut records = Records::default();
        records
            .add(&[20, 3, 3, 0, 1, 1, ENCRYPTED, 3, 3, 0, 2, 9])
            .unwrap();
        assert_eq!(records.encrypted().unwrap(), 0);
        assert_eq!(records.take_whole().unwrap(), [20, 3, 3, 0, 1, 1]);
        records.add(&[9]).unwrap();
        assert_eq!(records.encrypted().unwrap(), 1);
        assert_eq!(records.take_whole().unwrap().len(), 7);
        assert!(records.rest().is_empty());
    }

    proptest! {
        #[test]
        fn any_bytes_are_judged(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut records = Records::default();
            records.add(&bytes).unwrap();
            let _ = (records.has_hello(), records.encrypted());
            let before = bytes.len();
            if let Ok(whole) = records.take_whole() {
                prop_assert_eq!(whole.len() + records.rest().len(), before);
            }
        }
    }
}
