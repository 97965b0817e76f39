//! Turns the environment into settings, and settings into the plan of services. Pure.

pub mod plan;
pub mod settings;
pub mod variables;
