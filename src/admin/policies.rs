//! What quotas, pins, ages and the check of all blobs did, as lines of `status`. Pure.

use crate::base::human::bytes;
use crate::contract::gateway_status::{LostHits, NamespaceStatus, Status};

/// Lines that say something; nothing where nothing happened.
pub(super) fn lines(cache: &Status) -> Vec<(&'static str, String)> {
    let (store, lost) = (&cache.store, &cache.lost_hits);
    let mut lines = Vec::new();
    if lost.count > 0 {
        let quota = match lost.by_quota {
            0 => String::new(),
            count => format!(", {count} of them because of a quota"),
        };
        let advice = advice(lost);
        let text = format!(
            "{} misses ({}) were evicted before{quota}{advice}",
            lost.count,
            bytes(lost.bytes)
        );
        lines.push(("lost", text));
    }
    if store.expired_entries > 0 {
        let size = bytes(store.expired_bytes);
        let text = format!("{} blobs ({size}) were too old", store.expired_entries);
        lines.push(("expired", text));
    }
    if store.pinned_refusals > 0 {
        let count = store.pinned_refusals;
        let text = format!("{count} writes were refused: all that could make room is pinned");
        lines.push(("pinned", text));
    }
    let integrity = &cache.integrity;
    let kinds = integrity.corrupt.iter().filter(|(_, count)| **count > 0);
    let kinds: Vec<String> = kinds
        .map(|(kind, count)| format!("{count} {kind}"))
        .collect();
    let corrupt = if kinds.is_empty() {
        "no corrupt blob found".to_owned()
    } else {
        format!("corrupt and removed: {}", kinds.join(", "))
    };
    match integrity.scrub_seconds {
        Some(_) => {
            let text = format!(
                "{} blobs by schedule, {} % of this pass; {corrupt}",
                integrity.scrub_checked, integrity.scrub_percent
            );
            lines.push(("checked", text));
        }
        None if kinds.is_empty() => {}
        None => lines.push(("checked", corrupt)),
    }
    lines
}

fn advice(lost: &LostHits) -> String {
    lost.larger_budget().map_or_else(String::new, |one| {
        let size = bytes(one.budget_bytes);
        format!("; {size} would have kept {} %", one.whole_percent())
    })
}

/// What holds for a namespace beside the budget, and what that cost it.
pub(super) fn of_namespace(namespace: &NamespaceStatus) -> String {
    let quota = namespace.quota.map(|quota| format!("of {}", bytes(quota)));
    let pinned = namespace.pinned.then(|| "pinned".to_owned());
    let lost = (namespace.lost_hits > 0).then(|| format!("{} lost", namespace.lost_hits));
    let parts: Vec<String> = [quota, pinned, lost].into_iter().flatten().collect();
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::gateway_status::KeptBy;

    #[test]
    fn smallest_budget_that_keeps_most_is_named() {
        let advice = |kept: &[(u64, f64)]| {
            let kept_by = kept.iter().map(|(gib, share)| KeptBy {
                budget_bytes: gib << 30,
                share: *share,
            });
            super::advice(&LostHits {
                kept_by: kept_by.collect(),
                ..LostHits::default()
            })
        };
        assert_eq!(advice(&[]), "");
        assert_eq!(
            advice(&[(12, 0.4), (20, 0.929), (40, 1.0)]),
            "; 20.0 GiB would have kept 92 %"
        );
        assert_eq!(
            advice(&[(12, 0.1), (20, 0.2)]),
            "; 20.0 GiB would have kept 20 %"
        );
    }

    #[test]
    fn namespace_without_a_rule_has_nothing_to_add() {
        let mut namespace = NamespaceStatus::default();
        assert_eq!(of_namespace(&namespace), "");
        namespace.quota = Some(2 << 30);
        namespace.pinned = true;
        namespace.lost_hits = 3;
        assert_eq!(of_namespace(&namespace), "of 2.0 GiB, pinned, 3 lost");
    }
}
