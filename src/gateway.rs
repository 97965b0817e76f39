//! The cache gateway: one port for WebDAV, plain HTTP and sccache's own protocol.
//!
//! Run as a supervised service: `sccache-dock gateway --config FILE`. The supervisor writes the file and
//! hands over the listeners, which it keeps open across restarts of the gateway.

pub mod config;
pub mod key;
pub mod lru;
pub mod store;
