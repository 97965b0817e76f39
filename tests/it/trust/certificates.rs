//! Client certificates as an identity: real ones, over the real port.

use super::{FORK, TOKENS, at, entry};
use crate::access::{Authority, Identity, ask_without_token, curl_over_tls};
use crate::attacks::peer::archive;
use crate::dock::program;
use crate::harness::{Gateway, finish, wait_for};
use crate::trust::issuer::unix_now;
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, SanType, date_time_ymd};
use sccache_dock::contract::gateway_config::TlsFiles;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const CEILING: Duration = Duration::from_secs(30);

const ENTRIES: &str = r#"
[[token]]
name = "ci"
certificate = "ci.example"
read = ["main"]
write = "main"

[[token]]
name = "pulls"
certificate = "spiffe://example/pulls"
read = ["pr/42", "main"]
write = "pr/42"

[[token]]
name = "laptop"
certificate = "anns-laptop"
access = "read"
"#;

/// A gateway that believes an authority of clients.
struct Scene {
    server: Authority,
    clients: Authority,
    folder: tempfile::TempDir,
    gateway: Gateway,
}

/// What a certificate says beside its key.
fn params(common_name: &str, names: &[SanType]) -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    params.subject_alt_names = names.to_vec();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params
}

fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().unwrap())
}

fn uri(name: &str) -> SanType {
    SanType::URI(name.try_into().unwrap())
}

impl Scene {
    fn start() -> Scene {
        Scene::of((Authority::new(), Authority::new()))
    }

    /// Another one that believes the same authorities.
    fn again(&self) -> Scene {
        Scene::of((self.server.clone(), self.clients.clone()))
    }

    fn of((server, clients): (Authority, Authority)) -> Scene {
        let folder = tempfile::tempdir().unwrap();
        let client_ca = folder.path().join("clients.pem");
        std::fs::write(&client_ca, clients.pem()).unwrap();
        let files = TlsFiles {
            client_ca: Some(client_ca),
            ..server.certificate(folder.path(), "localhost")
        };
        let tokens = folder.path().join("tokens.toml");
        std::fs::write(&tokens, format!("{TOKENS}{ENTRIES}")).unwrap();
        let gateway = Gateway::start_with(|config| {
            config.tls = Some(files);
            config.tokens_file = Some(tokens);
        });
        gateway.process.wait_for_line("named tokens in force");
        Scene {
            server,
            clients,
            folder,
            gateway,
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What curl says that shows this certificate, or none.
    fn curl(&self, identity: Option<&Identity>, more: &[&str], path: &str) -> String {
        let (cert, key) = (self.file("client.pem"), self.file("client.key"));
        let mut args = vec!["--write-out", "%{http_code}"];
        if let Some(identity) = identity {
            std::fs::write(&cert, &identity.cert).unwrap();
            std::fs::write(&key, &identity.key).unwrap();
            args.extend(["--cert", cert.to_str().unwrap()]);
            args.extend(["--key", key.to_str().unwrap()]);
        }
        args.extend(more);
        let port = self.gateway.addr.port();
        curl_over_tls(self.folder.path(), port, path, &args)
    }

    /// The code of a PUT of the entry of this number.
    fn put(&self, identity: Option<&Identity>, more: &[&str], number: usize) -> String {
        std::fs::write(self.file("body"), archive(b"x")).unwrap();
        let body = format!("@{}", self.file("body").display());
        let put = [
            "--output",
            "/dev/null",
            "--request",
            "PUT",
            "--data-binary",
            &body,
        ];
        let path = format!("/{}", entry(number));
        self.curl(identity, &[&put[..], more].concat(), &path)
    }

    fn refusals(&self) -> usize {
        self.gateway.process.log().matches("reason=tls").count()
    }
}

#[test]
fn name_in_a_certificate_is_who_its_holder_is_to_the_letter() {
    let scene = Scene::start();
    let issue = |common_name, names: &[SanType]| scene.clients.issue(params(common_name, names));
    let ci = issue("of no matter", &[dns("ci.example")]);
    assert_eq!(scene.put(Some(&ci), &[], 1), "201");
    assert!(at(&scene.gateway, "main", &entry(1)).is_some());
    let pulls = issue("ci.example", &[uri("spiffe://example/pulls")]);
    assert_eq!(scene.put(Some(&pulls), &[], 2), "201");
    assert!(at(&scene.gateway, "pr/42", &entry(2)).is_some());
    assert_eq!(at(&scene.gateway, "main", &entry(2)), None);
    // The common name counts where there is nothing else that could.
    let laptop = issue("anns-laptop", &[]);
    assert_eq!(scene.put(Some(&laptop), &[], 3), "403");
    let read = ["--output", "/dev/null"];
    assert_eq!(
        scene.curl(Some(&laptop), &read, &format!("/main/{}", entry(1))),
        "200"
    );
    for (common_name, names) in [
        ("ci.example", vec![dns("other.example")]),
        ("x", vec![dns("CI.example")]),
        ("x", vec![dns("x.ci.example"), dns("*.example")]),
        ("x", vec![uri("spiffe://example/pulls/")]),
        ("ci.example ", vec![]),
        ("nobody", vec![]),
    ] {
        let stranger = issue(common_name, &names);
        let said = scene.curl(Some(&stranger), &[], &format!("/{}", entry(1)));
        assert!(
            said.contains("no table of SCCACHE_TOKENS_FILE has certificate = "),
            "{said}"
        );
        assert!(said.ends_with("401"), "{common_name:?} {names:?}: {said}");
        assert_eq!(
            scene.put(Some(&stranger), &[], 4),
            "401",
            "{common_name:?} {names:?}"
        );
    }
    assert_eq!(scene.refusals(), 0, "the handshakes were fine");
    // Who wrote is known by the entry's name, and can be asked for.
    let status = scene.gateway.status().tokens.by_name;
    assert_eq!(status["ci"].requests, 1);
    assert_eq!(status["ci"].proof, "the certificate ci.example");
    assert_eq!(status["ci"].grants, "reads main; writes main");
    let purge = scene
        .gateway
        .request("POST", "/api/purge", b"{\"written_by\":\"pulls\"}");
    assert!(purge.text().contains("\"entries\":1"), "{}", purge.text());
}

#[test]
fn token_decides_where_there_is_one_and_nobody_needs_a_certificate() {
    let scene = Scene::start();
    let ci = scene.clients.issue(params("x", &[dns("ci.example")]));
    assert_eq!(scene.put(None, &[], 1), "401");
    let main = ["--oauth2-bearer", super::MAIN];
    assert_eq!(scene.put(None, &main, 1), "201");
    let fork = ["--oauth2-bearer", FORK];
    assert_eq!(scene.put(Some(&ci), &fork, 2), "403");
    let wrong = ["--oauth2-bearer", "of-nobody"];
    assert_eq!(scene.put(Some(&ci), &wrong, 2), "401");
    // Nothing of a certificate is believed where there is no TLS around it.
    let plain = scene
        .gateway
        .request_as(None, "PUT", &format!("/{}", entry(2)), b"x");
    assert_eq!(plain.code, 401);
}

#[test]
fn certificate_that_is_not_good_ends_the_handshake_and_the_log_says_why() {
    let scene = Scene::start();
    let good = || params("x", &[dns("ci.example")]);
    let changed = |change: fn(&mut CertificateParams)| {
        let mut params = good();
        change(&mut params);
        params
    };
    let expired = changed(|params| {
        params.not_before = date_time_ymd(2001, 1, 1);
        params.not_after = date_time_ymd(2002, 1, 1);
    });
    let early = changed(|params| params.not_before = date_time_ymd(2400, 1, 1));
    let of_a_server =
        changed(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]);
    let key = KeyPair::generate().unwrap();
    let self_signed = Identity {
        cert: good().self_signed(&key).unwrap().pem(),
        key: key.serialize_pem(),
    };
    let foreign = "it is of no authority in SCCACHE_TLS_CLIENT_CA";
    for (identity, why) in [
        (scene.clients.issue(expired), "it has expired"),
        (scene.clients.issue(early), "it is not valid yet"),
        (scene.clients.issue(of_a_server), "it is none of a client"),
        (self_signed, foreign),
        (Authority::new().issue(good()), foreign),
        // Of the authority that vouches for the server, which is another question.
        (scene.server.issue(good()), foreign),
    ] {
        // Each by a gateway of its own: of one kind, a log has a few lines a minute.
        let scene = scene.again();
        for more in [&[][..], &["--tls-max", "1.2"]] {
            let said = scene.put(Some(&identity), more, 1);
            assert!(said.contains("curl: ("), "{why}: {said}");
        }
        let said = format!("reason=tls: the client's certificate is refused: {why}");
        scene.gateway.process.wait_for_line(&said);
        assert_eq!(at(&scene.gateway, "main", &entry(1)), None);
    }
    assert_eq!(scene.put(Some(&scene.clients.issue(good())), &[], 1), "201");
}

#[test]
fn what_is_taken_away_ends_at_once_on_open_connections_too() {
    let scene = Scene::start();
    let ci = || scene.clients.issue(params("x", &[dns("ci.example")]));
    let mut soon = params("x", &[dns("ci.example")]);
    // To the second, and long enough for a busy machine to connect.
    let end = unix_now() + 8;
    soon.not_after = date_time_ymd(1970, 1, 1) + Duration::from_secs(end);
    let soon = scene.clients.issue(soon);
    let open = |identity: &Identity| scene.server.connect_as(&scene.gateway, identity);
    let (mut one, mut other, mut short) = (open(&ci()), open(&ci()), open(&soon));
    for connection in [&mut one, &mut other, &mut short] {
        assert_eq!(ask_without_token(connection), 200);
    }
    wait_for("the certificate's end", CEILING, || {
        (ask_without_token(&mut short) == 401).then_some(())
    });
    assert!(unix_now() >= end);
    // Its table.
    let tokens = scene.file("tokens.toml");
    std::fs::write(&tokens, TOKENS).unwrap();
    wait_for("the table's end", CEILING, || {
        (ask_without_token(&mut one) == 401).then_some(())
    });
    std::fs::write(&tokens, format!("{TOKENS}{ENTRIES}")).unwrap();
    wait_for("its return", CEILING, || {
        (ask_without_token(&mut one) == 200).then_some(())
    });
    // A file that holds no authority changes nothing.
    let before = ci();
    std::fs::write(scene.file("clients.pem"), "nothing").unwrap();
    let said = wait_for("the fault", CEILING, || {
        scene.gateway.status().tls.unwrap().fault
    });
    assert!(
        said.contains("clients.pem") && said.contains("no certificate in PEM"),
        "{said}"
    );
    assert_eq!(ask_without_token(&mut other), 200);
    // Its authority.
    let next = Authority::new();
    std::fs::write(scene.file("clients.pem"), next.pem()).unwrap();
    wait_for("the authority's end", CEILING, || {
        (ask_without_token(&mut other) == 401).then_some(())
    });
    let said = scene.put(Some(&before), &[], 1);
    assert!(said.contains("curl: ("), "{said}");
    let new = next.issue(params("x", &[dns("ci.example")]));
    assert_eq!(scene.put(Some(&new), &[], 1), "201");
    // The server's own certificate has stayed what it was.
    assert_eq!(scene.gateway.status().tls.unwrap().fault, None);
}

#[test]
fn our_own_commands_show_a_certificate() {
    let scene = Scene::start();
    let Identity { cert, key } = scene.clients.issue(params("x", &[dns("ci.example")]));
    let (cert_file, key_file) = (scene.file("own.pem"), scene.file("own.key"));
    std::fs::write(&cert_file, cert).unwrap();
    std::fs::write(&key_file, key).unwrap();
    let prefetch = |variables: &[(&str, &Path)]| {
        let mut command = Command::new(program());
        command
            .arg("prefetch")
            .current_dir(scene.folder.path())
            .env_clear()
            .env("HOME", scene.folder.path())
            .env("SSL_CERT_FILE", scene.file("ca.pem"))
            .env("SCCACHE_MULTILEVEL_CHAIN", "disk,webdav")
            .env("SCCACHE_DIR", scene.file("level"))
            .env(
                "SCCACHE_WEBDAV_ENDPOINT",
                format!("https://localhost:{}", scene.gateway.addr.port()),
            )
            .envs(variables.iter().copied());
        finish(&mut command).output
    };
    const CERT: &str = "SCCACHE_TLS_CLIENT_CERT";
    const KEY: &str = "SCCACHE_TLS_CLIENT_KEY";
    let said = prefetch(&[]);
    assert!(said.contains("answers 401"), "{said}");
    let said = prefetch(&[(CERT, &cert_file), (KEY, &key_file)]);
    assert!(said.contains("nothing to prefetch"), "{said}");
    for (variables, word) in [
        (
            &[(CERT, &*cert_file)][..],
            "SCCACHE_TLS_CLIENT_KEY is not set",
        ),
        (
            &[(CERT, &*key_file), (KEY, &*key_file)],
            "holds no certificate in PEM",
        ),
        (
            &[(CERT, &*cert_file), (KEY, &*cert_file)],
            "holds no private key in PEM",
        ),
        (
            &[(CERT, Path::new("/gone")), (KEY, &*key_file)],
            "cannot read \"/gone\"",
        ),
    ] {
        let said = prefetch(variables);
        assert!(
            said.contains("cannot use the client certificate") && said.contains(word),
            "{said}"
        );
        assert!(said.contains("hint: "), "{said}");
    }
}

#[test]
fn table_without_an_authority_is_told() {
    let (_folder, gateway) = super::gateway_with(ENTRIES);
    let line = gateway.process.wait_for_line("no client can present one");
    assert!(line.contains("SCCACHE_TLS_CLIENT_CA"), "{line}");
}
