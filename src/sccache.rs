//! What depends on the version of sccache, in one place. Pure.
//!
//! Each constant is the first version for which it is true. A release of ours that ships a newer sccache changes
//! [`SHIPPED`], and with it what `client-env` prints; the doctor compares with the version that a client really has.

use std::fmt;

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

impl Version {
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
