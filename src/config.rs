//! The environment into settings, and settings into the plan of what runs. Pure.

pub mod plan;
pub mod settings;
pub mod variables;
