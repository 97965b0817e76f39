//! Which parts of sccache's keys may set this client apart from its team, for the current folder: what the environment
//! says of them is in `environment`; here are paths, cargo's config files and the kind of C keys. Pure but for
//! [`Paths::look`].

use super::environment;
use super::{Check, Environment};
use crate::client::Lane;
use crate::client::at;
use crate::client::cargo_config;
use crate::client::sccache_file::Conf;
use crate::explain::print::is_in_keys;
use std::path::PathBuf;
use toml::{Table, Value};

const ALIKE: &str = "say it in the checkout's own .cargo/config.toml, for everybody, or nowhere";

/// Where a client builds.
#[derive(Debug, Default)]
pub(super) struct Paths {
    /// The checkout around the current folder.
    pub(super) root: PathBuf,
    pub(super) cargo_home: PathBuf,
}

impl Paths {
    /// The current folder of a client, if it lies in a checkout.
    pub(super) fn look(environment: &Environment) -> Option<Paths> {
        let cwd = std::env::current_dir().ok()?;
        Some(Paths {
            root: at::checkout_around(&cwd)?,
            cargo_home: cargo_config::home(environment)?,
        })
    }
}

/// What sets the keys of this client apart. Names only, where a value may be a secret.
pub(super) fn judge(
    place: Option<&Paths>,
    environment: &Environment,
    cargo: &cargo_config::Config,
    conf: Option<&Conf>,
    lane: Option<Lane>,
) -> Vec<Check> {
    let mut checks = Vec::new();
    if let Some(place) = place {
        let (root, cargo_home) = (place.root.display(), place.cargo_home.display());
        checks.push(Check::ok(
            "Rust keys",
            format!(
                "hold these paths: {root} for the crates in it, {cargo_home} for those of the registry; \
                 builds at other paths share nothing, unless sccache-dock at shows both at the same ones"
            ),
        ));
        let is_private =
            |path: &PathBuf| !path.starts_with(&place.root) || path.starts_with(&place.cargo_home);
        for (path, table) in cargo.files.iter().filter(|(path, _)| is_private(path)) {
            for setting in settings_in_keys(table) {
                let found = format!(
                    "in {}, which no checkout brings along: part of the key of Rust compiles",
                    path.display()
                );
                checks.push(Check::warn(&setting, found, ALIKE));
            }
        }
    }
    if environment.contains_key("RUSTFLAGS") {
        let found = "its flags are part of the key of every Rust compile";
        let hint = format!("unset RUSTFLAGS, and {ALIKE}");
        checks.push(Check::warn("RUSTFLAGS", found, hint));
    }
    if conf.is_some_and(|conf| conf.has_toolchains) {
        let found = "sccache's config file names toolchains of its own, which are part of keys";
        let hint = "give everybody the same [[dist.toolchains]], or nobody any";
        checks.push(Check::warn("dist.toolchains", found, hint));
    }
    checks.extend(c(environment, lane));
    checks
}

/// Settings of cargo that reach rustc's command line or its `CARGO_*` variables.
fn settings_in_keys(config: &Table) -> Vec<String> {
    let settings = cargo_config::settings_of_rustc(config).into_iter();
    let variables = config.get("env").and_then(Value::as_table);
    // The set of `client-env --format cargo` has one, alike for everybody.
    let variables = variables.into_iter().flat_map(Table::keys);
    let variables = variables.filter(|name| is_in_keys(name) && *name != "CARGO_INCREMENTAL");
    let settings = settings.map(|(name, _)| name);
    settings
        .chain(variables.map(|name| format!("env.{name}")))
        .collect()
}

/// Which kind of C keys this client has, and which of its variables are part of them.
fn c(environment: &Environment, lane: Option<Lane>) -> Vec<Check> {
    let mut checks = Vec::new();
    let what = "C keys";
    let others = "sources that differ in their line numbers alone have one object, with the lines of the first in its \
                  debug information, and nothing is shared with clients that have a level on disk";
    match (environment::has_line_markers(environment, lane), lane) {
        (_, None) | (None, _) => {}
        (Some(true), Some(Lane::Dist)) => checks.push(Check::ok(
            what,
            "with gcc those of all lanes, with clang 14 or newer those of clients that distribute",
        )),
        (Some(true), Some(_)) => checks.push(Check::ok(what, "those of all lanes")),
        (Some(false), Some(_)) => checks.push(Check::warn(
            what,
            format!("without line markers: {others}"),
            "unset SCCACHE_DIRECT, and use the whole set of sccache-dock client-env",
        )),
    }
    // `src/compiler/c.rs` of sccache 0.19.0, and what the compilers themselves read.
    for name in [
        "SCCACHE_C_CUSTOM_CACHE_BUSTER",
        "CCC_OVERRIDE_OPTIONS",
        "SDKROOT",
        "MACOSX_DEPLOYMENT_TARGET",
        "IPHONEOS_DEPLOYMENT_TARGET",
        "TVOS_DEPLOYMENT_TARGET",
        "WATCHOS_DEPLOYMENT_TARGET",
    ] {
        if environment.contains_key(name) {
            let found = "part of the key of every compile of C and C++";
            let hint = format!("set {name} alike everywhere, or nowhere");
            checks.push(Check::warn(name, found, hint));
        }
    }
    checks
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> Environment {
        let owned = pairs.iter();
        owned
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    fn verdicts(checks: &[Check]) -> Vec<(&str, Verdict)> {
        let all = checks.iter();
        all.map(|it| (it.what.as_str(), it.verdict)).collect()
    }

    #[test]
    fn config_files_outside_of_the_checkout_are_looked_through() {
        let text = "[build]\nrustflags = ['-Ctarget-cpu=native']\njobs = 2\nrustc-wrapper = 'sccache'\n\
                    [target.x86_64-unknown-linux-gnu]\nlinker = 'clang'\nrunner = 'x'\n\
                    [profile.dev]\ndebug = 0\n\
                    [env]\nCARGO_TERM_COLOR = 'always'\nCARGO_INCREMENTAL = '0'\nOTHER = 'x'\n\
                    [term]\ncolor = 'always'\n[registry]\ntoken = 'a-secret'\n";
        let place = Paths {
            root: "/home/me/project".into(),
            cargo_home: "/home/me/.cargo".into(),
        };
        let mut cargo = cargo_config::Config::default();
        // The second one everybody has.
        for file in [
            "/home/me/.cargo/config.toml",
            "/home/me/project/.cargo/config.toml",
        ] {
            cargo.files.push((file.into(), text.parse().unwrap()));
        }
        let checks = judge(Some(&place), &Environment::new(), &cargo, None, None);
        let warn = Verdict::Warn;
        assert_eq!(
            verdicts(&checks),
            [
                ("Rust keys", Verdict::Ok),
                ("build.rustflags", warn),
                ("target.x86_64-unknown-linux-gnu.linker", warn),
                ("profile.dev", warn),
                ("env.CARGO_TERM_COLOR", warn),
            ]
        );
        assert!(checks[0].found.contains("/home/me/project for"));
        assert!(checks[0].found.contains("/home/me/.cargo for"));
        assert!(!format!("{checks:?}").contains("secret"));
    }

    #[test]
    fn kind_of_c_keys_is_named() {
        let check = |pairs: &[(&str, &str)], lane, expected: &[Verdict]| {
            let cargo = cargo_config::Config::default();
            let checks = judge(None, &environment(pairs), &cargo, None, Some(lane));
            let found: Vec<Verdict> = checks.iter().map(|it| it.verdict).collect();
            assert_eq!(found, expected, "{pairs:?}: {checks:?}");
        };
        let endpoint = ("SCCACHE_WEBDAV_ENDPOINT", "http://127.0.0.1:4226");
        let chain = ("SCCACHE_MULTILEVEL_CHAIN", "disk,webdav");
        let (ok, warn) = (&[Verdict::Ok], &[Verdict::Warn]);
        for lane in [Lane::Webdav, Lane::Dist] {
            check(&[endpoint, chain], lane, ok);
            let empty = ("SCCACHE_LOCAL_RW_MODE", "READ_ONLY");
            check(&[endpoint, chain, empty], lane, ok);
            check(&[endpoint], lane, warn);
            check(
                &[endpoint, ("SCCACHE_MULTILEVEL_CHAIN", "webdav")],
                lane,
                warn,
            );
            check(&[endpoint, chain, ("SCCACHE_DIRECT", "0")], lane, warn);
        }
        check(&[], Lane::Dist, &[]);
        check(&[], Lane::Ipc, ok);
        check(&[("SCCACHE_DIRECT", "false")], Lane::Socket, warn);
        let checks = judge(
            None,
            &environment(&[("SDKROOT", "/x"), ("RUSTFLAGS", "")]),
            &cargo_config::Config::default(),
            None,
            None,
        );
        assert_eq!(
            verdicts(&checks),
            [("RUSTFLAGS", Verdict::Warn), ("SDKROOT", Verdict::Warn)]
        );
    }
}
