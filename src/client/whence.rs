//! What builds are put together by: their job, repository and branch, by the CI's variables or the checkout.

use crate::explain::print::without_users;
use crate::explain::protocol::Labels;
use std::collections::BTreeMap;
use std::path::Path;

/// What builds are put together by.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Whence {
    /// Name of the job [default: from the CI service]
    #[arg(long, value_name = "NAME")]
    pub job: Option<String>,
    /// The repository [default: from the CI service, else the name of the checkout's folder]
    #[arg(long, value_name = "NAME")]
    pub repository: Option<String>,
    /// The branch [default: from the CI service, else from the checkout]
    #[arg(long, value_name = "NAME")]
    pub branch: Option<String>,
}

impl Whence {
    /// From what was typed, what the CI says, and the checkout.
    pub(crate) fn labels(&self, environment: &BTreeMap<String, String>, root: &Path) -> Labels {
        let set = |names: &[&str]| {
            let mut values = names.iter().filter_map(|name| environment.get(*name));
            values.find(|value| !value.is_empty()).cloned()
        };
        // Somebody may give a repository's URL, with whoever clones it.
        let own = |typed: &Option<String>, names: &[&str]| {
            let found = typed.clone().or_else(|| set(names));
            found.map(|it| without_users(&it))
        };
        Labels {
            job: own(&self.job, &["GITHUB_JOB", "CI_JOB_NAME"]),
            repository: own(&self.repository, &["GITHUB_REPOSITORY", "CI_PROJECT_PATH"])
                .or_else(|| Some(root.file_name()?.to_string_lossy().into_owned())),
            branch: own(
                &self.branch,
                &["GITHUB_HEAD_REF", "GITHUB_REF_NAME", "CI_COMMIT_REF_NAME"],
            )
            .or_else(|| branch(root)),
        }
    }
}

fn branch(root: &Path) -> Option<String> {
    let head = std::fs::read_to_string(root.join(".git/HEAD")).ok()?;
    let branch = head.trim().strip_prefix("ref: refs/heads/")?;
    Some(branch.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builds_are_named_by_the_ci_or_the_checkout() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("project");
        std::fs::create_dir_all(root.join(".git")).unwrap();
        std::fs::write(root.join(".git/HEAD"), "ref: refs/heads/team/x\n").unwrap();
        let some = |text: &str| Some(text.to_owned());
        let mut environment = BTreeMap::new();
        let labels = Whence::default().labels(&environment, &root);
        let expected = Labels {
            job: None,
            repository: some("project"),
            branch: some("team/x"),
        };
        assert_eq!(labels, expected);
        for (name, value) in [
            ("GITHUB_JOB", "test"),
            ("GITHUB_REPOSITORY", "team/project"),
            ("GITHUB_HEAD_REF", ""),
            ("GITHUB_REF_NAME", "main"),
        ] {
            environment.insert(name.to_owned(), value.to_owned());
        }
        let typed = Whence {
            job: some("nightly"),
            ..Whence::default()
        };
        let expected = Labels {
            job: some("nightly"),
            repository: some("team/project"),
            branch: some("main"),
        };
        let url = Whence {
            repository: some("https://ci:hunter2@host/team/project"),
            ..Whence::default()
        };
        let labels = url.labels(&environment, &root);
        assert_eq!(labels.repository, some("https://***@host/team/project"));
        assert_eq!(typed.labels(&environment, &root), expected);
    }
}
