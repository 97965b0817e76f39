//! Tokens that the chart makes are made once, and secrets that others make are looked at before anything waits for them.

use super::{helm, objects, of};
use crate::docker::Ran;
use serde_json::{Value, json};
use std::path::Path;

/// What Helm would install in a cluster that has these secrets already.
fn install(folder: &Path, values: &Value, secrets: &Value) -> Ran {
    super::install(folder, "sccache", values, secrets, &json!({}))
}

#[test]
fn tokens_are_made_once_and_missing_ones_added() {
    let Some(helm) = helm() else { return };
    let made = |secrets: Value| {
        let values = json!({"tokens": {"existingSecret": ""}});
        let made = objects(&install(&helm, &values, &secrets).ok());
        of(&made, "Secret", "sccache-tokens")["data"].clone()
    };
    let is_token =
        |data: &Value, name: &str| data[name].as_str().is_some_and(|text| text.len() == 64);
    let first = made(json!({}));
    for name in ["auth", "read", "server"] {
        assert!(is_token(&first, name), "{first}");
    }
    assert_ne!(first, made(json!({})), "at random");
    let old = json!({"auth": "YXV0aA==", "read": "cmVhZA==", "server": "c2VydmVy"});
    assert_eq!(
        made(json!({"sccache-tokens": {"auth": "auth", "read": "read", "server": "server"}})),
        old
    );
    // One of the keys is missing, as in a secret that somebody made for an older version, or all are.
    let completed = made(json!({"sccache-tokens": {"auth": "auth", "server": "server"}}));
    assert_eq!(
        (&completed["auth"], &completed["server"]),
        (&old["auth"], &old["server"])
    );
    assert!(is_token(&completed, "read"), "{completed}");
    let completed = made(json!({"sccache-tokens": {}}));
    assert!(is_token(&completed, "auth"), "{completed}");
}

#[test]
fn existing_secrets_have_the_keys_that_pods_mount() {
    let Some(helm) = helm() else { return };
    let values = json!({
        "tokens": {"existingSecret": "tokens", "namedSecret": "named"},
        "tls": {"secret": "tls", "clientCaSecret": "client-ca"},
        "cache": {"clientCertificateSecret": "cache"},
        "builders": {"clientCertificateSecret": "builder"},
    });
    let pair = json!({"tls.crt": "-", "tls.key": "-"});
    let whole = json!({
        "tokens": {"auth": "-", "read": "-", "server": "-"},
        "named": {"tokens.toml": "-"},
        "tls": {"tls.crt": "-", "tls.key": "-", "ca.crt": "-"},
        "client-ca": {"ca.crt": "-"},
        "cache": pair,
        "builder": pair,
    });
    install(&helm, &values, &whole).ok();
    // Secrets may be made after the release, whose pods wait for them.
    install(&helm, &values, &json!({})).ok();
    for (value, secret, key) in [
        ("tokens.existingSecret", "tokens", "auth"),
        ("tokens.existingSecret", "tokens", "read"),
        ("tokens.existingSecret", "tokens", "server"),
        ("tokens.namedSecret", "named", "tokens.toml"),
        ("tls.secret", "tls", "tls.key"),
        ("tls.secret", "tls", "ca.crt"),
        ("tls.clientCaSecret", "client-ca", "ca.crt"),
        ("cache.clientCertificateSecret", "cache", "tls.crt"),
        ("builders.clientCertificateSecret", "builder", "tls.key"),
    ] {
        let mut secrets = whole.clone();
        secrets[secret].as_object_mut().unwrap().remove(key);
        let ran = install(&helm, &values, &secrets);
        let expected = format!(
            "{value}: the secret \"{secret}\" in the namespace \"sccache\" has no key \"{key}\""
        );
        assert_ne!(ran.code, Some(0), "{value} without {key}");
        assert!(ran.stderr.contains(&expected), "{expected}: {}", ran.stderr);
    }
}
