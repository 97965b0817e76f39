//! Whom the network policies of the chart let in and out.

use super::{helm, objects, of, render, with_helm};
use serde_json::{Value, json};

/// The peers of the rules for `port`, `from` them or `to` them.
fn peers(policy: &Value, way: &str, port: &Value) -> Vec<Value> {
    let rules = policy["spec"][if way == "from" { "ingress" } else { "egress" }].as_array();
    let has_port = |rule: &&Value| {
        let ports = rule["ports"].as_array().unwrap();
        ports.iter().any(|one| &one["port"] == port)
    };
    let rules = rules.unwrap().iter().filter(has_port);
    rules
        .flat_map(|rule| match rule[way].as_array() {
            Some(peers) => peers.clone(),
            None => vec![json!("everyone")],
        })
        .collect()
}

#[test]
fn who_reaches_the_cache_is_a_value() {
    let Some(helm) = helm() else { return };
    let labelled = |namespaces: Value| {
        let label = json!({"matchLabels": {"sccache-client": "true"}});
        json!({"namespaceSelector": namespaces, "podSelector": label})
    };
    let team = json!({"matchLabels": {"team": "builds"}});
    let nginx = json!({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ingress-nginx"}}});
    let office = json!({"ipBlock": {"cidr": "10.0.0.0/8"}});
    let monitoring = json!({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}});
    for (values, clients, prometheus) in [
        (json!({}), vec![labelled(json!({}))], true),
        (
            json!({"clientNamespaces": team}),
            vec![labelled(team.clone())],
            true,
        ),
        (
            json!({"cacheIngress": [nginx, office], "monitoringNamespace": ""}),
            vec![labelled(json!({})), nginx.clone(), office.clone()],
            false,
        ),
        (
            json!({"clientLabel": "", "cacheIngress": [office]}),
            vec![office.clone()],
            true,
        ),
        (
            json!({"clientLabel": "", "monitoringNamespace": ""}),
            vec![],
            false,
        ),
    ] {
        let more = |value: &str| json!({"extraEnv": [{"name": "SCCACHE_RELAY", "value": value}]});
        for (relay, settings) in [
            ("on", json!({"env": {"SCCACHE_RELAY": "on"}})),
            ("off", json!({"env": {"SCCACHE_RELAY": "off"}})),
            ("on", more("on")),
            ("off", more("off")),
        ] {
            let all = json!({"networkPolicy": values, "cache": settings});
            let made = objects(&render(&helm, &all).ok());
            let cache = of(&made, "NetworkPolicy", "sccache-cache");
            let builder = of(&made, "NetworkPolicy", "sccache-builder");
            let mut expected = clients.clone();
            expected.extend(prometheus.then(|| monitoring.clone()));
            assert_eq!(peers(cache, "from", &json!("cache")), expected, "{all}");
            // The last is the builders.
            let scheduler = peers(cache, "from", &json!("scheduler"));
            assert_eq!(scheduler[..scheduler.len() - 1], clients, "{all}");
            // Without the relay, clients send their jobs to builders, and so to that in the cache's pod.
            let direct = if relay == "off" { &clients[..] } else { &[] };
            assert_eq!(peers(cache, "from", &json!("builder")), direct, "{all}");
            let jobs = peers(builder, "from", &json!("builder"));
            assert_eq!(jobs[..jobs.len() - 1], *direct, "{all}");
            // To Kubernetes, a rule whose list of peers is empty lets in everyone.
            for rule in cache["spec"]["ingress"].as_array().unwrap() {
                assert_ne!(rule["from"], json!([]), "{all}");
            }
        }
    }
}

#[test]
fn dns_of_the_cluster_is_a_value() {
    let Some(helm) = helm() else { return };
    let of_the_node = json!({"ipBlock": {"cidr": "169.254.20.10/32"}});
    for (values, expected) in [
        (json!({"dns": [of_the_node]}), of_the_node.clone()),
        (json!({"dns": []}), json!("everyone")),
    ] {
        let made = objects(&render(&helm, &json!({"networkPolicy": values})).ok());
        let policy = of(&made, "NetworkPolicy", "sccache");
        assert_eq!(peers(policy, "to", &json!(53)), [expected], "{values}");
    }
}

#[test]
fn notes_say_who_is_kept_out_by_a_nodes_address() {
    let Some(helm) = helm() else { return };
    let office = json!([{"ipBlock": {"cidr": "10.0.0.0/8"}}]);
    let nginx = json!([{"namespaceSelector": {}}]);
    let service = |kind: &str, policy: &str, peers: &Value| {
        json!({
            "cache": {"service": {"type": kind, "externalTrafficPolicy": policy}},
            "networkPolicy": {"cacheIngress": peers},
        })
    };
    let mut open = service("NodePort", "", &office);
    open["networkPolicy"]["enabled"] = json!(false);
    for (values, said) in [
        (service("LoadBalancer", "", &office), true),
        (service("NodePort", "Cluster", &office), true),
        (service("LoadBalancer", "Local", &office), false),
        (service("NodePort", "", &nginx), false),
        (service("ClusterIP", "", &office), false),
        (open, false),
    ] {
        let script = "made = chart.render(json.loads(sys.argv[1]), name='one', namespace='two')\n\
            print(*(text for name, text in made.items() if name.endswith('NOTES.txt')))";
        let notes = with_helm(&helm, script, &[&values.to_string()]).ok();
        assert!(notes.contains("client-env"), "{notes}");
        let warns = notes.contains("cache.service.externalTrafficPolicy=Local");
        assert_eq!(warns, said, "{values}: {notes}");
    }
}
