//! Fingerprints of compiles: the parts of a key, one by one.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Digits of hashes: enough that two values never meet in one.
const DIGITS: usize = 16;
/// Hides nothing that is shorter: too much would be taken for a secret.
const LEAST_SECRET: usize = 6;

/// The parts of a key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Print {
    /// What the compiler says of itself, in one line.
    pub compiler: String,
    /// Version of sccache.
    pub sccache: String,
    /// The checkout, if the key holds its path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,
    /// `CARGO_HOME`, if the key holds its path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cargo_home: Option<String>,
    /// Variables by name.
    pub variables: BTreeMap<String, Value>,
    /// Flags in their order.
    pub flags: Vec<String>,
    /// Features and other `--cfg`, sorted.
    pub features: Vec<String>,
    /// Digests of dependencies by name; that of several of one name is of all.
    pub dependencies: BTreeMap<String, String>,
    /// Digests of source files by path, those of the registry left out: their version says as much.
    pub sources: BTreeMap<String, String>,
}

/// The value of a variable.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Value {
    /// As it is: of a variable that holds no secret.
    Plain(String),
    /// As a keyed hash.
    Hash(String),
}

impl Print {
    /// What names it: the same for the same parts of the same thing.
    pub fn id(&self, identity: &str) -> [u8; 16] {
        // Maps are sorted, so that there is one text of it.
        let text = serde_json::to_vec(&(identity, self)).unwrap_or_default();
        let mut id = [0; 16];
        id.copy_from_slice(&blake3::hash(&text).as_bytes()[..16]);
        id
    }
}

/// Folders that the key may hold, by which texts are made comparable.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Places {
    /// The checkout.
    pub root: String,
    /// Cargo's folder.
    pub cargo_home: String,
}

/// What a text held of [`Places`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    /// The checkout's path.
    pub root: bool,
    /// That of `CARGO_HOME`.
    pub cargo_home: bool,
}

impl Places {
    /// The text with names in the places of the two paths; notes which it held.
    pub fn shorten(&self, text: &str, held: &mut Held) -> String {
        let mut text = text.to_owned();
        // The one may lie in the other.
        let mut both = [
            (&self.root, "$ROOT", &mut held.root),
            (&self.cargo_home, "$CARGO_HOME", &mut held.cargo_home),
        ];
        both.sort_by_key(|(path, ..)| std::cmp::Reverse(path.len()));
        for (path, name, held) in both {
            // A path of one character would be found everywhere.
            if path.len() > 1 && text.contains(path.as_str()) {
                text = text.replace(path.as_str(), name);
                *held = true;
            }
        }
        text
    }
}

/// Makes hashes that only the journal's key makes again.
#[derive(Debug, Clone)]
pub struct Hasher {
    key: [u8; 32],
    /// Values that must not be seen in any text.
    secrets: Vec<String>,
}

impl Hasher {
    /// With the journal's key.
    pub fn new(key: [u8; 32]) -> Hasher {
        Hasher {
            key,
            secrets: Vec::new(),
        }
    }

    /// Hides the values of these variables wherever they are met, if they look like secrets by their names.
    pub fn hide<'a>(&mut self, variables: impl IntoIterator<Item = (&'a str, &'a str)>) {
        let secret = |(name, value): &(&str, &str)| is_secret(name) && value.len() >= LEAST_SECRET;
        let values = variables.into_iter().filter(secret);
        self.secrets
            .extend(values.map(|(_, value)| value.to_owned()));
        // The longer first, or a part of one would stay.
        self.secrets.sort_by_key(|one| std::cmp::Reverse(one.len()));
    }

    /// A keyed hash of a text.
    pub fn hash(&self, text: &str) -> String {
        blake3::keyed_hash(&self.key, text.as_bytes()).to_hex()[..DIGITS].to_owned()
    }

    /// A text that may be shown: what was to be hidden is replaced by its hash, and so are the value of what calls itself a
    /// secret and the users and passwords of URLs.
    pub fn shown(&self, text: &str) -> String {
        let (mut shown, secret) = match secret_value(text) {
            Some(at) => (text[..at].to_owned(), &text[at..]),
            None => (text.to_owned(), ""),
        };
        for secret in &self.secrets {
            if shown.contains(secret.as_str()) {
                shown = shown.replace(secret.as_str(), &format!("<{}>", self.hash(secret)));
            }
        }
        let mut shown = with_users(&shown, |user| format!("<{}>", self.hash(user)));
        if !secret.is_empty() {
            shown.push_str(&format!("<{}>", self.hash(secret)));
        }
        shown
    }

    /// The same for a command line, where a secret may be the word after its name.
    pub fn shown_words(&self, words: &[String]) -> Vec<String> {
        let mut is_named = false;
        let words = words.iter().map(|word| {
            // They hand on the next word.
            if word.starts_with("-X") {
                return self.shown(word);
            }
            let shown = match is_named {
                true => format!("<{}>", self.hash(word)),
                false => self.shown(word),
            };
            let names = word.starts_with('-') && !word.contains([' ', '=']);
            is_named = names && is_secret(word);
            shown
        });
        words.collect()
    }

    /// The value of a variable, as it may be kept.
    pub fn value(&self, name: &str, value: &str) -> Value {
        match is_plain(name) {
            true => Value::Plain(self.shown(value)),
            false => Value::Hash(self.hash(value)),
        }
    }
}

/// The digest of a file's bytes.
pub fn digest(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex()[..DIGITS].to_owned()
}

/// A text without the users and passwords of its URLs.
pub fn without_users(text: &str) -> String {
    with_users(text, |_| "***".to_owned())
}

/// A text with something else in the places of the users and passwords of its URLs.
fn with_users(text: &str, instead: impl Fn(&str) -> String) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        out.push_str(before);
        let is_end = |one: char| one.is_whitespace() || "/?#\"<>".contains(one);
        let authority = &after[..after.find(is_end).unwrap_or(after.len())];
        rest = match authority.rfind('@') {
            Some(at) => {
                out.push_str(&instead(&after[..at]));
                &after[at..]
            }
            None => after,
        };
    }
    out.push_str(rest);
    out
}

/// Where the value of what calls itself a secret begins: behind `--token=`, `--token ` or `"token":`.
fn secret_value(text: &str) -> Option<usize> {
    let mut begin = 0;
    for (at, one) in text.char_indices() {
        let name = &text[begin..at];
        let ends_name = match one {
            '=' => true,
            // `::` is in the names of lints.
            ':' => !text[at + 1..].starts_with([':', '/']),
            ',' => name.starts_with('-'),
            _ if one.is_whitespace() => name.starts_with('-'),
            _ => false,
        };
        if ends_name && is_secret(name) {
            return Some(at + one.len_utf8()).filter(|at| *at < text.len());
        }
        // A closing quote is no end of the name before a colon.
        let is_quoted = one == '"' && text[at + 1..].starts_with(':');
        if !is_quoted && (one.is_whitespace() || "=:,;&?\"'(){}[]/".contains(one)) {
            begin = at + one.len_utf8();
        }
    }
    None
}

/// Whether a name says that its value is to be kept to oneself.
pub fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    // Who has written it, and where a client's entries lie, is no secret.
    let name = name.replace("AUTHOR", "").replace("KEY_PREFIX", "");
    let parts = [
        "TOKEN",
        "SECRET",
        "PASSWORD",
        "PASSWD",
        "PASSPHRASE",
        "CREDENTIAL",
        "KEY",
        "AUTH",
        "COOKIE",
        "BEARER",
    ];
    let ends = ["_PASS", "-PASS", "_PWD", "-PWD"];
    parts.iter().any(|part| name.contains(part)) || ends.iter().any(|end| name.ends_with(end))
}

/// Whether the value of a variable of this name may be kept as it is.
fn is_plain(name: &str) -> bool {
    let known = [
        "CARGO_HOME",
        "CARGO_INCREMENTAL",
        "CARGO_MANIFEST_DIR",
        "CARGO_MANIFEST_PATH",
        "CARGO_PRIMARY_PACKAGE",
        "CARGO_TARGET_DIR",
        "CARGO_TERM_COLOR",
        "IPHONEOS_DEPLOYMENT_TARGET",
        "MACOSX_DEPLOYMENT_TARGET",
        "OUT_DIR",
    ];
    let families = ["CARGO_PKG_", "CARGO_PROFILE_", "CARGO_CFG_"];
    let is_known = known.contains(&name) || families.iter().any(|it| name.starts_with(it));
    is_known && !is_secret(name)
}

/// Whether a variable is part of the keys of Rust.
///
/// Source: `generate_hash_key` in `src/compiler/rust.rs` of sccache 0.19.0.
pub fn is_in_keys(name: &str) -> bool {
    name.starts_with("CARGO_")
        && !name.starts_with("CARGO_REGISTRIES_")
        && ![
            "CARGO_MAKEFLAGS",
            "CARGO_BUILD_JOBS",
            "CARGO_ENCODED_RUSTFLAGS",
        ]
        .contains(&name)
}

/// Whether a variable is part of the keys of C: by itself, or by the headers that are found.
///
/// Source: `CACHED_ENV_VARS` in `src/compiler/c.rs` and `src/compiler/preprocessor_cache.rs` of sccache 0.19.0.
pub fn is_in_keys_of_c(name: &str) -> bool {
    [
        "CCC_OVERRIDE_OPTIONS",
        "CPATH",
        "CPLUS_INCLUDE_PATH",
        "C_INCLUDE_PATH",
        "IPHONEOS_DEPLOYMENT_TARGET",
        "MACOSX_DEPLOYMENT_TARGET",
        "OBJCPLUS_INCLUDE_PATH",
        "OBJC_INCLUDE_PATH",
        "SCCACHE_C_CUSTOM_CACHE_BUSTER",
        "SDKROOT",
        "TVOS_DEPLOYMENT_TARGET",
        "WATCHOS_DEPLOYMENT_TARGET",
    ]
    .contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_checkout_and_cargo_home_get_names() {
        let places = Places {
            root: "/home/me/project".into(),
            cargo_home: "/home/me/project/.cargo".into(),
        };
        let mut held = Held::default();
        let text = "/home/me/project/.cargo/registry/x:/home/me/project/src";
        let shortened = places.shorten(text, &mut held);
        assert_eq!(shortened, "$CARGO_HOME/registry/x:$ROOT/src");
        assert_eq!(
            held,
            Held {
                root: true,
                cargo_home: true
            }
        );
        let mut held = Held::default();
        assert_eq!(places.shorten("/elsewhere", &mut held), "/elsewhere");
        assert_eq!(held, Held::default());
    }

    #[test]
    fn secrets_are_kept_as_hashes_and_are_hidden_in_texts() {
        let mut hasher = Hasher::new([7; 32]);
        hasher.hide([
            ("CARGO_REGISTRY_TOKEN", "hunter2hunter2"),
            ("SHORT_KEY", "abc"),
            ("CARGO_TERM_COLOR", "always"),
        ]);
        let value = hasher.value("CARGO_REGISTRY_TOKEN", "hunter2hunter2");
        assert!(
            matches!(&value, Value::Hash(hash) if hash.len() == DIGITS),
            "{value:?}"
        );
        assert_eq!(
            hasher.value("CARGO_TERM_COLOR", "always"),
            Value::Plain("always".into())
        );
        for text in [
            "--cfg token=\"hunter2hunter2\"",
            "-C link-arg=hunter2hunter2",
            "api_key=\"some\"",
            "-C link-arg=--password=some",
            "-C link-args=-O1 --password some -x",
            "-C link-arg=-Wl,--pass-phrase,-auth,some",
            "-DHEADER={\"auth\":\"some\"}",
            "-DURL=\"https://me:some@host/x\"",
            "registry = sparse+https://some@host, and http://me:so@me:some@other",
            "https://host/?api_token=some&x=1",
            "-C link-args=--token\u{a0}some",
        ] {
            let shown = hasher.shown(text);
            assert!(
                !shown.contains("hunter2") && !shown.contains("some"),
                "{shown}"
            );
        }
        for text in [
            "-C opt-level=3",
            "abc",
            "-W clippy::missing_key",
            "-W keys::all",
            "/home/monkey/project/src/lib.rs",
            "--remap-path-prefix /home/monkey/x=/src",
            "feature=\"std\"",
            "https://host/a@b",
        ] {
            assert_eq!(hasher.shown(text), text);
        }
        // The word's hash is that of the whole value, whatever else is known.
        let tail = hasher.hash("hunter2hunter2");
        assert_eq!(
            hasher.shown("--key=hunter2hunter2"),
            format!("--key=<{tail}>")
        );
        let words = [
            "--password",
            "some",
            "-Xlinker",
            "--token",
            "-Xlinker",
            "some",
            "-c",
        ];
        let words = hasher.shown_words(&words.map(str::to_owned));
        assert!(!words.iter().any(|word| word == "some"), "{words:?}");
        assert_eq!(
            (&*words[0], &*words[2], &*words[6]),
            ("--password", "-Xlinker", "-c")
        );
        for name in [
            "CARGO_PKG_AUTHORS",
            "SCCACHE_WEBDAV_KEY_PREFIX",
            "PWD",
            "-C passes",
        ] {
            assert!(!is_secret(name), "{name}");
        }
        let other = Hasher::new([8; 32]);
        assert_ne!(other.hash("x"), hasher.hash("x"), "it is keyed");
        assert!(matches!(
            hasher.value("CARGO_NET_RETRY", "1"),
            Value::Hash(_)
        ));
    }

    #[test]
    fn variables_of_keys_are_those_of_sccache() {
        for name in [
            "CARGO_TERM_COLOR",
            "CARGO_REGISTRY_TOKEN",
            "CARGO_INCREMENTAL",
        ] {
            assert!(is_in_keys(name), "{name}");
        }
        for name in [
            "CARGO_REGISTRIES_X_TOKEN",
            "CARGO",
            "PATH",
            "CARGO_BUILD_JOBS",
        ] {
            assert!(!is_in_keys(name), "{name}");
        }
    }

    #[test]
    fn equal_prints_have_one_id() {
        let print = Print {
            flags: vec!["-C opt-level=3".into()],
            ..Print::default()
        };
        assert_eq!(print.id("x"), print.clone().id("x"));
        assert_ne!(print.id("x"), print.id("y"));
        assert_ne!(print.id("x"), Print::default().id("x"));
    }
}
