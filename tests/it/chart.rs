//! The Helm chart says what the kustomization says, refuses what is misspelt, and travels through a registry.

use crate::deploy::{passes, root, tool};
use crate::docker::{PATIENCE, Ran, run};
use crate::harness::{clean, skip, tools};
use crate::registry::Registry;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

mod checks;
mod network;
mod releases;
mod secrets;
mod values;

/// Helm itself, as a library for Python; `None`, and a line, where it is not installed.
fn helm() -> Option<PathBuf> {
    let folder = tools().join("helm");
    if !folder.join("helm_python").exists() {
        skip("Helm is not installed");
        return None;
    }
    Some(folder)
}

/// Runs `script`, in which `helm` is the library and `chart` the chart, with `arguments` in `sys.argv`.
fn with_helm(folder: &Path, script: &str, arguments: &[&str]) -> Ran {
    let python = tools().join("python/bin/python");
    let text = format!(
        "import sys, json, helm_python as helm\nchart = helm.Chart.load({:?})\n{script}",
        root().join("images/helm").display().to_string()
    );
    let mut command = clean(python);
    command.env("PYTHONPATH", folder).args(["-c", &text]);
    run(command.args(arguments), PATIENCE)
}

/// What the chart makes of these values, as YAML.
fn render(folder: &Path, values: &Value) -> Ran {
    render_as(folder, "sccache", values)
}

/// The same for a release of this name.
fn render_as(folder: &Path, release: &str, values: &Value) -> Ran {
    let script = "made = chart.render(json.loads(sys.argv[1]), name=sys.argv[2], namespace='sccache')\n\
        for name, text in made.items():\n    \
            if not name.endswith('.txt'): print('---\\n' + text)";
    with_helm(folder, script, &[&values.to_string(), release])
}

/// What Helm would install in a cluster that has these secrets and stateful sets already: see `cluster.py`.
fn install(folder: &Path, release: &str, values: &Value, secrets: &Value, sets: &Value) -> Ran {
    let [values, secrets, sets] = [values, secrets, sets].map(Value::to_string);
    let arguments = [release, &values, &secrets, &sets];
    with_helm(folder, include_str!("chart/cluster.py"), &arguments)
}

type Objects = BTreeMap<(String, String), Value>;

/// Manifests by kind and name, without their namespace.
fn objects(yaml: &str) -> Objects {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("manifests.yaml");
    std::fs::write(&file, yaml).unwrap();
    let script = "import sys, json, yaml\n\
        print(json.dumps([it for it in yaml.safe_load_all(open(sys.argv[1])) if it]))";
    let mut python = clean(tools().join("python/bin/python"));
    let text = run(python.args(["-c", script]).arg(file), PATIENCE).ok();
    let list: Vec<Value> = serde_json::from_str(&text).unwrap();
    let named = list.into_iter().map(|mut object| {
        object["metadata"]
            .as_object_mut()
            .unwrap()
            .remove("namespace");
        let word = |value: &Value| value.as_str().unwrap().to_owned();
        let key = (word(&object["kind"]), word(&object["metadata"]["name"]));
        (key, object)
    });
    named.collect()
}

/// The same with lists of what has a name in the order of the names, which changes nothing for Kubernetes.
fn by_name(objects: Objects) -> Objects {
    fn sort(value: &mut Value) {
        match value {
            Value::Array(list) => {
                list.iter_mut().for_each(sort);
                if list.iter().all(|one| one["name"].is_string()) {
                    list.sort_by_key(|one| one["name"].to_string());
                }
            }
            Value::Object(map) => map.values_mut().for_each(sort),
            _ => {}
        }
    }
    let sorted = objects.into_iter().map(|(key, mut object)| {
        sort(&mut object);
        (key, object)
    });
    sorted.collect()
}

fn of<'a>(objects: &'a Objects, kind: &str, name: &str) -> &'a Value {
    &objects[&(kind.to_owned(), name.to_owned())]
}

/// Nothing of the cluster's own schemas is hurt, where these know the kind.
fn kubernetes_takes(yaml: &str) {
    let Some(validate) = tool("kubernetes-validate", "--version") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("made.yaml");
    std::fs::write(&file, yaml).unwrap();
    for version in ["1.30", "1.37"] {
        let mut check = clean(&validate);
        check.args(["--strict", "--quiet", "--kubernetes-version", version]);
        passes(check.arg(&file));
    }
}

#[test]
fn chart_and_kustomization_make_the_same() {
    let Some(helm) = helm() else { return };
    let Some(kubectl) = tool("kubectl", "version --client") else {
        return;
    };
    let kustomize = |folder: &str| {
        let mut command = clean(&kubectl);
        passes(
            command
                .arg("kustomize")
                .arg(root().join("images").join(folder)),
        )
    };
    let mut expected = objects(&kustomize("kubernetes"));
    let namespace = ("Namespace".to_owned(), "sccache".to_owned());
    assert!(
        expected.remove(&namespace).is_some(),
        "Helm makes that itself"
    );
    let text = render(&helm, &json!({})).ok();
    kubernetes_takes(&text);
    let made = objects(&text);
    assert_eq!(
        made.keys().collect::<Vec<_>>(),
        expected.keys().collect::<Vec<_>>()
    );
    for (key, object) in &expected {
        assert_eq!(&made[key], object, "{key:?}");
    }
    // The test sees a difference.
    let other = objects(&render(&helm, &json!({"cache": {"size": "81G"}})).ok());
    assert_ne!(other, expected);

    // Each component is a value of the chart.
    let (named, tls) = (
        json!({"namedSecret": "sccache-named-tokens"}),
        json!({"secret": "sccache-tls"}),
    );
    for (components, values) in [
        ("apparmor", json!({"appArmorProfile": "sccache-dock"})),
        (
            "keda",
            json!({"builders": {"autoscaling": {"enabled": true}}}),
        ),
        ("named-tokens", json!({"tokens": named})),
        ("tls", json!({"tls": tls})),
        (
            "keda, tls",
            json!({"tls": tls, "builders": {"autoscaling": {"enabled": true}}}),
        ),
        (
            "named-tokens, tls, client-certificates",
            json!({
                "tokens": named,
                "tls": {"secret": "sccache-tls", "clientCaSecret": "sccache-client-ca"},
                "builders": {"clientCertificateSecret": "sccache-builder-tls"},
            }),
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().join("base");
        let mut copy = clean("cp");
        passes(
            copy.arg("-r")
                .arg(root().join("images/kubernetes"))
                .arg(&base),
        );
        let components: Vec<String> = components
            .split(", ")
            .map(|component| format!("base/{component}"))
            .collect();
        let components = components.join(", ");
        let overlay = format!("resources: [base]\ncomponents: [{components}]\n");
        std::fs::write(folder.path().join("kustomization.yaml"), overlay).unwrap();
        let mut command = clean(&kubectl);
        let mut expected = objects(&passes(command.arg("kustomize").arg(folder.path())));
        expected.remove(&namespace);
        let made = objects(&render(&helm, &values).ok());
        let made = by_name(made);
        for (key, object) in by_name(expected) {
            assert_eq!(made.get(&key), Some(&object), "{components}: {key:?}");
        }
    }
}

#[test]
fn settings_of_the_chart_are_the_programs() {
    let Some(helm) = helm() else { return };
    let values = json!({
        "tokens": {"namedSecret": "named"},
        "tls": {"secret": "tls", "clientCaSecret": "ca"},
        "cache": {"clientCertificateSecret": "cache"},
        "builders": {"clientCertificateSecret": "builder", "autoscaling": {"enabled": true}},
    });
    let made = objects(&render(&helm, &values).ok());
    let known = std::fs::read_to_string(root().join("docs/settings.md")).unwrap();
    let mut seen = 0;
    for (kind, name) in [
        ("StatefulSet", "sccache"),
        ("Deployment", "sccache-builder"),
    ] {
        let containers = &of(&made, kind, name)["spec"]["template"]["spec"]["containers"];
        let env = containers[0]["env"].as_array().unwrap();
        for one in env.iter().filter_map(|one| one["name"].as_str()) {
            let is_known = |name: &str| known.contains(&format!("| `{name}` |"));
            let of_a_file = one.strip_suffix("_FILE").is_some_and(is_known);
            assert!(
                is_known(one) || of_a_file || one == "SSL_CERT_FILE",
                "{name}: {one}"
            );
            seen += 1;
        }
    }
    assert!(seen > 20, "{seen}");
}

#[test]
fn values_change_what_they_name() {
    let Some(helm) = helm() else { return };
    let digest = format!("sha256:{}", "0".repeat(64));
    let values = json!({
        "image": {"repository": "registry.example/cache", "digest": digest, "pullPolicy": "IfNotPresent", "pullSecrets": ["pull"]},
        "tokens": {"existingSecret": ""},
        "cache": {
            "env": {"SCCACHE_QUOTAS": "ci=20G", "HTTPS_PROXY": "http://proxy:3128"},
            "envSecret": "upstream",
            "clientCertificateSecret": "cache-client",
            "priorityClassName": "high",
            "storage": {"className": "fast"},
            "service": {"type": "NodePort", "nodePort": 30426},
            "ingress": {"enabled": true, "className": "nginx", "host": "cache.example.com", "tlsSecret": "cache-tls"}
        },
        "builders": {
            "topologySpread": {"topologyKey": "topology.kubernetes.io/zone"},
            "autoscaling": {"enabled": true, "maxReplicas": 40}
        },
        "tls": {"secret": "cache-tls"},
        "podMonitor": {"enabled": true},
        "networkPolicy": {
            "cacheIngress": [{"ipBlock": {"cidr": "10.0.0.0/8"}}],
            "cacheEgress": [{"to": [{"ipBlock": {"cidr": "10.1.0.0/16"}}]}]
        }
    });
    let text = render(&helm, &values).ok();
    let made = objects(&text);
    let pod = |kind, name| of(&made, kind, name)["spec"]["template"]["spec"].clone();
    let (cache, builder) = (
        pod("StatefulSet", "sccache"),
        pod("Deployment", "sccache-builder"),
    );
    for spec in [&cache, &builder] {
        assert_eq!(
            spec["containers"][0]["image"],
            format!("registry.example/cache@{digest}")
        );
        assert_eq!(spec["imagePullSecrets"], json!([{"name": "pull"}]));
    }
    assert_eq!(cache["priorityClassName"], "high");
    let env = cache["containers"][0]["env"].as_array().unwrap();
    for (name, value) in [
        ("SCCACHE_QUOTAS", "ci=20G"),
        ("HTTPS_PROXY", "http://proxy:3128"),
        (
            "SCCACHE_TLS_CLIENT_CERT",
            "/run/secrets/certificate/tls.crt",
        ),
    ] {
        assert!(
            env.contains(&json!({"name": name, "value": value})),
            "{name}"
        );
    }
    let from = &cache["containers"][0]["envFrom"];
    assert_eq!(from, &json!([{"secretRef": {"name": "upstream"}}]));
    let spread = &builder["topologySpreadConstraints"][0];
    assert_eq!(spread["topologyKey"], "topology.kubernetes.io/zone");
    let deployment = &of(&made, "Deployment", "sccache-builder")["spec"];
    assert_eq!(
        deployment.get("replicas"),
        None,
        "KEDA's, and no upgrade's, to set"
    );
    let scaled = &of(&made, "ScaledObject", "sccache-builder")["spec"];
    assert_eq!(scaled["maxReplicaCount"], 40);
    let service = &of(&made, "Service", "sccache")["spec"];
    assert_eq!(service["ports"][0]["nodePort"], 30426);
    let claim = &of(&made, "StatefulSet", "sccache")["spec"]["volumeClaimTemplates"][0]["spec"];
    assert_eq!(claim["storageClassName"], "fast");
    let ingress = &of(&made, "Ingress", "sccache")["spec"];
    assert_eq!(
        ingress["tls"][0],
        json!({"hosts": ["cache.example.com"], "secretName": "cache-tls"})
    );
    let monitor = &of(&made, "PodMonitor", "sccache")["spec"]["podMetricsEndpoints"][0];
    assert_eq!(monitor["authorization"]["credentials"]["key"], "read");
    assert_eq!(monitor["scheme"], "https");
    assert_eq!(monitor["tlsConfig"]["serverName"], "sccache.sccache");
    let secret = &of(&made, "Secret", "sccache-tokens")["data"];
    assert_ne!(secret["auth"], secret["read"]);
    assert!(
        secret["server"]
            .as_str()
            .is_some_and(|token| token.len() >= 48)
    );
    // All but what the operators of others bring.
    let known = made.iter().filter(|((kind, _), _)| {
        !["ScaledObject", "TriggerAuthentication", "PodMonitor"].contains(&&**kind)
    });
    let known: Vec<String> = known.map(|(_, object)| object.to_string()).collect();
    kubernetes_takes(&known.join("\n---\n"));
}

#[test]
fn misspelt_values_are_refused_by_name() {
    let Some(helm) = helm() else { return };
    for (values, named) in [
        (json!({"cache": {"sise": "1G"}}), "sise"),
        (
            json!({"builders": {"replicas": "two"}}),
            "/builders/replicas",
        ),
        (
            json!({"image": {"digest": "sha256:short"}}),
            "/image/digest",
        ),
        (json!({"cache": {"env": {"MODE": "persistent"}}}), "MODE"),
    ] {
        let ran = render(&helm, &values);
        assert_ne!(ran.code, Some(0), "{values} is taken");
        assert!(ran.stderr.contains(named), "{values}: {}", ran.stderr);
    }
    // Every value has its place in the schema, and no value of the schema is without a default.
    let script = "def names(tree, schema, at=''):\n    \
            fields = schema.get('properties', {})\n    \
            assert set(tree) == set(fields) - {'global'}, (at, set(tree) ^ set(fields))\n    \
            for name, value in tree.items():\n        \
                if isinstance(value, dict) and 'properties' in fields[name]: names(value, fields[name], at + '/' + name)\n\
        names(chart.values, chart.schema)\n\
        report = helm.lint(sys.argv[1], strict=True)\n\
        assert not report['errors'], report\n\
        print(len(chart.templates), 'templates, helm', helm.helm_sdk_version())";
    let chart = root().join("images/helm").display().to_string();
    println!("{}", with_helm(&helm, script, &[&chart]).ok());
}

#[test]
fn chart_of_a_registry_is_the_one_that_was_pushed() {
    let Some(helm) = helm() else { return };
    let Some(registry) = Registry::start() else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let script = "import os\n\
        remote, folder = sys.argv[1:]\n\
        packed = chart.save(folder)\n\
        helm.push(packed, remote, plain_http=True)\n\
        os.rename(packed, packed + '.pushed')\n\
        helm.pull(remote + '/sccache-dock', version=chart.version, destination=folder, plain_http=True)\n\
        pulled = helm.Chart.load(packed)\n\
        assert pulled.render(name='a', namespace='b') == chart.render(name='a', namespace='b')\n\
        print(helm.digest(packed))";
    let remote = format!("oci://{}/charts", registry.host);
    let ran = with_helm(&helm, script, &[&remote, folder.path().to_str().unwrap()]);
    println!("{}", ran.ok());
}
