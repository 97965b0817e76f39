//! From two fingerprints to a reason: the first that is true, in one order for all.
//!
//! An earlier compile of the same crate is worth comparing with if it differs in as few parts as any, the latest of
//! those. In what parts it differs is said in the order in which one causes another: a compiler changes what
//! dependencies are made of, and a changed dependency is no change of this crate's own.

use super::print::{Print, Value, is_secret};
use super::reason::Reason;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// An earlier compile of the same crate.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Earlier {
    /// Its parts.
    pub print: Print,
    /// When it was recorded.
    pub unix_seconds: u64,
    /// What became of its result.
    pub fate: Fate,
}

/// What became of a result.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "fate", rename_all = "snake_case")]
pub enum Fate {
    /// Nothing that is known: it is there, or was never stored.
    #[default]
    Unknown,
    /// It never came.
    NotStored { cause: String },
    /// It made room for others.
    Evicted { at: u64, budget: u64 },
    /// Its namespace's quota.
    Quota { at: u64 },
    /// Nobody had used it for too long.
    Age { at: u64 },
    /// Somebody removed it.
    Purged { at: u64 },
    /// It was damaged.
    Broken { at: u64 },
}

impl Fate {
    /// As a reason, at a time; `kept_by` is the least budget that would have kept it.
    pub fn reason(&self, now: u64, kept_by: Option<u64>) -> Option<Reason> {
        let ago = |at: &u64| now.saturating_sub(*at);
        Some(match self {
            Fate::Unknown => return None,
            Fate::NotStored { cause } => Reason::Refused {
                cause: cause.clone(),
            },
            Fate::Evicted { at, budget } => Reason::Evicted {
                seconds_ago: Some(ago(at)),
                budget_bytes: *budget,
                kept_by_bytes: kept_by,
            },
            Fate::Quota { at } => Reason::Quota {
                seconds_ago: Some(ago(at)),
            },
            Fate::Age { at } => Reason::Age {
                seconds_ago: ago(at),
            },
            Fate::Purged { at } => Reason::Purged {
                seconds_ago: ago(at),
            },
            Fate::Broken { at } => Reason::Broken {
                seconds_ago: Some(ago(at)),
            },
        })
    }
}

/// Why a compile with these parts was no hit, and what else differs. `kept_by` is the least budget that would have kept
/// its result, if the cache remembers to have had it.
pub fn decide(
    print: &Print,
    earlier: &[Earlier],
    kept_by: Option<u64>,
    now: u64,
) -> (Reason, Vec<Reason>) {
    let compared = earlier
        .iter()
        .map(|one| (differences(print, &one.print), one));
    let nearest = compared.min_by_key(|(differences, one)| {
        let details: usize = differences.iter().map(details).sum();
        let age = std::cmp::Reverse(one.unix_seconds);
        (differences.len(), details, age)
    });
    match nearest {
        None => (Reason::NeverBuilt, Vec::new()),
        Some((differences, one)) => {
            let mut differences = differences.into_iter();
            match differences.next() {
                Some(first) => (first, differences.collect()),
                None => (
                    one.fate.reason(now, kept_by).unwrap_or(Reason::Unknown),
                    Vec::new(),
                ),
            }
        }
    }
}

/// How many names, flags or files are in a difference.
fn details(difference: &Reason) -> usize {
    match difference {
        Reason::Variable { also, .. } => 1 + also.len(),
        Reason::Flags { added, removed } => added.len() + removed.len(),
        Reason::Dependency { chain, .. } => chain.len(),
        Reason::Source { files } => files.len(),
        _ => 1,
    }
}

/// In what parts two compiles differ.
fn differences(now: &Print, before: &Print) -> Vec<Reason> {
    let mut found = Vec::new();
    if now.compiler != before.compiler {
        found.push(Reason::Compiler {
            now: now.compiler.clone(),
            before: before.compiler.clone(),
        });
    }
    if now.sccache != before.sccache {
        found.push(Reason::Sccache {
            now: now.sccache.clone(),
            before: before.sccache.clone(),
        });
    }
    for (what, now, before) in [
        ("the checkout", &now.root, &before.root),
        ("CARGO_HOME", &now.cargo_home, &before.cargo_home),
    ] {
        // Held by one of them only: a variable or flag tells the difference.
        if let (Some(now), Some(before)) = (now, before)
            && now != before
        {
            found.push(Reason::Path {
                what: what.to_owned(),
                now: now.clone(),
                before: before.clone(),
            });
        }
    }
    found.extend(variables(&now.variables, &before.variables));
    let flags = |one: &Print| -> Vec<String> {
        let features = one.features.iter().map(|it| format!("--cfg {it}"));
        one.flags.iter().cloned().chain(features).collect()
    };
    let (flags_now, flags_before) = (flags(now), flags(before));
    if flags_now != flags_before {
        let missing = |from: &[String], in_: &[String]| -> Vec<String> {
            let them = from.iter().filter(|one| !in_.contains(one));
            them.cloned().collect()
        };
        let (added, removed) = (
            missing(&flags_now, &flags_before),
            missing(&flags_before, &flags_now),
        );
        let added = match added.is_empty() && removed.is_empty() {
            true => vec!["the same ones in another order".to_owned()],
            false => added,
        };
        found.push(Reason::Flags { added, removed });
    }
    let changed = changed(&now.dependencies, &before.dependencies);
    if let Some(first) = changed.first() {
        found.push(Reason::Dependency {
            root: first.clone(),
            chain: changed,
            because: None,
        });
    }
    let files = self::changed(&now.sources, &before.sources);
    if !files.is_empty() {
        found.push(Reason::Source { files });
    }
    found
}

/// The variables that differ: one is named first, with its values if they may be shown.
fn variables(now: &BTreeMap<String, Value>, before: &BTreeMap<String, Value>) -> Option<Reason> {
    let mut names = changed(now, before).into_iter();
    let name = names.next()?;
    let (value, old) = (now.get(&name), before.get(&name));
    let is_shown = |value: Option<&Value>| match value {
        None => true,
        Some(value) => matches!(value, Value::Plain(_)) && !is_secret(&name),
    };
    let shown = |value: Option<&Value>| match value {
        Some(Value::Plain(text)) => Some(text.clone()),
        Some(Value::Hash(_)) => Some("set".to_owned()),
        None => None,
    };
    let (now, before) = match (value, old) {
        // Both are set, and to what is nobody's business.
        (Some(_), Some(_)) if !is_shown(value) || !is_shown(old) => (None, None),
        _ => (shown(value), shown(old)),
    };
    Some(Reason::Variable {
        name,
        now,
        before,
        also: names.collect(),
    })
}

/// Names that are in one map only, or with other values.
fn changed<V: PartialEq>(now: &BTreeMap<String, V>, before: &BTreeMap<String, V>) -> Vec<String> {
    let differ = now
        .iter()
        .filter(|(name, value)| before.get(*name) != Some(value));
    let gone = before.keys().filter(|name| !now.contains_key(*name));
    let mut names: Vec<String> = differ.map(|(name, _)| name).chain(gone).cloned().collect();
    names.sort();
    names
}

/// The compiles of a build, as far as a chain of dependencies leads through them.
pub struct Compiles<'a> {
    /// As they are told apart.
    pub names: &'a [String],
    /// Why they were no hits.
    pub reasons: &'a [Option<Reason>],
    /// Those that one of them means by a dependency's name.
    pub find: &'a dyn Fn(usize, &str) -> Vec<usize>,
}

impl Compiles<'_> {
    /// Follows dependencies that were no hits either to where their chain begins.
    pub fn follow(&self, of: usize) -> Option<Reason> {
        let reason = self.reasons[of].as_ref()?;
        let Reason::Dependency { chain: changed, .. } = reason else {
            return Some(reason.clone());
        };
        let (mut at, mut candidates) = (of, changed);
        let mut places = Vec::new();
        let mut root = None;
        while root.is_none() {
            let mut found = candidates.iter().flat_map(|name| (self.find)(at, name));
            let next = found.find_map(|next| {
                let reason = self.reasons[next].as_ref()?;
                (!places.contains(&next)).then_some((next, reason))
            });
            let Some((next, reason)) = next else {
                break;
            };
            at = next;
            places.push(at);
            match reason {
                Reason::Dependency { chain, .. } => candidates = chain,
                reason => root = Some(reason),
            }
        }
        let mut chain: Vec<String> = places.iter().map(|at| self.names[*at].clone()).collect();
        if root.is_none() {
            // All that differ were hits, or not recorded.
            let first = candidates.first();
            let place = first.and_then(|name| (self.find)(at, name).first().copied());
            let name = place.map(|place| self.names[place].clone());
            let last = name.or(first.cloned()).unwrap_or_default();
            if chain.last() != Some(&last) {
                chain.push(last);
            }
        }
        Some(Reason::Dependency {
            root: chain.last().cloned().unwrap_or_default(),
            chain,
            because: root.cloned().map(Box::new),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn print() -> Print {
        let pairs = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            let pairs = pairs.iter();
            pairs
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect()
        };
        Print {
            compiler: "rustc 1.95.0".into(),
            sccache: "0.19.0".into(),
            root: Some("/a".into()),
            cargo_home: Some("/home/a/.cargo".into()),
            variables: [
                ("CARGO_TERM_COLOR", Value::Plain("auto".into())),
                ("CARGO_REGISTRY_TOKEN", Value::Hash("11".into())),
            ]
            .map(|(name, value)| (name.to_owned(), value))
            .into(),
            flags: vec!["-C opt-level=3".into()],
            features: vec!["feature=\"std\"".into()],
            dependencies: pairs(&[("base", "01"), ("util", "02")]),
            sources: pairs(&[("src/lib.rs", "03"), ("src/a.rs", "04")]),
        }
    }

    fn earlier(unix_seconds: u64, change: impl FnOnce(&mut Print)) -> Earlier {
        let mut print = print();
        change(&mut print);
        Earlier {
            print,
            unix_seconds,
            fate: Fate::Unknown,
        }
    }

    /// The first reason beside one earlier compile.
    #[track_caller]
    fn check(change: impl FnOnce(&mut Print), expected: Reason) {
        let (found, _) = decide(&print(), &[earlier(1, change)], None, 10);
        assert_eq!(found, expected);
    }

    #[test]
    fn each_part_that_differs_is_named() {
        assert_eq!(decide(&print(), &[], None, 10).0, Reason::NeverBuilt);
        check(
            |it| it.compiler = "rustc 1.94.0".into(),
            Reason::Compiler {
                now: "rustc 1.95.0".into(),
                before: "rustc 1.94.0".into(),
            },
        );
        check(
            |it| it.sccache = "0.18.0".into(),
            Reason::Sccache {
                now: "0.19.0".into(),
                before: "0.18.0".into(),
            },
        );
        check(
            |it| it.root = Some("/b".into()),
            Reason::Path {
                what: "the checkout".into(),
                now: "/a".into(),
                before: "/b".into(),
            },
        );
        check(
            |it| drop(it.variables.remove("CARGO_TERM_COLOR")),
            Reason::Variable {
                name: "CARGO_TERM_COLOR".into(),
                now: Some("auto".into()),
                before: None,
                also: Vec::new(),
            },
        );
        check(
            |it| it.features.clear(),
            Reason::Flags {
                added: vec!["--cfg feature=\"std\"".into()],
                removed: Vec::new(),
            },
        );
        check(
            |it| drop(it.sources.insert("src/a.rs".into(), "05".into())),
            Reason::Source {
                files: vec!["src/a.rs".into()],
            },
        );
        check(|_| {}, Reason::Unknown);
    }

    #[test]
    fn values_of_secrets_are_never_told() {
        for value in [Some(Value::Hash("12".into())), None] {
            let change = |it: &mut Print| {
                it.variables.remove("CARGO_REGISTRY_TOKEN");
                it.variables
                    .extend(value.map(|value| ("CARGO_REGISTRY_TOKEN".to_owned(), value)));
            };
            let (found, _) = decide(&print(), &[earlier(1, change)], None, 10);
            let text = format!("{found:?} {}", found.text());
            assert!(text.contains("CARGO_REGISTRY_TOKEN"), "{text}");
            assert!(!text.contains("11") && !text.contains("12"), "{text}");
        }
    }

    #[test]
    fn first_of_several_differences_is_the_one_that_causes_the_others() {
        let change = |it: &mut Print| {
            it.compiler = "rustc 1.94.0".into();
            it.dependencies.insert("base".into(), "other".into());
        };
        let (found, also) = decide(&print(), &[earlier(1, change)], None, 10);
        assert_eq!(found.label(), "compiler");
        let also: Vec<_> = also.iter().map(Reason::label).collect();
        assert_eq!(also, ["dependency"]);
    }

    #[test]
    fn nearest_earlier_compile_is_compared_with_and_the_latest_of_those() {
        let source = |name: &'static str| {
            move |it: &mut Print| drop(it.sources.insert(name.into(), "other".into()))
        };
        let far = |it: &mut Print| {
            it.root = Some("/b".into());
            it.compiler = "rustc 1.94.0".into();
        };
        let all = [
            earlier(1, source("src/lib.rs")),
            earlier(2, source("src/a.rs")),
            earlier(3, far),
        ];
        let (found, _) = decide(&print(), &all, None, 10);
        let expected = Reason::Source {
            files: vec!["src/a.rs".into()],
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn nearest_is_the_one_with_fewer_names_that_differ() {
        let one = |it: &mut Print| drop(it.variables.remove("CARGO_TERM_COLOR"));
        let two = |it: &mut Print| it.variables.clear();
        let (found, _) = decide(&print(), &[earlier(1, one), earlier(9, two)], None, 10);
        assert!(matches!(found, Reason::Variable { also, .. } if also.is_empty()));
    }

    #[test]
    fn equal_compile_is_told_what_became_of_its_result() {
        let fate = |fate: Fate| {
            let one = Earlier {
                fate,
                ..earlier(1, |_| {})
            };
            decide(&print(), &[one], Some(99), 10).0
        };
        assert_eq!(
            fate(Fate::Evicted { at: 4, budget: 50 }),
            Reason::Evicted {
                seconds_ago: Some(6),
                budget_bytes: 50,
                kept_by_bytes: Some(99),
            }
        );
        assert_eq!(
            fate(Fate::Quota { at: 4 }),
            Reason::Quota {
                seconds_ago: Some(6)
            }
        );
        assert_eq!(fate(Fate::Age { at: 4 }), Reason::Age { seconds_ago: 6 });
        assert_eq!(
            fate(Fate::Purged { at: 11 }),
            Reason::Purged { seconds_ago: 0 }
        );
        assert_eq!(
            fate(Fate::Broken { at: 4 }),
            Reason::Broken {
                seconds_ago: Some(6)
            }
        );
        let cause = "a read-only token".to_owned();
        assert_eq!(
            fate(Fate::NotStored {
                cause: cause.clone()
            }),
            Reason::Refused { cause }
        );
    }

    fn dependency(names: &[&str]) -> Reason {
        let chain: Vec<String> = names.iter().map(|it| (*it).to_owned()).collect();
        Reason::Dependency {
            root: chain[0].clone(),
            chain,
            because: None,
        }
    }

    /// Why the first of these compiles was no hit, each with its name and reason.
    fn followed(compiles: &[(&str, Option<Reason>)]) -> Reason {
        let names: Vec<String> = compiles.iter().map(|it| it.0.to_owned()).collect();
        let reasons: Vec<Option<Reason>> = compiles.iter().map(|it| it.1.clone()).collect();
        let find = |_, name: &str| {
            let all = 0..names.len();
            all.filter(|at| names[*at] == name).collect()
        };
        let compiles = Compiles {
            names: &names,
            reasons: &reasons,
            find: &find,
        };
        compiles.follow(0).unwrap()
    }

    #[test]
    fn chain_of_dependencies_ends_where_it_begins() {
        let source = Reason::Source {
            files: vec!["src/lib.rs".into()],
        };
        let base = ("base", Some(source.clone()));
        let mid = ("mid", Some(dependency(&["base"])));
        let found = followed(&[
            ("top", Some(dependency(&["hit", "mid"]))),
            base.clone(),
            ("hit", None),
            mid,
        ]);
        let expected = Reason::Dependency {
            root: "base".into(),
            chain: vec!["mid".into(), "base".into()],
            because: Some(Box::new(source.clone())),
        };
        assert_eq!(found, expected);
        assert_eq!(followed(&[base]), source);
        for compiles in [&[("hit", None)][..], &[]] {
            let top = ("top", Some(dependency(&["hit"])));
            let found = followed(&[&[top][..], compiles].concat());
            assert_eq!(found, dependency(&["hit"]));
        }
    }

    #[test]
    fn chain_that_bites_its_tail_ends() {
        let found = followed(&[
            ("top", Some(dependency(&["a"]))),
            ("a", Some(dependency(&["b"]))),
            ("b", Some(dependency(&["a"]))),
        ]);
        assert!(matches!(found, Reason::Dependency { because: None, .. }));
    }
}
