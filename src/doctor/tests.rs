use super::*;
use crate::client::sccache_file::Conf;
use crate::client::{EnvArgs, Format, Lane, env_text};
use std::net::TcpListener;

const ENDPOINT: &str = "http://127.0.0.1:4226";

fn environment_of(pairs: &[(&str, &str)]) -> Environment {
    let owned = pairs
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    owned.collect()
}

/// A client that has set everything as `client-env` prints it.
fn whole_set(lane: Lane) -> Environment {
    let args = EnvArgs {
        token_name: "auth".to_owned(),
        lane,
        format: Format::Docker,
        endpoint: None,
        namespace: None,
        socket: Some("/run/dock/sccache.sock".into()),
        scheduler: None,
        conf: Some("/run/dock/sccache.conf".into()),
        write: None,
        no_token: false,
        no_disk: false,
    };
    let facts = crate::client::Facts {
        endpoint: ENDPOINT.to_owned(),
        token: Some(Secret::new("token")),
        socket: None,
        scheduler_port: Some(10600),
    };
    let text = env_text(&args, &facts).unwrap();
    let lines = text.lines().filter_map(|line| line.split_once('='));
    lines
        .filter(|(name, _)| !name.starts_with('#'))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

fn judged(environment: &Environment, scheduler: Option<&str>) -> Vec<Check> {
    let lane = environment::lane(environment, scheduler);
    let mut checks = environment::judge(environment, &Endpoint::parse(ENDPOINT).unwrap(), lane);
    checks.extend(leftovers::judge(environment, None, lane));
    checks
}

/// Adds `pairs` to a good environment for `lane`; expects exactly these verdicts beside the good ones.
fn check(lane: Lane, pairs: &[(&str, &str)], expected: &[(&str, Verdict)]) {
    let mut environment = whole_set(lane);
    for (name, value) in pairs {
        match *value {
            "(unset)" => environment.remove(*name),
            _ => environment.insert((*name).to_owned(), (*value).to_owned()),
        };
    }
    let scheduler = (lane == Lane::Dist).then_some("http://127.0.0.1:10600");
    let checks = judged(&environment, scheduler);
    let bad = checks.iter().filter(|it| it.verdict != Verdict::Ok);
    let bad: Vec<(&str, Verdict)> = bad.map(|it| (it.what.as_str(), it.verdict)).collect();
    assert_eq!(bad, expected, "{pairs:?}: {checks:#?}");
}

#[test]
fn what_client_env_prints_has_no_finding() {
    for lane in [Lane::Webdav, Lane::Ipc, Lane::Socket, Lane::Dist] {
        check(lane, &[], &[]);
    }
}

#[test]
fn an_empty_environment_shares_nothing() {
    let report = Report {
        checks: judged(&Environment::new(), None),
    };
    assert!(!report.passed());
    assert!(report.table().contains("FAIL  lane"), "{}", report.table());
}

#[test]
fn the_guides_variables_are_named_with_the_real_ones() {
    let guide = [
        ("SCCACHE_ENDPOINT", "tcp://127.0.0.1:4226"),
        ("SCCACHE_DIST_PREFIX", "tcp://127.0.0.1:10500"),
        ("SCCACHE_STORAGE_MODE", "persistent"),
    ];
    let expected = [
        ("SCCACHE_ENDPOINT", Verdict::Warn),
        ("SCCACHE_DIST_PREFIX", Verdict::Warn),
        ("SCCACHE_STORAGE_MODE", Verdict::Warn),
    ];
    check(Lane::Webdav, &guide, &expected);
    let mends: Vec<String> = judged(&environment_of(&guide), None)
        .into_iter()
        .filter_map(|it| it.hint)
        .collect();
    assert!(
        mends
            .iter()
            .any(|it| it.contains("SCCACHE_WEBDAV_ENDPOINT=http://HOST:4226")),
        "{mends:?}"
    );
}

#[test]
fn typo_is_named_with_the_nearest_name() {
    let checks = judged(&environment_of(&[("SCCACHE_WEBDAV_ENPOINT", "x")]), None);
    let check = checks
        .iter()
        .find(|it| it.what == "SCCACHE_WEBDAV_ENPOINT")
        .unwrap();
    assert_eq!(
        check.hint.as_deref(),
        Some("did you mean SCCACHE_WEBDAV_ENDPOINT?")
    );
}

#[test]
fn names_of_the_management_script_are_no_strangers() {
    check(
        Lane::Webdav,
        &[("SCCACHE_CONTAINER_NAME", "x"), ("SCCACHE_BIND", "0.0.0.0")],
        &[],
    );
}

#[test]
fn variables_of_cargo_that_are_part_of_keys_are_named_without_their_values() {
    let warn = Verdict::Warn;
    for name in ["CARGO_TERM_COLOR", "CARGO_NET_OFFLINE", "CARGO_TARGET_DIR"] {
        check(Lane::Webdav, &[(name, "x")], &[(name, warn)]);
        check(Lane::Socket, &[(name, "x")], &[(name, warn)]);
    }
    // Not the 0 of the set.
    check(
        Lane::Webdav,
        &[("CARGO_INCREMENTAL", "false")],
        &[("CARGO_INCREMENTAL", warn)],
    );
    for name in [
        "CARGO_HOME",
        "CARGO_BUILD_JOBS",
        "CARGO_REGISTRIES_X_TOKEN",
        "CARGO",
    ] {
        check(Lane::Webdav, &[(name, "/cargo")], &[]);
    }
    let secret = environment_of(&[("CARGO_REGISTRY_TOKEN", "a-secret")]);
    let checks = judged(&secret, None);
    assert!(checks.iter().any(|it| it.what == "CARGO_REGISTRY_TOKEN"));
    assert!(!Report { checks }.table().contains("a-secret"));
}

#[test]
fn checks_fit_a_terminal_and_keep_what_is_copied_whole() {
    let hint = "export SCCACHE_WEBDAV_ENDPOINT=http://build-cache.of-the-whole-team.example:4226";
    let report = Report {
        checks: vec![
            Check::ok("gateway", "sccache-dock 0.1.0 at http://127.0.0.1:4226"),
            Check::fail("SCCACHE_WEBDAV_ENDPOINT", "it has no scheme", hint),
        ],
    };
    let at = |columns| {
        report.shown(Screen {
            width: Some(columns),
            ..PIPE
        })
    };
    for columns in [40, 60, 80, 200] {
        let text = at(columns);
        for line in text
            .lines()
            .filter(|line| !line.contains("of-the-whole-team"))
        {
            assert!(
                crate::base::human::width(line) <= columns,
                "{line:?} of {columns}"
            );
        }
        assert!(
            text.contains(hint.split(' ').next_back().unwrap()),
            "{text}"
        );
        assert!(text.ends_with("1 ok, 0 warnings, 1 failure\n"), "{text}");
    }
    assert!(
        at(40).starts_with("ok    gateway\n      sccache-dock 0.1.0 at\n"),
        "{}",
        at(40)
    );
    assert!(at(200).contains("FAIL  SCCACHE_WEBDAV_ENDPOINT  it has no scheme\n"));
}

#[test]
fn what_makes_sccache_refuse_to_run_fails() {
    let fail = Verdict::Fail;
    check(
        Lane::Webdav,
        &[("CARGO_INCREMENTAL", "1")],
        &[("CARGO_INCREMENTAL", fail)],
    );
    check(
        Lane::Webdav,
        &[("CARGO_BUILD_INCREMENTAL", "1")],
        &[("CARGO_BUILD_INCREMENTAL", fail)],
    );
    check(
        Lane::Webdav,
        &[("SCCACHE_START_SERVER", "1")],
        &[("SCCACHE_START_SERVER", fail)],
    );
    check(
        Lane::Ipc,
        &[("SCCACHE_DIRECT", "maybe")],
        &[("SCCACHE_DIRECT", fail)],
    );
    check(
        Lane::Webdav,
        &[("SCCACHE_MULTILEVEL_CHAIN", "disk")],
        &[("SCCACHE_MULTILEVEL_CHAIN", fail)],
    );
    let long = format!("/{}", "x".repeat(107));
    check(
        Lane::Webdav,
        &[("SCCACHE_SERVER_UDS", &long)],
        &[("SCCACHE_SERVER_UDS", fail)],
    );
}

#[test]
fn basedirs_fail_where_direct_mode_has_entries_of_an_old_sccache() {
    let set = ("SCCACHE_BASEDIRS", "/home/me");
    let verdict = |lane: Option<Lane>, pairs: &[(&str, &str)], in_conf, version: &str| {
        let mut environment = lane.map_or_else(Environment::new, whole_set);
        environment.remove("SCCACHE_BASEDIRS");
        environment.extend(environment_of(pairs));
        let version = crate::contract::sccache::Version::parse(version);
        environment::basedirs(&environment, in_conf, version, lane).map(|it| it.verdict)
    };
    let (fail, old) = (Some(Verdict::Fail), "sccache 0.19.0");
    for lane in [Lane::Webdav, Lane::Dist] {
        assert_eq!(verdict(Some(lane), &[set], false, old), fail);
        assert_eq!(verdict(Some(lane), &[], true, old), fail);
        assert_eq!(verdict(Some(lane), &[], false, old), None);
        assert_eq!(verdict(Some(lane), &[set], false, "sccache 0.20.1"), None);
        let empty = [set, ("SCCACHE_LOCAL_RW_MODE", "READ_ONLY")];
        assert_eq!(verdict(Some(lane), &empty, false, old), None);
        let off = [set, ("SCCACHE_DIRECT", "off")];
        assert_eq!(verdict(Some(lane), &off, false, old), None);
        let neutral = ("SCCACHE_BASEDIRS", crate::client::NO_BASEDIRS);
        assert_eq!(verdict(Some(lane), &[neutral], true, old), None);
    }
    assert_eq!(verdict(None, &[set], false, old), fail, "sccache by itself");
    assert_eq!(verdict(Some(Lane::Ipc), &[set], false, old), None);
}

#[test]
fn log_level_turns_only_the_own_protocol_off() {
    check(
        Lane::Ipc,
        &[("SCCACHE_LOG", "")],
        &[("SCCACHE_LOG", Verdict::Fail)],
    );
    check(Lane::Webdav, &[("SCCACHE_LOG", "debug")], &[]);
}

#[test]
fn port_must_be_the_gateways_for_ipc_and_must_not_be_for_webdav() {
    let (unset, fail) = (
        ("SCCACHE_SERVER_UDS", "(unset)"),
        [("SCCACHE_SERVER_PORT", Verdict::Fail)],
    );
    check(
        Lane::Webdav,
        &[unset, ("SCCACHE_SERVER_PORT", "(unset)")],
        &fail,
    );
    check(
        Lane::Webdav,
        &[unset, ("SCCACHE_SERVER_PORT", "4226")],
        &fail,
    );
    check(Lane::Webdav, &[unset, ("SCCACHE_SERVER_PORT", "4227")], &[]);
    check(Lane::Ipc, &[("SCCACHE_SERVER_PORT", "4227")], &fail);
    check(Lane::Ipc, &[("SCCACHE_SERVER_PORT", "(unset)")], &[]);
}

fn check_version(ours: &str, theirs: Option<&str>, lane: Lane, expected: &[Verdict]) {
    let version = crate::contract::sccache::Version::parse(ours).unwrap();
    let checks = daemon::versions(version, theirs, Some(lane));
    let verdicts: Vec<Verdict> = checks.iter().map(|it| it.verdict).collect();
    assert_eq!(verdicts, expected, "{ours} {theirs:?} {lane:?}");
}

#[test]
fn versions_are_judged_by_what_the_lane_needs() {
    use Verdict::{Fail, Ok, Warn};
    check_version("sccache 0.19.0", Some("0.19.0"), Lane::Webdav, &[Ok]);
    check_version("sccache 0.16.0\n", None, Lane::Webdav, &[Warn]);
    check_version("0.10.0", None, Lane::Webdav, &[Warn]);
    check_version("0.10.0", None, Lane::Ipc, &[Fail]);
    check_version("0.17.0", Some("0.19.0"), Lane::Socket, &[Ok, Warn]);
    check_version("0.19.1", None, Lane::Ipc, &[Ok]);
    check_version("0.20.0-alpha.1", None, Lane::Ipc, &[Warn]);
    check_version("0.20.0", Some("0.19.0"), Lane::Socket, &[Warn, Warn]);
    check_version("0.20.0", Some("0.20.0"), Lane::Webdav, &[Ok]);
    check_version("0.20.0", None, Lane::Dist, &[Warn]);
    assert_eq!(crate::contract::sccache::Version::parse("sccache"), None);
}

fn check_daemon(stats: &str, expected: Verdict) {
    let check = daemon::judge(&daemon::Stats::Text(stats.to_owned()), Some(Lane::Webdav));
    assert_eq!(check.verdict, expected, "{check:?}");
}

#[test]
fn daemon_with_other_settings_is_told_from_a_good_one() {
    let idle = r#"{"stats":{},"cache_location":"Local disk: \"/x\"","effective_cache_mode":null}"#;
    check_daemon(idle, Verdict::Ok);
    let private =
        r#"{"stats":{},"cache_location":"Local disk: \"/x\"","effective_cache_mode":"ReadWrite"}"#;
    check_daemon(private, Verdict::Fail);
    let remote = r#"{"stats":{},"cache_location":"webdav, name: , prefix: /","effective_cache_mode":"ReadWrite"}"#;
    check_daemon(remote, Verdict::Ok);
    check_daemon(&remote.replace("ReadWrite", "ReadOnly"), Verdict::Warn);
    let chain = r#"{"stats":{"multi_level":[{"location":"Local disk: \"/x\""},{"location":"webdav, name: , prefix: /","writes":3,"write_failures":0}]},"cache_location":"Multi-level (2 levels)","effective_cache_mode":"ReadWrite"}"#;
    check_daemon(chain, Verdict::Ok);
    check_daemon(
        &chain.replace("\"write_failures\":0", "\"write_failures\":3"),
        Verdict::Warn,
    );
    check_daemon("no json", Verdict::Warn);
    let silent = daemon::judge(&daemon::Stats::Silent, None);
    assert_eq!(silent.verdict, Verdict::Fail);
}

fn gateway_checks(endpoint: &str) -> Vec<Check> {
    let mut checks = Vec::new();
    let place = probe::Place {
        endpoint: Endpoint::parse(endpoint).unwrap(),
        folder: String::new(),
        between: None,
    };
    probe::gateway(&place, None, &mut checks);
    checks
}

#[test]
fn refusal_by_the_address_of_a_bridge_names_where_the_port_is_published() {
    let hint = |address: &str| connect::after_refusal(&[address.parse().unwrap()]);
    assert!(hint("172.17.0.1:4226").contains("SCCACHE_BIND=0.0.0.0"));
    for here in ["127.0.0.1:4226", "[::1]:4226"] {
        assert!(!hint(here).contains("SCCACHE_BIND"), "{here}");
    }
}

#[test]
fn refused_unresolved_and_foreign_servers_are_told_apart() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let closes_at_once = std::thread::spawn(move || {
        // Two connections: one that is only opened, one with a request.
        for stream in listener.incoming().take(2) {
            drop(stream);
        }
    });
    let foreign = gateway_checks(&format!("http://127.0.0.1:{port}"));
    let last = foreign.last().unwrap();
    assert!(last.found.contains("does not speak HTTP"), "{last:?}");
    closes_at_once.join().unwrap();
    // Bound and never listening: nobody else can get the port meanwhile.
    let bound = tokio::net::TcpSocket::new_v4().unwrap();
    bound.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let port = bound.local_addr().unwrap().port();
    let refused = gateway_checks(&format!("http://127.0.0.1:{port}"));
    assert!(refused[0].found.contains("refused"), "{refused:?}");
    let unresolved = gateway_checks("http://no-such-host.invalid:4226");
    assert!(
        unresolved[0].found.contains("cannot resolve"),
        "{unresolved:?}"
    );
}

#[test]
fn bad_endpoint_ends_the_report_with_the_hint() {
    let args = Args {
        endpoint: Some("tcp://cache:4226".to_owned()),
        token: None,
        json: false,
    };
    let report = client(&args, &Environment::new());
    assert_eq!(report.checks.len(), 1);
    assert_eq!(
        report.checks[0].hint.as_deref(),
        Some("write http://cache:4226")
    );
    let json: serde_json::Value = serde_json::from_str(&report.json()).unwrap();
    assert_eq!(json["passed"], false);
    assert_eq!(json["checks"][0]["verdict"], "fail");
}

#[test]
fn missing_folder_of_the_socket_and_a_scheduler_in_the_config_file_are_found() {
    let home = tempfile::tempdir().unwrap();
    let text = |path: &str| home.path().join(path).display().to_string();
    std::fs::create_dir_all(home.path().join(".config/sccache")).unwrap();
    std::fs::write(
        home.path().join(".config/sccache/config"),
        "dist.scheduler_url = \"http://x\"\n",
    )
    .unwrap();
    let environment = environment_of(&[
        ("HOME", &text("")),
        ("SCCACHE_SERVER_UDS", &text("gone/s.sock")),
        ("SCCACHE_CLIENT_SIDE", "1"),
    ]);
    let conf = sccache_file::load(&environment);
    let lane = conf.as_ref().and_then(|it| it.scheduler.as_deref());
    let lane = environment::lane(&environment, lane);
    let checks = probe::files(&environment, conf.as_ref(), lane);
    let verdicts: Vec<(&str, Verdict)> = checks
        .iter()
        .map(|it| (it.what.as_str(), it.verdict))
        .collect();
    assert_eq!(
        verdicts,
        [
            ("SCCACHE_SERVER_UDS", Verdict::Fail),
            ("config file", Verdict::Fail)
        ]
    );
}

fn conf_of(text: &str) -> Conf {
    Conf::parse(Path::new("/nonexistent/sccache.conf"), text).unwrap()
}

#[test]
fn half_a_config_file_of_the_cluster_is_named() {
    let whole = "dist.scheduler_url = \"http://h:10600\"\n\
                 dist.auth = { type = \"token\", token = \"a\" }\n\
                 cache.webdav = { endpoint = \"http://h:4226\", token = \"a\" }\n";
    let verdict = |text: &str, environment: &[(&str, &str)]| {
        let checks = cluster::judge_conf(&conf_of(text), &environment_of(environment));
        (checks[0].verdict, checks[0].found.clone())
    };
    assert_eq!(verdict(whole, &[]).0, Verdict::Ok);
    let other = verdict(whole, &[("SCCACHE_WEBDAV_TOKEN", "b")]);
    assert!(other.1.contains("another token"), "{other:?}");
    let line = |number: usize| whole.lines().nth(number).unwrap().to_owned();
    let (verdict_without_token, found) = verdict(&line(0), &[]);
    assert_eq!(verdict_without_token, Verdict::Fail);
    assert!(found.contains("no token"), "{found}");
    let alone = verdict(&format!("{}\n{}", line(0), line(1)), &[]);
    assert!(alone.1.contains("no cache"), "{alone:?}");
}

#[test]
fn scheduler_in_the_config_file_makes_the_lane() {
    let scheduler = Some("http://h:10600");
    let lane = |pairs: &[(&str, &str)]| environment::lane(&environment_of(pairs), scheduler);
    assert_eq!(lane(&[]), Some(Lane::Dist));
    assert_eq!(
        lane(&[("SCCACHE_WEBDAV_ENDPOINT", ENDPOINT)]),
        Some(Lane::Dist)
    );
    assert_eq!(lane(&[("SCCACHE_CLIENT_SIDE", "1")]), Some(Lane::Ipc));
    check_version("0.16.0", None, Lane::Dist, &[Verdict::Fail]);
    check_version("0.19.0", Some("0.19.0"), Lane::Dist, &[Verdict::Ok]);
}

#[test]
fn builder_that_is_not_there_is_told_from_one_that_is_something_else() {
    let scheduler = Endpoint::parse("http://127.0.0.1:10600").unwrap();
    let bound = tokio::net::TcpSocket::new_v4().unwrap();
    bound.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let refused = cluster::reach(&bound.local_addr().unwrap().to_string(), &scheduler);
    assert!(refused.found.contains("refused"), "{refused:?}");
    assert!(refused.hint.unwrap().contains("publish"));

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let answers = std::thread::spawn(move || {
        use std::io::{Read as _, Write as _};
        let (mut stream, _) = listener.accept().unwrap();
        // Closing with unread bytes would reset the connection.
        stream.read_exact(&mut [0; 50]).unwrap();
        stream.write_all(b"HTTP/1.1 400\r\n\r\n").unwrap();
    });
    let stranger = cluster::reach(&address, &scheduler);
    answers.join().unwrap();
    assert!(stranger.found.contains("not speak TLS"), "{stranger:?}");

    let elsewhere = Endpoint::parse("http://build-cache:10600").unwrap();
    let own = cluster::reach("127.0.0.1:1", &elsewhere);
    assert!(
        own.hint.as_ref().unwrap().contains("SCCACHE_PUBLIC_ADDR"),
        "{own:?}"
    );
    let named = cluster::reach("builder:10501", &scheduler);
    assert!(named.found.contains("is no address"), "{named:?}");
}

#[test]
fn what_the_gateway_knows_about_builders_is_judged() {
    let text = r#"{"builders":[{"address":"127.0.0.1:1","state":"lost","last_sign_seconds":95,"slots":2}],
                   "allocations":{"assigned":7,"failed":2,"busy":1},"scheduler_up":true}"#;
    let known: cluster::Cluster = serde_json::from_str(text).unwrap();
    let scheduler = Endpoint::parse("http://127.0.0.1:10600").unwrap();
    let lost = cluster::judge_builder(&known.builders[0], Some(&scheduler));
    assert!(lost.found.contains("no sign for 95 s"), "{lost:?}");
    let handing = cluster::handing_over(&known).unwrap();
    assert_eq!(handing.verdict, Verdict::Warn);
    assert!(handing.hint.unwrap().contains("publish 10501"));
    assert!(cluster::handing_over(&cluster::Cluster::default()).is_none());
    let by_relay = |attempts: &str| {
        let text = format!(
            r#"{{"relay":{{"waiting":0,"attempts":{attempts}}},"allocations":{{"relayed":9}}}}"#
        );
        let known: cluster::Cluster = serde_json::from_str(&text).unwrap();
        cluster::handing_over(&known)
    };
    let handing = by_relay(r#"{"done":7,"compiler":1}"#).unwrap();
    assert_eq!(handing.found, "8 jobs handed over");
    let handing = by_relay(r#"{"done":7,"unreachable":2}"#).unwrap();
    assert_eq!(handing.verdict, Verdict::Warn);
    assert!(by_relay("{}").is_none());
}

#[test]
fn relay_that_cannot_be_reached_is_told_with_the_setting_that_mends_it() {
    let at = "172.17.0.2:10600".parse().unwrap();
    let judge = |greeted| cluster::judge_relay(at, greeted, "http://build-host:10600");
    assert_eq!(judge(Ok(0x15)).verdict, Verdict::Ok);
    let refused = judge(Err(std::io::ErrorKind::ConnectionRefused.into()));
    assert_eq!(refused.verdict, Verdict::Fail);
    assert!(refused.found.contains("cannot reach 172.17.0.2:10600"));
    let hint = refused.hint.unwrap();
    assert!(hint.contains("SCCACHE_RELAY_ADDRESS") && hint.contains("http://build-host:10600"));
    assert!(judge(Ok(b'H')).found.contains("does not speak TLS"));
}

#[test]
fn daemon_without_the_scheduler_is_told_from_a_connected_one() {
    let verdict = |text: &str| cluster::judge_daemon(text).verdict;
    let connected =
        r#"{"SchedulerStatus":["http://h/",{"num_servers":1,"num_cpus":2,"in_progress":0}]}"#;
    assert_eq!(verdict(connected), Verdict::Ok);
    assert_eq!(
        verdict(r#"{"NotConnected":["http://h/","retry"]}"#),
        Verdict::Fail
    );
    assert_eq!(verdict(r#"{"Disabled":"disabled"}"#), Verdict::Fail);
    assert_eq!(verdict("sccache: error"), Verdict::Warn);
    let stats = |errors: u64| {
        let text = format!(
            r#"{{"stats":{{"dist_compiles":{{"a":3,"b":1}},"dist_errors":{errors}}},"effective_cache_mode":"ReadWrite"}}"#
        );
        daemon::Stats::Text(text)
    };
    let judged = |errors, relay| daemon::distributed(&stats(errors), relay).unwrap();
    assert_eq!(judged(0, false).found, "4 compiles on 2 builders");
    let by_relay = judged(0, true).found;
    assert_eq!(by_relay, "4 compiles on builders, by way of the relay");
    assert_eq!(judged(2, false).verdict, Verdict::Warn);
}

#[test]
fn file_of_ours_that_is_not_read_is_named() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join(".config/sccache");
    std::fs::create_dir_all(&folder).unwrap();
    let home = ("HOME", home.path().to_str().unwrap());
    let none = ("SCCACHE_CONF", "/dev/null");
    let is_named = |mark: &str, pairs: &[(&str, &str)]| {
        let file = format!("{mark}\n[cache.webdav]\nendpoint = '{ENDPOINT}'\n");
        std::fs::write(folder.join("config"), file).unwrap();
        let checks = probe::files(&environment_of(pairs), None, None);
        let mut checks = checks.iter();
        checks.any(|it| it.what == "SCCACHE_CONF" && it.verdict == Verdict::Warn)
    };
    let ours = crate::client::conf::MARK;
    assert!(is_named(ours, &[home, none]));
    assert!(!is_named("", &[home, none]));
    assert!(!is_named(ours, &[home]));
    // The variables say the same.
    let endpoint = |url| ("SCCACHE_WEBDAV_ENDPOINT", url);
    assert!(!is_named(ours, &[home, none, endpoint(ENDPOINT)]));
    assert!(is_named(ours, &[home, none, endpoint("http://other:4226")]));
}
