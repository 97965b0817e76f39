//! What a peer of TLS has sent so far, as far as it can be read without a key (RFC 8446, 4.1.2 and 5.1). Pure.

use crate::contract::builder_port;
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
/// The extension that names protocols (RFC 7301, 3.1).
const PROTOCOLS: u16 = 16;
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
        let Some(body) = self.hello()? else {
            return Ok(false);
        };
        match extension(&body, EARLY_DATA) {
            Some(None) => Ok(true),
            Some(Some(_)) => Err(strange("early data")),
            None => Err(strange("a ClientHello without sense")),
        }
    }

    /// The job that the ClientHello names, if it does and is there as a whole.
    pub(super) fn job(&self) -> Option<u64> {
        let body = self.hello().ok()??;
        let (mut named, _) = sized::<2>(extension(&body, PROTOCOLS)??)?;
        while !named.is_empty() {
            let protocol;
            (protocol, named) = sized::<1>(named)?;
            if let Some(job) = builder_port::job_of(protocol) {
                return Some(job);
            }
        }
        None
    }

    /// The ClientHello without its head, once it is there as a whole.
    fn hello(&self) -> io::Result<Option<Vec<u8>>> {
        let mut message = Vec::new();
        for record in self.whole() {
            let (kind, payload) = record?;
            if kind != HANDSHAKE {
                return Err(strange("no handshake"));
            }
            message.extend_from_slice(payload);
        }
        let Some((head, rest)) = message.split_first_chunk::<4>() else {
            return Ok(None);
        };
        let [kind, length @ ..] = *head;
        if kind != CLIENT_HELLO {
            return Err(strange("no ClientHello"));
        }
        let [high, middle, low] = length.map(usize::from);
        let body = rest.get(..high << 16 | middle << 8 | low);
        Ok(body.map(<[u8]>::to_vec))
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

/// Looks for this extension in a ClientHello; `None` where that has no sense.
fn extension(body: &[u8], wanted: u16) -> Option<Option<&[u8]>> {
    // Version and random, then session, ciphers and compression, each with its length.
    let (_, body) = body.split_at_checked(2 + 32)?;
    let (_, body) = sized::<1>(body)?;
    let (_, body) = sized::<2>(body)?;
    let (_, body) = sized::<1>(body)?;
    // One of TLS 1.2 may end here (RFC 5246, 7.4.1.2).
    if body.is_empty() {
        return Some(None);
    }
    let (mut extensions, _) = sized::<2>(body)?;
    while !extensions.is_empty() {
        let (kind, rest) = extensions.split_first_chunk::<2>()?;
        let content;
        (content, extensions) = sized::<2>(rest)?;
        if u16::from_be_bytes(*kind) == wanted {
            return Some(Some(content));
        }
    }
    Some(None)
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
        assert_eq!(extension(&body, EARLY_DATA), Some(None));
        body.push(0);
        assert_eq!(extension(&body, EARLY_DATA), None);
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
    fn hello_names_its_job_among_other_protocols() {
        let job = |extensions: &[(u16, &[u8])]| {
            let mut records = Records::default();
            records.add(&hello(extensions)).unwrap();
            records.job()
        };
        let protocols = |names: &[&[u8]]| {
            let names: Vec<u8> = names
                .iter()
                .flat_map(|name| [&[name.len() as u8], *name].concat())
                .collect();
            [&(names.len() as u16).to_be_bytes()[..], &names].concat()
        };
        let named = protocols(&[b"http/1.1", &builder_port::protocol(77)]);
        assert_eq!(job(&[(43, &[2, 3, 4]), (16, &named)]), Some(77));
        assert_eq!(job(&[(16, &protocols(&[b"http/1.1"]))]), None);
        assert_eq!(job(&[(43, &[2, 3, 4])]), None);
        for cut in 0..named.len() {
            assert_eq!(job(&[(16, &named[..cut])]), None, "{cut}");
        }
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
            let _ = (records.has_hello(), records.job(), records.encrypted());
            let before = bytes.len();
            if let Ok(whole) = records.take_whole() {
                prop_assert_eq!(whole.len() + records.rest().len(), before);
            }
        }
    }
}
