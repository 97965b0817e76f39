//! `client-env`: everything a client must set to use this cache, as text for a shell, a file or a CI runner.
//!
//! Pure but for [`write_conf`]: arguments and facts go in, text comes out. Always the whole set, because half of it is
//! worse than none: a client without `SCCACHE_SKIP_CACHE_CHECK` fails its build while the cache restarts, one on the
//! default port talks to our gateway instead of its own daemon, one with a stray `SCCACHE_BUCKET` shares nothing.
//!
//! The client's own daemon gets a Unix socket whose name is made from the settings. A daemon that was started with
//! other settings (an old token, another cache) is therefore never met again, and another user's never at all.

pub mod at;
pub mod build;
pub mod cargo_config;
pub(crate) mod conf;
pub(crate) mod endpoint;
pub mod explain;
pub mod login;
pub mod next;
pub mod prefetch;
pub(crate) mod proxy;
pub(crate) mod remote;
mod render;
pub(crate) mod run;
pub(crate) mod sccache_file;
mod set;
pub(crate) mod strays;
pub(crate) mod tls;
pub mod warm;
pub mod whence;

use crate::base::private_file;
use crate::base::secret::Secret;
use clap::ValueEnum;
use std::collections::BTreeMap;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

pub use crate::base::listeners::SOCKET_PATH_MAX;
pub use set::Error;

/// A value of `SCCACHE_BASEDIRS` that does nothing, for formats that cannot unset it.
pub(crate) const NO_BASEDIRS: &str = "/nonexistent";

/// The way to the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Lane {
    /// WebDAV: from any machine, with a local disk cache on the client; sccache 0.10 or newer
    Webdav,
    /// Sccache's own protocol on 127.0.0.1, without a daemon on the host; sccache 0.17 or newer
    Ipc,
    /// The same over a Unix socket in a folder that the container shares
    Socket,
    /// WebDAV; cache misses compile on the cluster; sccache 0.19 or newer
    Dist,
}

/// How the set is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// POSIX shell: eval "$(sccache-dock client-env)"
    Sh,
    /// Fish: sccache-dock client-env --format fish | source
    Fish,
    /// Sccache's own config file, ~/.config/sccache/config
    #[value(alias = "conf")]
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
    /// How the client connects to the cache
    #[arg(long, value_enum, default_value_t = Lane::Webdav)]
    pub lane: Lane,
    /// Output format
    #[arg(long, value_enum, default_value_t = Format::Sh)]
    pub format: Format,
    /// URL at which the client reaches the gateway, such as http://build-cache:4226
    #[arg(long, value_name = "URL")]
    pub endpoint: Option<String>,
    /// Share only with clients of the same namespace
    #[arg(long, value_name = "NAME")]
    pub namespace: Option<String>,
    /// The gateway's socket as the client sees it, for --lane socket
    #[arg(long, value_name = "PATH", overrides_with = "socket")]
    pub socket: Option<PathBuf>,
    /// URL at which the client reaches the scheduler, for --lane dist [default: the endpoint's host, port 10600]
    #[arg(long, value_name = "URL")]
    pub scheduler: Option<String>,
    /// The client's existing sccache config file, for --lane dist; without it, sh and fish write one
    #[arg(long, value_name = "PATH")]
    pub conf: Option<PathBuf>,
    /// Write the config file of --lane dist on this machine [default: in ~/.cache/sccache-dock]
    #[arg(
        long,
        value_name = "PATH",
        num_args = 0..=1,
        require_equals = true,
        conflicts_with = "conf"
    )]
    pub write: Option<Option<PathBuf>>,
    /// Leave out the token, for files that are committed; clients then need SCCACHE_WEBDAV_TOKEN in their environment
    #[arg(long)]
    pub no_token: bool,
    /// Name of the token: auth, read, or one in SCCACHE_TOKENS_FILE
    #[arg(long, value_name = "NAME", default_value = "auth")]
    pub token_name: String,
    /// No local disk cache on the client, for images and machines that are thrown away; C and C++ are then preprocessed
    /// for every lookup
    #[arg(long)]
    pub no_disk: bool,
}

/// Where the client's machine reaches our ports: Docker knows, and tells the host's script. `--endpoint` overrides both.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Published {
    /// The address of port 4226, such as 127.0.0.1:4326
    #[arg(
        id = "published",
        long = "published",
        value_name = "ADDRESS",
        hide = true
    )]
    pub gateway: Option<String>,
    /// The address of port 10600
    #[arg(
        id = "published_scheduler",
        long = "published-scheduler",
        value_name = "ADDRESS",
        hide = true
    )]
    pub scheduler: Option<String>,
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
    /// The port of the scheduler's front, in the modes that distribute; `--scheduler` overrides it.
    pub scheduler_port: Option<u16>,
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

/// The set for programs: variables with their values, and those that must not be there.
#[derive(Debug, serde::Serialize)]
pub struct EnvValue {
    variables: BTreeMap<String, String>,
    unset: Vec<String>,
}

/// The same set as values, with the token in clear unless `--no-token` was given.
///
/// # Errors
/// When the endpoint, the namespace or the socket cannot be used on this lane.
pub fn env_value(args: &EnvArgs, facts: &Facts) -> Result<EnvValue, Error> {
    // The format that has a plain value for each: what a shell would work out is in it already.
    let args = EnvArgs {
        format: Format::Docker,
        ..args.clone()
    };
    let set = set::Set::new(&args, facts)?;
    let text = render::docker(&set);
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let pairs = lines.filter_map(|line| line.split_once('='));
    Ok(EnvValue {
        variables: pairs
            .filter(|(name, _)| !set.strays.contains(name))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
        unset: set.strays.iter().map(ToString::to_string).collect(),
    })
}

/// The environment of this process, but for what is not UTF-8: nothing of it matters to sccache or to us.
pub(crate) fn environment() -> BTreeMap<String, String> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

/// Writes the config file that `--write` asks for, and gives the arguments with which the text names it.
///
/// # Errors
/// When the set cannot be made, the path is taken by somebody else's file, or cannot be written.
pub fn write_conf(args: &EnvArgs, facts: &Facts, home: Option<&Path>) -> Result<EnvArgs, Error> {
    let Some(given) = &args.write else {
        return Ok(args.clone());
    };
    let set = set::Set::new(
        &EnvArgs {
            format: Format::Toml,
            ..args.clone()
        },
        facts,
    )?;
    let refused = |path: &Path, cause: String, hint| Error::Conf {
        path: path.display().to_string(),
        cause,
        hint,
    };
    if set.lane != Lane::Dist {
        let (cause, hint) = (
            "this lane needs no file".to_owned(),
            "leave --write out, or use --lane dist",
        );
        return Err(refused(
            given.as_deref().unwrap_or(Path::new("")),
            cause,
            hint,
        ));
    }
    let path = match (given, home) {
        (Some(given), _) => std::path::absolute(given)
            .map_err(|error| refused(given, error.to_string(), "give the whole path"))?,
        (None, Some(home)) => home.join(render::HOME_FOLDER).join(render::conf_name(&set)),
        (None, None) => {
            let cause = "HOME is not set".to_owned();
            return Err(refused(Path::new(""), cause, "name the file: --write=PATH"));
        }
    };
    if let Ok(text) = std::fs::read_to_string(&path)
        && !text.starts_with(conf::MARK)
    {
        let cause = "it exists and was not written by this command".to_owned();
        return Err(refused(&path, cause, "name another file: --write=PATH"));
    }
    let written = path
        .parent()
        .map_or(Ok(()), |folder| {
            DirBuilder::new().recursive(true).mode(0o700).create(folder)
        })
        .and_then(|()| private_file::write(&path, &conf::marked(&set)));
    written.map_err(|error| {
        let hint = "name a file that this user can write: --write=PATH";
        refused(&path, error.to_string(), hint)
    })?;
    Ok(EnvArgs {
        conf: Some(path),
        write: None,
        ..args.clone()
    })
}

#[cfg(test)]
mod tests;
