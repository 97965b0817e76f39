//! What is shown of a running sccache-dock: its metrics, the dashboard and the alerts, by Prometheus itself.

use crate::distributed::{CLIENT, client_file};
use crate::dock::{Dock, eventually};
use crate::harness::{Answer, Gateway, Process, READER, WRITER, now, skip, tools, wait_for};
use crate::machine::Machine;
use crate::policies::file_of;
use crate::site::free_port;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Series that come with an event which no test of this module causes, and the test that does.
const EVENTFUL: [(&str, &str); 2] = [
    (
        "sccache_dock_dist_local_jobs_limited_total",
        "scheduler.rs: a job over its limit of memory",
    ),
    (
        "sccache_dock_dist_local_jobs_sent_home_total",
        "scheduler.rs: a job that looked for a file",
    ),
];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("images/compose")
}

fn read(name: &str) -> String {
    std::fs::read_to_string(folder().join(name)).unwrap()
}

/// One of Prometheus' programs; `None`, and a line, where it is not.
fn prometheus(program: &str) -> Option<PathBuf> {
    let kept = tools().join("prometheus/bin").join(program);
    let found = [kept, PathBuf::from(program)].into_iter().find(|path| {
        let asked = Command::new(path).arg("--version").output();
        asked.is_ok_and(|output| output.status.success())
    });
    if found.is_none() {
        skip(&format!("no {program}: scripts/test brings it"));
    }
    found
}

#[track_caller]
fn passes(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn alerts_fire_and_keep_quiet_as_their_tests_say() {
    let Some(promtool) = prometheus("promtool") else {
        return;
    };
    let tool = |args: [&str; 2], name: &str| {
        passes(
            Command::new(&promtool)
                .args(args)
                .arg(folder().join("prometheus").join(name)),
        );
    };
    tool(["check", "rules"], "alerts.yml");
    tool(["test", "rules"], "alerts.test.yml");
    let path = folder().join("prometheus/prometheus.yml");
    passes(
        Command::new(&promtool)
            .args(["check", "config", "--syntax-only"])
            .arg(path),
    );
}

#[test]
fn prometheus_and_grafana_are_laid_over_each_compose_file() {
    let asked = Command::new("docker-compose").arg("version").output();
    if !asked.is_ok_and(|output| output.status.success()) {
        return skip("docker-compose is not installed");
    }
    for file in [
        "ephemeral.yml",
        "persistent.yml",
        "distributed.yml",
        "cluster.yml",
    ] {
        let mut command = Command::new("docker-compose");
        command.args(["--file", file, "--file", "observe.yml", "config"]);
        command.env("GRAFANA_PASSWORD", "chosen");
        command.env("SCCACHE_SERVER_TOKEN", "token of builders");
        let output = command.current_dir(folder()).output().unwrap();
        let shown = String::from_utf8_lossy(&output.stdout);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{file}: {said}");
        let wired = "SCCACHE_READ_TOKEN_FILE: /run/secrets/sccache-read-token";
        assert!(shown.contains(wired), "{file}: {shown}");
    }
    let committed = read("prometheus/prometheus.yml");
    assert!(committed.contains("credentials_file: /run/secrets/sccache-read-token"));
    for (mounted, from) in [
        (
            "grafana/provisioning/dashboards/sccache-dock.yml",
            "/var/lib/grafana/dashboards",
        ),
        (
            "grafana/provisioning/datasources/prometheus.yml",
            "http://prometheus:9090",
        ),
    ] {
        assert!(read(mounted).contains(from), "{mounted}");
    }
}

#[test]
fn every_alert_has_a_test_of_each_kind_and_a_line_in_the_guide() {
    let (rules, tests) = (
        read("prometheus/alerts.yml"),
        read("prometheus/alerts.test.yml"),
    );
    let guide = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/observability.md");
    let guide = std::fs::read_to_string(guide).unwrap();
    let alerts: Vec<&str> = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
        .collect();
    assert!(alerts.len() > 10, "{alerts:?}");
    for alert in alerts {
        for kind in ["fires", "keeps quiet"] {
            let name = format!("- name: {alert} {kind}\n");
            assert!(tests.contains(&name), "{alert} has no test: {kind}");
        }
        assert!(
            guide.contains(&format!("| `{alert}` |")),
            "the guide says nothing of {alert}"
        );
    }
}

/// A dock in the fullest mode, a cache as its upstream, and clients of all kinds.
struct Scene {
    dock: Dock,
    upstream: Gateway,
    client: Machine,
    address: SocketAddr,
    front: u16,
    turn: std::cell::Cell<u32>,
    _certificate: tempfile::TempDir,
}

impl Scene {
    /// `None`, and a line, where no builder can run.
    fn set() -> Option<Scene> {
        if !Path::new("/usr/bin/bwrap").exists() {
            skip("bubblewrap is not installed");
            return None;
        }
        let certificate = tempfile::tempdir().unwrap();
        let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let (cert, key) = (
            certificate.path().join("cert.pem"),
            certificate.path().join("key.pem"),
        );
        std::fs::write(&cert, pair.cert.pem()).unwrap();
        std::fs::write(&key, pair.signing_key.serialize_pem()).unwrap();
        // It forgets as well: what both have evicted is a lost hit.
        let upstream = Gateway::start_with(|config| config.budget_bytes = 40 << 20);
        let front = free_port();
        let dock = Dock::start(&[
            ("MODE", "distributed-ephemeral"),
            ("SCCACHE_SCHEDULER_LISTEN", &format!("127.0.0.1:{front}")),
            (
                "SCCACHE_BUILDER_LISTEN",
                &format!("127.0.0.1:{}", free_port()),
            ),
            ("SCCACHE_PUBLIC_ADDR", "127.0.0.1"),
            ("SCCACHE_BUILDER_SLOTS", "1"),
            // The compiler takes a part of it.
            ("SCCACHE_CACHE_SIZE", "80M"),
            ("SCCACHE_QUOTAS", "team=4M"),
            ("SCCACHE_SCRUB", "10s"),
            ("SCCACHE_READ_TOKEN", READER),
            ("SCCACHE_TLS_CERT", cert.to_str().unwrap()),
            ("SCCACHE_TLS_KEY", key.to_str().unwrap()),
            ("SCCACHE_UPSTREAM", &upstream.url()),
            ("SCCACHE_UPSTREAM_TOKEN", WRITER),
        ]);
        let client = Machine::new();
        client.write(
            "dist.toml",
            &client_file(&format!("127.0.0.1:{front}"), &dock.token()),
        );
        let listening = dock.wait_log("listening on 127.0.0.1:");
        let address = listening.rsplit(' ').next().unwrap().parse().unwrap();
        let scene = Scene {
            dock,
            upstream,
            client,
            address,
            front,
            turn: std::cell::Cell::new(0),
            _certificate: certificate,
        };
        scene.compile();
        Some(scene)
    }

    /// One compile by each way: on the builder, by sccache's own protocol, by WebDAV.
    fn compile(&self) {
        self.client.write("a.c", "int main(void) { return 42; }\n");
        let compile = "sccache cc -c a.c -o a.o";
        let built = self.client.sh(&format!("{CLIENT}{compile}"));
        assert_eq!(built.code, Some(0), "{}", built.output);
        for _ in 0..2 {
            let built = self.client.with_env(&self.dock, "--lane ipc", compile);
            assert_eq!(built.code, Some(0), "{}", built.output);
        }
    }

    fn request(&self, token: &str, method: &str, path: &str, body: &[u8]) -> Answer {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nAuthorization: Bearer {token}\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n",
            body.len()
        );
        ask(self.address, &head, body)
    }

    /// Everything that a dock may meet on a busy day.
    fn stir(&self) {
        let turn = self.turn.replace(self.turn.get() + 1);
        let token = self.dock.token();
        let code =
            |method: &str, path: &str, body: &[u8]| self.request(&token, method, path, body).code;
        // More than fits, so that some must go.
        for number in 0..3 {
            let path = format!("/cas/{turn}-{number}");
            assert_eq!(code("PUT", &path, &vec![7; 10 << 20]), 201);
            assert_eq!(code("GET", &path, b""), 200);
        }
        assert_eq!(code("GET", "/team/cas/nowhere", b""), 404);
        // Of a turn whose blobs are evicted by now, here and there: a lost hit.
        code("GET", &format!("/cas/{}-0", turn.saturating_sub(4)), b"");
        let spoiled = format!("cas/spoiled-{turn}");
        assert_eq!(code("PUT", &format!("/{spoiled}"), b"blob"), 201);
        let file = file_of(&self.dock.dir.path().join("cache"), &spoiled);
        let file = std::fs::File::options().write(true).open(file).unwrap();
        file.set_len(7).unwrap();
        code("GET", &format!("/{spoiled}"), b"");
        let shared = format!("/team/cas/{turn}");
        assert_eq!(self.upstream.request("PUT", &shared, b"blob").code, 201);
        assert_eq!(code("GET", &shared, b""), 200, "from the upstream");
        assert_eq!(self.request(READER, "PUT", "/cas/x", b"").code, 403);
        let stranger = self.request("of nobody", "GET", "/cas/x", b"").code;
        assert!(
            matches!(stranger, 401 | 429),
            "no token of ours: {stranger}"
        );
        assert_eq!(code("PUT", "/../x", b""), 400, "no key");
        let state = "GET /api/v1/scheduler/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        ask(([127, 0, 0, 1], self.front).into(), state, b"");
        let built = self
            .client
            .with_env(&self.dock, "--lane ipc", "sccache cc -c a.c -o a.o");
        assert_eq!(built.code, Some(0), "{}", built.output);
        let job = format!("{CLIENT}sccache cc -DTURN={turn} -c a.c -o a.o");
        let built = self.client.sh(&job);
        assert_eq!(built.code, Some(0), "{}", built.output);
    }

    fn metrics(&self) -> String {
        self.request(READER, "GET", "/metrics", b"").text()
    }
}

fn ask(address: SocketAddr, head: &str, body: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body).unwrap();
    Answer::read(&mut stream)
}

/// Names of our metrics that stand in some text.
fn names(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words
        .filter(|word| word.starts_with("sccache_dock_") || word.starts_with("process_"))
        .map(str::to_owned)
        .collect()
}

/// Names of the samples of an answer.
fn samples(text: &str) -> BTreeSet<&str> {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split(['{', ' ']).next())
        .collect()
}

/// Queries of the dashboard, each with its panel's title.
fn queries() -> Vec<(String, String)> {
    let dashboard: Value = serde_json::from_str(&read("grafana/dashboard.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let mut found = Vec::new();
    for panel in panels {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            found.push((text(&panel["title"]), text(&target["expr"])));
        }
    }
    assert!(found.len() > 50, "{} queries", found.len());
    found
}

/// OpenMetrics as the older text format has it, which is what `promtool` checks: there the suffix of a counter is part
/// of its name.
fn older_format(text: &str) -> String {
    let mut older = String::new();
    let mut suffix = "";
    let lines: Vec<&str> = text.lines().collect();
    for (at, line) in lines.iter().enumerate() {
        let words: Vec<&str> = line.splitn(4, ' ').collect();
        match words[..] {
            ["#", "HELP", name, help] => {
                let kind = lines[at + 1].rsplit(' ').next().unwrap();
                suffix = match kind {
                    "counter" => "_total",
                    "info" => "_info",
                    _ => "",
                };
                writeln!(older, "# HELP {name}{suffix} {help}").unwrap();
            }
            ["#", "TYPE", name, kind] => {
                let kind = if kind == "info" { "gauge" } else { kind };
                writeln!(older, "# TYPE {name}{suffix} {kind}").unwrap();
            }
            ["#", "UNIT", ..] | ["#", "EOF"] => {}
            _ => writeln!(older, "{line}").unwrap(),
        }
    }
    older
}

#[test]
fn dashboard_and_alerts_name_metrics_that_exist_and_their_names_follow_the_rules() {
    let Some(scene) = Scene::set() else { return };
    let shown = queries().into_iter().map(|(_, query)| query);
    let shown: String = shown.chain([read("prometheus/alerts.yml")]).collect();
    let shown = names(&shown);
    let (text, mut unknown) = (scene.metrics(), shown.clone());
    for (event, _) in EVENTFUL {
        let known = format!("# TYPE {} ", event.trim_end_matches("_total"));
        assert!(text.contains(&known), "{event} is no metric:\n{text}");
        unknown.remove(event);
    }
    let begun = now();
    let text = loop {
        scene.stir();
        let text = scene.metrics();
        unknown.retain(|name| !samples(&text).contains(name.as_str()));
        if unknown.is_empty() {
            break text;
        }
        assert!(
            begun.elapsed() < Duration::from_secs(90),
            "these are no metrics: {unknown:?}\n{text}"
        );
    };
    let samples = samples(&text);
    let all: String = samples.iter().flat_map(|one| [one, "\n"]).collect();
    let unseen = names(&all).into_iter().filter(|name| {
        let base = name.trim_end_matches("_sum").trim_end_matches("_count");
        !shown.contains(name) && !shown.contains(&format!("{base}_bucket"))
    });
    let unseen: Vec<_> = unseen.collect();
    assert!(
        unseen.is_empty(),
        "no panel and no alert shows {unseen:?}: add them to the dashboard"
    );
    let Some(promtool) = prometheus("promtool") else {
        return;
    };
    let mut check = Command::new(promtool)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let older = older_format(&text);
    let mut stdin = check.stdin.take().unwrap();
    stdin.write_all(older.as_bytes()).unwrap();
    drop(stdin);
    let output = check.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.success() && said.is_empty(),
        "{said}\n{older}"
    );
}

/// A real Prometheus that scrapes the scene every second, by the committed files.
struct Watch {
    _process: Process,
    address: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Watch {
    fn start(program: &Path, scene: &Scene) -> Watch {
        let folder = tempfile::tempdir().unwrap();
        let token = folder.path().join("token");
        std::fs::write(&token, format!("{READER}\n")).unwrap();
        let committed = read("prometheus/prometheus.yml");
        let mut config = committed.clone();
        for (committed, here) in [
            ("sccache:4226", scene.address.to_string()),
            (
                "/run/secrets/sccache-read-token",
                token.display().to_string(),
            ),
            ("15s", "1s".to_owned()),
        ] {
            assert!(config.contains(committed), "{committed}\n{config}");
            config = config.replace(committed, &here);
        }
        std::fs::write(folder.path().join("prometheus.yml"), config).unwrap();
        std::fs::write(
            folder.path().join("alerts.yml"),
            read("prometheus/alerts.yml"),
        )
        .unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let process = Process::start(
            Command::new(program)
                .arg("--config.file=prometheus.yml")
                .arg("--storage.tsdb.path=data")
                .arg("--log.level=warn")
                .arg(format!("--web.listen-address={address}"))
                .current_dir(folder.path()),
        );
        wait_for("Prometheus", Duration::from_secs(30), || {
            let head = "GET /-/ready HTTP/1.0\r\n\r\n";
            TcpStream::connect(address).ok()?;
            (ask(address, head, b"").code == 200).then_some(())
        });
        Watch {
            _process: process,
            address,
            _folder: folder,
        }
    }

    fn api(&self, path: &str) -> Value {
        let head = format!("GET /api/v1/{path} HTTP/1.0\r\n\r\n");
        let answer = ask(self.address, &head, b"");
        let value: Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(value["status"], "success", "{path}: {value}");
        value["data"].clone()
    }

    /// How many series a panel's query returns that are numbers.
    fn series(&self, query: &str) -> usize {
        let query = query
            .replace("$job", "sccache-dock")
            .replace("$instance", ".*")
            .replace("$__rate_interval", "1m");
        assert!(!query.contains('$'), "{query}");
        let query = utf8_percent_encode(&query, NON_ALPHANUMERIC);
        let found = self.api(&format!("query?query={query}"));
        let results = found["result"].as_array().unwrap().iter();
        let is_number = |value: &&Value| {
            let number = value["value"][1].as_str().unwrap().parse::<f64>();
            number.is_ok_and(f64::is_finite)
        };
        results.filter(is_number).count()
    }
}

#[test]
fn every_panel_shows_data_of_a_real_prometheus_after_real_compiles() {
    let Some(program) = prometheus("prometheus") else {
        return;
    };
    let Some(scene) = Scene::set() else { return };
    let watch = Watch::start(&program, &scene);
    let begun = now();
    let mut empty = queries();
    empty.retain(|(_, query)| !EVENTFUL.iter().any(|(event, _)| query.contains(event)));
    let all = empty.len();
    while !empty.is_empty() {
        assert!(
            begun.elapsed() < Duration::from_secs(90),
            "these panels show nothing: {empty:#?}\n{}",
            scene.metrics()
        );
        scene.stir();
        empty.retain(|(_, query)| watch.series(query) == 0);
    }
    println!(
        "{all} queries of the dashboard return data after {:.1?}",
        begun.elapsed()
    );
    let targets = watch.api("targets");
    assert_eq!(targets["activeTargets"][0]["health"], "up", "{targets}");
    eventually("every alert was evaluated without an error", || {
        let groups = watch.api("rules")["groups"].as_array().unwrap().clone();
        let rules = groups.iter().flat_map(|group| group["rules"].as_array());
        let rules: Vec<&Value> = rules.flatten().collect();
        assert!(
            rules.iter().all(|rule| rule["health"] != "err"),
            "{rules:#?}"
        );
        rules
            .iter()
            .all(|rule| rule["health"] == "ok")
            .then_some(())
    });
}
