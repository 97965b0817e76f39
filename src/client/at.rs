//! `at`: a command that sees its checkout and `CARGO_HOME` at paths that are the same for everybody.
//!
//! sccache puts absolute paths into the key of a Rust compile: the working directory and every `CARGO_*` variable. Two
//! checkouts share their results only where they seem to lie at one path. So the command runs in a mount namespace of
//! its own, in which they do, and this process becomes the command: exit code, signals, terminal and job control are
//! the command's own, because nobody stands in between.
//!
//! The name says what is done, and reads as a sentence: at /work, cargo build.

mod config;
mod daemon;
mod enter;
mod layout;
mod own;

use self::layout::Layout;
use crate::base::surroundings::Surroundings;
use crate::exit;
use std::convert::Infallible;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

pub(crate) use self::config::client_side_by;
pub(crate) use self::daemon::Own;
pub use self::daemon::see_off;
pub(crate) use self::layout::checkout_around;
pub use self::own::{wrap, wrapped};

/// Arguments of `at`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Path at which the command sees the checkout
    #[arg(default_value = "/work")]
    pub path: PathBuf,
    /// The checkout [default: the outermost git checkout or cargo workspace that contains the current folder]
    #[arg(long, value_name = "FOLDER")]
    pub root: Option<PathBuf>,
    /// Path at which the command sees CARGO_HOME
    #[arg(long, value_name = "PATH", default_value = "/cargo")]
    pub cargo_home: PathBuf,
    /// Crates whose results are not shared with other checkouts, because a macro reads files of this one
    #[arg(long, value_name = "CRATE", value_delimiter = ',')]
    pub own_results: Vec<String>,
    /// The command and its arguments, after --
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// Why the command was not started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is nothing to show at the path.
    #[error(
        "cannot find the checkout: no .git and no Cargo.toml in {} or above\nhint: name its folder with --root",
        .0.display()
    )]
    NoRoot(PathBuf),
    /// The checkout that was named is not one for this folder.
    #[error(
        "cannot use --root {}: {cause}\nhint: name a folder that holds the current one, {}",
        root.display(), cwd.display()
    )]
    Root {
        /// As it was given.
        root: PathBuf,
        /// What is wrong with it.
        cause: String,
        /// The current folder.
        cwd: PathBuf,
    },
    /// A path where something is to be seen cannot be used.
    #[error("cannot show anything at {}: {cause}\nhint: {hint}", path.display())]
    Path {
        /// As it was given.
        path: PathBuf,
        /// What is wrong with it.
        cause: &'static str,
        /// What to do instead.
        hint: String,
    },
    /// Nothing says where cargo keeps its downloads.
    #[error("cannot find cargo's folder: neither CARGO_HOME nor HOME is set\nhint: set CARGO_HOME")]
    NoCargoHome,
    /// A folder that is to be shown.
    #[error("cannot use {}: {cause}\nhint: it must be a folder of yours", path.display())]
    Source {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// The current folder.
    #[error(
        "cannot read the current folder: {0}\nhint: it may have been removed; change to another"
    )]
    CurrentFolder(io::Error),
    /// The system forbids what is needed.
    #[error("cannot show {} at {}: cannot {failure}\nhint: {hint}", root.display(), path.display())]
    Forbidden {
        /// The checkout.
        root: PathBuf,
        /// Where it should be seen.
        path: PathBuf,
        /// The step that was refused.
        failure: enter::Failure,
        /// What has to be changed.
        hint: String,
    },
    /// Nothing is shared, so that nothing can be kept apart.
    #[error(
        "cannot keep the results of {0} apart: cargo has no wrapper for rustc here, and nothing is shared\n\
         hint: eval the output of sccache-dock client-env in this shell, or leave --own-results out"
    )]
    NoWrapper(String),
    /// No wrapper for the crates of `own_results`.
    #[error("cannot keep the results of these crates apart: {0}")]
    OwnResults(io::Error),
    /// No daemon of its own for the command.
    #[error("cannot give the command an sccache daemon of its own: {0}")]
    Daemon(io::Error),
    /// The command itself.
    #[error("cannot run \"{}\": {cause}", program.to_string_lossy())]
    Command {
        /// Its first word.
        program: OsString,
        /// What the system said.
        cause: io::Error,
    },
}

impl Error {
    /// The exit code, which no command uses for itself: those of `env` and `docker run`.
    pub fn code(&self) -> u8 {
        match self {
            Error::Command { cause, .. } => exit::of_command(cause),
            _ => exit::NOT_STARTED,
        }
    }
}

/// Becomes the command. This process must have one thread only.
///
/// # Errors
/// Why it could not.
pub fn run(args: &Args) -> Result<Infallible, Error> {
    let cwd = std::env::current_dir().map_err(Error::CurrentFolder)?;
    let layout = Layout::new(args, &cwd, |name| std::env::var_os(name))?;
    let [program, arguments @ ..] = args.command.as_slice() else {
        unreachable!("clap wants a command");
    };
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env("CARGO_HOME", &layout.cargo_home);
    // Part of every key, where it is set; what it named is seen at the default place.
    command.env_remove("CARGO_TARGET_DIR");
    command.env_remove("CARGO_BUILD_TARGET_DIR");
    if !layout.binds.is_empty() {
        enter::enter(&layout.binds, &layout.cwd).map_err(|failure| Error::Forbidden {
            hint: hint(&failure, &Surroundings::look(Path::new("/")), args),
            root: layout.root.clone(),
            path: args.path.clone(),
            failure,
        })?;
        command.env("PWD", &layout.cwd);
    }
    let files: Vec<_> = config::files(&layout.cwd, &args.path, &args.cargo_home)
        .into_iter()
        // One that cannot be read is cargo's to complain about.
        .filter_map(|path| Some((fs::read_to_string(&path).ok()?, path)))
        .collect();
    let is_client_side = config::client_side_by(|name| std::env::var_os(name))
        || files.iter().any(|(text, _)| config::is_client_side(text));
    let needs_daemon = !layout.binds.is_empty() && !is_client_side;
    let mut names = args.own_results.clone();
    names.extend(layout.own_results);
    // Inside another `at` the wrapper is ours.
    let wrapper = own::before()
        .or_else(|| config::wrapper(|name| std::env::var_os(name), &files, &layout.cwd));
    if wrapper.is_none() && !args.own_results.is_empty() {
        return Err(Error::NoWrapper(args.own_results.join(", ")));
    }
    // Whoever has turned it off shares nothing on purpose.
    let wrapper = wrapper.filter(|it| !it.is_empty() && !names.is_empty());
    if needs_daemon || wrapper.is_some() {
        let own = daemon::Own::prepare().map_err(Error::Daemon)?;
        if needs_daemon {
            for (text, path) in &files {
                own.cover(path, text).map_err(Error::Daemon)?;
            }
            command.envs(own.settings());
            command.env_remove("SCCACHE_NO_DAEMON");
        }
        if let Some(wrapper) = wrapper {
            let set = own::install(own.folder(), wrapper, &names, &args.path);
            command.envs(set.map_err(Error::OwnResults)?);
        }
    }
    Err(Error::Command {
        cause: command.exec(),
        program: program.clone(),
    })
}

/// What has to be changed, from the step that failed.
fn hint(failure: &enter::Failure, around: &Surroundings, args: &Args) -> String {
    use self::enter::Step;
    let sysctl = |name: &str, value: &str| {
        format!("this machine forbids it to users: set the sysctl {name} to {value} on it")
    };
    match failure.step {
        Step::UserNamespace if around.none_allowed => {
            sysctl("user.max_user_namespaces", "10000")
        }
        Step::UserNamespace if around.clone_is_off => {
            sysctl("kernel.unprivileged_userns_clone", "1")
        }
        _ if around.apparmor_restricts
            && !around.in_container
            && !nix::unistd::geteuid().is_root() =>
        {
            format!(
                "AppArmor forbids it to programs without a profile: load one for this program, once and as root: sccache-dock \
                 apparmor program --path {} >/etc/apparmor.d/sccache-dock-program && apparmor_parser --replace \
                 /etc/apparmor.d/sccache-dock-program; where that cannot be had set the sysctl \
                 kernel.apparmor_restrict_unprivileged_userns to 0, for every program of the machine",
                std::env::current_exe().unwrap_or_else(|_| "/usr/local/bin/sccache-dock".into()).display()
            )
        }
        Step::NewRoot => "make the folders that are to be seen, or choose ones that exist".to_owned(),
        Step::Bind => "see what the system says about that folder".to_owned(),
        _ if around.in_container => {
            let apparmor = match around.wants_our_apparmor() {
                true => " and --security-opt apparmor=sccache-dock (\"sccache-dock apparmor\" prints that profile, which root \
                     loads on the host)",
                false => "",
            };
            format!(
                "mount the checkout at {} and CARGO_HOME at {} when you start the container, which needs no right at all; \
                 or start it with --security-opt seccomp=userns.json{apparmor}, the file being what \
                 \"sccache-dock seccomp\" prints",
                args.path.display(),
                args.cargo_home.display()
            )
        }
        _ => "the machine forbids mounts of its own to this user: its security module or a seccomp filter must allow \
              user namespaces"
            .to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use enter::{Failure, Step};

    fn args() -> Args {
        Args {
            path: "/work".into(),
            root: None,
            cargo_home: "/cargo".into(),
            own_results: Vec::new(),
            command: vec!["true".into()],
        }
    }

    fn check(step: Step, around: &Surroundings, part: &str) {
        let failure = Failure::new(step, nix::errno::Errno::EPERM);
        let text = hint(&failure, around, &args());
        assert!(text.contains(part), "{part:?} is missing in: {text}");
    }

    #[test]
    fn each_refusal_names_what_must_be_changed() {
        let nothing = Surroundings::default;
        let around = Surroundings {
            none_allowed: true,
            ..nothing()
        };
        check(Step::UserNamespace, &around, "user.max_user_namespaces");
        let around = Surroundings {
            clone_is_off: true,
            ..nothing()
        };
        check(Step::UserNamespace, &around, "unprivileged_userns_clone");
        let around = Surroundings {
            in_container: true,
            apparmor: Some("docker-default (enforce)".into()),
            ..nothing()
        };
        for part in [
            "checkout at /work and CARGO_HOME at /cargo",
            "seccomp=userns.json",
            "apparmor=sccache-dock",
        ] {
            check(Step::UserNamespace, &around, part);
        }
        check(Step::MountNamespace, &nothing(), "user namespaces");
    }
}
