//! What an attacker tries, with what is right: each was possible once, or is what others fell for.

mod builder;
mod jobs;
