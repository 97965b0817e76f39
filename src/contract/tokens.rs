//! Parses the file of named tokens (`SCCACHE_TOKENS_FILE`) and reports all faults at once.
//!
//! ```toml
//! [[token]]
//! name = "ci-main"                 # shown in metrics, status and logs
//! token = "a long random text"
//! access = "write"                 # or "read", or "build" for builders of the cluster
//! namespaces = ["team", "docs"]    # only these; all where the key is missing
//!
//! [[token]]
//! name = "pr-42"
//! token = "another long random text"
//! read = ["pr/42", "main"]         # in this order, whatever the path says; in place of access and namespaces
//! write = "pr/42"
//!
//! [[token]]
//! name = "rack-7"
//! certificate = "builder-7.example.com"     # in place of a token: of an authority in SCCACHE_TLS_CLIENT_CA
//! access = "build"
//!
//! [[local]]                        # sccache's own protocol, which has no tokens
//! uid = 1000                       # on the socket; without it all others, and the port
//! read = ["main"]
//!
//! [anonymous]                      # those who need no token, where there are such
//! read = ["main"]
//! ```
//!
//! No message quotes a value that could be a token, because a token may have been entered in the wrong place, such as a
//! name.

pub(crate) mod claims;
pub mod layers;
pub mod rules;
mod templates;

pub use self::layers::Layers;
pub use self::rules::{Issuer, Rule};

use self::layers::is_layer;
use crate::base::regular_file;
use crate::base::secret::Secret;
use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

/// Maximum number of tokens in the file: each has its own counters, and each request is compared with all of them.
pub const MOST: usize = 256;
/// Maximum length of a name, which is a label in the metrics.
const LONGEST_NAME: usize = 64;
/// Minimum length of a token; short ones could be guessed.
const SHORTEST_TOKEN: usize = 16;
/// Maximum length of a token, which is sent with each request.
pub const LONGEST_TOKEN: usize = 4096;
/// Maximum length of a certificate's name.
const LONGEST_CERTIFICATE: usize = 255;
/// Names that stand for something else where somebody is named: tokens that are set elsewhere, local users, and the lanes
/// and the unknown that blobs were written by.
pub const RESERVED: [&str; 9] = [
    "auth",
    "read",
    "anonymous",
    "local",
    "webdav",
    "ipc",
    "socket",
    "upstream",
    "unknown",
];
const KEYS: [&str; 9] = [
    "name",
    "token",
    "certificate",
    "access",
    "namespaces",
    "read",
    "write",
    "replace",
    "distribute",
];
/// Most users of the socket with layers of their own.
const MOST_LOCAL: usize = 256;

/// All that the file says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TokensFile {
    /// In its order.
    pub tokens: Vec<Named>,
    /// Who speaks sccache's own protocol.
    pub local: Vec<Local>,
    /// Those who need no token; all namespaces where it is missing.
    pub anonymous: Option<Layers>,
    /// Whose ID tokens are taken.
    pub issuers: Vec<Issuer>,
    /// What for; the first that fits holds.
    pub rules: Vec<Rule>,
}

/// What a user of the socket, or everybody else who speaks sccache's own protocol, reads and writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Local {
    /// On the socket; `None` for all others, and for the port.
    pub uid: Option<u32>,
    /// What it reads and writes.
    pub layers: Layers,
}

/// What a token allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grant {
    /// Read the cache, the metrics and the status.
    Read,
    /// Also change the cache.
    Write,
    /// Joins the cluster as a builder, and nothing else.
    Build,
}

/// How somebody is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proof {
    /// By the token itself.
    Token(Secret),
    /// By a client certificate with this name: a DNS name or URI of its subject's alternative names, or the common name of
    /// one that has none of these. It must be the same to the letter.
    Certificate(String),
}

impl Named {
    /// The token itself, where there is one.
    pub fn token(&self) -> Option<&Secret> {
        match &self.proof {
            Proof::Token(token) => Some(token),
            Proof::Certificate(_) => None,
        }
    }
}

/// A token from the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// Unique in the file.
    pub name: String,
    /// How its holder is known.
    pub proof: Proof,
    /// What it allows.
    pub access: Grant,
    /// The namespaces that it may use, including those below; `None` for all.
    pub namespaces: Option<Vec<String>>,
    /// In place of namespaces that the path chooses.
    pub layers: Option<Layers>,
    /// Entries that must not change may be replaced.
    pub replace: bool,
    /// Good for the scheduler, although it is good for some namespaces only.
    pub distribute: bool,
}

/// Everything that is wrong with the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Faults(pub Vec<String>);

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("; "))
    }
}

impl std::error::Error for Faults {}

/// Parses the text of the file.
///
/// # Errors
/// Everything that is wrong with it.
pub fn parse(text: &str) -> Result<TokensFile, Faults> {
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
        // The error's own message quotes the line, which may contain a token.
        let at = error.span().map_or(0, |span| span.start);
        let line = text[..text.floor_char_boundary(at)].matches('\n').count() + 1;
        Faults(vec![format!("line {line} is no TOML")])
    })?;
    let mut faults = Vec::new();
    let mut file = TokensFile::default();
    for (key, value) in &table {
        match (key.as_str(), value) {
            ("token", toml::Value::Array(entries)) => {
                for (number, entry) in (1..).zip(entries) {
                    match entry.as_table() {
                        Some(entry) => file.tokens.extend(named(number, entry, &mut faults)),
                        None => faults.push(format!("token {number} is no table")),
                    }
                }
            }
            ("local", toml::Value::Array(entries)) => {
                file.local = tables("local", entries, local, &mut faults);
            }
            ("issuer", toml::Value::Array(entries)) => {
                file.issuers = tables("issuer", entries, rules::issuer, &mut faults);
            }
            ("rule", toml::Value::Array(entries)) => {
                file.rules = tables("rule", entries, rules::rule, &mut faults);
            }
            ("anonymous", toml::Value::Table(entry)) => match anonymous(entry) {
                Ok(layers) => file.anonymous = Some(layers),
                Err(fault) => faults.push(format!("anonymous {fault}")),
            },
            ("token" | "local" | "issuer" | "rule", _) => {
                faults.push(format!("{key}s are written as [[{key}]] tables"));
            }
            ("anonymous", _) => faults.push("anonymous is written as [anonymous] table".into()),
            _ => faults.push(format!(
                "there is a key beside the [[token]] tables ({} letters long)",
                key.chars().count()
            )),
        }
    }
    check_together(&file, &mut faults);
    if faults.is_empty() {
        Ok(file)
    } else {
        Err(Faults(faults))
    }
}

/// What `read` makes of each table.
fn tables<T>(
    kind: &str,
    entries: &[toml::Value],
    read: impl Fn(&toml::Table) -> Result<T, String>,
    faults: &mut Vec<String>,
) -> Vec<T> {
    let mut all = Vec::new();
    for (number, entry) in (1..).zip(entries) {
        let entry = entry.as_table().ok_or_else(|| "is no table".to_owned());
        match entry.and_then(&read) {
            Ok(one) => all.push(one),
            Err(fault) => faults.push(format!("{kind} {number} {fault}")),
        }
    }
    all
}

/// What is wrong with entries beside each other.
fn check_together(file: &TokensFile, faults: &mut Vec<String>) {
    let tokens = &file.tokens;
    if tokens.len() > MOST {
        faults.push(format!("there are more than {MOST} tokens"));
    }
    let mut names = BTreeSet::new();
    for (index, one) in tokens.iter().enumerate() {
        let name = shown(&one.name);
        if !names.insert(one.name.as_str()) {
            faults.push(format!("two tokens are called {name}"));
        }
        if tokens[..index].iter().any(|other| other.proof == one.proof) {
            let what = match one.proof {
                Proof::Token(_) => "token",
                Proof::Certificate(_) => "certificate",
            };
            faults.push(format!("{name} is the same as another {what}"));
        }
    }
    rules::check_together(&file.issuers, &file.rules, &names, faults);
    templates::check_namespaces(file, faults);
    if file.local.len() > MOST_LOCAL {
        faults.push(format!("there are more than {MOST_LOCAL} [[local]] tables"));
    }
    let uids: BTreeSet<Option<u32>> = file.local.iter().map(|one| one.uid).collect();
    if uids.len() < file.local.len() {
        faults.push("two [[local]] tables are for the same users".into());
    }
}

fn local(entry: &toml::Table) -> Result<Local, String> {
    let uid = match entry.get("uid") {
        None => None,
        Some(uid) => {
            let uid = uid.as_integer().and_then(|uid| u32::try_from(uid).ok());
            Some(uid.ok_or("has a \"uid\" that is no number of a user")?)
        }
    };
    let layers = only_layers(entry, &["uid"])?;
    Ok(Local { uid, layers })
}

fn anonymous(entry: &toml::Table) -> Result<Layers, String> {
    let layers = only_layers(entry, &[])?;
    match layers.write {
        Some(_) => Err("has a \"write\", which takes a token".to_owned()),
        None => Ok(layers),
    }
}

/// The layers of a table that has nothing beside them and `others`.
fn only_layers(entry: &toml::Table, others: &[&str]) -> Result<Layers, String> {
    let known = |key: &str| layers::KEYS.contains(&key) || others.contains(&key);
    if entry.keys().any(|key| !known(key)) {
        let known = [&layers::KEYS[..], others].concat();
        return Err(format!("has a key that is none of {}", known.join(", ")));
    }
    let layers = Layers::parse(entry, is_layer);
    layers.unwrap_or_else(|| Err("has no \"read\"".to_owned()))
}

fn named(number: usize, entry: &toml::Table, faults: &mut Vec<String>) -> Option<Named> {
    let before = faults.len();
    let string = |key: &str| entry.get(key).and_then(toml::Value::as_str);
    let name = string("name").unwrap_or_default();
    let who = if is_name(name) {
        format!("token {number} ({})", shown(name))
    } else {
        faults.push(format!(
            "token {number} has no name of 1 to {LONGEST_NAME} letters, digits, \".\", \"_\" and \"-\""
        ));
        format!("token {number}")
    };
    if RESERVED.contains(&name) {
        faults.push(format!(
            "{who} has a name that stands for something else: {}",
            RESERVED.join(", ")
        ));
    }
    let proof = proof(entry).unwrap_or_else(|fault| {
        faults.push(format!("{who} {fault}"));
        Proof::Certificate(String::new())
    });
    let layers = match Layers::parse(entry, is_layer) {
        None => None,
        Some(Ok(layers)) => Some(layers),
        Some(Err(fault)) => {
            faults.push(format!("{who} {fault}"));
            Some(Layers::default())
        }
    };
    let access = match (string("access"), &layers) {
        (None, Some(layers)) if layers.write.is_some() => Grant::Write,
        (None, Some(_)) | (Some("read"), None) => Grant::Read,
        (Some("write"), None) => Grant::Write,
        (Some("build"), None) => Grant::Build,
        (Some(_), Some(_)) => {
            faults.push(format!(
                "{who} has an \"access\" beside its \"read\" and \"write\", which say all"
            ));
            Grant::Read
        }
        (Some(_) | None, None) => {
            faults.push(format!(
                "{who} has no \"access\" that is \"read\", \"write\" or \"build\""
            ));
            Grant::Read
        }
    };
    let namespaces = entry.get("namespaces").map(namespaces);
    if namespaces.is_some() && layers.is_some() {
        faults.push(format!(
            "{who} has \"namespaces\" beside its \"read\" and \"write\", which say all"
        ));
    }
    if namespaces == Some(None) {
        faults.push(format!(
            "{who} has \"namespaces\" that are no list of at least one folder such as \"team\" or \"team/main\""
        ));
    }
    let mut flag = |key: &str| match entry.get(key) {
        None => false,
        Some(toml::Value::Boolean(flag)) => *flag,
        Some(_) => {
            faults.push(format!("{who} has a \"{key}\" that is not true or false"));
            false
        }
    };
    let (replace, distribute) = (flag("replace"), flag("distribute"));
    if replace && access == Grant::Read {
        faults.push(format!("{who} may \"replace\" what it may not write"));
    }
    if entry.keys().any(|key| !KEYS.contains(&key.as_str())) {
        faults.push(format!(
            "{who} has a key that is none of {}",
            KEYS.join(", ")
        ));
    }
    (faults.len() == before).then(|| Named {
        name: name.to_owned(),
        proof,
        access,
        namespaces: namespaces.flatten(),
        layers,
        replace,
        distribute,
    })
}

fn proof(entry: &toml::Table) -> Result<Proof, String> {
    let string = |key: &str| entry.get(key).and_then(toml::Value::as_str);
    if entry.contains_key("certificate") {
        if entry.contains_key("token") {
            return Err("has a \"certificate\" beside its \"token\": write two tables".into());
        }
        let name = string("certificate").unwrap_or_default();
        let is_plain = |name: &str| !name.contains(|c: char| c.is_control() || c.is_whitespace());
        if name.is_empty() || name.len() > LONGEST_CERTIFICATE || !is_plain(name) {
            return Err(
                "has a \"certificate\" that is no name in one, such as \"builder-7.example.com\""
                    .into(),
            );
        }
        return Ok(Proof::Certificate(name.to_owned()));
    }
    let token = string("token").unwrap_or_default();
    if token.len() < SHORTEST_TOKEN || !Secret::new(token).is_portable() {
        return Err(format!(
            "has no \"token\" of at least {SHORTEST_TOKEN} letters, digits and -._+/="
        ));
    }
    if token.len() > LONGEST_TOKEN {
        return Err(format!(
            "has a \"token\" of more than {LONGEST_TOKEN} letters"
        ));
    }
    Ok(Proof::Token(Secret::new(token)))
}

/// A name for use in a message; texts long enough to be a token are not shown.
fn shown(name: &str) -> String {
    if name.len() < SHORTEST_TOKEN {
        format!("\"{name}\"")
    } else {
        format!("a name of {} letters", name.len())
    }
}

fn is_name(name: &str) -> bool {
    (1..=LONGEST_NAME).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

fn namespaces(value: &toml::Value) -> Option<Vec<String>> {
    let list = value.as_array().filter(|list| !list.is_empty())?;
    list.iter()
        .map(|one| {
            let name = one.as_str()?.trim_matches('/');
            let is_folder = |part: &str| !part.is_empty() && part != "." && part != "..";
            let fits = name.split('/').all(is_folder) && !name.chars().any(char::is_control);
            fits.then(|| name.to_owned())
        })
        .collect()
}

/// Reads the file at `path`.
///
/// # Errors
/// It cannot be read, or something is wrong with it. The message contains no token.
pub fn read(path: &Path) -> Result<TokensFile, String> {
    let fail = |cause: String| format!("cannot use the tokens in \"{}\": {cause}", path.display());
    let text = regular_file::read_to_string(path).map_err(|cause| fail(cause.to_string()))?;
    parse(&text).map_err(|faults| fail(faults.to_string()))
}

#[cfg(test)]
mod tests;
