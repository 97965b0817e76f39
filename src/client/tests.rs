mod apart;

use super::*;
use clap::Parser;
use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    args: EnvArgs,
}

fn facts() -> Facts {
    Facts {
        endpoint: "http://127.0.0.1:4226".to_owned(),
        token: Some(Secret::new("it's $HOME`id`\\".replace(' ', "-").as_str())),
        socket: None,
        scheduler_port: Some(10600),
    }
}

fn text(line: &str) -> Result<String, String> {
    let words = std::iter::once("client-env").chain(line.split_whitespace());
    let args = Line::try_parse_from(words).map_err(|error| error.to_string())?;
    env_text(&args.args, &facts()).map_err(|error| error.to_string())
}

/// What a child of `shell` sees after it has evaluated the text for `line`.
fn evaluated(shell: &[&str], line: &str) -> Option<String> {
    let home = tempfile::tempdir().unwrap();
    let script = match shell[0] {
        "fish" => "printf %s $SET | source; set -e SET; env",
        _ => "eval \"$SET\"; unset SET; env",
    };
    let output = Command::new(shell[0])
        .args(&shell[1..])
        .args(["-c", script])
        .env("SET", text(line).unwrap())
        .env("HOME", home.path())
        .env("SCCACHE_BUCKET", "left-over")
        .env("SCCACHE_LOG", "debug")
        .env("SCCACHE_CONF", "/left-over")
        .output()
        .ok()?;
    assert!(output.status.success(), "{shell:?}: {output:?}");
    assert!(output.stderr.is_empty(), "{shell:?}: {output:?}");
    assert!(home.path().join(".cache/sccache-dock").is_dir());
    let seen = String::from_utf8(output.stdout).unwrap();
    Some(seen.replace(home.path().to_str().unwrap(), "~"))
}

fn shells() -> impl Iterator<Item = &'static [&'static str]> {
    let all: [&[&str]; 6] = [
        &["sh"],
        &["bash"],
        &["zsh"],
        &["mksh"],
        &["busybox", "sh"],
        &["fish"],
    ];
    all.into_iter()
}

fn check_refused(line: &str, expected: &str) {
    assert_eq!(text(line).unwrap_err(), expected, "{line}");
}

#[test]
fn every_shell_here_sees_the_whole_set_and_no_stray() {
    let (mut seen_by, mut addresses) = (Vec::new(), BTreeSet::new());
    for shell in shells() {
        let format = if shell[0] == "fish" { "fish" } else { "sh" };
        let line = format!("--format {format} --namespace team/main");
        let Some(seen) = evaluated(shell, &line) else {
            continue;
        };
        seen_by.push(shell[0]);
        for expected in [
            "RUSTC_WRAPPER=sccache",
            "CARGO_INCREMENTAL=0",
            "SCCACHE_MULTILEVEL_CHAIN=disk,webdav",
            "SCCACHE_WEBDAV_ENDPOINT=http://127.0.0.1:4226",
            "SCCACHE_WEBDAV_KEY_PREFIX=team/main",
            "SCCACHE_WEBDAV_TOKEN=it's-$HOME`id`\\",
            "SCCACHE_SKIP_CACHE_CHECK=1",
            "SCCACHE_WEBDAV_DISABLE_CREATE_DIR=1",
            "SCCACHE_IGNORE_SERVER_IO_ERROR=1",
            // A log level is the user's own business while there is a daemon.
            "SCCACHE_LOG=debug",
        ] {
            assert!(
                seen.lines().any(|it| it == expected),
                "{shell:?}: {expected} in\n{seen}"
            );
        }
        assert!(
            seen.contains("\nSCCACHE_DIR=~/.cache/sccache-dock/disk-"),
            "{seen}"
        );
        assert!(
            seen.contains("\nSCCACHE_SERVER_UDS=~/.cache/sccache-dock/"),
            "{seen}"
        );
        let port = seen
            .lines()
            .find_map(|it| it.strip_prefix("SCCACHE_SERVER_PORT="));
        let port: u16 = port.unwrap().parse().unwrap();
        assert!((20_000..30_000).contains(&port), "{shell:?}: {seen}");
        assert!(!seen.contains("sccache_dock_"), "{shell:?}: {seen}");
        addresses.insert(address(&seen));
        assert!(!seen.contains("left-over"), "{shell:?}: {seen}");
        assert!(seen.contains("\nSCCACHE_CONF=/dev/null\n"), "{seen}");
    }
    assert!(seen_by.contains(&"sh"), "{seen_by:?}");
    // Only the homes differ, which are `~`.
    assert_eq!(addresses.len(), 1, "{addresses:?}");
}

fn address(seen: &str) -> Vec<String> {
    let lines = seen.lines().filter(|it| it.starts_with("SCCACHE_SERVER_"));
    let mut lines: Vec<String> = lines.map(str::to_owned).collect();
    lines.sort();
    lines
}

#[test]
fn sh_survives_an_eval_without_quotes() {
    let home = tempfile::tempdir().unwrap();
    let output = Command::new("sh")
        .args(["-c", "eval $SET; env"])
        .env("SET", text("").unwrap())
        .env("HOME", home.path())
        .output()
        .unwrap();
    let seen = String::from_utf8(output.stdout).unwrap();
    assert!(seen.contains("\nSCCACHE_SERVER_PORT=2"), "{seen}");
    assert!(output.stderr.is_empty());
}

#[test]
fn own_protocol_turns_everything_off_that_would_turn_it_off() {
    let seen = evaluated(&["sh"], "--lane ipc --endpoint http://localhost:4300").unwrap();
    for expected in ["SCCACHE_CLIENT_SIDE=1", "SCCACHE_SERVER_PORT=4300"] {
        assert!(seen.lines().any(|it| it == expected), "{seen}");
    }
    for stray in ["SCCACHE_LOG=", "SCCACHE_SERVER_UDS=", "SCCACHE_WEBDAV"] {
        assert!(!seen.contains(stray), "{stray} in {seen}");
    }
    let seen = evaluated(&["sh"], "--lane socket --socket /run/dock/s.sock").unwrap();
    assert!(
        seen.contains("\nSCCACHE_SERVER_UDS=/run/dock/s.sock\n"),
        "{seen}"
    );
    assert!(!seen.contains("SCCACHE_SERVER_PORT"), "{seen}");
}

#[test]
fn other_settings_have_another_socket_and_a_new_token_keeps_the_folder() {
    let with_token = |token: &str| {
        let facts = Facts {
            token: Some(Secret::new(token)),
            ..facts()
        };
        let args = Line::try_parse_from(["client-env"]).unwrap().args;
        let set = set::Set::new(&args, &facts).unwrap();
        (set.id, set.place)
    };
    let (a, b) = (with_token("a"), with_token("b"));
    assert_ne!(a.0, b.0);
    assert_eq!(a.1, b.1);
    assert_eq!(a, with_token("a"));
}

#[test]
fn toml_and_cargo_are_toml_and_say_the_same() {
    let file: toml::Table = text("--format toml --namespace team")
        .unwrap()
        .parse()
        .unwrap();
    let webdav = &file["cache"]["webdav"];
    assert_eq!(webdav["endpoint"].as_str(), Some("http://127.0.0.1:4226"));
    assert_eq!(webdav["key_prefix"].as_str(), Some("team"));
    assert_eq!(webdav["token"].as_str(), Some(r"it's-$HOME`id`\"));
    assert_eq!(webdav["disable_create_dir"].as_bool(), Some(true));
    let chain = &file["cache"]["multilevel"]["chain"];
    assert_eq!(chain.to_string(), r#"["disk", "webdav"]"#);

    let cargo: toml::Table = text("--format cargo").unwrap().parse().unwrap();
    assert_eq!(cargo["build"]["rustc-wrapper"].as_str(), Some("sccache"));
    assert_eq!(cargo["build"]["incremental"].as_bool(), Some(false));
    let variable = &cargo["env"]["CARGO_INCREMENTAL"];
    assert_eq!(
        variable.as_str(),
        Some("0"),
        "or shells would have other keys"
    );
    let env = cargo["env"].as_table().unwrap();
    for (name, entry) in env {
        assert_eq!(
            entry.get("force"),
            None,
            "{name} of a container's own set wins"
        );
    }
    let token = env["SCCACHE_WEBDAV_TOKEN"].as_str();
    assert_eq!(token, Some(r"it's-$HOME`id`\"));
}

#[test]
fn file_for_several_people_names_no_path_and_a_port_for_each_cache() {
    let port = |line: &str| {
        let text = text(line).unwrap();
        assert!(!text.contains(".sock"), "{text}");
        let cargo: toml::Table = text.parse().unwrap();
        let port = cargo["env"]["SCCACHE_SERVER_PORT"].as_str().unwrap();
        port.parse::<u16>().unwrap()
    };
    let ours = port("--format cargo --no-token");
    assert!((20_000..30_000).contains(&ours), "{ours}");
    assert_eq!(ours, port("--format cargo --no-token"));
    let theirs = port("--format cargo --no-token --endpoint http://other:4226");
    assert_ne!(ours, theirs);
}

#[test]
fn lines_for_docker_and_github_are_assignments() {
    for format in ["docker", "github"] {
        let text = text(&format!("--format {format}")).unwrap();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (name, value) = line.split_once('=').unwrap();
            assert!(
                name.chars().all(|c| c.is_ascii_uppercase() || c == '_'),
                "{line}"
            );
            let is_unset = name == "SCCACHE_CLIENT_SIDE";
            assert_eq!(value.is_empty(), is_unset, "{line}");
        }
        assert_eq!(text.contains('#'), format == "docker", "{text}");
    }
}

#[test]
fn no_token_leaves_the_token_out_of_every_format() {
    for format in ["sh", "fish", "toml", "docker", "github", "cargo"] {
        let text = text(&format!("--no-token --format {format}")).unwrap();
        assert!(
            !text.contains("it's") && !text.contains(r"it'\''s"),
            "{text}"
        );
        assert!(!text.contains("unset SCCACHE_WEBDAV_TOKEN"), "{text}");
    }
    let docker = text("--no-token --format docker").unwrap();
    assert!(docker.lines().any(|line| line == "SCCACHE_WEBDAV_TOKEN"));
}

#[test]
fn no_disk_leaves_a_level_that_is_never_written() {
    for format in ["sh", "docker", "github", "cargo"] {
        let text = text(&format!("--no-disk --format {format}")).unwrap();
        let text = text.replace(['\'', '"', ';'], "").replace(" = ", "=");
        for part in [
            "SCCACHE_MULTILEVEL_CHAIN=disk,webdav\n",
            "SCCACHE_LOCAL_RW_MODE=READ_ONLY\n",
            "SCCACHE_MULTILEVEL_WRITE_ERROR_POLICY=all\n",
        ] {
            assert!(text.contains(part), "{format}: {text}");
        }
        let unset = text.lines().find(|line| line.starts_with("unset"));
        assert!(
            !unset.unwrap_or_default().contains("LOCAL_RW_MODE"),
            "{text}"
        );
    }
    let toml = text("--no-disk --format toml").unwrap();
    for part in [
        "chain = [\"disk\", \"webdav\"]\n",
        "rw_mode = \"READ_ONLY\"\n",
        "write_error_policy = \"all\"\n",
    ] {
        assert!(toml.contains(part), "{toml}");
    }
    assert!(!toml.contains("LOCAL_RW_MODE"), "{toml}");
}

/// Whoever could name the folder could put objects into it, which this client then takes for its own.
#[test]
fn empty_folder_where_everybody_may_write_is_named_by_the_token() {
    for format in ["docker", "github", "cargo", "toml"] {
        let folder = |token: &str| {
            let facts = Facts {
                token: Some(Secret::new(token)),
                ..facts()
            };
            let line = ["client-env", "--no-disk", "--format", format];
            let text = env_text(&Line::try_parse_from(line).unwrap().args, &facts).unwrap();
            let (_, folder) = text.split_once("/tmp/sccache-dock-empty-").unwrap();
            folder[..8].to_owned()
        };
        assert_ne!(folder("one-secret"), folder("another-one"), "{format}");
    }
}

#[test]
fn basedirs_are_taken_away_where_direct_mode_has_entries() {
    for (arguments, is_unset) in [
        ("--lane webdav", true),
        ("--lane dist", true),
        ("--lane ipc", true),
        ("--lane webdav --no-disk", false),
    ] {
        let text = text(arguments).unwrap();
        let unset = text.lines().next().unwrap();
        assert_eq!(unset.contains(" SCCACHE_BASEDIRS "), is_unset, "{text}");
    }
}

#[test]
fn refusals_name_the_hint() {
    check_refused(
        "--endpoint tcp://cache:4226",
        "cannot use endpoint \"tcp://cache:4226\": sccache does not support tcp:// URLs\nhint: write http://cache:4226",
    );
    check_refused(
        "--endpoint cache",
        "cannot use endpoint \"cache\": it has no scheme\nhint: write http://cache:4226",
    );
    check_refused(
        "--lane ipc --endpoint http://10.0.0.7:4226",
        "cannot use endpoint \"http://10.0.0.7:4226\": sccache's own protocol only ever talks to 127.0.0.1\n\
         hint: use --lane webdav for another host or another container, or publish the port on 127.0.0.1",
    );
    check_refused(
        "--lane socket",
        "cannot print lane \"socket\": the container shares no socket\n\
         hint: name it as the client sees it with --socket, or use --lane webdav",
    );
    for line in [
        "--endpoint http://",
        "--endpoint http://user@cache",
        "--endpoint http://cache/?q",
        "--endpoint ftp://cache",
        "--namespace ../up",
        "--namespace a//b",
        "--namespace team?",
        "--lane socket --socket relative.sock",
    ] {
        assert!(text(line).unwrap_err().contains("\nhint: "), "{line}");
    }
    let long = format!("--lane socket --socket /{}", "x".repeat(107));
    assert!(text(&long).unwrap_err().contains("longer than 107 bytes"));
}

#[test]
fn file_for_docker_can_be_sourced_with_every_legal_token() {
    let token = Secret::new("-._+/=09azAZ==");
    assert!(token.is_portable());
    let facts = Facts {
        token: Some(token.clone()),
        ..facts()
    };
    let line = ["client-env", "--format", "docker", "--namespace", "a/b.c_d"];
    let args = Line::try_parse_from(line).unwrap().args;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cache.env");
    std::fs::write(&file, env_text(&args, &facts).unwrap()).unwrap();
    let sourced = Command::new("sh")
        .args(["-euc", "set -a; . \"$0\"; env"])
        .arg(&file)
        .output()
        .unwrap();
    assert!(sourced.status.success(), "{sourced:?}");
    let seen = String::from_utf8(sourced.stdout).unwrap();
    let read = std::fs::read_to_string(&file).unwrap();
    let lines: Vec<&str> = read.lines().filter(|line| !line.starts_with('#')).collect();
    assert!(lines.contains(&&*format!("SCCACHE_WEBDAV_TOKEN={}", token.reveal())));
    for line in lines {
        assert!(seen.lines().any(|it| it == line), "{line} in\n{seen}");
    }
}

#[test]
fn every_name_in_a_set_is_one_that_sccache_reads() {
    for lane in ["webdav", "ipc", "socket --socket /s", "dist"] {
        let args = format!("client-env --namespace t --lane {lane}");
        let args = Line::try_parse_from(args.split_whitespace()).unwrap().args;
        let set = set::Set::new(&args, &facts()).unwrap();
        let names = set.variables.iter().map(|(name, _)| *name);
        for name in names
            .chain(set.strays)
            .filter(|name| name.starts_with("SCCACHE_"))
        {
            assert!(
                crate::config::variables::SCCACHE_OWN.contains(&name),
                "{name}"
            );
        }
    }
}

/// What the shell wrote for `--lane dist`, and what its child then sees.
fn dist_by(shell: &[&str], script: &str) -> Option<(toml::Table, String)> {
    let home = tempfile::tempdir().unwrap();
    let format = if shell[0] == "fish" { "fish" } else { "sh" };
    let output = Command::new(shell[0])
        .args(&shell[1..])
        .args(["-c", script])
        .env(
            "SET",
            text(&format!("--lane dist --format {format}")).unwrap(),
        )
        .env("HOME", home.path())
        .env("SCCACHE_CLIENT_SIDE", "1")
        .output()
        .ok()?;
    assert!(output.stderr.is_empty(), "{shell:?}: {output:?}");
    let seen = String::from_utf8(output.stdout).unwrap();
    let conf = seen
        .lines()
        .find_map(|line| line.strip_prefix("SCCACHE_CONF="));
    let path = Path::new(conf.unwrap_or_else(|| panic!("{shell:?}: {seen}")));
    assert!(path.starts_with(home.path()), "{}", path.display());
    let mode = path.metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "{shell:?}");
    let beside = path.parent().unwrap().read_dir().unwrap();
    assert_eq!(beside.count(), 1, "{shell:?} leaves nothing else behind");
    let file = std::fs::read_to_string(path).unwrap();
    Some((file.parse().unwrap(), seen))
}

#[test]
fn every_shell_here_writes_the_config_file_of_the_cluster_for_its_owner_alone() {
    let mut seen_by = Vec::new();
    for shell in shells() {
        let script = match shell[0] {
            "fish" => "printf %s $SET | source; set -e SET; env",
            _ => "eval \"$SET\"; unset SET; env",
        };
        let Some((file, seen)) = dist_by(shell, script) else {
            continue;
        };
        seen_by.push(shell[0]);
        let dist = &file["dist"];
        let url = dist["scheduler_url"].as_str();
        assert_eq!(url, Some("http://127.0.0.1:10600"), "{shell:?}");
        let auth = &dist["auth"];
        assert_eq!(auth["type"].as_str(), Some("token"));
        assert_eq!(
            auth["token"].as_str(),
            Some(r"it's-$HOME`id`\"),
            "{shell:?}"
        );
        let cache = &file["cache"];
        assert_eq!(cache["webdav"]["token"], auth["token"]);
        assert_eq!(
            cache["multilevel"]["chain"].to_string(),
            r#"["disk", "webdav"]"#
        );
        assert!(
            seen.contains("\nSCCACHE_WEBDAV_ENDPOINT=http://127.0.0.1:4226\n"),
            "{seen}"
        );
        assert!(!seen.contains("SCCACHE_CLIENT_SIDE"), "{shell:?}: {seen}");
    }
    assert!(
        seen_by.contains(&"sh") && seen_by.contains(&"bash"),
        "{seen_by:?}"
    );
    let (unquoted, _) = dist_by(&["sh"], "eval $SET; env").unwrap();
    assert!(unquoted.contains_key("dist"));
}

#[test]
fn format_that_cannot_carry_the_file_of_the_cluster_says_how_to_bring_it() {
    for (format, part) in [
        ("docker", "SCCACHE_CONF=/run/dock.conf\n"),
        ("github", "SCCACHE_CONF=/run/dock.conf\n"),
        ("cargo", "SCCACHE_CONF = \"/run/dock.conf\""),
    ] {
        let refused = text(&format!("--lane dist --format {format}")).unwrap_err();
        assert!(
            refused.contains(&format!("as \"{format}\"")) && refused.contains("--conf"),
            "{refused}"
        );
        let text = text(&format!(
            "--lane dist --format {format} --conf /run/dock.conf"
        ))
        .unwrap();
        assert!(text.contains(part), "{text}");
    }
    let named = text("--lane dist --conf /run/dock.conf").unwrap();
    assert!(
        named.contains("export SCCACHE_CONF='/run/dock.conf';") && !named.contains("printf"),
        "{named}"
    );
    let file = text("--lane dist --format conf").unwrap();
    assert!(file.starts_with(conf::MARK), "{file}");
    assert!(file.parse::<toml::Table>().unwrap().contains_key("dist"));
}

#[test]
fn scheduler_is_on_the_host_of_the_cache_unless_it_is_named() {
    for (arguments, expected) in [
        (
            "--endpoint http://build-cache:4226",
            "http://build-cache:10600",
        ),
        ("--endpoint http://[fd00::1]:4226", "http://[fd00::1]:10600"),
        (
            "--scheduler http://10.0.0.7:10700/",
            "http://10.0.0.7:10700",
        ),
    ] {
        let text = text(&format!("--lane dist --format toml {arguments}")).unwrap();
        let file: toml::Table = text.parse().unwrap();
        assert_eq!(file["dist"]["scheduler_url"].as_str(), Some(expected));
    }
    for (arguments, part) in [
        ("--scheduler http://10.0.0.7:10600/cluster", "it has a path"),
        ("--scheduler 10.0.0.7:10600", "it has no scheme"),
        ("--no-token", "config file only"),
        ("--conf relative.conf", "it is not absolute"),
    ] {
        let refused = text(&format!("--lane dist {arguments}")).unwrap_err();
        assert!(
            refused.contains(part) && refused.contains("\nhint: "),
            "{refused}"
        );
    }
    let facts = Facts {
        scheduler_port: None,
        ..facts()
    };
    let args = Line::try_parse_from(["client-env", "--lane", "dist"])
        .unwrap()
        .args;
    assert_eq!(env_text(&args, &facts), Err(Error::NoScheduler));
}

#[test]
fn written_file_is_replaced_and_a_foreign_one_is_not() {
    let home = tempfile::tempdir().unwrap();
    let write = |line: &str| {
        let words = ["client-env", "--lane", "dist"].into_iter();
        let args = Line::try_parse_from(words.chain(line.split_whitespace())).unwrap();
        write_conf(&args.args, &facts(), Some(home.path()))
    };
    let args = write("--write").unwrap();
    let path = args.conf.clone().unwrap();
    assert_eq!(
        path.parent().unwrap(),
        home.path().join(".cache/sccache-dock")
    );
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let text = env_text(&args, &facts()).unwrap();
    assert!(
        text.contains(&format!("export SCCACHE_CONF='{}';", path.display())),
        "{text}"
    );
    assert_eq!(write("--write").unwrap().conf, Some(path.clone()));

    let foreign = home.path().join("config");
    std::fs::write(&foreign, "[cache]\n").unwrap();
    let refused = write(&format!("--write={}", foreign.display())).unwrap_err();
    assert!(
        refused
            .to_string()
            .contains("was not written by this command"),
        "{refused}"
    );
    assert_eq!(std::fs::read_to_string(&foreign).unwrap(), "[cache]\n");
}
