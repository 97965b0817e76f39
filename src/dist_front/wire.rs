//! What clients, builders and the scheduler send each other, as bytes. Pure.
//!
//! Bodies are bincode 1: little-endian, fixed-size numbers, `u32` variant tags, `u64` lengths. The layout is
//! that of sccache 0.19.0, `src/dist/mod.rs` and `src/dist/http.rs`. Only what the front must know is decoded;
//! what it passes on, it passes on as it came.

use std::net::{IpAddr, SocketAddr};

/// Hexadecimal digits of a toolchain's name, a BLAKE3 digest.
const TOOLCHAIN_DIGITS: usize = 64;

/// Why a body is not what its route takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// A length in the body does not fit the body, or bytes are left over.
    #[error("a length in the body does not fit the body")]
    Length,
    /// A variant that sccache 0.19 does not know.
    #[error("unknown variant {0}: the sender may be newer than sccache 0.19")]
    Variant(u32),
    /// Text that is none, or a toolchain's name that is no digest.
    #[error("the name of the toolchain is no BLAKE3 digest")]
    Toolchain,
    /// Text that is not UTF-8.
    #[error("a text in the body is not UTF-8")]
    Text,
    /// A number that makes no sense.
    #[error("a builder has between 1 and 65,536 cores, not {0}")]
    Cores(u64),
}

/// How far a job is, as its builder reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum JobState {
    /// Assigned; its toolchain is not on the builder.
    Pending,
    /// The toolchain is there, or its upload has begun.
    Ready,
    /// The inputs are on their way, or it runs.
    Started,
    /// It is over, however it went.
    Complete,
}

/// The answer to a client that asked for a builder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Allocation {
    /// Where the job goes.
    Assigned {
        /// The job.
        job: u64,
        /// The builder's public address.
        builder: SocketAddr,
        /// The client has to upload the toolchain first.
        needs_toolchain: bool,
    },
    /// No builder, and why.
    Refused(String),
}

/// What the front needs of a heartbeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heartbeat {
    /// Cores that jobs may use.
    pub cores: u64,
    /// Drawn by the builder at its start.
    pub nonce: u64,
}

/// The toolchain for which a client asks for a builder, in lower case.
pub fn toolchain(body: &[u8]) -> Result<String, Malformed> {
    let mut reader = Reader::new(body);
    let name = reader.bytes()?;
    reader.end()?;
    let digits = name.len() == TOOLCHAIN_DIGITS && name.iter().all(u8::is_ascii_hexdigit);
    match std::str::from_utf8(name) {
        Ok(name) if digits => Ok(name.to_ascii_lowercase()),
        Ok(_) | Err(_) => Err(Malformed::Toolchain),
    }
}

/// A builder's heartbeat. Its key and certificate are skipped, but must be there.
pub fn heartbeat(body: &[u8]) -> Result<Heartbeat, Malformed> {
    let mut reader = Reader::new(body);
    reader.bytes()?;
    let cores = reader.number()?;
    let nonce = reader.number()?;
    reader.bytes()?;
    reader.bytes()?;
    reader.end()?;
    if !(1..=65_536).contains(&cores) {
        return Err(Malformed::Cores(cores));
    }
    Ok(Heartbeat { cores, nonce })
}

/// A job's new state.
pub fn job_state(body: &[u8]) -> Result<JobState, Malformed> {
    let mut reader = Reader::new(body);
    let state = match reader.variant()? {
        0 => JobState::Pending,
        1 => JobState::Ready,
        2 => JobState::Started,
        3 => JobState::Complete,
        unknown => return Err(Malformed::Variant(unknown)),
    };
    reader.end()?;
    Ok(state)
}

/// The scheduler's answer to an allocation.
pub fn allocation(body: &[u8]) -> Result<Allocation, Malformed> {
    let mut reader = Reader::new(body);
    let allocation = match reader.variant()? {
        0 => {
            // The token with which the client proves itself to the builder.
            reader.bytes()?;
            let job = reader.number()?;
            let builder = reader.address()?;
            let needs_toolchain = reader.array::<1>()?[0] != 0;
            reader.bytes()?;
            Allocation::Assigned {
                job,
                builder,
                needs_toolchain,
            }
        }
        1 => {
            let message = reader.bytes()?.to_vec();
            Allocation::Refused(String::from_utf8(message).map_err(|_| Malformed::Text)?)
        }
        unknown => return Err(Malformed::Variant(unknown)),
    };
    reader.end()?;
    Ok(allocation)
}

/// The scheduler's own answer when there is no capacity: the client compiles by itself.
pub fn no_capacity(message: &str) -> Vec<u8> {
    let mut body = 1_u32.to_le_bytes().to_vec();
    body.extend((message.len() as u64).to_le_bytes());
    body.extend(message.as_bytes());
    body
}

/// The scheduler's answer to a job's new state.
pub const STATE_TAKEN: [u8; 4] = [0; 4];

/// Splits what a builder proves itself with: its public address and the token.
pub fn builder_bearer(bearer: &str) -> Option<(SocketAddr, &str)> {
    let (address, token) = bearer.split_once(' ')?;
    Some((address.parse().ok()?, token))
}

/// Bytes that are read from the front.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { rest: bytes }
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (array, rest) = self.rest.split_first_chunk().ok_or(Malformed::Length)?;
        self.rest = rest;
        Ok(*array)
    }

    pub(super) fn number(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_le_bytes)
    }

    pub(super) fn variant(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let length = usize::try_from(self.number()?).map_err(|_| Malformed::Length)?;
        let (bytes, rest) = self
            .rest
            .split_at_checked(length)
            .ok_or(Malformed::Length)?;
        self.rest = rest;
        Ok(bytes)
    }

    fn address(&mut self) -> Result<SocketAddr, Malformed> {
        let ip: IpAddr = match self.variant()? {
            0 => self.array::<4>()?.into(),
            1 => self.array::<16>()?.into(),
            unknown => return Err(Malformed::Variant(unknown)),
        };
        Ok(SocketAddr::new(ip, u16::from_le_bytes(self.array()?)))
    }

    fn end(&self) -> Result<(), Malformed> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(Malformed::Length)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes(text: &[u8]) -> Vec<u8> {
        [&(text.len() as u64).to_le_bytes(), text].concat()
    }

    fn heartbeat_of(cores: u64) -> Vec<u8> {
        [
            bytes(&[7; 32]),
            cores.to_le_bytes().to_vec(),
            99_u64.to_le_bytes().to_vec(),
            bytes(&[1; 32]),
            bytes(b"-----BEGIN CERTIFICATE-----"),
        ]
        .concat()
    }

    #[test]
    fn toolchain_is_a_digest() {
        let name = "AB".repeat(32);
        assert_eq!(
            toolchain(&bytes(name.as_bytes())),
            Ok(name.to_ascii_lowercase())
        );
        assert_eq!(toolchain(&bytes(b"../../etc")), Err(Malformed::Toolchain));
        assert_eq!(toolchain(b""), Err(Malformed::Length));
        let long = [bytes(name.as_bytes()), vec![0]].concat();
        assert_eq!(toolchain(&long), Err(Malformed::Length));
    }

    #[test]
    fn heartbeat_has_cores_and_a_nonce() {
        let expected = Heartbeat {
            cores: 16,
            nonce: 99,
        };
        assert_eq!(heartbeat(&heartbeat_of(16)), Ok(expected));
        assert_eq!(heartbeat(&heartbeat_of(0)), Err(Malformed::Cores(0)));
        assert_eq!(heartbeat(&heartbeat_of(1)[..60]), Err(Malformed::Length));
    }

    #[test]
    fn allocations_name_the_builder() {
        let address =
            |family: u32, ip: &[u8]| [&family.to_le_bytes(), ip, &10501_u16.to_le_bytes()].concat();
        for (address, builder) in [
            (address(0, &[10, 0, 0, 7]), "10.0.0.7:10501"),
            (
                address(
                    1,
                    &"2001:db8::7"
                        .parse::<std::net::Ipv6Addr>()
                        .unwrap()
                        .octets(),
                ),
                "[2001:db8::7]:10501",
            ),
        ] {
            let body = [
                vec![0; 4],
                bytes(b"jwt"),
                u64::MAX.to_le_bytes().to_vec(),
                address,
                vec![1],
                bytes(&[3; 32]),
            ]
            .concat();
            let expected = Allocation::Assigned {
                job: u64::MAX,
                builder: builder.parse().unwrap(),
                needs_toolchain: true,
            };
            assert_eq!(allocation(&body), Ok(expected));
        }
        let refused = Allocation::Refused("full".to_owned());
        assert_eq!(allocation(&no_capacity("full")), Ok(refused));
        assert_eq!(allocation(&[9, 0, 0, 0]), Err(Malformed::Variant(9)));
    }

    #[test]
    fn states_are_numbered() {
        assert_eq!(job_state(&[3, 0, 0, 0]), Ok(JobState::Complete));
        assert_eq!(job_state(&[4, 0, 0, 0]), Err(Malformed::Variant(4)));
        assert_eq!(job_state(&[0, 0, 0]), Err(Malformed::Length));
    }

    #[test]
    fn builder_names_its_address_before_the_token() {
        let address = "10.0.0.7:10501".parse().unwrap();
        assert_eq!(builder_bearer("10.0.0.7:10501 a b"), Some((address, "a b")));
        assert_eq!(builder_bearer("a-hostname:10501 a"), None);
        assert_eq!(builder_bearer("10.0.0.7:10501"), None);
    }

    proptest! {
        #[test]
        fn any_body_is_judged(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = (toolchain(&body), heartbeat(&body), job_state(&body), allocation(&body));
        }
    }
}
