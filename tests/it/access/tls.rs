//! TLS on the cache's port: certificates of our own authority, the real client, and those who speak without.

use super::{CEILING, NEW, ask, from_outside, replace, token};
use crate::dock::Dock;
use crate::harness::{Answer, Gateway, WRITER, clean, finish, sccache_bin, wait_for};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use sccache_dock::contract::gateway_config::{TlsFiles, TlsVersion};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, ClientConfig, ClientConnection, RootCertStore, StreamOwned};

/// A certificate and its key, in PEM.
pub(crate) struct Identity {
    pub(crate) cert: String,
    pub(crate) key: String,
}

/// A private certificate authority.
#[derive(Clone)]
pub(crate) struct Authority {
    issuer: Arc<Issuer<'static, KeyPair>>,
    pem: String,
}

impl Authority {
    pub(crate) fn new() -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params
            .distinguished_name
            .push(DnType::CommonName, "authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Authority {
            issuer: Arc::new(Issuer::new(params, key)),
            pem,
        }
    }

    /// Itself.
    pub(crate) fn pem(&self) -> &str {
        &self.pem
    }

    /// A certificate that says this.
    pub(crate) fn issue(&self, params: CertificateParams) -> Identity {
        let key = KeyPair::generate().unwrap();
        Identity {
            cert: params.signed_by(&key, self.issuer.as_ref()).unwrap().pem(),
            key: key.serialize_pem(),
        }
    }

    /// A connection with TLS that is kept open.
    fn connect(&self, gateway: &Gateway) -> StreamOwned<ClientConnection, TcpStream> {
        self.connect_by(gateway, None)
    }

    /// The same of a client that shows a certificate.
    pub(crate) fn connect_as(
        &self,
        gateway: &Gateway,
        identity: &Identity,
    ) -> StreamOwned<ClientConnection, TcpStream> {
        self.connect_by(gateway, Some(identity))
    }

    fn connect_by(
        &self,
        gateway: &Gateway,
        identity: Option<&Identity>,
    ) -> StreamOwned<ClientConnection, TcpStream> {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap())
            .unwrap();
        let provider = rustls::crypto::ring::default_provider();
        let config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match identity {
            None => config.with_no_client_auth(),
            Some(Identity { cert, key }) => {
                let cert = CertificateDer::from_pem_slice(cert.as_bytes()).unwrap();
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
                config.with_client_auth_cert(vec![cert], key).unwrap()
            }
        };
        let name = "localhost".try_into().unwrap();
        let client = ClientConnection::new(Arc::new(config), name).unwrap();
        StreamOwned::new(client, gateway.connect())
    }

    pub(crate) fn certificate(&self, folder: &Path, name: &str) -> TlsFiles {
        let files = TlsFiles {
            cert: folder.join("cert.pem"),
            key: folder.join("key.pem"),
            min_version: Default::default(),
            client_ca: None,
        };
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, self.issuer.as_ref()).unwrap();
        replace(&files.key, &key.serialize_pem());
        replace(&files.cert, &certificate.pem());
        std::fs::write(folder.join("ca.pem"), &self.pem).unwrap();
        files
    }
}

/// A gateway with TLS whose certificate is for `localhost`, and the folder with `ca.pem`.
pub(crate) fn with_tls() -> (Authority, tempfile::TempDir, Gateway) {
    let (authority, folder) = (Authority::new(), tempfile::tempdir().unwrap());
    let files = authority.certificate(folder.path(), "localhost");
    let gateway = Gateway::start_with(|config| config.tls = Some(files));
    (authority, folder, gateway)
}

/// The real client in this folder, which has `ca.pem`, of a cache with TLS on this port.
pub(crate) fn sccache_over_tls(folder: &Path, port: u16) -> Command {
    let mut command = clean(sccache_bin());
    command
        .current_dir(folder)
        .env("SSL_CERT_FILE", folder.join("ca.pem"))
        .env("SCCACHE_SERVER_UDS", folder.join("own.sock"))
        .env("SCCACHE_WEBDAV_TOKEN", WRITER)
        .env(
            "SCCACHE_WEBDAV_ENDPOINT",
            format!("https://localhost:{port}"),
        );
    command
}

/// `curl` of a cache with TLS on this port, trusting the authority of `ca.pem` in the folder.
pub(crate) fn curl_over_tls(folder: &Path, port: u16, path: &str, args: &[&str]) -> String {
    let mut command = Command::new("curl");
    command.args([
        "--silent",
        "--show-error",
        "--noproxy",
        "*",
        "--max-time",
        "30",
    ]);
    command
        .arg("--cacert")
        .arg(folder.join("ca.pem"))
        .args(args);
    command.arg(format!("https://localhost:{port}{path}"));
    finish(&mut command).output
}

/// The same with the writer's token.
fn curl(folder: &Path, gateway: &Gateway, args: &[&str]) -> String {
    let args = [args, &["--oauth2-bearer", WRITER]].concat();
    curl_over_tls(folder, gateway.addr.port(), "/cas/x", &args)
}

#[test]
fn tls_is_spoken_beside_http_from_loopback() {
    let (_authority, folder, gateway) = with_tls();
    let code = ["--write-out", "%{http_code}"];
    let put = curl(
        folder.path(),
        &gateway,
        &[&code[..], &["--request", "PUT", "--data", "tls"]].concat(),
    );
    assert_eq!(put, "201");
    assert_eq!(curl(folder.path(), &gateway, &[]), "tls");
    assert_eq!(
        gateway.request("GET", "/cas/x", b"").text(),
        "tls",
        "over loopback"
    );
    let wide = curl(folder.path(), &gateway, &["--verbose", "--http2"]);
    assert!(wide.contains("HTTP/1.1 200 OK"), "{wide}");
    assert!(
        gateway
            .status()
            .tls
            .unwrap()
            .not_after_unix_seconds
            .is_some()
    );
    let metrics = gateway.request("GET", "/metrics", b"").text();
    assert!(metrics.contains("\nsccache_dock_tls_certificate_expiry_timestamp_seconds "));
    // sccache's own protocol goes on beside it: a handshake, and the first byte of its answer's length.
    let mut own = gateway.connect();
    own.write_all(&[0, 0, 0, 4, 5, 0, 0, 0]).unwrap();
    let mut first = [1];
    own.read_exact(&mut first).unwrap();
    assert_eq!(first, [0]);
    let strange = curl(
        Path::new("/etc/ssl/certs"),
        &gateway,
        &["--cacert", "/dev/null"],
    );
    assert!(strange.contains("curl: ("), "{strange}");
    gateway.process.wait_for_line("reason=tls");
}

#[test]
fn oldest_version_of_tls_is_a_setting() {
    let (authority, folder) = (Authority::new(), tempfile::tempdir().unwrap());
    let files = authority.certificate(folder.path(), "localhost");
    let code = ["--output", "/dev/null", "--write-out", "%{http_code}"];
    for (min_version, of_1_2) in [
        (TlsVersion::V1_2, "404"),
        (TlsVersion::V1_3, "alert protocol version"),
    ] {
        let gateway = Gateway::start_with(|config| {
            config.tls = Some(TlsFiles {
                min_version,
                ..files.clone()
            });
        });
        let with = |more: &[&str]| curl(folder.path(), &gateway, &[&code[..], more].concat());
        let said = with(&["--tls-max", "1.2"]);
        assert!(said.contains(of_1_2), "{min_version:?}: {said}");
        assert_eq!(with(&[]), "404", "{min_version:?}");
    }
}

#[test]
fn clients_of_a_supervisor_with_tls_are_sent_to_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let files = Authority::new().certificate(folder.path(), "cache.example");
    let dock = Dock::start(&[
        ("SCCACHE_TLS_CERT", files.cert.to_str().unwrap()),
        ("SCCACHE_TLS_KEY", files.key.to_str().unwrap()),
    ]);
    let printed = |args: &[&str]| {
        let output = dock.command(&[&["client-env"], args].concat());
        String::from_utf8(output.stdout).unwrap()
    };
    let webdav = printed(&[]);
    assert!(webdav.contains("'https://cache.example:"), "{webdav}");
    assert!(webdav.contains("export SSL_CERT_FILE="), "{webdav}");
    assert!(printed(&["--lane", "ipc"]).contains("SCCACHE_SERVER_PORT="));
    let health = dock.command(&["healthcheck"]);
    assert_eq!(health.status.code(), Some(0), "{health:?}");
    assert!(dock.status().unwrap()["cache"]["tls"]["not_after_unix_seconds"].is_u64());
}

#[test]
fn new_certificate_is_served_and_open_connections_go_on() {
    let (authority, folder, gateway) = with_tls();
    gateway
        .process
        .wait_for_line("certificate in force: serial");
    let mut open = authority.connect(&gateway);
    assert_eq!(ask(&mut open, WRITER), 200);
    let before = gateway
        .process
        .log()
        .matches("certificate in force")
        .count();
    // The key alone does not fit: nothing changes until the certificate has come, too.
    authority.certificate(folder.path(), "localhost");
    wait_for("the new certificate", CEILING, || {
        (gateway
            .process
            .log()
            .matches("certificate in force")
            .count()
            > before)
            .then_some(())
    });
    assert_eq!(gateway.status().tls.unwrap().fault, None);
    assert_eq!(ask(&mut open, WRITER), 200);
    std::fs::write(folder.path().join("key.pem"), "no key").unwrap();
    let said = wait_for("the fault", CEILING, || gateway.status().tls.unwrap().fault);
    assert!(said.contains("no private key"), "{said}");
    curl(
        folder.path(),
        &gateway,
        &["--request", "PUT", "--data", "kept"],
    );
    assert_eq!(
        curl(folder.path(), &gateway, &[]),
        "kept",
        "the certificate before stays"
    );
}

#[test]
fn real_sccache_shares_over_tls() {
    let (_authority, folder, gateway) = with_tls();
    let sccache = || sccache_over_tls(folder.path(), gateway.addr.port());
    std::fs::write(folder.path().join("it.c"), "int tls(void) { return 1; }").unwrap();
    for hits in [0, 1] {
        let outcome = finish(sccache().args(["gcc", "-c", "it.c", "-o", "it.o"]));
        assert_eq!(outcome.code, Some(0), "{}", outcome.output);
        let status = gateway.status();
        assert_eq!(
            (status.totals.hits, status.totals.writes),
            (hits, 1),
            "{status:?}"
        );
        assert_eq!(status.refusals.len(), 0, "{}", gateway.process.log());
    }
    finish(sccache().arg("--stop-server"));
}

#[test]
fn http_without_tls_is_refused_from_other_machines() {
    let (_authority, _folder, gateway) = with_tls();
    let mut stream = from_outside(gateway.addr);
    let head = format!(
        "PUT /cas/x HTTP/1.1\r\nAuthorization: Bearer {WRITER}\r\nContent-Length: 1\r\n\r\nx"
    );
    stream.write_all(head.as_bytes()).unwrap();
    let answer = Answer::read(&mut stream);
    assert_eq!(answer.code, 400);
    assert!(answer.text().contains("use https://"), "{}", answer.text());
    gateway.process.wait_for_line("reason=plain");
    assert_eq!(gateway.request("GET", "/cas/x", b"").code, 404);
}

#[test]
fn unfinished_handshakes_hold_nobody_up_and_end() {
    let (_authority, folder, gateway) = with_tls();
    let mut stalled: Vec<TcpStream> = (0..50)
        .map(|_| {
            let mut stream = gateway.connect();
            stream.write_all(&[0x16, 3, 1, 2, 0, 1]).unwrap();
            stream
        })
        .collect();
    curl(
        folder.path(),
        &gateway,
        &["--request", "PUT", "--data", "busy"],
    );
    assert_eq!(curl(folder.path(), &gateway, &[]), "busy");
    for stream in &mut stalled {
        // It may be a reset; what matters is that it ends.
        let ended = stream.read(&mut [0; 64]);
        assert!(
            !matches!(&ended, Err(cause) if cause.kind() == std::io::ErrorKind::WouldBlock),
            "it stays open"
        );
    }
}

/// A cache behind a cache: TLS with a certificate of our own authority, and a token of its own, as operators set it up.
#[test]
fn cache_stands_before_another_one_with_tls_and_a_token_by_name() {
    let (authority, folder) = (Authority::new(), tempfile::tempdir().unwrap());
    let files = authority.certificate(folder.path(), "localhost");
    let tokens = folder.path().join("tokens.toml");
    std::fs::write(&tokens, token("branch", NEW, "access = \"write\"")).unwrap();
    let root = Gateway::start_with(|config| {
        config.tls = Some(files);
        config.tokens_file = Some(tokens);
    });
    assert_eq!(root.request("PUT", "/cas/root", b"of the root").code, 201);
    let url = format!("https://localhost:{}", root.addr.port());
    let ca = folder.path().join("ca.pem");
    let dock = Dock::start(&[
        ("SCCACHE_UPSTREAM", &url),
        ("SCCACHE_UPSTREAM_TOKEN", NEW),
        ("SSL_CERT_FILE", ca.to_str().unwrap()),
    ]);
    let listen = dock.status().unwrap()["listen"]
        .as_str()
        .unwrap()
        .to_owned();
    let ask = |method: &str, path: &str, body: &str| {
        let mut stream = TcpStream::connect(&listen).unwrap();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nAuthorization: Bearer {}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            dock.token(),
            body.len()
        );
        stream.write_all(request.as_bytes()).unwrap();
        Answer::read(&mut stream)
    };
    assert_eq!(ask("GET", "/cas/root", "").body, b"of the root");
    assert_eq!(ask("PUT", "/cas/branch", "of the branch").code, 201);
    wait_for("the blob to be passed on", CEILING, || {
        let passed = root.request("GET", "/cas/branch", b"");
        (passed.body == b"of the branch").then_some(())
    });
    let tokens = root.status().tokens;
    assert!(tokens.by_name["branch"].requests >= 2, "{tokens:?}");
}
