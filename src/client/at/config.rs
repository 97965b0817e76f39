//! Cargo's own settings: `[env]` in a config file, as `client-env --format cargo` writes it, may beat the environment.
//!
//! Such a file names the address of a daemon, where one from outside may listen. The command sees a copy of the file in
//! its place that names its own.

use crate::client::cargo_config;
use crate::client::cargo_config::NAMES;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// Files that cargo reads in `cwd`, which lies in the checkout at `path`, with `cargo_home`.
pub(super) fn files(cwd: &Path, path: &Path, cargo_home: &Path) -> Vec<PathBuf> {
    let folders = cwd
        .ancestors()
        .take_while(|folder| folder.starts_with(path))
        .map(|folder| folder.join(".cargo"));
    let folders = folders.chain([cargo_home.to_owned()]);
    folders
        .flat_map(|folder| NAMES.map(|name| folder.join(name)))
        .collect()
}

/// Whether clients compile by themselves, whatever serves the cache: the lanes `ipc` and `socket`.
pub(crate) fn client_side_by(variable: impl Fn(&str) -> Option<OsString>) -> bool {
    let value = variable("SCCACHE_CLIENT_SIDE").unwrap_or_default();
    // As sccache 0.19.0 reads it, `src/config.rs`.
    let value = value.to_string_lossy().to_lowercase();
    ["true", "on", "1"].contains(&value.as_str())
}

/// Whether the text makes clients compile by themselves.
pub(super) fn is_client_side(text: &str) -> bool {
    let config = text.parse::<Table>().unwrap_or_default();
    let variables = config.get("env").and_then(Value::as_table);
    variables.is_some_and(|variables| client_side_by(|name| value(variables, name)))
}

/// The wrapper of rustc that cargo would use in `cwd`, empty where there is to be none: `files` are texts and paths of its
/// config files, the nearest first.
pub(super) fn wrapper(
    variable: impl Fn(&str) -> Option<OsString>,
    files: &[(String, PathBuf)],
    cwd: &Path,
) -> Option<OsString> {
    let in_environment = ["RUSTC_WRAPPER", "CARGO_BUILD_RUSTC_WRAPPER"];
    let set = in_environment.into_iter().find_map(variable);
    let set = set.map(|wrapper| match wrapper.to_str() {
        Some(wrapper) => cargo_config::program(wrapper, cwd).into(),
        None => wrapper,
    });
    let in_files = || {
        files.iter().find_map(|(text, file)| {
            let config: Table = text.parse().ok()?;
            let wrapper = config.get("build")?.get("rustc-wrapper")?.as_str()?;
            // From the folder that holds `.cargo`.
            let folder = file.parent().and_then(Path::parent).unwrap_or(file);
            Some(cargo_config::program(wrapper, folder).into())
        })
    };
    set.or_else(in_files)
}

/// The text with `settings` in the place of its own; nothing where it has none of them.
pub(super) fn with_own(text: &str, settings: &[(&str, OsString)]) -> Option<String> {
    let mut config: Table = text.parse().ok()?;
    let variables = config.get_mut("env")?.as_table_mut()?;
    let is_named = |(name, _): &(&str, OsString)| value(variables, name).is_some();
    if !settings.iter().any(is_named) {
        return None;
    }
    for (name, own) in settings {
        let own = Value::from(own.to_str()?);
        let forced =
            Table::from_iter([("value".to_owned(), own), ("force".to_owned(), true.into())]);
        variables.insert((*name).to_owned(), forced.into());
    }
    Some(config.to_string())
}

/// A variable of `[env]`.
fn value(variables: &Table, name: &str) -> Option<OsString> {
    cargo_config::value(variables.get(name)?).map(OsString::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn socket_of_a_config_file_is_replaced_and_everything_else_kept() {
        let own = [
            ("SCCACHE_SERVER_UDS", OsString::from("/tmp/own.sock")),
            ("SCCACHE_SERVER_PORT", OsString::from("4000")),
        ];
        let text = "[build]\nrustc-wrapper = 'sccache'\n[env]\nOTHER = 'kept'\nSCCACHE_SERVER_PORT = '4227'\n\
                    SCCACHE_SERVER_UDS = { value = '.x.sock', relative = true, force = true }\n";
        let changed: Table = with_own(text, &own).unwrap().parse().unwrap();
        let expected = "[build]\nrustc-wrapper = 'sccache'\n[env]\nOTHER = 'kept'\n\
                        SCCACHE_SERVER_PORT = { value = '4000', force = true }\n\
                        SCCACHE_SERVER_UDS = { value = '/tmp/own.sock', force = true }\n";
        assert_eq!(changed, expected.parse::<Table>().unwrap());
        for untouched in [
            "",
            "[build]\njobs = 2\n",
            "[env]\nOTHER = 'kept'\n",
            "not toml",
        ] {
            assert_eq!(with_own(untouched, &own), None, "{untouched:?}");
            assert!(!is_client_side(untouched), "{untouched:?}");
        }
        assert!(!is_client_side(text));
        assert!(is_client_side("[env]\nSCCACHE_CLIENT_SIDE = '1'\n"));
        let table = "[env.SCCACHE_CLIENT_SIDE]\nvalue = 'true'\nforce = true\n";
        assert!(is_client_side(table));
    }

    #[test]
    fn wrapper_is_that_of_cargo() {
        let files = [
            (
                "[build]\njobs = 1\n".to_owned(),
                "/work/a/.cargo/config.toml".into(),
            ),
            (
                "[build]\nrustc-wrapper = 'tools/sccache'\n".to_owned(),
                "/work/.cargo/config".into(),
            ),
            (
                "[build]\nrustc-wrapper = 'sccache'\n".to_owned(),
                "/cargo/config.toml".into(),
            ),
        ];
        let set = |name: &'static str, value: &'static str| {
            let variable = move |one: &str| (one == name).then(|| value.into());
            wrapper(variable, &files, Path::new("/work/b"))
        };
        assert_eq!(
            set("RUSTC_WRAPPER", "/opt/sccache"),
            Some("/opt/sccache".into())
        );
        let relative = set("RUSTC_WRAPPER", "../tools/sccache");
        assert_eq!(relative, Some("/work/b/../tools/sccache".into()));
        assert_eq!(set("RUSTC_WRAPPER", ""), Some("".into()), "turned off");
        assert_eq!(
            set("CARGO_BUILD_RUSTC_WRAPPER", "kept"),
            Some("kept".into())
        );
        assert_eq!(set("OTHER", "x"), Some("/work/tools/sccache".into()));
        let none = |files| wrapper(|_| None, files, Path::new("/work"));
        assert_eq!(none(&files[2..]), Some("sccache".into()));
        assert_eq!(none(&files[..1]), None);
    }

    #[test]
    fn files_are_those_of_the_checkout_and_of_cargo_home() {
        let found = files(
            Path::new("/work/a"),
            Path::new("/work"),
            Path::new("/cargo"),
        );
        let expected = ["/work/a/.cargo", "/work/.cargo", "/cargo"];
        let expected = expected
            .iter()
            .flat_map(|folder| NAMES.map(|name| Path::new(folder).join(name)));
        assert_eq!(found, expected.collect::<Vec<_>>());
    }
}
