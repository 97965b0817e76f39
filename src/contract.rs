//! What the processes of one container tell each other, and what they agree on: files, sockets, addresses, versions.

pub mod builder_config;
pub mod dist_config;
pub mod gateway_config;
pub mod gateway_status;
pub mod sccache;
pub mod tokens;
