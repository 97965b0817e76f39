//! A string that must never reach a log, an error message or a debug print.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A token. `Debug` and `Display` print `***`; only [`Secret::reveal`] returns the text.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps `text` without surrounding white space, such as the newline at the end of a secret's file.
    pub fn new(text: &str) -> Secret {
        Secret(text.trim().to_owned())
    }

    /// Whether every format of `client-env`, and every shell that reads it, carries the text unchanged.
    ///
    /// This is a subset of the bearer tokens of RFC 6750 (section 2.1), without `~`, which shells expand.
    pub fn is_portable(&self) -> bool {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._+/=".contains(&byte);
        self.0.bytes().all(is_plain)
    }

    /// Returns the text, for sending and for files of mode 0600.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secret_is_never_printed() {
        let secret = Secret::new("hunter2\n");
        assert_eq!(format!("{secret} {secret:?}"), "*** ***");
        assert_eq!(secret.reveal(), "hunter2");
    }

    #[test]
    fn text_that_a_shell_or_an_env_file_would_change_is_not_portable() {
        for text in ["0123456789abcdef", "aB3+/x==", "eyJh.e30.s_-1"] {
            assert!(Secret::new(text).is_portable(), "{text}");
        }
        let changed = [
            "pa$$word",
            "it's-one",
            "semi;colon",
            "hash#it",
            r"back\slash",
            "d\"q",
            "st*r",
            "b`tick",
            "~root",
            "a b",
            "a\nb",
            "pi|pe",
            "{a,b}",
            "a!b",
            "\u{fc}ber",
            "%PATH%",
        ];
        for text in changed {
            assert!(!Secret::new(text).is_portable(), "{text}");
        }
    }
}
