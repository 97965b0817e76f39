//! sccache-dock: one container that gives a team one compiler cache.

pub mod cli;
pub mod gateway;
pub mod listeners;
pub mod secret;
