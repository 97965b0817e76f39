//! TLS on the cache port: certificate and key from PEM files into what rustls needs, replaced without a restart.
//!
//! A connection keeps the certificate that it began with. HTTP/1.1 is the only protocol offered; versions are those
//! that rustls considers safe (1.2 and 1.3, or 1.3 alone), neither of which renegotiates.

mod clients;
pub(crate) mod presented;

use self::clients::Authorities;
pub(crate) use self::clients::Presented;

use crate::base::regular_file;
use crate::contract::gateway_config::{TlsFiles, TlsVersion};
use parking_lot::RwLock;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{self, ServerConfig, SupportedProtocolVersion};
use tokio_rustls::server::TlsStream;
use x509_cert::Certificate as X509;
use x509_cert::der::Decode;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long before a certificate's end to speak of it.
const SOON: Duration = Duration::from_secs(14 * 24 * 3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Why the files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// One of them cannot be read.
    #[error("cannot read \"{}\": {cause}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        cause: io::Error,
    },
    /// One of them holds something else.
    #[error("cannot use \"{}\": {why}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Each is fine, but not with the other.
    #[error("cannot use \"{}\": it is not the key of the certificate in \"{}\"", key.display(), cert.display())]
    Mismatch {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
}

/// A certificate that can be served. Prints as what tells it from another.
#[derive(Debug, Clone)]
pub struct Certificate {
    config: Arc<ServerConfig>,
    /// Of clients' certificates.
    authorities: Option<Authorities>,
    serial: String,
    /// Of all files' content.
    mark: blake3::Hash,
    /// Addresses that it is for, beside names.
    pub(crate) addresses: Vec<IpAddr>,
    /// The last moment at which clients accept it.
    pub not_after_unix_seconds: u64,
}

impl Certificate {
    /// With which connections are accepted.
    pub(crate) fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.config)
    }
}

impl fmt::Display for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let until = date(self.not_after_unix_seconds);
        write!(f, "serial {}, valid until {until}", self.serial)
    }
}

/// Reads and checks both files at the time `now`, in seconds since 1970.
///
/// # Errors
/// They cannot be read, do not fit, or clients would not accept them.
pub fn load(files: &TlsFiles, now: u64) -> Result<Certificate, Error> {
    let cert = read(&files.cert)?;
    let key = read(&files.key)?;
    let bad_cert = |why: String| Error::Content {
        path: files.cert.clone(),
        why,
    };
    let chain = chain(&cert).map_err(bad_cert)?;
    let parsed = X509::from_der(&chain[0])
        .map_err(|cause| bad_cert(format!("its certificate cannot be understood: {cause}")))?;
    let validity = parsed.tbs_certificate().validity();
    let not_before = validity.not_before.to_unix_duration().as_secs();
    let not_after = validity.not_after.to_unix_duration().as_secs();
    if now > not_after {
        return Err(bad_cert(format!("it expired at {}", date(not_after))));
    }
    if now < not_before {
        return Err(bad_cert(format!(
            "it is valid only from {}",
            date(not_before)
        )));
    }
    let key_der = PrivateKeyDer::from_pem_slice(&key).map_err(|_| Error::Content {
        path: files.key.clone(),
        why: if contains(&key, b"ENCRYPTED") {
            "its key has a password, which nobody can type here; write it without one".to_owned()
        } else {
            "it holds no private key in PEM".to_owned()
        },
    })?;
    let authorities = files.client_ca.as_deref().map(Authorities::load);
    let authorities = authorities.transpose()?;
    let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(versions(files.min_version))
        .map_err(|cause| bad_cert(cause.to_string()))?;
    let builder = match &authorities {
        Some(authorities) => builder.with_client_cert_verifier(Arc::clone(&authorities.verifier)),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder
        .with_single_cert(chain, key_der)
        .map_err(|cause| match cause {
            rustls::Error::InconsistentKeys(_) => Error::Mismatch {
                cert: files.cert.clone(),
                key: files.key.clone(),
            },
            cause => bad_cert(cause.to_string()),
        })?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Certificate {
        config: Arc::new(config),
        mark: {
            let of_authorities = authorities.as_ref().map_or(&[][..], |them| them.mark());
            blake3::hash(&[&cert[..], &key[..], of_authorities].concat())
        },
        authorities,
        addresses: names(&parsed).iter().filter_map(address).collect(),
        serial: parsed.tbs_certificate().serial_number().to_string(),
        not_after_unix_seconds: not_after,
    })
}

/// Why a handshake failed, for the log.
pub(crate) fn failed(cause: &io::Error) -> String {
    let inner = cause.get_ref().and_then(|inner| inner.downcast_ref());
    inner.and_then(clients::why_not).unwrap_or_else(|| {
        format!(
            "the handshake failed: {cause}; does the client trust the certificate, and is the name it uses in it?"
        )
    })
}

fn versions(min: TlsVersion) -> &'static [&'static SupportedProtocolVersion] {
    // The newest is first, so that what follows is what may be left out.
    static VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];
    match min {
        TlsVersion::V1_2 => &VERSIONS,
        TlsVersion::V1_3 => &VERSIONS[..1],
    }
}

/// The first name that the certificate in this file is for, to be printed in an endpoint.
pub fn name(cert: &Path) -> Option<String> {
    let chain = chain(&std::fs::read(cert).ok()?).ok()?;
    let parsed = X509::from_der(&chain[0]).ok()?;
    let names = names(&parsed);
    let by_name = names.iter().find_map(|name| match name {
        GeneralName::DnsName(name) if !name.as_str().starts_with('*') => {
            Some(name.as_str().to_owned())
        }
        _ => None,
    });
    by_name.or_else(|| match names.iter().find_map(address)? {
        IpAddr::V4(ip) => Some(ip.to_string()),
        IpAddr::V6(ip) => Some(format!("[{ip}]")),
    })
}

/// What a certificate is for.
fn names(certificate: &X509) -> Vec<GeneralName> {
    let certificate = certificate.tbs_certificate();
    match certificate.get_extension::<SubjectAltName>() {
        Ok(Some((_, names))) => names.0,
        Ok(None) | Err(_) => Vec::new(),
    }
}

fn address(name: &GeneralName) -> Option<IpAddr> {
    let GeneralName::IpAddress(bytes) = name else {
        return None;
    };
    let v4 = <[u8; 4]>::try_from(bytes.as_bytes()).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes.as_bytes()).map(IpAddr::from))
        .ok()
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    regular_file::read(path).map_err(|cause| Error::Read {
        path: path.to_owned(),
        cause,
    })
}

/// The certificates of a PEM file; at least one.
pub(crate) fn chain(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match chain {
        Ok(chain) if !chain.is_empty() => Ok(chain),
        Ok(_) | Err(_) => Err("it holds no certificate in PEM".to_owned()),
    }
}

fn contains(text: &[u8], word: &[u8]) -> bool {
    memchr::memmem::find(text, word).is_some()
}

fn date(unix_seconds: u64) -> String {
    httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + Duration::from_secs(unix_seconds))
}

/// The certificate in force.
#[derive(Debug, Default)]
pub(crate) struct Tls {
    // A lock for the time of a copy of the pointer.
    current: RwLock<Option<Certificate>>,
    /// When its end was last spoken of.
    advised: AtomicU64,
}

impl Tls {
    /// Serves `certificate` to new connections. The same one again changes nothing: sessions can be resumed.
    pub(crate) fn replace(&self, certificate: Certificate) {
        let mut current = self.current.write();
        if current
            .as_ref()
            .is_none_or(|one| one.mark != certificate.mark)
        {
            *current = Some(certificate);
        }
    }

    /// Puts TLS around a new connection; else the words for the log.
    pub(crate) async fn shake_hands<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
    ) -> Result<TlsStream<S>, String> {
        let Some(acceptor) = self.acceptor() else {
            return Err("there is no usable certificate; the status says why".to_owned());
        };
        match timeout(HANDSHAKE, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(cause)) => Err(failed(&cause)),
            Err(_) => Err("the handshake took too long".to_owned()),
        }
    }

    /// Whether a client's certificate is good now.
    ///
    /// # Errors
    /// Why not, in words.
    pub(crate) fn check(&self, presented: &Presented) -> Result<(), String> {
        let current = self.current.read();
        let authorities = current.as_ref().and_then(|one| one.authorities.as_ref());
        presented.check(authorities)
    }

    /// What new connections are accepted with; `None` while there is no usable certificate.
    pub(crate) fn acceptor(&self) -> Option<TlsAcceptor> {
        let current = self.current();
        current.map(|one| TlsAcceptor::from(one.config()))
    }

    /// The certificate in force.
    pub(crate) fn current(&self) -> Option<Certificate> {
        let current = self.current.read();
        current.clone()
    }

    /// What is to be said about the certificate's end, once a day; `now` in seconds since 1970.
    pub(crate) fn daily_advice(&self, now: u64) -> Option<String> {
        let advice = self.expiry_advice(now)?;
        let is_due = now.saturating_sub(self.advised.load(Relaxed)) >= DAY.as_secs();
        is_due.then(|| {
            self.advised.store(now, Relaxed);
            advice
        })
    }

    fn expiry_advice(&self, now: u64) -> Option<String> {
        let end = self.not_after()?;
        let verb = match end.checked_sub(now) {
            None => "has expired: clients refuse it since",
            Some(left) if left < SOON.as_secs() => "expires soon: clients refuse it from",
            Some(_) => return None,
        };
        Some(format!(
            "the certificate {verb} {}; put a new one in its place, which is taken up without a restart",
            date(end)
        ))
    }

    pub(crate) fn not_after(&self) -> Option<u64> {
        let current = self.current.read();
        current.as_ref().map(|one| one.not_after_unix_seconds)
    }
}

/// The certificate's end, for Prometheus.
#[derive(Debug)]
pub(crate) struct Expiry(pub(crate) Arc<Tls>);

impl Collector for Expiry {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Some(end) = self.0.not_after() else {
            return Ok(());
        };
        let end = ConstGauge::new(i64::try_from(end).unwrap_or(i64::MAX));
        let help = "Expiry of the current certificate, in Unix time";
        let unit = Some(&Unit::Seconds);
        let name = "tls_certificate_expiry_timestamp";
        let family = encoder.encode_descriptor(name, help, unit, MetricType::Gauge)?;
        end.encode(family)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    const NOW: u64 = 1_800_000_000;
    /// The first second of 2040.
    const END: u64 = 2_208_988_800;

    fn files(dir: &Path, names: &[&str], years: (i32, i32)) -> TlsFiles {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.not_before = date_time_ymd(years.0, 1, 1);
        params.not_after = date_time_ymd(years.1, 1, 1);
        let files = TlsFiles {
            cert: dir.join("cert.pem"),
            key: dir.join("key.pem"),
            min_version: TlsVersion::default(),
            client_ca: None,
        };
        std::fs::write(&files.cert, params.self_signed(&key).unwrap().pem()).unwrap();
        std::fs::write(&files.key, key.serialize_pem()).unwrap();
        files
    }

    #[test]
    fn each_fault_of_the_files_has_its_words() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let good = files(one.path(), &["cache.example"], (2020, 2040));
        let other = files(two.path(), &["cache.example"], (2020, 2040));
        let tls = Tls::default();
        tls.replace(load(&good, NOW).unwrap());
        assert_eq!(tls.not_after(), Some(END));
        for (now, said) in [
            (NOW, ""),
            (END - 3600, "expires soon"),
            (END + 1, "has expired"),
        ] {
            let advice = tls.expiry_advice(now).unwrap_or_default();
            assert!(advice.contains(said) && advice.is_empty() == said.is_empty());
        }
        let check = |cert: &Path, key: &Path, word: &str| {
            let files = TlsFiles {
                cert: cert.to_owned(),
                key: key.to_owned(),
                min_version: TlsVersion::default(),
                client_ca: None,
            };
            let said = load(&files, NOW).unwrap_err().to_string();
            assert!(said.contains(word), "{said}");
        };
        check(&good.cert, &other.key, "is not the key of the certificate");
        check(&good.key, &good.key, "no certificate in PEM");
        check(&good.cert, &good.cert, "no private key in PEM");
        check(&good.cert, &one.path().join("gone"), "cannot read");
        let locked = two.path().join("locked");
        std::fs::write(&locked, "-----BEGIN ENCRYPTED PRIVATE KEY-----\n").unwrap();
        check(&good.cert, &locked, "has a password");
        let old = files(two.path(), &["cache.example"], (2001, 2002));
        check(
            &old.cert,
            &old.key,
            "it expired at Tue, 01 Jan 2002 00:00:00 GMT",
        );
        let new = files(two.path(), &["cache.example"], (2039, 2040));
        check(
            &new.cert,
            &new.key,
            "it is valid only from Sat, 01 Jan 2039",
        );
    }

    #[test]
    fn endpoint_gets_a_name_that_the_certificate_is_for() {
        let dir = tempfile::tempdir().unwrap();
        for (names, expected) in [
            (&["*.example", "cache.example"][..], Some("cache.example")),
            (&["10.1.2.3"], Some("10.1.2.3")),
            (&["fd00::1"], Some("[fd00::1]")),
            (&["*.example"], None),
        ] {
            let files = files(dir.path(), names, (2020, 2040));
            assert_eq!(name(&files.cert).as_deref(), expected, "{names:?}");
        }
    }
}
