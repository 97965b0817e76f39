//! The commands that ask a running sccache-dock, or tell about it, as they are typed.

use crate::dock::{Dock, eventually, program};
use crate::harness::{Outcome, clean, finish, sccache_bin, wait_for};
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Output;
use std::time::Duration;

fn put(dock: &Dock, path: &str) {
    let listen = dock.address();
    let answer = ureq::put(format!("http://{listen}/{path}"))
        .header("Authorization", format!("Bearer {}", dock.token()))
        .send(&[7_u8; 5000][..])
        .unwrap();
    assert_eq!(answer.status(), 201);
}

/// The blobs of each namespace that has any.
fn entries(dock: &Dock) -> Vec<(String, u64)> {
    let status = dock.status().unwrap();
    let namespaces = status["cache"]["namespaces"].as_object().unwrap();
    let entries = namespaces.iter().map(|(name, it)| {
        let entries = it["entries"].as_u64().unwrap();
        (name.clone(), entries)
    });
    entries.filter(|(_, entries)| *entries > 0).collect()
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn owned(pairs: &[(&str, u64)]) -> Vec<(String, u64)> {
    let pairs = pairs.iter();
    pairs.map(|(name, n)| ((*name).to_owned(), *n)).collect()
}

#[test]
fn purge_removes_by_namespace_by_age_and_altogether() {
    let dock = Dock::start(&[]);
    for path in ["team/1", "team/2", "bazel/1", "1"] {
        put(&dock, path);
    }
    let first_put = crate::harness::now();
    let purge = |arguments: &[&str]| text(&dock.command(&[&["purge"], arguments].concat()));
    assert_eq!(purge(&["--namespace", "none"]), "purged 0 blobs, 0 B\n");
    assert_eq!(
        purge(&["--namespace", "team"]),
        "purged 2 blobs, 16.0 KiB\n"
    );
    assert_eq!(entries(&dock), owned(&[("bazel", 1), ("default", 1)]));

    // Not even half a second may be rounded to "everything".
    assert_eq!(purge(&["--older-than", "1h"]), "purged 0 blobs, 0 B\n");
    wait_for("a second to pass", Duration::from_secs(5), || {
        (first_put.elapsed() > Duration::from_millis(1100)).then_some(())
    });
    put(&dock, "young/1");
    assert_eq!(
        purge(&["--older-than", "100ms"]),
        "purged 2 blobs, 16.0 KiB\n"
    );
    assert_eq!(entries(&dock), owned(&[("young", 1)]));

    put(&dock, "default/1");
    assert_eq!(
        purge(&["--namespace", "default"]),
        "purged 1 blobs, 8.0 KiB\n"
    );
    assert_eq!(purge(&[]), "purged 1 blobs, 8.0 KiB\n");
    assert_eq!(entries(&dock), []);
    let wrong = dock.command(&["purge", "--older-than", "soon"]);
    assert_eq!(wrong.status.code(), Some(2));
}

#[test]
fn status_keeps_its_columns_with_long_names() {
    let dock = Dock::start(&[]);
    let long = "a-namespace-of-a-team-with-a-long-name";
    put(&dock, &format!("{long}/1"));
    put(&dock, "ac/1");
    let table = text(&dock.command(&["status"]));
    let rows = table
        .lines()
        .skip_while(|line| !line.starts_with("NAMESPACE"));
    let rows: Vec<&str> = rows.take_while(|line| !line.is_empty()).collect();
    assert!(rows.len() >= 3, "{table}");
    for row in &rows {
        assert_eq!(row.len(), rows[0].len(), "{table}");
    }
    assert!(rows[0].ends_with("SIZE") && rows[1].ends_with("8.0 KiB"));
    let token = table.lines().find(|line| line.starts_with("auth "));
    assert!(token.is_some_and(|line| line.len() > 80), "{table}");
}

#[test]
fn config_names_each_source_and_hides_secrets() {
    let folder = tempfile::tempdir().unwrap();
    let (toml, secret) = (folder.path().join("dock.toml"), folder.path().join("token"));
    std::fs::write(&toml, "cache_size = \"3G\"\n").unwrap();
    std::fs::write(&secret, "secret-from-a-file\n").unwrap();
    let mut command = clean(program());
    command
        .arg("config")
        .env_remove("SCCACHE_CONF")
        .env("SCCACHE_DIR", folder.path())
        .env("SCCACHE_DOCK_CONFIG", &toml)
        .env("SCCACHE_AUTH_TOKEN_FILE", &secret)
        .env("SCCACHE_READ_TOKEN", "secret-of-readers")
        .env("SCCACHE_CASHE_SIZE", "1G");
    let Outcome { code, output } = finish(&mut command);
    assert_eq!(code, Some(0), "{output}");
    assert!(!output.contains("secret-"), "{output}");
    let squeezed = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let lines: Vec<String> = output.lines().map(squeezed).collect();
    for expected in [
        "MODE ephemeral default".to_owned(),
        format!("SCCACHE_CACHE_SIZE 3G {}", toml.display()),
        format!("SCCACHE_AUTH_TOKEN *** {}", secret.display()),
        "SCCACHE_READ_TOKEN *** environment".to_owned(),
        "hint: did you mean SCCACHE_CACHE_SIZE?".to_owned(),
    ] {
        assert!(
            lines.iter().any(|line| line.starts_with(&expected)),
            "{expected:?} is missing:\n{output}"
        );
    }
}

#[test]
fn version_is_ours_and_that_of_the_sccache_that_runs() {
    let mut command = clean(program());
    command.arg("version").env("SCCACHE_BINARY", sccache_bin());
    let ours = env!("CARGO_PKG_VERSION");
    assert_eq!(
        finish(&mut command).output,
        format!("sccache-dock {ours}\nsccache 0.19.0\n")
    );
    let mut without = clean(program());
    without.arg("version").env("SCCACHE_BINARY", "/no/sccache");
    let without = finish(&mut without);
    assert_eq!(without.code, Some(0));
    assert!(
        without.output.contains("/no/sccache: No such file"),
        "{}",
        without.output
    );
    // Wrong settings are no reason to keep the version to ourselves.
    let mut wrong = clean(program());
    assert_eq!(
        finish(wrong.arg("version").env("MODE", "sideways")).code,
        Some(0)
    );
}

#[test]
fn completions_are_scripts_of_their_shells() {
    for shell in ["bash", "zsh", "fish"] {
        let printed = finish(clean(program()).args(["completions", shell]));
        assert!(printed.output.contains("client-env"), "{shell}");
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &printed.output).unwrap();
        if finish(clean("sh").args(["-c", "command -v \"$0\"", shell])).code == Some(0) {
            let parsed = finish(clean(shell).arg("-n").arg(file.path()));
            assert_eq!(parsed.code, Some(0), "{shell}: {}", parsed.output);
        }
    }
}

/// An sccache that, as a server, waits for the file `go` beside it before it is one.
fn hesitant_sccache(folder: &Path) -> String {
    let (program, go) = (folder.join("sccache"), folder.join("go"));
    let script = format!(
        "#!/bin/sh\nwhile [ \"$1\" != --version ] && [ ! -e '{}' ]; do sleep 0.05; done\nexec '{}' \"$@\"\n",
        go.display(),
        sccache_bin().display()
    );
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
    program.display().to_string()
}

#[test]
fn starting_is_no_failure_and_not_healthy_yet() {
    let folder = tempfile::tempdir().unwrap();
    let mut dock = Dock::launch(&[("SCCACHE_BINARY", &hesitant_sccache(folder.path()))]);
    eventually("the gateway", || {
        (dock.service_if_up("gateway")?["state"] == "ready").then_some(())
    });
    let said = |dock: &Dock, args: &[&str]| {
        let output = dock.command(args);
        let text = String::from_utf8(output.stdout).unwrap();
        (output.status.code().unwrap(), text)
    };
    let (code, status) = said(&dock, &["status"]);
    assert_eq!(code, 0, "nothing is wrong: {status}");
    assert!(
        status.lines().next().unwrap().ends_with(", starting"),
        "{status}"
    );
    assert_eq!(dock.status().unwrap()["health"], "starting");
    let waits = "starting: server is starting\n".to_owned();
    assert_eq!(said(&dock, &["healthcheck"]), (1, waits));
    let (code, doctor) = said(&dock, &["doctor"]);
    let server = doctor.lines().find(|line| line.contains(" server "));
    assert!(
        code == 0 && server.is_some_and(|line| line.starts_with("warn")),
        "{doctor}"
    );

    std::fs::write(folder.path().join("go"), "").unwrap();
    dock.wait_ready();
    assert_eq!(dock.status().unwrap()["health"], "ready");
    assert_eq!(said(&dock, &["healthcheck"]), (0, "healthy\n".to_owned()));

    for service in ["server", "gateway"] {
        assert_eq!(said(&dock, &["stop", service]).0, 0);
        eventually("the stop", || {
            (dock.service(service)["state"] == "stopped").then_some(())
        });
        let (code, health) = said(&dock, &["healthcheck"]);
        assert!(
            code == 1 && health.contains(&format!("{service} is stopped")),
            "{health}"
        );
        let (code, status) = said(&dock, &["status"]);
        assert!(code == 1 && !status.contains("starting"), "{status}");
    }
    // The supervisor holds the port: to ask there would be to wait for a gateway that nobody starts.
    let (_, status) = said(&dock, &["status"]);
    assert!(
        status.contains("cache      not known: the gateway is stopped"),
        "{status}"
    );
}
