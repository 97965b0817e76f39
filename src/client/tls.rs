//! TLS as our own commands speak it to a cache: with the system's authorities, as sccache does, and with a certificate of
//! their own where there is one, which sccache itself cannot present.

use crate::base::regular_file;
use crate::contract::gateway_config::ClientCertificate;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use ureq::tls::{
    Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig, TlsConfigBuilder, TlsProvider,
};

/// Where the certificate is, and its key.
const FILES: [&str; 2] = ["SCCACHE_TLS_CLIENT_CERT", "SCCACHE_TLS_CLIENT_KEY"];

/// The certificate cannot be used.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot use the client certificate: {0}\n\
     hint: SCCACHE_TLS_CLIENT_CERT and SCCACHE_TLS_CLIENT_KEY name PEM files that belong together; unset both for none"
)]
pub struct BadCertificate(String);

/// The files that the environment names, with `set` to look in it.
///
/// # Errors
/// Only one of the two is named.
pub(crate) fn files(
    set: impl Fn(&str) -> Option<PathBuf>,
) -> Result<Option<ClientCertificate>, BadCertificate> {
    let [one, other] = FILES;
    let found = FILES.map(|name| set(name).filter(|value| !value.as_os_str().is_empty()));
    match found {
        [Some(cert), Some(key)] => Ok(Some(ClientCertificate { cert, key })),
        [None, None] => Ok(None),
        [Some(_), None] => Err(BadCertificate(format!("{other} is not set, but {one} is"))),
        [None, Some(_)] => Err(BadCertificate(format!("{one} is not set, but {other} is"))),
    }
}

/// The same in the environment of this process.
///
/// # Errors
/// Only one of the two is named.
pub(crate) fn own_files() -> Result<Option<ClientCertificate>, BadCertificate> {
    files(|name| std::env::var_os(name).map(PathBuf::from))
}

/// What a connection to a cache is made with, with this certificate or none.
///
/// # Errors
/// The certificate cannot be used.
pub(crate) fn config(files: Option<&ClientCertificate>) -> Result<TlsConfig, BadCertificate> {
    let certificate = files.map(certificate).transpose()?;
    Ok(builder().client_cert(certificate).build())
}

/// The same without a certificate.
pub(crate) fn anonymous() -> TlsConfig {
    builder().build()
}

fn builder() -> TlsConfigBuilder {
    TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        // As sccache does: the system's list of authorities, or that of SSL_CERT_FILE.
        .root_certs(RootCerts::PlatformVerifier)
        .unversioned_rustls_crypto_provider(Arc::new(ring::default_provider()))
}

fn certificate(files: &ClientCertificate) -> Result<ClientCert, BadCertificate> {
    let read = |path: &Path| {
        let failed = |cause| BadCertificate(format!("cannot read {path:?}: {cause}"));
        regular_file::read(path).map_err(failed)
    };
    let ClientCertificate { cert, key } = files;
    let (cert_pem, key_pem) = (read(cert)?, read(key)?);
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&cert_pem).collect();
    let chain = chain.ok().filter(|chain| !chain.is_empty());
    let chain =
        chain.ok_or_else(|| BadCertificate(format!("{cert:?} holds no certificate in PEM")))?;
    let no_key = || BadCertificate(format!("{key:?} holds no private key in PEM"));
    let key_der = PrivateKeyDer::from_pem_slice(&key_pem).map_err(|_| no_key())?;
    let presented: Vec<_> = (chain.iter())
        .map(|one| Certificate::from_der(one).to_owned())
        .collect();
    // Here, because the connection would panic.
    CertifiedKey::from_der(chain, key_der, &ring::default_provider()).map_err(|cause| {
        BadCertificate(match cause {
            rustls::Error::InconsistentKeys(_) => {
                format!("{key:?} is not the key of the certificate in {cert:?}")
            }
            cause => format!("{cert:?} with {key:?}: {cause}"),
        })
    })?;
    let key = PrivateKey::from_pem(&key_pem).map_err(|_| no_key())?;
    Ok(ClientCert::new_with_certs(&presented, key))
}
