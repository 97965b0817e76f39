//! What the relay says in the scheduler's place to clients, and in the clients' place to builders. Pure.
//!
//! bincode 1 as in [`wire`](crate::dist_front::wire); the layout is that of sccache 0.19.0, `src/dist/mod.rs` and
//! `src/dist/http.rs`. The token of a job is a JWT of RFC 7519, signed by HS256 of RFC 7518 with the key that the builder
//! has told the scheduler in its heartbeat.

use crate::dist_front::wire::{Malformed, Reader};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use std::net::SocketAddr;

/// Bytes of a builder's key.
const KEY: usize = 32;
/// `{"typ":"JWT","alg":"HS256"}` in base64url.
const HEADER: &str = "eyJ0eXAiOiJKV1QiLCJhbGciOiJIUzI1NiJ9";
/// The zlib stream of an empty tar archive: two blocks of zeros.
const NO_INPUTS: &[u8] = &[
    0x78, 0x9c, 0x63, 0x60, 0x18, 0x05, 0xa3, 0x60, 0x14, 0x8c, 0x54, 0x00, 0x00, 0x04, 0x00, 0x00,
    0x01,
];

/// What a builder proves itself with to its clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::dist_front) struct Credentials {
    /// With which tokens of jobs are signed.
    pub(super) key: [u8; KEY],
    /// The certificate of its port, in PEM.
    pub(super) certificate: Vec<u8>,
}

/// How a builder took a toolchain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Submitted {
    Success,
    JobNotFound,
    CannotCache,
}

/// What became of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RunResult {
    /// The builder does not know it.
    JobNotFound,
    /// Its process ended with this code.
    Complete(i32),
}

/// The beginning of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Command {
    /// The program, as its path in the toolchain.
    pub(super) executable: String,
}

/// Key and certificate of a heartbeat.
pub(super) fn credentials(heartbeat: &[u8]) -> Result<Credentials, Malformed> {
    let mut reader = Reader::new(heartbeat);
    let key = reader.bytes()?;
    reader.number()?;
    reader.number()?;
    reader.bytes()?;
    let certificate = reader.bytes()?.to_vec();
    Ok(Credentials {
        key: key.try_into().map_err(|_| Malformed::Length)?,
        certificate,
    })
}

/// `AllocJobHttpResponse::Success`.
pub(super) fn allocated(
    ticket: &str,
    job: u64,
    server: SocketAddr,
    needs_toolchain: bool,
    digest: &[u8],
) -> Vec<u8> {
    let mut body = 0_u32.to_le_bytes().to_vec();
    put_bytes(&mut body, ticket.as_bytes());
    body.extend(job.to_le_bytes());
    match server {
        SocketAddr::V4(server) => {
            body.extend(0_u32.to_le_bytes());
            body.extend(server.ip().octets());
        }
        SocketAddr::V6(server) => {
            body.extend(1_u32.to_le_bytes());
            body.extend(server.ip().octets());
        }
    }
    body.extend(server.port().to_le_bytes());
    body.push(u8::from(needs_toolchain));
    put_bytes(&mut body, digest);
    body
}

/// `ServerCertificateHttpResponse`.
pub(super) fn certificate(digest: &[u8], pem: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    put_bytes(&mut body, digest);
    put_bytes(&mut body, pem);
    body
}

/// `SchedulerStatusResult`.
pub(super) fn status(builders: u64, cores: u64, jobs: u64) -> Vec<u8> {
    [builders, cores, jobs]
        .iter()
        .flat_map(|number| number.to_le_bytes())
        .collect()
}

/// `HeartbeatServerResult`.
pub(in crate::dist_front) fn heartbeat_taken(is_new: bool) -> Vec<u8> {
    vec![u8::from(is_new)]
}

/// `SubmitToolchainResult`.
pub(super) fn submitted(how: Submitted) -> Vec<u8> {
    let variant: u32 = match how {
        Submitted::Success => 0,
        Submitted::JobNotFound => 1,
        Submitted::CannotCache => 2,
    };
    variant.to_le_bytes().to_vec()
}

/// `Toolchain`, the body of an assignment.
pub(super) fn toolchain(name: &str) -> Vec<u8> {
    let mut body = Vec::new();
    put_bytes(&mut body, name.as_bytes());
    body
}

/// `AssignJobResult`: whether the builder needs the toolchain.
pub(super) fn assigned(body: &[u8]) -> Result<bool, Malformed> {
    let mut reader = Reader::new(body);
    reader.variant()?;
    Ok(reader.array::<1>()? != [0])
}

/// `SubmitToolchainResult`.
pub(super) fn taken(body: &[u8]) -> Result<Submitted, Malformed> {
    match Reader::new(body).variant()? {
        0 => Ok(Submitted::Success),
        1 => Ok(Submitted::JobNotFound),
        2 => Ok(Submitted::CannotCache),
        unknown => Err(Malformed::Variant(unknown)),
    }
}

/// The first bytes of `RunJobResult`: as many as [`RESULT_HEAD`] of them, if there are so many.
pub(super) fn result(head: &[u8]) -> Result<RunResult, Malformed> {
    let mut reader = Reader::new(head);
    match reader.variant()? {
        0 => Ok(RunResult::JobNotFound),
        1 => Ok(RunResult::Complete(i32::from_le_bytes(reader.array()?))),
        unknown => Err(Malformed::Variant(unknown)),
    }
}

/// Bytes that tell a result.
pub(super) const RESULT_HEAD: usize = 8;

/// Bytes before the command of a job's body: how long it is.
pub(super) const COMMAND_LENGTH: usize = 4;

/// How long the command is at the beginning of a job's body.
pub(super) fn command_length(length: [u8; COMMAND_LENGTH]) -> usize {
    usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX)
}

/// The command of a job.
pub(super) fn command(body: &[u8]) -> Result<Command, Malformed> {
    let executable = Reader::new(body).bytes()?;
    let executable = std::str::from_utf8(executable).map_err(|_| Malformed::Text)?;
    Ok(Command {
        executable: executable.to_owned(),
    })
}

/// A job of our own, which has a toolchain unpacked: the compiler tells its version.
pub(super) fn unpacking_job(executable: &str) -> Vec<u8> {
    let mut command = Vec::new();
    put_bytes(&mut command, executable.as_bytes());
    command.extend(1_u64.to_le_bytes());
    put_bytes(&mut command, b"--version");
    // No variables.
    command.extend(0_u64.to_le_bytes());
    put_bytes(&mut command, b"/");
    // No outputs.
    command.extend(0_u64.to_le_bytes());
    let length = u32::try_from(command.len()).unwrap_or(u32::MAX);
    [&length.to_be_bytes()[..], &command, NO_INPUTS].concat()
}

/// The token by which a builder lets a job in.
pub(super) fn job_token(key: &[u8; KEY], job: u64) -> String {
    let claims = URL_SAFE_NO_PAD.encode(format!("{{\"exp\":0,\"job_id\":{job}}}"));
    let signed = format!("{HEADER}.{claims}");
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    let signature = URL_SAFE_NO_PAD.encode(hmac::sign(&key, signed.as_bytes()));
    format!("{signed}.{signature}")
}

fn put_bytes(body: &mut Vec<u8>, bytes: &[u8]) {
    body.extend((bytes.len() as u64).to_le_bytes());
    body.extend(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dist_front::wire::{self, Allocation};
    use proptest::prelude::*;

    #[test]
    fn allocation_reads_back_as_the_schedulers_own() {
        for server in ["10.0.0.7:10600", "[2001:db8::7]:10600"] {
            let server = server.parse().unwrap();
            let body = allocated("ticket", 7, server, true, &[3; 32]);
            let expected = Allocation::Assigned {
                job: 7,
                builder: server,
                needs_toolchain: true,
            };
            assert_eq!(wire::allocation(&body), Ok(expected));
        }
    }

    #[test]
    fn toolchain_reads_back() {
        let name = "ab".repeat(32);
        assert_eq!(wire::toolchain(&toolchain(&name)), Ok(name));
    }

    #[test]
    fn heartbeat_holds_key_and_certificate() {
        let mut body = Vec::new();
        put_bytes(&mut body, &[7; 32]);
        body.extend([1_u64.to_le_bytes(), 2_u64.to_le_bytes()].concat());
        put_bytes(&mut body, &[1; 32]);
        put_bytes(&mut body, b"PEM");
        let expected = Credentials {
            key: [7; 32],
            certificate: b"PEM".to_vec(),
        };
        assert_eq!(credentials(&body), Ok(expected));
        let mut short = Vec::new();
        put_bytes(&mut short, &[7; 31]);
        assert_eq!(credentials(&short), Err(Malformed::Length));
    }

    #[test]
    fn answers_of_builders_are_understood() {
        assert_eq!(assigned(&[1, 0, 0, 0, 0]), Ok(false));
        assert_eq!(assigned(&[0, 0, 0, 0, 1]), Ok(true));
        for how in [
            Submitted::Success,
            Submitted::JobNotFound,
            Submitted::CannotCache,
        ] {
            assert_eq!(taken(&submitted(how)), Ok(how));
        }
        assert_eq!(result(&[0; 4]), Ok(RunResult::JobNotFound));
        let failed = [1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff];
        assert_eq!(result(&failed), Ok(RunResult::Complete(-1)));
        assert_eq!(result(&[1, 0, 0, 0]), Err(Malformed::Length));
        assert_eq!(result(&[9, 0, 0, 0]), Err(Malformed::Variant(9)));
    }

    #[test]
    fn command_of_our_own_job_is_read_as_any() {
        let body = unpacking_job("/usr/bin/cc");
        let (length, rest) = body.split_first_chunk().unwrap();
        let command_bytes = &rest[..command_length(*length)];
        let expected = Command {
            executable: "/usr/bin/cc".into(),
        };
        assert_eq!(command(command_bytes), Ok(expected));
        assert_eq!(&rest[command_length(*length)..], NO_INPUTS);
    }

    proptest! {
        #[test]
        fn any_body_is_judged(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = (credentials(&body), assigned(&body), taken(&body), result(&body), command(&body));
        }
    }

    /// The signature is what another implementation of HMAC (Python's) makes of the same bytes.
    #[test]
    fn token_is_signed_over_header_and_claims() {
        let token = job_token(&[0x61; 32], 42);
        let parts: Vec<&str> = token.split('.').collect();
        let decode = |part: &str| String::from_utf8(URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap();
        assert_eq!(decode(parts[0]), r#"{"typ":"JWT","alg":"HS256"}"#);
        assert_eq!(decode(parts[1]), r#"{"exp":0,"job_id":42}"#);
        assert_eq!(parts[2], "r1ZBtkmMOOjoAz7qXfp6c32pqPTRBZVKmJn11xZ_xjA");
    }
}
