//! `client-env`: everything a client must set to use this cache, as text for a shell, a file or a CI runner.
//!
//! Pure: arguments and facts go in, text comes out. Always the whole set, because half of it is worse than none:
//! a client without `SCCACHE_SKIP_CACHE_CHECK` fails its build while the cache restarts, one on the default port
//! talks to our gateway instead of its own daemon, one with a stray `SCCACHE_BUCKET` shares nothing.
//!
//! The client's own daemon gets a Unix socket whose name is made from the settings. A daemon that was started with
//! other settings (an old token, another cache) is therefore never met again, and another user's never at all.

pub(crate) mod endpoint;
mod render;
mod set;

use crate::secret::Secret;
use clap::ValueEnum;
use std::path::PathBuf;

pub use set::Error;

/// The longest path a Unix socket can have, in bytes.
pub const SOCKET_PATH_MAX: usize = 107;

/// The way to the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Lane {
    /// WebDAV: from any machine, with a level on the client's own disk; sccache 0.10 or newer
    Webdav,
    /// Sccache's own protocol on 127.0.0.1, no daemon on the host; sccache 0.17 or newer
    Ipc,
    /// The same over a Unix socket in a folder that the container shares
    Socket,
}

/// How the set is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// POSIX shell: eval "$(sccache-dock client-env)"
    Sh,
    /// Fish: sccache-dock client-env --format fish | source
    Fish,
    /// Sccache's own config file, ~/.config/sccache/config
    Toml,
    /// A file for docker run --env-file, or env_file in Compose
    Docker,
    /// Lines to append to "$GITHUB_ENV" in a GitHub workflow
    Github,
    /// .cargo/config.toml of a user or of a project
    Cargo,
}

/// Arguments of `client-env`.
#[derive(Debug, Clone, clap::Args)]
pub struct EnvArgs {
    /// The way to the cache
    #[arg(long, value_enum, default_value_t = Lane::Webdav)]
    pub lane: Lane,
    /// How to write the set
    #[arg(long, value_enum, default_value_t = Format::Sh)]
    pub format: Format,
    /// Where the client reaches the gateway, such as http://build-cache:4226
    #[arg(long, value_name = "URL")]
    pub endpoint: Option<String>,
    /// Share only with clients of the same namespace
    #[arg(long, value_name = "NAME")]
    pub namespace: Option<String>,
    /// The gateway's socket as the client sees it, for --lane socket
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Leave the token out, for a file that is committed; the client reads SCCACHE_WEBDAV_TOKEN from its environment
    #[arg(long)]
    pub no_token: bool,
    /// No level on the client's own disk, where it would end up in an image or where it is thrown away anyway
    #[arg(long)]
    pub no_disk: bool,
}

/// What the container knows about itself, as its clients see it.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The gateway's URL, such as `http://127.0.0.1:4226`; `--endpoint` overrides it.
    pub endpoint: String,
    /// The token for reading and writing, unless anybody may.
    pub token: Option<Secret>,
    /// The gateway's socket in a folder shared with clients, if there is one; `--socket` overrides it.
    pub socket: Option<PathBuf>,
}

/// The text that `args` ask for, ending in a newline.
///
/// It contains the token in clear unless `--no-token` was given: print it to standard output and nowhere else.
///
/// # Errors
/// When the endpoint, the namespace or the socket cannot be used on this lane.
pub fn env_text(args: &EnvArgs, facts: &Facts) -> Result<String, Error> {
    let set = set::Set::new(args, facts)?;
    Ok(match args.format {
        Format::Sh => render::sh(&set),
        Format::Fish => render::fish(&set),
        Format::Toml => render::toml(&set),
        Format::Docker => render::docker(&set),
        Format::Github => render::github(&set),
        Format::Cargo => render::cargo(&set),
    })
}

#[cfg(test)]
mod tests;
