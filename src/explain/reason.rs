//! Why a result was not there, in words.

use crate::base::human::{bytes, span};
use serde::{Deserialize, Serialize};

/// Names and files that are shown of many.
const SHOWN: usize = 4;

/// Why a compile was no hit. `now` and `before` are what differs from the nearest earlier compile of the same crate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reason", rename_all = "snake_case")]
pub enum Reason {
    /// No compile of it is known.
    NeverBuilt,
    /// Another compiler.
    Compiler { now: String, before: String },
    /// Another version of sccache.
    Sccache { now: String, before: String },
    /// The checkout or `CARGO_HOME` lies elsewhere.
    Path {
        what: String,
        now: String,
        before: String,
    },
    /// A variable has another value; the values only where they are no secrets.
    Variable {
        name: String,
        now: Option<String>,
        before: Option<String>,
        /// Others that differ too.
        also: Vec<String>,
    },
    /// Flags or features.
    Flags {
        added: Vec<String>,
        removed: Vec<String>,
    },
    /// A dependency was no hit either, or has other bytes.
    Dependency {
        /// Where the chain begins.
        root: String,
        /// From this crate's dependency down to the root.
        chain: Vec<String>,
        /// Why the root was no hit; missing if it was one, with other bytes.
        because: Option<Box<Reason>>,
    },
    /// Source files.
    Source { files: Vec<String> },
    /// It was there, and made room for others.
    Evicted {
        /// Missing where only its key is remembered.
        seconds_ago: Option<u64>,
        budget_bytes: u64,
        /// The least budget that would have kept it, where that is known.
        kept_by_bytes: Option<u64>,
    },
    /// It was there, and went because of its namespace's quota.
    Quota { seconds_ago: Option<u64> },
    /// It was there, and nobody had used it for too long.
    Age { seconds_ago: u64 },
    /// It was there, and somebody removed it.
    Purged { seconds_ago: u64 },
    /// It was compiled before, but not stored.
    Refused { cause: String },
    /// It was there, and damaged.
    Broken {
        /// When that was noticed; missing where the client noticed it, which could not use what it was sent.
        seconds_ago: Option<u64>,
    },
    /// sccache does not cache such compiles.
    NotCacheable { cause: String },
    /// The cache, or the daemon, could not be asked.
    Away { cause: String },
    /// The compiler found errors.
    CompileFailed,
    /// It was there with all these parts, and the key is another one.
    Unknown,
}

impl Reason {
    /// Its name in JSON.
    pub fn label(&self) -> &'static str {
        match self {
            Reason::NeverBuilt => "never_built",
            Reason::Compiler { .. } => "compiler",
            Reason::Sccache { .. } => "sccache",
            Reason::Path { .. } => "path",
            Reason::Variable { .. } => "variable",
            Reason::Flags { .. } => "flags",
            Reason::Dependency { .. } => "dependency",
            Reason::Source { .. } => "source",
            Reason::Evicted { .. } => "evicted",
            Reason::Quota { .. } => "quota",
            Reason::Age { .. } => "age",
            Reason::Purged { .. } => "purged",
            Reason::Refused { .. } => "refused",
            Reason::Broken { .. } => "broken",
            Reason::NotCacheable { .. } => "not_cacheable",
            Reason::Away { .. } => "away",
            Reason::CompileFailed => "compile_failed",
            Reason::Unknown => "unknown",
        }
    }

    /// One sentence.
    pub fn text(&self) -> String {
        let ago = |seconds: &u64| format!("{} ago", span(*seconds as f64));
        match self {
            Reason::NeverBuilt => "never built anywhere".to_owned(),
            Reason::Compiler { now, before } => {
                format!("another compiler: {now}; it was built by {before}")
            }
            Reason::Sccache { now, before } => {
                format!("another sccache: {now}; it was built with {before}")
            }
            Reason::Path { what, now, before } => {
                format!("{what} lies at {now}; it was built with {before}")
            }
            Reason::Variable {
                name,
                now,
                before,
                also,
            } => {
                let said = |value: &Option<String>| value.clone().unwrap_or("unset".to_owned());
                let values = match (now, before) {
                    (None, None) => "has another value".to_owned(),
                    _ => format!("is {}, and was {}", said(now), said(before)),
                };
                let also = match also.is_empty() {
                    true => String::new(),
                    false => format!("; so do {}", few(also)),
                };
                format!("the variable {name} {values}{also}")
            }
            Reason::Flags { added, removed } => {
                let part = |sign: &str, flags: &[String]| match flags.is_empty() {
                    true => String::new(),
                    false => format!(" {sign} {}", few(flags)),
                };
                format!(
                    "other flags or features:{}{}",
                    part("with", added),
                    part("without", removed)
                )
            }
            Reason::Dependency {
                root,
                chain,
                because,
            } => {
                let way = match chain.len() {
                    0 | 1 => String::new(),
                    more => format!(" ({more} crates down)"),
                };
                match because {
                    Some(reason) => format!("follows {root}{way}: {}", reason.text()),
                    None => format!("its dependency {root} has other bytes"),
                }
            }
            Reason::Source { files } => format!("source changed: {}", few(files)),
            Reason::Evicted {
                seconds_ago,
                budget_bytes,
                kept_by_bytes,
            } => {
                let enough = match kept_by_bytes {
                    Some(enough) => format!("; {} would have kept it", bytes(*enough)),
                    None => String::new(),
                };
                let budget = bytes(*budget_bytes);
                let when = seconds_ago.as_ref().map(ago).unwrap_or("lately".to_owned());
                format!("evicted {when} at a budget of {budget}{enough}")
            }
            Reason::Quota { seconds_ago } => {
                let when = seconds_ago.as_ref().map(ago).unwrap_or("lately".to_owned());
                format!("evicted {when} by its namespace's quota")
            }
            Reason::Age { seconds_ago } => {
                format!("removed {}: nobody had used it for too long", ago(seconds_ago))
            }
            Reason::Purged { seconds_ago } => format!("purged {}", ago(seconds_ago)),
            Reason::Refused { cause } => format!("compiled before, but not stored: {cause}"),
            Reason::Broken { seconds_ago: None } => {
                "the client could not use what it was sent, and compiled".to_owned()
            }
            Reason::Broken {
                seconds_ago: Some(seconds),
            } => format!("its file was damaged, and removed {}", ago(seconds)),
            Reason::NotCacheable { cause } => match remedy(cause) {
                Some(remedy) => format!("not cacheable ({cause}): {remedy}"),
                None => format!("not cacheable: {cause}"),
            },
            Reason::Away { cause } => format!("the cache could not be asked: {cause}"),
            Reason::CompileFailed => "the compiler found errors".to_owned(),
            Reason::Unknown => {
                "all parts that a recorder sees are those of an earlier compile, and the key is another".to_owned()
            }
        }
    }
}

/// What can be done about what sccache does not cache.
fn remedy(cause: &str) -> Option<&'static str> {
    let linked = "what is linked is never cached; the libraries in it are";
    Some(match cause {
        "incremental" => "set CARGO_INCREMENTAL=0, or incremental = false in the profile",
        "crate-type, proc-macro" => {
            "macros are linked, and what is linked is never cached; the libraries in it are"
        }
        "crate-type, none" => {
            "tests are linked, and what is linked is never cached; the libraries in it are"
        }
        _ if cause.starts_with("crate-type") => linked,
        "unsupported --emit" => "without --emit asm, llvm-ir and the like it is cached",
        "multiple input files" => "one source file for each call of the compiler",
        _ => return None,
    })
}

/// The first of many, and how many more there are.
fn few(names: &[String]) -> String {
    let shown = names.iter().take(SHOWN).map(String::as_str);
    let shown = shown.collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(reason: Reason, expected: &str) {
        assert_eq!(reason.text(), expected);
        let json = serde_json::to_value(&reason).unwrap();
        assert_eq!(json["reason"], reason.label());
        let back: Reason = serde_json::from_value(json).unwrap();
        assert_eq!(back, reason);
    }

    #[test]
    fn each_reason_is_a_sentence_with_what_can_be_done() {
        check(
            Reason::Evicted {
                seconds_ago: Some(3720),
                budget_bytes: 1 << 30,
                kept_by_bytes: Some(3 << 30),
            },
            "evicted 1h 2m ago at a budget of 1.0 GiB; 3.0 GiB would have kept it",
        );
        check(
            Reason::Variable {
                name: "CARGO_TERM_COLOR".into(),
                now: Some("always".into()),
                before: None,
                also: Vec::new(),
            },
            "the variable CARGO_TERM_COLOR is always, and was unset",
        );
        check(
            Reason::Variable {
                name: "CARGO_REGISTRY_TOKEN".into(),
                now: None,
                before: None,
                also: vec!["CARGO_X".into()],
            },
            "the variable CARGO_REGISTRY_TOKEN has another value; so do CARGO_X",
        );
        check(
            Reason::Dependency {
                root: "base".into(),
                chain: vec!["mid".into(), "base".into()],
                because: Some(Box::new(Reason::Source {
                    files: vec!["src/lib.rs".into()],
                })),
            },
            "follows base (2 crates down): source changed: src/lib.rs",
        );
        check(
            Reason::NotCacheable {
                cause: "incremental".into(),
            },
            "not cacheable (incremental): set CARGO_INCREMENTAL=0, or incremental = false in the profile",
        );
        let names = |range: std::ops::Range<u8>| range.map(|it| format!("-C x{it}")).collect();
        check(
            Reason::Flags {
                added: names(0..6),
                removed: Vec::new(),
            },
            "other flags or features: with -C x0, -C x1, -C x2, -C x3 and 2 more",
        );
    }
}
