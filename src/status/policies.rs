//! What quotas, pins, ages and the check of all blobs did, as lines of `status`. Pure.

use super::bytes;
use crate::gateway::status::{KeptBy, NamespaceStatus, Status};
use std::fmt::Write as _;

/// A budget is worth naming when it would have kept so many of the lost hits.
const MOST: f64 = 0.9;

/// Lines that say something; nothing where nothing happened.
pub(super) fn lines(text: &mut String, cache: &Status) {
    let (store, lost) = (&cache.store, &cache.lost_hits);
    // Writing to a string cannot fail.
    if lost.count > 0 {
        let quota = match lost.by_quota {
            0 => String::new(),
            count => format!(", {count} of them because of a quota"),
        };
        let advice = advice(&lost.kept_by);
        let _ = writeln!(
            text,
            "lost       {} misses ({}) were evicted before{quota}{advice}",
            lost.count,
            bytes(lost.bytes)
        );
    }
    if store.expired_entries > 0 {
        let _ = writeln!(
            text,
            "expired    {} blobs ({}) were too old",
            store.expired_entries,
            bytes(store.expired_bytes)
        );
    }
    if store.pinned_refusals > 0 {
        let _ = writeln!(
            text,
            "pinned     {} writes were refused: all that could make room is pinned",
            store.pinned_refusals
        );
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
            let _ = writeln!(
                text,
                "checked    {} blobs by schedule, {} % of this pass; {corrupt}",
                integrity.scrub_checked, integrity.scrub_percent
            );
        }
        None if kinds.is_empty() => {}
        None => {
            let _ = writeln!(text, "checked    {corrupt}");
        }
    }
}

/// The smallest budget that would have kept most, or the largest that was looked at.
fn advice(kept_by: &[KeptBy]) -> String {
    let enough = kept_by.iter().find(|one| one.share >= MOST);
    match enough.or(kept_by.last()) {
        Some(one) => format!(
            "; {} would have kept {:.0} %",
            bytes(one.budget_bytes),
            // Not rounded up to more than is true.
            (one.share * 100.0).floor()
        ),
        None => String::new(),
    }
}

/// What follows a namespace's size in the table.
pub(super) fn of_namespace(namespace: &NamespaceStatus) -> String {
    let mut text = String::new();
    if let Some(quota) = namespace.quota {
        let _ = write!(text, " of {}", bytes(quota));
    }
    if namespace.pinned {
        text.push_str(" pinned");
    }
    if namespace.lost_hits > 0 {
        let _ = write!(text, " ({} lost)", namespace.lost_hits);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smallest_budget_that_keeps_most_is_named() {
        let kept = |gib: u64, share| KeptBy {
            budget_bytes: gib << 30,
            share,
        };
        assert_eq!(advice(&[]), "");
        assert_eq!(
            advice(&[kept(12, 0.4), kept(20, 0.929), kept(40, 1.0)]),
            "; 20.0 GiB would have kept 92 %"
        );
        assert_eq!(
            advice(&[kept(12, 0.1), kept(20, 0.2)]),
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
        assert_eq!(of_namespace(&namespace), " of 2.0 GiB pinned (3 lost)");
    }
}
