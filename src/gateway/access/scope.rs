//! Which blobs a caller means by a path, and which of them it may have. Pure.

use crate::contract::key::{Key, KeyError, shown_namespace};
use crate::contract::tokens::Layers;
use thiserror::Error;

/// Where a caller may go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// To every namespace; the path names it.
    All,
    /// To these namespaces and all below them; the path names it.
    Below(Vec<String>),
    /// Through these, whatever the path says.
    Layers(Layers),
}

/// What a path means to a caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// Where the blob is looked up, in this order; nowhere for those who have no layers.
    pub read: Vec<Key>,
    /// Where it is written and removed, if that is anywhere.
    pub write: Option<Key>,
}

/// Why a path means nothing to a caller.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Denied {
    /// It is no key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// It is in a namespace that is not the caller's.
    #[error("may not use the namespace {0:?}")]
    Namespace(String),
    /// It names a namespace, but the caller's token names another one.
    #[error(
        "uses {own:?} whatever the path says, and not {named:?}: leave the folder out of the client's URL"
    )]
    OtherLayer {
        /// The one in the path.
        named: String,
        /// The caller's.
        own: String,
    },
}

impl Scope {
    /// The blob that `path`, which is percent-decoded, means.
    ///
    /// # Errors
    /// It means none that this caller may touch.
    pub fn asked(&self, path: &str) -> Result<Asked, Denied> {
        let (key, is_entry) = self.named(path)?;
        let Scope::Layers(layers) = self else {
            return Ok(Asked {
                read: vec![key.clone()],
                write: Some(key),
            });
        };
        let write = layers.write.as_ref();
        Ok(Asked {
            read: in_layers(layers, &key, is_entry)?,
            write: write
                .map(|layer| in_layer(&key, is_entry, layer))
                .transpose()?,
        })
    }

    /// The keys of [`Scope::asked`] alone under which the blob is looked up.
    ///
    /// # Errors
    /// The same.
    pub fn looked_up(&self, path: &str) -> Result<Vec<Key>, Denied> {
        let (key, is_entry) = self.named(path)?;
        match self {
            Scope::Layers(layers) => Ok(in_layers(layers, &key, is_entry)?),
            Scope::All | Scope::Below(_) => Ok(vec![key]),
        }
    }

    /// The key of a path, and whether it is an sccache entry's.
    fn named(&self, path: &str) -> Result<(Key, bool), Denied> {
        let key = Key::parse(path)?;
        let is_entry = matches!(self, Scope::Layers(_)) && key.is_sccache_entry();
        if is_entry || !matches!(self, Scope::Layers(_)) {
            // A client that was told its namespace before there were layers still names it.
            self.check_namespace(key.namespace())?;
        }
        Ok((key, is_entry))
    }

    /// Checks a namespace that a path names.
    ///
    /// # Errors
    /// This caller may not name it.
    pub fn check_namespace(&self, named: &str) -> Result<(), Denied> {
        match self {
            Scope::All => Ok(()),
            Scope::Layers(layers) if named.is_empty() || named == layers.own() => Ok(()),
            Scope::Layers(layers) => Err(Denied::OtherLayer {
                named: shown_namespace(named).to_owned(),
                own: shown_namespace(layers.own()).to_owned(),
            }),
            Scope::Below(_) if self.reads(named) => Ok(()),
            Scope::Below(_) => Err(Denied::Namespace(shown_namespace(named).to_owned())),
        }
    }

    /// Whether what is in this namespace may be seen.
    pub fn reads(&self, namespace: &str) -> bool {
        let shown = shown_namespace(namespace);
        match self {
            Scope::All => true,
            Scope::Below(folders) => folders.iter().any(|folder| {
                let below = shown.strip_prefix(folder.as_str());
                below.is_some_and(|below| below.is_empty() || below.starts_with('/'))
            }),
            Scope::Layers(layers) => {
                let mut names = layers.read.iter();
                names.any(|name| shown_namespace(name) == shown)
            }
        }
    }

    /// Whether what is in this namespace may be removed by those who may write.
    pub fn writes(&self, namespace: &str) -> bool {
        match self {
            Scope::All | Scope::Below(_) => self.reads(namespace),
            Scope::Layers(layers) => layers.write.as_deref() == Some(namespace),
        }
    }

    /// The namespaces that may be seen, by the names that people call them by; `None` for all.
    pub fn names(&self) -> Option<Vec<String>> {
        match self {
            Scope::All => None,
            Scope::Below(folders) => Some(folders.clone()),
            Scope::Layers(layers) => {
                let names = layers.read.iter();
                Some(names.map(|name| shown_namespace(name).to_owned()).collect())
            }
        }
    }

    /// What a client must put into its URL, where it must.
    pub fn folder(&self) -> Option<&str> {
        match self {
            Scope::Below(folders) => folders.first().map(String::as_str),
            Scope::All | Scope::Layers(_) => None,
        }
    }

    /// In words, for those who may do no more than `grant` says.
    pub fn describe(&self, writes: bool) -> String {
        let may = if writes { "reads and writes" } else { "reads" };
        match self {
            Scope::All => format!("{may} every namespace that its path names"),
            Scope::Below(folders) => format!("{may} {} and all below", folders.join(", ")),
            Scope::Layers(layers) => layers.describe(),
        }
    }
}

fn in_layers(layers: &Layers, key: &Key, is_entry: bool) -> Result<Vec<Key>, KeyError> {
    let names = layers.read.iter();
    names.map(|layer| in_layer(key, is_entry, layer)).collect()
}

fn in_layer(key: &Key, is_entry: bool, layer: &str) -> Result<Key, KeyError> {
    match is_entry {
        true => key.entry_in_layer(layer),
        false => Key::in_layer(layer, key.as_str()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layers(read: &[&str], write: Option<&str>) -> Scope {
        Scope::Layers(Layers {
            read: read.iter().map(|&name| name.to_owned()).collect(),
            write: write.map(str::to_owned),
            replace: false,
        })
    }

    fn entry() -> String {
        format!("a/b/c/{:0<64}", "abc")
    }

    #[test]
    fn token_and_not_the_path_chooses() {
        let pr = layers(&["pr/42", "main"], Some("pr/42"));
        let entry = entry();
        for path in [
            entry.clone(),
            format!("/pr/42/{entry}"),
            format!("//pr//42/{entry}/"),
            format!("default/{entry}"),
        ] {
            let asked = pr.asked(&path).unwrap();
            let read: Vec<&str> = asked.read.iter().map(Key::as_str).collect();
            assert_eq!(
                read,
                [format!("pr/42/{entry}"), format!("main/{entry}")],
                "{path}"
            );
            assert_eq!(asked.write.unwrap().as_str(), format!("pr/42/{entry}"));
            assert_eq!(pr.looked_up(&path).unwrap(), asked.read, "{path}");
        }
        for named in [
            "main",
            "pr",
            "pr/43",
            "pr/42/x",
            "PR/42",
            "main/pr/42",
            "pr%2f42",
        ] {
            let denied = pr.asked(&format!("{named}/{entry}"));
            assert!(matches!(denied, Err(Denied::OtherLayer { .. })), "{named}");
            let denied = pr.looked_up(&format!("{named}/{entry}"));
            assert!(matches!(denied, Err(Denied::OtherLayer { .. })), "{named}");
        }
        for path in [
            "main/x",
            "ac/x",
            "cas/x",
            "release/y",
            "preprocessor/x",
            "default/x",
        ] {
            let asked = pr.asked(path).unwrap();
            assert_eq!(asked.write.unwrap().namespace(), "pr/42", "{path}");
            let read: Vec<&str> = asked.read.iter().map(Key::namespace).collect();
            assert_eq!(read, ["pr/42", "main"], "{path}");
        }
        assert!(pr.asked("../main/x").is_err());
    }

    #[test]
    fn who_writes_nothing_has_no_key_to_write() {
        let fork = layers(&["main"], None);
        assert_eq!(fork.asked(&entry()).unwrap().write, None);
        assert!(fork.asked(&format!("main/{}", entry())).is_ok());
        assert!(fork.reads("main") && !fork.reads("pr/42") && !fork.reads("main/x"));
        assert!(!fork.writes("main"));
    }

    #[test]
    fn only_what_is_written_may_be_removed() {
        let pr = layers(&["pr/42", "main"], Some("pr/42"));
        assert!(pr.writes("pr/42") && pr.reads("main") && !pr.writes("main"));
        let below = Scope::Below(vec!["team".into()]);
        assert!(below.writes("team/x") && !below.writes("teams"));
        assert!(below.asked(&format!("team/x/{}", entry())).is_ok());
        assert!(matches!(below.asked(&entry()), Err(Denied::Namespace(_))));
        assert!(below.looked_up(&entry()).is_err());
    }
}
