//! sccache-dock: one container that gives a team one compiler cache.

pub mod cli;
pub mod client;
pub mod doctor;
pub mod gateway;
pub mod secret;
pub mod variables;
