//! What this client may be given that a compile without sccache would not have made, as far as its environment and cargo's
//! files show it: `docs/keys.md` has the whole list. Pure.

use super::environment::has_direct_entries;
use super::{Check, Environment};
use crate::client::Lane;
use crate::client::cargo_config::{Config, settings_of_rustc};
use toml::Value;

/// Variables from which build systems take the compiler of C or C++ and its flags, also with a target before or after.
const FLAGS: [&str; 5] = ["CFLAGS", "CXXFLAGS", "CPPFLAGS", "CC", "CXX"];
/// Flags that name a file or a folder, of which sccache 0.19.0 puts only the name into the key. It does not cache gcc's
/// `-fplugin` and `-fprofile-use`, and reads the files of clang's.
const NAMED: [&str; 8] = [
    "-B",
    "--specs=",
    "-specs=",
    "-fauto-profile=",
    "-fprofile-list=",
    "-fprofile-sample-use=",
    "-fsanitize-coverage-allowlist=",
    "-fsanitize-coverage-ignorelist=",
];
/// The same of rustc, values of `-C` or `-Z`.
const NAMED_BY_RUST: [&str; 4] = [
    "codegen-backend=",
    "llvm-plugins=",
    "profile-sample-use=",
    "profile-use=",
];
/// Variables that name folders of a compiler's programs.
const FOLDERS: [&str; 2] = ["COMPILER_PATH", "GCC_EXEC_PREFIX"];
/// The CPU of the machine that compiles, as values of `-C` or `-Z`.
const NATIVE: [&str; 2] = ["target-cpu=native", "tune-cpu=native"];
/// Flags for objects that name the folder in which they were compiled.
const COVERAGE: [&str; 3] = ["--coverage", "-fprofile-arcs", "-ftest-coverage"];

/// Variables that keep keys apart, where they are set as the hints of [`judge`] advise.
const PARTS_C: &str = "SCCACHE_C_CUSTOM_CACHE_BUSTER";
const PARTS_RUST: &str = "CARGO_HOST_CPU";
const PARTS_BOOTSTRAP: &str = "CARGO_BOOTSTRAP";

/// Findings about a client of this lane, with this environment, and these files of cargo's in its folder.
pub(super) fn judge(environment: &Environment, cargo: &Config, lane: Option<Lane>) -> Vec<Check> {
    let mut checks = Vec::new();
    let name = "SOURCE_DATE_EPOCH";
    if environment.contains_key(name) {
        checks.push(Check::warn(
            name,
            "sccache does not hand it to compilers: __DATE__, and macros that read it, are not what they are without sccache",
            "unset it, or compile what depends on it without sccache: RUSTC_WRAPPER= for Rust, plain cc for C",
        ));
    }
    let name = "RUSTC_BOOTSTRAP";
    if environment.contains_key(name) && !environment.contains_key(PARTS_BOOTSTRAP) {
        checks.push(Check::warn(
            name,
            "it is in no key: code that compiles only with it is a hit also for those who have not set it, who would get an error \
             without sccache",
            "unset it, set it alike everywhere, or part the keys by any CARGO_* variable beside it: CARGO_BOOTSTRAP=1",
        ));
    }
    for name in FOLDERS {
        if environment.get(name).is_some_and(|it| !it.is_empty()) {
            checks.push(Check::warn(
                name,
                "compilers look there for their programs, and it is in no key: others get what was compiled with these",
                "unset it, or compile what needs it without sccache",
            ));
        }
    }
    for (name, flags) in environment.iter().filter(|(name, _)| is_of_c(name)) {
        let flags: Vec<&str> = flags.split_whitespace().collect();
        if flags.iter().any(|it| COVERAGE.contains(it)) {
            let found = "objects with coverage write their counts to the folder of whoever compiled them first";
            let hint = "compile with coverage below sccache-dock at, or without sccache";
            checks.push(Check::warn(name, found, hint));
        }
        let native = flags.iter().find(|it| is_native_c(it));
        let named = flags
            .iter()
            .find(|it| NAMED.iter().any(|one| it.starts_with(one)));
        let native = native.map(|flag| of_native(name, flag, environment, PARTS_C));
        checks.extend(
            native
                .into_iter()
                .chain(named.map(|flag| of_named(name, flag))),
        );
    }
    for (name, flags) in of_rust(environment, cargo) {
        let flags: Vec<&str> = flags.iter().map(|it| after_option(it)).collect();
        let native = flags.iter().find(|it| NATIVE.contains(it));
        let named = flags
            .iter()
            .find(|it| NAMED_BY_RUST.iter().any(|one| it.starts_with(one)));
        let native = native.map(|flag| of_native(&name, flag, environment, PARTS_RUST));
        checks.extend(
            native
                .into_iter()
                .chain(named.map(|flag| of_named(&name, flag))),
        );
    }
    if has_direct_entries(environment, lane) {
        let found = "on: a new header earlier in the search path, and __DATE__ in a header, may be noticed late; not with \
                     client-env --no-disk";
        checks.push(Check::ok("direct mode", found));
    }
    checks
}

/// The variables that [`judge`] advises here: they are meant to be part of the keys, which is no finding.
pub(super) fn parted(environment: &Environment, cargo: &Config) -> Vec<&'static str> {
    let mut c = environment.iter().filter(|(name, _)| is_of_c(name));
    let c = c.any(|(_, flags)| flags.split_whitespace().any(is_native_c));
    let mut rust = of_rust(environment, cargo).into_iter();
    let rust = rust.any(|(_, flags)| flags.iter().any(|it| NATIVE.contains(&after_option(it))));
    let bootstrap = environment.contains_key("RUSTC_BOOTSTRAP");
    let all = [
        (c, PARTS_C),
        (rust, PARTS_RUST),
        (bootstrap, PARTS_BOOTSTRAP),
    ];
    let meant = all.into_iter().filter(|(is_meant, _)| *is_meant);
    meant.map(|(_, name)| name).collect()
}

fn is_native_c(flag: &str) -> bool {
    flag.starts_with("-m") && flag.ends_with("=native")
}

/// What is wrong with results by a flag that `what` sets. `variable` can part the keys.
fn of_native(what: &str, flag: &str, environment: &Environment, variable: &str) -> Check {
    if environment.contains_key(variable) {
        let found =
            format!("{flag}: {variable} parts the keys, if each kind of machine has another value");
        return Check::ok(what, found);
    }
    let found = format!(
        "{flag}: the key has the word and not the CPU, so that another kind of machine gets these results, and may not \
         be able to run them"
    );
    let hint = format!(
        "name a CPU that all machines have, such as x86-64-v3; or set {variable} to another value for each kind of machine"
    );
    Check::warn(what, found, hint)
}

fn of_named(what: &str, flag: &str) -> Check {
    let found = format!(
        "{flag}: the key has this name, and not what the files say: a change in them is not noticed"
    );
    let hint = "use another name after each change, or compile what needs it without sccache";
    Check::warn(what, found, hint)
}

/// `CFLAGS`, `CFLAGS_x86_64_unknown_linux_gnu`, `HOST_CFLAGS` and the like.
fn is_of_c(name: &str) -> bool {
    FLAGS.iter().any(|flags| {
        let before = name
            .strip_prefix(flags)
            .is_some_and(|rest| rest.starts_with('_'));
        let after = name
            .strip_suffix(flags)
            .is_some_and(|rest| rest.ends_with('_'));
        name == *flags || before || after
    })
}

/// Rustc's flags, and what sets them.
fn of_rust(environment: &Environment, cargo: &Config) -> Vec<(String, Vec<String>)> {
    let is_set = |name: &str| {
        [
            "RUSTFLAGS",
            "CARGO_ENCODED_RUSTFLAGS",
            "CARGO_BUILD_RUSTFLAGS",
        ]
        .contains(&name)
            || name.starts_with("CARGO_TARGET_") && name.ends_with("_RUSTFLAGS")
    };
    let words = |text: &str| -> Vec<String> {
        let words = text.split(|it: char| it.is_whitespace() || it == '\x1f');
        words.map(str::to_owned).collect()
    };
    let set = environment.iter().filter(|(name, _)| is_set(name));
    let mut all: Vec<_> = set
        .map(|(name, text)| (name.clone(), words(text)))
        .collect();
    for (path, table) in &cargo.files {
        for (name, value) in settings_of_rustc(table) {
            let flags = match value {
                Value::String(text) => words(text),
                Value::Array(list) => {
                    let texts = list.iter().filter_map(Value::as_str);
                    texts.map(str::to_owned).collect()
                }
                _ => continue,
            };
            all.push((format!("{name} of {}", path.display()), flags));
        }
    }
    all
}

/// The value of an option in one word: of `-Ctarget-cpu=native`.
fn after_option(flag: &str) -> &str {
    let options = ["--codegen=", "-C", "-Z"];
    let value = options.iter().find_map(|option| flag.strip_prefix(option));
    value.unwrap_or(flag)
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn what_may_change_a_result_is_named() {
        let found = |pairs: &[(&str, &str)]| -> Vec<(String, Verdict)> {
            let owned = pairs
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            let checks = judge(&owned.collect(), &Config::default(), Some(Lane::Webdav));
            checks.into_iter().map(|it| (it.what, it.verdict)).collect()
        };
        let warned = |name: &str| vec![(name.to_owned(), Verdict::Warn)];
        assert_eq!(found(&[]), []);
        assert_eq!(
            found(&[("SOURCE_DATE_EPOCH", "0")]),
            warned("SOURCE_DATE_EPOCH")
        );
        assert_eq!(
            found(&[("RUSTC_BOOTSTRAP", "1")]),
            warned("RUSTC_BOOTSTRAP")
        );
        for name in ["COMPILER_PATH", "GCC_EXEC_PREFIX"] {
            assert_eq!(found(&[(name, "/opt/own/bin/")]), warned(name));
        }
        assert_eq!(found(&[("CXXFLAGS", "-O2 --coverage")]), warned("CXXFLAGS"));
        assert_eq!(found(&[("CFLAGS", "-O2 -g")]), []);
        let chain = ("SCCACHE_MULTILEVEL_CHAIN", "disk,webdav");
        assert_eq!(found(&[chain]), [("direct mode".to_owned(), Verdict::Ok)]);
        assert_eq!(found(&[chain, ("SCCACHE_LOCAL_RW_MODE", "READ_ONLY")]), []);
    }

    #[test]
    fn variable_that_parts_the_keys_as_advised_is_no_finding() {
        let cargo = Config::default();
        for (name, flags, variable) in [
            (
                "CFLAGS",
                "-O2 -march=native",
                "SCCACHE_C_CUSTOM_CACHE_BUSTER",
            ),
            ("RUSTFLAGS", "-C target-cpu=native", "CARGO_HOST_CPU"),
            ("RUSTC_BOOTSTRAP", "1", "CARGO_BOOTSTRAP"),
        ] {
            let mut environment: Environment = [(name.to_owned(), flags.to_owned())].into();
            let advice = judge(&environment, &cargo, Some(Lane::Webdav));
            assert_eq!(advice[0].verdict, Verdict::Warn);
            assert!(
                advice[0].hint.as_ref().unwrap().contains(variable),
                "{advice:?}"
            );
            environment.insert(variable.to_owned(), "1".to_owned());
            let checks = judge(&environment, &cargo, Some(Lane::Webdav));
            assert!(
                checks.iter().all(|it| it.verdict == Verdict::Ok),
                "{checks:?}"
            );
            assert_eq!(parted(&environment, &cargo), [variable]);
            environment.remove(name);
            assert_eq!(parted(&environment, &cargo), [""; 0]);
        }
    }

    #[test]
    fn flags_of_which_the_key_has_the_words_alone_are_named() {
        let found = |pairs: &[(&str, &str)], file: &str| -> Vec<String> {
            let owned = pairs
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            let files = vec![("/w/.cargo/config.toml".into(), file.parse().unwrap())];
            let cargo = Config {
                files,
                ..Config::default()
            };
            let checks = judge(&owned.collect(), &cargo, None);
            let of = |it: Check| format!("{}: {}", it.what, it.found);
            checks
                .into_iter()
                .map(of)
                .filter(|it| !it.starts_with("direct mode"))
                .collect()
        };
        for (name, flag) in [
            ("CFLAGS", "-march=native"),
            ("HOST_CXXFLAGS", "-mtune=native"),
            ("CFLAGS_x86_64_unknown_linux_gnu", "-specs=own.specs"),
            ("CC", "-Bown"),
            ("RUSTFLAGS", "target-cpu=native"),
            (
                "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS",
                "profile-use=p",
            ),
        ] {
            let option = if flag.starts_with('-') { "" } else { "-C" };
            let found = found(&[(name, &format!("cc -O2 {option}{flag}"))], "");
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(
                found[0].starts_with(&format!("{name}: {flag}: the key has")),
                "{found:?}"
            );
        }
        let encoded = "-C\x1ftarget-cpu=native\x1f-Cprofile-use=p";
        assert_eq!(found(&[("CARGO_ENCODED_RUSTFLAGS", encoded)], "").len(), 2);
        for file in [
            "[build]\nrustflags = '-C target-cpu=native'\n",
            "[build]\nrustflags = ['-C', 'target-cpu=native']\n",
            "[target.'cfg(unix)']\nrustflags = ['-Ctarget-cpu=native']\n",
        ] {
            let found = found(&[], file);
            assert!(
                found[0].contains("rustflags of /w/.cargo/config.toml: target-cpu"),
                "{found:?}"
            );
        }
        for quiet in [
            ("CFLAGS", "-march=x86-64-v3 -DB=native --sysroot=/r"),
            ("ACC", "-march=native"),
            ("RUSTFLAGS", "-C target-cpu=x86-64-v3 --cfg native"),
        ] {
            assert_eq!(
                found(&[quiet], "[build]\ntarget = 'native'\n"),
                [""; 0],
                "{quiet:?}"
            );
        }
    }
}
