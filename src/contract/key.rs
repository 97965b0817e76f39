//! Keys of blobs: a request's path is turned into a key before it reaches the store. Pure.
//!
//! A key is a path in canonical form, so that every spelling of one entry refers to the same blob. The part before the
//! entry is its namespace: `team/x/a/b/c/<64 hex>` belongs to `team/x`.
//!
//! Where a token chooses the namespace ([`Key::in_layer`]) and the path could not say it, two slashes stand between
//! both: `pr/42//ac/<64 hex>`. No path becomes such a key, because slashes collapse in paths.

use std::fmt;
use thiserror::Error;

/// The longest key, in bytes.
pub const MAX_KEY_BYTES: usize = 1024;
/// Maximum length of a namespace, in bytes of its folder's name (most file systems allow 255).
pub const MAX_NAMESPACE_BYTES: usize = 255;
/// Number of hexadecimal digits in an sccache key.
const ENTRY_DIGITS: usize = 64;
/// Between a namespace that a token chose and the entry.
const LAYER_END: &str = "//";
/// Number of bytes of the `a/b/c/` before them.
const ENTRY_FOLDERS: usize = 6;

/// A validated, canonical key: slashes are collapsed, and no part is empty, `.` or `..` or contains control characters.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Key {
    text: Box<str>,
    namespace_bytes: u16,
}

/// Why a text is not a valid key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum KeyError {
    /// Nothing but slashes.
    #[error("the key is empty")]
    Empty,
    /// Longer than [`MAX_KEY_BYTES`].
    #[error("the key is longer than {MAX_KEY_BYTES} bytes")]
    TooLong,
    /// The namespace is too long for a folder's name.
    #[error("the key's namespace is longer than {MAX_NAMESPACE_BYTES} bytes")]
    NamespaceTooLong,
    /// A part is `.` or `..`.
    #[error("the key has a part \".\" or \"..\"")]
    Dots,
    /// A NUL or another control character.
    #[error("the key has a control character")]
    Control,
    /// Not the 64 lower-case hexadecimal digits that sccache's own protocol uses.
    #[error("the key is not 64 lower-case hexadecimal digits")]
    NotHex,
}

impl Key {
    /// The key for a request's path, which the caller has percent-decoded.
    pub fn parse(path: &str) -> Result<Key, KeyError> {
        // Checked before anything is copied, because clients choose the length.
        if path.len() > 2 * MAX_KEY_BYTES {
            return Err(KeyError::TooLong);
        }
        if path.chars().any(char::is_control) {
            return Err(KeyError::Control);
        }
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        if parts.is_empty() {
            return Err(KeyError::Empty);
        }
        if parts.iter().any(|part| matches!(*part, "." | "..")) {
            return Err(KeyError::Dots);
        }
        Key::canonical(parts.join("/"))
    }

    /// The key of an entry that sccache's own protocol names by 64 hexadecimal digits: the same blob as WebDAV's
    /// `a/b/c/<64 hex>`.
    pub fn for_sccache(key: &str) -> Result<Key, KeyError> {
        let digits = entry_digits(key)?;
        Key::canonical(format!(
            "{}/{}/{}/{digits}",
            &digits[..1],
            &digits[1..2],
            &digits[2..3]
        ))
    }

    /// The key of `entry`, a request's path, in the namespace `layer`, empty for the default one. It is the key of the
    /// path `layer/entry` wherever that is in the namespace `layer` by itself.
    pub fn in_layer(layer: &str, entry: &str) -> Result<Key, KeyError> {
        let entry = Key::parse(entry)?;
        let entry = entry.as_str();
        let spelt = match layer {
            "" => Key::canonical(entry.to_owned())?,
            layer => Key::canonical(format!("{layer}/{entry}"))?,
        };
        // What begins with the name of the default namespace is an entry of that name here.
        let is_plain = spelt.namespace() == layer && namespace_of(spelt.as_str()) == layer;
        if is_plain {
            return Ok(spelt);
        }
        Key::with_namespace(format!("{layer}{LAYER_END}{entry}"), layer)
    }

    /// The key of the same sccache entry in the namespace `layer`, as [`Key::in_layer`] gives it. A lookup has one for each
    /// layer, so the text is not looked at again.
    pub fn entry_in_layer(&self, layer: &str) -> Result<Key, KeyError> {
        let entry = &self.text[self.text.len() - ENTRY_FOLDERS - ENTRY_DIGITS..];
        match layer {
            "" => Key::with_namespace(entry.to_owned(), ""),
            NAMELESS => Key::in_layer(layer, entry),
            layer => Key::with_namespace([layer, "/", entry].concat(), layer),
        }
    }

    /// The key that [`Key::as_str`] gave: of a path, or with a namespace that a token chose.
    pub fn from_canonical(text: &str) -> Result<Key, KeyError> {
        match text.split_once(LAYER_END) {
            Some((layer, entry)) => Key::in_layer(layer, entry),
            None => Key::parse(text),
        }
    }

    /// The key of another entry in the same namespace, whose name ends differently: `ac/x` becomes `cas/y`.
    pub fn beside(&self, end: &str, other: &str) -> Option<Key> {
        let start = self.text.strip_suffix(end)?;
        Key::from_canonical(&format!("{start}{other}")).ok()
    }

    /// Whether the path says the namespace. Only such keys have a place in another store.
    pub fn is_path(&self) -> bool {
        !self.text.contains(LAYER_END)
    }

    fn canonical(text: String) -> Result<Key, KeyError> {
        if text.len() > MAX_KEY_BYTES {
            return Err(KeyError::TooLong);
        }
        // Both names of the default namespace lead to the same entry.
        let text = match sccache_prefix(&text) {
            Some(NAMELESS) => text[NAMELESS.len() + 1..].to_owned(),
            Some(_) | None => text,
        };
        // A namespace can be purged by the name under which it is shown.
        let namespace = namespace_of_shown(namespace_of(&text)).to_owned();
        Key::with_namespace(text, &namespace)
    }

    /// `namespace` is what `text` begins with.
    fn with_namespace(text: String, namespace: &str) -> Result<Key, KeyError> {
        if text.len() > MAX_KEY_BYTES {
            return Err(KeyError::TooLong);
        }
        // Each lookup makes a key for each layer, whose names are short: a byte becomes at most three.
        let may_be_long = namespace.len() > MAX_NAMESPACE_BYTES / 3;
        if may_be_long && folder_name(namespace).len() > MAX_NAMESPACE_BYTES {
            return Err(KeyError::NamespaceTooLong);
        }
        let namespace_bytes = u16::try_from(namespace.len()).map_err(|_| KeyError::TooLong)?;
        Ok(Key {
            text: text.into_boxed_str(),
            namespace_bytes,
        })
    }

    /// The canonical text, without a leading slash.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The part before the entry, without leading and trailing slashes; empty for the default namespace, also if the
    /// key spells out its name.
    pub fn namespace(&self) -> &str {
        &self.text[..usize::from(self.namespace_bytes)]
    }

    /// Whether the key ends in `a/b/c/<64 hex>`, where `a`, `b` and `c` are the first three of the digits.
    pub fn is_sccache_entry(&self) -> bool {
        sccache_prefix(&self.text).is_some()
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn entry_digits(key: &str) -> Result<&str, KeyError> {
    if key.len() == ENTRY_DIGITS && key.bytes().all(is_lower_hex) {
        Ok(key)
    } else {
        Err(KeyError::NotHex)
    }
}

fn is_lower_hex(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

/// The name under which users see the namespace without a prefix.
const NAMELESS: &str = "default";

/// The name under which users see a namespace.
pub(crate) fn shown_namespace(namespace: &str) -> &str {
    if namespace.is_empty() {
        NAMELESS
    } else {
        namespace
    }
}

/// The namespace that users see under this name.
pub(crate) fn namespace_of_shown(name: &str) -> &str {
    if name == NAMELESS { "" } else { name }
}

/// The part before `a/b/c/<64 hex>`, if `text` ends like that.
fn sccache_prefix(text: &str) -> Option<&str> {
    let (before, digits) = text.split_at_checked(text.len().checked_sub(ENTRY_DIGITS)?)?;
    entry_digits(digits).ok()?;
    let (prefix, folders) = before.split_at_checked(before.len().checked_sub(ENTRY_FOLDERS)?)?;
    let expected = [&digits[..1], "/", &digits[1..2], "/", &digits[2..3], "/"];
    if folders
        .bytes()
        .ne(expected.iter().flat_map(|part| part.bytes()))
    {
        return None;
    }
    if prefix.is_empty() {
        Some(prefix)
    } else {
        prefix.strip_suffix('/')
    }
}

/// The namespace of a canonical key.
///
/// By default, ccache spreads its entries over 256 folders, `ab/<the other digits>`: these folders are not namespaces.
/// Bazel's `ac/<64 hex>` differs from that only in its length, and is a namespace.
fn namespace_of(text: &str) -> &str {
    if let Some(prefix) = sccache_prefix(text) {
        return prefix;
    }
    let Some((folder, rest)) = text.split_once('/') else {
        return "";
    };
    let spread = folder.len() == 2
        && folder.bytes().all(is_lower_hex)
        && rest.len() < ENTRY_DIGITS
        && rest
            .bytes()
            .all(|byte| byte.is_ascii_digit() || byte.is_ascii_lowercase());
    if spread { "" } else { folder }
}

/// Folder name of the default namespace; `@` is escaped in all others.
const DEFAULT_FOLDER: &str = "@default";
/// The characters that are escaped in a folder's name.
const ESCAPED: &percent_encoding::AsciiSet = &percent_encoding::NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.');

/// The folder name for a namespace.
pub(crate) fn folder_name(namespace: &str) -> String {
    if namespace.is_empty() {
        return DEFAULT_FOLDER.to_owned();
    }
    percent_encoding::utf8_percent_encode(namespace, ESCAPED).to_string()
}

/// The namespace for a folder name, or `None` if [`folder_name`] would never have created it.
pub(crate) fn namespace_of_folder(name: &str) -> Option<String> {
    if name == DEFAULT_FOLDER {
        return Some(String::new());
    }
    let namespace = percent_encoding::percent_decode_str(name)
        .decode_utf8()
        .ok()?
        .into_owned();
    (!namespace.is_empty() && folder_name(&namespace) == name).then_some(namespace)
}

#[cfg(test)]
mod tests;
