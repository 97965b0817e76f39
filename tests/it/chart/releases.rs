//! Two releases of the chart in one namespace have nothing to do with each other.

use super::{Objects, helm, install, objects, render_as};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::path::Path;

/// Everything that selects or names something is on.
fn everything() -> Value {
    json!({
        "tokens": {"existingSecret": ""},
        "cache": {"ingress": {"enabled": true, "host": "cache.example.com"}},
        "builders": {"autoscaling": {"enabled": true}},
        "podMonitor": {"enabled": true},
        "networkPolicy": {"cacheIngress": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]},
    })
}

fn release(folder: &Path, name: &str) -> Objects {
    objects(&render_as(folder, name, &everything()).ok())
}

/// The labels of the pods that a release makes.
fn pods(objects: &Objects) -> Vec<&Map<String, Value>> {
    let templates = objects.values().map(|object| &object["spec"]["template"]);
    let labels = templates.filter_map(|pod| pod["metadata"]["labels"].as_object());
    labels.collect()
}

/// All that selects pods of the same namespace, with where it stands.
fn selectors(at: &str, value: &Value, found: &mut Vec<(String, Map<String, Value>)>) {
    match value {
        Value::Array(list) => list.iter().for_each(|one| selectors(at, one, found)),
        Value::Object(map) => {
            for (key, inner) in map {
                let at = format!("{at}/{key}");
                let is_selector = ["podSelector", "labelSelector", "selector"].contains(&&**key);
                // Clients and the cluster's DNS are pods of any namespace.
                if is_selector && !map.contains_key("namespaceSelector") {
                    let inner = inner.as_object().unwrap();
                    let of_a_service = inner.contains_key("app.kubernetes.io/component");
                    let labels = inner.get("matchLabels").and_then(Value::as_object);
                    let labels = if of_a_service { Some(inner) } else { labels };
                    found.push((at, labels.cloned().unwrap_or_default()));
                } else {
                    selectors(&at, inner, found);
                }
            }
        }
        _ => {}
    }
}

#[test]
fn a_release_selects_only_its_own_pods() {
    let Some(helm) = helm() else { return };
    let (ours, others) = (release(&helm, "one"), release(&helm, "two"));
    let mut found = Vec::new();
    for ((kind, name), object) in &ours {
        selectors(&format!("{kind} {name}"), object, &mut found);
    }
    assert!(found.len() >= 12, "{found:?}");
    let other_pod = json!({"app.kubernetes.io/component": "cache"});
    for (at, selector) in &found {
        let selects = |pod: &&Map<String, Value>| {
            selector
                .iter()
                .all(|(key, value)| pod.get(key) == Some(value))
        };
        assert!(pods(&ours).iter().any(selects), "{at}: {selector:?}");
        let strangers = [pods(&others), vec![other_pod.as_object().unwrap()]].concat();
        assert_eq!(
            strangers.iter().find(|pod| selects(pod)),
            None,
            "{at}: {selector:?}"
        );
    }
}

#[test]
fn two_releases_in_a_namespace_share_no_name() {
    let Some(helm) = helm() else { return };
    let made = ["one", "two", "sccache", "team-sccache"].map(|name| release(&helm, name));
    for (place, objects) in made.iter().enumerate() {
        assert!(objects.len() >= 12, "{:?}", objects.keys());
        let shared = made[place + 1..].iter().flatten();
        let shared: Vec<_> = shared
            .filter(|(key, _)| objects.contains_key(key))
            .collect();
        assert_eq!(shared, [], "of the same kind and name");
    }
    // What they name, they have made themselves: whoever asks for a service or a secret gets that of the same release.
    let ours: Vec<&str> = made[0].keys().map(|(_, name)| name.as_str()).collect();
    assert!(
        ours.iter().all(|name| name.starts_with("one-sccache")),
        "{ours:?}"
    );
    let text = render_as(&helm, "one", &everything()).ok();
    for named in [
        "http://one-sccache:10600",
        "http://one-sccache.sccache:4226/metrics",
    ] {
        assert!(text.contains(named), "{named}: {text}");
    }
    let names = text
        .split_whitespace()
        .filter(|word| word.contains("sccache-tokens"));
    assert_eq!(
        names.collect::<BTreeSet<_>>(),
        BTreeSet::from(["one-sccache-tokens"])
    );
    for (values, name) in [
        (json!({"nameOverride": "builds"}), "one-builds"),
        (json!({"nameOverride": "one"}), "one"),
        (
            json!({"fullnameOverride": "other", "nameOverride": "builds"}),
            "other",
        ),
    ] {
        let made = objects(&render_as(&helm, "one", &values).ok());
        assert!(
            made.contains_key(&("Service".into(), name.into())),
            "{values}: {:?}",
            made.keys()
        );
        assert!(
            made.contains_key(&("Deployment".into(), format!("{name}-builder"))),
            "{values}"
        );
    }
}

/// An upgrade that fails at the stateful set has changed the service by then, which selects no pod any more.
#[test]
fn a_release_of_a_former_chart_is_refused_whole() {
    let Some(helm) = helm() else { return };
    let former = json!({"app.kubernetes.io/component": "cache"});
    let ours = json!({
        "app.kubernetes.io/name": "sccache-dock",
        "app.kubernetes.io/instance": "team",
        "app.kubernetes.io/component": "cache",
    });
    let delete = "kubectl --namespace sccache delete statefulset/sccache";
    let unchanged =
        format!("statefulset/sccache is of a former chart, and cannot be changed: {delete} (its");
    let renamed = format!("set sccache, or delete that first: {delete}");
    for (release, fullname, of, selector, refused) in [
        ("sccache", "", "sccache", &former, Some(&unchanged)),
        ("team", "sccache", "team", &former, Some(&unchanged)),
        ("team", "", "team", &former, Some(&renamed)),
        ("team", "sccache", "team", &ours, None),
        // Of a release that has nothing to do with this one.
        ("team", "", "sccache", &former, None),
    ] {
        let values = json!({"fullnameOverride": fullname});
        let sets = json!({"sccache": {"release": of, "selector": selector}});
        let ran = install(&helm, release, &values, &json!({}), &sets);
        match refused {
            Some(said) => assert!(ran.stderr.contains(said), "{said}: {}", ran.stderr),
            None => assert_eq!(ran.code, Some(0), "{values}: {}", ran.stderr),
        }
    }
}
