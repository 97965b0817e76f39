//! Names of namespaces in which placeholders, `${CLAIM}`, stand for what an ID token says. Pure.
//!
//! Whoever can choose the value of a claim, such as the name of a branch, must get into no namespace that is another's: no
//! such placeholder is in the first folder, and no value makes a name that somebody else writes.

use super::claims::{are_of_merge_requests, is_number};
use super::{Grant, TokensFile, shown};

/// In the place of a name.
const LOCAL: &str = "[[local]]";

/// A folder of a template.
#[derive(Debug, Default)]
struct Folder<'a> {
    /// What stands before its first placeholder; all of it where there is none.
    before: &'a str,
    /// The claims of its placeholders.
    claims: Vec<&'a str>,
    /// What stands behind the last one.
    behind: &'a str,
}

/// The folders of a template. A slash in a claim's name, which may be a URL, begins none.
fn folders(template: &str) -> Vec<Folder<'_>> {
    let mut done = Vec::new();
    let mut folder = Folder::default();
    let mut rest = template;
    loop {
        let (text, placeholder) = match rest.split_once("${") {
            Some((text, placeholder)) => (text, Some(placeholder)),
            None => (rest, None),
        };
        for (number, text) in text.split('/').enumerate() {
            if number > 0 {
                done.push(std::mem::take(&mut folder));
            }
            match folder.claims.is_empty() {
                true => folder.before = text,
                false => folder.behind = text,
            }
        }
        let Some((claim, behind)) = placeholder.and_then(|text| text.split_once('}')) else {
            done.push(folder);
            return done;
        };
        folder.claims.push(claim);
        rest = behind;
    }
}

/// The claims of all placeholders.
pub(super) fn claims(template: &str) -> Vec<&str> {
    let folders = folders(template).into_iter();
    folders.flat_map(|folder| folder.claims).collect()
}

/// Whether somebody can choose the first folder.
pub(super) fn is_open(template: &str) -> bool {
    let first = folders(template).into_iter().next().unwrap_or_default();
    !first.claims.into_iter().all(is_number)
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
    let chosen_by_path = file
        .tokens
        .iter()
        .filter(|token| token.access == Grant::Write);
    let written_below: Vec<(&str, &str)> = chosen_by_path
        .flat_map(|token| {
            let below = token.namespaces.iter().flatten();
            below.map(|name| (token.name.as_str(), name.as_str()))
        })
        .collect();
    let merge_requests = |name: &str| {
        let mut rules = file.rules.iter();
        rules.any(|rule| rule.name == name && are_of_merge_requests(&rule.claims))
    };
    for rule in &file.rules {
        let is_template = |name: &&String| name.contains("${");
        for name in rule.layers.read.iter().filter(is_template) {
            let writes = rule.layers.write.as_ref() == Some(name);
            // A merge request's branch may be called as one of another rule. What is read behind it is not its own.
            let is_branch_alone =
                writes && are_of_merge_requests(&rule.claims) && !rule.layers.is_branch();
            let met = written.iter().find(|(owner, other)| {
                *owner != rule.name
                    && ((writes || !other.contains("${")) && may_meet(name, other)
                        || is_branch_alone && name == other && !merge_requests(owner))
            });
            let met = met.or_else(|| {
                let mut below = written_below.iter();
                below.find(|(_, other)| may_be_below(name, other))
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
    let (folders, others) = (folders(one), folders(other));
    one != other && folders.len() == others.len() && all_alike(&folders, &others)
}

/// Whether a placeholder in the template's first folder leads into a namespace or one below it.
fn may_be_below(template: &str, namespace: &str) -> bool {
    let (folders, others) = (folders(template), folders(namespace));
    let is_fixed = folders.first().is_none_or(|first| first.claims.is_empty());
    !is_fixed && folders.len() >= others.len() && all_alike(&folders, &others)
}

fn all_alike(one: &[Folder<'_>], other: &[Folder<'_>]) -> bool {
    let mut both = (0..).zip(one.iter().zip(other));
    both.all(|(number, (one, other))| are_alike(one, other, number == 0))
}

/// Whether these folders can be the same.
fn are_alike(one: &Folder<'_>, other: &Folder<'_>, are_first: bool) -> bool {
    match (one.claims.as_slice(), other.claims.as_slice()) {
        ([], []) => one.before == other.before,
        (_, []) => are_alike(other, one, are_first),
        ([], claims) => {
            let rest = one.before.strip_prefix(other.before);
            let value = rest.and_then(|rest| rest.strip_suffix(other.behind));
            let is_chosen = !claims.iter().copied().all(is_number);
            let is_number = |value: &str| value.bytes().all(|byte| byte.is_ascii_digit());
            value.is_some_and(|value| {
                // A token may be for a certain number. But it is chance if somebody's own folder is called by one.
                let is_met = is_chosen || are_first && (claims.len() > 1 || is_number(value));
                is_met && !value.is_empty()
            })
        }
        (_, _) => {
            let begins = |one: &str, other: &str| one.starts_with(other) || other.starts_with(one);
            let ends = |one: &str, other: &str| one.ends_with(other) || other.ends_with(one);
            begins(one.before, other.before) && ends(one.behind, other.behind)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
            // Slashes in a claim's name begin no folder.
            ("branch/${https://corp/branch}", "branch/main", true),
            ("branch/${https://corp/branch}", "branch/main/x", false),
            ("x/${a/}y${b/}", "x/1y2", true),
            ("x/${a/}y${b/}", "x/1/2", false),
            ("x/${a/z/}", "x/main", true),
            ("x/${a/}y${b/}", "x/${a/z/}", true),
            ("x/${a/z/}-", "x/${b}-${c/}", true),
            ("x/${a/z/}-y/m", "x/${b}/m", true),
            // Nobody chooses an id, which is a number.
            ("repo/${repository_id}", "repo/1001", false),
            ("repo/${repository_id}", "repo/main", false),
            ("repo/${project_id}-${ref_number}", "repo/7-42", false),
            ("repo/${project_id}-${ref}", "repo/7-42", true),
            ("repo/${repository_id}", "repo/${ref}", true),
            ("repo/${sub}", "repo/1001", true),
            // But somebody's folder may be called by a number.
            ("${repository_id}/main", "1001/main", true),
            ("${repository_id}/main", "team/main", false),
            ("n${repository_id}/main", "n7/main", true),
            ("${repository_id}-${project_id}/main", "1-2/main", true),
            ("${repository_id}/${ref}", "1001/main", true),
        ] {
            assert_eq!(may_meet(one, other), meet, "{one} {other}");
            assert_eq!(may_meet(other, one), meet, "{other} {one}");
        }
    }

    #[test]
    fn nobody_chooses_the_first_folder() {
        for (template, open) in [
            ("main", false),
            ("branch/${ref}", false),
            ("${ref}/main", true),
            ("p${ref}/main", true),
            ("${https://corp/branch}", true),
            ("${https://corp/branch}/main", true),
            ("${repository_id}/main", false),
            ("${project_id}-${ref_number}/x", false),
            ("${repository_id}-${ref}/main", true),
        ] {
            assert_eq!(is_open(template), open, "{template}");
        }
    }

    proptest! {
        #[test]
        fn any_templates_are_compared(
            one in "([a-c/-]|\\$\\{[a-c/$\\{]{0,3}\\}?){0,6}",
            other in "([a-c/-]|\\$\\{[a-c/]{0,2}\\}){0,6}",
        ) {
            prop_assert_eq!(may_meet(&one, &other), may_meet(&other, &one));
            let _ = is_open(&one);
        }
    }
}
