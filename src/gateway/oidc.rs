//! Identity by OpenID Connect: a CI service's job shows the ID token that its service has made for it, and gets a session
//! for what a rule of the tokens' file says of such jobs.
//!
//! The keys of an issuer are fetched in the background, so that a login waits for them only where its key is new, and at
//! most once a minute. While the issuer does not answer, the last keys stay good for a stated time; sessions that have
//! begun go on in any case.

pub(crate) mod grant;
mod keys;
mod provider;
pub(crate) mod verify;

use self::grant::Grant;
use self::keys::Keys;
use self::verify::Refused;
use crate::base::time::unix_seconds;
use crate::contract::tokens::TokensFile;
use crate::contract::tokens::rules::{Issuer, Rule};
use parking_lot::{Mutex, MutexGuard, RwLock};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout};
use tracing::{info, warn};

/// How often the keys are fetched while nobody asks for others.
const REFRESH: Duration = Duration::from_secs(3600);
/// The least time between two fetches, whoever asks.
const PAUSE: Duration = Duration::from_secs(60);
/// The same while there are no keys yet.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
/// How often it is looked whether it is time.
const TICK: Duration = Duration::from_secs(1);
/// How long a fetch may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a login waits for one: less than a stranger's connection may last.
const WAIT: Duration = Duration::from_secs(5);
/// Longest set of keys.
const LONGEST_SET: usize = 256 << 10;

/// A token that was taken.
#[derive(Debug)]
pub(crate) struct Taken {
    /// By which rule.
    pub(crate) rule: Arc<Rule>,
    /// For what.
    pub(crate) grant: Grant,
    /// What tells the token from others.
    pub(crate) digest: [u8; 32],
    /// When it ends, in seconds since 1970.
    pub(crate) token_ends: u64,
    /// When the session ends, in seconds since 1970.
    pub(crate) ends: u64,
    /// The claim `sub`, for people.
    pub(crate) subject: String,
}

/// Whose tokens are taken, and what for.
#[derive(Debug, Default)]
pub(crate) struct Oidc {
    // A lock for the time of a copy of the pointer.
    in_force: RwLock<Arc<InForce>>,
}

#[derive(Debug, Default)]
struct InForce {
    issuers: Vec<Arc<Known>>,
    rules: Vec<Arc<Rule>>,
}

/// An issuer, and what is known of its keys.
#[derive(Debug)]
struct Known {
    issuer: Issuer,
    // Held for a look, never across an await.
    fetched: Mutex<Fetched>,
    // One fetch at a time; whoever waits for it looks again.
    fetching: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Fetched {
    keys: Option<(Arc<Keys>, Instant)>,
    tried: Option<Instant>,
    fault: Option<String>,
}

impl Fetched {
    fn is_due(&self, now: Instant) -> bool {
        let since = |at: Instant| now.saturating_duration_since(at);
        let rested = |pause| self.tried.is_none_or(|tried| since(tried) >= pause);
        match (&self.keys, &self.fault) {
            (None, _) => rested(FIRST_PAUSE),
            (Some(_), Some(_)) => rested(PAUSE),
            (Some(_), None) => rested(REFRESH),
        }
    }

    /// The keys that still count.
    fn keys(&self, keep: Duration, now: Instant) -> Option<Arc<Keys>> {
        let (keys, at) = self.keys.as_ref()?;
        (now.saturating_duration_since(*at) <= keep).then(|| Arc::clone(keys))
    }
}

impl Oidc {
    /// Puts issuers and rules in force; an issuer that stays keeps its keys.
    pub(crate) fn replace(&self, file: &TokensFile) {
        let before = self.in_force();
        let known = |issuer: &Issuer| {
            let same = before.issuers.iter().find(|known| known.issuer == *issuer);
            same.map_or_else(
                || {
                    Arc::new(Known {
                        issuer: issuer.clone(),
                        fetched: Mutex::default(),
                        fetching: tokio::sync::Mutex::default(),
                    })
                },
                Arc::clone,
            )
        };
        let next = InForce {
            issuers: file.issuers.iter().map(known).collect(),
            rules: file.rules.iter().cloned().map(Arc::new).collect(),
        };
        *self.in_force.write() = Arc::new(next);
    }

    fn in_force(&self) -> Arc<InForce> {
        Arc::clone(&self.in_force.read())
    }

    /// What the holder of this token may do.
    ///
    /// # Errors
    /// It is not taken.
    pub(crate) async fn take(&self, token: &str) -> Result<Taken, Refused> {
        let in_force = self.in_force();
        let unproven = verify::read(token)?;
        let mut issuers = in_force.issuers.iter();
        let known = issuers.find(|known| known.issuer.url == unproven.issuer);
        let known = known.ok_or(Refused::Issuer)?;
        let prove = |keys: &Keys| unproven.prove(&known.issuer, keys, unix_seconds());
        let keys = known.keys().await?;
        let claims = match prove(&keys) {
            Err(Refused::UnknownKey) if known.fetched_soon(PAUSE).await => {
                prove(&*known.keys().await?)?
            }
            proven => proven?,
        };
        let mut rules = in_force.rules.iter();
        let rule =
            rules.find(|rule| rule.issuer == known.issuer.name && grant::fits(rule, &claims));
        let subject = claims.text("sub").unwrap_or_default();
        let rule = rule.ok_or_else(|| Refused::NoRule(subject.clone()))?;
        let grant = grant::of(rule, &claims).map_err(Refused::NoRule)?;
        let session = known
            .issuer
            .session
            .map(|life| unix_seconds() + life.as_secs());
        Ok(Taken {
            rule: Arc::clone(rule),
            grant,
            digest: unproven.digest(),
            token_ends: claims.ends(),
            ends: session.unwrap_or_else(|| claims.ends()),
            subject,
        })
    }

    /// Fetches the keys of all issuers whenever it is time, as long as somebody holds `oidc`.
    pub(crate) fn follow(oidc: &Arc<Oidc>) {
        let oidc = Arc::downgrade(oidc);
        tokio::spawn(async move {
            while let Some(in_force) = oidc.upgrade().map(|oidc| oidc.in_force()) {
                for known in &in_force.issuers {
                    if known.fetched().is_due(Instant::now()) {
                        let known = Arc::clone(known);
                        // Each by itself: one that does not answer must not keep the others waiting.
                        tokio::spawn(async move { known.fetch(FIRST_PAUSE).await });
                    }
                }
                drop(in_force);
                tokio::time::sleep(TICK).await;
            }
        });
    }
}

impl Known {
    fn fetched(&self) -> MutexGuard<'_, Fetched> {
        self.fetched.lock()
    }

    /// The keys that count now; waits for the first ones.
    async fn keys(self: &Arc<Known>) -> Result<Arc<Keys>, Refused> {
        let keep = self.issuer.keep_keys;
        let now = |known: &Known| known.fetched().keys(keep, Instant::now());
        if let Some(keys) = now(self) {
            return Ok(keys);
        }
        self.fetched_soon(FIRST_PAUSE).await;
        let fault = self.fetched().fault.clone();
        now(self)
            .ok_or_else(|| Refused::NoKeys(fault.unwrap_or_else(|| "it does not answer".into())))
    }

    /// Has the keys fetched, and says whether there was news soon. The fetch goes on without whoever waits for it.
    async fn fetched_soon(self: &Arc<Known>, pause: Duration) -> bool {
        let known = Arc::clone(self);
        let fetching = tokio::spawn(async move { known.fetch(pause).await });
        matches!(timeout(WAIT, fetching).await, Ok(Ok(true)))
    }

    /// Fetches the keys unless that was tried within `pause`. Returns whether there is news.
    async fn fetch(&self, pause: Duration) -> bool {
        let asked = Instant::now();
        let _one = self.fetching.lock().await;
        {
            let mut fetched = self.fetched();
            let tried = fetched.tried;
            // Somebody else has asked meanwhile.
            if tried.is_some_and(|tried| tried >= asked) {
                return true;
            }
            if tried.is_some_and(|tried| tried.elapsed() < pause) {
                return false;
            }
            fetched.tried = Some(Instant::now());
        }
        let found = timeout(PATIENCE, download(&self.issuer.jwks)).await;
        let found = found.unwrap_or_else(|_| Err("it did not answer in time".into()));
        let found = found.and_then(|text| keys::parse(&text, self.issuer.algorithm));
        let mut fetched = self.fetched();
        let name = &self.issuer.name;
        match found {
            Ok(keys) => {
                if fetched.fault.take().is_some() || fetched.keys.is_none() {
                    info!("keys of the issuer \"{name}\" in force: {}", keys.len());
                }
                fetched.keys = Some((Arc::new(keys), Instant::now()));
                true
            }
            Err(cause) => {
                let cause = format!(
                    "cannot get the keys of the issuer \"{name}\" from {}: {cause}",
                    self.issuer.jwks
                );
                if fetched.fault.as_ref() != Some(&cause) {
                    warn!(
                        "{cause}; the last ones count for {:?}",
                        self.issuer.keep_keys
                    );
                }
                fetched.fault = Some(cause);
                false
            }
        }
    }
}

/// What is at this address itself: whoever redirects could lead us anywhere, to what only we can reach.
async fn download(url: &str) -> Result<Vec<u8>, String> {
    // Fails only where a provider was chosen before, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(PATIENCE)
        .build();
    let told = |error: reqwest::Error| {
        // The chain says what happened, the top only that it did.
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(next) = cause {
            text = format!("{text}: {next}");
            cause = next.source();
        }
        text
    };
    let answer = client.map_err(told)?.get(url).send().await;
    let mut answer = answer.map_err(told)?;
    if answer.status() != reqwest::StatusCode::OK {
        return Err(format!("it answers {}", answer.status()));
    }
    let mut text = Vec::new();
    while let Some(piece) = answer.chunk().await.map_err(told)? {
        text.extend_from_slice(&piece);
        if text.len() > LONGEST_SET {
            return Err(format!("it is longer than {LONGEST_SET} bytes"));
        }
    }
    Ok(text)
}
