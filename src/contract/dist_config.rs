//! The configuration files of `sccache-dist` 0.19.0 as types. Pure.
//!
//! Contains only what we use. Authentication is by token instead of JWT: a builder's JWT is bound to its address and
//! would have to be reissued when that changes, while our reverse proxy in front of the scheduler checks tokens itself.

use crate::base::secret::Secret;
use serde::Serialize;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Configuration of `sccache-dist scheduler --config`.
#[derive(Debug, Clone, Serialize)]
pub struct Scheduler {
    /// Listening address: always on loopback, behind the reverse proxy.
    pub public_addr: SocketAddr,
    pub client_auth: Token,
    pub server_auth: Token,
}

/// Configuration of `sccache-dist server --config`.
#[derive(Debug, Clone, Serialize)]
pub struct Server {
    /// Folder of packed toolchains.
    pub cache_dir: PathBuf,
    pub toolchain_cache_size: u64,
    /// The address in its certificate and its name, and the one that clients are told.
    pub public_addr: SocketAddr,
    /// Listening address.
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

/// Settings of the builder that mounts an overlay and calls bubblewrap for each job.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "type", rename = "overlay")]
pub struct Overlay {
    /// Removed and created again at each start.
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
