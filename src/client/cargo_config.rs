//! Cargo's configuration files: what they set for compilers, and which wrapper of rustc they name.
//!
//! Source: the Cargo Book, "Configuration" (hierarchical structure, `env`, `include`). Pure but for [`Config::load`].

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// What names the wrapper, before `build.rustc-wrapper`.
pub(crate) const WRAPPER: &str = "RUSTC_WRAPPER";

/// Files that include each other for ever are followed this far.
const DEEPEST_INCLUDE: usize = 8;

/// A variable of `[env]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Variable {
    pub(crate) value: String,
    /// Beats a variable of the environment.
    pub(crate) force: bool,
    /// Where it is set.
    pub(crate) file: PathBuf,
}

/// What the files say together.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Config {
    /// All of them, those that beat the others first.
    pub(crate) files: Vec<(PathBuf, Table)>,
    pub(crate) variables: BTreeMap<String, Variable>,
    /// `build.rustc-wrapper` as a program, and where it is set.
    pub(crate) wrapper: Option<(String, PathBuf)>,
    /// Files that are not TOML: cargo refuses to run with them.
    pub(crate) broken: Vec<PathBuf>,
}

/// The two names of a configuration file; the first is preferred where both exist.
pub(crate) const NAMES: [&str; 2] = ["config", "config.toml"];

/// The folders whose configuration files count in `cwd`, those that beat the others first.
pub(crate) fn folders(cwd: &Path, cargo_home: Option<&Path>) -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = cwd.ancestors().map(|it| it.join(".cargo")).collect();
    if let Some(home) = cargo_home
        && !folders.iter().any(|it| it == home)
    {
        folders.push(home.to_owned());
    }
    folders
}

/// Cargo's own folder for a user with this environment.
pub(crate) fn home(environment: &BTreeMap<String, String>) -> Option<PathBuf> {
    let set = |name: &str| environment.get(name).filter(|it| !it.is_empty());
    match set("CARGO_HOME") {
        Some(folder) => Some(PathBuf::from(folder)),
        None => Some(Path::new(set("HOME")?).join(".cargo")),
    }
}

impl Config {
    /// Reads the files that cargo would read in `cwd`.
    pub(crate) fn load(cwd: &Path, cargo_home: Option<&Path>) -> Config {
        let read = |path: &Path| std::fs::read_to_string(path).ok();
        let mut config = Config::default();
        for folder in folders(cwd, cargo_home) {
            let mut files = NAMES.iter().map(|name| folder.join(name));
            if let Some((path, text)) = files.find_map(|path| Some((path.clone(), read(&path)?))) {
                config.add(&path, &text, &read, DEEPEST_INCLUDE);
            }
        }
        config
    }

    /// Takes from a file what none before it has set.
    fn add(
        &mut self,
        path: &Path,
        text: &str,
        read: &dyn Fn(&Path) -> Option<String>,
        depth: usize,
    ) {
        let Ok(table) = text.parse::<Table>() else {
            self.broken.push(path.to_owned());
            return;
        };
        let wrapper = table.get("build").and_then(|it| it.get("rustc-wrapper"));
        if let (None, Some(wrapper)) = (&self.wrapper, wrapper.and_then(Value::as_str)) {
            self.wrapper = Some((program(wrapper, root(path)), path.to_owned()));
        }
        let variables = table.get("env").and_then(Value::as_table);
        for (name, entry) in variables.into_iter().flatten() {
            if let Some(value) = value(entry) {
                self.variables.entry(name.clone()).or_insert(Variable {
                    value: match is(entry, "relative").then(|| root(path).join(value)) {
                        Some(path) => path.display().to_string(),
                        None => value.to_owned(),
                    },
                    force: is(entry, "force"),
                    file: path.to_owned(),
                });
            }
        }
        let included = includes(&table);
        self.files.push((path.to_owned(), table));
        // Later ones beat earlier ones, and the file that includes them beats all.
        for included in included.into_iter().rev().filter(|_| depth > 0) {
            let included = path.parent().unwrap_or(path).join(included);
            if let Some(text) = read(&included) {
                self.add(&included, &text, read, depth - 1);
            }
        }
    }

    /// What a compiler that cargo starts in `environment` sees.
    pub(crate) fn over(&self, environment: &BTreeMap<String, String>) -> BTreeMap<String, String> {
        let mut seen = environment.clone();
        for (name, variable) in &self.variables {
            // Cargo itself reads it, and gives `[env]` only to what it starts.
            if name == WRAPPER {
                continue;
            }
            if variable.force || !seen.contains_key(name) {
                seen.insert(name.clone(), variable.value.clone());
            }
        }
        let wrapper = environment.get("CARGO_BUILD_RUSTC_WRAPPER");
        let wrapper = wrapper.or(self.wrapper.as_ref().map(|(wrapper, _)| wrapper));
        if let (None, Some(wrapper)) = (environment.get(WRAPPER), wrapper) {
            seen.insert(WRAPPER.to_owned(), wrapper.clone());
        }
        seen
    }
}

/// The settings of a table that reach rustc's command line, or its `CARGO_*` variables by another way than `[env]`.
pub(crate) fn settings_of_rustc(table: &Table) -> Vec<(String, &Value)> {
    let all = |name: &str| {
        table
            .get(name)
            .and_then(Value::as_table)
            .into_iter()
            .flatten()
    };
    let build = all("build").filter(|(name, _)| ["rustflags", "target"].contains(&name.as_str()));
    let mut found: Vec<_> = build
        .map(|(name, value)| (format!("build.{name}"), value))
        .collect();
    for (target, settings) in all("target") {
        for name in ["rustflags", "linker"] {
            let value = settings.get(name);
            found.extend(value.map(|value| (format!("target.{target}.{name}"), value)));
        }
    }
    found.extend(all("profile").map(|(name, value)| (format!("profile.{name}"), value)));
    found
}

/// A program as cargo finds it: a bare name is looked for in PATH, another one from a folder.
pub(crate) fn program(named: &str, folder: &Path) -> String {
    match named.contains('/') {
        true => folder.join(named).display().to_string(),
        false => named.to_owned(),
    }
}

/// The value of an entry of `[env]`, in either way of writing it.
pub(crate) fn value(entry: &Value) -> Option<&str> {
    entry.get("value").unwrap_or(entry).as_str()
}

fn is(entry: &Value, flag: &str) -> bool {
    entry.get(flag).and_then(Value::as_bool) == Some(true)
}

/// What a relative value is relative to: the folder that holds `.cargo`.
fn root(file: &Path) -> &Path {
    file.parent().and_then(Path::parent).unwrap_or(file)
}

fn includes(table: &Table) -> Vec<String> {
    let one = |it: &Value| it.get("path").unwrap_or(it).as_str().map(str::to_owned);
    match table.get("include") {
        Some(Value::Array(list)) => list.iter().filter_map(one).collect(),
        Some(single) => one(single).into_iter().collect(),
        None => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// Writes `files` below a folder of its own and loads them for its subfolder `a/b`.
    fn loaded(files: &[(&str, &str)]) -> (tempfile::TempDir, Config) {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("a/b")).unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let home = folder.path().join("home");
        let config = Config::load(&folder.path().join("a/b"), Some(&home));
        (folder, config)
    }

    #[test]
    fn nearest_file_wins_and_the_environment_wins_over_what_is_not_forced() {
        let (folder, config) = loaded(&[
            (
                "a/.cargo/config.toml",
                "include = 'more.toml'\n[env]\nNEAR = '1'\nBOTH = '1'\nFORCED = { value = '1', force = true }\n",
            ),
            ("a/.cargo/more.toml", "[env]\nBOTH = '2'\nINCLUDED = '2'\n"),
            (
                "home/config.toml",
                "[build]\nrustc-wrapper = 'sccache'\n[env]\nNEAR = '3'\nFAR = '3'\n",
            ),
            (
                "home/config",
                "[env]\nFAR = '4'\nSOCKET = { value = 's', relative = true }\n",
            ),
            (".cargo/config", "not toml"),
        ]);
        let environment = BTreeMap::from([
            ("FORCED".to_owned(), "mine".to_owned()),
            ("NEAR".to_owned(), "mine".to_owned()),
        ]);
        let seen = config.over(&environment);
        let socket = folder.path().join("s").display().to_string();
        for (name, value) in [
            ("NEAR", "mine"),
            ("FORCED", "1"),
            ("BOTH", "1"),
            ("INCLUDED", "2"),
            ("FAR", "4"),
            ("SOCKET", &socket),
        ] {
            assert_eq!(seen.get(name).map(String::as_str), Some(value), "{name}");
        }
        // Where both names exist, the one without an ending counts.
        assert_eq!(config.wrapper, None);
        assert_eq!(config.broken, [folder.path().join(".cargo/config")]);
    }

    #[test]
    fn wrapper_of_a_file_counts_where_the_environment_names_none() {
        let files = [("home/config.toml", "[build]\nrustc-wrapper = 'sccache'\n")];
        let (_folder, config) = loaded(&files);
        let of = |pairs: &[(&str, &str)]| {
            let pairs = pairs
                .iter()
                .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()));
            config.over(&pairs.collect()).remove("RUSTC_WRAPPER")
        };
        assert_eq!(of(&[]).as_deref(), Some("sccache"));
        assert_eq!(
            of(&[("CARGO_BUILD_RUSTC_WRAPPER", "x")]).as_deref(),
            Some("x")
        );
        assert_eq!(of(&[("RUSTC_WRAPPER", "y")]).as_deref(), Some("y"));
        assert_eq!(of(&[("RUSTC_WRAPPER", "")]).as_deref(), Some(""));
        let files = [(
            "a/.cargo/config.toml",
            "[build]\nrustc-wrapper = 'tools/sccache'\n",
        )];
        let (folder, config) = loaded(&files);
        let expected = folder.path().join("a/tools/sccache").display().to_string();
        let seen = config.over(&BTreeMap::new());
        assert_eq!(seen["RUSTC_WRAPPER"], expected);
    }

    #[test]
    fn wrapper_among_the_variables_of_a_file_is_none() {
        let text = "[env]\nRUSTC_WRAPPER = { value = 'sccache', force = true }\n";
        let (_folder, config) = loaded(&[("a/.cargo/config.toml", text)]);
        assert_eq!(config.over(&BTreeMap::new()).get("RUSTC_WRAPPER"), None);
    }

    #[test]
    fn cargo_itself_sees_the_same() {
        let (folder, config) = loaded(&[
            (
                "a/b/Cargo.toml",
                "[package]\nname = 'it'\nversion = '0.1.0'\nedition = '2024'\n",
            ),
            (
                "a/b/build.rs",
                "fn main() { for name in [\"ONE\", \"TWO\", \"THREE\"] { \
                 println!(\"cargo::warning={name} {}\", std::env::var(name).unwrap()); } }",
            ),
            ("a/b/src/lib.rs", ""),
            (
                "a/.cargo/config.toml",
                "[env]\nONE = 'near'\nTWO = { value = 'file', force = true }\nTHREE = 'file'\n",
            ),
            ("home/config.toml", "[env]\nONE = 'far'\n"),
        ]);
        let environment = [("TWO", "environment"), ("THREE", "environment")];
        let built = Command::new("cargo")
            .args(["build", "--offline"])
            .current_dir(folder.path().join("a/b"))
            .env("CARGO_HOME", folder.path().join("home"))
            .env_remove("RUSTC_WRAPPER")
            .env_remove("CARGO_TARGET_DIR")
            .envs(environment)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&built.stderr);
        let pairs = environment.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let seen = config.over(&BTreeMap::from(pairs));
        for name in ["ONE", "TWO", "THREE"] {
            assert!(
                said.contains(&format!("{name} {}", seen[name])),
                "{name}: {said}"
            );
        }
    }
}
