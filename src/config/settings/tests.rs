use super::rows::ROWS;
use super::*;
use crate::contract::gateway_config::TlsVersion;
use proptest::prelude::*;

fn load_from(pairs: &[(&str, &str)], files: &[(&str, &str)]) -> Result<Loaded, Problems> {
    let environment = pairs
        .iter()
        .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
        .collect();
    check(&environment, &|path| {
        files
            .iter()
            .find(|(name, _)| Path::new(name) == path)
            .map(|(_, text)| (*text).to_owned())
            .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    })
}

fn problems(pairs: &[(&str, &str)]) -> String {
    load_from(pairs, &[])
        .expect_err("must be refused")
        .to_string()
}

#[test]
fn nothing_set_gives_the_defaults() {
    let loaded = load_from(&[], &[]).unwrap();
    assert_eq!(loaded.settings.mode, Mode::Ephemeral);
    assert_eq!(loaded.settings.cache_size_bytes, 10 << 30);
    assert_eq!(loaded.settings.run_dir, Path::new("/var/sccache/run"));
    assert_eq!(loaded.settings.stop_grace, Duration::from_secs(8));
    assert!(loaded.warnings.is_empty());
    assert!(
        loaded
            .effective
            .iter()
            .all(|line| line.source == Source::Default)
    );
}

#[test]
fn all_problems_are_told_at_once_with_their_variables() {
    let text = problems(&[
        ("MODE", "persistant"),
        ("SCCACHE_CACHE_SIZE", "10 apples"),
        ("SCCACHE_DIR", "cache"),
        ("SCCACHE_IPC", "10.0.0.0/99"),
        ("SCCACHE_LOG", "loud"),
    ]);
    for part in [
        "MODE=persistant: \"persistant\" is not a mode",
        "did you mean \"persistent\"?",
        "SCCACHE_CACHE_SIZE=10 apples: has an unknown unit",
        "SCCACHE_DIR=cache: is not an absolute path",
        "SCCACHE_IPC=10.0.0.0/99: \"10.0.0.0/99\" is neither a network nor an address",
        "SCCACHE_LOG=loud: \"loud\" is not a level",
    ] {
        assert!(text.contains(part), "{part:?} is missing in:\n{text}");
    }
}

#[test]
fn environment_beats_secret_file_beats_toml_beats_default() {
    let files = [
        ("/run/secrets/size", "3G\n"),
        (DEFAULT_FILE, "cache_size = \"2G\"\nstop_grace = 3\n"),
    ];
    let size =
        |pairs: &[(&str, &str)]| load_from(pairs, &files).unwrap().settings.cache_size_bytes >> 30;
    assert_eq!(size(&[]), 2);
    assert_eq!(size(&[("SCCACHE_CACHE_SIZE_FILE", "/run/secrets/size")]), 3);
    assert_eq!(
        size(&[
            ("SCCACHE_CACHE_SIZE_FILE", "/run/secrets/size"),
            ("SCCACHE_CACHE_SIZE", "4G")
        ]),
        4
    );
    assert_eq!(
        load_from(&[], &files).unwrap().settings.stop_grace,
        Duration::from_secs(3)
    );
}

#[test]
fn secret_in_a_file_is_trimmed_and_never_shown() {
    let loaded = load_from(
        &[("SCCACHE_AUTH_TOKEN_FILE", "/run/secrets/token")],
        &[("/run/secrets/token", "s3cret-token\n")],
    )
    .unwrap();
    assert_eq!(
        loaded.settings.auth_token.as_ref().map(Secret::reveal),
        Some("s3cret-token")
    );
    assert!(!format!("{loaded:?}").contains("s3cret-token"));
}

#[test]
fn bad_secret_is_not_quoted_in_its_error() {
    let text = problems(&[("SCCACHE_AUTH_TOKEN", "two words")]);
    assert!(!text.contains("two words"), "{text}");
}

#[test]
fn missing_secret_file_is_an_error() {
    let text = problems(&[("SCCACHE_AUTH_TOKEN_FILE", "/run/secrets/gone")]);
    assert!(
        text.contains("SCCACHE_AUTH_TOKEN_FILE=/run/secrets/gone: cannot read the file"),
        "{text}"
    );
}

#[test]
fn named_settings_file_must_exist_and_hold_known_keys() {
    assert!(
        problems(&[("SCCACHE_DOCK_CONFIG", "/etc/none.toml")])
            .contains("/etc/none.toml: cannot read the file")
    );
    let text = load_from(&[], &[(DEFAULT_FILE, "cache_sise = \"1G\"")])
        .expect_err("unknown key")
        .to_string();
    assert!(
        text.contains("\"cache_sise\" is not a setting") && text.contains("cache_size"),
        "{text}"
    );
}

#[test]
fn invented_unknown_and_foreign_variables_are_named() {
    let loaded = load_from(
        &[
            ("SCCACHE_DIST_PREFIX", "tcp://h:10500"),
            ("SCCACHE_CACHESIZE", "1G"),
            ("SCCACHE_BUCKET", "b"),
        ],
        &[],
    )
    .unwrap();
    let of = |name: &str| {
        loaded
            .warnings
            .iter()
            .find(|w| w.subject == name)
            .map(ToString::to_string)
            .unwrap()
    };
    assert!(of("SCCACHE_DIST_PREFIX").contains("no effect"));
    assert!(of("SCCACHE_CACHESIZE").contains("did you mean SCCACHE_CACHE_SIZE?"));
    assert!(of("SCCACHE_BUCKET").contains("variable of sccache itself"));
}

#[test]
fn builder_needs_a_scheduler_and_its_token() {
    let text = problems(&[("MODE", "builder")]);
    assert!(
        text.contains("SCCACHE_SCHEDULER_URL: is required in MODE=builder")
            && text.contains("SCCACHE_SERVER_TOKEN: is required in MODE=builder"),
        "{text}"
    );
    let text = problems(&[("SCCACHE_SCHEDULER_URL", "http://h:10600")]);
    assert!(text.contains("use MODE=builder"), "{text}");
}

#[test]
fn url_of_a_scheduler_is_made_whole() {
    for (text, expected) in [
        ("build-host", Some("http://build-host:10600")),
        ("http://10.0.0.7/", Some("http://10.0.0.7:10600")),
        ("10.0.0.7:99", Some("http://10.0.0.7:99")),
        ("http://[fd00::7]", Some("http://[fd00::7]:10600")),
        ("https://build-host", Some("https://build-host:10600")),
        ("https://build-host:443/", Some("https://build-host:443")),
        ("ftp://build-host", None),
        ("http://h/path", None),
        ("h:0", None),
        ("http://", None),
        ("https://:10600", None),
    ] {
        let loaded = load_from(
            &[
                ("MODE", "builder"),
                ("SCCACHE_SERVER_TOKEN", "the-token"),
                ("SCCACHE_SCHEDULER_URL", text),
            ],
            &[],
        );
        let url = loaded.ok().and_then(|it| it.settings.dist.scheduler_url);
        assert_eq!(url.as_deref(), expected, "{text}");
    }
}

#[test]
fn builder_has_an_address_and_never_a_name() {
    let public = |text| {
        let loaded = load_from(&[("SCCACHE_PUBLIC_ADDR", text)], &[]).unwrap();
        loaded.settings.dist.public_addr.unwrap()
    };
    assert_eq!(public("192.168.1.7").port, None);
    assert_eq!(public("192.168.1.7:99").port, Some(99));
    let text = problems(&[("SCCACHE_PUBLIC_ADDR", "build-host:10501")]);
    assert!(
        text.contains("never a name\nhint: write the address that the name stands for"),
        "{text}"
    );
    assert!(problems(&[("SCCACHE_PUBLIC_ADDR", "0.0.0.0:10501")]).contains("could connect"));
}

#[test]
fn peers_behind_the_bridge_are_let_in_by_name_and_never_past_tls_or_tokens() {
    let ipc = |text: &str| {
        let loaded = load_from(&[("SCCACHE_IPC", text)], &[]).unwrap();
        loaded.settings.ipc
    };
    let beyond = |bridge, networks: &[&str]| IpcPolicy::Beyond {
        bridge,
        networks: networks.iter().map(|text| text.parse().unwrap()).collect(),
    };
    assert_eq!(ipc(""), IpcPolicy::Local);
    assert_eq!(ipc("local"), IpcPolicy::Local);
    assert_eq!(ipc("bridge"), beyond(true, &[]));
    assert_eq!(
        ipc("local, bridge,10.0.0.0/8,fd00::1"),
        beyond(true, &["10.0.0.0/8", "fd00::1/128"])
    );
    let tls = [
        ("SCCACHE_TLS_CERT", "/cert.pem"),
        ("SCCACHE_TLS_KEY", "/key.pem"),
    ];
    let tokens = [("SCCACHE_TOKENS_FILE", "/tokens.toml")];
    for (beside, name) in [
        (&tls[..], "SCCACHE_TLS_CERT"),
        (&tokens[..], "SCCACHE_TOKENS_FILE"),
    ] {
        let with = |policy| [beside, &[("SCCACHE_IPC", policy)]].concat();
        let text = problems(&with("bridge"));
        assert!(
            text.contains(&format!("\"bridge\" cannot be combined with {name}")),
            "{text}"
        );
        for named in ["172.17.0.1", "local", "off"] {
            assert!(load_from(&with(named), &[]).is_ok(), "{named}");
        }
    }
}

#[test]
fn certificate_and_key_come_together_and_are_paths() {
    let text = problems(&[("SCCACHE_TLS_CERT", "/cert.pem")]);
    assert!(
        text.contains("SCCACHE_TLS_KEY: is not set, but SCCACHE_TLS_CERT is\nhint: set both"),
        "{text}"
    );
    let text = problems(&[
        ("SCCACHE_TLS_CERT", "/cert.pem"),
        ("SCCACHE_TLS_KEY", "-----BEGIN PRIVATE KEY-----\nhidden"),
    ]);
    assert!(
        text.contains("give the path of the file, not its content"),
        "{text}"
    );
    let loaded = load_from(
        &[
            ("SCCACHE_TLS_CERT", "/cert.pem"),
            ("SCCACHE_TLS_KEY", "/key.pem"),
            ("SCCACHE_TOKENS_FILE", "/tokens.toml"),
        ],
        &[],
    )
    .unwrap();
    assert_eq!(loaded.warnings, []);
    let tls = loaded.settings.tls.unwrap();
    assert_eq!(tls.key, Path::new("/key.pem"));
    assert_eq!(tls.min_version, TlsVersion::V1_2);
    let text = problems(&[("SCCACHE_TLS_CLIENT_CA", "/ca.pem")]);
    let said = "SCCACHE_TLS_CERT: is not set, but SCCACHE_TLS_CLIENT_CA is";
    assert!(text.contains(said), "{text}");
    let text = problems(&[("SCCACHE_TLS_CLIENT_CERT", "/cert.pem")]);
    let said = "SCCACHE_TLS_CLIENT_KEY: is not set, but SCCACHE_TLS_CLIENT_CERT is";
    assert!(text.contains(said), "{text}");
    let text = problems(&[("SCCACHE_TLS_MIN_VERSION", "1.1")]);
    assert!(text.contains("\"1.1\" is not a version of TLS"), "{text}");
    assert_eq!(
        loaded.settings.tokens_file.as_deref(),
        Some(Path::new("/tokens.toml"))
    );
}

#[test]
fn storage_mode_is_an_alias_and_mode_wins() {
    let mode = |pairs: &[(&str, &str)]| load_from(pairs, &[]).unwrap().settings.mode;
    assert_eq!(
        mode(&[("SCCACHE_STORAGE_MODE", "volatile")]),
        Mode::Ephemeral
    );
    assert_eq!(
        mode(&[("SCCACHE_STORAGE_MODE", "persistent")]),
        Mode::Persistent
    );
    assert_eq!(
        mode(&[
            ("SCCACHE_STORAGE_MODE", "persistent"),
            ("MODE", "ephemeral")
        ]),
        Mode::Ephemeral
    );
}

#[test]
fn sizes_are_read_as_sccache_reads_them() {
    for (text, bytes) in [
        ("10G", 10_u64 << 30),
        ("1.5g", 3 << 29),
        ("500 MiB", 500 << 20),
        ("1048576", 1 << 20),
    ] {
        assert_eq!(size(text).ok(), Some(bytes), "{text}");
    }
    for text in ["", "G", "10X", "-1G", "1e3", "0", "99999999T"] {
        assert!(size(text).is_err(), "{text}");
    }
}

#[test]
fn anonymous_is_a_word_for_readers_only() {
    let text = problems(&[("SCCACHE_AUTH_TOKEN", "anonymous")]);
    assert!(
        text.contains("nobody may write without a token\nhint: SCCACHE_READ_TOKEN=anonymous"),
        "{text}"
    );
}

#[test]
fn tokens_that_a_client_could_not_be_told_unharmed_are_refused() {
    let names = [
        "SCCACHE_AUTH_TOKEN",
        "SCCACHE_READ_TOKEN",
        "SCCACHE_SERVER_TOKEN",
    ];
    for name in names {
        let text = problems(&[("MODE", "distributed-ephemeral"), (name, "pa$$word-1234")]);
        let said = format!("{name}=***: has a character that a shell or an env file would change");
        assert!(text.contains(&said), "{text}");
        assert!(text.contains("use letters, digits and -._+/="), "{text}");
        assert!(!text.contains("pa$$"), "{text}");
    }
    // Another server's token is not ours to choose.
    let upstream = [
        ("SCCACHE_UPSTREAM", "http://other:4226"),
        ("SCCACHE_UPSTREAM_TOKEN", "pa$$word-1234"),
    ];
    load_from(&upstream, &[]).unwrap();
}

#[test]
fn read_token_must_differ_from_the_write_token() {
    let text = problems(&[
        ("SCCACHE_AUTH_TOKEN", "same-token"),
        ("SCCACHE_READ_TOKEN", "same-token"),
    ]);
    assert!(text.contains("could write too"), "{text}");
    assert!(
        load_from(&[("SCCACHE_READ_TOKEN", "anonymous")], &[])
            .unwrap()
            .settings
            .anonymous_read
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]
    #[test]
    fn any_text_in_any_setting_is_answered_without_a_panic(
        row in 0..ROWS.len(), text in "\\PC{0,40}", toml in "\\PC{0,60}"
    ) {
        let pairs = [(ROWS[row].name, text.as_str())];
        let _ = load_from(&pairs, &[(DEFAULT_FILE, &toml)]);
    }

    #[test]
    fn accepted_sizes_never_lose_to_rounding(mib in 1_u64..1_000_000) {
        prop_assert_eq!(size(&format!("{mib}M")).ok(), Some(mib << 20));
    }
}

#[test]
fn installation_is_known_while_other_settings_are_broken() {
    let nothing = |_: &Path| Err(io::ErrorKind::NotFound.into());
    let place = |pairs: &[(&str, &str)], read: &dyn Fn(&Path) -> io::Result<String>| {
        let pairs = pairs.iter().map(|(n, v)| ((*n).into(), (*v).into()));
        super::installation_in(&pairs.collect(), read)
    };
    let whole = place(&[("SCCACHE_DIR", "/srv/cache")], &nothing);
    assert_eq!(whole.run_dir, Path::new("/srv/cache/run"));
    assert_eq!(whole.doubts, None);
    let broken = [("SCCACHE_DIR", "/srv/cache"), ("MODE", "nonsense")];
    let found = place(&broken, &nothing);
    assert_eq!(found.run_dir, Path::new("/srv/cache/run"));
    assert!(found.doubts.unwrap().to_string().contains("nonsense"));
    let file = |_: &Path| Ok("run_dir = \"/run/dock\"\ncache_size = \"lots\"\n".to_owned());
    assert_eq!(place(&[], &file).run_dir, Path::new("/run/dock"));
    let torn = |_: &Path| Ok("run_dir = \"/run/do".to_owned());
    let guess = place(&[], &torn);
    assert_eq!(guess.run_dir, Path::new("/var/sccache/run"));
    assert!(guess.doubts.unwrap().to_string().contains("cannot parse"));
}

#[test]
fn policies_are_read_from_every_place() {
    let loaded = load_from(
        &[
            ("SCCACHE_QUOTAS", "team/x=5G, default=1G"),
            ("SCCACHE_PINNED", "team/x"),
            ("SCCACHE_MAX_AGE", "30d, pr/*=7d"),
            ("SCCACHE_WRITE_ONCE", "main,release"),
            ("SCCACHE_AUDIT_LOG", "64M"),
            ("SCCACHE_SCRUB", "off"),
        ],
        &[],
    )
    .unwrap();
    assert_eq!(loaded.warnings, []);
    let policies = loaded.settings.policies;
    assert_eq!(policies.quotas["team/x"], 5 << 30);
    assert_eq!(policies.quotas["default"], 1 << 30);
    assert!(policies.pinned.contains("team/x"));
    assert_eq!(policies.max_age, Some(Duration::from_secs(30 * 86_400)));
    assert_eq!(policies.ages["pr/*"], 7 * 86_400);
    assert_eq!(policies.write_once.len(), 2);
    assert_eq!(policies.audit_bytes, Some(64 << 20));
    assert_eq!(policies.scrub, None);
    let text = "pinned = [\"release\", \"ci\"]\n[quotas]\nci = \"2G\"\nrelease = 1073741824\n";
    let policies = load_from(&[], &[(DEFAULT_FILE, text)])
        .unwrap()
        .settings
        .policies;
    assert_eq!(
        (policies.quotas["ci"], policies.quotas["release"]),
        (2 << 30, 1 << 30)
    );
    assert_eq!(policies.pinned.len(), 2);
    assert_eq!(policies.scrub, Some(Duration::from_secs(7 * 86_400)));
    let text = "quotas = [\"ci=2G\"]";
    let refused = load_from(&[], &[(DEFAULT_FILE, text)])
        .unwrap_err()
        .to_string();
    assert!(refused.contains("\"quotas\" is of type array"), "{refused}");
}

#[test]
fn quotas_and_pins_that_cannot_be_kept_are_refused() {
    for (quotas, pinned, expected) in [
        (
            "ci",
            "",
            "\"ci\" is not NAMESPACE=SIZE\nhint: write it as ci=20G",
        ),
        ("ci=lots", "", "the quota of \"ci\" is not a size"),
        ("ci=1G,ci=2G", "", "\"ci\" has two quotas"),
        (
            "ci=11G",
            "",
            "the quota of \"ci\" is 11.0 GiB, more than SCCACHE_CACHE_SIZE, 10.0 GiB",
        ),
        (
            "a=6G,b=6G,c=9G",
            "a,b",
            "the pinned namespaces add up to 12.0 GiB, more than SCCACHE_CACHE_SIZE",
        ),
        ("", "team//x", "\"team//x\" is not a namespace"),
        (
            "",
            "../x",
            "\"../x\" is not a namespace: the key has a part",
        ),
    ] {
        let text = problems(&[("SCCACHE_QUOTAS", quotas), ("SCCACHE_PINNED", pinned)]);
        assert!(
            text.contains(expected),
            "{expected:?} is missing in:\n{text}"
        );
    }
    assert!(
        problems(&[("SCCACHE_MAX_AGE", "soon")])
            .contains("SCCACHE_MAX_AGE=soon: is not a duration")
    );
    assert!(problems(&[("SCCACHE_SCRUB", "never")]).contains("write it as 7d, or off"));
    let many: Vec<String> = (0..65).map(|number| format!("n{number}")).collect();
    assert!(problems(&[("SCCACHE_PINNED", &many.join(","))]).contains("more than 64 namespaces"));
}

#[test]
fn pin_without_a_quota_is_advised_against() {
    let loaded = load_from(&[("SCCACHE_PINNED", "release")], &[]).unwrap();
    let told = loaded.warnings[0].to_string();
    assert!(
        told.contains("release has no quota") && told.contains("SCCACHE_QUOTAS=release=2G"),
        "{told}"
    );
    let fine = load_from(
        &[
            ("SCCACHE_PINNED", "release"),
            ("SCCACHE_QUOTAS", "release=2G,ci=9G"),
        ],
        &[],
    );
    assert_eq!(
        fine.unwrap().warnings,
        [],
        "others' quotas may promise more than there is"
    );
}

#[test]
fn secret_in_the_place_of_its_file_is_not_shown() {
    for name in [
        "SCCACHE_TLS_KEY",
        "SCCACHE_TLS_CLIENT_KEY",
        "SCCACHE_TOKENS_FILE",
        "SCCACHE_AUTH_TOKEN_FILE",
        "SCCACHE_READ_TOKEN_FILE",
    ] {
        let text = problems(&[(name, "the-secret-itself")]);
        assert!(text.contains(&format!("{name}=***: ")), "{text}");
        assert!(!text.contains("the-secret-itself"), "{text}");
    }
}
