//! Values that the cluster would refuse, or that would never work in it, are refused before anything changes.

use super::{helm, render, render_as};
use serde_json::{Value, json};

#[test]
fn combinations_that_cannot_work_are_refused() {
    let Some(helm) = helm() else { return };
    let joined = json!({
        "tls": {"secret": "tls", "clientCaSecret": "ca"},
        "builders": {"clientCertificateSecret": "builder"},
    });
    let no_policy = json!({"enabled": false});
    let ingress = json!({"enabled": true, "host": "cache.example.com"});
    for (values, expected) in [
        (
            json!({"cache": {"ingress": {"enabled": true}}}),
            "cache.ingress.enabled needs cache.ingress.host",
        ),
        (
            json!({"cache": {"ingress": ingress}}),
            "need networkPolicy.cacheIngress",
        ),
        (
            json!({"cache": {"service": {"type": "LoadBalancer"}}}),
            "need networkPolicy.cacheIngress",
        ),
        (
            json!({"cache": {"env": {"SCCACHE_UPSTREAM": "redis://redis:6379"}}}),
            "allow them in networkPolicy.cacheEgress",
        ),
        (
            json!({"cache": {"service": {"nodePort": 30426}}}),
            "node ports need the type NodePort or LoadBalancer",
        ),
        (
            json!({
                "networkPolicy": no_policy,
                "cache": {"service": {"type": "NodePort", "nodePort": 30426, "schedulerNodePort": 30426}},
            }),
            "nodePort and schedulerNodePort must differ",
        ),
        (
            json!({"cache": {"env": {"SCCACHE_RELAY": "off"}}, "builders": {"autoscaling": {"enabled": true}}}),
            "builders.autoscaling needs the relay",
        ),
        (
            json!({"builders": {"autoscaling": {"enabled": true, "minReplicas": 30}}}),
            "minReplicas is larger than maxReplicas",
        ),
        (
            json!({"image": {"tag": ""}}),
            "image.tag: set it, or image.digest",
        ),
        (
            json!({"cache": {"size": "100G"}}),
            "cache.size, 100GiB, must be smaller than cache.storage.size, 100Gi",
        ),
        (
            json!({"cache": {"storage": {"size": "85G"}}}),
            "cache.size, 80GiB, must be smaller than cache.storage.size, 85G",
        ),
        (
            json!({"builders": {"workSize": "80Gi"}}),
            "builders.workSize, 80Gi: a builder is evicted at",
        ),
        (
            json!({"tls": {"clientCaSecret": "ca"}}),
            "tls.clientCaSecret needs tls.secret",
        ),
        (
            json!({"builders": {"clientCertificateSecret": "builder"}}),
            "builders.clientCertificateSecret needs tls.clientCaSecret",
        ),
        (
            joined,
            "builders.clientCertificateSecret needs tokens.namedSecret",
        ),
        (
            json!({"cache": {"env": {"SCCACHE_CACHE_SIZE": "10G"}}}),
            "cache.env.SCCACHE_CACHE_SIZE: the chart sets this itself: use cache.size",
        ),
        (
            json!({"builders": {"env": {"SCCACHE_LISTEN": "0.0.0.0:80"}}}),
            "builders.env.SCCACHE_LISTEN: the chart sets this itself: remove it",
        ),
        (
            json!({"cache": {"extraEnv": [{"name": "SCCACHE_DIR", "value": "/srv"}]}}),
            "cache.extraEnv.SCCACHE_DIR: the chart sets this itself",
        ),
        (
            json!({"cache": {"env": {"AWS_REGION": "a"}, "extraEnv": [{"name": "AWS_REGION", "value": "b"}]}}),
            "cache.extraEnv: AWS_REGION is in cache.env too",
        ),
        (
            json!({"tls": {"secret": "tls"}, "builders": {"env": {"SSL_CERT_FILE": "/etc/ssl/all.pem"}}}),
            "builders.env.SSL_CERT_FILE: builders go by tls.caKey",
        ),
        (
            json!({"cache": {"service": {"loadBalancerSourceRanges": ["10.0.0.0/8"]}}}),
            "loadBalancerSourceRanges need the type LoadBalancer",
        ),
        (
            json!({"cache": {"service": {"externalTrafficPolicy": "Local"}}}),
            "cache.service.externalTrafficPolicy needs the type",
        ),
        (
            json!({"cache": {"serviceAccount": {"name": "ours", "annotations": {"a": "b"}}}}),
            "cache.serviceAccount.annotations needs create",
        ),
        (
            json!({"builders": {"serviceAccount": {"annotations": {"a": "b"}}}}),
            "builders.serviceAccount.annotations needs create",
        ),
        (
            json!({"cache": {"env": {"SCCACHE_RELAY": false}}}),
            "cache.env.SCCACHE_RELAY: to YAML, on and off without quotes are true and false",
        ),
    ] {
        let ran = render(&helm, &values);
        assert_ne!(ran.code, Some(0), "{values} is taken");
        assert!(ran.stderr.contains(expected), "{values}: {}", ran.stderr);
    }
    // Next to each stands what works.
    for values in [
        json!({"cache": {"ingress": ingress}, "networkPolicy": no_policy}),
        json!({"cache": {"service": {"type": "NodePort", "nodePort": 30426}}, "networkPolicy": no_policy}),
        json!({"cache": {"size": "79G", "storage": {"size": "85G"}}}),
        json!({"cache": {"size": "1T", "storage": {"size": "1.5Ti"}}}),
        json!({"builders": {"workSize": "80Gi", "resources": {"limits": {"ephemeral-storage": "80Gi"}}}}),
        json!({"builders": {"workSize": "80Gi", "resources": {"limits": null}}}),
    ] {
        render(&helm, &values).ok();
    }
}

#[test]
fn all_that_cannot_work_is_said_at_once() {
    let Some(helm) = helm() else { return };
    let values =
        json!({"image": {"tag": ""}, "cache": {"size": "100G", "service": {"nodePort": 30426}}});
    let ran = render(&helm, &values);
    for expected in ["image.tag", "cache.size", "cache.service"] {
        assert!(ran.stderr.contains(expected), "{expected}: {}", ran.stderr);
    }
}

#[test]
fn names_that_kubernetes_would_refuse_are_refused() {
    let Some(helm) = helm() else { return };
    let long = "a".repeat(53);
    for (release, fullname) in [("1st", ""), (&*long, ""), ("one", "Cache"), ("one", "a.b")] {
        let ran = render_as(&helm, release, &json!({"fullnameOverride": fullname}));
        assert!(
            ran.stderr.contains("fullnameOverride: "),
            "{release}, {fullname}: {}",
            ran.stderr
        );
    }
    for (release, fullname) in [("1st", "first"), (&*long, &long[1..]), ("one", "")] {
        render_as(&helm, release, &json!({"fullnameOverride": fullname})).ok();
    }
}

#[test]
fn sizes_are_compared_as_kubernetes_reads_them() {
    let Some(helm) = helm() else { return };
    let limit =
        |size: Value| json!({"builders": {"resources": {"limits": {"ephemeral-storage": size}}}});
    for values in [
        limit(json!(53_687_091_200_u64)),
        limit(json!("53687091200")),
        limit(json!("50e9")),
        limit(json!("5.0E+10")),
        limit(json!("1P")),
        limit(json!("1Pi")),
        limit(json!("1E")),
        limit(json!("1Ei")),
        limit(json!("16Ei")),
        limit(json!("50000000000000m")),
        // What is no size is for Kubernetes to refuse, with its reason.
        limit(json!("50GB")),
        limit(Value::Null),
        json!({"cache": {"storage": {"size": "1Pi"}}}),
    ] {
        render(&helm, &values).ok();
    }
    for (size, said) in [
        (json!(10_737_418_240_u64), "10737418240"),
        (json!("40e9"), "40e9"),
        (json!("39.9Gi"), "39.9Gi"),
        (json!("40000000000000m"), "40000000000000m"),
        (json!(0), "0"),
    ] {
        let ran = render(&helm, &limit(size));
        let said =
            format!("limits.ephemeral-storage of builders.resources, {said}: raise that too");
        assert!(ran.stderr.contains(&said), "{said}: {}", ran.stderr);
    }
}

#[test]
fn settings_of_extra_env_count_as_those_of_env() {
    let Some(helm) = helm() else { return };
    let scaled = json!({"autoscaling": {"enabled": true}});
    let cache = |name: &str, value: Value| {
        let more = json!([{"name": name, "value": value}]);
        json!({"cache": {"extraEnv": more}, "builders": scaled})
    };
    let secret = json!({"secretKeyRef": {"name": "upstream", "key": "url"}});
    let authorities = json!([{"name": "SSL_CERT_FILE", "value": "/etc/ssl/all.pem"}]);
    for (values, expected) in [
        (
            cache("SCCACHE_RELAY", json!("off")),
            "builders.autoscaling needs the relay",
        ),
        (
            cache("SCCACHE_RELAY", json!(false)),
            "cache.extraEnv.SCCACHE_RELAY: to YAML, on and off",
        ),
        (
            json!({"cache": {"extraEnv": [{"name": "SCCACHE_UPSTREAM", "valueFrom": secret}]}}),
            "allow them in networkPolicy.cacheEgress",
        ),
        (
            cache("https_proxy", json!("http://proxy:3128")),
            "allow them in networkPolicy.cacheEgress",
        ),
        (
            json!({"tls": {"secret": "tls"}, "builders": {"extraEnv": authorities}}),
            "builders go by tls.caKey",
        ),
    ] {
        let ran = render(&helm, &values);
        assert!(ran.stderr.contains(expected), "{values}: {}", ran.stderr);
    }
    render(&helm, &cache("SCCACHE_RELAY", json!("on"))).ok();
    render(&helm, &cache("NO_PROXY", json!("example.com"))).ok();
    let mut open = cache("HTTPS_PROXY", json!("http://proxy:3128"));
    open["networkPolicy"] = json!({"enabled": false});
    render(&helm, &open).ok();
}
