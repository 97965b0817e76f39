//! Each value of the chart is there for something.

use super::{helm, kubernetes_takes, objects, of, render, with_helm};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// For each value another one; and, where it says nothing alone, what it needs. `*` is the cache and the builders.
const OTHERS: &str = r#"
nameOverride | "other" |
fullnameOverride | "other" |
commonLabels | {"team": "builds"} |
image.repository | "other" |
image.tag | "other" |
image.digest | "sha256:0000000000000000000000000000000000000000000000000000000000000000" |
image.pullPolicy | "Always" |
image.pullSecrets | ["pull"] |
tokens.existingSecret | "other" |
tokens.namedSecret | "named" |
tls.secret | "tls" |
tls.caKey | "authority.crt" | tls
tls.clientCaSecret | "authorities" | tls
seccompProfile | "other.json" |
appArmorProfile | "sccache-dock" |
cache.size | "81G" |
cache.storage.size | "200Gi" |
cache.storage.className | "fast" |
cache.storage.accessModes | ["ReadWriteOncePod"] |
cache.storage.whenDeleted | "Delete" |
cache.envSecret | "upstream" |
cache.startupProbe.periodSeconds | 2 |
cache.startupProbe.failureThreshold | 61 |
cache.service.type | "NodePort" | open
cache.service.annotations | {"example.com/a": "b"} |
cache.service.nodePort | 30426 | ports
cache.service.schedulerNodePort | 30600 | ports
cache.service.externalTrafficPolicy | "Local" | ports
cache.service.loadBalancerClass | "example.com/lb" | balancer
cache.service.loadBalancerSourceRanges | ["10.0.0.0/8"] | balancer
cache.ingress.enabled | false | ingress
cache.ingress.className | "nginx" | ingress
cache.ingress.annotations | {"example.com/a": "b"} | ingress
cache.ingress.host | "other.example.com" | ingress
cache.ingress.tlsSecret | "tls" | ingress
builders.replicas | 3 |
builders.workSize | "20Gi" |
builders.topologySpread.maxSkew | 2 |
builders.topologySpread.topologyKey | "topology.kubernetes.io/zone" |
builders.topologySpread.whenUnsatisfiable | "DoNotSchedule" |
builders.maxUnavailable | "50%" |
builders.livenessProbe.initialDelaySeconds | 20 |
builders.autoscaling.enabled | true |
builders.autoscaling.minReplicas | 1 | scaling
builders.autoscaling.maxReplicas | 40 | scaling
builders.autoscaling.jobsPerBuilder | 20 | scaling
builders.autoscaling.cooldownSeconds | 60 | scaling
builders.autoscaling.kedaNamespace | "scaling" | scaling
*.env | {"SCCACHE_LOG": "warn"} |
*.extraEnv | [{"name": "SCCACHE_LOG", "value": "warn"}] |
*.extraVolumes | [{"name": "more", "emptyDir": {}}] |
*.extraVolumeMounts | [{"name": "tmp", "mountPath": "/more"}] |
*.clientCertificateSecret | "certificate" | joined
*.serviceAccount.create | true |
*.serviceAccount.name | "account" |
*.serviceAccount.annotations | {"example.com/a": "b"} | accounts
*.resources | {"limits": {"cpu": 2}} |
*.priorityClassName | "high" |
*.nodeSelector | {"disk": "fast"} |
*.tolerations | [{"operator": "Exists"}] |
*.affinity | {"nodeAffinity": {}} |
*.podAnnotations | {"example.com/a": "b"} |
*.podLabels | {"team": "builds"} |
*.terminationGracePeriodSeconds | 120 |
*.updateStrategy | {"type": "RollingUpdate"} |
*.livenessProbe.periodSeconds | 30 |
*.livenessProbe.timeoutSeconds | 10 |
*.livenessProbe.failureThreshold | 3 |
*.readinessProbe.periodSeconds | 30 |
*.readinessProbe.timeoutSeconds | 10 |
networkPolicy.enabled | false |
networkPolicy.clientLabel | "other" |
networkPolicy.clientNamespaces | {"matchLabels": {"team": "builds"}} |
networkPolicy.cacheIngress | [{"ipBlock": {"cidr": "10.0.0.0/8"}}] |
networkPolicy.monitoringNamespace | "prometheus" |
networkPolicy.dns | [{"ipBlock": {"cidr": "169.254.20.10/32"}}] |
networkPolicy.cacheEgress | [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}] |
podMonitor.enabled | true |
podMonitor.labels | {"release": "prometheus"} | monitor
podMonitor.interval | "60s" | monitor
"#;

fn needs(name: &str) -> Value {
    let open = json!({"enabled": false});
    let service = |kind: &str| json!({"networkPolicy": open, "cache": {"service": {"type": kind}}});
    let account = json!({"serviceAccount": {"create": true}});
    match name {
        "" => json!({}),
        "tls" => json!({"tls": {"secret": "tls"}}),
        "open" => json!({"networkPolicy": open}),
        "ports" => service("NodePort"),
        "balancer" => service("LoadBalancer"),
        "ingress" => json!({
            "networkPolicy": open,
            "cache": {"ingress": {"enabled": true, "host": "cache.example.com"}},
        }),
        "scaling" => json!({"builders": {"autoscaling": {"enabled": true}}}),
        "joined" => json!({
            "tokens": {"namedSecret": "named"},
            "tls": {"secret": "tls", "clientCaSecret": "authorities"},
        }),
        "accounts" => json!({"cache": account, "builders": account}),
        "monitor" => json!({"podMonitor": {"enabled": true}}),
        other => panic!("{other}"),
    }
}

/// What `values` are with another one at `path`.
fn with(values: &Value, path: &str, other: &Value) -> Value {
    let mut all = values.clone();
    let mut at = &mut all;
    for name in path.split('.') {
        at = &mut at[name];
    }
    *at = other.clone();
    all
}

/// Values without and with the other one, by its path.
fn pairs() -> BTreeMap<String, [Value; 2]> {
    let mut pairs = BTreeMap::new();
    for row in OTHERS.lines().filter(|row| !row.is_empty()) {
        let columns: Vec<&str> = row.split('|').map(str::trim).collect();
        let [path, other, needed] = columns[..] else {
            panic!("{row}");
        };
        let other: Value = serde_json::from_str(other).unwrap();
        let needed = needs(needed);
        for component in ["cache", "builders"] {
            let path = path.replace('*', component);
            let changed = with(&needed, &path, &other);
            pairs.insert(path, [needed.clone(), changed]);
        }
    }
    pairs
}

/// The paths of all values that have no others in them.
fn leaves(at: &str, value: &Value, found: &mut Vec<String>) {
    match value.as_object() {
        Some(map) if !map.is_empty() && !at.ends_with("resources") => {
            for (name, value) in map {
                let dot = if at.is_empty() { "" } else { "." };
                leaves(&format!("{at}{dot}{name}"), value, found);
            }
        }
        _ => found.push(at.to_owned()),
    }
}

#[test]
fn every_value_changes_something() {
    let Some(helm) = helm() else { return };
    let pairs = pairs();
    let script = "def made(values):\n    \
            made = chart.render(values, name='one', namespace='two')\n    \
            return {name: text for name, text in made.items() if not name.endswith('.txt')}\n\
        dead = [path for path, (before, after) in json.loads(sys.argv[1]).items() if made(before) == made(after)]\n\
        print(json.dumps({'dead': dead, 'values': chart.values}))";
    let said = with_helm(&helm, script, &[&json!(pairs).to_string()]).ok();
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said["dead"], json!([]), "change nothing");
    let mut found = Vec::new();
    leaves("", &said["values"], &mut found);
    found.sort();
    assert!(found.len() > 90, "{found:?}");
    assert_eq!(found, pairs.into_keys().collect::<Vec<_>>());
}

#[test]
fn pods_are_what_the_values_say() {
    let Some(helm) = helm() else { return };
    let values = json!({
        "commonLabels": {"team": "builds", "tier": "cache"},
        "cache": {
            "podLabels": {"tier": "disk"},
            "serviceAccount": {"create": true, "annotations": {"eks.amazonaws.com/role-arn": "arn"}},
            "terminationGracePeriodSeconds": 90,
            "updateStrategy": {"type": "OnDelete"},
            "storage": {"whenDeleted": "Delete"},
            "env": {"SCCACHE_QUEUE_SIZE": 4_294_967_296_u64, "SCCACHE_LOG_FORMAT": "text"},
            "extraEnv": [{"name": "AWS_REGION", "valueFrom": {"configMapKeyRef": {"name": "region", "key": "name"}}}],
            "extraVolumes": [{"name": "authorities", "configMap": {"name": "authorities"}}],
            "extraVolumeMounts": [{"name": "authorities", "mountPath": "/etc/authorities"}],
            "startupProbe": {"failureThreshold": 300},
        },
        "builders": {
            "serviceAccount": {"name": "jobs"},
            "env": {"SCCACHE_PUBLIC_ADDR": "none", "SCCACHE_BUILDER_SLOTS": 6},
            "updateStrategy": {"rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}},
        },
    });
    let text = render(&helm, &values).ok();
    kubernetes_takes(&text);
    let made = objects(&text);
    let (cache, builder) = (
        &of(&made, "StatefulSet", "sccache")["spec"],
        &of(&made, "Deployment", "sccache-builder")["spec"],
    );
    for (spec, tier) in [(cache, "disk"), (builder, "cache")] {
        let labels = &spec["template"]["metadata"]["labels"];
        assert_eq!(
            (&labels["team"], &labels["tier"]),
            (&json!("builds"), &json!(tier))
        );
        assert_eq!(
            spec["selector"]["matchLabels"].as_object().unwrap().len(),
            3
        );
        // Each name once: Kubernetes takes the last one, and tools that merge lose one.
        let pod = &spec["template"]["spec"];
        let env = pod["containers"][0]["env"].as_array().unwrap();
        let mut names: Vec<_> = env.iter().map(|one| one["name"].to_string()).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), env.len(), "{env:?}");
        assert_eq!(pod["automountServiceAccountToken"], json!(false));
    }
    let pod = &cache["template"]["spec"];
    let setting = |name: &str| {
        let env = pod["containers"][0]["env"].as_array().unwrap();
        env.iter().find(|one| one["name"] == name).unwrap()["value"].clone()
    };
    assert_eq!(setting("SCCACHE_QUEUE_SIZE"), "4294967296");
    assert_eq!(setting("SCCACHE_LOG_FORMAT"), "text");
    assert_eq!(setting("SCCACHE_STOP_GRACE"), "80s");
    assert_eq!(pod["terminationGracePeriodSeconds"], json!(90));
    assert_eq!(pod["serviceAccountName"], "sccache");
    assert_eq!(cache["updateStrategy"]["type"], "OnDelete");
    let retention = json!({"whenDeleted": "Delete"});
    assert_eq!(cache["persistentVolumeClaimRetentionPolicy"], retention);
    let startup = &pod["containers"][0]["startupProbe"];
    assert_eq!(
        (&startup["failureThreshold"], &startup["periodSeconds"]),
        (&json!(300), &json!(1))
    );
    // No label that may change stands in what may not.
    let claim = &cache["volumeClaimTemplates"][0]["metadata"]["labels"];
    assert_eq!(claim.get("team"), None);
    let account = of(&made, "ServiceAccount", "sccache");
    assert_eq!(
        account["metadata"]["annotations"]["eks.amazonaws.com/role-arn"],
        "arn"
    );
    assert_eq!(account["automountServiceAccountToken"], json!(false));
    assert_eq!(builder["template"]["spec"]["serviceAccountName"], "jobs");
    assert_eq!(builder["strategy"]["rollingUpdate"]["maxSurge"], json!(0));
    for refused in [
        json!({"commonLabels": {"app.kubernetes.io/name": "other"}}),
        json!({"builders": {"podLabels": {"app.kubernetes.io/component": "cache"}}}),
    ] {
        assert_ne!(render(&helm, &refused).code, Some(0), "{refused}");
    }
}

#[test]
fn probes_have_the_times_of_kubernetes_where_the_values_have_none() {
    let Some(helm) = helm() else { return };
    let no_times = json!({
        "initialDelaySeconds": null, "periodSeconds": null, "timeoutSeconds": null, "failureThreshold": null,
    });
    for times in [no_times, Value::Null] {
        let values = json!({
            "cache": {"startupProbe": times, "livenessProbe": times, "readinessProbe": times},
            "builders": {"livenessProbe": times, "readinessProbe": times},
        });
        let text = render(&helm, &values).ok();
        kubernetes_takes(&text);
        let made = objects(&text);
        for (kind, name, probe, asks) in [
            ("StatefulSet", "sccache", "startupProbe", "httpGet"),
            ("StatefulSet", "sccache", "livenessProbe", "httpGet"),
            ("StatefulSet", "sccache", "readinessProbe", "httpGet"),
            ("Deployment", "sccache-builder", "livenessProbe", "httpGet"),
            ("Deployment", "sccache-builder", "readinessProbe", "exec"),
        ] {
            let containers = &of(&made, kind, name)["spec"]["template"]["spec"]["containers"];
            let probe = containers[0][probe].as_object().unwrap();
            let set: Vec<_> = probe.iter().filter(|(_, value)| !value.is_null()).collect();
            assert_eq!(set.len(), 1, "{name}: {probe:?}");
            assert!(probe.contains_key(asks), "{name}: {probe:?}");
        }
    }
}
