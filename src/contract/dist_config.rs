//! The configuration files of `sccache-dist` 0.19.0, as typed values. Pure.
//!
//! Only what we use of them: tokens and no JWT, because a JWT of a builder is bound to its address and would have to be
//! made anew with each of them, while the front of the scheduler compares tokens itself.

use crate::base::secret::Secret;
use serde::Serialize;
use std::net::SocketAddr;
use std::path::PathBuf;

/// What `sccache-dist scheduler --config` reads.
#[derive(Debug, Clone, Serialize)]
pub struct Scheduler {
    /// Where it listens: always on loopback, behind the front.
    pub public_addr: SocketAddr,
    pub client_auth: Token,
    pub server_auth: Token,
}

/// What `sccache-dist server --config` reads.
#[derive(Debug, Clone, Serialize)]
pub struct Server {
    /// Packed toolchains.
    pub cache_dir: PathBuf,
    pub toolchain_cache_size: u64,
    /// In its certificate, in its name, and in what clients are told.
    pub public_addr: SocketAddr,
    /// Where it listens.
    pub bind_address: SocketAddr,
    pub scheduler_url: String,
    pub scheduler_auth: Token,
    pub builder: Overlay,
}

/// A token shared by both sides.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "type", rename = "token")]
pub struct Token {
    pub token: Secret,
}

/// The builder that mounts an overlay and calls bubblewrap for each job.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "type", rename = "overlay")]
pub struct Overlay {
    /// Removed and made again by each start.
    pub build_dir: PathBuf,
    /// Our shim.
    pub bwrap_path: PathBuf,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_name_the_kinds_as_sccache_does() {
        let token = Token {
            token: Secret::new("the-token"),
        };
        let scheduler = Scheduler {
            public_addr: "127.0.0.1:10599".parse().unwrap(),
            client_auth: token.clone(),
            server_auth: token,
        };
        let text = toml::to_string(&scheduler).unwrap();
        let expected = "public_addr = \"127.0.0.1:10599\"\n\n\
            [client_auth]\ntype = \"token\"\ntoken = \"the-token\"\n\n\
            [server_auth]\ntype = \"token\"\ntoken = \"the-token\"\n";
        assert_eq!(text, expected);
    }
}
