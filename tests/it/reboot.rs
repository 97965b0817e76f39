//! What a reboot does.
