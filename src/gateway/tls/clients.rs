//! Certificates of clients: which authorities are believed, and by which names their holders are known.
//!
//! A handshake demands none, because sccache's own client has none. One that comes must be good, at the handshake and at each
//! request: a connection may stay open for longer than its certificate is good, or its authority believed.

use super::{Error, X509, chain, names, read};
use crate::base::time::unix_seconds;
use parking_lot::Mutex;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, UnixTime};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::server::danger::ClientCertVerifier;
use tokio_rustls::rustls::{CertificateError, CommonState, Error as TlsError, RootCertStore};
use x509_cert::der::{Decode, Tag, Tagged};
use x509_cert::ext::pkix::name::GeneralName;

/// `commonName` (RFC 5280, appendix A.1).
const COMMON_NAME: &str = "2.5.4.3";

/// The authorities that are believed.
#[derive(Debug, Clone)]
pub(super) struct Authorities {
    pub(super) verifier: Arc<dyn ClientCertVerifier>,
    /// Of the file's content.
    mark: blake3::Hash,
}

impl Authorities {
    /// Those of a file.
    pub(super) fn load(path: &Path) -> Result<Authorities, Error> {
        let bad = |why: String| Error::Content {
            path: path.to_owned(),
            why,
        };
        let pem = read(path)?;
        let mut roots = RootCertStore::empty();
        for one in chain(&pem).map_err(bad)? {
            let added = roots.add(one);
            added.map_err(|cause| {
                bad(format!("it holds something else than authorities: {cause}"))
            })?;
        }
        let provider = Arc::new(ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .allow_unauthenticated()
            .build()
            .map_err(|cause| bad(cause.to_string()))?;
        Ok(Authorities {
            verifier,
            mark: blake3::hash(&pem),
        })
    }

    pub(super) fn mark(&self) -> &[u8; 32] {
        self.mark.as_bytes()
    }
}

/// The certificate that a connection came with.
#[derive(Debug)]
pub(crate) struct Presented {
    chain: Vec<CertificateDer<'static>>,
    /// By which its holder is known.
    pub(crate) names: Vec<String>,
    not_after_unix_seconds: u64,
    /// Under which authorities it was found good. At first none: the session may be an earlier one's.
    found_good: Mutex<Option<blake3::Hash>>,
}

impl Presented {
    /// What the other side of a connection has shown in the handshake.
    pub(crate) fn of(connection: &CommonState) -> Option<Arc<Presented>> {
        let chain: Vec<_> = connection
            .peer_certificates()?
            .iter()
            .map(|one| one.clone().into_owned())
            .collect();
        let parsed = X509::from_der(chain.first()?).ok()?;
        let not_after = parsed.tbs_certificate().validity().not_after;
        Some(Arc::new(Presented {
            names: names_of_holder(&parsed),
            not_after_unix_seconds: not_after.to_unix_duration().as_secs(),
            chain,
            found_good: Mutex::default(),
        }))
    }

    /// What tells it from any other.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.chain.first().map_or(&[], |first| first)
    }

    /// Whether it is good now, by these authorities.
    pub(super) fn check(&self, authorities: Option<&Authorities>) -> Result<(), String> {
        let Some(authorities) = authorities else {
            return Err("no authority is believed any more".to_owned());
        };
        let now = unix_seconds();
        let mut found_good = self.found_good.lock();
        if *found_good == Some(authorities.mark) && now <= self.not_after_unix_seconds {
            return Ok(());
        }
        let (first, rest) = self.chain.split_first().ok_or("it is empty")?;
        let now = UnixTime::since_unix_epoch(Duration::from_secs(now));
        authorities
            .verifier
            .verify_client_cert(first, rest, now)
            .map_err(|cause| why_not(&cause).unwrap_or_else(|| cause.to_string()))?;
        *found_good = Some(authorities.mark);
        Ok(())
    }
}

/// DNS names and URIs, else the common name.
fn names_of_holder(certificate: &X509) -> Vec<String> {
    let names = names(certificate).into_iter();
    let names: Vec<String> = names
        .filter_map(|name| match name {
            GeneralName::DnsName(name) => Some(name.as_str().to_owned()),
            GeneralName::UniformResourceIdentifier(uri) => Some(uri.as_str().to_owned()),
            _ => None,
        })
        .collect();
    if !names.is_empty() {
        return names;
    }
    let subject = certificate.tbs_certificate().subject();
    let all = subject
        .iter()
        .filter(|one| one.oid.to_string() == COMMON_NAME);
    let text = all.filter(|one| {
        let tag = one.value.tag();
        matches!(tag, Tag::Utf8String | Tag::PrintableString | Tag::Ia5String)
    });
    let text = text.filter_map(|one| String::from_utf8(one.value.value().to_vec()).ok());
    text.collect()
}

/// Why a client's certificate is refused, for the log; `None` if that is not what is wrong.
pub(super) fn why_not(cause: &TlsError) -> Option<String> {
    let TlsError::InvalidCertificate(cause) = cause else {
        return None;
    };
    let why = match cause {
        // Of another authority with the same name, the latter.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "it is of no authority in SCCACHE_TLS_CLIENT_CA, such as a self-signed one".to_owned()
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "it has expired: renew it".to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "it is not valid yet: is the clock right?".to_owned()
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "it is none of a client: make it with the extended key usage clientAuth".to_owned()
        }
        other => other.to_string(),
    };
    Some(format!("the client's certificate is refused: {why}"))
}
