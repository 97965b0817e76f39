//! Parses the file of named tokens (`SCCACHE_TOKENS_FILE`) and reports all faults at once.
//!
//! ```toml
//! [[token]]
//! name = "ci-main"                 # shown in metrics, status and logs
//! token = "a long random text"
//! access = "write"                 # or "read"
//! namespaces = ["team", "docs"]    # only these; all where the key is missing
//! ```
//!
//! No message quotes a value that could be a token, because a token may have been entered in the wrong place, such as a
//! name.

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
/// Names of tokens that are set elsewhere.
pub const RESERVED: [&str; 3] = ["auth", "read", "anonymous"];
const KEYS: [&str; 4] = ["name", "token", "access", "namespaces"];

/// What a token allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grant {
    /// Read the cache, the metrics and the status.
    Read,
    /// Also change the cache.
    Write,
}

/// A token from the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// Unique in the file.
    pub name: String,
    /// The token itself.
    pub token: Secret,
    /// What it allows.
    pub access: Grant,
    /// The namespaces that it may use, including those below; `None` for all.
    pub namespaces: Option<Vec<String>>,
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

/// Parses the tokens in `text`, in order.
///
/// # Errors
/// Everything that is wrong with it.
pub fn parse(text: &str) -> Result<Vec<Named>, Faults> {
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
        // The error's own message quotes the line, which may contain a token.
        let at = error.span().map_or(0, |span| span.start);
        let line = text[..text.floor_char_boundary(at)].matches('\n').count() + 1;
        Faults(vec![format!("line {line} is no TOML")])
    })?;
    let mut faults = Vec::new();
    let mut tokens = Vec::new();
    for (key, value) in &table {
        match value {
            toml::Value::Array(entries) if key == "token" => {
                for (index, entry) in entries.iter().enumerate() {
                    match entry.as_table() {
                        Some(entry) => tokens.extend(named(index + 1, entry, &mut faults)),
                        None => faults.push(format!("token {} is no table", index + 1)),
                    }
                }
            }
            _ if key == "token" => faults.push("tokens are written as [[token]] tables".into()),
            _ => faults.push(format!(
                "there is a key beside the [[token]] tables ({} letters long)",
                key.chars().count()
            )),
        }
    }
    if tokens.len() > MOST {
        faults.push(format!("there are more than {MOST} tokens"));
    }
    let mut names = BTreeSet::new();
    for (index, one) in tokens.iter().enumerate() {
        let name = shown(&one.name);
        if !names.insert(one.name.as_str()) {
            faults.push(format!("two tokens are called {name}"));
        }
        if tokens[..index].iter().any(|other| other.token == one.token) {
            faults.push(format!("{name} is the same as another token"));
        }
    }
    if faults.is_empty() {
        Ok(tokens)
    } else {
        Err(Faults(faults))
    }
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
            "{who} has the name of a token that is set otherwise"
        ));
    }
    let token = string("token").unwrap_or_default();
    if token.len() < SHORTEST_TOKEN || !Secret::new(token).is_portable() {
        faults.push(format!(
            "{who} has no \"token\" of at least {SHORTEST_TOKEN} letters, digits and -._+/="
        ));
    }
    if token.len() > LONGEST_TOKEN {
        faults.push(format!(
            "{who} has a \"token\" of more than {LONGEST_TOKEN} letters"
        ));
    }
    let access = match string("access") {
        Some("read") => Grant::Read,
        Some("write") => Grant::Write,
        Some(_) | None => {
            faults.push(format!(
                "{who} has no \"access\" that is \"read\" or \"write\""
            ));
            Grant::Read
        }
    };
    let namespaces = entry.get("namespaces").map(namespaces);
    if namespaces == Some(None) {
        faults.push(format!(
            "{who} has \"namespaces\" that are no list of at least one folder such as \"team\" or \"team/main\""
        ));
    }
    if entry.keys().any(|key| !KEYS.contains(&key.as_str())) {
        faults.push(format!(
            "{who} has a key that is none of {}",
            KEYS.join(", ")
        ));
    }
    (faults.len() == before).then(|| Named {
        name: name.to_owned(),
        token: Secret::new(token),
        access,
        namespaces: namespaces.flatten(),
    })
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

/// Reads the tokens from the file at `path`.
///
/// # Errors
/// It cannot be read, or something is wrong with it. The message contains no token.
pub fn read(path: &Path) -> Result<Vec<Named>, String> {
    let fail = |cause: String| format!("cannot use the tokens in \"{}\": {cause}", path.display());
    let text = regular_file::read_to_string(path).map_err(|cause| fail(cause.to_string()))?;
    parse(&text).map_err(|faults| fail(faults.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GOOD: &str = "
        [[token]]
        name = 'ci'
        token = '0123456789abcdef-ci'
        access = 'write'
        namespaces = ['team', '/docs/main/']
        [[token]]
        name = 'laptop'
        token = '0123456789abcdef-laptop'
        access = 'read'
    ";

    #[test]
    fn tokens_are_read_in_their_order() {
        let tokens = parse(GOOD).unwrap();
        assert_eq!(
            (tokens[0].name.as_str(), tokens[0].access),
            ("ci", Grant::Write)
        );
        assert_eq!(
            tokens[0].namespaces.as_deref(),
            Some(&["team".to_owned(), "docs/main".to_owned()][..])
        );
        assert_eq!(
            (tokens[1].access, &tokens[1].namespaces),
            (Grant::Read, &None)
        );
        assert_eq!(tokens[1].token.reveal(), "0123456789abcdef-laptop");
        assert_eq!(parse("").unwrap(), []);
    }

    #[test]
    fn every_fault_is_named_and_no_value_is() {
        let entry = |rest: &str| format!("[[token]]\n{rest}");
        let whole = "name = 'a'\ntoken = 'hidden-hidden-hidden'\naccess = 'read'\n";
        for (text, word) in [
            (entry("name = 'hidden hidden'"), "token 1 has no name"),
            (entry("name = 'auth'"), "set otherwise"),
            (entry("name = 'a'\ntoken = 'hidden'"), "at least 16"),
            (
                entry("name = 'a'\naccess = 'hidden'"),
                "\"read\" or \"write\"",
            ),
            (entry(&format!("{whole}namespaces = 'hidden'")), "no list"),
            (
                entry(&format!("{whole}namespaces = ['../hidden']")),
                "no list",
            ),
            (
                entry(&format!("{whole}hidden = 1")),
                "a key that is none of",
            ),
            (entry(whole) + &entry(whole), "two tokens are called \"a\""),
            (entry(whole) + &entry(whole), "the same as another token"),
            (
                entry("name = 'hidden-hidden-hidden'\ntoken = 'ci'"),
                "(a name of 20 letters) has no \"token\"",
            ),
            (
                entry(&whole.replace("'a'", "'hidden-hidden-more'")).repeat(2),
                "two tokens are called a name of 18 letters",
            ),
            ("hidden = 1".to_owned(), "a key beside"),
            ("token = 'hidden'".to_owned(), "[[token]]"),
            ("\n\ntoken = 'hidden".to_owned(), "line 3 is no TOML"),
        ] {
            let said = parse(&text).unwrap_err().to_string();
            assert!(said.contains(word), "{said}");
            assert!(!said.contains("hidden"), "{said}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_judged(text in "\\PC{0,200}") {
            let _ = parse(&text);
        }
    }
}
