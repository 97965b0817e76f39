//! Identity by ID tokens: who gets a session for what, which tokens are none, and an issuer that fails.

use super::issuer::{AUDIENCE, Issuer, Mood, Signer, claims, keys, unix_now};
use super::{asked, at, entry, found, place};
use crate::attacks::peer::archive;
use crate::dock::Dock;
use crate::harness::{Answer, Gateway, WRITER, wait_for};
use nix::sys::signal::Signal;
use sccache_dock::base::secret::Secret;
use sccache_dock::contract::gateway_config::{Dist, Relay, Scheduler, WrongToken};
use sccache_dock::contract::gateway_status::{LoginAnswer, SessionStatus};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;
use tempfile::TempDir;

const CEILING: Duration = Duration::from_secs(30);

const RULES: &str = r#"
[[rule]]
name = "main"
issuer = "github"
claims = { repository_id = "1001", event_name = ["push", "schedule"], ref = "refs/heads/main" }
read = ["main"]
write = "main"

[[rule]]
name = "pulls"
issuer = "github"
claims = { repository_id = "1001", event_name = "pull_request" }
read = ["pr/${ref_number}", "main"]
write = "pr/${ref_number}"

[[rule]]
name = "release"
issuer = "github"
claims = { repository_id = "1001", environment = "release" }
read = ["release"]
write = "release"

[[rule]]
name = "branches"
issuer = "github"
claims = { repository_id = "1001", event_name = "push" }
read = ["branch/${ref}", "main"]
write = "branch/${ref}"

[[rule]]
name = "neighbours"
issuer = "github"
claims = { repository_owner_id = "77" }
read = ["main"]
"#;

pub(super) struct Site {
    pub(super) gateway: Gateway,
    pub(super) issuer: Issuer,
    pub(super) signer: Signer,
    file: PathBuf,
    _folder: TempDir,
}

impl Site {
    pub(super) fn start() -> Site {
        Site::start_with(Signer::rsa("one"), "", |_| {})
    }

    pub(super) fn start_with(signer: Signer, of_issuer: &str, mood: impl FnOnce(&Issuer)) -> Site {
        let issuer = Issuer::start(keys(&[&signer]));
        mood(&issuer);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("tokens.toml");
        std::fs::write(&file, issuer.table("github", of_issuer) + RULES).unwrap();
        let named = file.clone();
        let gateway = Gateway::start_with(|config| config.tokens_file = Some(named));
        gateway
            .process
            .wait_for_line("named tokens in force: main, pulls");
        Site {
            gateway,
            issuer,
            signer,
            file,
            _folder: folder,
        }
    }

    pub(super) fn exchange(&self, token: &str) -> Answer {
        self.gateway
            .request_as(None, "POST", "/api/session", token.as_bytes())
    }

    pub(super) fn login(&self, changes: Value) -> Result<LoginAnswer, Answer> {
        let answer = self.exchange(&self.signer.token(&claims(&self.issuer, changes)));
        match answer.code {
            200 => Ok(serde_json::from_slice(&answer.body).unwrap()),
            _ => Err(answer),
        }
    }

    pub(super) fn token(&self, changes: Value) -> String {
        self.login(changes)
            .map(|session| session.token)
            .unwrap_or_else(|answer| panic!("{answer:?}"))
    }

    pub(super) fn sessions(&self) -> Vec<SessionStatus> {
        let answer = self.gateway.request("GET", "/api/sessions", b"");
        assert_eq!(answer.code, 200);
        serde_json::from_slice(&answer.body).unwrap()
    }

    pub(super) fn is_good(&self, token: &str) -> bool {
        asked(&self.gateway, token, "GET", "/.sccache_check", b"").code == 200
    }
}

const NAMESPACES: [&str; 5] = ["main", "pr/42", "pr/43", "release", "branch/feature"];

#[test]
fn claims_decide_what_is_read_and_written() {
    let site = Site::start();
    for (number, namespace) in NAMESPACES.iter().enumerate() {
        place(
            &site.gateway,
            namespace,
            &entry(number),
            &archive(namespace.as_bytes()),
        );
    }
    // What changes in the claims; then by namespace whether it reads and writes there, or nothing if there is no session.
    let pull = |number: u32| json!({"event_name": "pull_request", "ref": format!("refs/pull/{number}/merge")});
    let with = |mut one: Value, more: Value| {
        for (name, value) in more.as_object().unwrap() {
            one[name] = value.clone();
        }
        one
    };
    let feature = json!({"ref": "refs/heads/feature"});
    let matrix: Vec<(&str, Value, Option<[&str; 5]>)> = vec![
        ("push to main", json!({}), Some(["rw", "-", "-", "-", "-"])),
        (
            "schedule",
            json!({"event_name": "schedule"}),
            Some(["rw", "-", "-", "-", "-"]),
        ),
        ("pull 42", pull(42), Some(["r", "rw", "-", "-", "-"])),
        ("pull 43", pull(43), Some(["r", "-", "rw", "-", "-"])),
        (
            "release",
            json!({"environment": "release", "event_name": "workflow_dispatch"}),
            Some(["-", "-", "-", "rw", "-"]),
        ),
        (
            "push to feature",
            feature.clone(),
            Some(["r", "-", "-", "-", "-"]),
        ),
        // Runs with main's ref, and perhaps with a stranger's code.
        (
            "pull_request_target",
            json!({"event_name": "pull_request_target"}),
            Some(["r", "-", "-", "-", "-"]),
        ),
        (
            "workflow_run",
            json!({"event_name": "workflow_run"}),
            Some(["r", "-", "-", "-", "-"]),
        ),
        (
            "issue_comment",
            json!({"event_name": "issue_comment"}),
            Some(["r", "-", "-", "-", "-"]),
        ),
        (
            "merge queue",
            json!({"event_name": "merge_group", "ref": "refs/heads/gh-readonly-queue/main/pr-1"}),
            Some(["r", "-", "-", "-", "-"]),
        ),
        (
            "a neighbour's push to main",
            json!({"repository_id": "1002"}),
            Some(["r", "-", "-", "-", "-"]),
        ),
        (
            "a project of the same name",
            json!({"repository_id": "9", "repository_owner_id": "9"}),
            None,
        ),
        (
            "id as a number",
            json!({"repository_id": 1001}),
            Some(["rw", "-", "-", "-", "-"]),
        ),
        (
            "id in a list",
            json!({"repository_id": ["1001"], "repository_owner_id": "9"}),
            None,
        ),
        (
            "branch called main/../release",
            json!({"ref": "refs/heads/main/../release"}),
            Some(["r", "-", "-", "-", "-"]),
        ),
        (
            "ref of another case",
            json!({"ref": "refs/heads/MAIN"}),
            Some(["r", "-", "-", "-", "-"]),
        ),
        (
            "ref with a blank",
            json!({"ref": "refs/heads/main "}),
            Some(["r", "-", "-", "-", "-"]),
        ),
        (
            "environment of another case",
            json!({"environment": "Release", "event_name": "workflow_dispatch"}),
            Some(["r", "-", "-", "-", "-"]),
        ),
        (
            "pull request without a number",
            with(pull(42), json!({"ref": "refs/pull/x/merge"})),
            None,
        ),
        (
            "pull request with a path",
            with(pull(42), json!({"ref": "refs/pull/../main"})),
            None,
        ),
        (
            "pull request with a branch's ref",
            with(pull(42), json!({"ref": "refs/heads/main"})),
            None,
        ),
        (
            "no event",
            json!({"event_name": null}),
            Some(["r", "-", "-", "-", "-"]),
        ),
    ];
    let mut cases = 0;
    for (turn, (who, changes, may)) in matrix.into_iter().enumerate() {
        let session = site.login(changes);
        cases += 1;
        let Some(may) = may else {
            assert_eq!(session.err().map(|answer| answer.code), Some(403), "{who}");
            continue;
        };
        let session = session.unwrap_or_else(|answer| panic!("{who}: {answer:?}"));
        let new = entry(1000 + turn);
        let put = asked(
            &site.gateway,
            &session.token,
            "PUT",
            &format!("/{new}"),
            &archive(b"new"),
        )
        .code;
        let writes_somewhere = session.grants.split("writes ").nth(1) != Some("nothing");
        assert_eq!(put == 201, writes_somewhere, "{who}: {}", session.grants);
        for (number, namespace) in NAMESPACES.iter().enumerate() {
            cases += 2;
            let path = format!("/{}", entry(number));
            let read = found(&site.gateway, &session.token, &path).is_some();
            assert_eq!(read, may[number].contains('r'), "{who} reads {namespace}");
            let written = at(&site.gateway, namespace, &new).is_some();
            assert_eq!(
                written,
                may[number].contains('w'),
                "{who} writes {namespace}"
            );
        }
    }
    assert!(cases >= 60, "{cases}");
    // What names a branch cannot carry is hashed, and stays apart.
    let odd = site
        .login(json!({"ref": "refs/heads/main/../release"}))
        .unwrap();
    assert!(odd.grants.contains("branch/h-"), "{}", odd.grants);
    let figures = site.gateway.request("GET", "/metrics", b"").text();
    assert!(figures.contains("sccache_dock_token_requests_total{token=\"pulls\"}"));
    assert!(
        !figures.contains("token=\"pulls:"),
        "a label for each session"
    );
}

#[test]
fn issuer_that_signs_with_curves_is_taken_where_that_is_said() {
    let site = Site::start_with(Signer::ec("curve"), "algorithm = \"ES256\"", |_| {});
    assert!(site.is_good(&site.token(json!({}))));
    let rsa = Signer::rsa("curve").token(&claims(&site.issuer, json!({})));
    assert!(site.exchange(&rsa).text().contains("signs with ES256"));
}

#[test]
fn issuer_is_away_slow_or_lies() {
    let elsewhere = Issuer::start(Mood::Text("{}".into()));
    for (what, mood, word) in [
        ("away", Mood::Status(503), "503"),
        (
            "redirects",
            Mood::Redirect(format!("{}/keys", elsewhere.url())),
            "302",
        ),
        (
            "redirects inwards",
            Mood::Redirect("http://169.254.169.254/latest/meta-data".into()),
            "302",
        ),
        ("10 MiB", Mood::Bytes(10 << 20), "longer than"),
        ("no JSON", Mood::Text("<html>".into()), "no set of keys"),
        ("slow", Mood::Slow(Duration::from_secs(60)), "cannot be had"),
    ] {
        let site = Site::start_with(Signer::rsa("one"), "", |issuer| issuer.set(mood));
        let answer = site.exchange(&site.signer.token(&claims(&site.issuer, json!({}))));
        assert_eq!(answer.code, 503, "{what}: {answer:?}");
        assert!(answer.text().contains(word), "{what}: {}", answer.text());
        // Nobody else waits for it.
        assert_eq!(
            site.gateway.request("PUT", "/cas/x", b"x").code,
            201,
            "{what}"
        );
    }
    assert_eq!(elsewhere.asked(), 0, "a redirect was followed");
}

#[test]
fn keys_are_rotated_and_the_last_ones_count_for_a_while() {
    let site = Site::start_with(Signer::rsa("old"), "keep_keys = \"8s\"", |_| {});
    let session = site.token(json!({"run_id": "first"}));
    site.issuer.set(Mood::Status(500));
    assert!(site.login(json!({})).is_ok(), "its last keys count");
    wait_for("the end of the keys", CEILING, || {
        let refused = site.login(json!({})).err()?;
        assert_eq!(refused.code, 503, "{refused:?}");
        Some(())
    });
    assert!(site.is_good(&session), "sessions go on");
    let new = Signer::rsa("new");
    site.issuer.set(keys(&[&new]));
    // After the issuer failed it is asked again at most once a minute, but never by those who only wait.
    let asked = site.issuer.asked();
    for _ in 0..20 {
        let _ = site.login(json!({}));
    }
    assert!(
        site.issuer.asked() <= asked + 2,
        "{} questions",
        site.issuer.asked() - asked
    );
    let token = || new.token(&claims(&site.issuer, json!({})));
    wait_for("the new key", Duration::from_secs(90), || {
        let code = site.exchange(&token()).code;
        std::thread::sleep(Duration::from_millis(200));
        (code == 200).then_some(())
    });
    let old = site.login(json!({})).err().unwrap();
    assert!(
        old.text().contains("none of its issuer's"),
        "the old key is gone: {old:?}"
    );
}

#[test]
fn sessions_survive_a_restart_and_end_by_hand_by_time_and_with_their_rule() {
    let mut site = Site::start_with(Signer::rsa("one"), "session = \"1h\"", |_| {});
    let one = site.token(json!({"run_id": "1"}));
    let two = site.token(json!({"run_id": "2"}));
    let pull = site
        .token(json!({"event_name": "pull_request", "ref": "refs/pull/7/merge", "run_id": "3"}));
    let names = |site: &Site| {
        let mut names: Vec<String> = site.sessions().into_iter().map(|one| one.name).collect();
        names.sort();
        names
    };
    assert_eq!(names(&site), ["main:1", "main:2", "pulls:3"]);
    let until = site.sessions()[0].ends_unix_seconds;
    assert!((3500..=3700).contains(&(until - unix_now())));
    let put = |site: &Site, number: usize| {
        asked(
            &site.gateway,
            &two,
            "PUT",
            &format!("/{}", entry(number)),
            &archive(b"x"),
        )
        .code
    };
    assert_eq!(put(&site, 1), 201);
    site.gateway.process.signal(Signal::SIGKILL);
    site.gateway.process.exit();
    let kept = site.gateway.config.store_dir.join("sessions.json");
    let text = std::fs::read_to_string(&kept).unwrap();
    assert!(!text.contains(&one[4..]), "a token is in the file");
    let mode = std::os::unix::fs::MetadataExt::mode(&kept.metadata().unwrap());
    assert_eq!(mode & 0o777, 0o600);
    site.gateway.restart();
    site.gateway.process.wait_for_line("named tokens in force");
    assert!(
        [&one, &two, &pull]
            .into_iter()
            .all(|token| site.is_good(token))
    );
    let revoke = |name: &str| {
        let request = json!({ "name": name }).to_string();
        site.gateway
            .request("POST", "/api/revoke", request.as_bytes())
            .text()
    };
    assert!(revoke("1").contains("\"sessions\":1"));
    assert!(revoke("1").contains("\"sessions\":0"));
    assert!(!site.is_good(&one) && site.is_good(&two));
    // Its jobs have new tokens made as often as they like.
    let is_out = |site: &Site| {
        let refused = site.login(json!({"run_id": "1"})).unwrap_err();
        assert_eq!(refused.code, 403, "{refused:?}");
        assert!(
            refused.text().contains("of this run were revoked"),
            "{refused:?}"
        );
    };
    is_out(&site);
    site.gateway.process.signal(Signal::SIGKILL);
    site.gateway.process.exit();
    site.gateway.restart();
    site.gateway.process.wait_for_line("named tokens in force");
    is_out(&site);
    // Its work is known by rule and by run.
    let purge = |name: &str| {
        let request = json!({"written_by": name, "dry_run": true}).to_string();
        site.gateway
            .request("POST", "/api/purge", request.as_bytes())
            .text()
    };
    assert!(purge("main:2").contains("\"entries\":1"));
    assert!(purge("main").contains("\"entries\":1") && purge("main:1").contains("\"entries\":0"));
    // Another text of the rule is another rule.
    let rules = RULES.replace(
        "read = [\"main\"]\nwrite = \"main\"",
        "read = [\"main\", \"release\"]\nwrite = \"main\"",
    );
    std::fs::write(
        &site.file,
        site.issuer.table("github", "session = \"1h\"") + &rules,
    )
    .unwrap();
    wait_for("the end of the rule", CEILING, || {
        (!site.is_good(&two)).then_some(())
    });
    assert!(site.is_good(&pull), "another rule stays");
    // None of them may look at others, or end them.
    assert_eq!(
        asked(&site.gateway, &pull, "GET", "/api/sessions", b"").code,
        403
    );
    assert_eq!(
        asked(
            &site.gateway,
            &pull,
            "POST",
            "/api/revoke",
            b"{\"name\":\"3\"}"
        )
        .code,
        403
    );
    assert_eq!(
        site.gateway
            .request_as(None, "GET", "/api/sessions", b"")
            .code,
        401
    );
}

#[test]
fn session_ends_with_its_token_where_the_issuer_is_such() {
    let site = Site::start_with(Signer::rsa("one"), "session = \"token\"", |_| {});
    // The least that is left when it is taken.
    let token = site.token(json!({"exp": unix_now() + 4}));
    assert!(site.is_good(&token));
    wait_for("its end", CEILING, || (!site.is_good(&token)).then_some(()));
}

#[test]
fn rule_that_would_let_anybody_write_is_refused_and_what_was_before_stays() {
    let site = Site::start();
    let session = site.token(json!({}));
    let rule =
        "[[rule]]\nname = \"main\"\nissuer = \"github\"\nread = [\"main\"]\nwrite = \"main\"\n";
    for (claims, word) in [
        (
            "{ ref = \"refs/heads/main\", repository_id = 1001 }",
            "name none of event_name",
        ),
        (
            "{ event_name = \"push\", repository = \"team/project\" }",
            "name none of repository_id",
        ),
        (
            "{ event_name = \"pull_request_target\", repository_id = 1 }",
            "pull_request_target",
        ),
    ] {
        let text = format!(
            "{}{rule}claims = {claims}\n",
            site.issuer.table("github", "")
        );
        std::fs::write(&site.file, text).unwrap();
        let fault = wait_for("the fault", CEILING, || {
            site.gateway
                .status()
                .tokens
                .fault
                .filter(|fault| fault.contains(word))
        });
        assert!(fault.contains("rule 1"), "{fault}");
        assert!(site.is_good(&session));
    }
}

/// What `jwt_validate` is to sccache's scheduler, but for tokens without an audience or of any issuer, which that takes.
#[test]
fn client_that_shows_its_id_token_to_the_scheduler_may_use_the_cluster() {
    let signer = Signer::rsa("one");
    let issuer = Issuer::start(keys(&[&signer]));
    let folder = tempfile::tempdir().unwrap();
    let rule = "[[rule]]\nname = \"cluster\"\nissuer = \"github\"\nread = [\"main\"]\ndistribute = true\n\
                claims = { repository_id = \"1001\", event_name = \"push\" }\n";
    let file = folder.path().join("tokens.toml");
    std::fs::write(&file, issuer.table("github", "") + rule).unwrap();
    let front = SocketAddr::from(([127, 0, 0, 1], crate::site::free_port()));
    let at = |name: &str| folder.path().join(name);
    let gateway = Gateway::start_with(|config| {
        config.tokens_file = Some(file);
        config.dist = Some(Dist {
            listen: front,
            scheduler: Scheduler::Local(front),
            scheduler_token: Secret::new("scheduler-token"),
            builder_token: Secret::new("server-token"),
            wrong_token: WrongToken::Fail,
            local_builder: None,
            local_builder_port: None,
            jobs_socket: at("jobs.sock"),
            heartbeats: at("heartbeats"),
            plain: false,
            builder_jwt_key: None,
            tunnels_to: None,
            client_certificate: None,
            relay: Some(Relay {
                address: None,
                public_ip: None,
                queue_millis: 1000,
                queue_bytes: 1 << 20,
                archive_bytes: 10 << 30,
                spool: at("spool"),
                authority: at("authority"),
                machines: Default::default(),
            }),
        });
    });
    let line = "named tokens in force: cluster";
    gateway.process.wait_for_line(line);
    let allocate = |token: &str| {
        let body = [&64_u64.to_le_bytes()[..], &[b'a'; 64]].concat();
        let head = format!(
            "POST /api/v1/scheduler/alloc_job HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
             Authorization: Bearer {token}\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let mut stream = TcpStream::connect(front).unwrap();
        stream
            .write_all(&[head.as_bytes(), &body].concat())
            .unwrap();
        Answer::read(&mut stream).code
    };
    let allocated = |changes: Value| allocate(&signer.token(&claims(&issuer, changes)));
    let token = signer.token(&claims(&issuer, json!({})));
    assert_eq!(
        [allocate(&token), allocate(&token)],
        [200, 200],
        "as often as it is shown"
    );
    for changes in [
        json!({"aud": null}),
        json!({"aud": "https://another.example.com"}),
        json!({"iss": null}),
        json!({"iss": "https://another.example.com"}),
        json!({"exp": unix_now() - 120}),
        json!({"event_name": "pull_request"}),
    ] {
        assert_eq!(allocated(changes.clone()), 401, "{changes}");
    }
    let stranger = Signer::rsa("one").token(&claims(&issuer, json!({})));
    assert_eq!(allocate(&stranger), 401);
    let run = gateway.request("POST", "/api/revoke", b"{\"name\":\"5001\"}");
    assert_eq!(run.code, 200);
    assert_eq!((allocate(&token), allocated(json!({}))), (401, 401));
    assert_eq!(allocated(json!({"run_id": "5002"})), 200);
}

/// The client's side: GitHub's runner gives out ID tokens on request, GitLab puts one into the environment.
#[test]
fn command_exchanges_the_tokens_of_both_services() {
    let signer = Signer::rsa("one");
    let issuer = Issuer::start(keys(&[&signer]));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tokens.toml");
    std::fs::write(&file, issuer.table("github", "") + RULES).unwrap();
    let mut dock = Dock::start(&[("SCCACHE_TOKENS_FILE", file.to_str().unwrap())]);
    dock.wait_ready();
    let cache = format!("http://{}", dock.address());
    let runner = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!(
        "http://{}/token?api-version=2",
        runner.local_addr().unwrap()
    );
    let id_token = signer.token(&claims(&issuer, json!({"run_id": "70"})));
    let answer = json!({ "value": id_token }).to_string();
    let serving = std::thread::spawn(move || {
        let (mut stream, _) = runner.accept().unwrap();
        let mut head = [0; 4096];
        let read = stream.read(&mut head).unwrap();
        let length = answer.len();
        write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{answer}"
        )
        .unwrap();
        String::from_utf8_lossy(&head[..read]).into_owned()
    });
    let login = |env: &[(&str, &str)], args: &[&str]| {
        let mut command = Command::new(crate::dock::program());
        command.args([
            "login",
            "--oidc",
            "--endpoint",
            &format!("{cache}/some/folder"),
        ]);
        let output = command
            .args(args)
            .env_clear()
            .envs(env.iter().copied())
            .output()
            .unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (
            output.status.code(),
            text(output.stdout),
            text(output.stderr),
        )
    };
    let env_file = folder.path().join("github-env");
    let env = [
        ("ACTIONS_ID_TOKEN_REQUEST_URL", url.as_str()),
        ("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "runner-secret"),
        ("GITHUB_ENV", env_file.to_str().unwrap()),
    ];
    let (code, out, err) = login(&env, &["--format", "github", "--audience", AUDIENCE]);
    assert_eq!(code, Some(0), "{err}");
    let asked_runner = serving.join().unwrap();
    assert!(
        asked_runner.contains("api-version=2&audience=https"),
        "{asked_runner}"
    );
    assert!(
        asked_runner
            .to_lowercase()
            .contains("authorization: bearer runner-secret")
    );
    let written = std::fs::read_to_string(&env_file).unwrap();
    let token = written
        .trim()
        .strip_prefix("SCCACHE_WEBDAV_TOKEN=")
        .unwrap();
    assert_eq!(out.trim(), format!("::add-mask::{token}"));
    assert!(
        err.contains("logged in as main:70: reads main; writes main"),
        "{err}"
    );
    let by_gitlab = signer.token(&claims(&issuer, json!({"run_id": "71"})));
    let (code, out, err) = login(&[("SCCACHE_ID_TOKEN", &by_gitlab)], &[]);
    assert_eq!(code, Some(0), "{err}");
    assert!(
        out.starts_with("export SCCACHE_WEBDAV_TOKEN='sd1-"),
        "{out}"
    );
    let (code, _, err) = login(&[("SCCACHE_ID_TOKEN", &by_gitlab)], &[]);
    assert!(code == Some(1) && err.contains("exchanged before"), "{err}");
    let again = signer.token(&claims(&issuer, json!({"run_id": "72"})));
    let (code, out, _) = login(&[("SCCACHE_ID_TOKEN", &again)], &["--json"]);
    assert_eq!(code, Some(0));
    crate::json::conforms("login", &serde_json::from_str(&out).unwrap());
    let (code, _, err) = login(&[], &[]);
    assert!(code == Some(1) && err.contains("id-token: write"), "{err}");
    let say = |args: &[&str]| {
        let output = dock.command(args);
        String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
    };
    let sessions = say(&["sessions"]);
    assert!(
        sessions.contains("main:70: reads main; writes main, since "),
        "{sessions}"
    );
    assert!(say(&["sessions", "--revoke", "70"]).contains("ended 1 sessions"));
    assert!(!say(&["sessions"]).contains("main:70"));
    let gone = ureq::get(format!("{cache}/.sccache_check"));
    let gone = gone
        .header("Authorization", format!("Bearer {token}"))
        .call();
    assert!(gone.unwrap_err().to_string().contains("401"));
    let _ = WRITER;
}
