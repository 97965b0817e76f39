//! Why a compile missed the cache. Pure: what a recorder saw of a compile is compared with what is known of earlier ones.
//!
//! ```text
//! recorder (client) -> unit: command line, environment, files --.
//!                                                              +-> decide -> reason -> report -> render
//! journal (gateway): fingerprints and fates of earlier ones ---'
//! ```
//!
//! sccache's keys are hashes of all that a result depends on, so that two of them tell nothing but that something
//! differs. A fingerprint keeps the same parts one by one. Values that may be secret are kept as keyed hashes.

pub mod arguments;
pub mod decide;
pub mod print;
pub mod protocol;
pub mod reason;
pub mod render;
pub mod report;
