//! Which rule fits a token's claims, and what its holder may do by it. Pure.

use super::verify::Claims;
use crate::contract::key::namespace_of_shown;
use crate::contract::tokens::Layers;
use crate::contract::tokens::claims::is_number;
use crate::contract::tokens::layers::is_layer;
use crate::contract::tokens::rules::{self, Rule};

/// Longest value that is put into a name as it is.
const LONGEST: usize = 64;
/// What begins a value that was not fit to be put into a name.
const HASHED: &str = "h-";

/// What a token is exchanged for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Grant {
    /// Where its holder may go.
    pub(crate) layers: Layers,
    /// Good for the scheduler too.
    pub(crate) distribute: bool,
    /// The build that it belongs to; empty where nothing says.
    pub(crate) build: String,
}

/// Whether each claim of the rule has one of the values, to the letter.
pub(super) fn fits(rule: &Rule, claims: &Claims) -> bool {
    rule.claims.iter().all(|(name, values)| {
        let claim = claims.text(name);
        claim.is_some_and(|claim| values.contains(&claim))
    })
}

/// What the rule grants to the holder of these claims.
///
/// # Errors
/// A placeholder stands for a claim that is not there.
pub(super) fn of(rule: &Rule, claims: &Claims) -> Result<Grant, String> {
    let value = |name: &str| match name {
        "ref_number" => ref_number(claims),
        name => claims.text(name).map(|text| match is_number(name) {
            true => number(&text),
            false => sanitized(&text),
        }),
    };
    let fill = |template: &String| {
        // The default namespace, which only a rule itself can name.
        if template.is_empty() {
            return Ok(String::new());
        }
        let is_name = |name: &String| is_layer(name) && !namespace_of_shown(name).is_empty();
        let name = rules::fill(template, value).filter(is_name);
        name.ok_or_else(|| format!("a placeholder of {template:?} has no value"))
    };
    let layers = &rule.layers;
    Ok(Grant {
        layers: Layers {
            read: layers.read.iter().map(fill).collect::<Result<_, _>>()?,
            write: layers.write.as_ref().map(fill).transpose()?,
            replace: layers.replace,
        },
        distribute: rule.distribute,
        build: ["run_id", "pipeline_id", "job_id"]
            .iter()
            .find_map(|name| claims.text(name))
            .map(|id| short(&sanitized(&id)))
            .unwrap_or_default(),
    })
}

/// The number of a pull or merge request, which stands in `ref` alone, and means it only in jobs for one.
fn ref_number(claims: &Claims) -> Option<String> {
    let reference = claims.text("ref")?;
    let rest = match claims.text("event_name") {
        Some(event) if event == "pull_request" => reference.strip_prefix("refs/pull/")?,
        Some(_) => return None,
        None => reference.strip_prefix("refs/merge-requests/")?,
    };
    let (number, _) = rest.split_once('/')?;
    let is_number =
        !number.is_empty() && number.len() < 20 && number.bytes().all(|it| it.is_ascii_digit());
    is_number.then(|| number.to_owned())
}

/// A build's number as it is; what is longer than such numbers are, shortened, because there is little room for it.
fn short(id: &str) -> String {
    match id.len() {
        0..=20 => id.to_owned(),
        _ => format!("{HASHED}{}", &blake3::hash(id.as_bytes()).to_hex()[..18]),
    }
}

/// A value as a part of a name: as it is where nothing in it could mean something else, and a hash elsewhere.
fn sanitized(value: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let as_it_is = (1..=LONGEST).contains(&value.len())
        && value.bytes().all(is_plain)
        && !matches!(value, "." | "..")
        // Or somebody could take the name that another's hash has.
        && !value.starts_with(HASHED);
    match as_it_is {
        true => value.to_owned(),
        false => hashed(value),
    }
}

/// The same for an id. What is no number might be anybody's folder.
fn number(value: &str) -> String {
    match value.bytes().all(|byte| byte.is_ascii_digit()) {
        true => sanitized(value),
        false => hashed(value),
    }
}

fn hashed(value: &str) -> String {
    format!("{HASHED}{}", &blake3::hash(value.as_bytes()).to_hex()[..32])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn claims(value: Value) -> Claims {
        serde_json::from_value(value).unwrap()
    }

    fn rule(claims: &[(&str, &[&str])], read: &[&str], write: Option<&str>) -> Rule {
        let claims = claims.iter().map(|(name, values)| {
            let values = values.iter().map(|&value| value.to_owned());
            ((*name).to_owned(), values.collect())
        });
        Rule {
            name: "r".into(),
            issuer: "i".into(),
            claims: claims.collect(),
            layers: Layers {
                read: read.iter().map(|&name| name.to_owned()).collect(),
                write: write.map(str::to_owned),
                replace: false,
            },
            distribute: false,
        }
    }

    #[test]
    fn claims_are_compared_whole_and_as_text() {
        let token = claims(
            json!({"ref": "refs/heads/main", "id": 7, "protected": true, "list": ["a"], "n": null}),
        );
        for (name, value, expected) in [
            ("ref", "refs/heads/main", true),
            ("ref", "refs/heads/mai", false),
            ("ref", "refs/heads/main2", false),
            ("ref", "REFS/heads/main", false),
            ("ref", "refs/heads/*", false),
            ("id", "7", true),
            ("id", "7.0", false),
            ("protected", "true", true),
            ("list", "a", false),
            ("n", "null", false),
            ("missing", "", false),
        ] {
            assert_eq!(
                fits(&rule(&[(name, &[value])], &["main"], None), &token),
                expected,
                "{name}={value}"
            );
        }
        let both = rule(
            &[("id", &["8", "7"]), ("protected", &["true"])],
            &["main"],
            None,
        );
        assert!(fits(&both, &token));
    }

    #[test]
    fn number_of_a_pull_request_is_taken_from_its_ref_alone() {
        let pull = rule(&[], &["pr/${ref_number}", "main"], Some("pr/${ref_number}"));
        let of = |event: Option<&str>, reference: &str| {
            let mut token = json!({"ref": reference, "run_id": "99"});
            if let Some(event) = event {
                token["event_name"] = event.into();
            }
            super::of(&pull, &claims(token))
                .ok()
                .map(|grant| grant.layers.write.unwrap())
        };
        let pull_request = Some("pull_request");
        assert_eq!(
            of(pull_request, "refs/pull/42/merge").as_deref(),
            Some("pr/42")
        );
        assert_eq!(
            of(None, "refs/merge-requests/7/head").as_deref(),
            Some("pr/7")
        );
        for (event, reference) in [
            (Some("push"), "refs/pull/42/merge"),
            (Some("pull_request_target"), "refs/pull/42/merge"),
            (pull_request, "refs/heads/pull/42/merge"),
            (pull_request, "refs/pull//merge"),
            (pull_request, "refs/pull/42"),
            (pull_request, "refs/pull/-1/merge"),
            (pull_request, "refs/pull/4 2/merge"),
            (pull_request, "refs/pull/../merge"),
            (pull_request, "refs/merge-requests/7/head"),
            (None, "refs/pull/42/merge"),
        ] {
            assert_eq!(of(event, reference), None, "{event:?} {reference}");
        }
    }

    #[test]
    fn no_name_of_a_branch_leads_elsewhere() {
        let branch = rule(&[], &["branch/${ref}"], Some("branch/${ref}"));
        let mut seen = std::collections::BTreeSet::new();
        for value in [
            "main",
            "Main",
            "../main",
            "main/../x",
            "a/b",
            "main%2f..",
            "refs/heads/main",
            ".",
            "..",
            "",
            " ",
            "ä",
            "main\0",
            "main\n",
            "h-0123",
            &"x".repeat(255),
            &"x".repeat(64),
            "${ref}",
        ] {
            let grant = of(&branch, &claims(json!({"ref": value}))).unwrap();
            let write = grant.layers.write.unwrap();
            assert!(is_layer(&write), "{write}");
            assert_eq!(write.matches('/').count(), 1, "{write}");
            assert!(seen.insert(write), "{value:?} shares a name");
        }
        assert!(seen.contains("branch/main"));
        let hash = sanitized("a/b");
        assert_ne!(
            sanitized(&hash),
            hash,
            "a hash cannot be had by its own name"
        );
    }

    #[test]
    fn what_takes_the_place_of_an_id_is_a_number_or_a_hash() {
        let own = rule(&[], &["${repository_id}/main"], None);
        let of = |id: Value| {
            let grant = of(&own, &claims(json!({ "repository_id": id }))).unwrap();
            grant.layers.read[0].clone()
        };
        assert_eq!(of(json!(1001)), "1001/main");
        assert_eq!(of(json!("1001")), "1001/main");
        for id in ["team", "1001x", "", "-1", "h-1"] {
            assert!(of(json!(id)).starts_with(HASHED), "{id}");
        }
    }

    #[test]
    fn default_namespace_is_the_rules_to_name_and_no_branchs() {
        let token = claims(json!({"ref": "default"}));
        let plain = of(&rule(&[], &["${ref}x", ""], Some("")), &token).unwrap();
        assert_eq!(plain.layers.read, ["defaultx", ""]);
        assert_eq!(plain.layers.write.as_deref(), Some(""));
        assert!(of(&rule(&[], &["${ref}", ""], None), &token).is_err());
    }

    proptest! {
        #[test]
        fn any_values_stay_apart(one in ".{0,80}", other in ".{0,80}") {
            prop_assert_eq!(sanitized(&one) == sanitized(&other), one == other);
        }
    }
}
