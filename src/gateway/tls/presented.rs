//! The certificate that this machine presents to another one, a scheduler or an upstream, as it is in its files at each
//! connection.

use crate::base::regular_file;
use crate::contract::gateway_config::ClientCertificate;
use crate::gateway::tls;
use parking_lot::Mutex;
use rustls_platform_verifier::BuilderVerifierExt;
use std::path::Path;
use std::sync::Arc;
use tokio_rustls::rustls::client::{ResolvesClientCert, Resumption};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{ClientConfig, SignatureScheme};
use tracing::warn;

/// How TLS is spoken with a server: with the system's authorities, or those of `SSL_CERT_FILE`, as sccache's own programs
/// do it, and with the certificate in `files` where there are some. If they cannot be used, the log says so and `otherwise`.
///
/// # Errors
/// The system's authorities cannot be used, in words.
pub(crate) fn client_config(
    files: Option<ClientCertificate>,
    otherwise: &'static str,
) -> Result<ClientConfig, String> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(BuilderVerifierExt::with_platform_verifier)
        .map_err(|cause| cause.to_string())?;
    let mut config = match files {
        Some(files) => {
            let from_files = FromFiles {
                files,
                otherwise,
                told: Mutex::default(),
            };
            let mut config = builder.with_client_cert_resolver(Arc::new(from_files));
            // A session that is resumed is the former certificate's.
            config.resumption = Resumption::disabled();
            config
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// The files.
#[derive(Debug)]
struct FromFiles {
    files: ClientCertificate,
    /// What follows if they cannot be used.
    otherwise: &'static str,
    /// What was said of them last.
    told: Mutex<Option<String>>,
}

/// Reads two small files, once a connection: a builder makes one every half a minute, an upstream's are kept.
fn load(files: &ClientCertificate) -> Result<CertifiedKey, String> {
    let ClientCertificate { cert, key } = files;
    let read = |path: &Path| {
        let failed = |cause| format!("cannot read \"{}\": {cause}", path.display());
        regular_file::read(path).map_err(failed)
    };
    let chain = tls::chain(&read(cert)?);
    let chain = chain.map_err(|why| format!("cannot use \"{}\": {why}", cert.display()))?;
    let bad_key = |why: String| format!("cannot use \"{}\": {why}", key.display());
    let key = PrivateKeyDer::from_pem_slice(&read(key)?)
        .map_err(|_| bad_key("it holds no private key in PEM".to_owned()))?;
    CertifiedKey::from_der(chain, key, &ring::default_provider())
        .map_err(|cause| bad_key(cause.to_string()))
}

impl ResolvesClientCert for FromFiles {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let loaded = load(&self.files);
        let mut told = self.told.lock();
        match loaded {
            Ok(key) => {
                *told = None;
                Some(Arc::new(key))
            }
            Err(cause) => {
                if told.as_ref() != Some(&cause) {
                    warn!("{cause}; {}", self.otherwise);
                }
                *told = Some(cause);
                None
            }
        }
    }

    fn has_certs(&self) -> bool {
        true
    }
}
