//! The frames of sccache's own protocol, as bytes. Pure.
//!
//! A frame is a big-endian `u32` length and that many bytes of bincode 1: little-endian, fixed-size numbers,
//! `u32` variant tags, `u64` lengths. The layout is that of sccache 0.19.0: `src/protocol.rs` for both enums,
//! `src/cache/cache.rs` (`GetPathResult`), `src/cache/cache_io.rs` (`CacheMode`) and `src/config.rs`
//! (`PreprocessorCacheModeConfig`) for what they hold. There is no version in it: tags 0 to 4 have not
//! changed since 0.8.0, the storage requests not since they came in 0.17.0.

/// Longest key that a request may name.
const KEY_BYTES: u64 = 1024;
/// Longest head of a request: tag, length of the key, key, length of the data.
pub const LONGEST_HEAD: usize = 4 + 8 + KEY_BYTES as usize + 8;

/// A `Compile` request has paths, arguments and an environment in it: it is never as short.
const SHORTER_THAN_COMPILE: u32 = 64;
/// Bytes after the known fields of the greeting's answer, all zero. Clients skip what they do not know; a client of a
/// later version finds "none" and "no" in the fields that it has more, where the answer's end would fail its build.
const ROOM_FOR_MORE: usize = 64;

/// Whose storage a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// Compile results: whole ZIP archives.
    Results,
    /// What direct mode knows about a C or C++ source file: nothing of it is kept.
    Preprocessor,
}

/// The head of a request. Of `Compile` and `RecordStats` only the tag is decoded: they are passed on whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    ZeroStats,
    GetStats,
    DistStatus,
    Shutdown,
    Compile,
    Handshake,
    /// "Where is the file of this key?"
    GetPath,
    Get {
        kind: EntryKind,
        key: String,
    },
    /// `length` bytes follow, up to the end of the frame.
    Put {
        kind: EntryKind,
        key: String,
        length: u64,
    },
    RecordStats,
}

/// Why a frame is no request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("unknown request {0}")]
    UnknownTag(u32),
    #[error("a length in the frame does not fit the frame")]
    Length,
    #[error("the key is no text")]
    Key,
}

/// Decodes the head of the request in a frame of `length` bytes, of which `bytes` have arrived.
/// `None`: more bytes are needed. Else the head, and how many bytes it took.
pub fn decode(length: u32, bytes: &[u8]) -> Result<Option<(Request, usize)>, Malformed> {
    let length = u64::from(length);
    let mut reader = Reader { bytes, at: 0 };
    let Some(tag) = reader.number::<4>() else {
        return if length < 4 {
            Err(Malformed::Length)
        } else {
            Ok(None)
        };
    };
    let request = match tag {
        0 => Request::ZeroStats,
        1 => Request::GetStats,
        2 => Request::DistStatus,
        3 => Request::Shutdown,
        4 => Request::Compile,
        5 => Request::Handshake,
        6 => Request::GetPath,
        11 => Request::RecordStats,
        7..=10 => return decode_storage(length, tag, reader),
        unknown => {
            return Err(Malformed::UnknownTag(
                u32::try_from(unknown).unwrap_or(u32::MAX),
            ));
        }
    };
    Ok(Some((request, reader.at)))
}

fn decode_storage(
    length: u64,
    tag: u64,
    mut reader: Reader<'_>,
) -> Result<Option<(Request, usize)>, Malformed> {
    let kind = if tag <= 8 {
        EntryKind::Results
    } else {
        EntryKind::Preprocessor
    };
    let is_put = tag == 8 || tag == 10;
    let fixed = if is_put { 4 + 8 + 8 } else { 4 + 8 };
    let Some(key_length) = reader.number::<8>() else {
        return if length < fixed {
            Err(Malformed::Length)
        } else {
            Ok(None)
        };
    };
    if key_length > KEY_BYTES || fixed + key_length > length {
        return Err(Malformed::Length);
    }
    let Some(key) = reader.take(usize::try_from(key_length).map_err(|_| Malformed::Length)?) else {
        return Ok(None);
    };
    let key = std::str::from_utf8(key)
        .map_err(|_| Malformed::Key)?
        .to_owned();
    if !is_put {
        let fits = fixed + key_length == length;
        return if fits {
            Ok(Some((Request::Get { kind, key }, reader.at)))
        } else {
            Err(Malformed::Length)
        };
    }
    let Some(data) = reader.number::<8>() else {
        return Ok(None);
    };
    if length - fixed - key_length != data {
        return Err(Malformed::Length);
    }
    Ok(Some((
        Request::Put {
            kind,
            key,
            length: data,
        },
        reader.at,
    )))
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.at..self.at.checked_add(count)?)?;
        self.at += count;
        Some(taken)
    }

    fn number<const N: usize>(&mut self) -> Option<u64> {
        let bytes = self.take(N)?;
        Some(
            bytes
                .iter()
                .rev()
                .fold(0, |sum, &byte| sum << 8 | u64::from(byte)),
        )
    }
}

/// Is a response that begins like this an `ArtifactNotification`? sccache 0.16 knows none.
pub fn is_notice(head: &[u8]) -> bool {
    head.starts_with(&13_u32.to_le_bytes())
}

/// "Compile it yourself, without the cache."
pub fn unhandled_compile() -> Vec<u8> {
    frame(&[0_u32.to_le_bytes(), 1_u32.to_le_bytes()].concat())
}

/// The answer to `ZeroStats`. To any other request it is one that the client did not expect and says so
/// ("Unexpected server response!") where silence would let it hang.
pub fn refusal() -> Vec<u8> {
    frame(&1_u32.to_le_bytes())
}

/// The answer to a request that [`decode`] calls malformed, `length` bytes long, with `head` at its front: whatever lets
/// its sender go on without the cache. `is_first` says that no request of the known layout came before.
///
/// Only a request to compile has an answer by which its sender compiles by itself. The sender of an unknown greeting
/// ends in any case, and prints what it was answered: `advice`. After the greeting a client takes any answer for an error
/// of the cache, and goes on; but in direct mode, where it takes only a miss.
pub fn answer_to_unknown(length: u32, head: &[u8], is_first: bool, advice: &str) -> Vec<u8> {
    let tag = Reader { bytes: head, at: 0 }.number::<4>();
    match tag {
        Some(7) => miss(EntryKind::Results),
        Some(8) => stored(EntryKind::Results, Err(advice)),
        Some(10) => stored(EntryKind::Preprocessor, Err(advice)),
        _ if !is_first => miss(EntryKind::Preprocessor),
        Some(9) => miss(EntryKind::Preprocessor),
        _ if length < SHORTER_THAN_COMPILE => unsupported_compiler(advice),
        _ => unhandled_compile(),
    }
}

/// "I know no such compiler", with the text in the compiler's place.
fn unsupported_compiler(text: &str) -> Vec<u8> {
    // The response, its kind, and how a path is written on Unix.
    let mut body = [0_u32, 2, 0].map(u32::to_le_bytes).concat();
    push_bytes(&mut body, text.as_bytes());
    frame(&body)
}

/// What the client learns about the cache at the start of each compile.
pub struct Handshake<'a> {
    /// Shown in the client's statistics.
    pub location: &'a str,
    /// Reading only: the client puts nothing.
    pub read_only: bool,
    /// Direct mode for C and C++, which is part of their keys.
    pub direct_mode: bool,
    /// The cache's budget in bytes.
    pub max_size: u64,
}

impl Handshake<'_> {
    /// The whole response frame.
    pub fn encode(&self) -> Vec<u8> {
        let mut body = 6_u32.to_le_bytes().to_vec();
        push_bytes(&mut body, self.location.as_bytes());
        push_bytes(&mut body, b"webdav");
        // No base folders of ours: what the client strips from paths is for its own settings to say.
        body.extend(0_u64.to_le_bytes());
        // use, file_stat_matches, use_ctime_for_stat, ignore_time_macros, skip_system_headers,
        // hash_working_directory: sccache's own defaults for a disk cache.
        body.extend([u8::from(self.direct_mode), 0, 1, 0, 0, 1]);
        body.extend(u32::from(!self.read_only).to_le_bytes());
        body.push(1);
        body.extend(self.max_size.to_le_bytes());
        body.extend([0; ROOM_FOR_MORE]);
        frame(&body)
    }
}

/// "This store hands out no paths, ask for the bytes": a path of ours may not exist where the client runs.
pub fn no_paths() -> Vec<u8> {
    frame(&[7_u32.to_le_bytes(), 2_u32.to_le_bytes()].concat())
}

/// "Not there."
pub fn miss(kind: EntryKind) -> Vec<u8> {
    frame(&match kind {
        EntryKind::Results => [&8_u32.to_le_bytes()[..], &[0]].concat(),
        // Result::Ok, then Option::None.
        EntryKind::Preprocessor => [&10_u32.to_le_bytes()[..], &0_u32.to_le_bytes(), &[0]].concat(),
    })
}

/// The head of a hit's frame; exactly `length` bytes must follow. `None` when no frame can be that long.
pub fn hit(kind: EntryKind, length: u64) -> Option<Vec<u8>> {
    let mut body = match kind {
        EntryKind::Results => 8_u32.to_le_bytes().to_vec(),
        EntryKind::Preprocessor => [10_u32.to_le_bytes(), 0_u32.to_le_bytes()].concat(),
    };
    body.push(1);
    body.extend(length.to_le_bytes());
    let whole = u32::try_from(length.checked_add(body.len() as u64)?).ok()?;
    Some([&whole.to_be_bytes()[..], &body].concat())
}

/// The answer to a put; an error's text goes to the client's log.
pub fn stored(kind: EntryKind, result: Result<(), &str>) -> Vec<u8> {
    let tag: u32 = match kind {
        EntryKind::Results => 9,
        EntryKind::Preprocessor => 11,
    };
    let mut body = tag.to_le_bytes().to_vec();
    match result {
        Ok(()) => body.extend(0_u32.to_le_bytes()),
        Err(cause) => {
            body.extend(1_u32.to_le_bytes());
            push_bytes(&mut body, cause.as_bytes());
        }
    }
    frame(&body)
}

/// The answer to `RecordStats`.
pub fn stats_recorded() -> Vec<u8> {
    frame(&12_u32.to_le_bytes())
}

/// A frame around a short body of ours.
fn frame(body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    [&length.to_be_bytes()[..], body].concat()
}

fn push_bytes(body: &mut Vec<u8>, bytes: &[u8]) {
    body.extend((bytes.len() as u64).to_le_bytes());
    body.extend(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The frame's body as sccache writes it.
    fn encode(request: &Request, data: &[u8]) -> Vec<u8> {
        let tag: u32 = match request {
            Request::ZeroStats => 0,
            Request::GetStats => 1,
            Request::DistStatus => 2,
            Request::Shutdown => 3,
            Request::Compile => 4,
            Request::Handshake => 5,
            Request::GetPath => 6,
            Request::Get {
                kind: EntryKind::Results,
                ..
            } => 7,
            Request::Put {
                kind: EntryKind::Results,
                ..
            } => 8,
            Request::Get {
                kind: EntryKind::Preprocessor,
                ..
            } => 9,
            Request::Put {
                kind: EntryKind::Preprocessor,
                ..
            } => 10,
            Request::RecordStats => 11,
        };
        let mut body = tag.to_le_bytes().to_vec();
        match request {
            Request::Get { key, .. } => push_bytes(&mut body, key.as_bytes()),
            Request::Put { key, .. } => {
                push_bytes(&mut body, key.as_bytes());
                push_bytes(&mut body, data);
            }
            _ => body.extend(data),
        }
        body
    }

    fn requests() -> impl Strategy<Value = (Request, Vec<u8>)> {
        let data = proptest::collection::vec(any::<u8>(), 0..100);
        let kind = prop_oneof![Just(EntryKind::Results), Just(EntryKind::Preprocessor)];
        (0..10_u8, "[a-f0-9]{0,64}", kind, data).prop_map(|(choice, key, kind, data)| {
            let length = data.len() as u64;
            let request = match choice {
                0 => Request::ZeroStats,
                1 => Request::GetStats,
                2 => Request::DistStatus,
                3 => Request::Shutdown,
                4 => Request::Compile,
                5 => Request::Handshake,
                6 => Request::GetPath,
                7 => Request::Get { kind, key },
                8 => Request::Put { kind, key, length },
                _ => Request::RecordStats,
            };
            (request, data)
        })
    }

    proptest! {
        #[test]
        fn decoding_never_panics(length in any::<u32>(), bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = decode(length, &bytes);
        }

        #[test]
        fn lying_lengths_never_panic(length in any::<u32>(), tag in 0..14_u32, key in any::<u64>(), rest in proptest::collection::vec(any::<u8>(), 0..40)) {
            let bytes = [&tag.to_le_bytes()[..], &key.to_le_bytes(), &rest].concat();
            let _ = decode(length, &bytes);
        }

        #[test]
        fn what_is_encoded_is_decoded_however_it_arrives((request, data) in requests()) {
            let body = encode(&request, &data);
            let length = u32::try_from(body.len()).unwrap();
            let (decoded, taken) = decode(length, &body).unwrap().unwrap();
            prop_assert_eq!(&decoded, &request);
            for arrived in 0..taken {
                prop_assert_eq!(decode(length, &body[..arrived]).unwrap(), None);
            }
            if let Request::Put { .. } = request {
                prop_assert_eq!(&body[taken..], &data[..]);
            }
        }
    }

    #[test]
    fn unknown_request_is_named() {
        assert_eq!(decode(4, &[12, 0, 0, 0]), Err(Malformed::UnknownTag(12)));
    }

    #[test]
    fn unknown_requests_are_answered_as_their_senders_go_on() {
        let answer = |tag: u32, length, is_first| {
            answer_to_unknown(length, &tag.to_le_bytes(), is_first, "advice")
        };
        for is_first in [false, true] {
            assert_eq!(answer(7, 90, is_first), miss(EntryKind::Results));
            assert_eq!(answer(9, 90, is_first), miss(EntryKind::Preprocessor));
            let refused = stored(EntryKind::Results, Err("advice"));
            assert_eq!(answer(8, 90, is_first), refused);
            let refused = stored(EntryKind::Preprocessor, Err("advice"));
            assert_eq!(answer(10, 90, is_first), refused);
        }
        assert_eq!(answer(12, 900, true), unhandled_compile());
        let miss = miss(EntryKind::Preprocessor);
        assert_eq!(answer(12, 900, false), miss);
        assert_eq!(answer_to_unknown(0, &[], false, ""), miss);
        let expected = [
            &[0, 0, 0, 26][..],
            &[0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0],
            &[6, 0, 0, 0, 0, 0, 0, 0],
            b"advice",
        ];
        assert_eq!(answer(12, 4, true), expected.concat());
    }

    #[test]
    fn frame_too_short_for_its_tag_is_malformed() {
        assert_eq!(decode(3, &[0, 0, 0]), Err(Malformed::Length));
        assert_eq!(decode(8, &[7, 0, 0, 0, 1, 0, 0, 0]), Err(Malformed::Length));
    }

    #[test]
    fn hit_longer_than_a_frame_is_none() {
        assert_eq!(hit(EntryKind::Results, u64::from(u32::MAX)), None);
        assert_eq!(hit(EntryKind::Results, u64::MAX), None);
        assert_eq!(
            hit(EntryKind::Results, 5).unwrap(),
            [0, 0, 0, 18, 8, 0, 0, 0, 1, 5, 0, 0, 0, 0, 0, 0, 0]
        );
    }

    #[test]
    fn handshake_is_laid_out_as_sccache_reads_it() {
        let bytes = Handshake {
            location: "x",
            read_only: false,
            direct_mode: true,
            max_size: 3,
        }
        .encode();
        let expected = [
            &[0, 0, 0, 54 + 64][..],
            &[6, 0, 0, 0],
            &[1, 0, 0, 0, 0, 0, 0, 0, b'x'],
            &[6, 0, 0, 0, 0, 0, 0, 0],
            b"webdav",
            &[0, 0, 0, 0, 0, 0, 0, 0],
            &[1, 0, 1, 0, 0, 1],
            &[1, 0, 0, 0],
            &[1, 3, 0, 0, 0, 0, 0, 0, 0],
            &[0; ROOM_FOR_MORE],
        ]
        .concat();
        assert_eq!(bytes, expected);
    }
}
