//! The client-side doctor against a real gateway.

use crate::access::{Authority, with_tls};
use crate::dock::{Dock, eventually, program};
use crate::harness::{Gateway, Outcome, WRITER, clean, finish};
use crate::machine::Machine;
use crate::site::free_port;
use sccache_dock::base::secret::Secret;
use sccache_dock::doctor::{Args, Check, Environment, Report, Verdict, client};
use std::path::Path;
use std::process::{Child, Command, Stdio};

fn examine(dock: &Dock, token: Option<&str>) -> Report {
    let listen = dock.address();
    let args = Args {
        endpoint: Some(format!("http://{listen}")),
        token: token.map(Secret::new),
        json: false,
    };
    client(&args, &Environment::new())
}

fn find<'a>(report: &'a Report, what: &str) -> Option<&'a Check> {
    report.checks.iter().find(|check| check.what == what)
}

#[test]
fn right_token_reads_and_writes_and_leaves_nothing_behind() {
    let dock = Dock::start(&[]);
    let report = examine(&dock, Some(&dock.token()));
    for what in ["connection", "gateway", "token", "writes"] {
        let check = find(&report, what).unwrap();
        assert_eq!(check.verdict, Verdict::Ok, "{}", report.table());
    }
    let entries = &dock.status().unwrap()["cache"]["store"]["entries"];
    assert_eq!(entries.as_u64(), Some(0), "{:#}", dock.status().unwrap());
}

#[test]
fn password_is_as_good_as_the_token() {
    let dock = Dock::start(&[]);
    let args = Args {
        endpoint: Some(format!("http://{}", dock.address())),
        token: None,
        json: false,
    };
    let set = [
        ("SCCACHE_WEBDAV_USERNAME", "me".to_owned()),
        ("SCCACHE_WEBDAV_PASSWORD", dock.token()),
    ];
    let report = client(&args, &set.map(|(name, it)| (name.to_owned(), it)).into());
    let check = find(&report, "token").unwrap();
    assert_eq!(check.verdict, Verdict::Ok, "{}", report.table());
}

#[test]
fn wrong_missing_and_reading_tokens_are_told_apart() {
    let dock = Dock::start(&[("SCCACHE_READ_TOKEN", "for-reading-only")]);
    for (token, what, verdict, part) in [
        (Some("wrong-token"), "token", Verdict::Fail, "wrong (401)"),
        (None, "token", Verdict::Fail, "one is needed (401)"),
        (
            Some("for-reading-only"),
            "writes",
            Verdict::Warn,
            "only reads",
        ),
    ] {
        let report = examine(&dock, token);
        let check = find(&report, what).unwrap();
        assert_eq!(check.verdict, verdict, "{}", report.table());
        assert!(check.found.contains(part), "{}", report.table());
    }
}

#[test]
fn variable_that_is_no_text_is_not_in_the_way() {
    use std::os::unix::ffi::OsStrExt as _;
    let strange = std::ffi::OsStr::from_bytes(b"\xff");
    let said = finish(clean(program()).arg("doctor").env("STRANGE", strange));
    has(&said, &["connection", "failure"]);
}

#[test]
fn folder_that_the_client_uses_is_the_one_that_is_tried() {
    let folder = tempfile::tempdir().unwrap();
    let tokens = folder.path().join("tokens.toml");
    let text = "[[token]]\nname = 'team'\ntoken = 'a-token-for-a-team'\naccess = 'write'\nnamespaces = ['team/x']\n";
    std::fs::write(&tokens, text).unwrap();
    let dock = Dock::start(&[("SCCACHE_TOKENS_FILE", tokens.to_str().unwrap())]);
    let judged = |path: &str, prefix: &str| {
        let environment: Environment = [
            (
                "SCCACHE_WEBDAV_ENDPOINT",
                format!("http://{}{path}", dock.address()),
            ),
            ("SCCACHE_WEBDAV_KEY_PREFIX", prefix.to_owned()),
            ("SCCACHE_WEBDAV_TOKEN", "a-token-for-a-team".to_owned()),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
        let args = Args {
            endpoint: None,
            token: None,
            json: false,
        };
        let report = client(&args, &environment);
        let verdict = |what| find(&report, what).map(|check| check.verdict);
        assert_eq!(verdict("gateway"), Some(Verdict::Ok), "{}", report.table());
        (verdict("token"), verdict("writes"))
    };
    let allowed = (Some(Verdict::Ok), Some(Verdict::Ok));
    assert_eq!(judged("", "/team//x/"), allowed);
    assert_eq!(judged("/team", "x"), allowed);
    assert_eq!(judged("/team/x", ""), allowed);
    for (path, prefix) in [("", ""), ("", "team/y"), ("/team", "")] {
        let refused = (Some(Verdict::Fail), None);
        assert_eq!(judged(path, prefix), refused, "{path} {prefix}");
    }
}

/// The command as it is typed, with `ca` as what this machine trusts.
fn typed(endpoint: &str, token: &str, ca: &Path) -> Outcome {
    let mut command = clean(program());
    command.args(["doctor", "--endpoint", endpoint, "--token", token]);
    finish(command.env("SSL_CERT_FILE", ca))
}

fn has(outcome: &Outcome, parts: &[&str]) {
    for part in parts {
        assert!(
            outcome.output.contains(part),
            "no {part:?} in:\n{}",
            outcome.output
        );
    }
}

#[test]
fn certificate_that_is_not_trusted_or_for_another_name_is_told() {
    let (_authority, folder, gateway) = with_tls();
    let (ours, port) = (folder.path().join("ca.pem"), gateway.addr.port());
    let stranger = tempfile::tempdir().unwrap();
    Authority::new().certificate(stranger.path(), "localhost");
    let by_name = format!("https://localhost:{port}");
    let trusted = typed(&by_name, WRITER, &ours);
    has(
        &trusted,
        &[
            "sccache-dock",
            "at https://localhost",
            "may read",
            "writes",
            "allowed",
        ],
    );
    let hint = "export SSL_CERT_FILE=";
    let found = typed(&by_name, WRITER, &stranger.path().join("ca.pem"));
    has(
        &found,
        &[
            "FAIL  certificate",
            "no authority that this machine trusts",
            hint,
        ],
    );
    let found = typed(&format!("https://127.0.0.1:{port}"), WRITER, &ours);
    has(
        &found,
        &[
            "FAIL  certificate",
            "it is for other names than that of the endpoint",
        ],
    );
}

/// A server that speaks TLS and nothing else.
struct TlsOnly(Child);

impl TlsOnly {
    fn start(port: u16) -> TlsOnly {
        let folder = tempfile::tempdir().unwrap();
        let files = Authority::new().certificate(folder.path(), "localhost");
        let child = Command::new("openssl")
            .args([
                "s_server",
                "-quiet",
                "-www",
                "-accept",
                &format!("127.0.0.1:{port}"),
            ])
            .arg("-cert")
            .arg(files.cert)
            .arg("-key")
            .arg(files.key)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let server = TlsOnly(child);
        eventually("the server", || {
            std::net::TcpStream::connect(("127.0.0.1", port)).ok()
        });
        server
    }
}

impl Drop for TlsOnly {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.try_wait();
    }
}

#[test]
fn wrong_scheme_is_told_both_ways() {
    let gateway = Gateway::start();
    let folder = tempfile::tempdir().unwrap();
    Authority::new().certificate(folder.path(), "localhost");
    let ca = folder.path().join("ca.pem");
    let plain = format!("127.0.0.1:{}", gateway.addr.port());
    let found = typed(&format!("https://{plain}"), WRITER, &ca);
    let hint = format!("use http://{plain}, or give the cache a certificate");
    has(&found, &["FAIL  gateway", "speaks HTTP, and no TLS", &hint]);

    let port = free_port();
    let _server = TlsOnly::start(port);
    let found = typed(&format!("http://127.0.0.1:{port}"), WRITER, &ca);
    let hint = format!("use https://127.0.0.1:{port}, with a name that is in its certificate");
    has(&found, &["FAIL  gateway", "speaks HTTPS", &hint]);
}

#[test]
fn too_many_wrong_tokens_are_told_from_another_server() {
    let dock = Dock::start(&[]);
    let refused = eventually("429", || {
        let report = examine(&dock, Some("an-old-token"));
        let token = find(&report, "token").unwrap().clone();
        assert_eq!(
            find(&report, "gateway").unwrap().verdict,
            Verdict::Ok,
            "{}",
            report.table()
        );
        token.found.contains("429").then_some(token)
    });
    assert_eq!(refused.verdict, Verdict::Fail);
    assert!(
        refused
            .hint
            .unwrap()
            .contains("the right one is served at once")
    );
    let right = examine(&dock, Some(&dock.token()));
    assert_eq!(
        find(&right, "token").unwrap().verdict,
        Verdict::Ok,
        "{}",
        right.table()
    );
}

#[test]
fn what_sets_the_keys_of_a_folder_apart_is_named() {
    let dock = Dock::start(&[]);
    let machine = Machine::new();
    machine.write("mine/.git/HEAD", "");
    machine.write("mine/.cargo/config.toml", "[build]\nrustflags = ['-g']\n");
    machine.write("mine/src/it.rs", "");
    machine.write(
        "own-cargo/config.toml",
        "[target.x86_64-unknown-linux-gnu]\nlinker = 'clang'\n[registry]\ntoken = 'hidden'\n",
    );
    let script = "export CARGO_HOME=$PWD/own-cargo CARGO_REGISTRY_TOKEN=hidden SOURCE_DATE_EPOCH=1; \
                  cd mine/src; sccache-dock doctor";
    let outcome = machine.with_env(&dock, "--lane webdav", script);
    let work = machine.work().canonicalize().unwrap();
    has(
        &outcome,
        &[
            &format!("hold these paths: {}/mine for", work.display()),
            &format!("{}/own-cargo for", machine.work().display()),
            "warn  target.x86_64-unknown-linux-gnu.linker",
            "set CARGO_REGISTRY_TOKEN for cargo publish alone",
            "warn  SOURCE_DATE_EPOCH",
            "ok    direct mode",
            "ok    C keys",
        ],
    );
    for absent in ["hidden", "build.rustflags"] {
        assert!(!outcome.output.contains(absent), "{}", outcome.output);
    }
    // Where nothing can be built there are no paths to speak of.
    let outcome = machine.with_env(&dock, "--lane ipc", "cd own-cargo; sccache-dock doctor");
    assert!(!outcome.output.contains("Rust keys"), "{}", outcome.output);
    has(&outcome, &["ok    C keys"]);
}

#[test]
fn variables_that_cost_rust_hits_are_those_of_the_real_sccache() {
    let dock = Dock::start(&[]);
    let machine = Machine::new();
    machine.write("it.rs", "pub fn it() {}\n");
    let compile =
        "sccache rustc --crate-name it --crate-type lib --emit link,dep-info --out-dir out it.rs";
    let total = |what: &str| {
        dock.status().unwrap()["cache"]["totals"][what]
            .as_u64()
            .unwrap()
    };
    let run = |name: &str| {
        let script = format!("mkdir -p out && env {name}=always {compile}");
        let outcome = machine.with_env(&dock, "--lane webdav --no-disk", &script);
        assert_eq!(outcome.code, Some(0), "{}", outcome.output);
    };
    run("NOTHING");
    eventually("the first result", || (total("writes") == 1).then_some(()));
    for name in [
        "CARGO_TERM_COLOR",
        "CARGO_NET_RETRY",
        "CARGO_REGISTRY_TOKEN",
        "CARGO_PROFILE_DEV_DEBUG",
        "CARGO_TARGET_DIR",
        "CARGO_BUILD_JOBS",
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_MAKEFLAGS",
        "CARGO_REGISTRIES_OURS_TOKEN",
        "CI",
    ] {
        let before = total("misses");
        run(name);
        let environment = Environment::from([(name.to_owned(), "always".to_owned())]);
        let args = Args {
            endpoint: Some("http://127.0.0.1:1".to_owned()),
            token: None,
            json: false,
        };
        let named = find(&client(&args, &environment), name).is_some();
        assert_eq!(named, total("misses") > before, "{name}");
    }
}
