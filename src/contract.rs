//! What the processes of one container exchange and agree on: files, sockets, addresses, versions.

pub mod address;
pub mod builder_config;
pub mod builder_port;
pub mod control;
pub mod dist_config;
pub mod gateway_config;
pub mod gateway_status;
pub mod job_end;
pub mod key;
pub mod paths;
pub mod sccache;
pub mod sent_home;
pub mod service;
pub mod tokens;
