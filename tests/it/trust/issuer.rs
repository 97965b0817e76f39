//! An issuer of ID tokens of the test's own: real keys, real signatures, and every way in which one can fail.

use crate::harness::now;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::error::KeyRejected;
use ring::rand::SystemRandom;
use ring::rsa::{KeyPair as RsaKeyPair, PublicKeyComponents};
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, RSA_PKCS1_SHA256};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

/// The audience that the cache demands.
pub(crate) const AUDIENCE: &str = "https://build-cache.test";

/// How the issuer answers when it is asked for its keys.
#[derive(Debug, Clone)]
pub(crate) enum Mood {
    Keys(Value),
    /// With this status and nothing else.
    Status(u16),
    Redirect(String),
    Bytes(usize),
    Text(String),
    Slow(Duration),
}

pub(crate) struct Issuer {
    pub(crate) address: SocketAddr,
    mood: Arc<Mutex<Mood>>,
    asked: Arc<AtomicUsize>,
}

impl Issuer {
    pub(crate) fn start(mood: Mood) -> Issuer {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (mood, asked) = (Arc::new(Mutex::new(mood)), Arc::<AtomicUsize>::default());
        let (answers, count) = (Arc::clone(&mood), Arc::clone(&asked));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let mood = answers.lock().unwrap().clone();
                let count = Arc::clone(&count);
                std::thread::spawn(move || {
                    let mut lines = BufReader::new(&stream).lines().map_while(Result::ok);
                    let first = lines.next().unwrap_or_default();
                    while lines.next().is_some_and(|line| !line.is_empty()) {}
                    count.fetch_add(1, SeqCst);
                    let (status, more, body) = match (&mood, first.contains("/keys")) {
                        (Mood::Keys(keys), true) => (200, String::new(), keys.to_string()),
                        (Mood::Status(status), _) => (*status, String::new(), String::new()),
                        (Mood::Redirect(to), _) => {
                            (302, format!("Location: {to}\r\n"), String::new())
                        }
                        (Mood::Bytes(count), _) => (200, String::new(), " ".repeat(*count)),
                        (Mood::Text(text), _) => (200, String::new(), text.clone()),
                        (Mood::Slow(time), _) => {
                            std::thread::sleep(*time);
                            (200, String::new(), "{}".to_owned())
                        }
                        (Mood::Keys(_), false) => (404, String::new(), String::new()),
                    };
                    let length = body.len();
                    let _ = write!(
                        &stream,
                        "HTTP/1.1 {status} X\r\n{more}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
                    );
                });
            }
        });
        Issuer {
            address,
            mood,
            asked,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn set(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    pub(crate) fn asked(&self) -> usize {
        self.asked.load(SeqCst)
    }

    /// The table of this issuer in the tokens' file.
    pub(crate) fn table(&self, name: &str, rest: &str) -> String {
        let url = self.url();
        format!(
            "[[issuer]]\nname = \"{name}\"\nurl = \"{url}\"\njwks = \"{url}/keys\"\naudience = \"{AUDIENCE}\"\n{rest}\n"
        )
    }
}

/// Where a runner of GitHub gives out this ID token, to whoever shows its secret.
pub(crate) fn runner(token: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/?api-version=2", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let mut lines = BufReader::new(&stream).lines().map_while(Result::ok);
            let head: Vec<String> = (&mut lines).take_while(|line| !line.is_empty()).collect();
            let is_asked = head
                .iter()
                .any(|line| line.ends_with("Bearer runner-secret"));
            let body = match is_asked {
                true => json!({ "value": token }).to_string(),
                false => String::new(),
            };
            let length = body.len();
            let _ = write!(
                &stream,
                "HTTP/1.1 200 X\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
            );
        }
    });
    url
}

enum Key {
    Rsa(RsaKeyPair),
    Ec(EcdsaKeyPair),
}

/// A key with a name.
pub(crate) struct Signer {
    pub(crate) kid: String,
    key: Key,
}

impl Signer {
    pub(crate) fn rsa(kid: &str) -> Signer {
        Signer {
            kid: kid.to_owned(),
            key: Key::Rsa(rsa_pair(&rsa_key(2048)).unwrap()),
        }
    }

    pub(crate) fn ec(kid: &str) -> Signer {
        let random = SystemRandom::new();
        let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let document = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        let key = EcdsaKeyPair::from_pkcs8(algorithm, document.as_ref(), &random).unwrap();
        Signer {
            kid: kid.to_owned(),
            key: Key::Ec(key),
        }
    }

    fn algorithm(&self) -> &'static str {
        match self.key {
            Key::Rsa(_) => "RS256",
            Key::Ec(_) => "ES256",
        }
    }

    pub(crate) fn jwk(&self) -> Value {
        match &self.key {
            Key::Rsa(key) => {
                let public = PublicKeyComponents::<Vec<u8>>::from(key.public());
                json!({"kty": "RSA", "use": "sig", "alg": "RS256", "kid": self.kid,
                       "n": encode(&public.n), "e": encode(&public.e)})
            }
            Key::Ec(key) => {
                let point = key.public_key().as_ref();
                json!({"kty": "EC", "use": "sig", "alg": "ES256", "kid": self.kid, "crv": "P-256",
                       "x": encode(&point[1..33]), "y": encode(&point[33..])})
            }
        }
    }

    pub(crate) fn header(&self) -> Value {
        json!({"alg": self.algorithm(), "typ": "JWT", "kid": self.kid})
    }

    /// A token with these claims.
    pub(crate) fn token(&self, claims: &Value) -> String {
        self.signed(&self.header().to_string(), &claims.to_string())
    }

    /// A token of these texts, whatever they are.
    pub(crate) fn signed(&self, header: &str, claims: &str) -> String {
        let message = format!(
            "{}.{}",
            encode(header.as_bytes()),
            encode(claims.as_bytes())
        );
        let random = SystemRandom::new();
        let signature = match &self.key {
            Key::Rsa(key) => {
                let mut signature = vec![0; key.public().modulus_len()];
                key.sign(
                    &RSA_PKCS1_SHA256,
                    &random,
                    message.as_bytes(),
                    &mut signature,
                )
                .unwrap();
                signature
            }
            Key::Ec(key) => key
                .sign(&random, message.as_bytes())
                .unwrap()
                .as_ref()
                .to_vec(),
        };
        format!("{message}.{}", encode(&signature))
    }
}

/// A key of so many bits, as openssl makes it.
pub(crate) fn rsa_key(bits: usize) -> Vec<u8> {
    let output = Command::new("openssl")
        .args([
            "genpkey",
            "-algorithm",
            "RSA",
            "-outform",
            "DER",
            "-pkeyopt",
        ])
        .arg(format!("rsa_keygen_bits:{bits}"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    output.stdout
}

/// Older ones write the key alone, newer ones what kind of key it is too.
pub(crate) fn rsa_pair(der: &[u8]) -> Result<RsaKeyPair, KeyRejected> {
    RsaKeyPair::from_pkcs8(der).or_else(|_| RsaKeyPair::from_der(der))
}

pub(crate) fn encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

pub(crate) fn keys(signers: &[&Signer]) -> Mood {
    let keys: Vec<Value> = signers.iter().map(|signer| signer.jwk()).collect();
    Mood::Keys(json!({ "keys": keys }))
}

#[expect(
    clippy::disallowed_methods,
    reason = "tokens have the real time in them"
)]
pub(crate) fn unix_now() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap()
        .as_secs()
}

/// Claims as GitHub's tokens have them, for a push to the main branch; `changes` are put in, and `null` takes out.
pub(crate) fn claims(issuer: &Issuer, changes: Value) -> Value {
    let time = unix_now();
    let mut claims = json!({
        "iss": issuer.url(),
        "aud": AUDIENCE,
        "sub": "repo:team/project:ref:refs/heads/main",
        "exp": time + 300,
        "nbf": time - 600,
        "iat": time,
        // Two tokens of one second differ.
        "jti": format!("{:?}", now()),
        "repository": "team/project",
        "repository_id": "1001",
        "repository_owner_id": "77",
        "ref": "refs/heads/main",
        "ref_type": "branch",
        "ref_protected": "true",
        "event_name": "push",
        "run_id": "5001",
        "run_attempt": "1",
        "job_workflow_ref": "team/project/.github/workflows/ci.yml@refs/heads/main",
        "runner_environment": "github-hosted",
    });
    for (name, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
            value => claims[name] = value.clone(),
        }
    }
    claims
}
