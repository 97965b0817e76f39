//! Layers: the namespaces that a client reads through, one after the other, and the one that it writes. The client names
//! none; who it is decides. Pure.

use crate::contract::key::{namespace_of_shown, shown_namespace};
use serde::{Deserialize, Serialize};

/// Most namespaces of one list: each is a look into the index.
const MOST: usize = 8;
/// Longest name.
const LONGEST: usize = 200;

/// What a client may read and write. Names as keys have them: empty for the default namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Layers {
    /// In which a blob is looked up, in this order. Each is exactly this namespace, and none below it. With none of them,
    /// nothing is found.
    pub read: Vec<String>,
    /// The one that takes what is written; nothing is written where there is none.
    pub write: Option<String>,
    /// Entries that must not change may be replaced, see `SCCACHE_WRITE_ONCE`.
    pub replace: bool,
}

/// The keys of a table that say something about layers.
pub(super) const KEYS: [&str; 3] = ["read", "write", "replace"];

impl Layers {
    /// The layers of a table in the file; `None` where it names none. `is_name` judges one name.
    ///
    /// # Errors
    /// What is wrong, to be put behind the name of the table's owner.
    pub(super) fn parse(
        table: &toml::Table,
        is_name: impl Fn(&str) -> bool,
    ) -> Option<Result<Layers, String>> {
        let (read, write) = (table.get("read"), table.get("write"));
        (read.is_some() || write.is_some()).then(|| Layers::checked(table, is_name))
    }

    fn checked(table: &toml::Table, is_name: impl Fn(&str) -> bool) -> Result<Layers, String> {
        let name = |value: &toml::Value| {
            let name = value.as_str().filter(|name| is_name(name))?;
            Some(namespace_of_shown(name).to_owned())
        };
        let read = table.get("read").and_then(toml::Value::as_array);
        let read: Option<Vec<String>> = read.and_then(|list| list.iter().map(name).collect());
        let Some(read) = read.filter(|read| (1..=MOST).contains(&read.len())) else {
            return Err(format!(
                "has a \"read\" that is no list of 1 to {MOST} namespaces such as [\"pr/42\", \"main\"]"
            ));
        };
        let repeated = |at: usize| read[..at].contains(&read[at]);
        if (0..read.len()).any(repeated) {
            return Err("has a \"read\" that names a namespace twice".to_owned());
        }
        let write = match table.get("write") {
            None => None,
            Some(value) => match name(value) {
                // What nobody finds again is of no use, and a client would store it at each build.
                Some(name) if read.contains(&name) => Some(name),
                Some(_) => {
                    return Err("has a \"write\" that is not in its \"read\"".to_owned());
                }
                None => return Err("has a \"write\" that is no namespace".to_owned()),
            },
        };
        Ok(Layers {
            read,
            write,
            replace: table.get("replace") == Some(&toml::Value::Boolean(true)),
        })
    }

    /// The default namespace, to read and to write.
    pub fn default_namespace() -> Layers {
        Layers {
            read: vec![String::new()],
            write: Some(String::new()),
            replace: false,
        }
    }

    /// The namespace that a path may name, if it names one: what is written or, by those who write nothing, read first.
    pub fn own(&self) -> &str {
        let first = self.read.first();
        self.write.as_ref().or(first).map_or("", String::as_str)
    }

    /// Whether what is written is looked up by nobody else than those who name it: something is read behind it.
    pub fn is_branch(&self) -> bool {
        self.write.is_some() && self.write.as_ref() != self.read.last()
    }

    /// In words: `reads pr/42, main; writes pr/42`.
    pub fn describe(&self) -> String {
        let read: Vec<&str> = self.read.iter().map(|name| shown_namespace(name)).collect();
        let read = match read.is_empty() {
            true => "nothing".to_owned(),
            false => read.join(", "),
        };
        let write = self
            .write
            .as_ref()
            .map_or("nothing", |name| shown_namespace(name));
        let replace = if self.replace { " and replaces" } else { "" };
        format!("reads {read}; writes{replace} {write}")
    }
}

/// Whether this is the name of a layer: folders of letters, digits, ".", "_" and "-".
pub fn is_layer(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let is_folder = |part: &str| !matches!(part, "" | "." | "..") && part.bytes().all(is_plain);
    name.len() <= LONGEST && name.split('/').all(is_folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Option<Result<Layers, String>> {
        Layers::parse(&text.parse().unwrap(), is_layer)
    }

    #[test]
    fn lists_are_exact_and_what_is_written_is_read() {
        let layers = parse("read = ['pr/42', 'main', 'default']\nwrite = 'pr/42'");
        let layers = layers.unwrap().unwrap();
        assert_eq!(layers.read, ["pr/42", "main", ""]);
        assert_eq!((layers.own(), layers.is_branch()), ("pr/42", true));
        assert_eq!(
            layers.describe(),
            "reads pr/42, main, default; writes pr/42"
        );
        let main = parse("read = ['main']\nwrite = 'main'\nreplace = true");
        let main = main.unwrap().unwrap();
        assert!(!main.is_branch());
        assert_eq!(main.describe(), "reads main; writes and replaces main");
        let reader = parse("read = ['main']").unwrap().unwrap();
        assert_eq!((reader.own(), reader.is_branch()), ("main", false));
        assert_eq!(parse("access = 'read'"), None);
    }

    #[test]
    fn what_is_no_list_of_namespaces_is_said() {
        for (text, word) in [
            ("read = 'main'", "no list"),
            ("read = []", "no list"),
            ("write = 'main'", "no list"),
            (
                "read = ['a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i']",
                "no list",
            ),
            ("read = ['main', 'main']", "twice"),
            ("read = ['main']\nwrite = 'pr/1'", "not in its"),
            ("read = ['main']\nwrite = ['main']", "no namespace"),
        ] {
            assert!(parse(text).unwrap().unwrap_err().contains(word), "{text}");
        }
        for name in [
            "",
            "/main",
            "main/",
            "a//b",
            "../main",
            "main/./x",
            "%2e%2e",
            "a b",
            "é",
            "pr/*",
            "main/../x",
            "a\\b",
        ] {
            assert!(!is_layer(name), "{name}");
        }
        assert!(!is_layer(&"x".repeat(LONGEST + 1)));
    }
}
