//! Finds the value of each setting and collects problems. Pure.

use super::rows::{EXPECTED, ROWS, Row};
use super::values::ValueError;
use super::{DEFAULT_FILE, Effective, Problem, Source, policies};
use crate::config::variables;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

/// Stands for a secret.
const HIDDEN: &str = "***";

/// Former name of `MODE`.
const OLD_MODE: &str = "SCCACHE_STORAGE_MODE";

/// Looks up settings in the order given in the module's documentation, and records values, sources and problems.
pub(super) struct Lookup<'a> {
    pub(super) environment: &'a BTreeMap<String, String>,
    read: &'a dyn Fn(&Path) -> io::Result<String>,
    file: BTreeMap<String, String>,
    file_path: PathBuf,
    pub(super) effective: Vec<Effective>,
    pub(super) problems: Vec<Problem>,
    pub(super) warnings: Vec<Problem>,
}

impl<'a> Lookup<'a> {
    pub(super) fn new(
        environment: &'a BTreeMap<String, String>,
        read: &'a dyn Fn(&Path) -> io::Result<String>,
    ) -> Self {
        let named = environment
            .get("SCCACHE_DOCK_CONFIG")
            .filter(|path| !path.is_empty());
        let file_path = PathBuf::from(named.map_or(DEFAULT_FILE, String::as_str));
        let mut lookup = Lookup {
            environment,
            read,
            file: BTreeMap::new(),
            file_path,
            effective: Vec::new(),
            problems: Vec::new(),
            warnings: Vec::new(),
        };
        match read(&lookup.file_path) {
            Ok(text) => lookup.parse_file(&text),
            Err(error) if named.is_none() && error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                let subject = lookup.file_path.display().to_string();
                lookup.problem(&subject, format!("cannot read the file: {error}"), None);
            }
        }
        lookup
    }

    fn parse_file(&mut self, text: &str) {
        let path = self.file_path.display().to_string();
        let table: toml::Table = match text.parse() {
            Ok(table) => table,
            Err(error) => {
                return self.problem(
                    &path,
                    format!("cannot parse the file: {}", error.to_string().trim_end()),
                    None,
                );
            }
        };
        for (key, value) in table {
            if !ROWS.iter().any(|row| row.key == key) {
                let known: Vec<&str> = ROWS.iter().map(|row| row.key).collect();
                let hint = match variables::suggest(&key, known.iter().copied()) {
                    Some(near) => format!("did you mean \"{near}\"?"),
                    None => format!("known keys: {}", known.join(", ")),
                };
                self.problem(&path, format!("\"{key}\" is not a setting"), Some(hint));
                continue;
            }
            match value {
                toml::Value::String(text) => {
                    self.file.insert(key, text);
                }
                toml::Value::Integer(number) => {
                    self.file.insert(key, number.to_string());
                }
                other => match policies::flat(&key, &other) {
                    Some(text) => {
                        self.file.insert(key, text);
                    }
                    None => {
                        let message = format!("\"{key}\" is of type {}", other.type_str());
                        self.problem(&path, message, Some("write it as a string".into()));
                    }
                },
            }
        }
    }

    /// Records a problem with a variable or file.
    pub(super) fn problem(&mut self, subject: &str, message: String, hint: Option<String>) {
        self.problems.push(Problem {
            subject: subject.to_owned(),
            message,
            hint,
        });
    }

    /// Returns a setting's text and the name that a problem should use for it, and records its source.
    fn raw(&mut self, name: &'static str) -> (String, String) {
        let row = ROWS
            .iter()
            .find(|row| row.name == name)
            .expect("every setting asked for has a row");
        let (value, source, subject) = self.find(row);
        let shown = match value.as_str() {
            "" | "anonymous" => value.clone(),
            _ => shown(row, &value).to_owned(),
        };
        self.effective.push(Effective {
            name: row.name,
            shown,
            source,
            about: row.about,
        });
        (value, subject)
    }

    /// Returns value, source, and the name that a problem should use.
    fn find(&mut self, row: &Row) -> (String, Source, String) {
        let name = row.name;
        if let Some(value) = self.variable(name) {
            let subject = format!("{name}={}", shown(row, value));
            return (value.to_owned(), Source::Environment, subject);
        }
        if let Some(value) = self.variable(OLD_MODE).filter(|_| name == "MODE") {
            let subject = format!("{OLD_MODE}={value}");
            return (value.to_owned(), Source::Environment, subject);
        }
        let file_name = format!("{name}_FILE");
        if let Some(path) = self.variable(&file_name).map(PathBuf::from) {
            let message = match (self.read)(&path) {
                Ok(text) if !text.trim().is_empty() => {
                    let value = text.trim().to_owned();
                    return (value, Source::SecretFile(path), name.to_owned());
                }
                Ok(_) => "the file is empty".to_owned(),
                Err(error) => format!("cannot read the file: {error}"),
            };
            let path = path.to_string_lossy();
            let subject = format!("{file_name}={}", path_or_hidden(&path));
            let hint = (!path.starts_with('/'))
                .then(|| "give the absolute path of the file, not its content".to_owned());
            self.problem(&subject, message, hint);
        }
        if let Some(value) = self.file.get(row.key) {
            let subject = format!("{}: {}", self.file_path.display(), row.key);
            return (value.clone(), Source::File(self.file_path.clone()), subject);
        }
        (row.default.to_owned(), Source::Default, name.to_owned())
    }

    /// A variable's value; an empty one counts as not set.
    fn variable(&self, name: &str) -> Option<&'a str> {
        let value = self.environment.get(name)?;
        Some(value.as_str()).filter(|value| !value.is_empty())
    }

    /// A setting's parsed value, or `None` after recording a problem.
    pub(super) fn parsed<T>(
        &mut self,
        name: &'static str,
        parse: impl FnOnce(&str) -> Result<T, ValueError>,
    ) -> Option<T> {
        let (text, subject) = self.raw(name);
        match parse(&text) {
            Ok(value) => Some(value),
            Err(fault) => {
                self.problem(&subject, fault.message, fault.hint);
                None
            }
        }
    }

    /// Variables that look like settings but are not: unknown, from a later version, or sccache's own.
    pub(super) fn stray(&mut self) -> Vec<Problem> {
        let mut warnings = Vec::new();
        for name in self
            .environment
            .keys()
            .filter(|name| name.starts_with("SCCACHE_"))
        {
            let bare = name.strip_suffix("_FILE").unwrap_or(name);
            let known = ROWS.iter().any(|row| row.name == bare || row.name == name);
            if known || EXPECTED.contains(&name.as_str()) || name == OLD_MODE {
                continue;
            }
            let (message, hint) = explain_stray(name);
            warnings.push(Problem {
                subject: name.clone(),
                message,
                hint: Some(hint),
            });
        }
        warnings
    }
}

/// A setting's value as messages may show it.
fn shown<'a>(row: &Row, value: &'a str) -> &'a str {
    let names_a_secret = matches!(row.name, "SCCACHE_TLS_KEY" | "SCCACHE_TLS_CLIENT_KEY")
        || row.name.ends_with("_FILE");
    match row.secret {
        true => HIDDEN,
        false if names_a_secret => path_or_hidden(value),
        false => value,
    }
}

/// The path of a file that holds a secret. What is not a path may be the secret itself.
fn path_or_hidden(value: &str) -> &str {
    if value.starts_with('/') && !value.contains('\n') {
        value
    } else {
        HIDDEN
    }
}

fn explain_stray(name: &str) -> (String, String) {
    if let Some(instead) = variables::instead_of(name) {
        return (
            "sccache and sccache-dock do not know this variable; it has no effect".into(),
            instead.to_owned(),
        );
    }
    if variables::SCCACHE_OWN.contains(&name) {
        return (
            "is a variable of sccache itself; it has no effect on the container's services".into(),
            "set it where the client runs; \"sccache-dock client-env\" prints all of them".into(),
        );
    }
    let known: Vec<&str> = ROWS.iter().map(|row| row.name).collect();
    let hint = match variables::suggest(name, known.iter().copied()) {
        Some(near) => format!("did you mean {near}?"),
        None => "\"sccache-dock config\" lists all settings".to_owned(),
    };
    ("is not a setting; it has no effect".into(), hint)
}
