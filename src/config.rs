//! TODO

pub mod plan;
pub mod variables;
pub mod settings;
