//! How services say that they are ready: no polling, each writes to a socket once.
//!
//! The gateway writes `R` to the socket over which it got its listeners, and later one byte for each service that only
//! it can see to be ready. sccache connects to the socket named by `SCCACHE_STARTUP_NOTIFY` and sends one frame: u32
//! big-endian length, then bincode of its `ServerStartup` (`Ok { addr }`, `AddrInUse`, `TimedOut`, `Err { reason }`;
//! sccache 0.19.0, `src/server.rs`).

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

/// Longest frame taken from the notification socket.
const FRAME_LIMIT: usize = 64 << 10;

/// What a service said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    Ready,
    /// The gateway says that the service of this byte is ready.
    Of(u8),
    /// It is about to exit for this reason.
    Failed(String),
    /// Nothing yet.
    Nothing,
    /// It will say nothing more.
    Gone,
}

/// Reads the gateway's side of the handover socket.
pub fn handover(mut stream: &UnixStream) -> Said {
    let mut byte = [0];
    match stream.read(&mut byte) {
        Ok(1) if byte == *b"R" => Said::Ready,
        Ok(0) => Said::Gone,
        Ok(_) => Said::Of(byte[0]),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Said::Nothing,
        Err(_) => Said::Gone,
    }
}

/// Tells the gateway what only the supervisor knows. One that does not read is in worse trouble than this, or about to
/// end.
pub fn tell(mut gateway: &UnixStream, byte: u8) {
    let _ = gateway.write(&[byte]);
}

/// The notification socket, and the connection of a server that is starting.
pub struct Notify {
    pub listener: UnixListener,
    pub connection: Option<UnixStream>,
    frame: Vec<u8>,
}

impl Notify {
    /// Takes over a listener, which must not block.
    pub fn new(listener: UnixListener) -> Notify {
        Notify {
            listener,
            connection: None,
            frame: Vec::new(),
        }
    }

    /// Forgets what a process that has ended said, or its successor would count as ready before it is.
    pub fn forget(&mut self) {
        self.connection = None;
        while self.listener.accept().is_ok() {}
    }

    /// Accepts a connection and reads what is there. Bounded by the ready timeout of the service.
    pub fn read(&mut self) -> Said {
        if let Ok((stream, _)) = self.listener.accept()
            && stream.set_nonblocking(true).is_ok()
        {
            self.frame.clear();
            self.connection = Some(stream);
        }
        let Some(stream) = &mut self.connection else {
            return Said::Nothing;
        };
        let mut buffer = [0; 1024];
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) if self.frame.len() + count <= FRAME_LIMIT => {
                    self.frame.extend_from_slice(&buffer[..count]);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Ok(_) | Err(_) => {
                    self.connection = None;
                    return Said::Gone;
                }
            }
        }
        match decode(&self.frame) {
            Said::Nothing => Said::Nothing,
            said => {
                self.connection = None;
                said
            }
        }
    }
}

fn decode(frame: &[u8]) -> Said {
    let Some((length, payload)) = frame.split_first_chunk::<4>() else {
        return Said::Nothing;
    };
    let length = u32::from_be_bytes(*length) as usize;
    if length > FRAME_LIMIT {
        return Said::Failed("it sent a frame that is too long".into());
    }
    if payload.len() < length {
        return Said::Nothing;
    }
    let Some((tag, rest)) = payload[..length].split_first_chunk::<4>() else {
        return Said::Failed("it sent an empty frame".into());
    };
    match u32::from_le_bytes(*tag) {
        0 => Said::Ready,
        1 => Said::Failed("its address is in use".into()),
        2 => Said::Failed("it timed out".into()),
        // The reason is a string: u64 little-endian length, then the text.
        _ => Said::Failed(
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
    fn what_the_dead_said_does_not_count_for_their_successors() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("n.sock");
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let mut notify = Notify::new(listener);
        let say = || {
            let mut stream = UnixStream::connect(&path).unwrap();
            stream.write_all(&frame(b"\0\0\0\0")).unwrap();
        };
        say();
        notify.forget();
        assert_eq!(notify.read(), Said::Nothing);
        say();
        assert_eq!(notify.read(), Said::Ready);
    }

    #[test]
    fn only_a_whole_frame_counts() {
        let ok = frame(b"\0\0\0\0\x05\0\0\0\0\0\0\0/sock");
        for end in 0..ok.len() {
            assert_eq!(decode(&ok[..end]), Said::Nothing, "{end} bytes");
        }
        assert_eq!(decode(&ok), Said::Ready);
    }

    #[test]
    fn reason_of_a_failed_start_is_passed_on() {
        let reason = frame(b"\x03\0\0\0\x07\0\0\0\0\0\0\0no disk");
        assert_eq!(decode(&reason), Said::Failed("no disk".into()));
        assert_eq!(
            decode(&frame(b"\x01\0\0\0")),
            Said::Failed("its address is in use".into())
        );
    }

    #[test]
    fn lying_length_is_refused() {
        assert!(matches!(decode(&[0xff; 8]), Said::Failed(_)));
    }
}
