//! TLS as our own commands speak it to a cache: with the system's authorities, as sccache does, and with a certificate of
//! their own where there is one, which sccache itself cannot present.

use rustls::crypto::ring;
use std::env;
use std::sync::Arc;
use ureq::tls::{ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, TlsProvider, parse_pem};

/// Where the certificate is, and its key.
const FILES: [&str; 2] = ["SCCACHE_TLS_CLIENT_CERT", "SCCACHE_TLS_CLIENT_KEY"];

/// The certificate cannot be used.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot use the client certificate: {0}\n\
     hint: SCCACHE_TLS_CLIENT_CERT and SCCACHE_TLS_CLIENT_KEY name PEM files that belong together; unset both for none"
)]
pub struct BadCertificate(String);

/// What a connection to a cache is made with.
///
/// # Errors
/// A certificate is named and cannot be read.
pub(crate) fn config() -> Result<TlsConfig, BadCertificate> {
    Ok(TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        // As sccache does: the system's list of authorities, or that of SSL_CERT_FILE.
        .root_certs(RootCerts::PlatformVerifier)
        .client_cert(certificate()?)
        .unversioned_rustls_crypto_provider(Arc::new(ring::default_provider()))
        .build())
}

fn certificate() -> Result<Option<ClientCert>, BadCertificate> {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
    let [cert, key] = FILES.map(set);
    let (Some(cert), Some(key)) = (&cert, &key) else {
        let [one, other] = FILES;
        return match (cert, key) {
            (None, None) => Ok(None),
            (Some(_), _) => Err(BadCertificate(format!("{other} is not set, but {one} is"))),
            (None, Some(_)) => Err(BadCertificate(format!("{one} is not set, but {other} is"))),
        };
    };
    let read = |path: &std::ffi::OsString| {
        let failed = |cause| BadCertificate(format!("cannot read {path:?}: {cause}"));
        std::fs::read(path).map_err(failed)
    };
    let chain: Vec<_> = parse_pem(&read(cert)?)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(one)) => Some(one),
            Ok(_) | Err(_) => None,
        })
        .collect();
    if chain.is_empty() {
        return Err(BadCertificate(format!(
            "{cert:?} holds no certificate in PEM"
        )));
    }
    let key = PrivateKey::from_pem(&read(key)?)
        .map_err(|_| BadCertificate(format!("{key:?} holds no private key in PEM")))?;
    Ok(Some(ClientCert::new_with_certs(&chain, key)))
}
