//! What keeps clients apart: from what is left over of another cache, from other users and from other containers.

use super::*;

#[test]
fn formats_without_unset_set_what_does_nothing() {
    for format in ["docker", "github", "cargo"] {
        for lane in ["webdav", "ipc"] {
            let text = text(&format!("--lane {lane} --format {format}")).unwrap();
            let text = text.replace('"', "").replace(" = ", "=");
            for line in [
                "SCCACHE_BASEDIRS=/nonexistent",
                "SCCACHE_CONF=/dev/null",
                "SCCACHE_GHA_ENABLED=false",
                "SCCACHE_NO_DAEMON=0",
                "SCCACHE_START_SERVER=0",
                "SCCACHE_WEBDAV_RW_MODE=READ_WRITE",
            ] {
                let count = text.lines().filter(|it| *it == line).count();
                assert_eq!(count, 1, "{line} in {format}, {lane}: {text}");
            }
            let is_unset = text.lines().any(|it| it == "SCCACHE_CLIENT_SIDE=");
            assert_eq!(is_unset, lane == "webdav", "{text}");
        }
    }
    let toml = text("--format toml").unwrap();
    assert!(toml.lines().all(|line| line.len() < 128), "{toml}");
    for name in [
        "SCCACHE_NO_CACHE",
        "SCCACHE_CLIENT_SIDE",
        "unset SCCACHE_CONF,",
    ] {
        assert!(toml.contains(name), "{toml}");
    }
    let line = Line::try_parse_from(["client-env"]).unwrap();
    let value = serde_json::to_value(env_value(&line.args, &facts()).unwrap()).unwrap();
    assert_eq!(value["variables"]["SCCACHE_CONF"], "/dev/null");
    for name in value["unset"].as_array().unwrap() {
        let name = name.as_str().unwrap();
        assert_eq!(value["variables"].get(name), None, "{name}");
    }
}

/// Before 3.0 these are errors of its grammar, and nothing at all is set.
#[test]
fn text_for_fish_has_no_operators_that_old_ones_do_not_know() {
    for lane in ["webdav", "ipc", "socket --socket /s", "dist"] {
        let text = text(&format!("--format fish --lane {lane}")).unwrap();
        assert!(!text.contains("||") && !text.contains("&&"), "{text}");
    }
}

/// Docs and doctor name them where results of kinds of machines, or direct mode, are to be kept apart.
#[test]
fn variables_that_part_keys_on_purpose_stay() {
    for format in ["sh", "fish", "docker", "github", "cargo", "toml"] {
        for lane in ["webdav", "dist --conf /c", "ipc"] {
            let text = text(&format!("--lane {lane} --format {format}")).unwrap();
            for name in ["SCCACHE_C_CUSTOM_CACHE_BUSTER", "SCCACHE_DIRECT"] {
                assert!(!text.contains(name), "{name} in {format}, {lane}: {text}");
            }
        }
    }
}

#[test]
fn another_user_and_another_container_have_another_daemon() {
    let home = tempfile::tempdir().unwrap();
    let seen_by = |who: &[&str], format: &str, shell: &str| {
        let script = match shell {
            "fish" => "printf %s $SET | source; env",
            _ => "eval \"$SET\"; env",
        };
        let output = Command::new("unshare")
            .arg("--user")
            .args(who)
            .args([shell, "-c", script])
            .env("SET", text(&format!("--format {format}")).unwrap())
            .env("HOME", home.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        address(&String::from_utf8(output.stdout).unwrap())
    };
    for (format, shell) in [("sh", "sh"), ("fish", "fish")] {
        let here = seen_by(&["--map-current-user"], format, shell);
        assert_eq!(here, seen_by(&["--map-current-user"], format, shell));
        let other_user = seen_by(&["--map-user=4711"], format, shell);
        let container = seen_by(&["--map-current-user", "--mount"], format, shell);
        let all: BTreeSet<_> = [&here, &other_user, &container].into();
        assert_eq!(all.len(), 3, "{all:?}");
        for address in all.iter().flat_map(|it| it.iter()) {
            let (_, value) = address.split_once('=').unwrap();
            assert!(value.len() <= SOCKET_PATH_MAX, "{value}");
        }
        let ports: BTreeSet<_> = all.iter().map(|it| &it[0]).collect();
        assert_eq!(ports.len(), 3, "{ports:?}");
    }
}

/// Sccache takes a disk level for its own alone. It outlives a start of the machine or container, with its mounts.
#[test]
fn another_user_and_another_machine_have_another_disk_level() {
    let home = tempfile::tempdir().unwrap();
    let folders = |who: &[&str], before: &str, format: &str, shell: &str| {
        let script = match shell {
            "fish" => "printf %s $SET | source; env",
            _ => "eval \"$SET\"; env",
        };
        let set = text(&format!("--lane dist --conf /c --format {format}")).unwrap();
        let output = Command::new("unshare")
            .arg("--user")
            .args(who)
            .args([shell, "-c", &format!("{before}{script}")])
            .env("SET", set)
            .env("HOME", home.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let seen = String::from_utf8(output.stdout).unwrap();
        ["SCCACHE_DIR=", "SCCACHE_DIST_CLIENT_CACHE_DIR="].map(|name| {
            let mut lines = seen.lines();
            let folder = lines.find_map(|line| line.strip_prefix(name)).unwrap();
            assert!(Path::new(folder).starts_with(home.path()), "{folder}");
            folder.to_owned()
        })
    };
    for (format, shell) in [("sh", "sh"), ("fish", "fish")] {
        let here = folders(&["--map-root-user"], "", format, shell);
        let restarted = folders(&["--map-root-user", "--mount"], "", format, shell);
        assert_eq!(here, restarted);
        let other_user = folders(&["--map-user=4711"], "", format, shell);
        let machine = ["--map-root-user", "--uts"];
        let other_machine = folders(&machine, "hostname another-one; ", format, shell);
        for at in [0, 1] {
            let all: BTreeSet<_> = [&here[at], &other_user[at], &other_machine[at]].into();
            assert_eq!(all.len(), 3, "{all:?}");
        }
    }
}

/// In `/tmp` another user could take the name first, and be sent the environment of every compile.
#[test]
fn socket_in_the_file_for_cargo_is_beside_it_and_has_another_name_each_time() {
    let printed = || {
        let text = text("--format cargo").unwrap();
        let cargo: toml::Table = text.parse().unwrap();
        let socket = cargo["env"]["SCCACHE_SERVER_UDS"].clone();
        assert_eq!(socket["relative"].as_bool(), Some(true), "{socket}");
        let name = socket["value"].as_str().unwrap().to_owned();
        assert!(!name.contains('/'), "{name}");
        // Where it does not do.
        let longest = SOCKET_PATH_MAX - 1 - name.len();
        for part in [
            format!("more than {longest}\n"),
            "export SCCACHE_SERVER_UDS=\"$HOME/".to_owned(),
        ] {
            assert!(text.contains(&part), "{part:?} in {text}");
        }
        name
    };
    assert_ne!(printed(), printed());
    let other = text("--lane socket --socket /s --format cargo").unwrap();
    assert!(!other.contains("export"), "{other}");
}
