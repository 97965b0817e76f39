//! Sessions that ID tokens were exchanged for: bounded, listed, ended by time or by hand, and kept for the next gateway. No
//! session's token is kept, only its digest. Pure.

use super::{Access, Entry, digest};
use crate::base::secret::Secret;
use crate::contract::gateway_status::SessionStatus;
use crate::contract::tokens::{Layers, Rule};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::sync::Arc;

/// Most sessions. One rule has at most half of them, so that the jobs of one repository leave room for those of others.
const MOST: usize = 8192;
/// Most sessions of one build, which may be a matrix of hundreds of jobs. One more ends its first one.
const MOST_OF_A_BUILD: usize = 512;
/// Most tokens that are remembered so that none is taken twice; one rule has at most half of them.
const MOST_SEEN: usize = 4 * MOST;
/// Most of the remembered tokens of one build.
const MOST_SEEN_OF_A_BUILD: usize = 4 * MOST_OF_A_BUILD;
/// Most builds that are remembered as revoked; of more, the first ones are forgotten.
const MOST_REVOKED: usize = 4096;
/// How many seconds a build stays revoked: longer than it lives, and than it can be run again.
const REVOKED_FOR: u64 = 40 * 24 * 3600;
/// Longest name of a revoked build, in bytes.
const LONGEST_REVOKED: usize = 256;
/// Longest name of who has logged in, in bytes.
const LONGEST_SUBJECT: usize = 256;
/// Longest text of all that is kept; the bounds above keep it shorter.
pub const LONGEST_TEXT: u64 = 64 << 20;
/// What a session's token begins with, so that people and scanners know one.
pub(super) const PREFIX: &str = "sd1-";

/// A session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Session {
    /// Of its token.
    #[serde(with = "digest_text")]
    pub(super) digest: [u8; 32],
    /// By which rule, and which text of that.
    pub(super) rule: String,
    #[serde(with = "digest_text")]
    pub(super) rule_digest: [u8; 32],
    /// The build that it belongs to; empty where nothing says.
    pub(super) build: String,
    subject: String,
    pub(super) layers: Layers,
    pub(super) distribute: bool,
    began: u64,
    ends: u64,
}

/// A token that was taken. Earlier versions kept a list of its digest and its end: the order is theirs, and the rest may be
/// missing.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Seen {
    #[serde(with = "digest_text")]
    digest: [u8; 32],
    ends: u64,
    #[serde(default)]
    rule: String,
    #[serde(default)]
    build: String,
}

/// A build that gets no session any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Revoked {
    /// The build, or `RULE:BUILD`.
    name: String,
    until: u64,
}

/// What is kept.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Kept {
    sessions: Vec<Session>,
    seen: Vec<Seen>,
    /// Earlier versions kept none.
    #[serde(default)]
    revoked: Vec<Revoked>,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Issued {
    sessions: HashMap<[u8; 32], (Session, Option<Arc<Entry>>)>,
    seen: HashMap<[u8; 32], Seen>,
    /// The first one first.
    revoked: Vec<Revoked>,
    /// How often it was changed.
    changes: u64,
}

/// Why there is no session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoSession {
    /// The token was exchanged before.
    Replayed,
    /// The sessions of its build were ended by hand.
    Revoked,
    /// There are too many sessions, or too many of this rule or build.
    Full,
}

/// What a session is begun with.
#[derive(Debug)]
pub struct Begun<'a> {
    /// By which rule.
    pub rule: &'a Rule,
    /// What its holder reads and writes.
    pub layers: Layers,
    /// The build that it belongs to; empty where nothing says.
    pub build: String,
    /// Who has logged in, for people.
    pub subject: String,
    /// What tells the ID token from others, and when that ends, in seconds since 1970.
    pub id_token: ([u8; 32], u64),
    /// The end of the session, in seconds since 1970.
    pub ends: u64,
}

/// Tells two texts of a rule from each other.
pub(super) fn digest_of(rule: &Rule) -> [u8; 32] {
    *blake3::hash(format!("{rule:?}").as_bytes()).as_bytes()
}

impl Session {
    /// The name under which it writes.
    pub(super) fn name(&self) -> String {
        match self.build.as_str() {
            "" => self.rule.clone(),
            build => of_both(&self.rule, build),
        }
    }
}

fn of_both(rule: &str, build: &str) -> String {
    format!("{rule}:{build}")
}

impl Issued {
    /// What [`Issued::text`] gave before.
    ///
    /// # Errors
    /// It is broken.
    pub(super) fn parse(text: &str) -> Result<Issued, String> {
        let kept: Kept = serde_json::from_str(text).map_err(|cause| cause.to_string())?;
        let seen = kept.seen.into_iter().take(MOST_SEEN);
        let sessions = kept.sessions.into_iter().take(MOST);
        Ok(Issued {
            seen: seen.map(|one| (one.digest, one)).collect(),
            revoked: kept.revoked.into_iter().take(MOST_REVOKED).collect(),
            sessions: sessions.map(|one| (one.digest, (one, None))).collect(),
            changes: 0,
        })
    }

    /// What must be kept for the next gateway. No token is in it.
    pub(super) fn text(&self) -> String {
        let kept = Kept {
            sessions: self.sessions.values().map(|(one, _)| one.clone()).collect(),
            seen: self.seen.values().cloned().collect(),
            revoked: self.revoked.clone(),
        };
        serde_json::to_string(&kept).unwrap_or_default()
    }

    /// Rises with all that must be kept.
    pub(super) fn changes(&self) -> u64 {
        self.changes
    }

    /// Begins a session for the token with this digest.
    pub(super) fn begin(
        &mut self,
        begun: Begun<'_>,
        digest: [u8; 32],
        now_unix: u64,
    ) -> Result<(), NoSession> {
        self.expire(now_unix);
        let (id_token, id_ends) = begun.id_token;
        if self.seen.contains_key(&id_token) {
            return Err(NoSession::Replayed);
        }
        if self.is_revoked(&begun.rule.name, &begun.build) {
            return Err(NoSession::Revoked);
        }
        let seen = Seen {
            digest: id_token,
            rule: begun.rule.name.clone(),
            build: begun.build.clone(),
            // The clocks may be apart by a minute: it must not be taken again in that.
            ends: id_ends.saturating_add(120),
        };
        let session = Session {
            digest,
            rule: begun.rule.name.clone(),
            rule_digest: digest_of(begun.rule),
            build: begun.build,
            subject: readable(&begun.subject),
            layers: begun.layers,
            distribute: begun.rule.distribute,
            began: now_unix,
            ends: begun.ends,
        };
        self.make_room(&session)?;
        self.seen.insert(id_token, seen);
        self.sessions.insert(digest, (session, None));
        self.changes += 1;
        Ok(())
    }

    /// Looks that there is room for a session beside those of its build, its rule and all others; ends the build's first one
    /// where the build has too many. Builds are not told apart where nothing says which one it is.
    fn make_room(&mut self, session: &Session) -> Result<(), NoSession> {
        let of_rule = |rule: &str| rule == session.rule;
        let of_build =
            |rule: &str, build: &str| of_rule(rule) && build == session.build && !build.is_empty();
        let seen = || self.seen.values();
        let seen_of_rule = seen().filter(|one| of_rule(&one.rule)).count();
        let seen_of_build = seen().filter(|one| of_build(&one.rule, &one.build)).count();
        if self.seen.len() >= MOST_SEEN
            || seen_of_rule >= MOST_SEEN / 2
            || seen_of_build >= MOST_SEEN_OF_A_BUILD
        {
            return Err(NoSession::Full);
        }
        let all = || self.sessions.values().map(|(one, _)| one);
        let own = all().filter(|one| of_build(&one.rule, &one.build));
        let own: Vec<(u64, [u8; 32])> = own.map(|one| (one.began, one.digest)).collect();
        if own.len() >= MOST_OF_A_BUILD {
            if let Some((_, first)) = own.iter().min() {
                self.sessions.remove(first);
            }
            return Ok(());
        }
        let sessions_of_rule = all().filter(|one| of_rule(&one.rule)).count();
        match self.sessions.len() >= MOST || sessions_of_rule >= MOST / 2 {
            true => Err(NoSession::Full),
            false => Ok(()),
        }
    }

    /// Ends what is over. Returns whether that was anything.
    pub(super) fn expire(&mut self, now_unix: u64) -> bool {
        let before = self.sessions.len() + self.seen.len();
        self.sessions.retain(|_, (one, _)| one.ends > now_unix);
        self.seen.retain(|_, one| one.ends > now_unix);
        self.revoked.retain(|one| one.until > now_unix);
        before != self.sessions.len() + self.seen.len()
    }

    /// Ends the sessions of rules that are not as they were. Returns whether there were some.
    pub(super) fn keep_to(&mut self, rules: &[Rule]) -> bool {
        let before = self.sessions.len();
        let digests: Vec<[u8; 32]> = rules.iter().map(digest_of).collect();
        self.sessions
            .retain(|_, (one, _)| digests.contains(&one.rule_digest));
        // What was made of them holds the counters of rules that were.
        self.sessions
            .values_mut()
            .for_each(|(_, entry)| *entry = None);
        before != self.sessions.len()
    }

    /// Ends the sessions of a build, a rule, or both as `RULE:BUILD`. Returns how many. The build gets no new ones:
    /// whoever has its ID token can usually have another one made.
    pub(super) fn revoke(&mut self, wanted: &str, now_unix: u64) -> usize {
        self.revoked.retain(|one| one.name != wanted);
        if (1..=LONGEST_REVOKED).contains(&wanted.len()) {
            if self.revoked.len() >= MOST_REVOKED {
                self.revoked.remove(0);
            }
            self.revoked.push(Revoked {
                name: wanted.to_owned(),
                until: now_unix.saturating_add(REVOKED_FOR),
            });
        }
        let before = self.sessions.len();
        self.sessions.retain(|_, (one, _)| {
            let names = [&one.rule, &one.build, &one.name()];
            wanted.is_empty() || !names.into_iter().any(|name| name == wanted)
        });
        self.changes += 1;
        before - self.sessions.len()
    }

    /// Whether the sessions of this build were ended by hand.
    pub(super) fn is_revoked(&self, rule: &str, build: &str) -> bool {
        let both = of_both(rule, build);
        let mut revoked = self.revoked.iter();
        !build.is_empty() && revoked.any(|one| one.name == build || one.name == both)
    }

    /// The session of the token with this digest, as `make` has made it of it once.
    pub(super) fn entry(
        &mut self,
        digest: &[u8; 32],
        make: impl FnOnce(&Session) -> Option<Arc<Entry>>,
    ) -> Option<Arc<Entry>> {
        let (session, entry) = self.sessions.get_mut(digest)?;
        if entry.is_none() {
            *entry = make(session);
        }
        entry.clone()
    }

    /// All sessions, the newest first.
    pub(super) fn list(&self) -> Vec<SessionStatus> {
        let all = self.sessions.values().map(|(one, _)| SessionStatus {
            name: one.name(),
            subject: one.subject.clone(),
            grants: one.layers.describe(),
            began_unix_seconds: one.began,
            ends_unix_seconds: one.ends,
        });
        let mut all: Vec<SessionStatus> = all.collect();
        all.sort_by(|one, other| {
            let time = |one: &SessionStatus| std::cmp::Reverse(one.began_unix_seconds);
            (time(one), &one.name).cmp(&(time(other), &other.name))
        });
        all
    }
}

impl Access {
    /// Takes up the sessions that [`Access::issued_text`] gave before. They are in force with their rules.
    ///
    /// # Errors
    /// The text is broken; there are no sessions then.
    pub fn take_up(&self, text: &str, now_unix: u64) -> Result<(), String> {
        let mut issued = Issued::parse(text)?;
        issued.expire(now_unix);
        *self.issued() = issued;
        Ok(())
    }

    /// What must be kept of the sessions, and how often that has changed; no token is in it.
    pub fn issued_text(&self) -> (String, u64) {
        let issued = self.issued();
        (issued.text(), issued.changes())
    }

    /// How often what must be kept of the sessions has changed.
    pub fn issued_changes(&self) -> u64 {
        self.issued().changes()
    }

    /// The token of a new session; `random` must be new each time.
    ///
    /// # Errors
    /// There is none.
    pub fn issue(
        &self,
        begun: Begun<'_>,
        now_unix: u64,
        random: [u8; 32],
    ) -> Result<Secret, NoSession> {
        let token = format!("{}{}", PREFIX, URL_SAFE_NO_PAD.encode(random));
        let digest = digest(token.as_bytes());
        self.issued().begin(begun, digest, now_unix)?;
        Ok(Secret::new(&token))
    }

    /// Ends the sessions that are over. Returns whether there were some.
    pub fn expire(&self, now_unix: u64) -> bool {
        self.issued().expire(now_unix)
    }

    /// Ends the sessions of a build, a rule, or both as `RULE:BUILD`, and lets the build begin no others. Returns how many
    /// have ended.
    pub fn revoke(&self, wanted: &str, now_unix: u64) -> usize {
        self.issued().revoke(wanted, now_unix)
    }

    /// Whether the sessions of this build were ended by hand.
    pub fn is_revoked(&self, rule: &str, build: &str) -> bool {
        self.issued().is_revoked(rule, build)
    }

    /// All sessions.
    pub fn issued_sessions(&self) -> Vec<SessionStatus> {
        self.issued().list()
    }
}

/// Who has logged in, for a terminal.
fn readable(subject: &str) -> String {
    let short = &subject[..subject.floor_char_boundary(LONGEST_SUBJECT)];
    let is_plain = |letter: char| !letter.is_control();
    short.chars().filter(|letter| is_plain(*letter)).collect()
}

mod digest_text {
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    fn decode(text: &str) -> Option<[u8; 32]> {
        URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()
    }

    pub(super) fn serialize<S: Serializer>(digest: &[u8; 32], to: S) -> Result<S::Ok, S::Error> {
        URL_SAFE_NO_PAD.encode(digest).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<[u8; 32], D::Error> {
        let text = String::deserialize(from)?;
        decode(&text).ok_or_else(|| serde::de::Error::custom("no digest"))
    }
}

#[cfg(test)]
mod tests;
