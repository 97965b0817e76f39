//! Files that may change while the gateway runs: the named tokens, and certificate and key.
//!
//! They are read at the start, whenever they change, and when the supervisor asks (`reload`). A fault changes nothing:
//! what was in force stays in force, and the log and the status say what is wrong until it is mended. A gateway that
//! starts with a fault serves what it can: without the tokens of the file, or without TLS, never with less protection. What
//! the file says of those who need no token is not known then, and they get nothing.

mod watch;

use crate::base::regular_file;
use crate::base::secret::Secret;
use crate::base::time::unix_seconds;
use crate::contract::control;
use crate::contract::control::Response;
use crate::contract::gateway_config::Config;
use crate::contract::key::shown_namespace;
use crate::contract::tokens;
use crate::contract::tokens::{Named, TokensFile, rules};
use crate::gateway::Gateway;
use crate::gateway::tls;
use parking_lot::Mutex;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::Notify;
use tokio::task::spawn_blocking;
use tracing::{error, info, warn};
use watch::Watch;

/// What is wrong with the files now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Faults {
    pub(super) tokens: Option<String>,
    pub(super) tls: Option<String>,
}

/// The files' state.
#[derive(Debug)]
pub(super) struct Files {
    // Held while files are read, so that two readings cannot overtake each other; the status waits meanwhile for
    // nothing, because it reads a copy.
    reading: Mutex<Seen>,
    faults: Mutex<Faults>,
    /// Somebody asks to read now.
    asked: Arc<Notify>,
}

/// What is in force, or why not.
type Found = Result<String, String>;

/// What was found at the last reading, so that only news is told.
#[derive(Debug, Default)]
struct Seen {
    tokens: Option<Found>,
    /// Whether tokens of the file are in force.
    any_tokens: bool,
    tls: Option<Found>,
    /// Tokens of which the supervisor was told.
    hidden: Vec<Secret>,
}

impl Files {
    /// Nothing was read yet; `asked` asks for it.
    pub(super) fn new(asked: Arc<Notify>) -> Files {
        Files {
            reading: Mutex::default(),
            faults: Mutex::default(),
            asked,
        }
    }

    /// What is wrong now.
    pub(super) fn faults(&self) -> Faults {
        let faults = self.faults.lock();
        faults.clone()
    }

    fn note(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.faults.lock());
    }
}

/// All files of a configuration that may change.
pub(super) fn paths(config: &Config) -> Vec<PathBuf> {
    let tls = config.tls.iter();
    let tls = tls.flat_map(|tls| [&tls.cert, &tls.key].into_iter().chain(&tls.client_ca));
    config.tokens_file.iter().chain(tls).cloned().collect()
}

/// A file that we may not read now we may not read later either; all other faults can be mended while we run.
pub(crate) fn check_rights(config: &Config) -> Result<(), (PathBuf, io::Error)> {
    let dist = config.dist.as_ref();
    let to_scheduler = dist.and_then(|dist| dist.client_certificate.as_ref());
    let upstream = config.upstream.as_ref();
    let to_upstream = upstream.and_then(|upstream| upstream.client_certificate.as_ref());
    let presented = to_scheduler.into_iter().chain(to_upstream);
    let presented = presented.flat_map(|files| [files.cert.clone(), files.key.clone()]);
    for path in paths(config).into_iter().chain(presented) {
        if let Err(cause) = regular_file::open(&path)
            && cause.kind() == io::ErrorKind::PermissionDenied
        {
            return Err((path, cause));
        }
    }
    Ok(())
}

/// Reads all files again and puts what is new and right in force. Blocks.
pub(crate) fn reread(gateway: &Gateway) {
    let files = &gateway.files;
    let mut seen = files.reading.lock();
    if let Some(path) = &gateway.config.tokens_file {
        let mut unbounded = Vec::new();
        let mut unproven = false;
        let tls = gateway.config.tls.as_ref();
        let asks_for_certificates = tls.is_some_and(|tls| tls.client_ca.is_some());
        let found = tokens::read(path).and_then(|file| {
            let tokens = &file.tokens;
            // Before anybody can use them: what comes with a request may end in a line of the log.
            hide(gateway, &mut seen.hidden, tokens);
            gateway.identity.access.replace(&file).map_err(|cause| {
                format!("cannot use the tokens in \"{}\": {cause}", path.display())
            })?;
            gateway.identity.oidc.replace(&file);
            unbounded = branches_without_quota(gateway, &file);
            unproven = tokens.iter().any(|one| one.token().is_none()) && !asks_for_certificates;
            let names = tokens.iter().map(|token| token.name.as_str());
            let rules = file.rules.iter().map(|rule| rule.name.as_str());
            let names: Vec<&str> = names.chain(rules).collect();
            Ok(format!("named tokens in force: {}", names.join(", ")))
        });
        let is_news = seen.tokens.as_ref() != Some(&found);
        seen.any_tokens |= found.is_ok();
        let before = match seen.any_tokens {
            true => "the tokens before stay in force",
            false => {
                "none of them is in force, and nobody reads or writes without a token until this is mended"
            }
        };
        tell(&mut seen.tokens, &found, before);
        for (name, namespace) in unbounded.iter().filter(|_| is_news) {
            warn!(
                "\"{name}\" writes to \"{namespace}\", which has no quota, and may push out what others read: set one, \
                 or one for all like it, such as SCCACHE_QUOTAS=pr/*=5G"
            );
        }
        if unproven && is_news {
            warn!(
                "SCCACHE_TOKENS_FILE has a certificate, and no client can present one: set SCCACHE_TLS_CLIENT_CA to the \
                 file of its authority, beside SCCACHE_TLS_CERT"
            );
        }
        files.note(|faults| faults.tokens = found.err());
    }
    if let (Some(paths), Some(tls)) = (&gateway.config.tls, &gateway.identity.tls) {
        let found = tls::load(paths, unix_seconds()).map_err(|error| error.to_string());
        let found = found.map(|certificate| {
            let news = format!("certificate in force: {certificate}");
            tls.replace(certificate);
            news
        });
        let before = match tls.acceptor() {
            Some(_) => "the certificate before stays in force",
            None => "nobody can connect but by loopback until this is mended",
        };
        tell(&mut seen.tls, &found, before);
        files.note(|faults| faults.tls = found.err());
    }
}

/// The tokens and rules that write to a branch without a quota, and that branch.
fn branches_without_quota(gateway: &Gateway, file: &TokensFile) -> Vec<(String, String)> {
    let tokens = file.tokens.iter();
    let tokens = tokens.filter_map(|token| Some((&token.name, token.layers.as_ref()?)));
    let rules = file.rules.iter().map(|rule| (&rule.name, &rule.layers));
    let branches = tokens.chain(rules).filter(|(_, layers)| layers.is_branch());
    let unbounded = branches.filter_map(|(name, layers)| {
        let write = layers.write.as_ref()?;
        let example = rules::fill(write, |_| Some("x".to_owned()))?;
        let home = gateway.disk.home(&example);
        let has_quota = gateway
            .config
            .policies
            .quotas
            .contains_key(shown_namespace(home));
        (!has_quota).then(|| (name.clone(), write.clone()))
    });
    unbounded.collect()
}

/// Tells the supervisor, who writes the log, of the tokens that are new.
fn hide(gateway: &Gateway, hidden: &mut Vec<Secret>, tokens: &[Named]) {
    let Some(socket) = &gateway.config.control_socket else {
        return;
    };
    let tokens = tokens.iter().filter_map(Named::token);
    let (known, new): (Vec<_>, Vec<_>) = tokens.cloned().partition(|one| hidden.contains(one));
    *hidden = known;
    for token in new {
        match control::ask(socket, &format!("hide {}", token.reveal())) {
            Ok(Response::Done) => hidden.push(token),
            Ok(_) | Err(_) => {
                return warn!(
                    "the supervisor does not answer: its log may show a token of SCCACHE_TOKENS_FILE that is new"
                );
            }
        }
    }
}

/// Logs `found` when it is not what was found before.
fn tell(seen: &mut Option<Found>, found: &Found, meanwhile: &str) {
    if seen.as_ref() == Some(found) {
        return;
    }
    match found {
        Ok(news) => info!("{news}"),
        Err(cause) => error!("{cause}; {meanwhile}"),
    }
    *seen = Some(found.clone());
}

/// Keeps what is in force like the files, for as long as the gateway lives.
pub(crate) fn follow(gateway: &Arc<Gateway>) {
    let paths = paths(&gateway.config);
    if paths.is_empty() {
        return;
    }
    let asking = Arc::clone(gateway);
    tokio::spawn(async move {
        loop {
            asking.files.asked.notified().await;
            let gateway = Arc::clone(&asking);
            // It ends with an error only when the runtime does.
            let _ = spawn_blocking(move || reread(&gateway)).await;
        }
    });
    let gateway = Arc::downgrade(gateway);
    // On a thread that the end of the runtime does not wait for: it waits in the kernel.
    std::thread::spawn(move || {
        let mut watch = Watch::new(paths);
        while let Some(gateway) = gateway.upgrade() {
            reread(&gateway);
            drop(gateway);
            watch.changed();
        }
    });
}
