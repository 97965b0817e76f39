//! sccache-dock: one container that gives a team one compiler cache.
//!
//! `run` (`supervise`) keeps the services of a `plan` alive, which is made from the `settings`; `gateway` is one of
//! those services and serves the cache; the other commands ask a running sccache-dock or help its clients.
//! ARCHITECTURE.md has the map and the invariants.

pub mod admin;
pub mod supervisor;
pub mod config;
pub mod dist_front;
pub mod store;
pub mod base;
pub mod builder;
pub mod cli;
pub mod client;
pub mod contract;
pub mod doctor;
pub mod exit;
pub mod gateway;
