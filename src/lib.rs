//! sccache-dock: one container that gives a team a shared compiler cache.
//!
//! `run` ([`supervisor`]) keeps the services of a plan alive, which [`config`] makes from the settings. The gateway
//! ([`serve`]) is one of these services and serves the cache. The other commands query a running sccache-dock or help
//! its clients. ARCHITECTURE.md has the map and the invariants.

pub mod admin;
pub mod base;
pub mod builder;
pub mod cli;
pub mod client;
pub mod config;
pub mod contract;
pub mod dist_front;
pub mod doctor;
pub mod exit;
pub mod explain;
pub mod gateway;
pub mod serve;
pub mod store;
pub mod supervisor;
