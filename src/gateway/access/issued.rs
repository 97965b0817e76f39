//! Sessions that ID tokens were exchanged for: bounded, listed, ended by time or by hand, and kept for the next gateway. No
//! session's token is kept, only its digest. Pure.

use super::Entry;
use crate::contract::gateway_status::SessionStatus;
use crate::contract::tokens::{Layers, Rule};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::sync::Arc;

/// Most sessions.
const MOST: usize = 4096;
/// Most sessions of one build: a job that logs in again and again ends its own first ones.
const MOST_OF_A_BUILD: usize = 64;
/// Most tokens that are remembered so that none is taken twice.
const MOST_SEEN: usize = 4 * MOST;
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

/// What is kept.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Kept {
    sessions: Vec<Session>,
    /// Digests of tokens that were taken, and when they end.
    seen: Vec<(String, u64)>,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Issued {
    sessions: HashMap<[u8; 32], (Session, Option<Arc<Entry>>)>,
    seen: HashMap<[u8; 32], u64>,
}

/// Why there is no session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoSession {
    /// The token was exchanged before.
    Replayed,
    /// There are too many sessions.
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
            build => format!("{}:{build}", self.rule),
        }
    }
}

impl Issued {
    /// What [`Issued::text`] gave before; nothing where that is broken.
    pub(super) fn parse(text: &str) -> Issued {
        let kept: Kept = serde_json::from_str(text).unwrap_or_default();
        let seen = kept.seen.into_iter();
        let sessions = kept.sessions.into_iter().take(MOST);
        Issued {
            seen: seen
                .filter_map(|(digest, ends)| Some((digest_text::decode(&digest)?, ends)))
                .collect(),
            sessions: sessions.map(|one| (one.digest, (one, None))).collect(),
        }
    }

    /// What must be kept for the next gateway. No token is in it.
    pub(super) fn text(&self) -> String {
        let seen = self.seen.iter();
        let kept = Kept {
            sessions: self.sessions.values().map(|(one, _)| one.clone()).collect(),
            seen: seen
                .map(|(digest, ends)| (URL_SAFE_NO_PAD.encode(digest), *ends))
                .collect(),
        };
        serde_json::to_string(&kept).unwrap_or_default()
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
        if self.seen.len() >= MOST_SEEN {
            return Err(NoSession::Full);
        }
        let session = Session {
            digest,
            rule: begun.rule.name.clone(),
            rule_digest: digest_of(begun.rule),
            build: begun.build,
            subject: begun.subject,
            layers: begun.layers,
            distribute: begun.rule.distribute,
            began: now_unix,
            ends: begun.ends,
        };
        let own = self.sessions.values().map(|(one, _)| one);
        let own = own.filter(|one| one.rule == session.rule && one.build == session.build);
        let mut own: Vec<(u64, [u8; 32])> = own.map(|one| (one.began, one.digest)).collect();
        if own.len() >= MOST_OF_A_BUILD {
            own.sort_unstable();
            self.sessions.remove(&own[0].1);
        }
        if self.sessions.len() >= MOST {
            return Err(NoSession::Full);
        }
        // The clocks may be apart by a minute: it must not be taken again in that.
        self.seen.insert(id_token, id_ends.saturating_add(120));
        self.sessions.insert(digest, (session, None));
        Ok(())
    }

    /// Ends what is over. Returns whether that was anything.
    pub(super) fn expire(&mut self, now_unix: u64) -> bool {
        let before = self.sessions.len() + self.seen.len();
        self.sessions.retain(|_, (one, _)| one.ends > now_unix);
        self.seen.retain(|_, ends| *ends > now_unix);
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

    /// Ends the sessions of a build, a rule, or both as `RULE:BUILD`. Returns how many.
    pub(super) fn revoke(&mut self, wanted: &str) -> usize {
        let before = self.sessions.len();
        self.sessions.retain(|_, (one, _)| {
            let names = [&one.rule, &one.build, &one.name()];
            wanted.is_empty() || !names.into_iter().any(|name| name == wanted)
        });
        before - self.sessions.len()
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

mod digest_text {
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn decode(text: &str) -> Option<[u8; 32]> {
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
mod tests {
    use super::*;

    fn rule(name: &str) -> Rule {
        Rule {
            name: name.to_owned(),
            issuer: "i".into(),
            claims: [("sub".to_owned(), vec!["x".to_owned()])].into(),
            layers: Layers::default_namespace(),
            distribute: false,
        }
    }

    fn begin(issued: &mut Issued, number: u64, rule: &Rule, build: &str) -> Result<(), NoSession> {
        let mut digest = [0; 32];
        digest[..8].copy_from_slice(&number.to_be_bytes());
        let begun = Begun {
            rule,
            layers: Layers::default_namespace(),
            build: build.to_owned(),
            subject: "x".into(),
            id_token: (digest, 1_000_000),
            ends: 5_000_000,
        };
        issued.begin(begun, digest, 100 + number)
    }

    #[test]
    fn sessions_end_by_time_by_hand_and_with_their_rule() {
        let mut issued = Issued::default();
        let (one, other) = (rule("one"), rule("other"));
        for number in 0..4 {
            let rule = if number < 3 { &one } else { &other };
            begin(&mut issued, number, rule, &format!("run{number}")).unwrap();
        }
        assert_eq!(issued.revoke("run0"), 1);
        assert_eq!(issued.revoke("one:run1"), 1);
        assert_eq!(issued.revoke(""), 0);
        assert_eq!(issued.revoke("nobody"), 0);
        let names: Vec<String> = issued.list().into_iter().map(|one| one.name).collect();
        assert_eq!(names, ["other:run3", "one:run2"]);
        let mut changed = other.clone();
        changed.layers.write = None;
        assert!(issued.keep_to(&[one.clone(), changed]));
        assert_eq!(issued.list().len(), 1);
        assert!(issued.expire(5_000_000));
        assert!(issued.list().is_empty());
    }

    #[test]
    fn token_is_exchanged_once_even_after_a_restart_until_it_is_over() {
        let mut issued = Issued::default();
        let rule = rule("one");
        begin(&mut issued, 1, &rule, "b").unwrap();
        assert_eq!(begin(&mut issued, 1, &rule, "b"), Err(NoSession::Replayed));
        issued.revoke("b");
        let mut restarted = Issued::parse(&issued.text());
        assert_eq!(
            begin(&mut restarted, 1, &rule, "b"),
            Err(NoSession::Replayed)
        );
        restarted.expire(1_000_119);
        assert_eq!(
            begin(&mut restarted, 1, &rule, "b"),
            Err(NoSession::Replayed)
        );
        restarted.expire(1_000_120);
        assert!(begin(&mut restarted, 1, &rule, "b").is_ok());
        for broken in ["", "x", "{}", &issued.text()[1..]] {
            assert!(Issued::parse(broken).list().is_empty());
        }
    }

    #[test]
    fn numbers_are_bounded() {
        let mut issued = Issued::default();
        let rule = rule("one");
        for number in 0..1000 {
            begin(&mut issued, number, &rule, "storm").unwrap();
        }
        assert_eq!(issued.list().len(), MOST_OF_A_BUILD);
        let mut last = Ok(());
        for number in 1000..1010 + MOST as u64 {
            last = begin(&mut issued, number, &rule, &number.to_string());
        }
        assert_eq!(last, Err(NoSession::Full));
        assert!(issued.list().len() <= MOST && issued.seen.len() <= MOST_SEEN);
    }
}
