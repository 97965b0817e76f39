//! The image and the host's script in real Docker. Skipped, with a line, where there is no daemon.

mod clients;
mod compose;
mod hardening;
mod life;
mod refusals;
mod script;
