//! The keys of an issuer: its JSON Web Key Set (RFC 7517) into those that may check its tokens. Pure.

use crate::contract::tokens::rules::Algorithm;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::DecodingKey;
use serde::Deserialize;
use std::collections::HashMap;

/// Most keys of a set.
const MOST: usize = 100;
/// Shortest RSA modulus, in bytes.
const SHORTEST_MODULUS: usize = 256;
/// Longest RSA modulus, in bytes: a longer one takes too long.
const LONGEST_MODULUS: usize = 1024;
/// The public exponents that are in use: small ones have been broken.
const EXPONENT: [u8; 3] = [1, 0, 1];

/// Keys by their `kid`.
pub(super) type Keys = HashMap<String, DecodingKey>;

#[derive(Deserialize)]
struct Set {
    keys: Vec<serde_json::Value>,
}

/// What is looked at of a key; of `oct`, a shared secret, nothing is.
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    alg: Option<String>,
    n: Option<String>,
    e: Option<String>,
    crv: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

/// The keys of the set in `text` that are good for `algorithm`. Others are left out, and so are those of which two have
/// one name.
///
/// # Errors
/// It is no set of keys, or none of them is good.
pub(super) fn parse(text: &[u8], algorithm: Algorithm) -> Result<Keys, String> {
    let set: Set =
        serde_json::from_slice(text).map_err(|cause| format!("no set of keys: {cause}"))?;
    if set.keys.len() > MOST {
        return Err(format!("a set of more than {MOST} keys"));
    }
    let mut keys: HashMap<String, Option<DecodingKey>> = HashMap::new();
    for key in set.keys {
        let Ok(jwk) = serde_json::from_value::<Jwk>(key) else {
            continue;
        };
        let Some(kid) = jwk.kid.clone() else { continue };
        let key = key_of(&jwk, algorithm);
        // Twice the same name is a doubt, even if one of both were useless.
        keys.entry(kid)
            .and_modify(|known| *known = None)
            .or_insert(key);
    }
    let keys: Keys = keys
        .into_iter()
        .filter_map(|(kid, key)| Some((kid, key?)))
        .collect();
    if keys.is_empty() {
        return Err(format!("no key that is good for {}", algorithm.name()));
    }
    Ok(keys)
}

fn key_of(jwk: &Jwk, algorithm: Algorithm) -> Option<DecodingKey> {
    let is = |given: &Option<String>, wanted: &str| given.as_ref().is_none_or(|it| it == wanted);
    if !is(&jwk.usage, "sig") || !is(&jwk.alg, algorithm.name()) {
        return None;
    }
    let decode = |text: &Option<String>| URL_SAFE_NO_PAD.decode(text.as_ref()?).ok();
    let (kty, curve, bytes) = match algorithm {
        Algorithm::Rs256 | Algorithm::Rs512 => ("RSA", None, 0),
        Algorithm::Es256 => ("EC", Some("P-256"), 32),
        Algorithm::Es384 => ("EC", Some("P-384"), 48),
    };
    if jwk.kty != kty {
        return None;
    }
    match curve {
        None => {
            let (n, e) = (decode(&jwk.n)?, decode(&jwk.e)?);
            let lengths = SHORTEST_MODULUS..=LONGEST_MODULUS;
            let is_good = lengths.contains(&n.len()) && n[0] >= 0x80 && e == EXPONENT;
            is_good.then(|| DecodingKey::from_rsa_raw_components(&n, &e))
        }
        Some(curve) => {
            let (x, y) = (decode(&jwk.x)?, decode(&jwk.y)?);
            let is_good = jwk.crv.as_deref() == Some(curve) && x.len() == bytes && y.len() == bytes;
            is_good.then(|| DecodingKey::from_ec_der(&[&[4][..], &x, &y].concat()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rsa(kid: &str, bytes: usize, e: &[u8]) -> serde_json::Value {
        let n = vec![0xc3; bytes];
        json!({"kty": "RSA", "kid": kid, "use": "sig", "alg": "RS256",
               "n": URL_SAFE_NO_PAD.encode(n), "e": URL_SAFE_NO_PAD.encode(e)})
    }

    fn names(keys: &[serde_json::Value]) -> Vec<String> {
        let text = json!({ "keys": keys }).to_string();
        let keys = parse(text.as_bytes(), Algorithm::Rs256).unwrap_or_default();
        let mut names: Vec<String> = keys.into_keys().collect();
        names.sort();
        names
    }

    #[test]
    fn weak_and_foreign_keys_are_left_out() {
        let good = rsa("good", 256, &EXPONENT);
        let with = |field: &str, value: &str| {
            let mut key = rsa("bad", 256, &EXPONENT);
            key[field] = value.into();
            key
        };
        let mut nameless = good.clone();
        nameless.as_object_mut().unwrap().remove("kid");
        for bad in [
            rsa("bad", 64, &EXPONENT),
            rsa("bad", 255, &EXPONENT),
            rsa("bad", 2048, &EXPONENT),
            rsa("bad", 256, &[1]),
            rsa("bad", 256, &[3]),
            with("use", "enc"),
            with("alg", "HS256"),
            with("alg", "RS512"),
            with("kty", "oct"),
            with("n", "%%%"),
            json!({"kty": "oct", "kid": "bad", "k": "c2VjcmV0"}),
            json!({"kty": "EC", "kid": "bad", "crv": "P-256", "x": "AA", "y": "AA"}),
            json!({"kid": "bad"}),
            json!("bad"),
            nameless,
        ] {
            assert_eq!(names(&[good.clone(), bad.clone()]), ["good"], "{bad}");
            assert!(names(&[bad]).is_empty());
        }
    }

    #[test]
    fn two_keys_of_one_name_are_none() {
        let (one, other) = (rsa("a", 256, &EXPONENT), rsa("a", 512, &EXPONENT));
        assert_eq!(
            names(&[one.clone(), other, rsa("b", 256, &EXPONENT)]),
            ["b"]
        );
        assert!(names(&[one, json!({"kty": "oct", "kid": "a"})]).is_empty());
    }

    #[test]
    fn what_is_no_set_is_said() {
        let many = vec![rsa("a", 256, &EXPONENT); MOST + 1];
        for text in [
            "",
            "[]",
            "{}",
            "{\"keys\":1}",
            &json!({ "keys": many }).to_string(),
        ] {
            assert!(parse(text.as_bytes(), Algorithm::Rs256).is_err());
        }
    }
}
