//! How services report that they are ready: without polling, each writes to a socket once.
//!
//! The gateway writes `R` to the socket over which it received its listeners, and later one byte for each service whose
//! readiness only it can see. sccache connects to the socket named by `SCCACHE_STARTUP_NOTIFY` and sends one frame: a
//! big-endian u32 length, then its `ServerStartup` in bincode (`Ok { addr }`, `AddrInUse`, `TimedOut`,
//! `Err { reason }`; sccache 0.19.0, `src/server.rs`).

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

/// Maximum length of a frame on the notification socket.
const FRAME_LIMIT: usize = 64 << 10;
/// The same, including the length field.
pub const NOTIFICATION_LIMIT: usize = 4 + FRAME_LIMIT;

/// What a service reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notification {
    Ready,
    /// The gateway reports that the service identified by this byte is ready.
    Of(u8),
    /// The service is about to exit for this reason.
    Failed(String),
    /// Nothing yet.
    Nothing,
    /// The socket is closed, so no report will come.
    Gone,
}

/// Reads from the gateway's handover socket.
pub fn handover(mut stream: &UnixStream) -> Notification {
    let mut byte = [0];
    match stream.read(&mut byte) {
        Ok(1) if byte == *b"R" => Notification::Ready,
        Ok(0) => Notification::Gone,
        Ok(_) => Notification::Of(byte[0]),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Notification::Nothing,
        Err(_) => Notification::Gone,
    }
}

/// Sends the gateway a byte that only the supervisor knows about. Errors are ignored: a gateway that does not read has
/// worse problems, or is about to end.
pub fn tell(mut gateway: &UnixStream, byte: u8) {
    let _ = gateway.write(&[byte]);
}

/// Parses a server's report on the notification socket, once its frame is complete or cannot become so.
pub fn notification(bytes: &[u8]) -> Option<Notification> {
    match decode(bytes) {
        Notification::Nothing => None,
        said => Some(said),
    }
}

fn decode(frame: &[u8]) -> Notification {
    let Some((length, payload)) = frame.split_first_chunk::<4>() else {
        return Notification::Nothing;
    };
    let length = u32::from_be_bytes(*length) as usize;
    if length > FRAME_LIMIT {
        return Notification::Failed("it sent a frame that is too long".into());
    }
    if payload.len() < length {
        return Notification::Nothing;
    }
    let Some((tag, rest)) = payload[..length].split_first_chunk::<4>() else {
        return Notification::Failed("it sent an empty frame".into());
    };
    match u32::from_le_bytes(*tag) {
        0 => Notification::Ready,
        1 => Notification::Failed("its address is in use".into()),
        2 => Notification::Failed("it timed out".into()),
        // The reason is a string: a little-endian u64 length, then the text.
        _ => Notification::Failed(
            String::from_utf8_lossy(rest.get(8..).unwrap_or_default())
                .trim()
                .to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(payload: &[u8]) -> Vec<u8> {
        let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes().to_vec();
        frame.extend_from_slice(payload);
        frame
    }

    #[test]
    fn only_a_whole_frame_counts() {
        let ok = frame(b"\0\0\0\0\x05\0\0\0\0\0\0\0/sock");
        for end in 0..ok.len() {
            assert_eq!(decode(&ok[..end]), Notification::Nothing, "{end} bytes");
        }
        assert_eq!(decode(&ok), Notification::Ready);
    }

    #[test]
    fn reason_of_a_failed_start_is_passed_on() {
        let reason = frame(b"\x03\0\0\0\x07\0\0\0\0\0\0\0no disk");
        assert_eq!(decode(&reason), Notification::Failed("no disk".into()));
        assert_eq!(
            decode(&frame(b"\x01\0\0\0")),
            Notification::Failed("its address is in use".into())
        );
    }

    #[test]
    fn lying_length_is_refused() {
        assert!(matches!(decode(&[0xff; 8]), Notification::Failed(_)));
    }
}
