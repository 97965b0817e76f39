//! A peer that speaks sccache's own protocol byte by byte, as no client does.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// What anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A peer that speaks sccache's own protocol byte by byte, as no client does.
pub(crate) struct OwnProtocol<S = TcpStream>(pub(crate) S);

impl OwnProtocol {
    pub(crate) fn connect(address: SocketAddr) -> io::Result<OwnProtocol> {
        let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(OwnProtocol(stream))
    }
}

impl<S: Read + Write> OwnProtocol<S> {
    /// Sends one request and gives the body of the answer.
    pub(crate) fn ask(&mut self, request: &[u8]) -> io::Result<Vec<u8>> {
        self.0.write_all(&frame(request))?;
        let mut length = [0; 4];
        self.0.read_exact(&mut length)?;
        let mut body = vec![0; u32::from_be_bytes(length) as usize];
        self.0.read_exact(&mut body)?;
        Ok(body)
    }

    /// Whether the cache says that this peer may write.
    pub(crate) fn may_write(&mut self) -> io::Result<bool> {
        let answer = self.ask(&5_u32.to_le_bytes())?;
        // From its end: zeros for what later clients may read, the size and whether there is one, then the mode.
        let mode = answer.len() - 64 - 9 - 4;
        Ok(answer[mode..mode + 4] != [0; 4])
    }

    pub(crate) fn get(&mut self, key: &str) -> io::Result<Option<Vec<u8>>> {
        let answer = self.ask(&[&7_u32.to_le_bytes()[..], &bytes(key.as_bytes())].concat())?;
        Ok((answer[4] == 1).then(|| answer[13..].to_vec()))
    }

    /// The same as [`OwnProtocol::put`], with the length and the rest of the frame in a write each, as sccache does it.
    pub(crate) fn put_in_two_writes(&mut self, key: &str, body: &[u8]) -> io::Result<bool> {
        let request = [
            &8_u32.to_le_bytes()[..],
            &bytes(key.as_bytes()),
            &bytes(body),
        ];
        let frame = frame(&request.concat());
        self.0.write_all(&frame[..4])?;
        self.0.write_all(&frame[4..])?;
        let mut answer = [0; 12];
        self.0.read_exact(&mut answer)?;
        Ok(answer[8..] == [0; 4])
    }

    /// Whether the cache says that it has stored it.
    pub(crate) fn put(&mut self, key: &str, body: &[u8]) -> io::Result<bool> {
        let request = [
            &8_u32.to_le_bytes()[..],
            &bytes(key.as_bytes()),
            &bytes(body),
        ];
        Ok(self.ask(&request.concat())?[4..8] == [0; 4])
    }
}

fn frame(body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap();
    [&length.to_be_bytes()[..], body].concat()
}

fn bytes(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text].concat()
}

/// The smallest ZIP archive with this content, for a store that takes nothing else under sccache's keys.
pub(crate) fn archive(content: &[u8]) -> Vec<u8> {
    let name = b"obj";
    let mut out = [&b"PK\x03\x04"[..], &[0; 22], &[3, 0, 0, 0], name, content].concat();
    let start = u32::try_from(out.len()).unwrap();
    out.extend([&b"PK\x01\x02"[..], &[0; 42], name].concat());
    let size = u32::try_from(out.len()).unwrap() - start;
    out.extend(b"PK\x05\x06\0\0\0\0\x01\0\x01\0");
    out.extend([size.to_le_bytes(), start.to_le_bytes()].concat());
    out.extend([0, 0]);
    out
}
