//! Who is known by an ID token of an issuer (OpenID Connect), such as a CI service's, and what for: text into checked rules.
//!
//! ```toml
//! [[issuer]]
//! name = "github"
//! url = "https://token.actions.githubusercontent.com"      # the claim "iss", to the letter
//! jwks = "https://token.actions.githubusercontent.com/.well-known/jwks"
//! audience = "https://build-cache.example.com"             # the claim "aud"
//!
//! [[rule]]
//! name = "pull-requests"
//! issuer = "github"
//! claims = { repository_id = "123", event_name = "pull_request" }
//! read = ["pr/${ref_number}", "main"]
//! write = "pr/${ref_number}"
//! ```
//!
//! The first rule that fits a token holds. Sources: OpenID Connect Core 1.0; GitHub's and GitLab's pages on the claims of
//! their tokens.

use super::claims::{IDENTITIES, PIPELINE_SOURCE, PROPOSED, REF_NUMBER, are_of_merge_requests};
use super::layers::{self, Layers, is_layer};
use super::templates::{self, is_open};
use super::{RESERVED, is_name};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Most issuers, and most rules.
const MOST: usize = 64;
/// How long a session is good where nothing is said.
const SESSION: Duration = Duration::from_secs(6 * 3600);
/// The longest session.
const LONGEST_SESSION: Duration = Duration::from_secs(24 * 3600);
/// How long the last keys are good while the issuer does not answer, where nothing is said.
const KEEP_KEYS: Duration = Duration::from_secs(24 * 3600);
/// Claims of which one says what has started the job, or where it is allowed to run. Without it a rule on a branch's name
/// would fit jobs that run with the default branch's name and a stranger's code.
const EVENTS: [&str; 4] = [
    "event_name",
    "environment",
    "job_workflow_ref",
    PIPELINE_SOURCE,
];
/// Claims of which each tells a pull or merge request from others, and from what is reviewed.
const OF_ONE_PROPOSAL: [&str; 5] = [REF_NUMBER, "ref", "head_ref", "run_id", "pipeline_id"];
/// Events that run with the default branch's claims and may check out a stranger's code.
const TREACHEROUS: [&str; 3] = ["pull_request_target", "workflow_run", "issue_comment"];

/// How an issuer signs; one way each, so that no token chooses a weaker one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// RSASSA-PKCS1-v1_5 with SHA-256, as GitHub and GitLab do.
    Rs256,
    /// RSASSA-PKCS1-v1_5 with SHA-512.
    Rs512,
    /// ECDSA on P-256.
    Es256,
    /// ECDSA on P-384.
    Es384,
}

impl Algorithm {
    const ALL: [Algorithm; 4] = [
        Algorithm::Rs256,
        Algorithm::Rs512,
        Algorithm::Es256,
        Algorithm::Es384,
    ];

    /// As in a token's header.
    pub fn name(self) -> &'static str {
        match self {
            Algorithm::Rs256 => "RS256",
            Algorithm::Rs512 => "RS512",
            Algorithm::Es256 => "ES256",
            Algorithm::Es384 => "ES384",
        }
    }
}

/// Who gives out ID tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issuer {
    /// For messages, and for rules.
    pub name: String,
    /// The claim `iss`.
    pub url: String,
    /// Where its keys are.
    pub jwks: String,
    /// The claim `aud`.
    pub audience: String,
    /// How it signs.
    pub algorithm: Algorithm,
    /// How long a session is good; `None` for as long as the token.
    pub session: Option<Duration>,
    /// How long the last keys are good while it does not answer.
    pub keep_keys: Duration,
}

/// What the holder of a token with these claims may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Unique among rules and tokens.
    pub name: String,
    /// An issuer's name.
    pub issuer: String,
    /// By name, the values of which each claim must have one.
    pub claims: BTreeMap<String, Vec<String>>,
    /// Names with placeholders, `${CLAIM}`.
    pub layers: Layers,
    /// Good for the scheduler too.
    pub distribute: bool,
}

const ISSUER_KEYS: [&str; 7] = [
    "name",
    "url",
    "jwks",
    "audience",
    "algorithm",
    "session",
    "keep_keys",
];
const RULE_KEYS: [&str; 4] = ["name", "issuer", "claims", "distribute"];

/// The issuer of a table, or what is wrong with it.
pub(super) fn issuer(table: &toml::Table) -> Result<Issuer, String> {
    only(table, &ISSUER_KEYS)?;
    let text = |key: &str| table.get(key).and_then(toml::Value::as_str);
    let span = |key: &str, otherwise: Duration| match text(key) {
        None if table.contains_key(key) => {
            Err(format!("has a \"{key}\" that is no span such as \"6h\""))
        }
        None => Ok(otherwise),
        Some(span) => humantime::parse_duration(span)
            .ok()
            .filter(|span| !span.is_zero())
            .ok_or_else(|| format!("has a \"{key}\" that is no span such as \"6h\"")),
    };
    let url = text("url").filter(|url| is_url(url));
    let jwks = text("jwks").filter(|url| is_url(url));
    let algorithm = text("algorithm").unwrap_or(Algorithm::Rs256.name());
    let session = match text("session") {
        Some("token") => None,
        _ => Some(span("session", SESSION)?),
    };
    if session.is_some_and(|session| session > LONGEST_SESSION) {
        return Err("has a \"session\" of more than a day".to_owned());
    }
    Ok(Issuer {
        name: name(table)?,
        url: url
            .ok_or("has no \"url\" that begins with https://")?
            .to_owned(),
        jwks: jwks
            .ok_or("has no \"jwks\", the https:// address of its keys")?
            .to_owned(),
        audience: text("audience")
            .filter(|audience| !audience.is_empty())
            .ok_or("has no \"audience\", for which its tokens are made")?
            .to_owned(),
        algorithm: Algorithm::ALL
            .into_iter()
            .find(|one| one.name() == algorithm)
            .ok_or("has an \"algorithm\" that is none of RS256, RS512, ES256 and ES384")?,
        session,
        keep_keys: span("keep_keys", KEEP_KEYS)?,
    })
}

/// The rule of a table, or what is wrong with it.
pub(super) fn rule(table: &toml::Table) -> Result<Rule, String> {
    only(table, &[&RULE_KEYS[..], &layers::KEYS].concat())?;
    let layers = Layers::parse(table, is_template);
    let rule = Rule {
        name: name(table)?,
        issuer: table
            .get("issuer")
            .and_then(toml::Value::as_str)
            .ok_or("has no \"issuer\"")?
            .to_owned(),
        claims: claims(table)?,
        layers: layers.unwrap_or_else(|| Err("has no \"read\"".to_owned()))?,
        distribute: match table.get("distribute") {
            None => false,
            Some(value) => value
                .as_bool()
                .ok_or("has a \"distribute\" that is not true or false")?,
        },
    };
    if RESERVED.contains(&rule.name.as_str()) {
        return Err(format!(
            "has a \"name\" that stands for something else: {}",
            RESERVED.join(", ")
        ));
    }
    if let Some(name) = rule.layers.read.iter().find(|name| is_open(name)) {
        return Err(format!(
            "lets a claim choose the first folder of \"{name}\", and with it whose namespace that is: write a folder before it, \
             such as \"branch/{name}\""
        ));
    }
    if rule.layers.write.is_some() || rule.distribute {
        check_writer(&rule)?;
    }
    Ok(rule)
}

/// A rule that lets somebody write must leave no doubt about who that is.
fn check_writer(rule: &Rule) -> Result<(), String> {
    let names = |known: &[&str]| known.iter().any(|claim| rule.claims.contains_key(*claim));
    if !names(&EVENTS) {
        return Err(format!(
            "writes, but its claims name none of {}: a job that runs a stranger's code (pull_request_target, \
             workflow_run) has the default branch's \"ref\" too",
            EVENTS.join(", ")
        ));
    }
    if !names(&IDENTITIES) {
        return Err(format!(
            "writes, but its claims name none of {}: a name can be somebody else's later",
            IDENTITIES.join(", ")
        ));
    }
    let events = rule.claims.get("event_name").into_iter().flatten();
    if let Some(event) = events
        .into_iter()
        .find(|event| TREACHEROUS.contains(&event.as_str()))
    {
        return Err(format!(
            "writes for the event {event}, in which a stranger's code may run with the default branch's claims"
        ));
    }
    let proposed = PROPOSED.iter().find(|(claim, value)| {
        let mut values = rule.claims.get(*claim).into_iter().flatten();
        values.any(|it| it == value)
    });
    if let Some((_, event)) = proposed
        && rule.layers.write.is_some()
        && !rule.layers.is_branch()
        && !is_apart(rule)
    {
        return Err(format!(
            "writes for the event {event} what is read last, as if it were reviewed: write a namespace of its own, such as \
             \"mr/${{ref}}\", and read another one behind it"
        ));
    }
    Ok(())
}

/// Whether a claim keeps what each pull or merge request writes apart.
fn is_apart(rule: &Rule) -> bool {
    let write = rule.layers.write.as_deref().unwrap_or_default();
    let claims = templates::claims(write);
    let has_others =
        rule.claims.contains_key(PIPELINE_SOURCE) && !are_of_merge_requests(&rule.claims);
    claims.iter().any(|claim| OF_ONE_PROPOSAL.contains(claim)) && !has_others
}

/// What is wrong with issuers and rules beside each other and beside tokens of these names.
pub(super) fn check_together(
    issuers: &[Issuer],
    rules: &[Rule],
    tokens: &BTreeSet<&str>,
    faults: &mut Vec<String>,
) {
    if issuers.len() > MOST || rules.len() > MOST {
        faults.push(format!("there are more than {MOST} issuers or rules"));
    }
    let mut seen = BTreeSet::new();
    let mut urls = BTreeSet::new();
    for one in issuers {
        if !seen.insert(&one.name) || !urls.insert(&one.url) {
            faults.push(format!(
                "two issuers are called \"{}\", or have its url",
                one.name
            ));
        }
    }
    let mut names = tokens.clone();
    for one in rules {
        if !names.insert(&one.name) {
            faults.push(format!(
                "the rule \"{}\" has the name of another rule or token",
                one.name
            ));
        }
        if !seen.contains(&one.issuer) {
            faults.push(format!(
                "the rule \"{}\" has an \"issuer\" that is not here",
                one.name
            ));
        }
    }
}

fn only(table: &toml::Table, known: &[&str]) -> Result<(), String> {
    if table.keys().any(|key| !known.contains(&key.as_str())) {
        return Err(format!("has a key that is none of {}", known.join(", ")));
    }
    Ok(())
}

fn name(table: &toml::Table) -> Result<String, String> {
    let name = table.get("name").and_then(toml::Value::as_str);
    let name = name.filter(|name| is_name(name));
    Ok(name
        .ok_or("has no \"name\" of letters, digits, \".\", \"_\" and \"-\"")?
        .to_owned())
}

fn claims(table: &toml::Table) -> Result<BTreeMap<String, Vec<String>>, String> {
    let fault = "has no \"claims\", a table of texts or lists of texts";
    let claims = table
        .get("claims")
        .and_then(toml::Value::as_table)
        .ok_or(fault)?;
    let text = |value: &toml::Value| match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Boolean(flag) => Some(flag.to_string()),
        _ => None,
    };
    let values = |value: &toml::Value| match value {
        toml::Value::Array(list) => list.iter().map(text).collect(),
        one => Some(vec![text(one)?]),
    };
    let claims: Option<BTreeMap<String, Vec<String>>> = claims
        .iter()
        .map(|(name, value)| {
            let values: Vec<String> = values(value)?;
            (!values.is_empty()).then(|| (name.clone(), values))
        })
        .collect();
    Ok(claims.filter(|claims| !claims.is_empty()).ok_or(fault)?)
}

/// Over TLS, or from this machine.
fn is_url(url: &str) -> bool {
    let rest = url.strip_prefix("https://").or_else(|| {
        let rest = url.strip_prefix("http://")?;
        let host = rest.split('/').next().unwrap_or_default();
        let host = host.rsplit_once(':').map_or(host, |(host, _)| host);
        ["127.0.0.1", "localhost", "[::1]"]
            .contains(&host)
            .then_some(rest)
    });
    let is_plain = |byte: u8| byte.is_ascii_graphic() && byte != b'@';
    rest.is_some_and(|rest| !rest.is_empty() && rest.bytes().all(is_plain))
}

/// A layer's name in which placeholders may stand for parts of folders.
fn is_template(template: &str) -> bool {
    fill(template, |_| Some("x".to_owned())).is_some_and(|name| is_layer(&name))
}

/// Puts values in the place of `${NAME}`; `None` where one is missing, or a placeholder has no end.
pub fn fill(template: &str, value: impl Fn(&str) -> Option<String>) -> Option<String> {
    let mut filled = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("${") {
        let (name, behind) = after.split_once('}')?;
        filled.push_str(before);
        filled.push_str(&value(name)?);
        rest = behind;
    }
    filled.push_str(rest);
    Some(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(text: &str) -> toml::Table {
        text.parse().unwrap()
    }

    const ISSUER: &str = "name = 'github'\nurl = 'https://issuer.example'\njwks = 'https://issuer.example/keys'\n\
                          audience = 'cache'\n";

    #[test]
    fn issuer_is_read_with_what_holds_where_nothing_is_said() {
        let issuer = issuer(&table(ISSUER)).unwrap();
        assert_eq!(issuer.algorithm, Algorithm::Rs256);
        assert_eq!(
            (issuer.session, issuer.keep_keys),
            (Some(SESSION), KEEP_KEYS)
        );
        let gitlab = format!("{ISSUER}session = 'token'\nkeep_keys = '2h'\nalgorithm = 'ES256'");
        let gitlab = super::issuer(&table(&gitlab)).unwrap();
        assert_eq!((gitlab.session, gitlab.algorithm), (None, Algorithm::Es256));
    }

    #[test]
    fn faults_of_an_issuer_are_named() {
        for (text, word) in [
            (
                ISSUER.replace("https://issuer.example/keys", "http://issuer.example/keys"),
                "no \"jwks\"",
            ),
            (
                ISSUER.replace("https://issuer.example/keys", "https://user@issuer.example"),
                "no \"jwks\"",
            ),
            (ISSUER.replace("'cache'", "''"), "no \"audience\""),
            (format!("{ISSUER}algorithm = 'HS256'"), "none of RS256"),
            (format!("{ISSUER}algorithm = 'none'"), "none of RS256"),
            (format!("{ISSUER}session = '2 days'"), "more than a day"),
            (format!("{ISSUER}session = 5"), "no span"),
            (format!("{ISSUER}secret = 5"), "a key that is none of"),
        ] {
            assert!(issuer(&table(&text)).unwrap_err().contains(word), "{text}");
        }
        let local = ISSUER.replace("https://issuer.example/keys", "http://127.0.0.1:9/keys");
        assert!(issuer(&table(&local)).is_ok());
        let feigned = ISSUER.replace(
            "https://issuer.example/keys",
            "http://127.0.0.1.evil.org/keys",
        );
        assert!(issuer(&table(&feigned)).is_err());
    }

    #[test]
    fn rule_that_writes_says_whose_and_which_jobs() {
        let rule = |claims: &str, rest: &str| {
            super::rule(&table(&format!(
                "name = 'r'\nissuer = 'i'\nclaims = {{{claims}}}\n{rest}"
            )))
        };
        let write = "read = ['main']\nwrite = 'main'";
        let read = "read = ['main']";
        for (claims, rest, word) in [
            (
                "ref = 'refs/heads/main', repository_id = '1'",
                write,
                "name none of event_name",
            ),
            (
                "event_name = 'push', repository = 'o/r'",
                write,
                "name none of repository_id",
            ),
            (
                "event_name = ['push', 'pull_request_target'], repository_id = 1",
                write,
                "pull_request_target",
            ),
            (
                "event_name = 'workflow_run', repository_id = 1",
                write,
                "workflow_run",
            ),
            (
                "event_name = ['push', 'pull_request'], repository_id = 1",
                write,
                "for the event pull_request what is read last",
            ),
            (
                "project_id = 7, ref = 'main', pipeline_source = 'merge_request_event'",
                write,
                "for the event merge_request_event what is read last",
            ),
            // Its namespace is the same for all proposals, or a branch's with the same name too.
            (
                "event_name = 'pull_request', repository_id = 1",
                "read = ['pr/${repository_id}']\nwrite = 'pr/${repository_id}'",
                "what is read last",
            ),
            (
                "event_name = 'pull_request', repository_id = 1",
                "read = ['pr/${workflow}']\nwrite = 'pr/${workflow}'",
                "what is read last",
            ),
            (
                "project_id = 7, pipeline_source = ['push', 'merge_request_event']",
                "read = ['branch/${ref}']\nwrite = 'branch/${ref}'",
                "what is read last",
            ),
            (
                "repository = 'o/r'",
                "read = ['main']\ndistribute = true",
                "name none of event_name",
            ),
            ("", read, "no \"claims\""),
            ("sub = []", read, "no \"claims\""),
            ("sub = { a = 1 }", read, "no \"claims\""),
            ("sub = 'x'", "", "no \"read\""),
            (
                "sub = 'x'",
                "read = ['${https://corp/branch}', 'main']",
                "a claim choose the first folder",
            ),
            ("sub = 'x'", "read = ['pr/${x']", "no list"),
            ("sub = 'x'", "read = ['a/${x}/../main']", "no list"),
            (
                "sub = 'x'",
                "read = ['${x}', 'main']",
                "a claim choose the first folder",
            ),
            (
                "sub = 'x'",
                "read = ['p${x}/a', 'main']",
                "a claim choose the first folder",
            ),
        ] {
            let fault = rule(claims, rest).unwrap_err();
            assert!(fault.contains(word), "{claims}: {fault}");
        }
        for (claims, rest) in [
            (
                "event_name = 'push', ref = 'refs/heads/main', repository_id = 1",
                write,
            ),
            ("environment = 'release', repository_id = 1", write),
            (
                "project_id = 7, ref_protected = true, pipeline_source = ['push', 'web']",
                write,
            ),
            ("repository = 'o/r'", read),
            (
                "project_id = 7, pipeline_source = 'merge_request_event'",
                "read = ['mr/${ref}', 'main']\nwrite = 'mr/${ref}'",
            ),
            (
                "event_name = 'pull_request', repository_id = 1",
                "read = ['pr/${ref_number}', 'main']\nwrite = 'pr/${ref_number}'",
            ),
            (
                "event_name = 'pull_request', repository_id = 1",
                "read = ['pr/${ref_number}']\nwrite = 'pr/${ref_number}'",
            ),
            (
                "event_name = ['push', 'pull_request'], repository_id = 1",
                "read = ['main', 'branch/${ref}']\nwrite = 'branch/${ref}'",
            ),
            (
                "project_id = 7, pipeline_source = 'merge_request_event'",
                "read = ['mr/${ref}']\nwrite = 'mr/${ref}'",
            ),
            (
                "repository_owner_id = 7",
                "read = ['${repository_id}/main', '${repository_id}']",
            ),
        ] {
            assert!(
                rule(claims, rest).is_ok(),
                "{claims}: {:?}",
                rule(claims, rest)
            );
        }
    }

    #[test]
    fn placeholders_are_filled() {
        let value = |name: &str| (name == "a").then(|| "1".to_owned());
        assert_eq!(fill("pr/${a}-${a}/x", value).as_deref(), Some("pr/1-1/x"));
        assert_eq!(fill("main", value).as_deref(), Some("main"));
        for wrong in ["${b}", "${a", "x${"] {
            assert_eq!(fill(wrong, value), None, "{wrong}");
        }
    }
}
