//! Groups of namespaces that share a place on the disk, a quota and a number: `pr/*` is all below `pr`. Of how many its
//! members are nobody keeps account, so that there may be any number of them. Pure.

use crate::contract::gateway_config::Policies;

/// What ends the name of a group.
const END: &str = "/*";

/// The groups that have a rule, by name.
#[derive(Debug, Default)]
pub(super) struct Groups(Vec<String>);

impl Groups {
    pub(super) fn new(policies: &Policies) -> Groups {
        let names = policies.quotas.keys().chain(&policies.pinned);
        let names = names.chain(policies.ages.keys());
        let mut groups: Vec<String> = names.filter(|name| is_group(name)).cloned().collect();
        // The narrower one of two that fit first.
        groups.sort_by_key(|name| std::cmp::Reverse(name.len()));
        groups.dedup();
        Groups(groups)
    }

    /// The name under which a namespace is kept: its group's, or its own.
    pub(super) fn home<'a>(&'a self, namespace: &'a str) -> &'a str {
        let fits = |group: &&String| {
            let folder = &group[..group.len() - END.len() + 1];
            namespace.len() > folder.len() && namespace.starts_with(folder)
        };
        self.0.iter().find(fits).map_or(namespace, String::as_str)
    }

    /// Whether a folder of this name, found on the disk, can hold blobs that are looked for there: not one that was
    /// made while there were other groups.
    pub(super) fn has_place(&self, name: &str) -> bool {
        self.home(name) == name && (!is_group(name) || self.is_one(name))
    }

    /// Whether this is the name of a group.
    pub(super) fn is_one(&self, name: &str) -> bool {
        self.0.iter().any(|group| group == name)
    }
}

fn is_group(name: &str) -> bool {
    name.len() > END.len() && name.ends_with(END)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_below_a_group_are_kept_under_its_name() {
        let quotas = ["pr/*", "main", "pr/bots/*"].map(|name| (name.to_owned(), 1));
        let groups = Groups::new(&Policies {
            quotas: quotas.into(),
            pinned: ["pr/*".to_owned()].into(),
            ..Policies::default()
        });
        for (namespace, home) in [
            ("pr/42", "pr/*"),
            ("pr/42/x", "pr/*"),
            ("pr/bots/1", "pr/bots/*"),
            ("pr/bots", "pr/*"),
            ("pr", "pr"),
            ("prs/42", "prs/42"),
            ("main", "main"),
            ("", ""),
            ("pr/*", "pr/*"),
        ] {
            assert_eq!(groups.home(namespace), home, "{namespace}");
        }
        assert!(groups.has_place("pr/*") && groups.has_place("main"));
        assert!(!groups.has_place("pr/42") && !groups.has_place("mr/*"));
    }
}
