//! ID tokens that are none: forged, foreign, of another time, or signed with a key that is good for nothing.

use super::issuer::{AUDIENCE, Mood, Signer, claims, encode, rsa_key, rsa_pair, unix_now};
use super::oidc::Site;
use ring::hmac;
use serde_json::{Value, json};

/// A claim with something wrong in it, the token that has it, and what is said.
#[test]
fn forged_and_foreign_tokens_are_no_sessions() {
    let site = Site::start();
    let (issuer, signer) = (&site.issuer, &site.signer);
    let good = || claims(issuer, json!({}));
    let time = unix_now();
    let raw =
        |header: Value, claims: &Value| signer.signed(&header.to_string(), &claims.to_string());
    let head = |change: Value| {
        let mut header = signer.header();
        for (name, value) in change.as_object().unwrap() {
            match value {
                Value::Null => drop(header.as_object_mut().unwrap().remove(name)),
                value => header[name] = value.clone(),
            }
        }
        header
    };
    let unsigned = |alg: &str| {
        let parts = [
            json!({"alg": alg, "kid": "one"}).to_string(),
            good().to_string(),
        ];
        format!(
            "{}.{}.",
            encode(parts[0].as_bytes()),
            encode(parts[1].as_bytes())
        )
    };
    // HS256 with what everybody knows, the public key, as the secret.
    let by_public_key = {
        let modulus = signer.jwk()["n"].as_str().unwrap().to_owned();
        let key = hmac::Key::new(hmac::HMAC_SHA256, modulus.as_bytes());
        let message = format!(
            "{}.{}",
            encode(json!({"alg": "HS256", "kid": "one"}).to_string().as_bytes()),
            encode(good().to_string().as_bytes())
        );
        let tag = hmac::sign(&key, message.as_bytes());
        format!("{message}.{}", encode(tag.as_ref()))
    };
    let stranger = Signer::rsa("one");
    let whole = signer.token(&good());
    let (message, signature) = whole.rsplit_once('.').unwrap();
    let twice = good()
        .to_string()
        .replacen('{', "{\"event_name\":\"schedule\",", 1);
    let deep = format!(
        "{{\"iss\":\"{}\",\"a\":{}1{}}}",
        issuer.url(),
        "[".repeat(5000),
        "]".repeat(5000)
    );
    let mut many = good();
    for number in 0..900 {
        many[format!("c{number}")] = number.into();
    }
    let with = |changes: Value| signer.token(&claims(issuer, changes));
    let cases: Vec<(&str, String, &str)> = vec![
        ("nothing", String::new(), "no JSON Web Token"),
        ("words", "let me in".to_owned(), "no JSON Web Token"),
        ("two parts", message.to_owned(), "no JSON Web Token"),
        ("four parts", format!("{whole}.x"), "no JSON Web Token"),
        ("alg none", unsigned("none"), "signs with RS256"),
        ("alg None", unsigned("None"), "signs with RS256"),
        ("no signature", unsigned("RS256"), "not valid"),
        ("HS256 with the public key", by_public_key, "signs with RS256"),
        ("another algorithm", raw(head(json!({"alg": "RS512"})), &good()), "signs with RS256"),
        ("no algorithm", raw(head(json!({"alg": null})), &good()), "no algorithm"),
        ("another's key of the same name", stranger.token(&good()), "not valid"),
        ("no kid", raw(head(json!({"kid": null})), &good()), "names no key"),
        ("a kid that is a path", raw(head(json!({"kid": "../../../../dev/null"})), &good()), "none of its issuer's"),
        ("a kid that is unknown", raw(head(json!({"kid": "two"})), &good()), "none of its issuer's"),
        ("a kid that is a number", raw(head(json!({"kid": 1})), &good()), "names no key"),
        ("crit", raw(head(json!({"crit": ["exp"]})), &good()), "crit"),
        ("jku and a foreign key", stranger.signed(&head(json!({"jku": "http://127.0.0.1:1/keys", "jwk": stranger.jwk(), "x5u": "http://127.0.0.1:1/"})).to_string(), &good().to_string()), "not valid"),
        ("a changed claim", format!("{}.{}.{signature}", message.split('.').next().unwrap(), encode(claims(issuer, json!({"repository_id": "9"})).to_string().as_bytes())), "not valid"),
        ("a cut signature", whole[..whole.len() - 10].to_owned(), "not valid"),
        ("another audience", with(json!({"aud": "https://github.com/team"})), "not valid"),
        ("no audience", with(json!({"aud": null})), "not valid"),
        ("two audiences", with(json!({"aud": [AUDIENCE, "https://other.test"]})), "for others too"),
        ("an audience that begins alike", with(json!({"aud": format!("{AUDIENCE}.evil.org")})), "not valid"),
        ("a slash behind the issuer", with(json!({"iss": format!("{}/", issuer.url())})), "issuer is none"),
        ("an issuer of another case", with(json!({"iss": issuer.url().to_uppercase()})), "issuer is none"),
        ("an unknown issuer", with(json!({"iss": "https://token.actions.githubusercontent.com"})), "issuer is none"),
        ("a list of issuers", with(json!({"iss": [issuer.url()]})), "names no issuer"),
        ("no issuer", with(json!({"iss": null})), "names no issuer"),
        ("no subject", with(json!({"sub": null})), "not valid"),
        ("over", with(json!({"exp": time - 120})), "not valid"),
        ("no end", with(json!({"exp": null})), "not valid"),
        ("an end as text", with(json!({"exp": (time + 300).to_string()})), "not valid"),
        ("an end with a fraction", with(json!({"exp": time as f64 + 300.5})), "no whole number"),
        ("a negative end", with(json!({"exp": -1})), "not valid"),
        ("an end of 1e300", with(json!({"exp": 1e300})), "not valid"),
        ("an end in a hundred years", with(json!({"exp": time + 3_000_000_000_u64})), "more than a month"),
        ("not yet", with(json!({"nbf": time + 600})), "not valid"),
        ("not yet, as text", with(json!({"nbf": "0"})), "not valid"),
        ("made in the future", with(json!({"iat": time + 600})), "in the future"),
        ("a claim twice", signer.signed(&signer.header().to_string(), &twice), "no JSON Web Token"),
        ("a header's member twice", signer.signed("{\"alg\":\"RS256\",\"alg\":\"none\",\"kid\":\"one\"}", &good().to_string()), "no JSON Web Token"),
        ("deep nesting", signer.signed(&signer.header().to_string(), &deep), "no JSON Web Token"),
        ("900 claims", signer.token(&many), "no JSON Web Token"),
        ("no object", signer.signed(&signer.header().to_string(), "[]"), "no JSON Web Token"),
    ];
    for (what, token, word) in cases {
        let answer = site.exchange(&token);
        assert!([401, 429].contains(&answer.code), "{what}: {answer:?}");
        assert!(answer.text().contains(word), "{what}: {}", answer.text());
    }
    let long = site.exchange(&"x".repeat(1 << 20));
    assert!([400, 401, 413, 429].contains(&long.code), "{long:?}");
    assert!(site.sessions().is_empty(), "one of them is a session");
    // Many wrong ones from an address do not shut the right one out, and it is good once.
    assert_eq!(site.exchange(&whole).code, 200);
    let again = site.exchange(&whole);
    assert!(again.text().contains("exchanged before"), "{again:?}");
    // The flood of unknown keys has asked the issuer no more than once beyond its first keys.
    for number in 0..50 {
        site.exchange(&raw(
            head(json!({"kid": format!("flood-{number}")})),
            &good(),
        ));
    }
    assert!(
        site.issuer.asked() <= 2,
        "{} questions",
        site.issuer.asked()
    );
    let log = site.gateway.process.log();
    assert!(
        !log.contains(&whole) && !log.contains("sd1-"),
        "a token is in the log"
    );
}

#[test]
fn keys_that_are_weak_or_doubtful_are_not_used() {
    let signer = Signer::rsa("one");
    let short = rsa_pair(&rsa_key(1024));
    assert!(
        short.is_err(),
        "ring itself takes no key of 1,024 bits to sign"
    );
    let mut small = signer.jwk();
    small["n"] = encode(&[0xc3; 64]).into();
    let mut one = signer.jwk();
    one["e"] = encode(&[1]).into();
    let secret = json!({"kty": "oct", "kid": "one", "k": encode(b"secret")});
    for (what, set) in [
        ("512 bits", json!([small])),
        ("exponent 1", json!([one])),
        ("a shared secret", json!([secret])),
        ("the same name twice", json!([signer.jwk(), signer.jwk()])),
        (
            "the same name twice, one of them a secret",
            json!([signer.jwk(), secret]),
        ),
    ] {
        let site = Site::start_with(Signer::rsa("other"), "", |issuer| {
            issuer.set(Mood::Keys(json!({ "keys": set })));
        });
        let token = signer.token(&claims(&site.issuer, json!({})));
        let answer = site.exchange(&token);
        assert_eq!(answer.code, 503, "{what}: {answer:?}");
        assert!(
            answer.text().contains("no key that is good"),
            "{what}: {}",
            answer.text()
        );
    }
}
