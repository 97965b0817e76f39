//! What this client may be given that a compile without sccache would not have made, as far as its environment shows it:
//! `docs/keys.md` has the whole list. Pure.

use super::environment::has_direct_entries;
use super::{Check, Environment};
use crate::client::Lane;

/// Variables from which build systems take the flags of C and C++.
const FLAGS: [&str; 3] = ["CFLAGS", "CXXFLAGS", "CPPFLAGS"];
/// Flags for objects that name the folder in which they were compiled.
const COVERAGE: [&str; 3] = ["--coverage", "-fprofile-arcs", "-ftest-coverage"];

/// Findings about the environment of a client of this lane.
pub(super) fn judge(environment: &Environment, lane: Option<Lane>) -> Vec<Check> {
    let mut checks = Vec::new();
    let name = "SOURCE_DATE_EPOCH";
    if environment.contains_key(name) {
        checks.push(Check::warn(
            name,
            "sccache does not hand it to compilers: __DATE__, and macros that read it, are not what they are without sccache",
            "unset it, or compile what depends on it without sccache: RUSTC_WRAPPER= for Rust, plain cc for C",
        ));
    }
    for name in FLAGS {
        let flags = environment.get(name).map_or("", String::as_str);
        if flags.split_whitespace().any(|it| COVERAGE.contains(&it)) {
            let found = "objects with coverage write their counts to the folder of whoever compiled them first";
            let hint = "compile with coverage below sccache-dock at, or without sccache";
            checks.push(Check::warn(name, found, hint));
        }
    }
    if has_direct_entries(environment, lane) {
        let found = "on: a new header earlier in the search path, and __DATE__ in a header, may be noticed late; not with \
                     client-env --no-disk";
        checks.push(Check::ok("direct mode", found));
    }
    checks
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
            let checks = judge(&owned.collect(), Some(Lane::Webdav));
            checks.into_iter().map(|it| (it.what, it.verdict)).collect()
        };
        let warned = |name: &str| vec![(name.to_owned(), Verdict::Warn)];
        assert_eq!(found(&[]), []);
        assert_eq!(
            found(&[("SOURCE_DATE_EPOCH", "0")]),
            warned("SOURCE_DATE_EPOCH")
        );
        assert_eq!(found(&[("CXXFLAGS", "-O2 --coverage")]), warned("CXXFLAGS"));
        assert_eq!(found(&[("CFLAGS", "-O2 -g")]), []);
        let chain = ("SCCACHE_MULTILEVEL_CHAIN", "disk,webdav");
        assert_eq!(found(&[chain]), [("direct mode".to_owned(), Verdict::Ok)]);
        assert_eq!(found(&[chain, ("SCCACHE_LOCAL_RW_MODE", "READ_ONLY")]), []);
    }
}
