//! Who may use the cache, by which token, over TLS or not; and those who must not take its room.

use crate::dock::Dock;
use crate::harness::{
    Answer, Gateway, Process, WRITER, address, clean, command, config, finish, now, sccache_bin,
    skip, wait_for,
};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use sccache_dock::contract::gateway_config::{TlsFiles, TlsVersion};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, ClientConfig, ClientConnection, RootCertStore, StreamOwned};

const OLD: &str = "old-token-0123456789";
const NEW: &str = "new-token-0123456789";

/// What a condition may take on a busy machine.
const CEILING: Duration = Duration::from_secs(30);

fn token(name: &str, token: &str, rest: &str) -> String {
    format!("[[token]]\nname = \"{name}\"\ntoken = \"{token}\"\n{rest}\n")
}

/// Reads one head, byte by byte, and gives its status; none when the connection is cut instead.
fn head_or_cut(stream: &mut impl Read) -> Option<u16> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    let text = String::from_utf8(head).unwrap();
    text.split(' ').nth(1).unwrap().parse().ok()
}

fn head(stream: &mut impl Read) -> u16 {
    head_or_cut(stream).expect("an answer")
}

/// Asks on a connection that stays open, for something without a body.
fn ask(stream: &mut (impl Read + Write), token: &str) -> u16 {
    let request = format!("HEAD /.sccache_check HTTP/1.1\r\nAuthorization: Bearer {token}\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    head(stream)
}

/// The same by whatever is not a token.
pub(crate) fn ask_without_token(stream: &mut (impl Read + Write)) -> u16 {
    stream
        .write_all(b"HEAD /.sccache_check HTTP/1.1\r\n\r\n")
        .unwrap();
    head(stream)
}

/// Writes `text` to a new file that then takes the place of `path`.
fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(&new, path).unwrap();
}

pub(crate) fn with_tokens(folder: &Path, text: &str) -> (PathBuf, Gateway) {
    let file = folder.join("tokens.toml");
    std::fs::write(&file, text).unwrap();
    let named = file.clone();
    let gateway = Gateway::start_with(|config| config.tokens_file = Some(named));
    (file, gateway)
}

#[test]
fn token_is_rotated_without_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let write = "access = \"write\"";
    let (file, gateway) = with_tokens(folder.path(), &token("ci-1", OLD, write));
    let code = |token| gateway.request_as(Some(token), "PUT", "/cas/x", b"x").code;
    assert_eq!((code(OLD), code(NEW), code(WRITER)), (201, 401, 204));
    let both = token("ci-1", OLD, write) + &token("ci-2", NEW, write);
    replace(&file, &both);
    wait_for("the new token", CEILING, || {
        (code(NEW) == 204).then_some(())
    });
    assert_eq!(code(OLD), 204, "both are valid at once");
    std::fs::write(&file, format!("{both}\ntoken = {NEW}")).unwrap();
    let fault = || gateway.status().tokens.fault;
    let said = wait_for("the fault to be told", CEILING, fault);
    assert!(
        said.contains("cannot use the tokens in") && said.contains("line "),
        "{said}"
    );
    assert_eq!(
        (code(OLD), code(NEW)),
        (204, 204),
        "a fault changes nothing"
    );
    std::fs::write(&file, token("ci-2", NEW, write)).unwrap();
    wait_for("the old token's end", CEILING, || {
        (code(OLD) == 401).then_some(())
    });
    assert_eq!((code(NEW), fault()), (204, None));
    let log = gateway.process.log();
    assert!(
        !log.contains(OLD) && !log.contains(NEW),
        "a token is in the log"
    );
}

#[test]
fn token_that_stays_is_taken_at_every_moment_while_others_change() {
    let folder = tempfile::tempdir().unwrap();
    let write = "access = \"write\"";
    let stays = token("stays", NEW, write);
    let (file, gateway) = with_tokens(folder.path(), &stays);
    let code = |token, path: &str| gateway.request_as(Some(token), "PUT", path, b"x").code;
    wait_for("the token", CEILING, || {
        (code(NEW, "/cas/first") == 201).then_some(())
    });
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|client| {
                let code = &code;
                scope.spawn(move || {
                    for number in 0..150 {
                        assert_eq!(code(NEW, &format!("/cas/{client}-{number}")), 201);
                    }
                })
            })
            .collect();
        let mut turns = 0;
        while clients.iter().any(|client| !client.is_finished()) {
            turns += 1;
            let comes = token(&format!("comes-{turns}"), OLD, write);
            replace(&file, &(comes + &stays));
            wait_for("the one that comes", CEILING, || {
                matches!(code(OLD, "/cas/old"), 201 | 204).then_some(())
            });
            replace(&file, &stays);
            wait_for("its end", CEILING, || {
                matches!(code(OLD, "/cas/old"), 401 | 429).then_some(())
            });
        }
        assert!(turns > 1, "nothing changed meanwhile");
    });
    assert_eq!(gateway.status().tokens.by_name["stays"].requests, 601);
}

#[test]
fn faulty_tokens_at_the_start_leave_the_others_in_force() {
    let folder = tempfile::tempdir().unwrap();
    let (file, gateway) = with_tokens(folder.path(), "token = 1");
    assert_eq!(gateway.request("PUT", "/cas/x", b"x").code, 201);
    assert!(gateway.status().tokens.fault.is_some());
    replace(&file, &token("ci", NEW, "access = \"read\""));
    let code = || gateway.request_as(Some(NEW), "GET", "/cas/x", b"").code;
    wait_for("the mended file", CEILING, || (code() == 200).then_some(()));
}

#[test]
fn uses_of_each_token_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let (_, gateway) = with_tokens(folder.path(), &token("laptop", NEW, "access = \"read\""));
    gateway.request("PUT", "/cas/x", b"12345");
    for (method, path) in [("GET", "/cas/x"), ("GET", "/cas/y"), ("PUT", "/cas/y")] {
        gateway.request_as(Some(NEW), method, path, b"");
    }
    let text = gateway.request("GET", "/metrics", b"").text();
    for line in [
        "sccache_dock_token_requests_total{token=\"laptop\"} 3",
        "sccache_dock_token_hits_total{token=\"laptop\"} 1",
        "sccache_dock_token_misses_total{token=\"laptop\"} 1",
        "sccache_dock_token_refusals_total{token=\"laptop\"} 1",
        "sccache_dock_token_sent_bytes_total{token=\"laptop\"} 5",
        "sccache_dock_token_received_bytes_total{token=\"auth\"} 5",
        "sccache_dock_token_requests_total{token=\"read\"} 0",
    ] {
        assert!(
            text.lines().any(|found| found == line),
            "{line}\nis not in\n{text}"
        );
    }
    assert_eq!(gateway.status().tokens.by_name["laptop"].hits, 1);
}

#[test]
fn token_of_a_namespace_is_refused_elsewhere() {
    let folder = tempfile::tempdir().unwrap();
    let rest = "access = \"write\"\nnamespaces = [\"team\"]";
    let (_, gateway) = with_tokens(folder.path(), &token("team", NEW, rest));
    assert_eq!(gateway.request("PUT", "/cas/x", b"x").code, 201);
    for (method, path, body, code) in [
        ("PUT", "/team/x", "x", 201),
        ("GET", "/team/x", "", 200),
        ("GET", "//team/./x", "", 400),
        ("PUT", "/team/.sccache_check", "x", 201),
        ("GET", "/cas/x", "", 403),
        ("HEAD", "/cas/x", "", 403),
        ("PUT", "/cas/x", "x", 403),
        ("DELETE", "/cas/x", "", 403),
        ("PROPFIND", "/cas/x", "", 403),
        ("PUT", "/.sccache_check", "x", 403),
        ("POST", "/api/purge", "{}", 403),
        ("POST", "/api/purge", "{\"namespace\":\"cas\"}", 403),
        ("POST", "/api/purge", "{\"namespace\":\"team\"}", 200),
        ("GET", "/team/x", "", 404),
    ] {
        let answer = gateway.request_as(Some(NEW), method, path, body.as_bytes());
        assert_eq!(
            answer.code,
            code,
            "{method} {path} {body}: {}",
            answer.text()
        );
    }
    assert_eq!(gateway.request("GET", "/cas/x", b"").code, 200);
    let line = gateway.process.wait_for_line("reason=namespace");
    assert!(
        line.contains("token \"team\" may not use the namespace"),
        "{line}"
    );
}

#[test]
fn reload_takes_new_tokens_and_refuses_faulty_ones() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tokens.toml");
    std::fs::write(
        &file,
        token("ci", OLD, "access = \"read\"\nnamespaces = [\"team\"]"),
    )
    .unwrap();
    let dock = Dock::start(&[("SCCACHE_TOKENS_FILE", file.to_str().unwrap())]);
    let gateway = dock.pid_of("gateway");
    let printed = |args: &[&str]| {
        let output = dock.command(&[&["client-env", "--token-name"], args].concat());
        String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
    };
    assert!(printed(&["ci", "--namespace", "team"]).contains(OLD));
    assert!(printed(&["ci"]).contains("hint: add --namespace team"));
    assert!(printed(&["gone"]).contains("hint: the file has: ci"));
    assert!(printed(&["auth"]).contains(&dock.token()));
    replace(&file, "token = 1");
    let output = dock.command(&["reload"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("cannot use the tokens in"), "{said}");
    replace(&file, &token("ci-2", NEW, "access = \"read\""));
    assert!(dock.command(&["reload"]).status.success());
    dock.wait_log("named tokens in force: ci-2");
    assert_eq!(dock.pid_of("gateway"), gateway, "nothing was restarted");
    assert!(!dock.log().contains(NEW));
}

#[test]
fn wrong_files_are_told_before_anything_starts() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tokens.toml");
    std::fs::write(&file, "[[token]]\nname = \"a\"").unwrap();
    let file = file.to_str().unwrap();
    let authority = Authority::new();
    let tls = authority.certificate(folder.path(), "localhost");
    let cert = tls.cert.to_str().unwrap();
    let other = folder.path().join("other.pem");
    std::fs::write(&other, KeyPair::generate().unwrap().serialize_pem()).unwrap();
    let other = other.to_str().unwrap();
    for (env, word) in [
        (
            &[("SCCACHE_TOKENS_FILE", file)][..],
            "has no \"token\" of at least",
        ),
        (
            &[("SCCACHE_TLS_CERT", cert), ("SCCACHE_TLS_KEY", other)],
            "is not the key of",
        ),
        (
            &[("SCCACHE_TLS_CERT", cert), ("SCCACHE_TLS_KEY", "/gone")],
            "cannot read \"/gone\"",
        ),
    ] {
        let output = clean(crate::dock::program())
            .arg("run")
            .env("SCCACHE_DIR", folder.path())
            .env("SCCACHE_LISTEN", "127.0.0.1:0")
            .env("SCCACHE_BINARY", sccache_bin())
            .envs(env.iter().copied())
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(word) && said.contains("hint: "), "{said}");
    }
}

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

/// `curl` with the writer's token over TLS, trusting the test's authority.
fn curl(folder: &Path, gateway: &Gateway, args: &[&str]) -> String {
    let mut command = Command::new("curl");
    command.args([
        "--silent",
        "--show-error",
        "--noproxy",
        "*",
        "--max-time",
        "20",
        "--cacert",
    ]);
    command.arg(folder.join("ca.pem")).args(args);
    command.args(["--oauth2-bearer", WRITER]);
    command.arg(format!("https://localhost:{}/cas/x", gateway.addr.port()));
    finish(&mut command).output
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
    let sccache = || {
        let mut command = clean(sccache_bin());
        command
            .current_dir(folder.path())
            .env("SSL_CERT_FILE", folder.path().join("ca.pem"))
            .env("SCCACHE_SERVER_UDS", folder.path().join("own.sock"))
            .env("SCCACHE_WEBDAV_TOKEN", WRITER)
            .env(
                "SCCACHE_WEBDAV_ENDPOINT",
                format!("https://localhost:{}", gateway.addr.port()),
            );
        command
    };
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

/// A connection to `to` that comes from another address than loopback.
pub(crate) fn from_outside(to: SocketAddr) -> TcpStream {
    use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
    let probe = UdpSocket::bind("0.0.0.0:0").unwrap();
    probe
        .connect("192.0.2.77:9")
        .expect("this machine has a network");
    let own: IpAddr = probe.local_addr().unwrap().ip();
    let outside = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&outside, &SocketAddr::new(own, 0)).unwrap();
    connect(&outside, &to).unwrap();
    let stream = TcpStream::from(outside);
    stream.set_read_timeout(Some(CEILING)).unwrap();
    stream
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

#[test]
fn head_that_never_ends_is_cut_within_seconds() {
    let gateway = Gateway::start();
    let start = now();
    // Older than the other one: its end would be told first.
    let mut silent = gateway.connect();
    let mut slow = gateway.connect();
    slow.write_all(b"GET /cas/x HTTP/1.1\r\n").unwrap();
    slow.set_read_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    loop {
        // A letter now and then, as a slow loris does.
        let gone = slow.write_all(b"x").is_err();
        let read = slow.read(&mut [0; 64]);
        let waits = matches!(&read, Err(cause) if cause.kind() == std::io::ErrorKind::WouldBlock);
        if gone || !waits {
            break;
        }
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "it holds a place for long"
        );
    }
    let line = gateway.process.wait_for_line("reason=slow_head");
    assert!(line.contains("peer=127.0.0.1:"), "{line}");
    assert_eq!(silent.read(&mut [0; 1]).unwrap(), 0, "it went as well");
    let refusals = gateway.status().refusals;
    assert_eq!(refusals["slow_head"], 1, "silence is no fault");
}

#[test]
fn client_with_a_right_token_may_be_idle() {
    let gateway = Gateway::start();
    let mut kept = gateway.connect();
    let mut stranger = gateway.connect();
    assert_eq!(ask(&mut kept, WRITER), 200);
    assert_eq!(ask(&mut stranger, "wrong"), 401);
    // The stranger's end is also the moment at which the other one would have gone.
    assert_eq!(stranger.read(&mut [0; 64]).unwrap(), 0);
    assert_eq!(ask(&mut kept, WRITER), 200);
}

#[test]
fn crowd_of_strangers_makes_room_for_clients() {
    let gateway = Gateway::start();
    let mut crowd: Vec<TcpStream> = (0..300).map(|_| gateway.connect()).collect();
    assert_eq!(gateway.request("PUT", "/cas/x", b"x").code, 201);
    let line = gateway.process.wait_for_line("reason=crowded");
    assert!(line.contains("peer=127.0.0.1:"), "{line}");
    let crowded = || gateway.status().refusals["crowded"];
    wait_for("the oldest to go", CEILING, || {
        (crowded() >= 44).then_some(())
    });
    assert_eq!(crowd[0].read(&mut [0; 1]).unwrap(), 0, "the oldest went");
}

#[test]
fn readers_without_a_token_take_no_room_of_clients() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path());
    config.anonymous_read = true;
    let gateway = command(folder.path(), &config);
    // There are 44 places then.
    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -n 600 && exec \"$@\"", "sh"]);
    shell.arg(gateway.get_program()).args(gateway.get_args());
    let process = Process::start(&mut shell);
    let addr = address(&process);
    let connect = || {
        let stream = TcpStream::connect(addr).unwrap();
        stream.set_read_timeout(Some(CEILING)).unwrap();
        stream
    };
    let read = b"HEAD /cas/x HTTP/1.1\r\n\r\n";
    let mut readers: Vec<TcpStream> = (0..100)
        .map(|_| {
            let mut reader = connect();
            reader.write_all(read).unwrap();
            assert_eq!(head(&mut reader), 404);
            reader
        })
        .collect();
    let mut clients: Vec<TcpStream> = (0..10).map(|_| connect()).collect();
    for client in &mut clients {
        assert_eq!(ask(client, WRITER), 200);
    }
    // While there is room, they may be idle; this one's end is the moment at which strangers have to go.
    assert_eq!(connect().read(&mut [0; 64]).unwrap(), 0);
    let newest = readers.last_mut().unwrap();
    newest.write_all(read).unwrap();
    assert_eq!(head(newest), 404);
    process.wait_for_line("reason=crowded");
}

#[test]
fn wrong_tokens_are_limited_and_the_right_one_never_is() {
    let gateway = Gateway::start();
    let mut codes = Vec::new();
    for _ in 0..100 {
        codes.push(
            gateway
                .request_as(Some("guessed-token"), "GET", "/cas/x", b"")
                .code,
        );
        let right = gateway.request("GET", "/cas/x", b"").code;
        assert_eq!(right, 404, "the same address with the right token");
    }
    assert!(codes[..30].iter().all(|code| *code == 401), "{codes:?}");
    assert!(codes.contains(&429), "{codes:?}");
    assert_eq!(
        gateway.request_as(None, "GET", "/cas/x", b"").code,
        401,
        "no token is no guess"
    );
    let answer = gateway.request_as(Some("guessed-token"), "GET", "/cas/x", b"");
    if answer.code == 429 {
        assert!(
            answer.head.contains("connection: close") && answer.head.contains("retry-after: 1")
        );
    }
    gateway.process.wait_for_line("reason=auth_flood");
    assert!(
        !gateway.process.log().contains("guessed"),
        "the token is in the log"
    );
}

#[test]
fn ambiguous_requests_are_refused_or_read_in_one_way() {
    let gateway = Gateway::start();
    let auth = format!("Authorization: Bearer {WRITER}\r\n");
    let smuggled = "GET /smuggled HTTP/1.1\r\n\r\n";
    for (request, code) in [
        (
            format!("PUT /cas/a HTTP/1.1\r\n{auth}Content-Length: 1\r\nContent-Length: 2\r\n\r\nx"),
            400,
        ),
        (
            format!("PUT /cas/a HTTP/1.1\r\n{auth}Content-Length: 1, 2\r\n\r\nx"),
            400,
        ),
        (
            format!("PUT /cas/a HTTP/1.1\r\n{auth}Content-Length: +1\r\n\r\nx"),
            400,
        ),
        (
            format!("PUT /cas/a HTTP/1.1\r\n{auth}Content-Length: -1\r\n\r\nx"),
            400,
        ),
        (
            format!(
                "PUT /cas/a HTTP/1.1\r\n{auth}Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n"
            ),
            400,
        ),
        (
            format!("PUT /cas/a HTTP/1.1\r\n{auth}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
            400,
        ),
        (
            format!("PUT /cas/a HTTP/1.1\r\n{auth}Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n"),
            400,
        ),
        (
            format!("PUT /cas/a HTTP/1.1\r\n{auth}Content-Length: 1\r\n folded: x\r\n\r\nx"),
            400,
        ),
        (
            format!(
                "PUT /cas/a HTTP/1.1\r\n{auth}Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n"
            ),
            400,
        ),
        (
            format!("PUT /cas/a HTTP/1.1\r\n{auth}Transfer-Encoding: chunked\r\n\r\nz\r\n"),
            400,
        ),
        (
            format!("PUT /cas/a\0 HTTP/1.1\r\n{auth}Content-Length: 1\r\n\r\nx"),
            400,
        ),
        (
            format!("PUT /../../etc/passwd HTTP/1.1\r\n{auth}Content-Length: 1\r\n\r\nx"),
            400,
        ),
        (
            format!("PUT /a/%2e%2e/%2e%2e/b HTTP/1.1\r\n{auth}Content-Length: 1\r\n\r\nx"),
            400,
        ),
        (
            format!("PUT http://elsewhere/../a HTTP/1.1\r\n{auth}Content-Length: 1\r\n\r\nx"),
            400,
        ),
    ] {
        let mut stream = gateway.connect();
        stream.write_all(request.as_bytes()).unwrap();
        let answer = head_or_cut(&mut stream);
        // Whoever breaks the frame of a body while it is read is cut: there is nothing to wait for.
        let is_cut = answer.is_none() && request.contains("chunked\r\n\r\n");
        assert!(answer == Some(code) || is_cut, "{request:?}: {answer:?}");
    }
    assert_eq!(gateway.request("GET", "/cas/a", b"").code, 404);
    // Both frames: the chunks count, and what stands after them is not hidden in the body.
    let length = 5 + smuggled.len();
    let both = format!(
        "PUT /cas/b HTTP/1.1\r\n{auth}Content-Length: {length}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}"
    );
    let mut stream = gateway.connect();
    stream.write_all(both.as_bytes()).unwrap();
    // The rest may be a request of its own, which has no token, or go down with the connection.
    let answers = (head_or_cut(&mut stream), head_or_cut(&mut stream));
    assert!(
        matches!(answers, (Some(201), None | Some(401)) | (Some(400), None)),
        "{answers:?}"
    );
    let stored = gateway.request("GET", "/cas/b", b"");
    assert!(stored.code == 404 || stored.body.is_empty(), "{stored:?}");
    gateway.process.wait_for_line("reason=malformed");
}

#[test]
fn chunks_whose_frame_never_ends_are_cut() {
    let gateway = Gateway::start();
    for (name, begin, piece) in [
        ("extension", "1;", "x".repeat(64 << 10)),
        ("trailer", "1\r\nx\r\n0\r\n", "x: y\r\n".repeat(10_000)),
    ] {
        let mut stream = gateway.connect();
        let head = format!(
            "PUT /cas/{name} HTTP/1.1\r\nAuthorization: Bearer {WRITER}\r\nTransfer-Encoding: chunked\r\n\r\n{begin}"
        );
        stream.write_all(head.as_bytes()).unwrap();
        let sent = (0..1024).take_while(|_| stream.write_all(piece.as_bytes()).is_ok());
        assert!(sent.count() < 1024, "{name} is read on and on");
        let path = format!("/cas/{name}");
        assert_eq!(gateway.request("GET", &path, b"").code, 404);
    }
}

#[test]
fn page_of_another_site_cannot_purge_with_a_token_that_the_browser_keeps() {
    let gateway = Gateway::start();
    assert_eq!(gateway.request("PUT", "/cas/x", b"x").code, 201);
    let ask = |path: &str, fields: &str| {
        let mut stream = gateway.connect();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: cache:4226\r\nAuthorization: Bearer {WRITER}\r\n{fields}\
             Content-Length: 0\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        Answer::read(&mut stream).code
    };
    for path in ["/api/purge", "//api//purge", "/%61pi/purge"] {
        for fields in [
            "Sec-Fetch-Site: cross-site\r\n",
            "Origin: http://elsewhere.example\r\n",
            "Origin: null\r\n",
        ] {
            assert_eq!(ask(path, fields), 403, "{path} {fields}");
        }
    }
    assert_eq!(gateway.request("GET", "/cas/x", b"").code, 200);
    assert_eq!(ask("/api/purge", "Origin: http://cache:4226\r\n"), 200);
    assert_eq!(gateway.request("GET", "/cas/x", b"").code, 404);
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

#[test]
fn flood_of_headers_is_refused() {
    let gateway = Gateway::start();
    let many = "x: y\r\n".repeat(500);
    let long = format!("x: {}\r\n", "y".repeat(200_000));
    let path = format!("/{}", "p".repeat(100_000));
    for (path, headers, codes) in [
        ("/cas/x", many.as_str(), [431, 431]),
        ("/cas/x", &long, [431, 431]),
        (&path, "", [414, 431]),
    ] {
        let mut stream = gateway.connect();
        // The answer may come, and the connection close, before all is sent.
        let _ = stream.write_all(format!("GET {path} HTTP/1.1\r\n{headers}\r\n").as_bytes());
        let mut answer = [0; 12];
        if stream.read_exact(&mut answer).is_ok() {
            let code: u16 = std::str::from_utf8(&answer[9..]).unwrap().parse().unwrap();
            assert!(codes.contains(&code), "{code}");
        }
    }
    gateway.process.wait_for_line("reason=malformed");
    assert_eq!(gateway.request("GET", "/healthz", b"").code, 200);
}

#[test]
fn file_that_the_gateway_may_not_read_ends_it_with_a_word() {
    if !nix::unistd::geteuid().is_root() {
        return skip("only root can become another user");
    }
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path());
    let file = folder.path().join("tokens.toml");
    std::fs::write(&file, "").unwrap();
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
    std::os::unix::fs::chown(&file, Some(12345), None).unwrap();
    config.tokens_file = Some(file);
    let gateway = command(folder.path(), &config);
    // Root that has to ask for leave, as every other user has.
    let mut humble = Command::new("setpriv");
    humble.arg("--bounding-set=-dac_override,-dac_read_search");
    humble.arg(gateway.get_program()).args(gateway.get_args());
    let mut process = Process::start(&mut humble);
    assert_eq!(process.exit().code(), Some(2));
    process.wait_for_line("hint: the gateway runs as uid 0");
}
