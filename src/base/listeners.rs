//! Listening sockets: bound here, and passed from the supervisor to the gateway over a Unix socket. They stay open
//! while the gateway restarts, so no client is refused.

use nix::errno::Errno;
use nix::sys::stat::{Mode, umask};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

/// Maximum number of sockets in one message.
const MOST: usize = 4;

/// Maximum length of a Unix socket's path, in bytes without the final NUL.
pub const SOCKET_PATH_MAX: usize = 107;

/// Binds `addr`; port 0 takes any free port. Errors name the address.
pub fn bind_tcp(addr: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(addr).map_err(|cause| explain(cause, &format!("cannot listen on {addr}")))
}

/// Binds a Unix socket at `path` with `mode`, replacing a stale socket. Any other file at `path` is left alone and is
/// an error, as is a path that is too long for a socket address.
pub fn bind_unix(path: &Path, mode: u32) -> io::Result<UnixListener> {
    let what = format!("cannot listen on \"{}\"", path.display());
    let length = path.as_os_str().len();
    if length > SOCKET_PATH_MAX {
        let cause = format!(
            "{what}: the path has {length} bytes, a socket's path at most {SOCKET_PATH_MAX}"
        );
        return Err(io::Error::new(io::ErrorKind::InvalidInput, cause));
    }
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => {
            std::fs::remove_file(path).map_err(|cause| explain(cause, &what))?;
        }
        Ok(_) => {
            let cause = format!("{what}: a file that is no socket stands there");
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, cause));
        }
        Err(_) => {}
    }
    // The socket is created with its final mode: a later chmod by path could hit a different file.
    let before = umask(Mode::from_bits_truncate(!mode & 0o777));
    let bound = UnixListener::bind(path);
    umask(before);
    bound.map_err(|cause| explain(cause, &what))
}

/// Sends `sockets`, at most four, in one message with one byte of data.
pub fn send(stream: &UnixStream, sockets: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if sockets.len() > MOST || !control.push(SendAncillaryMessage::ScmRights(sockets)) {
        let cause = format!("cannot send {} sockets: at most {MOST}", sockets.len());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, cause));
    }
    sendmsg(
        stream,
        &[IoSlice::new(b"L")],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

/// Receives what [`send`] sent, in the same order, with close-on-exec set. End of file is an error.
pub fn receive(stream: &UnixStream) -> io::Result<Vec<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let mut data = [IoSliceMut::new(&mut byte)];
    let message = recvmsg(stream, &mut data, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    if message.bytes == 0 {
        let cause = "cannot receive the listeners: the supervisor closed the socket";
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, cause));
    }
    if message.flags.contains(ReturnFlags::CTRUNC) {
        let cause = format!("cannot receive the listeners: more than {MOST} of them");
        return Err(io::Error::new(io::ErrorKind::InvalidData, cause));
    }
    let mut sockets = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            sockets.extend(received);
        }
    }
    Ok(sockets)
}

fn explain(cause: io::Error, what: &str) -> io::Error {
    let what = what.to_owned();
    io::Error::new(cause.kind(), Explained { what, cause })
}

/// A system error and the operation that failed.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {cause}")]
struct Explained {
    what: String,
    cause: io::Error,
}

/// The error number of an error returned by this module.
pub fn errno(error: &io::Error) -> Errno {
    let explained = || error.get_ref()?.downcast_ref::<Explained>();
    let raw = error.raw_os_error();
    match raw.or_else(|| explained()?.cause.raw_os_error()) {
        Some(raw) => Errno::from_raw(raw),
        None if error.kind() == io::ErrorKind::AlreadyExists => Errno::EEXIST,
        None => Errno::EINVAL,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::os::fd::AsFd;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn listeners_arrive_in_order_and_work() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.sock");
        let tcp = bind_tcp("127.0.0.1:0".parse().unwrap()).unwrap();
        let unix = bind_unix(&path, 0o666).unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        send(&ours, &[tcp.as_fd(), unix.as_fd()]).unwrap();
        let addr = tcp.local_addr().unwrap();
        drop((tcp, unix));

        let mut received = receive(&theirs).unwrap().into_iter();
        let tcp = TcpListener::from(received.next().unwrap());
        let unix = UnixListener::from(received.next().unwrap());
        assert!(received.next().is_none());
        TcpStream::connect(addr).unwrap().write_all(b"t").unwrap();
        UnixStream::connect(&path).unwrap().write_all(b"u").unwrap();
        let mut byte = [0];
        tcp.accept().unwrap().0.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"t");
        unix.accept().unwrap().0.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"u");
    }

    #[test]
    fn closed_supervisor_is_an_error() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(ours);
        let error = receive(&theirs).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn stale_socket_is_replaced_with_the_mode() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.sock");
        drop(bind_unix(&path, 0o600).unwrap());
        let _listener = bind_unix(&path, 0o666).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o666);
    }

    #[test]
    fn foreign_file_at_the_path_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.sock");
        std::fs::write(&path, "mine").unwrap();
        let error = bind_unix(&path, 0o666).unwrap_err();
        assert!(error.to_string().contains("no socket"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"mine");
    }

    #[test]
    fn long_path_is_named_in_the_error() {
        let path = Path::new("/tmp").join("x".repeat(120));
        let error = bind_unix(&path, 0o666).unwrap_err().to_string();
        assert!(
            error.contains("125 bytes") && error.contains("at most 107"),
            "{error}"
        );
    }
}
