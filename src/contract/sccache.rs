//! What depends on the version of sccache, in one place: its own protocol, its keys, its variables, its faults. Pure.
//!
//! Each constant is the first version for which it is true. A release of ours that ships a newer sccache changes
//! [`SHIPPED`], and with it what `client-env` prints; the doctor compares with the version that a client really has.

use std::fmt;
use std::io::{self, Write};
use std::ops::RangeInclusive;
use std::os::unix::net::UnixStream;
use std::path::Path;

/// A version of sccache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32, pub u32);

/// That of the image, with which everything is tested.
pub const SHIPPED: Version = Version(0, 19, 0);

/// It knows `SCCACHE_MULTILEVEL_CHAIN`: older ones wait for each put.
pub const CHAIN: Version = Version(0, 16, 0);

/// It knows `SCCACHE_CLIENT_SIDE`, and with it the lanes ipc and socket.
pub const CLIENT_SIDE: Version = Version(0, 17, 0);

/// It knows `SCCACHE_SKIP_CACHE_CHECK`: builds with older ones fail while the gateway is away.
pub const SKIP_CACHE_CHECK: Version = Version(0, 19, 0);

/// It reads the config file of the lane dist.
pub const DIST_CONF: Version = Version(0, 19, 0);

/// `SCCACHE_BASEDIRS` and direct mode go together. With older ones a checkout may be given another one's object
/// (mozilla/sccache 2863).
pub const SAFE_BASEDIRS: Version = Version(0, 20, 0);

/// Whose layout of sccache's own protocol is known (`gateway/ipc/frame.rs`): the lanes ipc and socket. The protocol
/// itself tells no version.
pub const OWN_PROTOCOL: RangeInclusive<Version> = CLIENT_SIDE..=SHIPPED;

/// For clients that do not speak the known layout: WebDAV has not changed since it came.
pub const ANY_VERSION: &str = "--lane webdav";

impl Version {
    /// Whether nothing was tested with it, since it is newer than [`SHIPPED`]; what only mends something is as tested.
    pub fn is_untested(self) -> bool {
        (self.0, self.1) > (SHIPPED.0, SHIPPED.1)
    }

    /// What it means for a sccache-dock that its own sccache is newer than everything that was tested.
    pub fn untested_in_container(self) -> Option<String> {
        self.is_untested().then(|| {
            format!(
                "{self} is newer than {SHIPPED}, the newest that was tested: the lanes ipc and socket may not know its \
                 protocol, and clients of {SHIPPED} share less with it; {ANY_VERSION} works with every version"
            )
        })
    }

    /// Finds the version in what `sccache --version` prints, or in a bare version.
    pub fn parse(text: &str) -> Option<Version> {
        let word = text.split_whitespace().last()?;
        let mut parts = word.split(['.', '-', '+']).map(str::parse);
        let mut next = || parts.next()?.ok();
        Some(Version(next()?, next()?, next()?))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// Sends the `Shutdown` request (frame of four bytes, tag 3; sccache 0.19.0, `src/protocol.rs`) and waits for nothing,
/// not even for a place in the queue of a server that stands still. The connection must stay open until the answer comes.
pub(crate) fn sccache_shutdown(socket: &Path) -> io::Result<UnixStream> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let stream = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&stream, &SocketAddrUnix::new(socket)?)?;
    let mut stream = UnixStream::from(stream);
    stream.write_all(&[0, 0, 0, 4, 3, 0, 0, 0])?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newer_is_untested_but_for_its_patches() {
        let Version(major, minor, patch) = SHIPPED;
        assert!(!SHIPPED.is_untested());
        assert!(!Version(major, minor, patch + 1).is_untested());
        assert!(!CLIENT_SIDE.is_untested());
        assert!(Version(major, minor + 1, 0).is_untested());
        assert!(Version(major + 1, 0, 0).is_untested());
    }
}
