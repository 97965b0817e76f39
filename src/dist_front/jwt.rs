//! Tokens of builders as JWT (RFC 7519), signed by HMAC with SHA-256 (RFC 7518, 3.2), as sccache's scheduler takes them with
//! `server_auth = { type = "jwt_hs256" }`: `sccache-dist auth generate-jwt-hs256-server-token` makes them. Pure.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use serde::Deserialize;
use std::net::SocketAddr;

#[derive(Deserialize)]
struct Header {
    alg: String,
}

/// As sccache 0.19 has them; it refuses any other claim, and so do we.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Claims {
    /// Must be there and says nothing: sccache writes 0.
    #[serde(rename = "exp")]
    _exp: u64,
    server_id: SocketAddr,
}

/// Whether a token is one, as far as its form tells.
pub(super) fn is_one(token: &str) -> bool {
    token.starts_with("eyJ") && token.split('.').count() == 3
}

/// The builder that a token is for, if it was signed with this key.
pub(super) fn builder(token: &str, key: &[u8]) -> Option<SocketAddr> {
    let (signed, signature) = token.rsplit_once('.')?;
    let (header, claims) = signed.split_once('.')?;
    let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).ok();
    let header: Header = serde_json::from_slice(&decode(header)?).ok()?;
    if header.alg != "HS256" {
        return None;
    }
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    hmac::verify(&key, signed.as_bytes(), &decode(signature)?).ok()?;
    let claims: Claims = serde_json::from_slice(&decode(claims)?).ok()?;
    Some(claims.server_id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(header: &str, claims: &str, key: &[u8]) -> String {
        let signed = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part));
        let signed = signed.join(".");
        let key = hmac::Key::new(hmac::HMAC_SHA256, key);
        let signature = URL_SAFE_NO_PAD.encode(hmac::sign(&key, signed.as_bytes()));
        format!("{signed}.{signature}")
    }

    #[test]
    fn token_is_good_with_its_key_its_algorithm_and_its_claims_only() {
        let (key, header) = ([7; 32], r#"{"typ":"JWT","alg":"HS256"}"#);
        let claims = r#"{"exp":0,"server_id":"10.0.0.7:10501"}"#;
        let good = token(header, claims, &key);
        assert!(is_one(&good) && !is_one("10.0.0.7:10501 a.b.c"));
        let expected = "10.0.0.7:10501".parse().ok();
        assert_eq!(builder(&good, &key), expected);
        assert_eq!(builder(&good, &[8; 32]), None);
        for (header, claims) in [
            (r#"{"alg":"none"}"#, claims),
            (r#"{"alg":"HS512"}"#, claims),
            (header, r#"{"server_id":"10.0.0.7:10501"}"#),
            (
                header,
                r#"{"exp":0,"server_id":"10.0.0.7:10501","sub":"x"}"#,
            ),
            (header, r#"{"exp":0,"server_id":"a-name:10501"}"#),
        ] {
            let bad = token(header, claims, &key);
            assert_eq!(builder(&bad, &key), None, "{header} {claims}");
        }
        let (signed, _) = good.rsplit_once('.').unwrap();
        for bad in ["", "..", "a.b.c", signed, &format!("{signed}.")] {
            assert_eq!(builder(bad, &key), None, "{bad}");
        }
    }
}
