//! What commands print for programs, against the schemas of `docs/schemas`, which a number of ours stands for.

use crate::deploy::{root, tool};
use crate::dock::Dock;
use crate::docker::{PATIENCE, run};
use crate::harness::clean;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Output;

/// Holds a value against the schema of this name.
#[track_caller]
pub(crate) fn conforms(name: &str, value: &Value) {
    let Some(checker) = tool("check-jsonschema", "--version") else {
        return;
    };
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), value.to_string()).unwrap();
    let schema = root().join("docs/schemas").join(format!("{name}.json"));
    let mut check = clean(checker);
    check.arg("--schemafile").arg(schema).arg(file.path());
    let ran = run(&mut check, PATIENCE);
    assert_eq!(ran.code, Some(0), "{name}: {}\n{value:#}", ran.stdout);
}

/// One JSON value on standard output, and nothing on the other.
#[track_caller]
fn value(output: &Output) -> Value {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(said, "", "only the value is printed");
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text).unwrap_or_else(|cause| panic!("{cause}: {text}"))
}

#[test]
fn every_command_prints_what_its_schema_says() {
    let dock = Dock::start(&[]);
    let mut seen = BTreeSet::new();
    for (args, schema) in [
        (&["status"][..], "status"),
        (&["healthcheck"], "healthcheck"),
        (&["config"], "config"),
        (&["client-env"], "client-env"),
        (
            &["client-env", "--lane", "ipc", "--format", "fish"],
            "client-env",
        ),
        (&["purge", "--dry-run"], "purge"),
        (&["doctor"], "doctor"),
        (&["version"], "version"),
        (&["access", "--as", "auth", "some/path"], "access"),
        (&["sessions"], "sessions"),
        (&["sessions", "--revoke", "nobody"], "sessions"),
        (&["reload"], "done"),
        (&["restart", "server"], "done"),
        (&["stop", "server"], "done"),
    ] {
        let output = dock.command(&[args, &["--json"]].concat());
        let value = value(&output);
        let is_doctor = args[0] == "doctor";
        assert!(
            is_doctor || output.status.code() == Some(0),
            "{args:?}: {value:#}"
        );
        conforms(schema, &value);
        seen.insert(schema.to_owned());
    }
    // The only one that finds nothing here; the session of `login` and the build of `explain` are held against their
    // schemas where there are such.
    let key = "0".repeat(64);
    let output = dock.command(&["blob", &key, "--json"]);
    assert_eq!(output.status.code(), Some(1));
    conforms("blob", &value(&output));
    seen.extend(["blob", "explain", "login"].map(str::to_owned));
    // The schemas refuse what is something else.
    let set = value(&dock.command(&["client-env", "--json"]));
    assert_eq!(set["variables"]["SCCACHE_WEBDAV_TOKEN"], dock.token());
    let health = value(&dock.command(&["healthcheck", "--json"]));
    assert_eq!(health["healthy"], false, "a service was stopped: {health}");
    seen.insert("error".to_owned());
    let there = fs::read_dir(root().join("docs/schemas")).unwrap();
    let there: BTreeSet<String> = there
        .map(|entry| {
            entry
                .unwrap()
                .path()
                .file_stem()
                .unwrap()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    assert_eq!(seen, there, "each schema is one of a command's");
}

/// What `args` fail with, where nothing runs in `dir`.
fn failure(dir: &Path, args: &[&str], set: &[(&str, &str)]) -> (Option<i32>, Value) {
    let mut command = clean(crate::dock::program());
    command
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("HOME", dir);
    command.env("SCCACHE_DIR", dir).envs(set.iter().copied());
    let output = command.args(args).arg("--json").output().unwrap();
    assert_eq!(output.stdout, b"", "{args:?}");
    let value: Value = serde_json::from_slice(&output.stderr).unwrap();
    conforms("error", &value);
    (output.status.code(), value["error"].clone())
}

#[test]
fn failures_have_a_code_a_message_and_a_hint() {
    let dir = tempfile::tempdir().unwrap();
    for (args, set, exit, code, message, hint) in [
        (
            &["status"][..],
            &[][..],
            1,
            "unreachable",
            "cannot reach the supervisor",
            "is it running?",
        ),
        (
            &["restart", "gateway"],
            &[],
            1,
            "unreachable",
            "cannot reach the supervisor",
            "is it running?",
        ),
        (
            &["config"],
            &[("SCCACHE_CACHE_SIZE", "lots")],
            2,
            "settings",
            "SCCACHE_CACHE_SIZE",
            "",
        ),
        (
            &["client-env", "--token-name", "nobody"],
            &[],
            1,
            "token",
            "nobody",
            "SCCACHE_TOKENS_FILE",
        ),
        (
            &["statis"],
            &[],
            2,
            "usage",
            "unrecognized subcommand 'statis'",
            "status",
        ),
        (
            &["warm"],
            &[("PATH", "/nowhere")],
            1,
            "client",
            "cannot run sccache",
            "first on the PATH",
        ),
    ] {
        let (status, error) = failure(dir.path(), args, set);
        assert_eq!(status, Some(exit), "{args:?}: {error}");
        assert_eq!(error["code"], code, "{args:?}: {error}");
        let text = |field: &str| error[field].as_str().unwrap_or_default().to_owned();
        assert!(text("message").contains(message), "{args:?}: {error}");
        assert!(text("hint").contains(hint), "{args:?}: {error}");
        assert!(!text("message").contains("hint: "), "{args:?}: {error}");
    }
}

#[test]
fn json_after_at_is_its_commands() {
    let checkout = tempfile::tempdir().unwrap();
    let mut at = clean(crate::dock::program());
    at.current_dir(checkout.path());
    let output = at
        .args(["at", "/nowhere/at/all", "--", "echo", "--json"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.starts_with("error: ") || output.stdout == b"--json\n",
        "{said}"
    );
}

#[test]
fn table_of_commands_has_all_codes_and_exit_codes() {
    let text = fs::read_to_string(root().join("docs/commands.md")).unwrap();
    let schema = fs::read_to_string(root().join("docs/schemas/error.json")).unwrap();
    let schema: Value = serde_json::from_str(&schema).unwrap();
    let codes = &schema["properties"]["error"]["properties"]["code"]["enum"];
    for code in codes.as_array().unwrap() {
        let row = format!("| `{}` |", code.as_str().unwrap());
        assert!(text.contains(&row), "docs/commands.md lacks {row}");
    }
    for code in ["| 0 |", "| 1 |", "| 2 |", "| 3 |", "| 125, 126, 127 |"] {
        assert!(text.contains(code), "docs/commands.md lacks {code}");
    }
}
