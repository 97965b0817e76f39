//! Client certificates as an identity: real ones, over the real port.

use super::{FORK, TOKENS, at, entry};
use crate::access::{Authority, Identity, ask_without_token, curl_over_tls};
use crate::attacks::peer::archive;
use crate::dock::{Dock, program};
use crate::harness::{Gateway, clean, finish, sccache_bin, wait_for};
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
        // The other connection is closed, so that who has been renewed is asked for the new one.
        (ask_without_token(&mut open(&ci())) == 200).then_some(())
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
    let [cert_file, key_file] = kept(&scene, "own", params("x", &[dns("ci.example")]));
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

/// A certificate of ours in these two files.
fn kept(scene: &Scene, name: &str, params: CertificateParams) -> [PathBuf; 2] {
    let Identity { cert, key } = scene.clients.issue(params);
    let files = [format!("{name}.pem"), format!("{name}.key")].map(|file| scene.file(&file));
    std::fs::write(&files[0], cert).unwrap();
    std::fs::write(&files[1], key).unwrap();
    files
}

fn url(scene: &Scene) -> String {
    format!("https://localhost:{}", scene.gateway.addr.port())
}

/// What a cache before `scene`'s has in its environment.
fn before(scene: &Scene, cert: &Path, key: &Path) -> Vec<(&'static str, String)> {
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    vec![
        ("SCCACHE_UPSTREAM", url(scene)),
        ("SSL_CERT_FILE", text(&scene.file("ca.pem"))),
        (CERT, text(cert)),
        (KEY, text(key)),
    ]
}

const CERT: &str = "SCCACHE_TLS_CLIENT_CERT";
const KEY: &str = "SCCACHE_TLS_CLIENT_KEY";

#[test]
fn upstream_knows_a_cache_by_its_certificate_also_after_that_was_renewed() {
    let scene = Scene::start();
    let params = || params("x", &[dns("ci.example")]);
    let mut soon = params();
    let end = unix_now() + 8;
    soon.not_after = date_time_ymd(1970, 1, 1) + Duration::from_secs(end);
    let [cert, key] = kept(&scene, "own", soon);
    let settings = before(&scene, &cert, &key);
    let settings: Vec<_> = settings.iter().map(|(name, it)| (*name, &**it)).collect();
    let dock = Dock::start(&settings);
    let curl = |method: &str, path: &str, body: &str| {
        let token = format!("Authorization: Bearer {}", dock.token());
        let url = format!("http://{}{path}", dock.address());
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--noproxy", "*", "--header", &token]);
        curl.args(["--request", method, "--data-binary", body, &url]);
        String::from_utf8(curl.output().unwrap().stdout).unwrap()
    };
    // Read there, and passed on to there, as "ci" may.
    assert_eq!(scene.put(None, &["--oauth2-bearer", super::MAIN], 1), "201");
    let there = curl("GET", &format!("/{}", entry(1)), "");
    assert_eq!(there.as_bytes(), archive(b"x"), "{}", dock.log());
    curl("PUT", "/cas/first", "a blob");
    wait_for("the first blob", CEILING, || {
        at(&scene.gateway, "main", "cas/first")
    });
    // The connections that are kept have shown the one that ends.
    kept(&scene, "own", params());
    wait_for("the first certificate's end", CEILING, || {
        curl("PUT", "/cas/more", &unix_now().to_string());
        (unix_now() > end).then_some(())
    });
    curl("PUT", "/cas/last", "another blob");
    wait_for("the last blob", CEILING, || {
        at(&scene.gateway, "main", "cas/last")
    });
    let uses = scene.gateway.status().tokens.by_name;
    assert!(uses["ci"].requests > 2, "{uses:?}");
    // Files that are gone while it runs are told.
    std::fs::remove_file(&key).unwrap();
    std::fs::write(scene.file("tokens.toml"), TOKENS).unwrap();
    wait_for("a connection without a certificate", CEILING, || {
        curl("GET", &format!("/cas/{}", unix_now()), "");
        let said = "without a certificate the upstream takes this cache only by its token";
        dock.log().contains(said).then_some(())
    });
}

#[test]
fn files_of_a_certificate_for_the_upstream_are_looked_at_before_anything_starts() {
    let scene = Scene::start();
    let [cert, key] = kept(&scene, "own", params("x", &[dns("ci.example")]));
    let [_, other] = kept(&scene, "other", params("x", &[dns("ci.example")]));
    for (cert, key, word) in [
        (&*cert, &*other, "is not the key of"),
        (&cert, Path::new("/gone"), "cannot read \"/gone\""),
        (&key, &key, "holds no certificate in PEM"),
        (&cert, Path::new(""), "SCCACHE_TLS_CLIENT_KEY: is not set"),
    ] {
        let mut command = clean(program());
        command.arg("run").env("SCCACHE_DIR", scene.folder.path());
        command.env("SCCACHE_LISTEN", "127.0.0.1:0");
        command.env("SCCACHE_BINARY", sccache_bin());
        let outcome = finish(command.envs(before(&scene, cert, key)));
        assert_eq!(outcome.code, Some(2), "{}", outcome.output);
        assert!(outcome.output.contains(word), "{}", outcome.output);
        assert!(outcome.output.contains("hint: "), "{}", outcome.output);
    }
}

#[test]
fn doctor_tries_the_certificate_and_says_that_sccache_presents_none() {
    let scene = Scene::start();
    let [cert, key] = kept(&scene, "own", params("x", &[dns("ci.example")]));
    let [stranger, strangers_key] = kept(&scene, "x", params("x", &[dns("other.example")]));
    let mut old = params("x", &[dns("ci.example")]);
    old.not_after = date_time_ymd(2002, 1, 1);
    let [expired, expired_key] = kept(&scene, "old", old);
    let [reader, readers_key] = kept(&scene, "reader", params("anns-laptop", &[]));
    let doctor = |more: &[&str], files: [&Path; 2]| {
        let mut command = clean(program());
        command
            .args(["doctor", "--endpoint", &url(&scene)])
            .args(more);
        command.env("SSL_CERT_FILE", scene.file("ca.pem"));
        let output = finish(command.env(CERT, files[0]).env(KEY, files[1])).output;
        // Whatever the folder of the test is called, and however wide the table is.
        let output = output.replace(&format!("{}/", scene.folder.path().display()), "");
        let lines = output.lines().map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            words.join(" ") + "\n"
        });
        lines.collect::<String>()
    };
    for (files, parts) in [
        (
            [&*cert, &*key],
            &[
                "ok client certificate own.pem may read and write\n",
                "warn token none, and one is needed (401)",
                "sccache itself presents no certificate",
                "sccache-dock build --prefetch",
            ][..],
        ),
        (
            [&reader, &readers_key],
            &["ok client certificate reader.pem may read\n"],
        ),
        (
            [&stranger, &strangers_key],
            &[
                "FAIL client certificate x.pem grants nothing (401): the client's certificate is not accepted: no table",
                "FAIL token",
            ],
        ),
        (
            [&expired, &expired_key],
            &[
                "FAIL client certificate",
                "refuses old.pem",
                "it has expired",
            ],
        ),
        (
            [&cert, &strangers_key],
            &[
                "FAIL client certificate cannot use the client certificate: \"x.key\" is not the key of",
            ],
        ),
        (
            [&cert, Path::new("/gone")],
            &["FAIL client certificate", "cannot read \"/gone\""],
        ),
        (
            [&cert, Path::new("")],
            &[
                "FAIL client certificate",
                "SCCACHE_TLS_CLIENT_KEY is not set",
            ],
        ),
    ] {
        let said = doctor(&[], files);
        for part in parts {
            assert!(said.contains(part), "no {part:?} in:\n{said}");
        }
    }
    // A token decides for sccache; what the certificate is good for is told beside it.
    let said = doctor(&["--token", super::MAIN], [&cert, &key]);
    assert!(!said.contains("SCCACHE_TLS_CLIENT"), "{said}");
    for part in [
        "ok token may read",
        "ok client certificate own.pem may read and write",
    ] {
        assert!(said.contains(part), "no {part:?} in:\n{said}");
    }
}

#[test]
fn build_that_prefetches_needs_no_token_beside_a_certificate() {
    let scene = Scene::start();
    let [cert, key] = kept(&scene, "own", params("x", &[dns("ci.example")]));
    std::fs::write(scene.file("one.c"), "int one(void) { return 1; }\n").unwrap();
    let build = || {
        let mut command = clean(program());
        command
            .args(["build", "--prefetch", "--report", "json=report.json", "--"])
            .args([sccache_bin().to_str().unwrap(), "cc", "-c", "one.c"])
            .current_dir(scene.folder.path())
            .env("SCCACHE_WEBDAV_ENDPOINT", url(&scene))
            .env("SCCACHE_MULTILEVEL_CHAIN", "disk,webdav")
            .env("SCCACHE_DIR", scene.file("level"))
            .env("SSL_CERT_FILE", scene.file("ca.pem"));
        let outcome = finish(command.env(CERT, &cert).env(KEY, &key));
        assert_eq!(outcome.code, Some(0), "{}", outcome.output);
        assert!(!outcome.output.contains("warning"), "{}", outcome.output);
        std::fs::remove_dir_all(scene.file("level")).unwrap();
    };
    build();
    let uses = |scene: &Scene| scene.gateway.status().tokens.by_name["ci"].clone();
    assert!(uses(&scene).bytes_received > 0, "{:?}", uses(&scene));
    build();
    // It was there before it was asked for.
    assert_eq!(uses(&scene).misses, 1, "{:?}", uses(&scene));
}
