//! The image and the host's script in real Docker. Skipped, with a line, where there is no daemon.

mod addresses;
mod arch;
mod bare;
mod clients;
mod committed;
pub(crate) mod compose;
mod conflicts;
mod distributed;
mod docker_builds;
mod files;
mod hardening;
mod hosts;
mod isolation;
mod life;
mod outages;
mod pulled;
mod refusals;
pub(crate) mod restarts;
mod script;
mod unlucky;
