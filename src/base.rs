//! Building blocks that know nothing about caches, clusters or containers: files, sockets, secrets, terminals, time.

pub mod apparmor;
pub mod config_file;
pub mod human;
pub mod listeners;
pub(crate) mod log;
pub(crate) mod memory;
pub mod mount;
pub(crate) mod private_file;
pub mod progress;
pub mod regular_file;
pub mod secret;
pub mod surroundings;
pub mod terminal;
pub mod time;
pub mod timeout;
