//! Everything that depends on the version of sccache: its own protocol, keys, variables and faults. Pure.
//!
//! Each constant is the first version for which the statement holds. A release that ships a newer sccache changes
//! [`SHIPPED`], and thereby the output of `client-env`; the doctor compares with the client's actual version.

use std::fmt;
use std::io::{self, Write};
use std::ops::RangeInclusive;
use std::os::unix::net::UnixStream;
use std::path::Path;

/// A version of sccache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32, pub u32);

/// The version in the image, with which everything is tested.
pub const SHIPPED: Version = Version(0, 19, 0);

/// Supports `SCCACHE_MULTILEVEL_CHAIN`; older versions wait for each PUT.
pub const CHAIN: Version = Version(0, 16, 0);

/// Supports `SCCACHE_CLIENT_SIDE`, and with it the lanes ipc and socket.
pub const CLIENT_SIDE: Version = Version(0, 17, 0);

/// Supports `SCCACHE_SKIP_CACHE_CHECK`; with older versions, builds fail while the gateway is down.
pub const SKIP_CACHE_CHECK: Version = Version(0, 19, 0);

/// Reads the config file of the lane dist.
pub const DIST_CONF: Version = Version(0, 19, 0);

/// Supports `SCCACHE_BASEDIRS` together with direct mode. With older versions one checkout may get the object of
/// another (mozilla/sccache 2863).
pub const SAFE_BASEDIRS: Version = Version(0, 20, 0);

/// The versions whose protocol layout is known (`gateway/ipc/frame.rs`), for the lanes ipc and socket. The protocol
/// itself carries no version.
pub const OWN_PROTOCOL: RangeInclusive<Version> = CLIENT_SIDE..=SHIPPED;

/// The lane for clients with an unknown layout: WebDAV has never changed.
pub const ANY_VERSION: &str = "--lane webdav";

impl Version {
    /// Whether this version is untested because it is newer than [`SHIPPED`]. A newer patch level counts as tested.
    pub fn is_untested(self) -> bool {
        (self.0, self.1) > (SHIPPED.0, SHIPPED.1)
    }

    /// The warning for a container whose own sccache is newer than every tested version.
    pub fn untested_in_container(self) -> Option<String> {
        self.is_untested().then(|| {
            format!(
                "{self} is newer than {SHIPPED}, the newest that was tested: the lanes ipc and socket may not know its \
                 protocol, and clients of {SHIPPED} share less with it; {ANY_VERSION} works with every version"
            )
        })
    }

    /// Parses the output of `sccache --version`, or a bare version number.
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

/// Sends the `Shutdown` request (frame of four bytes, tag 3; sccache 0.19.0, `src/protocol.rs`) without waiting, not
/// even for a place in the backlog of a server that hangs. The connection must stay open until the answer arrives.
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
