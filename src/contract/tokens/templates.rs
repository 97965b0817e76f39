//! Names of namespaces in which placeholders, `${CLAIM}`, stand for what an ID token says. Pure.
//!
//! Whoever can choose the value of a claim, such as the name of a branch, must get into no namespace that is another's: no
//! placeholder is in the first folder, and no value makes a name that somebody else writes.

use super::{TokensFile, shown};

/// Stands for the number of a pull request, which nobody chooses: a token may be for a certain one.
const REF_NUMBER: &str = "${ref_number}";
/// In the place of a name.
const LOCAL: &str = "[[local]]";

/// Whether a placeholder stands in the first folder.
pub(super) fn is_open(template: &str) -> bool {
    let first = template.split('/').next().unwrap_or_default();
    first.contains("${")
}

/// What is wrong with the namespaces of rules beside those that others write: no claim may have a value with which its
/// holder gets into one of these.
pub(super) fn check_namespaces(file: &TokensFile, faults: &mut Vec<String>) {
    let tokens = file.tokens.iter();
    let tokens = tokens.filter_map(|token| Some((token.name.as_str(), token.layers.as_ref()?)));
    let rules = file.rules.iter();
    let rules = rules.map(|rule| (rule.name.as_str(), &rule.layers));
    let local = file.local.iter().map(|one| (LOCAL, &one.layers));
    let all = tokens.chain(rules).chain(local);
    let written: Vec<(&str, &str)> = all
        .filter_map(|(owner, layers)| Some((owner, layers.write.as_deref()?)))
        .collect();
    for rule in &file.rules {
        let is_open = |name: &&String| name.contains("${");
        for name in rule.layers.read.iter().filter(is_open) {
            let writes = rule.layers.write.as_ref() == Some(name);
            let met = written.iter().find(|(owner, other)| {
                *owner != rule.name && (writes || !other.contains("${")) && may_meet(name, other)
            });
            if let Some((owner, _)) = met {
                faults.push(format!(
                    "the rule \"{}\" has \"{name}\", which some value of its claim makes a namespace that {} writes: use another \
                     first folder",
                    rule.name,
                    if *owner == LOCAL { LOCAL.to_owned() } else { shown(owner) }
                ));
            }
        }
    }
}

/// Whether two different templates can be filled to be the same name.
fn may_meet(one: &str, other: &str) -> bool {
    let folders = |template: &str| template.matches('/').count();
    let mut both = one.split('/').zip(other.split('/'));
    one != other && folders(one) == folders(other) && both.all(|(one, other)| are_alike(one, other))
}

/// The same for a folder of each, by what stands before its first placeholder and behind its last one.
fn are_alike(one: &str, other: &str) -> bool {
    let ends = |folder: &'_ str| -> Option<(usize, usize)> {
        Some((folder.find("${")?, folder.len() - folder.rfind('}')? - 1))
    };
    match (ends(one), ends(other)) {
        (None, None) => one == other,
        (Some(_), None) => are_alike(other, one),
        (None, Some((before, behind))) => {
            let rest = one.strip_prefix(&other[..before]);
            let value = rest.and_then(|rest| rest.strip_suffix(&other[other.len() - behind..]));
            let is_chosen = &other[before..other.len() - behind] != REF_NUMBER;
            is_chosen && value.is_some_and(|value| !value.is_empty())
        }
        (Some((before, behind)), Some((other_before, other_behind))) => {
            let begins = before.min(other_before);
            let ends = behind.min(other_behind);
            one[..begins] == other[..begins]
                && one[one.len() - ends..] == other[other.len() - ends..]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_that_can_be_one_name_are_told() {
        for (one, other, meet) in [
            ("branch/${ref}", "branch/main", true),
            ("branch/${ref}", "branch/${head_ref}", true),
            ("branch/${ref}", "branch/${ref}", false),
            ("branch/${ref}", "branch", false),
            ("branch/${ref}", "branch/main/x", false),
            ("branch/${ref}", "branches/main", false),
            ("pr/${ref_number}", "pr/42", false),
            ("pr/${ref}", "pr/42", true),
            ("pr/${ref_number}", "pr/main", false),
            ("pr/${ref_number}", "pr/${ref}", true),
            ("pr/n-${ref}", "pr/main", false),
            ("pr/n-${ref}", "pr/n-", false),
            ("pr/n-${ref}", "pr/n-1", true),
            ("pr/${ref}-x", "pr/n-${ref}", true),
            ("pr/${ref}-x", "pr/${ref}-y", false),
            ("pr/a-${ref}", "pr/b-${ref}", false),
            ("pr/${a}-${b}", "pr/x-y", true),
            ("pr/${a}/${b}", "pr/1/2", true),
            ("main", "main", false),
        ] {
            assert_eq!(may_meet(one, other), meet, "{one} {other}");
            assert_eq!(may_meet(other, one), meet, "{other} {one}");
        }
    }
}
