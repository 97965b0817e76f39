//! The relay's own certificate authority, for connections to its IP address.
//!
//! sccache's client reaches a builder, and so the relay, as `https://IP:PORT`, and trusts what the scheduler has told it
//! (`server_certificate`). A certificate of the operator's is for names in general. So there is a root of our own, kept in
//! the state folder, and a leaf for every address at which clients reach us. What a client has learned counts for it for
//! every server: the root may sign no names (RFC 5280, 4.2.1.10), only addresses.

use crate::base::private_file;
use parking_lot::Mutex;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, NameConstraints, SanType,
};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::rustls::{self, ServerConfig};

const DAY: u64 = 24 * 3600;
/// How long a root is valid, and what must be left of it at a start.
const ROOT_DAYS: u64 = 10 * 365;
const ROOT_LEFT_DAYS: u64 = 365;
/// How long a leaf is valid, and how long it is used.
const LEAF_DAYS: u64 = 90;
const LEAF_USED_DAYS: u64 = 30;
/// Most addresses in a leaf; clients with a right token name them. Of too many, the one goes that was named longest ago.
const ADDRESSES: usize = 64;

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("{0}")]
    Make(#[from] rcgen::Error),
    #[error("{0}")]
    Use(#[from] rustls::Error),
}

/// The root in its file.
#[derive(Serialize, Deserialize)]
struct Saved {
    key: String,
    certificate: String,
    not_after_unix: u64,
}

/// Root and leaf.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// The root's certificate.
    pub(super) pem: String,
    /// Tells one root from another; clients ask again when it changes.
    pub(super) digest: [u8; 32],
    // A plain mutex: held while a leaf is made, a fraction of a millisecond.
    leaf: Mutex<Leaf>,
}

#[derive(Default)]
struct Leaf {
    /// Those named last come last.
    addresses: Vec<IpAddr>,
    made: u64,
    config: Option<Arc<ServerConfig>>,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

impl Authority {
    /// The root in this file, or a new one, which is written there; the second value says why it could not be kept.
    /// `now` in seconds since 1970.
    ///
    /// # Errors
    /// No root can be made.
    pub(super) fn open(path: &Path, now: u64) -> Result<(Authority, Option<io::Error>), Error> {
        let kept = std::fs::read_to_string(path).ok();
        let kept = kept.and_then(|text| serde_json::from_str::<Saved>(&text).ok());
        let kept = kept.filter(|one| one.not_after_unix > now + ROOT_LEFT_DAYS * DAY);
        if let Some(saved) = kept
            && let Ok(key) = KeyPair::from_pem(&saved.key)
        {
            return Ok((Authority::new(key, saved.certificate, now), None));
        }
        let key = KeyPair::generate()?;
        let not_after_unix = now + ROOT_DAYS * DAY;
        let certificate = root(&key, now, not_after_unix).self_signed(&key)?.pem();
        let saved = Saved {
            key: key.serialize_pem(),
            certificate: certificate.clone(),
            not_after_unix,
        };
        let text = serde_json::to_string(&saved).unwrap_or_default();
        let lost = private_file::write(path, &text).err();
        Ok((Authority::new(key, certificate, now), lost))
    }

    fn new(key: KeyPair, pem: String, now: u64) -> Authority {
        let digest = *blake3::hash(pem.as_bytes()).as_bytes();
        let issuer = Issuer::new(root(&key, now, now), key);
        Authority {
            issuer,
            pem,
            digest,
            leaf: Mutex::default(),
        }
    }

    /// Clients are told to reach us at this address: the leaf is for it from now on.
    pub(super) fn announce(&self, ip: IpAddr) {
        let mut leaf = self.leaf.lock();
        match leaf.addresses.iter().position(|known| *known == ip) {
            Some(at) => leaf.addresses[at..].rotate_left(1),
            None => {
                if leaf.addresses.len() == ADDRESSES {
                    leaf.addresses.remove(0);
                }
                leaf.addresses.push(ip);
                leaf.config = None;
            }
        }
    }

    /// With which a connection to one of our addresses is accepted; `now` in seconds since 1970.
    ///
    /// # Errors
    /// No leaf can be made.
    pub(super) fn config(&self, now: u64) -> Result<Arc<ServerConfig>, Error> {
        let mut leaf = self.leaf.lock();
        if now >= leaf.made + LEAF_USED_DAYS * DAY {
            leaf.config = None;
        }
        if let Some(config) = &leaf.config {
            return Ok(Arc::clone(config));
        }
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        let addresses = leaf.addresses.iter().copied().map(SanType::IpAddress);
        params.subject_alt_names = addresses.collect();
        params.distinguished_name = rcgen::DistinguishedName::new();
        let name = (DnType::CommonName, "sccache-dock relay");
        params.distinguished_name.push(name.0, name.1);
        params.is_ca = IsCa::ExplicitNoCa;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        (params.not_before, params.not_after) =
            (date(now - DAY).into(), date(now + LEAF_DAYS * DAY).into());
        let certificate = params.signed_by(&key, &self.issuer)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let config = Arc::new(config);
        (leaf.made, leaf.config) = (now, Some(Arc::clone(&config)));
        Ok(config)
    }
}

/// What the root with this key says of itself.
fn root(key: &KeyPair, now: u64, not_after: u64) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    let mark = blake3::hash(key.public_key_raw()).to_hex();
    let name = format!("sccache-dock relay root {:.16}", mark.as_str());
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: Vec::new(),
        excluded_subtrees: vec![GeneralSubtree::DnsName(String::new())],
    });
    (params.not_before, params.not_after) =
        (date(now.saturating_sub(DAY)).into(), date(not_after).into());
    params
}

fn date(unix_seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(unix_seconds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio_rustls::rustls::pki_types::pem::PemObject;
    use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
    use tokio_rustls::rustls::{ClientConfig, RootCertStore};
    use tokio_rustls::{TlsAcceptor, TlsConnector};

    fn now() -> u64 {
        crate::base::time::unix_seconds()
    }

    /// Whether a client that has learned the root takes the leaf for this name.
    async fn trusts(authority: &Authority, name: &'static str) -> bool {
        let mut roots = RootCertStore::empty();
        let root = CertificateDer::from_pem_slice(authority.pem.as_bytes()).unwrap();
        roots.add(root).unwrap();
        let client = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let (near, far) = tokio::io::duplex(1 << 16);
        let acceptor = TlsAcceptor::from(authority.config(now()).unwrap());
        let name = ServerName::try_from(name).unwrap();
        let connector = TlsConnector::from(Arc::new(client));
        let (client, _server) = tokio::join!(connector.connect(name, near), acceptor.accept(far));
        client.is_ok()
    }

    #[tokio::test]
    async fn leaf_is_for_the_addresses_that_were_announced_and_the_root_outlives_us() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("authority");
        let (first, lost) = Authority::open(&path, now()).unwrap();
        assert!(lost.is_none(), "{lost:?}");
        first.announce([127, 0, 0, 1].into());
        assert!(trusts(&first, "127.0.0.1").await);
        assert!(!trusts(&first, "10.0.0.7").await);
        first.announce([10, 0, 0, 7].into());
        assert!(trusts(&first, "10.0.0.7").await);
        assert!(trusts(&first, "127.0.0.1").await);
        let (second, _) = Authority::open(&path, now()).unwrap();
        assert_eq!((&first.pem, first.digest), (&second.pem, second.digest));
        // A leaf of the second is as good for whoever knows the first.
        second.announce([127, 0, 0, 1].into());
        assert!(trusts(&second, "127.0.0.1").await);
        let late = now() + (ROOT_DAYS - ROOT_LEFT_DAYS) * DAY;
        let (third, _) = Authority::open(&path, late).unwrap();
        assert_ne!(third.digest, first.digest);
    }

    #[tokio::test]
    async fn addresses_that_nobody_uses_crowd_out_none_that_somebody_does() {
        let dir = tempfile::tempdir().unwrap();
        let (authority, _) = Authority::open(&dir.path().join("authority"), now()).unwrap();
        for number in 0..200_u32 {
            authority.announce([10, 0, 0, 7].into());
            authority.announce(IpAddr::V4(number.into()));
        }
        assert!(trusts(&authority, "10.0.0.7").await);
        assert!(trusts(&authority, "0.0.0.199").await);
        assert!(!trusts(&authority, "0.0.0.1").await);
    }

    #[tokio::test]
    async fn root_can_vouch_for_no_name() {
        let dir = tempfile::tempdir().unwrap();
        let (authority, _) = Authority::open(&dir.path().join("authority"), now()).unwrap();
        let mut params = CertificateParams::new(vec!["github.com".to_owned()]).unwrap();
        params.is_ca = IsCa::ExplicitNoCa;
        let key = KeyPair::generate().unwrap();
        let forged = params.signed_by(&key, &authority.issuer).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![forged.der().clone()], key)
            .unwrap();
        *authority.leaf.lock() = Leaf {
            addresses: Vec::new(),
            made: now(),
            config: Some(Arc::new(config)),
        };
        assert!(!trusts(&authority, "github.com").await);
    }
}
