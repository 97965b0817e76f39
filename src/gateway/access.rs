//! Who may do what: tokens of HTTP requests, and peers of sccache's own protocol (own_protocol.rs). Pure but for the one
//! edge there.

mod caller;
pub mod explain;
mod issued;
mod own_protocol;
pub mod scope;

pub use self::caller::Caller;
pub use self::issued::{Begun, LONGEST_TEXT, NoSession};
pub use self::own_protocol::{
    default_gateways, describe_ipc, is_ourselves, is_podmans, may_speak_ipc, parse_routes,
};
pub use self::scope::{Asked, Denied, Scope};

use self::issued::Issued;
use crate::base::secret::Secret;
use crate::contract::gateway_config::Config;
use crate::contract::tokens::{Grant, Layers, Local, Named, Proof, Rule, TokensFile};
use crate::gateway::logins::Logins;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use parking_lot::{Mutex, MutexGuard, RwLock};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

/// The digest of no token.
const NO_TOKENS: [u8; 32] = [0; 32];
const BY_TOKEN: &str = "a token";
const CLUSTER: &str = "; uses the cluster";

/// What an HTTP request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Reads blobs, metrics or the status.
    Read,
    /// Changes the store.
    Write,
    /// Is a builder of the cluster.
    Build,
}

/// The answer to a request with given credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Go on.
    Allowed,
    /// No token, or one that nobody handed out: 401.
    Unauthorized,
    /// A token that may not do this: 403.
    Forbidden,
    /// No token, under a name that is not ours: 421.
    Misdirected,
}

/// What was done with one token.
#[derive(Debug, Default)]
pub struct Uses {
    /// Requests that came with it.
    pub requests: AtomicU64,
    /// Blobs found.
    pub hits: AtomicU64,
    /// Blobs asked for that are not there.
    pub misses: AtomicU64,
    /// Bytes of blobs taken from the client.
    pub received_bytes: AtomicU64,
    /// Bytes of blobs sent to the client.
    pub sent_bytes: AtomicU64,
    /// Requests that the token does not allow.
    pub refusals: AtomicU64,
}

/// One token, as a digest: all are of one length, so comparing them leaks neither a token's text nor its length.
#[derive(Debug)]
struct Entry {
    name: String,
    /// `None` for those who need no token.
    digest: Option<[u8; 32]>,
    /// How its holder is known, in words.
    proof: String,
    grant: Grant,
    scope: Scope,
    /// Entries that must not change may be replaced.
    replace: bool,
    /// Good for the scheduler, whatever the scope.
    distribute: bool,
    uses: Arc<Uses>,
}

/// What can be replaced while requests are judged.
#[derive(Debug)]
struct InForce {
    entries: Vec<Arc<Entry>>,
    /// By the name in a client's certificate.
    certificates: Vec<(String, Arc<Entry>)>,
    anonymous: Option<Arc<Entry>>,
    /// The layers of speakers of sccache's own protocol whom no table of `local` names.
    otherwise_local: Layers,
    local: Vec<Local>,
    rules: Vec<RuleInForce>,
}

/// A rule for ID tokens, as far as its sessions need it.
#[derive(Debug)]
struct RuleInForce {
    name: String,
    /// Tells two versions of it from each other.
    digest: [u8; 32],
    granted: Granted,
    uses: Arc<Uses>,
}

/// What somebody may do, and how they are known, in words without a secret.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Granted {
    /// `a token`, `the certificate builder-7`.
    pub proof: String,
    /// `reads pr/42, main; writes pr/42`.
    pub grants: String,
}

/// The tokens in force. They can be replaced while requests are judged.
#[derive(Debug)]
pub struct Access {
    /// Those of the configuration, which stay.
    fixed: Vec<Arc<Entry>>,
    anonymous: Option<Arc<Entry>>,
    // A lock for the time of a copy of the pointer.
    in_force: RwLock<Arc<InForce>>,
    logins: Logins,
    // Held for a look-up, never across I/O.
    issued: Mutex<Issued>,
}

impl Access {
    /// Takes over the tokens of `config`. Where that names a file of tokens, those who need no token wait for
    /// [`Access::replace`]. `logins` is what [`Access::logins`] gave before; `secret` must be new each time.
    pub fn new(config: &Config, logins: Option<&str>, secret: [u8; 32]) -> Access {
        let (writers, readers) = (Arc::<Uses>::default(), Arc::<Uses>::default());
        let entry = |name: &str, digest: Option<_>, grant, uses: &Arc<Uses>| {
            Arc::new(Entry {
                name: name.to_owned(),
                proof: if digest.is_some() {
                    BY_TOKEN
                } else {
                    "nothing"
                }
                .to_owned(),
                digest,
                grant,
                scope: Scope::All,
                replace: false,
                distribute: false,
                uses: Arc::clone(uses),
            })
        };
        let mut fixed = Vec::new();
        for (name, tokens, grant, uses) in [
            ("auth", &config.write_tokens, Grant::Write, &writers),
            ("read", &config.read_tokens, Grant::Read, &readers),
        ] {
            let digests = tokens.iter().map(|token| digest(token.reveal().as_bytes()));
            fixed.extend(digests.map(|digest| entry(name, Some(digest), grant, uses)));
        }
        let anonymous = config
            .anonymous_read
            .then(|| entry("anonymous", None, Grant::Read, &Arc::default()));
        let own = fixed.iter().filter(|entry| entry.name == "auth");
        let own = own.filter_map(|entry| entry.digest.as_ref());
        // What the file says of those who need no token may restrict them: until it has been read, they have nothing.
        let waits = config.tokens_file.is_some();
        let otherwise_local = match waits {
            true => Layers::default(),
            false => Layers::default_namespace(),
        };
        Access {
            logins: Logins::new(own, logins, secret),
            in_force: RwLock::new(Arc::new(InForce {
                entries: fixed.clone(),
                certificates: Vec::new(),
                anonymous: anonymous.clone().filter(|_| !waits),
                otherwise_local,
                local: Vec::new(),
                rules: Vec::new(),
            })),
            issued: Mutex::default(),
            fixed,
            anonymous,
        }
    }

    /// Puts what the file says beside the tokens of the configuration, instead of what it said before. Who keeps the
    /// name keeps the counters.
    ///
    /// # Errors
    /// The name of the token that is one of the configuration too; nothing has changed then.
    pub fn replace(&self, file: &TokensFile) -> Result<(), String> {
        let before = self.in_force();
        let mut entries = self.fixed.clone();
        let mut certificates = Vec::new();
        for one in &file.tokens {
            let digest = match &one.proof {
                Proof::Token(token) => digest(token.reveal().as_bytes()),
                Proof::Certificate(_) => NO_TOKENS,
            };
            if let Some(same) = self.fixed.iter().find(|fixed| fixed.digest == Some(digest)) {
                return Err(format!(
                    "\"{}\" is the same token as \"{}\"",
                    one.name, same.name
                ));
            }
            let known = before.all().find(|entry| entry.name == one.name);
            let entry = Arc::new(Entry {
                name: one.name.clone(),
                proof: match &one.proof {
                    Proof::Token(_) => BY_TOKEN.to_owned(),
                    Proof::Certificate(name) => format!("the certificate {name}"),
                },
                digest: Some(digest),
                grant: one.access,
                scope: scope_of(one),
                replace: one.replace,
                distribute: one.distribute,
                uses: known.map_or_else(Arc::default, |entry| Arc::clone(&entry.uses)),
            });
            match &one.proof {
                Proof::Token(_) => entries.push(entry),
                Proof::Certificate(name) => certificates.push((name.clone(), entry)),
            }
        }
        let anonymous = self.anonymous.as_ref().map(|open| match &file.anonymous {
            None => Arc::clone(open),
            Some(layers) => Arc::new(Entry {
                name: open.name.clone(),
                proof: open.proof.clone(),
                digest: None,
                grant: open.grant,
                scope: Scope::Layers(layers.clone()),
                replace: false,
                distribute: false,
                uses: Arc::clone(&open.uses),
            }),
        });
        let next = InForce {
            entries,
            certificates,
            anonymous,
            otherwise_local: Layers::default_namespace(),
            local: file.local.clone(),
            rules: (file.rules.iter())
                .map(|rule| {
                    let mut known = before.rules.iter();
                    let known = known.find(|known| known.name == rule.name);
                    RuleInForce {
                        name: rule.name.clone(),
                        digest: issued::digest_of(rule),
                        granted: Granted {
                            proof: words_of(rule),
                            grants: rule.layers.describe()
                                + if rule.distribute { CLUSTER } else { "" },
                        },
                        uses: known.map_or_else(Arc::default, |known| Arc::clone(&known.uses)),
                    }
                })
                .collect(),
        };
        self.issued().keep_to(&file.rules);
        *self.in_force.write() = Arc::new(next);
        Ok(())
    }

    fn in_force(&self) -> Arc<InForce> {
        Arc::clone(&self.in_force.read())
    }

    /// What somebody who speaks sccache's own protocol reads and writes: the user `uid` of the socket, or whoever is on
    /// the port.
    pub fn local(&self, uid: Option<u32>) -> Layers {
        let in_force = self.in_force();
        let of = |wanted: Option<u32>| in_force.local.iter().find(|one| one.uid == wanted);
        let found = uid.and_then(|uid| of(Some(uid))).or_else(|| of(None));
        found
            .map_or(&in_force.otherwise_local, |one| &one.layers)
            .clone()
    }

    /// Who sends this token; [`token`] finds it in an `Authorization` header.
    pub fn caller_with(&self, token: Option<&[u8]>) -> Caller {
        let found = token.and_then(|token| self.find(token));
        Caller {
            entry: found.or_else(|| self.in_force().anonymous.clone()),
            has_sent_a_token: token.is_some(),
            is_misdirected: false,
            not_certified: None,
        }
    }

    /// Who is known by a certificate with these names; the first entry of the file that has one of them.
    pub fn certified(&self, names: &[String]) -> Option<Caller> {
        let in_force = self.in_force();
        let mut certificates = in_force.certificates.iter();
        let (_, entry) = certificates.find(|(name, _)| names.contains(name))?;
        Some(Caller {
            entry: Some(Arc::clone(entry)),
            has_sent_a_token: true,
            is_misdirected: false,
            not_certified: None,
        })
    }

    /// Who logs in with this token; what everybody may do does not count here.
    pub fn holder(&self, token: &[u8]) -> Caller {
        Caller {
            entry: self.find(token),
            has_sent_a_token: true,
            is_misdirected: false,
            not_certified: None,
        }
    }

    /// The token, or whoever needs none, of this name.
    pub fn named(&self, name: &str) -> Option<Caller> {
        let in_force = self.in_force();
        let entry = in_force.all().find(|entry| entry.name == name)?;
        Some(Caller {
            entry: Some(Arc::clone(entry)),
            has_sent_a_token: true,
            is_misdirected: false,
            not_certified: None,
        })
    }

    /// The user of the socket, or whoever speaks sccache's own protocol on the port, as a caller of this name.
    pub fn local_caller(&self, uid: Option<u32>, name: &str) -> Caller {
        let layers = self.local(uid);
        Caller {
            entry: Some(Arc::new(Entry {
                name: name.to_owned(),
                proof: String::new(),
                // It is nobody's token, but it is no stranger either.
                digest: Some(NO_TOKENS),
                grant: match layers.write {
                    Some(_) => Grant::Write,
                    None => Grant::Read,
                },
                replace: layers.replace,
                scope: Scope::Layers(layers),
                distribute: false,
                uses: Arc::default(),
            })),
            has_sent_a_token: true,
            is_misdirected: false,
            not_certified: None,
        }
    }

    fn find(&self, token: &[u8]) -> Option<Arc<Entry>> {
        let is_session = token.starts_with(issued::PREFIX.as_bytes());
        let token = digest(token);
        let in_force = self.in_force();
        let same = in_force.entries.iter();
        let found = choose(
            &in_force.entries,
            same.map(|entry| entry.digest.unwrap_or_default().ct_eq(&token)),
        );
        // A look-up by digest tells nobody anything: whose digest begins alike cannot be chosen.
        found.or_else(|| is_session.then(|| self.find_session(&in_force, &token))?)
    }

    fn find_session(&self, in_force: &InForce, digest: &[u8; 32]) -> Option<Arc<Entry>> {
        self.issued().entry(digest, |session| {
            let mut rules = in_force.rules.iter();
            // Without its rule, which may have changed or may not have been read yet, it is not accepted.
            let rule = rules.find(|rule| rule.digest == session.rule_digest)?;
            Some(Arc::new(Entry {
                name: session.name(),
                proof: String::new(),
                digest: Some(*digest),
                grant: match session.layers.write {
                    Some(_) => Grant::Write,
                    None => Grant::Read,
                },
                replace: session.layers.replace,
                scope: Scope::Layers(session.layers.clone()),
                distribute: session.distribute,
                uses: Arc::clone(&rule.uses),
            }))
        })
    }

    fn issued(&self) -> MutexGuard<'_, Issued> {
        self.issued.lock()
    }

    /// A cookie that stands for the caller's token; `None` where there is none. `random` must be new each time.
    pub fn log_in(&self, caller: &Caller, now_unix: u64, random: [u8; 16]) -> Option<String> {
        let digest = caller.entry.as_ref()?.digest?;
        Some(self.logins.begin(&digest, now_unix, random))
    }

    /// Whose token this cookie stands for, with all that this token is good for now.
    pub fn logged_in(&self, cookie: &[u8], now_unix: u64) -> Option<Caller> {
        let entries = &self.in_force().entries;
        let tokens = entries.iter();
        let same = self.logins.check(
            cookie,
            now_unix,
            tokens.map(|entry| entry.digest.unwrap_or_default()),
        );
        Some(Caller {
            entry: Some(choose(entries, same.into_iter())?),
            has_sent_a_token: true,
            is_misdirected: false,
            not_certified: None,
        })
    }

    /// Ends a cookie; `secret` must be new each time. One that was not valid takes up no room. Whether there is
    /// news for [`Access::logins`].
    pub fn log_out(&self, cookie: &[u8], now_unix: u64, secret: [u8; 32]) -> bool {
        let is_good = self.logged_in(cookie, now_unix).is_some();
        if is_good {
            self.logins.end(cookie, now_unix, secret);
        }
        is_good
    }

    /// What must be kept so that logins, and log-outs, outlive the process. It is a secret.
    pub fn logins(&self) -> String {
        self.logins.text()
    }

    /// What was done with each token in force, by name.
    pub fn uses(&self) -> Vec<(String, Arc<Uses>)> {
        let in_force = self.in_force();
        let all = in_force.all();
        let mut uses: Vec<_> = all
            .map(|entry| (entry.name.clone(), Arc::clone(&entry.uses)))
            .collect();
        uses.dedup_by(|one, other| one.0 == other.0);
        let rules = in_force.rules.iter();
        uses.extend(rules.map(|rule| (rule.name.clone(), Arc::clone(&rule.uses))));
        uses
    }

    /// What each of them may do, by name, as it was understood.
    pub fn granted(&self) -> BTreeMap<String, Granted> {
        let in_force = self.in_force();
        let entries = in_force.all().map(|entry| {
            let granted = Granted {
                proof: entry.proof.clone(),
                grants: entry.grants(),
            };
            (entry.name.clone(), granted)
        });
        let rules = in_force.rules.iter();
        let rules = rules.map(|rule| (rule.name.clone(), rule.granted.clone()));
        entries.chain(rules).collect()
    }
}

impl InForce {
    /// All who have a name in the file or the settings.
    fn all(&self) -> impl Iterator<Item = &Arc<Entry>> {
        let certified = self.certificates.iter().map(|(_, entry)| entry);
        self.entries.iter().chain(certified).chain(&self.anonymous)
    }
}

impl Entry {
    /// What it may do, in words.
    fn grants(&self) -> String {
        let writes = match self.grant {
            Grant::Build => return "is a builder of the cluster".to_owned(),
            Grant::Write => true,
            Grant::Read => false,
        };
        let is_layered = matches!(self.scope, Scope::Layers(_));
        let replaces = self.replace && !is_layered;
        let clusters = self.distribute || (writes && self.scope == Scope::All);
        let replaces = if replaces { ", replaces results" } else { "" };
        let clusters = if clusters { CLUSTER } else { "" };
        format!("{}{replaces}{clusters}", self.scope.describe(writes))
    }
}

/// Whose jobs a rule is for, in words.
fn words_of(rule: &Rule) -> String {
    let claims = rule.claims.iter();
    let claims = claims.map(|(name, values)| format!("{name} = {}", values.join(" or ")));
    let claims: Vec<String> = claims.collect();
    format!("an ID token of {} with {}", rule.issuer, claims.join(", "))
}

fn scope_of(token: &Named) -> Scope {
    match (&token.layers, &token.namespaces) {
        (Some(layers), _) => Scope::Layers(layers.clone()),
        (None, Some(folders)) => Scope::Below(folders.clone()),
        (None, None) => Scope::All,
    }
}

/// The entry that was found to be the same. All are looked at, so that the time says nothing about which one matched.
fn choose(entries: &[Arc<Entry>], same: impl Iterator<Item = Choice>) -> Option<Arc<Entry>> {
    let mut place = u32::MAX;
    for (index, same) in (0_u32..).zip(same) {
        place = u32::conditional_select(&place, &index, same);
    }
    entries.get(usize::try_from(place).ok()?).cloned()
}

/// Is `given` the secret? The time it takes says nothing about either.
pub fn is_same(secret: &Secret, given: &[u8]) -> bool {
    bool::from(digest(secret.reveal().as_bytes()).ct_eq(&digest(given)))
}

fn digest(token: &[u8]) -> [u8; 32] {
    *blake3::hash(token).as_bytes()
}

/// The token of an `Authorization` header.
pub fn token(header: &[u8]) -> Option<Vec<u8>> {
    let space = header.iter().position(|&byte| byte == b' ')?;
    let (scheme, rest) = (&header[..space], header[space..].trim_ascii());
    if scheme.eq_ignore_ascii_case(b"bearer") {
        return Some(rest.to_vec());
    }
    if !scheme.eq_ignore_ascii_case(b"basic") {
        return None;
    }
    let decoded = STANDARD.decode(rest).ok()?;
    let colon = decoded.iter().position(|&byte| byte == b':')?;
    Some(decoded[colon + 1..].to_vec())
}

#[cfg(test)]
mod tests;
