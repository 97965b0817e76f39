//! The certificate that a builder presents to the scheduler of another machine, as it is in its files at each connection.

use crate::base::regular_file;
use crate::contract::gateway_config::ClientCertificate;
use crate::gateway::tls;
use parking_lot::Mutex;
use std::path::Path;
use std::sync::Arc;
use tokio_rustls::rustls::SignatureScheme;
use tokio_rustls::rustls::client::ResolvesClientCert;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::sign::CertifiedKey;
use tracing::warn;

/// The files.
#[derive(Debug)]
pub(super) struct FromFiles {
    files: ClientCertificate,
    /// What was said of them last.
    told: Mutex<Option<String>>,
}

impl FromFiles {
    pub(super) fn new(files: ClientCertificate) -> FromFiles {
        FromFiles {
            files,
            told: Mutex::default(),
        }
    }

    /// Reads two small files, once a connection: a builder makes one every half a minute.
    fn load(&self) -> Result<CertifiedKey, String> {
        let ClientCertificate { cert, key } = &self.files;
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
}

impl ResolvesClientCert for FromFiles {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let loaded = self.load();
        let mut told = self.told.lock();
        match loaded {
            Ok(key) => {
                *told = None;
                Some(Arc::new(key))
            }
            Err(cause) => {
                if told.as_ref() != Some(&cause) {
                    warn!(
                        "{cause}; without a certificate the scheduler takes this builder only by its token"
                    );
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
