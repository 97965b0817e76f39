//! A gateway of the build's own, on loopback, which stands in for a cache that is far away.
//!
//! ```text
//! compilers -> sccache's daemon, of this build -> sccache-dock-gateway, of this build -> the cache
//! ```
//!
//! It takes from the cache, in one stream, what the last build of this job needed, serves that, asks for what else is
//! asked of it, and answers writes at once. When the build has ended it passes on what it has not yet, and says what was
//! used. It ends with this process, however that ends; so does the daemon, which has its address.

use crate::base::human::count;
use crate::base::listeners;
use crate::base::private_file;
use crate::base::secret::Secret;
use crate::client::at;
use crate::client::cargo_config;
use crate::client::prefetch::MAX_BYTES;
use crate::client::remote::Remote;
use crate::client::run::LOOK;
use crate::config::variables::PROXIES;
use crate::contract::gateway_config::{Ahead, Config, Upstream};
use crate::explain::protocol::{Begun, Labels, Prefetch, Prefetched, Served};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read as _, Write as _};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

/// Most bytes of results that wait to be sent: what the farewell sends at 100 Mbit/s.
const UNSENT: u64 = 512 << 20;
/// How long it may send at the end of the build.
const FAREWELL: Duration = Duration::from_secs(60);
/// How long it may take to start.
const START: Duration = Duration::from_secs(10);
/// How long it may send before that is said.
const QUIET: Duration = Duration::from_secs(2);
/// How long requests in flight may take at its end. There are none any more, but of a daemon that hangs.
const DRAIN: Duration = Duration::from_secs(2);

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// It would have no work.
    #[error(
        "cannot prefetch: this client uses sccache's own protocol, which only reaches a cache on this machine"
    )]
    Near,
    /// Compilers would not go to it.
    #[error(
        "cannot prefetch: \"{}\" sets {name} with force, so that compilers go nowhere else\nhint: remove force there",
        file.display()
    )]
    Forced {
        /// The variable.
        name: String,
        /// Cargo's config file.
        file: PathBuf,
    },
    /// The system.
    #[error("cannot prefetch: cannot {step}: {cause}")]
    System {
        /// What failed.
        step: &'static str,
        /// What the system said.
        cause: io::Error,
    },
    /// It ended at once.
    #[error(
        "cannot prefetch: cannot start \"{}\": {said}\nhint: it must be in the folder of sccache-dock, where \
         install-client and the packages put it; \"sccache-dock prefetch\" does without",
        program.display()
    )]
    Ended {
        /// The program.
        program: PathBuf,
        /// Its last line.
        said: String,
    },
}

fn cannot(step: &'static str) -> impl Fn(io::Error) -> Error {
    move |cause| Error::System { step, cause }
}

/// The helper. It ends with the value.
#[derive(Debug)]
pub(super) struct Helper {
    process: Child,
    /// It ends when this is closed.
    supervisor: UnixStream,
    daemon: at::Own,
    settings: BTreeMap<String, String>,
    /// What is in it goes with the helper, too.
    _folder: Folder,
}

/// A folder that goes with the value.
#[derive(Debug)]
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Helper {
    /// Starts it for a build that has begun, whose compilers see `seen`.
    pub(super) fn start(
        seen: &BTreeMap<String, String>,
        files: &cargo_config::Config,
        remote: &Remote,
        labels: &Labels,
        begun: &Begun,
    ) -> Result<Helper, Error> {
        if at::client_side_by(|name| seen.get(name).map(OsString::from)) {
            return Err(Error::Near);
        }
        let daemon = at::Own::prepare().map_err(cannot("have a daemon of the build's own"))?;
        let mut random = [0; 32];
        let filled = getrandom::fill(&mut random).map_err(io::Error::other);
        filled.map_err(cannot("choose a token"))?;
        let digits = blake3::hash(&random).to_hex();
        let (token, name) = digits.split_at(48);
        let token = Secret::new(token);
        let folder = Folder(super::folder().join(format!("helper-{name}")));
        let listener = listeners::bind_tcp((Ipv4Addr::LOCALHOST, 0).into());
        let listener = listener.map_err(cannot("listen"))?;
        let port = listener.local_addr().map_err(cannot("listen"))?.port();
        let settings = settings(seen, remote.folder(), port, &token, &daemon);
        let forced = settings.keys().find_map(|name| {
            let variable = files.variables.get(name).filter(|it| it.force)?;
            Some((name.clone(), variable.file.clone()))
        });
        if let Some((name, file)) = forced {
            return Err(Error::Forced { name, file });
        }
        let private = DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder.0);
        private.map_err(cannot("make a folder for it"))?;
        let config = config(&folder.0, &token, remote, labels, begun.writes);
        let file = folder.0.join("gateway.toml");
        let text = toml::to_string(&config).unwrap_or_default();
        private_file::write(&file, &text).map_err(cannot("write its configuration"))?;
        let (supervisor, theirs) = UnixStream::pair().map_err(cannot("make a socket"))?;
        let program = std::env::current_exe().unwrap_or_default();
        let program = program.with_file_name("sccache-dock-gateway");
        let log = folder.0.join("log");
        let process = Command::new(&program)
            .arg("--config")
            .arg(&file)
            .arg("--inherit")
            .env_remove("SCCACHE_LOG")
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::piped())
            .stderr(File::create(&log).map_err(cannot("write its log"))?)
            // The terminal's signals are for the build.
            .process_group(0)
            .spawn();
        let ended = |said: String| Error::Ended {
            program: program.clone(),
            said,
        };
        let mut process = process.map_err(|cause| ended(cause.to_string()))?;
        if let Err(cause) = hand_over(&supervisor, &listener) {
            let _ = process.kill();
            let said = fs::read_to_string(&log).unwrap_or_default();
            let last = said.lines().last().map(str::to_owned);
            return Err(ended(last.unwrap_or_else(|| cause.to_string())));
        }
        // Both were read, and what is left in the folder is the helper's to remove if this process is killed.
        let _ = fs::remove_file(&file);
        let _ = fs::remove_file(&log);
        Ok(Helper {
            process,
            supervisor,
            daemon,
            settings,
            _folder: folder,
        })
    }

    /// The variables that bring compilers to it.
    pub(super) fn settings(&self) -> &BTreeMap<String, String> {
        &self.settings
    }

    /// Ends the daemon, then the helper, when it has sent what it has. A signal makes it give that up. Says what was
    /// not sent, and gives what became of what came ahead.
    pub(super) fn end(mut self) -> Option<Prefetched> {
        let hurried = Arc::<AtomicBool>::default();
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            let _ = signal_hook::flag::register(signal, Arc::clone(&hurried));
        }
        self.daemon.end();
        let _ = self.supervisor.shutdown(std::net::Shutdown::Both);
        // Of many entries, it says more than a pipe holds.
        let output = self.process.stdout.take();
        let listening = std::thread::spawn(move || {
            let mut said = String::new();
            if let Some(mut output) = output {
                let _ = output.read_to_string(&mut said);
            }
            said
        });
        let looks = |time: Duration| time.as_millis() / LOOK.as_millis();
        for look in 0..looks(FAREWELL + DRAIN + START) {
            if !matches!(self.process.try_wait(), Ok(None)) {
                break;
            }
            if look == looks(QUIET) {
                let text = "sending results to the cache; Ctrl-C gives that up";
                let _ = writeln!(io::stderr(), "{text}");
            }
            // More than once: it may not be that far.
            if hurried.load(Relaxed) {
                signal(&self.process);
            }
            std::thread::sleep(LOOK);
        }
        let _ = self.process.kill();
        let said = listening.join().unwrap_or_default();
        let served = serde_json::from_str::<Served>(&said);
        let unsent = match &served {
            Ok(Served { unsent: 0, .. }) => None,
            Ok(Served { unsent, cause, .. }) => {
                let cause = cause.as_deref().unwrap_or("there was no time for it");
                Some(format!(
                    "{} results were not sent to the cache: {cause}",
                    count(*unsent)
                ))
            }
            Err(_) => Some(
                "results may not have been sent to the cache: the helper was killed".to_owned(),
            ),
        };
        if let Some(unsent) = unsent {
            let hint = "other builds compile them again";
            let _ = writeln!(io::stderr(), "warning: {unsent}\nhint: {hint}");
        }
        served.ok()?.prefetched
    }
}

fn signal(process: &Child) {
    if let Ok(pid) = i32::try_from(process.id()) {
        let pid = nix::unistd::Pid::from_raw(pid);
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
    }
}

/// Gives it its port, and waits until it serves there.
fn hand_over(supervisor: &UnixStream, listener: &std::net::TcpListener) -> io::Result<()> {
    listeners::send(supervisor, &[listener.as_fd()])?;
    supervisor.set_read_timeout(Some(START))?;
    let mut ready: &UnixStream = supervisor;
    ready.read_exact(&mut [0])
}

fn config(folder: &Path, token: &Secret, remote: &Remote, labels: &Labels, writes: bool) -> Config {
    let room = nix::sys::statvfs::statvfs(folder);
    let room = room.map_or(u64::MAX, |it| {
        it.blocks_available() * it.fragment_size() / 2
    });
    let max_bytes = MAX_BYTES.min(room / 2);
    let request = Prefetch {
        labels: labels.clone(),
        max_bytes,
        listed: true,
    };
    let tokens = vec![token.clone()];
    let (write_tokens, read_tokens) = match writes {
        true => (tokens, Vec::new()),
        false => (Vec::new(), tokens),
    };
    Config {
        budget_bytes: room.min(2 * MAX_BYTES),
        write_tokens,
        read_tokens,
        drain: DRAIN,
        upstream: Some(Upstream {
            url: Secret::new(remote.base()),
            token: remote.token().cloned(),
            client_certificate: remote.certificate().cloned(),
            queue: folder.join("queue"),
            ahead: Some(Ahead {
                request: serde_json::to_string(&request).unwrap_or_default(),
                folder: remote.folder().to_owned(),
                unsent_bytes: UNSENT.min(room / 4),
                farewell: FAREWELL,
            }),
        }),
        ..Config::in_folder(folder)
    }
}

/// What brings compilers that see `seen` to the helper and to a daemon of their own.
fn settings(
    seen: &BTreeMap<String, String>,
    folder: &str,
    port: u16,
    token: &Secret,
    daemon: &at::Own,
) -> BTreeMap<String, String> {
    let mut settings = BTreeMap::new();
    let mut set = |name: &str, value: String| drop(settings.insert(name.to_owned(), value));
    set(
        "SCCACHE_WEBDAV_ENDPOINT",
        format!("http://{}:{port}", Ipv4Addr::LOCALHOST),
    );
    set("SCCACHE_WEBDAV_TOKEN", token.reveal().to_owned());
    if !folder.is_empty() {
        set("SCCACHE_WEBDAV_KEY_PREFIX", folder.to_owned());
    }
    for (name, value) in daemon.settings() {
        set(name, value.to_string_lossy().into_owned());
    }
    // Loopback is not reached by a proxy.
    let by_proxy = |name: &&str| seen.get(*name).is_some_and(|value| !value.is_empty());
    if PROXIES.iter().any(by_proxy) {
        for name in ["NO_PROXY", "no_proxy"] {
            let direct = seen.get(name).filter(|it| !it.is_empty());
            let direct = direct.map(|it| format!("{it},")).unwrap_or_default();
            set(name, format!("{direct}{}", Ipv4Addr::LOCALHOST));
        }
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_not_reached_by_a_proxy() {
        let daemon = at::Own::prepare().unwrap();
        let set = |pairs: &[(&str, &str)]| {
            let pairs = pairs.iter();
            let seen = pairs.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            settings(&seen.collect(), "team/x", 1, &Secret::new("t"), &daemon)
        };
        let plain = set(&[]);
        assert_eq!(plain["SCCACHE_WEBDAV_ENDPOINT"], "http://127.0.0.1:1");
        assert_eq!(plain["SCCACHE_WEBDAV_KEY_PREFIX"], "team/x");
        assert!(!plain.contains_key("NO_PROXY"));
        let proxied = set(&[("https_proxy", "http://p:1"), ("no_proxy", "a,b")]);
        assert_eq!(proxied["no_proxy"], "a,b,127.0.0.1");
        assert_eq!(proxied["NO_PROXY"], "127.0.0.1");
    }
}
