//! What the claims of ID tokens say of the jobs that have them. Pure.

use std::collections::BTreeMap;

/// What has started a pipeline of GitLab's.
pub(super) const PIPELINE_SOURCE: &str = "pipeline_source";
/// Claims that name a project for good: a project's name can be another one's later.
pub(super) const IDENTITIES: [&str; 5] = [
    "repository_id",
    "repository_owner_id",
    "project_id",
    "namespace_id",
    "sub",
];
/// The number of a pull or merge request; in their jobs alone.
pub(super) const REF_NUMBER: &str = "ref_number";
/// Claims and their values in jobs that build what somebody proposes. GitLab gives them the name of the branch that it comes
/// from, which may be `main` of a fork.
pub(super) const PROPOSED: [(&str, &str); 3] = [
    ("event_name", "pull_request"),
    (PIPELINE_SOURCE, "merge_request_event"),
    (PIPELINE_SOURCE, "external_pull_request_event"),
];

/// Whether the claims of a rule are those of GitLab's merge requests alone, whose `ref` may be called as another branch is.
pub(super) fn are_of_merge_requests(claims: &BTreeMap<String, Vec<String>>) -> bool {
    let is_proposed = |value: &String| PROPOSED.contains(&(PIPELINE_SOURCE, value));
    let values = claims.get(PIPELINE_SOURCE);
    values.is_some_and(|values| values.iter().all(is_proposed))
}

/// Whether a claim's value is a number that nobody chooses.
pub(crate) fn is_number(claim: &str) -> bool {
    claim == REF_NUMBER || claim != "sub" && IDENTITIES.contains(&claim)
}
