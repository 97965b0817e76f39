//! An ID token into its claims, if all that is asked of it holds. Pure but for the clock of `jsonwebtoken`.

use super::keys::Keys;
use super::provider;
use crate::contract::tokens::rules::Issuer;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::Validation;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;
use thiserror::Error;

/// Longest token, before anything of it is decoded.
pub(super) const LONGEST: usize = 16 << 10;
/// Most claims.
const MOST_CLAIMS: usize = 256;
/// How far the clocks may be apart, in seconds.
const LEEWAY: u64 = 60;
/// The longest that a token may be good, in seconds.
const LONGEST_LIFE: u64 = 31 * 24 * 3600;

/// Why a token is not taken.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum Refused {
    /// It is no token at all.
    #[error("it is no JSON Web Token: {0}")]
    Malformed(String),
    /// Nobody here trusts its issuer.
    #[error("its issuer is none of this cache's")]
    Issuer,
    /// It is signed with a key that its issuer has not published, as far as we know.
    #[error("its key is none of its issuer's; keys are asked for again once a minute")]
    UnknownKey,
    /// The issuer has not answered for too long, or never.
    #[error("its issuer's keys cannot be had: {0}")]
    NoKeys(String),
    /// It is somebody else's, or of another time, or made by nobody.
    #[error("it is not valid: {0}")]
    Invalid(String),
    /// It was taken before.
    #[error("it was exchanged before: fetch a new one")]
    Replayed,
    /// No rule is for it.
    #[error("no rule of this cache fits its claims: {0}")]
    NoRule(String),
    /// The sessions of its run were ended by hand.
    #[error("the sessions of this run were revoked")]
    Revoked,
    /// There are too many sessions.
    #[error(
        "there are too many sessions, or too many of this rule or run: wait until some have ended"
    )]
    Full,
}

/// Claims by name, each of which stands there once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Claims(pub(super) BTreeMap<String, Value>);

impl Claims {
    /// A claim as text, as it is compared: a number or a truth value as it is written.
    pub(super) fn text(&self, name: &str) -> Option<String> {
        match self.0.get(name)? {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            Value::Bool(flag) => Some(flag.to_string()),
            Value::Null | Value::Array(_) | Value::Object(_) => None,
        }
    }

    /// The end of the token's life, in seconds since 1970.
    pub(super) fn ends(&self) -> u64 {
        self.0.get("exp").and_then(Value::as_u64).unwrap_or(0)
    }
}

impl<'de> Deserialize<'de> for Claims {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Claims, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Claims;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Claims, A::Error> {
                let mut claims = BTreeMap::new();
                while let Some((name, value)) = map.next_entry::<String, Value>()? {
                    if claims.len() >= MOST_CLAIMS {
                        return Err(serde::de::Error::custom("too many members"));
                    }
                    // Two readers would see two tokens.
                    if claims.insert(name, value).is_some() {
                        return Err(serde::de::Error::custom("a member stands there twice"));
                    }
                }
                Ok(Claims(claims))
            }
        }
        from.deserialize_map(Members)
    }
}

/// What a token says of itself, which nothing has proven yet.
#[derive(Debug)]
pub(super) struct Unproven<'a> {
    token: &'a str,
    /// The header's `kid`.
    pub(super) key: String,
    /// The claim `iss`.
    pub(super) issuer: String,
    algorithm: String,
}

/// Takes a token apart.
///
/// # Errors
/// It is no token, or has something in its header that we would have to understand.
pub(super) fn read(token: &str) -> Result<Unproven<'_>, Refused> {
    let malformed = |cause: &str| Refused::Malformed(cause.to_owned());
    if token.len() > LONGEST {
        return Err(malformed("it is too long"));
    }
    let parts: Vec<&str> = token.split('.').collect();
    let [header, claims, _] = parts[..] else {
        return Err(malformed("it has not three parts"));
    };
    let header = members(header)?;
    if header.0.contains_key("crit") {
        return Err(malformed("its header has \"crit\""));
    }
    let text = |members: &Claims, name: &str| {
        let value = members.0.get(name).and_then(Value::as_str);
        value.map(str::to_owned)
    };
    let claims = members(claims)?;
    Ok(Unproven {
        token,
        key: text(&header, "kid").ok_or_else(|| malformed("its header names no key"))?,
        algorithm: text(&header, "alg")
            .ok_or_else(|| malformed("its header names no algorithm"))?,
        issuer: text(&claims, "iss").ok_or_else(|| malformed("it names no issuer"))?,
    })
}

fn members(part: &str) -> Result<Claims, Refused> {
    let text = URL_SAFE_NO_PAD.decode(part);
    let text = text.map_err(|cause| Refused::Malformed(cause.to_string()))?;
    serde_json::from_slice(&text).map_err(|cause| Refused::Malformed(cause.to_string()))
}

impl Unproven<'_> {
    /// What tells this token from others; a signature can be written in more ways than one, and so does not count.
    pub(super) fn digest(&self) -> [u8; 32] {
        let signed = self.token.rsplit_once('.').map_or("", |(signed, _)| signed);
        *blake3::hash(signed.as_bytes()).as_bytes()
    }

    /// The claims, if this token is `issuer`'s, for us, and good now.
    ///
    /// # Errors
    /// It is not.
    pub(super) fn prove(
        &self,
        issuer: &Issuer,
        keys: &Keys,
        now_unix: u64,
    ) -> Result<Claims, Refused> {
        let invalid = |cause: String| Refused::Invalid(cause);
        if self.issuer != issuer.url {
            return Err(Refused::Issuer);
        }
        if self.algorithm != issuer.algorithm.name() {
            let wanted = issuer.algorithm.name();
            return Err(invalid(format!("its issuer signs with {wanted}")));
        }
        let key = keys.get(&self.key).ok_or(Refused::UnknownKey)?;
        let mut validation = Validation::new(provider::algorithm(issuer.algorithm));
        validation.leeway = LEEWAY;
        validation.validate_nbf = true;
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation.set_issuer(&[&issuer.url]);
        validation.set_audience(&[&issuer.audience]);
        provider::install();
        let claims = jsonwebtoken::decode::<Claims>(self.token, key, &validation);
        let claims = claims.map_err(|cause| invalid(cause.to_string()))?.claims;
        check(&claims, issuer, now_unix).map_err(|cause| invalid(cause.to_owned()))?;
        Ok(claims)
    }
}

/// What `jsonwebtoken` does not look at.
fn check(claims: &Claims, issuer: &Issuer, now_unix: u64) -> Result<(), &'static str> {
    let number = |name: &str| match claims.0.get(name) {
        None => Ok(None),
        Some(value) => value
            .as_u64()
            .map(Some)
            .ok_or("a time in it is no whole number"),
    };
    let ends = number("exp")?.ok_or("it has no end")?;
    let (begun, _) = (number("iat")?, number("nbf")?);
    if begun.is_some_and(|begun| begun > now_unix + LEEWAY) {
        return Err("it was made in the future");
    }
    if ends > now_unix + LONGEST_LIFE {
        return Err("it is good for more than a month");
    }
    if claims.0.get("iss").and_then(Value::as_str) != Some(&issuer.url) {
        return Err("its issuer is no text");
    }
    // One that is for others too could be in anybody's hands.
    let audience = claims.0.get("aud");
    let is_ours = match audience {
        Some(Value::String(one)) => *one == issuer.audience,
        Some(Value::Array(all)) => all.len() == 1 && all[0] == issuer.audience.as_str(),
        _ => false,
    };
    match is_ours {
        true => Ok(()),
        false => Err("it is for others too"),
    }
}
